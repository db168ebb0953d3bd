//! Load from real clients: wrk at saturation over HTTP/1.1, h2load for HTTP/2 and for fixed rates. What they print is
//! read, and anything but a full set of good answers is an error.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::proxy::GRPC_PATH;
use crate::netns::Ns;

/// How clients speak.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Speech {
    /// HTTP/1.1 in plain text.
    Http1,
    /// HTTP/1.1 in plain text, a connection for each request.
    Http1Close,
    /// HTTP/1.1 in plain text, for a file of this many bytes.
    File(usize),
    /// HTTP/1.1 over TLS.
    Https1,
    /// HTTP/2 over TLS.
    Http2,
    /// Unary calls over HTTP/2 and TLS.
    Grpc,
}

/// How much is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Amount {
    /// As much as is answered.
    Saturation,
    /// Requests per second.
    Rate(u32),
}

/// What a client measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Requests that were answered.
    pub n_requests: u64,
    /// For how long, in seconds.
    pub seconds: f64,
    /// Latencies of single requests in microseconds, where the client tells them; ascending.
    pub latencies_us: Vec<u32>,
}

/// Connections of each load.
pub const CONNECTIONS: u32 = 64;
/// Streams that HTTP/2 has open on each connection at saturation.
pub const STREAMS: u32 = 16;
/// Core that load and backend run on.
pub const CORE: &str = "1";

/// Sends load to `port` on loopback for a while.
///
/// # Errors
/// When a client cannot be run, or not every answer was good.
pub fn run(ns: &Ns, speech: Speech, port: u16, amount: Amount, time: Duration) -> Result<Measured> {
    let is_h2 = matches!(speech, Speech::Http2 | Speech::Grpc);
    match amount {
        Amount::Saturation if !is_h2 => wrk(ns, speech, port, time),
        Amount::Saturation | Amount::Rate(_) => h2load(ns, speech, port, amount, time),
    }
}

fn url(speech: Speech, port: u16) -> String {
    match speech {
        Speech::Http1 | Speech::Http1Close => format!("http://127.0.0.1:{port}/"),
        Speech::File(len) => format!("http://127.0.0.1:{port}/file/{len}"),
        Speech::Https1 | Speech::Http2 => format!("https://127.0.0.1:{port}/"),
        Speech::Grpc => format!("https://127.0.0.1:{port}{GRPC_PATH}"),
    }
}

fn wrk(ns: &Ns, speech: Speech, port: u16, time: Duration) -> Result<Measured> {
    let seconds = time.as_secs().max(1);
    let script = tempfile::NamedTempFile::new()?;
    std::fs::write(script.path(), CLOSE)?;
    let close =
        if speech == Speech::Http1Close { format!("-s {}", script.path().display()) } else { String::new() };
    let arguments =
        format!("-c {CORE} wrk -t1 -c{CONNECTIONS} -d{seconds}s --timeout 5s {close} {}", url(speech, port));
    read_wrk(&ns.tool("taskset", &arguments)?)
}

/// What makes wrk open a connection for each request.
const CLOSE: &str = "wrk.headers[\"Connection\"] = \"close\"\n";

fn read_wrk(text: &str) -> Result<Measured> {
    for bad in ["Non-2xx", "Socket errors"] {
        ensure!(!text.contains(bad), "not every answer was good:\n{text}");
    }
    let line = text.lines().find(|line| line.contains(" requests in ")).context("wrk told no requests")?;
    let mut words = line.split_whitespace();
    let n_requests = words.next().and_then(|word| word.parse().ok());
    let time = words.nth(2).and_then(|word| word.trim_end_matches(',').strip_suffix('s')?.parse().ok());
    let (Some(n_requests), Some(seconds)) = (n_requests, time) else {
        anyhow::bail!("cannot read what wrk printed:\n{text}");
    };
    ensure!(n_requests > 0, "nothing was answered:\n{text}");
    Ok(Measured { n_requests, seconds, latencies_us: Vec::new() })
}

fn h2load(ns: &Ns, speech: Speech, port: u16, amount: Amount, time: Duration) -> Result<Measured> {
    let log = tempfile::NamedTempFile::new()?;
    let (clients, more) = match amount {
        Amount::Saturation => (CONNECTIONS, format!("-m{STREAMS} -D {}", time.as_secs().max(1))),
        Amount::Rate(rate) => {
            // Each client keeps its own pace; one stream each, so that latency is that of one request.
            let pace = rate.div_ceil(CONNECTIONS);
            (CONNECTIONS, format!("-m1 --rps={pace} -D {}", time.as_secs().max(1)))
        }
    };
    let message = tempfile::NamedTempFile::new()?;
    std::fs::write(message.path(), b"\0\0\0\0\x05hello")?;
    let version = match speech {
        Speech::Http2 => String::new(),
        Speech::Grpc => {
            format!("-H content-type:application/grpc -H te:trailers -d {}", message.path().display())
        }
        Speech::Http1 | Speech::Http1Close | Speech::Https1 | Speech::File(_) => "--h1".to_owned(),
    };
    let log_file = match amount {
        Amount::Saturation => String::new(),
        Amount::Rate(_) => format!("--log-file={}", log.path().display()),
    };
    let arguments =
        format!("-c {CORE} h2load -t1 -c{clients} {more} {version} {log_file} {}", url(speech, port));
    let mut measured = read_h2load(&ns.tool("taskset", &arguments)?)?;
    if !log_file.is_empty() {
        measured.latencies_us = read_log(&std::fs::read_to_string(log.path())?);
        ensure!(!measured.latencies_us.is_empty(), "h2load logged no request");
    }
    Ok(measured)
}

fn read_h2load(text: &str) -> Result<Measured> {
    let line = |head: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(head));
        found.with_context(|| format!("h2load told no {head}\n{text}"))
    };
    let count = |list: &str, what: &str| -> Option<u64> {
        list.split(',').find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
    };
    let requests = line("requests: ")?;
    let statuses = line("status codes: ")?;
    let time = line("finished in ")?.split(',').next().and_then(seconds);
    let (Some(done), Some(good)) = (count(requests, " done"), count(statuses, " 2xx")) else {
        anyhow::bail!("cannot read what h2load printed:\n{text}");
    };
    // Requests that were under way when the time was over count as errors.
    let bad = ["3xx", "4xx", "5xx"].iter().filter_map(|kind| count(statuses, kind)).sum::<u64>();
    ensure!(
        bad == 0 && good > 0 && good + u64::from(CONNECTIONS * STREAMS) >= done,
        "not every answer was good:\n{text}"
    );
    Ok(Measured { n_requests: good, seconds: time.context("h2load told no time")?, latencies_us: Vec::new() })
}

/// A time with its unit, in seconds.
fn seconds(time: &str) -> Option<f64> {
    let units = [("ms", 1e-3), ("us", 1e-6), ("s", 1.0)];
    units.iter().find_map(|(unit, factor)| {
        let number: f64 = time.trim().strip_suffix(unit)?.parse().ok()?;
        Some(number * factor)
    })
}

/// Lines of start, status and duration, both times in microseconds.
fn read_log(text: &str) -> Vec<u32> {
    let duration = |line: &str| line.split_whitespace().nth(2)?.parse().ok();
    let mut latencies: Vec<u32> = text.lines().filter_map(duration).collect();
    latencies.sort_unstable();
    latencies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_read() {
        let text = "Running 1s test @ http://127.0.0.1:8000/\n  25017 requests in 1.10s, 28.40MB read\nRequests/sec:  22742.72\n";
        let measured = read_wrk(text).expect("it is what wrk prints");
        assert_eq!(measured, Measured { n_requests: 25_017, seconds: 1.1, latencies_us: Vec::new() });
        for bad in
            ["  Non-2xx or 3xx responses: 1\n", "  Socket errors: connect 0, read 1, write 0, timeout 0\n"]
        {
            read_wrk(&format!("{text}{bad}")).expect_err("not every answer was good");
        }
        read_wrk("unable to connect").expect_err("there was no load");
    }

    #[test]
    fn what_h2load_prints_is_read() {
        let text = |codes: &str| {
            format!(
                "finished in 2.00s, 1000.00 req/s, 1.12MB/s\nrequests: 2032 total, 2032 started, 2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout\nstatus codes: {codes}\n"
            )
        };
        let measured = read_h2load(&text("2000 2xx, 0 3xx, 0 4xx, 0 5xx")).expect("it is what h2load prints");
        assert_eq!(measured.n_requests, 2_000);
        assert!((measured.seconds - 2.0).abs() < 1e-9);
        read_h2load(&text("1999 2xx, 0 3xx, 0 4xx, 1 5xx")).expect_err("one answer was bad");
        read_h2load(&text("10 2xx, 0 3xx, 0 4xx, 0 5xx")).expect_err("answers are missing");
    }

    #[test]
    fn times_have_units() {
        for (time, expected) in [("2.00s", 2.0), (" 999.50ms", 0.9995), ("12us", 0.000_012)] {
            assert!((seconds(time).expect(time) - expected).abs() < 1e-9, "{time}");
        }
        assert_eq!(seconds("soon"), None);
    }

    #[test]
    fn latencies_are_sorted() {
        assert_eq!(read_log("1700000000\t200\t340\n1700000001\t200\t120\n"), [120, 340]);
    }
}
