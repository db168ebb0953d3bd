//! The node's own ports change while the agent runs.

use std::{fs, time::Duration};

use gateway_tests::{node::Node, privilege};

use super::{L4, alone, until};

const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

#[test]
fn ports_that_become_the_nodes_own_are_told_of() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(1).unwrap();
    let text = node.agent_part("required")
        + &format!(
            "listeners: [ {{ name: l4, address: {L4}, port: 80, protocol: TCP }} ]\nroutes: [ {{ name: l4, listeners: [l4], rules: [ {{ backends: [ {{ service: l4 }} ] }} ] }} ]\n\
             services: [ {{ name: l4, endpoints: [ {{ address: {}, port: 80 }} ] }} ]\n",
            Node::v4(0)
        );
    node.start_agent(&text).unwrap();
    let before = node.node.run(|| fs::read_to_string(RANGE).unwrap());
    let says = |node: &Node, what: &str| node.agent().log().contains(what);
    assert!(!says(&node, "ports of the node's own sockets"));

    node.node.run(|| fs::write(RANGE, "10000 65535").unwrap());
    let wait = Duration::from_secs(5);
    until("it is told", wait, &node, || {
        says(&node, "ports of the node's own sockets") && says(&node, "choose a range outside")
    });
    node.node.run(|| fs::write(RANGE, &before).unwrap());
    until("the end of it is told", wait, &node, || says(&node, "apart from the node's own again"));
}
