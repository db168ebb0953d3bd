//! Packets through tunnels to an endpoint whose agent opens them, and back to the client without this node.

use std::{
    collections::BTreeMap, fmt::Write as _, fs, net::SocketAddr, path::PathBuf, thread, time::Duration,
};

use gateway_tests::{
    agent::{Agent, get, metric, sluice},
    client,
    netns::{End, Ns, link, tool},
    node::{HTTP, Node},
    privilege,
};

use super::{addr, alone, until};

/// An endpoint's own agent, which opens tunnels and does nothing else.
struct Receiver {
    agent: Option<Agent>,
    folder: PathBuf,
}

impl Receiver {
    fn new(ns: &Ns) -> Self {
        let folder = std::env::temp_dir().join(format!("{}-receiver", ns.name()));
        fs::create_dir_all(folder.join("bpf")).unwrap();
        tool("mount", &format!("-t bpf bpf {}", folder.join("bpf").display())).unwrap();
        Self { agent: None, folder }
    }

    fn start(&mut self, ns: &Ns, peers: &str) {
        self.start_at(ns, peers, GUE);
    }

    /// Opens tunnels over UDP at this port.
    fn start_at(&mut self, ns: &Ns, peers: &str, port: u16) {
        self.agent = None;
        let text = format!(
            "agent:\n  workers: 1\n  kernel:\n    mode: required\n    bpffs: {}\n    interfaces: [none]\n    receive: {{ peers: \
             [{peers}], interfaces: [up*], port: {port} }}\nlisteners: []\nroutes: []\nservices: []\n",
            self.bpffs().display()
        );
        fs::write(self.folder.join("sluice.yaml"), text).unwrap();
        let agent =
            Agent::start(ns, &self.folder.join("sluice.yaml"), &self.folder.join("agent.log")).unwrap();
        self.agent = Some(agent);
    }

    fn bpffs(&self) -> PathBuf {
        self.folder.join("bpf")
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.agent = None;
        drop(tool("umount", &format!("-l {}", self.folder.join("bpf").display())));
        drop(fs::remove_dir_all(&self.folder));
    }
}

/// Where balancing nodes send what goes over UDP.
const GUE: u16 = 6080;

/// Everybody that balances.
const PEERS: &str = "172.16.0.0/16, \"100::/96\"";

/// Virtual addresses by how their packets get to the endpoint.
const WAYS: [(&str, &str, &str, &str); 8] = [
    ("4-ipip-4", "10.8.0.2", "dsr-ipip", "v4"),
    ("4-gue-4", "10.8.0.3", "dsr-gue", "v4"),
    ("4-ipip-6", "10.8.0.4", "dsr-ipip", "v6"),
    ("4-gue-6", "10.8.0.5", "dsr-gue", "v6"),
    ("6-ipip-4", "fd08::2", "dsr-ipip", "v4"),
    ("6-gue-4", "fd08::3", "dsr-gue", "v4"),
    ("6-ipip-6", "fd08::4", "dsr-ipip", "v6"),
    ("6-gue-6", "fd08::5", "dsr-gue", "v6"),
];

fn config(node: &Node, health: &str) -> String {
    let (mut listeners, mut routes) = (String::new(), String::new());
    for (name, vip, forwarding, service) in WAYS {
        writeln!(listeners,
            "  - {{ name: \"{name}\", address: \"{vip}\", port: {HTTP}, protocol: TCP, forwarding: {forwarding} }}"
        ).unwrap();
        writeln!(routes,
            "  - {{ name: \"{name}\", listeners: [\"{name}\"], rules: [ {{ backends: [ {{ service: {service} }} ] }} ] }}"
        ).unwrap();
    }
    let (v4, v6) = (Node::v4(0), Node::v6(0));
    node.agent_part("required")
        + &format!(
            "listeners:\n{listeners}routes:\n{routes}services:\n  - {{ name: v4, endpoints: [ {{ address: {v4}, port: {HTTP} }} ]{health} }}\n  \
             - {{ name: v6, endpoints: [ {{ address: \"{v6}\", port: {HTTP} }} ]{health} }}\n"
        )
}

/// The endpoint owns the virtual addresses and has a way to the client that does not pass the node.
fn with_addresses(node: &Node) {
    let ns = &node.endpoints[0];
    link(
        End { ns, name: "back", v4: "10.9.0.2", v6: "fd09::2" },
        End { ns: &node.client, name: "back0", v4: "10.9.0.1", v6: "fd09::1" },
    )
    .unwrap();
    for (_, vip, ..) in WAYS {
        let length = if vip.contains(':') { "128 dev lo nodad" } else { "32 dev lo" };
        ns.ip(&format!("addr add {vip}/{length}")).unwrap();
    }
    ns.ip("route add 10.7.0.2/32 via 10.9.0.1").unwrap();
    ns.ip("-6 route add fd07::2/128 via fd09::1").unwrap();
}

fn ask(node: &Node, vip: &str) -> Option<String> {
    let to: SocketAddr = addr(vip, HTTP);
    let answer = node.client.run(|| client::get(to, "l4", "/", Duration::from_millis(400)));
    answer.ok().map(|(_, body)| body)
}

/// Packets at the endpoint's hook that ended so.
fn counted(node: &Node, reason: &str) -> f64 {
    let text = node.endpoints[0].run(|| get("/metrics")).map_or(String::new(), |(_, text)| text);
    let name = format!("sluice_packets_total{{hook=\"tc_receive\",reason=\"{reason}\"}}");
    metric(&text, &name).unwrap_or(0.0)
}

#[test]
fn tunnels_end_at_an_endpoint_that_opens_them() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(1).unwrap();
    with_addresses(&node);
    let text = config(&node, "");
    node.start_agent(&text).unwrap();
    assert_eq!(ask(&node, WAYS[0].1), None, "nobody opens the tunnel yet");

    let mut receiver = Receiver::new(&node.endpoints[0]);
    receiver.start(&node.endpoints[0], PEERS);
    for (name, vip, ..) in WAYS {
        until(name, Duration::from_secs(3), &node, || ask(&node, vip).is_some());
        let opened = counted(&node, "decapsulated");
        assert_eq!(ask(&node, vip).as_deref(), Some("e1"), "{name}");
        assert!(counted(&node, "decapsulated") >= opened + 4.0, "{name}: a connection has more packets");
    }
    let answers: BTreeMap<&str, usize> = WAYS
        .iter()
        .map(|(name, vip, ..)| (*name, (0..20).filter(|_| ask(&node, vip).is_some()).count()))
        .collect();
    assert!(answers.values().all(|n| *n == 20), "{answers:?}");
    assert!(counted(&node, "tunnel_stranger") < 1.0);
    assert!(counted(&node, "bad_tunnel") < 1.0);

    // A balancing node that is no peer is refused, and counted. Links and pins are taken over.
    receiver.start(&node.endpoints[0], "10.99.0.0/16");
    assert_eq!(ask(&node, WAYS[0].1), None);
    assert_eq!(ask(&node, WAYS[7].1), None);
    assert!(counted(&node, "tunnel_stranger") >= 2.0);
    let text = node.endpoints[0].run(|| get("/dump")).unwrap().1;
    let dump: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(dump["kernel"]["receiving"], serde_json::json!(["uplink"]));
    assert_eq!(dump["kernel"]["attachments"], serde_json::json!({}), "nothing balances there");

    // The program stays without its agent, until the host is put back.
    receiver.agent = None;
    let pins = fs::read_dir(receiver.bpffs().join("sluice")).unwrap().count();
    assert!(pins > 0);
    let bpffs = receiver.bpffs().to_str().unwrap().to_owned();
    let (code, said) = sluice(&node.endpoints[0], &["cleanup", "--bpffs", &bpffs]).unwrap();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("link-tc_receive-uplink"), "{said}");
}

/// Whether the balancing node takes the endpoint of a service for alive.
fn is_up(node: &Node, service: &str) -> bool {
    let text = node.node.run(|| get("/metrics")).map_or(String::new(), |(_, text)| text);
    let name = format!("sluice_endpoint_up{{service=\"{service}\"");
    metric(&text, &name).is_some_and(|up| up > 0.5)
}

#[test]
fn health_checks_take_the_tunnel() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(1).unwrap();
    with_addresses(&node);
    let text = config(&node, ", health: { http: { path: /healthz } }");
    node.start_agent(&text).unwrap();
    let patience = Duration::from_secs(8);
    let both = |node: &Node, up: bool| is_up(node, "v4") == up && is_up(node, "v6") == up;
    until("nothing opens the tunnel", patience, &node, || both(&node, false));
    let straight = node
        .node
        .run(|| client::get(addr(&Node::v4(0), HTTP), "l4", "/healthz", Duration::from_secs(1)).unwrap().0);
    assert_eq!(straight, 200, "the endpoint's own address answers");

    let mut receiver = Receiver::new(&node.endpoints[0]);
    receiver.start(&node.endpoints[0], PEERS);
    until("the tunnel is open", patience, &node, || both(&node, true));
    for (name, vip, ..) in WAYS {
        assert_eq!(ask(&node, vip).as_deref(), Some("e1"), "{name}");
    }

    // The virtual address that checks of one family ask for is nobody's any more.
    node.endpoints[0].ip(&format!("addr del {}/32 dev lo", WAYS[0].1)).unwrap();
    until("the virtual address is gone", patience, &node, || !is_up(&node, "v4"));
    assert!(is_up(&node, "v6"));
    node.endpoints[0].ip(&format!("addr add {}/32 dev lo", WAYS[0].1)).unwrap();
    until("it is back", patience, &node, || both(&node, true));

    // A process that is gone is noticed at once, through the tunnel too.
    node.origins[0] = None;
    until("the process is gone", Duration::from_millis(2_500), &node, || both(&node, false));

    // Without a listener that needs them, the programs go.
    let pins = || -> Vec<String> {
        let entries = fs::read_dir(node.pins()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert!(pins().contains(&"link-tc_probe_out-sl-e1".to_owned()), "{:?}", pins());
    node.write_config(&(node.agent_part("required") + "listeners: []\nroutes: []\nservices: []\n")).unwrap();
    until("the programs are gone", patience, &node, || !pins().iter().any(|pin| pin.contains("tc_probe")));
}

#[test]
fn checks_through_a_tunnel_leave_no_connection_behind() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    for (protocol, kind, port) in [
        ("http1", "tcp: {}", HTTP),
        ("http1", "http: { path: /healthz }", HTTP),
        // What speaks HTTP/2 keeps a connection until it is told.
        ("h2c", "http: { path: /passwd }", H2C),
    ] {
        let mut node = Node::new(1).unwrap();
        with_addresses(&node);
        let mut server = node.endpoints[0].command("nghttpd");
        let mut server = server.args(["--no-tls", "-d", "/etc", &H2C.to_string()]).spawn().unwrap();
        let mut receiver = Receiver::new(&node.endpoints[0]);
        receiver.start(&node.endpoints[0], PEERS);
        let text = config(
            &node,
            &format!(", protocol: {protocol}, health: {{ {kind}, interval: 200ms, timeout: 150ms }}"),
        );
        node.start_agent(&text.replace(&format!("port: {HTTP}"), &format!("port: {port}"))).unwrap();
        until("the endpoint is up", Duration::from_secs(8), &node, || {
            is_up(&node, "v4") && is_up(&node, "v6")
        });
        thread::sleep(Duration::from_secs(2));
        let left =
            node.endpoints[0].tool("ss", "-Htn state established state close-wait state last-ack").unwrap();
        // Those under way at this moment.
        assert!(left.lines().count() <= 4, "{protocol}, {kind}: {left}");
        server.kill().unwrap();
        server.wait().unwrap();
    }
}

/// Where an endpoint speaks HTTP/2 in plain text.
const H2C: u16 = 8082;

/// What the balancing node's checks say of an endpoint, by the way that they take.
fn ways(node: &Node, service: &str) -> BTreeMap<String, String> {
    let text = node.node.run(|| get("/dump")).map_or(String::new(), |(_, text)| text);
    let dump: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let endpoints = dump["served"]["endpoints"].as_array().cloned().unwrap_or_default();
    let its = endpoints.into_iter().find(|endpoint| endpoint["service"] == service);
    its.map_or_else(BTreeMap::new, |its| serde_json::from_value(its["ways"].clone()).unwrap())
}

fn said(ipip: &str, gue: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("ipip".to_owned(), ipip.to_owned()), ("gue".to_owned(), gue.to_owned())])
}

#[test]
fn each_tunnel_is_checked_by_itself() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(1).unwrap();
    with_addresses(&node);
    let mut receiver = Receiver::new(&node.endpoints[0]);
    // What comes over UDP is opened by nobody.
    receiver.start_at(&node.endpoints[0], PEERS, GUE + 1);
    let text = config(&node, ", health: { http: { path: /healthz } }");
    node.start_agent(&text).unwrap();
    let patience = Duration::from_secs(8);
    let all = |node: &Node, wanted: &BTreeMap<String, String>| {
        ["v4", "v6"].iter().all(|service| ways(node, service) == *wanted)
    };
    let (up, down) = (said("up", "up"), said("up", "down"));
    until("one tunnel of two is open", patience, &node, || all(&node, &down));
    let answers = |node: &Node| -> Vec<(&str, bool)> {
        WAYS.iter().map(|(name, vip, ..)| (*name, ask(node, vip).is_some())).collect()
    };
    let wanted: Vec<_> = WAYS.iter().map(|(name, ..)| (*name, name.contains("ipip"))).collect();
    assert_eq!(answers(&node), wanted);
    assert!(!is_up(&node, "v4") && !is_up(&node, "v6"), "somebody gets nothing there");
    // Whoever asked for an address that no endpoint can be reached for was told.
    let metrics = node.node.run(|| get("/metrics")).unwrap().1;
    let name = "sluice_packets_total{hook=\"xdp_balance\",reason=\"reset_sent\"}";
    assert!(metric(&metrics, name).is_some_and(|n| n >= 4.0), "{metrics}");

    receiver.start(&node.endpoints[0], PEERS);
    until("both are open", patience, &node, || all(&node, &up));
    until("all are served", patience, &node, || answers(&node).iter().all(|(_, served)| *served));
    assert!(is_up(&node, "v4") && is_up(&node, "v6"));

    // Nor is the other way round any different: the address that checks through GUE ask for is gone.
    node.endpoints[0].ip(&format!("addr del {}/32 dev lo", WAYS[1].1)).unwrap();
    until("the address is gone", patience, &node, || ways(&node, "v4") == down);
    assert_eq!(ways(&node, "v6"), up);
    assert_eq!(ask(&node, WAYS[0].1).as_deref(), Some("e1"));

    // Straight to the endpoint is another way, checked as soon as a listener takes it.
    let straight = format!(
        "  - {{ name: straight, address: 10.8.0.9, port: {HTTP}, protocol: TCP }}\nroutes:\n  - {{ name: straight, listeners: \
         [straight], rules: [ {{ backends: [ {{ service: v4 }} ] }} ] }}\n"
    );
    node.write_config(&text.replace("routes:\n", &straight)).unwrap();
    let mut all_ways = down.clone();
    all_ways.insert("straight".to_owned(), "up".to_owned());
    until("three ways are checked", patience, &node, || ways(&node, "v4") == all_ways);
    assert_eq!(ask(&node, "10.8.0.9").as_deref(), Some("e1"));
    node.write_config(&text).unwrap();
    until("two ways are", patience, &node, || ways(&node, "v4") == down);
}
