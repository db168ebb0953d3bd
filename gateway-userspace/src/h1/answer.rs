//! The head of a response, from bytes to values.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, Version, header, response::Parts};

use crate::{
    h1::{Framing, number, spare, words},
    limits,
};

/// The head of a response, and what it says about the connection.
#[derive(Debug)]
pub struct Answer {
    /// Status, version, fields.
    pub parts: Parts,
    /// How the body ends.
    pub framing: Framing,
    /// Whether another request may be sent when the body is over.
    pub is_reusable: bool,
}

/// Not a response, or one whose end cannot be told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Malformed;

/// The length of the head at the beginning of `bytes`, once it is complete. Endpoints may end lines with a line feed only
/// (RFC 9112, section 2.2).
pub fn find(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let mut line = 0;
    while let Some(found) = bytes.get(line..).and_then(|rest| rest.iter().position(|byte| *byte == b'\n')) {
        let end = line + found;
        if matches!(bytes.get(line..end), Some([] | [b'\r'])) {
            return Ok(Some(end + 1));
        }
        line = end + 1;
    }
    if bytes.len() > limits::HEAD_BYTES { Err(Malformed) } else { Ok(None) }
}

/// Reads a complete head; `method` is that of the request.
pub fn parse(bytes: &Bytes, method: &Method) -> Result<Answer, Malformed> {
    let mut fields = [const { MaybeUninit::uninit() }; limits::HEADERS];
    let mut raw = httparse::Response::new(&mut []);
    let parsed =
        httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut raw, bytes, &mut fields);
    let Ok(httparse::Status::Complete(_)) = parsed else { return Err(Malformed) };
    let status = StatusCode::from_u16(raw.code.unwrap_or(0)).map_err(|_| Malformed)?;
    let is_old = raw.version == Some(0);
    let mut headers = spare::fields(raw.headers.len());
    let mut facts = Facts::default();
    for field in raw.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Malformed)?;
        if !facts.see(&name, field.value)? {
            continue;
        }
        let value = bytes.slice_ref(field.value);
        headers.append(name, HeaderValue::from_maybe_shared(value).map_err(|_| Malformed)?);
    }
    let is_bodiless = *method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let framing = match (facts.is_chunked, facts.length) {
        _ if is_bodiless => Framing::None,
        (true, _) => Framing::Chunked,
        (false, Some(0)) => Framing::None,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::UntilClose,
    };
    let is_kept = !facts.closes && (!is_old || facts.keeps_alive);
    // With both, somebody in between may have read the other one (RFC 9112, section 6.3), and HTTP/1.0 has no chunks, so that
    // its message may end elsewhere for whoever wrote it (section 6.1).
    let is_clear = !facts.is_chunked || (facts.length.is_none() && !is_old);
    let (mut parts, ()) = Response::new(()).into_parts();
    (parts.status, parts.headers) = (status, headers);
    parts.version = if is_old { Version::HTTP_10 } else { Version::HTTP_11 };
    let is_reusable = is_kept && is_clear && framing != Framing::UntilClose;
    Ok(Answer { parts, framing, is_reusable })
}

#[derive(Debug, Default)]
struct Facts {
    closes: bool,
    keeps_alive: bool,
    is_chunked: bool,
    length: Option<u64>,
}

impl Facts {
    /// Whether the field is passed on: a length that is said again is not.
    fn see(&mut self, name: &HeaderName, value: &[u8]) -> Result<bool, Malformed> {
        if *name == header::CONTENT_LENGTH {
            let length = number(value.trim_ascii()).ok_or(Malformed)?;
            return match self.length.replace(length) {
                None => Ok(true),
                Some(before) if before == length => Ok(false),
                Some(_) => Err(Malformed),
            };
        }
        if *name == header::TRANSFER_ENCODING {
            if self.is_chunked || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed);
            }
            self.is_chunked = true;
        } else if *name == header::CONNECTION {
            for word in words(value) {
                self.closes |= word.eq_ignore_ascii_case(b"close");
                self.keeps_alive |= word.eq_ignore_ascii_case(b"keep-alive");
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, method: &Method) -> Result<Answer, Malformed> {
        let len = find(text.as_bytes())?.expect("the head is complete");
        parse(&Bytes::copy_from_slice(&text.as_bytes()[..len]), method)
    }

    #[test]
    fn a_body_ends_where_its_head_says() {
        for (head, framing, is_reusable) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n", Framing::Length(3), true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\n", Framing::Length(3), true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n", Framing::Chunked, true),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n",
                Framing::Chunked,
                false,
            ),
            ("HTTP/1.1 200 OK\r\n\r\n", Framing::UntilClose, false),
            ("HTTP/1.1 204 No\r\n\r\n", Framing::None, true),
            ("HTTP/1.1 304 No\r\ncontent-length: 9\r\n\r\n", Framing::None, true),
            ("HTTP/1.1 103 Early\r\n\r\n", Framing::None, true),
            ("HTTP/1.1 200 OK\r\nconnection: Close\r\ncontent-length: 0\r\n\r\n", Framing::None, false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", Framing::None, false),
            ("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n", Framing::None, true),
        ] {
            let answer = read(head, &Method::GET).unwrap();
            assert_eq!((answer.framing, answer.is_reusable), (framing, is_reusable), "{head:?}");
        }
        let head = read("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", &Method::HEAD).unwrap();
        assert_eq!(head.framing, Framing::None);
    }

    #[test]
    fn a_length_that_is_said_twice_is_passed_on_once() {
        let answer =
            read("HTTP/1.1 200 OK\r\ncontent-length: 3\r\nx: y\r\ncontent-length: 03\r\n\r\n", &Method::GET);
        let answer = answer.unwrap();
        let lengths = answer.parts.headers.get_all("content-length").iter().count();
        assert_eq!((answer.framing, lengths), (Framing::Length(3), 1));
    }

    #[test]
    fn what_is_not_clear_is_malformed() {
        for head in [
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 3, 3\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
        ] {
            assert_eq!(read(head, &Method::GET).unwrap_err(), Malformed, "{head:?}");
        }
        assert_eq!(find(b"HTTP/1.1 200 OK\r\nx: "), Ok(None));
    }
}
