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
use gateway_userspace::config::OverloadSettings;
use http::Response;
use http_body_util::Full;
use support::{
    client::{self, Client},
    eventually,
    frames::{GET, HEADERS, PREFACE, Peer, block, frame, get, post, settings},
    free_addr,
    origin::Origin,
    proxy::{CALM, Proxy},
    wanted::simple,
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

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
