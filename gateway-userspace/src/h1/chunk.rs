//! A body in chunks (RFC 9112, section 7.1): sizes in front, trailers behind. Extensions are read over and not passed on.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{h1::head::Finder, limits, metrics::refusal::Refusal};

/// Bytes of the line in front of a chunk, its extensions included. Nobody who means well sends any.
const LINE_BYTES: usize = 256;

/// Follows one body.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chunks(Place);

#[derive(Clone, Copy, Debug, Default)]
enum Place {
    #[default]
    Size,
    Data(u64),
    /// Behind the data of a chunk.
    DataEnd,
    Trailers(Finder),
    End,
}

/// What was found.
#[derive(Debug, PartialEq)]
pub enum Piece {
    /// Some of the body.
    Data(Bytes),
    /// The body is over; fields that stand behind it, if any.
    End(Option<HeaderMap>),
    /// More bytes have to tell.
    Nothing,
}

impl Chunks {
    /// Takes the next piece from the front of `bytes`.
    pub fn next(&mut self, bytes: &mut BytesMut) -> Result<Piece, Refusal> {
        loop {
            match &mut self.0 {
                Place::Size => match size(bytes)? {
                    None => return Ok(Piece::Nothing),
                    Some(0) => self.0 = Place::Trailers(Finder::default()),
                    Some(size) => self.0 = Place::Data(size),
                },
                Place::Data(left) => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    if here == 0 {
                        return Ok(Piece::Nothing);
                    }
                    *left -= u64::try_from(here).unwrap_or(*left);
                    if *left == 0 {
                        self.0 = Place::DataEnd;
                    }
                    return Ok(Piece::Data(bytes.split_to(here).freeze()));
                }
                Place::DataEnd => match (bytes.first(), bytes.get(1)) {
                    (None, _) | (Some(b'\r'), None) => return Ok(Piece::Nothing),
                    (Some(b'\r'), Some(b'\n')) => {
                        drop(bytes.split_to(2));
                        self.0 = Place::Size;
                    }
                    (Some(_), _) => return Err(Refusal::Chunk),
                },
                Place::Trailers(finder) => {
                    let Some(len) = finder.find(bytes)? else { return Ok(Piece::Nothing) };
                    let trailers = trailers(&bytes.split_to(len).freeze())?;
                    self.0 = Place::End;
                    return Ok(Piece::End((!trailers.is_empty()).then_some(trailers)));
                }
                Place::End => return Ok(Piece::End(None)),
            }
        }
    }
}

impl Chunks {
    /// Takes the end if nothing but the end is left and it is here, so that it can be passed on with the last piece.
    pub fn is_over(&mut self, bytes: &mut BytesMut) -> bool {
        if matches!(self.0, Place::DataEnd) && bytes.starts_with(END) {
            drop(bytes.split_to(END.len()));
            self.0 = Place::End;
        }
        matches!(self.0, Place::End)
    }
}

/// What follows the data of the last chunk when there are no trailers.
const END: &[u8] = b"\r\n0\r\n\r\n";

/// The size in front of a chunk; none when its line is not complete.
fn size(bytes: &mut BytesMut) -> Result<Option<u64>, Refusal> {
    let Some(end) = bytes.iter().take(LINE_BYTES).position(|byte| *byte == b'\n') else {
        return if bytes.len() < LINE_BYTES { Ok(None) } else { Err(Refusal::Chunk) };
    };
    let line = bytes.split_to(end + 1);
    let line = line.strip_suffix(b"\r\n").ok_or(Refusal::LineEnd)?;
    let n_digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, extension) = line.split_at_checked(n_digits).ok_or(Refusal::Chunk)?;
    let is_text = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
    // Sixteen digits are 64 bits; nobody sends a chunk of more than fifteen.
    let is_good = (1..=15).contains(&n_digits)
        && (extension.is_empty() || extension.trim_ascii_start().first() == Some(&b';'))
        && extension.iter().all(is_text);
    let digits = std::str::from_utf8(digits).ok().filter(|_| is_good).ok_or(Refusal::Chunk)?;
    u64::from_str_radix(digits, 16).map(Some).map_err(|_| Refusal::Chunk)
}

/// The fields behind a body, which must not say anything about its length or its target.
fn trailers(bytes: &Bytes) -> Result<HeaderMap, Refusal> {
    let mut map = HeaderMap::new();
    let mut raw = [httparse::EMPTY_HEADER; limits::HEADERS];
    let fields = match httparse::parse_headers(bytes, &mut raw) {
        Ok(httparse::Status::Complete((_, fields))) => fields,
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::HeadTooLarge),
        Ok(httparse::Status::Partial) | Err(_) => return Err(Refusal::Field),
    };
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Refusal::Field)?;
        if [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::HOST].contains(&name) {
            return Err(Refusal::Field);
        }
        map.append(name, HeaderValue::from_bytes(field.value).map_err(|_| Refusal::Field)?);
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Read = Result<Option<(Vec<u8>, Option<HeaderMap>)>, Refusal>;

    /// The body when `step` bytes arrive at a time; none when it did not end. And what is left behind it.
    fn read(text: &str, step: usize) -> (Read, BytesMut) {
        let (mut chunks, mut bytes, mut body) = (Chunks::default(), BytesMut::new(), Vec::new());
        let mut arriving = text.as_bytes().chunks(step);
        loop {
            match chunks.next(&mut bytes) {
                Ok(Piece::Data(data)) => body.extend_from_slice(&data),
                Ok(Piece::End(trailers)) => {
                    arriving.for_each(|rest| bytes.extend_from_slice(rest));
                    return (Ok(Some((body, trailers))), bytes);
                }
                Ok(Piece::Nothing) => match arriving.next() {
                    Some(more) => bytes.extend_from_slice(more),
                    None => return (Ok(None), bytes),
                },
                Err(refusal) => return (Err(refusal), bytes),
            }
        }
    }

    #[test]
    fn a_body_is_read_however_it_arrives() {
        let text = "3;x=y\r\na\nb\r\n00A\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\nGET /";
        for step in [1, 2, 3, 7, 1_000] {
            let (read, rest) = read(text, step);
            let (body, trailers) = read.unwrap().unwrap();
            assert_eq!(body, b"a\nb0123456789", "{step}");
            assert_eq!(trailers.unwrap().get("x-sum").unwrap(), "1");
            assert_eq!(rest, "GET /");
        }
        assert_eq!(read("0\r\n\r\n", 1).0, Ok(Some((Vec::new(), None))));
    }

    #[test]
    fn the_end_is_taken_with_the_last_piece() {
        let mut bytes = BytesMut::from("2\r\nab\r\n0\r\n\r\nx");
        let mut chunks = Chunks::default();
        assert!(!chunks.is_over(&mut bytes));
        assert_eq!(chunks.next(&mut bytes), Ok(Piece::Data(Bytes::from_static(b"ab"))));
        assert!(chunks.is_over(&mut bytes));
        assert_eq!(bytes, "x");
    }

    #[test]
    fn what_could_be_read_otherwise_is_refused() {
        let long = format!("1;{}\r\na\r\n", "x".repeat(LINE_BYTES));
        for (text, refusal) in [
            ("x\r\n", Refusal::Chunk),
            ("\r\n", Refusal::Chunk),
            ("-1\r\n", Refusal::Chunk),
            ("0x2\r\nab\r\n", Refusal::Chunk),
            (" 2\r\nab\r\n", Refusal::Chunk),
            ("2 \r\nab\r\n", Refusal::Chunk),
            ("2\r\nabc\r\n", Refusal::Chunk),
            ("2\r\nab\n", Refusal::Chunk),
            ("2\nab\r\n", Refusal::LineEnd),
            ("2;a\rb\r\nab\r\n", Refusal::Chunk),
            ("0000000000000002\r\nab\r\n", Refusal::Chunk),
            ("fffffffffffffffff\r\n", Refusal::Chunk),
            (&long, Refusal::Chunk),
            ("0\r\nX: 1\n\r\n", Refusal::LineEnd),
            ("0\r\nContent-Length: 1\r\n\r\n", Refusal::Field),
            ("0\r\nX : 1\r\n\r\n", Refusal::Field),
        ] {
            for step in [1, 1_000] {
                assert_eq!(read(text, step).0, Err(refusal), "{text:?} by {step}");
            }
        }
        assert_eq!(read("2\r\nab", 1).0, Ok(None));
    }
}
