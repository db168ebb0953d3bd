//! Traffic through a node: servers at the endpoints, and clients that connect, ask and copy. Whoever gets another answer
//! than the right one fails.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::netns::Ns;

/// Ports that each endpoint listens on: as many endpoints, as far as a balancer can see.
pub const PORTS: [u16; 4] = [8_001, 8_002, 8_003, 8_004];

/// Bytes of a request and of its answer.
const MESSAGE: usize = 64;
/// Bytes that are written and read at once where much is copied.
const CHUNK: usize = 256 * 1_024;
/// Bound on the first exchange, and on silence in every other.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a client wants of a connection; the first byte of its request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wish {
    Once,
    Kept,
    Download,
    Upload,
}

impl Wish {
    const ALL: [(Self, u8); 4] =
        [(Self::Once, b'1'), (Self::Kept, b'k'), (Self::Download, b'd'), (Self::Upload, b'u')];

    fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find_map(|(wish, own)| (own == byte).then_some(wish))
    }

    fn request(self) -> [u8; MESSAGE] {
        let byte = Self::ALL.into_iter().find_map(|(wish, own)| (wish == self).then_some(own));
        [byte.unwrap_or_default(); MESSAGE]
    }
}

const ANSWER: [u8; MESSAGE] = [b'a'; MESSAGE];

/// Serves on every port of an endpoint, until the process ends.
///
/// # Errors
/// When a port is taken.
pub fn serve(ns: &Ns, addr: Ipv4Addr) -> Result<()> {
    ns.run(|| {
        for port in PORTS {
            let listener =
                TcpListener::bind((addr, port)).with_context(|| format!("cannot listen on {addr}:{port}"))?;
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    // What went wrong is the client's to tell.
                    drop(answer(stream));
                }
            });
        }
        Ok(())
    })
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = [0; MESSAGE];
    stream.read_exact(&mut request)?;
    let [first, ..] = request;
    match Wish::of(first) {
        // Whoever comes next waits no longer than that takes.
        Some(Wish::Once) => stream.write_all(&ANSWER)?,
        Some(wish) => drop(thread::spawn(move || stay(stream, wish))),
        None => {}
    }
    Ok(())
}

fn stay(mut stream: TcpStream, wish: Wish) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    let mut chunk = vec![0; CHUNK];
    match wish {
        Wish::Once | Wish::Kept => loop {
            stream.write_all(&ANSWER)?;
            stream.read_exact(&mut message)?;
        },
        Wish::Download => loop {
            stream.write_all(&chunk)?;
        },
        Wish::Upload => {
            let mut n_bytes = 0_u64;
            loop {
                match stream.read(&mut chunk)? {
                    0 => return stream.write_all(&n_bytes.to_be_bytes()),
                    n => n_bytes += u64::try_from(n).unwrap_or(0),
                }
            }
        }
    }
}

/// What clients measured.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Exchanges, or bytes.
    pub n: u64,
    /// For how long, in seconds.
    pub seconds: f64,
    /// Latencies of exchanges in microseconds.
    pub latencies_us: Vec<f64>,
}

/// Whether an address answers at all.
///
/// # Errors
/// When it does not.
pub fn answers(ns: &Ns, addr: SocketAddr) -> Result<()> {
    ns.run(|| {
        let stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
        exchange(stream)
    })
    .with_context(|| format!("{addr} does not answer"))
}

/// Opens connections as fast as so many clients can, one exchange on each; or, with a pace, one client every so often.
///
/// # Errors
/// When an answer is wrong or missing.
pub fn connect(
    ns: &Ns,
    addrs: &[SocketAddr],
    n_clients: usize,
    pace: Option<Duration>,
    time: Duration,
) -> Result<Seen> {
    clients(ns, addrs, n_clients, |addr, started| {
        let mut latencies = Vec::new();
        let mut next = started;
        while started.elapsed() < time {
            if let Some(pace) = pace {
                next += pace;
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            let begun = Instant::now();
            let stream = TcpStream::connect(addr).with_context(|| format!("{addr} cannot be reached"))?;
            exchange(stream)?;
            latencies.push(micros(begun));
        }
        Ok((latencies.len(), latencies))
    })
}

/// One exchange after the other on connections that stay.
///
/// # Errors
/// When an answer is wrong or missing.
pub fn ask(ns: &Ns, addrs: &[SocketAddr], n_clients: usize, time: Duration) -> Result<Seen> {
    clients(ns, addrs, n_clients, |addr, started| {
        let mut stream = open(addr, Wish::Kept)?;
        let mut latencies = Vec::new();
        read_answer(&mut stream)?;
        while started.elapsed() < time {
            let begun = Instant::now();
            stream.write_all(&Wish::Kept.request())?;
            read_answer(&mut stream)?;
            latencies.push(micros(begun));
        }
        Ok((latencies.len(), latencies))
    })
}

/// Takes as much as comes over each of so many connections; counts bytes.
///
/// # Errors
/// When nothing comes.
pub fn download(ns: &Ns, addrs: &[SocketAddr], n_clients: usize, time: Duration) -> Result<Seen> {
    clients(ns, addrs, n_clients, |addr, started| {
        let mut stream = open(addr, Wish::Download)?;
        let mut chunk = vec![0; CHUNK];
        let mut n_bytes = 0;
        while started.elapsed() < time {
            let n = stream.read(&mut chunk)?;
            ensure!(n > 0, "{addr} closed");
            n_bytes += n;
        }
        Ok((n_bytes, Vec::new()))
    })
}

/// Sends as much as is taken over each of so many connections; counts bytes that arrived.
///
/// # Errors
/// When the other side does not say how many.
pub fn upload(ns: &Ns, addrs: &[SocketAddr], n_clients: usize, time: Duration) -> Result<Seen> {
    clients(ns, addrs, n_clients, |addr, started| {
        let mut stream = open(addr, Wish::Upload)?;
        let chunk = vec![0; CHUNK];
        while started.elapsed() < time {
            stream.write_all(&chunk)?;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut n_bytes = [0; 8];
        stream.read_exact(&mut n_bytes)?;
        Ok((usize::try_from(u64::from_be_bytes(n_bytes))?, Vec::new()))
    })
}

/// So many clients at once, each with the next address, until all are done.
fn clients(
    ns: &Ns,
    addrs: &[SocketAddr],
    n_clients: usize,
    work: impl Fn(SocketAddr, Instant) -> Result<(usize, Vec<f64>)> + Sync,
) -> Result<Seen> {
    ns.run(|| {
        let started = Instant::now();
        let done: Vec<_> = thread::scope(|scope| {
            let work = &work;
            let clients: Vec<_> = addrs
                .iter()
                .cycle()
                .take(n_clients)
                .map(|addr| scope.spawn(move || work(*addr, started)))
                .collect();
            clients.into_iter().map(thread::ScopedJoinHandle::join).collect()
        });
        let mut seen = Seen { seconds: started.elapsed().as_secs_f64(), ..Seen::default() };
        for client in done {
            let (n, latencies) = client.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            seen.n += u64::try_from(n)?;
            seen.latencies_us.extend(latencies);
        }
        ensure!(seen.n > 0, "nothing was done");
        Ok(seen)
    })
}

fn open(addr: SocketAddr, wish: Wish) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    stream.write_all(&wish.request())?;
    Ok(stream)
}

/// One request, its answer, and the end that the server makes of it.
fn exchange(mut stream: TcpStream) -> Result<()> {
    stream.write_all(&Wish::Once.request())?;
    let mut answer = Vec::with_capacity(2 * MESSAGE);
    stream.read_to_end(&mut answer)?;
    ensure!(answer == ANSWER, "the answer has {} bytes", answer.len());
    Ok(())
}

fn read_answer(stream: &mut TcpStream) -> Result<()> {
    let mut answer = [0; MESSAGE];
    stream.read_exact(&mut answer)?;
    ensure!(answer == ANSWER, "the answer is another");
    Ok(())
}

fn micros(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_told_by_its_request() {
        for (wish, _) in Wish::ALL {
            let [first, ..] = wish.request();
            assert_eq!(Wish::of(first), Some(wish));
        }
        assert_eq!(Wish::of(0), None);
    }
}
