//! What the runtimes of the process have to do: the number that grows when a task is left behind.

use std::fmt;

use parking_lot::Mutex;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType};
use tokio::runtime::RuntimeMetrics;

use crate::metrics::names;

/// The runtimes that are asked at every scrape, by the name of the thread that each runs on.
#[derive(Debug, Default)]
pub(super) struct Runtimes(Mutex<Vec<(String, RuntimeMetrics)>>);

impl Runtimes {
    /// Adds one; the threads of the process are a fixed number.
    pub(super) fn add(&self, thread: String, runtime: RuntimeMetrics) {
        self.0.lock().push((thread, runtime));
    }
}

impl Collector for Runtimes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Tasks that a thread of the process has under way";
        let mut family = encoder.encode_descriptor("tasks", help, None, MetricType::Gauge)?;
        for (thread, runtime) in self.0.lock().iter() {
            let n = u64::try_from(runtime.num_alive_tasks()).unwrap_or(u64::MAX);
            names::gauge(&mut family, &[("thread", thread.as_str())], n)?;
        }
        Ok(())
    }
}
