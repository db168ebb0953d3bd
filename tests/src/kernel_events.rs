//! The part of filling and reading the kernel's maps that concerns events.

use anyhow::Result;
use aya::maps::{MapData, RingBuf};
use gateway_common::{
    counter::Reason,
    event::{Event, EventCount},
    map::{self, MapDef as _},
};

use crate::{
    kernel_run::{Kernel, zero},
    tables::Tables,
};

const EVENT_COUNT: usize = size_of::<EventCount>();

impl Kernel {
    /// Forgets what was told, where a case asks for events.
    pub(crate) fn fill_events(&mut self, tables: &Tables) -> Result<()> {
        if tables.settings.events != 0 {
            self.told()?;
            zero(&mut self.counts::<EVENT_COUNT>(map::EventCounts::NAME)?, 0..Reason::LIMIT)?;
        }
        Ok(())
    }

    /// Reads what was told, where a case asks for events.
    pub(crate) fn read_events(&mut self, tables: &mut Tables) -> Result<()> {
        if tables.settings.events == 0 {
            return Ok(());
        }
        for event in self.told()? {
            tables.tell(|told| *told = event);
        }
        let counts = self.counts::<EVENT_COUNT>(map::EventCounts::NAME)?;
        for reason in 0..Reason::LIMIT {
            // One packet runs on one processor.
            let all = counts.get(&reason, 0)?;
            let all = all.iter().map(|one| bytemuck::pod_read_unaligned::<EventCount>(one));
            if let Some(count) = all.into_iter().find(|one| *one != EventCount::default()) {
                tables.event_counts.insert(reason, count);
            }
        }
        Ok(())
    }

    /// Takes everything out of the ring.
    fn told(&mut self) -> Result<Vec<Event>> {
        let mut ring: RingBuf<&mut MapData> = RingBuf::try_from(self.map(map::Events::NAME)?)?;
        let mut events = Vec::new();
        while let Some(bytes) = ring.next() {
            events.push(bytemuck::pod_read_unaligned(&bytes));
        }
        Ok(events)
    }
}
