//! Endpoints that answer clients by themselves, clients that keep their endpoint, and listeners of many ports.

use std::{collections::BTreeSet, net::UdpSocket, thread, time::Duration};

use gateway_common::slot::SlotChunk;
use gateway_tests::{
    netns::{End, link},
    node::{HTTP, Node, TCP, UDP},
    privilege,
};

use super::{Held, L4, PATIENCE, addr, alone, ask_l4, takeover::restart, until, upgrade::numbers};

/// A way from each endpoint to the client that does not pass the node, as direct return has it.
fn with_ways_back(node: &Node) {
    for (idx, ns) in (0_u8..).zip(&node.endpoints) {
        let (here, there) = (format!("10.9.{idx}.2"), format!("10.9.{idx}.1"));
        link(
            End { ns, name: "back", v4: &here, v6: &format!("fd09:{idx}::2") },
            End { ns: &node.client, name: &format!("back{idx}"), v4: &there, v6: &format!("fd09:{idx}::1") },
        )
        .unwrap();
        ns.ip(&format!("addr add {L4}/32 dev lo")).unwrap();
        ns.ip(&format!("route add 10.7.0.2/32 via {there}")).unwrap();
    }
}

/// One listener over all endpoints.
fn config(node: &Node, listener: &str, port: u16, health: &str) -> String {
    let ends: Vec<String> =
        (0..3).map(|idx| format!("{{ address: {}, port: {port} }}", Node::v4(idx))).collect();
    node.agent_part("required")
        + &format!(
            "listeners:\n  - {{ name: l4, address: {L4}, {listener} }}\nroutes:\n  - {{ name: l4, listeners: [l4], rules: [ {{ \
             backends: [ {{ service: l4 }} ] }} ] }}\nservices:\n  - {{ name: l4, endpoints: [ {} ]{health} }}\n",
            ends.join(", ")
        )
}

#[test]
fn an_endpoint_on_the_link_answers_the_client_by_itself() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(3).unwrap();
    with_ways_back(&node);
    let health = ", health: { http: { path: /healthz } }";
    let text = config(&node, &format!("port: {HTTP}, protocol: TCP, forwarding: dsr-l2"), HTTP, health);
    node.start_agent(&text).unwrap();
    let ask = |node: &Node| node.client.run(ask_l4);
    let answered: BTreeSet<String> = (0..30).map(|_| ask(&node).unwrap()).collect();
    assert_eq!(answered.len(), 3, "{answered:?}");
    // Without its way back to the client an endpoint is heard of no more: nothing came back through the node.
    node.endpoints[0].ip("link set back down").unwrap();
    node.endpoints[1].ip("link set back down").unwrap();
    node.endpoints[2].ip("link set back down").unwrap();
    assert!((0..3).all(|_| ask(&node).is_err()));
    for ns in &node.endpoints {
        ns.ip("link set back up").unwrap();
        ns.ip("route replace 10.7.0.2/32 dev back").unwrap();
    }
    node.origins[1] = None;
    until("the others serve on", Duration::from_secs(3), &node, || {
        (0..12).all(|_| ask(&node).is_ok_and(|name| name != "e2"))
    });
}

#[test]
fn a_client_keeps_its_endpoint() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(3).unwrap();
    let plain = config(&node, &format!("port: {HTTP}, protocol: TCP"), HTTP, "");
    node.start_agent(&plain).unwrap();
    let names = |node: &Node| -> BTreeSet<String> {
        node.client.run(|| (0..20).map(|_| ask_l4().unwrap()).collect())
    };
    assert!(names(&node).len() > 1, "flows of one client spread without affinity");
    let sticky =
        config(&node, &format!("port: {HTTP}, protocol: TCP, affinity: {{ timeout: 1h }}"), HTTP, "");
    node.write_config(&sticky).unwrap();
    until("all flows go to one endpoint", Duration::from_secs(3), &node, || names(&node).len() == 1);
    // Another address of the same machine is another client.
    for host in 10..40 {
        node.client.ip(&format!("addr add 10.7.0.{host}/24 dev uplink")).unwrap();
    }
    let first =
        |host: u8| -> BTreeSet<String> { node.client.run(|| (0..4).map(|_| ask_from(host)).collect()) };
    let by_client: Vec<BTreeSet<String>> = (10..40).map(first).collect();
    assert!(by_client.iter().all(|names| names.len() == 1), "{by_client:?}");
    assert_eq!(by_client.iter().flatten().collect::<BTreeSet<_>>().len(), 3, "{by_client:?}");
}

fn ask_from(host: u8) -> String {
    use std::io::{Read as _, Write as _};
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&addr(&format!("10.7.0.{host}"), 0).into()).unwrap();
    socket.connect_timeout(&addr(L4, HTTP).into(), PATIENCE).unwrap();
    let mut stream: std::net::TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: l4\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.lines().last().unwrap().to_owned()
}

#[test]
fn a_listener_of_many_ports_keeps_them() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(3).unwrap();
    let listener = format!("ports: [{}-{}, \"7000\"], protocol: UDP", UDP - 1, UDP + 1);
    let text = config(&node, &listener, UDP, "");
    node.start_agent(&text).unwrap();
    let ask = |node: &Node, port: u16| -> Option<String> {
        node.client.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            socket.connect(addr(L4, port)).unwrap();
            socket.send(b"who").unwrap();
            let mut answer = [0; 64];
            let n = socket.recv(&mut answer).ok()?;
            Some(String::from_utf8_lossy(&answer[..n]).into_owned())
        })
    };
    // The endpoints listen on this one of the range alone: packets have to arrive there.
    until("a port of the range", Duration::from_secs(2), &node, || ask(&node, UDP).is_some());
    assert_eq!(ask(&node, UDP + 1), None, "an endpoint that does not listen there says nothing");
    // Every port of the address, and the endpoints still hear of their own alone.
    node.write_config(&config(&node, "ports: [1-65535], protocol: UDP", UDP, "")).unwrap();
    thread::sleep(Duration::from_millis(300));
    let answered: BTreeSet<Option<String>> = (0..20).map(|_| ask(&node, UDP)).collect();
    assert_eq!(answered.len(), 3, "{answered:?}");
    assert!(!answered.contains(&None));
    // A reload that takes the port away is heeded.
    node.write_config(&config(&node, "ports: [7000-7001], protocol: UDP", UDP, "")).unwrap();
    until("the port is nobody's", Duration::from_secs(2), &node, || ask(&node, UDP).is_none());
}

/// Whether slots of the service with this number remember another endpoint than their own.
fn is_changing(node: &Node, id: &str) -> bool {
    let row = |map: &str, key: u64| -> serde_json::Value {
        let key: Vec<String> =
            u32::try_from(key).unwrap().to_le_bytes().iter().map(|byte| format!("{byte:#04x}")).collect();
        let path = node.pins().join(map);
        let line = format!("-j map lookup pinned {} key {}", path.display(), key.join(" "));
        let text = node.node.tool("bpftool", &line).unwrap();
        let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
        shown["formatted"]["value"].clone()
    };
    let service = row("services", id.parse().unwrap());
    let current = usize::try_from(service["current"].as_u64().unwrap()).unwrap();
    let table = &service["tables"][current];
    let (first, n_slots) = (table["first_chunk"].as_u64().unwrap(), table["n_slots"].as_u64().unwrap());
    let chunks = (first..first + n_slots.div_ceil(u64::from(SlotChunk::SLOTS))).map(|at| row("slots", at));
    let slots: Vec<serde_json::Value> =
        chunks.flat_map(|chunk| chunk["slots"].as_array().unwrap().clone()).collect();
    let n_used: BTreeSet<u64> = slots.iter().map(|slot| slot["endpoint"].as_u64().unwrap()).collect();
    assert!(n_used.len() > 1, "{service}");
    slots.iter().any(|slot| slot["endpoint"] != slot["former"])
}

#[test]
fn endpoints_of_many_ports_are_the_same_after_restarts() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(3).unwrap();
    with_ways_back(&node);
    // Nothing is remembered of its flows as long as endpoints stay.
    let listener = format!("ports: [{TCP}-{}], protocol: TCP, forwarding: dsr-l2", TCP + 10);
    let text = config(&node, &listener, TCP, "");
    node.start_agent(&text).unwrap();
    let before = numbers(&node);
    let [(_, id, rows)] = &before[..] else { panic!("{before:?}") };
    assert_eq!(rows.len(), 3, "{rows:?}");
    assert!(rows.iter().all(|row| row.ends_with(&format!(":{TCP}\""))), "{rows:?}");
    assert!(!is_changing(&node, id));
    let mut held: Vec<Held> = (0..10).map(|_| Held::open(&node.client)).collect();
    for _ in 0..2 {
        restart(&mut node);
        assert_eq!(numbers(&node), before);
        assert!(!is_changing(&node, id), "{}", node.agent().log());
        for held in &mut held {
            assert_eq!(held.ask().unwrap_or_else(|error| format!("{error}")), held.name, "a flow moved");
        }
    }
}
