//! Single packets that the kernel programs tell of, read in portions.

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use gateway_common::{
    event::Event,
    map::{self, MapDef},
};

use crate::kernel::Error;

/// The reading end of the ring. What is not read in time is lost and counted there; nobody waits.
pub struct Events(RingBuf<MapData>);

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

impl Events {
    /// Takes the ring out of a loaded object.
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Error> {
        let name = map::Events::NAME;
        let ring = object.take_map(name).ok_or(Error::NoMap { name })?;
        RingBuf::try_from(ring).map(Self).map_err(|source| Error::Map { name, source })
    }

    /// The oldest events, so many at most.
    pub fn read(&mut self, most: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < most
            && let Some(bytes) = self.0.next()
        {
            // One of another size is none of ours.
            events.extend(bytemuck::try_pod_read_unaligned::<Event>(&bytes).ok().map(Event::without_rest));
        }
        events
    }
}
