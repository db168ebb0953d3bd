//! Too much to do, and clients that do as little as they can: the others are served.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing, and its tasks end with it"
)]

mod support;

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use gateway_userspace::{config::OverloadSettings, snapshot::listener::Protocol};
use http::Response;
use http_body_util::Full;
use support::{
    client::{self, Client},
    eventually,
    frames::{GET, HEADERS, PREFACE, Peer, block, frame, get, post, settings},
    free_addr,
    origin::Origin,
    proxy::{CALM, Proxy},
    wanted::{listener, prefix, route, rule, service, simple},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const SOON: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_the_bound_are_refused_before_anything_is_done() {
    let (origin, permits) = Origin::held().await;
    let addr = free_addr();
    let proxy = Proxy::bounded(&simple(addr, &[origin.addr]), OverloadSettings { requests: 4, ..CALM });
    let begun: Vec<_> = (0..4).map(|_| tokio::spawn(client::get(addr, "a", "/"))).collect();
    eventually("four are under way", SOON, || origin.requests() == 4).await;
    let mut http1 = Client::http1(addr).await;
    let mut http2 = Client::http2(addr).await;
    for client in [&mut http1, &mut http2] {
        let answer = client.get("a", "/").await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "1"));
    }
    let refused = proxy.metric("sluice_limit_reached_total{limit=\"requests\"} ");
    assert!((refused - 2.0).abs() < 0.5, "{refused}");
    assert_eq!(origin.requests(), 4);
    permits.add_permits(100);
    for one in begun {
        assert_eq!(one.await.unwrap().status, 200);
    }
    for client in [&mut http1, &mut http2] {
        assert_eq!(client.get("a", "/").await.unwrap().status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_connections_to_all_endpoints_than_there_are_places() {
    let (held, permits) = Origin::held().await;
    let (web, tcp) = (free_addr(), free_addr());
    let other = Origin::named("other").await;
    let mut snapshot = simple(web, &[held.addr]);
    snapshot.listeners.push(listener("plain", tcp, Protocol::Tcp));
    snapshot.routes[0].rules.push(rule(prefix("/other"), &[("other", 1)]));
    snapshot.routes.push(route("plain", "plain", vec![rule(prefix("/"), &[("other", 1)])]));
    snapshot.services.push(service("other", &[other.addr]));
    let proxy = Proxy::with_upstream(&snapshot, 2);
    let reached = || proxy.metric("sluice_limit_reached_total{limit=\"all_upstream_connections\"} ");
    let begun: Vec<_> = (0..2).map(|_| tokio::spawn(client::get(web, "a", "/"))).collect();
    eventually("two are under way", SOON, || held.requests() == 2).await;
    let refused = client::get(web, "a", "/other").await;
    assert_eq!((refused.status.as_u16(), refused.header("retry-after")), (503, "1"));
    let n_reached = reached();
    assert!(n_reached > 0.5);
    assert!(!is_forwarded(tcp).await);
    assert!(reached() > n_reached + 0.5);
    let none = format!("sluice_forwarded_connections_total{{address=\"{tcp}\",outcome=\"no_descriptor\"}} ");
    eventually("it is told from one without endpoint", SOON, || proxy.metric(&none) > 0.5).await;
    assert_eq!(other.connections(), 0);
    permits.add_permits(100);
    for one in begun {
        assert_eq!(one.await.unwrap().status, 200);
    }
    // What is idle now makes room, and whoever needs it learns nothing of that.
    assert_eq!(client::get(web, "a", "/other").await.status, 200);
    // So do those of requests for who is forwarded.
    assert!(is_forwarded(tcp).await);
}

/// Whether a request gets through where connections are forwarded; else they are reset at once.
async fn is_forwarded(addr: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(addr).await else { return false };
    drop(stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.is_ok() && answer.starts_with("HTTP/1.1 200 ")
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_of_every_kind_hold_up_nobody_else() {
    const EACH: usize = 250;
    let handler = |_| async { Response::new(Full::new(Bytes::from(vec![b'a'; 64 * 1024]))) };
    let origin = Origin::serve("127.0.0.1:0".parse().unwrap(), handler).await;
    let addr = free_addr();
    let _proxy = Proxy::with_workers(&simple(addr, &[origin.addr]), 1);
    let mut seen = Vec::new();
    // One bad moment of the machine is nobody's fault, and what else it does changes: the baseline is measured each time.
    for _ in 0..3 {
        let baseline = client::p99(addr).await;
        let slow = slow_clients(addr, EACH).await;
        let loaded = client::p99(addr).await;
        drop(slow);
        if loaded < baseline * 2 + Duration::from_millis(10) {
            return;
        }
        seen.push((baseline, loaded));
    }
    panic!("{seen:?}");
}

/// So many clients of each kind that do as little as they can.
async fn slow_clients(addr: SocketAddr, each: usize) -> Vec<TcpStream> {
    let mut slow = Vec::new();
    for _ in 0..each {
        // Heads that do not end, bodies that do not come, responses that are not read; over both versions.
        for bytes in [
            "GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nx",
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            stream.write_all(bytes.as_bytes()).await.unwrap();
            slow.push(stream);
        }
        let mut peer = Peer::silent(addr).await;
        let unended = frame(HEADERS, 0, 5, block(&GET));
        peer.send(&[PREFACE, &settings(&[(4, 0)]), &get(1), &post(3), &unended].concat()).await;
        slow.push(peer.0);
    }
    slow
}
