//! The access log: a line of JSON for each request, made on the worker that served it, written by a thread of its own.
//!
//! A worker formats the line and appends it to a buffer that only the writer shares. The writer swaps the buffers out a few
//! times a second and writes each batch at once, so that no request ever waits for a disk or a pipe. When the output does
//! not keep up, lines are dropped and counted.

mod line;
mod writer;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::{Condvar, Mutex};

pub use crate::access::line::{Line, rfc3339};
use crate::{
    clock::{self, Clock},
    config::{AccessField, AccessSettings},
    limits,
    metrics::{Metrics, names::Limit},
};

/// Where one worker puts its lines: what each line refers to is the worker's own, so that no two processors count
/// references to the same place.
#[derive(Debug)]
pub struct Desk {
    log: Arc<Log>,
    worker: usize,
    keys: Keys,
}

impl Desk {
    /// Begins the line of a request, unless it is not in the sample.
    pub fn begin(self: &Arc<Self>, clock: &Clock, started: Instant) -> Option<Box<Line>> {
        if self.log.sample_percent < 100 && fastrand::u32(..100) >= self.log.sample_percent {
            return None;
        }
        Some(Box::new(Line::new(Arc::clone(self), clock.clone(), started)))
    }
}

/// Lines on their way to the output.
#[derive(Debug)]
pub struct Log {
    fields: Vec<AccessField>,
    sample_percent: u32,
    shards: Box<[Shard]>,
    signal: Signal,
    metrics: Arc<Metrics>,
}

/// What belongs to one worker. Two cache lines apart, because processors fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(Mutex<Vec<u8>>);

#[derive(Debug, Default)]
struct Signal {
    state: Mutex<State>,
    /// Wakes the writer, and whoever waits for its end.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_full: bool,
    is_closing: bool,
    is_closed: bool,
}

/// How each field of a line begins: comma, name and colon. Nothing for a field that lines do not have.
#[derive(Debug)]
struct Keys(Box<[Option<Box<[u8]>>]>);

impl Keys {
    fn new(fields: &[AccessField]) -> Self {
        let key = |field: &AccessField| format!(",\"{}\":", field.as_str()).into_bytes().into_boxed_slice();
        Self(AccessField::ALL.iter().map(|field| fields.contains(field).then(|| key(field))).collect())
    }

    fn of(&self, field: AccessField) -> Option<&[u8]> {
        self.0.get(field.index())?.as_deref()
    }
}

impl Log {
    /// Opens the output and starts its writer.
    pub fn start(settings: &AccessSettings, metrics: &Arc<Metrics>) -> io::Result<Arc<Self>> {
        let output = writer::Output::open(&settings.output)?;
        let log = Arc::new(Self::new(settings, metrics));
        let written = Arc::clone(&log);
        let run = move || writer::run(&written, output);
        drop(std::thread::Builder::new().name("access-log".to_owned()).spawn(run)?);
        Ok(log)
    }

    fn new(settings: &AccessSettings, metrics: &Arc<Metrics>) -> Self {
        Self {
            fields: settings.fields.clone(),
            sample_percent: settings.sample_percent,
            shards: (0..metrics.n_workers()).map(|_| Shard::default()).collect(),
            signal: Signal::default(),
            metrics: Arc::clone(metrics),
        }
    }

    /// What a worker begins its lines at.
    pub fn desk(self: &Arc<Self>, worker: usize) -> Arc<Desk> {
        Arc::new(Desk { log: Arc::clone(self), worker, keys: Keys::new(&self.fields) })
    }

    /// Takes a whole line.
    fn push(&self, worker: usize, line: &[u8]) {
        let Some(shard) = self.shards.get(worker % self.shards.len()) else { return };
        let mut buffer = shard.0.lock();
        let len = buffer.len();
        if len + line.len() > limits::ACCESS_LOG_BYTES {
            drop(buffer);
            self.metrics.families.limit(Limit::AccessLog);
            return;
        }
        buffer.extend_from_slice(line);
        drop(buffer);
        // Once for each batch: waking a thread is a system call.
        if len < WAKE_BYTES && len + line.len() >= WAKE_BYTES {
            self.signal.state.lock().is_full = true;
            self.signal.changed.notify_all();
        }
    }

    /// Writes what is left; waits for that, but not for ever: the output may be stuck.
    pub fn close(&self, patience: Duration) {
        let mut state = self.signal.state.lock();
        state.is_closing = true;
        self.signal.changed.notify_all();
        while !state.is_closed {
            if self.signal.changed.wait_for(&mut state, patience).timed_out() {
                tracing::warn!("the access log is not whole: its output takes nothing");
                return;
            }
        }
    }
}

/// Bytes in a worker's buffer that wake the writer before its time: so few that this buffer and the one that is being written
/// stay in a cache of the processor, and so many that waking is rare.
const WAKE_BYTES: usize = 64 * 1_024;

/// The present time of the wall clock, for a line.
fn wall() -> SystemTime {
    clock::wall()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::config::AccessOutput;

    fn settings(path: &Path, fields: &[AccessField], sample_percent: u32) -> AccessSettings {
        AccessSettings {
            output: AccessOutput::File(path.to_owned()),
            fields: fields.to_vec(),
            sample_percent,
        }
    }

    fn log(path: &Path, fields: &[AccessField], sample_percent: u32) -> (Arc<Log>, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new(2));
        (Log::start(&settings(path, fields, sample_percent), &metrics).unwrap(), metrics)
    }

    fn dropped(metrics: &Metrics) -> u32 {
        let text = metrics.encode().unwrap();
        let series = "sluice_limit_reached_total{limit=\"access_log\"} ";
        text.lines().find_map(|line| line.strip_prefix(series)).map_or(0, |value| value.parse().unwrap())
    }

    fn one(log: &Arc<Log>, worker: usize, clock: &Clock, target: &str) {
        if let Some(mut line) = log.desk(worker).begin(clock, clock.now()) {
            line.text(AccessField::Target, target.as_bytes());
        }
    }

    #[test]
    fn lines_are_json_and_the_file_may_be_moved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let (log, _metrics) = log(&path, AccessField::ALL, 100);
        let clock = Clock::driven();
        one(&log, 0, &clock, "/a\"b\\c\n\u{e4}");
        let eventually = |path: &Path, n: usize| {
            for _ in 0..500 {
                if fs::read_to_string(path).is_ok_and(|text| text.lines().count() >= n) {
                    return;
                }
                std::thread::park_timeout(Duration::from_millis(10));
            }
            panic!("no {n} lines in {}", path.display());
        };
        eventually(&path, 1);
        fs::rename(&path, folder.path().join("access.log.1")).unwrap();
        one(&log, 1, &clock, "/second");
        eventually(&path, 1);
        one(&log, 1, &clock, "/last");
        log.close(Duration::from_secs(5));
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((&lines[0]["target"], &lines[1]["target"]), (&"/second".into(), &"/last".into()));
        let moved = fs::read_to_string(folder.path().join("access.log.1")).unwrap();
        let first: serde_json::Value = serde_json::from_str(&moved).unwrap();
        // Bytes beyond ASCII are shown one by one: nobody said what they mean.
        assert_eq!(first["target"], "/a\"b\\c\n\u{c3}\u{a4}");
    }

    #[test]
    fn lines_beyond_the_bound_are_dropped_and_counted() {
        let metrics = Arc::new(Metrics::new(2));
        // Nobody writes.
        let log = Arc::new(Log::new(&settings(Path::new("/"), &[AccessField::Target], 100), &metrics));
        let (clock, target) = (Clock::driven(), "x".repeat(986));
        // A line of 1,000 bytes.
        let fit = limits::ACCESS_LOG_BYTES / 1_000;
        (0..fit + 7).for_each(|_| one(&log, 0, &clock, &target));
        assert_eq!((log.shards[0].0.lock().len(), dropped(&metrics)), (fit * 1_000, 7));
        one(&log, 1, &clock, &target);
        assert_eq!(log.shards[1].0.lock().len(), 1_000, "each worker has its own");
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        let (log, metrics) = log(Path::new("/dev/full"), &[AccessField::Target], 100);
        (0..3).for_each(|_| one(&log, 0, &Clock::driven(), "/"));
        log.close(Duration::from_secs(5));
        assert_eq!(dropped(&metrics), 3);
    }

    #[test]
    fn a_sample_is_a_share() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let (log, _metrics) = log(&path, &[AccessField::Target], 10);
        let clock = Clock::driven();
        (0..10_000).for_each(|_| one(&log, 0, &clock, "/"));
        log.close(Duration::from_secs(5));
        let n = fs::read_to_string(&path).unwrap().lines().count();
        assert!((800..1_200).contains(&n), "{n} of 10,000");
    }
}
