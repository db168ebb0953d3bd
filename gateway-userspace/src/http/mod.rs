//! HTTP towards clients and endpoints: one downstream connection, the life of a request, and what is said when it fails.

pub mod body;
mod deadline;
pub mod exchange;
pub mod fault;
pub mod filtered;
mod forward;
pub mod forwarded;
mod h1;
mod h2;
pub mod header;
mod interim;
pub mod load;
mod mirror;
pub mod serve;
mod still;
pub mod stream;
pub mod trace;
mod tunnel;
mod uptake;

use std::sync::Arc;

use gateway_common::{addr::Protocol, flow::FlowKey};
use http::{HeaderMap, HeaderValue, Version, request::Parts};
use tokio::sync::Semaphore;

use crate::{
    access, balance,
    clock::Clock,
    config::{ClientTimeouts, TraceSettings},
    drain::Tasks,
    http::fault::Language,
    metrics::{Metrics, shard::RouteStats},
    net::{
        clients::{Clients, Streams},
        proxy_protocol::Ends,
    },
    pool::{own::Own, pace::Terms, registry::Client},
    state::{BindKey, HttpBind, Published, State},
    tls::{client::Identity, ticket::Scope},
};

/// What a worker serves with.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Its number, from zero.
    pub idx: usize,
    /// The state that is served now.
    pub published: Arc<Published>,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Measures time.
    pub clock: Clock,
    /// The log of requests.
    pub access: Option<Arc<access::Desk>>,
    /// Trace context of requests.
    pub trace: TraceSettings,
    /// How long clients are waited for.
    pub timeouts: ClientTimeouts,
    /// Places for copies of requests that are under way.
    pub mirrors: Arc<Semaphore>,
    /// What clients hold, of all workers.
    pub clients: Arc<Clients>,
    /// What it has to do.
    pub load: Arc<load::Load>,
    /// Runs the streams of HTTP/2.
    pub tasks: Tasks,
}

impl Worker {
    /// How slow a client may be with the body behind this head.
    fn terms(&self, head: &Parts) -> Terms {
        Terms {
            stall: self.timeouts.stall,
            bytes_per_second: self.timeouts.bytes_per_second,
            // Of gRPC, which nobody speaks over HTTP/1; there a client that is silent cannot be asked whether it still is there.
            is_conversation: head.version == Version::HTTP_2 && Language::of(head) == Language::Grpc,
        }
    }
}

/// How a client reached us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scheme {
    /// In plain text.
    Http,
    /// Behind TLS.
    Https,
}

/// What a connection was let in by. When its listener demands something else, or is gone, its requests are not served: their
/// clients have to come again.
#[derive(Clone, Debug, Default)]
pub struct Admitted {
    scope: Option<Scope>,
    /// Counts the requests that are turned away, also when the listener is gone.
    counted: Option<Arc<RouteStats>>,
}

impl Admitted {
    /// By what is served at an address now.
    pub fn by(bind: &HttpBind) -> Self {
        Self { scope: bind.admission(), counted: Some(Arc::clone(&bind.unmatched)) }
    }
}

/// One downstream connection, as its requests see it.
#[derive(Clone, Debug)]
pub struct Downstream {
    /// Where it came to.
    pub bind: BindKey,
    /// How.
    pub scheme: Scheme,
    /// The 5-tuple, with the address that was accepted at.
    pub flow: FlowKey,
    /// The client's address, for `x-forwarded-for`.
    pub client: HeaderValue,
    /// What it was let in by.
    pub admitted: Admitted,
    /// The name that the connection was opened for, lower case; empty when TLS named none, or without TLS.
    pub server_name: Box<str>,
    /// Who the client proved to be; none without a certificate.
    pub identity: Option<Arc<Identity>>,
    /// Connections to endpoints that belong to this client alone.
    pub own: Arc<Own>,
    /// Streams of HTTP/2 that the client has on all its connections; none does not count them.
    pub streams: Option<Streams>,
}

impl Downstream {
    /// Of a connection with these ends, as the client sees them: a load balancer in front may have another address than the
    /// one that was accepted at.
    pub fn new(bind: BindKey, scheme: Scheme, Ends { source: peer, destination }: Ends) -> Self {
        let flow = balance::flow(peer, bind.addr, Protocol::TCP);
        // An IP address is made of digits, letters, dots and colons, so the other value is never used.
        let client = HeaderValue::try_from(peer.ip().to_string())
            .unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        let own = Arc::new(Own::new(Client { source: peer, destination }));
        Self {
            bind,
            scheme,
            flow,
            client,
            admitted: Admitted::default(),
            server_name: Box::default(),
            identity: None,
            own,
            streams: None,
        }
    }

    /// The same, opened for a name by TLS.
    #[must_use]
    pub fn named(self, server_name: Option<&str>) -> Self {
        Self { server_name: server_name.unwrap_or_default().to_ascii_lowercase().into(), ..self }
    }

    /// Removes what a client says about who it is, and writes what it proved.
    fn identify(&self, state: &State, bind: &HttpBind, headers: &mut HeaderMap) {
        for name in &*state.identity_headers {
            headers.remove(name);
        }
        if let (Some(identity), Some(name)) = (&self.identity, &bind.identity_header) {
            headers.insert(name.clone(), identity.header.clone());
        }
    }
}
