//! A live endpoint: the one handle that probes write, balancers read, and the kernel publisher drains.
//!
//! States and owners: `health` has one writer for each way to the endpoint, its prober; `is_out` has one, the observer of clients' attempts;
//! `weight` and `draining` have one, the control loop; `active` and attempts are counted on any worker. Whoever asks
//! [`Endpoint::availability`] gets all of them in one word, and [`Endpoint::reasons`] says which it was. A handle survives reconfiguration by identity:
//! [`Registry::resolve`] returns the same handle for the same service and address.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
};

use gateway_common::service::Mode;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::name::ServiceName;

/// What makes two endpoints the same.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct EndpointId {
    /// The service it belongs to.
    pub service: ServiceName,
    /// Its address and port.
    pub addr: SocketAddr,
}

/// What active checks say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Health {
    /// No check has finished, or there is none: treated as up.
    Unknown,
    /// The last checks passed.
    Up,
    /// The last checks failed: nothing is sent there.
    Down,
}

impl Health {
    const ALL: [Self; 3] = [Self::Unknown, Self::Up, Self::Down];

    const fn number(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Up => 1,
            Self::Down => 2,
        }
    }

    /// The word of the dump.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// How packets get to an endpoint, as far as one way may work where another does not: each is checked by itself, and who
/// sends by one asks for that one's health.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Reach {
    /// Addressed to the endpoint, or to its link-layer address.
    Straight,
    /// Through a tunnel, IP in IP.
    Ipip,
    /// Through a tunnel over UDP.
    Gue,
}

impl Reach {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Straight, Self::Ipip, Self::Gue];

    /// That of packets which are forwarded so.
    pub fn of(mode: Mode) -> Self {
        if mode == Mode::DSR_IPIP {
            Self::Ipip
        } else if mode == Mode::DSR_GUE {
            Self::Gue
        } else {
            Self::Straight
        }
    }

    /// The word of the log and of the dump.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Straight => "straight",
            Self::Ipip => "ipip",
            Self::Gue => "gue",
        }
    }
}

/// What checks say of each way.
#[derive(Debug, Default)]
struct Checked {
    straight: AtomicU8,
    ipip: AtomicU8,
    gue: AtomicU8,
}

impl Checked {
    const fn of(&self, reach: Reach) -> &AtomicU8 {
        match reach {
            Reach::Straight => &self.straight,
            Reach::Ipip => &self.ipip,
            Reach::Gue => &self.gue,
        }
    }
}

/// May it receive, and what.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Availability {
    /// New and existing flows.
    Active,
    /// Existing flows only.
    Draining,
    /// Nothing.
    Down,
}

/// Attempts of clients, or of the agent for them, to connect to an endpoint.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Attempts {
    /// All of them.
    pub tried: u64,
    /// Those that came to nothing.
    pub failed: u64,
}

impl Attempts {
    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            tried: self.tried.saturating_add(other.tried),
            failed: self.failed.saturating_add(other.failed),
        }
    }

    /// What came after `before`, of counts that only grow; everything when they began anew.
    #[must_use]
    pub const fn since(self, before: Self) -> Self {
        if self.tried < before.tried || self.failed < before.failed {
            return self;
        }
        Self { tried: self.tried - before.tried, failed: self.failed - before.failed }
    }
}

/// Why an endpoint gets no new flows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// Its checks fail.
    Check,
    /// Clients do not get through to it.
    Attempts,
    /// Its weight is zero.
    Weight,
    /// The configuration does not name it any more.
    Unwanted,
}

impl Reason {
    /// The word of the dump and of metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Attempts => "attempts",
            Self::Weight => "weight",
            Self::Unwanted => "unwanted",
        }
    }
}

/// A live endpoint.
#[derive(Debug)]
pub struct Endpoint {
    id: EndpointId,
    /// Its address and port, printed.
    text: Box<str>,
    checked: Checked,
    /// Whether a check goes straight to it, be it without a verdict yet.
    is_straight: AtomicBool,
    is_out: AtomicBool,
    draining: AtomicBool,
    weight: AtomicU32,
    active: AtomicU32,
    tried: AtomicU64,
    failed: AtomicU64,
    /// Set while the endpoint waits in [`Changes`], so that it stands there once at most.
    queued: AtomicBool,
    changes: Arc<Changes>,
    down: Notify,
}

impl Endpoint {
    /// Service and address.
    pub const fn id(&self) -> &EndpointId {
        &self.id
    }

    /// Address and port as text, which the log of every request has.
    pub const fn addr_text(&self) -> &str {
        &self.text
    }

    /// Address and port.
    pub const fn addr(&self) -> SocketAddr {
        self.id.addr
    }

    /// What active checks say to the agent's own connections: those that go straight to the endpoint, or where there are
    /// none, the worst of the others.
    pub fn health(&self) -> Health {
        match self.health_by(Reach::Straight) {
            Health::Unknown if !self.is_straight.load(Ordering::Acquire) => self.worst_health(),
            health @ (Health::Unknown | Health::Up | Health::Down) => health,
        }
    }

    /// Set by the prober: whether a check goes straight to the endpoint. Until that one has a verdict, what others say of
    /// their ways is nothing to connections that go straight.
    pub fn set_straight(&self, is_straight: bool) {
        self.is_straight.store(is_straight, Ordering::Release);
    }

    /// What active checks say that take this way.
    pub fn health_by(&self, reach: Reach) -> Health {
        let number = self.checked.of(reach).load(Ordering::Acquire);
        Health::ALL.into_iter().find(|health| health.number() == number).unwrap_or(Health::Unknown)
    }

    /// What the checks say that are worst off.
    pub fn worst_health(&self) -> Health {
        let by_reach = Reach::ALL.map(|reach| self.health_by(reach));
        by_reach.into_iter().max_by_key(|health| health.number()).unwrap_or(Health::Unknown)
    }

    /// Set by whoever checks the way straight to the endpoint.
    pub fn set_health(self: &Arc<Self>, health: Health) {
        self.set_health_by(Reach::Straight, health);
    }

    /// Set by whoever checks this way to the endpoint.
    pub fn set_health_by(self: &Arc<Self>, reach: Reach, health: Health) {
        if self.checked.of(reach).swap(health.number(), Ordering::AcqRel) != health.number() {
            if self.health() == Health::Down {
                self.down.notify_waiters();
            }
            self.changed();
        }
    }

    /// Whether it gets no new flows because clients do not get through to it.
    pub fn is_out(&self) -> bool {
        self.is_out.load(Ordering::Acquire)
    }

    /// Set by the observer of clients' attempts.
    pub fn set_out(self: &Arc<Self>, is_out: bool) {
        if self.is_out.swap(is_out, Ordering::AcqRel) != is_out {
            self.changed();
        }
    }

    /// Counts an attempt of the agent to connect to it for a client.
    pub fn attempted(&self, has_failed: bool) {
        if has_failed {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        self.tried.fetch_add(1, Ordering::Relaxed);
    }

    /// The agent's attempts, ever.
    pub fn attempts(&self) -> Attempts {
        // In this order no failure is seen without its attempt, except in the same moment.
        let failed = self.failed.load(Ordering::Relaxed);
        Attempts { tried: self.tried.load(Ordering::Relaxed).max(failed), failed }
    }

    /// Relative share of new flows; zero drains.
    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Acquire)
    }

    /// Set by the control loop.
    pub fn set_weight(self: &Arc<Self>, weight: u32) {
        if self.weight.swap(weight, Ordering::AcqRel) != weight {
            self.changed();
        }
    }

    /// Set by the control loop when the endpoint is no longer wanted but may still hold flows.
    pub fn set_draining(self: &Arc<Self>, draining: bool) {
        if self.draining.swap(draining, Ordering::AcqRel) != draining {
            self.changed();
        }
    }

    /// Whether it was no longer wanted.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// May it receive connections of the agent's own, and which.
    pub fn availability(&self) -> Availability {
        self.availability_with(self.health())
    }

    /// May it receive packets by this way, and which.
    pub fn availability_by(&self, reach: Reach) -> Availability {
        self.availability_with(self.health_by(reach))
    }

    /// What it may receive by every way.
    pub fn availability_at_worst(&self) -> Availability {
        self.availability_with(self.worst_health())
    }

    fn availability_with(&self, health: Health) -> Availability {
        match health {
            Health::Down => Availability::Down,
            Health::Unknown | Health::Up => {
                if self.is_out() || self.draining.load(Ordering::Acquire) || self.weight() == 0 {
                    Availability::Draining
                } else {
                    Availability::Active
                }
            }
        }
    }

    /// Why it is not active by every way; nothing when it is.
    pub fn reasons(&self) -> impl Iterator<Item = Reason> + use<> {
        let holds = [
            (self.worst_health() == Health::Down, Reason::Check),
            (self.is_out(), Reason::Attempts),
            (self.weight() == 0, Reason::Weight),
            (self.draining.load(Ordering::Acquire), Reason::Unwanted),
        ];
        holds.into_iter().filter(|(holds, _)| *holds).map(|(_, reason)| reason)
    }

    /// Requests and connections in flight from this agent.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// Counts one request or connection until the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> Active {
        self.active.fetch_add(1, Ordering::Relaxed);
        Active(Arc::clone(self))
    }

    /// Resolves as soon as the endpoint is down.
    pub async fn until_down(&self) {
        loop {
            let notified = self.down.notified();
            if self.health() == Health::Down {
                return;
            }
            notified.await;
        }
    }

    /// Moves whenever any endpoint of the same registry changes its state or weight: what was derived from endpoints
    /// stays right as long as it stands still.
    pub fn epoch(&self) -> u64 {
        self.changes.epoch.load(Ordering::Acquire)
    }

    fn changed(self: &Arc<Self>) {
        self.changes.epoch.fetch_add(1, Ordering::AcqRel);
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.changes.queue.lock().push(Arc::clone(self));
        }
        self.changes.wake.notify_one();
    }
}

/// One request or connection in flight.
#[derive(Debug)]
pub struct Active(Arc<Endpoint>);

impl Active {
    /// The endpoint that is counted.
    pub const fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Endpoints whose state changed since they were last published. Bounded: each endpoint stands here once at most.
#[derive(Debug, Default)]
pub struct Changes {
    queue: Mutex<Vec<Arc<Endpoint>>>,
    wake: Notify,
    epoch: AtomicU64,
}

impl Changes {
    /// Waits until there may be something to take.
    pub async fn wait(&self) {
        self.wake.notified().await;
    }

    /// Takes all that changed. A change after this call queues the endpoint again.
    pub fn take(&self) -> Vec<Arc<Endpoint>> {
        let taken = std::mem::take(&mut *self.queue.lock());
        for endpoint in &taken {
            endpoint.queued.store(false, Ordering::Release);
        }
        taken
    }
}

/// All live endpoints, by identity.
#[derive(Debug, Default)]
pub struct Registry {
    endpoints: Mutex<HashMap<EndpointId, Arc<Endpoint>>>,
    changes: Arc<Changes>,
}

impl Registry {
    /// The handle for an identity: the existing one, or a new one of unknown health and weight one.
    pub fn resolve(&self, id: &EndpointId) -> Arc<Endpoint> {
        let mut endpoints = self.endpoints.lock();
        if let Some(endpoint) = endpoints.get(id) {
            return Arc::clone(endpoint);
        }
        let endpoint = Arc::new(Endpoint {
            id: id.clone(),
            text: id.addr.to_string().into_boxed_str(),
            checked: Checked::default(),
            is_straight: AtomicBool::new(false),
            is_out: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            weight: AtomicU32::new(1),
            active: AtomicU32::new(0),
            tried: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            queued: AtomicBool::new(false),
            changes: Arc::clone(&self.changes),
            down: Notify::new(),
        });
        endpoints.insert(id.clone(), Arc::clone(&endpoint));
        endpoint
    }

    /// Every live endpoint, in the order of the identities.
    pub fn all(&self) -> Vec<Arc<Endpoint>> {
        let mut all: Vec<_> = self.endpoints.lock().values().map(Arc::clone).collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// Forgets every endpoint that `keep` refuses. Whoever still holds a handle keeps it.
    pub fn retain(&self, keep: impl Fn(&EndpointId) -> bool) {
        self.endpoints.lock().retain(|id, _| keep(id));
    }

    /// What changed, for the one publisher.
    pub fn changes(&self) -> Arc<Changes> {
        Arc::clone(&self.changes)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the task ends with its test")]
mod tests {
    use super::*;

    fn endpoint(registry: &Registry) -> Arc<Endpoint> {
        let addr = SocketAddr::from(([192, 0, 2, 1], 80));
        registry.resolve(&EndpointId { service: ServiceName::new("web"), addr })
    }

    #[test]
    fn a_handle_survives_by_identity_and_is_queued_once() {
        let registry = Registry::default();
        let first = endpoint(&registry);
        first.set_health(Health::Down);
        first.set_weight(7);
        assert!(Arc::ptr_eq(&first, &endpoint(&registry)));
        assert_eq!(first.availability(), Availability::Down);
        assert_eq!(registry.changes().take().len(), 1);
        assert!(registry.changes().take().is_empty());
        first.set_health(Health::Down);
        assert!(registry.changes().take().is_empty());
        first.set_health(Health::Up);
        first.set_weight(0);
        assert_eq!(first.availability(), Availability::Draining);
    }

    #[test]
    fn one_that_is_out_drains_and_says_why() {
        let registry = Registry::default();
        let endpoint = endpoint(&registry);
        endpoint.set_out(true);
        assert_eq!(endpoint.availability(), Availability::Draining);
        assert_eq!(registry.changes().take().len(), 1);
        endpoint.set_health(Health::Down);
        assert_eq!(endpoint.availability(), Availability::Down, "a check that fails is harder evidence");
        assert_eq!(endpoint.reasons().collect::<Vec<_>>(), [Reason::Check, Reason::Attempts]);
        endpoint.set_health(Health::Up);
        endpoint.set_out(false);
        assert_eq!((endpoint.availability(), endpoint.reasons().next()), (Availability::Active, None));
    }

    #[test]
    fn each_way_has_its_own_health() {
        let registry = Registry::default();
        let endpoint = endpoint(&registry);
        endpoint.set_health_by(Reach::Gue, Health::Down);
        assert_eq!(registry.changes().take().len(), 1);
        assert_eq!(endpoint.availability_by(Reach::Gue), Availability::Down);
        assert_eq!(endpoint.availability_by(Reach::Ipip), Availability::Active);
        assert_eq!(endpoint.availability_by(Reach::Straight), Availability::Active);
        assert_eq!(endpoint.health(), Health::Down, "nobody checks the agent's own way");
        endpoint.set_straight(true);
        assert_eq!(endpoint.health(), Health::Unknown, "somebody checks it, and has no verdict yet");
        endpoint.set_health_by(Reach::Straight, Health::Up);
        assert_eq!(endpoint.availability(), Availability::Active);
        assert_eq!(endpoint.availability_at_worst(), Availability::Down);
        assert_eq!(endpoint.reasons().collect::<Vec<_>>(), [Reason::Check]);
        endpoint.set_health_by(Reach::Gue, Health::Up);
        endpoint.set_health_by(Reach::Straight, Health::Down);
        assert_eq!(endpoint.availability(), Availability::Down);
        assert_eq!(endpoint.availability_by(Reach::Gue), Availability::Active);
    }

    #[test]
    fn attempts_are_counted_and_compared() {
        let endpoint = endpoint(&Registry::default());
        for has_failed in [false, true, false] {
            endpoint.attempted(has_failed);
        }
        let seen = endpoint.attempts();
        assert_eq!(seen, Attempts { tried: 3, failed: 1 });
        assert_eq!(seen.since(Attempts { tried: 1, failed: 1 }), Attempts { tried: 2, failed: 0 });
        assert_eq!(seen.since(Attempts { tried: 9, failed: 1 }), seen, "the counts began anew");
    }

    #[tokio::test]
    async fn waiting_for_down_ends_at_once_when_it_is_down() {
        let registry = Registry::default();
        let endpoint = endpoint(&registry);
        let waiter = Arc::clone(&endpoint);
        let task = tokio::task::spawn(async move { waiter.until_down().await });
        tokio::task::yield_now().await;
        endpoint.set_health(Health::Down);
        task.await.unwrap();
        endpoint.until_down().await;
    }
}
