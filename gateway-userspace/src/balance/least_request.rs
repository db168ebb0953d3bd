//! The less loaded of two distinct members drawn by weight (Mitzenmacher, "The Power of Two Choices", 2001).

use crate::balance::Member;

/// Members up to which all are compared: with two or three, a draw would pick the worse one too often.
const SCAN: usize = 3;

/// Draws until two distinct usable members are found.
const DRAWS: usize = 8;

/// An alias table (Vose, 1991): a draw by weight in constant time.
#[derive(Debug)]
pub struct LeastRequest {
    weights: Box<[u32]>,
    /// Of 2^32: how often a column yields itself rather than its alias.
    columns: Box<[(u64, usize)]>,
}

impl LeastRequest {
    /// Prepares draws by these weights.
    pub fn new(weights: &[u32]) -> Self {
        Self { weights: weights.into(), columns: alias_table(weights).into() }
    }

    /// The less loaded of two usable members.
    pub fn pick(&self, members: &[Member], usable: impl Fn(usize) -> bool) -> Option<usize> {
        if members.len() <= SCAN {
            return (0..members.len())
                .filter(|idx| usable(*idx))
                .reduce(|best, idx| self.lighter(members, best, idx));
        }
        let mut first = None;
        for _ in 0..DRAWS {
            let Some(idx) = self.draw().filter(|idx| usable(*idx)) else { continue };
            match first {
                None => first = Some(idx),
                Some(other) if other != idx => return Some(self.lighter(members, other, idx)),
                Some(_) => {}
            }
        }
        first
    }

    fn draw(&self) -> Option<usize> {
        if self.columns.is_empty() {
            return None;
        }
        let column = fastrand::usize(..self.columns.len());
        let (keep, alias) = *self.columns.get(column)?;
        Some(if u64::from(fastrand::u32(..)) < keep { column } else { alias })
    }

    /// Compares `(active + 1) / weight` without a division; the first wins a tie.
    fn lighter(&self, members: &[Member], a: usize, b: usize) -> usize {
        let load = |idx: usize| members.get(idx).map_or(u64::MAX, |m| u64::from(m.endpoint.active()) + 1);
        let weight = |idx: usize| self.weights.get(idx).map_or(1, |weight| u64::from(*weight).max(1));
        if load(b).saturating_mul(weight(a)) < load(a).saturating_mul(weight(b)) { b } else { a }
    }
}

fn alias_table(weights: &[u32]) -> Vec<(u64, usize)> {
    const ONE: u128 = 1 << 32;
    let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    let n = u128::try_from(weights.len()).unwrap_or(u128::MAX);
    if total == 0 {
        return Vec::new();
    }
    let mut columns: Vec<(u64, usize)> = (0..weights.len()).map(|idx| (1 << 32, idx)).collect();
    let (mut small, mut large) = (Vec::new(), Vec::new());
    for (idx, weight) in weights.iter().enumerate() {
        let scaled = u128::from(*weight) * n * ONE / total;
        if scaled < ONE { small.push((idx, scaled)) } else { large.push((idx, scaled)) }
    }
    while let (Some((less, share)), Some((more, rest))) = (small.pop(), large.pop()) {
        if let Some(column) = columns.get_mut(less) {
            *column = (u64::try_from(share).unwrap_or(u64::MAX), more);
        }
        let rest = rest + share - ONE;
        if rest < ONE { small.push((more, rest)) } else { large.push((more, rest)) }
    }
    columns
}
