//! Packets through tunnels to an endpoint whose agent opens them, and back to the client without this node.

use std::{collections::BTreeMap, fmt::Write as _, fs, net::SocketAddr, path::PathBuf, time::Duration};

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
        self.agent = None;
        let text = format!(
            "agent:\n  workers: 1\n  kernel:\n    mode: required\n    bpffs: {}\n    interfaces: [none]\n    receive: {{ peers: \
             [{peers}], interfaces: [up*] }}\nlisteners: []\nroutes: []\nservices: []\n",
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
    receiver.start(&node.endpoints[0], "172.16.0.0/16, \"100::/96\"");
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
    receiver.start(&node.endpoints[0], "172.16.0.0/16, \"100::/96\"");
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
