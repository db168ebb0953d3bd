//! What becomes of requests that applications could understand otherwise than we do, though no parser of HTTP does: names of
//! fields, and spellings of paths. Over both versions, and counted.
#![expect(
    clippy::unwrap_used,
    clippy::float_cmp,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test says what went wrong by failing; its numbers are small and exact"
)]

mod support;

use std::net::SocketAddr;

use gateway_userspace::{
    field::Underscores,
    snapshot::{Snapshot, listener::Protocol},
    target::{Delimiters, Escaped, Repeated, Rules},
};
use http::{HeaderMap, Request, Version};
use http_body_util::Full;
use support::{
    client::{Answer, Client},
    free_addr,
    origin::Origin,
    proxy::Proxy,
    wanted::{listener, prefix, rule, service, simple},
};

/// The same request over a version.
async fn ask(addr: SocketAddr, version: Version, path: &str, fields: &[(&'static str, &str)]) -> Answer {
    let (mut client, target) = match version {
        Version::HTTP_2 => (Client::http2(addr).await, format!("http://a.test{path}")),
        _ => (Client::http1(addr).await, path.to_owned()),
    };
    let mut request = Request::get(target);
    if version == Version::HTTP_11 {
        request = request.header("host", "a.test");
    }
    let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    client.send(request.body(Full::default()).unwrap()).await.unwrap()
}

const BOTH: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

/// An endpoint that answers with the names of the fields that it got.
async fn telling() -> Origin {
    Origin::serve("127.0.0.1:0".parse().unwrap(), |request: Request<hyper::body::Incoming>| async move {
        let headers: HeaderMap = request.headers().clone();
        let names: Vec<&str> = headers.keys().map(http::HeaderName::as_str).collect();
        http::Response::new(Full::new(names.join(" ").into()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_with_an_underscore_are_refused_dropped_or_sent_as_the_listener_says() {
    let origin = telling().await;
    let [strict, dropping, open] = [free_addr(), free_addr(), free_addr()];
    let mut snapshot = simple(strict, &[origin.addr]);
    for (name, addr, rule) in [("dropping", dropping, Underscores::Drop), ("open", open, Underscores::Allow)]
    {
        let mut other = listener(name, addr, Protocol::Http);
        other.underscores = rule;
        snapshot.routes[0].listeners.push(other.name.clone());
        snapshot.listeners.push(other);
    }
    assert_eq!(snapshot.listeners[0].underscores, Underscores::Reject, "where nothing is written");
    let proxy = Proxy::start(&snapshot);
    let refused = || proxy.metric("sluice_requests_refused_total{reason=\"underscore\"} ");
    let dropped = || proxy.metric("sluice_fields_underscored_total ");
    let faults =
        || proxy.metric("sluice_request_faults_total{listener=\"web\",route=\"\",kind=\"bad_request\"} ");
    let fields = [("x_real_ip", "192.0.2.1"), ("x-fine", "a_b"), ("x_a", "1"), ("x_a", "2")];
    for (n, version) in BOTH.into_iter().enumerate() {
        let n = f64::from(u32::try_from(n).unwrap());
        // Underscores in values, and hyphens in names, are nobody's business.
        assert_eq!(ask(strict, version, "/a_b?c_d", &[("x-fine", "a_b")]).await.status, 200);
        assert_eq!((refused(), dropped()), (n, 2.0 * n), "{version:?}");
        let n_asked = origin.requests();
        assert_eq!(ask(strict, version, "/", &fields).await.status, 400, "{version:?}");
        assert_eq!(origin.requests(), n_asked, "no endpoint sees it");
        assert_eq!((refused(), faults(), dropped()), (n + 1.0, n + 1.0, 2.0 * n), "{version:?}");

        let answer = ask(dropping, version, "/", &fields).await;
        let names = String::from_utf8(answer.body.to_vec()).unwrap();
        assert!(names.contains("x-fine") && !names.contains('_'), "{version:?}: {names}");
        assert_eq!((refused(), dropped()), (n + 1.0, 2.0 * (n + 1.0)), "two names, {version:?}");

        let answer = ask(open, version, "/", &fields).await;
        let names = String::from_utf8(answer.body.to_vec()).unwrap();
        assert!(names.contains("x_real_ip") && names.contains("x_a"), "{version:?}: {names}");
        assert_eq!((refused(), dropped()), (n + 1.0, 2.0 * (n + 1.0)), "{version:?}");
    }
}

/// A listener with these rules for paths, and a secret that only its own path leads to.
fn guarded(addr: SocketAddr, paths: Rules, open: &Origin, secret: &Origin) -> Snapshot {
    let mut snapshot = simple(addr, &[open.addr]);
    snapshot.listeners[0].paths = paths;
    snapshot.routes[0].rules.push(rule(prefix("/admin"), &[("secret", 1)]));
    snapshot.services.push(service("secret", &[secret.addr]));
    snapshot
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_sent_to_the_path_in_which_escaped_slashes_are_slashes() {
    let (open, secret) = (Origin::named("open").await, Origin::named("secret").await);
    let addr = free_addr();
    let paths = Rules { escaped: Escaped::Redirect, ..Rules::DEFAULT };
    let proxy = Proxy::start(&guarded(addr, paths, &open, &secret));
    for version in BOTH {
        let mut paths = vec![
            ("/admin%2Fx?q=%2f", "/admin/x?q=%2f", "secret"),
            ("/x%2f..%2Fadmin", "/admin", "secret"),
            ("/x/%2e%2e%5cadmin/", "/admin/", "secret"),
            ("/admin%5C..%2fx", "/x", "open"),
            // It names no host.
            ("/%2f/evil.test/", "/evil.test/", "open"),
        ];
        if version == Version::HTTP_2 {
            // Over HTTP/1 it is no target at all.
            paths.push(("/x\\admin", "/x/admin", "open"));
        }
        for (path, location, name) in paths {
            let (n_open, n_secret) = (open.requests(), secret.requests());
            let answer = ask(addr, version, path, &[]).await;
            assert_eq!((answer.status.as_u16(), answer.header("location")), (307, location), "{path}");
            assert_eq!((open.requests(), secret.requests()), (n_open, n_secret), "no endpoint sees {path}");
            let answer = ask(addr, version, location, &[]).await;
            assert_eq!(
                (answer.header("origin"), answer.header("seen-target")),
                (name, location),
                "what is asked for then is what was matched: {path}"
            );
        }
        assert_eq!(ask(addr, version, "/a%252fb", &[]).await.header("seen-target"), "/a%252fb");
        assert_eq!(ask(addr, version, "/x%2f..;/admin", &[]).await.status, 400);
    }
    let redirects = "sluice_requests_total{listener=\"web\",route=\"\",status=\"3xx\"} ";
    assert_eq!(proxy.metric(redirects), 11.0, "{}", proxy.metrics.encode().unwrap());
    assert_eq!(proxy.metric("sluice_requests_refused_total{reason=\"path\"} "), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_never_sent_to_another_host() {
    let (open, secret) = (Origin::named("open").await, Origin::named("secret").await);
    let addr = free_addr();
    let paths = Rules { escaped: Escaped::Redirect, repeated: Repeated::Keep, ..Rules::DEFAULT };
    let _proxy = Proxy::start(&guarded(addr, paths, &open, &secret));
    for version in BOTH {
        for path in ["/%2fevil.test/", "/%5cevil.test/", "/x/..%2f/evil.test/"] {
            let answer = ask(addr, version, path, &[]).await;
            assert_eq!(
                (answer.status.as_u16(), answer.header("location")),
                (307, "/.//evil.test/"),
                "{version:?} {path}"
            );
        }
        // What a client makes of that address (RFC 3986, section 5.2), and what it may also ask for.
        for path in ["//evil.test/", "/.//evil.test/"] {
            let answer = ask(addr, version, path, &[]).await;
            assert_eq!(answer.header("seen-target"), "//evil.test/", "{version:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn escaped_delimiters_are_refused_or_kept() {
    let (open, secret) = (Origin::named("open").await, Origin::named("secret").await);
    for (delimiters, status) in [(Delimiters::Keep, 200), (Delimiters::Reject, 400)] {
        let addr = free_addr();
        let paths = Rules { delimiters, ..Rules::DEFAULT };
        let proxy = Proxy::start(&guarded(addr, paths, &open, &secret));
        let refused = || proxy.metric("sluice_requests_refused_total{reason=\"path\"} ");
        let mut n_refused = 0.0;
        for version in BOTH {
            for path in ["/a%3Bb", "/a%3Fb", "/a%23b", "/a%25b"] {
                let answer = ask(addr, version, path, &[]).await;
                assert_eq!(answer.status, status, "{version:?} {path}");
                if status == 200 {
                    assert_eq!(answer.header("seen-target"), path, "{version:?}");
                } else {
                    n_refused += 1.0;
                }
                assert_eq!(refused(), n_refused, "{version:?} {path}");
            }
            assert_eq!(ask(addr, version, "/a;b=c/d?%3F", &[]).await.status, 200, "{version:?}");
        }
    }
}
