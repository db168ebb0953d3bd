//! The control loop: one task that takes what is wanted, compiles it, and brings workers, probes and the kernel to it.
//!
//! A change goes in this order, and only if all of it compiles: bind new sockets, publish the state, serve, write the
//! image, check the new endpoints, give up what nothing refers to. A kernel write that fails is tried again; the state
//! serves on meanwhile, and `kernel_in_step` shows the gap.

mod interfaces;
mod kernel_side;
mod publisher;
mod sockets;

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

pub use crate::control::{
    interfaces::{Places, interfaces_of},
    kernel_side::KernelSide,
};
use crate::{
    admin::ready::Board,
    clock::{self, Clock},
    compile::{
        Fault, Faults,
        service::{self, served},
        state::{Shared, state},
    },
    drain::Drain,
    endpoint::Registry,
    listener::{self, Workers},
    metrics::{Metrics, names::OutcomeLabels},
    net::listen::Place,
    observer::Observer,
    prober::Prober,
    snapshot::Snapshot,
    source::watch::Update,
    stapler::Stapler,
    state::{Bind, BindKey, Published, State},
};

/// Pause between two publications of the same table, and to gather what changes together.
const SETTLE: Duration = Duration::from_millis(1);

/// How often failed writes are tried again and leftovers are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// What the loop works with.
pub struct Control {
    /// For compiling.
    pub shared: Shared,
    /// The state that is served.
    pub published: Arc<Published>,
    /// The snapshot that is served, for the operator.
    pub wanted: Arc<ArcSwap<Snapshot>>,
    /// Accept loops.
    pub workers: Workers,
    /// Health checks.
    pub prober: Prober,
    /// Questions to authorities.
    pub stapler: Stapler,
    /// Clients' attempts.
    pub observer: Arc<Observer>,
    /// Live endpoints.
    pub registry: Arc<Registry>,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Readiness.
    pub board: Arc<Board>,
    /// The kernel, unless everything is served in userspace.
    pub kernel: Option<KernelSide>,
    /// Time.
    pub clock: Clock,
}

/// Why a snapshot was not taken.
#[derive(Debug)]
pub enum Refusal {
    /// It does not compile.
    Faults(Faults),
    /// An address cannot be listened on.
    Listen(listener::Error),
    /// The kernel's maps have no room for it.
    Full(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Faults(faults) => faults.fmt(f),
            Self::Listen(error) => error.fmt(f),
            Self::Full(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Refusal {}

impl Control {
    /// Takes a snapshot, or leaves everything as it is and says why.
    ///
    /// # Errors
    /// When it cannot be served.
    pub async fn apply(&mut self, snapshot: Snapshot) -> Result<(), Refusal> {
        let applied = self.try_apply(snapshot).await;
        if applied.is_err() {
            // Compiling made handles for endpoints that nobody serves now.
            let wanted = self.wanted.load();
            let served = served(&wanted);
            if let Some(kernel) = &mut self.kernel {
                kernel.forget_made();
            }
            service::settle(&wanted, None, &self.registry);
            let retired = self.kernel.as_ref().map_or_else(BTreeSet::new, KernelSide::retired);
            self.registry.retain(|id| served.contains(id) || retired.contains(id));
        }
        applied
    }

    async fn try_apply(&mut self, snapshot: Snapshot) -> Result<(), Refusal> {
        if self.kernel.is_none() {
            check_ports(&snapshot).map_err(Refusal::Faults)?;
            warn_of_guards(&snapshot);
        }
        let before = self.published.load();
        let compiled = state(&snapshot, &self.shared, Some(&before)).map_err(Refusal::Faults)?;
        let binds = self.binds(&compiled);
        self.workers.bind(&binds).map_err(Refusal::Listen)?;
        let image = match &mut self.kernel {
            Some(kernel) => {
                match kernel.compile(&snapshot, &self.registry, &self.workers, &binds, self.clock.now()) {
                    Ok(image) => Some(image),
                    Err(refusal) => {
                        let kept = self.binds(&before);
                        self.workers.retire(|bind| kept.iter().any(|(kept, _)| kept == bind));
                        return Err(refusal);
                    }
                }
            }
            None => None,
        };
        // Nothing waits from here on until the image is written: what is published meanwhile would be of the image before.
        if let (Some(kernel), Some(image)) = (&mut self.kernel, &image) {
            kernel.learn_new_ways(image).await;
        }
        let wanted = self.wanted.load();
        // Before the first snapshot there may be endpoints of an earlier agent.
        let former = (wanted.generation != 0).then_some(&**wanted);
        service::settle(&snapshot, former, &self.registry);
        let compiled = Arc::new(compiled);
        self.published.publish(Arc::clone(&compiled));
        self.workers.renew(|bind| compiled.admits_as(&before, bind));
        self.report_certificates(&before, &compiled);
        self.stapler.apply(compiled.expiries.values().filter_map(|expiry| expiry.fetched.as_ref()));
        self.workers.expect(|bind| compiled.binds.get(bind).is_some_and(Bind::hears_client_first));
        self.workers.serve();
        if let (Some(kernel), Some(image)) = (&mut self.kernel, image) {
            kernel.take(image).await;
        }
        let served = served(&snapshot);
        let probes: Vec<_> = compiled.probes.clone();
        self.prober.apply(&probes, |id| served.contains(id));
        self.observer.apply(compiled.watched.clone());
        let kept: BTreeSet<BindKey> = binds.iter().map(|(bind, _)| *bind).collect();
        self.workers.retire(|bind| kept.contains(bind));
        let retired = self.kernel.as_mut().map_or_else(BTreeSet::new, |kernel| kernel.settle(&kept));
        self.registry.retain(|id| served.contains(id) || retired.contains(id));
        self.metrics.families.config_generation.set(i64::try_from(snapshot.generation).unwrap_or(i64::MAX));
        self.wanted.store(Arc::new(snapshot));
        self.report_kernel();
        Ok(())
    }

    /// Goes on until the drain begins.
    pub async fn run(&mut self, updates: mpsc::Receiver<Update>, drain: Drain) {
        let (refuse, refusals) = mpsc::channel(1);
        let maps = self.kernel.as_ref().map(KernelSide::maps);
        let publish = publisher::publish(self.registry.changes(), maps, refuse);
        tokio::select! {
            () = publish => {}
            () = self.go_on(updates, refusals, drain) => {}
        }
    }

    async fn go_on(
        &mut self,
        mut updates: mpsc::Receiver<Update>,
        mut refusals: mpsc::Receiver<String>,
        mut drain: Drain,
    ) {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = drain.begun() => return,
                Some(update) = updates.recv() => self.update(update).await,
                Some(why) = refusals.recv() => {
                    if let Some(kernel) = &mut self.kernel {
                        kernel.note(Err(why));
                    }
                    self.report_kernel();
                }
                () = netlink_changed(&mut self.kernel, &self.clock) => {
                    if let Some(kernel) = &mut self.kernel {
                        kernel.follow(&self.clock).await;
                    }
                }
                _ = housekeeping.tick() => self.keep_house().await,
            }
        }
    }

    async fn update(&mut self, update: Update) {
        for warning in &update.warnings {
            tracing::warn!("{warning}");
        }
        if update.agent_changed {
            tracing::warn!("the `agent` part of the configuration changed: restart the agent to take it");
        }
        let outcome = match update.snapshot {
            Ok(snapshot) => {
                let generation = snapshot.generation;
                match self.apply(snapshot).await {
                    Ok(()) => {
                        tracing::info!(generation, "took the new configuration");
                        "applied"
                    }
                    Err(refusal) => {
                        tracing::error!("refused the new configuration, nothing changed: {refusal}");
                        "refused"
                    }
                }
            }
            Err(faults) => {
                tracing::error!("refused the new configuration, nothing changed:\n{faults}");
                "refused"
            }
        };
        self.metrics.families.config_reloads.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    async fn keep_house(&mut self) {
        if let Some(kernel) = &mut self.kernel {
            kernel.keep_house().await;
        }
        self.workers.forget_retired();
        self.report_staples();
        self.report_kernel();
    }

    /// Answers of authorities come without a new configuration.
    fn report_staples(&self) {
        for ((listener, certificate), expiry) in &self.published.load().expiries {
            if let Some(fetched) = &expiry.fetched {
                let handshakes = &self.metrics.families.handshakes;
                handshakes.expires(listener.as_str(), certificate, expiry.certificate_s, fetched.until_s());
            }
        }
    }

    fn report_certificates(&self, before: &State, now: &State) {
        let handshakes = &self.metrics.families.handshakes;
        for ((listener, certificate), expiry) in &now.expiries {
            handshakes.expires(listener.as_str(), certificate, expiry.certificate_s, expiry.staple_s);
            if expiry.staple_s.is_some_and(|until_s| until_s <= clock::wall_s()) {
                tracing::warn!(%listener, certificate, "its OCSP response has expired and is not sent");
            }
        }
        for key in before.expiries.keys().filter(|key| !now.expiries.contains_key(key)) {
            handshakes.dropped(key.0.as_str(), &key.1);
        }
        for ((service, certificate), at_s) in &now.endpoint_expiries {
            handshakes.shown_expires(service.as_str(), certificate, *at_s);
        }
        let shown = before.endpoint_expiries.keys();
        for key in shown.filter(|key| !now.endpoint_expiries.contains_key(key)) {
            handshakes.shown_dropped(key.0.as_str(), &key.1);
        }
    }

    fn report_kernel(&self) {
        let Some(kernel) = &self.kernel else { return };
        self.metrics.families.kernel_in_step.set(i64::from(kernel.is_in_step()));
        match kernel.gap() {
            Some(why) => self.board.missing("kernel", why),
            None => self.board.met("kernel"),
        }
    }

    /// Where each address is listened on. What the kernel balances needs no socket.
    fn binds(&self, state: &State) -> Vec<(BindKey, Place)> {
        let place = if self.kernel.is_some() { Place::Steered } else { Place::Virtual };
        let mine = |(key, bind): (&BindKey, &Bind)| {
            (self.kernel.is_none() || bind.is_by_agent()).then_some((*key, place))
        };
        state.binds.iter().filter_map(mine).collect()
    }
}

/// What only the kernel side refuses.
fn warn_of_guards(snapshot: &Snapshot) {
    for listener in snapshot.listeners.iter().filter(|listener| listener.fails_open) {
        let listener = listener.name.as_str();
        tracing::warn!(listener, "without the kernel side `failMode: open` has no effect");
    }
    for listener in snapshot.listeners.iter().filter(|listener| listener.syn_cookies.is_some()) {
        let listener = listener.name.as_str();
        tracing::warn!(listener, "without the kernel side `synCookies` has no effect");
    }
}

/// Sockets listen on one port each.
fn check_ports(snapshot: &Snapshot) -> Result<(), Faults> {
    let several = snapshot.listeners.iter().filter(|listener| !listener.packets.ports.is_empty());
    let faults: Vec<Fault> = several
        .map(|listener| Fault {
            place: format!("listener `{}`", listener.name),
            message: "`ports` needs eBPF, and this agent serves in userspace; write a listener for each port, or let it use \
                      eBPF (its log says what is missing)"
                .to_owned(),
        })
        .collect();
    if faults.is_empty() { Ok(()) } else { Err(Faults(faults)) }
}

/// Never resolves without a kernel.
async fn netlink_changed(kernel: &mut Option<KernelSide>, clock: &Clock) {
    match kernel {
        Some(kernel) => kernel.changed(clock).await,
        None => std::future::pending().await,
    }
}
