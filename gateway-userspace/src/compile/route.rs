//! Routes of one listener: the matches of all its routes in one table, in the Gateway API's order of precedence.

use std::sync::Arc;

use crate::{
    compile::{
        listener::{Services, host},
        state::Shared,
    },
    metrics::shard::RouteLabels,
    route::{Table, matches::Conditions, path::Path},
    snapshot::{
        Snapshot,
        listener::{Hostname, Listener},
        route::{Match, Mirror, PathMatch, Route, Rule},
    },
    state::{self, Backends, Matched},
};

/// The table of one listener. What is otherwise equal is settled by the routes' names, then by the order of their rules.
pub(super) fn table(
    snapshot: &Snapshot,
    shared: &Shared,
    services: &Services,
    listener: &Listener,
) -> Table<Matched> {
    let mut table = Table::default();
    let mut routes: Vec<_> =
        snapshot.routes.iter().filter(|route| route.listeners.contains(&listener.name)).collect();
    routes.sort_by(|a, b| a.name.cmp(&b.name));
    for route in routes {
        let labels = RouteLabels {
            listener: listener.name.as_str().to_owned(),
            route: route.name.as_str().to_owned(),
        };
        let hostnames = hostnames(route, listener);
        for rule in &route.rules {
            let compiled = Arc::new(state::Rule {
                route: route.name.clone(),
                backends: backends(rule, services),
                filters: rule.filters.clone(),
                mirrors: mirrors(rule, services),
                request_timeout: rule.request_timeout,
                backend_timeout: rule.backend_timeout,
                idle_timeout: rule.idle_timeout,
                retry: rule.retry.clone(),
                tunnels: rule.tunnels,
                stats: shared.parts.metrics.route(&labels),
            });
            for hostname in &hostnames {
                for wanted in &rule.matches {
                    table.add(
                        host(hostname.as_ref()),
                        path(wanted),
                        conditions(wanted),
                        Matched { rule: Arc::clone(&compiled), prefix_bytes: prefix_bytes(wanted) },
                    );
                }
            }
        }
    }
    table
}

/// The names that both the route and the listener serve; `None` is any name.
pub(super) fn hostnames(route: &Route, listener: &Listener) -> Vec<Option<Hostname>> {
    if route.hostnames.is_empty() {
        return vec![listener.hostname.clone()];
    }
    let narrow = |wanted: &Hostname| match &listener.hostname {
        None => Some(Some(wanted.clone())),
        Some(served) => intersection(wanted, served).map(Some),
    };
    route.hostnames.iter().filter_map(narrow).collect()
}

fn intersection(a: &Hostname, b: &Hostname) -> Option<Hostname> {
    use Hostname::{Exact, Wildcard};
    let below = |name: &str, suffix: &str| {
        name.strip_suffix(suffix).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    };
    match (a, b) {
        (Exact(one), Exact(other)) => (one == other).then(|| a.clone()),
        (Exact(name), Wildcard(suffix)) | (Wildcard(suffix), Exact(name)) => {
            below(name, suffix).then(|| Exact(name.clone()))
        }
        (Wildcard(one), Wildcard(other)) => {
            if one == other || below(one, other) {
                Some(a.clone())
            } else {
                below(other, one).then(|| b.clone())
            }
        }
    }
}

fn backends(rule: &Rule, services: &Services) -> Backends {
    Backends::new(rule.backends.iter().map(|backend| {
        let service = services.get(&backend.service).map(Arc::clone);
        (backend.weight, service.map(|service| state::Backend { service, filters: backend.filters.clone() }))
    }))
}

/// Copies for a service that does not exist go nowhere.
fn mirrors(rule: &Rule, services: &Services) -> Vec<state::Mirror> {
    let mirror = |mirror: &Mirror| {
        let service = services.get(&mirror.service)?;
        Some(state::Mirror { service: Arc::clone(service), percent: mirror.percent })
    };
    rule.mirrors.iter().filter_map(mirror).collect()
}

fn path(wanted: &Match) -> Path<'_> {
    match &wanted.path {
        PathMatch::Exact(path) => Path::Exact(path),
        PathMatch::Pattern(pattern) => Path::Pattern(pattern),
        PathMatch::Prefix(path) => Path::Prefix(path),
    }
}

fn prefix_bytes(wanted: &Match) -> usize {
    match &wanted.path {
        PathMatch::Exact(_) | PathMatch::Pattern(_) => 0,
        PathMatch::Prefix(path) => path.trim_end_matches('/').len(),
    }
}

fn conditions(wanted: &Match) -> Conditions {
    Conditions { method: wanted.method.clone(), headers: wanted.headers.clone(), query: wanted.query.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_both() {
        let exact = |name: &str| Hostname::Exact(name.to_owned());
        let wild = |name: &str| Hostname::Wildcard(name.to_owned());
        assert_eq!(intersection(&exact("a.b"), &exact("a.b")), Some(exact("a.b")));
        assert_eq!(intersection(&exact("a.b"), &exact("c.b")), None);
        assert_eq!(intersection(&exact("a.b"), &wild("b")), Some(exact("a.b")));
        assert_eq!(intersection(&wild("b"), &exact("b")), None);
        assert_eq!(intersection(&wild("x.b"), &wild("b")), Some(wild("x.b")));
        assert_eq!(intersection(&wild("b"), &wild("x.b")), Some(wild("x.b")));
        assert_eq!(intersection(&wild("ab"), &wild("b")), None);
    }
}
