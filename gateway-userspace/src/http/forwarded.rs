//! Who a request comes from, in the words that endpoints read: what clients claim goes, what trusted proxies say stays.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::http::{Downstream, Scheme};

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Whether a field says who a request comes from.
pub fn is_one(name: &HeaderName) -> bool {
    *name == header::FORWARDED || *name == REAL_IP || name.as_str().starts_with("x-forwarded-")
}

/// Drops what a request says about who it comes from.
pub fn forget(headers: &mut HeaderMap) {
    // Few clients say anything.
    if !headers.keys().any(is_one) {
        return;
    }
    let claims: Vec<HeaderName> = headers.keys().filter(|name| is_one(name)).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
}

/// Adds the client's address to what trusted proxies forwarded, and says how and as whom it asked. Where none is trusted,
/// what the request said was [forgotten](forget).
pub fn add(
    headers: &mut HeaderMap,
    downstream: &Downstream,
    host: Option<&HeaderValue>,
    trusted_hops: usize,
) {
    let client = &downstream.client;
    let scheme = match downstream.scheme {
        Scheme::Http => HeaderValue::from_static("http"),
        Scheme::Https => HeaderValue::from_static("https"),
    };
    if trusted_hops == 0 {
        headers.insert(FOR, client.clone());
        headers.insert(PROTO, scheme);
        if let Some(host) = host {
            headers.insert(HOST, host.clone());
        }
        headers.insert(REAL_IP, client.clone());
        return;
    }
    let addresses = last(headers, &FOR, trusted_hops, last_comma);
    let first = addresses.first().and_then(|first| HeaderValue::from_bytes(first).ok());
    let chain = joined(&addresses, client.as_bytes());
    if headers.contains_key(header::FORWARDED) {
        let mut elements = last(headers, &header::FORWARDED, trusted_hops, last_unquoted_comma);
        elements.retain(|element| is_whole(element));
        let element = joined(&elements, &element(downstream, &scheme, host));
        headers.extend(element.map(|element| (header::FORWARDED, element)));
    }
    headers.insert(FOR, chain.unwrap_or_else(|| client.clone()));
    headers.insert(REAL_IP, first.unwrap_or_else(|| client.clone()));
    headers.entry(PROTO).or_insert(scheme);
    if let Some(host) = host {
        headers.entry(HOST).or_insert_with(|| host.clone());
    }
}

/// The last members of a list that may stand in several fields (RFC 9110, section 5.6.1). From behind, because what a
/// trusted proxy wrote at the end is told by it alone, whatever a client wrote in front; `split` finds the last comma.
fn last(
    headers: &mut HeaderMap,
    name: &HeaderName,
    n: usize,
    split: fn(&[u8]) -> Option<usize>,
) -> Vec<Vec<u8>> {
    let mut members: Vec<Vec<u8>> = Vec::new();
    for value in headers.get_all(name).iter().rev() {
        let mut list = Some(value.as_bytes());
        while let Some(rest) = list.filter(|_| members.len() < n) {
            let comma = split(rest);
            let member = rest.get(comma.map_or(0, |comma| comma + 1)..).unwrap_or_default().trim_ascii();
            if !member.is_empty() {
                members.push(member.to_vec());
            }
            list = comma.and_then(|comma| rest.get(..comma));
        }
    }
    headers.remove(name);
    members.reverse();
    members
}

/// Of a list of addresses, where quotes mean nothing.
fn last_comma(list: &[u8]) -> Option<usize> {
    list.iter().rposition(|byte| *byte == b',')
}

/// Of a list whose members may have quoted strings (RFC 7239, section 4; RFC 9110, section 5.6.4).
fn last_unquoted_comma(list: &[u8]) -> Option<usize> {
    let mut is_quoted = false;
    for (at, byte) in list.iter().enumerate().rev() {
        match byte {
            // In front of the quote that begins a string there is an even number of backslashes, mostly none.
            b'"' if is_quoted => {
                let before = list.iter().take(at).rev();
                is_quoted = before.take_while(|byte| **byte == b'\\').count() % 2 == 1;
            }
            b'"' => is_quoted = true,
            b',' if !is_quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// Whether an element is one also for whoever reads it from the front: its strings end in it.
fn is_whole(element: &[u8]) -> bool {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for byte in element {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b',' if !is_quoted => return false,
            _ => {}
        }
    }
    !is_quoted
}

fn joined(members: &[Vec<u8>], last: &[u8]) -> Option<HeaderValue> {
    let mut value = members.join(&b", "[..]);
    if !value.is_empty() {
        value.extend_from_slice(b", ");
    }
    value.extend_from_slice(last);
    HeaderValue::from_maybe_shared(Bytes::from(value)).ok()
}

/// What this proxy says in `forwarded` (RFC 7239, section 4). A host that needs no quotes gets them all the same.
fn element(downstream: &Downstream, scheme: &HeaderValue, host: Option<&HeaderValue>) -> Vec<u8> {
    let client = downstream.client.as_bytes();
    let mut element = b"for=".to_vec();
    let (open, close): (&[u8], &[u8]) = if client.contains(&b':') { (b"\"[", b"]\"") } else { (b"", b"") };
    for part in [open, client, close, b";proto=", scheme.as_bytes()] {
        element.extend_from_slice(part);
    }
    // A host that was found sound carries no quote and no backslash.
    if let Some(host) = host.filter(|host| !host.as_bytes().iter().any(|byte| b"\"\\".contains(byte))) {
        for part in [b";host=\"", host.as_bytes(), b"\""] {
            element.extend_from_slice(part);
        }
    }
    element
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::{
        net::proxy_protocol::Ends,
        state::{BindKey, Transport},
    };

    #[track_caller]
    fn check(trusted_hops: usize, fields: &[(&'static str, &str)], expected: &[(&str, Option<&str>)]) {
        let addr = SocketAddr::from(([203, 0, 113, 1], 443));
        let peer: SocketAddr = "[2001:db8::7]:4000".parse().unwrap();
        let bind = BindKey { addr, transport: Transport::Tcp };
        let downstream = Downstream::new(bind, Scheme::Https, Ends { source: peer, destination: addr });
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        if trusted_hops == 0 {
            forget(&mut headers);
        }
        add(&mut headers, &downstream, Some(&HeaderValue::from_static("a.test")), trusted_hops);
        for (name, value) in expected {
            let values: Vec<&str> =
                headers.get_all(*name).iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(values, value.iter().copied().collect::<Vec<_>>(), "{name} of {headers:?}");
        }
    }

    const CLAIMS: [(&str, &str); 8] = [
        ("x-forwarded-for", "192.0.2.1, 192.0.2.2"),
        ("x-forwarded-for", "192.0.2.3"),
        ("x-forwarded-host", "evil.test"),
        ("x-forwarded-port", "1"),
        ("x-forwarded-prefix", "/admin"),
        ("x-forwarded-proto", "gopher"),
        ("x-real-ip", "192.0.2.1"),
        ("forwarded", "for=\"a, b\";proto=http, for=192.0.2.9"),
    ];

    #[test]
    fn nobody_is_believed_by_default() {
        let expected = [
            ("x-forwarded-for", Some("2001:db8::7")),
            ("x-forwarded-host", Some("a.test")),
            ("x-forwarded-port", None),
            ("x-forwarded-prefix", None),
            ("x-forwarded-proto", Some("https")),
            ("x-real-ip", Some("2001:db8::7")),
            ("forwarded", None),
        ];
        check(0, &CLAIMS, &expected);
        check(0, &[], &expected);
    }

    #[test]
    fn trusted_proxies_are_believed_as_far_as_they_go() {
        check(
            1,
            &CLAIMS,
            &[
                ("x-forwarded-for", Some("192.0.2.3, 2001:db8::7")),
                ("x-forwarded-host", Some("evil.test")),
                ("x-forwarded-prefix", Some("/admin")),
                ("x-forwarded-proto", Some("gopher")),
                ("x-real-ip", Some("192.0.2.3")),
                ("forwarded", Some("for=192.0.2.9, for=\"[2001:db8::7]\";proto=https;host=\"a.test\"")),
            ],
        );
        check(
            2,
            &CLAIMS,
            &[
                ("x-forwarded-for", Some("192.0.2.2, 192.0.2.3, 2001:db8::7")),
                ("x-real-ip", Some("192.0.2.2")),
                (
                    "forwarded",
                    Some(
                        "for=\"a, b\";proto=http, for=192.0.2.9, for=\"[2001:db8::7]\";proto=https;host=\"a.test\"",
                    ),
                ),
            ],
        );
        check(
            9,
            &[],
            &[
                ("x-forwarded-for", Some("2001:db8::7")),
                ("x-forwarded-host", Some("a.test")),
                ("x-forwarded-proto", Some("https")),
                ("x-real-ip", Some("2001:db8::7")),
                ("forwarded", None),
            ],
        );
    }

    #[test]
    fn quotes_of_a_client_hide_nothing_that_a_trusted_proxy_wrote() {
        const OWN: &str = "for=\"[2001:db8::7]\";proto=https;host=\"a.test\"";
        for (list, address) in [
            ("x\", 10.0.0.1, 203.0.113.9", "203.0.113.9"),
            ("\"10.0.0.1, 203.0.113.9", "203.0.113.9"),
            ("\"10.0.0.1, 203.0.113.9\"", "203.0.113.9\""),
        ] {
            let chain = format!("{address}, 2001:db8::7");
            let expected = [("x-forwarded-for", Some(chain.as_str())), ("x-real-ip", Some(address))];
            check(1, &[("x-forwarded-for", list)], &expected);
        }
        for (list, element) in [
            ("for=\"x, for=10.0.0.1, for=203.0.113.9", "for=203.0.113.9"),
            ("for=\"x\\\", for=10.0.0.1, for=203.0.113.9", "for=203.0.113.9"),
            ("for=x\", for=\"[2001:db8::9]:80\"", "for=\"[2001:db8::9]:80\""),
            ("for=x\", for=a;host=\"b\\\"c, d\\\\\"", "for=a;host=\"b\\\"c, d\\\\\""),
            ("for=a,,", "for=a"),
        ] {
            let both = format!("{element}, {OWN}");
            check(1, &[("forwarded", list)], &[("forwarded", Some(&both))]);
        }
        // What nobody finished writing goes no further: it would hide what is written here from an endpoint.
        for list in ["for=\"x", "for=x\\\"", "for=\"x\\\""] {
            check(1, &[("forwarded", list)], &[("forwarded", Some(OWN))]);
        }
    }
}
