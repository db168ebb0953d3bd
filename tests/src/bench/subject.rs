//! A program under test: its own maps and link, and its own account of what became of the packets.

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    maps::{HashMap, PerCpuArray},
};
use gateway_common::{
    counter::{Count, Hook, Reason, ServiceCount},
    flow::FlowKey,
    map::{self, MapDef as _},
};

use super::{
    frames::{self, Cost},
    l4::Traffic,
    tables,
};
use crate::{kernel_run, netns::Ns};

/// What is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Drops everything.
    Drop,
    /// Balances by the classic design.
    Classic,
    /// Ours.
    Sluice,
}

impl Kind {
    /// All, in the order in which they have their turns.
    pub const ALL: [Self; 3] = [Self::Drop, Self::Classic, Self::Sluice];

    /// As reports name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop => "bare drop",
            Self::Classic => "classic design",
            Self::Sluice => "sluice",
        }
    }

    /// Its program.
    const fn program(self) -> &'static str {
        match self {
            Self::Drop => "ref_drop",
            Self::Classic => "ref_classic",
            Self::Sluice => Hook::XdpBalance.name(),
        }
    }
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
            Kind::Sluice => frames::load(&kernel_run::object_path()?)?,
        };
        match kind {
            Kind::Drop => {}
            Kind::Classic => tables::fill_reference(&mut ebpf, index)?,
            Kind::Sluice => tables::fill(&mut ebpf, index)?,
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
            Kind::Sluice => {
                let reason = if traffic.is_ours { Reason::Forwarded } else { Reason::NotOurs };
                let packets = self.count(map::Reasons::NAME, Hook::XdpBalance.index(reason))?.packets;
                let services = self.sums::<{ size_of::<ServiceCount>() }, ServiceCount>(
                    map::ServiceCounts::NAME,
                    u32::from(traffic.v6),
                )?;
                let new_flows = services.iter().map(|count| count.new_flows).sum();
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
            Kind::Sluice => {
                self.clear::<{ size_of::<gateway_common::flow::Flow>() }>(map::Flows::NAME)?;
                self.clear::<{ size_of::<gateway_common::flow::Translation>() }>(map::Translations::NAME)
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
            Kind::Sluice => self.keys::<{ size_of::<gateway_common::flow::Flow>() }>(map::Flows::NAME)?.len(),
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
        if self.kind != Kind::Sluice {
            return Ok("it counts no reasons".to_owned());
        }
        let mut words = Vec::new();
        for reason in Reason::ALL {
            let count = self.count(map::Reasons::NAME, Hook::XdpBalance.index(*reason))?;
            if count.packets > 0 {
                words.push(format!("{} {}", reason.name(), count.packets));
            }
        }
        Ok(words.join(", "))
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
