//! What changes between the two sides: hop-by-hop fields go, forwarding fields come, the target takes its form.

use std::borrow::Cow;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header,
    request::Parts,
    response,
    uri::{Authority, PathAndQuery, Scheme as UriScheme},
};

use crate::{
    h1,
    http::{
        Downstream,
        fault::{Fault, Kind},
        forwarded,
    },
    pool::Protocol,
    target,
};

/// Fields that are no matter of one connection, whatever `connection` says.
const ENDS_NOWHERE: [HeaderName; 5] = [
    header::AUTHORIZATION,
    header::CONTENT_LENGTH,
    header::COOKIE,
    header::HOST,
    header::PROXY_AUTHORIZATION,
];
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// No field, but a word that `connection` is followed by (RFC 9110, section 18.4).
const CLOSE: HeaderName = HeaderName::from_static("close");
/// Fields that concern one connection, beside `connection` itself.
static OF_A_CONNECTION: [HeaderName; 6] =
    [header::TE, header::TRANSFER_ENCODING, header::UPGRADE, KEEP_ALIVE, PROXY_CONNECTION, CLOSE];

/// Brings the path of a request to its one form, which is then matched and sent. `*` and the authority of CONNECT are none.
///
/// `true` where the client has to ask for that form by itself.
pub fn normalize(parts: &mut Parts, rules: target::Rules) -> Result<bool, Fault> {
    let bad = Fault::new(Kind::BadRequest);
    let path = parts.uri.path();
    if path == "*" && parts.method == Method::OPTIONS {
        return Ok(false);
    }
    // A target such as `http://a?b` has no path but means `/`, which has to be written (RFC 9112, section 3.2.1).
    let is_written = parts.uri.path_and_query().is_some_and(|whole| whole.as_str().starts_with('/'));
    let normal = match target::normal(path, rules).map_err(|_| bad)? {
        Cow::Borrowed(_) if is_written => return Ok(false),
        normal @ (Cow::Borrowed(_) | Cow::Owned(_)) => normal.into_owned(),
    };
    let is_sent_on = rules.sends_on(path);
    set_path(parts, normal)?;
    Ok(is_sent_on)
}

/// Where a client finds the path of a request that was made normal.
pub fn location(parts: &Parts) -> Result<HeaderValue, Fault> {
    let target = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    // Two slashes in front would name a host (RFC 3986, section 4.2).
    let dot = if target.starts_with("//") { "/." } else { "" };
    HeaderValue::try_from(format!("{dot}{target}")).map_err(|_| Fault::new(Kind::BadRequest))
}

/// Gives a request another path; its query stays.
pub fn set_path(parts: &mut Parts, path: String) -> Result<(), Fault> {
    let bad = Fault::new(Kind::BadRequest);
    let whole = match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.path_and_query = Some(PathAndQuery::try_from(whole).map_err(|_| bad)?);
    parts.uri = Uri::from_parts(uri).map_err(|_| bad)?;
    Ok(())
}

/// The authority a request is meant for: of its target, else of `host` (RFC 9112, section 3.2.2).
pub fn authority(parts: &Parts) -> Option<&str> {
    match parts.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => parts.headers.get(header::HOST).and_then(|value| value.to_str().ok()),
    }
}

/// Whether the host of a request is one that nobody can read: that is not to have none.
pub fn has_unreadable_host(parts: &Parts) -> bool {
    parts.uri.authority().is_none()
        && parts.headers.get(header::HOST).is_some_and(|value| value.to_str().is_err())
}

/// Whether an authority is a host and at most a port, and nothing that another parser could read as something else (RFC
/// 9110, section 4.2.4, on user information).
pub fn is_sound(authority: &str) -> bool {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((literal, port)) => (literal, port.strip_prefix(':').or(port.is_empty().then_some(""))),
            None => return false,
        },
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, Some("")),
        },
    };
    host.bytes().all(is_part_of_host)
        && port.is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether a byte may stand in a host, or in the literal of an address (RFC 3986, section 3.2.2).
fn is_part_of_host(byte: u8) -> bool {
    matches!(
        byte,
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9'
            | b'-' | b'.' | b'_' | b'~' | b'%' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b';' | b'=' | b':'
    )
}

/// Whether a target is one of HTTP. The codec of HTTP/1 sees to that by itself.
pub fn is_web(target: &Uri) -> bool {
    target.scheme().is_none_or(|scheme| *scheme == UriScheme::HTTP || *scheme == UriScheme::HTTPS)
}

/// The host name of an authority: without port, lower case, without the dot of the root.
pub fn host_name(authority: &str) -> Cow<'_, str> {
    let bytes = authority.as_bytes();
    let end = match bytes.first() {
        // An IPv6 literal.
        Some(b'[') => bytes.iter().position(|byte| *byte == b']').map(|at| at + 1),
        Some(_) | None => bytes.iter().position(|byte| *byte == b':'),
    };
    let host = end.and_then(|end| authority.get(..end)).unwrap_or(authority);
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// Whether sending a request twice has the effect of sending it once (RFC 9110, section 9.2.2).
pub fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
    )
}

/// How a request goes on.
#[derive(Clone, Copy, Debug)]
pub struct Onward<'a> {
    /// Where it came from.
    pub downstream: &'a Downstream,
    /// Proxies in front whose word is taken.
    pub trusted_hops: usize,
    /// Another host than the one it asked for.
    pub host: Option<&'a HeaderValue>,
    /// What the endpoint speaks.
    pub protocol: Protocol,
    /// Whether it is spoken behind TLS.
    pub is_secured: bool,
    /// Whether a body follows.
    pub has_body: bool,
}

/// Makes the head of the request as the endpoint gets it.
pub fn to_upstream(parts: &mut Parts, onward: &Onward<'_>) -> Result<(), Fault> {
    let Onward { downstream, trusted_hops, protocol, has_body, .. } = *onward;
    let bad = |_| Fault::new(Kind::BadRequest);
    let host = match parts.uri.authority() {
        Some(authority) => Some(HeaderValue::try_from(authority.as_str()).map_err(bad)?),
        None => parts.headers.get(header::HOST).cloned(),
    };
    let takes_trailers = protocol == Protocol::Http2 && takes_trailers(&parts.headers);
    strip_hop_by_hop(&mut parts.headers);
    forwarded::add(&mut parts.headers, downstream, host.as_ref(), trusted_hops);
    // Without a body there is nothing to wait for, and a client of HTTP/1.0 does not wait (RFC 9110, section 10.1.1).
    if !has_body || parts.version < Version::HTTP_11 {
        parts.headers.remove(header::EXPECT);
    }
    let host = onward.host.cloned().or(host);
    let has_length = keep_length(&mut parts.headers, has_body);
    join_cookies(&mut parts.headers);
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(path);
    match protocol {
        Protocol::Http1 => {
            parts.version = Version::HTTP_11;
            // A request of HTTP/1.1 has the field even when there is nothing to say (RFC 9112, section 3.2).
            let host = host.unwrap_or_else(|| HeaderValue::from_static(""));
            parts.headers.insert(header::HOST, host);
            // Without it the codec takes a request such as GET for one without a body.
            if has_body && !has_length {
                parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
        }
        Protocol::Http2 => {
            parts.version = Version::HTTP_2;
            parts.headers.remove(header::HOST);
            // The scheme is that of the connection which carries it (RFC 9113, section 8.3.1): servers compare.
            uri.scheme = Some(if onward.is_secured { UriScheme::HTTPS } else { UriScheme::HTTP });
            // A client of HTTP/1.1 that asks for no host sends the field without a value (RFC 9112, section 3.2).
            let host = host.as_ref().map(HeaderValue::as_bytes).filter(|host| !host.is_empty());
            let authority = host.unwrap_or(b"localhost");
            uri.authority = Some(Authority::try_from(authority).map_err(|_| Fault::new(Kind::BadRequest))?);
            if takes_trailers {
                parts.headers.insert(header::TE, HeaderValue::from_static("trailers"));
            }
        }
    }
    parts.uri = Uri::from_parts(uri).map_err(|_| Fault::new(Kind::BadRequest))?;
    parts.extensions = http::Extensions::new();
    Ok(())
}

/// Keeps a length that says how a body is framed, and no other one; whether there is one.
fn keep_length(headers: &mut HeaderMap, has_body: bool) -> bool {
    let said = headers.get(header::CONTENT_LENGTH).and_then(|value| h1::number(value.as_bytes()));
    let is_kept = said.is_some_and(|length| has_body || length == 0);
    if !is_kept {
        headers.remove(header::CONTENT_LENGTH);
    }
    is_kept
}

/// Whether a client takes fields behind a body (RFC 9110, section 10.1.4).
fn takes_trailers(headers: &HeaderMap) -> bool {
    let mut members =
        headers.get_all(header::TE).iter().flat_map(|te| te.as_bytes().split(|byte| *byte == b','));
    members.any(|member| member.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// Counts a hop of a request that may be asked to take only so many (RFC 9110, section 7.6.2); `false` when this is the last.
pub fn count_hop(parts: &mut Parts) -> bool {
    if !matches!(parts.method, Method::OPTIONS | Method::TRACE) {
        return true;
    }
    let Some(most) = parts.headers.get(header::MAX_FORWARDS) else { return true };
    // What is no number bounds nothing.
    let is_number = !most.is_empty() && most.as_bytes().iter().all(u8::is_ascii_digit);
    let Some(most) = most.to_str().ok().filter(|_| is_number) else { return true };
    // A larger one than can be counted here becomes the largest that can.
    let Some(left) = most.parse().unwrap_or(u64::MAX).checked_sub(1) else { return false };
    parts.headers.insert(header::MAX_FORWARDS, HeaderValue::from(left));
    true
}

/// Fields of a request as they are counted against a bound: those of HTTP/2 that hold one cookie each, as their sender may
/// split them (RFC 9113, section 8.2.3), are one.
pub fn n_counted(n_fields: usize, parts: &Parts) -> usize {
    if parts.version != Version::HTTP_2 {
        return n_fields;
    }
    n_fields.saturating_sub(parts.headers.get_all(header::COOKIE).iter().skip(1).count())
}

/// Makes the head of the response as the client gets it; a body whose length nobody can tell is a fault of the endpoint.
pub fn to_downstream(parts: &mut response::Parts) -> Result<(), Fault> {
    let mut codings = parts.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(Fault::new(Kind::Protocol));
        }
        // The coding says the length, whatever stands beside it (RFC 9112, section 6.3).
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    if parts.status == StatusCode::NO_CONTENT {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    one_length(&mut parts.headers)?;
    strip_hop_by_hop(&mut parts.headers);
    // The server's side sets the version that the client speaks.
    parts.version = Version::HTTP_11;
    parts.extensions = http::Extensions::new();
    Ok(())
}

/// A length that is said twice goes on once (RFC 9110, section 8.6); two lengths are none.
fn one_length(fields: &mut HeaderMap) -> Result<(), Fault> {
    let mut lengths = fields.get_all(header::CONTENT_LENGTH).iter();
    let (Some(first), Some(_)) = (lengths.next(), lengths.next()) else { return Ok(()) };
    let first = first.clone();
    if fields.get_all(header::CONTENT_LENGTH).iter().any(|length| *length != first) {
        return Err(Fault::new(Kind::Protocol));
    }
    fields.insert(header::CONTENT_LENGTH, first);
    Ok(())
}

/// Makes an interim response as the client gets it.
pub fn interim(parts: &mut response::Parts) {
    // It has no body that they could be about (RFC 9110, section 8.6).
    parts.headers.remove(header::CONTENT_LENGTH);
    strip_hop_by_hop(&mut parts.headers);
    parts.extensions = http::Extensions::new();
}

/// Fields that concern one connection only (RFC 9110, section 7.6.1).
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Names that are known are compared faster than they are looked for, and most messages have none of the others.
    let (mut is_connection, mut is_other) = (false, false);
    for name in headers.keys() {
        is_connection |= *name == header::CONNECTION;
        is_other |= OF_A_CONNECTION.contains(name);
    }
    if is_connection {
        forget_named(headers);
    }
    if is_other {
        for name in &OF_A_CONNECTION {
            headers.remove(name);
        }
    }
}

/// Takes away the fields that `connection` makes a matter of one connection, and with them the word about it: what is
/// written into a request from then on is ours, and no client makes it go. `te` stays until the request goes on: what it
/// says is said again to an endpoint of HTTP/2.
pub(super) fn forget_named(headers: &mut HeaderMap) {
    for name in named(headers) {
        headers.remove(name);
    }
    headers.remove(header::CONNECTION);
}

/// Fields that `connection` makes a matter of one connection.
fn named(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION);
    // Most say nothing but this, whose fields go in any case.
    let is_usual = |value: &HeaderValue| {
        let value = value.as_bytes();
        value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close")
    };
    if values.iter().all(is_usual) {
        return Vec::new();
    }
    values
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        // Whoever names these wants to change what the message means, or who it seems to come from.
        .filter(|name| !ENDS_NOWHERE.contains(name) && !forwarded::is_one(name) && *name != header::TE)
        .collect()
}

/// Fields behind a body that say nothing but what may stand there (RFC 9110, section 6.5.1): whoever puts them among those
/// of the head would take them for ours. `identities` say who a client is.
pub(super) fn clean_trailers(trailers: &mut HeaderMap, identities: &[HeaderName]) {
    const NOT_BEHIND: [HeaderName; 2] = [header::CONTENT_LENGTH, header::HOST];
    strip_hop_by_hop(trailers);
    for name in NOT_BEHIND.iter().chain(identities) {
        trailers.remove(name);
    }
    forwarded::forget(trailers);
}

/// HTTP/2 may split cookies, HTTP/1.1 must not (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut values = headers.get_all(header::COOKIE).iter();
    if values.next().is_none() || values.next().is_none() {
        return;
    }
    // An empty one would leave a blank at an end, which HTTP/2 does not allow (RFC 9113, section 8.2.1).
    let values = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
    let values: Vec<&[u8]> = values.filter(|value| !value.is_empty()).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&values.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use http::Request;

    use super::*;
    use crate::{
        http::Scheme,
        net::proxy_protocol::Ends,
        state::{BindKey, Transport},
    };

    fn onward(downstream: &Downstream, protocol: Protocol, has_body: bool) -> Onward<'_> {
        Onward { downstream, trusted_hops: 0, host: None, protocol, is_secured: false, has_body }
    }

    fn downstream() -> Downstream {
        let addr = SocketAddr::from(([203, 0, 113, 1], 443));
        let source = SocketAddr::from(([198, 51, 100, 7], 4000));
        let bind = BindKey { addr, transport: Transport::Tcp };
        Downstream::new(bind, Scheme::Https, Ends { source, destination: addr })
    }

    fn upstream(request: Request<()>, protocol: Protocol) -> Parts {
        let downstream = downstream();
        let mut parts = request.into_parts().0;
        to_upstream(&mut parts, &onward(&downstream, protocol, false)).unwrap();
        parts
    }

    #[test]
    fn hop_by_hop_fields_go_and_forwarding_fields_come() {
        let request = Request::get("/a?b=c")
            .header("host", "Example.org:8443")
            .header("connection", "x-secret, keep-alive, host, cookie")
            .header("x-secret", "1")
            .header("te", "trailers")
            .header("upgrade", "websocket")
            .header("x-forwarded-for", "192.0.2.1")
            .header("x-forwarded-for", "192.0.2.2")
            .header("x-forwarded-proto", "gopher")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("cookie", "");
        let parts = upstream(request.body(()).unwrap(), Protocol::Http1);
        assert_eq!(parts.uri, "/a?b=c");
        let get = |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap());
        assert_eq!(get("host"), Some("Example.org:8443"));
        assert_eq!(get("x-forwarded-for"), Some("198.51.100.7"));
        assert_eq!(get("x-forwarded-proto"), Some("https"));
        assert_eq!(get("x-forwarded-host"), Some("Example.org:8443"));
        assert_eq!(get("cookie"), Some("a=1; b=2"));
        for name in ["connection", "x-secret", "te", "upgrade"] {
            assert_eq!(get(name), None, "{name}");
        }
    }

    #[test]
    fn behind_a_body_nothing_stands_that_belongs_in_front_of_it_or_says_who_a_client_is() {
        let identities = [HeaderName::from_static("x-who")];
        let mut trailers = HeaderMap::new();
        let gone = ["content-length", "host", "transfer-encoding", "te", "x-who", "x-real-ip", "forwarded"];
        for name in gone.into_iter().chain(["x-sum"]) {
            trailers.append(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        clean_trailers(&mut trailers, &identities);
        assert_eq!(trailers.keys().collect::<Vec<_>>(), ["x-sum"]);
    }

    #[test]
    fn the_target_takes_the_form_of_the_protocol() {
        let h2 = Request::get("https://a.test/x").version(Version::HTTP_2).header("te", "trailers");
        let parts = upstream(h2.body(()).unwrap(), Protocol::Http1);
        assert_eq!((parts.uri.to_string().as_str(), parts.version), ("/x", Version::HTTP_11));
        assert_eq!(parts.headers.get("host").unwrap(), "a.test");
        let h1 = Request::get("/x").header("host", "a.test").header("te", "trailers");
        let parts = upstream(h1.body(()).unwrap(), Protocol::Http2);
        assert_eq!((parts.uri.to_string().as_str(), parts.version), ("http://a.test/x", Version::HTTP_2));
        assert_eq!(parts.headers.get("te").unwrap(), "trailers");
        assert!(parts.headers.get("host").is_none());
    }

    #[test]
    fn the_scheme_towards_http2_is_that_of_the_connection() {
        for (is_secured, expected) in [(false, "http://a.test/x"), (true, "https://a.test/x")] {
            let downstream = downstream();
            let mut parts = Request::get("/x").header("host", "a.test").body(()).unwrap().into_parts().0;
            let onward = Onward { is_secured, ..onward(&downstream, Protocol::Http2, false) };
            to_upstream(&mut parts, &onward).unwrap();
            assert_eq!(parts.uri, expected);
        }
    }

    #[test]
    fn no_host_is_one_thing_whether_its_field_is_there_or_not() {
        for request in [Request::get("/x"), Request::get("/x").header("host", "")] {
            let parts = upstream(request.body(()).unwrap(), Protocol::Http2);
            assert_eq!(parts.uri, "http://localhost/x");
        }
        let parts = upstream(Request::get("/x").body(()).unwrap(), Protocol::Http1);
        assert_eq!(parts.headers.get("host").unwrap(), "");
    }

    #[test]
    fn clients_say_as_one_of_many_that_they_take_fields_behind_a_body() {
        for (te, expected) in [
            (&["trailers"][..], true),
            (&["Trailers, deflate;q=0.5"], true),
            (&["gzip", "deflate ,trailers"], true),
            (&["deflate"], false),
            (&["trailers;q=1"], false),
            (&[], false),
        ] {
            let request = Request::get("/x").header("connection", "te");
            let request = te.iter().fold(request, |request, te| request.header("te", *te));
            let mut request = request.body(()).unwrap();
            forget_named(request.headers_mut());
            let parts = upstream(request, Protocol::Http2);
            let found: Vec<_> = parts.headers.get_all("te").iter().collect();
            assert_eq!(found, if expected { &["trailers"][..] } else { &[] }, "{te:?}");
        }
    }

    #[test]
    fn hops_are_counted_where_a_client_asks_for_it() {
        for (method, most, expected) in [
            ("OPTIONS", "3", Some("2")),
            ("TRACE", "1", Some("0")),
            ("TRACE", "0", None),
            ("OPTIONS", "000", None),
            ("OPTIONS", "99999999999999999999999", Some("18446744073709551614")),
            ("OPTIONS", "+1", Some("+1")),
            ("OPTIONS", "", Some("")),
            ("GET", "0", Some("0")),
        ] {
            let request = Request::builder().method(method).uri("/x").header("max-forwards", most);
            let mut parts = request.body(()).unwrap().into_parts().0;
            assert_eq!(count_hop(&mut parts), expected.is_some(), "{method} {most}");
            if let Some(expected) = expected {
                assert_eq!(parts.headers.get("max-forwards").unwrap(), expected, "{method} {most}");
            }
        }
    }

    #[test]
    fn an_authority_is_a_host_and_a_port() {
        for sound in ["", "a.test", "a.test:80", "a.test:", "[2001:db8::1]", "[2001:db8::1]:443", "a_b.test"]
        {
            assert!(is_sound(sound), "{sound}");
        }
        for unsound in [
            "a.test:x@b.test",
            "u:p@a.test",
            "a.test:80@evil",
            "a.test, b.test",
            "[::1",
            "[::1]x",
            "a:80:90",
            "a/b",
        ] {
            assert!(!is_sound(unsound), "{unsound}");
        }
    }

    #[test]
    fn a_body_of_unknown_length_is_said_to_come() {
        let request = || Request::get("/search").header("host", "a.test").body(()).unwrap().into_parts().0;
        let downstream = downstream();
        let (mut with, mut without) = (request(), request());
        to_upstream(&mut with, &onward(&downstream, Protocol::Http1, true)).unwrap();
        assert_eq!(with.headers.get("transfer-encoding").unwrap(), "chunked");
        to_upstream(&mut without, &onward(&downstream, Protocol::Http1, false)).unwrap();
        assert!(!without.headers.contains_key("transfer-encoding"));
        // Whatever is said of it that nobody can frame it by.
        for (said, has_body, length, coding) in [
            ("3", true, Some("3"), None),
            ("", true, None, Some("chunked")),
            ("+3", true, None, Some("chunked")),
            ("0", false, Some("0"), None),
            ("", false, None, None),
            ("3", false, None, None),
        ] {
            for protocol in [Protocol::Http1, Protocol::Http2] {
                let mut parts = request();
                parts.headers.insert("content-length", said.parse().unwrap());
                to_upstream(&mut parts, &onward(&downstream, protocol, has_body)).unwrap();
                let coding = coding.filter(|_| protocol == Protocol::Http1);
                let written = |name| parts.headers.get(name).map(|value| value.to_str().unwrap());
                assert_eq!(
                    (written("content-length"), written("transfer-encoding")),
                    (length, coding),
                    "{said}"
                );
            }
        }
    }

    #[test]
    fn a_response_says_its_length_once() {
        let head = |fields: &[(&str, &str)]| {
            let build = fields
                .iter()
                .fold(http::Response::builder(), |build, (name, value)| build.header(*name, *value));
            build.body(()).unwrap().into_parts().0
        };
        let mut both = head(&[("transfer-encoding", "Chunked"), ("content-length", "3")]);
        to_downstream(&mut both).unwrap();
        assert!(both.headers.is_empty());
        for codings in [&[("transfer-encoding", "gzip, chunked")][..], &[("transfer-encoding", "chunked"); 2]]
        {
            assert_eq!(to_downstream(&mut head(codings)).unwrap_err().kind, Kind::Protocol);
        }
        let mut twice = head(&[("content-length", "3"); 2]);
        to_downstream(&mut twice).unwrap();
        assert_eq!(twice.headers.get_all("content-length").iter().count(), 1);
        let mut two = head(&[("content-length", "3"), ("content-length", "4")]);
        assert_eq!(to_downstream(&mut two).unwrap_err().kind, Kind::Protocol);
    }

    #[test]
    fn a_path_that_is_left_out_is_written() {
        for (target, expected) in
            [("http://a.test?b=c", "/?b=c"), ("http://a.test", "/"), ("http://a.test/x?b", "/x?b")]
        {
            let mut parts = Request::get(target).body(()).unwrap().into_parts().0;
            normalize(&mut parts, target::Rules::DEFAULT).unwrap();
            assert_eq!(upstream(Request::from_parts(parts, ()), Protocol::Http1).uri, expected, "{target}");
        }
    }

    #[test]
    fn host_names_lose_port_and_case() {
        for (authority, expected) in
            [("A.Test:80", "a.test"), ("a.test.", "a.test"), ("[2001:DB8::1]:443", "[2001:db8::1]"), ("", "")]
        {
            assert_eq!(host_name(authority), expected);
        }
    }
}
