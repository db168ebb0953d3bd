//! What it costs to find the route of a request in the agent's table, for few routes and for many: in this process,
//! without any traffic.

use std::{hint::black_box, time::Instant};

use anyhow::{Result, ensure};
use gateway_userspace::{
    pattern::Pattern,
    route::{Request, Table, host::Host, matches::Conditions, path::Path},
};
use http::{HeaderMap, Method};

use super::Options;
use crate::report::{Report, Series, What, machine};

const LOOKUP: &str = "time to find a route";
const ONE: &str = "1 route";

/// Tables, by their number of routes. Each host name has ten routes, as services behind one name do.
const TABLES: [(&str, usize); 4] =
    [(ONE, 1), ("1,000 routes", 1_000), ("10,000 routes", 10_000), (PATTERNS, 10)];
const PATTERNS: &str = "10 expressions";

/// Runs the benchmark.
///
/// # Errors
/// When a request is not found where it belongs.
pub fn run(options: Options) -> Result<Report> {
    let n_lookups = if options.is_quick { 20_000 } else { 1_000_000 };
    let mut series = Series::default();
    let tables = TABLES.map(|(name, n)| (name, n, table(n, name == PATTERNS)));
    for _ in 0..options.n_rounds {
        for (name, n_routes, table) in &tables {
            let value = lookups(table, *n_routes, n_lookups)?;
            let what = What {
                case: "host name and path prefix, second of three segments".to_owned(),
                subject: (*name).to_owned(),
                metric: LOOKUP,
                unit: "ns",
            };
            series.add(what, value);
        }
    }
    let mut conditions = machine();
    conditions.push(format!(
        "{} rounds of {n_lookups} lookups over all routes in turn, one thread",
        options.n_rounds
    ));
    Ok(Report { bench: "routes", conditions, figures: series.figures(ONE) })
}

const PER_HOST: usize = 10;

fn host(idx: usize) -> String {
    format!("host-{}.example.org", idx / PER_HOST)
}

fn table(n_routes: usize, is_pattern: bool) -> Table<usize> {
    let mut table = Table::default();
    for idx in 0..n_routes {
        let host = host(idx);
        let prefix = format!("/api/v{}", idx % PER_HOST);
        let pattern = Pattern::new(&format!("{prefix}/.*")).ok().filter(|_| is_pattern);
        let path = pattern.as_ref().map_or(Path::Prefix(&prefix), Path::Pattern);
        table.add(Host::Exact(&host), path, Conditions::default(), idx);
    }
    table
}

fn lookups(table: &Table<usize>, n_routes: usize, n_lookups: usize) -> Result<f64> {
    let targets: Vec<(String, String)> =
        (0..n_routes).map(|idx| (host(idx), format!("/api/v{}/users", idx % PER_HOST))).collect();
    let (method, headers) = (Method::GET, HeaderMap::new());
    let mut n_right = 0;
    let started = Instant::now();
    for ((host, path), idx) in targets.iter().zip(0..).cycle().take(n_lookups) {
        let request = Request { host, path, query: None, method: &method, headers: &headers };
        n_right += usize::from(table.find(black_box(&request)) == Some(&idx));
    }
    let elapsed = started.elapsed();
    ensure!(n_right == n_lookups, "{} of {n_lookups} requests went astray", n_lookups - n_right);
    Ok(elapsed.as_secs_f64() * 1e9 / f64::from(u32::try_from(n_lookups)?))
}
