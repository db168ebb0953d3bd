//! The node's own ports change while the agent runs, or run out.

use std::{
    fs, io,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use gateway_tests::{
    agent::{get, metric},
    client,
    node::{HTTP, Node},
    privilege,
};

use super::{L4, PATIENCE, addr, alone, until};

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

/// Connections to an endpoint that take every port there is towards it.
fn take_all(endpoint: SocketAddr) -> Vec<TcpStream> {
    let mut held = Vec::new();
    loop {
        match TcpStream::connect(endpoint) {
            Ok(stream) => held.push(stream),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable, "{error}");
                return held;
            }
        }
        assert!(held.len() < 1_000, "the ports do not end");
    }
}

#[test]
fn an_endpoint_is_not_at_fault_where_no_port_is_free_towards_it() {
    const PROXY: &str = "127.0.0.1";
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(1).unwrap();
    let endpoint = addr(&Node::v4(0), HTTP);
    let text = node.agent_part("off")
        + &format!(
            "listeners: [ {{ name: web, address: {PROXY}, port: 80, protocol: HTTP }} ]\nroutes: [ {{ name: web, listeners: [web], rules: [ {{ backends: [ {{ service: web }} ] }} ] }} ]\n\
             services: [ {{ name: web, endpoints: [ {{ address: {}, port: {HTTP} }} ] }} ]\n",
            endpoint.ip()
        );
    node.start_agent(&text).unwrap();
    let ask = || node.node.run(|| client::get(addr(PROXY, 80), "www.example.org", "/", PATIENCE)).unwrap();
    let count = |name: &str| metric(&node.node.run(|| get("/metrics")).unwrap().1, name).unwrap_or(0.0);
    node.node.run(|| fs::write(RANGE, "40000 40015").unwrap());
    let held = node.node.run(|| take_all(endpoint));
    assert_eq!(held.len(), 16);

    let (status, body) = ask();
    assert_eq!((status, body.trim_end()), (503, "no local port is free towards the endpoint"));
    let fault = "sluice_request_faults_total{listener=\"web\",route=\"web\",kind=\"local_ports\"}";
    assert!(count(fault) > 0.5, "counted as what it is");

    // Whoever gives a port back does not keep it waiting for packets that come late.
    for stream in &held {
        let _set = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    }
    drop(held);
    let (status, body) = ask();
    assert_eq!(status, 200, "{body}");
}
