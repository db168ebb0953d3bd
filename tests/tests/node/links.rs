//! Links that are no plain cards: VLANs, one in another, bonds and bridges, with clients and endpoints behind each.
//!
//! Not every kernel has them all: `cargo xtask kernel-matrix` runs this on Debian's, with cards of the emulated machine.

use std::collections::{BTreeMap, BTreeSet};

use gateway_tests::{netns::tool, origin::Origin};

use super::*;

const L6: &str = "fd08::2";
/// What endpoints answer by themselves.
const D4: &str = "10.8.0.3";
const D6: &str = "fd08::3";

/// An emulated machine is slow.
const PATIENCE: Duration = Duration::from_mins(1);

/// Whether this kernel makes links of these kinds. Says that the test is skipped when it does not.
fn require(kinds: &[&str]) -> bool {
    if !privilege::require("network namespaces") {
        return false;
    }
    let ns = Ns::new("kinds").unwrap();
    ns.ip("link add v0 type veth peer name v1").unwrap();
    let has = |kind: &&str| match *kind {
        "vlan" => ns.ip("link add link v0 name v0.5 type vlan id 5").is_ok(),
        "card" => privilege::is_emulated(),
        kind => ns.ip(&format!("link add a-{kind} type {kind}")).is_ok(),
    };
    let missing: Vec<&&str> = kinds.iter().filter(|kind| !has(kind)).collect();
    // The machines of the kernel matrix have everything.
    assert!(missing.is_empty() || !privilege::is_emulated(), "no {missing:?} here");
    if !missing.is_empty() {
        eprintln!("skipped: this kernel has no {missing:?}; `cargo xtask kernel-matrix` has");
    }
    missing.is_empty()
}

/// What lies between a namespace and the node.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Plain,
    /// One tag.
    Vlan,
    /// Two tags: of a service provider, and inside it one's own.
    Stacked,
    Bond,
    /// A tag over two cards.
    BondVlan,
    /// The node's end is a member of a bridge.
    Bridge,
}

/// Makes the top of one end of a link over the cards that it has there; its name.
fn top(ns: &Ns, cards: [&str; 2], kind: Kind, is_node: bool) -> String {
    let [card, _] = cards;
    let over = |below: &str, rest: &str, id: u16| {
        let name = format!("{below}.{id}");
        ns.ip(&format!("link add link {below} name {name} type vlan {rest} id {id}")).unwrap();
        ns.ip(&format!("link set {name} up")).unwrap();
        name
    };
    let bond = || {
        let name = format!("{card}b");
        ns.ip(&format!("link add {name} type bond mode balance-xor miimon 100")).unwrap();
        for card in cards {
            ns.ip(&format!("link set {card} down")).unwrap();
            ns.ip(&format!("link set {card} master {name}")).unwrap();
        }
        ns.ip(&format!("link set {name} up")).unwrap();
        name
    };
    match kind {
        Kind::Vlan => over(card, "", 5),
        Kind::Stacked => over(&over(card, "proto 802.1ad", 100), "", 7),
        Kind::Bond => bond(),
        Kind::BondVlan => over(&bond(), "", 9),
        Kind::Bridge if is_node => {
            let name = format!("{card}r");
            ns.ip(&format!("link add {name} type bridge")).unwrap();
            ns.ip(&format!("link set {card} master {name}")).unwrap();
            ns.ip(&format!("link set {name} up")).unwrap();
            name
        }
        Kind::Plain | Kind::Bridge => card.to_owned(),
    }
}

/// Two cards in each of two namespaces, each with one in the other; as a kernel makes them.
fn cards(a: &Ns, b: &Ns, number: usize) {
    for letter in ["x", "y"] {
        let peer = format!("type veth peer name n{number}{letter} netns {}", b.name());
        a.ip(&format!("link add n{number}{letter} {peer}")).unwrap();
        // A VLAN comes up over what is up alone.
        for ns in [a, b] {
            ns.ip(&format!("link set n{number}{letter} up")).unwrap();
        }
    }
}

/// Connects a namespace to the node by a network of its own, and leads everything to the node. The name of the node's end.
fn connect(node: &Ns, ns: &Ns, number: usize, kind: Kind) -> String {
    cards(ns, node, number);
    let names = [format!("n{number}x"), format!("n{number}y")];
    let names = [names[0].as_str(), names[1].as_str()];
    settle(node, ns, number, [top(node, names, kind, true), top(ns, names, kind, false)], &names)
}

/// Gives both ends of a link their addresses.
fn settle(node: &Ns, ns: &Ns, number: usize, [here, there]: [String; 2], cards: &[&str]) -> String {
    for (ns, top, host) in [(node, &here, 1), (ns, &there, 2)] {
        ns.ip(&format!("addr add 10.6.{number}.{host}/24 dev {top}")).unwrap();
        ns.ip(&format!("addr add fd06:{number}::{host}/64 dev {top} nodad")).unwrap();
        for card in cards.iter().copied().chain([top.as_str()]) {
            ns.ip(&format!("link set {card} up")).unwrap();
        }
    }
    ns.ip(&format!("route add default via 10.6.{number}.1")).unwrap();
    ns.ip(&format!("-6 route add default via fd06:{number}::1")).unwrap();
    here
}

/// Two ways of forwarding for each family, over these endpoints.
fn config(node: &Node, numbers: &[usize]) -> String {
    let listener = |name: &str, addr: &str, forwarding: &str| {
        format!(
            "  - {{ name: {name}, address: \"{addr}\", port: {HTTP}, protocol: TCP, forwarding: {forwarding} }}\n"
        )
    };
    let all = [("n4", L4, "nat"), ("n6", L6, "nat"), ("d4", D4, "dsr-l2"), ("d6", D6, "dsr-l2")];
    let mut text = node
        .agent_part("required")
        .replace("    interfaces: [\"sl-*\"]\n", "")
        .replace("    attach: native\n", "")
        + "listeners:\n";
    for (name, addr, forwarding) in all {
        text += &listener(name, addr, forwarding);
    }
    text += "routes:\n";
    for (name, ..) in all {
        let service = if name.ends_with('4') { "s4" } else { "s6" };
        let rule = format!("{{ backends: [ {{ service: {service} }} ] }}");
        writeln!(text, "  - {{ name: {name}, listeners: [{name}], rules: [ {rule} ] }}").unwrap();
    }
    text += "services:\n";
    for (name, net, host) in [("s4", "10.6.", ".2"), ("s6", "fd06:", "::2")] {
        let end = |number: &usize| format!("{{ address: \"{net}{number}{host}\", port: {HTTP} }}");
        let ends: Vec<String> = numbers.iter().map(end).collect();
        writeln!(text, "  - {{ name: {name}, endpoints: [ {} ] }}", ends.join(", ")).unwrap();
    }
    text
}

/// An endpoint that also answers for what it is sent as it came.
fn origin(ns: &Ns, number: usize) -> Origin {
    ns.ip(&format!("addr add {D4}/32 dev lo")).unwrap();
    ns.ip(&format!("addr add {D6}/128 dev lo nodad")).unwrap();
    Origin::start(ns, &format!("e{number}")).unwrap()
}

/// Answers of endpoints pass the node as those of a router, with its own address as their source.
fn route(node: &Ns) {
    for setting in [
        "net.ipv4.ip_forward=1",
        "net.ipv4.conf.all.accept_local=1",
        "net.ipv4.conf.all.rp_filter=0",
        "net.ipv4.conf.default.rp_filter=0",
        "net.ipv6.conf.all.forwarding=1",
    ] {
        node.tool("sysctl", &format!("-qw {setting}")).unwrap();
    }
}

fn attachments(node: &Node) -> BTreeMap<String, (String, String)> {
    let answered = (0..20).find_map(|_| node.node.run(|| get("/dump")));
    let (_, dump) = answered.unwrap_or_else(|| panic!("no dump\n{}", node.agent().log()));
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let attachments = dump["kernel"]["attachments"].as_object().unwrap();
    attachments.iter().map(|(name, one)| (name.clone(), (text(&one["ingress"]), text(&one["why"])))).collect()
}

/// Asks through every listener until each of these endpoints has answered there.
fn reaches(node: &Node, client: &Ns, who: &str, wanted: &BTreeSet<String>) {
    for to in [L4, L6, D4, D6] {
        let to = addr(to, HTTP);
        until(&format!("the first answer to {who} from {to}"), PATIENCE, node, || {
            client.run(|| client::get(to, "l4", "/", PATIENCE)).is_ok()
        });
        let mut seen = BTreeSet::new();
        for _ in 0..80 {
            let (_, name) = client
                .run(|| client::get(to, "l4", "/", PATIENCE))
                .unwrap_or_else(|error| panic!("{who} asks {to}, {seen:?}: {error}\n{}", node.agent().log()));
            seen.insert(name);
            if seen == *wanted {
                break;
            }
        }
        assert_eq!(seen, *wanted, "{who} asks {to}");
    }
}

#[test]
fn every_kind_of_link_is_found_and_balanced_for_clients_and_endpoints() {
    if !require(&["vlan", "bond", "bridge"]) {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(0).unwrap();
    route(&node.node);
    let ends = [(1, Kind::Plain), (2, Kind::Vlan), (3, Kind::Bridge), (4, Kind::Bond)];
    let (mut kept, mut expected) = (Vec::new(), BTreeSet::new());
    for (number, kind) in ends {
        let ns = Ns::new(&format!("e{number}")).unwrap();
        expected.insert(connect(&node.node, &ns, number, kind));
        kept.push((origin(&ns, number), ns));
    }
    let uplinks = [
        (11, Kind::Plain),
        (12, Kind::Vlan),
        (13, Kind::Stacked),
        (14, Kind::Bond),
        (15, Kind::BondVlan),
        (16, Kind::Bridge),
    ];
    let mut clients = Vec::new();
    for (number, kind) in uplinks {
        let ns = Ns::new(&format!("c{number}")).unwrap();
        let top = connect(&node.node, &ns, number, kind);
        // Whoever is asked to choose finds them by the default routes.
        for (family, via) in [("-4", format!("10.6.{number}.2")), ("-6", format!("fd06:{number}::2"))] {
            node.node.ip(&format!("{family} route add default via {via} dev {top} metric {number}")).unwrap();
        }
        expected.insert(top);
        clients.push((kind, ns));
    }
    let text = config(&node, &ends.map(|(number, _)| number));
    node.start_agent(&text).unwrap();
    let names = || attachments(&node).into_keys().collect::<BTreeSet<_>>();
    until("every interface has its programs", PATIENCE, &node, || names().len() >= expected.len());
    assert_eq!(names(), expected, "{}", node.agent().log());
    assert!(attachments(&node).values().all(|(ingress, _)| ingress == "TC"), "{:?}", attachments(&node));
    let wanted: BTreeSet<String> = ends.iter().map(|(number, _)| format!("e{number}")).collect();
    for (kind, client) in &clients {
        reaches(&node, client, &format!("{kind:?}"), &wanted);
    }
    drop(kept);
}

#[test]
fn a_bond_of_cards_that_take_frames_may_have_xdp() {
    if !require(&["bond"]) {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(0).unwrap();
    let (end, client) = (Ns::new("e1").unwrap(), Ns::new("c2").unwrap());
    connect(&node.node, &end, 1, Kind::Plain);
    connect(&node.node, &client, 2, Kind::Bond);
    // As `netns::link` does it: what XDP sends is taken, and carries its checksum.
    for (ns, cards) in
        [(&end, &["n1x"][..]), (&client, &["n2x", "n2y"]), (&node.node, &["n1x", "n2x", "n2y"])]
    {
        for card in cards {
            ns.tool("ethtool", &format!("-K {card} tx off gro on")).unwrap();
        }
    }
    let _origin = origin(&end, 1);
    node.node.ip("route add default via 10.6.2.2 dev n2xb").unwrap();
    let text =
        config(&node, &[1]).replace("    mode: required\n", "    mode: required\n    attach: native\n");
    node.start_agent(&text).unwrap();
    let (ingress, why) = attachments(&node).remove("n2xb").unwrap();
    assert_eq!(ingress, "native XDP");
    assert!(why.contains("although"), "{why}");
    for to in [L4, L6] {
        for _ in 0..10 {
            let answer = client.run(|| client::get(addr(to, HTTP), "l4", "/", PATIENCE));
            assert_eq!(answer.unwrap().1, "e1");
        }
    }
}

#[test]
fn a_default_route_over_several_interfaces_names_them_all() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(0).unwrap();
    route(&node.node);
    let end = Ns::new("e1").unwrap();
    connect(&node.node, &end, 1, Kind::Plain);
    let _origin = origin(&end, 1);
    let clients: Vec<Ns> = (2..4)
        .map(|number| {
            let ns = Ns::new(&format!("c{number}")).unwrap();
            connect(&node.node, &ns, number, Kind::Plain);
            ns
        })
        .collect();
    for (family, net, host) in [("-4", "10.6.", ".2"), ("-6", "fd06:", "::2")] {
        let hop = |number: u8| format!("nexthop via {net}{number}{host} dev n{number}x");
        node.node.ip(&format!("{family} route add default {} {}", hop(2), hop(3))).unwrap();
    }
    let text = config(&node, &[1]);
    node.start_agent(&text).unwrap();
    let names: Vec<String> = attachments(&node).into_keys().collect();
    assert_eq!(names, ["n1x", "n2x", "n3x"], "{}", node.agent().log());
    for client in &clients {
        reaches(&node, client, "a client", &BTreeSet::from(["e1".to_owned()]));
    }
}

#[test]
fn a_card_has_xdp_as_long_as_all_others_take_its_frames() {
    if !require(&["vlan", "card"]) {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(0).unwrap();
    route(&node.node);
    // Endpoints behind a card, over which everybody else comes, too.
    let end = Ns::new("e1").unwrap();
    for (ns, card) in [(&node.node, "eth0"), (&end, "eth1")] {
        tool("ip", &format!("link set {card} netns {}", ns.name())).unwrap();
    }
    settle(&node.node, &end, 1, ["eth0".to_owned(), "eth1".to_owned()], &[]);
    let _origin = origin(&end, 1);
    let only = BTreeSet::from(["e1".to_owned()]);
    let client = Ns::new("c2").unwrap();
    connect(&node.node, &client, 2, Kind::Vlan);
    node.node.ip("route add default via 10.6.2.2 dev n2x.5").unwrap();
    let text = config(&node, &[1]);
    node.start_agent(&text).unwrap();
    let at = |name: &str| attachments(&node).get(name).cloned().unwrap_or_default();
    let (ingress, why) = at("eth0");
    assert_eq!(ingress, "TC", "{why}");
    assert!(why.contains("clients come over n2x.5"), "{why}");

    reaches(&node, &client, "a client behind a VLAN", &only);

    // A second one on the card's own link, and the first one goes.
    node.node.ip("route add default via 10.6.1.2 dev eth0 metric 9").unwrap();
    node.node.ip("link del n2x").unwrap();
    until("the card alone has programs, and XDP", PATIENCE, &node, || {
        at("eth0").0 == "native XDP" && attachments(&node).len() == 1
    });
    let neighbor = Ns::new("c3").unwrap();
    connect(&end, &neighbor, 3, Kind::Plain);
    route(&end);
    for (family, net) in [("-4", "10.6.3.0/24 via 10.6.1.2"), ("-6", "fd06:3::/64 via fd06:1::2")] {
        node.node.ip(&format!("{family} route add {net}")).unwrap();
    }
    // Its router has these addresses itself.
    for (family, addr, via) in [("-4", L4, "10.6.1.1"), ("-6", L6, "fd06:1::1")] {
        end.ip(&format!("{family} route add {addr} via {via}")).unwrap();
    }
    for to in [L4, L6] {
        let to = addr(to, HTTP);
        until(&format!("{to} is answered over XDP"), PATIENCE, &node, || {
            neighbor.run(|| client::get(to, "l4", "/", PATIENCE)).is_ok()
        });
    }

    // A VLAN comes to lie over the card.
    node.node.ip("link add link eth0 name eth0.6 type vlan id 6").unwrap();
    until("the card has TC again", PATIENCE, &node, || at("eth0").1.contains("VLANs lie over it"));
}
