//! Clients that count: which endpoint answered, and what failed.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::netns::Ns;

/// Status and body of one request over a connection of its own.
pub fn get(addr: SocketAddr, host: &str, path: &str, timeout: Duration) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&addr, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no status in {text:?}")))?;
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

/// The name of the endpoint that answers a TCP connection.
pub fn who_tcp(addr: SocketAddr, timeout: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&addr, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    let mut name = String::new();
    stream.read_to_string(&mut name)?;
    Ok(name)
}

/// The name of the endpoint that answers a packet from a new socket.
pub fn who_udp(addr: SocketAddr, timeout: Duration) -> io::Result<String> {
    let any = if addr.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.connect(addr)?;
    socket.send(b"who")?;
    let mut name = [0; 64];
    let len = socket.recv(&mut name)?;
    Ok(String::from_utf8_lossy(&name[..len]).into_owned())
}

/// How often each endpoint answered; failures stand under `error`.
pub type Shares = BTreeMap<String, u32>;

/// Asks `n` times.
pub fn shares(n: u32, ask: impl Fn() -> io::Result<String>) -> Shares {
    let mut shares = Shares::new();
    for _ in 0..n {
        let name = ask().unwrap_or_else(|_| "error".to_owned());
        *shares.entry(name).or_default() += 1;
    }
    shares
}

/// The share of an endpoint among the answers, in percent.
pub fn percent(shares: &Shares, name: &str) -> f64 {
    let all: u32 = shares.values().sum();
    100.0 * f64::from(shares.get(name).copied().unwrap_or(0)) / f64::from(all.max(1))
}

/// One answer under load.
#[derive(Clone, Debug)]
pub struct Answer {
    /// When it was asked for.
    pub asked: Instant,
    /// Which endpoint answered, or what failed.
    pub from: Result<String, String>,
}

/// A load of new connections at a fixed rate, until it is stopped or its bound is reached.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    answers: mpsc::Receiver<Answer>,
}

/// No load of a test runs longer.
const LONGEST: Duration = Duration::from_mins(1);

impl Load {
    /// Starts `n_threads` that together ask `per_second` times.
    pub fn start<F>(ns: &Ns, n_threads: u32, per_second: u32, ask: F) -> Self
    where
        F: Fn() -> io::Result<String> + Clone + Send + 'static,
    {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, answers) = mpsc::sync_channel(1_000_000);
        let pause = Duration::from_secs(1) * n_threads / per_second;
        let threads = (0..n_threads)
            .map(|_| {
                let (stop, sender, ask) = (Arc::clone(&stop), sender.clone(), ask.clone());
                // A thread stays in the namespace that its parent was in.
                ns.run(|| {
                    std::thread::spawn(move || {
                        let started = Instant::now();
                        let mut next = started;
                        while !stop.load(Ordering::Relaxed) && started.elapsed() < LONGEST {
                            let asked = Instant::now();
                            let from = ask().map_err(|error| error.to_string());
                            if sender.send(Answer { asked, from }).is_err() {
                                return;
                            }
                            next += pause;
                            std::thread::sleep(next.saturating_duration_since(Instant::now()));
                        }
                    })
                })
            })
            .collect();
        Self { stop, threads, answers }
    }

    /// Stops it; all answers, in the order in which they were asked for.
    pub fn stop(self) -> Vec<Answer> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a client does not panic");
        }
        let mut answers: Vec<Answer> = self.answers.try_iter().collect();
        answers.sort_by_key(|answer| answer.asked);
        answers
    }
}

/// Whether an endpoint answered before `lost`: only then does its absence afterwards say anything.
pub fn was_used(answers: &[Answer], lost: Instant, name: &str) -> bool {
    answers.iter().any(|answer| answer.asked < lost && answer.from.as_deref() == Ok(name))
}

/// How long after `lost` an endpoint was last asked for and should have answered: the last answer from it, or the last
/// failure, whichever was asked for later.
pub fn last_use(answers: &[Answer], lost: Instant, name: &str) -> Duration {
    let is_use = |answer: &&Answer| match &answer.from {
        Ok(from) => from == name,
        Err(_) => true,
    };
    let after = answers.iter().filter(|answer| answer.asked >= lost);
    let asked = after.filter(is_use).map(|answer| answer.asked).max();
    asked.map_or(Duration::ZERO, |asked| asked - lost)
}
