//! The weighted Maglev table: which slot belongs to which endpoint. Pure, and the same on every node of a cluster.
//!
//! Each endpoint walks a permutation of the slots given by its identity (Eisenbud et al., "Maglev", NSDI 2016). How many
//! slots it may claim is decided first, exactly: the share of its weight by largest remainders, and never none. Then all
//! walk at once, each as fast as its weight says, and the first that stands on a slot has it. Unlike in the paper,
//! one that comes to a slot that is taken does not go on to the next free one: a walk does not depend on others', and so
//! half as many slots move when one of them goes. Neither the order of a file nor the index of an endpoint changes
//! the table.

use std::collections::BTreeMap;

use gateway_common::{
    addr::{Addr, Port},
    hash::{self, Seed},
};

/// One endpoint that takes part.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Member {
    /// Its address.
    pub addr: Addr,
    /// Its port.
    pub port: Port,
    /// What the slots carry for it.
    pub index: u16,
    /// Its weight; a member of weight zero gets no slot.
    pub weight: u32,
}

/// What decides the weight of an endpoint among those of several backends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Share<'a> {
    /// The service of the endpoint: one backend.
    pub service: &'a str,
    /// Weight of the backend.
    pub backend: u32,
    /// Weight of the endpoint within its service; zero takes no part.
    pub own: u32,
}

/// Weights of endpoints: a backend's weight is shared by its endpoints in proportion to their own. The kernel's tables
/// and those of userspace are both filled by this.
pub fn weights(shares: &[Share<'_>]) -> Vec<u32> {
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for share in shares.iter().filter(|share| share.backend > 0 && share.own > 0) {
        *sums.entry(share.service).or_default() += u64::from(share.own);
    }
    let is_alone = sums.len() == 1;
    let weight = |share: &Share<'_>| {
        if share.backend == 0 || share.own == 0 {
            return 0;
        }
        if is_alone {
            return share.own;
        }
        let sum = sums.get(share.service).copied().unwrap_or(1).max(1);
        // A thousandth of a backend's weight is finer than a slot of the largest table.
        let exact = u64::from(share.backend).saturating_mul(1_000).saturating_mul(u64::from(share.own));
        u32::try_from(exact.div_ceil(sum)).unwrap_or(u32::MAX)
    };
    shares.iter().map(weight).collect()
}

/// One endpoint's way through the slots.
struct Walk {
    index: u16,
    weight: u64,
    /// Slots that it may still claim.
    quota: u64,
    /// Slots that it has stood on.
    steps: u64,
    /// What of its next step it has made, in the units of [`Walk::pace`].
    credit: u64,
    next: usize,
    skip: usize,
}

impl Walk {
    /// How fast it goes: by its weight, and by how much of the table it has not seen. So it has seen `1 - exp(-w t)` of it
    /// at any time, and without quotas each slot would be claimed in proportion to the weights: the race of exponential
    /// clocks that weighted rendezvous hashing runs (Schindelhauer and Schomaker, "Weighted Distributed Hash Tables",
    /// SPAA 2005). The less the quotas have to correct, the fewer slots move when they change.
    fn pace(&self, n_slots: u64) -> u64 {
        self.weight * n_slots.saturating_sub(self.steps).max(1)
    }
}

/// Slots that are taken, a bit for each: all of a large table stay in the first-level cache.
struct Taken(Vec<u64>);

impl Taken {
    /// Takes a slot; says whether it was free.
    fn take(&mut self, slot: usize) -> bool {
        let bit = 1 << (slot % 64);
        match self.0.get_mut(slot / 64) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                true
            }
            Some(_) | None => false,
        }
    }
}

/// Fills a table of `n_slots` slots, a prime. Empty when no member has a weight.
///
/// When there are more members than slots, the last ones in the order of identities get none.
pub fn table(seed: &Seed, members: &[Member], n_slots: u32) -> Vec<u16> {
    let mut walks = walks(seed, members, n_slots);
    let Ok(len) = usize::try_from(n_slots) else { return Vec::new() };
    if walks.is_empty() {
        return Vec::new();
    }
    let mut slots = vec![0; len];
    fill(&mut slots, &mut Taken(vec![0; len.div_ceil(64)]), &mut walks, len);
    slots
}

/// The table of those of `members` that are `present`: as if all were, and then the slots of the absent ones are claimed by
/// the others in their turns. So no slot moves from one that is present, whoever goes or comes back. A present one
/// has to have at least the share of the present ones' weight that it has of all, and gets as many slots as it would have
/// without the absent ones.
pub fn table_of(seed: &Seed, members: &[Member], present: &[Member], n_slots: u32) -> Vec<u16> {
    let mut walks = walks(seed, present, n_slots);
    let mut slots = table(seed, members, n_slots);
    if slots.is_empty() || walks.is_empty() {
        return table(seed, present, n_slots);
    }
    // By their indices: each slot asks, and there are thousands.
    let len = walks.iter().map(|walk| usize::from(walk.index) + 1).max().unwrap_or(0);
    let mut quotas: Vec<Option<&mut u64>> = (0..len).map(|_| None).collect();
    for walk in &mut walks {
        if let Some(quota) = quotas.get_mut(usize::from(walk.index)) {
            *quota = Some(&mut walk.quota);
        }
    }
    let mut taken = Taken(vec![0; slots.len().div_ceil(64)]);
    let mut n_free = 0;
    for (slot, index) in slots.iter().enumerate() {
        if let Some(Some(quota)) = quotas.get_mut(usize::from(*index)) {
            **quota = quota.saturating_sub(1);
            taken.take(slot);
        } else {
            n_free += 1;
        }
    }
    fill(&mut slots, &mut taken, &mut walks, n_free);
    slots
}

/// Everybody's way through the slots, in the order of the identities.
fn walks(seed: &Seed, members: &[Member], n_slots: u32) -> Vec<Walk> {
    let mut members: Vec<Member> = members.iter().copied().filter(|member| member.weight > 0).collect();
    members.sort_unstable();
    members.truncate(usize::try_from(n_slots).unwrap_or(0));
    let n = u64::from(n_slots);
    let walk = |(member, quota): (&Member, u64)| {
        let [offset, skip] = hash::endpoint(seed, member.addr, member.port);
        let place = |number: u64| usize::try_from(number).unwrap_or(0);
        let (next, skip) = (place(offset % n), place(skip % (n - 1) + 1));
        Walk { index: member.index, weight: u64::from(member.weight), quota, steps: 0, credit: 0, next, skip }
    };
    members.iter().zip(quotas(&members, n)).map(walk).collect()
}

/// Gives the slots that are free, so many, to those who walk.
fn fill(slots: &mut [u16], taken: &mut Taken, walks: &mut Vec<Walk>, mut n_free: usize) {
    let n_slots = u64::try_from(slots.len()).unwrap_or(u64::MAX);
    walks.retain(|walk| walk.quota > 0);
    while n_free > 0
        && let Some(first) = walks.iter().max_by_key(|walk| (walk.weight, walk.steps))
    {
        let (weight, mut steps) = (first.weight, first.steps);
        // The first makes one step in each round, so it has stood on every slot in as many rounds.
        for _ in 0..n_slots {
            let round = weight * n_slots.saturating_sub(steps).max(1);
            steps += 1;
            let mut is_done = false;
            for walk in &mut *walks {
                walk.credit += walk.pace(n_slots);
                while walk.credit >= round && walk.quota > 0 {
                    walk.credit -= round;
                    n_free -= usize::from(step(slots, taken, walk));
                    is_done |= walk.quota == 0;
                }
            }
            if is_done || n_free == 0 {
                break;
            }
        }
        walks.retain(|walk| walk.quota > 0);
    }
}

/// How many of `n` slots each member gets: one at least, the rest by largest remainders of the exact shares.
fn quotas(members: &[Member], n: u64) -> Vec<u64> {
    let total: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
    if total == 0 {
        return Vec::new();
    }
    let share = |member: &Member| u64::from(member.weight) * n;
    let mut quotas: Vec<u64> = members.iter().map(|member| (share(member) / total).max(1)).collect();
    let mut order: Vec<usize> = (0..members.len()).collect();
    let remainder = |idx: &usize| members.get(*idx).map_or(0, |member| share(member) % total);
    order.sort_by_key(|idx| std::cmp::Reverse(remainder(idx)));
    let given: u64 = quotas.iter().sum();
    for idx in order.iter().cycle().take(usize::try_from(n.saturating_sub(given)).unwrap_or(0)) {
        if let Some(quota) = quotas.get_mut(*idx) {
            *quota += 1;
        }
    }
    // Slots given to members whose share is below one are taken from those that have the most.
    for _ in n..given {
        if let Some(quota) = quotas.iter_mut().max() {
            *quota -= 1;
        }
    }
    quotas
}

/// Makes a step; says whether the slot was free.
fn step(slots: &mut [u16], taken: &mut Taken, walk: &mut Walk) -> bool {
    let here = walk.next;
    walk.steps += 1;
    walk.next += walk.skip;
    if walk.next >= slots.len() {
        walk.next -= slots.len();
    }
    let is_free = taken.take(here);
    if is_free && let Some(slot) = slots.get_mut(here) {
        *slot = walk.index;
        walk.quota -= 1;
    }
    is_free
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use gateway_common::slot::{SIZE_CLASSES, size_class};

    fn members(weights: &[u32]) -> Vec<Member> {
        (0u16..)
            .zip(weights)
            .map(|(index, weight)| {
                let [high, low] = index.to_be_bytes();
                Member { addr: Addr::v4([10, 1, high, low]), port: Port::new(8080), index, weight: *weight }
            })
            .collect()
    }

    fn count(table: &[u16], index: u16) -> usize {
        table.iter().filter(|slot| **slot == index).count()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn shares_follow_any_weights(
            weights in prop::collection::vec(prop_oneof![0u32..4, 0u32..100, 0u32..=1_000_000], 1..40),
        ) {
            let members = members(&weights);
            let n_slots = size_class(u32::try_from(weights.len()).unwrap());
            let table = table(&Seed::new([3, 4]), &members, n_slots);
            let total: f64 = weights.iter().copied().map(f64::from).sum();
            if total == 0.0 {
                prop_assert!(table.is_empty());
                return Ok(());
            }
            prop_assert_eq!(table.len(), usize::try_from(n_slots).unwrap());
            for member in &members {
                let slots = count(&table, member.index);
                prop_assert_eq!(slots == 0, member.weight == 0);
                let share = f64::from(u32::try_from(slots).unwrap()) / f64::from(n_slots);
                let wanted = f64::from(member.weight) / total;
                prop_assert!((share - wanted).abs() <= 0.01, "{} wants {} and has {}", member.index, wanted, share);
            }
        }
    }

    #[test]
    fn a_backend_shares_its_weight_among_its_endpoints() {
        let share = |service, backend, own| Share { service, backend, own };
        assert_eq!(weights(&[share("a", 5, 3), share("a", 5, 1)]), [3, 1]);
        let mixed = weights(&[share("a", 1, 1), share("a", 1, 1), share("b", 3, 7), share("c", 0, 7)]);
        assert_eq!(mixed, [500, 500, 3_000, 0]);
    }

    #[test]
    fn the_order_of_members_does_not_matter() {
        let seed = Seed::new([5, 6]);
        let mut some = members(&[1, 2, 3]);
        let before = table(&seed, &some, 509);
        some.reverse();
        assert_eq!(before, table(&seed, &some, 509));
    }

    /// The share of the slots of others that are another's now, in hundredths.
    fn moved(before: &[u16], after: &[u16], gone: impl Fn(u16) -> bool) -> f64 {
        let kept = before.iter().zip(after).filter(|(before, _)| !gone(**before));
        let n_moved = kept.clone().filter(|(before, after)| before != after).count();
        let hundredths = |n: usize| f64::from(u32::try_from(n).unwrap());
        100.0 * hundredths(n_moved) / hundredths(kept.count())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn slots_of_those_who_stay_stay(
            weights in prop::collection::vec(prop_oneof![1u32..4, 1u32..100, 1u32..=1_000_000], 2..40),
            absent in prop::collection::vec(any::<bool>(), 40),
            seed in any::<u64>(),
        ) {
            let all = members(&weights);
            let is_absent = |index: u16| absent[usize::from(index)];
            let present: Vec<Member> = all.iter().copied().filter(|member| !is_absent(member.index)).collect();
            let n_slots = size_class(u32::try_from(weights.len()).unwrap());
            let seed = Seed::new([seed, 9]);
            let before = table(&seed, &all, n_slots);
            let after = table_of(&seed, &all, &present, n_slots);
            prop_assert_eq!(&table_of(&seed, &all, &all, n_slots), &before);
            if present.is_empty() {
                prop_assert!(after.is_empty());
                return Ok(());
            }
            prop_assert!(moved(&before, &after, is_absent) == 0.0);
            let total: f64 = present.iter().map(|member| f64::from(member.weight)).sum();
            for member in &all {
                let slots = count(&after, member.index);
                prop_assert_eq!(slots == 0, is_absent(member.index));
                let share = f64::from(u32::try_from(slots).unwrap()) / f64::from(n_slots);
                let wanted = if is_absent(member.index) { 0.0 } else { f64::from(member.weight) / total };
                prop_assert!((share - wanted).abs() <= 0.01, "{} wants {} and has {}", member.index, wanted, share);
            }
        }
    }

    #[test]
    fn when_one_goes_few_slots_of_the_others_move() {
        let seed = Seed::new([7, 8]);
        let all = members(&[1; 10]);
        let n_slots = size_class(10);
        let share =
            moved(&table(&seed, &all, n_slots), &table(&seed, &all[1..], n_slots), |index| index == 0);
        assert!(share <= 5.0, "{share} % of the slots moved");
    }

    #[test]
    fn when_one_is_not_wanted_any_more_one_slot_in_a_hundred_of_the_others_moves() {
        let weighted: Vec<u32> = (0..10).map(|n| 1 + n * 7 % 10).collect();
        let cases = [3, 4, 8, 10, 20, 65, 100, 163, 300].map(|n| vec![1; n]).into_iter();
        for weights in cases.chain([weighted, vec![1, 2, 3], vec![1, 100, 10, 10, 10, 3]]) {
            let all = members(&weights);
            let n_slots = size_class(u32::try_from(weights.len()).unwrap());
            // Of few endpoints, one whose way happens to be another's can move more: the mean of many seeds.
            let n_seeds = if weights.len() > 20 { 4 } else { 200 };
            let share = |number: u32| {
                let seed = Seed::new([u64::from(number), 8]);
                let gone = usize::try_from(number).unwrap() % all.len();
                let rest = [&all[..gone], &all[gone + 1..]].concat();
                let index = all[gone].index;
                moved(&table(&seed, &all, n_slots), &table(&seed, &rest, n_slots), |other| other == index)
            };
            let mean = (0..n_seeds).map(share).sum::<f64>() / f64::from(n_seeds);
            assert!(mean > 0.1 && mean <= 1.0, "{mean} % of the slots of {weights:?} moved");
        }
    }

    #[test]
    fn more_members_than_slots_leave_no_slot_free() {
        let table = table(&Seed::new([1, 1]), &members(&[1; 300]), SIZE_CLASSES[0]);
        assert_eq!(table.len(), 251);
    }
}
