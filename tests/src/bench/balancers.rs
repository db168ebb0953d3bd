//! Nodes that balance in different ways, side by side: each with a client and endpoints of its own, in namespaces.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::traffic::{self, PORTS};
use crate::{
    agent::{Agent, get, metric},
    netns::{Ns, tool},
};

/// Endpoints: so many hosts, with so many ports each as [`PORTS`] has.
const HOSTS: u8 = 2;
/// The virtual address, and its port.
const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 1);
const PORT: u16 = 80;
/// The kernel's and the agent's ports of the node, which must not overlap.
const LOCAL_PORTS: &str = "10000 20000";
const TRANSLATION_PORTS: &str = "20001-65535";

/// How a node leads packets to endpoints.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// The client knows the endpoints, and the node only routes: what everything else is more than.
    Routed,
    /// nftables translates the destination of each connection.
    Nftables,
    /// The agent, with native XDP.
    SluiceXdp,
    /// The agent, at TC, which is what it chooses here by itself.
    SluiceTc,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Routed, Self::Nftables, Self::SluiceXdp, Self::SluiceTc];

    /// Who it is in the tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Routed => "routing alone",
            Self::Nftables => "nftables",
            Self::SluiceXdp => "sluice, XDP",
            Self::SluiceTc => "sluice, TC",
        }
    }

    /// What the agent calls its hook, in its own words and in metrics, and how it is told which.
    const fn hook(self) -> Option<(&'static str, &'static str, &'static str)> {
        match self {
            Self::Routed | Self::Nftables => None,
            Self::SluiceXdp => Some(("native XDP", "xdp_balance", "native")),
            Self::SluiceTc => Some(("TC", "tc_ingress", "auto")),
        }
    }
}

/// A client, a node and endpoints.
#[derive(Debug)]
pub struct Balancer {
    /// How it balances.
    pub way: Way,
    /// Where the client is.
    pub client: Ns,
    /// What clients connect to.
    pub addrs: Vec<SocketAddr>,
    agent: Option<Agent>,
    node: Ns,
    _ends: Vec<Ns>,
    folder: tempfile::TempDir,
}

impl Balancer {
    /// Makes all of it, and looks whether it answers in the way that it should.
    ///
    /// # Errors
    /// When it does not.
    pub fn new(way: Way) -> Result<Self> {
        let (client, node) = (Ns::new("client")?, Ns::new("node")?);
        let is_xdp = way == Way::SluiceXdp;
        link(&client, &node, "sl-client", 0, is_xdp)?;
        node.tool("sysctl", "-qw net.ipv4.ip_forward=1")?;
        for ns in [&client, &node] {
            ns.run(|| fs::write("/proc/sys/net/ipv4/ip_local_port_range", LOCAL_PORTS))?;
        }
        let mut ends = Vec::new();
        for host in 1..=HOSTS {
            let end = Ns::new(&format!("e{host}"))?;
            link(&end, &node, &format!("sl-e{host}"), host, is_xdp)?;
            traffic::serve(&end, address(host))?;
            ends.push(end);
        }
        let folder = tempfile::tempdir()?;
        let addrs = vec![SocketAddr::from((VIRTUAL, PORT))];
        let mut made = Self { way, client, addrs, agent: None, node, _ends: ends, folder };
        match way.hook() {
            None if way == Way::Nftables => made.translate()?,
            None => made.addrs = endpoints().collect(),
            Some((hook, _, attach)) => made.balance(hook, attach)?,
        }
        for addr in &made.addrs {
            traffic::answers(&made.client, *addr).with_context(|| way.name().to_owned())?;
        }
        Ok(made)
    }

    fn translate(&self) -> Result<()> {
        let mut targets = String::new();
        for (idx, addr) in endpoints().enumerate() {
            let comma = if idx == 0 { "" } else { ", " };
            write!(targets, "{comma}{idx} : {} . {}", addr.ip(), addr.port())?;
        }
        let n = endpoints().count();
        let file = self.folder.path().join("rules");
        fs::write(
            &file,
            format!(
                "table ip balance {{\nchain pre {{\ntype nat hook prerouting priority -100;\n\
                 ip daddr {VIRTUAL} tcp dport {PORT} counter dnat ip to numgen inc mod {n} map {{ {targets} }}\n}}\n}}\n"
            ),
        )?;
        self.node.tool("nft", &format!("-f {}", file.display())).map(drop)
    }

    fn balance(&mut self, hook: &str, attach: &str) -> Result<()> {
        let folder = self.folder.path();
        let bpffs = folder.join("bpf");
        fs::create_dir(&bpffs)?;
        tool("mount", &format!("-t bpf bpf {}", bpffs.display()))?;
        let mut text = format!(
            "agent:\n  workers: 1\n  admin: {{ address: \"127.0.0.1:9901\" }}\n  kernel:\n    mode: required\n    interfaces: [\"sl-*\"]\n    attach: {attach}\n    translationPorts: {TRANSLATION_PORTS}\n    bpffs: {}\n\
             listeners: [ {{ name: l4, address: {VIRTUAL}, port: {PORT}, protocol: TCP }} ]\n\
             routes: [ {{ name: l4, listeners: [l4], rules: [ {{ backends: [ {{ service: l4 }} ] }} ] }} ]\n\
             services:\n- name: l4\n  endpoints:\n",
            bpffs.display()
        );
        for addr in endpoints() {
            writeln!(text, "  - {{ address: {}, port: {} }}", addr.ip(), addr.port())?;
        }
        let config = folder.join("sluice.yaml");
        fs::write(&config, text)?;
        self.agent = Some(Agent::start(&self.node, &config, &folder.join("agent.log"))?);
        let (_, dump) = self.node.run(|| get("/dump")).context("the agent does not answer")?;
        let dump: serde_json::Value = serde_json::from_str(&dump)?;
        let attachments = dump["kernel"]["attachments"].as_object().context("no attachments in the dump")?;
        ensure!(
            attachments.len() == usize::from(HOSTS) + 1
                && attachments.values().all(|one| one["ingress"] == hook),
            "the hooks are {attachments:?}"
        );
        Ok(())
    }

    /// How many connections, or at least packets of them, went the way that they should; none where nobody counts.
    ///
    /// # Errors
    /// When nobody says.
    pub fn balanced(&self) -> Result<Option<u64>> {
        if let Some((_, hook, _)) = self.way.hook() {
            let (_, text) = self.node.run(|| get("/metrics")).context("the agent does not answer")?;
            let name = format!("sluice_packets_total{{hook=\"{hook}\",reason=\"replied\"}}");
            let count = metric(&text, &name).with_context(|| format!("there is no {name}"))?;
            return Ok(Some(format!("{count:.0}").parse()?));
        }
        if self.way == Way::Routed {
            return Ok(None);
        }
        let rules = self.node.tool("nft", "list table ip balance")?;
        let Some((_, rest)) = rules.split_once("counter packets ") else { bail!("no counter in {rules}") };
        Ok(Some(rest.split_whitespace().next().context("no count")?.parse()?))
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.agent = None;
        if self.way.hook().is_some() {
            // The folder can only go without a file system on it.
            drop(tool("umount", &format!("-l {}", self.folder.path().join("bpf").display())));
        }
    }
}

fn address(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 7, host, 2)
}

fn endpoints() -> impl Iterator<Item = SocketAddr> {
    (1..=HOSTS).flat_map(|host| PORTS.into_iter().map(move |port| SocketAddr::from((address(host), port))))
}

/// Connects a host to its node, and leads everything of it there. As the kernel makes links, with all that their ends
/// leave to each other; only for XDP that sends packets, checksums are made by the sender, and ends poll.
fn link(host: &Ns, node: &Ns, name: &str, net: u8, is_xdp: bool) -> Result<()> {
    host.ip(&format!("link add uplink type veth peer name {name} netns {}", node.name()))?;
    host.ip(&format!("addr add {}/24 dev uplink", address(net)))?;
    node.ip(&format!("addr add 10.7.{net}.1/24 dev {name}"))?;
    for (ns, end) in [(host, "uplink"), (node, name)] {
        ns.ip(&format!("link set {end} up"))?;
        if is_xdp {
            ns.tool("ethtool", &format!("-K {end} tx off gro on"))?;
        }
    }
    host.ip(&format!("route add default via 10.7.{net}.1"))
}
