//! Tables of routes, against the list of what the Gateway API says.

use std::{cmp::Reverse, sync::LazyLock};

use gateway_userspace::{
    pattern::{Pattern, Text},
    route::{Request, Table, host::Host, matches::Conditions, path::Path},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::requests::Choices;

const HOSTS: [&str; 8] = ["", "a.b", "b", "x.a.b", "y.x.a.b", "A.b", "a.b.", ".b"];
const PATHS: [&str; 10] = ["/", "/a", "/a/", "/a/b", "/ab", "/a//b", "/a/b/c", "/%61", "/b", "/a.b"];
const PATTERNS: [&str; 5] = ["/a.*", "/[ab]", "/a|/b", "/.*", "/a/[^/]+"];
/// The same, compiled once.
static COMPILED: LazyLock<[Pattern; PATTERNS.len()]> =
    LazyLock::new(|| PATTERNS.map(|text| Pattern::new(text).expect("it is an expression")));
const VALUES: [&str; 4] = ["1", "2", "1,2", ""];
const PAIRS: [&str; 8] = ["q=1", "q=2", "q=1%2C2", "%71=2", "q", "p=1", "q=1+2", "&"];
const FIELD: HeaderName = HeaderName::from_static("x-a");

/// One route.
struct Plain {
    /// Of this kind: every host, a suffix, or exactly this.
    host: (u8, &'static str),
    /// Of this kind: prefix, expression, or exactly this.
    path: (u8, &'static str),
    method: Option<Method>,
    field: Option<&'static str>,
    parameter: Option<&'static str>,
}

impl Plain {
    fn chosen(choices: &mut Choices<'_>) -> Self {
        let (host, path) = (choices.byte() % 3, choices.byte() % 3);
        let method = [None, Some(Method::GET), Some(Method::PUT)];
        Self {
            host: (host, if host == 0 { "" } else { choices.of(&HOSTS[1..4]) }),
            path: (path, if path == 1 { choices.of(&PATTERNS) } else { choices.of(&PATHS) }),
            method: method[usize::from(choices.byte() % 3)].clone(),
            field: choices.flag().then(|| choices.of(&VALUES)),
            parameter: choices.flag().then(|| choices.of(&VALUES)),
        }
    }

    fn add_to(&self, table: &mut Table<usize>, order: usize) {
        let host = match self.host {
            (0, _) => Host::Any,
            (1, suffix) => Host::Suffix(suffix),
            (_, name) => Host::Exact(name),
        };
        let path = match self.path {
            (0, prefix) => Path::Prefix(prefix),
            (1, pattern) => Path::Pattern(compiled(pattern)),
            (_, path) => Path::Exact(path),
        };
        let text = |value: &'static str| Text::Exact(value.to_owned());
        let conditions = Conditions {
            method: self.method.clone(),
            headers: self.field.map(|value| (FIELD, text(value))).into_iter().collect(),
            query: self.parameter.map(|value| ("q".to_owned(), text(value))).into_iter().collect(),
        };
        table.add(host, path, conditions, order);
    }

    fn holds(&self, asked: &Asked<'_>) -> bool {
        let host = match self.host {
            (0, _) => true,
            (1, suffix) => asked.host.strip_suffix(suffix).is_some_and(|labels| labels.ends_with('.')),
            (_, name) => asked.host == name,
        };
        let path = match self.path {
            (0, prefix) => {
                let rest = asked.path.strip_prefix(prefix.trim_end_matches('/'));
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            (1, pattern) => compiled(pattern).matches(asked.path.as_bytes()),
            (_, path) => asked.path == path,
        };
        let is = |wanted: Option<&str>, there: Option<&str>| wanted.is_none() || wanted == there;
        host && path
            && self.method.as_ref().is_none_or(|method| method == asked.method)
            && is(self.field, asked.field().as_deref())
            && is(self.parameter, asked.parameter().as_deref())
    }

    /// What the specification of `HTTPRoute` lists, one after another; the larger one takes the request.
    fn rank(&self, order: usize) -> impl Ord + use<> {
        let pattern = Reverse(if self.path.0 == 1 { self.path.1 } else { "" });
        let path = if self.path.0 == 0 { self.path.1.trim_end_matches('/') } else { self.path.1 };
        let rest = (self.method.is_some(), self.field.is_some(), self.parameter.is_some());
        ((self.host.0, self.host.1.len()), (self.path.0, path.len(), pattern), rest, Reverse(order))
    }
}

fn compiled(text: &str) -> &'static Pattern {
    COMPILED.iter().find(|pattern| pattern.as_str() == text).expect("it is one of the list")
}

/// One request.
struct Asked<'a> {
    host: &'a str,
    path: &'a str,
    query: Option<&'a str>,
    method: &'a Method,
    fields: &'a [&'a str],
}

impl Asked<'_> {
    /// Several fields of a name count as one.
    fn field(&self) -> Option<String> {
        (!self.fields.is_empty()).then(|| self.fields.join(","))
    }

    /// The first parameter of the name.
    fn parameter(&self) -> Option<String> {
        let spelled = |text: &str| text.replace('+', " ").replace("%2C", ",").replace("%71", "q");
        let mut pairs = self.query?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.find(|(name, _)| spelled(name) == "q").map(|(_, value)| spelled(value))
    }
}

/// Judges where requests go in a table that the first bytes make.
///
/// # Panics
/// When something does not hold.
pub fn routes(data: &[u8]) {
    let mut choices = Choices(data);
    let entries: Vec<Plain> = (0..choices.byte() % 24).map(|_| Plain::chosen(&mut choices)).collect();
    let mut table = Table::default();
    entries.iter().enumerate().for_each(|(order, entry)| entry.add_to(&mut table, order));
    for _ in 0..16 {
        let (host, path) = (choices.of(&HOSTS), choices.of(&PATHS));
        let pairs: Vec<&str> = (0..choices.byte() % 4).map(|_| choices.of(&PAIRS)).collect();
        let query = choices.flag().then(|| pairs.join("&"));
        let fields: Vec<&str> = (0..choices.byte() % 3).map(|_| choices.of(&VALUES)).collect();
        let method = if choices.flag() { Method::PUT } else { Method::GET };
        let asked = Asked { host, path, query: query.as_deref(), method: &method, fields: &fields };
        let mut headers = HeaderMap::new();
        for value in &fields {
            headers.append(FIELD, HeaderValue::from_str(value).expect("it is text"));
        }
        let request = Request { host, path, query: query.as_deref(), method: &method, headers: &headers };
        let holding = entries.iter().enumerate().filter(|(_, entry)| entry.holds(&asked));
        let expected = holding.max_by_key(|(order, entry)| entry.rank(*order)).map(|(order, _)| order);
        assert_eq!(table.find(&request).copied(), expected, "{host} {path} {query:?} {fields:?}");
        if choices.0.is_empty() {
            return;
        }
    }
}
