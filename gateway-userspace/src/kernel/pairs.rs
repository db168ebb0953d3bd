//! How many sockets and endpoints are remembered: the kernel forgets the oldest without a word, and counts none.

use std::os::fd::AsFd as _;

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use gateway_common::map::{MapDef as _, SocketPeers};

use crate::kernel::{Error, Kernel, sys};

/// Entries that are counted; of a table with more, the rest is estimated, within some percent.
const COUNTED: u32 = 4_096;

/// The table of what sockets asked for.
pub(super) struct Pairs {
    map: MapData,
    room: u32,
}

impl Pairs {
    /// Takes it out of a loaded object.
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Error> {
        let name = SocketPeers::NAME;
        let Some(Map::LruHashMap(map)) = object.take_map(name) else { return Err(Error::NoMap { name }) };
        let room = map.info().map_err(|source| Error::Map { name, source })?.max_entries();
        Ok(Self { map, room })
    }

    /// Pairs that are remembered, those of closed sockets among them, and for how many there is room.
    fn count(&self) -> Result<[u64; 2], Error> {
        let counted = sys::count_entries::<SocketPeers>(self.map.fd().as_fd(), COUNTED)
            .map_err(|source| Error::Memory { name: SocketPeers::NAME, source })?;
        Ok([estimate(counted, self.room), u64::from(self.room)])
    }
}

/// Entries of a table, from those in its first buckets. A hash map has as many buckets as it has room, rounded up to a power
/// of two, and spreads its keys evenly.
fn estimate((found, buckets): (u32, Option<u32>), room: u32) -> u64 {
    let all = u64::from(room.next_power_of_two());
    let found = u64::from(found);
    let held = buckets.map_or(found, |seen| found * all / u64::from(seen.max(1)));
    held.min(u64::from(room))
}

impl Kernel {
    /// Pairs of a socket and an endpoint that are remembered, and for how many there is room; none where no process is given
    /// endpoints.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn socket_pairs(&self) -> Result<Option<[u64; 2]>, Error> {
        self.connect.as_ref().map(|_| self.pairs.count()).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_counted_is_estimated() {
        assert_eq!(estimate((17, None), 100), 17);
        assert_eq!(estimate((4_000, Some(8_192)), 65_536), 32_000);
        assert_eq!(estimate((4_096, Some(4_000)), 65_536), 65_536, "never more than there is room for");
        assert_eq!(estimate((4_096, Some(8_192)), 60_000), 32_768);
        assert_eq!(estimate((1, Some(0)), 8), 8);
    }
}
