//! A strict check of HTTP/1 framing, byte by byte, before the codec sees it.
//!
//! The codec accepts some heads that two servers in a row may understand differently, which is how requests are
//! smuggled. Refused here: a bare line feed, an absent or repeated `host`, `transfer-encoding` together with
//! `content-length`, a transfer coding that is not exactly `chunked`, a repeated or malformed `content-length`, folded
//! lines, space before the colon. To know where a head begins, the scanner follows the bodies too.
//!
//! States: request line, then fields (name, value), then a body of a known length, or chunks (size, data, end) and
//! their trailers, then the next request line.

use std::fmt;

/// Follows one connection.
#[derive(Debug, Default)]
pub struct Scanner {
    place: Place,
    /// The last byte was a carriage return.
    after_cr: bool,
    head: Head,
    n_heads: u64,
}

/// Where in the stream the next byte stands.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Place {
    #[default]
    RequestLine,
    FieldStart,
    Name,
    Value,
    Body(u64),
    ChunkSize,
    ChunkExtension,
    ChunkData(u64),
    ChunkEnd,
    TrailerStart,
    Trailer,
}

/// What is known about the head that is being read.
#[derive(Debug, Default)]
struct Head {
    line_bytes: usize,
    /// The version that the request line ends with is 1.1.
    tail: [u8; 8],
    name: Text<20>,
    value: Text<24>,
    hosts: u8,
    lengths: u8,
    length: u64,
    codings: u8,
    chunk_digits: u8,
    chunk: u64,
}

/// The beginning of a text, and whether it went on.
#[derive(Clone, Copy, Debug)]
struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self { bytes: [0; N], len: 0 }
    }
}

impl<const N: usize> Text<N> {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
        }
        self.len += 1;
    }

    /// The text; none when it was too long to be kept.
    fn get(&self) -> Option<&[u8]> {
        self.bytes.get(..self.len).map(<[u8]>::trim_ascii)
    }
}

/// Why a head was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// A line feed without a carriage return, or the other way round.
    BareLineEnd,
    /// A chunk's size is not a hexadecimal number, or its data does not end where it should.
    Chunk,
    /// A field's name is empty, has a space, or continues the line before.
    Field,
    /// No `host`, or more than one.
    Host,
    /// `content-length` is repeated or not a number, or stands beside `transfer-encoding`.
    Length,
    /// A transfer coding that is not exactly `chunked`.
    Coding,
}

/// A head that is refused, and where in the scanned bytes that became clear.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// Index into the bytes of this call.
    pub at: usize,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.reason {
            Reason::BareLineEnd => "a line does not end with carriage return and line feed",
            Reason::Chunk => "a chunk is malformed",
            Reason::Coding => "the transfer coding is not exactly `chunked`",
            Reason::Field => "a field is malformed",
            Reason::Host => "there is not exactly one `host`",
            Reason::Length => "`content-length` is malformed, repeated, or stands beside `transfer-encoding`",
        })
    }
}

impl Scanner {
    /// Whether a head has begun and is not complete.
    pub const fn is_in_head(&self) -> bool {
        match self.place {
            Place::RequestLine => self.head.line_bytes > 0,
            Place::FieldStart | Place::Name | Place::Value => true,
            Place::Body(_)
            | Place::ChunkSize
            | Place::ChunkExtension
            | Place::ChunkData(_)
            | Place::ChunkEnd
            | Place::TrailerStart
            | Place::Trailer => false,
        }
    }

    /// Heads that are complete.
    pub const fn n_heads(&self) -> u64 {
        self.n_heads
    }

    /// Takes the next bytes of the connection.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            let left = bytes.len() - at;
            match self.place {
                // Bodies are skipped, not looked at.
                Place::Body(n) => at += self.skip(n, left, Place::Body, Place::RequestLine),
                Place::ChunkData(n) => at += self.skip(n, left, Place::ChunkData, Place::ChunkEnd),
                Place::RequestLine
                | Place::FieldStart
                | Place::Name
                | Place::Value
                | Place::ChunkSize
                | Place::ChunkExtension
                | Place::ChunkEnd
                | Place::TrailerStart
                | Place::Trailer => {
                    self.step(*byte).map_err(|reason| Refusal { at, reason })?;
                    at += 1;
                }
            }
        }
        Ok(())
    }

    fn skip(&mut self, n: u64, left: usize, more: fn(u64) -> Place, then: Place) -> usize {
        let here = n.min(u64::try_from(left).unwrap_or(u64::MAX));
        self.place = if here == n { then } else { more(n - here) };
        usize::try_from(here).unwrap_or(left)
    }

    /// One byte of a head, a chunk's frame or a trailer.
    fn step(&mut self, byte: u8) -> Result<(), Reason> {
        let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
        match (byte, after_cr) {
            (b'\n', true) => self.line_end(),
            (b'\n', false) | (_, true) => Err(Reason::BareLineEnd),
            (b'\r', false) => Ok(()),
            (_, false) => self.byte(byte),
        }
    }

    fn byte(&mut self, byte: u8) -> Result<(), Reason> {
        let head = &mut self.head;
        match self.place {
            Place::RequestLine => {
                head.line_bytes += 1;
                head.tail.rotate_left(1);
                if let Some(last) = head.tail.last_mut() {
                    *last = byte;
                }
            }
            Place::FieldStart | Place::Name if byte == b':' && head.name.len > 0 => {
                self.place = Place::Value;
            }
            Place::FieldStart | Place::Name => {
                if byte <= b' ' || byte == b':' || byte == 0x7f {
                    return Err(Reason::Field);
                }
                self.place = Place::Name;
                head.name.push(byte.to_ascii_lowercase());
            }
            Place::Value => {
                let is_leading = head.value.len == 0 && (byte == b' ' || byte == b'\t');
                if !is_leading {
                    head.value.push(byte);
                }
            }
            Place::ChunkSize if matches!(byte, b';' | b' ' | b'\t') && head.chunk_digits > 0 => {
                self.place = Place::ChunkExtension;
            }
            Place::ChunkSize => {
                let digit = char::from(byte).to_digit(16).ok_or(Reason::Chunk)?;
                head.chunk_digits += 1;
                // Sixteen digits are 64 bits; nobody sends a chunk of more than fifteen.
                if head.chunk_digits > 15 {
                    return Err(Reason::Chunk);
                }
                head.chunk = head.chunk * 16 + u64::from(digit);
            }
            Place::ChunkEnd => return Err(Reason::Chunk),
            Place::TrailerStart => {
                if byte <= b' ' || byte == b':' {
                    return Err(Reason::Field);
                }
                self.place = Place::Trailer;
            }
            Place::ChunkExtension | Place::Trailer | Place::Body(_) | Place::ChunkData(_) => {}
        }
        Ok(())
    }

    fn line_end(&mut self) -> Result<(), Reason> {
        self.place = match self.place {
            // Empty lines in front of a request line are allowed (RFC 9112, section 2.2).
            Place::RequestLine if self.head.line_bytes == 0 => Place::RequestLine,
            Place::RequestLine => Place::FieldStart,
            Place::FieldStart => {
                self.n_heads += 1;
                self.head_end()?
            }
            Place::Name => return Err(Reason::Field),
            Place::Value => {
                self.field_end()?;
                Place::FieldStart
            }
            Place::ChunkSize if self.head.chunk_digits == 0 => return Err(Reason::Chunk),
            Place::ChunkSize | Place::ChunkExtension => {
                self.head.chunk_digits = 0;
                match std::mem::take(&mut self.head.chunk) {
                    0 => Place::TrailerStart,
                    size => Place::ChunkData(size),
                }
            }
            Place::ChunkEnd => Place::ChunkSize,
            Place::TrailerStart => Place::RequestLine,
            Place::Trailer => Place::TrailerStart,
            place @ (Place::Body(_) | Place::ChunkData(_)) => place,
        };
        Ok(())
    }

    fn field_end(&mut self) -> Result<(), Reason> {
        let head = &mut self.head;
        let (name, value) = (std::mem::take(&mut head.name), std::mem::take(&mut head.value));
        match name.get() {
            Some(b"host") => {
                head.hosts = head.hosts.saturating_add(1);
                if head.hosts > 1 {
                    return Err(Reason::Host);
                }
            }
            Some(b"content-length") => {
                head.lengths = head.lengths.saturating_add(1);
                head.length = value.get().and_then(number).ok_or(Reason::Length)?;
                if head.lengths > 1 || head.codings > 0 {
                    return Err(Reason::Length);
                }
            }
            Some(b"transfer-encoding") => {
                head.codings = head.codings.saturating_add(1);
                let is_chunked = value.get().is_some_and(|value| value.eq_ignore_ascii_case(b"chunked"));
                if !is_chunked || head.codings > 1 {
                    return Err(Reason::Coding);
                }
                if head.lengths > 0 {
                    return Err(Reason::Length);
                }
            }
            Some(_) | None => {}
        }
        Ok(())
    }

    /// The head is complete: what follows it.
    fn head_end(&mut self) -> Result<Place, Reason> {
        let head = std::mem::take(&mut self.head);
        // Before HTTP/1.1 nobody had to send `host`; and a transfer coding there is a trick (RFC 9112, section 6.1).
        let is_old = head.tail == *b"HTTP/1.0";
        if head.hosts != 1 && !is_old {
            return Err(Reason::Host);
        }
        if is_old && head.codings > 0 {
            return Err(Reason::Coding);
        }
        Ok(match (head.codings, head.length) {
            (0, 0) => Place::RequestLine,
            (0, length) => Place::Body(length),
            (_, _) => Place::ChunkSize,
        })
    }
}

/// Digits only: no sign, no list.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(), Reason>) {
        // In one read, and byte by byte: the result must be the same.
        let whole = Scanner::default().scan(text.as_bytes()).map_err(|refusal| refusal.reason);
        let mut scanner = Scanner::default();
        let bytes = text.bytes().try_for_each(|byte| scanner.scan(&[byte])).map_err(|refusal| refusal.reason);
        assert_eq!(whole, expected, "{text:?}");
        assert_eq!(bytes, expected, "{text:?} byte by byte");
    }

    #[test]
    fn good_requests_pass_one_after_the_other() {
        check(
            "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nhost:a\r\nX-Long-Name-Of-A-Field: v\r\n\r\n",
            Ok(()),
        );
        check(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n\n\n\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            Ok(()),
        );
        check(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3;x=y\r\na\nb\r\n0\r\nT: x\r\n\r\n\r\n\
             GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            Ok(()),
        );
        check("GET / HTTP/1.0\r\n\r\n", Ok(()));
    }

    #[test]
    fn bad_heads_are_refused() {
        let head = |fields: &str| format!("POST / HTTP/1.1\r\n{fields}\r\n");
        check("GET / HTTP/1.1\nHost: a\r\n\r\n", Err(Reason::BareLineEnd));
        check("GET / HTTP/1.1\r\nHost: a\n\r\n", Err(Reason::BareLineEnd));
        check("GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", Err(Reason::BareLineEnd));
        check(&head("X: 1\r\n"), Err(Reason::Host));
        check(&head("Host: a\r\nHOST: a\r\n"), Err(Reason::Host));
        check(&head("Host: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n"), Err(Reason::Length));
        check(&head("Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n"), Err(Reason::Length));
        check(&head("Host: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n"), Err(Reason::Length));
        check(&head("Host: a\r\nContent-Length: +1\r\n"), Err(Reason::Length));
        check(&head("Host: a\r\nContent-Length: 1, 1\r\n"), Err(Reason::Length));
        check(&head("Host: a\r\nTransfer-Encoding: gzip, chunked\r\n"), Err(Reason::Coding));
        check(
            &head("Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
            Err(Reason::Coding),
        );
        check(&head("Host: a\r\nX : 1\r\n"), Err(Reason::Field));
        check(&head("Host: a\r\nX: 1\r\n folded\r\n"), Err(Reason::Field));
        check(&head("Host: a\r\n: 1\r\n"), Err(Reason::Field));
        check("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Err(Reason::Coding));
    }

    #[test]
    fn bad_chunks_are_refused() {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        for chunks in ["x\r\n", "\r\n", "2\r\nabc\r\n", "0x2\r\nab\r\n", "2\nab\r\n", "fffffffffffffffff\r\n"]
        {
            let refused = Scanner::default().scan(format!("{head}{chunks}").as_bytes());
            assert!(refused.is_err(), "{chunks:?}");
        }
    }
}
