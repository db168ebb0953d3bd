//! A change costs what it changes, and comes to the same as everything made anew: random edits of a configuration, of
//! health and of ways, each compared with what comes from nothing.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a suite fails loudly"
)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use gateway_common::{
    addr::Addr,
    endpoint::{Endpoint, NextHop},
    hash::{self, Seed},
    service::{Mode, Service, ServiceKey, Table, Track},
    slot::{Slot, SlotChunk},
};
use gateway_userspace::{
    clock::Clock,
    compile::{
        id::Ids,
        image::{self, Made, Means, Retired, SocketRanges, Wanted},
        service,
    },
    endpoint::{Availability, EndpointId, Health, Registry},
    image::{Capacity, Image, Range, Row, Way},
    kernel::{
        maps::{Maps as _, Observed},
        memory::Memory,
        plan::Op,
        ticks::Ticks,
        writer::{Terms, Writer},
    },
    name::ServiceName,
    snapshot::Snapshot,
    source::file,
};
use proptest::prelude::*;

const CAPACITY: Capacity = Capacity { services: 64, rows: 4_096, chunks: 16_384 };
const TERMS: Terms = Terms {
    seed: Seed::new([3, 4]),
    flows: 1 << 16,
    ticks: Ticks::of_interrupts(250),
    change_window: Duration::from_mins(10),
    echo: true,
};
/// Listeners that there may be, and hosts that their endpoints are on.
const LISTENERS: usize = 6;
const HOSTS: u8 = 10;

/// What one listener says.
#[derive(Clone, Debug)]
struct Said {
    kind: &'static str,
    /// A bit for each host that the service has an endpoint on.
    hosts: u16,
    weight: u32,
    /// Weight of the next listener's service as a second backend.
    shared: Option<u32>,
}

/// One edit.
#[derive(Clone, Debug)]
enum Edit {
    Say(usize, Option<Said>),
    Health(usize, u8, bool),
    Lost(u8, bool),
    /// A host is reached on another way: from one of two addresses of this node, or as this node's own.
    Reached(u8, u8),
    /// Endpoints that left have been retired for long enough.
    Forget,
    /// So many twentieths of a window go by.
    Pass(u32),
    /// Another agent takes over what stands in the maps.
    Restart,
    /// Of the writes of this step, all after so many are refused at first.
    Refuse(usize),
    /// The same, and nothing is tried again before the next step.
    Leave(usize),
}

fn said() -> impl Strategy<Value = Said> {
    let kinds = [
        "protocol: TCP",
        "protocol: TCP, whenDown: reset",
        "protocol: UDP",
        "protocol: TCP, affinity: { timeout: 10m }",
        "protocol: TCP, forwarding: dsr-ipip",
        "protocol: TCP, forwarding: dsr-l2, track: never",
        "protocol: TCP, forwarding: dsr-ipip, affinity: { timeout: 10m }",
        "protocol: TCP, newFlows: { perSecond: 100 }",
        "protocol: TCP, ports: [80-90]",
        "protocol: TCP, forwarding: dsr-l2, ports: [80-90, \"443\"]",
        "protocol: HTTP",
        "protocol: HTTP, failMode: open",
    ];
    (prop::sample::select(kinds.to_vec()), 0_u16..1 << HOSTS, 1_u32..4, prop::option::of(1_u32..4))
        .prop_map(|(kind, hosts, weight, shared)| Said { kind, hosts, weight, shared })
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        6 => (0..LISTENERS, prop::option::weighted(0.85, said())).prop_map(|(at, said)| Edit::Say(at, said)),
        3 => (0..LISTENERS, 0..HOSTS, any::<bool>()).prop_map(|(at, host, up)| Edit::Health(at, host, up)),
        1 => (0..HOSTS, any::<bool>()).prop_map(|(host, lost)| Edit::Lost(host, lost)),
        2 => (0..HOSTS, 0_u8..3).prop_map(|(host, how)| Edit::Reached(host, how)),
        1 => Just(Edit::Forget),
        1 => (1_u32..25).prop_map(Edit::Pass),
        1 => Just(Edit::Restart),
        1 => (0_usize..30).prop_map(Edit::Refuse),
        2 => (0_usize..30).prop_map(Edit::Leave),
    ]
}

/// The last host is this node itself, by an address that nothing is translated to.
fn host(n: u8) -> IpAddr {
    if n == HOSTS - 1 { IpAddr::from([127, 0, 0, 1]) } else { IpAddr::from([10, 1, 0, n + 1]) }
}

fn way(how: u8) -> Way {
    if how == 2 {
        return Way { is_local: true, ..Way::default() };
    }
    Way {
        is_local: false,
        is_on_link: true,
        interface: 2,
        source: Some(IpAddr::from([192, 0, 2, how + 1])),
        next_hop: NextHop { interface: 2, mac: [2; 6], own_mac: [3; 6] },
        mtu: 1_500,
    }
}

/// A configuration in words, read as the agent reads it.
fn snapshot(said: &BTreeMap<usize, Said>) -> Snapshot {
    let [mut listeners, mut routes, mut services] =
        ["listeners: [", "routes: [", "services: ["].map(String::from);
    for (n, one) in said {
        let port = if one.kind.contains("ports") { "" } else { "port: 80, " };
        writeln!(listeners, "{{ name: l{n}, address: 198.18.0.{n}, {port}{} }},", one.kind).unwrap();
        let second = (n + 1) % LISTENERS;
        // One that fails open leads an address to one service.
        let may_share = said.contains_key(&second) && !one.kind.contains("failMode");
        let shared = one.shared.filter(|_| may_share);
        let shared =
            shared.map_or_else(String::new, |weight| format!(", {{ service: s{second}, weight: {weight} }}"));
        writeln!(
            routes,
            "{{ name: r{n}, listeners: [l{n}], rules: [ {{ backends: [ {{ service: s{n}, weight: {} }}{shared} ] }} ] }},",
            one.weight
        )
        .unwrap();
        write!(services, "{{ name: s{n}, endpoints: [").unwrap();
        for at in (0..HOSTS).filter(|at| one.hosts & (1 << at) != 0) {
            let weight = (u32::from(at) + one.weight) % 4;
            write!(services, "{{ address: {}, port: 80, weight: {weight} }}, ", host(at)).unwrap();
        }
        writeln!(services, "] }},").unwrap();
    }
    let text = format!("{listeners}]\n{routes}]\n{services}]\n");
    match file::parse(Path::new("incremental.yaml"), &text) {
        Ok(loaded) => Snapshot { generation: 1, ..loaded.snapshot },
        Err(faults) => panic!("{faults}\n{text}"),
    }
}

/// Where flows of one hash go: row and address.
#[derive(Debug)]
struct Lead {
    now: Option<(u32, IpAddr)>,
    before: Option<(u32, IpAddr)>,
    /// The table before says so.
    is_divided: bool,
}

/// What the programs make of a hash.
fn lead(observed: &Observed, key: &ServiceKey, service: &Service, hash: u64) -> Lead {
    let slot_of = |slots: &[Slot]| {
        let n_slots = u32::try_from(slots.len()).unwrap();
        slots.get(usize::try_from(hash::slot(hash, n_slots)).unwrap()).copied()
    };
    let row = |table: Table, local: u16| {
        let row = table.first_endpoint + u32::from(local);
        let endpoint = observed.endpoints.get(&row)?;
        let is_ours = endpoint.service == service.id && endpoint.addr != Addr::UNSPECIFIED;
        is_ours.then(|| (row, endpoint.addr.into()))
    };
    let slot = slot_of(&observed.slots[key]).unwrap();
    let is_divided = slot.former == Slot::ELSEWHERE;
    let before = if is_divided {
        slot_of(&observed.before[key]).and_then(|slot| row(service.idle_table(), slot.before()))
    } else {
        row(service.table(), slot.former)
    };
    Lead { now: row(service.table(), slot.endpoint), before, is_divided }
}

/// An agent without a kernel.
struct Agent {
    said: BTreeMap<usize, Said>,
    lost: BTreeSet<u8>,
    reached: BTreeMap<u8, u8>,
    snapshot: Option<Snapshot>,
    registry: Registry,
    ids: Ids,
    made: Made,
    image: Arc<Image>,
    retired: Retired,
    clock: Clock,
    writer: Writer<Memory>,
    /// Where slots led in the middle of the last step: with its ways, and without its image.
    midway: BTreeMap<ServiceKey, Vec<Lead>>,
    /// What stood in the maps then, where all of it could be written.
    between: Option<Observed>,
}

impl Agent {
    fn new() -> Self {
        let clock = Clock::driven();
        Self {
            said: BTreeMap::new(),
            lost: BTreeSet::new(),
            reached: BTreeMap::new(),
            snapshot: None,
            registry: Registry::default(),
            ids: Ids::new(CAPACITY),
            made: Made::default(),
            image: Arc::default(),
            retired: Retired::new(),
            writer: Writer::new(Memory::default(), TERMS, clock.clone()).unwrap(),
            clock,
            midway: BTreeMap::new(),
            between: None,
        }
    }

    fn ways(&self) -> HashMap<IpAddr, Way> {
        let known = (0..HOSTS).filter(|at| !self.lost.contains(at));
        known.map(|at| (host(at), way(self.reached.get(&at).copied().unwrap_or(0)))).collect()
    }

    fn take(&mut self, edits: &[Edit]) {
        let was_behind = self.writer.is_behind();
        for edit in edits {
            match edit {
                Edit::Say(at, Some(said)) => drop(self.said.insert(*at, said.clone())),
                Edit::Say(at, None) => drop(self.said.remove(at)),
                Edit::Health(at, on, up) => {
                    let addr = SocketAddr::new(host(*on), 80);
                    let id = EndpointId { service: ServiceName::new(&format!("s{at}")), addr };
                    if let Some(one) = self.registry.all().iter().find(|one| *one.id() == id) {
                        one.set_health(if *up { Health::Up } else { Health::Down });
                    }
                }
                Edit::Lost(at, true) => drop(self.lost.insert(*at)),
                Edit::Lost(at, false) => drop(self.lost.remove(at)),
                Edit::Reached(at, how) => drop(self.reached.insert(*at, *how)),
                Edit::Forget => self.retired.clear(),
                Edit::Pass(twentieths) => {
                    self.clock.advance(TERMS.change_window / 20 * *twentieths);
                    self.writer.settle().unwrap();
                }
                Edit::Restart => self.restart(was_behind),
                Edit::Refuse(_) | Edit::Leave(_) => {}
            }
        }
        let next = snapshot(&self.said);
        self.retire(&next, edits.iter().any(|edit| matches!(edit, Edit::Forget)));
        let sockets: SocketRanges = (0_u32..)
            .zip(0..LISTENERS)
            .map(|(first, n)| {
                let n = u8::try_from(n).unwrap();
                (SocketAddr::from(([198, 18, 0, n], 80)), Range { first: first * 2, count: 2 })
            })
            .collect();
        let is_written = !self.writer.is_behind();
        let means = Means { registry: &self.registry, sockets: &sockets, retired: &self.retired, is_written };
        let mut anew = self.ids.clone();
        let from_nothing = image::image(&next, means, &mut anew, &mut Made::default()).unwrap();
        let made = Arc::new(image::image(&next, means, &mut self.ids, &mut self.made).unwrap());
        assert_eq!(made.services, from_nothing.services);
        assert_eq!(made.networks, from_nothing.networks);
        assert_eq!(self.ids, anew);
        service::settle(&next, self.snapshot.as_ref(), &self.registry);
        let room = edits.iter().find_map(|edit| {
            if let Edit::Refuse(room) | Edit::Leave(room) = edit { Some(*room) } else { None }
        });
        let is_left = edits.iter().any(|edit| matches!(edit, Edit::Leave(_)));
        self.writer.maps_mut().refuse_after(room);
        let ways = self.writer.set_ways(self.ways());
        self.midway = self.leads();
        self.between = ways.is_ok().then(|| self.writer.maps().observe().unwrap());
        let is_refused = ways.is_err() | self.writer.apply(Arc::clone(&made)).is_err();
        self.writer.maps_mut().refuse_after(None);
        if is_refused && !is_left {
            self.writer.reconcile().unwrap();
        }
        self.image = made;
        let served = service::served(&next);
        let retired: BTreeSet<_> = self.retired.iter().map(|(_, id)| id.clone()).collect();
        self.registry.retain(|id| served.contains(id) || retired.contains(id));
        self.snapshot = Some(next);
    }

    /// The agent begins anew, with what it finds. What it knows of endpoints comes back at once.
    fn restart(&mut self, was_behind: bool) {
        let maps = self.writer.maps().clone();
        self.writer = Writer::new(maps, TERMS, self.clock.clone()).unwrap();
        let written = self.writer.written();
        self.ids = Ids::found(CAPACITY, &written.services, &written.endpoints);
        self.made = Made::default();
        for service in self.image.services.iter().filter(|_| !was_behind) {
            let found = self.ids.services().get(&service.key).unwrap();
            assert_eq!((found.id, found.rows, found.chunks), (service.id, service.rows, service.chunks));
            let members = found.members.iter().map(|(addr, row)| (*row, *addr));
            let known: BTreeMap<u32, SocketAddr> = members.chain(found.outgrown.clone()).collect();
            let of = |row: &Row| (row.row, row.endpoint.addr());
            assert_eq!(known, service.endpoints.iter().map(of).collect());
        }
    }

    /// Where flows of slots go, and where they went before, by service and hash.
    fn leads(&self) -> BTreeMap<ServiceKey, Vec<Lead>> {
        let observed = self.writer.maps().observe().unwrap();
        let of = |(key, service): (&ServiceKey, &Service)| {
            let is_led = service.track == Track::CHANGE && service.table().n_slots > 0;
            let lead = |n: u64| lead(&observed, key, service, n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            is_led.then(|| (*key, (0..512).map(lead).collect()))
        };
        observed.services.iter().filter_map(of).collect()
    }

    /// Flows that nobody has seen since are where they were, or nowhere when that is nobody's any more.
    fn remembers(&self, before: &Observed, former: &BTreeMap<ServiceKey, Vec<Lead>>) {
        for (key, leads) in self.leads() {
            let midway = self.midway.get(&key).into_iter().flatten().map(Some).chain(std::iter::repeat(None));
            let formers = former.get(&key).into_iter().flatten();
            // A slot of another table forgets all of its flows when some were at a row whose owner is another now.
            let of = |observed: &Observed| {
                let service = observed.services.get(&key)?;
                Some((service.halves, Table { first_chunk: 0, ..service.table() }))
            };
            let is_another = of(before) != of(self.writer.written());
            let is_passed_on = |at: &Row| {
                before.endpoints.get(&at.row).is_some_and(|present| present.owner() != at.generation)
            };
            let mut own = self.image.services.iter().filter(|one| one.key == key);
            let forgets = is_another && own.any(|one| one.endpoints.iter().any(is_passed_on));
            for ((lead, former), midway) in leads.iter().zip(formers).zip(midway) {
                let addr = |one: Option<(u32, IpAddr)>| one.map(|(_, addr)| addr);
                // A row whose owner is another now is forgotten, even where the one before had it until then.
                let is_there = former.before.is_some_and(|(row, addr)| {
                    self.image.services.iter().any(|one| {
                        let is_row = |at: &Row| at.row == row && at.endpoint.addr().ip() == addr;
                        one.key == key && one.endpoints.iter().any(is_row)
                    })
                });
                // Without any endpoint on the way, nothing is known of those before.
                let may_move = former.is_divided || !is_there || forgets || midway.is_none();
                let is_last = addr(lead.before) == addr(former.now)
                    || midway.is_some_and(|midway| addr(lead.before) == addr(midway.now));
                let is_known = addr(lead.before) == addr(former.before)
                    || may_move && (lead.before.is_none() || lead.before == lead.now || is_last);
                assert!(is_known, "{lead:?} after {former:?}");
            }
        }
    }

    /// A row has another generation when what its flows have recorded is not so any more, and not for less.
    fn renews(before: &Observed, after: &Observed) {
        let is_translated = |observed: &Observed, id: u32| {
            let service = observed.services.values().find(|service| service.id == id);
            service.map(|service| matches!(service.mode, Mode::NAT | Mode::AGENT))
        };
        for (row, now) in after.endpoints.iter().filter(|(_, now)| now.addr != Addr::UNSPECIFIED) {
            let whose = |one: &Endpoint| (one.addr, one.service, one.owner());
            let Some(was) = before.endpoints.get(row).filter(|was| whose(was) == whose(now)) else {
                continue;
            };
            let on = |one: &Endpoint| (one.source, one.is_local());
            // What nothing leads to has no flows.
            let Some(modes) = is_translated(before, was.service).zip(is_translated(after, now.service))
            else {
                continue;
            };
            match modes {
                (true, true) => assert_eq!(was.generation == now.generation, on(was) == on(now), "row {row}"),
                (false, true) => assert_ne!(was.generation, now.generation, "row {row}"),
                (false, false) => assert_eq!(was.generation, now.generation, "row {row}"),
                // Its ways are looked at before the change, while it is still translated.
                (true, false) => {}
            }
        }
    }

    /// Takes a step, and looks what is so after it.
    fn goes_on(&mut self, edits: &[Edit]) {
        // Time that goes by brings what was refused: what it gave back may be given out by this very step.
        if self.writer.is_behind() && edits.iter().any(|edit| matches!(edit, Edit::Pass(_))) {
            self.writer.settle().unwrap();
        }
        let maps = self.writer.maps().clone();
        let before = maps.observe().unwrap();
        let former = self.leads();
        self.writer.maps_mut().take_journal();
        let was_behind = self.writer.is_behind();
        self.take(edits);
        let journal = self.writer.maps_mut().take_journal();
        self.owns(maps, &journal);
        if self.writer.is_behind() {
            return;
        }
        self.is_whole();
        match &self.between {
            // What was refused before comes with the ways, and may go again with the image.
            Some(between) => {
                Self::renews(&before, between);
                Self::renews(between, self.writer.written());
            }
            None if was_behind => {}
            None => Self::renews(&before, self.writer.written()),
        }
        let has_passed = edits.iter().any(|edit| matches!(edit, Edit::Pass(_)));
        // In the middle of a change nobody can say what flows knew.
        if !has_passed && !was_behind {
            self.remembers(&before, &former);
        }
    }

    /// Slots are written in chunks of their own service, never over some that packets may be sent to, and what a service
    /// names is its own.
    fn owns(&self, mut maps: Memory, journal: &[Op]) {
        let before = maps.observe().unwrap();
        let mut owners: BTreeMap<u32, ServiceKey> = BTreeMap::new();
        let mut own = |key: &ServiceKey, first: u32, n_slots: usize| {
            for chunk in first..first + SlotChunk::chunks_for(u32::try_from(n_slots).unwrap()) {
                assert_eq!(*owners.entry(chunk).or_insert(*key), *key, "chunk {chunk} has two owners");
            }
        };
        let halves = |service: &Service| {
            let [even, odd] = service.halves;
            [(even, odd - even), (odd, odd - even)]
        };
        let n_slots = |n_chunks: u32| usize::try_from(n_chunks * SlotChunk::SLOTS).unwrap();
        // Those that are gone, too: what they gave back rests for one change.
        for (key, service) in &before.services {
            for (first, count) in halves(service) {
                own(key, first, n_slots(count));
            }
        }
        for op in journal {
            match op {
                Op::Slots { key, first_chunk, slots } => {
                    own(key, *first_chunk, slots.len());
                    let now = maps.observe().unwrap();
                    let is_idle =
                        now.before.contains_key(key) && now.services[key].table().first_chunk != *first_chunk;
                    assert!(
                        slots.is_empty() || !is_idle,
                        "slots of {key:?} refer to the half that is written"
                    );
                    maps.put_slots(key, *first_chunk, slots).unwrap();
                }
                Op::Service { key, value } => maps.put_service(key, value).unwrap(),
                Op::Entry { entry } => maps.put_entry(entry).unwrap(),
                Op::Ranges { first, ranges } => maps.put_ranges(*first, ranges).unwrap(),
                Op::Remove { key } => maps.delete_entry(key).unwrap(),
                Op::Row { .. } | Op::Filter { .. } | Op::Sources(_) => {}
            }
        }
        let after = self.writer.maps().observe().unwrap();
        let written = self.writer.written();
        let filled = |observed: &Observed| {
            let of = observed.slots.iter().filter(|(_, slots)| !slots.is_empty());
            of.map(|(key, slots)| (*key, slots.clone())).collect::<Vec<_>>()
        };
        if self.writer.is_behind() {
            // What no entry leads to yet, or any more, is seen by its writer alone.
            let is_known = |(key, service)| written.services.get(key) == Some(service);
            assert!(
                after.services.iter().all(is_known),
                "{:?} is not {:?}",
                after.services,
                written.services
            );
        } else {
            assert_eq!((&written.services, &written.endpoints), (&after.services, &after.endpoints));
            assert_eq!((filled(written), &written.before), (filled(&after), &after.before));
        }
        for (key, service) in &after.services {
            for (first, count) in halves(service) {
                own(key, first, n_slots(count));
            }
            own(key, service.table().first_chunk, after.slots[key].len());
            if let Some(before) = after.before.get(key) {
                own(key, service.idle_table().first_chunk, before.len());
            }
        }
    }

    /// What the control loop does, without its clock.
    fn retire(&mut self, next: &Snapshot, forget: bool) {
        let wanted = Wanted::of(next);
        if !forget {
            self.retired.extend(image::left(&wanted, &self.image));
        }
        let is_left = |key: &ServiceKey, addr: &SocketAddr| {
            wanted.has(key) && wanted.addrs(key).binary_search(addr).is_err()
        };
        self.retired.retain(|(key, id)| is_left(key, &id.addr));
    }

    /// Somebody who knows nothing of what came before has nothing to write, and wants what is so.
    fn is_whole(&mut self) {
        assert_eq!(self.writer.gap(), 0);
        let mut second = Writer::new(self.writer.maps().clone(), TERMS, Clock::driven()).unwrap();
        second.maps_mut().take_journal();
        second.set_ways(self.ways()).unwrap();
        second.apply(Arc::clone(&self.image)).unwrap();
        assert_eq!(second.maps_mut().take_journal(), [], "{:#?}", self.said);
        let wanted = service::served(self.snapshot.as_ref().unwrap());
        for endpoint in self.registry.all() {
            let is_draining = endpoint.availability() == Availability::Draining;
            let is_wanted = wanted.contains(endpoint.id());
            let expected = !is_wanted || endpoint.weight() == 0;
            assert!(
                endpoint.health() == Health::Down || is_draining == expected,
                "{:?} drains: {is_draining}",
                endpoint.id()
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_made_of_changes_is_what_comes_from_nothing(
        steps in prop::collection::vec(prop::collection::vec(edit(), 1..4), 1..12),
    ) {
        let mut agent = Agent::new();
        for edits in &steps {
            agent.goes_on(edits);
        }
    }
}

#[test]
fn what_stays_is_neither_made_again_nor_written() {
    let mut agent = Agent::new();
    let said = |hosts| Said { kind: "protocol: TCP", hosts, weight: 1, shared: None };
    let all: Vec<Edit> = (0..LISTENERS).map(|at| Edit::Say(at, Some(said(0b1110)))).collect();
    agent.take(&all);
    let before = Arc::clone(&agent.image);
    agent.take(&[Edit::Say(2, Some(said(0b111_1110)))]);
    let same = before.services.iter().zip(&agent.image.services).map(|(a, b)| Arc::ptr_eq(a, b));
    assert_eq!(same.collect::<Vec<_>>(), [true, true, false, true, true, true]);
    agent.is_whole();
    agent.writer.maps_mut().take_journal();
    agent.take(&[]);
    assert_eq!(agent.writer.maps_mut().take_journal(), []);
}

fn say(at: usize, kind: &'static str, hosts: u16) -> Edit {
    Edit::Say(at, Some(Said { kind, hosts, weight: 1, shared: None }))
}

/// Takes each step, and looks what is so after it.
fn goes_on(steps: &[&[Edit]]) -> Agent {
    let mut agent = Agent::new();
    for edits in steps {
        agent.goes_on(edits);
    }
    agent
}

#[test]
fn a_service_that_was_the_agents_writes_over_nobodys_slots() {
    goes_on(&[
        &[say(0, "protocol: TCP", 215)],
        &[say(1, "protocol: TCP", 0)],
        &[Edit::Say(0, None)],
        &[say(1, "protocol: TCP", 7), say(5, "protocol: TCP", 151)],
        &[say(5, "protocol: HTTP", 168), Edit::Lost(0, true)],
        &[say(5, "protocol: TCP, affinity: { timeout: 10m }", 1)],
    ]);
}

#[test]
fn an_agent_that_begins_finds_what_is_whose() {
    goes_on(&[
        &[say(0, "protocol: TCP, forwarding: dsr-ipip", 0b111)],
        &[say(0, "protocol: HTTP", 0b111)],
        &[],
        // The chunks and rows of the first.
        &[say(1, "protocol: TCP, forwarding: dsr-ipip", 0b11)],
        &[Edit::Restart, say(1, "protocol: TCP, forwarding: dsr-ipip", 0b111)],
        // In the middle of a change that refers to the table before.
        &[Edit::Restart, say(2, "protocol: TCP, forwarding: dsr-ipip", 0b11)],
        &[Edit::Restart, say(0, "protocol: TCP", 0b1111), say(1, "protocol: HTTP", 0)],
        &[say(3, "protocol: TCP", 0b1_1111)],
        &[Edit::Restart],
    ]);
}

#[test]
fn a_window_ends_with_its_service() {
    let direct = "protocol: TCP, forwarding: dsr-ipip";
    let mut agent = goes_on(&[
        &[say(0, direct, 0b11)],
        &[say(0, direct, 0b111)],
        &[Edit::Say(0, None)],
        &[say(1, direct, 0b11), say(2, direct, 0b111)],
        &[Edit::Pass(25)],
        &[say(0, direct, 0b1_1100)],
    ]);
    let [first, ..] = &*agent.image.services else { panic!("no service") };
    let (key, observed) = (first.key, agent.writer.maps().observe().unwrap());
    assert!(observed.slots[&key].iter().all(|slot| slot.endpoint == slot.former));
    agent.goes_on(&[Edit::Pass(25)]);
}

/// What a change gave back that was refused: the maps name it still, and so does what waits for the maps.
#[test]
fn what_a_refused_change_gave_back_is_nobodys() {
    let direct = "protocol: TCP, forwarding: dsr-ipip";
    let first = |agent: &Agent, at: usize| {
        let service = agent.image.services.iter().find(|one| one.listener.as_str() == format!("l{at}"));
        service.map(|one| one.chunks[0])
    };
    let mut agent = goes_on(&[&[say(0, direct, 0b111), say(5, direct, 0b1)]]);
    let given_back = first(&agent, 0);
    // Three changes in a row, of which nothing reaches the maps.
    agent.goes_on(&[Edit::Leave(0), Edit::Say(0, None)]);
    for at in 1..3 {
        agent.goes_on(&[Edit::Leave(0), say(at, direct, 0b11)]);
        assert_ne!(first(&agent, at), given_back);
    }
    agent.goes_on(&[say(3, direct, 0b11)]);
    assert_ne!(first(&agent, 3), given_back, "the maps named it until this very change");
    agent.goes_on(&[say(4, direct, 0b11)]);
    assert_eq!(first(&agent, 4), given_back);
}
