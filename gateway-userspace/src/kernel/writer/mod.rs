//! The writer: the one place that writes maps. It carries out plans, knows what stands, and goes on where it stopped.
//!
//! A change of the configuration, of health, of weights and of ways to endpoints all take this path. Row states come
//! first, because one write of half a microsecond takes an endpoint out; slot tables follow.
//!
//! A change costs what it changes: of an image that follows another only what differs is looked at. The whole is compared
//! with the maps for the first image, and after a write was refused.

mod difference;
mod turns;
mod windows;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use gateway_common::{
    hash::Seed,
    service::{PortRange, ServiceKey, Track},
    slot::Slot,
};

use crate::{
    clock::Clock,
    endpoint::{Availability, Endpoint, Reach},
    image::{self, Image, Range, Way},
    kernel::{
        Error, former,
        maps::{Maps, Observed},
        plan::{self, Facts, Op, Seated},
        sources::{self, SourceOp},
        ticks::Ticks,
        writer::{
            difference::{Difference, Users},
            turns::Turns,
            windows::Windows,
        },
    },
};

/// What an apply or a publish did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Written {
    /// Endpoint rows written.
    pub rows: usize,
    /// Slot tables published.
    pub tables: usize,
    /// Services written or removed.
    pub services: usize,
    /// What slots and values of services took from their first byte to their last, without what was worked out before.
    pub publishing: Duration,
}

/// What a writer is told once.
#[derive(Clone, Copy)]
pub struct Terms {
    /// The cluster's seed.
    pub seed: Seed,
    /// Flows that the table has room for.
    pub flows: u32,
    /// The kernel's measure of time.
    pub ticks: Ticks,
    /// How long slots remember the endpoints before a change: a flow that is silent for longer may move.
    pub change_window: Duration,
    /// Whether echo requests to virtual addresses are answered by the programs.
    pub echo: bool,
}

impl std::fmt::Debug for Terms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the seed, which is a secret.
        f.debug_struct("Terms").field("flows", &self.flows).finish_non_exhaustive()
    }
}

/// What a live endpoint says of itself.
type Live = (Availability, u32);

/// Writes maps.
pub struct Writer<M> {
    maps: M,
    clock: Clock,
    flows: u32,
    change_window: Duration,
    facts: Facts,
    /// What stands in the maps, by our own account since the first look.
    written: Observed,
    /// The image that was applied last; until there is one, nothing is known to be unwanted, and nothing is touched.
    image: Option<Arc<Image>>,
    /// Services of the image that refer to a live endpoint.
    users: Users,
    /// Slots that stand in the idle half of a service, until its value makes them current.
    pending: Option<(ServiceKey, Vec<Slot>)>,
    /// Ranges that stand in their rows, until an entry refers to them.
    new_ranges: Option<(u32, Vec<PortRange>)>,
    /// When services were last published.
    turns: Turns,
    /// What the slots of a service were made of: of the same they need not be made again, which for thousands of services
    /// is what a change would take.
    seated: HashMap<ServiceKey, Seated>,
    /// What the endpoints of a service said of themselves when it was last looked at.
    lives: HashMap<ServiceKey, Vec<Live>>,
    /// Services that remember only flows of slots that change, with such slots.
    windows: Windows,
    /// Rows of services that were passed on: until the next slots stand.
    passed_on: HashMap<ServiceKey, BTreeSet<u32>>,
    /// A write was refused: the maps are not what they should be.
    behind: bool,
}

impl<M: Maps> Writer<M> {
    /// Looks at what stands in the maps; deletes nothing.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    pub fn new(maps: M, terms: Terms, clock: Clock) -> Result<Self, Error> {
        let Terms { seed, flows, ticks, change_window, echo } = terms;
        let written = maps.observe()?;
        let windows = Windows::of(&written, clock.now());
        Ok(Self {
            maps,
            clock,
            flows,
            change_window,
            facts: Facts { seed, ways: HashMap::new(), flow_share: flows, ticks, echo },
            written,
            image: None,
            users: Users::default(),
            pending: None,
            new_ranges: None,
            turns: Turns::default(),
            seated: HashMap::new(),
            lives: HashMap::new(),
            windows,
            passed_on: HashMap::new(),
            behind: false,
        })
    }

    /// What stands in the maps.
    pub const fn written(&self) -> &Observed {
        &self.written
    }

    /// The maps.
    pub const fn maps(&self) -> &M {
        &self.maps
    }

    /// The maps, for what the writer does not own: sockets and settings.
    pub const fn maps_mut(&mut self) -> &mut M {
        &mut self.maps
    }

    /// The image that was applied last; an empty one before the first.
    pub fn image(&self) -> Arc<Image> {
        self.image.clone().unwrap_or_default()
    }

    /// Whether a write was refused and waits for another try.
    pub const fn is_behind(&self) -> bool {
        self.behind
    }

    /// Writes between the maps and the image: zero unless a write was refused and waits for another try.
    pub fn gap(&self) -> usize {
        let image = self.image.iter().filter(|_| self.behind);
        image.map(|image| plan::whole(image, &self.facts, &self.written).len()).sum()
    }

    /// Brings the maps to an image.
    ///
    /// # Errors
    /// When the kernel refuses a write. What was written stays, and the maps are [behind](Self::gap) until the next
    /// call of any method that writes succeeds.
    pub fn apply(&mut self, image: Arc<Image>) -> Result<Written, Error> {
        let flow_share = share(self.flows, image.services.len());
        let is_in_step = !self.behind && self.facts.flow_share == flow_share;
        self.facts.flow_share = flow_share;
        let Some(former) = self.image.take().filter(|_| is_in_step) else {
            self.users = Users::of(&image);
            self.image = Some(image);
            return self.reconcile();
        };
        let difference = Difference::of(&former, &image);
        difference.lead(&mut self.users, &image);
        self.image = Some(image);
        self.go_on(&difference)
    }

    /// Brings the maps from the image that they hold to the next one.
    fn go_on(&mut self, difference: &Difference<'_>) -> Result<Written, Error> {
        let Some(image) = &self.image.clone() else { return Ok(Written::default()) };
        self.behind = true;
        let mut done = Written::default();
        let is_stale = |(idx, service): (usize, &Arc<image::Service>)| {
            (difference.changed.contains(&idx) || self.is_stale(service)).then_some(idx)
        };
        let stale: Vec<usize> = image.services.iter().enumerate().filter_map(is_stale).collect();
        if !difference.sees_alike {
            self.run(plan::widened(image, &self.facts, &self.written), &mut done)?;
        }
        self.publish_services(image, stale, &mut done)?;
        for op in sources::ops(image, &self.written) {
            self.write_source(op)?;
        }
        if !difference.leads_alike {
            self.run(plan::entries(image, &self.facts, &self.written), &mut done)?;
        }
        if !difference.leads_alike {
            self.run(plan::removals(image, &self.facts, &self.written), &mut done)?;
            self.forget(image);
        }
        if !difference.sees_alike {
            self.run(plan::narrowed(image, &self.facts, &self.written), &mut done)?;
        }
        self.run(plan::released(difference.released(image), &self.written), &mut done)?;
        self.behind = false;
        Ok(done)
    }

    /// Whether an endpoint of a service has changed since the service was last looked at.
    fn is_stale(&self, service: &image::Service) -> bool {
        self.lives.get(&service.key).is_none_or(|former| !lives(service).eq(former.iter().copied()))
    }

    /// Brings the maps to the image that was applied last, however far they are from it.
    ///
    /// # Errors
    /// See [`Writer::apply`].
    pub fn reconcile(&mut self) -> Result<Written, Error> {
        let Some(image) = self.image.clone() else { return Ok(Written::default()) };
        self.behind = true;
        let mut done = Written::default();
        self.run(plan::widened(&image, &self.facts, &self.written), &mut done)?;
        self.publish_services(&image, 0..image.services.len(), &mut done)?;
        for op in sources::ops(&image, &self.written) {
            self.write_source(op)?;
        }
        self.run(plan::entries(&image, &self.facts, &self.written), &mut done)?;
        self.run(plan::removals(&image, &self.facts, &self.written), &mut done)?;
        self.forget(&image);
        self.run(plan::narrowed(&image, &self.facts, &self.written), &mut done)?;
        self.run(plan::cleared(&image, &self.written), &mut done)?;
        self.behind = false;
        Ok(done)
    }

    /// Publishes changes of live endpoints.
    ///
    /// # Errors
    /// See [`Writer::apply`].
    pub fn publish(&mut self, changed: &[Arc<Endpoint>]) -> Result<Written, Error> {
        if self.behind {
            return self.reconcile();
        }
        let Some(image) = self.image.clone() else { return Ok(Written::default()) };
        let users: BTreeSet<usize> =
            changed.iter().flat_map(|endpoint| self.users.of_endpoint(endpoint)).collect();
        let mut done = Written::default();
        self.behind = true;
        self.publish_services(&image, users, &mut done)?;
        self.behind = false;
        Ok(done)
    }

    /// Ends changes that have gone on for long enough: what has not been remembered by then follows the slots.
    ///
    /// # Errors
    /// See [`Writer::apply`].
    pub fn settle(&mut self) -> Result<Written, Error> {
        if self.behind {
            return self.reconcile();
        }
        let Some(image) = self.image.clone() else { return Ok(Written::default()) };
        let over = self.windows.over(self.clock.now(), self.change_window);
        let mut done = Written::default();
        if over.is_empty() {
            return Ok(done);
        }
        self.behind = true;
        for service in image.services.iter().filter(|service| over.contains(&service.key)) {
            let is_late = |idx| self.windows.is_late(&service.key, idx);
            self.run(former::settled(service, &self.written, is_late), &mut done)?;
            self.windows.end(&service.key);
        }
        self.behind = false;
        Ok(done)
    }

    /// Services that no entry leads to any more.
    fn forget(&mut self, image: &Image) {
        let wanted: BTreeSet<&ServiceKey> = image.services.iter().map(|service| &service.key).collect();
        self.written.retain(&wanted);
        self.turns.retain(&wanted);
        self.seated.retain(|key, _| wanted.contains(key));
        self.lives.retain(|key, _| wanted.contains(key));
        self.passed_on.retain(|key, _| wanted.contains(key));
        self.windows.retain(&wanted);
    }

    /// Takes new ways to endpoints, and writes what they concern. Before the first image they are only kept.
    ///
    /// # Errors
    /// See [`Writer::apply`].
    pub fn set_ways(&mut self, ways: HashMap<IpAddr, Way>) -> Result<Written, Error> {
        if self.facts.ways == ways && !self.behind {
            return Ok(Written::default());
        }
        let former = std::mem::replace(&mut self.facts.ways, ways);
        if self.behind {
            return self.reconcile();
        }
        let Some(image) = self.image.clone() else { return Ok(Written::default()) };
        let is_moved = |row: &image::Row| {
            let addr = row.endpoint.addr().ip();
            former.get(&addr) != self.facts.ways.get(&addr)
        };
        let concerned = |(idx, service): (usize, &Arc<image::Service>)| {
            service.endpoints.iter().any(is_moved).then_some(idx)
        };
        let services: Vec<usize> = image.services.iter().enumerate().filter_map(concerned).collect();
        let mut done = Written::default();
        self.behind = true;
        self.run(plan::widened(&image, &self.facts, &self.written), &mut done)?;
        self.publish_services(&image, services, &mut done)?;
        self.run(plan::narrowed(&image, &self.facts, &self.written), &mut done)?;
        self.behind = false;
        Ok(done)
    }

    /// Rows of all first: they are what takes an endpoint out.
    fn publish_services(
        &mut self,
        image: &Image,
        services: impl IntoIterator<Item = usize> + Clone,
        done: &mut Written,
    ) -> Result<(), Error> {
        let mut forgot = None;
        for service in services.clone().into_iter().filter_map(|idx| image.services.get(idx)) {
            let passed_on = former::passed_on(service, &self.written);
            if !passed_on.is_empty() {
                let forgotten = former::forgotten(service, &passed_on, &self.written);
                forgot = (!forgotten.is_empty()).then_some(service.key).or(forgot);
                self.run(forgotten, done)?;
                self.passed_on.entry(service.key).or_default().extend(passed_on);
            }
        }
        // Packets that were told so before have left.
        if let Some(last) = forgot {
            self.turns.wait(&last, &self.clock);
        }
        for service in services.clone().into_iter().filter_map(|idx| image.services.get(idx)) {
            // Before anything is made of it: what changes from here on is looked at again.
            let live = lives(service).collect();
            self.run(plan::rows(service, &self.facts, &self.written), done)?;
            self.lives.insert(service.key, live);
        }
        for service in services.into_iter().filter_map(|idx| image.services.get(idx)) {
            let seated = Seated::of(service, &self.facts, &self.written);
            let is_known = self.seated.get(&service.key) == Some(&seated);
            let table = (!is_known).then(|| seated.table(&self.facts));
            // Until all of it stands, nobody knows of what the slots were made.
            self.seated.remove(&service.key);
            let passed_on = self.passed_on.get(&service.key).cloned().unwrap_or_default();
            self.run(plan::table(service, table.as_deref(), &passed_on, &self.facts, &self.written), done)?;
            self.passed_on.remove(&service.key);
            self.seated.insert(service.key, seated);
        }
        Ok(())
    }

    fn run(&mut self, ops: Vec<Op>, done: &mut Written) -> Result<(), Error> {
        // Slots whose value was refused the last time are no service's.
        self.pending = None;
        ops.into_iter().try_for_each(|op| self.write(op, done))
    }

    fn write(&mut self, op: Op, done: &mut Written) -> Result<(), Error> {
        match op {
            Op::Row { row, value } => {
                let former = self.written.endpoints.get(&row);
                if former.is_none_or(|former| former.owner() != value.owner()) {
                    self.maps.clear_endpoint_count(row)?;
                }
                self.maps.put_endpoint(row, &value)?;
                self.written.endpoints.insert(row, value);
                done.rows += 1;
            }
            Op::Slots { key, first_chunk, slots } => {
                self.turns.wait(&key, &self.clock);
                let begun = self.clock.now();
                // Until the service value follows, the current half is still the old one.
                self.maps.put_slots(&key, first_chunk, &slots)?;
                done.publishing += self.clock.now().saturating_duration_since(begun);
                done.tables += 1;
                match self.written.reader(&key, first_chunk, slots.len()) {
                    Some(service) => self.published(&key, service.track, Some(slots), false),
                    None => self.pending = Some((key, slots)),
                }
            }
            Op::Service { key, value } => {
                if self.written.services.get(&key).map(|former| former.id) != Some(value.id) {
                    self.maps.clear_service_count(value.id)?;
                }
                let begun = self.clock.now();
                self.maps.put_service(&key, &value)?;
                done.publishing += self.clock.now().saturating_duration_since(begun);
                let former = self.written.services.insert(key, value);
                let is_turned = former.is_some_and(|former| former.current != value.current);
                let slots = self.pending.take_if(|(of, _)| *of == key).map(|(_, slots)| slots);
                self.published(&key, value.track, slots, is_turned);
                done.services += 1;
            }
            Op::Ranges { first, ranges } => {
                self.maps.put_ranges(first, &ranges)?;
                self.new_ranges = Some((first, ranges));
            }
            Op::Entry { entry } => {
                self.maps.put_entry(&entry)?;
                let key = entry.key();
                if let Some((first, ranges)) =
                    self.new_ranges.take_if(|(first, _)| *first == entry.first_range)
                {
                    let count = entry.n_ranges;
                    self.written.ranges.insert(key, (Range { first, count }, ranges));
                } else if entry.n_ranges == 0 {
                    self.written.ranges.remove(&key);
                }
                self.written.entries.insert(key, entry);
            }
            Op::Filter { word, bits } => {
                self.maps.put_filter(word, bits)?;
                self.written.filter.insert(word, bits);
            }
            Op::Sources(op) => self.write_source(op)?,
            Op::Remove { key } => {
                self.maps.delete_entry(&key)?;
                self.written.entries.remove(&key);
                self.written.ranges.remove(&key);
                done.services += 1;
            }
        }
        Ok(())
    }

    /// Notes what packets read from now on.
    fn published(&mut self, key: &ServiceKey, track: Track, slots: Option<Vec<Slot>>, is_turned: bool) {
        let now = self.clock.now();
        let former = self.written.slots.get(key).map_or(&[][..], Vec::as_slice);
        if track == Track::CHANGE {
            self.windows.note(*key, former, slots.as_deref().unwrap_or(former), now);
        } else {
            self.windows.remove(key);
        }
        if let Some(slots) = slots {
            self.turns.note(*key, now);
            self.written.take_slots(*key, slots, is_turned);
        }
    }

    fn write_source(&mut self, op: SourceOp) -> Result<(), Error> {
        match op {
            SourceOp::Network { network, rule: Some(rule) } => {
                self.maps.put_source_network(&network, rule)?;
                self.written.networks.insert(network, rule);
            }
            SourceOp::Network { network, rule: None } => {
                self.maps.delete_source_network(&network)?;
                self.written.networks.remove(&network);
            }
            SourceOp::Filter { word, bits } => {
                self.maps.put_source_filter(word, bits)?;
                self.written.source_filter.insert(word, bits);
            }
            SourceOp::Guards { guards } => {
                self.maps.put_guards(guards)?;
                self.written.guards = guards;
            }
        }
        Ok(())
    }
}

/// Entries of the flow table for each of so many services. A share changes only when their number doubles or halves:
/// it stands in the value of every service.
fn share(flows: u32, n_services: usize) -> u32 {
    let parts = u32::try_from(n_services.max(1).next_power_of_two()).unwrap_or(u32::MAX);
    (flows / parts).max(1)
}

/// What the endpoints of a service say of themselves, by row.
fn lives(service: &image::Service) -> impl Iterator<Item = Live> {
    let reach = Reach::of(service.mode);
    service.endpoints.iter().map(move |row| (row.endpoint.availability_by(reach), row.endpoint.weight()))
}

#[cfg(test)]
mod tests;
