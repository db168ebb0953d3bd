//! Translations: the port that a flow's packets carry towards their endpoint, and the entry that brings replies back.

use gateway_common::{
    addr::Port,
    counter::Reason,
    endpoint::{Endpoint, NextHop},
    flow::{FlowKey, Phase, Tick, Translation},
    hash,
    settings::Settings,
};

use crate::{
    Aligned,
    env::{Maps, Record},
    track,
};

/// Ports that are tried before a packet is dropped.
const TRIES: u32 = 16;

/// Step between two tries: an odd number far from any power of two, so that neighbors do not try the same ports.
const STEP: u32 = 40_503;

/// A flow that wants a translation.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The 5-tuple of the client's packet.
    pub key: &'a FlowKey,
    /// Number of the service.
    pub service: u32,
    /// Row of the endpoint.
    pub row: u32,
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// The way back to the client.
    pub way_back: NextHop,
    /// The present.
    pub now: Tick,
    /// How far the flow has come.
    pub phase: Phase,
    /// The port that the flow has, unless it begins now.
    pub port: Option<Port>,
}

/// What came of holding a port.
enum Held {
    /// The flow holds it; its phase, to which the other direction may have added.
    Ours(Phase),
    /// Another flow holds it.
    Taken,
    /// The kernel refused to record it.
    Refused,
}

impl Claim<'_> {
    /// The 5-tuple that the endpoint's packets carry.
    #[inline(always)]
    fn reply_key(&self, port: Port) -> FlowKey {
        let source = if self.endpoint.is_local() { self.key.source } else { self.endpoint.source };
        FlowKey::new(self.endpoint.addr, self.endpoint.port, source, port, self.key.protocol)
    }

    /// Takes `port`, or keeps it.
    #[inline(always)]
    fn hold<M: Maps>(&self, maps: &M, settings: &Settings, port: Port) -> Held {
        let reply_key = Aligned(self.reply_key(port));
        let present = maps.translation(&reply_key.0);
        let mut translation = Aligned(self.translation());
        if let Some(row) = &present {
            let held = row.get();
            if !belongs(&held, self.key) {
                if !track::expired(settings, self.key.protocol, held.phase, held.seen, self.now) {
                    return Held::Taken;
                }
            } else if self.port.is_some() {
                // The other direction may have seen more. What an entry of its own says is history, though, when
                // the flow begins anew.
                translation.0.phase = track::later(self.phase, held.phase);
            }
            row.set(translation.0);
            return Held::Ours(translation.0.phase);
        }
        match maps.record_translation(&reply_key.0, &translation.0) {
            Record::Written => Held::Ours(self.phase),
            // Another processor was faster.
            Record::Exists => Held::Taken,
            Record::Refused => Held::Refused,
        }
    }

    /// Keeps the port that the flow has, or takes the first free one of a sequence that depends on the flow alone, so
    /// that a flow whose entries were evicted usually gets its port back. Returns the phase too, to which the other
    /// direction may have added.
    ///
    /// # Errors
    ///
    /// [`Reason::PortsExhausted`] or [`Reason::FlowNotRecorded`].
    // Not inlined: it runs once per tick and flow, and the kernel's stack has 512 bytes for everything.
    #[inline(never)]
    pub fn take<M: Maps>(&self, maps: &M, settings: &Settings, hash: u64) -> Result<(Port, Phase), Reason> {
        let (first, n_ports) = if self.endpoint.is_local() {
            // Replies carry the client's own port, so it is the only one there is.
            (self.key.source_port, 1)
        } else {
            (settings.first_port, settings.n_ports)
        };
        let n_ports = u32::from(n_ports);
        let mut offset = match self.port {
            Some(port) => u32::from(port.number().wrapping_sub(first.number())),
            None => hash::slot(hash.rotate_left(32), n_ports),
        };
        for _ in 0..TRIES.min(n_ports) {
            let port = nth_port(first, offset);
            match self.hold(maps, settings, port) {
                Held::Ours(phase) => return Ok((port, phase)),
                Held::Refused => return Err(Reason::FlowNotRecorded),
                Held::Taken => offset = (offset + STEP) % n_ports,
            }
        }
        Err(Reason::PortsExhausted)
    }

    #[inline(always)]
    fn translation(&self) -> Translation {
        Translation::new(self.key, self.service, self.row, self.way_back, self.now, self.phase)
    }
}

/// Whether a translation is that of the client's 5-tuple.
#[inline(always)]
fn belongs(translation: &Translation, key: &FlowKey) -> bool {
    translation.client_port == key.source_port
        && translation.port == key.destination_port
        && translation.client == key.source
        && translation.addr == key.destination
}

#[inline(always)]
#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "an offset is a difference of ports")]
const fn nth_port(first: Port, offset: u32) -> Port {
    Port::new(first.number().wrapping_add(offset as u16))
}

/// Whether a port is one that translated packets may carry.
#[inline(always)]
pub fn is_translation_port(settings: &Settings, port: Port) -> bool {
    port.number().wrapping_sub(settings.first_port.number()) < settings.n_ports
}
