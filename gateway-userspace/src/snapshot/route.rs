//! Wanted routes, with the meaning of the Gateway API.

use std::{sync::Arc, time::Duration};

use crate::{
    filter::{BackendFilters, Filters},
    name::{ListenerName, RouteName, ServiceName},
    pattern::{Pattern, Text},
    retry,
    snapshot::listener::Hostname,
    tunnel::Tunnels,
};

/// Matches and what follows. On a `Tcp` or `Udp` listener a route has one rule without matches.
#[derive(Clone, Debug)]
pub struct Route {
    /// Unique name; the tie-breaker of last resort but one.
    pub name: RouteName,
    /// The listeners it is attached to, one at least.
    pub listeners: Vec<ListenerName>,
    /// Names it serves; empty means those of the listener.
    pub hostnames: Vec<Hostname>,
    /// In order of the configuration, one at least.
    pub rules: Vec<Rule>,
}

/// One rule of a route.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Any of these; never empty: "everything" is the match of path prefix `/`.
    pub matches: Vec<Match>,
    /// Where requests go, by weight; empty where a filter answers.
    pub backends: Vec<Backend>,
    /// What is done besides; none forwards requests as they are.
    pub filters: Option<Arc<Filters>>,
    /// Who gets copies of requests.
    pub mirrors: Vec<Mirror>,
    /// Bound on the whole exchange, from the first byte of the request.
    pub request_timeout: Option<Duration>,
    /// Bound on each try.
    pub backend_timeout: Option<Duration>,
    /// How long an endpoint may be silent in the middle of a response.
    pub idle_timeout: Option<Duration>,
    /// When requests are sent again.
    pub retry: retry::Policy,
    /// What clients may speak instead of HTTP.
    pub tunnels: Tunnels,
}

/// A match; all its parts must hold.
#[derive(Clone, Debug)]
pub struct Match {
    /// Of the path.
    pub path: PathMatch,
    /// Of the method.
    pub method: Option<http::Method>,
    /// Of header values; names are lower case and occur once.
    pub headers: Vec<(http::HeaderName, Text)>,
    /// Of query parameters; names occur once.
    pub query: Vec<(String, Text)>,
}

/// A match of a path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// What the expression matches as a whole.
    Pattern(Pattern),
    /// Whole segments from the start; without a trailing slash, but `/` itself.
    Prefix(String),
}

/// A weighted reference to a service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Backend {
    /// The service; when there is none of that name, its share answers 500.
    pub service: ServiceName,
    /// Relative share; zero gets nothing.
    pub weight: u32,
    /// What is done with what goes there and comes back; none leaves it as it is.
    pub filters: Option<Arc<BackendFilters>>,
}

/// A service that gets copies of requests.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mirror {
    /// The service; when there is none of that name, nothing is copied.
    pub service: ServiceName,
    /// Share of the requests that are copied.
    pub percent: u32,
}
