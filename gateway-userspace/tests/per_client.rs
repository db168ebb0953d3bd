//! What one client may hold, whatever others hold.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing, and its tasks end with it"
)]

mod support;

use std::{net::SocketAddr, time::Duration};

use gateway_userspace::{config::ClientSettings, network::Network};
use support::{
    client::{self, Client},
    eventually,
    frames::{GOAWAY, HEADERS, Peer, REFUSED, RST_STREAM, Read, get},
    free_addr,
    origin::Origin,
    proxy::Proxy,
    wanted::simple,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

const SOON: Duration = Duration::from_secs(5);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

async fn connect_from(source: &str, addr: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    socket.connect(addr).await.unwrap()
}

/// The status of one request, and what stands before it; none when the connection was closed instead.
async fn status(stream: &mut TcpStream, header: &[u8]) -> Option<String> {
    // It may be closed by now.
    let _sent = stream.write_all(&[header, REQUEST].concat()).await;
    let mut answer = Vec::new();
    let _read = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await.unwrap();
    (!answer.is_empty()).then(|| String::from_utf8_lossy(&answer[9..12]).into_owned())
}

/// The next frame that says what becomes of a request.
async fn end(peer: &mut Peer) -> Read {
    loop {
        let frame = peer.read(SOON).await.unwrap();
        if matches!(frame.kind, RST_STREAM | HEADERS | GOAWAY) {
            return frame;
        }
    }
}

fn refused(proxy: &Proxy, limit: &str) -> u32 {
    let count = proxy.metric(&format!("sluice_limit_reached_total{{limit=\"{limit}\"}} "));
    (0..1_000).find(|n| f64::from(*n) >= count).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_bound_are_closed_and_others_are_served() {
    let origin = Origin::named("a").await;
    let addr = free_addr();
    let bounds = ClientSettings { connections: 3, streams: 100 };
    let proxy = Proxy::sharing(&simple(addr, &[origin.addr]), bounds);
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut client = Client::http1(addr).await;
        assert_eq!(client.get("a", "/").await.unwrap().status, 200);
        held.push(client);
    }
    for n in 1..=4 {
        assert_eq!(status(&mut connect_from("127.0.0.1", addr).await, b"").await, None);
        assert_eq!(refused(&proxy, "client_connections"), n);
    }
    assert_eq!(status(&mut connect_from("127.0.0.2", addr).await, b"").await.as_deref(), Some("200"));
    for client in &mut held {
        assert_eq!(client.get("a", "/").await.unwrap().status, 200, "what is open stays open");
    }
    drop(held);
    eventually("the places are free again", SOON, || {
        proxy.metric(&format!("sluice_connections_open{{address=\"{addr}\",protocol=\"tcp\"}} ")) < 0.5
    })
    .await;
    assert_eq!(client::get(addr, "a", "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_beyond_the_bound_are_refused_over_all_connections_of_a_client() {
    let (origin, permits) = Origin::held().await;
    let addr = free_addr();
    let bounds = ClientSettings { connections: 100, streams: 2 };
    let proxy = Proxy::sharing(&simple(addr, &[origin.addr]), bounds);
    let (mut one, mut other) = (Peer::connect(addr).await, Peer::connect(addr).await);
    one.send(&get(1)).await;
    other.send(&get(1)).await;
    eventually("two are under way", SOON, || origin.requests() == 2).await;
    for (n, peer) in [(1, &mut one), (2, &mut other)] {
        peer.send(&get(3)).await;
        let answer = end(peer).await;
        assert_eq!((answer.kind, answer.stream, answer.code()), (RST_STREAM, 3, Some(REFUSED)));
        assert_eq!(refused(&proxy, "client_streams"), n);
    }
    permits.add_permits(100);
    for peer in [&mut one, &mut other] {
        assert_eq!(end(peer).await.stream, 1, "what had begun ends well");
    }
    eventually("there is room again", SOON, || origin.requests() == 2).await;
    one.send(&get(5)).await;
    let answer = end(&mut one).await;
    assert_eq!((answer.kind, answer.stream), (HEADERS, 5));
    assert_eq!(origin.requests(), 3, "what was refused was never begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_load_balancer_clients_are_those_that_it_names() {
    let origin = Origin::named("a").await;
    let addr = free_addr();
    let mut snapshot = simple(addr, &[origin.addr]);
    snapshot.listeners[0].proxies = vec![Network { addr: "127.0.0.1".parse().unwrap(), prefix_bits: 32 }];
    let _proxy = Proxy::sharing(&snapshot, ClientSettings { connections: 1, streams: 100 });
    let from = |source: &str| format!("PROXY TCP4 {source} 192.0.2.1 4000 80\r\n").into_bytes();
    let mut held = TcpStream::connect(addr).await.unwrap();
    let keeping = [&from("198.51.100.1")[..], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
    held.write_all(&keeping).await.unwrap();
    let mut room = [0; 12];
    held.read_exact(&mut room).await.unwrap();
    assert_eq!(&room, b"HTTP/1.1 200");
    for (source, expected) in [("198.51.100.1", None), ("198.51.100.2", Some("200"))] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        assert_eq!(status(&mut stream, &from(source)).await.as_deref(), expected, "{source}");
    }
}
