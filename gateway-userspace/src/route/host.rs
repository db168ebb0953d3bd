//! Host names: exact, then the longest wildcard, then any.

use std::collections::HashMap;

use foldhash::fast::RandomState;

/// A pattern for host names, lower case.
#[derive(Clone, Copy, Debug)]
pub enum Host<'a> {
    /// Every host name, and none.
    Any,
    /// This name.
    Exact(&'a str),
    /// One label or more in front of this suffix.
    Suffix(&'a str),
}

/// Things by host name.
#[derive(Debug)]
pub struct Hosts<T> {
    exact: HashMap<Box<str>, T, RandomState>,
    suffix: HashMap<Box<str>, T, RandomState>,
    any: Option<T>,
}

impl<T> Default for Hosts<T> {
    fn default() -> Self {
        Self { exact: HashMap::default(), suffix: HashMap::default(), any: None }
    }
}

impl<T> Hosts<T> {
    /// The thing of exactly this pattern.
    pub fn entry(&mut self, host: Host<'_>) -> &mut T
    where
        T: Default,
    {
        match host {
            Host::Any => self.any.get_or_insert_with(T::default),
            Host::Exact(name) => self.exact.entry(name.into()).or_default(),
            Host::Suffix(suffix) => self.suffix.entry(suffix.into()).or_default(),
        }
    }

    /// Sets the thing of exactly this pattern.
    pub fn insert(&mut self, host: Host<'_>, thing: T) {
        match host {
            Host::Any => self.any = Some(thing),
            Host::Exact(name) => drop(self.exact.insert(name.into(), thing)),
            Host::Suffix(suffix) => drop(self.suffix.insert(suffix.into(), thing)),
        }
    }

    /// Things whose pattern includes `name`, most specific first.
    pub fn lookup<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a T> + use<'a, 'n, T> {
        // A name longer than DNS allows is looked up as a whole only, so that a client cannot make this walk long.
        const LONGEST: usize = 253;
        let walk = if self.suffix.is_empty() || name.len() > LONGEST { "" } else { name };
        let exact = if self.exact.is_empty() { None } else { self.exact.get(name) };
        let suffixes = walk
            .match_indices('.')
            .filter_map(|(at, _)| name.get(at + 1..))
            .filter_map(|rest| self.suffix.get(rest));
        exact.into_iter().chain(suffixes).chain(&self.any)
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.suffix.is_empty() && self.any.is_none()
    }
}
