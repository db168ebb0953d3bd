//! By the flow, with the kernel's hash and the kernel's table, so that both paths agree on the endpoint.
//!
//! The table names active members only, like the kernel's; it is filled again when an endpoint has changed since.

use arc_swap::ArcSwap;
use gateway_common::{
    addr::{Addr, Port},
    flow::FlowKey,
    hash::{self, Keys, Seed},
    slot,
};

use crate::{
    balance::{Member, Tried},
    endpoint::Availability,
    maglev,
};

/// A table that follows its members.
#[derive(Debug)]
pub struct Maglev {
    seed: Hidden,
    keys: Keys,
    n_slots: u32,
    table: ArcSwap<Table>,
}

/// The seed is a secret of the cluster.
struct Hidden(Seed);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed(..)")
    }
}

#[derive(Debug)]
struct Table {
    /// The epoch of the endpoints when the table was last known to be right.
    epoch: u64,
    /// Weights it was filled with.
    weights: Weights,
    slots: Vec<u16>,
}

/// Weights of members.
#[derive(Debug, Eq, PartialEq)]
struct Weights {
    /// As if all were active.
    all: Vec<u32>,
    /// Of those that are.
    present: Vec<u32>,
}

impl Maglev {
    /// A table over `members`.
    pub fn new(seed: Seed, members: &[Member]) -> Self {
        let n_slots = slot::size_class(u32::try_from(members.len()).unwrap_or(u32::MAX));
        let epoch = epoch(members);
        let weights = weights(members);
        let slots = fill(&seed, members, &weights, n_slots);
        Self {
            seed: Hidden(seed),
            keys: seed.keys(),
            n_slots,
            table: ArcSwap::from_pointee(Table { epoch, weights, slots }),
        }
    }

    /// The member that owns the flow's slot; for a member that was tried, the owner of a later slot.
    pub fn pick(&self, members: &[Member], flow: &FlowKey, tried: &Tried) -> Option<usize> {
        let now = epoch(members);
        if self.table.load().epoch != now {
            self.refresh(members, now);
        }
        let table = self.table.load();
        let first = usize::try_from(hash::slot(
            hash::flow(&self.keys, flow, !flow.destination.is_v4()),
            self.n_slots,
        ))
        .ok()?;
        let n = table.slots.len();
        (0..n)
            .filter_map(|step| table.slots.get((first + step) % n))
            .map(|idx| usize::from(*idx))
            .find(|idx| !tried.contains(*idx))
    }

    fn refresh(&self, members: &[Member], epoch: u64) {
        let weights = weights(members);
        let before = self.table.load();
        // Any endpoint of the agent moves the epoch; most of the time none of ours has changed.
        let slots = if before.weights == weights {
            before.slots.clone()
        } else {
            fill(&self.seed.0, members, &weights, self.n_slots)
        };
        self.table.store(std::sync::Arc::new(Table { epoch, weights, slots }));
    }
}

fn epoch(members: &[Member]) -> u64 {
    members.first().map_or(0, |member| member.endpoint.epoch())
}

/// Weights of the active members; of the draining ones when none is active, as in the kernel.
fn weights(members: &[Member]) -> Weights {
    let of = |own: &dyn Fn(&Member) -> u32, is_alike: bool| -> Vec<u32> {
        let shares: Vec<maglev::Share<'_>> = members
            .iter()
            .map(|member| maglev::Share {
                service: member.endpoint.id().service.as_str(),
                backend: if is_alike { member.backend_weight.max(1) } else { member.backend_weight },
                own: own(member),
            })
            .collect();
        maglev::weights(&shares)
    };
    let is = |member: &Member, wanted: Availability| member.endpoint.availability() == wanted;
    let present = of(&|member| if is(member, Availability::Active) { member.weight } else { 0 }, false);
    if present.iter().any(|weight| *weight > 0) {
        return Weights { all: of(&|member| member.weight, false), present };
    }
    let draining = of(&|member| u32::from(is(member, Availability::Draining)), true);
    Weights { all: draining.clone(), present: draining }
}

fn fill(seed: &Seed, members: &[Member], weights: &Weights, n_slots: u32) -> Vec<u16> {
    let with = |weights: &[u32]| -> Vec<maglev::Member> {
        (0u16..)
            .zip(members.iter().zip(weights))
            .map(|(index, (member, weight))| {
                let addr = member.endpoint.addr();
                maglev::Member {
                    addr: Addr::from(addr.ip()),
                    port: Port::new(addr.port()),
                    index,
                    weight: *weight,
                }
            })
            .collect()
    };
    maglev::table_of(seed, &with(&weights.all), &with(&weights.present), n_slots)
}
