//! What a request costs in the agent: processor time of every process and thread of each proxy, side by side, at
//! saturation and at a fixed rate.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{
    Options,
    load::{self, Amount, CONNECTIONS, Measured, Speech},
    proxy::{BARE, NGINX, Proxy, RESPONSE, SLUICE, Stage},
};
use crate::report::{Report, Series, What, machine};

/// Requests per second of the fixed rate: what every subject serves with a fifth of a core, and enough that a hundredth
/// of a second, the grain of processor time, is less than a microsecond of a request.
const RATE: u32 = 8_192;

const CPU: &str = "processor time of a request";
const OVERHEAD: &str = "processor time of a request, in multiples of the bare forwarder";
const THROUGHPUT: &str = "requests of one core at saturation";
const MEDIAN: &str = "latency at a fixed rate, median";
const TAIL: &str = "latency at a fixed rate, 99th percentile";

const SPEECH: [(Speech, &str); 3] =
    [(Speech::Http1, "HTTP/1.1"), (Speech::Https1, "HTTP/1.1 over TLS"), (Speech::Http2, "HTTP/2 over TLS")];

/// Runs the benchmark.
///
/// # Errors
/// When something is missing, or when a proxy did not answer every request well.
pub fn run(options: Options) -> Result<Report> {
    ensure!(nix::unistd::geteuid().is_root(), "l7 makes a network namespace: run it as root");
    let stage = Stage::new()?;
    let mut series = Series::default();
    let time = Duration::from_secs(if options.is_quick { 1 } else { 2 });
    for round in 0..options.n_rounds {
        eprintln!("l7: round {} of {}", round + 1, options.n_rounds);
        for (speech, name) in SPEECH {
            for amount in [Amount::Saturation, Amount::Rate(RATE)] {
                one(&stage, (speech, name), amount, time, &mut series)?;
            }
        }
    }
    let mut conditions = machine();
    conditions.push(format!(
        "{} rounds, subjects in turns, {} s each; {CONNECTIONS} connections over loopback in a namespace; the proxy on one core, load and backend (nginx, {RESPONSE} bytes) on the other",
        options.n_rounds,
        time.as_secs()
    ));
    conditions.push(
        "one worker each, connections kept on both sides, TLS 1.3 with one ECDSA certificate, no access log; sluice with metrics, health checks, routes and x-forwarded-for on"
            .to_owned(),
    );
    Ok(Report { bench: "l7", conditions, figures: series.figures(NGINX) })
}

/// One value of each subject.
fn one(
    stage: &Stage,
    (speech, name): (Speech, &str),
    amount: Amount,
    time: Duration,
    series: &mut Series,
) -> Result<()> {
    let case = match amount {
        Amount::Saturation => format!("{name}, saturated"),
        Amount::Rate(rate) => format!("{name}, {rate} requests/s"),
    };
    let mut floor = None;
    let mut own = None;
    for proxy in &stage.proxies {
        let (measured, cost) =
            measure(stage, proxy, speech, amount, time).with_context(|| format!("{}, {case}", proxy.name))?;
        let mut add = |metric, unit, value| {
            series.add(What { case: case.clone(), subject: proxy.name.to_owned(), metric, unit }, value);
        };
        add(CPU, "µs", cost);
        match amount {
            Amount::Saturation => add(THROUGHPUT, "1/s", count(measured.n_requests) / measured.seconds),
            Amount::Rate(_) => {
                add(MEDIAN, "µs", quantile(&measured.latencies_us, 50));
                add(TAIL, "µs", quantile(&measured.latencies_us, 99));
            }
        }
        match proxy.name {
            BARE => floor = Some(cost),
            SLUICE => own = Some(cost),
            _ => {}
        }
    }
    if let (Some(own), Some(floor)) = (own, floor.filter(|floor| *floor > 0.0)) {
        series.add(What { case, subject: SLUICE.to_owned(), metric: OVERHEAD, unit: "1" }, own / floor);
    }
    Ok(())
}

/// What the load saw, and microseconds of processor time for each request.
fn measure(
    stage: &Stage,
    proxy: &Proxy,
    speech: Speech,
    amount: Amount,
    time: Duration,
) -> Result<(Measured, f64)> {
    let port = if speech == Speech::Http1 { proxy.plain } else { proxy.secure };
    let before = proxy.process.cpu()?;
    let measured = load::run(&stage.ns, speech, port, amount, time)?;
    let used = proxy.process.cpu()?.saturating_sub(before);
    let cost = used.as_secs_f64() * 1e6 / count(measured.n_requests);
    Ok((measured, cost))
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
