//! Heads and bodies of HTTP/1.

use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use gateway_userspace::{
    h1::{
        Framing,
        chunk::{Chunks, Piece},
        head::{self as heads, Finder, Head},
        out::{Body, Out},
    },
    metrics::refusal::Refusal,
};
use http::{HeaderMap, Version};

/// Judges the bytes of a connection up to the end of its first head.
///
/// # Panics
/// When something does not hold.
pub fn head(data: &[u8]) {
    let step = 1 + data.len() % 7;
    let at_once = found(data, data.len().max(1));
    assert_eq!(at_once, found(data, step), "pieces change what a head is");
    let Ok(Some(bytes)) = at_once else { return };
    let Ok(read) = heads::parse(&bytes) else { return };
    reads_alike(&bytes, &read);
    // Behind it, an endpoint reads HTTP/1.1, which has to name a host.
    let is_old = read.parts.version == Version::HTTP_10;
    if is_old && !read.parts.headers.contains_key(http::header::HOST) {
        return;
    }
    let again = heads::parse(&written(&read)).expect("what was accepted is accepted again");
    assert_eq!((&read.parts.method, &read.parts.uri), (&again.parts.method, &again.parts.uri));
    assert_eq!(read.parts.headers, again.parts.headers);
    assert_eq!(read.framing, again.framing);
}

/// The head that comes first, when `step` bytes arrive at a time.
fn found(data: &[u8], step: usize) -> Result<Option<Bytes>, Refusal> {
    let (mut bytes, mut finder, mut has_begun) = (BytesMut::new(), Finder::default(), false);
    for piece in data.chunks(step) {
        bytes.extend_from_slice(piece);
        has_begun = has_begun || heads::skip_empty_lines(&mut bytes)?;
        if has_begun && let Some(len) = finder.find(&bytes)? {
            return Ok(Some(bytes.split_to(len).freeze()));
        }
    }
    Ok(None)
}

/// Reads a head as somebody would who knows nothing but where lines and fields end, and compares.
fn reads_alike(bytes: &[u8], read: &Head) {
    let text = bytes.strip_suffix(b"\r\n\r\n").expect("a head ends with an empty line");
    let lines: Vec<&[u8]> = split(text, b"\r\n");
    assert!(lines.iter().all(|line| !line.iter().any(|byte| b"\r\n\0".contains(byte))));
    let words: Vec<&[u8]> = lines[0].split(|byte| *byte == b' ').collect();
    assert_eq!(words.len(), 3, "a line of three words");
    assert_eq!(words[0], read.parts.method.as_str().as_bytes());
    assert!(words[1].iter().all(u8::is_ascii_graphic));
    let is_old = words[2] == b"HTTP/1.0";
    assert!(is_old || words[2] == b"HTTP/1.1");
    assert_eq!(is_old, read.parts.version == Version::HTTP_10);
    let mut seen = HeaderMap::new();
    for line in &lines[1..] {
        let colon = line.iter().position(|byte| *byte == b':').expect("a field has a colon");
        let (name, value) = (&line[..colon], trimmed(&line[colon + 1..]));
        let name = http::HeaderName::from_bytes(name).expect("a name is a token");
        let value = http::HeaderValue::from_bytes(value).expect("a value has no control characters");
        seen.append(name, value);
    }
    assert_eq!(seen, read.parts.headers);
    let n_of = |name: &str| seen.get_all(name).iter().count();
    assert!(n_of("host") == 1 || (is_old && n_of("host") == 0), "one host");
    assert_eq!(read.framing, framing(&seen, is_old), "one end of the body");
}

/// The end of a body by the rules of RFC 9112, section 6.3, where nothing is in doubt.
fn framing(seen: &HeaderMap, is_old: bool) -> Framing {
    let codings: Vec<_> = seen.get_all(http::header::TRANSFER_ENCODING).iter().collect();
    let lengths: Vec<_> = seen.get_all(http::header::CONTENT_LENGTH).iter().collect();
    match (codings.as_slice(), lengths.as_slice()) {
        ([], []) => Framing::None,
        ([], [length]) => {
            let digits = length.to_str().expect("a length is text");
            assert!(!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()), "{digits}");
            match digits.parse().expect("a length has 64 bits") {
                0 => Framing::None,
                length => Framing::Length(length),
            }
        }
        ([coding], []) => {
            assert!(!is_old && coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
            Framing::Chunked
        }
        _ => panic!("{codings:?} and {lengths:?} were accepted"),
    }
}

/// A head as it would be written to an endpoint.
fn written(read: &Head) -> Bytes {
    let mut out = Out::default();
    out.request(&read.parts.method, &read.parts.uri.to_string());
    out.fields(&read.parts.headers);
    out.text(b"\r\n");
    let mut wire = Vec::new();
    flush(&mut out, &mut wire);
    wire.into()
}

/// Writes everything that waits.
pub(super) fn flush(out: &mut Out, wire: &mut Vec<u8>) {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(out.poll_write(wire, &mut cx), Poll::Ready(Ok(()))), "a vector takes everything");
}

fn split<'b>(text: &'b [u8], between: &[u8]) -> Vec<&'b [u8]> {
    let (mut lines, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.windows(between.len()).position(|window| window == between) {
        lines.push(&rest[..at]);
        rest = &rest[at + between.len()..];
    }
    lines.push(rest);
    lines
}

/// Without the blanks around it; other white space is part of a value.
fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Judges the bytes behind the head of a request whose body comes in chunks.
///
/// # Panics
/// When something does not hold.
pub fn chunks(data: &[u8]) {
    let step = 1 + data.len() % 7;
    let at_once = read(data, data.len().max(1), false);
    assert_eq!(at_once, read(data, step, false), "pieces change what a body is");
    assert_eq!(at_once, read(data, step, true), "an end that is taken early is another end");
    let Ok(Some(whole)) = at_once else { return };
    let plain = plainly(&data[..data.len() - whole.n_left]);
    assert_eq!(plain.as_deref(), Some(&whole.body[..]), "one body");
    let (mut out, mut wire) = (Out::default(), Vec::new());
    for piece in whole.body.chunks(step * 3) {
        out.data(&mut Body::Chunked, Bytes::copy_from_slice(piece)).expect("chunks know no bound");
        flush(&mut out, &mut wire);
    }
    assert!(out.end(Body::Chunked, whole.trailers.as_ref()), "chunks can always end");
    flush(&mut out, &mut wire);
    let again = read(&wire, wire.len(), true);
    assert_eq!(again, Ok(Some(Whole { n_left: 0, ..whole })), "what is written is read again");
}

/// A body that ended.
#[derive(Debug, PartialEq)]
struct Whole {
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    /// Bytes behind it.
    n_left: usize,
}

/// The body, when `step` bytes arrive at a time; none when it does not end. With `is_hasty`, each piece is asked whether it
/// was the last one.
fn read(data: &[u8], step: usize, is_hasty: bool) -> Result<Option<Whole>, Refusal> {
    let (mut chunks, mut bytes, mut body) = (Chunks::default(), BytesMut::new(), Vec::new());
    let mut arriving = data.chunks(step);
    loop {
        match chunks.next(&mut bytes)? {
            Piece::Data(data) => {
                body.extend_from_slice(&data);
                if is_hasty && chunks.is_over(&mut bytes) {
                    assert_eq!(chunks.next(&mut bytes), Ok(Piece::End(None)), "it is over");
                    let n_left = bytes.len() + arriving.map(<[u8]>::len).sum::<usize>();
                    return Ok(Some(Whole { body, trailers: None, n_left }));
                }
            }
            Piece::End(trailers) => {
                let n_left = bytes.len() + arriving.map(<[u8]>::len).sum::<usize>();
                return Ok(Some(Whole { body, trailers, n_left }));
            }
            Piece::Nothing => match arriving.next() {
                Some(more) => bytes.extend_from_slice(more),
                None => return Ok(None),
            },
        }
    }
}

/// The body of exactly these bytes, read by RFC 9112, section 7.1, and nothing else.
fn plainly(mut data: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = data.windows(2).position(|window| window == b"\r\n")?;
        let line = std::str::from_utf8(data[..end].split(|byte| b"; \t".contains(byte)).next()?).ok()?;
        let size = usize::from_str_radix(line, 16).ok()?;
        data = &data[end + 2..];
        if size == 0 {
            // Trailers end with an empty line, and so does a body without any.
            return (data == b"\r\n" || data.ends_with(b"\r\n\r\n")).then_some(body);
        }
        body.extend_from_slice(data.get(..size)?);
        data = data.get(size..)?.strip_prefix(b"\r\n")?;
    }
}
