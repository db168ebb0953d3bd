//! An agent that finds what one of another layout has pinned.

use std::{fs, path::PathBuf, thread, time::Duration};

use gateway_common::layout::LAYOUT_VERSION;
use gateway_tests::{
    agent::get,
    node::{Node, TCP},
    privilege,
};

use super::{Held, L4, ROUTES, alone, ask_l4, config};

fn text(node: &Node) -> String {
    let listener = format!("  - {{ name: hold, address: {L4}, port: {TCP}, protocol: TCP }}\n");
    let route = "  - { name: hold, listeners: [hold], rules: [ { backends: [ { service: hold } ] } ] }\n";
    let held: Vec<String> =
        (0..3).map(|idx| format!("{{ address: {}, port: {TCP} }}", Node::v4(idx))).collect();
    config(node, "required", &[0, 1, 2], &(listener + ROUTES + route))
        + &format!("  - {{ name: hold, endpoints: [ {} ] }}\n", held.join(", "))
}

/// The folder that an agent of another layout would have.
fn folder(node: &Node, version: u32) -> PathBuf {
    node.pins().parent().unwrap().join(format!("v{version}"))
}

/// Numbers of services and rows of their endpoints.
pub(super) fn numbers(node: &Node) -> Vec<(String, String, Vec<String>)> {
    let (_, text) = node.node.run(|| get("/dump")).unwrap();
    let dump: serde_json::Value = serde_json::from_str(&text).unwrap();
    let of = |service: &serde_json::Value| {
        let rows = service["endpoints"].as_array().unwrap().iter();
        let rows = rows.map(|row| format!("{} {}", row["row"], row["address"])).collect();
        (service["address"].to_string(), service["id"].to_string(), rows)
    };
    dump["kernel"]["services"].as_array().unwrap().iter().map(of).collect()
}

/// Programs on the interface towards the client: at XDP and on egress.
fn hooks(node: &Node) -> (usize, usize) {
    let links = node.node.tool("ip", "-details link show dev sl-client").unwrap();
    let egress = node.node.tool("bpftool", "net show dev sl-client").unwrap();
    (links.matches("prog/xdp").count(), egress.matches("tc_egress").count())
}

#[test]
fn what_another_layout_pinned_is_taken_over() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(3).unwrap();
    let text = text(&node);
    node.start_agent(&text).unwrap();
    thread::sleep(Duration::from_millis(300));
    let mut held: Vec<Held> = (0..20).map(|_| Held::open(&node.client)).collect();
    let before = numbers(&node);
    let one_each = hooks(&node);
    assert_eq!(one_each.0, 1);

    // As an agent of the layout before would have left it.
    node.agent = None;
    fs::rename(node.pins(), folder(&node, LAYOUT_VERSION - 1)).unwrap();
    node.start_agent(&text).unwrap();
    assert_eq!(numbers(&node), before, "numbers are found again");
    let mut stay = || {
        for held in &mut held {
            let answer = held.ask().unwrap_or_else(|error| format!("{error}"));
            assert_eq!(answer, held.name, "a flow moved");
        }
    };
    stay();
    assert_eq!(hooks(&node), one_each);
    assert!(!folder(&node, LAYOUT_VERSION - 1).exists());

    // As an agent would have left it that was killed before the entries of the former index stood in its own.
    node.agent = None;
    fs::rename(node.pins().join("service_index"), node.pins().join("former_service_index")).unwrap();
    node.start_agent(&text).unwrap();
    assert_eq!(numbers(&node), before, "numbers are found again");
    assert!(!node.pins().join("former_service_index").exists());
    stay();
    assert!(node.client.run(ask_l4).is_ok());

    // Of a newer layout nothing is known but the names of links: its tables go, and its hooks stay ours alone.
    node.agent = None;
    fs::rename(node.pins(), folder(&node, LAYOUT_VERSION + 1)).unwrap();
    node.start_agent(&text).unwrap();
    assert_eq!(hooks(&node), one_each);
    assert!(!folder(&node, LAYOUT_VERSION + 1).exists());
    let answered: Vec<bool> = (0..20).map(|_| node.client.run(ask_l4).is_ok()).collect();
    assert!(answered.iter().all(|answered| *answered), "{answered:?}\n{}", node.agent().log());
    assert!(node.agent().log().contains("new numbers"), "{}", node.agent().log());
}
