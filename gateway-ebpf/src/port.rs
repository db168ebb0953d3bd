//! Translations: the port that a flow's packets carry towards their endpoint, and the entry that brings replies back.

use gateway_common::{
    addr::Port,
    counter::Reason,
    endpoint::{Endpoint, NextHop},
    flow::{Flow, FlowKey, Phase, Scratch, Tick, Translation},
    hash,
    settings::Settings,
};

use crate::{
    env::{Maps, Record},
    track,
    way::Way,
};

/// Ports that are tried before a packet is dropped. With four fifths of the ports of an endpoint taken, one new flow in
/// 1,200 finds none; with 8 tries it would be one in 6.
const TRIES: u32 = 32;

/// Step between two tries, from other bits of the hash than the first try: flows that meet at one port part again, so
/// that held ports do not gather in runs.
#[inline(always)]
fn step(hash: u64, n_ports: u32) -> u32 {
    hash::slot(hash.rotate_left(16), n_ports.saturating_sub(1)) + 1
}

/// A flow that wants a translation.
// In this order, because the compiler reads neighbors as one word, and the verifier wants such words aligned.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The 5-tuple of the client's packet.
    pub key: &'a FlowKey,
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// The way back to the client.
    pub way_back: Way,
    /// Row of the endpoint.
    pub row: u32,
    /// The present.
    pub now: Tick,
    /// Number of the service.
    pub service: u32,
    /// The port that the flow has, or [`Port::NONE`] when it begins now.
    pub port: Port,
    /// How far the flow has come.
    pub phase: Phase,
}

impl Claim<'_> {
    /// The 5-tuple that the endpoint's packets carry.
    #[inline(always)]
    fn reply_key(&self, port: Port) -> FlowKey {
        let source = if self.endpoint.is_local() { self.key.source } else { self.endpoint.source };
        FlowKey::new(self.endpoint.addr, self.endpoint.port, source, port, self.key.protocol)
    }

    /// Keeps the port that the flow has, or takes the first free one of a sequence that depends on the flow alone, so
    /// that a flow whose entries were evicted usually gets its port back. Records both
    /// directions under it and sets it.
    ///
    /// # Errors
    ///
    /// [`Reason::PortsExhausted`] or [`Reason::FlowNotRecorded`].
    // A frame of its own, and the entries outside it: they do not fit the program's stack beside the rest.
    #[inline(never)]
    pub fn take<M: Maps>(&mut self, maps: &M, settings: &Settings, hash: u64) -> Result<(), Reason> {
        maps.scratch(|scratch| self.take_in(maps, settings, hash, scratch))
            .unwrap_or(Err(Reason::FlowNotRecorded))
    }

    #[inline(always)]
    fn take_in<M: Maps>(
        &mut self,
        maps: &M,
        settings: &Settings,
        hash: u64,
        scratch: &mut Scratch,
    ) -> Result<(), Reason> {
        let (first, n_ports) = if self.endpoint.is_local() {
            // Replies carry the client's own port, so it is the only one there is.
            (self.key.source_port, 1)
        } else {
            (settings.first_port, settings.n_ports)
        };
        let n_ports = u32::from(n_ports);
        let mut offset = if self.port == Port::NONE {
            hash::slot(hash.rotate_left(32), n_ports)
        } else {
            u32::from(self.port.number().wrapping_sub(first.number()))
        };
        let step = step(hash, n_ports);
        scratch.reply_key = self.reply_key(Port::NONE);
        scratch.translation = self.translation();
        for _ in 0..TRIES.min(n_ports) {
            let port = nth_port(first, offset);
            scratch.reply_key.destination_port = port;
            if self.hold(maps, settings, &scratch.reply_key, &mut scratch.translation)? {
                let is_new = self.port == Port::NONE;
                self.port = port;
                return self.record(maps, scratch, is_new);
            }
            offset = (offset + step) % n_ports;
        }
        Err(Reason::PortsExhausted)
    }

    /// Writes the other direction.
    #[inline(always)]
    fn record<M: Maps>(&self, maps: &M, scratch: &mut Scratch, is_new: bool) -> Result<(), Reason> {
        let phase = scratch.translation.phase;
        scratch.flow = Flow::new(self.row, self.endpoint.generation, self.now, self.port, phase);
        // In place costs a tenth of an insertion. What another processor reads meanwhile is one of two instants or phases.
        if !is_new && let Some(present) = maps.flow(self.key) {
            let held = present.get();
            let is_same = held.endpoint == scratch.flow.endpoint
                && held.generation == scratch.flow.generation
                && held.source_port == scratch.flow.source_port;
            if is_same {
                M::refresh_flow(&present, self.now, phase);
                return Ok(());
            }
        }
        match maps.record_flow(self.key, &scratch.flow) {
            Record::Written => Ok(()),
            Record::Exists | Record::Refused => Err(Reason::FlowNotRecorded),
        }
    }

    /// Writes the translation under its key, unless another flow holds that; says whether it did.
    #[inline(always)]
    fn hold<M: Maps>(
        &self,
        maps: &M,
        settings: &Settings,
        reply_key: &FlowKey,
        translation: &mut Translation,
    ) -> Result<bool, Reason> {
        let Some(present) = maps.translation(reply_key) else {
            return match maps.record_translation(reply_key, translation) {
                Record::Written => Ok(true),
                // Another processor was faster.
                Record::Exists => Ok(false),
                Record::Refused => Err(Reason::FlowNotRecorded),
            };
        };
        let held = present.get();
        if belongs(&held, translation) {
            // What an entry of its own says is history when the flow begins anew.
            if self.port != Port::NONE {
                translation.phase = track::later(translation.phase, held.phase);
                // In place, unless more than the time has changed: half of an old way back and half of a new one lead
                // nowhere.
                let is_same =
                    same_way(&held.next_hop, &translation.next_hop) && held.endpoint == translation.endpoint;
                if is_same {
                    M::refresh_translation(&present, translation.seen, translation.phase);
                    return Ok(true);
                }
            }
        } else if !track::expired(settings, reply_key.protocol, held.phase, held.seen, translation.seen) {
            return Ok(false);
        } else {
            // Of two processors that find it expired, one gets the port.
            maps.forget_translation(reply_key);
            return match maps.record_translation(reply_key, translation) {
                Record::Written => Ok(true),
                Record::Exists => Ok(false),
                Record::Refused => Err(Reason::FlowNotRecorded),
            };
        }
        match maps.replace_translation(reply_key, translation) {
            Record::Written => Ok(true),
            Record::Exists | Record::Refused => Err(Reason::FlowNotRecorded),
        }
    }

    #[inline(always)]
    fn translation(&self) -> Translation {
        Translation::new(self.key, self.service, self.row, self.way_back.next_hop(), self.now, self.phase)
    }
}

/// Whether two ways are the same; without a branch for each part, which would cost stack.
#[inline(always)]
fn same_way(one: &NextHop, other: &NextHop) -> bool {
    let [a, b, c, d]: [u32; 4] = bytemuck::must_cast(*one);
    let [e, f, g, h]: [u32; 4] = bytemuck::must_cast(*other);
    (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
}

/// Whether a translation that stands under a key is one of the same flow. Compared with the new one in memory, not
/// with the packet's key: that keeps the key out of the loop's registers.
#[inline(always)]
fn belongs(held: &Translation, wanted: &Translation) -> bool {
    held.client_port == wanted.client_port
        && held.port == wanted.port
        && held.client == wanted.client
        && held.addr == wanted.addr
}

#[inline(always)]
#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "an offset is a difference of ports"
)]
const fn nth_port(first: Port, offset: u32) -> Port {
    Port::new(first.number().wrapping_add(offset as u16))
}

/// Whether a port is one that translated packets may carry.
#[inline(always)]
pub fn is_translation_port(settings: &Settings, port: Port) -> bool {
    port.number().wrapping_sub(settings.first_port.number()) < settings.n_ports
}
