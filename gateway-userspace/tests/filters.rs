//! What a rule does besides forwarding, over loopback and from the configuration file on: redirects, rewrites, header
//! fields, answers of the gateway's own, CORS.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing; the harness shares its modules"
)]

mod support;

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use gateway_userspace::source::file::parse;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use support::{
    client::{self, Answer, Client},
    eventually, free_addr,
    origin::Origin,
    proxy::Proxy,
};

/// A proxy with these rules, as the file has them, on one listener; `app` is the only service.
fn proxy(addr: SocketAddr, origin: SocketAddr, rules: &str) -> Proxy {
    proxy_of(addr, origin, rules, &["app"])
}

/// The same with these services.
fn proxy_of(addr: SocketAddr, origin: SocketAddr, rules: &str, services: &[&str]) -> Proxy {
    let service = |name: &&str| {
        format!("{{name: {name}, endpoints: [{{address: {}, port: {}}}]}}", origin.ip(), origin.port())
    };
    let services: Vec<String> = services.iter().map(service).collect();
    let text = format!(
        "listeners: [{{name: web, address: {}, port: {}, protocol: HTTP}}]\n\
         routes:\n  - name: all\n    listeners: [web]\n    rules:\n{rules}\n\
         services: [{}]\n",
        addr.ip(),
        addr.port(),
        services.join(", "),
    );
    let loaded = parse(Path::new("filters.yaml"), &text).unwrap_or_else(|faults| panic!("{faults}\n{text}"));
    Proxy::start(&loaded.snapshot)
}

async fn ask(addr: SocketAddr, method: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri(path).header("host", "A.test");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    Client::http1(addr).await.send(request.body(Full::default()).unwrap()).await.unwrap()
}

fn all(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_sent_elsewhere() {
    let origin = Origin::named("a").await;
    let addr = free_addr();
    let port = addr.port();
    let _proxy = proxy(
        addr,
        origin.addr,
        "    - {matches: [{path: {value: /old}}], filters: {redirect: {path: {value: /new}, status: 301}}}\n\
         \x20   - {matches: [{path: {value: /secure}}], filters: {redirect: {scheme: https, status: 308}}}\n\
         \x20   - {matches: [{path: {value: /host}}], filters: {redirect: {hostname: b.test, port: 8080}}}\n\
         \x20   - {matches: [{path: {value: /full}}], filters: {redirect: {path: {type: ReplaceFullPath, value: /all}, status: 307}}}\n\
         \x20   - {matches: [{path: {value: /see}}], filters: {redirect: {status: 303}}}",
    );
    for (path, status, location) in [
        ("/old/x?q=1", 301, format!("http://a.test:{port}/new/x?q=1")),
        ("/old", 301, format!("http://a.test:{port}/new")),
        ("/secure/%61?q", 308, "https://a.test/secure/a?q".to_owned()),
        ("/host/x", 302, "http://b.test:8080/host/x".to_owned()),
        ("/full/x/y", 307, format!("http://a.test:{port}/all")),
        ("/see", 303, format!("http://a.test:{port}/see")),
    ] {
        let answer = ask(addr, "GET", path, &[]).await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("location")),
            (status, location.as_str()),
            "{path}"
        );
        assert!(answer.body.is_empty());
    }
    let elsewhere = free_addr();
    let _other = proxy(elsewhere, origin.addr, "    - {filters: {redirect: {hostname: b.test}}}");
    let asked = b"OPTIONS * HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    let answer = client::raw(elsewhere, asked).await;
    assert!(answer.contains(&format!("\r\nlocation: http://b.test:{}/\r\n", elsewhere.port())), "{answer}");
    assert_eq!(origin.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_of_a_backend_hold_for_it_alone_and_between_those_of_the_rule_and_the_endpoint() {
    let origin = Origin::named("a").await;
    let addr = free_addr();
    let which = |name: &str| {
        format!(
            "{{service: {name}, filters: {{requestHeaders: {{set: [{{name: x-which, value: {name}}}]}}, \
             responseHeaders: {{set: [{{name: x-which, value: {name}}}]}}}}}}"
        )
    };
    let _proxy = proxy_of(
        addr,
        origin.addr,
        &format!(
            "    - matches: [{{path: {{value: /order}}}}]\n\
             \x20     backends:\n\
             \x20       - service: app\n\
             \x20         filters:\n\
             \x20           requestHeaders: {{set: [{{name: x-set, value: backend}}], add: [{{name: x-add, value: backend}}], remove: [x-rule]}}\n\
             \x20           responseHeaders: {{set: [{{name: x-set, value: backend}}], add: [{{name: x-add, value: backend}}], remove: [seen-x-gone]}}\n\
             \x20     filters:\n\
             \x20       requestHeaders: {{set: [{{name: x-set, value: rule}}, {{name: x-rule, value: rule}}], add: [{{name: x-add, value: rule}}]}}\n\
             \x20       responseHeaders: {{set: [{{name: x-set, value: rule}}], add: [{{name: x-add, value: rule}}]}}\n\
             \x20   - matches: [{{path: {{value: /share}}}}]\n\
             \x20     backends: [{}, {}, {{service: app}}]",
            which("one"),
            which("two"),
        ),
        &["app", "one", "two"],
    );
    for version in [1, 2] {
        let mut client = if version == 1 { Client::http1(addr).await } else { Client::http2(addr).await };
        let request = |path: &str| {
            let uri = if version == 1 { path.to_owned() } else { format!("http://a.test{path}") };
            let request = Request::get(uri).header("x-set", "client").header("x-gone", "g");
            let request = if version == 1 { request.header("host", "a.test") } else { request };
            request.body(Full::default()).unwrap()
        };
        let answer = client.send(request("/order")).await.unwrap();
        assert_eq!((answer.header("seen-x-set"), answer.header("seen-x-rule")), ("backend", ""), "{version}");
        assert_eq!(all(&answer.headers, "seen-x-add"), ["rule", "backend"]);
        assert_eq!((answer.header("x-set"), answer.header("seen-x-gone")), ("rule", ""));
        assert_eq!(all(&answer.headers, "x-add"), ["backend", "rule"]);
        let mut seen = std::collections::BTreeMap::<String, u32>::new();
        for _ in 0..90 {
            let answer = client.send(request("/share")).await.unwrap();
            assert_eq!(answer.header("seen-x-which"), answer.header("x-which"), "{version}");
            *seen.entry(answer.header("x-which").to_owned()).or_default() += 1;
        }
        let names: Vec<&str> = seen.keys().map(String::as_str).collect();
        assert_eq!(names, ["", "one", "two"], "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_and_fields_change_on_the_way() {
    let origin = Origin::named("a").await;
    let addr = free_addr();
    let _proxy = proxy(
        addr,
        origin.addr,
        "    - matches: [{path: {value: /v1}}]\n\
         \x20     backends: [{service: app}]\n\
         \x20     filters:\n\
         \x20       rewrite: {hostname: app.internal, path: {value: /}}\n\
         \x20       requestHeaders: {set: [{name: X-Set, value: s}], add: [{name: x-add, value: b}], remove: [x-gone]}\n\
         \x20       responseHeaders: {set: [{name: origin, value: hidden}], add: [{name: x-extra, value: e}], remove: [seen-x-set]}\n\
         \x20   - matches: [{path: {type: Exact, value: /one}}]\n\
         \x20     backends: [{service: app}]\n\
         \x20     filters: {rewrite: {path: {type: ReplaceFullPath, value: /two}}}",
    );
    let fields = [("x-set", "1"), ("x-set", "2"), ("x-add", "a"), ("x-gone", "g"), ("x-stays", "y")];
    let answer = ask(addr, "GET", "/v1/users?q=1", &fields).await;
    assert_eq!(answer.header("seen-target"), "/users?q=1");
    assert_eq!(
        (answer.header("seen-host"), answer.header("seen-x-forwarded-host")),
        ("app.internal", "A.test")
    );
    assert_eq!(all(&answer.headers, "seen-x-add"), ["a", "b"]);
    assert_eq!((answer.header("seen-x-gone"), answer.header("seen-x-stays")), ("", "y"));
    assert_eq!(
        (answer.header("origin"), answer.header("x-extra"), answer.header("seen-x-set")),
        ("hidden", "e", "")
    );
    assert_eq!(ask(addr, "GET", "/v1", &[]).await.header("seen-target"), "/");
    assert_eq!(ask(addr, "GET", "/one?q", &[]).await.header("seen-target"), "/two?q");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_answers_by_itself() {
    let origin = Origin::named("a").await;
    let addr = free_addr();
    let proxy = proxy(
        addr,
        origin.addr,
        "    - {matches: [{path: {value: /closed}}], filters: {respond: {status: 503, body: \"come back later\", contentType: text/x-note}, responseHeaders: {set: [{name: retry-after, value: \"60\"}]}}}\n\
         \x20   - {matches: [{path: {value: /none}}], filters: {respond: {status: 204}}}",
    );
    let answer = ask(addr, "GET", "/closed", &[]).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_ref()), (503, &b"come back later"[..]));
    assert_eq!((answer.header("content-type"), answer.header("retry-after")), ("text/x-note", "60"));
    assert_eq!(ask(addr, "HEAD", "/closed", &[]).await.header("content-length"), "15");
    let answer = ask(addr, "GET", "/none", &[]).await;
    assert_eq!((answer.status.as_u16(), answer.body.len(), answer.header("content-type")), (204, 0, ""));
    // What somebody wrote is no fault.
    assert!(!proxy.metrics.encode().unwrap().contains("sluice_request_faults_total{"));
    assert_eq!(origin.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_are_told_who_may_read() {
    let origin = Origin::named("a").await;
    let addr = free_addr();
    let _proxy = proxy(
        addr,
        origin.addr,
        "    - backends: [{service: app}]\n\
         \x20     filters: {cors: {origins: [\"https://*.foo.com\", \"https://bar.com\"], methods: [GET, PUT], headers: [x-a, X-B], exposed: [x-c], credentials: allow, maxAge: 1h}}",
    );
    let preflight = |origin: &'static str| [("origin", origin), ("access-control-request-method", "PUT")];
    let answer = ask(addr, "OPTIONS", "/x", &preflight("https://a.foo.com")).await;
    assert_eq!(answer.status, 200);
    for (name, value) in [
        ("access-control-allow-origin", "https://a.foo.com"),
        ("access-control-allow-methods", "GET, PUT"),
        ("access-control-allow-headers", "x-a, x-b"),
        ("access-control-allow-credentials", "true"),
        ("access-control-max-age", "3600"),
        ("access-control-expose-headers", "x-c"),
        ("vary", "origin"),
    ] {
        assert_eq!(all(&answer.headers, name), [value], "{name}");
    }
    let stranger = ask(addr, "OPTIONS", "/x", &preflight("https://evil.test")).await;
    assert_eq!((stranger.status.as_u16(), stranger.header("access-control-allow-origin")), (200, ""));
    assert_eq!(origin.requests(), 0, "preflights end here");
    let answer = ask(addr, "GET", "/x", &[("origin", "https://bar.com")]).await;
    assert_eq!((answer.header("origin"), answer.header("seen-target")), ("a", "/x"));
    assert_eq!(answer.header("access-control-allow-origin"), "https://bar.com");
    assert_eq!(answer.header("access-control-expose-headers"), "x-c");
    // A browser must be able to read that it failed.
    let options = ask(addr, "OPTIONS", "/x", &[("origin", "https://bar.com")]).await;
    assert_eq!(options.header("seen-method"), "OPTIONS", "not every OPTIONS is a preflight");
}

/// A proxy that copies to `shadow`.
fn mirrored(addr: SocketAddr, origin: SocketAddr, shadow: SocketAddr, mirrors: &str) -> Proxy {
    let text = format!(
        "listeners: [{{name: web, address: {}, port: {}, protocol: HTTP}}]\n\
         routes: [{{name: all, listeners: [web], rules: [{{backends: [{{service: app}}], filters: {{rewrite: {{path: {{value: /v2}}}}, mirrors: {mirrors}}}}}]}}]\n\
         services: [{{name: app, endpoints: [{{address: {}, port: {}}}]}}, {{name: shadow, endpoints: [{{address: {}, port: {}}}]}}]\n",
        addr.ip(),
        addr.port(),
        origin.ip(),
        origin.port(),
        shadow.ip(),
        shadow.port(),
    );
    let loaded = parse(Path::new("filters.yaml"), &text).unwrap_or_else(|faults| panic!("{faults}\n{text}"));
    Proxy::with_workers(&loaded.snapshot, 1)
}

type Seen = Arc<Mutex<Vec<(String, Bytes)>>>;

/// An endpoint that keeps what it gets, and answers with an error that nobody must see.
async fn shadow(delay: Duration) -> (Origin, Seen) {
    let seen = Seen::default();
    let kept = Arc::clone(&seen);
    let origin = Origin::serve("127.0.0.1:0".parse().unwrap(), move |request: Request<Incoming>| {
        let kept = Arc::clone(&kept);
        async move {
            tokio::time::sleep(delay).await;
            let target = format!("{} {}", request.method(), request.uri());
            if let Ok(body) = request.into_body().collect().await {
                kept.lock().unwrap().push((target, body.to_bytes()));
            }
            Response::builder().status(500).body(Full::default()).unwrap()
        }
    });
    (origin.await, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_get_copies_with_their_bodies() {
    let origin = Origin::named("a").await;
    let (other, seen) = shadow(Duration::ZERO).await;
    let addr = free_addr();
    let _proxy = mirrored(
        addr,
        origin.addr,
        other.addr,
        "[{service: shadow}, {service: shadow, percent: 0}, {service: shadow}]",
    );
    let body = Bytes::from(vec![b'x'; 100_000]);
    let request = Request::post("/x?q").header("host", "a.test").body(Full::new(body.clone())).unwrap();
    let answer = Client::http1(addr).await.send(request).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.header("origin"), &answer.body), (200, "a", &body));
    assert_eq!(ask(addr, "GET", "/y", &[]).await.status, 200);
    eventually("the copies arrive", Duration::from_secs(5), || seen.lock().unwrap().len() >= 4).await;
    let mut seen = seen.lock().unwrap().clone();
    seen.sort();
    let expected = |target: &str, body: &Bytes| (target.to_owned(), body.clone());
    let (get, post) = (expected("GET /v2/y", &Bytes::new()), expected("POST /v2/x?q", &body));
    assert_eq!(seen, [get.clone(), get, post.clone(), post]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_of_the_requests_is_copied() {
    let origin = Origin::named("a").await;
    let (other, _seen) = shadow(Duration::ZERO).await;
    let addr = free_addr();
    let _proxy = mirrored(addr, origin.addr, other.addr, "[{service: shadow, percent: 20}]");
    let mut client = Client::http1(addr).await;
    for _ in 0..1_000 {
        assert_eq!(client.get("a.test", "/").await.unwrap().status, 200);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!((140..260).contains(&other.requests()), "{} of 1,000", other.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_hangs_delays_nobody_and_its_copies_are_bounded() {
    let origin = Origin::named("a").await;
    let (other, _seen) = shadow(Duration::from_mins(1)).await;
    let addr = free_addr();
    let proxy = mirrored(addr, origin.addr, other.addr, "[{service: shadow}]");
    let mut client = Client::http1(addr).await;
    let started = Instant::now();
    for _ in 0..300 {
        assert_eq!(client.call("POST", "a.test", "/", "small").await.unwrap().status, 200);
    }
    let long = Bytes::from(vec![b'x'; 4 << 20]);
    let request = Request::post("/").header("host", "a.test").body(Full::new(long.clone())).unwrap();
    assert_eq!(client.send(request).await.unwrap().body, long, "the original is whole");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    let dropped = proxy.metric("sluice_limit_reached_total{limit=\"mirrors\"}");
    assert!(dropped >= 45.0, "{dropped} copies were dropped");
}
