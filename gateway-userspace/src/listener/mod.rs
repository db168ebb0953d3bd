//! Workers and their accept loops: one thread and one runtime per core, one listening socket per worker and address.
//!
//! A bind goes through three steps, so that nobody is refused while the configuration changes: its sockets listen
//! ([`Workers::bind`]), they are served once the state knows them ([`Workers::serve`]), and when nothing refers to them any
//! more they accept what still waits in the kernel's queue and close ([`Workers::retire`]).

mod accept;

use std::{
    collections::BTreeMap,
    fmt, io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Weak},
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Semaphore};

use crate::{
    access,
    clock::Clock,
    config::{ClientSettings, ClientTimeouts, OverloadSettings, TraceSettings},
    drain::{self, Rounds, Tasks, Trigger},
    guard::{Refused, Sources},
    http::{self, load::Load},
    kernel::heart::Heart,
    limits,
    memory::Memory,
    metrics::{Metrics, names::BindLabels},
    net::{
        accepted::Listener,
        clients::Clients,
        listen::{self, Place},
        sys,
    },
    pool::registry::Pools,
    state::{BindKey, Published, Transport},
    udp,
};

/// What workers are started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Number of threads; at least one.
    pub n_workers: usize,
    /// What each may hold.
    pub share: limits::Share,
    /// The state they serve.
    pub published: Arc<Published>,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Connections to endpoints, swept while they idle.
    pub pools: Arc<Pools>,
    /// Time.
    pub clock: Clock,
    /// The log of requests.
    pub access: Option<Arc<access::Log>>,
    /// Trace context of requests.
    pub trace: TraceSettings,
    /// When there is too much to do.
    pub overload: OverloadSettings,
    /// The memory of the process.
    pub memory: Arc<Memory>,
    /// What one client may hold.
    pub per_client: ClientSettings,
    /// How long clients are waited for.
    pub client_timeouts: ClientTimeouts,
    /// What is remembered of sources, where no kernel program guards the addresses.
    pub guard: Option<Arc<Sources>>,
    /// Where workers tell the kernel programs that they are alive.
    pub heart: Option<Arc<Heart>>,
}

/// All workers.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<Thread>,
    binds: Mutex<BTreeMap<BindKey, Vec<Socket>>>,
    /// Addresses that were given up, and what their connections hold.
    retired: Mutex<Vec<(BindKey, Vec<Weak<BindLabels>>)>>,
    /// Downstream connections, of all workers.
    connections: Tasks,
    /// Loops that let connections in.
    accepting: Tasks,
    metrics: Arc<Metrics>,
    guard: Option<Arc<Sources>>,
    memory: Arc<Memory>,
}

#[derive(Debug)]
struct Thread {
    handle: Handle,
    worker: Arc<http::Worker>,
    permits: Arc<Semaphore>,
    flows: Arc<udp::Flows>,
    stop: Trigger,
    join: Option<JoinHandle<()>>,
}

/// One listening socket of one worker.
#[derive(Debug)]
struct Socket {
    /// A handle on it, whoever serves it.
    fd: OwnedFd,
    /// Until it is served. Everything that may fail is done by then.
    ready: Option<Ready>,
    /// What its connections are counted under, held by each of them.
    labels: Arc<BindLabels>,
    /// Whether connections wait in the kernel for what their client says first.
    is_deferred: bool,
    /// Ends the accept loop.
    closing: Trigger,
    /// Ends the connections.
    drain: Rounds,
}

#[derive(Debug)]
enum Ready {
    /// Listens; connections wait in the kernel's queue.
    Tcp(Listener),
    /// Receives; datagrams wait in the kernel's buffer.
    Udp(tokio::net::UdpSocket),
}

/// A listening socket, for whoever steers connections to it.
#[derive(Debug)]
pub struct Listening {
    /// The address it serves.
    pub bind: BindKey,
    /// The worker that accepts from it.
    pub worker: usize,
    /// A handle of its own on the socket.
    pub fd: OwnedFd,
}

/// Why an address cannot be served.
#[derive(Debug)]
pub enum Error {
    /// A socket cannot be opened there.
    Bind {
        /// The address.
        bind: BindKey,
        /// What the kernel says.
        cause: io::Error,
    },
    /// A handle on a socket cannot be made.
    Handle(io::Error),
    /// A worker cannot be started.
    Start(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind { bind, cause } if cause.kind() == io::ErrorKind::AddrInUse => {
                write!(f, "cannot listen on {bind}: another process does; stop it or choose another port")
            }
            Self::Bind { bind, cause } if cause.kind() == io::ErrorKind::PermissionDenied => {
                write!(
                    f,
                    "cannot listen on {bind}: ports below 1024 need the capability CAP_NET_BIND_SERVICE"
                )
            }
            Self::Bind { bind, cause } => write!(f, "cannot listen on {bind}: {cause}"),
            Self::Handle(cause) => write!(f, "cannot duplicate a listening socket: {cause}"),
            Self::Start(cause) => write!(f, "cannot start a worker: {cause}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Bind { cause, .. } | Self::Handle(cause) | Self::Start(cause) => Some(cause),
        }
    }
}

impl Workers {
    /// Starts the threads; they serve nothing yet.
    pub fn start(settings: &Settings) -> Result<Self, Error> {
        let clients = Arc::new(Clients::new(settings.per_client));
        let threads = (0..settings.n_workers.max(1))
            .map(|idx| Thread::start(idx, settings, &clients))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            threads,
            binds: Mutex::default(),
            retired: Mutex::default(),
            connections: Tasks::default(),
            accepting: Tasks::default(),
            metrics: Arc::clone(&settings.metrics),
            guard: settings.guard.clone(),
            memory: Arc::clone(&settings.memory),
        })
    }

    /// Opens the sockets of every address that has none yet: all of them, or none.
    pub fn bind(&self, wanted: &[(BindKey, Place)]) -> Result<(), Error> {
        let mut binds = self.binds.lock();
        let mut opened = BTreeMap::new();
        for (bind, place) in wanted {
            if binds.contains_key(bind) {
                continue;
            }
            let sockets = self
                .threads
                .iter()
                .map(|thread| open(*bind, *place, thread))
                .collect::<io::Result<Vec<_>>>()
                .map_err(|cause| Error::Bind { bind: *bind, cause })?;
            opened.insert(*bind, sockets);
        }
        self.retired.lock().retain(|(bind, _)| !opened.contains_key(bind));
        binds.extend(opened);
        Ok(())
    }

    /// Handles on all listening sockets, by address and worker.
    pub fn sockets(&self) -> Result<Vec<Listening>, Error> {
        let binds = self.binds.lock();
        let handles = binds.iter().flat_map(|(bind, sockets)| {
            sockets.iter().enumerate().map(|(worker, socket)| {
                let fd = socket.fd.try_clone().map_err(Error::Handle)?;
                Ok(Listening { bind: *bind, worker, fd })
            })
        });
        handles.collect()
    }

    /// Leaves connections to the kernel until their client has said something, where clients speak first: accepting, reading
    /// and answering are then one step. Whoever says nothing is accepted a little later.
    pub fn expect(&self, speaks_first: impl Fn(&BindKey) -> bool) {
        for (bind, sockets) in self.binds.lock().iter_mut() {
            let is_deferred = speaks_first(bind);
            for socket in sockets.iter_mut().filter(|socket| socket.is_deferred != is_deferred) {
                match socket.defer(*bind, is_deferred) {
                    Ok(()) => socket.is_deferred = is_deferred,
                    // It costs no more than before.
                    Err(cause) => tracing::debug!(%cause, %bind, "connections are accepted at once"),
                }
            }
        }
    }

    /// Begins to accept from every socket that is bound: to be called when the state knows their addresses.
    pub fn serve(&self) {
        for (bind, sockets) in self.binds.lock().iter_mut() {
            for (thread, socket) in self.threads.iter().zip(sockets) {
                socket.serve(*bind, thread, self);
            }
        }
    }

    /// Lets the connections of every address end that `keep` refuses, and not those that it accepts from now on: to be called
    /// when the state is published under which they would be let in otherwise.
    pub fn renew(&self, keep: impl Fn(&BindKey) -> bool) {
        let binds = self.binds.lock();
        for socket in binds.iter().filter(|(bind, _)| !keep(bind)).flat_map(|(_, sockets)| sockets) {
            socket.drain.next();
        }
    }

    /// Gives up every address that `keep` refuses: to be called when nothing is steered there any more.
    pub fn retire(&self, keep: impl Fn(&BindKey) -> bool) {
        self.close(keep);
        self.forget_retired();
    }

    fn close(&self, keep: impl Fn(&BindKey) -> bool) {
        self.binds.lock().retain(|bind, sockets| {
            let stays = keep(bind);
            if !stays {
                sockets.iter().for_each(Socket::close);
                let held = sockets.iter().map(|socket| Arc::downgrade(&socket.labels));
                self.retired.lock().push((*bind, held.collect()));
            }
            stays
        });
    }

    /// Forgets what is counted of addresses that were given up, with the last of their connections: to be called now and
    /// then.
    pub fn forget_retired(&self) {
        self.retired.lock().retain(|(bind, held)| {
            let is_held = held.iter().any(|labels| labels.strong_count() > 0);
            if !is_held {
                let labels = Self::labels(*bind);
                self.metrics.families.forget(&labels, bind.addr);
                self.metrics.families.guarded.forget(&labels, Refused::ALL.map(Refused::as_str));
            }
            is_held
        });
    }

    /// Stops accepting, lets connections finish, and ends the threads; at most for `deadline`. How many connections were
    /// cut.
    pub async fn drain(mut self, deadline: Duration) -> usize {
        self.close(|_| false);
        // First whoever still waits to be let in: until then nobody knows that they are there.
        self.accepting.ended(deadline).await;
        let left = self.connections.ended(deadline).await;
        for thread in &mut self.threads {
            thread.stop.start();
        }
        for thread in &mut self.threads {
            if let Some(join) = thread.join.take()
                && join.join().is_err()
            {
                tracing::error!(worker = thread.worker.idx, "a worker panicked");
            }
        }
        left
    }

    fn labels(bind: BindKey) -> BindLabels {
        BindLabels { address: bind.addr.to_string(), protocol: bind.transport.as_str() }
    }
}

/// Steps of tasks between two looks at the sockets, while there is something to do; with nothing to do it looks at once.
/// More at a time means that more of what belongs together leaves in one write. A step takes some microseconds.
const EVENT_INTERVAL: u32 = 512;

impl Thread {
    fn start(idx: usize, settings: &Settings, clients: &Arc<Clients>) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .event_interval(EVENT_INTERVAL)
            .enable_all()
            .build()
            .map_err(Error::Start)?;
        let handle = runtime.handle().clone();
        settings.metrics.watch_tasks(format!("worker-{idx}"), &handle);
        let (stop, mut stopped) = drain::channel();
        let worker = Arc::new(http::Worker {
            idx,
            published: Arc::clone(&settings.published),
            metrics: Arc::clone(&settings.metrics),
            clock: settings.clock.clone(),
            access: settings.access.as_ref().map(|log| log.desk(idx)),
            trace: settings.trace,
            timeouts: settings.client_timeouts,
            clients: Arc::clone(clients),
            load: Arc::new(Load::new(&settings.overload, settings.n_workers, Arc::clone(&settings.memory))),
            mirrors: Arc::new(Semaphore::new(limits::MIRRORS)),
            tasks: Tasks::default(),
        });
        let pools = Arc::clone(&settings.pools);
        let load = Arc::clone(&worker.load);
        let heart = settings.heart.clone();
        let join = std::thread::Builder::new()
            .name(format!("worker-{idx}"))
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = stopped.begun() => {}
                        () = sweep(&pools, idx) => {}
                        () = load.watch() => {}
                        () = beat(heart.as_deref(), idx) => {}
                    }
                });
            })
            .map_err(Error::Start)?;
        let permits = Arc::new(Semaphore::new(settings.share.connections));
        let places = settings.share.is_scarce.then(|| Arc::clone(&permits));
        let flows = Arc::new(udp::Flows::new(settings.share.udp_flows, places));
        Ok(Self { handle, worker, permits, flows, stop, join: Some(join) })
    }
}

/// Time between two looks for idle connections when there were none: each looks at every pool.
const RELIEF_PAUSE: Duration = Duration::from_millis(50);

/// Closes idle connections to endpoints, for ever.
async fn sweep(pools: &Pools, worker: usize) {
    let mut ticks = tokio::time::interval(limits::POOL_IDLE / 4);
    loop {
        tokio::select! {
            _ = ticks.tick() => pools.sweep(worker, limits::POOL_IDLE),
            () = pools.crowded(worker) => {
                if !pools.relieve(worker) {
                    // All are busy, and whoever finds no place asks again.
                    tokio::time::sleep(RELIEF_PAUSE).await;
                }
            }
        }
    }
}

/// Tells the kernel programs that the worker is alive, for ever.
async fn beat(heart: Option<&Heart>, worker: usize) {
    match heart {
        Some(heart) => heart.beat(worker).await,
        None => std::future::pending().await,
    }
}

fn open(bind: BindKey, place: Place, thread: &Thread) -> io::Result<Socket> {
    // Sockets register with the runtime that they are entered in.
    let _entered = thread.handle.enter();
    let (fd, ready) = match bind.transport {
        Transport::Tcp => {
            let socket = listen::tcp(bind.addr, place)?;
            (socket.as_fd().try_clone_to_owned()?, Ready::Tcp(Listener::new(socket)?))
        }
        Transport::Udp => {
            let socket = listen::udp(bind.addr, place)?;
            let fd = socket.as_fd().try_clone_to_owned()?;
            (fd, Ready::Udp(tokio::net::UdpSocket::from_std(socket)?))
        }
    };
    let (closing, drain) = (drain::channel().0, Rounds::default());
    let labels = Arc::new(Workers::labels(bind));
    Ok(Socket { fd, ready: Some(ready), labels, is_deferred: false, closing, drain })
}

impl Socket {
    fn defer(&self, bind: BindKey, is_deferred: bool) -> io::Result<()> {
        let seconds = if is_deferred { limits::ACCEPT_DEFERRED_SECONDS } else { 0 };
        match bind.transport {
            Transport::Tcp => sys::defer_accept(&self.fd, seconds),
            Transport::Udp => Ok(()),
        }
    }

    fn serve(&mut self, bind: BindKey, thread: &Thread, workers: &Workers) {
        let _entered = thread.handle.enter();
        match self.ready.take() {
            None => {}
            Some(Ready::Tcp(socket)) => {
                let loop_ = accept::Loop {
                    bind,
                    worker: Arc::clone(&thread.worker),
                    permits: Arc::clone(&thread.permits),
                    connections: workers.connections.clone(),
                    drain: self.drain.clone(),
                    labels: Arc::clone(&self.labels),
                    guard: workers.guard.clone(),
                };
                drop(workers.accepting.spawn("accept loop", loop_.run(socket, self.closing.drain())));
            }
            Some(Ready::Udp(socket)) => {
                let forwarder = udp::Forwarder {
                    bind,
                    flows: Arc::clone(&thread.flows),
                    published: Arc::clone(&thread.worker.published),
                    metrics: Arc::clone(&workers.metrics),
                    clock: thread.worker.clock.clone(),
                    tasks: thread.worker.tasks.clone(),
                    labels: Arc::clone(&self.labels),
                    guard: workers.guard.clone(),
                    memory: Arc::clone(&workers.memory),
                };
                drop(
                    thread.worker.tasks.spawn("datagram loop", forwarder.serve(socket, self.closing.drain())),
                );
            }
        }
    }

    fn close(&self) {
        self.closing.start();
        self.drain.end();
    }
}
