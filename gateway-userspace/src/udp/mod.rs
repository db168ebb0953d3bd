//! Balanced UDP without the kernel's help: one connected socket per flow, replies from the virtual address.
//!
//! A flow begins with a client's datagram and ends after a silence, when the worker has as many as it may and it is the
//! oldest, or when its endpoint is not one that the next datagram may go to: that one picks again.

mod table;

use std::{
    io::{self, Read as _},
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Instant,
};

use gateway_common::addr::Protocol;
use parking_lot::Mutex;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use socket2::SockRef;
use tokio::{
    io::Interest,
    net::UdpSocket,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::AbortHandle,
};

use crate::{
    balance::{Member, Tried},
    clock::Clock,
    drain::{Drain, Tasks},
    endpoint::{Active, Availability, Health},
    guard::Sources,
    limits,
    memory::{Level, Memory},
    metrics::{
        Metrics,
        datagram::{Loss, Losses},
        names::{BindLabels, Limit},
    },
    net::connect,
    state::{Balanced, Bind, BindKey, Published},
    udp::table::{Key, Table},
};

/// The largest datagram there is.
const DATAGRAM_BYTES: usize = 65_535;

/// What the forwarders of one worker share.
#[derive(Debug)]
pub struct Flows {
    table: Mutex<Table<Flow>>,
    /// Those of connections, where flows take them.
    places: Option<Arc<Semaphore>>,
    /// Room for the reply that is passed on at the moment.
    reply: Mutex<Box<[u8]>>,
}

impl Flows {
    /// Room for so many flows.
    pub fn new(most: usize, places: Option<Arc<Semaphore>>) -> Self {
        Self {
            table: Mutex::new(Table::new(most)),
            places,
            reply: Mutex::new(vec![0; DATAGRAM_BYTES].into()),
        }
    }
}

/// What datagrams of one address are forwarded with, on one worker.
#[derive(Clone, Debug)]
pub struct Forwarder {
    /// The address.
    pub bind: BindKey,
    /// The worker's flows, of all addresses.
    pub flows: Arc<Flows>,
    /// The state that is served now.
    pub published: Arc<Published>,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Ages flows.
    pub clock: Clock,
    /// Runs the replies.
    pub tasks: Tasks,
    /// Whose numbers they are.
    pub labels: Arc<BindLabels>,
    /// What is remembered of sources, where no kernel program guards the address.
    pub guard: Option<Arc<Sources>>,
    /// Says when memory is scarce: then no flow begins.
    pub memory: Arc<Memory>,
}

/// Where clients are, and where what happens to their datagrams is counted.
#[derive(Debug)]
struct Downstream {
    socket: UdpSocket,
    accepted: Counter,
    open: Gauge,
    losses: Losses,
}

/// The flows of one forwarder, for as long as it forwards.
struct Own {
    flows: Arc<Flows>,
    forwarder: u64,
}

impl Drop for Own {
    fn drop(&mut self) {
        self.flows.table.lock().retire(self.forwarder);
    }
}

/// One client's datagrams to one endpoint.
#[derive(Debug)]
struct Flow {
    socket: Arc<UdpSocket>,
    active: Active,
    seen: Arc<Mutex<Instant>>,
    replies: AbortHandle,
    open: Gauge,
    fit: Fit,
    place: Option<OwnedSemaphorePermit>,
}

/// When a flow was last known to be where it may be: for as long as both stand still, it is.
#[derive(Debug)]
struct Fit {
    balanced: Weak<Balanced>,
    epoch: u64,
}

impl Flow {
    /// Whether the next datagram may go the same way.
    fn fits(&mut self, balanced: &Arc<Balanced>) -> bool {
        let endpoint = self.active.endpoint();
        if endpoint.health() == Health::Down {
            return false;
        }
        let epoch = endpoint.epoch();
        if self.fit.epoch == epoch && std::ptr::eq(self.fit.balanced.as_ptr(), Arc::as_ptr(balanced)) {
            return true;
        }
        let members = balanced.balancer.members();
        let is_own = |member: &Member| Arc::ptr_eq(&member.endpoint, endpoint);
        // While nobody may have new flows, each keeps what it has, as in the kernel.
        let fits = members.iter().any(|member| is_own(member) && takes_flows(member))
            || members.iter().any(is_own) && !members.iter().any(takes_flows);
        if fits {
            self.fit = Fit { balanced: Arc::downgrade(balanced), epoch };
        }
        fits
    }

    /// Straight to the kernel: the runtime does not know yet that a new socket can be written to.
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        SockRef::from(&*self.socket).send(bytes)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.replies.abort();
        self.open.dec();
    }
}

fn takes_flows(member: &Member) -> bool {
    member.backend_weight > 0 && member.endpoint.availability() == Availability::Active
}

/// Why a datagram got no further.
struct Lost {
    loss: Loss,
    cause: Option<io::Error>,
}

impl Lost {
    const NO_ENDPOINT: Self = Self { loss: Loss::NoEndpoint, cause: None };
    const NO_SOCKET: Self = Self { loss: Loss::NoSocket, cause: None };

    const fn new(loss: Loss, cause: io::Error) -> Self {
        Self { loss, cause: Some(cause) }
    }
}

impl Forwarder {
    /// Forwards datagrams from `socket` until `closing` begins.
    pub fn serve(self, socket: UdpSocket, mut closing: Drain) -> impl Future<Output = ()> + Send + use<> {
        // Now and not when the task begins: the address may have been given up by then, and its numbers forgotten.
        let families = &self.metrics.families;
        let downstream = Arc::new(Downstream {
            socket,
            accepted: families.accepted.get_or_create(&self.labels).clone(),
            open: families.open.get_or_create(&self.labels).clone(),
            losses: families.datagrams.at(&self.labels),
        });
        async move {
            let forwarder = self.flows.table.lock().number();
            let _own = Own { flows: Arc::clone(&self.flows), forwarder };
            let mut datagram = vec![0; DATAGRAM_BYTES];
            loop {
                let received = tokio::select! {
                    biased;
                    () = closing.begun() => return,
                    received = downstream.socket.recv_from(&mut datagram) => received,
                };
                match received {
                    Ok((n, client)) => {
                        let bytes = datagram.get(..n).unwrap_or_default();
                        if let Err(lost) = self.forward(&downstream, Key { forwarder, client }, bytes) {
                            downstream.losses.count(lost.loss);
                            let cause = lost.cause.map(tracing::field::display);
                            tracing::debug!(cause, why = lost.loss.as_str(), bind = %self.bind, "a datagram was lost");
                        }
                    }
                    // An ICMP error about an earlier reply.
                    Err(cause) => tracing::debug!(%cause, bind = %self.bind, "a reply did not arrive"),
                }
            }
        }
    }

    fn forward(&self, downstream: &Arc<Downstream>, key: Key, bytes: &[u8]) -> Result<(), Lost> {
        let state = self.published.load();
        let ip = key.client.ip();
        if self.guard.is_some()
            && let Some(refused) = state.guards.lists.refuses(ip)
        {
            self.metrics.families.guarded.count(&self.labels, refused.as_str());
            return Ok(());
        }
        let Some(Bind::Balanced(balanced)) = state.binds.get(&self.bind) else {
            return Err(Lost::NO_ENDPOINT);
        };
        let mut table = self.flows.table.lock();
        let fits = table.get_mut(&key).map(|flow| flow.fits(balanced));
        if fits.is_none() {
            let refused = self.guard.as_ref().and_then(|sources| state.guards.limits(self.bind, ip, sources));
            if let Some(refused) = refused {
                self.metrics.families.guarded.count(&self.labels, refused.as_str());
                return Ok(());
            }
            if self.memory.level() != Level::Enough {
                self.metrics.families.limit(Limit::MemoryConnections);
                return Ok(());
            }
        }
        if fits != Some(true) {
            table.remove(&key);
            let number = table.number();
            let flow = self.begin(downstream, balanced, (key, number), &mut table)?;
            if fits.is_none() {
                downstream.accepted.inc();
            }
            for _ in 0..table.insert(key, number, flow) {
                self.metrics.families.limit(Limit::UdpFlows);
            }
        }
        let Some(flow) = table.get_mut(&key) else { return Ok(()) };
        *flow.seen.lock() = self.clock.now();
        let sent = match flow.send(bytes) {
            // Said of an earlier datagram, and this one was not sent.
            Err(cause) if cause.kind() == io::ErrorKind::ConnectionRefused => {
                downstream.losses.count(Loss::Refused);
                flow.send(bytes)
            }
            sent => sent,
        };
        match sent {
            Ok(_) => Ok(()),
            // A full buffer drops a datagram, as any router would.
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                Err(Lost::new(Loss::BufferFull, cause))
            }
            Err(cause) => Err(Lost::new(Loss::Unsent, cause)),
        }
    }

    /// A place for a new flow where flows take those of connections: a free one, or that of the oldest flow, which ends.
    /// None when no flow has any.
    #[expect(clippy::option_option, reason = "whether there is a place, and whether one is needed")]
    fn place(&self, table: &mut Table<Flow>) -> Option<Option<OwnedSemaphorePermit>> {
        let Some(places) = &self.flows.places else { return Some(None) };
        if let Ok(place) = Arc::clone(places).try_acquire_owned() {
            return Some(Some(place));
        }
        self.metrics.families.limit(Limit::UdpFlows);
        // Not given back in between: somebody may be waiting for it.
        table.take_oldest().and_then(|mut flow| flow.place.take()).map(Some)
    }

    /// A new flow to the endpoint that the kernel would pick.
    fn begin(
        &self,
        downstream: &Arc<Downstream>,
        balanced: &Arc<Balanced>,
        (key, number): (Key, u64),
        table: &mut Table<Flow>,
    ) -> Result<Flow, Lost> {
        let picked = balanced.flow(key.client, self.bind.addr, Protocol::UDP);
        let member = balanced.balancer.pick(&picked, &Tried::default());
        let member = member.and_then(|idx| balanced.balancer.members().get(idx)).ok_or(Lost::NO_ENDPOINT)?;
        let upstream = connect::udp(member.endpoint.addr(), balanced.options);
        let upstream = Arc::new(upstream.map_err(|cause| Lost::new(Loss::NoSocket, cause))?);
        // Last: another flow may have to end for it. Connections may have them all.
        let place = self.place(table).ok_or(Lost::NO_SOCKET)?;
        let seen = Arc::new(Mutex::new(self.clock.now()));
        let replies = Replies {
            client: key.client,
            downstream: Arc::clone(downstream),
            upstream: Arc::clone(&upstream),
            flows: Arc::clone(&self.flows),
            seen: Arc::clone(&seen),
            clock: self.clock.clone(),
        };
        let task = self.tasks.spawn("udp replies", async move {
            replies.run().await;
            replies.flows.table.lock().end(&key, number);
        });
        downstream.open.inc();
        Ok(Flow {
            socket: upstream,
            active: member.endpoint.begin(),
            seen,
            replies: task.abort_handle(),
            open: downstream.open.clone(),
            // Whatever has changed since it was picked is looked at with the next datagram.
            fit: Fit { balanced: Weak::new(), epoch: 0 },
            place,
        })
    }
}

/// The way back of one flow.
struct Replies {
    client: SocketAddr,
    downstream: Arc<Downstream>,
    upstream: Arc<UdpSocket>,
    flows: Arc<Flows>,
    seen: Arc<Mutex<Instant>>,
    clock: Clock,
}

impl Replies {
    /// Copies replies until the flow has been silent for too long.
    async fn run(&self) {
        // Word that a datagram did not arrive is an error and nothing to read.
        let told = Interest::READABLE | Interest::ERROR;
        loop {
            let passed = self.upstream.async_io(told, || self.pass());
            match tokio::time::timeout(limits::UDP_FLOW_IDLE, passed).await {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(waiting))) => {
                    if let Err(cause) = self.downstream.socket.send_to(&waiting, self.client).await {
                        self.lose(&cause);
                    }
                }
                // Nobody listens at the endpoint now; it may come back.
                Ok(Err(cause)) => {
                    self.downstream.losses.count(Loss::Refused);
                    tracing::debug!(%cause, "an endpoint refuses datagrams");
                }
                Err(_) => {
                    let silent = self.clock.now().duration_since(*self.seen.lock());
                    if silent >= limits::UDP_FLOW_IDLE {
                        return;
                    }
                }
            }
        }
    }

    /// Passes one reply on; what has to wait for room towards the client is handed back. No flow has room of its own for what
    /// it may receive: there may be thousands of them, most of them silent.
    fn pass(&self) -> io::Result<Option<Vec<u8>>> {
        let mut room = self.flows.reply.lock();
        let upstream = SockRef::from(&*self.upstream);
        let n = (&*upstream).read(&mut room)?;
        let bytes = room.get(..n).unwrap_or_default();
        *self.seen.lock() = self.clock.now();
        match self.downstream.socket.try_send_to(bytes, self.client) {
            Ok(_) => {}
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return Ok(Some(bytes.to_vec())),
            Err(cause) => self.lose(&cause),
        }
        Ok(None)
    }

    fn lose(&self, cause: &io::Error) {
        self.downstream.losses.count(Loss::AnswerUnsent);
        tracing::debug!(%cause, "a reply was lost");
    }
}
