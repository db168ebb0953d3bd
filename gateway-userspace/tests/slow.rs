//! Slow clients by somebody else's hand, and too much to do: `slowhttptest` in its four modes against the agent as a
//! process, while other clients and the operator's window are watched.

#![cfg(test)]
#![expect(clippy::disallowed_methods, reason = "a test says what went wrong by failing")]

mod support;

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt as _, Full};
use support::{
    client::{self, Client},
    eventually, free_addr, has,
    origin::Origin,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Each test is to have the machine for itself.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The agent with one worker and one listener, in userspace.
struct Agent {
    process: Child,
    addr: SocketAddr,
    admin: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Agent {
    async fn start(origin: SocketAddr, settings: &str) -> Self {
        Self::with_routes(origin, settings, 0).await
    }

    /// The same, with so many routes more that no request goes.
    async fn with_routes(origin: SocketAddr, settings: &str, n_more: u32) -> Self {
        let (addr, admin) = (free_addr(), free_addr());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sluice.yaml");
        let mut more = String::new();
        for n in 0..n_more {
            write!(
                more,
                ", {{ name: more{n}, listeners: [web], rules: [{{ matches: [{{ path: {{ type: Exact, value: /{n} }} }}], \
                 backends: [{{ service: app }}] }}] }}"
            )
            .unwrap();
        }
        let text = format!(
            "agent: {{ workers: 1, admin: {{ address: '{admin}' }}, kernel: {{ mode: off }}{settings} }}
listeners: [{{ name: web, address: {}, port: {}, protocol: HTTP }}]
routes: [{{ name: web, listeners: [web], rules: [{{ backends: [{{ service: app }}] }}] }}{more}]
services: [{{ name: app, endpoints: [{{ address: {}, port: {} }}] }}]
",
            addr.ip(),
            addr.port(),
            origin.ip(),
            origin.port()
        );
        fs::write(&file, text).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .args(["agent", "--config"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { process, addr, admin, _folder: folder };
        let is_there = || std::net::TcpStream::connect(addr).is_ok();
        eventually("the agent listens", Duration::from_secs(20), is_there).await;
        agent
    }

    /// How long the slowest page of the operator's window takes.
    async fn window(&self) -> Duration {
        let mut slowest = Duration::ZERO;
        for page in ["/live", "/ready", "/metrics", "/dump"] {
            let started = Instant::now();
            let answer = client::get(self.admin, "admin", page);
            let answer = tokio::time::timeout(Duration::from_secs(10), answer).await.unwrap();
            assert_eq!(answer.status, 200, "{page}");
            slowest = slowest.max(started.elapsed());
        }
        slowest
    }

    async fn metric(&self, series: &str) -> f64 {
        let text = client::get(self.admin, "admin", "/metrics").await.body;
        let text = String::from_utf8_lossy(&text).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }
}

/// Requests of one window to each agent, and windows at most and at least.
const REQUESTS: usize = 200;
const WINDOWS: usize = 15;
const LEAST: usize = 5;

/// The 99th percentile of requests to each of two agents, asked in turn so that both have the same moments of the machine.
async fn window(clients: &mut [Client; 2]) -> [Duration; 2] {
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..REQUESTS {
        for (client, times) in clients.iter_mut().zip(&mut times) {
            let started = Instant::now();
            assert_eq!(client.get("a", "/").await.unwrap().status, 200);
            times.push(started.elapsed());
        }
    }
    times.map(|mut times| {
        times.sort_unstable();
        times[REQUESTS * 99 / 100 - 1]
    })
}

fn median(mut windows: Vec<Duration>) -> Duration {
    windows.sort_unstable();
    let middle = windows.len() / 2;
    windows.into_iter().nth(middle).unwrap()
}

const CONNECTIONS: u32 = 800;

/// What the attacked agent may wait longer at most where twice the time is less: a turn of another process. It is the one
/// that `slowhttptest` wakes, and that stands behind it on a core: where nobody else used the machine, the 99th percentiles
/// were 0.9 ms without and up to 2.3 ms with the attack, and on a busy one 10 ms and 10 ms. The scheduler gives a turn of
/// about 3 ms.
const TURN: Duration = Duration::from_millis(4);

/// Runs a mode of `slowhttptest` against one of two agents: its other clients take less than twice as long as those of the
/// agent that is left alone, or at most a [turn](TURN) longer.
///
/// A baseline from before is of another machine: on one of two cores that others used, the same requests had a 99th
/// percentile of 0.6 ms in one minute and of 9 ms in the next one, without any attack. What the attack takes of the cores
/// themselves both agents feel.
async fn attack(mode: &str, options: &[&str]) {
    if !has("slowhttptest", "slowhttptest") {
        return;
    }
    let handler = |request: http::Request<hyper::body::Incoming>| async {
        // A body that does not come has no answer.
        drop(request.into_body().collect().await);
        Response::new(Full::new(Bytes::from(vec![b'a'; 64 * 1024])))
    };
    let origin = Origin::serve("127.0.0.1:0".parse().unwrap(), handler).await;
    let (agent, alone) = (Agent::start(origin.addr, "").await, Agent::start(origin.addr, "").await);
    let mut clients = [Client::http1(agent.addr).await, Client::http1(alone.addr).await];
    // Who else uses the machine does so for seconds: what the attack does, it does every time.
    for _ in 0..ATTEMPTS {
        let [attacked, alone] = compared(&agent, (mode, options), &mut clients).await;
        println!("{mode}: {attacked:?}, and {alone:?} where there is no attack");
        if attacked < (alone * 2).max(alone + TURN) {
            return;
        }
    }
    panic!("{mode}: its clients wait too long, {ATTEMPTS} times in a row");
}

/// How often a mode is run at most.
const ATTEMPTS: usize = 3;

/// The medians of both agents' windows under an attack on the first.
async fn compared(
    agent: &Agent,
    (mode, options): (&str, &[&str]),
    clients: &mut [Client; 2],
) -> [Duration; 2] {
    let quiet = window(clients).await;
    let mut windows = Vec::new();
    // One mode is over as soon as it is answered, and goes on as often as it takes to measure something.
    for _ in 0..20 {
        windows.extend(attacked(agent, (mode, options), clients).await);
        if windows.len() >= LEAST {
            break;
        }
    }
    println!("{mode}: before {quiet:?}, then {windows:?}");
    assert!(windows.len() >= LEAST, "{mode}: there were only {} windows", windows.len());
    [0, 1].map(|which| median(windows.iter().map(|window| window[which]).collect()))
}

/// Windows that began and ended while `slowhttptest` was at it.
async fn attacked(
    agent: &Agent,
    (mode, options): (&str, &[&str]),
    clients: &mut [Client; 2],
) -> Vec<[Duration; 2]> {
    let n_connections = CONNECTIONS.to_string();
    let mut command = Command::new("timeout");
    // A connection for each five milliseconds, and something on each of them every two seconds.
    command.args(["60", "slowhttptest", mode, "-c", &n_connections, "-r", "200", "-i", "2", "-l", "25"]);
    command.args(["-p", "3", "-u", &format!("http://{}/", agent.addr)]).args(options);
    let attack = tokio::task::spawn_blocking(move || command.output());
    let open = format!("sluice_connections_open{{address=\"{}\",protocol=\"tcp\"}} ", agent.addr);
    let mut most = 0.0_f64;
    for _ in 0..40 {
        most = most.max(agent.metric(&open).await);
        // One mode leaves its connections as soon as they are answered.
        if most > f64::from(CONNECTIONS) / 2.0 || mode == "-R" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let mut windows = Vec::new();
    while windows.len() < WINDOWS {
        let window = window(clients).await;
        if attack.is_finished() {
            break;
        }
        windows.push(window);
    }
    let page = agent.window().await;
    let said = attack.await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let said = said.split("\u{1b}[H").last().unwrap_or_default().to_owned();
    println!("{mode}: {most} connections; the operator's window {page:?}");
    assert!(most > f64::from(CONNECTIONS) / 2.0 || mode == "-R", "there was no attack: {most}\n{said}");
    assert!(page < Duration::from_secs(1), "{mode}: the operator's window takes {page:?}");
    let is_available = |line: &str| line.contains("service available") && line.contains("YES");
    assert!(said.lines().any(is_available), "{mode}\n{said}");
    windows
}

#[tokio::test(flavor = "multi_thread")]
async fn slowhttptest_holds_up_nobody_in_any_of_its_modes() {
    let _alone = ALONE.lock().await;
    attack("-H", &["-x", "24"]).await;
    attack("-B", &["-s", "8192", "-x", "10"]).await;
    attack("-R", &["-a", "5", "-b", "3000"]).await;
    attack("-X", &["-w", "512", "-y", "1024", "-n", "5", "-z", "32", "-k", "3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_window_answers_when_there_is_no_memory() {
    let _alone = ALONE.lock().await;
    let origin = Origin::named("a").await;
    // Less than its routes take. Its program alone would not do: the kernel takes pages of files back as it likes.
    let agent = Agent::with_routes(origin.addr, ", overload: { memoryMib: 16 }", 6_000).await;
    let has_more = || async {
        agent.metric("sluice_memory_resident_bytes ").await > agent.metric("sluice_memory_bound_bytes ").await
    };
    // What it had when it last looked may be from before its routes.
    let started = Instant::now();
    while !has_more().await {
        assert!(started.elapsed() < Duration::from_secs(20), "it has little");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let started = Instant::now();
    let mut n_refused = 0;
    while n_refused < 1_000 {
        let mut stream = TcpStream::connect(agent.addr).await.unwrap();
        let _sent = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let read = stream.read(&mut [0; 64]).await;
        n_refused += usize::from(matches!(read, Ok(0) | Err(_)));
        if n_refused % 100 == 0 {
            assert!(agent.window().await < Duration::from_secs(1));
        }
        assert!(started.elapsed() < Duration::from_mins(1), "{n_refused}");
    }
    let counted = agent.metric("sluice_limit_reached_total{limit=\"memory_connections\"} ").await;
    assert!(counted > 999.5, "{counted}");
    assert_eq!(origin.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_window_answers_when_there_is_too_much_to_do() {
    let _alone = ALONE.lock().await;
    let (origin, _permits) = Origin::held().await;
    let agent = Agent::start(origin.addr, ", overload: { requests: 50, delay: 10ms }").await;
    // More than the worker can answer, for as long as the window is looked at.
    let busy: Vec<_> = (0..100)
        .map(|_| {
            let addr = agent.addr;
            tokio::spawn(async move {
                loop {
                    let mut client = Client::http1(addr).await;
                    while client.get("a", "/").await.is_ok() {}
                }
            })
        })
        .collect();
    let shed = || async {
        agent.metric("sluice_limit_reached_total{limit=\"requests\"} ").await
            + agent.metric("sluice_limit_reached_total{limit=\"delay\"} ").await
    };
    let mut slowest = Duration::ZERO;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        slowest = slowest.max(agent.window().await);
    }
    let n_shed = shed().await;
    busy.iter().for_each(tokio::task::JoinHandle::abort);
    println!("{n_shed} requests were refused; the window took {slowest:?} at most");
    assert!(n_shed > 100.0, "there was no overload: {n_shed}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}
