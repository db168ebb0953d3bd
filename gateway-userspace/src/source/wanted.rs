//! The wanted part of the file: `listeners`, `routes` and `services`, read into a draft.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::Arc,
};

use gateway_common::service::Track;

use crate::{
    config::{
        files::Files,
        read::{View, Wrong},
        text::{network, unicast},
    },
    field,
    name::{ListenerName, RouteName, ServiceName},
    pattern::Text,
    place::Located,
    retry,
    snapshot::{
        draft::{Draft, DraftListener, DraftRoute, DraftRule, DraftService},
        listener::{Forwarding, Protocol},
        route::{Backend, Match, PathMatch},
        service::{CheckKind, Endpoint, HealthCheck, PassiveHealth, Policy, UpstreamProtocol},
    },
    source::{filter, sources, text, tls},
    target,
    tunnel::Tunnels,
};

/// Reads the three lists; faults go to the reader of `root`.
pub fn read(root: &View<'_>, files: &Files) -> Draft {
    let bundles = tls::Bundles::default();
    Draft {
        listeners: root.tables("listeners").iter().map(|view| listener(view, files)).collect(),
        routes: root.tables("routes").iter().map(route).collect(),
        services: root.tables("services").iter().map(|view| service(view, files, &bundles)).collect(),
        sources: root.table("sources").map(|view| sources::read(&view)).unwrap_or_default(),
    }
}

fn listener(view: &View<'_>, files: &Files) -> DraftListener {
    let name = view.text("name", |name| text::name(name).map(ListenerName::new));
    let ports = view.has("ports").then(|| ports(view));
    let addr = addr(view, ports.as_ref());
    let protocol = view.word("protocol", |word| match word {
        "HTTP" => Some(Protocol::Http),
        "HTTPS" => Some(Protocol::Https),
        "TLS" => Some(Protocol::Tls),
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        _ => None,
    });
    let hostname = view.text("hostname", text::hostname);
    // TLS that could not be read is still TLS that was written: the checks would else ask for it.
    let tls = view.has("tls").then(|| {
        let value = view.table("tls").map(|view| tls::read(&view, files)).unwrap_or_default();
        Located { value, place: view.place_of("tls") }
    });
    let forwarding = view.word("forwarding", |word| match word {
        "nat" => Some(Forwarding::Nat),
        "dsr-l2" => Some(Forwarding::DsrL2),
        "dsr-ipip" => Some(Forwarding::DsrIpip),
        "dsr-gue" => Some(Forwarding::DsrGue),
        "agent" => Some(Forwarding::Agent),
        _ => None,
    });
    let track = view.word("track", |word| match word {
        "always" => Some(Track::ALWAYS),
        "change" => Some(Track::CHANGE),
        "never" => Some(Track::NEVER),
        _ => None,
    });
    let affinity = view.table("affinity").and_then(|affinity| {
        let timeout = affinity.duration("timeout")?;
        Some(Located { value: timeout.value, place: affinity.place() })
    });
    let resets = view.word("whenDown", |word| match word {
        "select" => Some(false),
        "reset" => Some(true),
        _ => None,
    });
    let proxies = view.table("proxyProtocol").map(|proxies| {
        let networks = proxies.texts("from", network);
        let value = networks.into_iter().map(|network| network.value).collect();
        Located { value, place: proxies.place() }
    });
    let paths = view.table("paths").and_then(|paths| path_rules(&paths));
    DraftListener {
        place: view.place(),
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
        idle_timeout: if view.has("idleTimeout") { view.duration("idleTimeout") } else { None },
        new_flows: view.table("newFlows").map(|flows| sources::new_flows(&flows)),
        fails_open: fail_mode(view),
        syn_cookies: view.table("synCookies").map(|cookies| sources::syn_cookies(&cookies)),
        paths,
        underscores: underscores(view),
        trusted_hops: if view.has("trustedHops") { view.integer("trustedHops") } else { None },
    }
}

fn fail_mode(view: &View<'_>) -> Option<Located<bool>> {
    view.word("failMode", |word| match word {
        "closed" => Some(false),
        "open" => Some(true),
        _ => None,
    })
}

fn underscores(view: &View<'_>) -> Option<Located<field::Underscores>> {
    view.word("underscores", |word| match word {
        "reject" => Some(field::Underscores::Reject),
        "drop" => Some(field::Underscores::Drop),
        "allow" => Some(field::Underscores::Allow),
        _ => None,
    })
}

fn path_rules(view: &View<'_>) -> Option<Located<target::Rules>> {
    let repeated = view.word("repeatedSlashes", |word| match word {
        "merge" => Some(target::Repeated::Merge),
        "keep" => Some(target::Repeated::Keep),
        _ => None,
    });
    let escaped = view.word("escapedSlashes", |word| match word {
        "reject" => Some(target::Escaped::Reject),
        "keep" => Some(target::Escaped::Keep),
        "redirect" => Some(target::Escaped::Redirect),
        _ => None,
    });
    let delimiters = view.word("escapedDelimiters", |word| match word {
        "keep" => Some(target::Delimiters::Keep),
        "reject" => Some(target::Delimiters::Reject),
        _ => None,
    });
    let value =
        target::Rules { repeated: repeated?.value, escaped: escaped?.value, delimiters: delimiters?.value };
    Some(Located { value, place: view.place() })
}

fn endpoint_addr(view: &View<'_>) -> Option<Located<SocketAddr>> {
    addr(view, None)
}

/// An address and port: the first of several, or zero for all.
fn addr(view: &View<'_>, ports: Option<&Located<Vec<RangeInclusive<u16>>>>) -> Option<Located<SocketAddr>> {
    let address: Option<Located<IpAddr>> = view.text("address", unicast);
    let port = match ports {
        Some(ports) => first_port(&ports.value),
        None => view.integer("port")?.value,
    };
    Some(address?.map(|address| SocketAddr::new(address, port)))
}

/// The port that tells a listener of several ports from others of its address: zero when it has all.
fn first_port(ports: &[RangeInclusive<u16>]) -> u16 {
    let first = ports.first().map_or(0, |range| *range.start());
    if ports == [text::FIRST_PORT..=u16::MAX] { 0 } else { first }
}

/// Ranges of ports in ascending order, those that touch as one.
fn ports(view: &View<'_>) -> Located<Vec<RangeInclusive<u16>>> {
    let mut written: Vec<RangeInclusive<u16>> =
        view.texts("ports", text::ports).into_iter().map(|range| range.value).collect();
    written.sort_unstable_by_key(|range| *range.start());
    let mut value: Vec<RangeInclusive<u16>> = Vec::new();
    for range in written {
        match value.last_mut() {
            Some(last) if *range.start() <= last.end().saturating_add(1) => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            Some(_) | None => value.push(range),
        }
    }
    Located { value, place: view.place_of("ports") }
}

fn route(view: &View<'_>) -> DraftRoute {
    DraftRoute {
        place: view.place(),
        name: view.text("name", |name| text::name(name).map(RouteName::new)),
        listeners: view.texts("listeners", |name| text::name(name).map(ListenerName::new)),
        hostnames: view.texts("hostnames", text::hostname),
        rules: view.tables("rules").iter().map(rule).collect(),
    }
}

fn rule(view: &View<'_>) -> DraftRule {
    let matches = view.has("matches").then(|| {
        let value = view.tables("matches").iter().filter_map(match_).collect();
        Located { value, place: view.place_of("matches") }
    });
    let backends = view.tables("backends").iter().filter_map(backend).collect();
    let timeouts = view.table("timeouts");
    let filters = view.table("filters");
    let answers = filters.is_some_and(|view| view.has("redirect") || view.has("respond"));
    let mirrors = filters.map(|view| view.tables("mirrors")).unwrap_or_default();
    DraftRule {
        place: view.place(),
        matches,
        backends,
        has_effect: answers || view.has("backends"),
        filters: filters.map(|view| filter::filters(&view)),
        mirrors: mirrors.iter().filter_map(filter::mirror).collect(),
        request_timeout: timeouts.and_then(|timeouts| timeouts.duration("request")),
        backend_timeout: timeouts.and_then(|timeouts| timeouts.duration("backendRequest")),
        idle_timeout: timeouts.and_then(|timeouts| timeouts.duration("idle")),
        retry: view.table("retry").and_then(|retry| retry_policy(&retry)),
        tunnels: view.table("tunnels").and_then(|tunnels| tunnel_rules(&tunnels)),
    }
}

fn tunnel_rules(view: &View<'_>) -> Option<Located<Tunnels>> {
    let decode = |word: &str| match word {
        "allow" => Some(true),
        "refuse" => Some(false),
        _ => None,
    };
    let (websocket, connect) = (view.word("webSocket", decode), view.word("connect", decode));
    let idle_timeout = view.duration("idleTimeout");
    let value =
        Tunnels { websocket: websocket?.value, connect: connect?.value, idle_timeout: idle_timeout?.value };
    Some(Located { value, place: view.place() })
}

fn retry_policy(view: &View<'_>) -> Option<Located<retry::Policy>> {
    let attempts = view.integer("attempts");
    let statuses = view.texts("statuses", text::statuses);
    let calls = view.texts("grpcStatuses", text::call_status);
    let backoff = view.duration("backoff");
    let value = retry::Policy {
        attempts: attempts?.value,
        statuses: statuses.into_iter().map(|range| range.value).collect(),
        calls: calls.into_iter().fold(retry::Calls::NONE, |calls, number| calls.with(number.value)),
        backoff: backoff?.value,
        is_written: true,
    };
    Some(Located { value, place: view.place() })
}

fn match_(view: &View<'_>) -> Option<Match> {
    let path = view.table_or_defaults("path").and_then(|path| path_match(&path));
    let method = view.word("method", |word| word.parse::<http::Method>().ok());
    let headers = pairs(view, "headers", text::header_name, text::header_value);
    let query = pairs(view, "queryParams", text::query_name, text::query_value);
    Some(Match { path: path?, method: method.map(|method| method.value), headers, query })
}

fn path_match(view: &View<'_>) -> Option<PathMatch> {
    let kind = view.word("type", |word| match word {
        "Exact" => Some(PathType::Exact),
        "PathPrefix" => Some(PathType::Prefix),
        "RegularExpression" => Some(PathType::Pattern),
        _ => None,
    });
    let value = match kind?.value {
        PathType::Pattern => view.text("value", |value| text::pattern(value).map(PathMatch::Pattern)),
        PathType::Exact => view.text("value", |value| text::path(value).map(PathMatch::Exact)),
        PathType::Prefix => view.text("value", |value| text::path(value).map(|path| prefix(&path))),
    };
    value.map(|value| value.value)
}

#[derive(Clone, Copy)]
enum PathType {
    Exact,
    Pattern,
    Prefix,
}

/// A prefix is compared by segments, so a slash at its end says nothing.
fn prefix(path: &str) -> PathMatch {
    let segments = path.strip_suffix('/').unwrap_or(path);
    PathMatch::Prefix(if segments.is_empty() { "/".to_owned() } else { segments.to_owned() })
}

/// Names and values of a list of matches; a name occurs once.
fn pairs<N>(
    view: &View<'_>,
    key: &str,
    parse_name: impl Fn(&str) -> Result<N, Wrong>,
    parse_value: impl Fn(&str) -> Result<String, Wrong>,
) -> Vec<(N, Text)>
where
    N: Clone + Eq + std::hash::Hash + std::fmt::Display,
{
    let mut seen = HashSet::new();
    let mut pairs = Vec::new();
    for pair in view.tables(key) {
        let name = pair.text("name", &parse_name);
        let is_pattern = pair.word("type", |word| match word {
            "Exact" => Some(false),
            "RegularExpression" => Some(true),
            _ => None,
        });
        let value = is_pattern.and_then(|is_pattern| {
            pair.text("value", |value| {
                if is_pattern.value {
                    text::pattern(value).map(Text::Pattern)
                } else {
                    parse_value(value).map(Text::Exact)
                }
            })
        });
        let Some(Located { value: name, place }) = name else { continue };
        if !seen.insert(name.clone()) {
            let message = format!("{name} is written twice");
            pair.reader().fault(place, message, "write each name once: all of them have to hold");
        }
        if let Some(value) = value {
            pairs.push((name, value.value));
        }
    }
    pairs
}

fn backend(view: &View<'_>) -> Option<Located<Backend>> {
    let service = view.text("service", |name| text::name(name).map(ServiceName::new));
    let weight = view.integer("weight");
    let filters = view.table("filters").map(|filters| Arc::new(filter::backend_filters(&filters)));
    let (service, weight) = (service?, weight?.value);
    Some(service.map(|service| Backend { service, weight, filters }))
}

fn service(view: &View<'_>, files: &Files, bundles: &tls::Bundles) -> DraftService {
    let protocol = view.word("protocol", |word| match word {
        "http1" => Some(UpstreamProtocol::Http1),
        "h2c" => Some(UpstreamProtocol::H2c),
        "h2" => Some(UpstreamProtocol::H2),
        _ => None,
    });
    let tls = view.has("tls").then(|| {
        let value = view.table("tls").and_then(|view| tls::endpoint(&view, files, bundles));
        Located { value, place: view.place_of("tls") }
    });
    let balance = view.word("balance", |word| match word {
        "roundRobin" => Some(Policy::RoundRobin),
        "leastRequest" => Some(Policy::LeastRequest),
        "maglev" => Some(Policy::Maglev),
        _ => None,
    });
    DraftService {
        place: view.place(),
        name: view.text("name", |name| text::name(name).map(ServiceName::new)),
        endpoints: view.tables("endpoints").iter().filter_map(endpoint).collect(),
        protocol,
        tls,
        balance: balance.map(|balance| balance.value),
        health: view.table("health").and_then(|health| health_check(&health)),
        passive_health: view.table("passiveHealth").and_then(|passive| passive_health(&passive)),
        connect_timeout: view.duration("connectTimeout").map(|timeout| timeout.value),
        retries: view.table_or_defaults("retryBudget").and_then(|budget| retry_limits(&budget)),
        announced: view.word("proxyProtocol", |word| (word == "v2").then_some(())),
    }
}

fn retry_limits(view: &View<'_>) -> Option<retry::Limits> {
    let percent = view.integer("percent");
    let per_second = view.integer("perSecond");
    Some(retry::Limits { percent: percent?.value, per_second: per_second?.value })
}

fn endpoint(view: &View<'_>) -> Option<Located<Endpoint>> {
    let addr = endpoint_addr(view);
    let weight = view.integer("weight");
    let (addr, weight) = (addr?, weight?.value);
    Some(addr.map(|addr| Endpoint { addr, weight }))
}

fn health_check(view: &View<'_>) -> Option<Located<HealthCheck>> {
    let http = view.table("http").and_then(|http| http_check(&http));
    let tcp = view.table("tcp").map(|_| CheckKind::Tcp);
    let interval = view.duration("interval");
    let timeout = view.duration("timeout");
    let unhealthy_threshold = view.integer("unhealthyThreshold");
    let healthy_threshold = view.integer("healthyThreshold");
    let (interval, timeout) = (interval?, timeout?);
    let place = if view.has("timeout") { timeout.place } else { view.place_of("interval") };
    // What could not be read was reported, so that no snapshot comes of it; the stand-ins let the times be checked.
    let value = HealthCheck {
        kind: http.or(tcp).unwrap_or(CheckKind::Tcp),
        interval: interval.value,
        timeout: timeout.value,
        unhealthy_threshold: unhealthy_threshold.map_or(HealthCheck::UNHEALTHY, |n| n.value),
        healthy_threshold: healthy_threshold.map_or(HealthCheck::HEALTHY, |n| n.value),
    };
    Some(Located { value, place })
}

fn passive_health(view: &View<'_>) -> Option<Located<PassiveHealth>> {
    let (window, minimum_attempts) = (view.duration("window"), view.integer("minimumAttempts"));
    let (failure_percent, share_percent) = (view.integer("failurePercent"), view.integer("maxOutPercent"));
    let (out_for, out_for_at_most) = (view.duration("outTime"), view.duration("maxOutTime"));
    let value = PassiveHealth {
        window: window?.value,
        minimum_attempts: minimum_attempts?.value,
        failure_percent: failure_percent?.value,
        out_for: out_for?.value,
        out_for_at_most: out_for_at_most?.value,
        share_percent: share_percent?.value,
    };
    Some(Located { value, place: view.place() })
}

fn http_check(view: &View<'_>) -> Option<CheckKind> {
    let path = view.text("path", text::path);
    let host = view.text("host", text::host);
    let statuses = view.text("statuses", text::statuses);
    Some(CheckKind::Http { path: path?.value, host: host.map(|host| host.value), statuses: statuses?.value })
}
