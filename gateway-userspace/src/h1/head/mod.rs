//! The head of a request, from bytes to values; refused when another parser could understand it otherwise.
//!
//! Two steps. [`Finder`] looks at each byte once as it arrives, until the head is complete: a slow head costs no more than
//! a fast one, and a bare line feed is refused at once. [`parse`] then accounts for every byte of it: what is not method,
//! target, version, name, value or the one separator that belongs there, is refused.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::{
    HeaderName, HeaderValue, Method, Request, Uri, Version, header, request::Parts, uri::PathAndQuery,
};

use crate::{
    h1::{Framing, number, spare, words},
    limits,
    metrics::refusal::Refusal,
};

/// The head of a request, and what it says about the connection.
#[derive(Debug)]
pub struct Head {
    /// Method, target, version, fields.
    pub parts: Parts,
    /// How the body ends.
    pub framing: Framing,
    /// Whether the client wants to send more requests.
    pub keeps_alive: bool,
    /// The client sends its body when it is told to.
    pub awaits_continue: bool,
    /// The client would rather speak WebSocket (RFC 6455, section 4.1).
    pub wants_websocket: bool,
}

/// Looks for the end of a head.
#[derive(Clone, Copy, Debug, Default)]
pub struct Finder {
    /// Bytes that were looked at.
    seen: usize,
    /// Where the line begins that the last of them is in.
    line: usize,
}

impl Finder {
    /// The length of the head at the beginning of `bytes`, once it is complete. `bytes` only grow between calls, and do
    /// not begin with a line end.
    pub fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        while let Some(found) = bytes.get(self.seen..).and_then(|new| new.iter().position(|b| *b == b'\n')) {
            let at = self.seen + found;
            self.seen = at + 1;
            let line = bytes.get(self.line..at).unwrap_or_default();
            match line {
                [b'\r'] => return end(at + 1).map(Some),
                [.., b'\r'] => self.line = at + 1,
                _ => return Err(Refusal::LineEnd),
            }
        }
        self.seen = bytes.len();
        end(self.seen).map(|_| None)
    }
}

const fn end(len: usize) -> Result<usize, Refusal> {
    if len > limits::HEAD_BYTES { Err(Refusal::HeadTooLarge) } else { Ok(len) }
}

/// Takes empty lines away that stand in front of a request (RFC 9112, section 2.2). True when what is left begins with a
/// request, false when more bytes have to tell.
pub fn skip_empty_lines(bytes: &mut BytesMut) -> Result<bool, Refusal> {
    loop {
        match (bytes.first(), bytes.get(1)) {
            (None, _) | (Some(b'\r'), None) => return Ok(false),
            (Some(b'\r'), Some(b'\n')) => drop(bytes.split_to(2)),
            (Some(b'\r' | b'\n'), _) => return Err(Refusal::LineEnd),
            (Some(_), _) => return Ok(true),
        }
    }
}

/// Fields that a request gets on its way, so that there is room for them.
const ADDED: usize = 6;

/// Reads a complete head, as [`Finder`] found it.
pub fn parse(bytes: &Bytes) -> Result<Head, Refusal> {
    let mut fields = [const { MaybeUninit::uninit() }; limits::HEADERS];
    let mut raw = httparse::Request::new(&mut []);
    match raw.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(Refusal::Field),
        Err(cause) => return Err(refusal(cause, bytes)),
    }
    let method = Method::from_bytes(raw.method.unwrap_or_default().as_bytes()).map_err(|_| Refusal::Line)?;
    let target = raw.path.unwrap_or_default();
    let version = match raw.version {
        Some(1) => Version::HTTP_11,
        Some(0) => Version::HTTP_10,
        Some(_) | None => return Err(Refusal::Version),
    };
    let mut walk = Walk { bytes, at: 0 };
    walk.exactly(method.as_str().as_bytes(), Refusal::Line)?;
    walk.exactly(b" ", Refusal::Line)?;
    let uri = uri(&bytes.slice(walk.step(target.as_bytes(), Refusal::Line)?), &method)?;
    walk.exactly(b" HTTP/1.", Refusal::Line)?;
    walk.at += 1;
    walk.exactly(b"\r\n", Refusal::Line)?;
    let mut facts = Facts { keeps_alive: version == Version::HTTP_11, ..Facts::default() };
    let mut headers = spare::fields(raw.headers.len().saturating_add(ADDED));
    for field in raw.headers.iter() {
        let value = walk.field(field)?;
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Refusal::Field)?;
        facts.see(&name, field.value)?;
        let value = HeaderValue::from_maybe_shared(bytes.slice(value)).map_err(|_| Refusal::Field)?;
        headers.append(name, value);
    }
    walk.exactly(b"\r\n", Refusal::Field)?;
    if walk.at != bytes.len() {
        return Err(Refusal::Field);
    }
    let framing = facts.framing(version)?;
    let (mut parts, ()) = Request::new(()).into_parts();
    (parts.method, parts.uri, parts.version, parts.headers) = (method, uri, version, headers);
    let awaits_continue = facts.awaits_continue && version == Version::HTTP_11;
    let wants_websocket = facts.upgrade.is_to_websocket
        && facts.upgrade.is_of_connection
        && framing == Framing::None
        && version == Version::HTTP_11
        && parts.method == Method::GET;
    let keeps_alive = facts.keeps_alive && !facts.closes;
    Ok(Head { parts, framing, keeps_alive, awaits_continue, wants_websocket })
}

fn refusal(cause: httparse::Error, bytes: &[u8]) -> Refusal {
    match cause {
        httparse::Error::TooManyHeaders => Refusal::HeadTooLarge,
        httparse::Error::Version if names_a_version(bytes) => Refusal::Version,
        httparse::Error::Token if has_method(bytes) => Refusal::Target,
        httparse::Error::NewLine if has_bare_return(bytes) => Refusal::LineEnd,
        // The ends of lines were looked at before: something stands behind the version.
        httparse::Error::NewLine
        | httparse::Error::Version
        | httparse::Error::Token
        | httparse::Error::Status => Refusal::Line,
        httparse::Error::HeaderName | httparse::Error::HeaderValue => Refusal::Field,
    }
}

/// Whether the first line begins with a method, so that what is no token in it is the target.
fn has_method(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let method = words.next().is_some_and(|word| Method::from_bytes(word).is_ok());
    method && words.next().is_some_and(|target| !target.is_empty()) && words.next().is_some()
}

/// Whether a carriage return stands where no line feed follows.
fn has_bare_return(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|pair| matches!(pair, [b'\r', next] if *next != b'\n'))
}

/// Whether the first line ends with a version, though none that is spoken here.
fn names_a_version(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let word = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    let is_alone = line.split(|byte| *byte == b' ').count() == 3;
    is_alone
        && matches!(word, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit())
}

/// A target without anything that another parser would cut off or take for something else.
fn uri(target: &Bytes, method: &Method) -> Result<Uri, Refusal> {
    if target.iter().any(|byte| !byte.is_ascii_graphic() || matches!(byte, b'#' | b'"' | b'<' | b'>' | b'\\'))
    {
        return Err(Refusal::Target);
    }
    let uri = Uri::from_maybe_shared(target.clone()).map_err(|_| Refusal::Target)?;
    let is_origin = target.first() == Some(&b'/');
    let is_form = match *method {
        Method::CONNECT => uri.authority().is_some() && uri.scheme().is_none() && uri.port().is_some(),
        Method::OPTIONS if target.as_ref() == b"*" => true,
        _ => is_origin || (uri.scheme().is_some() && uri.authority().is_some()),
    };
    let is_web = uri.scheme_str().is_none_or(|scheme| matches!(scheme, "http" | "https"));
    if !is_form || !is_web {
        Err(Refusal::Target)
    } else if *method == Method::OPTIONS && names_server(target, &uri) {
        let mut parts = uri.into_parts();
        parts.path_and_query = Some(PathAndQuery::from_static("*"));
        Uri::from_parts(parts).map_err(|_| Refusal::Target)
    } else {
        Ok(uri)
    }
}

/// Whether a target in absolute form ends with its authority: then OPTIONS is about the server as a whole, and goes on so
/// (RFC 9112, section 3.2.4). The parsed target does not tell that from the path `/`.
fn names_server(target: &Bytes, uri: &Uri) -> bool {
    let len = |text: &str| text.len();
    match (uri.scheme_str().map(len), uri.authority().map(|authority| len(authority.as_str()))) {
        (Some(scheme), Some(authority)) => target.len() == scheme + "://".len() + authority,
        (Some(_) | None, Some(_) | None) => false,
    }
}

/// Goes through a head, byte by byte accounted for.
struct Walk<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Walk<'_> {
    fn step(&mut self, expected: &[u8], refusal: Refusal) -> Result<std::ops::Range<usize>, Refusal> {
        let range = self.at..self.at + expected.len();
        if self.bytes.get(range.clone()) != Some(expected) {
            return Err(refusal);
        }
        self.at = range.end;
        Ok(range)
    }

    fn exactly(&mut self, expected: &[u8], refusal: Refusal) -> Result<(), Refusal> {
        self.step(expected, refusal).map(drop)
    }

    fn blanks(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\t')) {
            self.at += 1;
        }
    }

    /// One line; where its value stands.
    fn field(&mut self, field: &httparse::Header<'_>) -> Result<std::ops::Range<usize>, Refusal> {
        self.exactly(field.name.as_bytes(), Refusal::Field)?;
        self.exactly(b":", Refusal::Field)?;
        self.blanks();
        let value = self.step(field.value, Refusal::Field)?;
        self.blanks();
        self.exactly(b"\r\n", Refusal::Field)?;
        Ok(value)
    }
}

/// What the fields say about the message itself.
#[derive(Debug, Default)]
struct Facts {
    keeps_alive: bool,
    closes: bool,
    awaits_continue: bool,
    upgrade: Upgrade,
    n_hosts: usize,
    n_codings: usize,
    length: Option<u64>,
}

/// What is said about another protocol.
#[derive(Debug, Default)]
struct Upgrade {
    is_to_websocket: bool,
    /// `connection` names it, as it has to.
    is_of_connection: bool,
}

impl Facts {
    fn see(&mut self, name: &HeaderName, value: &[u8]) -> Result<(), Refusal> {
        if *name == header::HOST {
            self.n_hosts += 1;
        } else if *name == header::CONTENT_LENGTH {
            let length = number(value.trim_ascii()).ok_or(Refusal::Length)?;
            if self.length.replace(length).is_some() {
                return Err(Refusal::Length);
            }
        } else if *name == header::TRANSFER_ENCODING {
            self.n_codings += 1;
            if !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::Coding);
            }
        } else if *name == header::CONNECTION {
            for word in words(value) {
                self.closes |= word.eq_ignore_ascii_case(b"close");
                self.keeps_alive |= word.eq_ignore_ascii_case(b"keep-alive");
                self.upgrade.is_of_connection |= word.eq_ignore_ascii_case(b"upgrade");
            }
        } else if *name == header::UPGRADE {
            self.upgrade.is_to_websocket |= words(value).any(|word| word.eq_ignore_ascii_case(b"websocket"));
        } else if *name == header::EXPECT {
            if !value.trim_ascii().eq_ignore_ascii_case(b"100-continue") {
                return Err(Refusal::Expect);
            }
            self.awaits_continue = true;
        }
        Ok(())
    }

    fn framing(&self, version: Version) -> Result<Framing, Refusal> {
        let is_old = version == Version::HTTP_10;
        // Before HTTP/1.1 nobody had to send it.
        if self.n_hosts > 1 || (self.n_hosts == 0 && !is_old) {
            return Err(Refusal::Host);
        }
        match (self.n_codings, self.length) {
            (0, None | Some(0)) => Ok(Framing::None),
            (0, Some(length)) => Ok(Framing::Length(length)),
            (_, Some(_)) => Err(Refusal::Length),
            // A transfer coding in HTTP/1.0 is a trick (RFC 9112, section 6.1).
            (1, None) if !is_old => Ok(Framing::Chunked),
            (_, None) => Err(Refusal::Coding),
        }
    }
}

#[cfg(test)]
mod tests;
