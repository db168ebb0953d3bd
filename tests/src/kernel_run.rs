//! The kernel's side of the packet tests: loads the object, fills its maps, runs single packets through it.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, AsRawFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, Map, MapData, PerCpuArray, PerCpuValues, ProgramArray, SockMap},
    programs::{Program, SchedClassifier, SkLookup, Xdp},
};
use bytemuck::Pod;
use gateway_common::{
    answer::Answers,
    aside::Aside,
    cookie::{CookieKeys, SynCookie},
    counter::{Count, EndpointCount, Hook, HookCounts, ServiceCount, ServiceReasons},
    endpoint::Endpoint,
    filter::FilterWord,
    flow::{DisplacedFlows, FlowBucket, FlowKey, ReplyBucket, Scratch, SequenceBucket},
    fragment::FragmentBucket,
    heartbeat::Heartbeat,
    map::{self, MapDef},
    probe::{OWN_MARK, Probe},
    receive::Receive,
    service::{PortRange, Service, ServiceBucket},
    settings::Settings,
    slot::SlotChunk,
    source::RefusedRow,
};

pub use crate::memory::{BUCKETS, FRAGMENTS};
use crate::{
    lookup_run::run_lookup,
    memory::{LEFT, Outcome},
    tables::{Tables, raw},
};

/// Path of the object to load instead of the one that was built last.
const OBJECT: &str = "SLUICE_BPF_OBJECT";

/// Rows of services and endpoints that a test may use: these are cleared and compared.
pub const ROWS: u32 = 16;

/// Room in the counts of a test: enough, and quick to make and to read.
const SMALL: u32 = 4_096;

/// Path of the kernel object.
///
/// # Errors
///
/// When it was not built.
pub fn object_path() -> Result<PathBuf> {
    let path = match std::env::var_os(OBJECT) {
        Some(path) => PathBuf::from(path),
        None => target_dir().join("bpf/sluice-kernel"),
    };
    ensure!(path.is_file(), "{} is missing: run cargo xtask build-ebpf", path.display());
    Ok(path)
}

fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")), PathBuf::from)
}

/// The programs, loaded with maps of their own, which end with this value.
#[derive(Debug)]
pub struct Kernel {
    ebpf: Ebpf,
    /// Buckets of the service index that are not empty.
    index: Vec<u32>,
    /// Rows of health checks that are not empty.
    probes: Vec<u32>,
    /// What the maps were filled with last, of which programs change a part.
    filled: Option<Tables>,
    /// Rows of refused sources that are not empty.
    pub(crate) refused: Vec<u32>,
    /// Bytes behind the transport header in each segment that will be made of a packet.
    segment_payload: Option<u32>,
}

impl Kernel {
    /// Loads the object and all its programs.
    ///
    /// # Errors
    ///
    /// When the object is missing, or the kernel refuses it: the verifier's log is part of the error.
    pub fn load() -> Result<Self> {
        Self::load_from(&object_path()?)
    }

    /// The same for another object with our programs.
    ///
    /// # Errors
    ///
    /// See [`Kernel::load`].
    pub fn load_from(path: &Path) -> Result<Self> {
        let object = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let mut loader = EbpfLoader::new();
        for table in [map::ServiceCounts::NAME, map::ServiceReasons::NAME, map::EndpointCounts::NAME] {
            loader.map_max_entries(table, SMALL);
        }
        for table in [map::Flows::NAME, map::Replies::NAME, map::Sequences::NAME] {
            loader.map_max_entries(table, BUCKETS);
        }
        loader.map_max_entries(map::Displaced::NAME, BUCKETS / 8);
        let mut ebpf = loader.load(&object).context("reading the object")?;
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "aya knows more kinds of programs than the object may hold"
        )]
        for (name, program) in ebpf.programs_mut() {
            match program {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                Program::SkLookup(program) => program.load(),
                Program::CgroupSockAddr(program) => program.load(),
                _ => bail!("the object holds an unknown kind of program: {name}"),
            }
            .with_context(|| format!("loading {name}"))?;
        }
        let mut kernel = Self {
            ebpf,
            index: Vec::new(),
            filled: None,
            probes: Vec::new(),
            refused: Vec::new(),
            segment_payload: None,
        };
        kernel.join()?;
        Ok(kernel)
    }

    /// Puts the programs that others end in into their places.
    fn join(&mut self) -> Result<()> {
        for aside in Aside::ALL {
            let program = self.ebpf.program(aside.name()).context("the object lacks a program")?;
            let fd = program.fd()?.try_clone()?;
            let mut programs = ProgramArray::try_from(self.map(aside.map())?)?;
            programs.set(aside.index(), &fd, 0).with_context(|| format!("joining {}", aside.name()))?;
        }
        Ok(())
    }

    /// Makes the maps hold what the tables say, and nothing else.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a write.
    pub fn fill(&mut self, tables: &Tables) -> Result<()> {
        self.segment_payload = tables.segment_payload;
        // An emulated machine takes long for each write, so what no program changes is written when it differs.
        let known = self.filled.take();
        let index = tables.index();
        let stale: Vec<u32> = self.index.iter().filter(|at| !index.contains_key(at)).copied().collect();
        let mut buckets = self.array::<SERVICE_BUCKET>(map::ServiceIndex::NAME)?;
        for at in stale {
            buckets.set(at, raw(&ServiceBucket::default()), 0)?;
        }
        for (at, bucket) in &index {
            buckets.set(*at, raw(bucket), 0)?;
        }
        self.index = index.into_keys().collect();
        let mut services = self.array::<SERVICE>(map::Services::NAME)?;
        for id in 0..ROWS {
            let service = tables.services.values().find(|service| service.id == id);
            services.set(id, raw(&service.copied().unwrap_or_default()), 0)?;
        }
        let mut ranges = self.array::<PORT_RANGE>(map::PortRanges::NAME)?;
        for (row, range) in &tables.ranges {
            ranges.set(*row, raw(range), 0)?;
        }
        self.fill_flows(tables)?;
        let mut slots = self.array::<CHUNK>(map::Slots::NAME)?;
        for (index, chunk) in &tables.chunks {
            if known.as_ref().and_then(|known| known.chunks.get(index)) != Some(chunk) {
                slots.set(*index, raw(chunk), 0)?;
            }
        }
        let mut endpoints = self.array::<ENDPOINT>(map::Endpoints::NAME)?;
        for row in 0..ROWS {
            let endpoint = tables.endpoints.get(&row).copied().unwrap_or_default();
            endpoints.set(row, raw(&endpoint), 0)?;
        }
        let mut filter = self.array::<WORD>(map::Filter::NAME)?;
        for index in 0..gateway_common::filter::WORDS {
            let word = tables.filter.get(&index);
            if known.as_ref().is_none_or(|known| known.filter.get(&index) != word) {
                filter.set(index, raw(&word.copied().unwrap_or_default()), 0)?;
            }
        }
        self.fill_sources(tables, known.as_ref())?;
        self.array::<SETTINGS>(map::SettingsMap::NAME)?.set(0, raw(&tables.settings), 0)?;
        let stale: Vec<u32> = self.probes.drain(..).filter(|row| !tables.probes.contains_key(row)).collect();
        let mut probes = self.array::<PROBE>(map::Probes::NAME)?;
        for row in stale {
            probes.set(row, [0; PROBE], 0)?;
        }
        for (row, probe) in &tables.probes {
            probes.set(*row, raw(probe), 0)?;
        }
        self.probes = tables.probes.keys().copied().collect();
        self.fill_rare(tables)?;
        self.fill_events(tables)?;
        self.fill_health(tables)?;
        self.fill_sockets(tables)?;
        let noted = vec![raw(&LEFT); aya::util::nr_cpus().map_err(|(_, error)| error)?];
        self.counts::<SCRATCH>(map::ScratchMap::NAME)?.set(0, PerCpuValues::try_from(noted)?, 0)?;
        clear(self.counts::<HOOK_COUNTS>(map::Reasons::NAME)?, Hook::LIMIT)?;
        clear(self.counts::<SERVICE_COUNT>(map::ServiceCounts::NAME)?, ROWS)?;
        clear(self.counts::<SERVICE_REASONS>(map::ServiceReasons::NAME)?, ROWS)?;
        clear(self.counts::<ENDPOINT_COUNT>(map::EndpointCounts::NAME)?, ROWS)?;
        self.filled = Some(tables.clone());
        Ok(())
    }

    fn fill_flows(&mut self, tables: &Tables) -> Result<()> {
        let mut flows = self.array::<FLOW_BUCKET>(map::Flows::NAME)?;
        for at in 0..BUCKETS {
            flows.set(at, raw(&tables.flows.get(&at).copied().unwrap_or_default()), 0)?;
        }
        let mut replies = self.array::<REPLY_BUCKET>(map::Replies::NAME)?;
        for at in 0..BUCKETS {
            replies.set(at, raw(&tables.replies.get(&at).copied().unwrap_or_default()), 0)?;
        }
        let mut sequences = self.array::<SEQUENCE_BUCKET>(map::Sequences::NAME)?;
        for at in 0..BUCKETS {
            sequences.set(at, raw(&tables.sequences.get(&at).copied().unwrap_or_default()), 0)?;
        }
        self.array::<COOKIE_KEYS>(map::CookieKeysMap::NAME)?.set(0, raw(&tables.cookie_keys), 0)?;
        let mut displaced = self.array::<DISPLACED>(map::Displaced::NAME)?;
        for at in 0..BUCKETS / 8 {
            displaced.set(at, tables.displaced.get(&at).copied().unwrap_or_default().to_ne_bytes(), 0)?;
        }
        Ok(())
    }

    /// What programs for rare packets change, and what that of tunnels is told.
    fn fill_rare(&mut self, tables: &Tables) -> Result<()> {
        self.array::<RECEIVE>(map::Receiving::NAME)?.set(0, raw(&tables.receive), 0)?;
        let mut fragments = self.array::<FRAGMENT_BUCKET>(map::Fragments::NAME)?;
        for at in 0..u32::from(FRAGMENTS) {
            fragments.set(at, raw(&tables.fragments.get(&at).copied().unwrap_or_default()), 0)?;
        }
        let mut heartbeats = self.array::<HEARTBEAT>(map::Heartbeats::NAME)?;
        for worker in 0..ROWS {
            heartbeats.set(worker, raw(&tables.heartbeats.get(&worker).copied().unwrap_or_default()), 0)?;
        }
        let mut answers = self.counts::<ANSWERS>(map::AnswersMap::NAME)?;
        let each = vec![raw(&tables.answers); aya::util::nr_cpus().map_err(|(_, error)| error)?];
        answers.set(0, PerCpuValues::try_from(each)?, 0)?;
        Ok(())
    }

    /// Reads back what programs change: flows, translations and counts. The rest of the tables is taken from `before`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a read.
    pub fn read(&mut self, before: &Tables) -> Result<Tables> {
        let mut tables = before.clone();
        self.read_flows(&mut tables)?;
        tables.displaced = rows(&self.array::<DISPLACED>(map::Displaced::NAME)?, BUCKETS / 8)?;
        let probes = self.array::<PROBE>(map::Probes::NAME)?;
        for (row, probe) in &mut tables.probes {
            *probe = bytemuck::pod_read_unaligned(&probes.get(row, 0)?);
        }
        tables.fragments = rows(&self.array::<FRAGMENT_BUCKET>(map::Fragments::NAME)?, FRAGMENTS.into())?;
        let answers = self.counts::<ANSWERS>(map::AnswersMap::NAME)?.get(&0, 0)?;
        let changed =
            answers.iter().map(|one| bytemuck::pod_read_unaligned(one)).find(|one| *one != before.answers);
        // The processor that ran the program.
        tables.answers = changed.unwrap_or(before.answers);
        tables.reasons.clear();
        let reasons = self.counts::<HOOK_COUNTS>(map::Reasons::NAME)?;
        for hook in 0..Hook::LIMIT {
            for one in reasons.get(&hook, 0)?.iter() {
                let counts: HookCounts = bytemuck::pod_read_unaligned(one);
                for (number, count) in
                    (0_u32..).zip(counts.reasons).filter(|(_, count)| *count != Count::default())
                {
                    let sum = tables.reasons.entry((hook, number)).or_default();
                    sum.packets += count.packets;
                    sum.bytes += count.bytes;
                }
            }
        }
        let services = self.counts::<SERVICE_COUNT>(map::ServiceCounts::NAME)?;
        tables.service_counts = sums(&services, ROWS, |sum: &mut ServiceCount, one: ServiceCount| {
            sum.packets += one.packets;
            sum.bytes += one.bytes;
            sum.reply_packets += one.reply_packets;
            sum.reply_bytes += one.reply_bytes;
            sum.new_flows += one.new_flows;
            sum.steered += one.steered;
            sum.dropped += one.dropped;
            sum.unrecorded += one.unrecorded;
        })?;
        let reasons = self.counts::<SERVICE_REASONS>(map::ServiceReasons::NAME)?;
        tables.service_reasons = sums(&reasons, ROWS, |sum: &mut ServiceReasons, one: ServiceReasons| {
            sum.packets.iter_mut().zip(one.packets).for_each(|(sum, one)| *sum += one);
        })?;
        if before.settings.guards != 0 {
            let refused = self.counts::<REFUSED_ROW>(map::RefusedSources::NAME)?;
            // One packet runs on one processor.
            let capacity = map::RefusedSources::CAPACITY;
            tables.refused = sums(&refused, capacity, |sum: &mut RefusedRow, one: RefusedRow| {
                if one != RefusedRow::default() {
                    *sum = one;
                }
            })?;
            self.refused = tables.refused.keys().copied().collect();
        }
        tables.syn_cookies = rows(&self.array::<SYN_COOKIE>(map::SynCookies::NAME)?, ROWS)?;
        self.read_events(&mut tables)?;
        self.read_health(&mut tables)?;
        self.read_sockets(&mut tables)?;
        let endpoints = self.counts::<ENDPOINT_COUNT>(map::EndpointCounts::NAME)?;
        tables.endpoint_counts = sums(&endpoints, ROWS, |sum: &mut EndpointCount, one: EndpointCount| {
            sum.packets += one.packets;
            sum.bytes += one.bytes;
            sum.reply_packets += one.reply_packets;
            sum.reply_bytes += one.reply_bytes;
            sum.new_flows += one.new_flows;
        })?;
        Ok(tables)
    }

    fn read_flows(&mut self, tables: &mut Tables) -> Result<()> {
        tables.flows = rows(&self.array::<FLOW_BUCKET>(map::Flows::NAME)?, BUCKETS)?;
        tables.replies = rows(&self.array::<REPLY_BUCKET>(map::Replies::NAME)?, BUCKETS)?;
        tables.sequences = rows(&self.array::<SEQUENCE_BUCKET>(map::Sequences::NAME)?, BUCKETS)?;
        Ok(())
    }

    /// The loaded object, for what a test wants beside packets.
    pub const fn object(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    pub(crate) fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))
    }

    pub(crate) fn array<const V: usize>(&mut self, name: &str) -> Result<Array<&mut MapData, [u8; V]>> {
        Ok(Array::try_from(self.map(name)?)?)
    }

    pub(crate) fn counts<const V: usize>(
        &mut self,
        name: &str,
    ) -> Result<PerCpuArray<&mut MapData, [u8; V]>> {
        Ok(PerCpuArray::try_from(self.map(name)?)?)
    }

    /// Puts a listening socket at an index of the sockets.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn set_socket(&mut self, index: u32, socket: &impl AsRawFd) -> Result<()> {
        let mut sockets = SockMap::try_from(self.map(map::Sockets::NAME)?)?;
        Ok(sockets.set(index, socket, 0)?)
    }

    /// Asks the socket lookup program about a connection. Returns its code, and the cookie of the chosen socket or
    /// zero.
    ///
    /// # Errors
    ///
    /// When the kernel cannot run it.
    pub fn lookup(&mut self, key: &FlowKey) -> Result<(u32, u64)> {
        let program = self.ebpf.program_mut(Hook::SkLookup.name()).context("no program sk_lookup")?;
        let program: &mut SkLookup = program.try_into()?;
        run_lookup(program.fd()?.as_fd().as_raw_fd(), key)
    }

    /// Runs one packet through the program of a hook.
    ///
    /// # Errors
    ///
    /// When the kernel cannot run it.
    pub fn run(&mut self, hook: Hook, packet: &[u8]) -> Result<Outcome> {
        let mut out = vec![0; packet.len() + 256];
        // `struct __sk_buff`: `mark`, and `gso_size`.
        let mut socket_buffer = [0_u32; 45];
        let payload = self.segment_payload.filter(|_| matches!(hook, Hook::TcIngress | Hook::TcEgress));
        if hook == Hook::TcProbeOut {
            socket_buffer[2] = OWN_MARK;
        }
        socket_buffer[44] = payload.unwrap_or(0);
        let context =
            (hook == Hook::TcProbeOut || payload.is_some()).then_some(bytemuck::cast_slice(&socket_buffer));
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: context,
            ..TestRunOptions::default()
        };
        let program =
            self.ebpf.program_mut(hook.name()).with_context(|| format!("no program {}", hook.name()))?;
        let result = match hook {
            Hook::XdpBalance => <&mut Xdp>::try_from(program)?.test_run(options),
            Hook::TcIngress | Hook::TcEgress | Hook::TcReceive | Hook::TcProbeIn | Hook::TcProbeOut => {
                <&mut SchedClassifier>::try_from(program)?.test_run(options)
            }
            Hook::SkLookup => bail!("a socket lookup has no packet: use lookup()"),
            Hook::Connect4
            | Hook::Connect6
            | Hook::SendMsg4
            | Hook::SendMsg6
            | Hook::RecvMsg4
            | Hook::RecvMsg6
            | Hook::GetPeerName4
            | Hook::GetPeerName6 => bail!("a socket's call has no packet: use sit_at()"),
        }
        .with_context(|| format!("running {}", hook.name()))?;
        out.truncate(usize::try_from(result.data_size_out)?);
        Ok(Outcome { code: i32::from_ne_bytes(result.return_value.to_ne_bytes()), bytes: out })
    }
}

const SERVICE_BUCKET: usize = size_of::<ServiceBucket>();
const SERVICE: usize = size_of::<Service>();
const PORT_RANGE: usize = size_of::<PortRange>();
const FLOW_BUCKET: usize = size_of::<FlowBucket>();
const REPLY_BUCKET: usize = size_of::<ReplyBucket>();
const SCRATCH: usize = size_of::<Scratch>();
const SEQUENCE_BUCKET: usize = size_of::<SequenceBucket>();
const COOKIE_KEYS: usize = size_of::<CookieKeys>();
const DISPLACED: usize = size_of::<DisplacedFlows>();
const CHUNK: usize = size_of::<SlotChunk>();
const ENDPOINT: usize = size_of::<Endpoint>();
const WORD: usize = size_of::<FilterWord>();
const SETTINGS: usize = size_of::<Settings>();
const PROBE: usize = size_of::<Probe>();
const RECEIVE: usize = size_of::<Receive>();
const FRAGMENT_BUCKET: usize = size_of::<FragmentBucket>();
const HEARTBEAT: usize = size_of::<Heartbeat>();
const ANSWERS: usize = size_of::<Answers>();
const HOOK_COUNTS: usize = size_of::<HookCounts>();
const SERVICE_COUNT: usize = size_of::<ServiceCount>();
const REFUSED_ROW: usize = size_of::<RefusedRow>();
const SERVICE_REASONS: usize = size_of::<ServiceReasons>();
const SYN_COOKIE: usize = size_of::<SynCookie>();
const ENDPOINT_COUNT: usize = size_of::<EndpointCount>();

/// The rows of an array that are not zero.
pub(crate) fn rows<const V: usize, T: Pod>(
    map: &Array<&mut MapData, [u8; V]>,
    n: u32,
) -> Result<BTreeMap<u32, T>> {
    let mut rows = BTreeMap::new();
    for row in 0..n {
        let bytes = map.get(&row, 0)?;
        if bytes != [0; V] {
            rows.insert(row, bytemuck::pod_read_unaligned(&bytes));
        }
    }
    Ok(rows)
}

pub(crate) fn clear<const V: usize>(mut map: PerCpuArray<&mut MapData, [u8; V]>, rows: u32) -> Result<()> {
    zero(&mut map, 0..rows)
}

pub(crate) fn zero<const V: usize>(
    map: &mut PerCpuArray<&mut MapData, [u8; V]>,
    rows: impl IntoIterator<Item = u32>,
) -> Result<()> {
    let zero = vec![[0; V]; aya::util::nr_cpus().map_err(|(_, error)| error)?];
    for row in rows {
        map.set(row, PerCpuValues::try_from(zero.clone())?, 0)?;
    }
    Ok(())
}

pub(crate) fn sums<const V: usize, T: Pod + Default + PartialEq>(
    map: &PerCpuArray<&mut MapData, [u8; V]>,
    rows: u32,
    add: impl Fn(&mut T, T),
) -> Result<BTreeMap<u32, T>> {
    let mut rows_seen = BTreeMap::new();
    for row in 0..rows {
        let mut sum = T::default();
        for one in map.get(&row, 0)?.iter() {
            add(&mut sum, bytemuck::pod_read_unaligned(one));
        }
        if sum != T::default() {
            rows_seen.insert(row, sum);
        }
    }
    Ok(rows_seen)
}
