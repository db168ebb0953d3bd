//! The data path over loopback, without privilege: routing, protocols, retries, reload, drain.

mod support;

use std::{collections::HashMap, time::Duration};

use gateway_userspace::{
    endpoint::Health,
    snapshot::{
        listener::Protocol,
        service::UpstreamProtocol,
    },
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
    let mut narrow = route("narrow", "web", vec![rule(exact("/x/y"), &[("b", 1)]), rule(prefix("/x"), &[("c", 1)])]);
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
    snapshot.routes.push(route("h1", "secure", vec![rule(prefix("/"), &[("api", 1)]), rule(prefix("/h2"), &[("h2", 1)])]));
    snapshot.routes[0].rules.push(rule(prefix("/h2"), &[("h2", 1)]));
    let mut h2 = service("h2", &[origin.addr]);
    h2.protocol = UpstreamProtocol::H2c;
    snapshot.services.push(h2);
    let _proxy = Proxy::start(&snapshot);
    let mut clients = vec![
        ("http", Client::http1(plain).await),
        ("http", Client::http2(plain).await),
        ("https", Client::over_http1(client::tls(secure, "a.test", &["http/1.1"]).await.unwrap()).await),
        ("https", Client::over_http2(client::tls(secure, "a.test", &["h2", "http/1.1"]).await.unwrap()).await),
    ];
    for (scheme, client) in &mut clients {
        for (path, version) in [("/x", "HTTP/1.1"), ("/h2/x", "HTTP/2.0")] {
            for method in ["GET", "POST", "PUT"] {
                let body = if method == "GET" { "" } else { "some text" };
                let answer = client.call(method, "a.test", path, body).await.unwrap();
                assert_eq!((answer.status.as_u16(), answer.body.as_ref()), (200, body.as_bytes()), "{scheme} {path}");
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
    proxy.endpoint("api", proxy.published.load().services.values().next().unwrap().definition().endpoints[0].0)
        .set_health(Health::Down);
    let answer = client::get(addr, "a.test", "/").await;
    assert_eq!((answer.status.as_u16(), answer.body.as_ref()), (503, &b"no endpoint is available\n"[..]));
    let faults = "sluice_request_faults_total{listener=\"web\",route=\"all\",kind=";
    assert_eq!(proxy.metric(&format!("{faults}\"connect\"}}")), 1.0);
    assert_eq!(proxy.metric(&format!("{faults}\"no_endpoint\"}}")), 1.0);
    assert_eq!(proxy.drain(Duration::from_secs(5)).await, 0);
}
