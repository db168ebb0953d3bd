//! The data path over loopback, without privilege: routing, protocols, retries, reload, drain.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::float_cmp,
    clippy::as_conversions,
    reason = "a test says what went wrong by failing; its numbers are small and exact"
)]

mod support;

use std::{collections::HashMap, time::Duration};

use gateway_userspace::{
    endpoint::Health,
    limits,
    snapshot::{listener::Protocol, service::UpstreamProtocol},
};
use support::{
    client::{self, Client},
    free_addr,
    origin::Origin,
    proxy::Proxy,
    wanted::{self, exact, hostname, listener, prefix, route, rule, service, simple},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_request_goes_to_the_endpoint_and_keeps_its_connection() {
    let origin = Origin::named("a").await;
    let addr = free_addr();
    let proxy = Proxy::with_workers(&simple(addr, &[origin.addr]), 1);
    let mut client = Client::http1(addr).await;
    for n in 0..50 {
        let answer = client.call("POST", "a.test", "/x?y=z", "hello").await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.body.as_ref()), (200, &b"hello"[..]), "{n}");
        assert_eq!(answer.header("seen-host"), "a.test");
        assert_eq!(answer.header("seen-target"), "/x?y=z");
        assert_eq!(answer.header("seen-x-forwarded-for"), "127.0.0.1");
        assert_eq!(answer.header("seen-x-forwarded-proto"), "http");
        assert_eq!(answer.header("seen-x-forwarded-host"), "a.test");
    }
    assert_eq!(origin.connections(), 1, "every request reuses the connection");
    let requests = "sluice_requests_total{listener=\"web\",route=\"all\",status=\"2xx\"}";
    assert_eq!(proxy.metric(requests), 50.0);
    assert_eq!(proxy.metric("sluice_upstream_tries_total{service=\"api\"}"), 50.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_go_by_precedence_and_by_weight() {
    let (a, b, c) = (Origin::named("a").await, Origin::named("b").await, Origin::named("c").await);
    let addr = free_addr();
    let mut snapshot = simple(addr, &[a.addr]);
    let mut narrow =
        route("narrow", "web", vec![rule(exact("/x/y"), &[("b", 1)]), rule(prefix("/x"), &[("c", 1)])]);
    narrow.hostnames = vec![hostname("*.example.org")];
    let mut shares = route("shares", "web", vec![rule(prefix("/"), &[("api", 3), ("b", 1)])]);
    shares.hostnames = vec![hostname("shares.test")];
    let mut missing = route("missing", "web", vec![rule(prefix("/"), &[("nobody", 1), ("api", 1)])]);
    missing.hostnames = vec![hostname("missing.test")];
    let mut nothing = route("nothing", "web", vec![rule(prefix("/only"), &[("api", 1)])]);
    nothing.hostnames = vec![hostname("nothing.test")];
    snapshot.routes = vec![narrow, shares, missing, nothing];
    snapshot.services.extend([service("b", &[b.addr]), service("c", &[c.addr])]);
    let proxy = Proxy::start(&snapshot);
    let mut client = Client::http1(addr).await;
    for (host, path, status, origin) in [
        ("a.example.org", "/x/y", 200, "b"),
        ("A.Example.ORG:8080", "/x/y/z", 200, "c"),
        ("example.org", "/x", 404, ""),
        ("a.example.org", "/xy", 404, ""),
        ("nothing.test", "/", 404, ""),
        ("nothing.test", "/only/this", 200, "a"),
    ] {
        let answer = client.get(host, path).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.header("origin")), (status, origin), "{host}{path}");
    }
    let mut counts: HashMap<String, u32> = HashMap::new();
    for _ in 0..2_000 {
        let answer = client.get("shares.test", "/").await.unwrap();
        *counts.entry(answer.header("origin").to_owned()).or_default() += 1;
    }
    assert!((1_400..1_600).contains(&counts["a"]), "{counts:?}");
    let mut failed = 0;
    for _ in 0..400 {
        let status = client.get("missing.test", "/").await.unwrap().status.as_u16();
        assert!(status == 200 || status == 500);
        failed += u32::from(status == 500);
    }
    assert!((140..260).contains(&failed), "{failed} of 400");
    let faults = "sluice_request_faults_total{listener=\"web\",route=\"missing\",kind=\"missing_service\"}";
    assert_eq!(proxy.metric(faults), f64::from(failed));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_protocol_towards_clients_meets_every_protocol_towards_endpoints() {
    let origin = Origin::named("a").await;
    let (plain, secure) = (free_addr(), free_addr());
    let mut snapshot = simple(plain, &[origin.addr]);
    let mut https = listener("secure", secure, Protocol::Https);
    https.certificates = vec![wanted::certificate("a.test")];
    snapshot.listeners.push(https);
    snapshot.routes.push(route(
        "h1",
        "secure",
        vec![rule(prefix("/"), &[("api", 1)]), rule(prefix("/h2"), &[("h2", 1)])],
    ));
    snapshot.routes[0].rules.push(rule(prefix("/h2"), &[("h2", 1)]));
    let mut h2 = service("h2", &[origin.addr]);
    h2.protocol = UpstreamProtocol::H2c;
    snapshot.services.push(h2);
    let _proxy = Proxy::start(&snapshot);
    let mut clients = vec![
        ("http", Client::http1(plain).await),
        ("http", Client::http2(plain).await),
        ("https", Client::over_http1(client::tls(secure, "a.test", &["http/1.1"]).await.unwrap()).await),
        (
            "https",
            Client::over_http2(client::tls(secure, "a.test", &["h2", "http/1.1"]).await.unwrap()).await,
        ),
    ];
    for (scheme, client) in &mut clients {
        for (path, version) in [("/x", "HTTP/1.1"), ("/h2/x", "HTTP/2.0")] {
            for method in ["GET", "POST", "PUT"] {
                let body = if method == "GET" { "" } else { "some text" };
                let answer = client.call(method, "a.test", path, body).await.unwrap();
                assert_eq!(
                    (answer.status.as_u16(), answer.body.as_ref()),
                    (200, body.as_bytes()),
                    "{scheme} {path}"
                );
                assert_eq!(answer.header("seen-method"), method);
                assert_eq!(answer.header("seen-version"), version);
                assert_eq!(answer.header("seen-x-forwarded-proto"), *scheme);
                assert_eq!(answer.header("seen-x-forwarded-host"), "a.test");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_refuses_is_replaced_within_the_request() {
    let origin = Origin::named("a").await;
    let addr = free_addr();
    let _proxy = Proxy::start(&simple(addr, &[free_addr(), free_addr(), origin.addr]));
    let mut client = Client::http1(addr).await;
    for _ in 0..30 {
        assert_eq!(client.call("POST", "a.test", "/", "x").await.unwrap().status, 200);
    }
    drop(origin);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_said() {
    let addr = free_addr();
    let proxy = Proxy::start(&simple(addr, &[free_addr()]));
    assert_eq!(client::get(addr, "a.test", "/").await.status, 503);
    proxy
        .endpoint("api", proxy.published.load().services.values().next().unwrap().definition().endpoints[0].0)
        .set_health(Health::Down);
    let answer = client::get(addr, "a.test", "/").await;
    assert_eq!((answer.status.as_u16(), answer.body.as_ref()), (503, &b"no endpoint is available\n"[..]));
    let faults = "sluice_request_faults_total{listener=\"web\",route=\"all\",kind=";
    assert_eq!(proxy.metric(&format!("{faults}\"connect\"}}")), 1.0);
    assert_eq!(proxy.metric(&format!("{faults}\"no_endpoint\"}}")), 1.0);
    assert_eq!(proxy.drain(Duration::from_secs(5)).await, 0);
}

mod target {
    //! What is matched is what is sent, and it is meant for us.

    use gateway_userspace::target::{Escaped, Repeated, Rules};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_path_that_is_matched_is_the_path_that_is_sent() {
        let (open, secret) = (Origin::named("open").await, Origin::named("secret").await);
        let (strict, lax) = (free_addr(), free_addr());
        let mut snapshot = simple(strict, &[open.addr]);
        snapshot.listeners.push(listener("lax", lax, Protocol::Http));
        snapshot.listeners[1].paths =
            Rules { repeated: Repeated::Keep, escaped: Escaped::Keep, ..Rules::DEFAULT };
        snapshot.routes[0].listeners.push(snapshot.listeners[1].name.clone());
        snapshot.routes[0].rules.push(rule(prefix("/admin"), &[("secret", 1)]));
        snapshot.services.push(service("secret", &[secret.addr]));
        let _proxy = Proxy::start(&snapshot);
        for (path, origin, sent) in [
            ("/%61dmin/x?q=/../%61", "secret", "/admin/x?q=/../%61"),
            ("/x/../admin", "secret", "/admin"),
            ("/x/%2e%2E/admin/", "secret", "/admin/"),
            ("//admin", "secret", "/admin"),
            ("/admin/../x", "open", "/x"),
            ("/admin/..", "open", "/"),
        ] {
            let answer = client::get(strict, "a.test", path).await;
            assert_eq!((answer.header("origin"), answer.header("seen-target")), (origin, sent), "{path}");
        }
        for path in ["/x%2f..%2fadmin", "/x%5cadmin", "/x%00", "/x/..;/admin", "/%zz"] {
            assert_eq!(client::get(strict, "a.test", path).await.status, 400, "{path}");
        }
        for (path, origin, sent) in [
            ("//admin", "open", "//admin"),
            ("/admin%2f..", "open", "/admin%2F.."),
            ("/%61dmin", "secret", "/admin"),
        ] {
            let answer = client::get(lax, "a.test", path).await;
            assert_eq!((answer.header("origin"), answer.header("seen-target")), (origin, sent), "{path}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_connection_serves_the_listener_that_it_was_opened_for() {
        let origin = Origin::named("a").await;
        let addr = free_addr();
        let mut snapshot = simple(addr, &[origin.addr]);
        let https = |name: &str, host: Option<&str>| {
            let mut https = listener(name, addr, Protocol::Https);
            https.hostname = host.map(hostname);
            https.certificates = vec![wanted::certificate("a.test")];
            https
        };
        snapshot.listeners = vec![
            https("web", None),
            https("second", Some("second-example.org")),
            https("wild", Some("*.wildcard.org")),
            https("narrow", Some("very.specific.wildcard.org")),
        ];
        let mut here = route("here", "web", vec![rule(prefix("/"), &[("api", 1)])]);
        here.hostnames = vec![hostname("example.org")];
        let others = ["second", "wild", "narrow"];
        snapshot.routes = others
            .map(|name| route(name, name, vec![rule(prefix("/"), &[("api", 1)])]))
            .into_iter()
            .collect();
        snapshot.routes.push(here);
        let proxy = Proxy::start(&snapshot);
        for (name, host, status) in [
            ("example.org", "example.org", 200),
            ("example.org", "second-example.org", 421),
            ("example.org", "unknown-example.org", 404),
            ("second-example.org", "second-example.org", 200),
            ("second-example.org", "example.org", 421),
            ("second-example.org", "unknown-example.org", 421),
            ("a.wildcard.org", "b.wildcard.org", 200),
            ("a.wildcard.org", "very.specific.wildcard.org", 421),
            ("unknown-example.org", "example.org", 200),
        ] {
            for (alpn, is_http2) in [("h2", true), ("http/1.1", false)] {
                let stream = client::tls(addr, name, &[alpn]).await.unwrap();
                let mut client = if is_http2 {
                    Client::over_http2(stream).await
                } else {
                    Client::over_http1(stream).await
                };
                let answer = client.get(host, "/").await.unwrap();
                assert_eq!(answer.status, status, "{name} asks for {host} over {alpn}");
            }
        }
        let faults = "sluice_request_faults_total{listener=\"web\",route=\"\",kind=\"misdirected\"}";
        assert_eq!(proxy.metric(faults), 8.0);
        // Where nobody serves all other names, another connection would lead nowhere either.
        snapshot.listeners.remove(0);
        snapshot.routes.pop();
        proxy.apply(&snapshot).unwrap();
        for (host, status) in [("second-example.org", 200), ("a.wildcard.org", 421), ("example.org", 404)] {
            let stream = client::tls(addr, "second-example.org", &["h2"]).await.unwrap();
            let answer = Client::over_http2(stream).await.get(host, "/").await.unwrap();
            assert_eq!(answer.status, status, "{host}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_clients_claim_about_themselves_is_dropped_unless_proxies_in_front_are_trusted() {
        let origin = Origin::named("a").await;
        let (edge, inner) = (free_addr(), free_addr());
        let mut snapshot = simple(edge, &[origin.addr]);
        snapshot.listeners.push(listener("inner", inner, Protocol::Http));
        snapshot.listeners[1].trusted_hops = 1;
        snapshot.routes[0].listeners.push(snapshot.listeners[1].name.clone());
        let _proxy = Proxy::start(&snapshot);
        for (addr, chain, real, host) in [
            (edge, "127.0.0.1", "127.0.0.1", "a.test"),
            (inner, "192.0.2.2, 127.0.0.1", "192.0.2.2", "b.test"),
        ] {
            let request = http::Request::get("/")
                .header("host", "a.test")
                .header("x-forwarded-for", "192.0.2.1, 192.0.2.2")
                .header("x-real-ip", "192.0.2.1")
                .header("x-forwarded-host", "b.test")
                .header("x-forwarded-prefix", "/admin")
                .header("connection", "x-forwarded-for");
            let request = request.body(http_body_util::Full::default()).unwrap();
            let answer = Client::http1(addr).await.send(request).await.unwrap();
            assert_eq!(answer.header("seen-x-forwarded-for"), chain);
            assert_eq!(answer.header("seen-x-real-ip"), real);
            assert_eq!(answer.header("seen-x-forwarded-host"), host);
            assert_eq!(answer.header("seen-x-forwarded-prefix"), if addr == edge { "" } else { "/admin" });
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_cannot_be_expected_is_refused_over_both_versions() {
        let origin = Origin::named("a").await;
        let addr = free_addr();
        let proxy = Proxy::start(&simple(addr, &[origin.addr]));
        for (n, mut client) in [(1.0, Client::http1(addr).await), (2.0, Client::http2(addr).await)] {
            let uri = if matches!(client, Client::Http1(_)) { "/" } else { "http://a.test/" };
            let request = http::Request::get(uri).header("host", "a.test").header("expect", "a-miracle");
            let answer = client.send(request.body(http_body_util::Full::default()).unwrap()).await.unwrap();
            assert_eq!(answer.status, 417);
            let refused = proxy.metric("sluice_requests_refused_total{reason=\"expect\"} ");
            assert!((refused - n).abs() < 1e-9, "{refused}");
        }
        assert_eq!(origin.requests(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn as_many_fields_pass_as_a_head_may_have() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        // One that takes what is added on the way, too.
        let origin = Origin::raw(async |mut stream: tokio::net::TcpStream| {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap() > 0 {}
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        })
        .await;
        let addr = free_addr();
        let _proxy = Proxy::start(&simple(addr, &[origin.addr]));
        // `host`, or what stands for it, is one of them over HTTP/1.1.
        for (over_http2, most) in [(false, limits::HEADERS - 1), (true, limits::HEADERS)] {
            for (n, status) in [(most, 200), (most + 1, 431)] {
                let mut client =
                    if over_http2 { Client::http2(addr).await } else { Client::http1(addr).await };
                let uri = if over_http2 { "http://a.test/" } else { "/" };
                let mut request = http::Request::get(uri);
                if !over_http2 {
                    request = request.header("host", "a.test");
                }
                for i in 0..n {
                    request = request.header(format!("x-{i}"), "1");
                }
                let request = request.body(http_body_util::Full::default()).unwrap();
                let found = client.send(request).await.unwrap().status;
                assert_eq!(found, status, "{over_http2} {n}");
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn cookies_that_a_client_of_http2_splits_are_one_field() {
        let origin = Origin::named("a").await;
        let addr = free_addr();
        let _proxy = Proxy::start(&simple(addr, &[origin.addr]));
        let cookies: Vec<String> = (0..2 * limits::HEADERS).map(|n| format!("a{n}=1")).collect();
        let get =
            |uri: &str| cookies.iter().fold(http::Request::get(uri), |get, one| get.header("cookie", one));
        let split = get("http://a.test/").body(http_body_util::Full::default()).unwrap();
        let answer = Client::http2(addr).await.send(split).await.unwrap();
        assert_eq!(
            (answer.status.as_u16(), answer.header("seen-cookie")),
            (200, cookies.join("; ").as_str())
        );
        // In HTTP/1.1 nobody may split them.
        let split = get("/").header("host", "a.test").body(http_body_util::Full::default()).unwrap();
        assert_eq!(Client::http1(addr).await.send(split).await.unwrap().status, 431);
        // They are one, and not none.
        let many =
            (0..limits::HEADERS).fold(get("http://a.test/"), |get, n| get.header(format!("x-{n}"), "1"));
        let many = many.body(http_body_util::Full::default()).unwrap();
        assert_eq!(Client::http2(addr).await.send(many).await.unwrap().status, 431);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn requests_go_as_far_as_their_client_lets_them() {
        let origin = Origin::named("a").await;
        let addr = free_addr();
        let _proxy = Proxy::start(&simple(addr, &[origin.addr]));
        for (method, most, status, seen) in [
            ("OPTIONS", "2", 200, "1"),
            ("TRACE", "1", 200, "0"),
            ("GET", "0", 200, "0"),
            ("OPTIONS", "0", 200, ""),
            ("TRACE", "0", 501, ""),
        ] {
            let request = http::Request::builder().method(method).uri("/");
            let request = request.header("host", "a.test").header("max-forwards", most);
            let request = request.body(http_body_util::Full::default()).unwrap();
            let answer = Client::http1(addr).await.send(request).await.unwrap();
            let found = (answer.status.as_u16(), answer.header("seen-max-forwards"));
            assert_eq!(found, (status, seen), "{method} {most}");
        }
        assert_eq!(origin.requests(), 3);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_clients_of_http1_may_leave_empty_or_say_of_a_connection_reaches_endpoints_of_http2() {
        let origin = Origin::named("a").await;
        let addr = free_addr();
        let mut snapshot = simple(addr, &[origin.addr]);
        snapshot.services[0].protocol = UpstreamProtocol::H2c;
        let _proxy = Proxy::start(&snapshot);
        for (fields, seen) in [
            ("Host:\r\nConnection: close", None),
            ("Host: a.test\r\nConnection: te, close\r\nTE: deflate;q=0.5, trailers", Some("trailers")),
        ] {
            let answer = client::raw(addr, format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n").as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            let found = answer.lines().find_map(|line| line.strip_prefix("seen-te: "));
            assert_eq!(found, seen, "{answer}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn targets_of_other_schemes_are_refused_over_both_versions() {
        let origin = Origin::named("a").await;
        let addr = free_addr();
        let _proxy = Proxy::start(&simple(addr, &[origin.addr]));
        let answer = client::raw(addr, b"GET ftp://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        let request = http::Request::get("ftp://a.test/").body(http_body_util::Full::default()).unwrap();
        assert_eq!(Client::http2(addr).await.send(request).await.unwrap().status, 400);
        assert_eq!(origin.requests(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nobody_waits_for_longer_than_a_client_of_grpc() {
        let (origin, permits) = Origin::held().await;
        let addr = free_addr();
        let proxy = Proxy::start(&simple(addr, &[origin.addr]));
        let call = async |timeout: &str, kind: &str| {
            let request = http::Request::post("http://a.test/svc/Call").header("content-type", kind);
            let request = request.header("grpc-timeout", timeout).body(http_body_util::Full::default());
            Client::http2(addr).await.send(request.unwrap()).await.unwrap()
        };
        let answer = call("100m", "application/grpc").await;
        assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, "4"));
        let faults = "sluice_request_faults_total{listener=\"web\",route=\"all\",kind=\"request_timeout\"} ";
        assert!((proxy.metric(faults) - 1.0).abs() < 1e-9);
        // Nobody else is bound by the field, nor gRPC by one that says nothing.
        permits.add_permits(100);
        for (timeout, kind) in [("0S", "text/plain"), ("soon", "application/grpc")] {
            assert_eq!(call(timeout, kind).await.header("grpc-status"), "", "{timeout}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn clients_of_grpc_are_told_of_faults_in_their_words() {
        let addr = free_addr();
        let mut snapshot = simple(addr, &[]);
        snapshot.routes[0].rules =
            vec![rule(prefix("/there"), &[("api", 1)]), rule(prefix("/missing"), &[("api", 0)])];
        let _proxy = Proxy::start(&snapshot);
        for (path, status, grpc) in
            [("/there/Call", 503, "14"), ("/nowhere/Call", 404, "12"), ("/missing/Call", 500, "14")]
        {
            for kind in ["application/grpc", "text/plain"] {
                let request =
                    http::Request::post(format!("http://a.test{path}")).header("content-type", kind);
                let request = request.body(http_body_util::Full::default()).unwrap();
                let answer = Client::http2(addr).await.send(request).await.unwrap();
                let expected = if kind == "text/plain" { (status, "") } else { (200, grpc) };
                assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), expected, "{path} {kind}");
            }
        }
    }
}

mod head {
    //! Requests that two servers could understand differently.

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn bad_heads_get_400_and_no_endpoint_sees_them() {
        let origin = Origin::named("a").await;
        let addr = free_addr();
        let _proxy = Proxy::start(&simple(addr, &[origin.addr]));
        for bad in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
            "GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
        ] {
            let answer = client::raw(addr, bad.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 400"), "{bad:?} got {answer:?}");
        }
        assert_eq!(origin.requests(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn requests_in_front_of_a_bad_one_are_answered() {
        let origin = Origin::named("a").await;
        let addr = free_addr();
        let _proxy = Proxy::start(&simple(addr, &[origin.addr]));
        let good = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";
        let answer =
            client::raw(addr, format!("{good}GET /3 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").as_bytes())
                .await;
        assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 400").count(), 1, "{answer}");
        assert_eq!(origin.requests(), 2);
    }
}

mod loss {
    //! Endpoints that go away in the middle.

    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use support::eventually;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    /// Answers one request per connection and then closes it when the next one has arrived.
    async fn forgetful() -> Origin {
        Origin::raw(|mut stream| async move {
            let mut bytes = [0; 4096];
            if stream.read(&mut bytes).await.is_ok_and(|n| n > 0) {
                stream.write_all(ANSWER).await.unwrap();
                drop(stream.read(&mut bytes).await);
            }
        })
        .await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_kept_connection_that_is_dead_is_replaced() {
        let origin = forgetful().await;
        let addr = free_addr();
        let _proxy = Proxy::with_workers(&simple(addr, &[origin.addr]), 1);
        let mut client = Client::http1(addr).await;
        for n in 0..20 {
            let answer = client.get("a.test", "/").await.unwrap();
            assert_eq!((n, answer.status.as_u16(), answer.body.as_ref()), (n, 200, &b"ok"[..]));
        }
        assert!(origin.connections() >= 20);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_request_that_may_have_had_an_effect_is_not_repeated() {
        let (origin, addr) = (forgetful().await, free_addr());
        let _proxy = Proxy::with_workers(&simple(addr, &[origin.addr]), 1);
        let mut client = Client::http1(addr).await;
        assert_eq!(client.call("POST", "a.test", "/", "x").await.unwrap().status, 200);
        assert_eq!(client.call("POST", "a.test", "/", "x").await.unwrap().status, 502);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_endpoint_that_restarts_over_http2_is_reached_again() {
        let (first, addr) = (Origin::named("first").await, free_addr());
        let mut snapshot = simple(addr, &[first.addr]);
        snapshot.services[0].protocol = UpstreamProtocol::H2c;
        let _proxy = Proxy::with_workers(&snapshot, 1);
        let mut client = Client::http2(addr).await;
        let mut at = first;
        for name in ["second", "third", "fourth"] {
            for _ in 0..5 {
                assert_eq!(client.get("a.test", "/").await.unwrap().status, 200);
            }
            let again = at.addr;
            drop(at);
            at = Origin::at(again, name).await;
            assert_eq!(client.get("a.test", "/").await.unwrap().header("origin"), name);
        }
    }

    /// Takes requests and never answers.
    async fn silent(seen: Arc<AtomicUsize>) -> Origin {
        Origin::raw(move |mut stream| {
            let seen = Arc::clone(&seen);
            async move {
                let mut bytes = [0; 4096];
                while stream.read(&mut bytes).await.is_ok_and(|n| n > 0) {
                    seen.fetch_add(1, Ordering::SeqCst);
                }
            }
        })
        .await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_request_at_an_endpoint_that_goes_down_is_answered_by_another() {
        let seen = Arc::default();
        let (stuck, good, addr) = (silent(Arc::clone(&seen)).await, Origin::named("good").await, free_addr());
        let proxy = Proxy::start(&simple(addr, &[stuck.addr, good.addr]));
        for protocol in ["http1", "http2"] {
            for (method, status) in [("GET", 200), ("POST", 503)] {
                let already = seen.load(Ordering::SeqCst);
                let stuck_endpoint = proxy.endpoint("api", stuck.addr);
                stuck_endpoint.set_health(Health::Unknown);
                let good_endpoint = proxy.endpoint("api", good.addr);
                good_endpoint.set_health(Health::Down);
                let waiting = tokio::spawn(async move {
                    let mut client = if protocol == "http1" {
                        Client::http1(addr).await
                    } else {
                        Client::http2(addr).await
                    };
                    client.call(method, "a.test", "/", "").await.unwrap()
                });
                eventually("the request is there", Duration::from_secs(5), || {
                    seen.load(Ordering::SeqCst) > already
                })
                .await;
                good_endpoint.set_health(Health::Up);
                stuck_endpoint.set_health(Health::Down);
                let answer = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
                assert_eq!(answer.status, status, "{protocol} {method}");
                assert_eq!(stuck_endpoint.active(), 0, "nothing is left at the endpoint");
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_body_that_was_not_read_yet_goes_to_another() {
        // Closes every connection without reading from it.
        let closing = Origin::raw(|stream| async move {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            drop(stream);
        })
        .await;
        let (good, addr) = (Origin::named("good").await, free_addr());
        let _proxy = Proxy::start(&simple(addr, &[closing.addr, good.addr]));
        let mut client = Client::http1(addr).await;
        // Each is sent again once, which is what the budget of one worker allows in a second.
        for _ in 0..10 {
            let answer = client.get("a.test", "/").await.unwrap();
            assert_eq!((answer.status.as_u16(), answer.header("origin")), (200, "good"));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn time_is_bounded_for_a_try_and_for_a_request() {
        let seen = Arc::default();
        let (stuck, addr) = (silent(Arc::clone(&seen)).await, free_addr());
        let mut snapshot = simple(addr, &[stuck.addr]);
        let rules = &mut snapshot.routes[0].rules;
        rules[0].backend_timeout = Some(Duration::from_millis(100));
        rules.push(rule(prefix("/whole"), &[("api", 1)]));
        rules[1].request_timeout = Some(Duration::from_millis(150));
        let _proxy = Proxy::start(&snapshot);
        for (path, text) in [("/", "the endpoint took too long\n"), ("/whole", "the request took too long\n")]
        {
            let started = std::time::Instant::now();
            let answer = client::get(addr, "a.test", path).await;
            assert_eq!((answer.status.as_u16(), answer.body.as_ref()), (504, text.as_bytes()));
            assert!(started.elapsed() < Duration::from_secs(2));
        }
    }
}

mod change {
    //! Configuration that changes while it is used.

    use std::sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    };

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_reload_under_load_fails_no_request() {
        let (a, b, addr, secure) =
            (Origin::named("a").await, Origin::named("b").await, free_addr(), free_addr());
        let snapshot = |n: u32| {
            let endpoints = [[a.addr, b.addr], [b.addr, a.addr]];
            let mut snapshot = simple(addr, &endpoints[n as usize % 2][..=(n as usize / 2 % 2)]);
            let mut https = listener("secure", secure, Protocol::Https);
            https.certificates = vec![wanted::certificate(&format!("n{n}.test"))];
            snapshot.listeners.push(https);
            snapshot.routes.push(route("s", "secure", vec![rule(prefix("/"), &[("api", 1)])]));
            snapshot.routes[0].rules.push(rule(prefix(&format!("/{n}")), &[("api", 1)]));
            if n.is_multiple_of(3) {
                snapshot.listeners.push(listener("sometimes", free_addr(), Protocol::Http));
            }
            snapshot.generation = u64::from(n);
            snapshot
        };
        let proxy = Proxy::start(&snapshot(0));
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let load: Vec<_> = (0..6)
            .map(|n| {
                let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
                tokio::spawn(async move {
                    let mut kept = match n {
                        0 | 1 => Client::http1(addr).await,
                        2 => Client::http2(addr).await,
                        _ => Client::over_http2(client::tls(secure, "x.test", &["h2"]).await.unwrap()).await,
                    };
                    while !stop.load(Ordering::SeqCst) {
                        assert_eq!(kept.get("a.test", "/x").await.unwrap().status, 200);
                        if n == 5 {
                            let stream = client::tls(secure, "x.test", &["http/1.1"]).await.unwrap();
                            assert_eq!(
                                Client::over_http1(stream).await.get("a.test", "/").await.unwrap().status,
                                200
                            );
                        }
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for n in 1..=60 {
            proxy.apply(&snapshot(n)).unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stop.store(true, Ordering::SeqCst);
        for task in load {
            task.await.unwrap();
        }
        assert!(done.load(Ordering::SeqCst) > 200, "{done:?} requests only");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn certificates_go_by_name_and_a_bad_one_changes_nothing() {
        let (origin, addr) = (Origin::named("a").await, free_addr());
        let mut snapshot = simple(addr, &[origin.addr]);
        snapshot.listeners = ["a.test", "*.b.test"]
            .into_iter()
            .enumerate()
            .map(|(n, name)| {
                let mut https = listener(&format!("web{n}"), addr, Protocol::Https);
                https.hostname = Some(hostname(name));
                https.certificates = vec![wanted::certificate(name)];
                https
            })
            .collect();
        snapshot.routes = vec![route("r", "web0", vec![rule(prefix("/"), &[("api", 1)])])];
        let proxy = Proxy::start(&snapshot);
        let first = client::served_certificate(&client::tls(addr, "a.test", &[]).await.unwrap());
        let other = client::served_certificate(&client::tls(addr, "x.b.test", &[]).await.unwrap());
        assert_ne!(first, other);
        assert!(client::tls(addr, "nobody.test", &[]).await.is_err());

        let good = snapshot.clone();
        snapshot.listeners[0].certificates[0].key_pem = wanted::certificate("a.test").key_pem;
        snapshot.listeners[1].certificates[0].chain_pem = b"nonsense".to_vec();
        let faults = proxy.apply(&snapshot).unwrap_err().to_string();
        assert!(
            faults.contains("listener `web0`, certificate a.test.pem: the private key does not belong"),
            "{faults}"
        );
        assert!(
            faults.contains("listener `web1`, certificate *.b.test.pem: there is no certificate"),
            "{faults}"
        );
        assert_eq!(first, client::served_certificate(&client::tls(addr, "a.test", &[]).await.unwrap()));

        let mut renewed = good;
        renewed.listeners[0].certificates = vec![wanted::certificate("a.test")];
        proxy.apply(&renewed).unwrap();
        assert_ne!(first, client::served_certificate(&client::tls(addr, "a.test", &[]).await.unwrap()));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn draining_finishes_what_has_begun() {
        let origin = Origin::serve("127.0.0.1:0".parse().unwrap(), |_| async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            http::Response::new(http_body_util::Full::new(bytes::Bytes::from_static(b"late")))
        })
        .await;
        let addr = free_addr();
        let proxy = Proxy::start(&simple(addr, &[origin.addr]));
        let mut clients = vec![Client::http1(addr).await, Client::http2(addr).await];
        let waiting: Vec<_> = clients
            .drain(..)
            .map(|mut client| {
                tokio::spawn(async move {
                    let answer = client.get("a.test", "/").await.unwrap();
                    (answer.status.as_u16(), client.get("a.test", "/").await.is_err())
                })
            })
            .collect();
        support::eventually("both requests are there", Duration::from_secs(5), || origin.requests() == 2)
            .await;
        let left = proxy.drain(Duration::from_secs(5)).await;
        assert_eq!(left, 0);
        for task in waiting {
            assert_eq!(task.await.unwrap(), (200, true), "answered, and then closed");
        }
        assert!(tokio::net::TcpStream::connect(addr).await.is_err(), "nobody listens any more");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_was_let_in_before_the_drain_is_answered() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let origin = Origin::named("a").await;
        for _ in 0..10 {
            let addr = free_addr();
            let proxy = Proxy::with_workers(&simple(addr, &[origin.addr]), 1);
            // The kernel has shaken hands with all of them, and each has said what it wants.
            let mut clients = Vec::new();
            for _ in 0..50 {
                let mut client = std::net::TcpStream::connect(addr).unwrap();
                std::io::Write::write_all(&mut client, b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
                client.set_nonblocking(true).unwrap();
                clients.push(tokio::net::TcpStream::from_std(client).unwrap());
            }
            let left = proxy.drain(Duration::from_secs(5)).await;
            assert_eq!(left, 0);
            for mut client in clients {
                let mut answer = String::new();
                client.read_to_string(&mut answer).await.unwrap();
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                drop(client.shutdown().await);
            }
        }
    }
}

mod health {
    //! What the prober notices, and when.

    use std::{sync::Arc, time::Instant};

    use gateway_userspace::{
        drain::Tasks,
        prober::{Path, Prober, time_to_notice},
        snapshot::service::CheckKind,
    };

    use super::*;
    use support::eventually;

    fn prober(proxy: &Proxy) -> Prober {
        let prober = Prober::new(Tasks::default(), Arc::clone(&proxy.metrics), Path::default());
        prober.apply(&proxy.published.load().probes, |_| true);
        prober
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_refused_endpoint_is_noticed_within_an_interval_and_comes_back() {
        let (origin, addr) = (Origin::named("a").await, free_addr());
        let mut snapshot = simple(addr, &[origin.addr]);
        snapshot.services[0].health = Some(wanted::check(CheckKind::Tcp));
        let proxy = Proxy::start(&snapshot);
        let _prober = prober(&proxy);
        let endpoint = proxy.endpoint("api", origin.addr);
        eventually("it is up", Duration::from_secs(2), || endpoint.health() == Health::Up).await;
        let (at, check) = (origin.addr, Arc::clone(&proxy.published.load().probes[0].check));
        drop(origin);
        let limit = time_to_notice(&check, false) + Duration::from_millis(100);
        eventually("it is down", limit, || endpoint.health() == Health::Down).await;
        assert_eq!(client::get(addr, "a.test", "/").await.status, 503);
        let _again = Origin::at(at, "again").await;
        eventually("it is up again", Duration::from_secs(2), || endpoint.health() == Health::Up).await;
        assert_eq!(client::get(addr, "a.test", "/").await.status, 200);
        assert!(proxy.metric("sluice_probes_total{service=\"api\",outcome=\"refused\"}") >= 1.0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_silent_endpoint_is_noticed_after_the_threshold() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = silent.local_addr().unwrap();
        let addr = free_addr();
        let mut snapshot = simple(addr, &[at]);
        let http = CheckKind::Http { path: "/healthz".to_owned(), host: None, statuses: 200..=299 };
        snapshot.services[0].health = Some(wanted::check(http));
        let proxy = Proxy::start(&snapshot);
        let started = Instant::now();
        let _prober = prober(&proxy);
        let check = Arc::clone(&proxy.published.load().probes[0].check);
        let limit = time_to_notice(&check, true) + Duration::from_millis(100);
        let endpoint = proxy.endpoint("api", at);
        let took = eventually("it is down", limit, || endpoint.health() == Health::Down).await;
        assert!(
            took + Duration::from_millis(50) >= check.interval + check.timeout,
            "{took:?}, {:?}",
            started.elapsed()
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_wrong_status_takes_it_down_and_an_endpoint_without_check_is_trusted_again() {
        let origin = Origin::serve("127.0.0.1:0".parse().unwrap(), |request| async move {
            let status = if request.uri().path() == "/good" { 204 } else { 500 };
            http::Response::builder().status(status).body(http_body_util::Full::default()).unwrap()
        })
        .await;
        let addr = free_addr();
        let check = |path: &str| {
            let kind =
                CheckKind::Http { path: path.to_owned(), host: Some("x".to_owned()), statuses: 200..=299 };
            let mut snapshot = simple(addr, &[origin.addr]);
            snapshot.services[0].health = Some(wanted::check(kind));
            snapshot
        };
        let proxy = Proxy::start(&check("/bad"));
        let prober = prober(&proxy);
        let endpoint = proxy.endpoint("api", origin.addr);
        eventually("it is down", Duration::from_secs(2), || endpoint.health() == Health::Down).await;
        proxy.apply(&check("/good")).unwrap();
        prober.apply(&proxy.published.load().probes, |_| true);
        eventually("it is up", Duration::from_secs(2), || endpoint.health() == Health::Up).await;
        proxy.apply(&check("/bad")).unwrap();
        prober.apply(&proxy.published.load().probes, |_| true);
        eventually("it is down", Duration::from_secs(2), || endpoint.health() == Health::Down).await;
        prober.apply(&[], |_| true);
        assert_eq!(endpoint.health(), Health::Unknown);
    }
}

mod layer4 {
    //! Balanced connections and datagrams without the kernel's help.

    use gateway_common::{
        addr::{Addr, Port, Protocol as Ip},
        flow::FlowKey,
        hash, slot,
    };
    use gateway_userspace::{
        maglev::{self, Member},
        snapshot::Snapshot,
    };
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpStream, UdpSocket},
    };

    use super::*;
    use std::net::SocketAddr;
    use support::{eventually, proxy::SEED};

    fn balanced(addr: SocketAddr, protocol: Protocol, endpoints: &[SocketAddr]) -> Snapshot {
        let mut snapshot = simple(addr, endpoints);
        snapshot.listeners[0].protocol = protocol;
        snapshot
    }

    /// What the kernel would do, from its own parts.
    fn predicted(client: SocketAddr, addr: SocketAddr, protocol: Ip, endpoints: &[SocketAddr]) -> SocketAddr {
        let of = |addr: SocketAddr| (Addr::from(addr.ip()), Port::new(addr.port()));
        let members: Vec<_> = (0u16..)
            .zip(endpoints)
            .map(|(index, endpoint)| Member {
                addr: of(*endpoint).0,
                port: of(*endpoint).1,
                index,
                weight: 1,
            })
            .collect();
        let n_slots = slot::size_class(u32::try_from(endpoints.len()).unwrap());
        let table = maglev::table(&SEED, &members, n_slots);
        let key = FlowKey::new(of(client).0, of(client).1, of(addr).0, of(addr).1, protocol);
        endpoints[usize::from(table[hash::slot(hash::flow(&SEED.keys(), &key, false), n_slots) as usize])]
    }

    /// Says its own address, then echoes.
    async fn echo() -> Origin {
        Origin::raw(|mut stream| async move {
            let name = stream.local_addr().unwrap().to_string();
            stream.write_all(format!("{name}\n").as_bytes()).await.unwrap();
            let (mut from, mut to) = stream.split();
            drop(tokio::io::copy(&mut from, &mut to).await);
        })
        .await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_connection_goes_where_the_kernel_would_send_it() {
        let origins = [echo().await, echo().await, echo().await];
        let endpoints: Vec<_> = origins.iter().map(|origin| origin.addr).collect();
        let addr = free_addr();
        let proxy = Proxy::start(&balanced(addr, Protocol::Tcp, &endpoints));
        for _ in 0..40 {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            let client = stream.local_addr().unwrap();
            stream.write_all(b"ping").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, format!("{}\nping", predicted(client, addr, Ip::TCP, &endpoints)));
        }
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let mut name = vec![0; 64];
        let n = stream.read(&mut name).await.unwrap();
        let endpoint: SocketAddr = String::from_utf8_lossy(&name[..n]).trim().parse().unwrap();
        proxy.endpoint("api", endpoint).set_health(Health::Down);
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut name)).await.unwrap();
        assert!(ended.is_err() || ended.is_ok_and(|n| n == 0), "a connection ends with its endpoint");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_datagram_goes_where_the_kernel_would_send_it_and_its_answer_comes_back() {
        let mut endpoints = Vec::new();
        for _ in 0..3 {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            endpoints.push(socket.local_addr().unwrap());
            tokio::spawn(async move {
                let mut bytes = [0; 1500];
                while let Ok((n, peer)) = socket.recv_from(&mut bytes).await {
                    let answer =
                        format!("{} {}", socket.local_addr().unwrap(), String::from_utf8_lossy(&bytes[..n]));
                    socket.send_to(answer.as_bytes(), peer).await.unwrap();
                }
            });
        }
        let addr = free_addr();
        let proxy = Proxy::start(&balanced(addr, Protocol::Udp, &endpoints));
        let ask = |socket: std::sync::Arc<UdpSocket>| async move {
            socket.send(b"ping").await.unwrap();
            let mut bytes = [0; 1500];
            let n =
                tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut bytes)).await.unwrap().unwrap();
            String::from_utf8_lossy(&bytes[..n]).into_owned()
        };
        let mut last = None;
        for _ in 0..30 {
            let socket = std::sync::Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
            socket.connect(addr).await.unwrap();
            let endpoint = predicted(socket.local_addr().unwrap(), addr, Ip::UDP, &endpoints);
            for _ in 0..2 {
                assert_eq!(ask(std::sync::Arc::clone(&socket)).await, format!("{endpoint} ping"));
            }
            last = Some((socket, endpoint));
        }
        let (socket, endpoint) = last.unwrap();
        proxy.endpoint("api", endpoint).set_health(Health::Down);
        let answer = ask(socket).await;
        assert!(
            !answer.starts_with(&endpoint.to_string()),
            "a flow leaves an endpoint that is down: {answer}"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn flows_are_counted_while_they_last() {
        let (origin, addr) = (echo().await, free_addr());
        let proxy = Proxy::start(&balanced(addr, Protocol::Tcp, &[origin.addr]));
        let stream = TcpStream::connect(addr).await.unwrap();
        let endpoint = proxy.endpoint("api", origin.addr);
        eventually("it is counted", Duration::from_secs(5), || endpoint.active() == 1).await;
        drop(stream);
        eventually("it is gone", Duration::from_secs(5), || endpoint.active() == 0).await;
    }
}

mod sharing {
    //! Connections to endpoints that many requests share, and sockets that others steer to.

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_burst_over_http2_opens_one_connection() {
        let origin = Origin::serve("127.0.0.1:0".parse().unwrap(), |_| async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            http::Response::new(http_body_util::Full::default())
        })
        .await;
        let addr = free_addr();
        let mut snapshot = simple(addr, &[origin.addr]);
        snapshot.services[0].protocol = UpstreamProtocol::H2c;
        let proxy = Proxy::with_workers(&snapshot, 1);
        let burst: Vec<_> = (0..40)
            .map(|_| tokio::spawn(async move { client::get(addr, "a.test", "/").await.status }))
            .collect();
        for task in burst {
            assert_eq!(task.await.unwrap(), 200);
        }
        assert_eq!((origin.requests(), origin.connections()), (40, 1));
        assert_eq!(proxy.pools.samples()[0].idle, 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_removed_service_loses_its_connections() {
        let (origin, other, addr) = (Origin::named("a").await, Origin::named("b").await, free_addr());
        let proxy = Proxy::start(&simple(addr, &[origin.addr]));
        let mut client = Client::http1(addr).await;
        assert_eq!(client.get("a.test", "/").await.unwrap().header("origin"), "a");
        assert_eq!(proxy.pools.samples()[0].open, 1);
        proxy.apply(&simple(addr, &[other.addr])).unwrap();
        assert_eq!(proxy.pools.samples()[0].open, 0, "although the client is still connected");
        assert_eq!(client.get("a.test", "/").await.unwrap().header("origin"), "b");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn steered_sockets_listen_on_loopback_and_serve_the_virtual_address() {
        let origin = Origin::named("a").await;
        let vip = "198.51.100.1:80".parse().unwrap();
        let proxy = Proxy::steered(&simple(vip, &[origin.addr]));
        let sockets = proxy.sockets();
        assert_eq!(sockets.iter().map(|socket| socket.worker).collect::<Vec<_>>(), [0, 1]);
        for socket in sockets {
            assert_eq!(socket.bind.addr, vip);
            let listener = std::net::TcpListener::from(socket.fd);
            let addr = listener.local_addr().unwrap();
            assert!(addr.ip().is_loopback());
            assert_eq!(client::get(addr, "a.test", "/").await.header("origin"), "a");
        }
    }
}

#[test]
fn an_endpoint_that_was_down_when_it_went_is_trusted_when_it_is_back_without_a_check() {
    use gateway_userspace::{
        compile::service::settle,
        endpoint::{EndpointId, Health, Registry},
    };
    let addrs = [free_addr(), free_addr()];
    let (both, one) = (simple(free_addr(), &addrs), simple(free_addr(), &addrs[..1]));
    let registry = Registry::default();
    settle(&both, None, &registry);
    let service = both.services[0].name.clone();
    let gone = registry.resolve(&EndpointId { service, addr: addrs[1] });
    gone.set_health(Health::Down);
    settle(&one, Some(&both), &registry);
    assert_eq!(gone.health(), Health::Down, "whoever holds flows to it goes by that");
    settle(&both, Some(&one), &registry);
    assert_eq!(gone.health(), Health::Unknown);
    // What is said of one that stayed is not taken back.
    gone.set_health(Health::Down);
    settle(&both, None, &registry);
    assert_eq!(gone.health(), Health::Down);
}
