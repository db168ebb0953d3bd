//! Paths: exact, then regular expressions, then the longest prefix of whole segments.
//!
//! The Gateway API leaves the place of regular expressions to the implementation: here they come before prefixes, so
//! that one can be written as an exception from a prefix, the longer expression first, as other gateways have it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use foldhash::fast::RandomState;

use crate::pattern::Pattern;

/// A pattern for paths.
#[derive(Clone, Copy, Debug)]
pub enum Path<'a> {
    /// The whole path.
    Exact(&'a str),
    /// What the expression matches as a whole.
    Pattern(&'a Pattern),
    /// Whole segments from the start; `/` is every path, and the `*` of OPTIONS.
    Prefix(&'a str),
}

/// Things by path.
#[derive(Debug)]
pub struct Paths<T> {
    exact: HashMap<Box<str>, T, RandomState>,
    /// The longest first, else by their text. One is tried after another.
    patterns: BTreeMap<(Reverse<usize>, Box<str>), (Pattern, T)>,
    /// Without a trailing slash, so that `/` is the empty string.
    prefix: HashMap<Box<str>, T, RandomState>,
    /// Length of the longest prefix: no longer part of a path is looked up.
    longest_bytes: usize,
}

impl<T> Default for Paths<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::default(),
            patterns: BTreeMap::new(),
            prefix: HashMap::default(),
            longest_bytes: 0,
        }
    }
}

impl<T> Paths<T> {
    /// The thing of exactly this pattern.
    pub fn entry(&mut self, path: Path<'_>) -> &mut T
    where
        T: Default,
    {
        match path {
            Path::Exact(path) => self.exact.entry(path.into()).or_default(),
            Path::Pattern(pattern) => {
                let key = (Reverse(pattern.as_str().len()), pattern.as_str().into());
                &mut self.patterns.entry(key).or_insert_with(|| (pattern.clone(), T::default())).1
            }
            Path::Prefix(path) => {
                let path = path.trim_end_matches('/');
                self.longest_bytes = self.longest_bytes.max(path.len());
                self.prefix.entry(path.into()).or_default()
            }
        }
    }

    /// Things whose pattern includes `path`, most specific first.
    pub fn lookup<'a, 'p>(&'a self, path: &'p str) -> impl Iterator<Item = &'a T> + use<'a, 'p, T> {
        let exact = if self.exact.is_empty() { None } else { self.exact.get(path) };
        let patterns = self.patterns.values().filter(|(pattern, _)| pattern.matches(path.as_bytes()));
        let patterns = patterns.map(|(_, thing)| thing);
        let whole = if path.len() <= self.longest_bytes { self.prefix.get(path) } else { None };
        // A prefix ends where a slash follows, so only slashes up to the longest prefix matter.
        let end = path.len().min(self.longest_bytes + 1);
        let reachable = path.as_bytes().get(..end).unwrap_or_default();
        let parts = reachable
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, byte)| **byte == b'/')
            .filter_map(|(at, _)| self.prefix.get(path.get(..at)?));
        // What is asked of the server as a whole has no path, and belongs to whoever has every path.
        let server = if path == "*" { self.prefix.get("") } else { None };
        let whole = whole.filter(|_| !path.is_empty());
        exact.into_iter().chain(patterns).chain(whole).chain(parts).chain(server)
    }
}
