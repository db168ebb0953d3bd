//! How large the maps are: by the settings, the node's memory, or their definitions.

use std::fs;

use gateway_common::map::{self, Description, MapDef as _};

use crate::kernel::Settings;

impl Settings {
    /// Entries of a map, as this node is to have them.
    pub(super) fn capacity_of(&self, description: &Description) -> u32 {
        match description.name {
            // Half of the places of flows stay free, so that a flow finds one in its two buckets. Replies have twice as many
            // places as flows, so that a flood of one service leaves ports to the others.
            map::Flows::NAME | map::Sequences::NAME | map::Replies::NAME => buckets(self.flows),
            map::Displaced::NAME => buckets(self.flows) / 8,
            // It has its room from the beginning, whether it is used or not.
            map::SocketPeers::NAME => self.connect.as_ref().map_or(1, |connect| connect.sockets),
            map::Slots::NAME => slot_chunks(memory_bytes()).max(description.capacity),
            _ => description.capacity,
        }
    }
}

/// Buckets of the tables of so many flows.
fn buckets(flows: u32) -> u32 {
    (flows / 2).next_power_of_two().max(16)
}

/// Flows that a node remembers unless its configuration says otherwise.
#[must_use]
pub fn flows_of_node() -> u32 {
    flows(memory_bytes())
}

/// As many flows as a two-hundredth of the memory holds, as a power of two. Each has two places of 64 bytes, 32 bytes
/// among the replies, 16 of sequence numbers, and a few elsewhere.
fn flows(memory_bytes: u64) -> u32 {
    const LEAST: u32 = 1 << 14;
    const MOST: u32 = 1 << 20;
    let flows = u32::try_from(memory_bytes / 200 / 192).unwrap_or(MOST).clamp(LEAST, MOST);
    1 << flows.ilog2()
}

/// Slot chunks of a node: as many as a hundredth of its memory holds, up to what 10,000 services with 10 endpoints each
/// need (201 MB).
fn slot_chunks(memory_bytes: u64) -> u32 {
    const MOST: u64 = 2 * 157 * 10_000;
    let chunks = memory_bytes / 100 / 64;
    u32::try_from(chunks.min(MOST)).unwrap_or(0)
}

/// The node's memory; zero when the kernel does not say.
fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use gateway_common::flow::{Reply, WAYS};

    use super::*;

    #[test]
    fn flows_follow_the_memory_of_the_node() {
        let sizes = [0, 1 << 30, 4 << 30, 8 << 30, 32 << 30, 1 << 40].map(flows);
        assert_eq!(sizes, [1 << 14, 1 << 14, 1 << 16, 1 << 17, 1 << 19, 1 << 20]);
    }

    #[test]
    fn every_place_has_a_number_that_replies_can_name() {
        // The most that the configuration allows.
        let ways = u32::try_from(WAYS).unwrap();
        assert_eq!(buckets(1 << (Reply::INDEX_BITS - 1)) * ways, 1 << Reply::INDEX_BITS);
    }

    #[test]
    fn slots_follow_the_memory_of_the_node() {
        assert_eq!(slot_chunks(8 << 30), 1_342_177);
        assert_eq!(slot_chunks(64 << 30), 3_140_000);
        assert_eq!(slot_chunks(1 << 30), 167_772);
        assert!(memory_bytes() > 1 << 20);
    }
}
