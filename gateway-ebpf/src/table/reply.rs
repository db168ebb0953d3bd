//! From an endpoint's packets to their flows: which ports towards an endpoint are held, and by whom.
//!
//! A packet of a remote endpoint has one place where its flow may stand, and a flow takes a port whose place is free: of
//! two processors that want the same port, one gets it. A flow to an endpoint on this node has no choice of ports, but of
//! the eight places of a bucket.

use gateway_common::{
    addr::{Addr, Port, Protocol},
    flow::{FlowKey, Reply, Tick},
    hash,
    settings::Settings,
};

use super::{
    row::{FlowRow, FlowRows, HeadWord, Held, ReplyRow, ReplyRows, Who},
    way,
};
use crate::{Aligned, arrival::NO_ENTRY, env::Maps, way::Way};

/// Places in a bucket.
const WAYS: u32 = 8;

/// Where the reply to a flow may stand, from the hash of the endpoint's 5-tuple.
#[derive(Clone, Copy, Debug)]
pub struct Spot {
    /// Number of the bucket.
    pub bucket: u32,
    /// The only place for remote endpoints.
    pub way: u32,
    /// What stands there.
    pub tag: u32,
}

/// The end from which an endpoint's packets come.
#[derive(Clone, Copy, Debug)]
pub struct Of {
    /// Address of the endpoint.
    pub addr: Addr,
    /// Its port.
    pub port: Port,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl Spot {
    /// Of the packets that an endpoint sends to an address and port.
    #[inline(always)]
    pub fn new(settings: &Settings, of: &Of, to: Addr, port: Port) -> Self {
        let key = Aligned(FlowKey::new(of.addr, of.port, to, port, of.protocol));
        Self::of(settings, &key.0, !to.is_v4())
    }

    #[inline(always)]
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "parts of the hash")]
    fn of(settings: &Settings, key: &FlowKey, v6: bool) -> Self {
        let hash = hash::flow(&settings.keys, key, v6);
        let high = (hash >> 32) as u32;
        Self { bucket: hash as u32 & settings.reply_mask, way: (high >> 1) & (WAYS - 1), tag: high | 1 }
    }
}

#[inline(always)]
fn place(rows: &ReplyRows, way: u32) -> &ReplyRow {
    let [first, ..] = rows;
    rows.get(usize::try_from(way & (WAYS - 1)).unwrap_or(0)).unwrap_or(first)
}

/// An entry that wants a port.
#[derive(Clone, Copy, Debug)]
pub struct By {
    /// Its number.
    pub index: u32,
    /// Its version.
    pub version: u16,
    /// The present.
    pub now: Tick,
}

/// A reply's flow.
#[derive(Debug)]
pub struct Answered<R> {
    /// The bucket of its entry.
    rows: R,
    way: u32,
    /// Whose flow it is.
    pub who: Who,
    /// What the entry says.
    pub held: Held,
    /// The way back to the client.
    pub way_back: Way,
}

impl<R: core::ops::Deref<Target = FlowRows>> Answered<R> {
    /// The entry.
    #[inline(always)]
    pub fn row(&self) -> &FlowRow {
        way(&self.rows, self.way)
    }

    /// Its number.
    #[inline(always)]
    pub const fn index(&self) -> u32 {
        self.way
    }
}

/// Asks for a place that will be looked at.
#[inline(always)]
pub fn expect<M: Maps>(maps: &M, spot: &Spot) {
    if let Some(rows) = maps.replies(spot.bucket) {
        let _reply = place(&rows, spot.way).get::<M>();
    }
}

/// Looks for the flow that a packet of a remote endpoint answers. Whether it is that endpoint's is still to be seen. Where
/// there is one, but another processor is writing its entry at this moment, the number of the entry is `changing`: such a
/// packet is dropped, and its sender repeats it. Taken for no reply, it would end the connection.
#[inline(always)]
pub fn find<M: Maps>(
    maps: &M,
    settings: &Settings,
    key: &FlowKey,
    v6: bool,
    changing: &mut u32,
) -> Option<Answered<M::Row<FlowRows>>> {
    let spot = Spot::of(settings, key, v6);
    let rows = maps.replies(spot.bucket)?;
    let reply = place(&rows, spot.way).get::<M>();
    if reply.tag == spot.tag { answered(maps, reply, key, changing) } else { None }
}

/// The same for a packet of an endpoint on this node.
#[inline(always)]
pub fn find_local<M: Maps>(
    maps: &M,
    settings: &Settings,
    key: &FlowKey,
    v6: bool,
    changing: &mut u32,
) -> Option<Answered<M::Row<FlowRows>>> {
    let spot = Spot::of(settings, key, v6);
    let rows = maps.replies(spot.bucket)?;
    for turn in 0..WAYS {
        let reply = place(&rows, turn).get::<M>();
        if reply.tag == spot.tag {
            return answered(maps, reply, key, changing);
        }
    }
    None
}

/// Frees the place that leads packets of an endpoint on this node to their flow.
#[inline(always)]
pub fn forget_local<M: Maps>(maps: &M, settings: &Settings, key: &FlowKey, v6: bool) {
    let spot = Spot::of(settings, key, v6);
    let Some(rows) = maps.replies(spot.bucket) else { return };
    for turn in 0..WAYS {
        let place = place(&rows, turn);
        let reply = place.get::<M>();
        if reply.tag == spot.tag {
            place.exchange::<M>(reply, Reply::default());
        }
    }
}

#[inline(always)]
fn answered<M: Maps>(
    maps: &M,
    reply: Reply,
    key: &FlowKey,
    changing: &mut u32,
) -> Option<Answered<M::Row<FlowRows>>> {
    let index = reply.index();
    let rows = maps.flows(index / super::WAYS)?;
    let Some((who, held, way_back)) = way(&rows, index).read_any::<M>() else {
        if is_written_anew(way(&rows, index).head::<M>(), reply) {
            *changing = index;
        }
        return None;
    };
    // The next version: it was written anew since its place was read.
    let version = held.head.version();
    let is_its = (reply.is_of(version) || reply.is_of(version.wrapping_sub(1)))
        && held.source_port == key.destination_port
        && held.head.protocol() == key.protocol;
    is_its.then_some(Answered { rows, way: index, who, held, way_back })
}

/// The rows of the service and the endpoint of an entry that is `changing`; none when it is [`NO_ENTRY`].
#[inline(always)]
pub fn whose<M: Maps>(maps: &M, changing: u32) -> Option<(u32, u32)> {
    if changing == NO_ENTRY {
        return None;
    }
    let rows = maps.flows(changing / super::WAYS)?;
    let row = way(&rows, changing);
    Some((row.service::<M>(), row.endpoint::<M>()))
}

/// Whether the entry of a flow that has this place is, or just was, written anew.
#[inline(always)]
fn is_written_anew(head: HeadWord, reply: Reply) -> bool {
    (head.is_busy() || head.is_live())
        && (reply.is_of(head.version()) || reply.is_of(head.version().wrapping_sub(1)))
}

/// Gives a port towards a remote endpoint to an entry that is being written, unless another flow has its place; says
/// whether it did.
#[inline(always)]
pub fn hold<M: Maps>(maps: &M, spot: &Spot, by: &By) -> bool {
    let Some(rows) = maps.replies(spot.bucket) else { return false };
    let place = place(&rows, spot.way);
    let present = place.get::<M>();
    let is_free = present.tag == 0 || present.tag == spot.tag && present.index() == by.index;
    is_free && place.exchange::<M>(present, Reply::new(spot.tag, by.index, by.version))
}

/// The same, also when the flow that has the place is over.
#[inline(always)]
pub fn take<M: Maps>(maps: &M, spot: &Spot, by: &By) -> bool {
    let Some(rows) = maps.replies(spot.bucket) else { return false };
    let place = place(&rows, spot.way);
    let present = place.get::<M>();
    let is_free = present.tag == 0 || present.index() == by.index || !is_alive(maps, present, by.now);
    is_free && place.exchange::<M>(present, Reply::new(spot.tag, by.index, by.version))
}

/// Notes a flow to an endpoint on this node, whose packets carry the client's own port; says whether there was a place,
/// and no other flow of the same addresses and ports.
#[inline(always)]
pub fn note<M: Maps>(maps: &M, spot: &Spot, by: &By) -> bool {
    let Some(rows) = maps.replies(spot.bucket) else { return false };
    let wanted = Reply::new(spot.tag, by.index, by.version);
    for turn in 0..WAYS {
        let place = place(&rows, turn);
        let present = place.get::<M>();
        if present.tag == spot.tag {
            let is_free = present.index() == by.index || !is_alive(maps, present, by.now);
            return is_free && place.exchange::<M>(present, wanted);
        }
    }
    for turn in 0..WAYS {
        let place = place(&rows, turn);
        let present = place.get::<M>();
        if (present.tag == 0 || !is_alive(maps, present, by.now)) && place.exchange::<M>(present, wanted) {
            return is_alone::<M>(&rows, place, wanted);
        }
    }
    false
}

/// Whether no other processor noted the same addresses and ports at the same moment; else both give way.
#[inline(always)]
fn is_alone<M: Maps>(rows: &ReplyRows, own: &ReplyRow, wanted: Reply) -> bool {
    let mut same = 0_u32;
    for turn in 0..WAYS {
        same += u32::from(place(rows, turn).get::<M>().tag == wanted.tag);
    }
    if same > 1 {
        own.exchange::<M>(wanted, Reply::default());
    }
    same <= 1
}

/// Whether the flow of a place still is what it was, and not over. One that is being written is.
#[inline(always)]
fn is_alive<M: Maps>(maps: &M, reply: Reply, now: Tick) -> bool {
    let Some(rows) = maps.flows(reply.index() / super::WAYS) else { return false };
    let row = way(&rows, reply.index());
    let head = row.head::<M>();
    head.is_busy() || head.is_live() && reply.is_of(head.version()) && !row.expires::<M>().is_before(now)
}

/// Frees the places of a bucket that lead to no flow; how many. Whoever gives an entry up frees the place that follows from
/// the endpoint's present row, which may be another one by then.
#[inline(always)]
pub fn sweep<M: Maps>(maps: &M, bucket: u32) -> u32 {
    let Some(rows) = maps.replies(bucket) else { return 0 };
    let mut freed = 0;
    for turn in 0..WAYS {
        let place = place(&rows, turn);
        let reply = place.get::<M>();
        if reply.tag != 0 && !is_held(maps, reply) && place.exchange::<M>(reply, Reply::default()) {
            freed += 1;
        }
    }
    freed
}

/// Whether the flow of a place is still there, over or not: one that is over may go on.
#[inline(always)]
fn is_held<M: Maps>(maps: &M, reply: Reply) -> bool {
    let Some(rows) = maps.flows(reply.index() / super::WAYS) else { return false };
    let head = way(&rows, reply.index()).head::<M>();
    head.is_busy() || head.is_live() && reply.is_of(head.version())
}

/// Frees the place of an entry that is taken for another flow. The entry still holds the old one, under this head.
#[inline(always)]
pub fn forget<M: Maps>(maps: &M, settings: &Settings, row: &FlowRow, old: HeadWord, index: u32) {
    let port = row.source_port::<M>();
    if port == Port::NONE {
        return;
    }
    let Some(endpoint) = maps.endpoint(row.endpoint::<M>()) else { return };
    // What this misses, and places of flows to endpoints on this node, are found out to be stale by whoever needs them, and
    // swept.
    let of = Of { addr: endpoint.addr, port: endpoint.port_for(row.port::<M>()), protocol: old.protocol() };
    let spot = Spot::new(settings, &of, endpoint.source, port);
    let Some(rows) = maps.replies(spot.bucket) else { return };
    let place = place(&rows, spot.way);
    let reply = place.get::<M>();
    if reply.tag == spot.tag && reply.index() == index && reply.is_of(old.version()) {
        place.exchange::<M>(reply, Reply::default());
    }
}
