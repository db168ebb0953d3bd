//! The proxies under test, each a tree of processes on one core, and what that tree has used of it.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{agent, netns::Ns};

/// Core that the proxy under test runs on.
const CORE: &str = "0";
/// Bytes of each response.
pub const RESPONSE: usize = 1_024;
/// Port of the backend.
const BACKEND: u16 = 9_000;

/// A process tree that ends with this value.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    fn start(ns: &Ns, core: &str, words: &[&str], log: &Path) -> Result<Self> {
        let log = fs::File::create(log)?;
        let mut command = ns.command("taskset");
        command.args(["-c", core]).args(words).stdout(log.try_clone()?).stderr(log).stdin(Stdio::null());
        Ok(Self(command.spawn().with_context(|| format!("cannot start {words:?}"))?))
    }

    /// Processor time of this process and all below it, threads that ended included. The kernel keeps it exactly and
    /// tells it in hundredths of a second.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn cpu(&self) -> Result<Duration> {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        let mut ticks: HashMap<u32, u64> = HashMap::new();
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // Whoever is gone by now used nothing that counts.
            let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            let Some((parent, used)) = read_stat(&stat) else { continue };
            children.entry(parent).or_default().push(pid);
            ticks.insert(pid, used);
        }
        let mut left = vec![self.0.id()];
        let mut sum = 0;
        while let Some(pid) = left.pop() {
            sum += ticks.get(&pid).copied().unwrap_or(0);
            left.extend(children.get(&pid).into_iter().flatten());
        }
        ensure!(ticks.contains_key(&self.0.id()), "the proxy is gone");
        Ok(Duration::from_millis(sum * 10))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Servers with workers of their own end them only when they are asked to.
        if let Ok(pid) = i32::try_from(self.0.id()) {
            let _already_gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(2) {
            if self.0.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Parent, and user and system time in ticks, from `/proc/PID/stat`.
fn read_stat(stat: &str) -> Option<(u32, u64)> {
    // The name in parentheses may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let parent = words.get(1)?.parse().ok()?;
    let (user, system): (u64, u64) = (words.get(11)?.parse().ok()?, words.get(12)?.parse().ok()?);
    Some((parent, user + system))
}

/// A proxy under test.
#[derive(Debug)]
pub struct Proxy {
    /// Who it is.
    pub name: &'static str,
    /// Its processes.
    pub process: Process,
    /// Port for plain text.
    pub plain: u16,
    /// Port for TLS.
    pub secure: u16,
}

/// The names of the proxies.
pub const SLUICE: &str = "sluice";
/// The baseline of ratios.
pub const NGINX: &str = "nginx";
/// The floor of what our libraries cost.
pub const BARE: &str = "bare hyper";

/// Backend and proxies, in a namespace that nothing else is in.
#[derive(Debug)]
pub struct Stage {
    /// All of them.
    pub proxies: Vec<Proxy>,
    _backend: Process,
    /// Where they are.
    pub ns: Ns,
    folder: tempfile::TempDir,
}

impl Stage {
    /// Starts everything and waits until all of it listens.
    ///
    /// # Errors
    /// When a program is missing or does not start.
    pub fn new() -> Result<Self> {
        let ns = Ns::new("bench")?;
        let folder = tempfile::tempdir()?;
        let dir = folder.path();
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
        fs::write(dir.join("proxy.pem"), made.cert.pem())?;
        fs::write(dir.join("proxy.key"), made.signing_key.serialize_pem())?;
        let backend = nginx(&ns, dir, "backend", super::load::CORE, &backend_config())?;
        let proxies = vec![
            Proxy {
                name: NGINX,
                process: nginx(&ns, dir, "proxy", CORE, &proxy_config(dir, 8_000))?,
                plain: 8_000,
                secure: 8_443,
            },
            Proxy { name: BARE, process: bare(&ns, dir, 8_100)?, plain: 8_100, secure: 8_543 },
            Proxy { name: SLUICE, process: sluice(&ns, dir, 8_200)?, plain: 8_200, secure: 8_643 },
        ];
        let stage = Self { proxies, _backend: backend, ns, folder };
        for proxy in &stage.proxies {
            for port in [proxy.plain, proxy.secure] {
                stage.listening(port).with_context(|| {
                    let log = fs::read_to_string(stage.folder.path().join(format!("{}.log", proxy.name)));
                    format!("{}: {}", proxy.name, log.unwrap_or_default())
                })?;
            }
            stage.answers(proxy)?;
        }
        Ok(stage)
    }

    fn listening(&self, port: u16) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(10) {
            if self.ns.run(|| std::net::TcpStream::connect(("127.0.0.1", port))).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("nothing listens on {port} after 10 s")
    }

    /// Whether a proxy does the job that it will be measured at: the right answer in each protocol.
    fn answers(&self, proxy: &Proxy) -> Result<()> {
        for (version, scheme, port, says) in [
            ("--http1.1", "http", proxy.plain, "1.1"),
            ("--http1.1", "https", proxy.secure, "1.1"),
            ("--http2", "https", proxy.secure, "2"),
        ] {
            let url = format!("{scheme}://127.0.0.1:{port}/");
            let format = "%{http_code}-%{http_version}-%{size_download}";
            let told = self
                .ns
                .tool("curl", &format!("-sk {version} --max-time 5 -o /dev/null -w {format} {url}"))?;
            let wanted = format!("200-{says}-{RESPONSE}");
            ensure!(
                told == wanted,
                "{} answers {told} to {url} with {version}, and not {wanted}",
                proxy.name
            );
        }
        Ok(())
    }
}

fn nginx(ns: &Ns, dir: &Path, name: &str, core: &str, config: &str) -> Result<Process> {
    let file = dir.join(format!("{name}.conf"));
    fs::write(&file, config.replace("PID", &dir.join(format!("{name}.pid")).display().to_string()))?;
    let (file, prefix) = (file.display().to_string(), dir.display().to_string());
    let log = if name == "proxy" { NGINX } else { name };
    let words = ["nginx", "-p", &prefix, "-c", &file, "-e", "stderr", "-g", "daemon off;"];
    Process::start(ns, core, &words, &dir.join(format!("{log}.log")))
}

/// What all nginx have in common: one worker, no access log, connections that stay.
const COMMON: &str = "worker_processes 1; pid PID; error_log stderr;
events { worker_connections 4096; }
http {
  access_log off; keepalive_requests 100000000; keepalive_time 1h; tcp_nodelay on;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
";

fn backend_config() -> String {
    let body = "x".repeat(RESPONSE);
    format!(
        "{COMMON}  server {{ listen 127.0.0.1:{BACKEND}; location / {{ default_type text/plain; return 200 {body}; }} }}\n}}\n"
    )
}

fn proxy_config(dir: &Path, plain: u16) -> String {
    let dir = dir.display();
    let secure = plain + 443;
    format!(
        "{COMMON}  upstream backend {{ server 127.0.0.1:{BACKEND}; keepalive 256; keepalive_requests 100000000; keepalive_time 1h; }}
  ssl_certificate {dir}/proxy.pem; ssl_certificate_key {dir}/proxy.key; ssl_protocols TLSv1.3;
  server {{
    listen 127.0.0.1:{plain}; listen 127.0.0.1:{secure} ssl http2;
    location / {{
      proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection \"\";
      proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }}
  }}
}}
"
    )
}

fn bare(ns: &Ns, dir: &Path, plain: u16) -> Result<Process> {
    let program = std::env::current_exe()?.display().to_string();
    let [plain, secure, backend] = [plain, plain + 443, BACKEND].map(|port| format!("127.0.0.1:{port}"));
    let file = |name: &str| -> PathBuf { dir.join(name) };
    let (chain, key) = (file("proxy.pem").display().to_string(), file("proxy.key").display().to_string());
    let words = [&program, "forward", &plain, &secure, &backend, &chain, &key];
    Process::start(ns, CORE, &words, &file(&format!("{BARE}.log")))
}

fn sluice(ns: &Ns, dir: &Path, plain: u16) -> Result<Process> {
    let secure = plain + 443;
    let config = format!(
        "agent: {{ workers: 1, kernel: {{ mode: off }} }}
listeners:
  - {{ name: plain, address: 127.0.0.1, port: {plain}, protocol: HTTP }}
  - {{ name: secure, address: 127.0.0.1, port: {secure}, protocol: HTTPS, tls: {{ certificates: [{{ certificateFile: proxy.pem, keyFile: proxy.key }}] }} }}
routes:
  - {{ name: all, listeners: [plain, secure], rules: [{{ backends: [{{ service: backend }}] }}] }}
services:
  - {{ name: backend, endpoints: [{{ address: 127.0.0.1, port: {BACKEND} }}], health: {{ tcp: {{}} }} }}
"
    );
    let file = dir.join("sluice.yaml");
    fs::write(&file, config)?;
    let (program, file) = (agent::binary().display().to_string(), file.display().to_string());
    Process::start(ns, CORE, &[&program, "agent", "--config", &file], &dir.join(format!("{SLUICE}.log")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "42 (a) b (c) S 7 42 42 0 -1 4194304 1 0 0 0 120 30 5 5 20 0 1 0 1 1 1";
        assert_eq!(read_stat(stat), Some((7, 150)));
        assert_eq!(read_stat("nonsense"), None);
    }
}
