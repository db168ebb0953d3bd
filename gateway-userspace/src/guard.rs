//! Who may come, and how many flows may begin, where no kernel program decides it: the same lists, bounds and words.
//!
//! A connection is refused when it is accepted, a datagram when it is received: the kernel has done its part by then, so
//! that a flood costs more than with eBPF.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use gateway_common::{
    addr::Addr,
    counter::Reason,
    source::{SourceNetwork, SourceRule, site},
};
use parking_lot::Mutex;

use crate::clock::Clock;

/// Why somebody is refused; the words of the kernel's reasons.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Refused {
    /// Listed in `sources.deny`.
    Denied,
    /// No packet can come from there.
    Forged,
    /// The source began as many flows as it may.
    SourceLimited,
    /// As many flows began as may.
    ServiceLimited,
}

impl Refused {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Denied, Self::Forged, Self::SourceLimited, Self::ServiceLimited];

    /// The value of the metric's label: what the kernel's programs would count.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Denied => Reason::Denied,
            Self::Forged => Reason::ForgedSource,
            Self::SourceLimited => Reason::SourceLimited,
            Self::ServiceLimited => Reason::ServiceLimited,
        }
        .name()
    }
}

/// Networks and what becomes of who comes from there; of all that an address is in, the smallest decides.
#[derive(Debug, Default)]
pub struct Lists {
    rules: HashMap<(u32, u128), SourceRule>,
    /// Lengths of prefixes that occur, the longest first: each is one look.
    lengths: Vec<u32>,
}

impl Lists {
    /// From networks as the kernel's map has them.
    pub fn new(networks: &BTreeMap<SourceNetwork, SourceRule>) -> Self {
        let lengths: BTreeSet<u32> = networks.keys().map(|network| network.prefix_bits).collect();
        let key =
            |network: &SourceNetwork| (network.prefix_bits, first_bits(network.addr, network.prefix_bits));
        Self {
            rules: networks.iter().map(|(network, rule)| (key(network), *rule)).collect(),
            lengths: lengths.into_iter().rev().collect(),
        }
    }

    /// Whether somebody may not come, and why.
    pub fn refuses(&self, ip: IpAddr) -> Option<Refused> {
        let addr = Addr::from(ip.to_canonical());
        let rule = self.lengths.iter().find_map(|bits| self.rules.get(&(*bits, first_bits(addr, *bits))));
        if rule == Some(&SourceRule::DENY) {
            Some(Refused::Denied)
        } else if rule == Some(&SourceRule::FORGED) {
            Some(Refused::Forged)
        } else {
            None
        }
    }
}

/// The first bits of an address, the others zero.
fn first_bits(addr: Addr, bits: u32) -> u128 {
    let rest = 128_u32.saturating_sub(bits);
    u128::from_be_bytes(addr.octets()).checked_shr(rest).unwrap_or(0)
}

/// How many flows may begin.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    /// In a second.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

/// A rate of flows, in nanoseconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Pace {
    /// Between two flows.
    step: u64,
    /// How deep a bucket is.
    most: u64,
}

impl From<Rate> for Pace {
    fn from(rate: Rate) -> Self {
        let step = 1_000_000_000 / u64::from(rate.per_second.max(1));
        Self { step, most: step.saturating_mul(rate.burst.into()).max(step) }
    }
}

impl Pace {
    /// When a bucket would be full after one flow more; none when it is empty.
    fn take(self, full_at: u64, now: u64) -> Option<u64> {
        let next = full_at.saturating_sub(now).saturating_add(self.step);
        (next <= self.most).then(|| now.saturating_add(next))
    }
}

/// Bounds on new flows of one address, and how far they are used.
#[derive(Clone, Debug)]
pub struct Bounds {
    all: Option<Pace>,
    source: Option<Pace>,
    /// When the bucket of all would be full again.
    full_at: Arc<AtomicU64>,
    /// The address, which tells its sources from those of others; and whether it is that of UDP.
    at: (SocketAddr, bool),
}

impl Bounds {
    /// Of all clients together and of one source, going on where `former` was; none when nothing is bounded.
    pub fn new(
        [all, source]: [Option<Rate>; 2],
        at: (SocketAddr, bool),
        former: Option<&Self>,
    ) -> Option<Self> {
        let full_at = former.map(|former| Arc::clone(&former.full_at)).unwrap_or_default();
        let [all, source] = [all, source].map(|rate| rate.map(Pace::from));
        (all.is_some() || source.is_some()).then_some(Self { all, source, full_at, at })
    }
}

/// Sources whose buckets share a lock.
const WAYS: usize = 8;

/// One source's bucket: whose it is, and when it is full again.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    hash: u64,
    full_at: u64,
}

/// What is remembered of sources: a fixed number of buckets; the one that has been full for longest gives its place away.
#[derive(Debug)]
pub struct Sources {
    rows: Box<[Mutex<[Bucket; WAYS]>]>,
    hasher: RandomState,
    clock: Clock,
    began: Instant,
}

impl Sources {
    /// Nobody yet; room for as many sources as the kernel's table has, in 1.1 MiB.
    pub fn new(clock: Clock) -> Self {
        const ROWS: usize = 8_192;
        let began = clock.now();
        Self { rows: (0..ROWS).map(|_| Mutex::default()).collect(), hasher: RandomState::new(), clock, began }
    }

    /// Whether a flow may not begin. The source's bound comes first, so that one that begins too many takes nothing from
    /// others.
    pub fn refuse(&self, ip: IpAddr, bounds: &Bounds) -> Option<Refused> {
        let now = self.clock.now().saturating_duration_since(self.began);
        // Above zero, which stands for a bucket that nobody has.
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX / 2).saturating_add(1);
        if let Some(pace) = bounds.source
            && !self.source_may(ip, bounds.at, pace, now)
        {
            return Some(Refused::SourceLimited);
        }
        let take = |full_at| bounds.all.map_or(Some(full_at), |pace| pace.take(full_at, now));
        let taken = bounds.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.is_err().then_some(Refused::ServiceLimited)
    }

    fn source_may(&self, ip: IpAddr, at: (SocketAddr, bool), pace: Pace, now: u64) -> bool {
        let source = site(Addr::from(ip.to_canonical())).octets();
        let hash = self.hasher.hash_one((source, at));
        let rows = u64::try_from(self.rows.len()).unwrap_or(1).max(1);
        let Some(row) = usize::try_from(hash % rows).ok().and_then(|row| self.rows.get(row)) else {
            return true;
        };
        let mut row = row.lock();
        let found = row.iter().position(|bucket| bucket.full_at != 0 && bucket.hash == hash);
        let oldest = || row.iter().enumerate().min_by_key(|(_, bucket)| bucket.full_at).map(|(at, _)| at);
        let Some(bucket) = found.or_else(oldest).and_then(|at| row.get_mut(at)) else { return true };
        let full_at = if found.is_some() { bucket.full_at } else { now };
        match pace.take(full_at, now) {
            Some(full_at) => {
                *bucket = Bucket { hash, full_at };
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn network(text: &str, rule: SourceRule) -> (SourceNetwork, SourceRule) {
        let (addr, bits) = text.split_once('/').unwrap();
        let (addr, prefix_bits) = (addr.parse().unwrap(), bits.parse().unwrap());
        (crate::image::source_network(&crate::network::Network { addr, prefix_bits }), rule)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn at() -> (SocketAddr, bool) {
        (SocketAddr::from(([192, 0, 2, 80], 80)), false)
    }

    fn pace(per_second: u32, burst: u32) -> Rate {
        Rate { per_second, burst }
    }

    #[test]
    fn the_smallest_network_decides() {
        let lists = Lists::new(&BTreeMap::from([
            network("10.0.0.0/8", SourceRule::DENY),
            network("10.1.0.0/16", SourceRule::ALLOW),
            network("10.1.2.3/32", SourceRule::DENY),
            network("2001:db8::/32", SourceRule::FORGED),
        ]));
        for (addr, expected) in [
            ("10.2.0.1", Some(Refused::Denied)),
            ("::ffff:10.2.0.1", Some(Refused::Denied)),
            ("10.1.2.4", None),
            ("10.1.2.3", Some(Refused::Denied)),
            ("11.0.0.1", None),
            ("2001:db8:1::9", Some(Refused::Forged)),
            ("2001:db9::9", None),
        ] {
            assert_eq!(lists.refuses(ip(addr)), expected, "{addr}");
        }
        let everybody = Lists::new(&BTreeMap::from([network("::/0", SourceRule::DENY)]));
        assert_eq!(everybody.refuses(ip("2001:db9::9")), Some(Refused::Denied));
        assert_eq!(Lists::default().refuses(ip("10.0.0.1")), None);
    }

    #[test]
    fn a_source_has_a_bucket_and_so_has_the_service() {
        let clock = Clock::driven();
        let sources = Sources::new(clock.clone());
        let bounds = Bounds::new([Some(pace(10, 5)), Some(pace(2, 3))], at(), None).unwrap();
        let began = |addr: &str, n: usize| -> Vec<Option<Refused>> {
            (0..n).map(|_| sources.refuse(ip(addr), &bounds)).collect()
        };
        let (source, all) = (Some(Refused::SourceLimited), Some(Refused::ServiceLimited));
        assert_eq!(began("192.0.2.1", 4), [None, None, None, source]);
        // What the source's bound refused took nothing from the others.
        assert_eq!(began("192.0.2.2", 3), [None, None, all]);
        clock.advance(Duration::from_millis(500));
        assert_eq!(began("192.0.2.1", 2), [None, source], "half a second is one more");
        clock.advance(Duration::from_mins(1));
        assert_eq!(began("2001:db8::1", 2), [None, None]);
        assert_eq!(began("2001:db8::ffff:1", 2), [None, source], "a site of IPv6 is one source");
        let later = Bounds::new([Some(pace(10, 5)), None], at(), Some(&bounds)).unwrap();
        assert_eq!(
            (0..3).filter(|_| sources.refuse(ip("192.0.2.9"), &later).is_none()).count(),
            2,
            "it goes on"
        );
        assert!(Bounds::new([None, None], at(), None).is_none());
    }

    #[test]
    fn the_table_of_sources_is_bounded_and_keeps_who_is_bounded() {
        let clock = Clock::driven();
        let sources = Sources { rows: [Mutex::default()].into(), ..Sources::new(clock.clone()) };
        let bounds = Bounds::new([None, Some(pace(1, 2))], at(), None).unwrap();
        let busy = ip("192.0.2.1");
        assert!((0..2).all(|_| sources.refuse(busy, &bounds).is_none()));
        for n in 0..100 {
            clock.advance(Duration::from_millis(1));
            assert_eq!(sources.refuse(IpAddr::from([198, 51, 100, n]), &bounds), None);
        }
        assert_eq!(sources.refuse(busy, &bounds), Some(Refused::SourceLimited), "its bucket is full latest");
    }
}
