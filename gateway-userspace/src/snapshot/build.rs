//! Checks a draft and makes the snapshot: names are unique, references resolve, addresses do not collide.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    sync::Arc,
};

use crate::{
    duration, field,
    filter::{Answer, rewrite::PathRewrite},
    limits,
    pattern::Text,
    place::{Located, Place},
    retry,
    snapshot::{
        Snapshot, attach,
        draft::{Draft, DraftListener, DraftRoute, DraftRule, DraftService, Problem, Severity},
        listener::{Hostname, Listener, Packets, Protocol},
        meaning, passive, ports,
        route::{Match, PathMatch, Route, Rule},
        service::{Service, UpstreamProtocol},
        sources, standby,
    },
    target,
    tunnel::Tunnels,
};

/// A snapshot and what somebody should look at nevertheless.
#[derive(Clone, Debug)]
pub struct Built {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Problems of severity [`Severity::Warning`].
    pub warnings: Vec<Problem>,
}

/// Gathers problems.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<Problem>);

impl Problems {
    pub(super) fn fault(&mut self, place: Place, message: impl Into<String>, remedy: impl Into<String>) {
        self.push(Severity::Fault, place, message.into(), remedy.into());
    }

    pub(super) fn warning(&mut self, place: Place, message: impl Into<String>, remedy: impl Into<String>) {
        self.push(Severity::Warning, place, message.into(), remedy.into());
    }

    fn push(&mut self, severity: Severity, place: Place, message: String, remedy: String) {
        self.0.push(Problem { place, severity, message, remedy });
    }
}

/// Makes the snapshot; the error holds every problem, warnings included.
pub fn build(draft: Draft, generation: u64) -> Result<Built, Vec<Problem>> {
    let problems = check(&draft);
    if problems.iter().any(|problem| problem.severity == Severity::Fault) {
        return Err(problems);
    }
    let mut incomplete = Problems::default();
    let mut missing =
        |place| incomplete.fault(place, "a part of it could not be read", "correct the other faults first");
    let snapshot = Snapshot {
        generation,
        listeners: draft
            .listeners
            .into_iter()
            .filter_map(|draft| listener(draft).map_err(&mut missing).ok())
            .collect(),
        routes: draft
            .routes
            .into_iter()
            .filter_map(|draft| route(draft).map_err(&mut missing).ok())
            .collect(),
        services: draft
            .services
            .into_iter()
            .filter_map(|draft| service(draft).map_err(&mut missing).ok())
            .collect(),
        sources: draft.sources.value(),
    };
    if incomplete.0.is_empty() { Ok(Built { snapshot, warnings: problems }) } else { Err(incomplete.0) }
}

/// Every problem of a draft, in no particular order.
pub fn check(draft: &Draft) -> Vec<Problem> {
    let mut problems = Problems::default();
    unique("listener", draft.listeners.iter().filter_map(|it| it.name.as_ref()), &mut problems);
    unique("route", draft.routes.iter().filter_map(|it| it.name.as_ref()), &mut problems);
    unique("service", draft.services.iter().filter_map(|it| it.name.as_ref()), &mut problems);
    draft.listeners.iter().for_each(|listener| meaning::check(listener, &mut problems));
    check_collisions(&draft.listeners, &mut problems);
    ports::check(&draft.listeners, &mut problems);
    draft.routes.iter().flat_map(|route| &route.rules).for_each(|rule| check_rule(rule, &mut problems));
    draft.services.iter().for_each(|service| check_service(service, &mut problems));
    check_total(&draft.services, &mut problems);
    check_patterns(&draft.routes, &mut problems);
    sources::check(&draft.sources, &mut problems);
    attach::check(draft, &mut problems);
    passive::check(draft, &mut problems);
    standby::check(draft, &mut problems);
    problems.0
}

fn unique<'d, N>(kind: &str, names: impl Iterator<Item = &'d Located<N>>, problems: &mut Problems)
where
    N: std::hash::Hash + Eq + std::fmt::Display + 'd,
{
    let mut seen = std::collections::HashSet::new();
    for Located { value, place } in names {
        if !seen.insert(value) {
            let remedy = format!("give each {kind} a name of its own, such as {value}-2");
            problems.fault(*place, format!("another {kind} is named {value}"), remedy);
        }
    }
}

/// What has an address, port and transport already.
struct Taken<'d> {
    first: &'d DraftListener,
    protocol: Protocol,
    by_hostname: HashMap<Option<&'d Hostname>, &'d DraftListener>,
}

/// Listeners of one address and port and transport have to be of one protocol, and tell requests apart by host name.
fn check_collisions(listeners: &[DraftListener], problems: &mut Problems) {
    let name = |other: &DraftListener| {
        other.name.as_ref().map_or_else(|| "another listener".to_owned(), |name| name.value.to_string())
    };
    let mut taken: HashMap<(SocketAddr, bool), Taken<'_>> = HashMap::new();
    for listener in listeners {
        let (Some(addr), Some(protocol)) = (&listener.addr, &listener.protocol) else { continue };
        let hostname = listener.hostname.as_ref();
        let by_udp = protocol.value == Protocol::Udp;
        let here = match taken.entry((addr.value, by_udp)) {
            Entry::Vacant(vacant) => {
                let by_hostname = HashMap::from([(hostname.map(|hostname| &hostname.value), listener)]);
                vacant.insert(Taken { first: listener, protocol: protocol.value, by_hostname });
                continue;
            }
            Entry::Occupied(occupied) => occupied.into_mut(),
        };
        if here.protocol != protocol.value {
            let message = format!("{} speaks another protocol on {}", name(here.first), addr.value);
            problems.fault(protocol.place, message, "write the same protocol, or another port");
        } else if !protocol.value.has_names() {
            let message = format!("{} has {} already", name(here.first), addr.value);
            problems.fault(addr.place, message, "write another address or port");
        } else if let Some(other) =
            here.by_hostname.insert(hostname.map(|hostname| &hostname.value), listener)
        {
            let place = hostname.map_or(addr.place, |hostname| hostname.place);
            let message = format!("{} has the same host name on {}", name(other), addr.value);
            problems.fault(place, message, "write another `hostname`, or another port");
        } else {
            meaning::check_shared(here.first, listener, problems);
        }
    }
}

fn check_rule(rule: &DraftRule, problems: &mut Problems) {
    if let (Some(request), Some(backend)) = (&rule.request_timeout, &rule.backend_timeout)
        && !request.value.is_zero()
        && backend.value > request.value
    {
        let (longer, bound) = (duration::write(backend.value), duration::write(request.value));
        let message = format!("{longer} is longer than `request`, which is {bound}");
        problems.fault(backend.place, message, format!("write at most {bound}"));
    }
    check_filters(rule, problems);
    let mut seen = std::collections::HashSet::new();
    for backend in &rule.backends {
        if !seen.insert(&backend.value.service) {
            let message = format!("{} is a backend of this rule already", backend.value.service);
            problems.fault(backend.place, message, "write it once, with the sum of the weights");
        }
    }
    if !rule.backends.is_empty() && rule.backends.iter().all(|backend| backend.value.weight == 0) {
        let message = "every backend has weight 0, so nothing is served";
        problems.warning(rule.place, message, "give one of them a weight above 0");
    }
}

/// A rule forwards or answers; a prefix is replaced where one matched.
fn check_filters(rule: &DraftRule, problems: &mut Problems) {
    let filters = rule.filters.as_ref().map(|filters| &filters.value);
    let answer = filters.and_then(|filters| filters.answer.as_ref());
    match (answer, rule.backends.first()) {
        (None, None) if !rule.has_effect => {
            let remedy = "write `backends: [{service: app}]`, or a filter that answers";
            problems.fault(rule.place, "nothing becomes of what it matches", remedy);
        }
        (Some(_), Some(backend)) => {
            problems.fault(
                backend.place,
                "a filter of the rule answers, so no backend is asked",
                "remove one of both",
            );
        }
        (None, _) | (Some(_), None) => {}
    }
    if let (Some(_), Some(mirror)) = (answer, rule.mirrors.first()) {
        problems.fault(
            mirror.place,
            "a filter of the rule answers, so nothing is copied",
            "remove one of both",
        );
    }
    let Some(Located { value: filters, place }) = &rule.filters else { return };
    let rewritten = filters.rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref());
    let redirected = match &filters.answer {
        Some(Answer::Redirect(redirect)) => redirect.path.as_ref(),
        Some(Answer::Respond(_)) | None => None,
    };
    let is_prefix = |path: &&PathRewrite| matches!(path, PathRewrite::Prefix(_));
    let replaces = rewritten.into_iter().chain(redirected).any(|path| is_prefix(&path));
    let mut matches = rule.matches.iter().flat_map(|matches| &matches.value);
    if replaces && !matches.all(|wanted| matches!(wanted.path, PathMatch::Prefix(_))) {
        let remedy = "write ReplaceFullPath, or matches of type PathPrefix alone";
        problems.fault(*place, "a prefix is replaced where a match has none", remedy);
    }
}

fn check_service(service: &DraftService, problems: &mut Problems) {
    let mut seen = std::collections::HashSet::new();
    for endpoint in &service.endpoints {
        if !seen.insert(endpoint.value.addr) {
            let message = format!("{} is an endpoint of this service already", endpoint.value.addr);
            problems.fault(endpoint.place, message, "write it once, with the weight it should have");
        }
    }
    if service.endpoints.is_empty() {
        let name = service.name.as_ref().map_or("it", |name| name.value.as_str());
        problems.warning(service.place, format!("{name} has no endpoints"), "add one below `endpoints`");
    }
    check_security(service, problems);
    check_passive_health(service, problems);
    if let Some(Located { value: health, place }) = &service.health
        && health.timeout >= health.interval
    {
        let (timeout, interval) = (duration::write(health.timeout), duration::write(health.interval));
        let message = format!("a check may take {timeout}, and the next begins after {interval}");
        problems.fault(*place, message, "write a `timeout` below `interval`");
    }
}

fn check_passive_health(service: &DraftService, problems: &mut Problems) {
    let Some(Located { value: terms, place }) = &service.passive_health else { return };
    if terms.out_for > terms.out_for_at_most {
        let (first, most) = (duration::write(terms.out_for), duration::write(terms.out_for_at_most));
        let message = format!("an endpoint is out for {first} the first time, and for {most} at most");
        problems.fault(*place, message, "write a `maxOutTime` that is no shorter than `outTime`");
    }
}

/// HTTP/2 is spoken by prior knowledge in plain text, and agreed on over TLS.
fn check_security(service: &DraftService, problems: &mut Problems) {
    let Some(Located { value: protocol, place }) = &service.protocol else { return };
    match (protocol, &service.tls) {
        (UpstreamProtocol::H2c, Some(tls)) => {
            let message = "`h2c` is HTTP/2 in plain text, and endpoints are spoken to over TLS";
            problems.fault(tls.place, message, "write `protocol: h2`");
        }
        (UpstreamProtocol::H2, None) => {
            let remedy = "write `tls` with `serverName` and whom to trust, or `protocol: h2c`";
            problems.fault(*place, "`h2` is HTTP/2 over TLS, and the service has no `tls`", remedy);
        }
        (UpstreamProtocol::Http1, _) | (UpstreamProtocol::H2c, None) | (UpstreamProtocol::H2, Some(_)) => {}
    }
}

fn check_total(services: &[DraftService], problems: &mut Problems) {
    let mut total = 0_usize;
    for service in services {
        let before = total;
        total = total.saturating_add(service.endpoints.len());
        if before <= limits::ENDPOINTS && total > limits::ENDPOINTS {
            let message = format!("more than {} endpoints of all services together", limits::ENDPOINTS);
            problems.fault(service.place, message, "spread them over several nodes");
        }
    }
}

fn check_patterns(routes: &[DraftRoute], problems: &mut Problems) {
    let is_pattern = |text: &Text| usize::from(matches!(text, Text::Pattern(_)));
    let count = |wanted: &Match| {
        let headers: usize = wanted.headers.iter().map(|(_, value)| is_pattern(value)).sum();
        let query: usize = wanted.query.iter().map(|(_, value)| is_pattern(value)).sum();
        headers + query + usize::from(matches!(wanted.path, PathMatch::Pattern(_)))
    };
    let mut total = 0_usize;
    for matches in routes.iter().flat_map(|route| &route.rules).filter_map(|rule| rule.matches.as_ref()) {
        let before = total;
        total += matches.value.iter().map(count).sum::<usize>();
        if before <= limits::PATTERNS && total > limits::PATTERNS {
            let message = format!("more than {} regular expressions in the file", limits::PATTERNS);
            problems.fault(matches.place, message, "write matches of type Exact or PathPrefix where they do");
        }
    }
}

fn listener(draft: DraftListener) -> Result<Listener, Place> {
    let DraftListener {
        place,
        name,
        addr,
        protocol,
        hostname,
        tls,
        forwarding,
        track,
        affinity,
        resets,
        ports,
        proxies,
        idle_timeout,
        new_flows,
        syn_cookies,
        fails_open,
        paths,
        underscores,
        trusted_hops,
    } = draft;
    let tls = tls.map(|tls| tls.value).unwrap_or_default();
    let (Some(name), Some(addr), Some(protocol)) = (name, addr, protocol) else { return Err(place) };
    Ok(Listener {
        name: name.value,
        addr: addr.value,
        protocol: protocol.value,
        hostname: hostname.map(|hostname| hostname.value),
        certificates: tls.certificates,
        ticket_keys: tls.ticket_keys,
        clients: tls.clients,
        forwarding: forwarding.map(|forwarding| forwarding.value).unwrap_or_default(),
        packets: Packets {
            track: track.map(|track| track.value),
            affinity: affinity.map(|timeout| timeout.value),
            resets: resets.is_some_and(|resets| resets.value),
            ports: ports.map(|ports| ports.value).unwrap_or_default(),
        },
        proxies: proxies.map(|proxies| proxies.value).unwrap_or_default(),
        idle_timeout: idle_timeout.map_or(limits::FORWARDED_IDLE, |timeout| timeout.value),
        new_flows: new_flows.map(|flows| flows.value()).unwrap_or_default(),
        syn_cookies: syn_cookies.and_then(|cookies| cookies.value),
        fails_open: fails_open.is_some_and(|fails_open| fails_open.value),
        paths: paths.map_or(target::Rules::DEFAULT, |paths| paths.value),
        underscores: underscores.map_or(field::Underscores::DEFAULT, |it| it.value),
        trusted_hops: trusted_hops.map_or(0, |hops| hops.value),
    })
}

fn route(draft: DraftRoute) -> Result<Route, Place> {
    let Some(name) = draft.name else { return Err(draft.place) };
    if draft.listeners.is_empty() || draft.rules.is_empty() {
        return Err(draft.place);
    }
    let hostnames: Vec<Hostname> = draft.hostnames.into_iter().map(|hostname| hostname.value).collect();
    Ok(Route {
        name: name.value,
        listeners: draft.listeners.into_iter().map(|listener| listener.value).collect(),
        hostnames,
        rules: draft.rules.into_iter().map(rule).collect(),
    })
}

fn rule(draft: DraftRule) -> Rule {
    let everything = || Match {
        path: PathMatch::Prefix("/".to_owned()),
        method: None,
        headers: Vec::new(),
        query: Vec::new(),
    };
    let bound = |timeout: Option<Located<std::time::Duration>>| {
        timeout.map(|timeout| timeout.value).filter(|timeout| !timeout.is_zero())
    };
    let written = draft.matches.map(|matches| matches.value).unwrap_or_default();
    Rule {
        matches: if written.is_empty() { vec![everything()] } else { written },
        backends: draft.backends.into_iter().map(|backend| backend.value).collect(),
        filters: draft.filters.map(|filters| Arc::new(filters.value)),
        mirrors: draft.mirrors.into_iter().map(|mirror| mirror.value).collect(),
        request_timeout: bound(draft.request_timeout),
        backend_timeout: match draft.backend_timeout {
            None => Some(limits::BACKEND_REQUEST_TIMEOUT),
            written @ Some(_) => bound(written),
        },
        idle_timeout: match draft.idle_timeout {
            None => Some(limits::RESPONSE_IDLE),
            written @ Some(_) => bound(written),
        },
        retry: draft.retry.map_or(retry::Policy::DEFAULT, |retry| retry.value),
        tunnels: draft.tunnels.map_or(Tunnels::DEFAULT, |tunnels| tunnels.value),
    }
}

fn service(draft: DraftService) -> Result<Service, Place> {
    let DraftService {
        place,
        name,
        endpoints,
        protocol,
        tls,
        balance,
        health,
        passive_health,
        connect_timeout,
        retries,
        announced,
    } = draft;
    let (Some(name), Some(protocol)) = (name, protocol) else { return Err(place) };
    let (Some(balance), Some(connect_timeout)) = (balance, connect_timeout) else { return Err(place) };
    let Some(retries) = retries else { return Err(place) };
    let tls = match tls.map(|tls| tls.value) {
        Some(None) => return Err(place),
        tls => tls.flatten(),
    };
    Ok(Service {
        name: name.value,
        endpoints: endpoints.into_iter().map(|endpoint| endpoint.value).collect(),
        protocol: protocol.value,
        tls,
        balance,
        health: health.map(|health| health.value),
        passive_health: passive_health.map(|terms| terms.value),
        connect_timeout,
        retries,
        is_announced: announced.is_some(),
    })
}
