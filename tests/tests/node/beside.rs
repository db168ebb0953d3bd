//! Beside nftables, which translates addresses on the same interfaces, and beside programs of others on them.

use std::{collections::BTreeSet, fs, net::SocketAddr, time::Duration};

use aya::{
    Ebpf, EbpfLoader,
    maps::PerCpuArray,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode,
        tc::{NlOptions, TcAttachOptions},
    },
};
use gateway_common::counter::{Hook, Reason};
use gateway_tests::{
    agent::{Agent, get, metric, sluice},
    client,
    kernel_run::object_path,
    node::{HTTP, Node},
    privilege,
};

use super::{PATIENCE, ROUTES, STARTING, addr, alone, ask_l4, config, until};

/// A port of the node's own address that nftables leads to the first endpoint.
const FORWARDED: u16 = 7_070;

fn nft(node: &Node, lines: &[String]) {
    for line in lines {
        let output = node.node.command("nft").arg(line).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Translation of destinations from the client's interface, and of sources to the endpoints'.
fn translate(node: &Node) {
    let target = format!("{}:{HTTP}", Node::v4(0));
    nft(
        node,
        &[
            "add table ip nat".to_owned(),
            "add chain ip nat pre { type nat hook prerouting priority -100; }".to_owned(),
            "add chain ip nat post { type nat hook postrouting priority 100; }".to_owned(),
            format!(
                "add rule ip nat pre iifname sl-client ip daddr 10.7.0.1 tcp dport {FORWARDED} dnat to {target}"
            ),
            "add rule ip nat post oifname sl-e* counter masquerade".to_owned(),
            // What our programs send never comes here; whatever does is to be seen.
            "add chain ip nat forwarded { type filter hook forward priority 0; }".to_owned(),
            "add rule ip nat forwarded ip daddr 10.8.0.0/24 counter drop".to_owned(),
        ],
    );
    node.node.tool("sysctl", "-w net.ipv4.ip_forward=1").unwrap();
}

fn ask_forwarded(node: &Node) -> Option<String> {
    let to: SocketAddr = addr("10.7.0.1", FORWARDED);
    node.client.run(|| client::get(to, "nft", "/", PATIENCE)).ok().map(|(_, body)| body)
}

fn packets(node: &Node, reason: &str) -> f64 {
    let text = node.node.run(|| get("/metrics")).map_or(String::new(), |(_, text)| text);
    let hooks = ["xdp_balance", "tc_ingress"].iter();
    let count = |hook: &&str| {
        metric(&text, &format!("sluice_packets_total{{hook=\"{hook}\",reason=\"{reason}\"}}")).unwrap_or(0.0)
    };
    hooks.map(count).sum()
}

/// Both ways work at the same time, and neither sees the other's packets as its own.
fn side_by_side(attach: &str) {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(2).unwrap();
    translate(&node);
    let text =
        config(&node, "required", &[0, 1], ROUTES).replace("attach: native", &format!("attach: {attach}"));
    node.start_agent(&text).unwrap();
    until("both are there", Duration::from_secs(3), &node, || node.client.run(ask_l4).is_ok());
    let before = packets(&node, "replied");
    let mut balanced = BTreeSet::new();
    for _ in 0..30 {
        balanced.insert(node.client.run(ask_l4).unwrap());
        assert_eq!(ask_forwarded(&node).as_deref(), Some("e1"));
    }
    assert_eq!(balanced.len(), 2, "{balanced:?}");
    assert!(packets(&node, "replied") >= before + 60.0, "replies came back through our programs");
    let rules = node.node.tool("nft", "list table ip nat").unwrap();
    assert!(rules.contains("counter packets 0 bytes 0 drop"), "{rules}");
    assert!(!rules.contains("counter packets 0 bytes 0 masquerade"), "{rules}");
}

#[test]
fn nftables_translates_beside_xdp() {
    side_by_side("native");
}

#[test]
fn nftables_translates_beside_tc() {
    side_by_side("tc");
}

/// A program of somebody else in the driver of the client's interface, which lets everything pass; and its number.
fn foreign_xdp(node: &Node) -> (Ebpf, u32) {
    // Over maps that nobody fills, ours passes everything.
    let object = fs::read(object_path().unwrap()).unwrap();
    let mut other = EbpfLoader::new().load(&object).unwrap();
    let program: &mut Xdp = other.program_mut("xdp_balance").unwrap().try_into().unwrap();
    program.load().unwrap();
    let id = program.info().unwrap().id();
    node.node.run(|| program.attach("sl-client", XdpMode::Driver)).unwrap();
    (other, id)
}

fn shows(node: &Node, id: u32) -> bool {
    let text = node.node.tool("ip", "-details link show dev sl-client").unwrap();
    text.contains(&format!("prog/xdp id {id} "))
}

#[test]
fn a_foreign_xdp_program_stays_and_packets_are_balanced_at_tc() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(2).unwrap();
    let (_other, id) = foreign_xdp(&node);
    let text = config(&node, "required", &[0, 1], ROUTES).replace("attach: native", "attach: auto");
    node.start_agent(&text).unwrap();
    until("packets are balanced", Duration::from_secs(3), &node, || node.client.run(ask_l4).is_ok());
    let balanced: BTreeSet<String> = (0..30).map(|_| node.client.run(ask_l4).unwrap()).collect();
    assert_eq!(balanced.len(), 2, "{balanced:?}");
    assert!(packets(&node, "forwarded") >= 30.0);
    let (_, dump) = node.node.run(|| get("/dump")).unwrap();
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    assert_eq!(dump["kernel"]["attachments"]["sl-client"]["ingress"], "TC", "{dump:#}");
    assert!(shows(&node, id));
    node.agent = None;
    assert!(shows(&node, id), "it outlives the agent");
}

#[test]
fn where_a_foreign_xdp_program_sits_native_is_refused_with_the_reason() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(1).unwrap();
    let (_other, id) = foreign_xdp(&node);
    node.write_config(&config(&node, "required", &[0], ROUTES)).unwrap();
    let log = node.folder.join("agent.log");
    node.agent = Some(Agent::spawn(&node.node, &node.config(), &log).unwrap());
    let ready = |node: &Node| node.node.run(|| get("/ready"));
    until("the agent says why it is not ready", STARTING, &node, || {
        ready(&node).is_some_and(|(status, text)| {
            status == 503 && text.contains("sl-client") && text.contains("another XDP program")
        })
    });
    assert!(shows(&node, id));
    assert!(node.agent().log().contains("another XDP program holds the interface"));
}

/// A program of somebody else at TC of the client's interface, which lets everything pass.
fn foreign_tc(node: &Node, options: TcAttachOptions) -> Ebpf {
    let object = fs::read(object_path().unwrap()).unwrap();
    let mut other = EbpfLoader::new().load(&object).unwrap();
    let program: &mut SchedClassifier = other.program_mut("tc_ingress").unwrap().try_into().unwrap();
    program.load().unwrap();
    node.node.run(|| program.attach_with_options("sl-client", TcAttachType::Ingress, options)).unwrap();
    other
}

/// Packets to the node itself, which are not ours.
fn knock(node: &Node) {
    for port in 1..=3 {
        assert!(
            node.client.run(|| client::who_tcp(addr("10.7.0.1", port), PATIENCE)).is_err(),
            "nobody listens"
        );
    }
}

/// Packets that a foreign program saw.
fn seen(other: &Ebpf) -> u64 {
    // Packets and bytes of each reason, one after the other.
    type Row = [u64; 2 * Reason::ROOM];
    let reasons = PerCpuArray::<_, Row>::try_from(other.map("REASONS").unwrap()).unwrap();
    let rows = reasons.get(&Hook::TcIngress.number(), 0).unwrap();
    let received = usize::try_from(Reason::Received.number()).unwrap();
    rows.iter().map(|row| row[2 * received]).sum()
}

#[test]
fn programs_of_others_at_tc_stay_before_and_behind_ours_and_so_do_filters() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(2).unwrap();
    let early = foreign_tc(&node, TcAttachOptions::TcxOrder(LinkOrder::first()));
    node.node.tool("tc", "qdisc add dev sl-client clsact").unwrap();
    let filter = foreign_tc(&node, TcAttachOptions::Netlink(NlOptions::default()));
    let text = config(&node, "required", &[0, 1], ROUTES).replace("attach: native", "attach: tc");
    node.start_agent(&text).unwrap();
    until("packets are balanced", Duration::from_secs(3), &node, || node.client.run(ask_l4).is_ok());
    let late = foreign_tc(&node, TcAttachOptions::TcxOrder(LinkOrder::first()));
    let others = [&early, &late, &filter];
    let before = others.map(seen);
    let balanced: BTreeSet<String> = (0..30).map(|_| node.client.run(ask_l4).unwrap()).collect();
    assert_eq!(balanced.len(), 2, "{balanced:?}");
    // Ours came before the one that was there, and the one that came after them before ours; what they send on is not
    // seen by who comes later.
    let [by_early, by_late, by_filter] = [0, 1, 2].map(|idx| seen(others[idx]) - before[idx]);
    assert!(by_late >= 30 * 4 && by_early < 30 && by_filter < 30, "{by_late}, ours, {by_early}, {by_filter}");
    knock(&node);
    let is_seen = |other: &Ebpf, before: u64| seen(other) >= before + 3;
    assert!(is_seen(&early, before[0] + by_early), "what is not ours goes on to others");
    assert!(is_seen(&filter, before[2] + by_filter), "and to filters behind them");
    // Whoever goes takes nothing of the others along.
    drop(late);
    assert!(node.client.run(ask_l4).is_ok());
    node.agent = None;
    let (code, said) = sluice(&node.node, &["cleanup", "--bpffs", node.bpffs().to_str().unwrap()]).unwrap();
    assert_eq!(code, Some(0), "{said}");
    let before = [seen(&early), seen(&filter)];
    knock(&node);
    assert!(
        is_seen(&early, before[0]) && is_seen(&filter, before[1]),
        "they outlive the agent and its cleanup"
    );
}
