//! The precedence of the Gateway API, case by case.

use std::cmp::Reverse;

use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::pattern::{Pattern, Text};

/// `METHOD host path?query header=value ...`
#[track_caller]
fn check(table: &Table<&'static str>, request: &str, expected: Option<&str>) {
    let mut words = request.split(' ');
    let method: Method = words.next().unwrap().parse().unwrap();
    let host = words.next().unwrap();
    let (path, query) = match words.next().unwrap().split_once('?') {
        Some((path, query)) => (path.to_owned(), Some(query.to_owned())),
        None => (request.split(' ').nth(2).unwrap().to_owned(), None),
    };
    let mut headers = HeaderMap::new();
    for word in words {
        let (name, value) = word.split_once('=').unwrap();
        headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
    }
    let request_parts =
        Request { host, path: &path, query: query.as_deref(), method: &method, headers: &headers };
    assert_eq!(table.find(&request_parts).copied(), expected, "{request}");
}

fn none() -> Conditions {
    Conditions::default()
}

fn header(value: &str) -> Conditions {
    Conditions { headers: vec![(HeaderName::from_static("x-a"), Text::Exact(value.to_owned()))], ..none() }
}

fn query(value: &str) -> Conditions {
    Conditions { query: vec![("q".to_owned(), Text::Exact(value.to_owned()))], ..none() }
}

#[test]
fn hosts_go_from_exact_over_long_to_any() {
    let mut table = Table::default();
    table.add(Host::Any, Path::Prefix("/"), none(), "any");
    table.add(Host::Suffix("org"), Path::Prefix("/"), none(), "org");
    table.add(Host::Suffix("example.org"), Path::Prefix("/"), none(), "example");
    table.add(Host::Exact("a.example.org"), Path::Prefix("/only"), none(), "exact");
    check(&table, "GET a.example.org /only", Some("exact"));
    check(&table, "GET a.example.org /else", Some("example"));
    check(&table, "GET x.y.example.org /", Some("example"));
    check(&table, "GET example.org /", Some("org"));
    check(&table, "GET org /", Some("any"));
    check(&table, "GET 192.0.2.1 /", Some("any"));
}

#[test]
fn paths_go_from_exact_over_long_segments_to_the_root() {
    let mut table = Table::default();
    table.add(Host::Any, Path::Prefix("/"), none(), "root");
    table.add(Host::Any, Path::Prefix("/foo"), none(), "foo");
    table.add(Host::Any, Path::Prefix("/foo/bar"), none(), "bar");
    table.add(Host::Any, Path::Exact("/foo/bar/"), none(), "exact");
    check(&table, "GET h /", Some("root"));
    check(&table, "GET h /fo", Some("root"));
    check(&table, "OPTIONS h *", Some("root"));
    check(&table, "GET h /foobar", Some("root"));
    check(&table, "GET h /foo", Some("foo"));
    check(&table, "GET h /foo/", Some("foo"));
    check(&table, "GET h /foo/ba", Some("foo"));
    check(&table, "GET h /foo/bar", Some("bar"));
    check(&table, "GET h /foo/bar/", Some("exact"));
    check(&table, "GET h /foo/bar/x/y", Some("bar"));
}

#[test]
fn without_a_root_there_may_be_no_route() {
    let mut table = Table::default();
    table.add(Host::Any, Path::Exact("/a"), none(), "a");
    table.add(Host::Any, Path::Prefix("/b/c"), none(), "c");
    check(&table, "GET h /a", Some("a"));
    check(&table, "GET h /a/", None);
    check(&table, "GET h /b", None);
    check(&table, "GET h /b/cc", None);
    check(&table, "GET h /", None);
    check(&table, "OPTIONS h *", None);
}

#[test]
fn conditions_go_by_method_then_headers_then_query_then_order() {
    let mut table = Table::default();
    table.add(Host::Any, Path::Prefix("/"), none(), "first");
    table.add(Host::Any, Path::Prefix("/"), none(), "second");
    table.add(Host::Any, Path::Prefix("/"), query("1"), "query");
    table.add(Host::Any, Path::Prefix("/"), header("1"), "header");
    table.add(Host::Any, Path::Prefix("/"), Conditions { method: Some(Method::POST), ..none() }, "method");
    check(&table, "GET h /", Some("first"));
    check(&table, "GET h /?q=1", Some("query"));
    check(&table, "GET h /?q=1 x-a=1", Some("header"));
    check(&table, "POST h /?q=1 x-a=1", Some("method"));
    check(&table, "GET h /?q=2 x-a=2", Some("first"));
}

#[test]
fn more_headers_come_before_fewer_and_more_parameters_too() {
    let header = |name, value: &str| (HeaderName::from_static(name), Text::Exact(value.to_owned()));
    let parameter = |name: &str, value: &str| (name.to_owned(), Text::Exact(value.to_owned()));
    let mut table = Table::default();
    let headers = vec![header("x-a", "1")];
    let query = vec![parameter("q", "1"), parameter("r", "1"), parameter("s", "1")];
    table.add(Host::Any, Path::Prefix("/"), Conditions { headers, query, ..none() }, "one header");
    let headers = vec![header("x-a", "1"), header("x-b", "1")];
    table.add(Host::Any, Path::Prefix("/"), Conditions { headers, ..none() }, "two headers");
    let query = vec![parameter("q", "1")];
    table.add(Host::Any, Path::Prefix("/"), Conditions { query, ..none() }, "one parameter");
    let query = vec![parameter("q", "1"), parameter("r", "1")];
    table.add(Host::Any, Path::Prefix("/"), Conditions { query, ..none() }, "two parameters");
    check(&table, "GET h /?q=1&r=1&s=1 x-a=1 x-b=1", Some("two headers"));
    check(&table, "GET h /?q=1&r=1&s=1 x-a=1", Some("one header"));
    check(&table, "GET h /?q=1&r=1 x-a=1", Some("two parameters"));
    check(&table, "GET h /?q=1", Some("one parameter"));
}

#[test]
fn values_are_compared_as_they_mean() {
    let mut table = Table::default();
    table.add(Host::Any, Path::Prefix("/"), query("a b"), "query");
    table.add(Host::Any, Path::Prefix("/"), header("1,2"), "header");
    check(&table, "GET h /?q=a%20b", Some("query"));
    check(&table, "GET h /?x=1&q=a+b&q=c", Some("query"));
    check(&table, "GET h /?q=c&q=a+b", None);
    check(&table, "GET h /?q=a%2", None);
    check(&table, "GET h / x-a=1 x-a=2", Some("header"));
    check(&table, "GET h / x-a=1", None);
}

#[test]
fn cookies_that_a_client_splits_are_one() {
    let mut table = Table::default();
    let name = HeaderName::from_static("cookie");
    let canary = Conditions { headers: vec![(name, Text::Exact("a=1; b=2".to_owned()))], ..none() };
    table.add(Host::Any, Path::Prefix("/"), canary, "canary");
    check(&table, "GET h / cookie=a=1 cookie=b=2", Some("canary"));
    check(&table, "GET h / cookie=a=1 cookie=b=3", None);
}

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).unwrap()
}

#[test]
fn expressions_come_between_exact_paths_and_prefixes() {
    let mut table = Table::default();
    let (short, long) = (pattern("/api/.*"), pattern("/api/v[0-9]+/.*"));
    table.add(Host::Any, Path::Prefix("/api/v1/users"), none(), "prefix");
    table.add(Host::Any, Path::Pattern(&short), none(), "short");
    table.add(Host::Any, Path::Pattern(&long), none(), "long");
    table.add(Host::Any, Path::Exact("/api/v1/users"), none(), "exact");
    table.add(Host::Any, Path::Pattern(&short), header("1"), "header");
    check(&table, "GET h /api/v1/users", Some("exact"));
    check(&table, "GET h /api/v1/users/7", Some("long"));
    check(&table, "GET h /api/x", Some("short"));
    check(&table, "GET h /api/x x-a=1", Some("header"));
    check(&table, "GET h /x/api/", None);
    check(&table, "GET h /api", None);
}

#[test]
fn values_match_expressions_as_a_whole() {
    let mut table = Table::default();
    let value = || Text::Pattern(pattern("(beta|canary)-[0-9]+"));
    let headers = vec![(HeaderName::from_static("x-a"), value())];
    table.add(Host::Any, Path::Prefix("/"), Conditions { headers, ..none() }, "header");
    table.add(
        Host::Any,
        Path::Prefix("/"),
        Conditions { query: vec![("q".to_owned(), value())], ..none() },
        "query",
    );
    check(&table, "GET h / x-a=beta-1", Some("header"));
    check(&table, "GET h / x-a=xbeta-1", None);
    check(&table, "GET h / x-a=beta-1 x-a=beta-2", None);
    check(&table, "GET h /?q=canary%2D20", Some("query"));
    check(&table, "GET h /?q=canary-", None);
}

/// One entry, as the rules of the Gateway API speak of it.
#[derive(Clone, Debug)]
struct Plain {
    host: String,
    path: (u8, String),
    method: Option<Method>,
    header: Option<String>,
    query: Option<String>,
}

impl Plain {
    fn host_matches(&self, name: &str) -> bool {
        match self.host.strip_prefix('*') {
            Some("") => true,
            Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
            None => self.host == name,
        }
    }

    fn path_matches(&self, path: &str) -> bool {
        let wanted = self.path.1.as_str();
        match self.path.0 {
            2 => wanted == path,
            1 => Pattern::new(wanted).unwrap().matches(path.as_bytes()),
            _ => {
                let wanted: Vec<&str> = wanted.split('/').skip(1).filter(|part| !part.is_empty()).collect();
                let path: Vec<&str> = path.split('/').skip(1).collect();
                path.len() >= wanted.len() && wanted.iter().zip(&path).all(|(a, b)| a == b)
            }
        }
    }

    /// What the specification of `HTTPRoute` lists, one after another; larger takes precedence.
    fn precedence(&self, order: usize) -> impl Ord + use<> {
        // "the largest number of characters in a matching non-wildcard hostname", then "... in a matching hostname".
        let is_exact = !self.host.starts_with('*');
        let host = (is_exact, self.host.len());
        // "Exact path match", "Prefix path match with largest number of characters"; expressions in between are ours.
        let len = if self.path.0 == 0 { self.path.1.trim_end_matches('/').len() } else { self.path.1.len() };
        let path =
            (self.path.0, len, Reverse(if self.path.0 == 1 { self.path.1.clone() } else { String::new() }));
        // "Method match", "Largest number of header matches", "Largest number of query param matches".
        let rest = (self.method.is_some(), self.header.is_some(), self.query.is_some());
        // "the first matching rule in list order".
        (host, path, rest, Reverse(order))
    }

    fn add_to(&self, table: &mut Table<usize>, order: usize) {
        let host = match self.host.strip_prefix('*') {
            Some("") => Host::Any,
            Some(suffix) => Host::Suffix(&suffix[1..]),
            None => Host::Exact(&self.host),
        };
        let expression = (self.path.0 == 1).then(|| pattern(&self.path.1));
        let path = match (&expression, self.path.0) {
            (Some(pattern), _) => Path::Pattern(pattern),
            (None, 2) => Path::Exact(&self.path.1),
            (None, _) => Path::Prefix(&self.path.1),
        };
        let exact = |value: &String| Text::Exact(value.clone());
        let header = self.header.iter().map(|value| (HeaderName::from_static("x-a"), exact(value)));
        let query = self.query.iter().map(|value| ("q".to_owned(), exact(value)));
        let conditions =
            Conditions { method: self.method.clone(), headers: header.collect(), query: query.collect() };
        table.add(host, path, conditions, order);
    }
}

fn plain() -> impl Strategy<Value = Plain> {
    let host = prop_oneof!["\\*", "\\*(\\.[ab]){1,2}", "[ab](\\.[ab]){0,2}"];
    let path = prop_oneof![
        "(/[xy]{0,2}){1,3}".prop_map(|path| (2, path)),
        "/?([xy.]|[xy]\\*|/){1,4}".prop_map(|path| (1, path)),
        "(/[xy]{1,2}){0,3}".prop_map(|path| (0, if path.is_empty() { "/".to_owned() } else { path })),
    ];
    let method = proptest::option::of(prop_oneof![Just(Method::GET), Just(Method::PUT)]);
    let value = || proptest::option::of("[12]");
    (host, path, method, value(), value()).prop_map(|(host, path, method, header, query)| Plain {
        host,
        path,
        method,
        header,
        query,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_table_finds_what_the_rules_say(
        entries in proptest::collection::vec(plain(), 0..24),
        host in "[ab](\\.[ab]){0,3}|",
        path in "(/[xy]{0,3}){1,4}",
        put in any::<bool>(),
        header in proptest::option::of("[12]"),
        query in proptest::option::of("[12]"),
    ) {
        let mut table = Table::default();
        entries.iter().enumerate().for_each(|(order, entry)| entry.add_to(&mut table, order));
        let method = if put { Method::PUT } else { Method::GET };
        let mut headers = HeaderMap::new();
        headers.extend(header.iter().map(|value| (HeaderName::from_static("x-a"), HeaderValue::try_from(value).unwrap())));
        let text = query.as_ref().map(|value| format!("q={value}"));
        let found = table.find(&Request { host: &host, path: &path, query: text.as_deref(), method: &method, headers: &headers });
        let holds = |wanted: &Option<String>, there: &Option<String>| wanted.is_none() || wanted == there;
        let expected = entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.host_matches(&host) && entry.path_matches(&path))
            .filter(|(_, entry)| entry.method.as_ref().is_none_or(|wanted| *wanted == method))
            .filter(|(_, entry)| holds(&entry.header, &header) && holds(&entry.query, &query))
            .max_by_key(|(order, entry)| entry.precedence(*order))
            .map(|(order, _)| order);
        prop_assert_eq!(found.copied(), expected);
    }
}
