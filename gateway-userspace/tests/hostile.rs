//! Clients and endpoints that do not do their part: who leaves, who is silent, who refuses, who says strange things.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing, and its tasks end with it"
)]

mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use gateway_userspace::snapshot::service::UpstreamProtocol;
use http::{Response, StatusCode};
use support::{
    client::{self, Client},
    eventually, free_addr,
    origin::Origin,
    proxy::Proxy,
    wanted::{self, simple},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const SOON: Duration = Duration::from_secs(2);

/// Sends bytes, and reads what comes until the connection ends or nothing comes for a while.
async fn raw(addr: SocketAddr, bytes: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    drop(tokio::time::timeout(Duration::from_millis(500), read).await);
    String::from_utf8_lossy(&answer).into_owned()
}

/// An endpoint that speaks HTTP/2; what becomes of stream `m` of connection `n` is said by `answer`.
async fn h2_origin(answer: fn(usize, usize) -> Answer) -> Origin {
    let n_connections = Arc::new(AtomicUsize::new(0));
    Origin::raw(move |stream| {
        let number = n_connections.fetch_add(1, Ordering::SeqCst);
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let mut unanswered = Vec::new();
            let mut n_streams = 0;
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                match answer(number, n_streams) {
                    Answer::Good => {
                        let mut body = respond.send_response(Response::new(()), false).unwrap();
                        body.send_data(Bytes::from_static(b"good"), true).unwrap();
                    }
                    Answer::Refused => respond.send_reset(h2::Reason::REFUSED_STREAM),
                    Answer::None => unanswered.push(respond),
                }
                n_streams += 1;
            }
        }
    })
    .await
}

enum Answer {
    Good,
    Refused,
    None,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_ends_its_request() {
    let open = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&open);
    let origin = Origin::raw(move |mut stream| {
        let counted = Arc::clone(&counted);
        async move {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut bytes = [0; 1_024];
            while stream.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
            counted.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await;
    let addr = free_addr();
    let _proxy = Proxy::start(&simple(addr, &[origin.addr]));
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = TcpStream::connect(addr).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.unwrap();
        clients.push(client);
    }
    eventually("all requests are at the endpoint", SOON, || open.load(Ordering::SeqCst) == 10).await;
    drop(clients);
    eventually("no request is left", SOON, || open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_of_a_response_ends_it_though_its_endpoint_is_silent() {
    let open = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&open);
    let origin = Origin::raw(move |mut stream| {
        let counted = Arc::clone(&counted);
        async move {
            let mut bytes = [0; 1_024];
            assert!(stream.read(&mut bytes).await.unwrap() > 0);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
                .await
                .unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            while stream.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
            counted.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await;
    let addr = free_addr();
    let _proxy = Proxy::start(&simple(addr, &[origin.addr]));
    for is_reset in [false, true] {
        let mut client = TcpStream::connect(addr).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"first\r\n") {
            seen.push(tokio::time::timeout(SOON, client.read_u8()).await.unwrap().unwrap());
        }
        assert_eq!(open.load(Ordering::SeqCst), 1);
        if is_reset {
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(client);
        eventually("the endpoint is left", SOON, || open.load(Ordering::SeqCst) == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_a_connection_behind_a_body_go_no_further() {
    let origin = Origin::raw(|mut stream| async move {
        assert!(stream.read(&mut [0; 1_024]).await.unwrap() > 0);
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nKeep-Alive: x\r\nX-End: 1\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let addr = free_addr();
    let _proxy = Proxy::start(&simple(addr, &[origin.addr]));
    let (mut sender, connection) =
        h2::client::handshake(TcpStream::connect(addr).await.unwrap()).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    let request = http::Request::get("http://a.test/").body(()).unwrap();
    let mut body = sender.send_request(request, true).unwrap().0.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "body");
    assert!(body.data().await.is_none());
    let trailers = body.trailers().await.unwrap().unwrap();
    assert_eq!((trailers.len(), trailers["x-end"].as_bytes()), (1, &b"1"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_nobody_can_read_is_not_none() {
    let origin = Origin::named("a").await;
    let addr = free_addr();
    let proxy = Proxy::start(&simple(addr, &[origin.addr]));
    let answer = client::raw(addr, b"GET / HTTP/1.1\r\nHost: a.test\xff\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(proxy.metric("sluice_requests_refused_total{reason=\"host\"} ") > 0.5);
    assert_eq!(origin.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_wait_for_the_body_says_that_the_connection_ends() {
    let origin = Origin::named("a").await;
    let addr = free_addr();
    let mut snapshot = simple(addr, &[origin.addr]);
    snapshot.routes[0].rules[0].matches = vec![wanted::exact("/only")];
    let _proxy = Proxy::start(&snapshot);
    let answer = raw(addr, "POST /none HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100000\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("\r\nconnection: close\r\n"), "{answer}");
    // What is here already is read over.
    let request = "POST /none HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\nbody";
    let answer = raw(addr, &request.repeat(2)).await;
    assert_eq!(answer.matches("HTTP/1.1 404").count(), 2, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_body_of_a_get_goes_to_the_endpoint() {
    let origin = Origin::named("a").await;
    let addr = free_addr();
    let _proxy = Proxy::start(&simple(addr, &[origin.addr]));
    let request = "GET /search HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nquery\r\n0\r\n\r\n";
    let answer = raw(addr, request).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("query"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_with_more_than_host_and_port_is_refused() {
    let origin = Origin::named("a").await;
    let addr = free_addr();
    let _proxy = Proxy::start(&simple(addr, &[origin.addr]));
    for request in [
        "GET http://public.test:x@secret.test/ HTTP/1.1\r\nHost: public.test\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: public.test:80@evil\r\nConnection: close\r\n\r\n",
    ] {
        let answer = raw(addr, request).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    assert_eq!(origin.requests(), 0);
    let answer = raw(addr, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.contains(" 200 ") && answer.contains("seen-host: \r\n"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_refused_goes_elsewhere_whatever_its_method() {
    let refusing = h2_origin(|_, _| Answer::Refused).await;
    let good = h2_origin(|_, _| Answer::Good).await;
    let addr = free_addr();
    let mut snapshot = simple(addr, &[refusing.addr, good.addr]);
    snapshot.services[0].protocol = UpstreamProtocol::H2c;
    let _proxy = Proxy::with_workers(&snapshot, 1);
    let mut client = Client::http1(addr).await;
    for method in ["POST", "GET", "POST", "PATCH", "POST", "GET"] {
        let answer = client.call(method, "a.test", "/", "body").await.unwrap();
        assert_eq!((answer.status, answer.body.as_ref()), (StatusCode::OK, &b"good"[..]), "{method}");
    }
    assert_eq!(refusing.connections(), 1, "a refused stream is no reason to leave a connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_gave_no_answer_is_not_used_again() {
    let origin = h2_origin(
        |connection, stream| if connection == 0 && stream > 0 { Answer::None } else { Answer::Good },
    );
    let origin = origin.await;
    let addr = free_addr();
    let mut snapshot = simple(addr, &[origin.addr]);
    snapshot.services[0].protocol = UpstreamProtocol::H2c;
    snapshot.routes[0].rules[0].backend_timeout = Some(Duration::from_millis(200));
    let _proxy = Proxy::with_workers(&snapshot, 1);
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(client::get(addr, "a.test", "/").await.status.as_u16());
    }
    assert_eq!(statuses, [200, 504, 200, 200]);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_beyond_what_the_endpoint_allows_get_a_connection_of_their_own() {
    let (most, running) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counted = (Arc::clone(&most), Arc::clone(&running));
    let origin = Origin::raw(move |stream| {
        let (most, running) = counted.clone();
        async move {
            let mut builder = h2::server::Builder::new();
            let mut connection =
                builder.max_concurrent_streams(2).handshake::<_, Bytes>(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let (most, running) = (Arc::clone(&most), Arc::clone(&running));
                tokio::spawn(async move {
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    running.fetch_sub(1, Ordering::SeqCst);
                    drop(respond.send_response(Response::new(()), true));
                });
            }
        }
    })
    .await;
    let addr = free_addr();
    let mut snapshot = simple(addr, &[origin.addr]);
    snapshot.services[0].protocol = UpstreamProtocol::H2c;
    let _proxy = Proxy::with_workers(&snapshot, 1);
    // The endpoint says its bound when it is connected to, and the bound is looked at now and then.
    assert_eq!(client::get(addr, "a.test", "/").await.status, StatusCode::OK);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let burst: Vec<_> =
        (0..8).map(|_| tokio::spawn(async move { client::get(addr, "a.test", "/").await.status })).collect();
    for one in burst {
        assert_eq!(one.await.unwrap(), StatusCode::OK);
    }
    assert!(most.load(Ordering::SeqCst) > 2, "{} at once", most.load(Ordering::SeqCst));
}
