//! Clients that are waited for, each for as long as is written: what they are told, how their connection ends, and where
//! it is counted.
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
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use gateway_userspace::{
    config::ClientTimeouts,
    network::Network,
    snapshot::{Snapshot, listener::Protocol},
};
use http::Response;
use http_body_util::Full;
use support::{
    client::{self, Client},
    eventually,
    frames::{
        CALM, DATA, END_HEADERS, END_STREAM, GET, GOAWAY, HEADERS, NO_ERROR, PREFACE, Peer, RST_STREAM, Read,
        block, frame, get, post, settings, window,
    },
    free_addr,
    origin::Origin,
    proxy::{PATIENT, Proxy},
    wanted::{certificate, listener, simple},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

/// The bound that a test is about; all others are those of an agent.
const SHORT: Duration = Duration::from_millis(300);
/// Nothing but the bound itself ends a test's connection as soon.
const SOON: Duration = Duration::from_secs(4);
/// How often clients were given up for this reason; nobody was for another.
fn given_up(proxy: &Proxy, timeout: &str) -> u32 {
    let text = proxy.metrics.encode().unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix("sluice_client_timeouts_total"));
    let mut count = 0;
    for line in lines {
        let (labels, value) = line.split_once("} ").unwrap();
        assert_eq!(labels, format!("{{timeout=\"{timeout}\""), "{text}");
        count = value.parse().unwrap();
    }
    count
}

/// Reads until the connection ends, which it does after `SHORT` and soon.
async fn rest(stream: &mut TcpStream) -> String {
    let started = Instant::now();
    let bytes = client_rest(stream).await;
    assert!(started.elapsed() >= SHORT * 9 / 10, "after {:?}", started.elapsed());
    bytes
}

async fn begun(addr: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// Frames until one that says how a stream or the connection ends, a response included.
async fn end(peer: &mut Peer) -> Read {
    loop {
        let frame = peer.read(SOON).await.expect("it is told how it ends");
        if matches!(frame.kind, GOAWAY | RST_STREAM) || frame.status().is_some() {
            return frame;
        }
    }
}

async fn large(n_bytes: usize) -> Origin {
    let body = Bytes::from(vec![b'a'; n_bytes]);
    let handler = move |_| {
        let body = body.clone();
        async move { Response::new(Full::new(body)) }
    };
    Origin::serve("127.0.0.1:0".parse().unwrap(), handler).await
}

async fn started(timeouts: ClientTimeouts) -> (SocketAddr, Proxy, Origin) {
    let (addr, origin) = (free_addr(), Origin::named("a").await);
    let proxy = Proxy::waiting(&simple(addr, &[origin.addr]), timeouts);
    (addr, proxy, origin)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_does_not_end_is_answered_with_408() {
    let (addr, proxy, origin) = started(ClientTimeouts { head: SHORT, ..PATIENT }).await;
    let mut stream = begun(addr, b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ").await;
    let trickle = async {
        // What it sends meanwhile does not help.
        for _ in 0..4 {
            tokio::time::sleep(SHORT / 5).await;
            stream.write_all(b"a").await.unwrap();
        }
    };
    trickle.await;
    let answer = client_rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("connection: close"), "{answer}");
    assert_eq!((given_up(&proxy, "head"), refused(&proxy), origin.requests()), (1, 1, 0));
    // The same behind a request that was served.
    let mut stream = begun(addr, b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n").await;
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("HTTP/1.1 408 "), "{answer}");
    assert_eq!((given_up(&proxy, "head"), refused(&proxy), origin.requests()), (2, 2, 1));
}

/// Reads until the connection ends.
async fn client_rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(SOON, stream.read_to_end(&mut bytes)).await;
    // A reset is an end, too.
    drop(read.expect("the connection ends"));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn refused(proxy: &Proxy) -> u32 {
    let count = proxy.metric("sluice_requests_refused_total{reason=\"slow\"} ");
    (0..100).find(|n| f64::from(*n) >= count).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_says_nothing_is_closed_without_a_word() {
    let (addr, proxy, _origin) = started(ClientTimeouts { head: SHORT, ..PATIENT }).await;
    let mut silent = begun(addr, b"").await;
    assert_eq!(rest(&mut silent).await, "");
    assert_eq!(given_up(&proxy, "head"), 1);
    let mut preface = begun(addr, &PREFACE[..10]).await;
    assert_eq!(rest(&mut preface).await, "", "nobody knows yet what it speaks");
    assert_eq!(given_up(&proxy, "head"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_closed() {
    let (addr, proxy, _origin) = started(ClientTimeouts { idle: SHORT, ..PATIENT }).await;
    let mut stream = begun(addr, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("connection: close"), "{answer}");
    assert_eq!(given_up(&proxy, "idle"), 1);

    let mut peer = Peer::connect(addr).await;
    peer.send(&get(1)).await;
    assert_eq!(end(&mut peer).await.status(), Some(200));
    let started = Instant::now();
    let goodbye = end(&mut peer).await;
    assert_eq!((goodbye.kind, goodbye.code()), (GOAWAY, Some(NO_ERROR)));
    let waited = started.elapsed();
    assert!(waited >= SHORT * 6 / 10 && waited < SHORT * 5, "{waited:?}");
    assert_eq!(given_up(&proxy, "idle"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_lines_in_pieces_keep_no_connection() {
    let (addr, proxy, _origin) =
        started(ClientTimeouts { head: 2 * SHORT, idle: 2 * SHORT, ..PATIENT }).await;
    for before in ["", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let mut stream = begun(addr, before.as_bytes()).await;
        let started = Instant::now();
        let mut is_over = false;
        for byte in b"\r\n".repeat(40) {
            if stream.write_all(&[byte]).await.is_err() {
                is_over = true;
                break;
            }
            tokio::time::sleep(SHORT / 4).await;
        }
        assert!(is_over, "still there after {:?}", started.elapsed());
    }
    let metrics = |timeout| proxy.metric(&format!("sluice_client_timeouts_total{{timeout=\"{timeout}\"}} "));
    assert!(metrics("head") + metrics("idle") > 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_used_is_not_idle() {
    // Long beside a pause: others use the machine, too.
    let (addr, proxy, _origin) = started(ClientTimeouts { idle: SHORT * 8, ..PATIENT }).await;
    let (mut http1, mut http2) = (Client::http1(addr).await, Client::http2(addr).await);
    for _ in 0..6 {
        for client in [&mut http1, &mut http2] {
            assert_eq!(client.get("a", "/").await.unwrap().status, 200);
        }
        tokio::time::sleep(SHORT * 3 / 2).await;
    }
    assert_eq!(given_up(&proxy, "none"), 0);
}

fn secured(addr: SocketAddr, origin: &Origin) -> Snapshot {
    let mut snapshot = simple(addr, &[origin.addr]);
    snapshot.listeners[0].protocol = Protocol::Https;
    snapshot.listeners[0].certificates = vec![certificate("a.test")];
    snapshot
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_end_is_given_up() {
    let (addr, origin) = (free_addr(), Origin::named("a").await);
    let timeouts = ClientTimeouts { handshake: SHORT, ..PATIENT };
    let proxy = Proxy::waiting(&secured(addr, &origin), timeouts);
    // A record of a handshake that does not come.
    let mut stream = begun(addr, &[22, 3, 1, 2, 0, 1]).await;
    assert_eq!(rest(&mut stream).await, "");
    let failures = format!("sluice_tls_handshake_failures_total{{address=\"{addr}\",protocol=\"tcp\"}} ");
    eventually("it is counted", SOON, || {
        given_up(&proxy, "handshake") == 1 && (proxy.metric(&failures) - 1.0).abs() < 0.5
    })
    .await;
    let stream = client::tls(addr, "a.test", &["http/1.1"]).await.unwrap();
    assert_eq!(Client::over_http1(stream).await.get("a.test", "/").await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_before_http_has_to_come_in_time() {
    let (addr, origin) = (free_addr(), Origin::named("a").await);
    let mut snapshot = simple(addr, &[origin.addr]);
    snapshot.listeners[0].proxies = vec![Network { addr: "127.0.0.1".parse().unwrap(), prefix_bits: 32 }];
    let proxy = Proxy::waiting(&snapshot, ClientTimeouts { proxy_header: SHORT, ..PATIENT });
    let mut stream = begun(addr, b"PROXY TCP4 192.0.2.1").await;
    assert_eq!(rest(&mut stream).await, "");
    eventually("it is counted", SOON, || given_up(&proxy, "proxy_header") == 1).await;

    let addr = free_addr();
    let mut snapshot = simple(addr, &[origin.addr]);
    snapshot.listeners[0].protocol = Protocol::Tls;
    let proxy = Proxy::waiting(&snapshot, ClientTimeouts { hello: SHORT, ..PATIENT });
    let mut stream = begun(addr, &[22, 3, 1, 2, 0, 1]).await;
    assert_eq!(rest(&mut stream).await, "");
    eventually("it is counted", SOON, || given_up(&proxy, "hello") == 1).await;
}

const LENGTH: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nab";
const CHUNKED: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n";

fn slow_bodies(proxy: &Proxy) -> f64 {
    proxy.metric("sluice_request_faults_total{listener=\"web\",route=\"all\",kind=\"slow_body\"} ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_answered_with_408() {
    let (addr, proxy, _origin) = started(ClientTimeouts { stall: SHORT, ..PATIENT }).await;
    for (n, request) in [(1, LENGTH), (2, CHUNKED)] {
        let mut stream = begun(addr, request).await;
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("connection: close"), "{answer}");
        assert_eq!(given_up(&proxy, "body"), n);
        assert!((slow_bodies(&proxy) - f64::from(n)).abs() < 0.5);
    }
    // Over HTTP/1 nobody is in a conversation of gRPC, whatever it says; what it is told is another matter.
    let fields = "Host: a\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked";
    let mut stream = begun(addr, format!("POST / HTTP/1.1\r\n{fields}\r\n\r\n1\r\na\r\n").as_bytes()).await;
    let answer = rest(&mut stream).await;
    assert!(answer.contains("connection: close"), "{answer}");
    assert_eq!(given_up(&proxy, "body"), 3);
    let mut peer = Peer::connect(addr).await;
    peer.send(&[post(1), frame(DATA, 0, 1, "ab")].concat()).await;
    assert_eq!(end(&mut peer).await.status(), Some(408));
    assert_eq!(given_up(&proxy, "body"), 4);
    peer.send(&get(3)).await;
    let answer = loop {
        let frame = end(&mut peer).await;
        // The stream of the first one is reset, because its body is not wanted any more.
        if frame.stream == 3 {
            break frame;
        }
    };
    assert_eq!(answer.status(), Some(200), "the connection goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_trickles_is_answered_with_408_whatever_its_form() {
    // Each byte is in time, all of them are not.
    let (addr, proxy, _origin) = started(ClientTimeouts { stall: SHORT * 2, ..PATIENT }).await;
    for (n, request, piece) in [(1, LENGTH, &b"a"[..]), (2, CHUNKED, b"1\r\na\r\n")] {
        let mut stream = begun(addr, request).await;
        let started = Instant::now();
        let (mut read, mut write) = stream.split();
        let mut answer = Vec::new();
        let trickle = async {
            loop {
                tokio::time::sleep(SHORT / 2).await;
                if write.write_all(piece).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            () = trickle => {}
            read = tokio::time::timeout(SOON, read.read_to_end(&mut answer)) => { drop(read.expect("it ends")); }
        }
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(started.elapsed() >= SHORT * 2, "{:?}", started.elapsed());
        assert_eq!(given_up(&proxy, "body"), n);
    }
    let mut peer = Peer::connect(addr).await;
    peer.send(&post(1)).await;
    let started = Instant::now();
    let answer = loop {
        peer.send(&frame(DATA, 0, 1, "a")).await;
        let Some(frame) = peer.read(SHORT / 2).await else { continue };
        if frame.status().is_some() {
            break frame;
        }
        assert!(started.elapsed() < SOON, "it goes on for ever");
    };
    assert_eq!(answer.status(), Some(408));
    assert_eq!(given_up(&proxy, "body"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_comes_fast_enough_may_take_its_time() {
    // Pauses of 150 ms, of which a 300th is the body's to lose: 4 KiB earn two seconds at this rate.
    let timeouts = ClientTimeouts { stall: SHORT, bytes_per_second: 2_048, ..PATIENT };
    let (addr, proxy, _origin) = started(timeouts).await;
    let mut stream = begun(addr, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let piece = [&b"1000\r\n"[..], &[b'a'; 4_096], b"\r\n"].concat();
    for _ in 0..8 {
        stream.write_all(&piece).await.unwrap();
        tokio::time::sleep(SHORT / 2).await;
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    assert_eq!(given_up(&proxy, "none"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_slowly_is_served_however_much_of_its_response_is_on_the_way() {
    // Sockets hold megabytes, and take more when a third of that is free: nothing is written in all that time.
    let (addr, secure, origin) = (free_addr(), free_addr(), large(32 << 20).await);
    let mut snapshot = simple(addr, &[origin.addr]);
    let mut https = listener("secure", secure, Protocol::Https);
    https.certificates = vec![certificate("a.test")];
    snapshot.routes[0].listeners.push(https.name.clone());
    snapshot.listeners.push(https);
    let proxy = Proxy::waiting(&snapshot, ClientTimeouts { stall: SHORT * 2, ..PATIENT });
    let over_http1 = async {
        let mut stream = client::narrow(addr).await;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        client::slowly(stream, SHORT * 9).await
    };
    let over_http2 = async {
        let mut peer = Peer(client::narrow(addr).await);
        peer.send(&[PREFACE, &settings(&[(4, 1 << 30)]), &window(0, 1 << 30), &get(1)].concat()).await;
        client::slowly(peer.0, SHORT * 9).await
    };
    let over_tls = async {
        let config = client::builder(rustls::ALL_VERSIONS).with_no_client_auth();
        let stream =
            client::tls_over(client::narrow(secure).await, "a.test", Arc::new(config)).await.unwrap();
        let mut stream = stream;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.unwrap();
        client::slowly(stream, SHORT * 9).await
    };
    let held = tokio::join!(over_http1, over_http2, over_tls);
    assert_eq!(given_up(&proxy, "none"), 0);
    // Now they take nothing.
    eventually("they are given up", SOON, || given_up(&proxy, "response") == 3).await;
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_is_not_read_is_cut() {
    // More than the buffers of both ends hold.
    let (addr, origin) = (free_addr(), large(32 << 20).await);
    let proxy = Proxy::waiting(&simple(addr, &[origin.addr]), ClientTimeouts { stall: SHORT, ..PATIENT });
    let mut stream = client::narrow(addr).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    eventually("it is given up", SOON, || given_up(&proxy, "response") == 1).await;
    let answer = client_rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.len() < 32 << 20, "{} bytes", answer.len());

    // The same over HTTP/2, with windows that are open.
    let mut peer = Peer(client::narrow(addr).await);
    peer.send(&[PREFACE, &settings(&[(4, 1 << 30)]), &window(0, 1 << 30), &get(1)].concat()).await;
    eventually("it is given up", SOON, || given_up(&proxy, "response") == 2).await;
}

/// Sends a chunk of so many bytes so often, four in `SHORT`, and reads nothing; says whether it could send them all.
async fn upload<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, n_bytes: usize, n_chunks: u32) -> bool {
    let head = "POST / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = [format!("{n_bytes:x}\r\n").as_bytes(), &vec![b'x'; n_bytes], b"\r\n"].concat();
    for _ in 0..n_chunks {
        tokio::time::sleep(SHORT / 4).await;
        if stream.write_all(&chunk).await.is_err() || stream.flush().await.is_err() {
            return false;
        }
    }
    stream.write_all(b"0\r\n\r\n").await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_all_before_it_reads_has_its_time_and_who_trickles_meanwhile_has_not() {
    const MUCH: usize = 32 << 20;
    let (addr, origin) = (free_addr(), Origin::both_ways(MUCH).await);
    let proxy = Proxy::waiting(&simple(addr, &[origin.addr]), ClientTimeouts { stall: SHORT, ..PATIENT });
    let mut stream = client::narrow(addr).await;
    assert!(upload(&mut stream, 4_096, 20).await, "five times as long as it may read nothing");
    assert_eq!(given_up(&proxy, "response"), 0);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.len() > MUCH, "{} bytes", answer.len());
    let mut stream = client::narrow(addr).await;
    upload(&mut stream, 1, 40).await;
    eventually("it is given up", SOON, || given_up(&proxy, "response") == 1).await;

    // The same over HTTP/2, whose window is shut.
    let mut peer = Peer::silent(addr).await;
    let begins = post(1);
    peer.send(&[PREFACE, &settings(&[(4, 0)]), &begins[..]].concat()).await;
    let mut n_sent = 0;
    let reset = loop {
        assert!(n_sent < 40, "it is given up");
        peer.send(&frame(DATA, 0, 1, "x")).await;
        n_sent += 1;
        if let Some(frame) = peer.read(SHORT / 4).await
            && frame.kind == RST_STREAM
        {
            break frame;
        }
    };
    assert_eq!((reset.stream, reset.code()), (1, Some(CALM)));

    // Over TLS more is taken than was written.
    let (addr, origin) = (free_addr(), Origin::both_ways(MUCH).await);
    let proxy = Proxy::waiting(&secured(addr, &origin), ClientTimeouts { stall: SHORT, ..PATIENT });
    let mut stream = client::tls(addr, "a.test", &["http/1.1"]).await.unwrap();
    assert!(upload(&mut stream, 4_096, 20).await, "five times as long as it may read nothing");
    assert_eq!(given_up(&proxy, "response"), 0);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.len() > MUCH, "{} bytes", answer.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_window_stays_shut_is_reset_and_the_others_go_on() {
    let (addr, origin) = (free_addr(), large(256 * 1_024).await);
    let proxy = Proxy::waiting(&simple(addr, &[origin.addr]), ClientTimeouts { stall: SHORT, ..PATIENT });
    let mut peer = Peer::silent(addr).await;
    peer.send(&[PREFACE, &settings(&[(4, 100)]), &get(1)].concat()).await;
    assert_eq!(end(&mut peer).await.status(), Some(200));
    let cut = end(&mut peer).await;
    assert_eq!((cut.kind, cut.stream, cut.code()), (RST_STREAM, 1, Some(CALM)));
    assert_eq!(given_up(&proxy, "response"), 1);
    peer.send(&[&window(0, 1 << 20), &get(3)[..], &window(3, 1 << 20)].concat()).await;
    assert_eq!(end(&mut peer).await.status(), Some(200));
    let last = loop {
        let frame = peer.read(SOON).await.expect("all of it comes");
        if frame.flags & END_STREAM != 0 {
            break frame;
        }
    };
    assert_eq!((last.kind, last.stream), (DATA, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_of_http2_that_does_not_end_ends_its_connection() {
    let (addr, proxy, origin) = started(ClientTimeouts { head: SHORT, ..PATIENT }).await;
    let mut peer = Peer::connect(addr).await;
    peer.send(&frame(HEADERS, END_STREAM, 1, block(&GET))).await;
    let goodbye = end(&mut peer).await;
    assert_eq!((goodbye.kind, goodbye.code()), (GOAWAY, Some(CALM)));
    assert!(peer.is_closed().await);
    assert_eq!((given_up(&proxy, "head"), origin.requests()), (1, 0));
    assert!((proxy.metric("sluice_http2_misuse_total{reason=\"slow\"} ") - 1.0).abs() < 0.5);
    // One that ends is none of this.
    let mut peer = Peer::connect(addr).await;
    peer.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, block(&GET))).await;
    assert_eq!(end(&mut peer).await.status(), Some(200));
    tokio::time::sleep(SHORT * 2).await;
    assert_eq!(given_up(&proxy, "head"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http2_that_answers_no_ping_is_gone() {
    let (addr, (origin, permits)) = (free_addr(), Origin::held().await);
    // Connections may be idle for less, which is another matter.
    let timeouts = ClientTimeouts { idle: SHORT, answer: SHORT * 4, ..PATIENT };
    let proxy = Proxy::waiting(&simple(addr, &[origin.addr]), timeouts);
    let started = Instant::now();
    let mut peer = Peer::connect(addr).await;
    peer.send(&get(1)).await;
    // One that answers waits for its response as long as it takes.
    let waiting = tokio::spawn(async move { Client::http2(addr).await.get("a", "/").await.unwrap().status });
    eventually("both are under way", SOON, || origin.requests() == 2).await;
    eventually("it is given up", SHORT * 8 + SOON, || given_up(&proxy, "silent") == 1).await;
    // Asked after as long a silence as it then has to answer.
    assert!(started.elapsed() >= SHORT * 7, "{:?}, which is what connections may be idle", started.elapsed());
    permits.add_permits(10);
    assert_eq!(waiting.await.unwrap(), 200);
    assert_eq!(given_up(&proxy, "silent"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http2_that_reads_or_speaks_is_there_whenever_its_answer_comes() {
    let (addr, origin) = (free_addr(), large(32 << 20).await);
    let timeouts = ClientTimeouts { answer: SHORT * 2, ..PATIENT };
    let proxy = Proxy::waiting(&simple(addr, &[origin.addr]), timeouts);
    // The question stands behind megabytes.
    let reading = async {
        let mut peer = Peer(client::narrow(addr).await);
        peer.send(&[PREFACE, &settings(&[(4, 1 << 30)]), &window(0, 1 << 30), &get(1)].concat()).await;
        client::slowly(peer.0, SHORT * 9).await
    };
    // One that waits for its response, and answers no question.
    let (held_addr, (held, _permits)) = (free_addr(), Origin::held().await);
    let held_proxy = Proxy::waiting(&simple(held_addr, &[held.addr]), timeouts);
    let speaking = async {
        let mut peer = Peer::connect(held_addr).await;
        peer.send(&get(1)).await;
        for _ in 0..12 {
            tokio::time::sleep(SHORT * 3 / 4).await;
            peer.send(&window(0, 1)).await;
        }
        peer
    };
    let open = tokio::join!(reading, speaking);
    assert_eq!((given_up(&proxy, "none"), given_up(&held_proxy, "none")), (0, 0));
    eventually("whoever falls silent is given up", SOON, || given_up(&held_proxy, "silent") == 1).await;
    drop(open);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_window_opens_byte_by_byte_is_reset_however_short_its_response_is() {
    // Short enough for a codec to take it whole, and to wait with it for ever.
    let (addr, origin) = (free_addr(), large(500).await);
    let proxy = Proxy::waiting(&simple(addr, &[origin.addr]), ClientTimeouts { stall: SHORT, ..PATIENT });
    for step in [0, 1] {
        let mut peer = Peer::silent(addr).await;
        peer.send(&[PREFACE, &settings(&[(4, step)]), &get(1)].concat()).await;
        assert_eq!(end(&mut peer).await.status(), Some(200));
        let (started, mut n_bytes) = (Instant::now(), 0);
        let cut = loop {
            match peer.read(SHORT / 6).await {
                Some(frame) if frame.kind == DATA => n_bytes += frame.payload.len(),
                Some(frame) if matches!(frame.kind, RST_STREAM | GOAWAY) => break frame,
                None if step > 0 => peer.send(&window(1, step)).await,
                Some(_) | None => {}
            }
            assert!(started.elapsed() < SOON, "it goes on for ever");
        };
        assert_eq!((cut.kind, cut.stream, cut.code()), (RST_STREAM, 1, Some(CALM)));
        assert_eq!(n_bytes > 0, step > 0, "{n_bytes}");
        assert!(started.elapsed() >= SHORT * 9 / 10, "{:?}", started.elapsed());
        assert_eq!(given_up(&proxy, "response"), 1 + step);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_read_as_fast_as_it_must_goes_on() {
    let (addr, origin) = (free_addr(), large(20_000).await);
    let timeouts = ClientTimeouts { stall: SHORT, bytes_per_second: 2_048, ..PATIENT };
    let proxy = Proxy::waiting(&simple(addr, &[origin.addr]), timeouts);
    let mut peer = Peer::silent(addr).await;
    peer.send(&[PREFACE, &settings(&[(4, 0)]), &get(1)].concat()).await;
    let started = Instant::now();
    let mut n_bytes = 0;
    loop {
        match peer.read(SHORT / 3).await {
            Some(frame) if frame.kind == DATA => {
                n_bytes += frame.payload.len();
                if frame.flags & END_STREAM != 0 {
                    break;
                }
            }
            Some(frame) => assert!(!matches!(frame.kind, RST_STREAM | GOAWAY), "{frame:?}"),
            None => peer.send(&window(1, 1_000)).await,
        }
    }
    assert_eq!(n_bytes, 20_000);
    assert!(started.elapsed() > SHORT * 5, "it took its time: {:?}", started.elapsed());
    assert_eq!(given_up(&proxy, "none"), 0);
}

/// An endpoint that begins its response at once, and goes on with it some time later.
async fn hesitant() -> Origin {
    Origin::raw(|mut stream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
        stream.write_all(answer).await.unwrap();
        for end in ["1\r\nb\r\n", "0\r\n\r\n"] {
            tokio::time::sleep(SHORT * 2).await;
            stream.write_all(end.as_bytes()).await.unwrap();
        }
        // Until the agent leaves.
        drop(stream.read_to_end(&mut Vec::new()).await);
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_an_endpoint_is_not_slow() {
    let (addr, origin) = (free_addr(), hesitant().await);
    let proxy = Proxy::waiting(&simple(addr, &[origin.addr]), ClientTimeouts { stall: SHORT, ..PATIENT });
    let mut stream = begun(addr, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let answer = rest(&mut stream).await;
    assert!(answer.ends_with("1\r\na\r\n1\r\nb\r\n0\r\n\r\n"), "{answer}");
    // A call of gRPC whose client has said something and listens now, and has just as much window as it needs.
    let fields =
        [&support::frames::POST[..], &[("content-type", "application/grpc"), ("te", "trailers")]].concat();
    let mut peer = Peer::silent(addr).await;
    let call = frame(HEADERS, END_HEADERS, 1, block(&fields));
    peer.send(&[PREFACE, &settings(&[(4, 2)]), &call, &frame(DATA, 0, 1, "hello")].concat()).await;
    let mut text = String::new();
    loop {
        let frame = peer.read(SOON).await.expect("it goes on");
        assert!(!matches!(frame.kind, RST_STREAM | GOAWAY), "{frame:?} after {text}");
        if frame.kind == DATA {
            text += std::str::from_utf8(&frame.payload).unwrap();
            if frame.flags & END_STREAM != 0 {
                break;
            }
        }
    }
    assert_eq!(text, "ab");
    assert_eq!(given_up(&proxy, "none"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_grpc_that_does_not_begin_is_not_left_in_silence_for_ever() {
    let (addr, proxy, _origin) = started(ClientTimeouts { stall: SHORT, ..PATIENT }).await;
    let fields = [&support::frames::POST[..], &[("content-type", "application/grpc")]].concat();
    let mut peer = Peer::connect(addr).await;
    peer.send(&frame(HEADERS, END_HEADERS, 1, block(&fields))).await;
    // Its status is 200, and that of gRPC says what happened.
    assert_eq!(end(&mut peer).await.status(), Some(200));
    assert_eq!(given_up(&proxy, "body"), 1);
    assert!((slow_bodies(&proxy) - 1.0).abs() < 0.5);
    // One word is enough: many endpoints send their head with their first message.
    let mut peer = Peer::connect(addr).await;
    peer.send(&frame(HEADERS, END_HEADERS, 1, block(&fields))).await;
    peer.send(&frame(DATA, 0, 1, "a")).await;
    tokio::time::sleep(SHORT * 3).await;
    assert_eq!(given_up(&proxy, "body"), 1);
    peer.send(&frame(DATA, END_STREAM, 1, "b")).await;
    assert_eq!(end(&mut peer).await.status(), Some(200));
    assert_eq!(given_up(&proxy, "body"), 1);
}

/// Says something every tenth of a second, eight times, and then nothing more.
async fn falling_silent() -> Origin {
    Origin::raw(|mut stream| async move {
        assert!(stream.read(&mut [0; 1_024]).await.unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            stream.write_all(b"1\r\na\r\n").await.unwrap();
        }
        drop(stream.read(&mut [0; 1]).await);
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_falls_silent_in_a_response_is_left() {
    let origin = falling_silent().await;
    let addr = free_addr();
    let mut snapshot = simple(addr, &[origin.addr]);
    snapshot.routes[0].rules[0].idle_timeout = Some(Duration::from_millis(400));
    let _proxy = Proxy::start(&snapshot);
    let started = Instant::now();
    let mut stream = begun(addr, b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let answer = rest(&mut stream).await;
    assert_eq!(answer.matches("\r\n1\r\na").count(), 8, "{answer}");
    assert!(!answer.ends_with("0\r\n\r\n"), "the client sees that something is missing");
    assert!((Duration::from_millis(1_100)..SOON).contains(&started.elapsed()), "{:?}", started.elapsed());

    let (mut sender, connection) =
        h2::client::handshake(TcpStream::connect(addr).await.unwrap()).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    let request = http::Request::get("http://a.test/").body(()).unwrap();
    let mut body = sender.send_request(request, true).unwrap().0.await.unwrap().into_body();
    let mut n_bytes = 0;
    let end = loop {
        match tokio::time::timeout(SOON, body.data()).await.unwrap().unwrap() {
            Ok(data) => n_bytes += data.len(),
            Err(end) => break end,
        }
    };
    assert_eq!((n_bytes, end.reason()), (8, Some(h2::Reason::CANCEL)));
}
