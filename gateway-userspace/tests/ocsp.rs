//! What authorities say about certificates, asked for by the agent: `openssl ocsp` answers, `openssl s_client` is told.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing; the harness shares its modules"
)]

mod support;

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use gateway_userspace::{
    drain::Tasks,
    metrics::Metrics,
    name::ListenerName,
    net::connect::Options,
    secret::Secret,
    snapshot::{Snapshot, listener::Certificate, listener::Protocol},
    stapler::Stapler,
    tls::Context,
};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, SerialNumber,
};
use support::{eventually, free_addr, has, origin::Origin, proxy::Proxy, wanted};

/// An authority, files of which are in a folder, and a certificate of its own that names a responder.
struct Scene {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    chain: String,
    key: String,
    responder: SocketAddr,
}

/// `1.3.6.1.5.5.7.1.1`: an address of the responder, as DER.
fn access(uri: &str) -> CustomExtension {
    let len = |bytes: &[u8]| u8::try_from(bytes.len()).unwrap();
    let mut one = vec![6, 8, 0x2b, 6, 1, 5, 5, 7, 48, 1, 0x86, len(uri.as_bytes())];
    one.extend(uri.as_bytes());
    let mut list = vec![0x30, len(&one)];
    list.extend(one);
    let mut content = vec![0x30, len(&list)];
    content.extend(list);
    CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], content)
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["leaf.test".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// A certificate that names a responder, and its key.
fn leaf(issuer: &Issuer<'static, KeyPair>, responder: SocketAddr) -> (String, String) {
    let mut params = named("leaf");
    params.serial_number = Some(SerialNumber::from(vec![0x12, 0x34]));
    params.custom_extensions = vec![access(&format!("http://{responder}/ask"))];
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

impl Scene {
    fn new() -> Self {
        let (folder, responder) = (tempfile::tempdir().unwrap(), free_addr());
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap().pem();
        std::fs::write(folder.path().join("ca.pem"), &authority).unwrap();
        std::fs::write(folder.path().join("ca.key"), key.serialize_pem()).unwrap();
        let issuer = Issuer::new(params, key);
        let (chain, key) = leaf(&issuer, responder);
        Self { folder, issuer, chain: chain + &authority, key, responder }
    }

    /// Another certificate of the same name and number, with the authority's, and its key.
    fn leaf(&self) -> (String, String) {
        let (chain, key) = leaf(&self.issuer, self.responder);
        (chain + &std::fs::read_to_string(self.path("ca.pem")).unwrap(), key)
    }

    /// Makes somebody who signs answers.
    fn signer(&self, name: &str, issuer: Option<&Issuer<'static, KeyPair>>, may_answer: bool) {
        let mut params = named(name);
        if may_answer {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::OcspSigning];
        }
        let key = KeyPair::generate().unwrap();
        let made = match issuer {
            Some(issuer) => params.signed_by(&key, issuer),
            None => params.self_signed(&key),
        };
        std::fs::write(self.path(&format!("{name}.pem")), made.unwrap().pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Answers by this signer until it is dropped.
    fn answers(&self, signer: &str, is_revoked: bool) -> Responder {
        self.answers_at(self.responder, signer, is_revoked)
    }

    fn answers_at(&self, addr: SocketAddr, signer: &str, is_revoked: bool) -> Responder {
        let state = if is_revoked { "R\t400101000000Z\t200101000000Z" } else { "V\t400101000000Z\t" };
        std::fs::write(self.path("index.txt"), format!("{state}\t1234\tunknown\t/CN=leaf\n")).unwrap();
        let mut command = Command::new("openssl");
        let files = [("-index", "index.txt"), ("-CA", "ca.pem")].map(|(key, name)| (key, name.to_owned()));
        let signs = [("-rsigner", format!("{signer}.pem")), ("-rkey", format!("{signer}.key"))];
        command.args(["ocsp", "-nmin", "5", "-port", &addr.port().to_string()]);
        for (option, name) in files.into_iter().chain(signs) {
            command.arg(option).arg(self.path(&name));
        }
        let log = std::fs::File::create(self.path("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn();
        let started = std::time::Instant::now();
        // Not by a connection: one without a request occupies it for good.
        while !std::fs::read_to_string(self.path("log")).unwrap().contains("waiting for") {
            assert!(started.elapsed() < Duration::from_secs(10), "openssl does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Responder(child.unwrap())
    }

    fn snapshot(&self, addr: SocketAddr, origin: SocketAddr) -> Snapshot {
        let mut snapshot = wanted::simple(addr, &[origin]);
        snapshot.listeners[0].protocol = Protocol::Https;
        snapshot.listeners[0].certificates = vec![Certificate {
            origin: "web.pem".to_owned(),
            chain_pem: self.chain.clone().into_bytes(),
            key_pem: Secret::new(self.key.as_bytes()),
            ocsp: None,
            fetches_ocsp: true,
        }];
        snapshot
    }
}

struct Responder(Child);

impl Drop for Responder {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Asks once about what the proxy serves; whether a good answer came.
async fn asked(proxy: &Proxy) -> bool {
    asked_with(proxy, None).await
}

/// The same by an agent that keeps answers in a folder.
async fn asked_with(proxy: &Proxy, state: Option<&Path>) -> bool {
    let metrics = Arc::new(Metrics::new(1));
    let tasks = Tasks::default();
    let algorithms = Context::new().unwrap().algorithms();
    let stapler = Stapler::new(tasks, Arc::clone(&metrics), Options::default(), algorithms, state).unwrap();
    let state = proxy.published.load();
    stapler.apply(state.expiries.values().filter_map(|expiry| expiry.fetched.as_ref()));
    let count = |outcome: &str| {
        let text = metrics.encode().unwrap();
        let line = format!("sluice_ocsp_fetches_total{{certificate=\"web.pem\",outcome=\"{outcome}\"}} ");
        text.lines().any(|one| one.starts_with(&line))
    };
    eventually("an answer", Duration::from_secs(15), || count("good") || count("failed")).await;
    count("good")
}

/// What openssl is told about the certificate.
async fn told(addr: SocketAddr) -> String {
    let run = move || {
        let mut command = Command::new("timeout");
        command.args(["10", "openssl", "s_client", "-status", "-servername", "leaf.test", "-connect"]);
        command.arg(addr.to_string()).stdin(Stdio::null()).output().unwrap()
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const NOTHING: &str = "OCSP response: no response sent";
const GOOD: &str = "Cert Status: good";

#[tokio::test(flavor = "multi_thread")]
async fn authorities_are_asked_and_clients_are_told_what_they_sign() {
    if !has("openssl", "openssl") {
        return;
    }
    let scene = Scene::new();
    let (origin, addr) = (Origin::named("a").await, free_addr());
    let proxy = Proxy::start(&scene.snapshot(addr, origin.addr));
    // Nobody is there to answer, and clients come in all the same.
    assert!(!asked(&proxy).await);
    assert!(told(addr).await.contains(NOTHING));

    // Signed by a stranger, and by somebody whom the authority lets serve but not answer.
    scene.signer("stranger", None, true);
    scene.signer("server", Some(&scene.issuer), false);
    for signer in ["stranger", "server"] {
        let responder = scene.answers(signer, false);
        assert!(!asked(&proxy).await, "{signer}");
        assert!(told(addr).await.contains(NOTHING), "{signer}");
        drop(responder);
    }

    // By the authority itself, and by somebody whom it lets answer.
    scene.signer("delegate", Some(&scene.issuer), true);
    for signer in ["ca", "delegate"] {
        let responder = scene.answers(signer, false);
        assert!(asked(&proxy).await, "{signer}");
        let said = told(addr).await;
        assert!(said.contains(GOOD), "{signer}: {said}");
        drop(responder);
    }

    // What was said holds while nobody answers, over a new configuration too.
    assert!(!asked(&proxy).await);
    proxy.apply(&scene.snapshot(addr, origin.addr)).unwrap();
    assert!(told(addr).await.contains(GOOD));
    let responder = scene.answers("stranger", true);
    assert!(!asked(&proxy).await);
    assert!(told(addr).await.contains(GOOD), "a stranger cannot revoke it");
    drop(responder);

    // Until the authority takes it back.
    let _responder = scene.answers("ca", true);
    assert!(!asked(&proxy).await);
    assert!(told(addr).await.contains(NOTHING));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_two_chains_is_asked_about_that_came_from_one_file() {
    if !has("openssl", "openssl") {
        return;
    }
    let scene = Scene::new();
    let _responder = scene.answers("ca", false);
    let origin = Origin::named("a").await;
    // As when a file is renewed between the reading of one listener and that of the next.
    let addrs = [free_addr(), free_addr()];
    let mut snapshot = scene.snapshot(addrs[0], origin.addr);
    let mut second = snapshot.listeners[0].clone();
    (second.name, second.addr) = (ListenerName::new("second"), addrs[1]);
    let (chain, key) = scene.leaf();
    second.certificates[0].chain_pem = chain.into_bytes();
    second.certificates[0].key_pem = Secret::new(key.as_bytes());
    snapshot.listeners.push(second);
    let proxy = Proxy::start(&snapshot);
    let algorithms = Context::new().unwrap().algorithms();
    let metrics = Arc::new(Metrics::new(1));
    let stapler = Stapler::new(Tasks::default(), metrics, Options::default(), algorithms, None).unwrap();
    let state = proxy.published.load();
    stapler.apply(state.expiries.values().filter_map(|expiry| expiry.fetched.as_ref()));
    for addr in addrs {
        let started = std::time::Instant::now();
        while !told(addr).await.contains(GOOD) {
            assert!(started.elapsed() < Duration::from_secs(15), "nobody asks about {addr}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_still_hold_outlive_a_restart() {
    if !has("openssl", "openssl") {
        return;
    }
    let scene = Scene::new();
    scene.signer("stranger", None, true);
    let (origin, state) = (Origin::named("a").await, tempfile::tempdir().unwrap());
    let files = || {
        let entries = std::fs::read_dir(state.path().join("ocsp")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    // Each time another agent, which knows what is in the folder.
    let start = || {
        let addr = free_addr();
        (Proxy::start(&scene.snapshot(addr, origin.addr)), addr)
    };
    let (first, addr) = start();
    let responder = scene.answers("ca", false);
    assert!(asked_with(&first, Some(state.path())).await);
    assert!(told(addr).await.contains(GOOD));
    drop((first, responder));
    let kept = files();
    assert_eq!(kept.len(), 1);

    // Nobody answers, and clients are told from the beginning.
    let (second, addr) = start();
    assert!(!asked_with(&second, Some(state.path())).await);
    assert!(told(addr).await.contains(GOOD));
    drop(second);

    // What anybody wrote there is checked, and goes where it proves nothing.
    let responder = scene.answers("stranger", false);
    let mut forged = Command::new("openssl");
    forged.args(["ocsp", "-no_nonce", "-noverify", "-issuer"]).arg(scene.path("ca.pem"));
    forged
        .args(["-serial", "0x1234", "-url", &format!("http://{}/", scene.responder), "-respout"])
        .arg(&kept[0]);
    assert!(forged.output().unwrap().status.success());
    drop(responder);
    let (third, addr) = start();
    assert!(!asked_with(&third, Some(state.path())).await);
    assert!(told(addr).await.contains(NOTHING));
    assert_eq!(files().len(), 0);

    // So does what the authority takes back.
    for (is_revoked, n_files) in [(false, 1), (true, 0)] {
        let _responder = scene.answers("ca", is_revoked);
        assert_eq!(asked_with(&third, Some(state.path())).await, !is_revoked);
        assert_eq!(files().len(), n_files);
    }
}

/// Sends everybody elsewhere.
async fn sends_to(addr: SocketAddr, status: u16, location: String) -> Origin {
    let handler = move |_| {
        let response = http::Response::builder().status(status).header("location", &location);
        let response = response.body(http_body_util::Full::default()).unwrap();
        async { response }
    };
    Origin::serve(addr, handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn responders_may_send_us_elsewhere_but_not_in_circles() {
    if !has("openssl", "openssl") {
        return;
    }
    let scene = Scene::new();
    let (origin, addr, elsewhere) = (Origin::named("a").await, free_addr(), free_addr());
    let proxy = Proxy::start(&scene.snapshot(addr, origin.addr));
    let circle = sends_to(scene.responder, 302, "/again".to_owned()).await;
    assert!(!asked(&proxy).await);
    assert_eq!(circle.requests(), 4, "the first, and three more");
    drop(circle);
    let away = sends_to(scene.responder, 302, format!("https://{elsewhere}/")).await;
    assert!(!asked(&proxy).await);
    assert_eq!(away.requests(), 1);
    drop(away);
    let _responder = scene.answers_at(elsewhere, "ca", false);
    let _away = sends_to(scene.responder, 307, format!("http://{elsewhere}/ask")).await;
    assert!(asked(&proxy).await);
    assert!(told(addr).await.contains(GOOD));
}

#[test]
fn who_cannot_be_asked_is_a_fault_of_the_configuration() {
    let scene = Scene::new();
    let (leaf, _) = scene.chain.split_once("-----END CERTIFICATE-----\n").unwrap();
    std::fs::write(scene.path("leaf.pem"), format!("{leaf}-----END CERTIFICATE-----\n")).unwrap();
    std::fs::write(scene.path("chain.pem"), &scene.chain).unwrap();
    std::fs::write(scene.path("leaf.key"), &scene.key).unwrap();
    let parse = |chain: &str| {
        let text = format!(
            "listeners: [{{name: web, address: 10.0.0.1, port: 443, protocol: HTTPS, tls: {{certificates: \
             [{{certificateFile: {chain}, keyFile: leaf.key, ocsp: fetch}}]}}}}]\n\
             routes: [{{name: web, listeners: [web], rules: [{{backends: [{{service: app}}]}}]}}]\n\
             services: [{{name: app, endpoints: [{{address: 10.1.0.2, port: 80}}]}}]\n"
        );
        let file = scene.path("sluice.yaml");
        gateway_userspace::source::file::parse(Path::new(&file), &text).map(drop).map_err(|e| e.to_string())
    };
    assert_eq!(parse("chain.pem"), Ok(()));
    let fault = parse("leaf.pem").unwrap_err();
    assert!(fault.contains("lacks the certificate of the issuer"), "{fault}");
}
