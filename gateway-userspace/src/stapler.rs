//! "Is this certificate revoked": the agent asks the authority, so that clients need not. A question goes over HTTP, in plain
//! text as authorities have it: what they answer is signed.
//!
//! An answer is asked for anew when half of its time is left, and after a failure ever more rarely; the old one is sent to
//! clients until it is over. No handshake waits for any of it.

use std::{collections::HashMap, fmt, io, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{sync::Semaphore, task::AbortHandle};

use crate::{
    client::{self, Posted},
    clock,
    drain::Tasks,
    limits,
    metrics::Metrics,
    net::connect,
    ocsp,
    tls::{fetched::Fetched, signed::Algorithms},
};

/// Asks on the runtime that [`Stapler::apply`] is called on.
pub struct Stapler {
    running: Mutex<HashMap<String, Running>>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    permits: Arc<Semaphore>,
    options: connect::Options,
    algorithms: Algorithms<'static>,
}

impl fmt::Debug for Stapler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stapler").field("running", &self.running).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Running {
    fetched: Arc<Fetched>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why there is no new answer.
#[derive(Debug)]
enum Failed {
    /// Nobody answered, or not in these words.
    Io(io::Error),
    /// What was answered cannot be passed on.
    Said(ocsp::Error),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Said(error) => error.fmt(f),
        }
    }
}

impl Stapler {
    /// Asks nobody yet.
    pub fn new(
        tasks: Tasks,
        metrics: Arc<Metrics>,
        options: connect::Options,
        algorithms: Algorithms<'static>,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(limits::OCSP_QUESTIONS));
        Self { running: Mutex::default(), tasks, metrics, permits, options, algorithms }
    }

    /// Asks about these certificates from now on, and about no others.
    pub fn apply<'f>(&self, wanted: impl IntoIterator<Item = &'f Arc<Fetched>>) {
        let wanted: HashMap<&str, &Arc<Fetched>> =
            wanted.into_iter().map(|fetched| (fetched.origin(), fetched)).collect();
        let mut running = self.running.lock();
        running.retain(|origin, running| {
            let next = wanted.get(origin.as_str());
            if next.is_none() {
                self.metrics.families.handshakes.never_asked(origin);
            }
            next.is_some_and(|next| Arc::ptr_eq(next, &running.fetched))
        });
        for (origin, fetched) in wanted {
            if !running.contains_key(origin) {
                running.insert(origin.to_owned(), self.start(fetched));
            }
        }
    }

    fn start(&self, fetched: &Arc<Fetched>) -> Running {
        let asking = Asking {
            fetched: Arc::clone(fetched),
            tasks: self.tasks.clone(),
            metrics: Arc::clone(&self.metrics),
            permits: Arc::clone(&self.permits),
            options: self.options,
            algorithms: self.algorithms,
        };
        let task = self.tasks.spawn("stapler", asking.go_on());
        Running { fetched: Arc::clone(fetched), task: task.abort_handle() }
    }
}

/// The questions about one certificate.
struct Asking {
    fetched: Arc<Fetched>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    permits: Arc<Semaphore>,
    options: connect::Options,
    algorithms: Algorithms<'static>,
}

impl Asking {
    async fn go_on(self) {
        let mut n_failures = 0_u32;
        let certificate = self.fetched.origin();
        loop {
            // The semaphore is never closed.
            let Ok(permit) = self.permits.acquire().await else { return };
            let answer = self.ask().await;
            drop(permit);
            let wait = match answer {
                Ok(until_s) => {
                    n_failures = 0;
                    self.metrics.families.handshakes.asked(certificate, true);
                    tracing::debug!(certificate, until_s, "the authority says that the certificate is good");
                    refresh_after(until_s, clock::wall_s())
                }
                Err(failed) => {
                    n_failures = n_failures.saturating_add(1);
                    self.metrics.families.handshakes.asked(certificate, false);
                    let (responder, until_s) = (&self.fetched.question().host, self.fetched.until_s());
                    tracing::warn!(
                        certificate,
                        responder,
                        until_s,
                        "no OCSP response, trying again; the last one is sent until it is over: {failed}"
                    );
                    back_off(n_failures)
                }
            };
            tokio::time::sleep(varied(wait)).await;
        }
    }

    /// Asks once; until when the answer is good.
    async fn ask(&self) -> Result<i64, Failed> {
        let answered = tokio::time::timeout(limits::OCSP_TIMEOUT, self.post()).await;
        let response =
            answered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(Failed::Io)?;
        self.fetched.take(&response, self.algorithms, clock::wall_s()).map_err(Failed::Said)
    }

    async fn post(&self) -> io::Result<Bytes> {
        let question = self.fetched.question();
        let addrs = tokio::net::lookup_host((question.name.as_str(), question.port)).await?;
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for addr in addrs.take(limits::TRIES) {
            let stream = match connect::tcp(addr, limits::CONNECT_TIMEOUT, self.options).await {
                Ok(stream) => stream,
                Err(error) => {
                    last = error;
                    continue;
                }
            };
            let posted = Posted {
                path: &question.path,
                host: &question.host,
                content_type: "application/ocsp-request",
                body: question.request.clone().into(),
            };
            let most = usize::try_from(ocsp::MAX_BYTES).unwrap_or(usize::MAX);
            return client::post(stream, posted, most, &self.tasks).await;
        }
        Err(last)
    }
}

/// When half of the time of an answer is over, at the latest after a day.
fn refresh_after(until_s: i64, now_s: i64) -> Duration {
    let left = Duration::from_secs(u64::try_from(until_s.saturating_sub(now_s)).unwrap_or(0));
    (left / 2).clamp(limits::OCSP_SOONEST, limits::OCSP_LATEST)
}

/// Twice as long after each failure.
fn back_off(n_failures: u32) -> Duration {
    let doubled = 1_u32.checked_shl(n_failures.saturating_sub(1)).unwrap_or(u32::MAX);
    limits::OCSP_SOONEST.saturating_mul(doubled).min(limits::OCSP_BACK_OFF)
}

/// A tenth more or less: nodes that share a certificate do not ask all at once.
fn varied(wait: Duration) -> Duration {
    wait.mul_f64(0.9 + fastrand::f64() / 5.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_refreshed_long_before_they_are_over_and_failures_ever_more_rarely() {
        assert_eq!(refresh_after(7_200, 0), Duration::from_hours(1));
        assert_eq!(refresh_after(1_000_000, 0), limits::OCSP_LATEST);
        assert_eq!(refresh_after(5, 10), limits::OCSP_SOONEST);
        assert_eq!(back_off(1), limits::OCSP_SOONEST);
        assert_eq!(back_off(2), limits::OCSP_SOONEST * 2);
        assert_eq!(back_off(60), limits::OCSP_BACK_OFF);
        assert!(varied(Duration::from_secs(10)) >= Duration::from_secs(9));
    }
}
