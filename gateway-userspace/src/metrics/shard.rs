//! Counters of the request path: one shard per worker, summed when they are read, dropped with their owner.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, NoLabelSet},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Unit,
};

use crate::metrics::names::{self, FaultKind};

/// Upper bounds of the latency buckets, in microseconds. Chosen: a factor of two to two and a half apart, from a fast
/// endpoint on the same node to the longest timeout that people set.
const BUCKETS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    10_000_000, 60_000_000,
];

const N_BUCKETS: usize = BUCKETS_US.len() + 1;
const CLASSES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// What a request is counted under.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RouteLabels {
    /// Name of the listener.
    pub listener: String,
    /// Name of the route; empty when none matched.
    pub route: String,
}

/// Two cache lines apart, because processors fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct RouteShard {
    classes: [AtomicU64; CLASSES.len()],
    buckets: [AtomicU64; N_BUCKETS],
    faults: [AtomicU64; FaultKind::COUNT],
    sum_us: AtomicU64,
}

/// Requests of one route on one listener.
#[derive(Debug)]
pub struct RouteStats(Box<[RouteShard]>);

impl RouteStats {
    fn new(n_shards: usize) -> Self {
        Self((0..n_shards).map(|_| RouteShard::default()).collect())
    }

    /// Counts one response.
    pub fn record(&self, worker: usize, status: u16, elapsed: Duration) {
        let Some(shard) = self.0.get(worker % self.0.len()) else { return };
        let us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let class = usize::from(status / 100);
        add(&shard.classes, if class < CLASSES.len() { class } else { 0 }, 1);
        add(&shard.buckets, BUCKETS_US.partition_point(|bound| *bound < us), 1);
        shard.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Counts one request that failed here or upstream.
    pub fn fault(&self, worker: usize, kind: FaultKind) {
        if let Some(shard) = self.0.get(worker % self.0.len()) {
            add(&shard.faults, kind.index(), 1);
        }
    }

    fn sum(&self, of: impl Fn(&RouteShard) -> Option<&AtomicU64>) -> u64 {
        self.0.iter().filter_map(of).map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct ServiceShard {
    tries: AtomicU64,
    retries: AtomicU64,
    connects: AtomicU64,
    connect_failures: AtomicU64,
}

/// Tries towards one service.
#[derive(Debug)]
pub struct ServiceStats(Box<[ServiceShard]>);

impl ServiceStats {
    fn new(n_shards: usize) -> Self {
        Self((0..n_shards).map(|_| ServiceShard::default()).collect())
    }

    /// Counts one try.
    pub fn tried(&self, worker: usize) {
        self.count(worker, |shard| &shard.tries);
    }

    /// Counts one try that followed a failed one.
    pub fn retried(&self, worker: usize) {
        self.count(worker, |shard| &shard.retries);
    }

    /// Counts one opened connection.
    pub fn connected(&self, worker: usize) {
        self.count(worker, |shard| &shard.connects);
    }

    /// Counts one connection that could not be opened.
    pub fn connect_failed(&self, worker: usize) {
        self.count(worker, |shard| &shard.connect_failures);
    }

    fn count(&self, worker: usize, of: impl Fn(&ServiceShard) -> &AtomicU64) {
        if let Some(shard) = self.0.get(worker % self.0.len()) {
            of(shard).fetch_add(1, Ordering::Relaxed);
        }
    }

    fn sum(&self, of: impl Fn(&ServiceShard) -> &AtomicU64) -> u64 {
        self.0.iter().map(|shard| of(shard).load(Ordering::Relaxed)).sum()
    }
}

fn add(counts: &[AtomicU64], idx: usize, n: u64) {
    if let Some(count) = counts.get(idx) {
        count.fetch_add(n, Ordering::Relaxed);
    }
}

/// Every live [`RouteStats`].
#[derive(Debug, Default)]
pub(crate) struct Requests(Mutex<BTreeMap<RouteLabels, Weak<RouteStats>>>);

impl Requests {
    pub(crate) fn resolve(&self, labels: &RouteLabels, n_shards: usize) -> Arc<RouteStats> {
        resolve(&self.0, labels.clone(), || RouteStats::new(n_shards))
    }

    fn live(&self) -> Vec<(RouteLabels, Arc<RouteStats>)> {
        live(&self.0)
    }
}

impl Collector for Requests {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let live = self.live();
        let (name, help) = names::REQUESTS;
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, stats) in &live {
            for (idx, class) in CLASSES.iter().enumerate() {
                let count = stats.sum(|shard| shard.classes.get(idx));
                if count > 0 {
                    let labels = With(labels, Some(("status", class)));
                    counter(&mut family.encode_family(&labels)?, count)?;
                }
            }
        }
        let (name, help) = names::REQUEST_FAULTS;
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, stats) in &live {
            for kind in FaultKind::ALL {
                let count = stats.sum(|shard| shard.faults.get(kind.index()));
                if count > 0 {
                    let labels = With(labels, Some(("kind", kind.as_str())));
                    counter(&mut family.encode_family(&labels)?, count)?;
                }
            }
        }
        let (name, help) = names::REQUEST_DURATION;
        let mut family =
            encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (labels, stats) in &live {
            let bounds = BUCKETS_US.iter().map(|bound| seconds(*bound)).chain([f64::MAX]);
            let counts = (0..N_BUCKETS).map(|idx| stats.sum(|shard| shard.buckets.get(idx)));
            let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
            let count = buckets.iter().map(|(_, count)| count).sum();
            let sum = seconds(stats.sum(|shard| Some(&shard.sum_us)));
            let labels = With(labels, None);
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

#[expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "a sum for people to read; exact to 285 years"
)]
fn seconds(us: u64) -> f64 {
    us as f64 / 1_000_000.0
}

/// A metric and where it is counted.
type Row = (names::Described, fn(&ServiceShard) -> &AtomicU64);

/// Every live [`ServiceStats`].
#[derive(Debug, Default)]
pub(crate) struct Services(Mutex<BTreeMap<String, Weak<ServiceStats>>>);

impl Services {
    pub(crate) fn resolve(&self, service: &str, n_shards: usize) -> Arc<ServiceStats> {
        resolve(&self.0, service.to_owned(), || ServiceStats::new(n_shards))
    }
}

impl Collector for Services {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let live = live(&self.0);
        let rows: [Row; 4] = [
            (names::UPSTREAM_TRIES, |shard| &shard.tries),
            (names::UPSTREAM_RETRIES, |shard| &shard.retries),
            (names::UPSTREAM_CONNECTS, |shard| &shard.connects),
            (names::UPSTREAM_CONNECT_FAILURES, |shard| &shard.connect_failures),
        ];
        for ((name, help), of) in rows {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (service, stats) in &live {
                let labels = [("service", service.as_str())];
                counter(&mut family.encode_family(&labels)?, stats.sum(of))?;
            }
        }
        Ok(())
    }
}

/// Labels of a route, and one more.
#[derive(Debug)]
struct With<'a>(&'a RouteLabels, Option<(&'a str, &'a str)>);

impl EncodeLabelSet for With<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        use prometheus_client::encoding::EncodeLabel;
        ("listener", self.0.listener.as_str()).encode(encoder.encode_label())?;
        ("route", self.0.route.as_str()).encode(encoder.encode_label())?;
        match self.1 {
            Some(more) => more.encode(encoder.encode_label()),
            None => Ok(()),
        }
    }
}

fn counter(
    encoder: &mut prometheus_client::encoding::MetricEncoder<'_>,
    count: u64,
) -> Result<(), fmt::Error> {
    encoder.encode_counter(&count, None::<&Exemplar<NoLabelSet, u64>>)
}

fn resolve<K: Ord, T>(series: &Mutex<BTreeMap<K, Weak<T>>>, key: K, new: impl FnOnce() -> T) -> Arc<T> {
    let mut series = series.lock();
    if let Some(there) = series.get(&key).and_then(Weak::upgrade) {
        return there;
    }
    series.retain(|_, weak| weak.strong_count() > 0);
    let made = Arc::new(new());
    series.insert(key, Arc::downgrade(&made));
    made
}

fn live<K: Clone + Ord, T>(series: &Mutex<BTreeMap<K, Weak<T>>>) -> Vec<(K, Arc<T>)> {
    let series = series.lock();
    series.iter().filter_map(|(key, weak)| Some((key.clone(), weak.upgrade()?))).collect()
}
