//! Processes of the node itself: they ask for virtual addresses and get endpoints at their sockets.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs, io,
    net::{SocketAddr, TcpStream, UdpSocket},
    path::Path,
    time::Duration,
};

use gateway_common::counter::{Hook, Reason};
use gateway_tests::{
    agent::{Agent, get, metric, sluice},
    cgroup::Cgroup,
    client,
    kernel_run::Kernel,
    node::{HTTP, Node, UDP},
    privilege,
    world::World,
};
use nix::sys::signal::Signal;

use super::{L4, PATIENCE, STARTING, WEB, addr, alone, ask_l4, ask_web, generation, until};

const L6: &str = "fd08::2";

/// Listeners of both families over TCP and UDP, for endpoints given by index.
fn config(node: &Node, cgroup: &Path, endpoints: &[u8]) -> String {
    let mut text = node.agent_part("required");
    writeln!(text, "    connect: {{ cgroup: {} }}", cgroup.display()).unwrap();
    let (mut listeners, mut routes, mut services) = (String::new(), String::new(), String::new());
    let of_family = |v6: bool, port: u16| -> String {
        let address = |idx: &u8| if v6 { Node::v6(*idx) } else { Node::v4(*idx) };
        let one = |idx: &u8| format!("{{ address: \"{}\", port: {port} }}", address(idx));
        endpoints.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    let check = ", health: { http: { path: /healthz } }";
    for (name, at, port, protocol, v6, to, check) in [
        ("web", WEB, 80, "HTTP", false, HTTP, check),
        ("l4", L4, HTTP, "TCP", false, HTTP, check),
        ("l6", L6, HTTP, "TCP", true, HTTP, check),
        ("u4", L4, 53, "UDP", false, UDP, ""),
        ("u6", L6, 53, "UDP", true, UDP, ""),
    ] {
        let ends = of_family(v6, to);
        writeln!(listeners, "  - {{ name: {name}, address: \"{at}\", port: {port}, protocol: {protocol} }}")
            .unwrap();
        writeln!(
            routes,
            "  - {{ name: {name}, listeners: [{name}], rules: [ {{ backends: [ {{ service: {name} }} ] }} ] }}"
        )
        .unwrap();
        writeln!(services, "  - {{ name: {name}, endpoints: [ {ends} ]{check} }}").unwrap();
    }
    text + &format!("listeners:\n{listeners}routes:\n{routes}services:\n{services}")
}

/// Who answers a process of the node over TCP, and whom it sees.
fn ask(node: &Node, to: SocketAddr) -> io::Result<(String, SocketAddr)> {
    node.node.run(|| {
        let peer = TcpStream::connect_timeout(&to, PATIENCE)?.peer_addr()?;
        client::get(to, "l4", "/", PATIENCE).map(|(_, body)| (body, peer))
    })
}

/// Who answers a datagram of a socket that is not connected, and from where.
fn datagram(socket: &UdpSocket, to: SocketAddr) -> io::Result<(String, SocketAddr)> {
    let mut name = [0; 64];
    socket.send_to(b"who", to)?;
    let (len, from) = socket.recv_from(&mut name)?;
    Ok((String::from_utf8_lossy(&name[..len]).into_owned(), from))
}

fn counted(node: &Node, hook: Hook, reason: Reason) -> f64 {
    let text = node.node.run(|| get("/metrics")).map_or(String::new(), |(_, text)| text);
    let (hook, reason) = (hook.name(), reason.name());
    metric(&text, &format!("sluice_packets_total{{hook=\"{hook}\",reason=\"{reason}\"}}")).unwrap_or(0.0)
}

fn is_up(node: &Node, endpoint: &str) -> bool {
    let text = node.node.run(|| get("/metrics")).map_or(String::new(), |(_, text)| text);
    let name = format!("sluice_endpoint_up{{service=\"l4\",endpoint=\"{endpoint}:{HTTP}\"");
    metric(&text, &name).is_some_and(|up| up > 0.5)
}

/// A node with two endpoints, and this process in the group that the agent looks after.
fn started() -> (Cgroup, Node) {
    let group = Cgroup::enter().unwrap();
    let mut node = Node::new(2).unwrap();
    let text = config(&node, group.path(), &[0, 1]);
    node.start_agent(&text).unwrap();
    (group, node)
}

fn names(node: &Node, n: u32, to: SocketAddr) -> BTreeSet<String> {
    (0..n).map(|_| ask(node, to).unwrap().0).collect()
}

fn links(node: &Node) -> BTreeSet<String> {
    let entries = fs::read_dir(node.pins()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| ["connect", "msg", "peername"].iter().any(|part| name.contains(part))).collect()
}

#[test]
fn processes_of_the_node_are_given_endpoints() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let (_group, mut node) = started();
    let (v4, v6) = (addr(L4, HTTP), addr(L6, HTTP));
    until("both families are served", Duration::from_secs(5), &node, || {
        ask(&node, v4).is_ok() && ask(&node, v6).is_ok()
    });
    let forwarded = || counted(&node, Hook::XdpBalance, Reason::Forwarded);
    let before = forwarded();
    for to in [v4, v6, addr("::ffff:10.8.0.2", HTTP)] {
        assert_eq!(names(&node, 30, to).len(), 2, "{to}: connections are spread");
        assert_eq!(ask(&node, to).unwrap().1, to, "the process sees what it asked for");
    }
    let mapped: SocketAddr = "[::ffff:10.8.0.2]:8080".parse().unwrap();
    let seen = node.node.run(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
        socket.connect(&mapped.into()).unwrap();
        socket.peer_addr().unwrap().as_socket()
    });
    assert_eq!(seen, Some(mapped));
    assert!(forwarded() - before < 0.5, "no packet was rewritten");
    assert!(counted(&node, Hook::Connect4, Reason::SocketTranslated) >= 60.0);
    assert!(counted(&node, Hook::Connect6, Reason::SocketTranslated) >= 60.0);
    let (_, metrics) = node.node.run(|| get("/metrics")).unwrap();
    let held = metric(&metrics, "sluice_kernel_socket_pairs").unwrap();
    assert!((90.0..300.0).contains(&held), "each of 90 connections is remembered: {held}");
    assert_eq!(metric(&metrics, "sluice_kernel_socket_pair_room"), Some(65_536.0));
    assert_eq!(node.node.run(ask_web).map(|name| name.starts_with('e')).ok(), Some(true), "the agent's own");
    assert!(counted(&node, Hook::Connect4, Reason::Agent) >= 1.0);

    // A process in the group, but in another network: it goes its own way, over the wire.
    assert!(node.client.run(ask_l4).is_ok());
    assert!(counted(&node, Hook::Connect4, Reason::ForeignSocket) >= 1.0);
    assert!(forwarded() - before >= 4.0);

    // One endpoint goes: nobody is given it any more. Then the other: nobody listens.
    node.origins[1] = None;
    until("the loss is noticed", Duration::from_secs(3), &node, || !is_up(&node, &Node::v4(1)));
    assert_eq!(names(&node, 20, v4), ["e1".to_owned()].into());
    node.origins[0] = None;
    until("nobody is left", Duration::from_secs(3), &node, || !is_up(&node, &Node::v4(0)));
    assert_eq!(ask(&node, v4).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    let (_, metrics) = node.node.run(|| get("/metrics")).unwrap();
    let drops = metric(&metrics, "sluice_kernel_service_drops_total{listener=\"l4\",reason=\"no_endpoint\"}");
    assert!(drops.is_some_and(|n| n >= 1.0), "{drops:?}");
}

#[test]
fn datagrams_of_the_node_go_to_endpoints_and_answers_come_from_the_virtual_address() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let (group, node) = started();
    let targets =
        [(addr(L4, 53), "0.0.0.0:0"), (addr(L6, 53), "[::]:0"), (addr("::ffff:10.8.0.2", 53), "[::]:0")];
    for (to, any) in targets {
        let connected = || node.node.run(|| client::who_udp(to, PATIENCE));
        until("datagrams are answered", Duration::from_secs(3), &node, || connected().is_ok());
        let names: BTreeSet<String> = (0..40).map(|_| connected().unwrap()).collect();
        assert_eq!(names.len(), 2, "{to}: sockets are spread");
        let sockets: Vec<UdpSocket> = node.node.run(|| {
            (0..20)
                .map(|_| {
                    let socket = UdpSocket::bind(any).unwrap();
                    socket.set_read_timeout(Some(PATIENCE)).unwrap();
                    socket
                })
                .collect()
        });
        let mut by_socket = BTreeSet::new();
        for socket in &sockets {
            let (name, from) = datagram(socket, to).unwrap();
            assert_eq!(from, to, "the answer comes from where the process asked");
            for _ in 0..5 {
                assert_eq!(datagram(socket, to).unwrap().0, name, "a socket keeps its endpoint");
            }
            by_socket.insert(name);
        }
        assert_eq!(by_socket.len(), 2, "{to}: sockets are spread");

        // The endpoint goes: sockets that had it have another with their next datagram.
        let wanted = generation(&node) + 1.0;
        node.write_config(&config(&node, group.path(), &[0])).unwrap();
        until("it left", Duration::from_secs(3), &node, || generation(&node) >= wanted);
        assert!(sockets.iter().all(|socket| datagram(socket, to).unwrap() == ("e1".to_owned(), to)));
        node.write_config(&config(&node, group.path(), &[0, 1])).unwrap();
        until("it is back", Duration::from_secs(3), &node, || generation(&node) > wanted);
    }
    assert!(counted(&node, Hook::RecvMsg4, Reason::SocketRestored) >= 120.0);
    assert!(counted(&node, Hook::SendMsg6, Reason::SocketTranslated) >= 120.0);
}

#[test]
fn programs_at_sockets_stay_without_an_agent_beside_others_until_the_host_is_put_back() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let group = Cgroup::enter().unwrap();
    let mut node = Node::new(1).unwrap();
    // Somebody else sits there already: ours, over maps of its own, which lets everything pass.
    let mut other = Kernel::load().unwrap();
    let nothing = World::new(gateway_common::flow::Tick::default()).tables;
    other.sit_at(group.path()).unwrap();
    let mut others_calls = || other.read(&nothing).unwrap().reason(Hook::Connect4, Reason::Received).packets;

    let missing = group.path().join("later");
    node.write_config(&config(&node, &missing, &[0])).unwrap();
    let agent = Agent::spawn(&node.node, &node.config(), &node.folder.join("agent.log")).unwrap();
    node.agent = Some(agent);
    until("the agent says why it is not ready", STARTING, &node, || {
        let ready = node.node.run(|| get("/ready"));
        ready.is_some_and(|(status, text)| status == 503 && text.contains("agent.kernel.connect"))
    });
    assert!(links(&node).is_empty(), "{:?}", links(&node));
    fs::create_dir(&missing).unwrap();
    until("it is ready", Duration::from_secs(5), &node, || {
        node.node.run(|| get("/ready")).is_some_and(|(status, _)| status == 200)
    });
    assert_eq!(links(&node).len(), 8, "{:?}", links(&node));
    assert!(ask(&node, addr(L4, HTTP)).is_err(), "this process is not in that group");

    // The group goes with its links, and comes back.
    fs::remove_dir(&missing).unwrap();
    until("the loss is noticed", Duration::from_secs(5), &node, || {
        node.node.run(|| get("/ready")).is_some_and(|(status, _)| status == 503)
    });
    fs::create_dir(&missing).unwrap();
    until("it is ready again", Duration::from_secs(5), &node, || {
        node.node.run(|| get("/ready")).is_some_and(|(status, _)| status == 200)
    });
    node.agent = None;

    let text = config(&node, group.path(), &[0]);
    node.start_agent(&text).unwrap();
    let served = || ask(&node, addr(L4, HTTP)).is_ok();
    until("processes are served", Duration::from_secs(5), &node, served);
    let before = others_calls();
    assert!(served());
    assert!(others_calls() > before, "the other program is asked too");
    let (_, dump) = node.node.run(|| get("/dump")).unwrap();
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    assert_eq!(dump["kernel"]["connect"]["attached"], true);

    // Without an agent, and with the next one.
    node.agent().signal(Signal::SIGKILL).unwrap();
    node.agent = None;
    assert!(ask(&node, addr(L4, HTTP)).is_ok(), "programs and links are pinned");
    node.start_agent(&text).unwrap();
    assert!(ask(&node, addr(L4, HTTP)).is_ok());
    node.agent = None;

    let bpffs = node.bpffs().to_str().unwrap().to_owned();
    let (code, said) = sluice(&node.node, &["cleanup", "--bpffs", &bpffs]).unwrap();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("link-connect4") && said.contains("link-getpeername6"), "{said}");
    let before = others_calls();
    assert!(ask(&node, addr(L4, HTTP)).is_err(), "nothing is left of ours");
    assert!(others_calls() > before, "the other one stays");

    // A configuration without it ends what one with it began.
    node.start_agent(&text).unwrap();
    assert_eq!(links(&node).len(), 8);
    node.agent = None;
    let line = format!("    connect: {{ cgroup: {} }}\n", group.path().display());
    let without = text.replace(&line, "");
    assert_ne!(without, text);
    node.start_agent(&without).unwrap();
    assert!(links(&node).is_empty(), "{:?}", links(&node));
    node.agent = None;
    fs::remove_dir(&missing).unwrap();
}
