//! What a request costs in the agent: processor time of every process and thread of each proxy, side by side, at
//! saturation and at a fixed rate; what an idle connection costs in memory; and the delay that a proxy adds.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{
    Options,
    client::{self, Opening},
    load::{self, Amount, CONNECTIONS, Measured, STREAMS, Speech},
    proxy::{self, BACKEND, BARE, ENVOY, FILES, HAPROXY, NGINX, Proxy, RESPONSE, SLUICE, Stage},
    rivals::ROUTES,
};
use crate::report::{Report, Series, What, machine};

const CPU: &str = "processor time of a request";
const MACHINE: &str = "processor time of the whole machine for a request";
const OVERHEAD: &str = "processor time of a request, in multiples of the bare forwarder";
const BEST: &str = "processor time of a request, in multiples of the best of nginx, haproxy and envoy";
const THROUGHPUT: &str = "requests of one core at saturation";
const VOLUME: &str = "bodies for each second of processor time";
const MEDIAN: &str = "latency at a fixed rate, median";
const TAIL: &str = "latency at a fixed rate, 99th percentile";
const ADDED: &str =
    "added to the 99th percentile of a direct connection, at half of the proxy's own saturation";
const MEMORY: &str = "memory after the last load";
const IDLE: &str = "memory of an idle connection";

/// What is sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Load {
    /// Over connections that stay.
    Keep(Speech),
    /// Over a connection for each request.
    Reconnect(Opening),
}

/// One line of the tables.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    load: Load,
    /// Requests per second of the fixed rate: what every subject serves with a fraction of a core, and enough that a
    /// hundredth of a second, the grain of processor time, is little of a request. None where only saturation is asked.
    rate: Option<u32>,
    /// The bare forwarder speaks HTTP/1.1 to its backend, and keeps bodies in memory.
    is_for_bare: bool,
}

const fn case(name: &'static str, load: Load, rate: Option<u32>, is_for_bare: bool) -> Case {
    Case { name, load, rate, is_for_bare }
}

const CASES: [Case; 9] = [
    case("HTTP/1.1 keep-alive", Load::Keep(Speech::Http1), Some(8_192), true),
    case("HTTP/1.1, connection per request", Load::Reconnect(Opening::Plain), Some(4_096), true),
    case("TLS 1.3 keep-alive", Load::Keep(Speech::Https1), Some(8_192), true),
    case("TLS 1.3, full handshake per request", Load::Reconnect(Opening::Full), Some(1_024), true),
    case("TLS 1.3, resumed handshake per request", Load::Reconnect(Opening::Resumed), Some(1_024), true),
    case("HTTP/2 over TLS", Load::Keep(Speech::Http2), Some(8_192), true),
    case("gRPC unary over TLS", Load::Keep(Speech::Grpc), Some(4_096), false),
    case("64 KiB over HTTP/1.1", Load::Keep(Speech::File(FILES[0])), None, false),
    case("10 MiB over HTTP/1.1", Load::Keep(Speech::File(FILES[1])), None, false),
];

/// Runs the benchmark.
///
/// # Errors
/// When something is missing, or when a proxy did not answer every request well.
pub fn run(options: Options) -> Result<Report> {
    ensure!(nix::unistd::geteuid().is_root(), "l7 makes a network namespace: run it as root");
    let mut series = Series::default();
    let cases = cases(options.case)?;
    if options.case.is_none_or(|n| n > CASES.len()) {
        idle(options, &mut series)?;
    }
    let stage = Stage::new()?;
    let time = Duration::from_secs(if options.is_quick { 1 } else { 2 });
    for round in 0..options.n_rounds {
        eprintln!("l7: round {} of {}", round + 1, options.n_rounds);
        for &case in cases {
            one(&stage, case, Amount::Saturation, time, &mut series)?;
            if let Some(rate) = case.rate {
                one(&stage, case, Amount::Rate(rate), time, &mut series)?;
            }
        }
        if options.case.is_some() {
            continue;
        }
        for proxy in &stage.proxies {
            added(&stage, proxy, time, &mut series).with_context(|| proxy.name.to_owned())?;
            let (case, subject) = ("all of the above".to_owned(), proxy.name.to_owned());
            let what = What { case, subject, metric: MEMORY, unit: "MiB" };
            series.add(what, count(proxy.process.memory()?) / 1_048_576.0);
        }
    }
    let mut conditions = machine();
    conditions.push(format!(
        "{} rounds, subjects in turns, {} s each; {CONNECTIONS} connections over loopback in a namespace, with {STREAMS} streams each for HTTP/2 at saturation; the proxy on one core, load and backend (nginx, {RESPONSE} bytes; nghttpd for gRPC) on the other",
        options.n_rounds,
        time.as_secs()
    ));
    conditions.push(format!(
        "one worker each, connections kept on both sides, TLS 1.3 with one ECDSA certificate and X25519; nginx, haproxy and envoy without access log; sluice with {ROUTES} routes, access log, metrics, health checks, trace context and x-forwarded-for on"
    ));
    Ok(Report { bench: "l7", conditions, figures: series.figures(NGINX) })
}

/// The case that was asked for, or all; none of these for idle connections.
fn cases(only: Option<usize>) -> Result<&'static [Case]> {
    const ALL: &[Case] = &CASES;
    match only {
        None => Ok(ALL),
        Some(n) if n == ALL.len() + 1 => Ok(&[]),
        Some(n) => {
            let found = n.checked_sub(1).and_then(|idx| ALL.get(idx..n));
            found.with_context(|| {
                format!("there is no case {n}; the last is {}, idle connections", ALL.len() + 1)
            })
        }
    }
}

/// One value of each subject.
fn one(stage: &Stage, case: Case, amount: Amount, time: Duration, series: &mut Series) -> Result<()> {
    let name = match amount {
        Amount::Saturation => format!("{}, saturated", case.name),
        Amount::Rate(rate) => format!("{}, {rate} requests/s", case.name),
    };
    let mut costs = Vec::new();
    for proxy in stage.proxies.iter().filter(|proxy| case.is_for_bare || proxy.name != BARE) {
        let measured = measure(stage, proxy, case.load, amount, time)
            .with_context(|| format!("{}, {name}", proxy.name))?;
        let mut add = |metric, unit, value| {
            let subject = proxy.name.to_owned();
            series.add(What { case: name.clone(), subject, metric, unit }, value);
        };
        add(CPU, "µs", measured.proxy);
        add(MACHINE, "µs", measured.machine);
        let seen = &measured.load;
        match (amount, case.load) {
            (Amount::Saturation, Load::Keep(Speech::File(len))) => {
                let volume = f64::from(u32::try_from(len).unwrap_or(u32::MAX)) / 1_048_576.0;
                add(VOLUME, "MiB/s", volume * 1e6 / measured.proxy);
            }
            (Amount::Saturation, _) => add(THROUGHPUT, "1/s", count(seen.n_requests) / seen.seconds),
            (Amount::Rate(_), _) => {
                add(MEDIAN, "µs", quantile(&seen.latencies_us, 50));
                add(TAIL, "µs", quantile(&seen.latencies_us, 99));
            }
        }
        costs.push((proxy.name, measured.proxy));
    }
    let cost = |name: &str| costs.iter().find(|(proxy, _)| *proxy == name).map(|(_, cost)| *cost);
    let best = [NGINX, HAPROXY, ENVOY].iter().filter_map(|name| cost(name)).reduce(f64::min);
    for (metric, other) in [(BEST, best), (OVERHEAD, cost(BARE))] {
        if let (Some(own), Some(other)) = (cost(SLUICE), other.filter(|other| *other > 0.0)) {
            let what = What { case: name.clone(), subject: SLUICE.to_owned(), metric, unit: "1" };
            series.add(what, own / other);
        }
    }
    Ok(())
}

/// What a load saw, and what it cost.
struct Seen {
    load: Measured,
    /// Microseconds of processor time of the proxy for each request.
    proxy: f64,
    /// The same of the whole machine, load and backend included.
    machine: f64,
}

fn measure(stage: &Stage, proxy: &Proxy, load: Load, amount: Amount, time: Duration) -> Result<Seen> {
    let send: Box<dyn FnOnce() -> Result<Measured> + '_> = match (load, amount) {
        // Faster than a client of ours, so that the proxy is what is saturated.
        (Load::Reconnect(Opening::Plain), Amount::Saturation) => {
            Box::new(|| load::run(&stage.ns, Speech::Http1Close, proxy.plain, amount, time))
        }
        (Load::Reconnect(opening), _) => {
            let port = if opening == Opening::Plain { proxy.plain } else { proxy.secure };
            let clients = client::prepare(&stage.ns, port, &stage.certificate(), opening)?;
            Box::new(move || client::reconnect(&stage.ns, clients, amount, time))
        }
        (Load::Keep(speech), _) => {
            let is_plain = matches!(speech, Speech::Http1 | Speech::Http1Close | Speech::File(_));
            let port = if is_plain { proxy.plain } else { proxy.secure };
            Box::new(move || load::run(&stage.ns, speech, port, amount, time))
        }
    };
    let before = (proxy.process.cpu()?, proxy::machine_cpu()?);
    let seen = send()?;
    let used = proxy.process.cpu()?.saturating_sub(before.0);
    let machine = proxy::machine_cpu()?.saturating_sub(before.1);
    let each = |used: Duration| used.as_secs_f64() * 1e6 / count(seen.n_requests);
    Ok(Seen { proxy: each(used), machine: each(machine), load: seen })
}

/// The delay that a proxy adds when half of its core is used.
fn added(stage: &Stage, proxy: &Proxy, time: Duration, series: &mut Series) -> Result<()> {
    let seen = load::run(&stage.ns, Speech::Http1, proxy.plain, Amount::Saturation, time)?;
    let half = u32::try_from(seen.n_requests)? / u32::try_from(time.as_secs().max(1))? / 2;
    let at = |port| load::run(&stage.ns, Speech::Http1, port, Amount::Rate(half.max(CONNECTIONS)), time);
    let (direct, through) = (at(BACKEND)?, at(proxy.plain)?);
    let value = quantile(&through.latencies_us, 99) - quantile(&direct.latencies_us, 99);
    let case = "HTTP/1.1 keep-alive".to_owned();
    series.add(What { case, subject: proxy.name.to_owned(), metric: ADDED, unit: "µs" }, value);
    Ok(())
}

/// Memory of connections that wait, each kind before proxies that have done nothing else.
fn idle(options: Options, series: &mut Series) -> Result<()> {
    for (name, n, is_h2) in [("idle HTTP/1.1", 10_000, false), ("idle HTTP/2 over TLS", 5_000, true)] {
        let n = if options.is_quick { n / 10 } else { n.min(proxy::most_idle()?) };
        eprintln!("l7: {n} connections, {name}");
        let stage = Stage::new()?;
        let certificate = stage.certificate();
        for proxy in &stage.proxies {
            let before = proxy.process.memory()?;
            let (port, certificate) =
                if is_h2 { (proxy.secure, Some(certificate.as_path())) } else { (proxy.plain, None) };
            let after = client::idle(&stage.ns, port, certificate, n, || proxy.process.memory())
                .with_context(|| format!("{}, {name}", proxy.name))?;
            let each = count(after.saturating_sub(before)) / count(u64::try_from(n)?) / 1_024.0;
            let case = format!("{name}, {n} connections");
            series.add(What { case, subject: proxy.name.to_owned(), metric: IDLE, unit: "KiB" }, each);
        }
    }
    Ok(())
}

#[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "counts far below 2^52")]
const fn count(n: u64) -> f64 {
    n as f64
}

/// A quantile in percent of ascending values; zero of nothing.
fn quantile(sorted: &[u32], percent: usize) -> f64 {
    let at = sorted.len().saturating_sub(1) * percent / 100;
    f64::from(sorted.get(at).copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let sorted: Vec<u32> = (1..=100).collect();
        assert!((quantile(&sorted, 50) - 50.0).abs() < 1e-9);
        assert!((quantile(&sorted, 99) - 99.0).abs() < 1e-9);
        assert!(quantile(&[], 99).abs() < 1e-9);
    }
}
