//! Attaching, pinning, taking over and letting go, on real interfaces, in namespaces and BPF file systems of their own.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a suite fails loudly"
)]

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use aya::{
    EbpfLoader,
    maps::MapInfo,
    programs::{
        SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        tc::{self, NlOptions, TcAttachOptions},
    },
};
use gateway_common::{
    addr::{Addr, Port, Protocol},
    endpoint::EndpointState,
    layout::{FLOW_LAYOUT_VERSION, LAYOUT_VERSION, PIN_ROOT},
    receive::Receive,
    service::{Mode, ServiceKey, Track},
    settings::Tunnel,
    slot::{SlotChunk, size_class},
};
use gateway_tests::{
    kernel_run::object_path,
    netns::{End, Ns, link, tool},
    privilege,
};
use gateway_userspace::{
    endpoint::{EndpointId, Health, Registry},
    image::{Image, Limits, Range, Row, Service, Way},
    kernel::{AttachMode, Error, Kept, Kernel, Settings, cleanup, let_go},
    name::{ListenerName, ServiceName},
};

/// A namespace with an interface `node0`, whose other end is in another namespace, and a BPF file system.
struct Place {
    node: Ns,
    peer: Ns,
    bpffs: PathBuf,
}

impl Place {
    /// None when this process may not.
    fn new() -> Option<Self> {
        if !privilege::require("attaching to interfaces") {
            return None;
        }
        let (node, peer) = (Ns::new("at").unwrap(), Ns::new("peer").unwrap());
        let bpffs = std::env::temp_dir().join(node.name());
        let place = Self { node, peer, bpffs };
        fs::create_dir_all(&place.bpffs).unwrap();
        tool("mount", &format!("-t bpf bpf {}", place.bpffs.display())).unwrap();
        place.connect();
        Some(place)
    }

    fn connect(&self) {
        let up = End { ns: &self.node, name: "node0", v4: "10.6.0.1", v6: "fd06::1" };
        link(up, End { ns: &self.peer, name: "peer0", v4: "10.6.0.2", v6: "fd06::2" }).unwrap();
    }

    fn settings(&self, attach: AttachMode) -> Settings {
        let bpffs = self.bpffs.clone();
        Settings {
            bpffs,
            attach,
            ports: 61_000..=65_535,
            seed: Some([7; 16]),
            flows: 1_024,
            change_window: Duration::from_hours(1),
            echo: true,
            tunnel: Tunnel::DEFAULT,
            tcx: true,
            receive: Receive::default(),
            events: 0,
            fail_open_after: Duration::from_secs(3),
            connect: None,
        }
    }

    fn start(&self, attach: AttachMode) -> Kernel {
        self.try_start(&self.settings(attach)).unwrap()
    }

    fn try_start(&self, settings: &Settings) -> Result<Kernel, Error> {
        self.node.run(|| Kernel::start(settings))
    }

    fn attach(&self, kernel: &mut Kernel) -> (&'static str, String) {
        self.node.run(|| {
            let attachment = kernel.attach("node0", None).unwrap();
            (attachment.ingress, attachment.why.clone())
        })
    }

    fn pin(&self, name: &str) -> PathBuf {
        self.bpffs.join(PIN_ROOT).join(format!("v{LAYOUT_VERSION}")).join(name)
    }

    fn flow_pin(&self, name: &str) -> PathBuf {
        self.bpffs.join(PIN_ROOT).join(format!("flow-v{FLOW_LAYOUT_VERSION}")).join(name)
    }

    /// Number of the pinned link, and of the program behind it.
    fn link(&self, name: &str) -> (u32, u32) {
        let link = FdLink::from(PinnedLink::from_pin(self.pin(name)).unwrap());
        let info = link.info().unwrap();
        (info.id(), info.program_id())
    }

    /// Links on `node0`, by the names of their pins.
    fn links(&self) -> Vec<String> {
        let entries = fs::read_dir(self.pin("")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name.starts_with("link-"));
        names.sort();
        names
    }

    fn shows_xdp(&self) -> bool {
        self.node.tool("ip", "-details link show dev node0").unwrap().contains("prog/xdp")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(tool("umount", &format!("-l {}", self.bpffs.display())));
        drop(fs::remove_dir(&self.bpffs));
    }
}

fn kept(interface: &str) -> Kept {
    Kept { balanced: BTreeSet::from([interface.to_owned()]), ..Kept::default() }
}

#[test]
fn a_new_agent_replaces_programs_in_place() {
    let Some(place) = Place::new() else { return };
    let mut first = place.start(AttachMode::Auto);
    let hook = place.attach(&mut first);
    assert_eq!(hook, ("native XDP", "the driver supports it".to_owned()));
    place.node.run(|| first.steer()).unwrap();
    let names = ["link-sk_lookup", "link-tc_egress-node0", "link-xdp_balance-node0"];
    assert_eq!(place.links(), names);
    let before = names.map(|name| place.link(name));
    drop(first);
    assert!(place.shows_xdp(), "packets are balanced while no agent runs");

    let mut second = place.start(AttachMode::Auto);
    assert_eq!(names.map(|name| place.link(name)), before, "nothing changes before it is asked to");
    place.attach(&mut second);
    place.node.run(|| second.steer()).unwrap();
    let after = names.map(|name| place.link(name));
    for (before, after) in before.iter().zip(after) {
        assert_eq!(before.0, after.0, "the link is the same");
        assert_ne!(before.1, after.1, "the program is the new agent's");
    }
}

#[test]
fn an_interface_of_the_same_name_is_another_one() {
    let Some(place) = Place::new() else { return };
    let mut kernel = place.start(AttachMode::Auto);
    place.attach(&mut kernel);
    let index = || place.node.run(|| nix::net::if_::if_nametoindex("node0")).unwrap();
    let old = index();
    assert!(kernel.is_attached("node0", old, None));
    place.node.ip("link del node0").unwrap();
    // Another interface takes a number, so that the new one has another.
    place.node.ip("link add other type veth peer name other1").unwrap();
    place.connect();
    assert!(!place.shows_xdp());
    assert_ne!(index(), old);
    assert!(!kernel.is_attached("node0", index(), None));
    place.attach(&mut kernel);
    assert!(kernel.is_attached("node0", index(), None) && place.shows_xdp());

    // The same while no agent runs.
    drop(kernel);
    place.node.ip("link del node0").unwrap();
    place.node.ip("link add another type veth peer name another1").unwrap();
    place.connect();
    let mut kernel = place.start(AttachMode::Auto);
    place.attach(&mut kernel);
    assert!(place.shows_xdp());
}

#[test]
fn hooks_follow_the_configured_mode() {
    let Some(place) = Place::new() else { return };
    let check = |mode, hook: &str, pin: &str, is_xdp: bool| {
        let mut kernel = place.start(mode);
        assert_eq!(place.attach(&mut kernel).0, hook);
        assert_eq!(place.links(), ["link-tc_egress-node0", pin]);
        assert_eq!(place.shows_xdp(), is_xdp, "{hook}");
    };
    let tc = || {
        let mut kernel = place.start(AttachMode::Tc);
        assert_eq!(place.attach(&mut kernel).0, "TC");
        assert_eq!(place.links(), ["link-tc_egress-node0", "link-tc_ingress-node0"]);
        assert!(!place.shows_xdp());
    };
    check(AttachMode::Native, "native XDP", "link-xdp_balance-node0", true);
    check(AttachMode::Generic, "generic XDP", "link-xdp_generic-node0", true);
    tc();
    check(AttachMode::Generic, "generic XDP", "link-xdp_generic-node0", true);
    check(AttachMode::Native, "native XDP", "link-xdp_balance-node0", true);
    tc();
    check(AttachMode::Auto, "native XDP", "link-xdp_balance-node0", true);
}

#[test]
fn a_program_of_somebody_else_stays() {
    let Some(place) = Place::new() else { return };
    let object = fs::read(object_path().unwrap()).unwrap();
    let mut other = EbpfLoader::new().load(&object).unwrap();
    let program: &mut Xdp = other.program_mut("xdp_balance").unwrap().try_into().unwrap();
    program.load().unwrap();
    let id = program.info().unwrap().id();
    place.node.run(|| program.attach("node0", XdpMode::Driver)).unwrap();
    let mut kernel = place.start(AttachMode::Auto);
    let (hook, why) = place.attach(&mut kernel);
    assert_eq!(
        (hook, why.as_str()),
        ("TC", "native XDP was refused: another XDP program holds the interface")
    );
    assert!(
        place
            .node
            .tool("ip", "-details link show dev node0")
            .unwrap()
            .contains(&format!("prog/xdp id {id} "))
    );
    drop(kernel);
    let mut kernel = place.start(AttachMode::Native);
    assert!(matches!(place.node.run(|| kernel.attach("node0", None).map(drop)), Err(Error::Attach { .. })));
}

#[test]
fn interfaces_that_are_not_meant_any_more_are_let_go() {
    let Some(place) = Place::new() else { return };
    let mut kernel = place.start(AttachMode::Auto);
    place.attach(&mut kernel);
    place.node.run(|| kernel.steer()).unwrap();
    kernel.keep_only(&kept("node0")).unwrap();
    assert!(place.shows_xdp());
    drop(kernel);
    let mut kernel = place.start(AttachMode::Auto);
    kernel.keep_only(&kept("eth0")).unwrap();
    assert!(!place.shows_xdp());
    assert_eq!(place.links(), ["link-sk_lookup"]);
    assert!(kernel.attached().is_empty());
}

#[test]
fn steering_follows_the_namespace() {
    let Some(place) = Place::new() else { return };
    let mut kernel = place.start(AttachMode::Auto);
    place.peer.run(|| kernel.steer()).unwrap();
    let elsewhere = place.link("link-sk_lookup").0;
    place.node.run(|| kernel.steer()).unwrap();
    let here = place.link("link-sk_lookup").0;
    assert_ne!(elsewhere, here);
    place.node.run(|| kernel.steer()).unwrap();
    assert_eq!(place.link("link-sk_lookup").0, here);
}

#[test]
fn filters_stand_where_the_kernel_has_no_links_at_tc() {
    let Some(place) = Place::new() else { return };
    let settings = |attach| Settings { tcx: false, ..place.settings(attach) };
    let filters = |side: &str| place.node.tool("tc", &format!("filter show dev node0 {side}")).unwrap();
    let mut kernel = place.try_start(&settings(AttachMode::Tc)).unwrap();
    assert_eq!(place.attach(&mut kernel).0, "TC");
    assert!(filters("ingress").contains("tc_ingress"), "{}", filters("ingress"));
    assert!(filters("egress").contains("tc_egress"));
    drop(kernel);
    let mut kernel = place.try_start(&settings(AttachMode::Native)).unwrap();
    assert_eq!(place.attach(&mut kernel).0, "native XDP");
    assert!(!filters("ingress").contains("tc_ingress"), "a change of the mode takes the filter away");
    place.node.run(|| kernel.keep_only(&Kept::default())).unwrap();
    assert!(!filters("egress").contains("tc_egress"));
    place.attach(&mut kernel);
    drop(kernel);
    let removed = place.node.run(|| cleanup(&place.bpffs)).unwrap();
    assert!(removed.iter().any(|path| path.ends_with("filter-tc_egress-node0")), "{removed:?}");
    assert!(!filters("egress").contains("tc_egress"));
}

/// Priority, handle and program of each filter on one side of an interface.
fn filters(place: &Place, interface: &str, side: &str) -> Vec<(u64, String, u64)> {
    let listed = place.node.tool("tc", &format!("-json filter show dev {interface} {side}")).unwrap();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let of = |filter: &serde_json::Value| {
        let program = filter["options"]["prog"]["id"].as_u64()?;
        let handle = filter["options"]["handle"].as_str()?.to_owned();
        Some((filter["pref"].as_u64()?, handle, program))
    };
    listed.as_array().unwrap().iter().filter_map(of).collect()
}

#[test]
fn filters_are_replaced_in_place_and_those_of_others_stay() {
    let Some(place) = Place::new() else { return };
    let mut other = EbpfLoader::new().load(&fs::read(object_path().unwrap()).unwrap()).unwrap();
    for (name, side) in [("tc_ingress", TcAttachType::Ingress), ("tc_egress", TcAttachType::Egress)] {
        let program: &mut SchedClassifier = other.program_mut(name).unwrap().try_into().unwrap();
        program.load().unwrap();
        place.node.run(|| {
            drop(tc::qdisc_add_clsact("node0"));
            program
                .attach_with_options("node0", side, TcAttachOptions::Netlink(NlOptions::default()))
                .unwrap()
        });
    }
    let sides = ["ingress", "egress"];
    let theirs = sides.map(|side| filters(&place, "node0", side));
    assert_eq!(theirs.each_ref().map(Vec::len), [1, 1]);
    let settings = Settings { tcx: false, ..place.settings(AttachMode::Tc) };
    let start = || {
        let mut kernel = place.try_start(&settings).unwrap();
        assert_eq!(place.attach(&mut kernel).0, "TC");
        sides.map(|side| {
            let mut ours = filters(&place, "node0", side);
            ours.retain(|filter| !theirs.iter().flatten().any(|other| other == filter));
            assert_eq!(ours.len(), 1, "{side}: {ours:?}");
            ours.remove(0)
        })
    };
    let first = start();
    let second = start();
    for (first, second) in first.iter().zip(&second) {
        assert_eq!((first.0, &first.1), (second.0, &second.1), "the filter is the same");
        assert_ne!(first.2, second.2, "the program is the new agent's");
    }
    // An agent that ended after the filter had its program, and before the pin had its name.
    fs::rename(place.pin("filter-tc_ingress-node0"), place.pin("filter-next-tc_ingress-node0")).unwrap();
    let third = start();
    assert_eq!((third[0].0, &third[0].1), (second[0].0, &second[0].1));
    assert!(!place.pin("filter-next-tc_ingress-node0").exists());
    place.node.run(|| cleanup(&place.bpffs)).unwrap();
    assert_eq!(
        sides.map(|side| filters(&place, "node0", side)),
        theirs,
        "what has our names is not ours for that"
    );
}

#[test]
fn filters_are_found_on_interfaces_that_were_renamed() {
    let Some(place) = Place::new() else { return };
    let settings = Settings { tcx: false, ..place.settings(AttachMode::Tc) };
    let rename = |from: &str, to: &str| {
        place.node.tool("ip", &format!("link set dev {from} down")).unwrap();
        place.node.tool("ip", &format!("link set dev {from} name {to}")).unwrap();
        place.node.tool("ip", &format!("link set dev {to} up")).unwrap();
    };
    let count = |interface: &str| ["ingress", "egress"].map(|side| filters(&place, interface, side).len());
    let mut kernel = place.try_start(&settings).unwrap();
    place.attach(&mut kernel);
    rename("node0", "node9");
    assert_eq!(count("node9"), [1, 1]);
    // Under its new name it is another interface.
    place.node.run(|| kernel.attach("node9", None).map(drop)).unwrap();
    place.node.run(|| kernel.keep_only(&kept("node9"))).unwrap();
    assert_eq!(count("node9"), [1, 1], "one filter of ours on each side");
    assert!(!place.pin("filter-tc_ingress-node0").exists() && place.pin("filter-tc_ingress-node9").exists());
    // One that is new gets its own, and the other loses what it has.
    rename("node9", "node8");
    place.node.tool("ip", "link add node9 type veth peer name peer9").unwrap();
    place.node.tool("ip", "link set dev node9 up").unwrap();
    place.node.run(|| kernel.attach("node9", None).map(drop)).unwrap();
    assert_eq!((count("node8"), count("node9")), ([0, 0], [1, 1]));
    rename("node9", "node7");
    drop(kernel);
    place.node.run(|| cleanup(&place.bpffs)).unwrap();
    assert_eq!(count("node7"), [0, 0]);
}

#[test]
fn a_pin_that_cannot_be_removed_keeps_none_of_the_others() {
    let Some(place) = Place::new() else { return };
    let settings = Settings { tcx: false, ..place.settings(AttachMode::Tc) };
    let mut kernel = place.try_start(&settings).unwrap();
    // A folder is no program whose filter could be found.
    let odd = ["aaa", "zzz"].map(|interface| place.pin(&format!("filter-tc_ingress-{interface}")));
    let count = || ["ingress", "egress"].map(|side| filters(&place, "node0", side).len());
    place.attach(&mut kernel);
    for path in &odd {
        fs::create_dir(path).unwrap();
    }
    let kept = place.node.run(|| kernel.keep_only(&Kept::default()));
    assert!(matches!(kept, Err(Error::Filter { .. })), "{kept:?}");
    assert_eq!(count(), [0, 0]);
    assert!(odd.iter().all(|path| path.exists()) && !place.pin("filter-tc_ingress-node0").exists());
    place.attach(&mut kernel);
    drop(kernel);
    for end in [let_go, cleanup] {
        let ended = place.node.run(|| end(&place.bpffs));
        assert!(matches!(ended, Err(Error::Filter { .. })), "{ended:?}");
        assert_eq!(count(), [0, 0]);
        assert!(place.pin("services").exists(), "maps stay while a hook does");
    }
}

#[test]
fn a_filter_is_found_by_a_pin_of_a_hook_that_is_not_known() {
    let Some(place) = Place::new() else { return };
    let settings = Settings { tcx: false, ..place.settings(AttachMode::Tc) };
    let mut kernel = place.try_start(&settings).unwrap();
    place.attach(&mut kernel);
    drop(kernel);
    // As an agent of another version may have called it.
    fs::rename(place.pin("filter-tc_egress-node0"), place.pin("filter-tc_other-node0")).unwrap();
    place.node.run(|| cleanup(&place.bpffs)).unwrap();
    assert_eq!(["ingress", "egress"].map(|side| filters(&place, "node0", side).len()), [0, 0]);
}

#[test]
fn interfaces_may_have_dots_in_their_names() {
    let Some(place) = Place::new() else { return };
    place.node.ip("link add veth.100 type veth peer name veth.200").unwrap();
    place.node.ip("link set veth.100 up").unwrap();
    for tcx in [true, false] {
        let settings = Settings { tcx, ..place.settings(AttachMode::Auto) };
        let mut kernel = place.try_start(&settings).unwrap();
        let hook = place.node.run(|| kernel.attach("veth.100", None).unwrap().ingress);
        assert_eq!(hook, "native XDP");
        let shown = || place.node.tool("ip", "-details link show dev veth.100").unwrap();
        let keep = |kernel: &mut Kernel, interface: &str| {
            place.node.run(|| kernel.keep_only(&kept(interface))).unwrap();
        };
        keep(&mut kernel, "veth.100");
        assert!(shown().contains("prog/xdp"));
        keep(&mut kernel, "veth.200");
        assert!(!shown().contains("prog/xdp"));
        let egress = place.node.tool("tc", "filter show dev veth.100 egress").unwrap();
        assert!(!egress.contains("tc_egress"), "{egress}");
    }
}

#[test]
fn two_agents_do_not_share_pins() {
    let Some(place) = Place::new() else { return };
    let first = place.start(AttachMode::Auto);
    let second = place.try_start(&place.settings(AttachMode::Auto));
    assert!(matches!(second, Err(Error::Locked { .. })));
    assert!(matches!(cleanup(&place.bpffs), Err(Error::Locked { .. })));
    drop(first);
    place.start(AttachMode::Auto);
}

#[test]
fn a_pinned_map_keeps_its_size_and_must_be_of_its_kind() {
    let Some(place) = Place::new() else { return };
    drop(place.start(AttachMode::Auto));
    let flows = || MapInfo::from_pin(place.flow_pin("flows")).unwrap().max_entries();
    assert_eq!(flows(), 512, "buckets of four, half of whose places stay free");
    let larger = Settings { flows: 2_048, ..place.settings(AttachMode::Auto) };
    drop(place.try_start(&larger).unwrap());
    assert_eq!(flows(), 512);

    fs::remove_file(place.pin("services")).unwrap();
    let path = place.pin("services");
    tool("bpftool", &format!("map create {} type hash key 20 value 32 entries 16 name x", path.display()))
        .unwrap();
    match place.try_start(&larger) {
        Err(error @ Error::ForeignPin { .. }) => {
            assert!(error.to_string().contains("sluice cleanup"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn ports_of_the_node_itself_are_refused() {
    let Some(place) = Place::new() else { return };
    let settings = Settings { ports: 40_000..=50_000, ..place.settings(AttachMode::Auto) };
    match place.try_start(&settings) {
        Err(error @ Error::PortsOverlap { .. }) => assert!(error.to_string().contains("ip_local_port_range")),
        other => panic!("{other:?}"),
    }
    assert!(!place.bpffs.join(PIN_ROOT).exists(), "nothing was loaded");
}

#[test]
fn cleanup_leaves_nothing() {
    let Some(place) = Place::new() else { return };
    let mut kernel = place.start(AttachMode::Auto);
    place.attach(&mut kernel);
    place.node.run(|| kernel.steer()).unwrap();
    drop(kernel);
    let removed = place.node.run(|| cleanup(&place.bpffs)).unwrap();
    let first: Vec<bool> =
        removed.iter().map(|path| path.file_name().unwrap().to_str().unwrap().starts_with("link-")).collect();
    let tables = first.len() - removed.iter().filter(|path| path.starts_with(place.flow_pin(""))).count();
    assert!(first[first.len() - tables..].is_sorted_by(|a, b| a >= b), "links before tables: {removed:?}");
    assert!(!place.shows_xdp() && !place.bpffs.join(PIN_ROOT).exists());
    assert_eq!(place.node.run(|| cleanup(&place.bpffs)).unwrap(), Vec::<PathBuf>::new());
}

const VIRTUAL: [u8; 4] = [198, 51, 100, 1];

fn key() -> ServiceKey {
    ServiceKey::new(Addr::v4(VIRTUAL), Port::new(80), Protocol::TCP)
}

/// One service over `n` endpoints, and ways to them.
fn balanced(registry: &Registry, n: u16) -> (Arc<Image>, HashMap<IpAddr, Way>) {
    let ip = |n: u16| IpAddr::from([10, 1, n.to_be_bytes()[0], n.to_be_bytes()[1]]);
    let row = |local: u16| Row {
        row: u32::from(local),
        local: Some(local),
        generation: 1,
        backend_weight: 1,
        endpoint: registry.resolve(&EndpointId {
            service: ServiceName::new("web"),
            addr: SocketAddr::new(ip(local), 8080),
        }),
    };
    let n_slots = size_class(u32::from(n));
    let service = Service {
        limits: Limits::default(),
        key: key(),
        listener: ListenerName::new("web"),
        id: 0,
        mode: Mode::NAT,
        track: Track::ALWAYS,
        affinity: None,
        resets: false,
        ports: Vec::new(),
        rows: Range { first: 0, count: 1_024 },
        n_slots,
        chunks: [0, SlotChunk::chunks_for(n_slots)],
        sockets: Range::default(),
        cookie_rate: None,
        fails_open: false,
        endpoints: (0..n).map(row).collect(),
    };
    let way = Way { source: Some(IpAddr::from([10, 6, 0, 1])), ..Way::default() };
    (
        Arc::new(Image { services: vec![Arc::new(service)], ..Image::default() }),
        (0..n).map(|n| (ip(n), way)).collect(),
    )
}

#[test]
fn a_change_of_health_stands_in_the_maps_within_a_millisecond_of_the_writer() {
    let Some(place) = Place::new() else { return };
    let registry = Registry::default();
    let mut kernel = place.start(AttachMode::Auto);
    let (image, ways) = balanced(&registry, 10);
    kernel.set_ways(ways).unwrap();
    kernel.apply(Arc::clone(&image)).unwrap();
    let endpoint = Arc::clone(&image.services[0].endpoints[3].endpoint);
    let mut took: Vec<Duration> = (0..50)
        .map(|round| {
            std::thread::sleep(Duration::from_millis(2));
            endpoint.set_health(if round % 2 == 0 { Health::Down } else { Health::Up });
            let started = Instant::now();
            let written = kernel.publish(&registry.changes().take()).unwrap();
            let took = started.elapsed();
            assert_eq!((written.rows, written.tables, written.services), (1, 1, 1));
            took
        })
        .collect();
    took.sort();
    println!(
        "row, {} slots and service: median {:?}, worst {:?}",
        image.services[0].n_slots, took[25], took[49]
    );
    // Builds without optimization make the table ten times slower than a release.
    let bound = if cfg!(debug_assertions) { Duration::from_millis(10) } else { Duration::from_millis(1) };
    assert!(took[25] < bound, "{took:?}");
}

#[test]
fn another_agent_finds_what_stands() {
    let Some(place) = Place::new() else { return };
    let registry = Registry::default();
    let mut first = place.start(AttachMode::Auto);
    let (image, ways) = balanced(&registry, 5);
    image.services[0].endpoints[2].endpoint.set_health(Health::Down);
    first.set_ways(ways).unwrap();
    first.apply(Arc::clone(&image)).unwrap();
    let before = first.written().clone();
    assert_eq!(before.endpoints[&2].state, EndpointState::DOWN);
    assert!(before.slots[&key()].iter().all(|slot| slot.endpoint < 5 && slot.endpoint != 2));
    drop(first);
    let mut second = place.start(AttachMode::Auto);
    assert_eq!(second.written(), &before);
    let written = second.apply(image).unwrap();
    assert_eq!((written.rows, written.tables, written.services), (0, 0, 0), "nothing moves");
    assert_eq!(second.gap(), 0);
}
