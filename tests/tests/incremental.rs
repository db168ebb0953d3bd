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
    endpoint::NextHop,
    hash::{self, Seed},
    service::{Service, ServiceKey, Table, Track},
    slot::Slot,
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
    /// Endpoints that left have been retired for long enough.
    Forget,
}

fn said() -> impl Strategy<Value = Said> {
    let kinds = [
        "protocol: TCP",
        "protocol: TCP, whenDown: reset",
        "protocol: UDP",
        "protocol: TCP, affinity: { timeout: 10m }",
        "protocol: TCP, forwarding: dsr-ipip",
        "protocol: TCP, forwarding: dsr-l2, track: never",
        "protocol: TCP, newFlows: { perSecond: 100 }",
        "protocol: HTTP",
    ];
    (prop::sample::select(kinds.to_vec()), 0_u16..1 << HOSTS, 1_u32..4, prop::option::of(1_u32..4))
        .prop_map(|(kind, hosts, weight, shared)| Said { kind, hosts, weight, shared })
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        6 => (0..LISTENERS, prop::option::weighted(0.85, said())).prop_map(|(at, said)| Edit::Say(at, said)),
        3 => (0..LISTENERS, 0..HOSTS, any::<bool>()).prop_map(|(at, host, up)| Edit::Health(at, host, up)),
        1 => (0..HOSTS, any::<bool>()).prop_map(|(host, lost)| Edit::Lost(host, lost)),
        1 => Just(Edit::Forget),
    ]
}

fn host(n: u8) -> IpAddr {
    IpAddr::from([10, 1, 0, n + 1])
}

fn way() -> Way {
    Way {
        is_local: false,
        is_on_link: true,
        interface: 2,
        source: Some(IpAddr::from([192, 0, 2, 1])),
        next_hop: NextHop { interface: 2, mac: [2; 6], own_mac: [3; 6] },
        mtu: 1_500,
    }
}

/// A configuration in words, read as the agent reads it.
fn snapshot(said: &BTreeMap<usize, Said>) -> Snapshot {
    let [mut listeners, mut routes, mut services] =
        ["listeners: [", "routes: [", "services: ["].map(String::from);
    for (n, one) in said {
        writeln!(listeners, "{{ name: l{n}, address: 198.18.0.{n}, port: 80, {} }},", one.kind).unwrap();
        let second = (n + 1) % LISTENERS;
        let shared = one.shared.filter(|_| said.contains_key(&second));
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
    snapshot: Option<Snapshot>,
    registry: Registry,
    ids: Ids,
    made: Made,
    image: Arc<Image>,
    retired: Retired,
    writer: Writer<Memory>,
}

impl Agent {
    fn new() -> Self {
        Self {
            said: BTreeMap::new(),
            lost: BTreeSet::new(),
            snapshot: None,
            registry: Registry::default(),
            ids: Ids::new(CAPACITY),
            made: Made::default(),
            image: Arc::default(),
            retired: Retired::new(),
            writer: Writer::new(Memory::default(), TERMS, Clock::driven()).unwrap(),
        }
    }

    fn ways(&self) -> HashMap<IpAddr, Way> {
        let known = (0..HOSTS).filter(|at| !self.lost.contains(at));
        known.map(|at| (host(at), way())).collect()
    }

    fn take(&mut self, edits: &[Edit]) {
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
                Edit::Forget => self.retired.clear(),
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
        let means = Means { registry: &self.registry, sockets: &sockets, retired: &self.retired };
        let mut anew = self.ids.clone();
        let from_nothing = image::image(&next, means, &mut anew, &mut Made::default()).unwrap();
        let made = Arc::new(image::image(&next, means, &mut self.ids, &mut self.made).unwrap());
        assert_eq!(made.services, from_nothing.services);
        assert_eq!(made.networks, from_nothing.networks);
        assert_eq!(self.ids, anew);
        service::settle(&next, self.snapshot.as_ref(), &self.registry);
        self.writer.set_ways(self.ways()).unwrap();
        self.writer.apply(Arc::clone(&made)).unwrap();
        self.image = made;
        let served = service::served(&next);
        let retired: BTreeSet<_> = self.retired.iter().map(|(_, id)| id.clone()).collect();
        self.registry.retain(|id| served.contains(id) || retired.contains(id));
        self.snapshot = Some(next);
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
    fn remembers(&self, former: &BTreeMap<ServiceKey, Vec<Lead>>) {
        for (key, leads) in self.leads() {
            for (lead, former) in leads.iter().zip(former.get(&key).into_iter().flatten()) {
                let addr = |one: Option<(u32, IpAddr)>| one.map(|(_, addr)| addr);
                let is_known = addr(lead.before) == addr(former.before)
                    || addr(lead.before) == addr(lead.now)
                    || lead.before.is_none()
                    || former.is_divided && addr(lead.before) == addr(former.now);
                assert!(is_known, "{lead:?} after {former:?}");
                let is_there = former.before.is_some_and(|(row, _)| {
                    self.image.services.iter().any(|one| {
                        let is_row = |at: &Row| at.row == row;
                        one.key == key && one.endpoints.iter().any(is_row)
                    })
                });
                assert!(
                    former.is_divided || !is_there || addr(lead.before) == addr(former.before),
                    "{lead:?} after {former:?}"
                );
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
            let former = agent.leads();
            agent.take(edits);
            agent.is_whole();
            agent.remembers(&former);
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
