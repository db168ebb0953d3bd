//! "Do clients get through to this endpoint": what the kernel programs and the agent itself counted of their attempts,
//! looked at once a second, judged, and written to the live endpoints. The only writer of who is out.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::MissedTickBehavior;

use crate::{
    clock::Clock,
    endpoint::{Attempts, Endpoint, EndpointId},
    health::passive::{Judge, Terms, Verdict},
    kernel::{
        self, Kernel,
        attempts::{Row, Rows},
    },
    limits,
    metrics::Metrics,
    name::ServiceName,
};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// A service whose endpoints are judged by clients' attempts.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Its name.
    pub service: ServiceName,
    /// Its endpoints.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// When they are taken out.
    pub terms: Terms,
}

/// Looks at attempts.
#[derive(Debug)]
pub struct Observer {
    groups: Mutex<BTreeMap<ServiceName, Group>>,
    /// Counts what was wanted.
    version: AtomicU64,
    kernel: Option<Arc<Mutex<Kernel>>>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

#[derive(Debug)]
struct Group {
    watched: Watched,
    judge: Judge,
    /// What was counted when it was looked at last.
    before: HashMap<EndpointId, Counted>,
}

/// What was counted of one endpoint, by the agent and for each of its rows.
#[derive(Clone, Debug, Default)]
struct Counted {
    own: Attempts,
    rows: Vec<(Row, Attempts)>,
}

impl Counted {
    /// What came since `before`: of a row that was not there before nothing, because nobody knows since when it counts.
    fn since(&self, before: &Self) -> Attempts {
        self.rows.iter().fold(self.own.since(before.own), |sum, (row, now)| {
            let then = before.rows.iter().find(|(other, _)| other == row);
            sum.and(then.map_or_else(Attempts::default, |(_, then)| now.since(*then)))
        })
    }
}

impl Observer {
    /// Watches nothing yet.
    pub fn new(kernel: Option<Arc<Mutex<Kernel>>>, metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self { groups: Mutex::default(), version: AtomicU64::new(0), kernel, metrics, clock }
    }

    /// Watches these services. An endpoint that is no longer watched is trusted again.
    pub fn apply(&self, wanted: Vec<Watched>) {
        let mut groups = self.groups.lock();
        self.version.fetch_add(1, Ordering::Relaxed);
        let mut before = std::mem::take(&mut *groups);
        for watched in wanted {
            let group = match before.remove(&watched.service) {
                Some(former) if former.watched.terms == watched.terms => {
                    former.trust_others(&watched.endpoints);
                    Group { watched, ..former }
                }
                // Other terms make a new beginning.
                former => {
                    if let Some(former) = former {
                        former.trust_others(&[]);
                    }
                    Group { watched, judge: Judge::default(), before: HashMap::new() }
                }
            };
            groups.insert(group.watched.service.clone(), group);
        }
        drop(groups);
        for gone in before.into_values() {
            gone.trust_others(&[]);
            self.metrics.families.verdicts.forget(gone.watched.service.as_str(), &Verdict::WORDS);
        }
    }

    /// Looks, for ever.
    pub async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rows = Rows::default();
        let mut last = None;
        loop {
            ticks.tick().await;
            let due = self.due(last.as_ref());
            if due.is_empty() {
                continue;
            }
            if let Some(kernel) = &self.kernel {
                let image = kernel.lock().image();
                let groups = self.groups.lock();
                let version = self.version.load(Ordering::Relaxed);
                rows.learn(image, version, |service| groups.contains_key(service));
            }
            for (service, endpoints) in due {
                match self.count(&endpoints, &rows).await {
                    Ok(counted) => self.judge(&service, &endpoints, counted),
                    Err(error) => tracing::warn!(%error, "cannot read what clients' attempts came to"),
                }
                last = Some(service);
            }
        }
    }

    /// The services that are looked at next: all of them, or as many as may be in one look, behind the last one.
    fn due(&self, last: Option<&ServiceName>) -> Vec<(ServiceName, Vec<Arc<Endpoint>>)> {
        let groups = self.groups.lock();
        let behind = last.map_or(Bound::Unbounded, |last| Bound::Excluded(last.clone()));
        let until = last.map_or(Bound::Excluded(ServiceName::new("")), |last| Bound::Included(last.clone()));
        let before = groups.range((Bound::Unbounded, until));
        let in_turn = groups.range((behind, Bound::Unbounded)).chain(before);
        let mut n_endpoints = 0;
        let mut due = Vec::new();
        for (service, group) in in_turn {
            n_endpoints += group.watched.endpoints.len();
            if n_endpoints > limits::WATCHED_ENDPOINTS && !due.is_empty() {
                break;
            }
            due.push((service.clone(), group.watched.endpoints.clone()));
        }
        due
    }

    /// What has been counted of endpoints until now. Whoever else needs the kernel or this thread waits for a portion.
    async fn count(&self, endpoints: &[Arc<Endpoint>], rows: &Rows) -> Result<Vec<Counted>, kernel::Error> {
        let mut counted = Vec::with_capacity(endpoints.len());
        for portion in endpoints.chunks(kernel::AT_ONCE) {
            self.count_portion(portion, rows, &mut counted)?;
            tokio::task::yield_now().await;
        }
        Ok(counted)
    }

    fn count_portion(
        &self,
        portion: &[Arc<Endpoint>],
        rows: &Rows,
        counted: &mut Vec<Counted>,
    ) -> Result<(), kernel::Error> {
        let kernel = self.kernel.as_ref().map(|kernel| kernel.lock());
        for endpoint in portion {
            let mut of_it = Counted { own: endpoint.attempts(), rows: Vec::new() };
            for row in rows.of(endpoint.id()) {
                if let Some(kernel) = &kernel {
                    of_it.rows.push((*row, kernel.attempts(*row)?));
                }
            }
            counted.push(of_it);
        }
        if let Some(kernel) = kernel {
            MutexGuard::unlock_fair(kernel);
        }
        Ok(())
    }

    fn judge(&self, service: &ServiceName, endpoints: &[Arc<Endpoint>], counted: Vec<Counted>) {
        let mut groups = self.groups.lock();
        let Some(group) = groups.get_mut(service) else { return };
        let ids = endpoints.iter().map(|endpoint| endpoint.id().clone());
        let now: HashMap<EndpointId, Counted> = ids.zip(counted).collect();
        // Those that are watched now; others may have come and gone meanwhile.
        let seen: Vec<(Arc<Endpoint>, Attempts)> = group
            .watched
            .endpoints
            .iter()
            .map(|endpoint| {
                let (now, before) = (now.get(endpoint.id()), group.before.get(endpoint.id()));
                let new = now.zip(before).map_or_else(Attempts::default, |(now, before)| now.since(before));
                (Arc::clone(endpoint), new)
            })
            .collect();
        group.before = now;
        let verdicts = group.judge.look(&seen, &group.watched.terms, self.clock.now(), fastrand::f64);
        drop(groups);
        for (endpoint, verdict) in verdicts {
            self.metrics.families.verdicts.count(service.as_str(), verdict.as_str());
            carry_out(&endpoint, verdict);
        }
    }
}

impl Group {
    /// Takes back what was decided about endpoints that are not among these.
    fn trust_others(&self, these: &[Arc<Endpoint>]) {
        let these: HashSet<&EndpointId> = these.iter().map(|endpoint| endpoint.id()).collect();
        for endpoint in self.watched.endpoints.iter().filter(|endpoint| !these.contains(endpoint.id())) {
            endpoint.set_out(false);
        }
    }
}

fn carry_out(endpoint: &Arc<Endpoint>, verdict: Verdict) {
    let (service, addr) = (&endpoint.id().service, endpoint.addr());
    match verdict {
        Verdict::Out { time, seen: Attempts { tried, failed } } => {
            endpoint.set_out(true);
            tracing::warn!(%service, endpoint = %addr, tried, failed, ?time, "clients do not get through: no new flows");
        }
        Verdict::Spared { seen: Attempts { tried, failed } } => {
            tracing::warn!(
                %service, endpoint = %addr, tried, failed,
                "clients do not get through, and too many others of the service get no new flows already"
            );
        }
        Verdict::Trial => {
            endpoint.set_out(false);
            tracing::info!(%service, endpoint = %addr, "new flows again, on trial");
        }
        Verdict::Trusted => tracing::info!(%service, endpoint = %addr, "clients get through again"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::endpoint::Registry;

    fn observer() -> Observer {
        Observer::new(None, Arc::new(Metrics::new(1)), Clock::driven())
    }

    fn watched(registry: &Registry, name: &str, n: u16) -> Watched {
        let service = ServiceName::new(name);
        let id =
            |port| EndpointId { service: service.clone(), addr: SocketAddr::from(([192, 0, 2, 1], port)) };
        let terms = Terms {
            window: Duration::from_secs(4),
            minimum: 4,
            failure_percent: 50,
            out_for: Duration::from_secs(9),
            out_for_at_most: Duration::from_secs(9),
            share_percent: 50,
        };
        let endpoints = (1..=n).map(|port| registry.resolve(&id(port))).collect();
        Watched { service: service.clone(), endpoints, terms }
    }

    /// One look at everything.
    async fn look(observer: &Observer) {
        observer.clock.advance(LOOK);
        for (service, endpoints) in observer.due(None) {
            let counted = observer.count(&endpoints, &Rows::default()).await.unwrap();
            observer.judge(&service, &endpoints, counted);
        }
    }

    #[tokio::test]
    async fn attempts_of_the_agent_decide_and_what_was_before_does_not_count() {
        let (observer, registry) = (observer(), Registry::default());
        let web = watched(&registry, "web", 2);
        let [good, bad] = [0, 1].map(|idx: usize| Arc::clone(web.endpoints.get(idx).unwrap()));
        (0..100).for_each(|_| bad.attempted(true));
        observer.apply(vec![web.clone()]);
        look(&observer).await;
        assert!(!bad.is_out(), "nobody knows when that was");
        for n in 0..4 {
            good.attempted(false);
            bad.attempted(n < 2);
        }
        look(&observer).await;
        assert_eq!((good.is_out(), bad.is_out()), (false, true));
        let text = observer.metrics.encode().unwrap();
        assert!(text.contains("sluice_endpoint_verdicts_total{service=\"web\",verdict=\"out\"} 1"), "{text}");
        observer.apply(vec![web]);
        assert!(bad.is_out(), "the same again changes nothing");
        observer.apply(Vec::new());
        assert!(!bad.is_out(), "nobody watches it any more");
        assert!(!observer.metrics.encode().unwrap().contains("verdict=\"out\""));
    }

    #[test]
    fn services_take_turns_where_there_are_too_many() {
        let (observer, registry) = (observer(), Registry::default());
        let groups = ["a", "b", "c"].map(|name| watched(&registry, name, 4_096));
        observer.apply(groups.to_vec());
        let due = |last: Option<&str>| -> Vec<String> {
            let due = observer.due(last.map(ServiceName::new).as_ref());
            due.into_iter().map(|(service, _)| service.to_string()).collect()
        };
        assert_eq!(due(None), ["a", "b"]);
        assert_eq!(due(Some("b")), ["c", "a"]);
        assert_eq!(due(Some("a")), ["b", "c"]);
    }

    #[test]
    fn a_row_that_is_new_has_no_past() {
        let attempts = |tried| Attempts { tried, failed: 1 };
        let before = Counted { own: attempts(5), rows: vec![(Row::new(1, 1), attempts(10))] };
        let now = Counted {
            own: attempts(6),
            rows: vec![(Row::new(1, 1), attempts(12)), (Row::new(2, 7), attempts(900))],
        };
        assert_eq!(now.since(&before), Attempts { tried: 3, failed: 0 });
    }
}
