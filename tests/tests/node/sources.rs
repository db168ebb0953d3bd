//! Lists of sources from the file to the kernel: who is denied, who is not, and what the operator sees of it.

use std::time::Duration;

use gateway_tests::{
    agent::{get, metric},
    node::Node,
    privilege,
};
use serde_json::Value;

use super::{ROUTES, alone, ask_l4, config, until};

/// The client's own address, behind `uplink`.
const CLIENT: &str = "10.7.0.2";

fn page(node: &Node, path: &str) -> String {
    node.node.run(|| get(path)).map_or_else(String::new, |(_, text)| text)
}

fn json(node: &Node, path: &str) -> Value {
    serde_json::from_str(&page(node, path)).unwrap_or_default()
}

/// The configuration with these sources, and events on.
fn text(node: &Node, sources: &str) -> String {
    let text = config(node, "required", &[0, 1], ROUTES);
    text.replace("    bpffs:", "    events: { perSecond: 3 }\n    bpffs:") + sources
}

#[test]
fn lists_of_sources_reach_the_kernel_and_packets_are_told_of() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(2).unwrap();
    node.start_agent(&text(&node, "")).unwrap();
    until("everybody may come", Duration::from_secs(3), &node, || node.client.run(ask_l4).is_ok());
    assert_eq!(json(&node, "/events"), Value::Array(Vec::new()));

    node.write_config(&text(&node, "sources: { deny: [10.7.0.0/24] }\n")).unwrap();
    until("the network is denied", Duration::from_secs(5), &node, || node.client.run(ask_l4).is_err());
    for _ in 0..10 {
        assert!(node.client.run(ask_l4).is_err());
    }
    let metrics = page(&node, "/metrics");
    let denied = metric(&metrics, "sluice_packets_total{hook=\"xdp_balance\",reason=\"denied\"}").unwrap();
    let told = |outcome: &str| {
        let name = format!("sluice_kernel_events_total{{reason=\"denied\",outcome=\"{outcome}\"}}");
        metric(&metrics, &name).unwrap()
    };
    assert!((told("told") + told("limited") + told("lost") - denied).abs() < 0.5, "{metrics}");
    assert!(told("told") >= 1.0 && told("lost") < 0.5, "{metrics}");
    let events = json(&node, "/events");
    let first = &events[0];
    assert_eq!((&first["reason"], &first["verdict"]), (&"denied".into(), &"dropped".into()), "{events}");
    assert_eq!((&first["listener"], &first["protocol"]), (&"l4".into(), &"tcp".into()), "{events}");
    assert_eq!(first["destination"], "10.8.0.2:8080");
    assert!(first["source"].as_str().unwrap().starts_with(&format!("{CLIENT}:")), "{events}");
    assert!(node.agent().log().contains("a packet ended early"), "{}", node.agent().log());
    let refused = &json(&node, "/dump")["kernel"]["refusedSources"];
    assert_eq!(refused[0]["source"], CLIENT, "{refused}");

    // The longest network decides.
    let sources = format!("sources: {{ deny: [10.7.0.0/24], allow: [{CLIENT}/32] }}\n");
    node.write_config(&text(&node, &sources)).unwrap();
    until("the client may come again", Duration::from_secs(5), &node, || node.client.run(ask_l4).is_ok());
    let metrics = page(&node, "/metrics");
    assert_eq!(metric(&metrics, "sluice_kernel_source_networks"), Some(2.0));
    node.write_config(&text(&node, "")).unwrap();
    until("the lists are gone", Duration::from_secs(5), &node, || {
        metric(&page(&node, "/metrics"), "sluice_kernel_source_networks") == Some(0.0)
    });
    assert!(node.client.run(ask_l4).is_ok());
}
