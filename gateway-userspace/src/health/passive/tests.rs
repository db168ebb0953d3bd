//! The judge over seconds of its own.

use std::net::SocketAddr;

use super::*;
use crate::{
    endpoint::{Health, Registry},
    name::ServiceName,
};

const TERMS: Terms = Terms {
    window: Duration::from_secs(8),
    minimum: 10,
    failure_percent: 50,
    out_for: Duration::from_secs(20),
    out_for_at_most: Duration::from_mins(1),
    share_percent: 50,
};

/// A service whose endpoints are looked at once a second.
struct Bench {
    endpoints: Vec<Arc<Endpoint>>,
    judge: Judge,
    now: Instant,
}

impl Bench {
    fn new(n: u8) -> Self {
        let registry = Registry::default();
        let endpoint = |host| {
            let addr = SocketAddr::from(([192, 0, 2, host], 80));
            registry.resolve(&EndpointId { service: ServiceName::new("web"), addr })
        };
        let now = crate::clock::Clock::driven().now();
        Self { endpoints: (0..n).map(endpoint).collect(), judge: Judge::default(), now }
    }

    /// A second passes with so many attempts on each endpoint that is not out, of which so many fail; what changes.
    fn second(&mut self, attempts: &[(u64, u64)]) -> Vec<(usize, &'static str)> {
        self.now += Duration::from_secs(1);
        let seen: Vec<_> = self
            .endpoints
            .iter()
            .zip(attempts)
            .map(|(endpoint, (tried, failed))| {
                let all = Attempts { tried: *tried, failed: *failed };
                (Arc::clone(endpoint), if endpoint.is_out() { Attempts::default() } else { all })
            })
            .collect();
        let verdicts = self.judge.look(&seen, &TERMS, self.now, || 0.0);
        let mut said = Vec::new();
        for (endpoint, verdict) in verdicts {
            match verdict {
                Verdict::Out { .. } => endpoint.set_out(true),
                Verdict::Trial => endpoint.set_out(false),
                Verdict::Spared { .. } | Verdict::Trusted => {}
            }
            let idx = self.endpoints.iter().position(|one| Arc::ptr_eq(one, &endpoint)).unwrap();
            said.push((idx, verdict.as_str()));
        }
        said
    }

    /// Seconds until something changes, and what.
    fn until(&mut self, attempts: &[(u64, u64)], at_most: u32) -> (u32, Vec<(usize, &'static str)>) {
        for second in 1..=at_most {
            let said = self.second(attempts);
            if !said.is_empty() {
                return (second, said);
            }
        }
        (at_most, Vec::new())
    }
}

#[test]
fn an_endpoint_whose_attempts_fail_goes_out_and_comes_back_on_trial() {
    let mut bench = Bench::new(3);
    let good = [(20, 1), (20, 0), (20, 2)];
    assert_eq!(bench.until(&good, 30), (30, vec![]), "some failures are nothing");
    let bad = [(20, 1), (20, 20), (20, 2)];
    // Half of the window.
    assert_eq!(bench.until(&bad, 30), (4, vec![(1, "out")]));
    assert_eq!(bench.endpoints[1].availability(), Availability::Draining);
    assert_eq!(bench.until(&bad, 60), (20, vec![(1, "trial")]));
    // On trial a quarter is enough, and there is no former window that hides it.
    assert_eq!(bench.until(&[(20, 0), (20, 6), (20, 0)], 60), (1, vec![(1, "out")]));
    assert_eq!(bench.until(&bad, 60), (40, vec![(1, "trial")]), "twice as long");
    assert_eq!(bench.until(&good, 60), (8, vec![(1, "trusted")]), "a window without failures");
}

#[test]
fn the_time_out_is_bounded_and_good_standing_makes_up_for_it() {
    let mut bench = Bench::new(2);
    let bad = [(20, 0), (20, 20)];
    let mut times = Vec::new();
    for _ in 0..4 {
        assert_eq!(bench.until(&bad, 9).1, [(1, "out")]);
        times.push(bench.until(&bad, 100).0);
    }
    assert_eq!(times, [20, 40, 60, 60]);
    let good = [(20, 0), (20, 0)];
    assert_eq!(bench.until(&good, 20).1, [(1, "trusted")]);
    assert_eq!(bench.until(&good, 60 + 60 + 40 + 20), (180, vec![]));
    assert_eq!(bench.until(&bad, 9).1, [(1, "out")]);
    assert_eq!(bench.until(&bad, 100).0, 20, "it is the first time again");
    assert_eq!(TERMS.time_out(1, 1.0), Duration::from_secs(22));
    assert_eq!(TERMS.time_out(u32::MAX, 0.5), Duration::from_secs(63));
}

#[test]
fn too_few_attempts_say_nothing() {
    let mut bench = Bench::new(2);
    assert_eq!(bench.until(&[(1, 1), (0, 0)], 60), (60, vec![]), "eight in a window");
    assert_eq!(bench.until(&[(2, 2), (0, 0)], 60).1, [(0, "out")]);
    let mut bench = Bench::new(2);
    assert_eq!(bench.second(&[(9, 9), (0, 0)]), []);
    (0..9).for_each(|_| assert_eq!(bench.second(&[(0, 0), (0, 0)]), []));
    assert_eq!(bench.second(&[(9, 9), (0, 0)]), [], "those of the former window are forgotten");
}

#[test]
fn at_most_a_share_goes_out_and_never_the_last_one() {
    let all_bad = [(20, 20); 4];
    let mut bench = Bench::new(4);
    assert_eq!(bench.second(&all_bad), [(0, "out"), (1, "out"), (2, "spared"), (3, "spared")]);
    assert_eq!(bench.until(&all_bad, 10), (10, vec![]), "said once");
    let mut bench = Bench::new(4);
    bench.endpoints[3].set_health(Health::Down);
    assert_eq!(
        bench.second(&all_bad),
        [(0, "out"), (1, "spared"), (2, "spared")],
        "those that are down count"
    );
    let mut bench = Bench::new(1);
    assert_eq!(bench.second(&all_bad), [(0, "spared")]);
}

#[test]
fn who_is_out_comes_back_when_nobody_else_is_left() {
    let mut bench = Bench::new(2);
    assert_eq!(bench.second(&[(20, 20), (20, 0)]), [(0, "out")]);
    bench.endpoints[1].set_health(Health::Down);
    assert_eq!(bench.second(&[(20, 20), (0, 0)]), [(0, "trial")]);
    assert_eq!(bench.second(&[(20, 20), (0, 0)]), [(0, "spared")], "there is nobody else");
}

#[test]
fn endpoints_that_left_are_forgotten() {
    let mut bench = Bench::new(2);
    assert_eq!(bench.second(&[(20, 20), (20, 0)]), [(0, "out")]);
    bench.endpoints.remove(0);
    bench.second(&[(20, 0)]);
    assert_eq!(bench.judge.records.len(), 1);
}
