//! A long run at half load: the configuration changes every ten seconds, endpoints die with everything that they have open
//! and return, and nothing of it may show: no failed request, no memory, no descriptor, no task that stays.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::MissedTickBehavior,
};

use crate::agent;

/// Below it there is nothing to compare.
pub const SHORTEST: Duration = Duration::from_mins(1);

const N_ENDPOINTS: usize = 4;
const N_CLIENTS: u32 = 16;
/// One endpoint after the other dies so often, and is away for a third of the time.
const DEATHS: Duration = Duration::from_secs(6);
const RELOADS: Duration = Duration::from_secs(10);
/// How long it is measured what the agent can do.
const FULL_LOAD: Duration = Duration::from_secs(5);
/// Memory and descriptors may differ by this part.
const TOLERANCE: f64 = 0.05;

/// Runs for `time`; whether everything held.
///
/// # Errors
/// When the agent cannot be run.
pub fn run(time: Duration) -> Result<bool> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(soak(time))
}

/// The agent as a process, in userspace.
struct Agent {
    process: Child,
    addr: SocketAddr,
    admin: SocketAddr,
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Agent {
    async fn start(folder: &Path, endpoints: &[SocketAddr]) -> Result<Self> {
        let (addr, admin) = (free_addr()?, free_addr()?);
        let config = folder.join("sluice.yaml");
        write(&config, addr, admin, endpoints, 0)?;
        let log = fs::File::create(folder.join("sluice.log"))?;
        let process = Command::new(agent::binary())
            .args(["agent", "--config"])
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start the agent")?;
        let agent = Self { process, addr, admin };
        let started = Instant::now();
        while TcpStream::connect(addr).await.is_err() {
            ensure!(started.elapsed() < Duration::from_secs(20), "the agent does not listen");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(agent)
    }

    /// The sum of all series of a metric whose labels have `label`.
    async fn metric(&self, name: &str, label: &str) -> Result<f64> {
        let (_, text) =
            exchange(self.admin, "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await?;
        let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
        Ok(lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.process.id())
    }

    fn memory_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(self.proc("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        line.split_whitespace().next().context("no number")?.parse().context("a number")
    }

    /// Open descriptors that are no connection.
    async fn descriptors(&self) -> Result<f64> {
        let all = u32::try_from(fs::read_dir(self.proc("fd"))?.count())?;
        let connections = self.metric("sluice_connections_open", "").await?
            + self.metric("sluice_upstream_connections", "state=\"open\"").await?;
        Ok(f64::from(all) - connections)
    }

    /// Asks it to end; how long it takes. What is still at work keeps it until the deadline of its drain.
    async fn end(&mut self) -> Result<Duration> {
        let started = Instant::now();
        kill(Pid::from_raw(i32::try_from(self.process.id())?), Signal::SIGTERM)?;
        while self.process.try_wait()?.is_none() {
            ensure!(started.elapsed() < Duration::from_mins(1), "the agent does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(started.elapsed())
    }
}

fn free_addr() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// The configuration, a little different with every number.
fn write(file: &Path, addr: SocketAddr, admin: SocketAddr, endpoints: &[SocketAddr], n: u64) -> Result<()> {
    let mut text = format!(
        "agent: {{ workers: 1, admin: {{ address: '{admin}' }}, kernel: {{ mode: off }} }}\nlisteners: [{{ name: web, address: {}, port: {}, protocol: HTTP }}]\nroutes:\n  - name: web\n    listeners: [web]\n    rules:\n      - {{ matches: [{{ path: {{ value: /changed-{n} }} }}], backends: [{{ service: app }}] }}\n      - {{ backends: [{{ service: app }}] }}\nservices:\n  - name: app\n    health: {{ tcp: {{}}, interval: 200ms, timeout: 100ms }}\n    endpoints:\n",
        addr.ip(),
        addr.port()
    );
    for (endpoint, at) in endpoints.iter().zip(0..) {
        let weight = 1 + (n + at) % 3;
        writeln!(
            text,
            "      - {{ address: {}, port: {}, weight: {weight} }}",
            endpoint.ip(),
            endpoint.port()
        )?;
    }
    // In one step: the agent may read at any moment.
    let new = file.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, file).context("cannot change the configuration")
}

/// An endpoint that dies when `is_dead` says so, with every connection.
async fn endpoint(addr: SocketAddr, is_dead: Arc<AtomicBool>) {
    loop {
        while is_dead.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let Ok(listener) = TcpListener::bind(addr).await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let mut connections = JoinSet::new();
        while !is_dead.load(Ordering::Relaxed) {
            tokio::select! {
                accepted = listener.accept() => {
                    if let Ok((stream, _)) = accepted {
                        connections.spawn(answer(stream));
                    }
                }
                _ = connections.join_next(), if !connections.is_empty() => {}
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
        }
        connections.abort_all();
    }
}

/// Answers requests with 1 KiB, each in one write: what died had answered all of it or nothing.
async fn answer(mut stream: TcpStream) {
    let response = format!("HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n{}", "a".repeat(1_024));
    let (mut room, mut seen) = ([0; 4_096], Vec::new());
    while let Ok(n @ 1..) = stream.read(&mut room).await {
        seen.extend_from_slice(&room[..n]);
        while let Some(at) = seen.windows(4).position(|window| window == b"\r\n\r\n") {
            seen.drain(..at + 4);
            if stream.write_all(response.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// One request on a connection of its own: status and everything behind the head.
async fn exchange(addr: SocketAddr, request: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    Ok((head.get(9..12).context("no status")?.parse()?, body.to_owned()))
}

/// What clients saw.
#[derive(Default)]
struct Seen {
    n_good: AtomicU64,
    n_bad: AtomicU64,
    /// The first thing that went wrong.
    first: OnceLock<String>,
}

/// One client until `until`: every fiftieth request has a connection of its own.
async fn client(addr: SocketAddr, every: Option<Duration>, until: Instant, seen: Arc<Seen>) {
    let mut ticks = tokio::time::interval(every.unwrap_or(Duration::from_secs(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut kept: Option<TcpStream> = None;
    for n in 0_u64.. {
        if Instant::now() >= until {
            return;
        }
        if every.is_some() {
            ticks.tick().await;
        }
        let is_last = n % 50 == 49;
        match one(addr, &mut kept, is_last).await {
            Ok(200) => drop(seen.n_good.fetch_add(1, Ordering::Relaxed)),
            outcome => {
                seen.n_bad.fetch_add(1, Ordering::Relaxed);
                seen.first.get_or_init(|| format!("{outcome:?}"));
                kept = None;
            }
        }
        if is_last {
            kept = None;
        }
    }
}

async fn one(addr: SocketAddr, kept: &mut Option<TcpStream>, is_last: bool) -> Result<u16> {
    if kept.is_none() {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        *kept = Some(stream);
    }
    let stream = kept.as_mut().context("there is a connection")?;
    let connection = if is_last { "close" } else { "keep-alive" };
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let (mut answer, mut room) = (Vec::new(), [0; 4_096]);
    loop {
        let n = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut room)).await??;
        ensure!(n > 0, "the connection ended after {} bytes", answer.len());
        answer.extend_from_slice(&room[..n]);
        let Some(at) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&answer[..at])?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if answer.len() >= at + 4 + length.context("no length")?.parse::<usize>()? {
            return Ok(head.get(9..12).context("no status")?.parse()?);
        }
    }
}

/// The middle of some values.
fn middle(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

async fn load(agent: &Agent, every: Option<Duration>, time: Duration, seen: &Arc<Seen>) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for _ in 0..N_CLIENTS {
        clients.spawn(client(agent.addr, every, Instant::now() + time, Arc::clone(seen)));
        // Not all at the same moment.
        tokio::time::sleep(every.unwrap_or_default() / N_CLIENTS).await;
    }
    clients
}

async fn soak(time: Duration) -> Result<bool> {
    let folder = tempfile::tempdir()?;
    let mut endpoints = Vec::new();
    let mut tasks = JoinSet::new();
    for _ in 0..N_ENDPOINTS {
        let (addr, is_dead) = (free_addr()?, Arc::new(AtomicBool::new(false)));
        tasks.spawn(endpoint(addr, Arc::clone(&is_dead)));
        endpoints.push((addr, is_dead));
    }
    let addrs: Vec<SocketAddr> = endpoints.iter().map(|(addr, _)| *addr).collect();
    let mut agent = Agent::start(folder.path(), &addrs).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let descriptors = agent.descriptors().await?;
    let full = Arc::new(Seen::default());
    load(&agent, None, FULL_LOAD, &full).await.join_all().await;
    let per_second = full.n_good.load(Ordering::Relaxed) / FULL_LOAD.as_secs();
    let every = Duration::from_secs(1) * N_CLIENTS * 2 / u32::try_from(per_second.max(1))?;
    println!("full load is {per_second} requests in a second; half of it for {time:?}");
    let seen = Arc::new(Seen::default());
    let clients = load(&agent, Some(every), time, &seen).await;
    let memory = disturb(&agent, folder.path(), &endpoints, time).await?;
    clients.join_all().await;
    let n_reloads = agent.metric("sluice_config_reloads_total", "applied").await?;
    let retries = agent.metric("sluice_upstream_retries_total", "").await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let left = agent.descriptors().await?;
    let open = agent.metric("sluice_connections_open", "").await?;
    let ended = agent.end().await?;
    let (n_good, n_bad) = (seen.n_good.load(Ordering::Relaxed), seen.n_bad.load(Ordering::Relaxed));
    let (early, late) = memory.split_at(memory.len() / 2);
    let (early, late) = (middle(early), middle(late));
    #[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "mebibytes are far below 2^52")]
    let growth = late as f64 / early.max(1) as f64 - 1.0;
    println!(
        "requests: {n_good} good, {n_bad} failed ({:?} first); {retries} retries, {n_reloads} reloads",
        seen.first.get()
    );
    println!("memory: {early} KiB in the first half, {late} KiB in the second: {:+.1} %", growth * 100.0);
    println!(
        "descriptors beside connections: {descriptors} before, {left} after; {open} connections left open"
    );
    println!("the agent ended within {ended:?}");
    let has_ended_by_itself = ended < Duration::from_secs(10);
    Ok(n_bad == 0
        && n_good > 0
        && growth < TOLERANCE
        && (left - descriptors).abs() < 3.0
        && open < 0.5
        && has_ended_by_itself)
}

/// Changes the configuration and lets endpoints die; memory once a second after a fifth of the time.
async fn disturb(
    agent: &Agent,
    folder: &Path,
    endpoints: &[(SocketAddr, Arc<AtomicBool>)],
    time: Duration,
) -> Result<Vec<u64>> {
    let addrs: Vec<SocketAddr> = endpoints.iter().map(|(addr, _)| *addr).collect();
    let (started, mut memory, mut n_reloads) = (Instant::now(), Vec::new(), 0);
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    while started.elapsed() < time {
        ticks.tick().await;
        let elapsed = started.elapsed();
        if elapsed.as_secs() / RELOADS.as_secs() > n_reloads {
            n_reloads += 1;
            write(&folder.join("sluice.yaml"), agent.addr, agent.admin, &addrs, n_reloads)?;
        }
        // One after the other, and never two at once.
        let turn = usize::try_from(elapsed.as_secs() / DEATHS.as_secs())?;
        let is_dying = elapsed.as_secs() % DEATHS.as_secs() < DEATHS.as_secs() / 3;
        for (at, (_, is_dead)) in endpoints.iter().enumerate() {
            is_dead.store(is_dying && at == turn % endpoints.len(), Ordering::Relaxed);
        }
        if elapsed > time / 5 {
            memory.push(agent.memory_kib()?);
        }
    }
    for (_, is_dead) in endpoints {
        is_dead.store(false, Ordering::Relaxed);
    }
    Ok(memory)
}
