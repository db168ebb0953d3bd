//! The precedence of the Gateway API, case by case.

use http::{HeaderName, HeaderValue};

use super::*;

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
    Conditions { headers: vec![(HeaderName::from_static("x-a"), value.to_owned())], ..none() }
}

fn query(value: &str) -> Conditions {
    Conditions { query: vec![("q".to_owned(), value.to_owned())], ..none() }
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
