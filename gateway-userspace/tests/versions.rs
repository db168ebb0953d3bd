//! What versions of HTTP have to do with each other: HTTP/1.0 on either side, fields behind a body, several requests in one
//! segment, and a side that reads nothing.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing, and its tasks end with it"
)]

mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use gateway_userspace::{field::Underscores, snapshot::service::UpstreamProtocol};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::Full;
use support::{
    client,
    client::Client,
    frames::{DATA, END_HEADERS, END_STREAM, HEADERS, POST, PROTOCOL, Peer, RST_STREAM, block, frame},
    free_addr,
    origin::Origin,
    proxy::Proxy,
    wanted::simple,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const SOON: Duration = Duration::from_secs(5);

fn start(endpoint: SocketAddr, protocol: UpstreamProtocol) -> (SocketAddr, Proxy) {
    let addr = free_addr();
    let mut snapshot = simple(addr, &[endpoint]);
    snapshot.services[0].protocol = protocol;
    (addr, Proxy::with_workers(&snapshot, 1))
}

/// Reads until what was read ends so.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        let byte = tokio::time::timeout(SOON, stream.read_u8()).await;
        assert!(byte.is_ok(), "nothing follows {}", String::from_utf8_lossy(&read));
        read.push(byte.unwrap().unwrap());
    }
    String::from_utf8(read).unwrap()
}

/// Whether the other side has ended the connection without another word.
async fn is_ended(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut [0; 8])).await;
    read.is_ok_and(|read| read.unwrap() == 0)
}

/// An endpoint that reads heads, and answers each with these bytes; it ends the connection where that is asked for.
async fn answering(answer: &'static str, ends: bool) -> Origin {
    Origin::raw(move |mut stream| async move {
        let mut head = Vec::new();
        while let Ok(byte) = stream.read_u8().await {
            head.push(byte);
            if head.ends_with(b"\r\n\r\n") {
                head.clear();
                stream.write_all(answer.as_bytes()).await.unwrap();
                if ends {
                    return;
                }
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http_1_0_is_served_once_unless_it_asks_for_more() {
    let origin = Origin::named("a").await;
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::H2c] {
        let (addr, _proxy) = start(origin.addr, protocol);
        // It need not say for whom the request is.
        let answer = client::raw(addr, b"GET /x HTTP/1.0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("seen-target: /x\r\n"), "{answer}");
        assert!(!answer.contains("transfer-encoding") && !answer.contains("keep-alive"), "{answer}");
        let post =
            b"POST /x HTTP/1.0\r\nHost: a.test\r\nContent-Length: 4\r\n\r\nbodyGET /late HTTP/1.0\r\n\r\n";
        let answer = client::raw(addr, post).await;
        assert!(answer.ends_with("\r\n\r\nbody"), "nothing follows: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "the second was not asked for: {answer}");

        let mut stream = TcpStream::connect(addr).await.unwrap();
        for n in 0..3 {
            let request = format!(
                "PUT /{n} HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\nbody"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            let answer = read_until(&mut stream, "body").await;
            // Else it would wait for the end of the connection.
            assert!(answer.contains("connection: keep-alive\r\n"), "{answer}");
            assert!(answer.contains("content-length: 4\r\n"), "{answer}");
            assert!(answer.contains(&format!("seen-target: /{n}\r\n")), "{answer}");
        }
        stream.write_all(b"GET /last HTTP/1.0\r\n\r\n").await.unwrap();
        let answer = read_until(&mut stream, "\r\n\r\n").await;
        assert!(answer.contains("seen-target: /last\r\n"), "{answer}");
        assert!(is_ended(&mut stream).await, "this one did not ask for more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http_1_0_gets_what_has_no_length_until_the_end_of_the_connection() {
    let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n4\r\n two\r\n0\r\nx-behind: 1\r\n\r\n";
    let origin = answering(chunks, false).await;
    let (addr, _proxy) = start(origin.addr, UpstreamProtocol::Http1);
    for option in ["", "Connection: keep-alive\r\n"] {
        let request = format!("GET / HTTP/1.0\r\nHost: a.test\r\n{option}\r\n");
        let answer = client::raw(addr, request.as_bytes()).await;
        assert!(answer.ends_with("\r\n\r\none two"), "{answer}");
        for field in ["transfer-encoding", "content-length", "keep-alive", "x-behind"] {
            assert!(!answer.to_lowercase().contains(field), "{field}: {answer}");
        }
    }
    assert_eq!(origin.connections(), 1, "towards the endpoint it is one connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_of_http_1_0_is_understood_and_reused_only_where_it_says_so() {
    for (answer, ends, n_connections) in [
        // Until the end of the connection.
        ("HTTP/1.0 200 OK\r\n\r\nbody", true, 4),
        ("HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody", true, 4),
        // It would go on, but did not say so.
        ("HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody", false, 4),
        ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\nbody", false, 1),
        ("HTTP/1.0 200 OK\r\nConnection: keep-alive, close\r\nContent-Length: 4\r\n\r\nbody", false, 4),
        // Chunks are not spoken there (RFC 9112, section 6.1), whatever it says.
        (
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
            false,
            4,
        ),
        // One that says so, and then ends without a length.
        ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nbody", true, 4),
    ] {
        let origin = answering(answer, ends).await;
        let (addr, _proxy) = start(origin.addr, UpstreamProtocol::Http1);
        for mut client in [Client::http1(addr).await, Client::http2(addr).await] {
            for _ in 0..2 {
                let got = client.get("a.test", "/").await.unwrap();
                assert_eq!((got.status.as_u16(), &got.body[..]), (200, &b"body"[..]), "{answer:?}");
            }
        }
        assert_eq!(origin.connections(), n_connections, "{answer:?}");
    }
}

/// What an endpoint got: fields in front of a body and fields behind it.
type Got = Arc<Mutex<Vec<(String, String)>>>;

/// Reads a body in chunks with fields behind it, and answers in the same way.
async fn trailing_h1(got: Got) -> Origin {
    Origin::raw(move |mut stream| {
        let got = Arc::clone(&got);
        async move {
            while let Some(head) = head(&mut stream).await {
                let body = read_until(&mut stream, "0\r\n").await;
                assert!(body.starts_with("4\r\nbody\r\n"), "{body:?}");
                let behind = read_until(&mut stream, "\r\n\r\n").await;
                got.lock().unwrap().push((head, behind));
                let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-answer: 42\r\nx-more: 1\r\n\r\n";
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    })
    .await
}

async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// The same over HTTP/2.
async fn trailing_h2(got: Got) -> Origin {
    Origin::raw(move |stream| {
        let got = Arc::clone(&got);
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let got = Arc::clone(&got);
                tokio::spawn(async move {
                    let (parts, mut body) = request.into_parts();
                    let mut bytes = Vec::new();
                    while let Some(data) = body.data().await {
                        bytes.extend_from_slice(&data.unwrap());
                    }
                    assert_eq!(bytes, b"body");
                    let trailers = body.trailers().await.unwrap().unwrap_or_default();
                    got.lock().unwrap().push((text(&parts.headers), text(&trailers)));
                    let mut stream = respond.send_response(Response::new(()), false).unwrap();
                    stream.send_data(Bytes::from_static(b"ok"), false).unwrap();
                    let mut trailers = HeaderMap::new();
                    trailers.insert("x-answer", HeaderValue::from_static("42"));
                    trailers.insert("x-more", HeaderValue::from_static("1"));
                    stream.send_trailers(trailers).unwrap();
                });
            }
        }
    })
    .await
}

fn text(fields: &HeaderMap) -> String {
    let line = |(name, value): (&http::HeaderName, &HeaderValue)| {
        [name.as_str(), ": ", value.to_str().unwrap(), "\r\n"].concat()
    };
    fields.iter().map(line).collect()
}

/// What an application that reads trailers like fields of the head would take for the gateway's word.
const CLAIMS: [&str; 6] =
    ["x-real-ip", "x-forwarded-for", "x-forwarded-client-cert", "x_real_ip", "content-length", "host"];

/// What is in front of the body of the response, the body, and what is behind it.
async fn send_h1(addr: SocketAddr) -> (String, String, String) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = "POST / HTTP/1.1\r\nHost: a.test\r\nTE: trailers\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nx-sum: 7\r\nx-real-ip: 10.0.0.1\r\nX-Forwarded-For: 10.0.0.2\r\nX-Forwarded-Client-Cert: Subject=root\r\nx_real_ip: 10.0.0.3\r\nx-next: 8\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await;
    let body = read_until(&mut stream, "\r\n0\r\n").await;
    (head, body, read_until(&mut stream, "\r\n\r\n").await)
}

async fn send_h2(addr: SocketAddr) -> (String, String, String) {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    let request = Request::post("http://a.test/").header("te", "trailers").header("trailer", "x-sum");
    let (response, mut stream) =
        sender.ready().await.unwrap().send_request(request.body(()).unwrap(), false).unwrap();
    stream.send_data(Bytes::from_static(b"body"), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("7"));
    trailers.insert("x-next", HeaderValue::from_static("8"));
    for claim in CLAIMS {
        trailers.insert(claim, HeaderValue::from_static("10.0.0.1"));
    }
    stream.send_trailers(trailers).unwrap();
    let (parts, mut body) = response.await.unwrap().into_parts();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        bytes.extend_from_slice(&data.unwrap());
    }
    let trailers = body.trailers().await.unwrap().unwrap_or_default();
    (text(&parts.headers), String::from_utf8(bytes).unwrap(), text(&trailers))
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_behind_a_body_stay_behind_it_in_both_directions_and_every_version() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::H2c] {
        let got = Got::default();
        let origin = match protocol {
            UpstreamProtocol::Http1 => trailing_h1(Arc::clone(&got)).await,
            UpstreamProtocol::H2c | UpstreamProtocol::H2 => trailing_h2(Arc::clone(&got)).await,
        };
        let addr = free_addr();
        let mut snapshot = simple(addr, &[origin.addr]);
        snapshot.services[0].protocol = protocol;
        snapshot.listeners[0].underscores = Underscores::Drop;
        let proxy = Proxy::with_workers(&snapshot, 1);
        for version in [1, 2] {
            let sent = async { if version == 1 { send_h1(addr).await } else { send_h2(addr).await } };
            let (head, body, behind) = tokio::time::timeout(SOON, sent).await.unwrap();
            let what = format!("HTTP/{version} to {protocol:?}");
            assert!(!head.contains("x-answer") && !head.contains("x-more"), "{what}: {head}");
            assert_eq!(body, if version == 1 { "2\r\nok\r\n0\r\n" } else { "ok" }, "{what}");
            assert!(
                behind.contains("x-answer: 42\r\n") && behind.contains("x-more: 1\r\n"),
                "{what}: {behind}"
            );
            let (head, behind) = got.lock().unwrap().pop().unwrap();
            assert!(!head.contains("x-sum:") && !head.contains("x-next"), "{what}: {head}");
            assert!(head.contains("trailer: x-sum\r\n"), "whoever wants to know is told: {what}: {head}");
            assert_eq!(
                behind.trim_end(),
                "x-sum: 7\r\nx-next: 8",
                "{what}: nothing that is the gateway's to say"
            );
        }
        assert!((proxy.metric("sluice_fields_underscored_total ") - 2.0).abs() < 0.5, "what goes is counted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_with_an_underscore_behind_a_body_are_refused_or_go_on_as_the_listener_says() {
    let handler = |request: Request<hyper::body::Incoming>| async move {
        // A body that breaks off has no answer.
        let whole = http_body_util::BodyExt::collect(request.into_body()).await;
        let names = whole.ok().and_then(|whole| whole.trailers().map(text));
        Response::new(Full::new(Bytes::from(names.unwrap_or_default())))
    };
    let origin = Origin::serve("127.0.0.1:0".parse().unwrap(), handler).await;
    for (rule, status, n_refused) in [(Underscores::Reject, 400, 2.0_f64), (Underscores::Allow, 200, 0.0)] {
        let addr = free_addr();
        let mut snapshot = simple(addr, &[origin.addr]);
        snapshot.listeners[0].underscores = rule;
        let proxy = Proxy::with_workers(&snapshot, 1);
        let request = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx_a: 1\r\n\r\n";
        let answer = client::raw(addr, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{rule:?}: {answer}");
        assert_eq!(answer.contains("x_a: 1"), status == 200, "{rule:?}: {answer}");

        let (sender, connection) =
            h2::client::handshake(TcpStream::connect(addr).await.unwrap()).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        let request = Request::post("http://a.test/").body(()).unwrap();
        let (response, mut stream) = sender.ready().await.unwrap().send_request(request, false).unwrap();
        stream.send_data(Bytes::from_static(b"a"), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x_a", HeaderValue::from_static("1"));
        stream.send_trailers(trailers).unwrap();
        assert_eq!(response.await.unwrap().status(), status, "{rule:?}");
        let refused = proxy.metric("sluice_requests_refused_total{reason=\"underscore\"} ");
        assert!((refused - n_refused).abs() < 0.5, "{rule:?}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_one_segment_are_answered_in_their_order_also_when_the_first_is_slow() {
    const SLOW: Duration = Duration::from_millis(300);
    let under_way = Arc::new(AtomicUsize::new(0));
    let (counter, most) = (Arc::clone(&under_way), Arc::new(AtomicUsize::new(0)));
    let top = Arc::clone(&most);
    let origin = Origin::serve("127.0.0.1:0".parse().unwrap(), move |request| {
        let (counter, top) = (Arc::clone(&counter), Arc::clone(&top));
        async move {
            let path = request.uri().path().to_owned();
            top.fetch_max(counter.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            if path.ends_with("slow") {
                tokio::time::sleep(SLOW).await;
            }
            counter.fetch_sub(1, Ordering::SeqCst);
            Response::new(Full::new(Bytes::from(format!("<{path}>"))))
        }
    })
    .await;
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::H2c] {
        let (addr, _proxy) = start(origin.addr, protocol);
        let paths = ["/slow", "/1", "/2/slow", "/3", "/4"];
        let mut bytes: String = paths
            .iter()
            .map(|path| match *path {
                "/3" => format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"),
                _ => format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"),
            })
            .collect();
        bytes.push_str("GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let started = Instant::now();
        let answer = client::raw(addr, bytes.as_bytes()).await;
        assert!(started.elapsed() >= 2 * SLOW, "{:?}", started.elapsed());
        let order: Vec<&str> =
            answer.split('<').skip(1).map(|rest| rest.split('>').next().unwrap()).collect();
        assert_eq!(order, ["/slow", "/1", "/2/slow", "/3", "/4", "/last"], "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 6, "{answer}");
    }
    // What a client may not have meant to be sent, should an earlier answer end the connection, is not begun with.
    assert_eq!(most.load(Ordering::SeqCst), 1, "one after the other");
}

/// Bytes that are sent in a test of who reads nothing: more than the buffers of two connections hold.
const MUCH: usize = 96 * 1024 * 1024;
/// Bytes that the kernel's buffers of two connections on loopback and the agent's may hold together.
const HELD: usize = 40 * 1024 * 1024;

/// The number once it stops growing.
async fn settled(n_bytes: &AtomicUsize) -> usize {
    let (mut before, started) = (usize::MAX, Instant::now());
    loop {
        let now = n_bytes.load(Ordering::SeqCst);
        if now == before && now > 0 {
            return now;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "it does not stop: {now}");
        before = now;
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
}

/// Writes so much, and counts.
async fn pour(stream: &mut (impl tokio::io::AsyncWrite + Unpin), n_bytes: &AtomicUsize) {
    let piece = vec![b'x'; 64 * 1024];
    let mut left = MUCH;
    while left > 0 {
        let n = stream.write(&piece[..left.min(piece.len())]).await.unwrap();
        left -= n;
        n_bytes.fetch_add(n, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_stops_the_endpoint_over_http_1() {
    let n_written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&n_written);
    let origin = Origin::raw(move |mut stream| {
        let counter = Arc::clone(&counter);
        async move {
            head(&mut stream).await.unwrap();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {MUCH}\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            pour(&mut stream, &counter).await;
        }
    })
    .await;
    let (addr, _proxy) = start(origin.addr, UpstreamProtocol::Http1);
    let mut client = TcpStream::connect(addr).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let held = settled(&n_written).await;
    assert!(held < HELD, "{held} bytes are held for a client that reads nothing");
    // Nothing is lost when it does.
    let answer = read_until(&mut client, "\r\n\r\n").await;
    assert!(answer.contains(&format!("content-length: {MUCH}\r\n")), "{answer}");
    let (mut room, mut n_read) = (vec![0; 256 * 1024], 0);
    while n_read < MUCH {
        let n = tokio::time::timeout(SOON, client.read(&mut room)).await.unwrap().unwrap();
        assert!(n > 0 && room[..n].iter().all(|byte| *byte == b'x'), "after {n_read} bytes");
        n_read += n;
    }
    assert_eq!((n_read, n_written.load(Ordering::SeqCst)), (MUCH, MUCH));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_reads_nothing_stops_the_client_over_http_1() {
    let may_read = Arc::new(tokio::sync::Notify::new());
    let wake = Arc::clone(&may_read);
    let origin = Origin::raw(move |mut stream| {
        let wake = Arc::clone(&wake);
        async move {
            head(&mut stream).await.unwrap();
            wake.notified().await;
            let (mut room, mut n_read) = (vec![0; 256 * 1024], 0);
            while n_read < MUCH {
                let n = stream.read(&mut room).await.unwrap();
                assert!(n > 0, "after {n_read} bytes");
                n_read += n;
            }
            let answer = format!("HTTP/1.1 200 OK\r\nX-Read: {n_read}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let (addr, _proxy) = start(origin.addr, UpstreamProtocol::Http1);
    let (mut from, mut to) = TcpStream::connect(addr).await.unwrap().into_split();
    let request = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {MUCH}\r\n\r\n");
    to.write_all(request.as_bytes()).await.unwrap();
    let n_written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&n_written);
    let pouring = tokio::spawn(async move {
        pour(&mut to, &counter).await;
        to
    });
    let held = settled(&n_written).await;
    assert!(held < HELD, "{held} bytes are held for an endpoint that reads nothing");
    may_read.notify_one();
    let _to = tokio::time::timeout(4 * SOON, pouring).await.unwrap().unwrap();
    let mut answer = vec![0; 4096];
    let n = tokio::time::timeout(SOON, from.read(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8_lossy(&answer[..n]).to_lowercase();
    assert!(answer.starts_with("http/1.1 200 ok") && answer.contains(&format!("x-read: {MUCH}")), "{answer}");
}

/// Bytes of a request whose client reads nothing before it has sent it, and of the response that comes meanwhile: more than
/// the buffers of one connection hold.
const EACH_WAY: usize = 24 * 1024 * 1024;

async fn send_first_h1(addr: SocketAddr) -> usize {
    let (mut from, mut to) = TcpStream::connect(addr).await.unwrap().into_split();
    let request =
        format!("PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {EACH_WAY}\r\n\r\n");
    to.write_all(request.as_bytes()).await.unwrap();
    to.write_all(&vec![b'x'; EACH_WAY]).await.unwrap();
    let mut answer = Vec::new();
    from.read_to_end(&mut answer).await.unwrap();
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    answer.len() - head
}

async fn send_first_h2(addr: SocketAddr) -> usize {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let _driven = tokio::spawn(connection);
    let request = Request::put("http://a/").body(()).unwrap();
    let (response, mut body) = sender.send_request(request, false).unwrap();
    let mut left = EACH_WAY;
    while left > 0 {
        body.reserve_capacity(left.min(64 * 1024));
        let room = std::future::poll_fn(|cx| body.poll_capacity(cx)).await.unwrap().unwrap();
        left -= room;
        body.send_data(vec![b'x'; room].into(), left == 0).unwrap();
    }
    let mut answer = response.await.unwrap().into_body();
    let mut n_read = 0;
    while let Some(data) = answer.data().await {
        let n = data.unwrap().len();
        answer.flow_control().release_capacity(n).unwrap();
        n_read += n;
    }
    n_read
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_send_all_before_it_reads_anything() {
    let origin = Origin::both_ways(EACH_WAY).await;
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::H2c] {
        let (addr, _proxy) = start(origin.addr, protocol);
        let h1 = tokio::time::timeout(4 * SOON, send_first_h1(addr)).await;
        assert_eq!(h1, Ok(EACH_WAY), "HTTP/1.1 to {protocol:?}");
        let h2 = tokio::time::timeout(4 * SOON, send_first_h2(addr)).await;
        assert_eq!(h2, Ok(EACH_WAY), "HTTP/2 to {protocol:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_endpoint_sees_a_length_of_http2_that_is_no_number() {
    let origin = answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false).await;
    let (addr, proxy) = start(origin.addr, UpstreamProtocol::Http1);
    let head = |flags, length| {
        frame(HEADERS, END_HEADERS | flags, 1, block(&[&POST[..], &[("content-length", length)]].concat()))
    };
    let trailers = frame(HEADERS, END_STREAM | END_HEADERS, 1, block(&[("x-a", "b")]));
    for request in [
        head(END_STREAM, ""),
        [head(0, ""), frame(DATA, END_STREAM, 1, "")].concat(),
        [head(0, ""), trailers].concat(),
    ] {
        let mut peer = Peer::connect(addr).await;
        peer.send(&request).await;
        let end = loop {
            let frame = peer.read(SOON).await.expect("it is told how it ends");
            if frame.kind == RST_STREAM || frame.status().is_some() {
                break frame;
            }
        };
        assert_eq!((end.kind, end.code()), (RST_STREAM, Some(PROTOCOL)));
    }
    assert_eq!(origin.connections(), 0);
    let refused = proxy.metric("sluice_requests_refused_total{reason=\"length\"} ");
    assert!((refused - 3.0).abs() < 0.5, "{refused}");
}

/// Reads until the connection ends; what came, and whether the end was a reset.
async fn until_end(stream: &mut TcpStream) -> (String, bool) {
    let mut bytes = Vec::new();
    let end = tokio::time::timeout(SOON, stream.read_to_end(&mut bytes)).await.expect("it ends");
    let is_reset = end.is_err_and(|cause| cause.kind() == std::io::ErrorKind::ConnectionReset);
    (String::from_utf8(bytes).unwrap(), is_reset)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http_1_0_sees_that_a_response_without_a_length_broke_off() {
    const BEGUN: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n4\r\n tw";
    // The endpoint leaves, or takes longer than the route allows.
    for ends in [true, false] {
        let origin = answering(BEGUN, ends).await;
        let addr = free_addr();
        let mut snapshot = simple(addr, &[origin.addr]);
        if !ends {
            snapshot.routes[0].rules[0].request_timeout = Some(Duration::from_millis(300));
        }
        let _proxy = Proxy::with_workers(&snapshot, 1);
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\nHost: a.test\r\n\r\n").await.unwrap();
        let (answer, is_reset) = until_end(&mut stream).await;
        assert!(answer.ends_with("\r\n\r\none tw"), "{answer}");
        assert!(is_reset, "it looks whole; the endpoint leaves: {ends}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_goes_on_does_so_after_a_request_that_was_answered_early() {
    let origin = Origin::raw(|mut stream| async move {
        let mut head = [0; 1_024];
        drop(stream.read(&mut head).await);
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await);
        tokio::time::sleep(Duration::from_secs(1)).await;
    })
    .await;
    let addr = free_addr();
    let _proxy = Proxy::start(&simple(addr, &[origin.addr]));
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok") {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
    }
    let answer = String::from_utf8(answer).unwrap().to_lowercase();
    assert!(answer.starts_with("http/1.1 200 ") && !answer.contains("connection: close"), "{answer}");
    tokio::time::sleep(Duration::from_millis(100)).await;
    stream.write_all(b"67890GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut second = String::new();
    stream.read_to_string(&mut second).await.unwrap();
    assert!(second.starts_with("HTTP/1.1 200 "), "{second}");
}
