//! What waits to be written on a connection: a head or the frame of a chunk, data that is not copied, and what ends it;
//! all of it in one system call.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, Method, StatusCode, Version};
use tokio::io::AsyncWrite;

use crate::h1::spare;

/// Bytes of a piece that are copied behind the head: writing one stretch costs less than writing two.
const COPIED_BYTES: usize = 2_048;

/// What waits.
#[derive(Debug, Default)]
pub struct Out {
    head: Vec<u8>,
    n_written: usize,
    data: Bytes,
    tail: &'static [u8],
    /// Something was written since the last flush.
    is_dirty: bool,
}

/// How a body is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Body {
    /// There is none.
    None,
    /// As it is; this many bytes are still to come.
    Length(u64),
    /// In chunks.
    Chunked,
    /// As it is, until the connection is closed.
    UntilClose,
}

/// The body is longer than its head says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TooLong;

impl Out {
    /// Whether nothing waits.
    pub const fn is_empty(&self) -> bool {
        self.n_written == self.head.len() && self.data.is_empty() && self.tail.is_empty()
    }

    /// Bytes of heads that wait.
    pub const fn len(&self) -> usize {
        self.head.len() - self.n_written
    }

    /// Whether there is room for another piece of a body.
    pub const fn has_room(&self) -> bool {
        self.data.is_empty() && self.tail.is_empty()
    }

    /// The first line of a request.
    pub fn request(&mut self, method: &Method, target: &str) {
        self.text(method.as_str().as_bytes());
        self.text(b" ");
        self.text(target.as_bytes());
        self.text(b" HTTP/1.1\r\n");
    }

    /// The first line of a response.
    pub fn status(&mut self, version: Version, status: StatusCode) {
        self.text(if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
        self.text(status.as_str().as_bytes());
        self.text(b" ");
        self.text(status.canonical_reason().unwrap_or_default().as_bytes());
        self.text(b"\r\n");
    }

    /// All fields.
    pub fn fields(&mut self, fields: &HeaderMap) {
        for (name, value) in fields {
            self.field(name.as_str().as_bytes(), value.as_bytes());
        }
    }

    /// One field.
    pub fn field(&mut self, name: &[u8], value: &[u8]) {
        self.text(name);
        self.text(b": ");
        self.text(value);
        self.text(b"\r\n");
    }

    /// Bytes that are part of a head.
    pub fn text(&mut self, text: &[u8]) {
        self.room().extend_from_slice(text);
    }

    /// Where heads are written: room that others left, when there is none yet.
    fn room(&mut self) -> &mut Vec<u8> {
        if self.head.capacity() == 0 {
            self.head = spare::head();
        }
        &mut self.head
    }

    /// A piece of a body; only when there [is room](Out::has_room).
    pub fn data(&mut self, body: &mut Body, data: Bytes) -> Result<(), TooLong> {
        if data.is_empty() {
            return Ok(());
        }
        match body {
            Body::None => return Err(TooLong),
            Body::Length(left) => {
                let len = u64::try_from(data.len()).unwrap_or(u64::MAX);
                *left = left.checked_sub(len).ok_or(TooLong)?;
            }
            Body::Chunked => {
                // A vector takes everything.
                let _written = io::Write::write_fmt(self.room(), format_args!("{:x}\r\n", data.len()));
                self.tail = b"\r\n";
            }
            Body::UntilClose => {}
        }
        if data.len() <= COPIED_BYTES && self.head.len() + data.len() <= *spare::HEAD_BYTES.end() {
            self.text(&data);
            self.head.extend_from_slice(std::mem::take(&mut self.tail));
        } else {
            self.data = data;
        }
        Ok(())
    }

    /// The end of a body, and what stands behind it; trailers only when there [is room](Out::has_room). False when bytes
    /// are missing.
    pub fn end(&mut self, body: Body, trailers: Option<&HeaderMap>) -> bool {
        match (body, trailers) {
            (Body::Length(left), _) => return left == 0,
            // With the last piece, in one write.
            (Body::Chunked, None) if self.tail == b"\r\n" => self.tail = b"\r\n0\r\n\r\n",
            (Body::Chunked, None) => self.text(b"0\r\n\r\n"),
            (Body::Chunked, Some(trailers)) => {
                self.text(b"0\r\n");
                self.fields(trailers);
                self.text(b"\r\n");
            }
            (Body::None | Body::UntilClose, _) => {}
        }
        true
    }

    /// Writes until nothing waits, and lets nothing stay behind in the stream.
    pub fn poll_write<S>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin + ?Sized,
    {
        while !self.is_empty() {
            let head = self.head.get(self.n_written..).unwrap_or_default();
            let mut slices = [IoSlice::new(head), IoSlice::new(&self.data), IoSlice::new(self.tail)];
            let n = if self.data.is_empty() && self.tail.is_empty() {
                ready!(Pin::new(&mut *stream).poll_write(cx, head))?
            } else if stream.is_write_vectored() {
                let slices =
                    if head.is_empty() { slices.get_mut(1..).unwrap_or_default() } else { &mut slices };
                ready!(Pin::new(&mut *stream).poll_write_vectored(cx, slices))?
            } else {
                let first = slices.iter().find(|slice| !slice.is_empty());
                ready!(Pin::new(&mut *stream).poll_write(cx, first.map_or(&[][..], |first| first)))?
            };
            if n == 0 {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero)));
            }
            self.is_dirty = true;
            self.advance(n);
        }
        if self.is_dirty {
            ready!(Pin::new(stream).poll_flush(cx))?;
            self.is_dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, n: usize) {
        let of_head = n.min(self.head.len() - self.n_written);
        self.n_written += of_head;
        let of_data = (n - of_head).min(self.data.len());
        self.data.advance(of_data);
        self.tail = self.tail.get(n - of_head - of_data..).unwrap_or_default();
        if self.n_written == self.head.len() {
            self.n_written = 0;
            spare::keep_head(std::mem::take(&mut self.head));
        }
    }

    /// Heads that wait.
    #[cfg(test)]
    pub fn head(&self) -> &[u8] {
        &self.head
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn what_waits_arrives_in_order_whatever_the_other_side_takes_at_once() {
        for room in [1, 2, 3, 64, 4_096] {
            let (mut near, mut far) = tokio::io::duplex(room);
            let writer = async move {
                let (mut out, mut body) = (Out::default(), Body::Chunked);
                out.request(&Method::PUT, "/a");
                out.field(b"host", b"a");
                out.text(b"\r\n");
                out.data(&mut body, Bytes::from_static(b"0123456789abcdef")).unwrap();
                std::future::poll_fn(|cx| out.poll_write(&mut near, cx)).await.unwrap();
                let mut trailers = HeaderMap::new();
                trailers.insert("x-sum", http::HeaderValue::from_static("1"));
                assert!(out.end(body, Some(&trailers)));
                std::future::poll_fn(|cx| out.poll_write(&mut near, cx)).await.unwrap();
                assert!(out.is_empty());
            };
            let mut text = String::new();
            let ((), read) = tokio::join!(writer, far.read_to_string(&mut text));
            read.unwrap();
            assert_eq!(
                text, "PUT /a HTTP/1.1\r\nhost: a\r\n\r\n10\r\n0123456789abcdef\r\n0\r\nx-sum: 1\r\n\r\n",
                "{room}"
            );
        }
    }

    #[test]
    fn a_body_keeps_to_its_length() {
        let (mut out, mut body) = (Out::default(), Body::Length(3));
        assert!(!Out::default().end(body, None));
        out.data(&mut body, Bytes::from_static(b"ab")).unwrap();
        assert_eq!(Out::default().data(&mut body, Bytes::from_static(b"cd")), Err(TooLong));
        assert_eq!(Out::default().data(&mut Body::None, Bytes::from_static(b"a")), Err(TooLong));
    }
}
