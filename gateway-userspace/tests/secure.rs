//! TLS over loopback: who is let in, which certificate is shown, what resumes where.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::float_cmp,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing, and its tasks end with it"
)]

mod support;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use gateway_userspace::{
    pattern::{Pattern, Text},
    secret::Secret,
    snapshot::{
        Snapshot,
        listener::{ClientCertificates, Protocol},
        route::Match,
    },
};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, HandshakeKind, SignatureScheme,
    client::Resumption,
    version::{TLS12, TLS13},
};
use support::{
    authority::Authority,
    client::{self, Client},
    eventually, free_addr, has,
    origin::Origin,
    proxy::Proxy,
    wanted::{self, prefix, route, rule, simple},
};

/// The simple snapshot behind TLS.
fn secure(addr: SocketAddr, endpoints: &[SocketAddr]) -> Snapshot {
    let mut snapshot = simple(addr, endpoints);
    snapshot.listeners[0].protocol = Protocol::Https;
    snapshot.listeners[0].certificates = vec![wanted::certificate("a.test")];
    snapshot
}

fn clients(authority: &Authority, is_required: bool) -> ClientCertificates {
    ClientCertificates {
        is_required,
        origin: "ca.pem".to_owned(),
        trust_pem: authority.pem.clone().into_bytes(),
        identity_header: "x-who".parse().unwrap(),
    }
}

fn with_identity(authority: &Authority, name: &str) -> ClientConfig {
    let (chain, key) = authority.client(name);
    client::builder(&[&TLS13, &TLS12]).with_client_auth_cert(chain, key).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_good_certificate_is_refused_where_one_is_required() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let (origin, addr) = (Origin::named("a").await, free_addr());
    let mut snapshot = secure(addr, &[origin.addr]);
    snapshot.listeners[0].clients = Some(clients(&ours, true));
    let proxy = Proxy::start(&snapshot);
    let nobody = client::builder(&[&TLS13]).with_no_client_auth();
    for config in [nobody, with_identity(&theirs, "app")] {
        let refused = match client::tls_with(addr, "a.test", config).await {
            // With TLS 1.3 a client learns of the refusal when it reads.
            Ok(stream) => Client::over_http1(stream).await.get("a.test", "/").await.is_err(),
            Err(_) => true,
        };
        assert!(refused);
    }
    let failures = format!("sluice_tls_handshake_failures_total{{address=\"{addr}\",protocol=\"tcp\"}}");
    // A client may learn of the refusal before the connection's task has counted it.
    eventually("both are counted", Duration::from_secs(5), || proxy.metric(&failures) == 2.0).await;
    assert_eq!(origin.requests(), 0);
    let stream = client::tls_with(addr, "a.test", with_identity(&ours, "app")).await.unwrap();
    assert_eq!(Client::over_http1(stream).await.get("a.test", "/").await.unwrap().status.as_u16(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_and_routes_learn_who_a_client_is_and_nobody_can_pretend() {
    let authority = Authority::new("ours");
    let (origin, other) = (Origin::named("a").await, Origin::named("b").await);
    let (addr, plain) = (free_addr(), free_addr());
    let mut snapshot = secure(addr, &[origin.addr]);
    snapshot.listeners[0].clients = Some(clients(&authority, false));
    snapshot.listeners.push(wanted::listener("plain", plain, Protocol::Http));
    snapshot.services.push(wanted::service("named", &[other.addr]));
    let who =
        Match { headers: vec![("x-who".parse().unwrap(), Text::Exact("root".to_owned()))], ..prefix("/") };
    snapshot.routes[0].rules.push(rule(who.clone(), &[("named", 1)]));
    let other_one = Text::Pattern(Pattern::new(".*;Subject=\"CN=other\";.*").unwrap());
    let others = Match { headers: vec![("x-who".parse().unwrap(), other_one)], ..prefix("/") };
    snapshot.routes[0].rules.push(rule(others, &[("named", 1)]));
    snapshot.routes.push(route(
        "plain",
        "plain",
        vec![rule(prefix("/"), &[("api", 1)]), rule(who, &[("named", 1)])],
    ));
    let _proxy = Proxy::start(&snapshot);
    let ask = |mut client: Client| async move {
        let request = http::Request::get("/").header("host", "a.test").header("x-who", "root");
        // Nor does a client take away what is said of it.
        let request = request.header("connection", "x-who, x-forwarded-client-cert");
        let request = request.header("connection", b"x-hop, \xff".as_slice());
        let request = request.header("x-hop", "1").header("x-forwarded-client-cert", "root");
        let request = request.body(http_body_util::Full::default());
        let answer = client.send(request.unwrap()).await.unwrap();
        assert_eq!(answer.header("origin"), "a", "the route of another client");
        assert_eq!(answer.header("seen-x-forwarded-client-cert"), "");
        assert_eq!(answer.header("seen-x-hop"), "");
        answer.header("seen-x-who").to_owned()
    };
    assert_eq!(ask(Client::http1(plain).await).await, "");
    let nobody = client::builder(&[&TLS13]).with_no_client_auth();
    let stream = client::tls_with(addr, "a.test", nobody).await.unwrap();
    assert_eq!(ask(Client::over_http1(stream).await).await, "");
    let config = Arc::new(with_identity(&authority, "app"));
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let stream = client::tls_of(addr, "a.test", Arc::clone(&config)).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind));
        let seen = ask(Client::over_http1(stream).await).await;
        assert!(seen.contains(";Subject=\"CN=app\";URI=\"spiffe://test/app\";DNS=\"app.test\""), "{seen}");
    }
    let other = with_identity(&authority, "other");
    let stream = client::tls_with(addr, "a.test", other).await.unwrap();
    let answer = Client::over_http1(stream).await.get("a.test", "/").await.unwrap();
    assert_eq!(answer.header("origin"), "b", "a route may ask for who the client is");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_does_not_resume_where_clients_are_trusted_differently() {
    let authority = Authority::new("ours");
    let (origin, addr) = (Origin::named("a").await, free_addr());
    let mut snapshot = secure(addr, &[origin.addr]);
    let proxy = Proxy::start(&snapshot);
    let config = Arc::new(client::builder(&[&TLS13]).with_no_client_auth());
    let kind = async || -> std::io::Result<Option<HandshakeKind>> {
        let mut stream = client::tls_of(addr, "a.test", Arc::clone(&config)).await?;
        client::read_a_little(&mut stream).await?;
        Ok(stream.get_ref().1.handshake_kind())
    };
    assert_eq!(kind().await.unwrap(), Some(HandshakeKind::Full));
    assert_eq!(kind().await.unwrap(), Some(HandshakeKind::Resumed));
    snapshot.listeners[0].clients = Some(clients(&authority, true));
    proxy.apply(&snapshot).unwrap();
    assert!(kind().await.is_err(), "a ticket from before must not stand for a certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_does_not_resume_when_the_certificate_of_its_client_is_over() {
    const LASTS: Duration = Duration::from_secs(4);
    let authority = Authority::new("ours");
    let (origin, addr) = (Origin::named("a").await, free_addr());
    let mut snapshot = secure(addr, &[origin.addr]);
    snapshot.listeners[0].clients = Some(clients(&authority, true));
    let _proxy = Proxy::start(&snapshot);
    for version in [&TLS13, &TLS12] {
        let mut params = CertificateParams::new(vec!["short.test".to_owned()]).unwrap();
        let until = std::time::SystemTime::now() + LASTS;
        params.not_after = until.into();
        let (chain, key) = authority.sign(&params).der();
        let config = client::builder(&[version]).with_client_auth_cert(chain, key).unwrap();
        let config = Arc::new(config);
        let ask = async || -> Result<Option<HandshakeKind>, String> {
            let stream = client::tls_of(addr, "a.test", Arc::clone(&config)).await;
            let stream = stream.map_err(|error| error.to_string())?;
            let kind = stream.get_ref().1.handshake_kind();
            let answer = Client::over_http1(stream).await.get("a.test", "/").await;
            answer.map(|_| kind).map_err(|error| error.to_string())
        };
        assert_eq!(ask().await, Ok(Some(HandshakeKind::Full)), "{version:?}");
        assert_eq!(ask().await, Ok(Some(HandshakeKind::Resumed)), "{version:?}");
        // Its last second is one of those that it is good for.
        let rest = until.duration_since(std::time::SystemTime::now()).unwrap_or_default();
        tokio::time::sleep(rest + Duration::from_millis(1_100)).await;
        assert!(ask().await.is_err(), "{version:?}: nobody looks at it again");
    }
}

/// A client of its own for each version, over a connection without a certificate.
async fn strangers(addr: SocketAddr) -> Vec<Client> {
    let mut clients = Vec::new();
    for (alpn, is_http2) in [("h2", true), ("http/1.1", false)] {
        let stream = client::tls(addr, "a.test", &[alpn]).await.unwrap();
        clients.push(if is_http2 {
            Client::over_http2(stream).await
        } else {
            Client::over_http1(stream).await
        });
    }
    clients
}

/// Asks again and again until the connection has ended.
async fn until_turned_away(mut client: Client) -> Vec<u16> {
    let mut answers = Vec::new();
    loop {
        let Ok(answer) = client.get("a.test", "/").await else { return answers };
        answers.push(answer.status.as_u16());
        assert!(answers.len() < 3, "the connection goes on: {answers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_have_to_prove_holds_for_connections_that_are_open() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let (origin, addr) = (Origin::named("a").await, free_addr());
    let open = secure(addr, &[origin.addr]);
    let demanding = |authority: Option<&Authority>, is_required: bool| {
        let mut snapshot = open.clone();
        snapshot.listeners[0].clients = authority.map(|authority| clients(authority, is_required));
        snapshot
    };
    let mut plain = open.clone();
    plain.listeners[0].protocol = Protocol::Http;
    plain.listeners[0].certificates.clear();
    let mut tcp = plain.clone();
    tcp.listeners[0].protocol = Protocol::Tcp;
    for (before, after) in [
        (open.clone(), demanding(Some(&ours), true)),
        (open.clone(), demanding(Some(&ours), false)),
        (demanding(Some(&ours), false), demanding(Some(&ours), true)),
        (demanding(Some(&ours), false), demanding(Some(&theirs), false)),
        (open.clone(), plain.clone()),
        (plain.clone(), open.clone()),
        (plain, tcp),
    ] {
        let proxy = Proxy::start(&before);
        let mut clients = if before.listeners[0].protocol == Protocol::Https {
            strangers(addr).await
        } else {
            vec![Client::http1(addr).await, Client::http2(addr).await]
        };
        for client in &mut clients {
            assert_eq!(client.get("a.test", "/").await.unwrap().status, 200);
        }
        // Nothing ends connections here, so that requests come after the change.
        proxy.publish(&after);
        let n_served = origin.requests();
        let (first, second) = (clients.remove(0), clients.remove(0));
        let answers = [until_turned_away(first).await, until_turned_away(second).await];
        // One of HTTP/2 is told that its stream was not looked at.
        assert!(answers.iter().flatten().eq([&421]), "{answers:?}");
        assert_eq!(origin.requests(), n_served, "nothing reaches the endpoint");
        let stale = "sluice_request_faults_total{listener=\"web\",route=\"\",kind=\"stale\"}";
        // What is counted of a listener without routes for requests goes with the last of its connections.
        if after.listeners[0].protocol != Protocol::Tcp {
            assert_eq!(proxy.metric(stale), 2.0);
        }
        proxy.drain(Duration::from_secs(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_end_when_their_listener_demands_something_else_and_only_then() {
    let authority = Authority::new("ours");
    let (origin, addr) = (Origin::named("a").await, free_addr());
    let mut snapshot = secure(addr, &[origin.addr]);
    let proxy = Proxy::start(&snapshot);
    let mut clients_before = strangers(addr).await;
    // Certificates of our own, and routes, are none of a client's proofs.
    snapshot.listeners[0].certificates = vec![wanted::certificate("a.test")];
    snapshot.routes[0].rules.push(rule(prefix("/more"), &[("api", 1)]));
    proxy.apply(&snapshot).unwrap();
    for client in &mut clients_before {
        assert_eq!(client.get("a.test", "/").await.unwrap().status, 200);
    }
    let open = format!("sluice_connections_open{{address=\"{addr}\",protocol=\"tcp\"}}");
    assert_eq!(proxy.metric(&open), 2.0);
    snapshot.listeners[0].clients = Some(clients(&authority, false));
    proxy.apply(&snapshot).unwrap();
    // Idle ones are not waited for until they ask again.
    eventually("both end", Duration::from_secs(10), || proxy.metric(&open) == 0.0).await;
    for mut client in strangers(addr).await {
        for _ in 0..2 {
            assert_eq!(client.get("a.test", "/").await.unwrap().status, 200, "who comes later stays");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_resume_on_another_node_and_while_keys_rotate() {
    let keys = |bytes: &[u8]| bytes.iter().map(|byte| Secret::new(&[*byte; 32])).collect::<Vec<_>>();
    let origin = Origin::named("a").await;
    let addrs = [free_addr(), free_addr()];
    let mut snapshots = addrs.map(|addr| secure(addr, &[origin.addr]));
    snapshots[1].listeners[0].certificates = snapshots[0].listeners[0].certificates.clone();
    for snapshot in &mut snapshots {
        snapshot.listeners[0].ticket_keys = keys(&[1]);
    }
    let nodes = snapshots.each_ref().map(Proxy::start);
    for version in [&TLS13, &TLS12] {
        let mut config = client::builder(&[version]).with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(16);
        let config = Arc::new(config);
        let kind = async |node: usize| {
            let mut stream = client::tls_of(addrs[node], "a.test", Arc::clone(&config)).await.unwrap();
            client::read_a_little(&mut stream).await.unwrap();
            stream.get_ref().1.handshake_kind().unwrap()
        };
        for (snapshot, node) in snapshots.iter_mut().zip(&nodes) {
            snapshot.listeners[0].ticket_keys = keys(&[1]);
            node.apply(snapshot).unwrap();
        }
        assert_eq!(kind(0).await, HandshakeKind::Full, "{version:?}");
        for _ in 0..5 {
            assert_eq!(kind(1).await, HandshakeKind::Resumed, "{version:?}");
        }
        // One node after the other learns the new key, turns to it, and forgets the old one.
        for step in [&[1, 2][..], &[2, 1]] {
            for node in [0, 1] {
                snapshots[node].listeners[0].ticket_keys = keys(step);
                nodes[node].apply(&snapshots[node]).unwrap();
                for node in [1, 0, 1, 0] {
                    assert_eq!(kind(node).await, HandshakeKind::Resumed, "{version:?} {step:?}");
                }
            }
        }
        for (snapshot, node) in snapshots.iter_mut().zip(&nodes) {
            snapshot.listeners[0].ticket_keys = keys(&[3]);
            node.apply(snapshot).unwrap();
        }
        assert_eq!(kind(0).await, HandshakeKind::Full, "{version:?}: keys that are gone open nothing");
    }
    let resumed = format!("sluice_tls_handshakes_total{{address=\"{}\",kind=\"resumed\"}}", addrs[1]);
    assert!(nodes[1].metric(&resumed) >= 26.0, "{}", nodes[1].metric(&resumed));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_keys_for_a_name_a_client_gets_ecdsa_unless_it_only_knows_rsa() {
    let (origin, addr) = (Origin::named("a").await, free_addr());
    let mut snapshot = secure(addr, &[origin.addr]);
    let ecdsa = snapshot.listeners[0].certificates[0].clone();
    let rsa = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let certificate = CertificateParams::new(vec!["a.test".to_owned()]).unwrap().self_signed(&rsa).unwrap();
    let mut pair = ecdsa.clone();
    (pair.chain_pem, pair.key_pem) =
        (certificate.pem().into_bytes(), Secret::new(rsa.serialize_pem().as_bytes()));
    // In the order that needs the rule.
    snapshot.listeners[0].certificates.insert(0, pair);
    let _proxy = Proxy::start(&snapshot);
    for version in [&TLS13, &TLS12] {
        for (schemes, is_rsa) in [
            (vec![SignatureScheme::RSA_PSS_SHA256, SignatureScheme::ECDSA_NISTP256_SHA256], false),
            (vec![SignatureScheme::RSA_PSS_SHA256], true),
        ] {
            let config = client::builder_of(&[version], Some(schemes)).with_no_client_auth();
            let stream = client::tls_with(addr, "a.test", config).await.unwrap();
            let served = client::served_certificate(&stream);
            assert_eq!(served == certificate.der().to_vec(), is_rsa, "{version:?}");
            if version == &TLS13 {
                let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap().name();
                assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_known_when_certificates_expire() {
    let (origin, addr) = (Origin::named("a").await, free_addr());
    let mut snapshot = secure(addr, &[origin.addr]);
    let mut params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2031, 2, 3);
    let key = KeyPair::generate().unwrap();
    let certificate = &mut snapshot.listeners[0].certificates[0];
    certificate.chain_pem = params.self_signed(&key).unwrap().pem().into_bytes();
    certificate.key_pem = Secret::new(key.serialize_pem().as_bytes());
    let proxy = Proxy::start(&snapshot);
    let expiries: Vec<_> = proxy.published.load().expiries.clone().into_iter().collect();
    let [((listener, origin), at_s)] = expiries.as_slice() else { panic!("{expiries:?}") };
    // 2031-02-03T00:00:00Z
    assert_eq!(
        (listener.as_str(), origin.as_str(), at_s.certificate_s),
        ("web", "a.test.pem", 1_927_843_200)
    );
}

/// What openssl is told about the certificate.
async fn staple(addr: SocketAddr) -> String {
    let command = async move {
        let mut command = std::process::Command::new("timeout");
        command.args(["10", "openssl", "s_client", "-status", "-servername", "leaf.test", "-connect"]);
        command.arg(addr.to_string()).stdin(std::process::Stdio::null()).output().unwrap()
    };
    let said = tokio::task::spawn_blocking(move || tokio::runtime::Handle::current().block_on(command));
    String::from_utf8_lossy(&said.await.unwrap().stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_told_what_the_authority_says_as_long_as_it_is_good() {
    if !has("openssl", "openssl") {
        return;
    }
    let file =
        |name: &str| std::fs::read(format!("{}/../tests/testdata/ocsp/{name}", env!("CARGO_MANIFEST_DIR")));
    let (origin, addr) = (Origin::named("a").await, free_addr());
    let mut snapshot = secure(addr, &[origin.addr]);
    snapshot.listeners[0].certificates[0].chain_pem = file("leaf.pem").unwrap();
    snapshot.listeners[0].certificates[0].key_pem = Secret::new(&file("leaf.key").unwrap());
    let proxy = Proxy::start(&snapshot);
    assert!(staple(addr).await.contains("OCSP response: no response sent"));
    for (response, said) in [
        ("good-sha1.der", "Cert Status: good"),
        ("expired.der", "OCSP response: no response sent"),
        ("good-sha256.der", "Cert Status: good"),
    ] {
        snapshot.listeners[0].certificates[0].ocsp = Some(file(response).unwrap());
        proxy.apply(&snapshot).unwrap();
        let told = staple(addr).await;
        assert!(told.contains(said), "{response}: {told}");
    }
    snapshot.listeners[0].certificates[0].ocsp = Some(file("revoked.der").unwrap());
    let refused = proxy.apply(&snapshot).unwrap_err().to_string();
    assert!(refused.contains("is revoked; replace the certificate"), "{refused}");
    assert!(staple(addr).await.contains("Cert Status: good"), "the old terms stay");
}
