//! What the agent says of endpoints from packets that pass: open flows, handshakes, refusals.

use std::{thread, time::Duration};

use gateway_tests::{agent::get, node::Node, privilege};

use super::{ROUTES, alone, ask_l4, config, until};

/// The sum of all series of the balanced listener that begin so.
fn sum(node: &Node, name: &str, rest: &str) -> f64 {
    let text = node.node.run(|| get("/metrics")).map_or_else(String::new, |(_, text)| text);
    let of_it = text.lines().filter(|line| line.starts_with(name) && line.contains("listener=\"l4\""));
    let values = of_it.filter(|line| line.contains(rest)).filter_map(|line| line.rsplit(' ').next());
    values.filter_map(|value| value.parse::<f64>().ok()).sum()
}

#[test]
fn endpoints_are_measured_from_packets_that_pass() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(2).unwrap();
    // Checks so rarely that clients notice first.
    let text = config(&node, "required", &[0, 1], ROUTES).replace("/healthz }", "/healthz }, interval: 60s");
    node.start_agent(&text).unwrap();
    until("endpoints answer", Duration::from_secs(3), &node, || node.client.run(ask_l4).is_ok());
    for _ in 0..120 {
        node.client.run(ask_l4).unwrap();
    }
    let counted = |what: &str| sum(&node, "sluice_kernel_endpoint_total", &format!("what=\"{what}\""));
    assert!(counted("new_flows") >= 120.0);
    assert!(counted("refused") < 0.5, "every connection was taken");
    let (timed, us) = (counted("handshakes"), counted("handshake_us"));
    assert!(timed >= 1.0, "one of eight connections is timed");
    assert!((1.0..100_000.0).contains(&(us / timed)), "{us} us for {timed}");
    let entries = sum(&node, "sluice_kernel_flow_entries", "");
    let open = sum(&node, "sluice_kernel_endpoint_open_flows", "");
    assert!(open >= 120.0 && (entries - open).abs() < 0.5, "{open} flows of endpoints, {entries} entries");

    node.origins[0] = None;
    for _ in 0..40 {
        drop(node.client.run(ask_l4));
    }
    let metrics = || sum(&node, "sluice_kernel_endpoint_total", "what=\"refused\"");
    assert!(metrics() >= 1.0, "an endpoint without a server refuses");
    thread::sleep(Duration::from_millis(1_500));
    assert!(!node.agent().log().contains("cannot be swept"), "{}", node.agent().log());
}
