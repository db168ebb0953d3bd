//! Keys of the programs' own cookies: each is used for about an hour, in turn with the other, which is replaced meanwhile.
//! Without an agent the programs go on with the two that they have.

use aws_lc_rs::rand;
use gateway_common::{
    cookie::{CookieKeys, STEP_SHIFT, SynCookie},
    flow::Tick,
    map::{self, MapDef as _},
};

use crate::{
    clock,
    kernel::{Error, Kernel, map::KernelMaps},
};

/// Moments of a turn after which no cookie of the last one is taken back any more.
const SETTLED: u32 = 3 << STEP_SHIFT;

/// When keys are replaced.
#[derive(Debug, Default)]
pub(super) struct Renewal {
    /// The turn for which there is a new key.
    ready_for: Option<u32>,
}

impl Renewal {
    /// Sees to it that there are keys, and keeps those of an earlier agent: clients may be about to bring cookies back.
    pub(super) fn start(maps: &mut KernelMaps) -> Result<Self, Error> {
        let mut present = maps.cookie_keys()?;
        if present.keys.contains(&[0; 2]) {
            present.keys = [random()?, random()?];
            maps.put_cookie_keys(&present)?;
        }
        Ok(Self::default())
    }

    /// The keys with a new one for the next turn, if it is time for that.
    fn next(&mut self, now: Tick, present: CookieKeys, key: [u64; 2]) -> Option<CookieKeys> {
        let next = CookieKeys::turn(now).wrapping_add(1);
        if CookieKeys::since_turn(now) < SETTLED || self.ready_for == Some(next) {
            return None;
        }
        self.ready_for = Some(next);
        Some(present.with(next, key))
    }
}

impl Kernel {
    /// Replaces the key of cookies that is not in use, once in its turn.
    ///
    /// # Errors
    /// When the kernel refuses, or the machine has no random numbers.
    pub fn renew_keys(&mut self) -> Result<(), Error> {
        let present = self.writer.maps().cookie_keys()?;
        match self.renewal.next(SynCookie::moment(clock::monotonic_ns()), present, random()?) {
            Some(keys) => self.writer.maps_mut().put_cookie_keys(&keys),
            None => Ok(()),
        }
    }
}

/// A key that nobody can foretell, and that is not the one of a map that nobody has written.
fn random() -> Result<[u64; 2], Error> {
    let mut bytes = [0; 16];
    let failed = |_| Error::Memory {
        name: map::CookieKeysMap::NAME,
        source: std::io::Error::other("the machine has no random numbers"),
    };
    rand::fill(&mut bytes).map_err(failed)?;
    let [first, second]: [u64; 2] = bytemuck::cast(bytes);
    Ok([first | 1, second])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_that_is_not_in_use_is_replaced_once_in_a_turn() {
        let mut renewal = Renewal::default();
        let present = CookieKeys { keys: [[1, 1], [2, 2]] };
        let mut at = |moment| renewal.next(Tick::new(moment), present, [9, 9]).map(|next| next.keys);
        assert_eq!(at(10 * 4_096 + 191), None, "the last key is still needed");
        assert_eq!(at(10 * 4_096 + 192), Some([[1, 1], [9, 9]]), "an even turn uses the first");
        assert_eq!(at(10 * 4_096 + 4_095), None, "once");
        assert_eq!(at(11 * 4_096), None);
        assert_eq!(at(11 * 4_096 + 500), Some([[9, 9], [2, 2]]));
    }
}
