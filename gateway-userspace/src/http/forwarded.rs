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
    let addresses = last(headers, &FOR, trusted_hops);
    let first = addresses.first().and_then(|first| HeaderValue::from_bytes(first).ok());
    let chain = joined(&addresses, client.as_bytes());
    if headers.contains_key(header::FORWARDED) {
        let elements = last(headers, &header::FORWARDED, trusted_hops);
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

/// The last members of a list that may stand in several fields (RFC 9110, section 5.6.1).
fn last(headers: &mut HeaderMap, name: &HeaderName, n: usize) -> Vec<Vec<u8>> {
    let mut members: Vec<Vec<u8>> = Vec::new();
    for value in headers.get_all(name) {
        let mut is_quoted = false;
        let comma = |byte: &u8| {
            is_quoted ^= *byte == b'"';
            *byte == b',' && !is_quoted
        };
        let parts = value.as_bytes().split(comma).map(<[u8]>::trim_ascii);
        members.extend(parts.filter(|part| !part.is_empty()).map(<[u8]>::to_vec));
    }
    headers.remove(name);
    members.split_off(members.len().saturating_sub(n))
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
}
