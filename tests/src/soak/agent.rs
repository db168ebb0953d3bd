//! The agent as a process, with two listeners and endpoints of two protocols, and what it holds.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::endpoint::{Endpoint, Protocol};
use crate::agent;

/// The agent as a process, in userspace.
pub(super) struct Agent {
    process: Child,
    addrs: Addrs,
    /// The authority that vouches for it.
    pub(super) certificate: CertificateDer<'static>,
    folder: TempDir,
}

/// Where it listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addrs {
    /// For requests in plain text.
    pub(super) plain: SocketAddr,
    /// For requests over TLS.
    pub(super) secure: SocketAddr,
    admin: SocketAddr,
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Agent {
    /// Starts it, and waits until it listens.
    pub(super) async fn start(endpoints: &[Endpoint]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let addrs = Addrs { plain: free_addr()?, secure: free_addr()?, admin: free_addr()? };
        let made = rcgen::generate_simple_self_signed(vec![addrs.secure.ip().to_string()])?;
        fs::write(folder.path().join("web.pem"), made.cert.pem())?;
        fs::write(folder.path().join("web.key"), made.signing_key.serialize_pem())?;
        let config = folder.path().join("sluice.yaml");
        write(&config, addrs, endpoints, 0)?;
        let log = fs::File::create(folder.path().join("sluice.log"))?;
        let process = Command::new(agent::binary())
            .args(["agent", "--config"])
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start the agent")?;
        let agent = Self { process, addrs, certificate: made.cert.der().clone(), folder };
        let started = Instant::now();
        while TcpStream::connect(addrs.secure).await.is_err() {
            ensure!(started.elapsed() < Duration::from_secs(20), "the agent does not listen");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(agent)
    }

    /// Where it listens.
    pub(super) fn addrs(&self) -> Addrs {
        self.addrs
    }

    /// Changes its configuration.
    pub(super) fn reload(&self, endpoints: &[Endpoint], n: u64) -> Result<()> {
        write(&self.folder.path().join("sluice.yaml"), self.addrs, endpoints, n)
    }

    /// What it logged that is no news.
    pub(super) fn warnings(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("sluice.log")).unwrap_or_default();
        let lines: Vec<&str> =
            log.lines().filter(|line| line.contains("ERROR") || line.contains("panic")).collect();
        lines.join("\n")
    }

    /// The sum of all series of a metric whose labels have `label`.
    pub(super) async fn metric(&self, name: &str, label: &str) -> Result<f64> {
        let mut stream = TcpStream::connect(self.addrs.admin).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        // What is not there would pass for zero.
        ensure!(text.lines().any(|line| line.starts_with(name)), "no metric is named {name}");
        let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
        Ok(lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.process.id())
    }

    pub(super) fn memory_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(self.proc("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        line.split_whitespace().next().context("no number")?.parse().context("a number")
    }

    /// Open descriptors that are no connection.
    pub(super) async fn descriptors(&self) -> Result<f64> {
        let all = u32::try_from(fs::read_dir(self.proc("fd"))?.count())?;
        let connections = self.metric("sluice_connections_open", "").await?
            + self.metric("sluice_upstream_connections", "state=\"open\"").await?;
        Ok(f64::from(all) - connections)
    }

    /// Asks it to end; how long it takes. What is still at work keeps it until the deadline of its drain.
    pub(super) async fn end(&mut self) -> Result<Duration> {
        let started = Instant::now();
        kill(Pid::from_raw(i32::try_from(self.process.id())?), Signal::SIGTERM)?;
        while self.process.try_wait()?.is_none() {
            ensure!(started.elapsed() < Duration::from_mins(1), "the agent does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(started.elapsed())
    }
}

/// An address on loopback that nobody uses.
pub(super) fn free_addr() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// The configuration, a little different with every number.
fn write(file: &Path, addrs: Addrs, endpoints: &[Endpoint], n: u64) -> Result<()> {
    let Addrs { plain, secure, admin } = addrs;
    let mut text = format!(
        "agent: {{ workers: 1, admin: {{ address: '{admin}' }}, kernel: {{ mode: off }}, accessLog: {{ output: stdout }} }}
listeners:
  - {{ name: plain, address: {}, port: {}, protocol: HTTP }}
  - {{ name: secure, address: {}, port: {}, protocol: HTTPS, tls: {{ certificates: [{{ certificateFile: web.pem, keyFile: web.key }}] }} }}
routes:
  - name: web
    listeners: [plain, secure]
    rules:
      - {{ matches: [{{ path: {{ value: /changed-{n} }} }}], backends: [{{ service: http1 }}] }}
      - {{ matches: [{{ path: {{ value: /h2 }} }}], backends: [{{ service: h2c }}] }}
      - {{ backends: [{{ service: http1 }}] }}
services:
",
        plain.ip(),
        plain.port(),
        secure.ip(),
        secure.port()
    );
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let name = protocol.name();
        writeln!(
            text,
            "  - name: {name}\n    protocol: {name}\n    health: {{ tcp: {{}}, interval: 200ms, timeout: 100ms }}\n    endpoints:"
        )?;
        for (endpoint, at) in endpoints.iter().filter(|endpoint| endpoint.protocol == protocol).zip(0..) {
            let (ip, port, weight) = (endpoint.addr.ip(), endpoint.addr.port(), 1 + (n + at) % 3);
            writeln!(text, "      - {{ address: {ip}, port: {port}, weight: {weight} }}")?;
        }
    }
    // In one step: the agent may read at any moment.
    let new = file.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, file).context("cannot change the configuration")
}
