//! Who may come, and how many flows may begin, where the agent itself decides it.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test says what went wrong by failing, and its tasks end with it"
)]
#![allow(clippy::indexing_slicing, reason = "the support modules are shared")]

mod support;

use std::{net::SocketAddr, time::Duration};

use gateway_userspace::{
    network::Network,
    snapshot::{
        Snapshot,
        listener::Protocol,
        sources::{NewFlows, Pace, Sources},
    },
};
use support::{
    free_addr,
    origin::Origin,
    proxy::Proxy,
    wanted::{listener, prefix, route, rule, service, simple},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, UdpSocket},
};

const SOON: Duration = Duration::from_secs(5);

fn networks(texts: &[&str]) -> Vec<Network> {
    let network = |text: &&str| Network { addr: text.parse().unwrap(), prefix_bits: 32 };
    texts.iter().map(network).collect()
}

/// Whether a client from this address is answered; it meets a reset otherwise.
async fn is_served(source: &str, addr: SocketAddr) -> bool {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    let Ok(mut stream) = socket.connect(addr).await else { return false };
    let _sent = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await.unwrap();
    assert!(read.is_ok() || answer.is_empty());
    answer.starts_with(b"HTTP/1.1 200")
}

fn refused(proxy: &Proxy, (addr, protocol): (SocketAddr, &str), reason: &str) -> f64 {
    let labels = format!("{{address=\"{addr}\",protocol=\"{protocol}\",reason=\"{reason}\"}} ");
    proxy.metric(&format!("sluice_guard_refused_total{labels}"))
}

#[track_caller]
fn is(count: f64, expected: u32) {
    assert!((count - f64::from(expected)).abs() < 0.5, "{count}, not {expected}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_denied_meets_a_reset_and_a_change_takes_effect() {
    let origin = Origin::named("a").await;
    let addr = free_addr();
    let open = simple(addr, &[origin.addr]);
    let sources = Sources { deny: networks(&["127.0.0.2"]), ..Sources::default() };
    let guarded = Snapshot { sources, ..open.clone() };
    let proxy = Proxy::start(&guarded);
    assert!(is_served("127.0.0.1", addr).await);
    assert!(!is_served("127.0.0.2", addr).await);
    is(refused(&proxy, (addr, "tcp"), "denied"), 1);
    proxy.apply(&open).unwrap();
    assert!(is_served("127.0.0.2", addr).await);
    // What comes from this node itself is no forgery, whatever the list says of it elsewhere.
    let sources = Sources { drops_forged: true, ..Sources::default() };
    proxy.apply(&Snapshot { sources, ..open }).unwrap();
    assert!(is_served("127.0.0.1", addr).await && is_served("127.0.0.9", addr).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_begin_are_bounded_by_source_and_together() {
    let origin = Origin::named("a").await;
    let addr = free_addr();
    let mut snapshot = simple(addr, &[origin.addr]);
    // So slow that nothing comes back during the test.
    let pace = |burst| Some(Pace { per_second: 1, burst });
    snapshot.listeners.first_mut().unwrap().new_flows = NewFlows { all: pace(100), source: pace(3) };
    let proxy = Proxy::start(&snapshot);
    let mut served = 0;
    for _ in 0..8 {
        served += u32::from(is_served("127.0.0.1", addr).await);
    }
    assert!((3..=5).contains(&served), "{served} of a burst of three");
    is(refused(&proxy, (addr, "tcp"), "source_limited"), 8 - served);
    assert!(is_served("127.0.0.2", addr).await, "others are not concerned");

    snapshot.listeners.first_mut().unwrap().new_flows = NewFlows { all: pace(2), source: None };
    proxy.apply(&snapshot).unwrap();
    let mut served = 0;
    for n in 10..18 {
        served += u32::from(is_served(&format!("127.0.0.{n}"), addr).await);
    }
    assert!(served <= 4, "{served} of a burst of two");
    is(refused(&proxy, (addr, "tcp"), "service_limited"), 8 - served);
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_are_guarded_too_and_flows_that_are_open_go_on() {
    let origin = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let endpoint = origin.local_addr().unwrap();
    tokio::spawn(async move {
        let mut datagram = [0; 64];
        while let Ok((n, from)) = origin.recv_from(&mut datagram).await {
            origin.send_to(datagram.get(..n).unwrap(), from).await.unwrap();
        }
    });
    let addr = free_addr();
    let pace = Some(Pace { per_second: 1, burst: 2 });
    let mut dns = listener("dns", addr, Protocol::Udp);
    dns.new_flows = NewFlows { all: None, source: pace };
    let snapshot = Snapshot {
        listeners: vec![dns],
        routes: vec![route("dns", "dns", vec![rule(prefix("/"), &[("dns", 1)])])],
        services: vec![service("dns", &[endpoint])],
        sources: Sources { deny: networks(&["127.0.0.2"]), ..Sources::default() },
        ..Snapshot::default()
    };
    let proxy = Proxy::with_workers(&snapshot, 1);
    let ask = async |socket: &UdpSocket| {
        socket.send_to(b"who", addr).await.unwrap();
        let mut answer = [0; 64];
        tokio::time::timeout(Duration::from_millis(300), socket.recv(&mut answer)).await.is_ok()
    };
    let bound = async |source: &str| UdpSocket::bind(format!("{source}:0")).await.unwrap();
    assert!(!ask(&bound("127.0.0.2").await).await);
    is(refused(&proxy, (addr, "udp"), "denied"), 1);
    let first = bound("127.0.0.1").await;
    assert!(ask(&first).await);
    let mut answered = 0;
    for _ in 0..6 {
        answered += u32::from(ask(&bound("127.0.0.1").await).await);
    }
    assert!((1..=4).contains(&answered), "{answered} of what is left of a burst of two, and a second or two");
    is(refused(&proxy, (addr, "udp"), "source_limited"), 6 - answered);
    assert!(ask(&first).await, "it is no new flow");
    assert!(ask(&bound("127.0.0.3").await).await);
}
