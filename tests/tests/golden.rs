//! Golden files: a configuration in, routes and the writes to the kernel's maps out. Each file under `testdata/golden`
//! tells one story: configurations that follow one another, requests, and what became of both.
//! `UPDATE_EXPECT=1` writes the answers anew; they are reviewed like code.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a suite fails loudly"
)]

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use gateway_common::{
    addr::{Addr, Protocol},
    endpoint::{EndpointState, NextHop},
    hash::Seed,
    map::{self, MapDef as _},
    service::{Mode, PortRange, Rate, Service, ServiceKey, Track},
    slot::Slot,
    source::SourceRule,
};
use gateway_tests::{expect, privilege};
use gateway_userspace::{
    clock::Clock,
    compile::{
        id::Ids,
        image::{self, Made, Means, SocketRanges},
        service,
        state::{Shared, state},
    },
    drain::Tasks,
    endpoint::Registry,
    image::{Capacity, Range, Way},
    kernel::{
        memory::Memory,
        plan::Op,
        sources::SourceOp,
        ticks::Ticks,
        writer::{Terms, Writer},
    },
    limits::Share,
    metrics::Metrics,
    net::connect,
    pool::registry::{self, Pools},
    route::Request,
    snapshot::Snapshot,
    source::file,
    state::{Bind, BindKey, State, Transport},
    tls,
    upstream::Parts,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// The seed of every golden file: tables follow from it.
const SEED: Seed = Seed::new([0x5eed, 0x5eed]);
const TERMS: Terms = Terms {
    seed: SEED,
    flows: 1 << 18,
    ticks: Ticks::of_interrupts(250),
    change_window: Duration::from_hours(1),
    echo: true,
};

/// Every address is known to be reached over this interface.
const INTERFACE: u32 = 2;

#[test]
fn golden_files() {
    let folder = expect::root().join("tests/testdata/golden");
    let mut paths: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 5, "{} holds the stories", folder.display());
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        expect::file(&path, &tell(&path, &text));
    }
}

/// A case of the conformance suite says what scapy says, not what somebody made it say.
#[test]
fn the_conformance_suite_is_what_its_generator_makes() {
    let generator = expect::root().join("tests/conformance/generate.py");
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    // Debian's scapy belongs to Debian's Python, which need not be the first one.
    let has_scapy =
        |python: &&str| run(python, &["-c", "import scapy"]).is_some_and(|out| out.status.success());
    let Some(python) = ["python3", "/usr/bin/python3"].into_iter().find(has_scapy) else {
        assert!(!privilege::is_all(), "no Python here has scapy: install python3-scapy");
        eprintln!("skipped: needs scapy for Python: making the conformance suite again");
        return;
    };
    let generator = generator.to_str().unwrap();
    let check = ["-B", generator, "--check"];
    let out = run(python, if update { &check[..2] } else { &check }).unwrap();
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    assert!(out.status.success(), "{said}; write it with UPDATE_EXPECT=1");
}

fn run(python: &str, arguments: &[&str]) -> Option<Output> {
    Command::new(python).args(arguments).output().ok()
}

/// What a file should say: its questions as they are, each with its answer.
fn tell(path: &Path, text: &str) -> String {
    let mut agent = Agent::new();
    let mut told = String::new();
    let (head, sections) = text.split_once("=== ").expect("a file has sections, each begun by `=== NAME`");
    told.push_str(head);
    for section in sections.split("\n=== ") {
        let (name, body) = section.split_once('\n').unwrap_or((section, ""));
        let body = body.trim_end();
        let answer = match name {
            "config" => ("writes", agent.take(body)),
            "requests" => ("routes", agent.ask(body)),
            "writes" | "routes" => continue,
            other => panic!("{}: no section is called `{other}`", path.display()),
        };
        write!(told, "=== {name}\n{body}\n\n=== {}\n{}\n", answer.0, answer.1).unwrap();
    }
    format!("{}\n", told.trim_end())
}

/// All of the agent that is pure: what it would serve, and maps in memory that it writes.
struct Agent {
    folder: tempfile::TempDir,
    shared: Shared,
    served: Option<State>,
    settled: Option<Snapshot>,
    ids: Ids,
    made: Made,
    sockets: BTreeMap<SocketAddr, u32>,
    writer: Writer<Memory>,
}

impl Agent {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // What a certificate says changes nothing here; that there is one does.
        let made = rcgen::generate_simple_self_signed(["www.example.org".to_owned()]).unwrap();
        fs::write(folder.path().join("web.pem"), made.cert.pem()).unwrap();
        fs::write(folder.path().join("web.key"), made.signing_key.serialize_pem()).unwrap();
        let (tasks, clock, metrics) = (Tasks::default(), Clock::driven(), Arc::new(Metrics::new(1)));
        let share = Share::per_worker(1_024, 1);
        let pools = Pools::new(registry::Shared::new((1, share), &tasks, &clock, &metrics.families));
        let parts = Parts {
            registry: Arc::new(Registry::default()),
            pools: Arc::new(pools),
            metrics,
            tasks,
            options: connect::Options::default(),
        };
        let capacity = Capacity {
            services: map::Services::CAPACITY,
            rows: map::Endpoints::CAPACITY,
            chunks: map::Slots::CAPACITY,
        };
        Self {
            folder,
            shared: Shared { parts, tls: tls::Context::new().unwrap(), seed: SEED, is_guarding: false },
            served: None,
            settled: None,
            ids: Ids::new(capacity),
            made: Made::default(),
            sockets: BTreeMap::new(),
            writer: Writer::new(Memory::default(), TERMS, Clock::real()).unwrap(),
        }
    }

    /// Takes a configuration, as the control loop does, and says what it wrote.
    fn take(&mut self, text: &str) -> String {
        let loaded = match file::parse(&self.folder.path().join("sluice.yaml"), text) {
            Ok(loaded) => loaded,
            Err(faults) => panic!("a golden configuration is sound: {faults}"),
        };
        let snapshot = loaded.snapshot;
        self.served = Some(state(&snapshot, &self.shared, self.served.as_ref()).expect("it can be served"));
        service::settle(&snapshot, self.settled.as_ref(), &self.shared.parts.registry);
        let retired = image::left_over(&snapshot, &self.ids);
        let sockets = self.place_sockets(&snapshot);
        let registry = &self.shared.parts.registry;
        let means = Means { registry, sockets: &sockets, retired: &retired, is_written: true };
        let image = image::image(&snapshot, means, &mut self.ids, &mut self.made).expect("there is room");
        self.settled = Some(snapshot);
        let hosts = image.services.iter().flat_map(|service| &service.endpoints);
        let ways = hosts.map(|row| (row.endpoint.addr().ip(), way(row.endpoint.addr().ip()))).collect();
        self.writer.set_ways(ways).unwrap();
        self.writer.apply(Arc::new(image)).unwrap();
        assert_eq!(self.writer.gap(), 0);
        let journal = self.writer.maps_mut().take_journal();
        let is_filter = |op: &&Op| matches!(op, Op::Sources(SourceOp::Filter { .. }));
        let n_words = journal.iter().filter(is_filter).count();
        let summary = (n_words != 0).then(|| format!("in all, {n_words} words of the source filter"));
        lines(journal.iter().filter(|op| !is_filter(op)).map(describe).chain(summary))
    }

    /// Two workers listen at each address that the agent serves.
    fn place_sockets(&mut self, snapshot: &Snapshot) -> SocketRanges {
        for listener in snapshot.listeners.iter().filter(|listener| listener.is_by_agent()) {
            let next = self.sockets.values().max().map_or(0, |last| last + 2);
            self.sockets.entry(listener.addr).or_insert(next);
        }
        self.sockets.iter().map(|(addr, first)| (*addr, Range { first: *first, count: 2 })).collect()
    }

    /// Where each request goes: `METHOD ADDRESS HOST/PATH?QUERY HEADER=VALUE ...`.
    fn ask(&self, requests: &str) -> String {
        let served = self.served.as_ref().expect("a configuration comes before requests");
        lines(requests.lines().map(|line| format!("{line} -> {}", answer(served, line))))
    }
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    let mut text = lines.collect::<Vec<_>>().join("\n");
    text.push('\n');
    text
}

/// A write in words.
fn describe(op: &Op) -> String {
    match op {
        Op::Row { row, value } if value.addr == Addr::UNSPECIFIED => format!("row {row}: empty"),
        Op::Row { row, value } => format!(
            "row {row}: {} {} of service {}, generation {}, up to {} bytes",
            SocketAddr::new(value.addr.into(), value.port.number()),
            word(value.state),
            value.service,
            value.generation,
            value.mtu
        ),
        Op::Slots { key, first_chunk, slots } => {
            format!("slots of {} from chunk {first_chunk}: {}", name(key), shares(slots))
        }
        Op::Service { key, value } => format!("service {}: {}", name(key), value_of(value)),
        Op::Ranges { first, ranges } => {
            let ranges: Vec<String> = ranges.iter().copied().map(range).collect();
            format!("ranges {first}: {}", ranges.join(" "))
        }
        Op::Entry { entry } => {
            let service = entry.service_id().map_or_else(|| "none".to_owned(), |id| id.to_string());
            let ranges = entry.first_range..entry.first_range + entry.n_ranges;
            format!("entry {}: service {service}, ranges {ranges:?}", name(&entry.key()))
        }
        Op::Filter { word, bits } => format!("filter word {word}: {} bits", bits.count_ones()),
        Op::Sources(op) => describe_source(op),
        Op::Remove { key } => format!("remove entry {}", name(key)),
    }
}

fn describe_source(op: &SourceOp) -> String {
    match op {
        SourceOp::Network { network, rule } => format!(
            "network {}/{}: {}",
            IpAddr::from(network.addr),
            if network.addr.is_v4() { network.prefix_bits - 96 } else { network.prefix_bits },
            match rule {
                Some(SourceRule::ALLOW) => "allowed",
                Some(SourceRule::DENY) => "denied",
                Some(_) => "forged",
                None => "not listed",
            }
        ),
        SourceOp::Filter { word, .. } => format!("source filter word {word}"),
        SourceOp::Guards { guards } => format!("guards {guards:#05b}"),
    }
}

fn way(addr: IpAddr) -> Way {
    let next_hop = NextHop { interface: INTERFACE, mac: [2, 0, 0, 0, 0, 1], own_mac: [2, 0, 0, 0, 0, 2] };
    let source = if addr.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" };
    Way {
        is_local: false,
        is_on_link: true,
        interface: INTERFACE,
        source: Some(source.parse().unwrap()),
        next_hop,
        mtu: 1_500,
    }
}

const fn word(state: EndpointState) -> &'static str {
    match state {
        EndpointState::ACTIVE => "active",
        EndpointState::DRAINING => "draining",
        _ => "down",
    }
}

fn name(key: &ServiceKey) -> String {
    let transport = match key.protocol {
        Protocol::UDP => "udp",
        Protocol::ICMP | Protocol::ICMP_V6 => "echo",
        _ => "tcp",
    };
    format!("{}/{transport}", SocketAddr::new(key.addr.into(), key.port.number()))
}

fn range(range: PortRange) -> String {
    format!("{}-{} to {}", range.first.number(), range.last.number(), range.service)
}

/// How many slots each endpoint has, and how many changed hands.
fn shares(slots: &[Slot]) -> String {
    let mut counts: BTreeMap<u16, usize> = BTreeMap::new();
    for slot in slots {
        *counts.entry(slot.endpoint).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(endpoint, n)| format!("{n} to +{endpoint}")).collect();
    let moved = slots.iter().filter(|slot| slot.endpoint != slot.former).count();
    format!("{}; {moved} moved", counts.join(", "))
}

fn value_of(value: &Service) -> String {
    let limits = match (value.flow_rate, value.source_rate) {
        (Rate::NONE, Rate::NONE) => String::new(),
        (all, source) => format!(
            ", new flows {} + {}, of a source {} + {}",
            all.per_second, all.burst, source.per_second, source.burst
        ),
    };
    if value.mode == Mode::AGENT {
        let cookies = if value.flags & Service::COOKIES == 0 {
            String::new()
        } else {
            format!(", cookies above {}", value.cookie_rate)
        };
        let agent = format!(
            "id {}, agent, sockets {} + {}{limits}{cookies}",
            value.id, value.first_socket, value.n_sockets
        );
        if value.flags & Service::FAILS_OPEN == 0 {
            return agent;
        }
        let table = value.table();
        let (rows, chunk) = (table.first_endpoint, table.first_chunk);
        return format!(
            "{agent}, fails open to rows {rows} + {}, {} slots now at chunk {chunk}",
            table.n_endpoints, table.n_slots
        );
    }
    let [first, second] = value.halves;
    let table = value.table();
    format!(
        "id {}, {}, rows {} + {}, {} slots at chunk {first} or {second}, now {}{limits}",
        value.id,
        manner(value),
        table.first_endpoint,
        table.n_endpoints,
        table.n_slots,
        table.first_chunk
    )
}

/// How packets reach the endpoint and what is remembered.
fn manner(value: &Service) -> String {
    let mode = match value.mode {
        Mode::NAT => "nat",
        Mode::DSR_L2 => "dsr-l2",
        Mode::DSR_IPIP => "dsr-ipip",
        _ => "dsr-gue",
    };
    let track = match value.track {
        Track::ALWAYS => "always",
        Track::CHANGE => "change",
        _ => "never",
    };
    let affinity = match value.flags & Service::AFFINITY {
        0 => String::new(),
        _ => format!(", a client for {} ticks", value.affinity_ticks),
    };
    format!("{mode}, track {track}{affinity}")
}

fn answer(served: &State, line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut next = || words.next().expect("a request is METHOD ADDRESS HOST/PATH");
    let method: Method = next().parse().unwrap();
    let addr: SocketAddr = next().parse().unwrap();
    let target = next();
    let (host, path) = target.split_once('/').expect("a target has a path");
    let path = format!("/{path}");
    let (path, query) =
        path.split_once('?').map_or((path.as_str(), None), |(path, query)| (path, Some(query)));
    let headers: HeaderMap = words
        .map(|word| word.split_once('=').expect("a header is NAME=VALUE"))
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap()))
        .collect();
    let request = Request { host, path, query, method: &method, headers: &headers };
    let Some(Bind::Http(bind)) = served.binds.get(&BindKey { addr, transport: Transport::Tcp }) else {
        return "nothing listens".to_owned();
    };
    let Some(listener) = bind.listeners.lookup(host).next() else { return "no listener".to_owned() };
    let Some(matched) = listener.table.find(&request) else {
        return format!("listener {}, no route", listener.name.as_str());
    };
    let rule = &matched.rule;
    let services: HashMap<_, _> =
        served.services.iter().map(|(name, service)| (Arc::as_ptr(service), name)).collect();
    let shares = rule.backends.shares().map(|(weight, service)| {
        let name = service.and_then(|service| services.get(&Arc::as_ptr(service)));
        format!("{} {weight}", name.map_or("(missing)", |name| name.as_str()))
    });
    let shares: Vec<String> = shares.collect();
    format!("listener {}, route {}: {}", listener.name.as_str(), rule.route.as_str(), shares.join(", "))
}
