//! What clients speak instead of HTTP: WebSocket over both versions on both sides, CONNECT, and how tunnels end.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing, and its tasks end with it"
)]

mod support;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use gateway_userspace::{
    config::OverloadSettings,
    filter::{Answer, Filters, Respond},
    net::sys,
    snapshot::{Snapshot, listener::Protocol, service::UpstreamProtocol},
    tunnel::Tunnels,
};
use http::{Method, Request, Response, StatusCode, Version};
use support::{
    authority::Authority,
    client, eventually,
    frames::{END_HEADERS, HEADERS, PREFACE, Peer, block, frame, settings, window},
    free_addr,
    origin::Origin,
    proxy::{CALM, Proxy},
    wanted::{self, simple},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{
            CloseFrame, Role,
            frame::{
                Frame,
                coding::{CloseCode, Data, OpCode},
            },
        },
    },
};

const SOON: Duration = Duration::from_secs(5);

fn start(
    endpoint: SocketAddr,
    protocol: UpstreamProtocol,
    change: impl Fn(&mut Snapshot),
) -> (SocketAddr, Proxy) {
    let addr = free_addr();
    let mut snapshot = simple(addr, &[endpoint]);
    snapshot.services[0].protocol = protocol;
    change(&mut snapshot);
    (addr, Proxy::with_workers(&snapshot, 1))
}

/// Says everything again, and closes when it is told to, with the same words.
async fn echo<S>(mut socket: WebSocketStream<S>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = socket.next().await {
        if message.is_text() || message.is_binary() {
            socket.send(message).await.unwrap();
        }
    }
    // Behind TLS, an end without a word would be one that somebody else may have made.
    drop(socket.get_mut().shutdown().await);
}

async fn websocket_origin() -> Origin {
    Origin::raw(|stream| async move {
        if let Ok(socket) = tokio_tungstenite::accept_async(stream).await {
            echo(socket).await;
        }
    })
    .await
}

/// The same over HTTP/2, by extended CONNECT.
async fn websocket_h2_origin() -> Origin {
    Origin::raw(serve_h2).await
}

async fn serve_h2<S>(stream: S)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut builder = h2::server::Builder::new();
    let mut connection = builder.enable_connect_protocol().handshake::<_, Bytes>(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let named = request.extensions().get::<h2::ext::Protocol>().map(|named| named.as_str().to_owned());
        if request.method() != Method::CONNECT || named.as_deref() != Some("websocket") {
            respond.send_response(Response::builder().status(418).body(()).unwrap(), true).unwrap();
            continue;
        }
        assert!(request.headers().get("sec-websocket-key").is_none());
        let sending = respond.send_response(Response::new(()), false).unwrap();
        let stream = pump(sending, request.into_body());
        tokio::spawn(async move {
            echo(WebSocketStream::from_raw_socket(stream, Role::Server, None).await).await;
        });
    }
}

/// A stream of HTTP/2 as one of bytes.
fn pump(mut sending: h2::SendStream<Bytes>, mut receiving: h2::RecvStream) -> DuplexStream {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (mut from, mut to) = tokio::io::split(far);
    tokio::spawn(async move {
        while let Some(Ok(data)) = receiving.data().await {
            receiving.flow_control().release_capacity(data.len()).unwrap();
            if to.write_all(&data).await.is_err() {
                break;
            }
        }
        drop(to.shutdown().await);
    });
    tokio::spawn(async move {
        let mut room = vec![0; 16 * 1024];
        while let Ok(n @ 1..) = from.read(&mut room).await {
            sending.reserve_capacity(n);
            while sending.capacity() < n {
                if std::future::poll_fn(|cx| sending.poll_capacity(cx)).await.is_none() {
                    return;
                }
            }
            drop(sending.send_data(Bytes::copy_from_slice(&room[..n]), false));
        }
        drop(sending.send_data(Bytes::new(), true));
    });
    near
}

/// A WebSocket of a client over HTTP/2; or what else it got.
async fn over_h2(
    addr: SocketAddr,
    protocol: &'static str,
) -> Result<WebSocketStream<DuplexStream>, StatusCode> {
    on_h2(TcpStream::connect(addr).await.unwrap(), protocol).await
}

async fn on_h2<S>(stream: S, protocol: &'static str) -> Result<WebSocketStream<DuplexStream>, StatusCode>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, mut connection) = h2::client::handshake(stream).await.unwrap();
    let pings = connection.ping_pong();
    tokio::spawn(async move { drop(connection.await) });
    // An answer means that the settings are here.
    pings.unwrap().ping(h2::Ping::opaque()).await.unwrap();
    assert!(sender.is_extended_connect_protocol_enabled());
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri("http://a.test/chat")
        .version(Version::HTTP_2)
        .header("sec-websocket-version", "13")
        .extension(h2::ext::Protocol::from_static(protocol));
    let (response, sending) =
        sender.ready().await.unwrap().send_request(request.body(()).unwrap(), false).unwrap();
    let response = response.await.unwrap();
    if response.status() != 200 {
        return Err(response.status());
    }
    assert!(response.headers().get("sec-websocket-accept").is_none());
    let stream = pump(sending, response.into_body());
    Ok(WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
}

async fn over_h1(addr: SocketAddr) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(addr).await.unwrap();
    // Compares the accept with its key.
    tokio_tungstenite::client_async("ws://a.test/chat", stream).await.unwrap().0
}

/// Texts, fragments, pings, a large message, and a farewell.
async fn converse<S>(mut socket: WebSocketStream<S>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("hello"));
    // One message in three frames, with a ping in between.
    let frame = |text: &'static str, code: Data, is_last: bool| {
        Message::Frame(Frame::message(text.as_bytes().to_vec(), OpCode::Data(code), is_last))
    };
    socket.send(frame("a", Data::Text, false)).await.unwrap();
    socket.send(frame("b", Data::Continue, false)).await.unwrap();
    socket.send(Message::Ping(Bytes::from_static(b"?"))).await.unwrap();
    socket.send(frame("c", Data::Continue, true)).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong(Bytes::from_static(b"?")));
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("abc"));
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    socket.send(Message::binary(large.clone())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap().into_data(), large);
    let farewell = CloseFrame { code: CloseCode::Library(4_321), reason: "enough".into() };
    socket.send(Message::Close(Some(farewell.clone()))).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Close(Some(farewell)));
    assert!(socket.next().await.is_none());
    drop(socket.get_mut().shutdown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_over_every_version_on_both_sides() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::H2c] {
        let origin = match protocol {
            UpstreamProtocol::Http1 => websocket_origin().await,
            UpstreamProtocol::H2c | UpstreamProtocol::H2 => websocket_h2_origin().await,
        };
        let (addr, proxy) = start(origin.addr, protocol, |_| {});
        tokio::time::timeout(4 * SOON, async {
            converse(over_h1(addr).await).await;
            converse(over_h2(addr, "websocket").await.unwrap()).await;
        })
        .await
        .unwrap();
        let ended =
            format!("sluice_tunnels_total{{address=\"{addr}\",kind=\"websocket\",outcome=\"ended\"}} ");
        eventually("both ended", SOON, || proxy.metric(&ended) > 1.5).await;
        assert!(proxy.metric(&format!("sluice_tunnels_open{{address=\"{addr}\"}} ")).abs() < 0.5);
        let bytes =
            proxy.metric(&format!("sluice_tunnel_bytes_total{{address=\"{addr}\",from=\"client\"}} "));
        assert!((6_000_000.0..6_010_000.0).contains(&bytes), "{bytes}");
    }
}

/// An endpoint of WebSocket behind TLS, over the version that the client chooses.
async fn secured_websocket_origin(terms: rustls::ServerConfig) -> Origin {
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(terms));
    Origin::raw(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                serve_h2(stream).await;
            } else if let Ok(socket) = tokio_tungstenite::accept_async(stream).await {
                echo(socket).await;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_behind_tls_on_either_side_and_on_both() {
    let ours = Authority::new("ours");
    for (protocol, alpn) in [(UpstreamProtocol::Http1, "http/1.1"), (UpstreamProtocol::H2, "h2")] {
        let origin = secured_websocket_origin(ours.terms("app.internal", &[alpn], None)).await;
        let (plain, secure) = (free_addr(), free_addr());
        let mut snapshot = simple(plain, &[origin.addr]);
        snapshot.services[0].protocol = protocol;
        snapshot.services[0].tls = Some(ours.towards("app.internal"));
        let mut https = wanted::listener("secure", secure, Protocol::Https);
        https.certificates = vec![wanted::certificate("a.test")];
        snapshot.routes[0].listeners.push(https.name.clone());
        snapshot.listeners.push(https);
        let proxy = Proxy::with_workers(&snapshot, 1);
        tokio::time::timeout(6 * SOON, async {
            converse(over_h1(plain).await).await;
            converse(over_h2(plain, "websocket").await.unwrap()).await;
            let stream = client::tls(secure, "a.test", &["http/1.1"]).await.unwrap();
            converse(tokio_tungstenite::client_async("wss://a.test/chat", stream).await.unwrap().0).await;
            let stream = client::tls(secure, "a.test", &["h2"]).await.unwrap();
            converse(on_h2(stream, "websocket").await.unwrap()).await;
        })
        .await
        .unwrap();
        for addr in [plain, secure] {
            let ended =
                format!("sluice_tunnels_total{{address=\"{addr}\",kind=\"websocket\",outcome=\"ended\"}} ");
            eventually("both ended", SOON, || proxy.metric(&ended) > 1.5).await;
        }
    }
}

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// An endpoint that keeps all it reads in front of its answer.
async fn answering(answer: &'static str) -> (Origin, tokio::sync::mpsc::Receiver<(String, TcpStream)>) {
    let (sender, heads) = tokio::sync::mpsc::channel(8);
    let origin = Origin::raw(move |mut stream| {
        let sender = sender.clone();
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            // Long enough for whatever follows too early.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let mut more = [0; 64];
            if let Ok(n) = stream.try_read(&mut more) {
                head.extend(&more[..n]);
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            drop(sender.send((String::from_utf8(head).unwrap(), stream)).await);
        }
    });
    (origin.await, heads)
}

const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\nfirst";

async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        read.push(tokio::time::timeout(SOON, stream.read_u8()).await.unwrap().unwrap());
    }
    String::from_utf8(read).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_crosses_before_the_endpoint_agrees_and_each_side_ends_by_itself() {
    let (origin, mut heads) = answering(AGREED).await;
    let (addr, proxy) = start(origin.addr, UpstreamProtocol::Http1, |_| {});
    let mut client = TcpStream::connect(addr).await.unwrap();
    client.write_all(format!("{UPGRADE}early").as_bytes()).await.unwrap();
    let response = read_until(&mut client, "first").await;
    assert!(response.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{response}");
    for field in ["connection: upgrade", "upgrade: websocket", "sec-websocket-protocol: chat"] {
        assert_eq!(response.matches(field).count(), 1, "{response}");
    }
    let (head, mut endpoint) = heads.recv().await.unwrap();
    assert!(head.ends_with("\r\n\r\n") && head.contains("upgrade: websocket\r\n"), "{head}");
    assert!(head.contains("connection: upgrade\r\n") && !head.contains("keep-alive"), "{head}");
    read_until(&mut endpoint, "early").await;
    // The client ends its side; the endpoint learns it, and goes on.
    client.shutdown().await.unwrap();
    assert_eq!(endpoint.read(&mut [0; 8]).await.unwrap(), 0);
    endpoint.write_all(b"last").await.unwrap();
    read_until(&mut client, "last").await;
    drop(endpoint);
    assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
    let ended = format!("sluice_tunnels_total{{address=\"{addr}\",kind=\"websocket\",outcome=\"ended\"}} ");
    eventually("it ended", SOON, || proxy.metric(&ended) > 0.5).await;

    // The other way around.
    let mut client = TcpStream::connect(addr).await.unwrap();
    client.write_all(UPGRADE.as_bytes()).await.unwrap();
    let (_, mut endpoint) = heads.recv().await.unwrap();
    read_until(&mut client, "first").await;
    endpoint.shutdown().await.unwrap();
    assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
    client.write_all(b"more").await.unwrap();
    read_until(&mut endpoint, "more").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_does_not_agree_says_so_and_is_not_used_again() {
    let (origin, mut heads) = answering("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno").await;
    let (addr, _proxy) = start(origin.addr, UpstreamProtocol::Http1, |_| {});
    let mut client = TcpStream::connect(addr).await.unwrap();
    for _ in 0..2 {
        client.write_all(UPGRADE.as_bytes()).await.unwrap();
        let response = read_until(&mut client, "no").await;
        assert!(response.starts_with("HTTP/1.1 426") && !response.contains("close"), "{response}");
        heads.recv().await.unwrap();
    }
    assert_eq!(origin.connections(), 2);
    // One that agrees to something else.
    let (origin, _heads) = answering("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n").await;
    let (addr, _proxy) = start(origin.addr, UpstreamProtocol::Http1, |_| {});
    assert!(client::raw(addr, UPGRADE.as_bytes()).await.starts_with("HTTP/1.1 502"));
    // One that does not know the key.
    let (origin, _heads) = answering(AGREED).await;
    let (addr, _proxy) = start(origin.addr, UpstreamProtocol::Http1, |_| {});
    assert_eq!(over_h2(addr, "websocket").await.unwrap_err(), 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_that_opens_no_tunnel_is_none_to_who_asked_by_connect() {
    const DONE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno";
    const CONNECT: &str = "CONNECT db.test:5432 HTTP/1.1\r\nHost: db.test:5432\r\n\r\n";
    let (origin, _heads) = answering(DONE).await;
    let (addr, _proxy) = start(origin.addr, UpstreamProtocol::Http1, |_| {});
    assert_eq!(over_h2(addr, "websocket").await.unwrap_err(), 502);
    let mut client = TcpStream::connect(addr).await.unwrap();
    client.write_all(UPGRADE.as_bytes()).await.unwrap();
    assert!(read_until(&mut client, "no").await.starts_with("HTTP/1.1 200"), "an upgrade may be ignored");
    // The gateway's own answers.
    for (status, to_connect) in [(200, 501), (204, 501), (403, 403)] {
        let (addr, _proxy) = start(origin.addr, UpstreamProtocol::Http1, |snapshot| {
            let answer = Answer::Respond(Respond {
                status: StatusCode::from_u16(status).unwrap(),
                body: if status == 204 { Bytes::new() } else { Bytes::from_static(b"ok") },
                content_type: http::HeaderValue::from_static("text/plain"),
            });
            let rule = &mut snapshot.routes[0].rules[0];
            rule.filters = Some(Arc::new(Filters { answer: Some(answer), ..Filters::default() }));
            rule.tunnels.connect = true;
        });
        for (request, expected) in [(CONNECT, to_connect), (UPGRADE, status)] {
            let mut client = TcpStream::connect(addr).await.unwrap();
            client.write_all(request.as_bytes()).await.unwrap();
            let head = read_until(&mut client, "\r\n\r\n").await;
            assert!(head.starts_with(&format!("HTTP/1.1 {expected} ")), "{head}");
        }
        for protocol in ["websocket", "connect-udp"] {
            assert_eq!(over_h2(addr, protocol).await.unwrap_err(), to_connect);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_side_that_reads_nothing_holds_up_its_own_direction_only() {
    let (origin, mut heads) = answering(AGREED).await;
    let (addr, _proxy) = start(origin.addr, UpstreamProtocol::Http1, |_| {});
    let mut client = TcpStream::connect(addr).await.unwrap();
    client.write_all(UPGRADE.as_bytes()).await.unwrap();
    let (_, mut endpoint) = heads.recv().await.unwrap();
    // The client reads nothing, so the endpoint is stopped at some time.
    let piece = vec![0; 64 * 1024];
    let mut n_sent = 0;
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(300), endpoint.write(&piece)).await {
        n_sent += written.unwrap();
        assert!(n_sent < 64 * 1024 * 1024, "nothing stops it");
    }
    client.write_all(b"through").await.unwrap();
    read_until(&mut endpoint, "through").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_where_a_rule_allows_it() {
    let origin = Origin::raw(|mut stream| async move {
        let (mut from, mut to) = stream.split();
        drop(tokio::io::copy(&mut from, &mut to).await);
    })
    .await;
    let allow = |snapshot: &mut Snapshot| snapshot.routes[0].rules[0].tunnels.connect = true;
    let (addr, proxy) = start(origin.addr, UpstreamProtocol::Http1, allow);
    let mut client = TcpStream::connect(addr).await.unwrap();
    client.write_all(b"CONNECT db.test:5432 HTTP/1.1\r\nHost: db.test:5432\r\n\r\nhello").await.unwrap();
    let response = read_until(&mut client, "hello").await;
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    assert!(!response.contains("content-length") && !response.contains("transfer-encoding"), "{response}");
    client.shutdown().await.unwrap();
    assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);

    // Over HTTP/2.
    let stream = TcpStream::connect(addr).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    let request = Request::builder().method(Method::CONNECT).uri("db.test:5432").version(Version::HTTP_2);
    let (response, mut sending) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    sending.send_data(Bytes::from_static(b"hello"), true).unwrap();
    let mut response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.body_mut().data().await.unwrap().unwrap(), "hello");
    let rest = response.body_mut().data().await;
    assert!(rest.is_none_or(|data| data.unwrap().is_empty()), "the endpoint ended its side too");
    let ended = format!("sluice_tunnels_total{{address=\"{addr}\",kind=\"connect\",outcome=\"ended\"}} ");
    eventually("both ended", SOON, || proxy.metric(&ended) > 1.5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_endpoint_said_before_it_broke_off_reaches_the_client_and_then_its_stream_is_reset() {
    let ours = Authority::new("ours");
    for n_bytes in [10, 100_000] {
        let terms = Arc::new(ours.terms("app.internal", &["http/1.1"], None));
        let origin = Origin::raw(move |stream| {
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&terms));
            async move {
                let mut stream = acceptor.accept(stream).await.unwrap();
                stream.read_exact(&mut [0; 5]).await.unwrap();
                stream.write_all(&vec![b'a'; n_bytes]).await.unwrap();
                stream.flush().await.unwrap();
                // The end of the connection, without one of TLS.
                let mut socket = stream.into_inner().0;
                socket.shutdown().await.unwrap();
                drop(socket.read(&mut [0; 1]).await);
            }
        })
        .await;
        let (addr, proxy) = start(origin.addr, UpstreamProtocol::Http1, |snapshot| {
            snapshot.routes[0].rules[0].tunnels.connect = true;
            snapshot.services[0].tls = Some(ours.towards("app.internal"));
        });
        let (mut sender, connection) =
            h2::client::handshake(TcpStream::connect(addr).await.unwrap()).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        let request = Request::builder().method(Method::CONNECT).uri("db.test:5432").version(Version::HTTP_2);
        let (response, mut sending) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        sending.send_data(Bytes::from_static(b"hello"), false).unwrap();
        let mut body = response.await.unwrap().into_body();
        let mut n_taken = 0;
        let end = loop {
            match tokio::time::timeout(SOON, body.data()).await.unwrap() {
                Some(Ok(data)) => {
                    n_taken += data.len();
                    body.flow_control().release_capacity(data.len()).unwrap();
                }
                end => break end,
            }
        };
        assert_eq!(n_taken, n_bytes, "{end:?}");
        assert_eq!(end.unwrap().unwrap_err().reason(), Some(h2::Reason::CONNECT_ERROR));
        let broken =
            format!("sluice_tunnels_total{{address=\"{addr}\",kind=\"connect\",outcome=\"broken\"}} ");
        eventually("it is counted", SOON, || proxy.metric(&broken) > 0.5).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_endpoint_said_before_it_left_reaches_a_client_that_is_still_sending() {
    const N_BYTES: usize = 3_000_000;
    const CONNECT: &str = "CONNECT db.test:5432 HTTP/1.1\r\nHost: db.test:5432\r\n\r\n";
    for (breaks_off, head) in [(false, CONNECT), (true, CONNECT), (false, ""), (true, "")] {
        let origin = Origin::raw(move |mut stream| async move {
            stream.read_exact(&mut [0; 5]).await.unwrap();
            stream.write_all(&vec![b'a'; N_BYTES]).await.unwrap();
            if breaks_off {
                // Everything is on its way, and then the connection is reset.
                let queued = || sys::queued(&stream).unwrap();
                eventually("it is taken", SOON, || queued() == 0).await;
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            } else {
                stream.shutdown().await.unwrap();
                // What comes now is not read: the connection is reset when it is closed.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        let (addr, _proxy) = start(origin.addr, UpstreamProtocol::Http1, |snapshot| {
            snapshot.routes[0].rules[0].tunnels.connect = true;
            if head.is_empty() {
                snapshot.listeners[0].protocol = Protocol::Tcp;
            }
        });
        let mut client = TcpStream::connect(addr).await.unwrap();
        client.write_all(format!("{head}hello").as_bytes()).await.unwrap();
        if !head.is_empty() {
            read_until(&mut client, "\r\n\r\n").await;
        }
        let (mut from, mut to) = client.into_split();
        tokio::spawn(async move { while to.write_all(&[b'x'; 4_096]).await.is_ok() {} });
        // The last bytes wait in the proxy's socket meanwhile.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut n_taken = 0;
        let mut room = vec![0; 64 * 1_024];
        while let Ok(n @ 1..) = tokio::time::timeout(SOON, from.read(&mut room)).await.unwrap() {
            n_taken += n;
        }
        assert_eq!(n_taken, N_BYTES, "breaks off: {breaks_off}, {head:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rule_refuses_or_nobody_speaks_gets_501() {
    let origin = websocket_origin().await;
    let refuse = |snapshot: &mut Snapshot| {
        snapshot.routes[0].rules[0].tunnels = Tunnels { websocket: false, ..Tunnels::DEFAULT };
    };
    let (addr, _proxy) = start(origin.addr, UpstreamProtocol::Http1, refuse);
    let connect = "CONNECT db.test:5432 HTTP/1.1\r\nHost: db.test:5432\r\n\r\n";
    for request in [UPGRADE, connect] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        assert!(read_until(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 501"), "{request}");
    }
    for protocol in ["websocket", "connect-udp"] {
        assert_eq!(over_h2(addr, protocol).await.unwrap_err(), 501);
    }
    assert_eq!(origin.connections(), 0);
    // Other upgrades are no wish that has to be answered (RFC 9110, section 7.8).
    let origin = Origin::named("a").await;
    let (addr, _proxy) = start(origin.addr, UpstreamProtocol::Http1, |_| {});
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade, close\r\nUpgrade: h2c\r\n\r\n";
    let response = client::raw(addr, request.as_bytes()).await;
    assert!(response.starts_with("HTTP/1.1 200") && !response.contains("seen-upgrade"), "{response}");
    // An endpoint of HTTP/2 that does not offer it.
    let (addr, _proxy) = start(origin.addr, UpstreamProtocol::H2c, |_| {});
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(UPGRADE.as_bytes()).await.unwrap();
    assert!(read_until(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 501"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_in_which_nothing_moves_ends() {
    let origin = websocket_origin().await;
    let idle = |snapshot: &mut Snapshot| {
        snapshot.routes[0].rules[0].tunnels.idle_timeout = Duration::from_millis(400);
    };
    let (addr, proxy) = start(origin.addr, UpstreamProtocol::Http1, idle);
    let (mut first, mut second) = (over_h1(addr).await, over_h2(addr, "websocket").await.unwrap());
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        for message in ["one", "two"] {
            first.send(Message::text(message)).await.unwrap();
            second.send(Message::text(message)).await.unwrap();
            assert_eq!(first.next().await.unwrap().unwrap(), Message::text(message));
            assert_eq!(second.next().await.unwrap().unwrap(), Message::text(message));
        }
    }
    let silent = Instant::now();
    assert!(!matches!(tokio::time::timeout(SOON, first.next()).await.unwrap(), Some(Ok(_))));
    assert!(!matches!(tokio::time::timeout(SOON, second.next()).await.unwrap(), Some(Ok(_))));
    assert!((300..2_000).contains(&silent.elapsed().as_millis()), "{:?}", silent.elapsed());
    let idle = format!("sluice_tunnels_total{{address=\"{addr}\",kind=\"websocket\",outcome=\"idle\"}} ");
    eventually("both are counted", SOON, || proxy.metric(&idle) > 1.5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_whose_client_reads_slowly_is_not_idle_however_much_is_on_the_way() {
    // Sockets hold megabytes, and take more when a third of that is free: nothing is written in all that time.
    const IDLE: Duration = Duration::from_millis(600);
    let origin = Origin::raw(|mut stream| async move {
        drop(stream.write_all(&vec![7; 32 << 20]).await);
    })
    .await;
    let allow = |snapshot: &mut Snapshot| {
        snapshot.routes[0].rules[0].tunnels =
            Tunnels { connect: true, idle_timeout: IDLE, ..Tunnels::DEFAULT };
    };
    let (addr, proxy) = start(origin.addr, UpstreamProtocol::Http1, allow);
    let over_h1 = async {
        let mut stream = client::narrow(addr).await;
        stream.write_all(b"CONNECT db.test:1 HTTP/1.1\r\nHost: db.test:1\r\n\r\n").await.unwrap();
        client::slowly(stream, IDLE * 4).await
    };
    let over_h2 = async {
        let mut peer = Peer(client::narrow(addr).await);
        let head =
            frame(HEADERS, END_HEADERS, 1, block(&[(":method", "CONNECT"), (":authority", "db.test:1")]));
        peer.send(&[PREFACE, &settings(&[(4, 1 << 30)]), &window(0, 1 << 30), &head].concat()).await;
        client::slowly(peer.0, IDLE * 4).await
    };
    let streams = tokio::join!(over_h1, over_h2);
    let ended = |outcome: &str| {
        proxy.metric(&format!(
            "sluice_tunnels_total{{address=\"{addr}\",kind=\"connect\",outcome=\"{outcome}\"}} "
        ))
    };
    assert!(ended("idle").abs() < 0.5 && ended("broken").abs() < 0.5);
    // Now nothing is read; how long a connection of HTTP/2 may be so is another bound.
    eventually("it is counted", SOON, || ended("idle") > 0.5).await;
    drop(streams);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_tunnel_is_no_request_under_way() {
    let origin = websocket_origin().await;
    let other = Origin::named("a").await;
    let addr = free_addr();
    let mut snapshot = simple(addr, &[origin.addr]);
    snapshot.services.push(wanted::service("other", &[other.addr]));
    snapshot.routes[0].rules.push(wanted::rule(wanted::exact("/other"), &[("other", 1)]));
    let _proxy = Proxy::bounded(&snapshot, OverloadSettings { requests: 1, ..CALM });
    let _open = [over_h1(addr).await, over_h1(addr).await];
    assert_eq!(client::get(addr, "a.test", "/other").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_have_some_time_when_the_drain_begins() {
    let origin = websocket_origin().await;
    let (addr, proxy) = start(origin.addr, UpstreamProtocol::Http1, |_| {});
    let (mut first, mut second) = (over_h1(addr).await, over_h2(addr, "websocket").await.unwrap());
    let (used, waited) = tokio::join!(
        async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            first.send(Message::text("still")).await.unwrap();
            second.send(Message::text("still")).await.unwrap();
            (first.next().await.unwrap().unwrap(), second.next().await.unwrap().unwrap())
        },
        async {
            let started = Instant::now();
            (proxy.drain(Duration::from_secs(20)).await, started.elapsed())
        }
    );
    assert_eq!(used, (Message::text("still"), Message::text("still")));
    assert_eq!(waited.0, 0, "none was cut");
    assert!((9..15).contains(&waited.1.as_secs()), "{:?}", waited.1);
    drop((first.next().await, second.next().await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_refuses_a_tunnel_has_the_time_of_any_other() {
    for is_whole in [false, true] {
        let (origin, mut heads) = answering("HTTP/1.1 403 Forbidden\r\nContent-Length: 10\r\n\r\nab").await;
        let (addr, _proxy) = start(origin.addr, UpstreamProtocol::Http1, |snapshot| {
            let rule = &mut snapshot.routes[0].rules[0];
            let bound = Some(Duration::from_millis(400));
            *(if is_whole { &mut rule.request_timeout } else { &mut rule.idle_timeout }) = bound;
        });
        let mut client = TcpStream::connect(addr).await.unwrap();
        client.write_all(UPGRADE.as_bytes()).await.unwrap();
        let (_, endpoint) = heads.recv().await.unwrap();
        let mut response = Vec::new();
        let read = client.read_to_end(&mut response);
        drop(tokio::time::timeout(SOON, read).await.expect("it ends"));
        let response = String::from_utf8(response).unwrap();
        assert!(response.starts_with("HTTP/1.1 403 ") && response.ends_with("\r\n\r\nab"), "{response}");
        drop(endpoint);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_client_sees_that_its_tunnel_broke_off() {
    const CONNECT: &[u8] = b"CONNECT db.test:5432 HTTP/1.1\r\nHost: db.test:5432\r\n\r\nhello";
    // The endpoint resets its connection, or nothing moves for too long.
    for (n_bytes, breaks_off) in [(10, true), (1_000_000, true), (10, false)] {
        let origin = Origin::raw(move |mut stream| async move {
            stream.read_exact(&mut [0; 5]).await.unwrap();
            stream.write_all(&vec![b'a'; n_bytes]).await.unwrap();
            if breaks_off {
                let queued = || sys::queued(&stream).unwrap();
                eventually("it is taken", SOON, || queued() == 0).await;
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            } else {
                drop(stream.read(&mut [0; 1]).await);
            }
        })
        .await;
        let (addr, _proxy) = start(origin.addr, UpstreamProtocol::Http1, |snapshot| {
            let tunnels = &mut snapshot.routes[0].rules[0].tunnels;
            *tunnels = Tunnels { connect: true, idle_timeout: Duration::from_millis(500), ..*tunnels };
        });
        let mut client = client::narrow(addr).await;
        client.write_all(CONNECT).await.unwrap();
        read_until(&mut client, "\r\n\r\n").await;
        let (mut n_taken, mut room) = (0, vec![0; 64 * 1_024]);
        let end = loop {
            match tokio::time::timeout(SOON, client.read(&mut room)).await.unwrap() {
                Ok(n @ 1..) => n_taken += n,
                end => break end,
            }
        };
        assert_eq!(n_taken, n_bytes);
        let end = end.map_err(|cause| cause.kind());
        assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset), "breaks off: {breaks_off}");
    }
}
