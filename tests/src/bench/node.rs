//! What connections through a node cost, side by side with nftables and with routing alone: how many begin in a second and
//! in a second of processor time, how long requests take, and how much passes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{
    Options,
    balancers::{Balancer, Way},
    proxy::machine_cpu,
    traffic::{self, Seen},
};
use crate::report::{Report, Series, What, machine, quantile};

const RATE: &str = "exchanges in a second";
const CPU: &str = "processor time of the whole machine for an exchange";
const PER_CPU: &str = "exchanges in a second of processor time of the whole machine";
const MEDIAN: &str = "latency of an exchange, median";
const TAIL: &str = "latency of an exchange, 99th percentile";
const VOLUME: &str = "throughput";
const VOLUME_CPU: &str = "processor time of the whole machine for a GiB";

/// Clients at saturation: more than the machine has processors, so that none of these waits.
const MANY: usize = 16;
/// Connections that begin at a fixed rate: one in so long a time.
const PACE: Duration = Duration::from_millis(1);

/// What is done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Case {
    Connect,
    ConnectPaced,
    Ask,
    AskAlone,
    Download(usize),
    Upload(usize),
}

impl Case {
    const ALL: [Self; 8] = [
        Self::Connect,
        Self::ConnectPaced,
        Self::Ask,
        Self::AskAlone,
        Self::Download(1),
        Self::Download(4),
        Self::Upload(1),
        Self::Upload(4),
    ];

    fn name(self) -> String {
        match self {
            Self::Connect => "a connection for each, saturated".to_owned(),
            Self::ConnectPaced => "a connection for each, 1,000 in a second".to_owned(),
            Self::Ask => format!("{MANY} kept connections, saturated"),
            Self::AskAlone => "one kept connection".to_owned(),
            Self::Download(n) => format!("download, connections: {n}"),
            Self::Upload(n) => format!("upload, connections: {n}"),
        }
    }

    fn run(self, balancer: &Balancer, time: Duration) -> Result<Seen> {
        let (ns, addrs) = (&balancer.client, balancer.addrs.as_slice());
        match self {
            Self::Connect => traffic::connect(ns, addrs, MANY, None, time),
            Self::ConnectPaced => traffic::connect(ns, addrs, 1, Some(PACE), time),
            Self::Ask => traffic::ask(ns, addrs, MANY, time),
            Self::AskAlone => traffic::ask(ns, addrs, 1, time),
            Self::Download(n) => traffic::download(ns, addrs, n, time),
            Self::Upload(n) => traffic::upload(ns, addrs, n, time),
        }
    }
}

/// Runs the benchmark.
///
/// # Errors
/// When something is missing, or when packets did not go the way that is measured.
pub fn run(options: Options) -> Result<Report> {
    ensure!(nix::unistd::geteuid().is_root(), "node makes network namespaces: run it as root");
    let time = if options.is_quick { Duration::from_millis(300) } else { Duration::from_secs(2) };
    let mut balancers = Way::ALL.into_iter().map(Balancer::new).collect::<Result<Vec<_>>>()?;
    let mut series = Series::default();
    for round in 0..options.n_rounds {
        eprintln!("node: round {} of {}", round + 1, options.n_rounds);
        for case in Case::ALL {
            for balancer in &balancers {
                let name = balancer.way.name();
                measure(balancer, case, time, &mut series)
                    .with_context(|| format!("{name}, {}", case.name()))?;
            }
        }
        // Nobody always comes after the same one.
        balancers.rotate_left(1);
    }
    let mut conditions = machine();
    conditions.push(format!(
        "{} rounds, subjects in turns, {} ms each; client, node and endpoints in namespaces of their own, connected by veth; IPv4, requests and answers of 64 bytes; 8 endpoints, for routing alone by their own addresses",
        options.n_rounds,
        time.as_millis()
    ));
    conditions.push("links as the kernel makes them, with segmentation and checksums left to the other end; only for XDP, which needs that, without. nftables: a map of `numgen inc`, no masquerade, so connection tracking and destinations; sluice: all features of the agent, full translation".to_owned());
    Ok(Report { bench: "node", conditions, figures: series.figures(Way::Nftables.name()) })
}

fn measure(balancer: &Balancer, case: Case, time: Duration, series: &mut Series) -> Result<()> {
    let counted = balancer.balanced()?;
    let begun = machine_cpu()?;
    let seen = case.run(balancer, time)?;
    let cpu = machine_cpu()?.saturating_sub(begun).as_secs_f64();
    if let (Some(before), Some(after)) = (counted, balancer.balanced()?) {
        let least = if case == Case::Connect { seen.n } else { 1 };
        ensure!(
            after >= before + least,
            "of {} only {} went the way that is measured",
            least,
            after - before
        );
    }
    let n = count(seen.n);
    let mut add = |metric, unit, value| {
        let (case, subject) = (case.name(), balancer.way.name().to_owned());
        series.add(What { case, subject, metric, unit }, value);
    };
    match case {
        Case::Connect | Case::Ask => {
            add(RATE, "1/s", n / seen.seconds);
            add(CPU, "µs", cpu * 1e6 / n);
            add(PER_CPU, "1/s", n / cpu);
        }
        Case::ConnectPaced | Case::AskAlone => {
            add(MEDIAN, "µs", quantile(&seen.latencies_us, 50));
            add(TAIL, "µs", quantile(&seen.latencies_us, 99));
        }
        Case::Download(_) | Case::Upload(_) => {
            add(VOLUME, "Gbit/s", n * 8.0 / seen.seconds / 1e9);
            add(VOLUME_CPU, "ms", cpu * 1e3 / (n / count(1 << 30)));
        }
    }
    Ok(())
}

#[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "counts far below 2^52")]
const fn count(n: u64) -> f64 {
    n as f64
}
