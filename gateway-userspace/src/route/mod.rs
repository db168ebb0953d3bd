//! Which route a request takes: the precedence of the Gateway API, as lookups.
//!
//! Host names first (exact, then the longest wildcard, then none), within them paths (exact, then the longest prefix),
//! within a path the entries in the order of method, number of headers, number of query parameters, and the order in
//! which they were added. An entry that does not match lets the next one try, whatever its host name.

pub mod host;
pub mod matches;
pub mod path;

use http::{HeaderMap, Method};

use crate::route::{
    host::{Host, Hosts},
    matches::Conditions,
    path::{Path, Paths},
};

/// What is looked at in a request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Host name without port, lower case; empty when there is none.
    pub host: &'a str,
    /// Path without query.
    pub path: &'a str,
    /// Query without the question mark.
    pub query: Option<&'a str>,
    /// Method.
    pub method: &'a Method,
    /// Headers.
    pub headers: &'a HeaderMap,
}

/// Routes of one listener, and what they lead to.
#[derive(Debug)]
pub struct Table<T> {
    hosts: Hosts<Paths<Vec<Entry<T>>>>,
}

#[derive(Debug)]
struct Entry<T> {
    conditions: Conditions,
    target: T,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { hosts: Hosts::default() }
    }
}

impl<T> Table<T> {
    /// Adds an entry. Of two that are otherwise equal, the one that was added first takes the request.
    pub fn add(&mut self, host: Host<'_>, path: Path<'_>, conditions: Conditions, target: T) {
        let entries = self.hosts.entry(host).entry(path);
        // After all that are at least as specific.
        let at = entries.partition_point(|entry| entry.conditions.rank() >= conditions.rank());
        entries.insert(at, Entry { conditions, target });
    }

    /// Where a request goes; none when nothing matches.
    pub fn find(&self, request: &Request<'_>) -> Option<&T> {
        self.hosts
            .lookup(request.host)
            .flat_map(|paths| paths.lookup(request.path))
            .flatten()
            .find(|entry| entry.conditions.hold(request))
            .map(|entry| &entry.target)
    }
}

#[cfg(test)]
mod tests;
