//! The service of a packet: by address, port and protocol, else by a range of ports, else by the address alone.

use gateway_common::{
    addr::Port,
    hash,
    map::INDEX_BUCKETS,
    service::{ServiceEntry, ServiceKey},
};

use crate::{Aligned, env::Maps};

/// Ranges that an address may have for one protocol.
const RANGES: u32 = 32;

/// Number of the service that a packet to this address, port and protocol is for.
#[inline(always)]
pub fn service<M: Maps>(maps: &M, key: ServiceKey) -> Option<u32> {
    match place(maps, &key) {
        Some(entry) if entry.service != 0 => Some(entry.service.wrapping_sub(1)),
        // Only here the key has to stand in memory.
        Some(_) | None => wide(maps, &Aligned(key).0),
    }
}

/// The service that has this very key.
#[inline(always)]
pub(crate) fn only<M: Maps>(maps: &M, key: &ServiceKey) -> Option<u32> {
    place(maps, key)?.service.checked_sub(1)
}

/// The service for many ports of the address.
// A frame of its own: most packets do not come here.
#[inline(never)]
fn wide<M: Maps>(maps: &M, key: &ServiceKey) -> Option<u32> {
    let all = Aligned(ServiceKey::new(key.addr, Port::NONE, key.protocol));
    let entry = place(maps, &all.0)?;
    for idx in 0..entry.n_ranges.min(RANGES) {
        let range = maps.port_range(entry.first_range.wrapping_add(idx))?;
        if range.first <= key.port && key.port <= range.last {
            return Some(range.service);
        }
    }
    entry.service.checked_sub(1)
}

#[inline(always)]
fn place<M: Maps>(maps: &M, key: &ServiceKey) -> Option<ServiceEntry> {
    let [first, second] = hash::service(key);
    in_bucket(maps, key, first).or_else(|| in_bucket(maps, key, second))
}

#[inline(always)]
fn in_bucket<M: Maps>(maps: &M, key: &ServiceKey, bucket: u32) -> Option<ServiceEntry> {
    let bucket = maps.service_bucket(bucket & (INDEX_BUCKETS - 1))?;
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
