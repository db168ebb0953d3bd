//! "Is this certificate revoked": the agent asks the authority, so that clients need not. A question goes over HTTP, in plain
//! text as authorities have it: what they answer is signed.
//!
//! An answer is asked for anew when half of its time is left, and after a failure ever more rarely; the old one is sent to
//! clients until it is over. No handshake waits for any of it.

mod kept;

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{sync::Semaphore, task::AbortHandle};

use crate::{
    client::{self, Posted, Said},
    clock,
    drain::Tasks,
    limits,
    metrics::Metrics,
    net::connect,
    ocsp::{self, ask::Responder},
    stapler::kept::Kept,
    tls::{fetched::Fetched, signed::Algorithms},
};

/// Asks on the runtime that [`Stapler::apply`] is called on.
pub struct Stapler {
    running: Mutex<HashMap<String, Running>>,
    means: Arc<Means>,
}

/// What questions are asked with.
struct Means {
    tasks: Tasks,
    metrics: Arc<Metrics>,
    permits: Semaphore,
    options: connect::Options,
    algorithms: Algorithms<'static>,
    /// None where answers are not kept over a restart.
    kept: Option<Kept>,
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
    /// Asks nobody yet. Answers are kept in the folder `ocsp` of `state`, if there is one.
    ///
    /// # Errors
    /// When the folder is missing and cannot be made.
    pub fn new(
        tasks: Tasks,
        metrics: Arc<Metrics>,
        options: connect::Options,
        algorithms: Algorithms<'static>,
        state: Option<&Path>,
    ) -> io::Result<Self> {
        let permits = Semaphore::new(limits::OCSP_QUESTIONS);
        let kept = state.map(|state| Kept::new(state.join("ocsp"))).transpose()?;
        let means = Arc::new(Means { tasks, metrics, permits, options, algorithms, kept });
        Ok(Self { running: Mutex::default(), means })
    }

    /// Asks about these certificates from now on, and about no others.
    pub fn apply<'f>(&self, wanted: impl IntoIterator<Item = &'f Arc<Fetched>>) {
        // By chain: a file may have another one by now, and what it had may be in another file.
        let wanted: HashMap<&str, &Arc<Fetched>> =
            wanted.into_iter().map(|fetched| (fetched.name(), fetched)).collect();
        let origins: HashSet<&str> = wanted.values().map(|fetched| fetched.origin()).collect();
        let mut running = self.running.lock();
        running.retain(|name, running| {
            let origin = running.fetched.origin();
            if !origins.contains(origin) {
                self.means.metrics.families.handshakes.never_asked(origin);
            }
            wanted.get(name.as_str()).is_some_and(|next| Arc::ptr_eq(next, &running.fetched))
        });
        if let Some(kept) = &self.means.kept {
            warn(kept, kept.retain(&wanted.keys().copied().collect()));
        }
        for (name, fetched) in wanted {
            if !running.contains_key(name) {
                running.insert(name.to_owned(), self.start(fetched));
            }
        }
    }

    fn start(&self, fetched: &Arc<Fetched>) -> Running {
        let asking = Asking { fetched: Arc::clone(fetched), means: Arc::clone(&self.means) };
        asking.remember();
        let task = self.means.tasks.spawn("stapler", asking.go_on());
        Running { fetched: Arc::clone(fetched), task: task.abort_handle() }
    }
}

/// The questions about one certificate.
struct Asking {
    fetched: Arc<Fetched>,
    means: Arc<Means>,
}

impl Asking {
    /// Takes what an earlier agent was told, if it still holds.
    fn remember(&self) {
        let Some(kept) = self.means.kept.as_ref().filter(|_| self.fetched.until_s().is_none()) else {
            return;
        };
        let answer = match kept.read(self.fetched.name()) {
            Ok(Some(answer)) => answer,
            Ok(None) => return,
            Err(error) => return warn(kept, Err(error)),
        };
        if let Err(cause) = self.fetched.take(&answer, self.means.algorithms, clock::wall_s()) {
            tracing::info!(
                certificate = self.fetched.origin(),
                "the OCSP response that was kept is dropped: {cause}"
            );
            warn(kept, kept.forget(self.fetched.name()));
        }
    }

    async fn go_on(self) {
        let mut n_failures = 0_u32;
        let certificate = self.fetched.origin();
        loop {
            // The semaphore is never closed.
            let Ok(permit) = self.means.permits.acquire().await else { return };
            let answer = self.ask().await;
            drop(permit);
            let wait = match answer {
                Ok(until_s) => {
                    n_failures = 0;
                    self.means.metrics.families.handshakes.asked(certificate, true);
                    tracing::debug!(certificate, until_s, "the authority says that the certificate is good");
                    refresh_after(until_s, clock::wall_s())
                }
                Err(failed) => {
                    n_failures = n_failures.saturating_add(1);
                    self.means.metrics.families.handshakes.asked(certificate, false);
                    let (responder, until_s) =
                        (&self.fetched.question().responder.host, self.fetched.until_s());
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
        let taken = self.fetched.take(&response, self.means.algorithms, clock::wall_s());
        if let Some(kept) = &self.means.kept {
            match &taken {
                Ok(_) => warn(kept, kept.write(self.fetched.name(), &response)),
                Err(ocsp::Error::Revoked) => warn(kept, kept.forget(self.fetched.name())),
                // The last one holds as long as it says.
                Err(_) => {}
            }
        }
        taken.map_err(Failed::Said)
    }

    /// Asks the responder, and whom it sends us to.
    async fn post(&self) -> io::Result<Bytes> {
        let mut responder = self.fetched.question().responder.clone();
        for _ in 0..=limits::OCSP_REDIRECTS {
            match self.post_to(&responder).await? {
                Said::Body(body) => return Ok(body),
                Said::Elsewhere(location) => {
                    responder = responder.elsewhere(&location).ok_or_else(|| {
                        io::Error::other(format!("sent elsewhere, and `{location}` is no `http` address, over which alone responders are asked"))
                    })?;
                }
            }
        }
        Err(io::Error::other("sent elsewhere too often"))
    }

    async fn post_to(&self, responder: &Responder) -> io::Result<Said> {
        let addrs = tokio::net::lookup_host((responder.name.as_str(), responder.port)).await?;
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for addr in addrs.take(limits::TRIES) {
            let stream = match connect::tcp(addr, limits::CONNECT_TIMEOUT, self.means.options).await {
                Ok(stream) => stream,
                Err(error) => {
                    last = error;
                    continue;
                }
            };
            let posted = Posted {
                path: &responder.path,
                host: &responder.host,
                content_type: "application/ocsp-request",
                body: self.fetched.question().request.clone().into(),
            };
            let most = usize::try_from(ocsp::MAX_BYTES).unwrap_or(usize::MAX);
            return client::post(stream, posted, most, &self.means.tasks).await;
        }
        Err(last)
    }
}

/// Answers go on being fetched where they cannot be kept.
fn warn(kept: &Kept, done: io::Result<()>) {
    if let Err(error) = done {
        tracing::warn!(folder = %kept.folder().display(), "OCSP responses cannot be kept for the next start: {error}");
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
