//! The topology of the demo and of the node tests: a client, a node, and endpoints behind it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    agent::Agent,
    netns::{End, Ns, link, tool},
    origin::Origin,
};

/// HTTP port of every origin.
pub const HTTP: u16 = 8080;
/// TCP port of every origin, which answers each connection with its name.
pub const TCP: u16 = 9000;
/// UDP port of every origin, which answers each packet with its name.
pub const UDP: u16 = 9001;

/// Everything, in the order in which it has to go.
#[derive(Debug)]
pub struct Node {
    /// The agent, once started.
    pub agent: Option<Agent>,
    /// Servers at the endpoints, by index.
    pub origins: Vec<Option<Origin>>,
    /// Where the client is.
    pub client: Ns,
    /// Where the agent is.
    pub node: Ns,
    /// Where the endpoints are.
    pub endpoints: Vec<Ns>,
    /// A folder for configuration and certificates.
    pub folder: PathBuf,
    bpffs: PathBuf,
    keep: bool,
}

impl Node {
    /// Makes namespaces and links, and starts an origin at each of `n` endpoints.
    pub fn new(n: u8) -> Result<Self> {
        let client = Ns::new("client")?;
        let node = Ns::new("node")?;
        let folder = std::env::temp_dir().join(node.name());
        let bpffs = folder.join("bpf");
        fs::create_dir_all(&bpffs).with_context(|| format!("cannot make {}", bpffs.display()))?;
        let mut made = Self {
            agent: None,
            origins: Vec::new(),
            client,
            node,
            endpoints: Vec::new(),
            folder,
            bpffs,
            keep: false,
        };
        tool("mount", &format!("-t bpf bpf {}", made.bpffs.display()))?;
        link(
            End { ns: &made.client, name: "uplink", v4: "10.7.0.2", v6: "fd07::2" },
            End { ns: &made.node, name: "sl-client", v4: "10.7.0.1", v6: "fd07::1" },
        )?;
        made.client.ip("route add default via 10.7.0.1")?;
        made.client.ip("-6 route add default via fd07::1")?;
        for idx in 0..n {
            let ns = Ns::new(&format!("e{}", idx + 1))?;
            let (v4, v6) = (Self::gateway_v4(idx), Self::gateway_v6(idx));
            link(
                End { ns: &ns, name: "uplink", v4: &Self::v4(idx), v6: &Self::v6(idx) },
                End { ns: &made.node, name: &format!("sl-e{}", idx + 1), v4: &v4, v6: &v6 },
            )?;
            ns.ip(&format!("route add default via {v4}"))?;
            ns.ip(&format!("-6 route add default via {v6}"))?;
            made.endpoints.push(ns);
            made.origins.push(None);
            made.start_origin(usize::from(idx))?;
        }
        Ok(made)
    }

    /// Starts the origin of an endpoint.
    pub fn start_origin(&mut self, idx: usize) -> Result<()> {
        let ns = &self.endpoints[idx];
        self.origins[idx] = Some(Origin::start(ns, &format!("e{}", idx + 1))?);
        Ok(())
    }

    /// IPv4 address of an endpoint.
    pub fn v4(idx: u8) -> String {
        format!("10.7.{}.2", idx + 1)
    }

    /// IPv6 address of an endpoint.
    pub fn v6(idx: u8) -> String {
        format!("fd07:{}::2", idx + 1)
    }

    fn gateway_v4(idx: u8) -> String {
        format!("10.7.{}.1", idx + 1)
    }

    fn gateway_v6(idx: u8) -> String {
        format!("fd07:{}::1", idx + 1)
    }

    /// The BPF file system of this node.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// The folder with tables and links.
    pub fn pins(&self) -> PathBuf {
        self.bpffs
            .join(gateway_common::layout::PIN_ROOT)
            .join(format!("v{}", gateway_common::layout::LAYOUT_VERSION))
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.join("sluice.yaml")
    }

    /// Writes the configuration at once, as an editor or a mounted `ConfigMap` does.
    pub fn write_config(&self, text: &str) -> Result<()> {
        let new = self.folder.join("sluice.yaml.new");
        fs::write(&new, text).context("cannot write the configuration")?;
        fs::rename(&new, self.config()).context("cannot replace the configuration")
    }

    /// The `agent` part of a configuration for this node.
    pub fn agent_part(&self, mode: &str) -> String {
        format!(
            "agent:\n  workers: 2\n  drainDeadline: 5s\n  admin: {{ address: \"127.0.0.1:9901\" }}\n  kernel:\n    mode: {mode}\n    interfaces: [\"sl-*\"]\n    attach: native\n    bpffs: {}\n",
            self.bpffs.display()
        )
    }

    /// Starts the agent with a configuration and waits until it is ready.
    pub fn start_agent(&mut self, config: &str) -> Result<()> {
        self.write_config(config)?;
        let agent = Agent::start(&self.node, &self.config(), &self.folder.join("agent.log"))?;
        self.agent = Some(agent);
        Ok(())
    }

    /// The running agent.
    ///
    /// # Panics
    /// When none was started.
    pub fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("the agent was started")
    }

    /// Leaves namespaces and processes where they are when the value is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
        self.client.keep();
        self.node.keep();
        self.endpoints.iter_mut().for_each(Ns::keep);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        self.agent = None;
        self.origins.clear();
        // What is not there any more needs no removal.
        drop(tool("umount", &format!("-l {}", self.bpffs.display())));
        drop(fs::remove_dir_all(&self.folder));
    }
}
