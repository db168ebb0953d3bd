//! What comes before a response, end to end: 100 when the endpoint wants the body, 103, and whatever else it says.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing, and its tasks end with it"
)]

mod support;

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use gateway_userspace::snapshot::service::UpstreamProtocol;
use http::{Request, Response, StatusCode, Version};
use support::{free_addr, origin::Origin, proxy::Proxy, wanted::simple};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const SOON: Duration = Duration::from_secs(5);

/// A connection that is spoken to line by line.
struct Raw(TcpStream);

impl Raw {
    async fn open(addr: SocketAddr, bytes: &str) -> Self {
        let mut raw = Self(TcpStream::connect(addr).await.unwrap());
        raw.say(bytes).await;
        raw
    }

    async fn say(&mut self, bytes: &str) {
        self.0.write_all(bytes.as_bytes()).await.unwrap();
    }

    /// Reads until `end` has arrived.
    async fn hear(&mut self, end: &str) -> String {
        let mut heard = Vec::new();
        let reading = async {
            let mut byte = [0];
            while !heard.ends_with(end.as_bytes()) {
                assert_eq!(self.0.read(&mut byte).await.unwrap(), 1, "{}", String::from_utf8_lossy(&heard));
                heard.push(byte[0]);
            }
        };
        let is_heard = tokio::time::timeout(SOON, reading).await.is_ok();
        assert!(is_heard, "only {:?}", String::from_utf8_lossy(&heard));
        String::from_utf8(heard).unwrap()
    }

    /// Whether the other side says nothing for a while.
    async fn is_silent(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(150), self.0.read(&mut [0])).await.is_err()
    }
}

/// Endpoints that the test itself plays, one connection after the other.
struct Played {
    origin: Origin,
    connections: tokio::sync::mpsc::Receiver<TcpStream>,
}

impl Played {
    async fn new() -> Self {
        let (sender, connections) = tokio::sync::mpsc::channel(16);
        let origin = Origin::raw(move |stream| {
            let sender = sender.clone();
            async move { drop(sender.send(stream).await) }
        });
        Self { origin: origin.await, connections }
    }

    async fn next(&mut self) -> Raw {
        Raw(tokio::time::timeout(SOON, self.connections.recv()).await.unwrap().unwrap())
    }
}

fn proxy(endpoint: SocketAddr, protocol: UpstreamProtocol) -> (SocketAddr, Proxy) {
    let addr = free_addr();
    let mut snapshot = simple(addr, &[endpoint]);
    snapshot.services[0].protocol = protocol;
    (addr, Proxy::with_workers(&snapshot, 1))
}

const PUT: &str = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_sent_when_the_endpoint_wants_it() {
    let mut endpoint = Played::new().await;
    let (addr, _proxy) = proxy(endpoint.origin.addr, UpstreamProtocol::Http1);
    let mut client = Raw::open(addr, PUT).await;
    let mut at_endpoint = endpoint.next().await;
    let head = at_endpoint.hear("\r\n\r\n").await;
    assert!(head.contains("expect: 100-continue\r\n"), "{head}");
    assert!(client.is_silent().await, "nobody has said yet that the body is wanted");
    at_endpoint.say("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(client.hear("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(client.is_silent().await, "once is enough");
    client.say("hello").await;
    assert_eq!(at_endpoint.hear("hello").await, "hello");
    at_endpoint.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let response = client.hear("ok").await;
    assert!(response.starts_with("HTTP/1.1 200") && !response.contains("close"), "{response}");
    client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    at_endpoint.hear("\r\n\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_nobody_wants_is_not_waited_for() {
    let mut endpoint = Played::new().await;
    let (addr, _proxy) = proxy(endpoint.origin.addr, UpstreamProtocol::Http1);
    let mut client = Raw::open(addr, PUT).await;
    let mut at_endpoint = endpoint.next().await;
    at_endpoint.hear("\r\n\r\n").await;
    at_endpoint.say("HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n").await;
    let response = client.hear("\r\n\r\n").await;
    // Whether the body follows is the client's choice, and nobody can tell it from another request.
    assert!(response.starts_with("HTTP/1.1 417") && response.contains("connection: close\r\n"), "{response}");
    // The endpoint's connection is in the same doubt.
    let _other = Raw::open(addr, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    endpoint.next().await.hear("\r\n\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_wait_is_not_held_up() {
    let mut endpoint = Played::new().await;
    let (addr, _proxy) = proxy(endpoint.origin.addr, UpstreamProtocol::Http1);
    let mut client = Raw::open(addr, &format!("{PUT}hello")).await;
    let mut at_endpoint = endpoint.next().await;
    at_endpoint.hear("\r\n\r\nhello").await;
    at_endpoint.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    client.hear("ok").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expectation_without_a_body_or_in_http_1_0_is_none() {
    let mut endpoint = Played::new().await;
    let (addr, _proxy) = proxy(endpoint.origin.addr, UpstreamProtocol::Http1);
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
        "PUT / HTTP/1.0\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\nx",
    ] {
        let mut client = Raw::open(addr, request).await;
        let mut at_endpoint = endpoint.next().await;
        let head = at_endpoint.hear("\r\n\r\n").await;
        assert!(!head.contains("expect"), "{head}");
        at_endpoint.say("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
        let response = client.hear("ok").await;
        // Clients of HTTP/1.0 know one response for each request (RFC 9110, section 15.2).
        assert_eq!(response.contains(" 103 "), request.contains("HTTP/1.1"), "{response}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_pass_and_no_more_than_the_bound() {
    let mut endpoint = Played::new().await;
    let (addr, proxy) = proxy(endpoint.origin.addr, UpstreamProtocol::Http1);
    let mut client = Raw::open(addr, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut at_endpoint = endpoint.next().await;
    at_endpoint.hear("\r\n\r\n").await;
    let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: x-secret\r\nX-Secret: 1\r\nContent-Length: 7\r\n\r\n";
    at_endpoint.say(hint).await;
    assert_eq!(client.hear("\r\n\r\n").await, "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n");
    at_endpoint.say(&hint.repeat(99)).await;
    at_endpoint.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let rest = client.hear("ok").await;
    assert_eq!(rest.matches(" 103 ").count(), 15);
    let dropped = proxy.metric("sluice_limit_reached_total{limit=\"interims\"} ");
    assert!((dropped - 84.0).abs() < 0.5, "{dropped}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_protocols_that_nobody_asked_for_is_a_fault() {
    let mut endpoint = Played::new().await;
    let (addr, _proxy) = proxy(endpoint.origin.addr, UpstreamProtocol::Http1);
    let mut client = Raw::open(addr, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut at_endpoint = endpoint.next().await;
    at_endpoint.hear("\r\n\r\n").await;
    at_endpoint.say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n").await;
    assert!(client.hear("\r\n\r\n").await.starts_with("HTTP/1.1 502"));
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http_2_on_both_sides() {
    let origin = Origin::raw(|stream| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                let interim = |status: StatusCode| {
                    Response::builder().status(status).header("x", "1").body(()).unwrap()
                };
                respond.send_informational(interim(StatusCode::EARLY_HINTS)).unwrap();
                respond.send_informational(interim(StatusCode::CONTINUE)).unwrap();
                let mut body = request.into_body();
                let mut n = 0;
                while let Some(data) = body.data().await {
                    n += data.unwrap().len();
                }
                let mut sending = respond.send_response(Response::new(()), false).unwrap();
                sending.send_data(Bytes::from(n.to_string()), true).unwrap();
            });
        }
    })
    .await;
    let (addr, _proxy) = proxy(origin.addr, UpstreamProtocol::H2c);
    let stream = TcpStream::connect(addr).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    let request = Request::put("http://a/")
        .version(Version::HTTP_2)
        .header("expect", "100-continue")
        .header("content-length", "5")
        .body(());
    let (mut response, mut body) = sender.send_request(request.unwrap(), false).unwrap();
    for expected in [103, 100] {
        let interim = std::future::poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
        assert_eq!((interim.status().as_u16(), interim.headers()["x"].as_bytes()), (expected, &b"1"[..]));
    }
    body.send_data(Bytes::from_static(b"hello"), true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.into_body().data().await.unwrap().unwrap(), "5");
}
