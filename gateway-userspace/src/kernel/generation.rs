//! The part of the plan that concerns generations of rows: which endpoint a row holds, and on which way. Pure.
//!
//! Flows to a translated endpoint have a port and a place for replies on the way that they were recorded on. When packets
//! begin to leave from another address, to arrive on this node where they left it, or to be translated where they were
//! not, the row gets another generation with the same write, and each of these flows another port with its next packet.

use gateway_common::{
    addr::Addr,
    endpoint::Endpoint,
    service::{Mode, Service},
};

use crate::{
    image::{self, Row},
    kernel::maps::Observed,
};

/// The generation of a row that is reached from this address, on this node or not.
pub(super) fn of(
    service: &image::Service,
    row: &Row,
    source: Addr,
    is_local: bool,
    written: &Observed,
) -> u32 {
    let present = written.endpoints.get(&row.row).filter(|present| present.owner() == row.generation);
    let Some(present) = present else { return row.generation };
    let is_same_way = (present.is_local(), present.source) == (is_local, source);
    // Those of the agent are translated where they fail open.
    let was_translated = |service: &Service| matches!(service.mode, Mode::NAT | Mode::AGENT);
    let goes_as_before = is_same_way && written.services.get(&service.key).is_none_or(was_translated);
    // With direct return nothing of it depends on the way.
    if goes_as_before || service.forwarding() != Mode::NAT {
        present.generation
    } else {
        present.generation.wrapping_add(Endpoint::OWNER + 1)
    }
}
