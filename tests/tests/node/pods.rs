//! Local pods: clients behind the node's own interfaces, which come and go while others are served.

use std::{
    collections::BTreeSet,
    fs, thread,
    time::{Duration, Instant},
};

use gateway_tests::{
    agent::get,
    client::{Answer, Load},
    netns::{End, Ns, link},
    node::Node,
    privilege,
};

use super::{ROUTES, alone, ask_l4, config, until};

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
        assert!(pins(&node).contains(&format!("link-tc_ingress-pod-{idx}")), "{:?}", pins(&node));
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
