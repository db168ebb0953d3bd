//! Metrics of tunnels: what clients speak instead of HTTP.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Counters that are written when a tunnel begins and ends.
#[derive(Clone, Debug, Default)]
pub struct Tunnels {
    open: Family<OpenLabels, Gauge>,
    ended: Family<EndedLabels, Counter>,
    bytes: Family<BytesLabels, Counter>,
}

impl Tunnels {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("tunnels_open", "Tunnels that are open or being opened", self.open.clone());
        registry.register("tunnels", "Tunnels that were open, by how they ended", self.ended.clone());
        registry.register(
            "tunnel_bytes",
            "Bytes of tunnels by who sent them; counted when they end",
            self.bytes.clone(),
        );
    }

    /// A place among the tunnels of an address; none when there are `most`.
    pub fn begin(&self, addr: SocketAddr, kind: TunnelKind, most: usize) -> Option<OpenTunnel> {
        let address = addr.to_string();
        let gauge = self.open.get_or_create(&OpenLabels { address: address.clone() }).clone();
        let before = gauge.inc();
        if usize::try_from(before).unwrap_or_default() >= most {
            gauge.dec();
            return None;
        }
        let moved = Arc::new(Moved::default());
        Some(OpenTunnel { tunnels: self.clone(), gauge, address, kind, moved, outcome: None })
    }

    pub(super) fn forget(&self, addr: SocketAddr) {
        let address = addr.to_string();
        self.open.remove(&OpenLabels { address: address.clone() });
        for kind in TunnelKind::ALL.map(TunnelKind::as_str) {
            for outcome in TunnelOutcome::ALL.map(TunnelOutcome::as_str) {
                self.ended.remove(&EndedLabels { address: address.clone(), kind, outcome });
            }
        }
        for from in SENDERS {
            self.bytes.remove(&BytesLabels { address: address.clone(), from });
        }
    }
}

/// What is spoken in a tunnel, as far as it is known; the closed set behind the label `kind`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum TunnelKind {
    /// WebSocket.
    WebSocket,
    /// Whatever follows CONNECT.
    Connect,
}

impl TunnelKind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::WebSocket, Self::Connect];

    /// The value of the label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Connect => "connect",
        }
    }
}

/// How a tunnel ended; the closed set behind the label `outcome`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum TunnelOutcome {
    /// By both sides.
    Ended,
    /// One side broke off, or its endpoint went down.
    Broken,
    /// Nothing moved for too long.
    Idle,
    /// The agent ends, or does not serve the address any more.
    Drained,
}

impl TunnelOutcome {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ended, Self::Broken, Self::Idle, Self::Drained];

    /// The value of the label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Broken => "broken",
            Self::Idle => "idle",
            Self::Drained => "drained",
        }
    }
}

/// Bytes that were taken from each side of a tunnel.
#[derive(Debug, Default)]
pub struct Moved {
    from_client: AtomicU64,
    from_endpoint: AtomicU64,
}

impl Moved {
    /// The client sent so many.
    pub fn from_client(&self, n_bytes: usize) {
        self.from_client.fetch_add(u64::try_from(n_bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The endpoint sent so many.
    pub fn from_endpoint(&self, n_bytes: usize) {
        self.from_endpoint.fetch_add(u64::try_from(n_bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Both together, for whoever looks whether anything moves.
    pub fn sum(&self) -> u64 {
        self.from_client.load(Ordering::Relaxed).wrapping_add(self.from_endpoint.load(Ordering::Relaxed))
    }
}

/// A place among the tunnels of an address; it is counted when it is dropped, if it came to a tunnel.
#[derive(Debug)]
pub struct OpenTunnel {
    tunnels: Tunnels,
    gauge: Gauge,
    address: String,
    kind: TunnelKind,
    moved: Arc<Moved>,
    outcome: Option<TunnelOutcome>,
}

impl OpenTunnel {
    /// The endpoint agreed.
    pub const fn open(&mut self) {
        self.end(TunnelOutcome::Broken);
    }

    /// How it ends; what is not said is broken.
    pub const fn end(&mut self, outcome: TunnelOutcome) {
        self.outcome = Some(outcome);
    }

    /// What moved.
    pub const fn moved(&self) -> &Arc<Moved> {
        &self.moved
    }
}

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.gauge.dec();
        let Some(outcome) = self.outcome else { return };
        let (kind, outcome) = (self.kind.as_str(), outcome.as_str());
        let labels = EndedLabels { address: self.address.clone(), kind, outcome };
        self.tunnels.ended.get_or_create(&labels).inc();
        let counts = [&self.moved.from_client, &self.moved.from_endpoint];
        for (from, count) in SENDERS.into_iter().zip(counts) {
            let labels = BytesLabels { address: self.address.clone(), from };
            self.tunnels.bytes.get_or_create(&labels).inc_by(count.load(Ordering::Relaxed));
        }
    }
}

/// Labels of open tunnels.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OpenLabels {
    address: String,
}

/// Labels of tunnels that ended.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct EndedLabels {
    address: String,
    kind: &'static str,
    outcome: &'static str,
}

/// Labels of bytes.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct BytesLabels {
    address: String,
    from: &'static str,
}

/// Both sides of a tunnel.
const SENDERS: [&str; 2] = ["client", "endpoint"];
