//! A program under test: its own maps and link, and its own account of what became of the packets.

use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    maps::{Array, HashMap, PerCpuArray},
};
use gateway_common::{
    counter::{Count, Hook, HookCounts, Reason, ServiceCount},
    flow::FlowKey,
    map::{self, MapDef as _},
    service::{Mode, Track},
};

use super::{
    frames::{self, Cost},
    l4::Traffic,
    tables::{self, Traits},
};
use crate::{kernel_run, netns::Ns};

/// What is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Drops everything.
    Drop,
    /// Balances by the classic design.
    Classic,
    /// Ours, with translation.
    Nat,
    /// Ours, with translation, while every slot has just changed its endpoint.
    NatChange,
    /// Ours, through a tunnel, with nothing to remember.
    Tunnel,
    /// Ours, through a tunnel, while every slot has just changed its endpoint: every flow is remembered.
    Change,
}

impl Kind {
    /// All, in the order in which they have their turns.
    pub const ALL: [Self; 6] =
        [Self::Drop, Self::Classic, Self::Nat, Self::NatChange, Self::Tunnel, Self::Change];

    /// As reports name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop => "bare drop",
            Self::Classic => "classic design",
            Self::Nat => "sluice, nat",
            Self::NatChange => "sluice, nat in a change",
            Self::Tunnel => "sluice, dsr-ipip",
            Self::Change => "sluice, dsr-ipip in a change",
        }
    }

    /// Its program.
    const fn program(self) -> &'static str {
        match self {
            Self::Drop => "ref_drop",
            Self::Classic => "ref_classic",
            Self::Nat | Self::NatChange | Self::Tunnel | Self::Change => Hook::XdpBalance.name(),
        }
    }

    /// What kind of service it balances; none for what is not ours.
    const fn traits(self) -> Option<Traits> {
        match self {
            Self::Drop | Self::Classic => None,
            Self::Nat => Some(Traits { mode: Mode::NAT, track: Track::ALWAYS, is_changing: false }),
            Self::NatChange => Some(Traits { mode: Mode::NAT, track: Track::ALWAYS, is_changing: true }),
            Self::Tunnel => Some(Traits { mode: Mode::DSR_IPIP, track: Track::CHANGE, is_changing: false }),
            Self::Change => Some(Traits { mode: Mode::DSR_IPIP, track: Track::CHANGE, is_changing: true }),
        }
    }

    /// Whether it remembers each flow.
    pub const fn remembers(self) -> bool {
        matches!(self, Self::Classic | Self::Nat | Self::NatChange | Self::Change)
    }

    /// Whether it counts a flow that is remembered as new. Packets in the middle of a connection are, where nothing
    /// remembers what came before.
    pub const fn counts_new(self) -> bool {
        matches!(self, Self::Nat | Self::NatChange)
    }
}

/// Numbers of the services of a family that packets may be for.
fn ids(v6: bool) -> std::ops::Range<u32> {
    let first = if v6 { tables::BUSY * 2 } else { 0 };
    first..first + tables::BUSY * 2
}

/// A program under test.
#[derive(Debug)]
pub struct Subject {
    /// Which one.
    pub kind: Kind,
    ebpf: Ebpf,
}

/// What a program has counted by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tally {
    /// Packets that went the way that is measured; none where the program does not count them.
    pub packets: Option<u64>,
    /// Flows that were recorded; none where the program does not count them.
    pub new_flows: Option<u64>,
}

impl Subject {
    /// Loads it, fills its maps, and attaches it to `interface`, out of which its packets also leave.
    ///
    /// # Errors
    /// When an object is missing, or the kernel refuses something.
    pub fn new(kind: Kind, ns: &Ns, interface: &str) -> Result<Self> {
        let index = frames::index(ns, interface)?;
        let mut ebpf = match kind {
            Kind::Drop | Kind::Classic => frames::load(&frames::reference_path()?)?,
            Kind::Nat | Kind::NatChange | Kind::Tunnel | Kind::Change => {
                frames::load(&kernel_run::object_path()?)?
            }
        };
        match kind.traits() {
            Some(traits) => tables::fill(&mut ebpf, index, traits)?,
            None if kind == Kind::Classic => tables::fill_reference(&mut ebpf, index)?,
            None => {}
        }
        frames::attach(ns, &mut ebpf, kind.program(), interface)?;
        Ok(Self { kind, ebpf })
    }

    /// What it has cost so far.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn cost(&mut self) -> Result<Cost> {
        Cost::of(&mut self.ebpf, self.kind.program())
    }

    /// What it has counted so far.
    ///
    /// # Errors
    /// When the kernel refuses a read.
    pub fn tally(&self, traffic: Traffic) -> Result<Tally> {
        match self.kind {
            Kind::Classic if traffic.is_ours => {
                let row = if traffic.v6 { u32::from(tables::ENDPOINTS) } else { 0 };
                Ok(Tally { packets: Some(self.count("REF_SERVED", row)?.packets), new_flows: None })
            }
            Kind::Drop | Kind::Classic => Ok(Tally { packets: None, new_flows: None }),
            Kind::Nat | Kind::NatChange | Kind::Tunnel | Kind::Change => {
                let reason = if traffic.is_ours { Reason::Forwarded } else { Reason::NotOurs };
                let packets = self.reason(reason)?.packets;
                let mut new_flows = 0;
                for id in ids(traffic.v6) {
                    let name = map::ServiceCounts::NAME;
                    let counts = self.sums::<{ size_of::<ServiceCount>() }, ServiceCount>(name, id)?;
                    new_flows += counts.iter().map(|count| count.new_flows).sum::<u64>();
                }
                Ok(Tally { packets: Some(packets), new_flows: Some(new_flows) })
            }
        }
    }

    /// Forgets all flows.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn forget(&mut self) -> Result<()> {
        match self.kind {
            Kind::Drop => Ok(()),
            Kind::Classic => self.clear::<4>("REF_FLOWS"),
            Kind::Nat | Kind::NatChange | Kind::Tunnel | Kind::Change => {
                for name in
                    [map::Flows::NAME, map::Displaced::NAME, map::Replies::NAME, map::ServiceFlows::NAME]
                {
                    self.zero(name)?;
                }
                Ok(())
            }
        }
    }

    /// Sees to it that exactly `n` flows are remembered.
    ///
    /// # Errors
    /// When it is another number, or the kernel refuses a read.
    pub fn remembers(&mut self, n: usize) -> Result<()> {
        let found = match self.kind {
            Kind::Drop => return Ok(()),
            Kind::Classic => self.keys::<4>("REF_FLOWS")?.len(),
            Kind::Nat | Kind::NatChange | Kind::Tunnel | Kind::Change => self.entries()?,
        };
        ensure!(found == n, "{} remembers {found} flows instead of {n}", self.kind.name());
        Ok(())
    }

    /// One packet again and again, without a link; returns nanoseconds for each.
    ///
    /// # Errors
    /// When the kernel cannot.
    pub fn repeat(&mut self, packet: &[u8], n: u32) -> Result<f64> {
        frames::repeat(&mut self.ebpf, self.kind.program(), packet, n)
    }

    /// What became of its packets, for an error message.
    ///
    /// # Errors
    /// When the kernel refuses a read.
    pub fn reasons(&self) -> Result<String> {
        if self.kind.traits().is_none() {
            return Ok("it counts no reasons".to_owned());
        }
        let mut words = Vec::new();
        for reason in Reason::ALL {
            let count = self.reason(*reason)?;
            if count.packets > 0 {
                words.push(format!("{} {}", reason.name(), count.packets));
            }
        }
        Ok(words.join(", "))
    }

    fn reason(&self, reason: Reason) -> Result<Count> {
        let mut sum = Count::default();
        let number = usize::try_from(reason.number())?;
        for one in self.sums::<{ size_of::<HookCounts>() }, HookCounts>(map::Reasons::NAME, 0)? {
            sum.packets += one.reasons[number].packets;
            sum.bytes += one.reasons[number].bytes;
        }
        Ok(sum)
    }

    /// Entries that all services hold in the flow table.
    fn entries(&self) -> Result<usize> {
        let name = map::ServiceFlows::NAME;
        let map = self.ebpf.map(name).with_context(|| format!("the object has no map {name}"))?;
        let map: Array<_, [u64; 2]> = Array::try_from(map)?;
        let mut entries = 0;
        for id in ids(false).chain(ids(true)) {
            let [held, _evicted] = map.get(&id, 0)?;
            entries += held;
        }
        Ok(usize::try_from(entries)?)
    }

    /// Makes a mapped array all zero.
    #[expect(unsafe_code, reason = "millions of rows, which would be millions of system calls")]
    fn zero(&mut self, name: &str) -> Result<()> {
        let map = self.ebpf.map(name).with_context(|| format!("the object has no map {name}"))?;
        let aya::maps::Map::Array(data) = map else { anyhow::bail!("{name} is no array") };
        let info = data.info()?;
        let bytes = usize::try_from(info.max_entries())? * usize::try_from(info.value_size())?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = data.fd().as_fd().as_raw_fd();
        // SAFETY: a fresh mapping at an address of the kernel's choice disturbs nothing.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd, 0) };
        ensure!(at != libc::MAP_FAILED, "cannot map {name}: {}", std::io::Error::last_os_error());
        // SAFETY: the mapping is that long, and no packet is on its way.
        unsafe { std::ptr::write_bytes(at.cast::<u8>(), 0, bytes) };
        // SAFETY: nothing borrows from the mapping.
        unsafe { libc::munmap(at, bytes) };
        Ok(())
    }

    fn keys<const V: usize>(&mut self, name: &str) -> Result<Vec<[u8; size_of::<FlowKey>()]>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))?;
        let map: HashMap<_, [u8; size_of::<FlowKey>()], [u8; V]> = HashMap::try_from(map)?;
        Ok(map.keys().collect::<Result<_, _>>()?)
    }

    fn clear<const V: usize>(&mut self, name: &str) -> Result<()> {
        let keys = self.keys::<V>(name)?;
        let map = self.ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))?;
        let mut map: HashMap<_, [u8; size_of::<FlowKey>()], [u8; V]> = HashMap::try_from(map)?;
        for key in keys {
            map.remove(&key)?;
        }
        Ok(())
    }

    fn count(&self, name: &str, index: u32) -> Result<Count> {
        let mut sum = Count::default();
        for one in self.sums::<{ size_of::<Count>() }, Count>(name, index)? {
            sum.packets += one.packets;
            sum.bytes += one.bytes;
        }
        Ok(sum)
    }

    /// A row as each processor has it.
    fn sums<const V: usize, T: bytemuck::Pod>(&self, name: &str, index: u32) -> Result<Vec<T>> {
        let map = self.ebpf.map(name).with_context(|| format!("the object has no map {name}"))?;
        let map: PerCpuArray<_, [u8; V]> = PerCpuArray::try_from(map)?;
        Ok(map.get(&index, 0)?.iter().map(|one| bytemuck::pod_read_unaligned(one)).collect())
    }
}
