//! Paths and fields on their way to the other side.

use std::{borrow::Cow, fmt::Write as _, net::SocketAddr};

use bytes::Bytes;
use gateway_userspace::{
    filter::edit::Edits,
    h1::{
        Framing, answer,
        head::{self as heads, Finder, Head},
        out::Out,
    },
    http::{
        Downstream, Scheme, forwarded,
        header::{self, Onward},
    },
    limits,
    net::proxy_protocol::Ends,
    pool::Protocol,
    state::{BindKey, Transport},
    target::{self, Delimiters, Escaped, Repeated, Rules},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header as names, request::Parts};

use crate::requests::{Choices, wire};

/// Judges the path of a request; the first bytes say what is done with slashes and delimiters.
///
/// # Panics
/// When something does not hold.
pub fn path(data: &[u8]) {
    let mut choices = Choices(data);
    let rules = Rules {
        repeated: if choices.flag() { Repeated::Merge } else { Repeated::Keep },
        escaped: match choices.byte() % 3 {
            0 => Escaped::Keep,
            1 => Escaped::Reject,
            _ => Escaped::Redirect,
        },
        delimiters: if choices.flag() { Delimiters::Reject } else { Delimiters::Keep },
    };
    let Ok(path) = std::str::from_utf8(choices.0) else { return };
    let once = target::normal(path, rules);
    // Another spelling of the same path (RFC 3986, section 6.2.2.2) takes the same way.
    assert_eq!(once, target::normal(&respelled(path), rules), "{path:?}");
    let Ok(once) = once else { return };
    assert_eq!(target::normal(&once, rules), Ok(Cow::Borrowed(&*once)), "{path:?} has two forms");
    assert!(once.starts_with('/') && once.is_ascii(), "{once:?}");
    assert!(!once.split('/').any(|segment| matches!(segment, "." | "..")), "{once:?}");
    assert!(rules.repeated == Repeated::Keep || !once.contains("//"), "{once:?}");
    assert!(!once.contains("%00") && !once.contains(['\\', '?', '#', ' ']), "{once:?}");
    if rules.escaped != Escaped::Keep {
        assert!(!once.contains("%2F") && !once.contains("%5C"), "{once:?}");
    }
    if rules.delimiters == Delimiters::Reject {
        assert!(!["%3B", "%3F", "%23", "%25"].iter().any(|escape| once.contains(escape)), "{once:?}");
    }
    assert!(!rules.sends_on(&once), "{once:?} sends a client in circles");
    let sent = http::uri::PathAndQuery::try_from(&*once).expect("it can be sent");
    assert_eq!(sent.path(), &*once, "what is sent is what was matched");
}

/// With everything escaped that means the same when it is.
fn respelled(path: &str) -> String {
    let mut spelled = String::new();
    let mut rest = path.chars();
    while let Some(char) = rest.next() {
        match char {
            // What is an escape already, or should be one, stays.
            '%' => {
                spelled.push('%');
                spelled.extend(rest.by_ref().take(2));
            }
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '.' | '_' | '~' => {
                write!(spelled, "%{:02x}", u32::from(char)).expect("a string takes everything");
            }
            _ => spelled.push(char),
        }
    }
    spelled
}

/// Judges a head on its way to the other side: of a request, or of a response; the first bytes say how it goes there.
///
/// # Panics
/// When something does not hold.
pub fn fields(data: &[u8]) {
    let mut choices = Choices(data);
    let (is_response, is_http2, trusted_hops) =
        (choices.flag(), choices.flag(), usize::from(choices.byte() % 3));
    let edits = edits(&mut choices);
    if is_response {
        response(choices.0, &edits);
        return;
    }
    let Ok(Some(len)) = Finder::default().find(choices.0) else { return };
    let Ok(read) = heads::parse(&Bytes::copy_from_slice(&choices.0[..len])) else { return };
    let Head { mut parts, framing, .. } = read;
    let authority = header::authority(&parts).unwrap_or_default();
    if !header::is_sound(authority) || parts.method == Method::CONNECT {
        return;
    }
    assert!(!header::host_name(authority).contains(|char: char| char.is_ascii_uppercase()));
    if header::normalize(&mut parts, Rules::DEFAULT).is_err() {
        return;
    }
    edit(&edits, parts.headers.clone());
    // As before routes are looked at.
    if trusted_hops == 0 {
        forwarded::forget(&mut parts.headers);
    }
    let has_body = framing != Framing::None;
    let protocol = if is_http2 { Protocol::Http2 } else { Protocol::Http1 };
    let downstream = downstream();
    let onward = Onward {
        downstream: &downstream,
        trusted_hops,
        host: None,
        protocol,
        is_secured: is_http2,
        has_body,
    };
    let mut sent = parts.clone();
    if header::to_upstream(&mut sent, &onward).is_err() {
        return;
    }
    onwards(&parts, &sent, trusted_hops);
    if is_http2 {
        assert!(!sent.headers.contains_key(names::HOST) && sent.uri.authority().is_some());
        assert_eq!(sent.uri.scheme_str(), Some("https"), "as the connection to the endpoint");
        assert!(!sent.headers.contains_key(names::TRANSFER_ENCODING));
        return;
    }
    assert!(sent.version == Version::HTTP_11 && sent.uri.authority().is_none());
    // Our reader has a bound on fields, and some were added.
    if sent.headers.len() > limits::HEADERS {
        return;
    }
    let mut out = Out::default();
    let target = sent.uri.path_and_query().expect("there is a path").as_str();
    out.request(&sent.method, target);
    out.fields(&sent.headers);
    out.text(b"\r\n");
    let mut wire = Vec::new();
    wire::flush(&mut out, &mut wire);
    let again = heads::parse(&wire.into()).expect("an endpoint reads what is sent");
    assert_eq!(again.framing, framing, "a body ends for the endpoint where it ended here");
    assert_eq!((again.parts.uri.path(), again.parts.uri.query()), (parts.uri.path(), parts.uri.query()));
    assert_eq!(again.parts.headers, sent.headers);
}

fn downstream() -> Downstream {
    let addr = SocketAddr::from(([203, 0, 113, 1], 443));
    let peer = SocketAddr::from(([198, 51, 100, 7], 4_000));
    let bind = BindKey { addr, transport: Transport::Tcp };
    Downstream::new(bind, Scheme::Https, Ends { source: peer, destination: addr })
}

/// What must be true of the fields of a request, whatever its client said.
fn onwards(parts: &Parts, sent: &Parts, trusted_hops: usize) {
    for name in ["connection", "keep-alive", "proxy-connection", "upgrade"] {
        assert!(!sent.headers.contains_key(name), "{name} goes on");
    }
    let trailers = sent.headers.get(names::TE).is_none_or(|te| te == "trailers");
    assert!(trailers, "te goes on");
    let count = |headers: &HeaderMap, name: &str| headers.get_all(name).iter().count();
    assert!(count(&sent.headers, "host") + usize::from(sent.uri.authority().is_some()) == 1, "one host");
    assert!(count(&sent.headers, "cookie") <= 1 && count(&sent.headers, "content-length") <= 1);
    assert_eq!(sent.headers.get(names::CONTENT_LENGTH), parts.headers.get(names::CONTENT_LENGTH));
    assert_eq!(sent.headers.get(names::AUTHORIZATION), parts.headers.get(names::AUTHORIZATION));
    let client = "198.51.100.7";
    let chain = sent.headers.get_all("x-forwarded-for").iter().collect::<Vec<_>>();
    assert_eq!(chain.len(), 1, "one chain");
    assert!(chain[0].as_bytes().ends_with(client.as_bytes()), "the last one is whom we know");
    if trusted_hops == 0 {
        assert_eq!(chain[0], client, "a client says nothing about itself");
        assert_eq!(sent.headers.get("x-forwarded-proto").map(HeaderValue::as_bytes), Some(&b"https"[..]));
        assert!(!sent.headers.contains_key(names::FORWARDED));
        let ours = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
        let is_ours =
            |name: &HeaderName| !name.as_str().starts_with("x-forwarded-") || ours.contains(&name.as_str());
        assert!(sent.headers.keys().all(is_ours), "nothing else about where it comes from");
    }
}

fn response(bytes: &[u8], edits: &Edits) {
    let Ok(Some(len)) = answer::find(bytes) else { return };
    let Ok(read) = answer::parse(&Bytes::copy_from_slice(&bytes[..len]), &Method::GET) else { return };
    let mut parts = read.parts;
    if header::to_downstream(&mut parts).is_err() {
        return;
    }
    for name in ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"] {
        assert!(!parts.headers.contains_key(name), "{name} goes on");
    }
    if read.framing == Framing::Chunked {
        assert!(!parts.headers.contains_key(names::CONTENT_LENGTH), "the coding says the length");
    }
    let before = parts.headers.clone();
    header::to_downstream(&mut parts).expect("what was fine stays fine");
    assert_eq!(parts.headers, before, "once is enough");
    edit(edits, parts.headers);
}

const NAMES: [&str; 6] = ["x-a", "x-b", "host", "cookie", "x-forwarded-for", "set-cookie"];

/// Rules for fields: no name twice, as the reader of the configuration holds it.
fn edits(choices: &mut Choices<'_>) -> Edits {
    let mut edits = Edits::default();
    for name in NAMES.map(HeaderName::from_static) {
        let kind = choices.byte() % 4;
        let value = || HeaderValue::from_static("new");
        match kind {
            1 => edits.set.push((name, value())),
            2 => edits.add.push((name, value())),
            3 => edits.remove.push(name),
            _ => {}
        }
    }
    edits
}

/// Fields have what the rules say afterwards, and others what they had.
fn edit(edits: &Edits, mut headers: HeaderMap) {
    let before = headers.clone();
    edits.apply(&mut headers);
    for (name, value) in &edits.set {
        assert_eq!(headers.get_all(name).iter().collect::<Vec<_>>(), [value]);
    }
    for (name, value) in &edits.add {
        let had = before.get_all(name).iter().chain([value]);
        assert!(headers.get_all(name).iter().eq(had), "{name} has one more");
    }
    for name in &edits.remove {
        assert!(!headers.contains_key(name));
    }
    let changed: Vec<_> = edits.names().collect();
    for name in before.keys().chain(headers.keys()).filter(|name| !changed.contains(name)) {
        assert!(before.get_all(name).iter().eq(headers.get_all(name)), "{name} was left alone");
    }
}
