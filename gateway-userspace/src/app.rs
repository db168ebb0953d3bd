//! The agent as a whole: wires everything, starts it in order, stops it in reverse.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use gateway_common::{
    addr::Port,
    hash::Seed,
    receive::{Peer, Receive},
};
use parking_lot::Mutex;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{
    access,
    address::Netlink,
    admin::{
        self, View,
        ready::{Board, Readiness},
    },
    clock::Clock,
    compile::state::Shared,
    config::{
        AgentSettings, AttachMode, KernelMode, KernelSettings, LogFormat, LogSettings, SeedSource,
        fault::Faults,
    },
    control::{Control, KernelSide, Places, interfaces_of},
    drain::{self, Tasks},
    endpoint::Registry,
    guard,
    kernel::{self, Kernel},
    limits,
    listener::{Settings, Workers},
    memory::Memory,
    metrics::{
        Metrics,
        names::{EndpointSample, ModeLabels, Samples},
    },
    net::connect,
    network::Network,
    observer::Observer,
    pool::registry::{self, Pools},
    prober::{self, Prober},
    snapshot::Snapshot,
    source::{file::Loaded, watch::FileSource},
    stapler::Stapler,
    state::Published,
    tls,
    upstream::Parts,
};

/// How the agent ended.
#[derive(Debug)]
pub enum Ended {
    /// It was told to, and drained.
    Drained,
    /// The configuration was refused.
    Refused(Faults),
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// When something it needs cannot be had.
pub fn run(file: &Path) -> anyhow::Result<Ended> {
    let (loaded, source) = match FileSource::open(file) {
        Ok(opened) => opened,
        Err(faults) => return Ok(Ended::Refused(faults)),
    };
    start_log(loaded.config.agent.log);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("control")
        .build()
        .context("cannot start the control runtime")?;
    let ended = runtime.block_on(agent(loaded, source));
    // Names that are still looked up, and files that are still read, are nobody's any more.
    runtime.shutdown_timeout(limits::LAST_WORK);
    ended.map(|()| Ended::Drained)
}

/// Puts the host back: links, pins, local routes and addresses. What was removed, a line each.
///
/// # Errors
/// When something cannot be removed.
pub fn cleanup(bpffs: &Path) -> anyhow::Result<Vec<String>> {
    let removed = kernel::cleanup(bpffs).context("cannot remove what is pinned")?;
    let mut lines: Vec<String> = removed.iter().map(|path| format!("pin {}", path.display())).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let tasks = Tasks::default();
        let (netlink, _changes) = Netlink::open(&tasks)?;
        for addr in netlink.local_addrs().await? {
            lines.push(format!("local route of {addr}"));
        }
        for (interface, addr) in netlink.assigned().await? {
            lines.push(format!("address {addr} of interface {interface}"));
        }
        netlink.set_assigned(&std::collections::BTreeSet::new()).await?;
        netlink.set_local(&std::collections::BTreeSet::new()).await
    })?;
    Ok(lines)
}

async fn agent(loaded: Loaded, source: FileSource) -> anyhow::Result<()> {
    let Loaded { config, snapshot, warnings } = loaded;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let agent = config.agent;
    // First: until somebody listens to them they end the process, and it takes a while until it serves.
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (trigger, drain) = drain::channel();
    let tasks = Tasks::default();
    let board = Arc::new(Board::default());
    board.missing("configuration", "not taken yet");
    let admin = tokio::net::TcpListener::bind(agent.admin)
        .await
        .with_context(|| format!("agent.admin.address: cannot listen on {}", agent.admin))?;
    let metrics = Arc::new(Metrics::new(agent.workers.get()));
    metrics.watch_tasks("control", &tokio::runtime::Handle::current());
    let kernel = start_kernel(&agent, &metrics)?;
    if let Some(records) = kernel.as_ref().and_then(|kernel| kernel.lock().take_records()) {
        drop(tasks.spawn("kernel records", records.log()));
    }
    let journal = follow_events(kernel.as_ref(), &metrics, &tasks);
    let access = agent.access_log.as_ref().map(|settings| access::Log::start(settings, &metrics));
    let access = access.transpose().context("agent.accessLog.output: cannot be opened")?;
    let mut control = assemble(&agent, kernel.clone(), &metrics, &board, (&tasks, access.clone()))?;
    let view = Arc::new(Window {
        metrics: Arc::clone(&metrics),
        board: Arc::clone(&board),
        wanted: Arc::clone(&control.wanted),
        published: Arc::clone(&control.published),
        registry: Arc::clone(&control.registry),
        journal,
        kernel,
    });
    let (stop_admin, admin_drain) = drain::channel();
    drop(tasks.spawn("admin", admin::serve::serve(admin, view, tasks.clone(), admin_drain)));
    control
        .apply(snapshot)
        .await
        .map_err(|refusal| anyhow::anyhow!("cannot serve the configuration: {refusal}"))?;
    board.met("configuration");
    tracing::info!(admin = %agent.admin, workers = agent.workers, "serving");

    let reload = source.handle();
    let (updates, wanted) = mpsc::channel(1);
    drop(tasks.spawn("file source", source.run(updates, drain.clone())));
    tokio::select! {
        () = control.run(wanted, drain) => {}
        () = async { while hangup.recv().await.is_some() { reload.reload(); } } => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(deadline = ?agent.drain_deadline, "draining");
    board.missing("drain", "the agent is stopping");
    trigger.start();
    let Control { workers, prober, .. } = control;
    let cut = workers.drain(agent.drain_deadline).await;
    prober.stop();
    stop_admin.start();
    if let Some(access) = access {
        access.close(limits::ACCESS_LOG_PATIENCE);
    }
    if cut > 0 {
        tracing::warn!(cut, "connections were cut at the deadline");
    }
    tracing::info!("stopped; what is pinned stays until the next agent or `sluice cleanup`");
    Ok(())
}

/// Where the last single packets stand that the kernel tells of, if it does.
fn follow_events(
    kernel: Option<&Arc<Mutex<Kernel>>>,
    metrics: &Arc<Metrics>,
    tasks: &Tasks,
) -> Arc<admin::events::Journal> {
    let journal = Arc::new(admin::events::Journal::default());
    if let Some(kernel) = kernel
        && let Some(events) = kernel.lock().take_events()
    {
        let following =
            admin::events::follow(events, Arc::clone(kernel), Arc::clone(&journal), Arc::clone(metrics));
        drop(tasks.spawn("kernel events", following));
    }
    journal
}

/// The control loop with everything it works with.
fn assemble(
    agent: &AgentSettings,
    kernel: Option<Arc<Mutex<Kernel>>>,
    metrics: &Arc<Metrics>,
    board: &Arc<Board>,
    (tasks, access): (&Tasks, Option<Arc<access::Log>>),
) -> anyhow::Result<Control> {
    let n_workers = agent.workers.get();
    let clock = Clock::real();
    let registry = Arc::new(Registry::default());
    let share = limits::Share::per_worker(raise_descriptor_limit(), n_workers);
    let shared = registry::Shared::new((n_workers, share), tasks, &clock, &metrics.families);
    let pools = Arc::new(Pools::new(shared));
    // The kernel side needs the privilege that a mark needs; without it nothing of ours could touch own traffic.
    let options = connect::Options { mark: kernel.is_some().then_some(connect::OWN_MARK) };
    let parts = Parts {
        registry: Arc::clone(&registry),
        pools: Arc::clone(&pools),
        metrics: Arc::clone(metrics),
        tasks: tasks.clone(),
        options,
    };
    let seed = seed(kernel.as_ref(), &agent.kernel.seed);
    let tunnelled = kernel.as_ref().map(|kernel| kernel.lock().tunnelled());
    sample(metrics, &registry, &pools, kernel.clone());
    let published = Arc::new(Published::default());
    let workers = Workers::start(&Settings {
        n_workers,
        share,
        published: Arc::clone(&published),
        metrics: Arc::clone(metrics),
        pools,
        clock: clock.clone(),
        access,
        trace: agent.trace,
        overload: agent.overload,
        memory: Memory::watched(agent.overload.memory_bytes, &metrics.families, tasks),
        per_client: agent.per_client,
        client_timeouts: agent.client_timeouts,
        guard: kernel.is_none().then(|| Arc::new(guard::Sources::new(clock.clone()))),
        heart: kernel.as_ref().map(|kernel| kernel.lock().heart()),
    })?;
    let observer = observe(kernel.clone(), metrics, tasks);
    let kernel = match kernel {
        Some(kernel) => {
            let netlink = Netlink::open(tasks)?;
            tracing::info!(interfaces = interfaces_of(&agent.kernel.interfaces), "following interfaces");
            let places = places(&agent.kernel);
            Some(KernelSide::new(kernel, netlink, (places, metrics.families.clone()), n_workers))
        }
        None => None,
    };
    let tls = tls::Context::new()?;
    Ok(Control {
        stapler: stapler(agent, metrics, tasks, options, &tls)?,
        shared: Shared { parts, tls, seed, is_guarding: kernel.is_none() },
        published,
        wanted: Arc::new(ArcSwap::from_pointee(Snapshot::default())),
        workers,
        prober: Prober::new(tasks.clone(), Arc::clone(metrics), prober::Path { options, tunnelled }),
        observer,
        registry,
        metrics: Arc::clone(metrics),
        board: Arc::clone(board),
        kernel,
        clock,
    })
}

/// Who asks authorities about certificates.
fn stapler(
    agent: &AgentSettings,
    metrics: &Arc<Metrics>,
    tasks: &Tasks,
    options: connect::Options,
    tls: &tls::Context,
) -> anyhow::Result<Stapler> {
    let state = agent.state_folder.as_deref();
    Stapler::new(tasks.clone(), Arc::clone(metrics), options, tls.algorithms(), state)
        .with_context(|| format!("cannot use agent.stateFolder {}", state.unwrap_or(Path::new("")).display()))
}

/// The cluster's seed, as the kernel has it.
fn seed(kernel: Option<&Arc<Mutex<Kernel>>>, source: &SeedSource) -> Seed {
    match (kernel, source) {
        (Some(kernel), _) => kernel.lock().seed(),
        (None, SeedSource::Given(secret)) => Seed::from_bytes(secret_bytes(secret.expose())),
        (None, SeedSource::Node) => Seed::from_bytes(fastrand::u128(..).to_le_bytes()),
    }
}

/// Looks at clients' attempts from now on.
fn observe(kernel: Option<Arc<Mutex<Kernel>>>, metrics: &Arc<Metrics>, tasks: &Tasks) -> Arc<Observer> {
    let observer = Arc::new(Observer::new(kernel, Arc::clone(metrics), Clock::real()));
    drop(tasks.spawn("observer", Arc::clone(&observer).run()));
    observer
}

/// Where hooks and addresses belong.
fn places(kernel: &KernelSettings) -> Places {
    Places {
        balanced: kernel.interfaces.clone(),
        receiving: kernel.receive.as_ref().map(|receive| receive.interfaces.clone()),
        pods: kernel.pods.clone(),
        announced: kernel.announce.clone(),
    }
}

/// The kernel side, or none where userspace does everything; says once what is lost.
fn start_kernel(agent: &AgentSettings, metrics: &Metrics) -> anyhow::Result<Option<Arc<Mutex<Kernel>>>> {
    let settings = kernel_settings(agent);
    let started = match agent.kernel.mode {
        KernelMode::Off => None,
        KernelMode::Required => Some(Kernel::start(&settings).context("agent.kernel.mode is `required`")?),
        KernelMode::Auto => match Kernel::start(&settings) {
            Ok(kernel) => Some(kernel),
            // Another agent is not a missing feature: two on one node would disagree.
            Err(error @ (kernel::Error::Locked { .. } | kernel::Error::Running)) => return Err(error.into()),
            Err(error) => {
                let why = anyhow::Error::from(error);
                tracing::warn!(
                    "running without eBPF: layer 4 takes two sockets for each connection and ends with the agent; {why:#}"
                );
                None
            }
        },
    };
    if started.is_none() {
        let_go(&settings.bpffs)?;
    }
    let mode = if started.is_some() { "ebpf" } else { "userspace" };
    for name in ["ebpf", "userspace"] {
        metrics.families.kernel_mode.get_or_create(&ModeLabels { mode: name }).set(i64::from(name == mode));
    }
    Ok(started.map(|kernel| Arc::new(Mutex::new(kernel))))
}

/// Takes as many file descriptors as the system lets this process have; how many that are.
fn raise_descriptor_limit() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1_024 };
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    let n_descriptors = if raised { hard } else { soft };
    tracing::debug!(n_descriptors, "file descriptors for this process");
    usize::try_from(n_descriptors).unwrap_or(usize::MAX)
}

/// Ends what an earlier agent left in the kernel, which would go on beside this one and know nothing new.
fn let_go(bpffs: &Path) -> anyhow::Result<()> {
    match kernel::let_go(bpffs) {
        Ok(removed) => {
            for pin in removed {
                tracing::warn!(pin = %pin.display(), "removed the hook of an earlier agent; this one serves in userspace");
            }
            Ok(())
        }
        Err(error @ (kernel::Error::Locked { .. } | kernel::Error::Running)) => Err(error.into()),
        Err(error) => {
            let why = anyhow::Error::from(error);
            tracing::error!(
                "an earlier agent left hooks in the kernel that this one may not remove: they go on without it; run `sluice cleanup` as root; {why:#}"
            );
            Ok(())
        }
    }
}

fn kernel_settings(agent: &AgentSettings) -> kernel::Settings {
    let kernel = &agent.kernel;
    kernel::Settings {
        bpffs: kernel.bpffs.clone(),
        attach: match kernel.attach {
            AttachMode::Auto => kernel::AttachMode::Auto,
            AttachMode::Native => kernel::AttachMode::Native,
            AttachMode::Generic => kernel::AttachMode::Generic,
            AttachMode::Tc => kernel::AttachMode::Tc,
        },
        ports: kernel.translation_ports.clone(),
        seed: match &kernel.seed {
            SeedSource::Given(secret) => Some(secret_bytes(secret.expose())),
            SeedSource::Node => None,
        },
        flows: kernel.flows.unwrap_or_else(kernel::flows_of_node),
        change_window: kernel.change_window,
        fail_open_after: kernel.fail_open_after,
        echo: kernel.echo,
        tunnel: kernel.tunnel,
        tcx: true,
        events: kernel.events,
        connect: kernel
            .connect
            .as_ref()
            .map(|connect| kernel::Connect { cgroup: connect.cgroup.clone(), sockets: connect.sockets }),
        receive: kernel.receive.as_ref().map_or_else(Receive::default, |receive| {
            let peer = |network: &Network| Peer::new(network.addr.into(), network.prefix_bits);
            Receive::new(receive.peers.iter().map(peer), Port::new(receive.port))
        }),
    }
}

fn secret_bytes(bytes: &[u8]) -> [u8; 16] {
    let mut seed = [0; 16];
    for (to, from) in seed.iter_mut().zip(bytes) {
        *to = *from;
    }
    seed
}

/// What is asked at every scrape.
fn sample(
    metrics: &Metrics,
    registry: &Arc<Registry>,
    pools: &Arc<Pools>,
    kernel: Option<Arc<Mutex<Kernel>>>,
) {
    let (registry, pools) = (Arc::clone(registry), Arc::clone(pools));
    metrics.sample_with(move || {
        let endpoints = registry.all();
        let mut samples = Samples {
            pools: pools.samples(),
            endpoints: endpoints
                .iter()
                .map(|endpoint| EndpointSample {
                    service: endpoint.id().service.to_string(),
                    endpoint: endpoint.addr().to_string(),
                    up: endpoint.availability_at_worst() != crate::endpoint::Availability::Down,
                    is_out: endpoint.is_out(),
                })
                .collect(),
            ..Samples::default()
        };
        let counters = kernel.as_ref().map(|kernel| kernel::Counters::read(kernel));
        match counters {
            Some(Ok(counters)) => admin::samples::add(&mut samples, &counters),
            Some(Err(error)) => tracing::warn!(%error, "cannot read the kernel's counters"),
            None => {}
        }
        samples
    });
}

/// The operator's window onto all of it.
struct Window {
    metrics: Arc<Metrics>,
    board: Arc<Board>,
    wanted: Arc<ArcSwap<Snapshot>>,
    published: Arc<Published>,
    registry: Arc<Registry>,
    kernel: Option<Arc<Mutex<Kernel>>>,
    journal: Arc<admin::events::Journal>,
}

impl View for Window {
    fn metrics(&self) -> String {
        self.metrics.encode().unwrap_or_else(|error| format!("# cannot encode: {error}\n"))
    }

    fn readiness(&self) -> Readiness {
        self.board.readiness()
    }

    fn events(&self) -> serde_json::Value {
        self.journal.shown()
    }

    fn dump(&self) -> serde_json::Value {
        let kernel = self.kernel.as_ref().map(|kernel| admin::dump::kernel(kernel));
        serde_json::json!({
            "wanted": admin::dump::wanted(&self.wanted.load()),
            "served": admin::dump::served(&self.published.load(), &self.registry),
            "kernel": kernel,
        })
    }
}

fn start_log(settings: LogSettings) {
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = EnvFilter::new(settings.level.as_str());
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let started = match settings.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    if let Err(error) = started {
        // A second logger in one process: the first goes on.
        eprintln!("sluice: {error}");
    }
}

/// The BPF file system that a configuration names, for a cleanup.
///
/// # Errors
/// When the configuration is refused.
pub fn bpffs_of(file: &Path) -> Result<PathBuf, Faults> {
    crate::source::file::load(file).map(|loaded| loaded.config.agent.kernel.bpffs)
}
