//! Local pods: clients behind the node's own interfaces, which come and go while others are served.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs, io, thread,
    time::{Duration, Instant},
};

use gateway_tests::{
    agent::{get, metric},
    cgroup::Cgroup,
    client::{self, Answer, Load},
    netns::{End, Ns, link},
    node::{HTTP, Node, UDP},
    origin::Origin,
    privilege,
};

use super::{L4, ROUTES, addr, alone, ask_l4, config, until};

/// A virtual address of the other family.
const L4_V6: &str = "fd08::2";

/// A pod with the node as its gateway.
fn pod(node: &Node, idx: u8) -> Ns {
    let ns = Ns::new(&format!("p{idx}")).unwrap();
    let (v4, v6) = (format!("10.7.{}", 100 + idx), format!("fd07:{}::", 100 + idx));
    link(
        End { ns: &ns, name: "eth0", v4: &format!("{v4}.2"), v6: &format!("{v6}2") },
        End { ns: &node.node, name: &format!("pod-{idx}"), v4: &format!("{v4}.1"), v6: &format!("{v6}1") },
    )
    .unwrap();
    // As pods are: without anything that makes their interface take frames of XDP.
    ns.tool("ethtool", "-K eth0 gro off").unwrap();
    ns.ip(&format!("route add default via {v4}.1")).unwrap();
    ns.ip(&format!("-6 route add default via {v6}1")).unwrap();
    ns
}

fn attachments(node: &Node) -> serde_json::Value {
    let (_, text) = node.node.run(|| get("/dump")).unwrap();
    serde_json::from_str::<serde_json::Value>(&text).unwrap()["kernel"]["attachments"].clone()
}

fn pins(node: &Node) -> Vec<String> {
    let entries = fs::read_dir(node.pins()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("pod-")).collect()
}

#[test]
fn pods_come_and_go_while_others_are_served() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(2).unwrap();
    let first = pod(&node, 1);
    let text = config(&node, "required", &[0, 1], ROUTES)
        .replace("    attach: native\n", "    attach: auto\n    pods: [\"pod-*\"]\n");
    node.start_agent(&text).unwrap();
    let patience = Duration::from_secs(5);
    until("the first pod is served", patience, &node, || first.run(ask_l4).is_ok());
    let names: BTreeSet<String> = (0..40).map(|_| first.run(ask_l4).unwrap()).collect();
    assert_eq!(names.len(), 2, "a pod's flows are spread: {names:?}");
    assert_eq!(attachments(&node)["pod-1"]["ingress"], "TC");
    let why = attachments(&node)["sl-client"]["why"].to_string();
    assert!(why.contains("pods"), "{why}");

    let started = Instant::now();
    let inside = Load::start(&first, 2, 50, ask_l4);
    let outside = Load::start(&node.client, 2, 50, ask_l4);
    for idx in 2..6 {
        let another = pod(&node, idx);
        until("another pod is served", patience, &node, || another.run(ask_l4).is_ok());
        // The kernel serves it from the attachment on, which is pinned after that.
        let pin = format!("link-tc_ingress-pod-{idx}");
        until("its attachment is pinned", patience, &node, || pins(&node).contains(&pin));
        // One goes with its namespace, another's interface is taken away first.
        if idx % 2 == 0 {
            node.node.ip(&format!("link del pod-{idx}")).unwrap();
        }
        drop(another);
        until("nothing is left of it", patience, &node, || {
            pins(&node).iter().all(|pin| pin.ends_with("-pod-1"))
        });
    }
    // Where pods come and go in less than a second, there is still to be a load of some length.
    thread::sleep(Duration::from_secs(2).saturating_sub(started.elapsed()));
    for (where_from, load) in [("the pod", inside), ("outside", outside)] {
        let answers = load.stop();
        let failed: Vec<&Answer> = answers.iter().filter(|answer| answer.from.is_err()).collect();
        assert!(failed.is_empty(), "{where_from}: {} of {}, {:?}", failed.len(), answers.len(), failed[0]);
        assert!(answers.len() > 50, "{where_from}: only {}", answers.len());
    }
}

/// What clients ask for: a name, the virtual address, its port, and whether over UDP.
const KINDS: [(&str, &str, u16, bool); 4] = [
    ("tcp4", L4, HTTP, false),
    ("udp4", L4, UDP, true),
    ("tcp6", L4_V6, HTTP, false),
    ("udp6", L4_V6, UDP, true),
];

/// A listener of each kind over the hosts with these addresses, of which each has one of either family.
fn all_kinds(node: &Node, agent: &str, hosts: &[(String, String)]) -> String {
    let (mut listeners, mut routes, mut services) = (String::new(), String::new(), String::new());
    for (name, vip, port, is_udp) in KINDS {
        let protocol = if is_udp { "UDP" } else { "TCP" };
        writeln!(listeners, "  - {{ name: {name}, address: \"{vip}\", port: {port}, protocol: {protocol} }}")
            .unwrap();
        writeln!(
            routes,
            "  - {{ name: {name}, listeners: [{name}], rules: [ {{ backends: [ {{ service: {name} }} ] }} ] }}"
        )
        .unwrap();
        let end = |(v4, v6): &(String, String)| {
            format!("{{ address: \"{}\", port: {port} }}", if vip.contains(':') { v6 } else { v4 })
        };
        let ends: Vec<String> = hosts.iter().map(end).collect();
        writeln!(services, "  - {{ name: {name}, endpoints: [ {} ] }}", ends.join(", ")).unwrap();
    }
    let head = node.agent_part("required").replace("    attach: native\n", agent);
    format!("{head}listeners:\n{listeners}routes:\n{routes}services:\n{services}")
}

fn ask(ns: &Ns, (_, vip, port, is_udp): (&str, &str, u16, bool)) -> io::Result<String> {
    let (to, patience) = (addr(vip, port), Duration::from_millis(500));
    ns.run(|| {
        if is_udp {
            client::who_udp(to, patience)
        } else {
            client::get(to, "l4", "/", patience).map(|(_, body)| body)
        }
    })
}

/// Packets at a hook that ended so.
fn ended(node: &Node, hook: &str, reason: &str) -> f64 {
    let text = node.node.run(|| get("/metrics")).unwrap().1;
    let name = format!("sluice_packets_total{{hook=\"{hook}\",reason=\"{reason}\"}}");
    metric(&text, &name).unwrap_or(0.0)
}

const AT_TC: &str = "    attach: auto\n    pods: [\"pod-*\"]\n";

#[test]
fn pods_are_served_over_both_families_and_protocols() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(2).unwrap();
    let pod = pod(&node, 1);
    let hosts = [0, 1].map(|idx| (Node::v4(idx), Node::v6(idx)));
    let text = all_kinds(&node, AT_TC, &hosts);
    node.start_agent(&text).unwrap();
    let both = BTreeSet::from(["e1".to_owned(), "e2".to_owned()]);
    for kind in KINDS {
        until(kind.0, Duration::from_secs(5), &node, || ask(&pod, kind).is_ok());
        let before = (ended(&node, "tc_ingress", "forwarded"), ended(&node, "tc_ingress", "replied"));
        let names: BTreeSet<String> = (0..40).map(|_| ask(&pod, kind).unwrap()).collect();
        assert_eq!(names, both, "{}", kind.0);
        let after = (ended(&node, "tc_ingress", "forwarded"), ended(&node, "tc_ingress", "replied"));
        assert!(after.0 >= before.0 + 40.0 && after.1 >= before.1 + 40.0, "{}: {before:?} {after:?}", kind.0);
        // Others are served at the same time.
        assert!(both.contains(&ask(&node.client, kind).unwrap()), "{}", kind.0);
    }
}

#[test]
fn a_pod_that_is_an_endpoint_reaches_itself() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(1).unwrap();
    let pod = pod(&node, 1);
    let _origin = Origin::start(&pod, "p1").unwrap();
    let text = all_kinds(&node, AT_TC, &[("10.7.101.2".to_owned(), "fd07:101::2".to_owned())]);
    node.start_agent(&text).unwrap();
    for kind in KINDS {
        until(kind.0, Duration::from_secs(5), &node, || ask(&pod, kind).is_ok());
        let before = (ended(&node, "tc_ingress", "forwarded"), ended(&node, "tc_ingress", "replied"));
        for _ in 0..20 {
            assert_eq!(ask(&pod, kind).unwrap(), "p1", "{}", kind.0);
        }
        let after = (ended(&node, "tc_ingress", "forwarded"), ended(&node, "tc_ingress", "replied"));
        assert!(after.0 >= before.0 + 20.0 && after.1 >= before.1 + 20.0, "{}: {before:?} {after:?}", kind.0);
        assert_eq!(ask(&node.client, kind).unwrap(), "p1", "{} from elsewhere", kind.0);
    }
}

#[test]
fn an_endpoint_on_the_node_is_served_over_both_families_and_protocols() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let group = Cgroup::enter().unwrap();
    let mut node = Node::new(1).unwrap();
    let _origin = Origin::start(&node.node, "here").unwrap();
    let agent = format!("    attach: native\n    connect: {{ cgroup: {} }}\n", group.path().display());
    let hosts = [("10.7.0.1".to_owned(), "fd07::1".to_owned())];
    let text = all_kinds(&node, &agent, &hosts);
    node.start_agent(&text).unwrap();
    for kind in KINDS {
        until(kind.0, Duration::from_secs(5), &node, || ask(&node.client, kind).is_ok());
        let before = (ended(&node, "xdp_balance", "forwarded_local"), ended(&node, "tc_egress", "replied"));
        for _ in 0..20 {
            assert_eq!(ask(&node.client, kind).unwrap(), "here", "{}", kind.0);
        }
        let after = (ended(&node, "xdp_balance", "forwarded_local"), ended(&node, "tc_egress", "replied"));
        assert!(after.0 >= before.0 + 20.0 && after.1 >= before.1 + 20.0, "{}: {before:?} {after:?}", kind.0);
        // A process of the node is a client, too, and its own endpoint: that is settled at its socket.
        assert_eq!(ask(&node.node, kind).unwrap(), "here", "{} from the node", kind.0);
    }
}
