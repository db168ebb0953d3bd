//! In turn, by weight: the order of an earliest-deadline-first schedule, laid out once.
//!
//! A schedule that is computed at every pick needs a lock around a heap. Weights change only with the configuration,
//! so the order is written down when it is compiled, and a pick is one atomic addition.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Turns of one period at most, unless there are more members: bounds memory, and shares to a tenth of a percent.
const TURNS: u64 = 1_024;

/// Turns looked at for a member that may be used; then the caller scans.
const LOOKS: usize = 16;

/// The order of turns.
#[derive(Debug)]
pub struct RoundRobin {
    turns: Box<[u32]>,
    next: AtomicUsize,
}

impl RoundRobin {
    /// Lays out turns for members of these weights.
    pub fn new(weights: &[u32]) -> Self {
        let turns = schedule(&quotas(weights));
        // A random start, so that not every worker and node begins with the same member.
        let start = if turns.is_empty() { 0 } else { fastrand::usize(..turns.len()) };
        Self { turns, next: AtomicUsize::new(start) }
    }

    /// The next member in turn that is usable.
    pub fn pick(&self, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let n = self.turns.len();
        if n == 0 {
            return None;
        }
        (0..LOOKS)
            .map(|_| self.next.fetch_add(1, Ordering::Relaxed) % n)
            .filter_map(|turn| self.turns.get(turn).and_then(|idx| usize::try_from(*idx).ok()))
            .find(|idx| usable(*idx))
    }
}

/// Turns of each member in one period: the weights divided by what they have in common, or scaled down.
fn quotas(weights: &[u32]) -> Vec<u64> {
    let divisor = weights.iter().fold(0, |a, b| gcd(a, u64::from(*b))).max(1);
    let total: u64 = weights.iter().map(|weight| u64::from(*weight) / divisor).sum();
    let n = u64::try_from(weights.len()).unwrap_or(u64::MAX);
    let most = TURNS.max(n.saturating_mul(4));
    let scale = |weight: &u32| {
        let reduced = u64::from(*weight) / divisor;
        match reduced {
            0 => 0,
            _ if total <= most => reduced,
            // Rounded to the nearest, and one turn at least.
            _ => ((reduced * most * 2 + total) / (total * 2)).max(1),
        }
    };
    weights.iter().map(scale).collect()
}

const fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Turn k of a member with quota `q` is due at `(k + phase) / q`; turns go in the order of those deadlines. Phases are
/// spread by the golden ratio, so that members of little weight do not take their turns one after the other.
fn schedule(quotas: &[u64]) -> Box<[u32]> {
    let mut turns: Vec<(u64, u32)> = Vec::new();
    for (idx, quota) in (0u32..).zip(quotas) {
        let phase = u64::from(idx.wrapping_mul(0x9e37_79b9).wrapping_add(1 << 31));
        // In units of 2^-32 of a period; quotas are far below that.
        turns.extend((0..*quota).map(|k| (((k << 32) + phase) / quota, idx)));
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, idx)| idx).collect()
}
