//! The only door to the kernel's programs and maps.
//!
//! A [`Kernel`] is what was loaded, attached and pinned. When it is dropped, links and maps stay: packets are balanced
//! while the agent restarts. [`cleanup`] removes them.

mod announced;
mod attach;
pub mod attempts;
mod cookies;
mod counts;
mod error;
mod events;
mod filter;
mod former;
mod generation;
pub mod heart;
pub mod index;
mod map;
pub mod maps;
pub mod memory;
mod object;
mod pairs;
mod pin;
pub mod plan;
mod pods;
pub mod probe;
mod records;
mod row;
mod sizes;
pub mod sources;
mod sweep;
mod sys;
pub mod ticks;
pub mod tunnelled;
mod upgrade;
pub mod writer;

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs, io,
    net::IpAddr,
    os::{
        fd::AsRawFd,
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use gateway_common::{
    addr::Port,
    hash::Seed,
    layout::PIN_ROOT,
    map::FRAGMENT_BUCKETS,
    receive::Receive,
    settings::{Ports, Settings as Row, Tables, Timeouts, Tunnel},
};

pub use crate::kernel::{
    attach::{AttachMode, Attachment, Beside, Connect, Kept},
    counts::{AT_ONCE, Counters, OfEndpoint},
    error::Error,
    events::Events,
    records::Records,
    sizes::flows_of_node,
};
use crate::{
    clock::Clock,
    endpoint::Endpoint,
    image::{Capacity, Image, Way},
    kernel::{
        announced::Announced,
        attach::Attacher,
        cookies::Renewal,
        heart::Heart,
        map::KernelMaps,
        maps::{Maps as _, Observed},
        object::Pins,
        pairs::Pairs,
        sweep::Sweep,
        ticks::Ticks,
        tunnelled::Tunnelled,
        writer::{Terms, Writer, Written},
    },
};

/// What the kernel side is told at start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the BPF file system is, or shall be, mounted.
    pub bpffs: PathBuf,
    /// How to attach.
    pub attach: AttachMode,
    /// Ports for translation, inclusive.
    pub ports: std::ops::RangeInclusive<u16>,
    /// The cluster's seed; without one, the seed in the pinned settings, or else a random one.
    pub seed: Option<[u8; 16]>,
    /// Flows that are remembered in each direction.
    pub flows: u32,
    /// How long slots remember the endpoints before a change.
    pub change_window: Duration,
    /// Whether echo requests to virtual addresses are answered by the programs.
    pub echo: bool,
    /// How tunnelled packets look on the outside.
    pub tunnel: Tunnel,
    /// Links at TC, where the kernel has them (Linux 6.6); without, filters as every kernel has them.
    pub tcx: bool,
    /// Whose tunnels end at this node.
    pub receive: Receive,
    /// Packets that each processor tells of for each reason, in a second; zero for none.
    pub events: u16,
    /// Time after which a worker that tells nothing is taken for silent.
    pub fail_open_after: Duration,
    /// Whose sockets are translated; none for nobody's.
    pub connect: Option<Connect>,
}

/// Timeouts of flows: a minute for what never opened or is closed, two hours for silence as in RFC 5382, two minutes for
/// UDP as in RFC 4787.
fn timeouts(ticks: Ticks) -> Timeouts {
    Timeouts {
        opening: ticks.of(Duration::from_mins(1)),
        open: ticks.of(Duration::from_hours(2)),
        closing: ticks.of(Duration::from_secs(64)),
        udp: ticks.of(Duration::from_mins(2)),
        tick_shift: ticks.shift(),
        interrupts: ticks.interrupts(),
    }
}

/// What was loaded, attached and pinned.
pub struct Kernel {
    attacher: Attacher,
    tunnelled: Arc<Tunnelled>,
    heart: Arc<Heart>,
    writer: Writer<KernelMaps>,
    mode: AttachMode,
    seed: Seed,
    records: Option<Records>,
    events: Option<Events>,
    sweep: Sweep,
    connect: Option<Connect>,
    renewal: Renewal,
    pairs: Pairs,
    announced: Announced,
    ports: std::ops::RangeInclusive<u16>,
    /// Held as long as this agent owns the pins and the node's network.
    _ownership: Ownership,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("attached", self.attacher.attached()).finish_non_exhaustive()
    }
}

impl Kernel {
    /// Loads the programs, takes over what is pinned, and deletes nothing.
    ///
    /// # Errors
    /// When something is missing; nothing is attached then that was not before.
    pub fn start(settings: &Settings) -> Result<Self, Error> {
        let missing = probe::missing();
        if !missing.is_empty() {
            return Err(Error::Unsupported { missing });
        }
        check_ports(&settings.ports)?;
        object::ensure_bpffs(&settings.bpffs)?;
        let pins = Pins::under(&settings.bpffs);
        let ownership = Ownership::take(&settings.bpffs)?;
        upgrade::take_over(&pins)?;
        let mut object = object::load(settings, &pins)?;
        upgrade::fill_index(&pins, &object)?;
        attach::load_programs(&mut object)?;
        let records = Records::take(&mut object);
        let events = Events::take(&mut object)?;
        let tunnelled = Arc::new(Tunnelled::take(&object)?);
        let heart = Arc::new(Heart::take(&object, settings.fail_open_after)?);
        let pairs = Pairs::take(&mut object)?;
        let mut maps = KernelMaps::take(&mut object)?;
        let seed = seed(settings, &maps)?;
        let n_ports = settings.ports.end().saturating_sub(*settings.ports.start()).saturating_add(1);
        let [flow_buckets, reply_buckets] = maps.flow_buckets();
        let sweep = Sweep::load(&mut object, [flow_buckets, reply_buckets])?;
        let ticks = Ticks::of_this_kernel();
        // Whoever was refused stays so until the first image says otherwise.
        let guards = maps.settings()?.guards;
        // An agent before this may not have said whether packets look for short networks.
        let guards = if guards & Row::SOURCES == 0 { guards } else { guards | Row::BROAD };
        let row = Row::new(
            seed,
            Ports { first: Port::new(*settings.ports.start()), count: n_ports },
            Tables { flow_buckets, reply_buckets, fragment_buckets: FRAGMENT_BUCKETS },
            timeouts(ticks),
            settings.tunnel,
        );
        maps.put_settings(&row.guarding(guards).telling(settings.events))?;
        maps.put_receive(&settings.receive)?;
        let renewal = Renewal::start(&mut maps)?;
        let terms = Terms {
            seed,
            flows: flow_buckets.saturating_mul(2),
            ticks,
            change_window: settings.change_window,
            echo: settings.echo,
        };
        let writer = Writer::new(maps, terms, Clock::real())?;
        let attacher = Attacher::new(object, pins, settings.tcx);
        let mut kernel = Self {
            attacher,
            tunnelled,
            heart,
            writer,
            mode: settings.attach,
            seed,
            records,
            events: (settings.events != 0).then_some(events),
            sweep,
            connect: settings.connect.clone(),
            renewal,
            pairs,
            announced: Announced::default(),
            ports: settings.ports.clone(),
            _ownership: ownership,
        };
        kernel.begin_with_sockets()?;
        Ok(kernel)
    }

    /// The seed in use.
    pub const fn seed(&self) -> Seed {
        self.seed
    }

    /// What the programs of a build for debugging tell; once, and never for other builds.
    pub const fn take_records(&mut self) -> Option<Records> {
        self.records.take()
    }

    /// Single packets that the programs tell of; once, and never unless they were asked to.
    pub const fn take_events(&mut self) -> Option<Events> {
        self.events.take()
    }

    /// Health checks that go through tunnels.
    pub fn tunnelled(&self) -> Arc<Tunnelled> {
        Arc::clone(&self.tunnelled)
    }

    /// The heartbeats of workers.
    pub fn heart(&self) -> Arc<Heart> {
        Arc::clone(&self.heart)
    }

    /// What stands in the maps.
    pub const fn written(&self) -> &Observed {
        self.writer.written()
    }

    /// Whether translation may go on with its ports, which the node may have been given for its own sockets meanwhile.
    ///
    /// # Errors
    /// [`Error::PortsOverlap`].
    pub fn check_ports(&self) -> Result<(), Error> {
        check_ports(&self.ports)
    }

    /// What sits on which interface.
    pub const fn attached(&self) -> &BTreeMap<String, Attachment> {
        self.attacher.attached()
    }

    /// Steers connections to the agent's sockets.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn steer(&mut self) -> Result<(), Error> {
        self.attacher.steer()
    }

    /// How the configuration says to attach.
    pub const fn mode(&self) -> AttachMode {
        self.mode
    }

    /// Attaches to an interface; `avoid` says why XDP should not be the first choice, where the agent chooses.
    ///
    /// # Errors
    /// When no mode works, or the one that was asked for does not.
    pub fn attach(&mut self, interface: &str, avoid: Option<&str>) -> Result<&Attachment, Error> {
        self.attacher.attach(interface, self.mode, avoid)
    }

    /// Attaches what does something beside balancing, or takes over what an earlier agent left there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_beside(&mut self, beside: Beside, interface: &str) -> Result<(), Error> {
        self.attacher.attach_beside(beside, interface)
    }

    /// Whether it sits on this very interface.
    pub fn is_beside(&self, beside: Beside, interface: &str, index: u32) -> bool {
        self.attacher.beside(beside).any(|(name, at)| name == interface && at == index)
    }

    /// Interfaces where tunnels are opened.
    pub fn receiving(&self) -> impl Iterator<Item = &str> {
        self.attacher.beside(Beside::Receive).map(|(name, _)| name)
    }

    /// Whether programs sit on this very interface, not on one that had its name before, at a hook that still is the
    /// right one.
    pub fn is_attached(&self, interface: &str, index: u32, avoid: Option<&str>) -> bool {
        self.attacher.attached().get(interface).is_some_and(|attachment| {
            // The others are what the configuration says, whatever lies around.
            let heeds = matches!(self.mode, AttachMode::Auto | AttachMode::Native);
            let is_right = !heeds || attachment.avoided.as_deref() == avoid;
            attachment.interface == index && is_right
        })
    }

    /// Detaches from every other interface, also what an earlier agent attached.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn keep_only(&mut self, kept: &Kept) -> Result<(), Error> {
        self.attacher.keep_only(kept)
    }

    /// Brings the maps to an image.
    ///
    /// # Errors
    /// See [`Writer::apply`].
    pub fn apply(&mut self, image: Arc<Image>) -> Result<Written, Error> {
        self.writer.apply(image)
    }

    /// Publishes changes of live endpoints.
    ///
    /// # Errors
    /// See [`Writer::apply`].
    pub fn publish(&mut self, changed: &[Arc<Endpoint>]) -> Result<Written, Error> {
        self.writer.publish(changed)
    }

    /// Ends changes that have gone on for long enough.
    ///
    /// # Errors
    /// See [`Writer::apply`].
    pub fn settle(&mut self) -> Result<Written, Error> {
        self.writer.settle()
    }

    /// Frees entries of the flow table that are over and places that led to such ones, in its next slice; how many.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn sweep(&mut self) -> Result<u32, Error> {
        self.sweep.go_on()
    }

    /// Writes that are still missing because one was refused; the next call of anything that writes makes up for them.
    pub fn gap(&self) -> usize {
        self.writer.gap()
    }

    /// Whether any is missing.
    pub const fn is_behind(&self) -> bool {
        self.writer.is_behind()
    }

    /// Room in the maps as they are: a pinned map keeps its size.
    pub const fn capacity(&self) -> Capacity {
        self.writer.maps().capacity()
    }

    /// Takes new ways to endpoints.
    ///
    /// # Errors
    /// See [`Writer::apply`].
    pub fn set_ways(&mut self, ways: HashMap<IpAddr, Way>) -> Result<Written, Error> {
        self.writer.set_ways(ways)
    }

    /// Gives a listening socket its place.
    ///
    /// # Errors
    /// When the map is full.
    pub fn put_socket(&mut self, idx: u32, socket: &impl AsRawFd) -> Result<(), Error> {
        self.writer.maps_mut().put_socket(idx, socket)
    }

    /// Takes a listening socket out of its place.
    pub fn clear_socket(&mut self, idx: u32) {
        self.writer.maps_mut().clear_socket(idx);
    }
}

/// Removes every link, filter and pin, with or without an agent that made them; says what was removed.
///
/// # Errors
/// When a pin cannot be removed, or an agent still owns it.
pub fn cleanup(bpffs: &Path) -> Result<Vec<PathBuf>, Error> {
    let root = bpffs.join(PIN_ROOT);
    let _ownership = Ownership::take(bpffs)?;
    let mut removed = Vec::new();
    if root.exists() {
        pin::remove_tree(&root, &mut removed)?;
    }
    Ok(removed)
}

/// Takes the hooks away that an earlier agent of any layout left, for an agent that serves in userspace: programs that nobody tells
/// about endpoints would go on with what they knew. The maps stay. Says what was removed.
///
/// # Errors
/// When they cannot be removed, or an agent still owns them.
pub fn let_go(bpffs: &Path) -> Result<Vec<PathBuf>, Error> {
    let folders = upgrade::all(&bpffs.join(PIN_ROOT))?;
    if folders.is_empty() {
        return Ok(Vec::new());
    }
    let _ownership = Ownership::take(bpffs)?;
    let mut removed = Vec::new();
    let mut failed = pin::Failed::default();
    for folder in folders {
        failed.note(pin::remove_hooks(&folder, &mut removed));
    }
    failed.outcome().map(|()| removed)
}

/// One agent for each BPF file system and for each network namespace.
#[derive(Debug)]
struct Ownership {
    /// On the file system's own folder, which cannot hold a file.
    _pins: Option<nix::fcntl::Flock<fs::File>>,
    /// A name that belongs to the network namespace, as routes and hooks do, and ends with its process.
    _network: UnixDatagram,
}

impl Ownership {
    /// An abstract address, which no file stands for.
    const NAME: &str = "sluice-agent";
    const TRIES: u32 = 50;
    const PAUSE: Duration = Duration::from_millis(20);

    /// Waits a moment for a predecessor that is just ending.
    #[expect(clippy::disallowed_methods, reason = "at start and in commands, where nothing else runs")]
    fn take(bpffs: &Path) -> Result<Self, Error> {
        for _ in 0..Self::TRIES {
            match Self::try_take(bpffs) {
                Err(Error::Locked { .. } | Error::Running) => std::thread::sleep(Self::PAUSE),
                taken => return taken,
            }
        }
        Self::try_take(bpffs)
    }

    fn try_take(bpffs: &Path) -> Result<Self, Error> {
        let failed = |source| Error::PinFolder { path: bpffs.to_owned(), source };
        let pins = if bpffs.exists() {
            let folder = fs::File::open(bpffs).map_err(failed)?;
            let lock = nix::fcntl::Flock::lock(folder, nix::fcntl::FlockArg::LockExclusiveNonblock);
            Some(lock.map_err(|_| Error::Locked { path: bpffs.to_owned() })?)
        } else {
            None
        };
        let name = SocketAddr::from_abstract_name(Self::NAME).map_err(failed)?;
        let network = UnixDatagram::bind_addr(&name).map_err(|_| Error::Running)?;
        Ok(Self { _pins: pins, _network: network })
    }
}

fn seed(settings: &Settings, maps: &KernelMaps) -> Result<Seed, Error> {
    if let Some(bytes) = settings.seed {
        return Ok(Seed::from_bytes(bytes));
    }
    let pinned = maps.settings()?.seed;
    if pinned != Seed::default() {
        return Ok(pinned);
    }
    let mut bytes = [0; 16];
    let mut source = fs::File::open("/dev/urandom").map_err(|source| Error::Namespace { source })?;
    io::Read::read_exact(&mut source, &mut bytes).map_err(|source| Error::Namespace { source })?;
    Ok(Seed::from_bytes(bytes))
}

/// Translation and the node's own sockets must not use the same ports.
fn check_ports(ports: &std::ops::RangeInclusive<u16>) -> Result<(), Error> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = text.split_whitespace().filter_map(|bound| bound.parse::<u16>().ok());
    let (Some(first), Some(last)) = (bounds.next(), bounds.next()) else { return Ok(()) };
    if ports.start() <= &last && ports.end() >= &first {
        return Err(Error::PortsOverlap { ports: ports.clone(), ephemeral: first..=last });
    }
    Ok(())
}
