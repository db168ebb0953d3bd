//! Virtual addresses on a link: neighbors find them, and follow them from one node to the other.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use gateway_tests::{
    agent::{Agent, get, metric, sluice},
    client,
    netns::{Ns, tool},
    privilege,
};

use super::{addr, alone};

const V4: &str = "10.5.0.77";
const V6: &str = "fd05::77";
/// In no network that is announced.
const ELSEWHERE: &str = "10.4.0.1";

/// A node on the link, with an agent of its own.
struct Owner {
    ns: Ns,
    folder: PathBuf,
    agent: Option<Agent>,
}

impl Owner {
    fn new(switch: &Ns, role: &str, number: u8) -> Self {
        let ns = Ns::new(role).unwrap();
        plug(switch, &ns, number);
        // As where direct return has its endpoints, or kube-proxy is strict: a route alone is not enough.
        ns.tool("sysctl", "-qw net.ipv4.conf.all.arp_ignore=1").unwrap();
        let folder = std::env::temp_dir().join(ns.name());
        fs::create_dir_all(folder.join("bpf")).unwrap();
        tool("mount", &format!("-t bpf bpf {}", folder.join("bpf").display())).unwrap();
        Self { ns, folder, agent: None }
    }

    fn bpffs(&self) -> String {
        self.folder.join("bpf").to_str().unwrap().to_owned()
    }

    fn write(&self, addrs: &[&str], extra: &str) {
        let listener = |addr: &&str| {
            let name = addr.replace([':', '.'], "-");
            format!("  - {{ name: \"l{name}\", address: \"{addr}\", port: 80, protocol: HTTP }}\n")
        };
        let listeners: String = addrs.iter().map(listener).collect();
        let listeners = if listeners.is_empty() { " []\n".to_owned() } else { format!("\n{listeners}") };
        let text = format!(
            "agent:\n  workers: 1\n  kernel:\n    mode: required\n    bpffs: {}\n    interfaces: [eth*]\n    attach: tc\n\
             {extra}listeners:{listeners}routes: []\nservices: []\n",
            self.bpffs()
        );
        fs::write(self.folder.join("new"), text).unwrap();
        fs::rename(self.folder.join("new"), self.folder.join("sluice.yaml")).unwrap();
    }

    fn start(&mut self, addrs: &[&str], extra: &str) {
        self.write(addrs, extra);
        let (config, log) = (self.folder.join("sluice.yaml"), self.folder.join("agent.log"));
        self.agent = Some(Agent::start(&self.ns, &config, &log).unwrap());
    }

    fn shown(&self) -> String {
        self.ns.tool("ip", "address show dev eth0").unwrap()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.agent = None;
        drop(tool("umount", &format!("-l {}", self.folder.join("bpf").display())));
        drop(fs::remove_dir_all(&self.folder));
    }
}

/// Gives a namespace an interface on the link that a bridge makes.
fn plug(switch: &Ns, ns: &Ns, number: u8) {
    switch.ip(&format!("link add port{number} type veth peer name eth0 netns {}", ns.name())).unwrap();
    switch.ip(&format!("link set port{number} master br0")).unwrap();
    switch.ip(&format!("link set port{number} up")).unwrap();
    ns.ip(&format!("link set eth0 address 02:00:00:00:05:{number:02x}")).unwrap();
    ns.ip(&format!("address add 10.5.0.{number}/24 dev eth0")).unwrap();
    ns.ip(&format!("address add fd05::{number}/64 dev eth0 nodad")).unwrap();
    ns.ip("link set eth0 up").unwrap();
}

const EXTRA: &str = "    announce: { networks: [10.5.0.0/24, \"fd05::/64\"], interfaces: [eth*] }\n";
const MACS: [&str; 2] = ["02:00:00:00:05:01", "02:00:00:00:05:02"];

/// Whether somebody on the link answers for an address.
fn is_found(client: &Ns, at: &str) -> bool {
    client.run(|| client::get(addr(at, 80), "x", "/", Duration::from_millis(500)).is_ok())
}

/// What the neighbor knows of an address.
fn known(client: &Ns, at: &str) -> String {
    client.tool("ip", &format!("neighbor show {at}")).unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(8), "not in time: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The agent shows what it announced, and counts it.
fn says_what_it_did(owner: &Owner) {
    let (_, dump) = owner.ns.run(|| get("/dump")).unwrap();
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    assert_eq!(dump["kernel"]["announced"], serde_json::json!({ "eth0": [V4, V6] }));
    for family in ["ipv4", "ipv6"] {
        let name = format!("sluice_announcements_total{{family=\"{family}\",outcome=\"sent\"}}");
        until("it was announced three times", || {
            let (_, text) = owner.ns.run(|| get("/metrics")).unwrap();
            metric(&text, &name) == Some(3.0)
        });
    }
}

#[test]
fn neighbors_find_virtual_addresses_and_follow_them() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let switch = Ns::new("switch").unwrap();
    switch.ip("link add br0 type bridge").unwrap();
    switch.ip("link set br0 up").unwrap();
    let client = Ns::new("client").unwrap();
    plug(&switch, &client, 9);
    let mut first = Owner::new(&switch, "first", 1);
    let mut second = Owner::new(&switch, "second", 2);

    // Without being asked to, nobody answers.
    first.start(&[V4, V6], "");
    assert!(!is_found(&client, V4) && !is_found(&client, V6));
    assert!(!first.shown().contains(V4), "{}", first.shown());
    first.agent = None;
    for at in [V4, V6] {
        client.ip("neighbor flush all").unwrap();
        assert!(known(&client, at).is_empty());
    }

    first.start(&[V4, V6, ELSEWHERE], EXTRA);
    for at in [V4, V6] {
        until(at, || is_found(&client, at));
        assert!(known(&client, at).contains(MACS[0]), "{}", known(&client, at));
    }
    assert!(!first.shown().contains(ELSEWHERE), "{}", first.shown());
    says_what_it_did(&first);
    // Connections of the node itself go on with its own addresses.
    for (to, own) in [("10.5.0.9", "src 10.5.0.1 "), ("fd05::9", "src fd05::1 ")] {
        let route = first.ns.tool("ip", &format!("route get {to}")).unwrap();
        assert!(route.contains(own), "{route}");
    }

    // Somebody takes an address away: it comes back.
    first.ns.ip(&format!("address del {V4}/32 dev eth0")).unwrap();
    until("it is assigned again", || first.shown().contains(V4));

    // The addresses move, and the neighbor follows without asking: it hears of them.
    second.start(&[], EXTRA);
    first.write(&[ELSEWHERE], EXTRA);
    until("the first one lets go", || !first.shown().contains(V4) && !first.shown().contains(V6));
    for at in [V4, V6] {
        assert!(known(&client, at).contains(MACS[0]), "{}", known(&client, at));
    }
    second.write(&[V4, V6], EXTRA);
    for at in [V4, V6] {
        until("the neighbor heard of the move", || known(&client, at).contains(MACS[1]));
        until(at, || is_found(&client, at));
    }
    // And back again.
    second.write(&[], EXTRA);
    until("the second one lets go", || !second.shown().contains(V4));
    first.write(&[V4, V6], EXTRA);
    for at in [V4, V6] {
        until("the neighbor heard of the move", || known(&client, at).contains(MACS[0]));
    }

    // Without its agent the node goes on answering, until it is put back. What others assigned stays.
    first.ns.ip("address add 10.5.0.78/32 dev eth0").unwrap();
    first.agent = None;
    client.ip("neighbor flush all").unwrap();
    let _asked = is_found(&client, V6);
    until("the node answers without its agent", || known(&client, V6).contains(MACS[0]));
    let (code, said) = sluice(&first.ns, &["cleanup", "--bpffs", &first.bpffs()]).unwrap();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(V4) && said.contains(V6) && !said.contains("10.5.0.78"), "{said}");
    let shown = first.shown();
    assert!(!shown.contains(V4) && !shown.contains(V6), "{shown}");
    assert!(shown.contains("10.5.0.78") && shown.contains("10.5.0.1/24"), "{shown}");
    let routes = first.ns.tool("ip", "route show table local").unwrap();
    assert!(!routes.contains(V4), "{routes}");
    assert!(second.ns.run(|| get("/ready")).is_some_and(|(status, _)| status == 200));
}
