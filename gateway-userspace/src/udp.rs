//! Balanced UDP without the kernel's help: one connected socket per flow, replies from the virtual address.
//!
//! A flow begins with a client's datagram and ends after a silence, when the table is full and it is the oldest, or when
//! its endpoint goes down; the next datagram then picks again.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::SocketAddr,
    sync::Arc,
};

use gateway_common::addr::Protocol;
use parking_lot::Mutex;
use tokio::{net::UdpSocket, task::AbortHandle};

use crate::{
    balance::Tried,
    clock::Clock,
    drain::{Drain, Tasks},
    endpoint::{Active, Health},
    guard::{Refused, Sources},
    limits,
    memory::{Level, Memory},
    metrics::{
        Metrics,
        names::{BindLabels, Limit},
    },
    net::connect,
    state::{Bind, BindKey, Published},
};

/// The largest datagram there is.
const DATAGRAM_BYTES: usize = 65_535;

/// What datagrams of one address are forwarded with, on one worker.
#[derive(Clone, Debug)]
pub struct Forwarder {
    /// The address.
    pub bind: BindKey,
    /// The state that is served now.
    pub published: Arc<Published>,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Ages flows.
    pub clock: Clock,
    /// Runs the replies.
    pub tasks: Tasks,
    /// Whose numbers they are.
    pub labels: BindLabels,
    /// What is remembered of sources, where no kernel program guards the address.
    pub guard: Option<Arc<Sources>>,
    /// Says when memory is scarce: then no flow begins.
    pub memory: Arc<Memory>,
}

struct Flow {
    socket: Arc<UdpSocket>,
    active: Active,
    seen: Arc<Mutex<std::time::Instant>>,
    replies: AbortHandle,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.replies.abort();
    }
}

/// Flows by client, and the clients in the order in which their flows began.
#[derive(Default)]
struct Flows {
    by_client: HashMap<SocketAddr, Flow>,
    order: VecDeque<SocketAddr>,
}

type Table = Arc<Mutex<Flows>>;

impl Forwarder {
    /// Forwards datagrams from `socket` until `closing` begins.
    pub async fn serve(self, socket: UdpSocket, mut closing: Drain) {
        let socket = Arc::new(socket);
        let table = Table::default();
        let mut datagram = vec![0; DATAGRAM_BYTES];
        loop {
            let received = tokio::select! {
                biased;
                () = closing.begun() => return,
                received = socket.recv_from(&mut datagram) => received,
            };
            match received {
                Ok((n, client)) => {
                    let bytes = datagram.get(..n).unwrap_or_default();
                    if let Err(cause) = self.forward(&table, &socket, client, bytes) {
                        tracing::debug!(%cause, bind = %self.bind, "a datagram was lost");
                    }
                }
                // An ICMP error about an earlier reply.
                Err(cause) => tracing::debug!(%cause, bind = %self.bind, "a reply did not arrive"),
            }
        }
    }

    fn forward(
        &self,
        table: &Table,
        socket: &Arc<UdpSocket>,
        client: SocketAddr,
        bytes: &[u8],
    ) -> io::Result<()> {
        if let Some(refused) = self.denies(client) {
            self.metrics.families.guarded.count(&self.labels, refused.as_str());
            return Ok(());
        }
        let mut flows = table.lock();
        if flows.by_client.get(&client).is_some_and(|flow| flow.active.endpoint().health() == Health::Down) {
            flows.by_client.remove(&client);
        }
        if !flows.by_client.contains_key(&client) {
            if let Some(refused) = self.limits(client) {
                self.metrics.families.guarded.count(&self.labels, refused.as_str());
                return Ok(());
            }
            if self.memory.level() != Level::Enough {
                self.metrics.families.limit(Limit::MemoryConnections);
                return Ok(());
            }
            let Some(flow) = self.begin(table, socket, client)? else { return Ok(()) };
            while flows.by_client.len() >= limits::UDP_FLOWS {
                let Some(oldest) = flows.order.pop_front() else { break };
                if flows.by_client.remove(&oldest).is_some() {
                    self.metrics.families.limit(Limit::UdpFlows);
                }
            }
            flows.by_client.insert(client, flow);
            flows.order.push_back(client);
            if flows.order.len() > limits::UDP_FLOWS * 2 {
                let Flows { by_client, order } = &mut *flows;
                order.retain(|client| by_client.contains_key(client));
            }
        }
        if let Some(flow) = flows.by_client.get(&client) {
            *flow.seen.lock() = self.clock.now();
            // Straight to the kernel: the runtime does not know yet that a new socket can be written to.
            match socket2::SockRef::from(&*flow.socket).send(bytes) {
                // A full buffer drops a datagram, as any router would.
                Err(cause) if cause.kind() != io::ErrorKind::WouldBlock => return Err(cause),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Whether datagrams of a client are dropped, and why.
    fn denies(&self, client: SocketAddr) -> Option<Refused> {
        self.guard.as_ref()?;
        self.published.load().guards.lists.refuses(client.ip())
    }

    /// Whether a client may not begin a flow, and why.
    fn limits(&self, client: SocketAddr) -> Option<Refused> {
        let sources = self.guard.as_ref()?;
        self.published.load().guards.limits(self.bind, client.ip(), sources)
    }

    /// A new flow to the endpoint that the kernel would pick; none when there is no endpoint.
    fn begin(&self, table: &Table, socket: &Arc<UdpSocket>, client: SocketAddr) -> io::Result<Option<Flow>> {
        let state = self.published.load();
        let Some(Bind::Balanced(balanced)) = state.binds.get(&self.bind) else { return Ok(None) };
        let key = balanced.flow(client, self.bind.addr, Protocol::UDP);
        let member = balanced.balancer.pick(&key, &Tried::default());
        let Some(member) = member.and_then(|idx| balanced.balancer.members().get(idx)) else {
            return Ok(None);
        };
        let upstream = Arc::new(connect::udp(member.endpoint.addr(), balanced.options)?);
        let seen = Arc::new(Mutex::new(self.clock.now()));
        let replies = Replies {
            client,
            downstream: Arc::clone(socket),
            upstream: Arc::clone(&upstream),
            seen: Arc::clone(&seen),
            clock: self.clock.clone(),
        };
        let table = Arc::downgrade(table);
        let task = self.tasks.spawn("udp replies", async move {
            let upstream = replies.run().await;
            if let Some(table) = table.upgrade() {
                let mut flows = table.lock();
                // The client may have a newer flow by now.
                if flows.by_client.get(&client).is_some_and(|flow| Arc::ptr_eq(&flow.socket, &upstream)) {
                    flows.by_client.remove(&client);
                }
            }
        });
        let active = member.endpoint.begin();
        Ok(Some(Flow { socket: upstream, active, seen, replies: task.abort_handle() }))
    }
}

/// The way back of one flow.
struct Replies {
    client: SocketAddr,
    downstream: Arc<UdpSocket>,
    upstream: Arc<UdpSocket>,
    seen: Arc<Mutex<std::time::Instant>>,
    clock: Clock,
}

impl Replies {
    /// Copies replies until the flow has been silent for too long.
    async fn run(self) -> Arc<UdpSocket> {
        let mut datagram = vec![0; DATAGRAM_BYTES];
        loop {
            match tokio::time::timeout(limits::UDP_FLOW_IDLE, self.upstream.recv(&mut datagram)).await {
                Ok(Ok(n)) => {
                    *self.seen.lock() = self.clock.now();
                    let bytes = datagram.get(..n).unwrap_or_default();
                    if let Err(cause) = self.downstream.send_to(bytes, self.client).await {
                        tracing::debug!(%cause, "a reply was lost");
                    }
                }
                // Nobody listens at the endpoint now; it may come back.
                Ok(Err(cause)) => tracing::debug!(%cause, "an endpoint refuses datagrams"),
                Err(_) => {
                    let silent = self.clock.now().duration_since(*self.seen.lock());
                    if silent >= limits::UDP_FLOW_IDLE {
                        return self.upstream;
                    }
                }
            }
        }
    }
}
