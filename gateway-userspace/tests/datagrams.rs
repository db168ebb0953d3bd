//! Datagrams that the agent forwards by itself: which endpoint a flow has, how many flows there may be, what is counted.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing, and its tasks end with it"
)]

mod support;

use std::{net::SocketAddr, time::Duration};

use gateway_userspace::snapshot::{Snapshot, listener::Protocol};
use support::{
    eventually, free_addr,
    proxy::Proxy,
    wanted::{listener, prefix, route, rule, service, simple},
};
use tokio::net::UdpSocket;

const SOON: Duration = Duration::from_secs(5);

/// An endpoint that answers with its own address and what it was sent, so often.
async fn echo(n_times: usize) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut bytes = vec![0; 65_535];
        while let Ok((n, peer)) = socket.recv_from(&mut bytes).await {
            let answer = [format!("{addr} ").as_bytes(), &bytes[..n]].concat();
            for _ in 0..n_times {
                socket.send_to(&answer, peer).await.unwrap();
            }
        }
    });
    addr
}

async fn endpoints() -> Vec<SocketAddr> {
    vec![echo(1).await, echo(1).await, echo(1).await]
}

fn balanced(addr: SocketAddr, endpoints: &[SocketAddr]) -> Snapshot {
    let mut snapshot = simple(addr, endpoints);
    snapshot.listeners[0].protocol = Protocol::Udp;
    snapshot
}

/// A listener for each address, all with the same endpoints.
fn several(addrs: &[SocketAddr], endpoints: &[SocketAddr]) -> Snapshot {
    let mut snapshot = balanced(addrs[0], endpoints);
    for (n, addr) in addrs.iter().enumerate().skip(1) {
        let name = format!("other-{n}");
        snapshot.listeners.push(listener(&name, *addr, Protocol::Udp));
        snapshot.routes.push(route(&name, &name, vec![rule(prefix("/"), &[("api", 1)])]));
    }
    snapshot
}

struct Client(UdpSocket);

impl Client {
    async fn of(addr: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(addr).await.unwrap();
        Self(socket)
    }

    async fn answer(&self, patience: Duration) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 65_535];
        let n = tokio::time::timeout(patience, self.0.recv(&mut bytes)).await.ok()?.unwrap();
        bytes.truncate(n);
        Some(bytes)
    }

    /// The endpoint that answers.
    async fn asks(&self) -> SocketAddr {
        self.0.send(b"who").await.unwrap();
        let answer = String::from_utf8(self.answer(SOON).await.unwrap()).unwrap();
        answer.split_once(' ').unwrap().0.parse().unwrap()
    }
}

fn open(proxy: &Proxy, addr: SocketAddr) -> f64 {
    proxy.metric(&format!("sluice_connections_open{{address=\"{addr}\",protocol=\"udp\"}} "))
}

fn accepted(proxy: &Proxy, addr: SocketAddr) -> f64 {
    proxy.metric(&format!("sluice_connections_accepted_total{{address=\"{addr}\",protocol=\"udp\"}} "))
}

fn lost(proxy: &Proxy, addr: SocketAddr, reason: &str) -> f64 {
    proxy.metric(&format!("sluice_datagrams_lost_total{{address=\"{addr}\",reason=\"{reason}\"}} "))
}

#[track_caller]
fn is(value: f64, expected: u32) {
    assert!((value - f64::from(expected)).abs() < 0.5, "{value} instead of {expected}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_leaves_an_endpoint_that_is_removed() {
    let (addr, endpoints) = (free_addr(), endpoints().await);
    let proxy = Proxy::start(&balanced(addr, &endpoints));
    let client = Client::of(addr).await;
    let first = client.asks().await;
    assert_eq!(client.asks().await, first);
    let left: Vec<_> = endpoints.iter().copied().filter(|endpoint| *endpoint != first).collect();
    proxy.apply(&balanced(addr, &left)).unwrap();
    let second = client.asks().await;
    assert_ne!(second, first);
    assert_eq!(client.asks().await, second);
    assert_eq!(proxy.endpoint("api", second).active(), 1);
    is(accepted(&proxy, addr), 1);
    is(open(&proxy, addr), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_leaves_an_endpoint_that_drains_for_one_that_does_not() {
    let (addr, endpoints) = (free_addr(), endpoints().await);
    let mut snapshot = balanced(addr, &endpoints);
    let proxy = Proxy::start(&snapshot);
    let client = Client::of(addr).await;
    let mut drained = Vec::new();
    for _ in 0..2 {
        let endpoint = client.asks().await;
        assert!(!drained.contains(&endpoint));
        drained.push(endpoint);
        let has_it = |endpoint: &SocketAddr| drained.contains(endpoint);
        for endpoint in snapshot.services[0].endpoints.iter_mut().filter(|endpoint| has_it(&endpoint.addr)) {
            endpoint.weight = 0;
        }
        proxy.apply(&snapshot).unwrap();
    }
    let last = client.asks().await;
    assert!(!drained.contains(&last));
    proxy.endpoint("api", last).set_out(true);
    for _ in 0..3 {
        assert_eq!(client.asks().await, last, "all of them drain");
    }
    proxy.endpoint("api", drained[0]).set_weight(1);
    assert_ne!(client.asks().await, last);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_goes_where_the_route_goes_now() {
    let (addr, endpoints) = (free_addr(), endpoints().await);
    let mut snapshot = balanced(addr, &endpoints[..1]);
    snapshot.services.push(service("other", &endpoints[1..2]));
    let proxy = Proxy::start(&snapshot);
    let client = Client::of(addr).await;
    assert_eq!(client.asks().await, endpoints[0]);
    snapshot.routes[0].rules = vec![rule(prefix("/"), &[("other", 1)])];
    proxy.apply(&snapshot).unwrap();
    assert_eq!(client.asks().await, endpoints[1]);
    snapshot.routes[0].rules = vec![rule(prefix("/"), &[("other", 0), ("api", 1)])];
    proxy.apply(&snapshot).unwrap();
    assert_eq!(client.asks().await, endpoints[0], "a backend of weight zero gets nothing");
    snapshot.routes[0].rules = vec![rule(prefix("/"), &[("api", 0), ("api", 1), ("other", 1)])];
    snapshot.services[1].endpoints[0].weight = 0;
    proxy.apply(&snapshot).unwrap();
    let active = || proxy.endpoint("api", endpoints[0]).active();
    assert_eq!((client.asks().await, active()), (endpoints[0], 1), "one that is named twice takes them");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_share_the_flows_that_a_worker_may_have() {
    let (addrs, endpoint) = ([free_addr(), free_addr()], echo(1).await);
    let proxy = Proxy::with_flows(&several(&addrs, &[endpoint]), 4);
    let mut clients = Vec::new();
    for addr in [addrs[0], addrs[1], addrs[0], addrs[1], addrs[0], addrs[0]] {
        let client = Client::of(addr).await;
        client.asks().await;
        clients.push(client);
    }
    is(open(&proxy, addrs[0]), 3);
    is(open(&proxy, addrs[1]), 1);
    is(proxy.metric("sluice_limit_reached_total{limit=\"udp_flows\"} "), 2);
    assert_eq!(proxy.endpoint("api", endpoint).active(), 4);
    is(accepted(&proxy, addrs[0]), 4);
    clients[0].asks().await;
    is(accepted(&proxy, addrs[0]), 5);
    // Of an address that is given up nothing is left, and its places are free.
    proxy.apply(&several(&addrs[1..], &[endpoint])).unwrap();
    eventually("its flows end", SOON, || proxy.endpoint("api", endpoint).active() < 2).await;
    for _ in 0..3 {
        let client = Client::of(addrs[1]).await;
        client.asks().await;
        clients.push(client);
    }
    is(proxy.metric("sluice_limit_reached_total{limit=\"udp_flows\"} "), 3);
    eventually("its numbers go with it", SOON, || {
        proxy.keep_house();
        !proxy.metrics.encode().unwrap().contains(&format!("\"{}\"", addrs[0]))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_descriptors_are_scarce_flows_take_places_of_connections() {
    let (addr, endpoint) = (free_addr(), echo(1).await);
    let proxy = Proxy::with_places(&balanced(addr, &[endpoint]), 2);
    let (first, second, third) = (Client::of(addr).await, Client::of(addr).await, Client::of(addr).await);
    first.asks().await;
    second.asks().await;
    third.asks().await;
    is(proxy.metric("sluice_limit_reached_total{limit=\"udp_flows\"} "), 1);
    is(lost(&proxy, addr, "no_socket"), 0);
    is(open(&proxy, addr), 2);
    // The oldest has gone, and comes back as another.
    first.asks().await;
    is(accepted(&proxy, addr), 4);
    is(open(&proxy, addr), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_is_counted_by_reason() {
    let (addr, endpoint) = (free_addr(), echo(1).await);
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let proxy = Proxy::start(&balanced(addr, &[]));
    let client = Client::of(addr).await;
    client.0.send(b"who").await.unwrap();
    eventually("nobody may receive it", SOON, || lost(&proxy, addr, "no_endpoint") > 0.5).await;
    is(accepted(&proxy, addr), 0);
    proxy.apply(&balanced(addr, &[endpoint])).unwrap();
    assert_eq!(client.asks().await, endpoint);
    is(accepted(&proxy, addr), 1);
    is(open(&proxy, addr), 1);
    proxy.apply(&balanced(addr, &[silent])).unwrap();
    client.0.send(b"who").await.unwrap();
    eventually("nobody listens there", SOON, || lost(&proxy, addr, "refused") > 0.5).await;
    // As soon as somebody does, nothing is lost.
    let socket = UdpSocket::bind(silent).await.unwrap();
    client.0.send(b"who").await.unwrap();
    let mut bytes = [0; 8];
    assert_eq!(tokio::time::timeout(SOON, socket.recv(&mut bytes)).await.unwrap().unwrap(), 3);
    is(lost(&proxy, addr, "unsent"), 0);
    proxy.apply(&balanced(addr, &[])).unwrap();
    client.0.send(b"who").await.unwrap();
    eventually("nor is there another", SOON, || lost(&proxy, addr, "no_endpoint") > 1.5).await;
    is(open(&proxy, addr), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_of_many_flows_do_not_mix() {
    let (addr, endpoint) = (free_addr(), echo(2).await);
    let _proxy = Proxy::with_workers(&balanced(addr, &[endpoint]), 1);
    let mut clients = Vec::new();
    for n in 0..32_u8 {
        let client = Client::of(addr).await;
        client.0.send(&vec![n; 3_000 - usize::from(n)]).await.unwrap();
        clients.push((client, n));
    }
    for (client, n) in clients {
        for _ in 0..2 {
            let answer = client.answer(SOON).await.unwrap();
            let sent = answer.strip_prefix(format!("{endpoint} ").as_bytes()).unwrap();
            assert_eq!(sent, vec![n; 3_000 - usize::from(n)]);
        }
    }
    let client = Client::of(addr).await;
    client.0.send(&vec![7; 60_000]).await.unwrap();
    assert_eq!(client.answer(SOON).await.unwrap().len(), 60_000 + endpoint.to_string().len() + 1);
}
