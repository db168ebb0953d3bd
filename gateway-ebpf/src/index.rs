//! The service of a packet: by address, port and protocol, else by a range of ports, else by the address alone.

use core::ops::Deref;

use gateway_common::{
    addr::Port,
    hash,
    map::INDEX_BUCKETS,
    service::{ServiceBucket, ServiceEntry, ServiceKey},
};

use crate::{Aligned, env::Maps};

/// Ranges that an address may have for one protocol.
const RANGES: u32 = 32;

/// Number of the service that a packet to this address, port and protocol is for.
#[inline(always)]
pub fn service<M: Maps>(maps: &M, key: ServiceKey) -> Option<u32> {
    let above = match find(&key, buckets(maps)) {
        Some(entry) if entry.service != 0 => entry.service,
        // Only here the key has to stand in memory.
        Some(_) | None => wide(maps, &Aligned(key).0),
    };
    above.checked_sub(1)
}

/// The service that has this very key.
#[inline(always)]
pub(crate) fn only<M: Maps>(maps: &M, key: &ServiceKey) -> Option<u32> {
    find(key, buckets(maps)).or_else(|| moved(key, buckets(maps)))?.service.checked_sub(1)
}

/// The service of a key that was found in none of its buckets, or the one for many ports of the address: its number plus
/// one, or zero. A number, because whoever returns an option has it written to memory, and every packet reads it there.
// A frame of its own: most packets do not come here.
#[inline(never)]
fn wide<M: Maps>(maps: &M, key: &ServiceKey) -> u32 {
    if let Some(entry) = moved(key, buckets(maps))
        && entry.service != 0
    {
        return entry.service;
    }
    let all = Aligned(ServiceKey::new(key.addr, Port::NONE, key.protocol));
    let Some(entry) = find(&all.0, buckets(maps)).or_else(|| moved(&all.0, buckets(maps))) else { return 0 };
    for idx in 0..entry.n_ranges.min(RANGES) {
        let Some(range) = maps.port_range(entry.first_range.wrapping_add(idx)) else { return 0 };
        if range.first <= key.port && key.port <= range.last {
            return range.service.wrapping_add(1);
        }
    }
    entry.service
}

#[inline(always)]
fn buckets<M: Maps>(maps: &M) -> impl Fn(u32) -> Option<M::Row<ServiceBucket>> {
    |bucket| maps.service_bucket(bucket & (INDEX_BUCKETS - 1))
}

/// The entry of a key, unless it [moved](moved) meanwhile.
#[inline(always)]
fn find<B: Deref<Target = ServiceBucket>>(
    key: &ServiceKey,
    bucket: impl Fn(u32) -> Option<B>,
) -> Option<ServiceEntry> {
    let [first, second] = hash::service(key);
    in_bucket(key, &*bucket(first)?).or_else(|| in_bucket(key, &*bucket(second)?))
}

/// The entry of a key that was not found. One that the agent moves from its second bucket to its first stands in both for a
/// while: whoever came too early for the first, and too late for the second, finds it in the first.
#[inline(always)]
fn moved<B: Deref<Target = ServiceBucket>>(
    key: &ServiceKey,
    bucket: impl Fn(u32) -> Option<B>,
) -> Option<ServiceEntry> {
    let [first, _] = hash::service(key);
    in_bucket(key, &*bucket(first)?)
}

#[inline(always)]
fn in_bucket(key: &ServiceKey, bucket: &ServiceBucket) -> Option<ServiceEntry> {
    let [one, two] = &bucket.entries;
    // An entry for port zero may be there for its ranges only.
    let is = |entry: &ServiceEntry| entry.is_for(key) && (entry.service | entry.n_ranges) != 0;
    if is(one) {
        Some(*one)
    } else if is(two) {
        Some(*two)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use gateway_common::addr::{Addr, Protocol};

    use super::*;

    #[test]
    fn an_entry_that_moves_is_found() {
        let addr = Addr::from(core::net::IpAddr::from([198, 51, 100, 1]));
        let key = ServiceKey::new(addr, Port::new(443), Protocol::TCP);
        let entry = ServiceEntry::new(key, Some(7), 0, 0);
        let [first, second] = hash::service(&key).map(|bucket| bucket & (INDEX_BUCKETS - 1));
        let empty = ServiceBucket::default();
        let full = ServiceBucket { entries: [ServiceEntry::default(), entry] };
        for [from, to] in [[first, second], [second, first]] {
            for at in 0..4 {
                let n_reads = Cell::new(0);
                let read = |bucket: u32| {
                    let now = if n_reads.get() < at { from } else { to };
                    n_reads.set(n_reads.get() + 1);
                    Some(if bucket & (INDEX_BUCKETS - 1) == now { &full } else { &empty })
                };
                let found = find(&key, read).or_else(|| moved(&key, read));
                assert_eq!(found, Some(entry), "from {from} to {to} before read {at}");
            }
        }
        assert_eq!(find(&key, |_| Some(&empty)), None);
    }
}
