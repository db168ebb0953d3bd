//! TLS towards endpoints: whom the agent trusts, who it is, and what becomes of requests where both do not agree.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing, and its tasks end with it"
)]

mod support;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use gateway_userspace::{
    drain::Tasks,
    health::Outcome,
    prober,
    secret::Secret,
    snapshot::{
        Snapshot,
        listener::Certificate,
        service::{CheckKind, EndpointTls, UpstreamProtocol},
    },
};
use support::{
    authority::Authority,
    client::{self, Client},
    eventually, free_addr,
    origin::Origin,
    proxy::Proxy,
    wanted::{check, simple},
};

const NAME: &str = "app.internal";

fn identity(authority: &Authority, name: &str) -> Certificate {
    let pair = authority.named(name);
    Certificate {
        origin: format!("{name}.pem"),
        chain_pem: pair.chain.into_bytes(),
        key_pem: Secret::new(pair.key.as_bytes()),
        ocsp: None,
        fetches_ocsp: false,
    }
}

fn secured(
    addr: SocketAddr,
    endpoints: &[SocketAddr],
    protocol: UpstreamProtocol,
    tls: EndpointTls,
) -> Snapshot {
    let mut snapshot = simple(addr, endpoints);
    snapshot.services[0].protocol = protocol;
    snapshot.services[0].tls = Some(tls);
    snapshot
}

/// Requests that ended with a handshake that failed.
fn faults(proxy: &Proxy) -> f64 {
    proxy.metric("sluice_request_faults_total{listener=\"web\",route=\"all\",kind=\"handshake\"}")
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_reach_endpoints_over_tls_in_every_protocol() {
    let ours = Authority::new("ours");
    for (protocol, alpn, version, scheme) in [
        (UpstreamProtocol::Http1, "http/1.1", "HTTP/1.1", ""),
        (UpstreamProtocol::H2, "h2", "HTTP/2.0", "https"),
    ] {
        let origin = Origin::secured(ours.terms(NAME, &["h2", "http/1.1"], None)).await;
        let addr = free_addr();
        let _proxy = Proxy::with_workers(&secured(addr, &[origin.addr], protocol, ours.towards(NAME)), 1);
        let mut client = Client::http1(addr).await;
        for _ in 0..3 {
            let answer = client.call("POST", "a.test", "/", "some body").await.unwrap();
            assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &b"some body"[..]));
            assert_eq!((answer.header("tls-name"), answer.header("tls-alpn")), (NAME, alpn));
            assert_eq!((answer.header("seen-version"), answer.header("tls-client")), (version, "0"));
            assert_eq!(answer.header("seen-scheme"), scheme);
        }
        assert_eq!(origin.connections(), 1, "connections are kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_over_tls_in_both_directions() {
    let ours = Authority::new("ours");
    let body: &'static str = "0123456789abcdef".repeat(64 * 1024).leak();
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::H2] {
        let origin = Origin::secured(ours.terms(NAME, &["h2", "http/1.1"], None)).await;
        let addr = free_addr();
        let _proxy = Proxy::start(&secured(addr, &[origin.addr], protocol, ours.towards(NAME)));
        let answer = Client::http1(addr).await.call("POST", "a.test", "/", body).await.unwrap();
        assert!(answer.body == body.as_bytes(), "{protocol:?}: {} bytes", answer.body.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_are_known_by_their_address_where_that_is_asked_for() {
    let ours = Authority::new("ours");
    let origin = Origin::secured(ours.terms("127.0.0.1", &[], None)).await;
    let addr = free_addr();
    let tls = ours.towards("127.0.0.1");
    let _proxy = Proxy::start(&secured(addr, &[origin.addr], UpstreamProtocol::Http1, tls));
    let answer = client::get(addr, "a.test", "/").await;
    assert_eq!((answer.status.as_u16(), answer.header("tls-name")), (200, "none"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_does_not_prove_who_it_is_gets_no_request() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let (http1, h2) = (UpstreamProtocol::Http1, UpstreamProtocol::H2);
    let cases = [
        ("of another authority", Origin::secured(theirs.terms(NAME, &["h2"], None)).await, h2),
        ("of another name", Origin::secured(ours.terms("other.internal", &[], None)).await, http1),
        ("in plain text", Origin::named("plain").await, http1),
        ("without HTTP/2", Origin::secured(ours.terms(NAME, &[], None)).await, h2),
    ];
    for (what, origin, protocol) in cases {
        let addr = free_addr();
        let proxy = Proxy::start(&secured(addr, &[origin.addr], protocol, ours.towards(NAME)));
        let answer = client::get(addr, "a.test", "/").await;
        assert_eq!(answer.status.as_u16(), 502, "{what}: {}", String::from_utf8_lossy(&answer.body));
        assert_eq!((faults(&proxy), origin.requests()), (1.0, 0), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_no_endpoint_has_seen_goes_to_another_one() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let bad = Origin::secured(theirs.terms(NAME, &[], None)).await;
    let good = Origin::secured(ours.terms(NAME, &[], None)).await;
    let addr = free_addr();
    let tls = ours.towards(NAME);
    let _proxy = Proxy::start(&secured(addr, &[bad.addr, good.addr], UpstreamProtocol::Http1, tls));
    for _ in 0..4 {
        let answer = Client::http1(addr).await.call("POST", "a.test", "/", "once").await.unwrap();
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &b"once"[..]));
    }
    assert_eq!((bad.requests(), good.requests()), (0, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_shows_its_certificate_and_says_so_where_that_is_not_enough() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::H2] {
        let origin = Origin::secured(ours.terms(NAME, &["h2", "http/1.1"], Some(&ours))).await;
        for (certificate, status) in
            [(None, 502), (Some(identity(&theirs, "agent")), 502), (Some(identity(&ours, "agent")), 200)]
        {
            let addr = free_addr();
            let tls = EndpointTls { certificate, ..ours.towards(NAME) };
            let proxy = Proxy::start(&secured(addr, &[origin.addr], protocol, tls));
            let answer = client::get(addr, "a.test", "/").await;
            let said = String::from_utf8_lossy(&answer.body);
            assert_eq!(answer.status.as_u16(), status, "{protocol:?}: {said}");
            if status == 200 {
                assert_eq!(answer.header("tls-client"), "1");
            } else {
                assert_eq!((faults(&proxy), origin.requests()), (1.0, 0), "{protocol:?}: {said}");
            }
        }
        assert_eq!(origin.requests(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_terms_end_no_request_and_hold_for_the_next_one() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let origin = Origin::secured(ours.terms(NAME, &[], None)).await;
    let addr = free_addr();
    let before = secured(addr, &[origin.addr], UpstreamProtocol::Http1, ours.towards(NAME));
    let proxy = Proxy::with_workers(&before, 1);
    assert_eq!(client::get(addr, "a.test", "/").await.status.as_u16(), 200);
    let mut client = Client::http1(addr).await;
    let slow = tokio::time::timeout(Duration::from_secs(5), client.get("a.test", "/slow"));
    let change = async {
        eventually("it is under way", Duration::from_secs(5), || origin.requests() == 2).await;
        let after = secured(addr, &[origin.addr], UpstreamProtocol::Http1, theirs.towards(NAME));
        proxy.apply(&after).unwrap();
        client::get(addr, "a.test", "/").await
    };
    let (slow, next) = tokio::join!(slow, change);
    assert_eq!(slow.unwrap().unwrap().status.as_u16(), 200, "what was under way goes on");
    assert_eq!(next.status.as_u16(), 502, "a connection of other terms is not used");
    proxy.apply(&before).unwrap();
    assert_eq!(client::get(addr, "a.test", "/").await.status.as_u16(), 200);
    let n_before = origin.connections();
    proxy.apply(&before).unwrap();
    assert_eq!(client::get(addr, "a.test", "/").await.status.as_u16(), 200);
    assert_eq!(origin.connections(), n_before, "the same terms keep their connections");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_checks_go_over_the_same_tls() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let outcome = async |protocol, origin: &Origin, tls| {
        let mut snapshot = secured(free_addr(), &[origin.addr], protocol, tls);
        let kind = CheckKind::Http { path: "/".to_owned(), host: None, statuses: 200..=200 };
        snapshot.services[0].health = Some(check(kind));
        let proxy = Proxy::start(&snapshot);
        let probe = proxy.published.load().probes[0].clone();
        let check = gateway_userspace::health::Check {
            timeout: Duration::from_secs(5),
            ..gateway_userspace::health::Check::clone(&probe.check)
        };
        let probe = prober::Probe { check: Arc::new(check), ..probe };
        // The second one must not go on from a session of the first.
        prober::run(&probe, &prober::Path::default(), &Tasks::default()).await;
        prober::run(&probe, &prober::Path::default(), &Tasks::default()).await.outcome
    };
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::H2] {
        let alpn = &["h2", "http/1.1"];
        let origin = Origin::secured(ours.terms(NAME, alpn, None)).await;
        assert_eq!(outcome(protocol, &origin, ours.towards(NAME)).await, Outcome::Passed);
        assert_eq!((origin.requests(), origin.resumed()), (2, 0));
        assert_eq!(outcome(protocol, &origin, theirs.towards(NAME)).await, Outcome::Untrusted);
        assert_eq!(outcome(protocol, &origin, ours.towards("other")).await, Outcome::Untrusted);
    }
    let demanding = Origin::secured(ours.terms(NAME, &[], Some(&ours))).await;
    let http1 = UpstreamProtocol::Http1;
    assert_eq!(outcome(http1, &demanding, ours.towards(NAME)).await, Outcome::Untrusted);
    let tls = EndpointTls { certificate: Some(identity(&ours, "agent")), ..ours.towards(NAME) };
    assert_eq!(outcome(http1, &demanding, tls).await, Outcome::Passed);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_refused_with_its_place() {
    let ours = Authority::new("ours");
    let origin = Origin::secured(ours.terms(NAME, &[], None)).await;
    let addr = free_addr();
    let good = secured(addr, &[origin.addr], UpstreamProtocol::Http1, ours.towards(NAME));
    let proxy = Proxy::start(&good);
    let mut other_key = identity(&ours, "agent");
    other_key.key_pem = identity(&ours, "other").key_pem;
    let mut nobody = ours.towards(NAME);
    nobody.trust.pem = Arc::from(&b"nothing"[..]);
    let mut of_system = nobody.clone();
    of_system.trust.is_of_system = true;
    for (tls, part) in [
        (EndpointTls { certificate: Some(other_key), ..ours.towards(NAME) }, "agent.pem: the private key"),
        (nobody, "it holds no authority"),
        (of_system, "it holds no authority"),
        (ours.towards("a b"), "`serverName`"),
    ] {
        let refused = secured(addr, &[origin.addr], UpstreamProtocol::Http1, tls);
        let faults = proxy.apply(&refused).unwrap_err().to_string();
        assert!(faults.starts_with("service `api`, `tls`: ") && faults.contains(part), "{faults}");
    }
    assert_eq!(client::get(addr, "a.test", "/").await.status.as_u16(), 200, "the old terms serve on");
    let mut certified = good;
    certified.services[0].tls.as_mut().unwrap().certificate = Some(identity(&ours, "agent"));
    proxy.apply(&certified).unwrap();
    let expiries = proxy.published.load().endpoint_expiries.clone();
    assert_eq!(expiries.keys().map(|(_, origin)| origin.as_str()).collect::<Vec<_>>(), ["agent.pem"]);
}
