//! Packets that are larger than their way: whoever sent them is told, in both directions.

use std::{net::UdpSocket, thread, time::Duration};

use gateway_tests::{netns::Ns, node::Node, privilege};

use super::{L4, addr, alone, dump, reason, until};

const PORT: u16 = 7_000;

/// A node at TC whose endpoint answers each datagram with so many bytes.
fn started(answer_bytes: usize) -> Node {
    started_at(answer_bytes, &Node::v4(0))
}

/// The same where the configuration names the endpoint by this address.
fn started_at(answer_bytes: usize, endpoint: &str) -> Node {
    let mut node = Node::new(1).unwrap();
    let socket = node.endpoints[0].run(|| UdpSocket::bind(("0.0.0.0", PORT)).unwrap());
    thread::spawn(move || {
        let mut room = [0; 2_000];
        // It ends with the process: nobody asks any more once its namespace is gone.
        while let Ok((_, client)) = socket.recv_from(&mut room) {
            // The kernel may refuse one that it knows to be too large.
            drop(socket.send_to(&vec![0; answer_bytes], client));
        }
    });
    let text = node.agent_part("required").replace("attach: native", "attach: tc")
        + &format!(
            "listeners:\n  - {{ name: l4, address: {L4}, port: {PORT}, protocol: UDP }}\nroutes:\n  - {{ name: l4, \
             listeners: [l4], rules: [ {{ backends: [ {{ service: l4 }} ] }} ] }}\nservices:\n  - {{ name: l4, \
             endpoints: [ {{ address: {endpoint}, port: {PORT} }} ] }}\n"
        );
    node.start_agent(&text).unwrap();
    node
}

/// Bytes of the answer to a datagram of so many bytes, unless it is lost or refused.
fn ask(client: &Ns, bytes: usize) -> Option<usize> {
    client.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket.connect(addr(L4, PORT)).unwrap();
        socket.send(&vec![0; bytes]).ok()?;
        socket.recv(&mut [0; 2_000]).ok()
    })
}

#[test]
fn an_endpoint_is_told_what_the_way_to_the_client_takes() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let node = started(1_450);
    assert_eq!(ask(&node.client, 1), Some(1_450));
    node.client.ip("link set uplink mtu 1400").unwrap();
    node.node.ip("link set sl-client mtu 1400").unwrap();
    until("an answer in pieces", Duration::from_secs(3), &node, || ask(&node.client, 1) == Some(1_450));
    assert!(reason(&node, "too_big_answered") > 0.5);
}

#[test]
fn what_a_route_says_of_sizes_holds() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let node = started(1);
    node.node.ip(&format!("route add {}/32 dev sl-e1 mtu 1300", Node::v4(0))).unwrap();
    until("the client is told", Duration::from_secs(3), &node, || {
        ask(&node.client, 1_350);
        reason(&node, "too_big_answered") > 0.5
    });
    until("it comes in pieces", Duration::from_secs(3), &node, || ask(&node.client, 1_350) == Some(1));
}

#[test]
fn where_no_way_is_known_the_routing_table_says_what_fits() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let node = started(1);
    // The routing table is asked by programs only where the stack forwards, too.
    node.node.tool("sysctl", "-w net.ipv4.ip_forward=1").unwrap();
    // Only a size that is locked counts for what is forwarded.
    node.node.ip(&format!("route add {}/32 dev sl-e1 mtu lock 1300", Node::v4(0))).unwrap();
    until("the way is known", Duration::from_secs(3), &node, || has_way(&node));
    node.endpoints[0].ip("link set uplink arp off").unwrap();
    node.node.ip("neigh flush dev sl-e1").unwrap();
    until("the way is not known", Duration::from_secs(3), &node, || !has_way(&node));
    ask(&node.client, 1);
    until("nobody knows where it goes", Duration::from_secs(3), &node, || reason(&node, "no_next_hop") > 0.5);
    assert!(reason(&node, "too_big_answered") < 0.5);
    let lost = reason(&node, "no_next_hop");
    until("the client is told", Duration::from_secs(3), &node, || {
        ask(&node.client, 1_350);
        reason(&node, "too_big_answered") > 0.5
    });
    assert!((reason(&node, "no_next_hop") - lost).abs() < 0.5, "none was lost without a word");
}

/// An address of the endpoint that only a route knows.
const BEHIND: &str = "10.77.0.9";

#[test]
fn an_endpoint_may_be_behind_a_router_of_the_other_family() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let node = started_at(1, BEHIND);
    assert!(!has_way(&node) && ask(&node.client, 1).is_none());
    node.endpoints[0].ip(&format!("address add {BEHIND}/32 dev lo")).unwrap();
    // It answers from where it was asked.
    node.endpoints[0].ip(&format!("route add 10.7.1.1/32 dev uplink src {BEHIND}")).unwrap();
    node.node.ip(&format!("route add {BEHIND}/32 via inet6 {} dev sl-e1", Node::v6(0))).unwrap();
    until("the way is known", Duration::from_secs(3), &node, || has_way(&node));
    until("it answers", Duration::from_secs(3), &node, || ask(&node.client, 1) == Some(1));
}

/// Whether the agent knows the way to the endpoint.
fn has_way(node: &Node) -> bool {
    let dump = dump(node);
    dump["kernel"]["services"][0]["endpoints"][0]["nextHop"] == true
}
