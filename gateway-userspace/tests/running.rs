//! Files beside the configuration change under a running agent: keys of session tickets, and certificates.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::float_cmp,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing; its numbers are small and exact"
)]

mod support;

use std::{
    fs,
    net::SocketAddr,
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, HandshakeKind, client::Resumption};
use support::{client, eventually, free_addr, origin::Origin};

const SOON: Duration = Duration::from_secs(20);

/// The agent with one listener behind TLS, in userspace.
struct Agent {
    process: Child,
    addr: SocketAddr,
    admin: SocketAddr,
    folder: tempfile::TempDir,
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// A certificate for `a.test`, as the chain and its key.
fn pair() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// A line of the file of keys.
fn key(byte: u8) -> String {
    format!("{}\n", format!("{byte:02x}").repeat(32))
}

impl Agent {
    async fn start(origin: SocketAddr) -> Self {
        let (addr, admin) = (free_addr(), free_addr());
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "agent: {{ workers: 1, admin: {{ address: '{admin}' }}, kernel: {{ mode: off }} }}
listeners:
  - name: web
    address: {}
    port: {}
    protocol: HTTPS
    tls: {{ certificates: [{{ certificateFile: web.pem, keyFile: web.key }}], ticketKeysFile: tickets }}
routes: [{{ name: web, listeners: [web], rules: [{{ backends: [{{ service: app }}] }}] }}]
services: [{{ name: app, endpoints: [{{ address: {}, port: {} }}] }}]
",
            addr.ip(),
            addr.port(),
            origin.ip(),
            origin.port()
        );
        let (chain, private) = pair();
        for (name, text) in
            [("sluice.yaml", &text), ("web.pem", &chain), ("web.key", &private), ("tickets", &key(1))]
        {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .args(["agent", "--config"])
            .arg(folder.path().join("sluice.yaml"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let agent = Self { process, addr, admin, folder };
        let is_there = || std::net::TcpStream::connect(addr).is_ok();
        eventually("the agent listens", SOON, is_there).await;
        agent
    }

    /// Puts files in place of others, at once for whoever reads them, and waits until the agent has made of it what is
    /// expected: `applied` or `refused`.
    async fn put(&self, files: &[(&str, &str)], outcome: &str) {
        let series = format!("sluice_config_reloads_total{{outcome=\"{outcome}\"}} ");
        let before = self.metric(&series).await;
        for (name, text) in files {
            let new = self.folder.path().join(format!("{name}.new"));
            fs::write(&new, text).unwrap();
            fs::rename(&new, self.folder.path().join(name)).unwrap();
        }
        let started = std::time::Instant::now();
        while self.metric(&series).await == before {
            assert!(started.elapsed() < SOON, "{files:?} was not {outcome}: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn metric(&self, series: &str) -> f64 {
        let text = client::get(self.admin, "admin", "/metrics").await.body;
        let text = String::from_utf8_lossy(&text).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    /// The same with what is refused, for a reason that the log names.
    async fn refuse(&self, name: &str, text: &str, reason: &str) {
        let before = self.log().len();
        self.put(&[(name, text)], "refused").await;
        let is_told = || self.log().get(before..).is_some_and(|new| new.contains(reason));
        let told = tokio::time::timeout(SOON, eventually("the reason is told", 2 * SOON, is_told)).await;
        assert!(told.is_ok(), "{reason}: {}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// How a client with these settings gets in.
    async fn kind(&self, config: &Arc<ClientConfig>) -> HandshakeKind {
        let mut stream = client::tls_of(self.addr, "a.test", Arc::clone(config)).await.unwrap();
        client::read_a_little(&mut stream).await.unwrap();
        stream.get_ref().1.handshake_kind().unwrap()
    }

    async fn served(&self) -> Vec<u8> {
        client::served_certificate(&client::tls(self.addr, "a.test", &[]).await.unwrap())
    }
}

/// A client that remembers its sessions.
fn remembering() -> Arc<ClientConfig> {
    let mut config = client::builder(rustls::ALL_VERSIONS).with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(16);
    Arc::new(config)
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_outlive_their_key_as_long_as_its_file_still_has_it() {
    let origin = Origin::named("a").await;
    let agent = Agent::start(origin.addr).await;
    let old = remembering();
    assert_eq!(agent.kind(&old).await, HandshakeKind::Full);
    // A session of each step, none of which is used again before the end.
    let (first, second) = (remembering(), remembering());
    assert_eq!(agent.kind(&first).await, HandshakeKind::Full);

    // The new key makes tickets, the old one is still accepted.
    agent.put(&[("tickets", &[key(2), key(1)].concat())], "applied").await;
    assert_eq!(agent.kind(&old).await, HandshakeKind::Resumed, "a ticket of the key before");
    assert_eq!(agent.kind(&second).await, HandshakeKind::Full);

    // What is no file of keys is refused, and those that are served go on.
    agent.refuse("tickets", "not a key\n", "listeners[0].tls.ticketKeysFile: \"tickets\"").await;
    assert_eq!(agent.kind(&old).await, HandshakeKind::Resumed);

    // The old one goes: its tickets open nothing, those of the new one do.
    agent.put(&[("tickets", &key(2))], "applied").await;
    assert_eq!(agent.kind(&first).await, HandshakeKind::Full, "its key is gone");
    assert_eq!(agent.kind(&second).await, HandshakeKind::Resumed);
    assert_eq!(agent.kind(&old).await, HandshakeKind::Resumed, "it got a ticket of the new key in between");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_certificate_is_refused_with_its_reason_and_the_old_one_goes_on() {
    let origin = Origin::named("a").await;
    let agent = Agent::start(origin.addr).await;
    let first = agent.served().await;
    let stream = client::tls(agent.addr, "a.test", &["h2"]).await.unwrap();
    let mut open = client::Client::over_http2(stream).await;
    assert_eq!(open.get("a.test", "/").await.unwrap().status, 200);

    let (chain, private) = pair();
    for (name, text, reason) in [
        ("web.pem", "nonsense", "it holds no PEM block"),
        ("web.pem", chain.as_str(), "its key does not belong to the certificate"),
        ("web.pem", "", "listeners[0].tls.certificates[0].certificateFile"),
    ] {
        agent.refuse(name, text, reason).await;
        assert_eq!(agent.served().await, first, "{reason}");
        assert_eq!(open.get("a.test", "/").await.unwrap().status, 200, "{reason}");
    }
    // One file after the other: in between, they do not belong together.
    agent.put(&[("web.pem", &chain), ("web.key", &private)], "applied").await;
    assert_ne!(agent.served().await, first);
    assert_eq!(open.get("a.test", "/").await.unwrap().status, 200, "no connection ends with a certificate");
}
