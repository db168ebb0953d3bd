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
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use super::rivals;
use crate::{
    agent,
    netns::{Ns, tool},
};

/// Core that the proxy under test runs on.
const CORE: &str = "0";
/// Bytes of each response.
pub const RESPONSE: usize = 1_024;
/// Port of the backend.
pub const BACKEND: u16 = 9_000;
/// Port of the backend of gRPC.
pub const GRPC_BACKEND: u16 = 9_001;
/// The method of gRPC that is called.
pub const GRPC_PATH: &str = "/unary";
/// Bytes of the files that the backend has, under `/file/`.
pub const FILES: [usize; 2] = [64 * 1_024, 10 * 1_024 * 1_024];

/// How many connections may be idle at once: the agent keeps half of its descriptors for the other side.
///
/// # Errors
/// When the kernel does not tell how many descriptors there may be.
pub fn most_idle() -> Result<usize> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(usize::try_from(most)?.saturating_sub(2_000) / 2)
}

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
        Ok(Duration::from_millis(self.tree()?.iter().map(|(_, used)| used).sum::<u64>() * 10))
    }

    /// Bytes of memory of this process and all below it; what they share counts once.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn memory(&self) -> Result<u64> {
        let mut sum = 0;
        for (pid, _) in self.tree()? {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            sum += read_share(&text).context("the kernel does not tell how much memory is used")?;
        }
        Ok(sum)
    }

    /// Every process at and below this one, and the ticks that it used.
    fn tree(&self) -> Result<Vec<(u32, u64)>> {
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
        let mut tree = Vec::new();
        while let Some(pid) = left.pop() {
            tree.extend(ticks.get(&pid).map(|used| (pid, *used)));
            left.extend(children.get(&pid).into_iter().flatten());
        }
        ensure!(ticks.contains_key(&self.0.id()), "the proxy is gone");
        Ok(tree)
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

/// Bytes of the proportional share of memory, from `/proc/PID/smaps_rollup`.
fn read_share(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1_024)
}

/// Processor time that the whole machine has used since it started.
///
/// # Errors
/// When the kernel does not tell it.
pub fn machine_cpu() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    Ok(Duration::from_millis(read_machine(&text).context("/proc/stat tells no times")? * 10))
}

/// Ticks of all that is not idle and not counted twice, from `/proc/stat`.
fn read_machine(text: &str) -> Option<u64> {
    let words = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let ticks: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
    // User, nice, system, (idle, wait), interrupts, soft interrupts; guests are within user.
    let at = |idx: usize| ticks.get(idx).copied().unwrap_or(0);
    (ticks.len() >= 8).then(|| at(0) + at(1) + at(2) + at(5) + at(6))
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
/// The proxy that many know for its speed.
pub const HAPROXY: &str = "haproxy";
/// The proxy that meshes are made of.
pub const ENVOY: &str = "envoy";
/// The floor of what our libraries cost.
pub const BARE: &str = "bare hyper";

/// Another build of the agent, where `SLUICE_OTHER_AGENT` names one: what a change did, within one run.
pub const OTHER: &str = "sluice, other build";

/// Backend and proxies, in a namespace that nothing else is in.
#[derive(Debug)]
pub struct Stage {
    /// All of them.
    pub proxies: Vec<Proxy>,
    _backends: [Process; 2],
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
        prepare(&ns, dir)?;
        let backends =
            [nginx(&ns, dir, "backend", super::load::CORE, &rivals::backend(dir))?, grpc(&ns, dir)?];
        let mut proxies = vec![
            start(&ns, dir, NGINX, 8_000, |plain, secure| {
                nginx(&ns, dir, NGINX, CORE, &rivals::nginx(dir, plain, secure))
            })?,
            start(&ns, dir, HAPROXY, 8_001, |plain, secure| haproxy(&ns, dir, plain, secure))?,
            start(&ns, dir, ENVOY, 8_002, |plain, secure| envoy(&ns, dir, plain, secure))?,
            start(&ns, dir, BARE, 8_003, |plain, secure| bare(&ns, dir, plain, secure))?,
            start(&ns, dir, SLUICE, 8_004, |plain, secure| {
                sluice(&ns, dir, SLUICE, &agent::binary(), plain, secure)
            })?,
        ];
        if let Some(program) = std::env::var_os("SLUICE_OTHER_AGENT") {
            proxies.push(start(&ns, dir, OTHER, 8_005, |plain, secure| {
                sluice(&ns, dir, OTHER, Path::new(&program), plain, secure)
            })?);
        }
        let stage = Self { proxies, _backends: backends, ns, folder };
        stage.listening(GRPC_BACKEND).context("nghttpd")?;
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

    /// The certificate that every proxy shows.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("proxy.pem")
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

/// Certificates, files and settings that all of them share.
fn prepare(ns: &Ns, dir: &Path) -> Result<()> {
    // Children inherit it.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    ns.run(|| fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10000 65535"))?;
    ns.run(|| fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1"))?;
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
    let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    fs::write(dir.join("both.pem"), format!("{chain}{key}"))?;
    fs::write(dir.join("proxy.pem"), chain)?;
    fs::write(dir.join("proxy.key"), key)?;
    fs::create_dir(dir.join("file"))?;
    for len in FILES {
        fs::write(dir.join("file").join(len.to_string()), vec![b'x'; len])?;
    }
    // One message of gRPC: not compressed, five bytes.
    fs::write(dir.join(GRPC_PATH.trim_start_matches('/')), b"\0\0\0\0\x05hello")?;
    // Whatever user a server's worker becomes has to read them.
    tool("chmod", &format!("-R a+rX {}", dir.display()))
}

fn start(
    ns: &Ns,
    dir: &Path,
    name: &'static str,
    plain: u16,
    process: impl FnOnce(u16, u16) -> Result<Process>,
) -> Result<Proxy> {
    let secure = plain + 443;
    let process = process(plain, secure).with_context(|| format!("{name} in {} of {ns:?}", dir.display()))?;
    Ok(Proxy { name, process, plain, secure })
}

fn nginx(ns: &Ns, dir: &Path, name: &str, core: &str, config: &str) -> Result<Process> {
    let file = dir.join(format!("{name}.conf"));
    fs::write(&file, config.replace("PID", &dir.join(format!("{name}.pid")).display().to_string()))?;
    let (file, prefix) = (file.display().to_string(), dir.display().to_string());
    let words = ["nginx", "-p", &prefix, "-c", &file, "-e", "stderr", "-g", "daemon off;"];
    Process::start(ns, core, &words, &dir.join(format!("{name}.log")))
}

/// Answers every call with the same message, and with the trailer that says that all is well.
fn grpc(ns: &Ns, dir: &Path) -> Result<Process> {
    let (port, root) = (GRPC_BACKEND.to_string(), dir.display().to_string());
    let trailer = "--trailer=grpc-status: 0";
    let words = ["nghttpd", "--no-tls", trailer, "-m", "1000", "-a", "127.0.0.1", "-d", &root, &port];
    Process::start(ns, super::load::CORE, &words, &dir.join("nghttpd.log"))
}

fn haproxy(ns: &Ns, dir: &Path, plain: u16, secure: u16) -> Result<Process> {
    let file = dir.join("haproxy.cfg");
    fs::write(&file, rivals::haproxy(dir, plain, secure))?;
    let words = ["haproxy", "-db", "-f", &file.display().to_string()];
    Process::start(ns, CORE, &words, &dir.join(format!("{HAPROXY}.log")))
}

fn envoy(ns: &Ns, dir: &Path, plain: u16, secure: u16) -> Result<Process> {
    let file = dir.join("envoy.json");
    fs::write(&file, rivals::envoy(dir, plain, secure))?;
    let program = std::env::var("SLUICE_ENVOY").unwrap_or_else(|_| "envoy".to_owned());
    let file = file.display().to_string();
    let words =
        [&program, "-c", &file, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"];
    Process::start(ns, CORE, &words, &dir.join(format!("{ENVOY}.log")))
}

fn bare(ns: &Ns, dir: &Path, plain: u16, secure: u16) -> Result<Process> {
    let program = std::env::current_exe()?.display().to_string();
    let [plain, secure, backend] = [plain, secure, BACKEND].map(|port| format!("127.0.0.1:{port}"));
    let file = |name: &str| -> PathBuf { dir.join(name) };
    let (chain, key) = (file("proxy.pem").display().to_string(), file("proxy.key").display().to_string());
    let words = [&program, "forward", &plain, &secure, &backend, &chain, &key];
    Process::start(ns, CORE, &words, &file(&format!("{BARE}.log")))
}

fn sluice(ns: &Ns, dir: &Path, name: &str, program: &Path, plain: u16, secure: u16) -> Result<Process> {
    let file = dir.join(format!("{plain}.yaml"));
    // Not beside the file that the agent watches, where nobody has logs either.
    let logs = dir.join("logs");
    fs::create_dir_all(&logs)?;
    fs::write(&file, rivals::sluice(plain, secure, &logs.join(format!("{name}.access.log"))))?;
    let (program, file) = (program.display().to_string(), file.display().to_string());
    Process::start(ns, CORE, &[&program, "agent", "--config", &file], &dir.join(format!("{name}.log")))
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

    #[test]
    fn memory_and_the_machine_are_read() {
        assert_eq!(read_share("1000-2000 ---p\nRss:  10 kB\nPss:    7 kB\nPss_Dirty: 1 kB\n"), Some(7_168));
        assert_eq!(read_share("Rss: 1 kB\n"), None);
        assert_eq!(read_machine("cpu  1 2 4 100 100 8 16 0 32 0\ncpu0 1\n"), Some(31));
        assert_eq!(read_machine("cpu0 1 2 3\n"), None);
    }
}
