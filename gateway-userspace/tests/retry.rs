//! Sending requests again, over loopback: when it is done, when it would do harm, and how much of it a service bears.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::float_cmp,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "a test says what went wrong by failing; its numbers are small and exact"
)]

mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use gateway_userspace::{
    retry,
    snapshot::{Snapshot, service::UpstreamProtocol},
};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use support::{
    client::{self, Client},
    free_addr,
    origin::Origin,
    proxy::Proxy,
    wanted::simple,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Answers `status` after `delay` so many times, and then 200 with the body at once.
async fn failing(n: usize, status: u16, delay: Duration) -> Origin {
    let left = Arc::new(AtomicUsize::new(n));
    Origin::serve("127.0.0.1:0".parse().unwrap(), move |request: Request<Incoming>| {
        let fails = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        async move {
            if fails && delay.is_zero() {
                return Response::builder().status(status).body(Full::new(Bytes::from("failed"))).unwrap();
            }
            let body = request.into_body().collect().await.unwrap().to_bytes();
            if fails {
                tokio::time::sleep(delay).await;
                return Response::builder().status(status).body(Full::new(body)).unwrap();
            }
            Response::new(Full::new(body))
        }
    })
    .await
}

fn policy(attempts: usize, statuses: &[u16]) -> retry::Policy {
    retry::Policy {
        attempts,
        statuses: statuses.iter().map(|status| *status..=*status).collect(),
        calls: retry::Calls::NONE,
        backoff: Duration::from_millis(10),
        is_written: true,
    }
}

fn with(addr: SocketAddr, endpoints: &[SocketAddr], policy: &retry::Policy) -> Snapshot {
    let mut snapshot = simple(addr, endpoints);
    snapshot
        .routes
        .iter_mut()
        .flat_map(|route| &mut route.rules)
        .for_each(|rule| rule.retry = policy.clone());
    snapshot
}

fn timeouts(snapshot: &mut Snapshot, each: Option<u64>, whole: Option<u64>) {
    for rule in snapshot.routes.iter_mut().flat_map(|route| &mut route.rules) {
        rule.backend_timeout = each.map(Duration::from_millis);
        rule.request_timeout = whole.map(Duration::from_millis);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listed_statuses_are_tried_again_as_often_as_asked_for() {
    for (n, method, expected, n_requests) in [
        (2, "GET", 200, 3),
        (3, "PUT", 200, 4),
        (4, "GET", 500, 4),
        (1, "POST", 500, 1),
        (1, "PATCH", 500, 1),
    ] {
        let origin = failing(n, 500, Duration::ZERO).await;
        let addr = free_addr();
        let proxy = Proxy::with_workers(&with(addr, &[origin.addr], &policy(3, &[500, 502])), 1);
        let answer = Client::http1(addr).await.call(method, "a.test", "/", "whole").await.unwrap();
        assert_eq!((answer.status.as_u16(), origin.requests()), (expected, n_requests), "{method} after {n}");
        let body: &[u8] = if expected == 200 { b"whole" } else { b"failed" };
        assert_eq!(answer.body.as_ref(), body, "the last answer, and the body of every try");
        let retries = "sluice_upstream_retries_total{service=\"api\"}";
        assert_eq!(proxy.metric(retries), (n_requests - 1) as f64);
        assert_eq!(origin.connections(), 1, "small answers leave their connection whole");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_of_the_only_endpoint_waits_once() {
    let origin = failing(1, 503, Duration::ZERO).await;
    let addr = free_addr();
    let patient = retry::Policy { backoff: Duration::from_millis(300), ..policy(3, &[503]) };
    let _proxy = Proxy::start(&with(addr, &[origin.addr], &patient));
    let begun = Instant::now();
    assert_eq!(client::get(addr, "a.test", "/").await.status, 200);
    let lasting = begun.elapsed();
    // At least as long as written, at most half as much again; twice as long as that had been the second wait alone.
    assert!((300..900).contains(&lasting.as_millis()), "{lasting:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_does_not_answer_an_expectation_has_its_time() {
    let origin = Origin::raw(|mut stream| async move {
        drop(stream.read(&mut [0; 1_024]).await);
        tokio::time::sleep(Duration::from_secs(10)).await;
    })
    .await;
    let addr = free_addr();
    let mut snapshot = with(addr, &[origin.addr], &policy(0, &[]));
    timeouts(&mut snapshot, Some(200), None);
    let proxy = Proxy::start(&snapshot);
    let answer = client::raw(
        addr,
        b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    let faults = "sluice_request_faults_total{listener=\"web\",route=\"all\",kind=\"try_timeout\"}";
    assert!((proxy.metric(faults) - 1.0).abs() < 0.5);
    // Whoever sends all the same is waited for.
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let head = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n1";
    stream.write_all(head).await.unwrap();
    let silent = tokio::time::timeout(Duration::from_millis(600), stream.read(&mut [0])).await;
    assert!(silent.is_err(), "the rest of the body is the client's to send");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_statuses_and_rules_without_retries_are_passed_on() {
    let origin = failing(100, 503, Duration::ZERO).await;
    for policy in [policy(3, &[500]), policy(0, &[503]), retry::Policy::DEFAULT] {
        let addr = free_addr();
        let before = origin.requests();
        let _proxy = Proxy::start(&with(addr, &[origin.addr], &policy));
        assert_eq!(client::get(addr, "a.test", "/").await.status, 503);
        assert_eq!(origin.requests() - before, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tries_that_take_too_long_are_repeated_within_the_time_of_the_request() {
    // Each try may take 200 ms, and those that fail take 300.
    for (n, method, whole, expected, n_requests) in [
        (2, "GET", None, 200, 3),
        (3, "GET", None, 504, 3),
        (1, "POST", None, 504, 1),
        (9, "GET", Some(350), 504, 2),
    ] {
        let origin = failing(n, 200, Duration::from_millis(300)).await;
        let addr = free_addr();
        let mut snapshot = with(addr, &[origin.addr], &policy(2, &[]));
        timeouts(&mut snapshot, Some(200), whole);
        let _proxy = Proxy::with_workers(&snapshot, 1);
        let answer = Client::http1(addr).await.call(method, "a.test", "/", "x").await.unwrap();
        assert_eq!((answer.status.as_u16(), origin.requests()), (expected, n_requests), "{method} after {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_word_a_slow_try_is_not_repeated() {
    let origin = failing(1, 200, Duration::from_millis(300)).await;
    let addr = free_addr();
    let mut snapshot = simple(addr, &[origin.addr]);
    timeouts(&mut snapshot, Some(100), None);
    let _proxy = Proxy::start(&snapshot);
    assert_eq!(client::get(addr, "a.test", "/").await.status, 504);
    assert_eq!(origin.requests(), 1);
}

/// Sends a body in six pieces, one every tenth of a second; the status line, and how long it took from the last piece on.
async fn upload(addr: SocketAddr) -> (String, Duration) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let head = "POST / HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.write_all(b"5\r\npiece\r\n").await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let ended = Instant::now();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    if answer.starts_with("HTTP/1.1 200") {
        assert!(answer.ends_with("piecepiecepiecepiecepiecepiece"), "{answer}");
    }
    (answer.lines().next().unwrap_or_default().to_owned(), ended.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_longer_than_a_try_is_not_the_endpoints_fault() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::H2c] {
        let bound = Duration::from_millis(300);
        let start = |origin: &Origin| {
            let addr = free_addr();
            let mut snapshot = simple(addr, &[origin.addr]);
            timeouts(&mut snapshot, Some(300), None);
            snapshot.services[0].protocol = protocol;
            (addr, Proxy::with_workers(&snapshot, 1))
        };
        let origin = Origin::named("patient").await;
        let (addr, _proxy) = start(&origin);
        let (status, _) = upload(addr).await;
        assert_eq!(status, "HTTP/1.1 200 OK", "{protocol:?}");

        // From the end of the body on the endpoint has as long as ever, and no longer.
        let silent = failing(1, 200, Duration::from_secs(5)).await;
        let (addr, _proxy) = start(&silent);
        let (status, took) = upload(addr).await;
        assert!(status.starts_with("HTTP/1.1 504"), "{protocol:?}: {status}");
        assert!(took >= bound && took < Duration::from_secs(4), "{protocol:?}: {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_were_tried_come_last() {
    let bad = failing(usize::MAX, 503, Duration::ZERO).await;
    let good = Origin::named("good").await;
    let addr = free_addr();
    let mut snapshot = with(addr, &[bad.addr, good.addr], &policy(1, &[503]));
    snapshot.services.iter_mut().for_each(|service| service.retries.percent = 100);
    let _proxy = Proxy::with_workers(&snapshot, 1);
    let mut client = Client::http1(addr).await;
    for _ in 0..40 {
        assert_eq!(client.get("a.test", "/").await.unwrap().header("origin"), "good");
    }
    assert!(bad.requests() >= 10, "{} of 40", bad.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_refuses_connections_is_asked_again_only_where_that_is_wanted() {
    let addr = free_addr();
    let nobody = free_addr();
    let patient = retry::Policy { backoff: Duration::from_millis(200), ..policy(3, &[]) };
    let _proxy = Proxy::with_workers(&with(addr, &[nobody], &patient), 1);
    let asked = tokio::spawn(async move { client::get(addr, "a.test", "/").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let _late = Origin::at(nobody, "late").await;
    assert_eq!(asked.await.unwrap().header("origin"), "late");
    let addr = free_addr();
    let _proxy = Proxy::with_workers(&simple(addr, &[free_addr()]), 1);
    let started = Instant::now();
    assert_eq!(client::get(addr, "a.test", "/").await.status, 503);
    assert!(started.elapsed() < Duration::from_millis(500));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_bears_so_many_retries_and_no_more() {
    let origin = failing(usize::MAX, 503, Duration::ZERO).await;
    let addr = free_addr();
    let mut snapshot =
        with(addr, &[origin.addr], &retry::Policy { backoff: Duration::ZERO, ..policy(3, &[503]) });
    snapshot.services.iter_mut().for_each(|service| {
        service.retries = retry::Limits { percent: 10, per_second: 0 };
    });
    let proxy = Proxy::with_workers(&snapshot, 1);
    let mut client = Client::http1(addr).await;
    for _ in 0..200 {
        assert_eq!(client.get("a.test", "/").await.unwrap().status, 503);
    }
    let retries = proxy.metric("sluice_upstream_retries_total{service=\"api\"}");
    assert_eq!(retries, 20.0, "a tenth of the requests");
    assert!(proxy.metric("sluice_limit_reached_total{limit=\"retry_budget\"}") >= 180.0);
    assert_eq!(origin.requests(), 220);
}

/// Answers the first request of each connection, and leaves without an answer so long after the second.
async fn leaving(after: Duration) -> (Origin, Arc<AtomicUsize>) {
    let n_requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&n_requests);
    let origin = Origin::raw(move |mut stream| {
        let counted = Arc::clone(&counted);
        async move {
            let mut room = [0; 1_024];
            assert!(stream.read(&mut room).await.unwrap() > 0);
            counted.fetch_add(1, Ordering::SeqCst);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            if stream.read(&mut room).await.is_ok_and(|n| n > 0) {
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(after).await;
            }
        }
    })
    .await;
    (origin, n_requests)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_a_kept_connection_long_after_it_came_is_not_repeated_for_nothing() {
    for (after, status, n_all) in [(Duration::ZERO, 200, 3), (Duration::from_millis(1_500), 502, 2)] {
        let (origin, n_requests) = leaving(after).await;
        let addr = free_addr();
        let _proxy = Proxy::with_workers(&with(addr, &[origin.addr], &policy(0, &[])), 1);
        let mut client = Client::http1(addr).await;
        assert_eq!(client.get("a.test", "/").await.unwrap().status, 200);
        assert_eq!(client.get("a.test", "/").await.unwrap().status, status, "{after:?}");
        assert_eq!(n_requests.load(Ordering::SeqCst), n_all, "{after:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_an_endpoint_refuses_are_retries_like_others() {
    let n_streams = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&n_streams);
    let origin = Origin::raw(move |stream| {
        let counted = Arc::clone(&counted);
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                // The first is served, so that the connection is known to be good.
                if counted.fetch_add(1, Ordering::SeqCst) == 0 {
                    respond.send_response(Response::new(()), true).unwrap();
                } else {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                }
            }
        }
    })
    .await;
    let addr = free_addr();
    let mut snapshot = with(addr, &[origin.addr], &policy(1, &[]));
    snapshot.services[0].protocol = UpstreamProtocol::H2c;
    let _proxy = Proxy::with_workers(&snapshot, 1);
    let mut client = Client::http1(addr).await;
    assert_eq!(client.get("a.test", "/").await.unwrap().status, 200);
    assert_eq!(client.get("a.test", "/").await.unwrap().status, 503);
    assert_eq!(n_streams.load(Ordering::SeqCst), 3, "once, and once again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_body_is_sent_once() {
    let origin = failing(1, 503, Duration::from_millis(1)).await;
    let short = failing(1, 503, Duration::ZERO).await;
    for (origin, len, n_requests) in [(origin, 200_000, 1), (short, 10, 2)] {
        let addr = free_addr();
        let mut snapshot = with(addr, &[origin.addr], &policy(3, &[503]));
        // The first origin reads the whole body, and is then too slow.
        timeouts(&mut snapshot, Some(500), None);
        let _proxy = Proxy::with_workers(&snapshot, 1);
        let request =
            Request::put("/").header("host", "a.test").body(Full::new(Bytes::from(vec![b'x'; len]))).unwrap();
        let _answer = Client::http1(addr).await.send(request).await;
        assert_eq!(origin.requests(), n_requests, "{len} bytes");
    }
}

/// An answer that would be asked for again, to a body of which too much has gone, is the answer.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_to_a_long_body_is_whole() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = vec![0; 1 << 20];
        let mut n_read = 0;
        while n_read < 150_000 {
            n_read += stream.read(&mut bytes).await.unwrap();
        }
        stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 13\r\n\r\nfai").await.unwrap();
        // The rest when the client has sent more.
        while n_read < 250_000 {
            n_read += stream.read(&mut bytes).await.unwrap();
        }
        stream.write_all(b"led wholly").await.unwrap();
    });
    let addr = free_addr();
    let proxy = Proxy::with_workers(&with(addr, &[origin], &policy(3, &[503])), 1);
    let mut client = TcpStream::connect(addr).await.unwrap();
    let head = b"PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 300000\r\n\r\n";
    client.write_all(head).await.unwrap();
    client.write_all(&vec![b'x'; 200_000]).await.unwrap();
    let (mut reader, mut writer) = client.into_split();
    let mut answer = Vec::new();
    while !answer.ends_with(b"fai") {
        assert!(reader.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
    }
    writer.write_all(&vec![b'x'; 100_000]).await.unwrap();
    while !answer.ends_with(b"failed wholly") {
        if reader.read_buf(&mut answer).await.unwrap() == 0 {
            break;
        }
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("failed wholly"), "{answer}");
    assert_eq!(proxy.metric("sluice_upstream_retries_total{service=\"origin\"}"), 0.0);
}

/// Refuses so many calls with this status of gRPC, in a head alone or behind a message, and then answers.
async fn refusing(n: usize, status: &'static str, is_alone: bool) -> Origin {
    let left = Arc::new(AtomicUsize::new(n));
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    let mut origin = Origin::raw(move |stream| {
        let (left, counter) = (Arc::clone(&left), Arc::clone(&counter));
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                let fails =
                    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
                tokio::spawn(async move {
                    let mut body = request.into_body();
                    let mut message = Vec::new();
                    while let Some(Ok(data)) = body.data().await {
                        message.extend_from_slice(&data);
                    }
                    let head = Response::builder().header("content-type", "application/grpc");
                    if fails && is_alone {
                        let head = head.header("grpc-status", status).body(()).unwrap();
                        respond.send_response(head, true).unwrap();
                        return;
                    }
                    let mut stream = respond.send_response(head.body(()).unwrap(), false).unwrap();
                    stream.send_data(Bytes::from(message), false).unwrap();
                    let mut trailers = http::HeaderMap::new();
                    let status = if fails { status } else { "0" };
                    trailers.insert("grpc-status", http::HeaderValue::from_static(status));
                    stream.send_trailers(trailers).unwrap();
                });
            }
        }
    })
    .await;
    origin.requests = requests;
    origin
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_repeated_after_listed_statuses_of_grpc_where_nothing_stood_in_front() {
    const UNAVAILABLE: &str = "14";
    const NOT_FOUND: &str = "5";
    for (n, status, is_alone, kind, is_listed, n_requests) in [
        (2, UNAVAILABLE, true, "application/grpc", true, 3),
        (2, UNAVAILABLE, true, "application/grpc+proto", true, 3),
        (5, UNAVAILABLE, true, "application/grpc", true, 4),
        // Not listed, and listed nowhere.
        (2, NOT_FOUND, true, "application/grpc", true, 1),
        (2, UNAVAILABLE, true, "application/grpc", false, 1),
        // A message is on its way to the client.
        (2, UNAVAILABLE, false, "application/grpc", true, 1),
        // Whoever does not speak gRPC may mean something else by that field.
        (2, UNAVAILABLE, true, "text/plain", true, 1),
    ] {
        let (origin, addr) = (refusing(n, status, is_alone).await, free_addr());
        let mut policy = policy(3, &[503]);
        if is_listed {
            policy.calls = retry::Calls::NONE.with(14).with(1);
        }
        let mut snapshot = with(addr, &[origin.addr], &policy);
        snapshot.services[0].protocol = UpstreamProtocol::H2c;
        let proxy = Proxy::with_workers(&snapshot, 1);
        let request = Request::post("http://a.test/api.Shop/Buy").header("content-type", kind);
        let request = request.body(Full::new(Bytes::from_static(b"\0\0\0\0\x01m"))).unwrap();
        let answer = Client::http2(addr).await.send(request).await.unwrap();
        let what = format!("{n} times {status}, {kind}");
        assert_eq!((answer.status.as_u16(), origin.requests()), (200, n_requests), "{what}");
        let is_done = n_requests == n + 1;
        let is_told = if is_done || !is_alone { "" } else { status };
        assert_eq!(answer.header("grpc-status"), is_told, "{what}");
        let message: &[u8] = if is_done || !is_alone { b"\0\0\0\0\x01m" } else { b"" };
        assert_eq!(answer.body, message, "{what}: every try has the whole message");
        let retries = "sluice_upstream_retries_total{service=\"api\"}";
        assert_eq!(proxy.metric(retries), (n_requests - 1) as f64, "{what}");
    }
}
