//! The bytes of a downstream connection on their way to the codec: told apart by protocol, and not held up by a client
//! that takes nothing.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::{
    http::uptake::{Terms, Uptake},
    taken::Taken,
    timer::Timer,
};

/// What a connection speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Spoken {
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Begins every HTTP/2 connection, and no request of HTTP/1 (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads until it is clear what is spoken; what was read for it.
pub async fn detect<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<(Spoken, BytesMut)> {
    let mut bytes = BytesMut::new();
    loop {
        let begin = bytes.get(..PREFACE.len()).unwrap_or(&bytes);
        if !PREFACE.starts_with(begin) {
            return Ok((Spoken::Http1, bytes));
        }
        if begin.len() == PREFACE.len() {
            return Ok((Spoken::Http2, bytes));
        }
        // Most heads are shorter, and nothing is kept that did not arrive.
        let mut room = [0; 1_024];
        match stream.read(&mut room).await? {
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            n => bytes.extend_from_slice(room.get(..n).unwrap_or_default()),
        }
    }
}

/// A stream that gives again what was read ahead, and that ends when its client takes nothing for too long.
#[derive(Debug)]
pub struct Guarded<S> {
    stream: S,
    ahead: BytesMut,
    /// How slow the client may be with what is written.
    terms: Terms,
    timer: Timer,
    /// Since something waits to be written.
    uptake: Uptake,
}

impl<S> Guarded<S> {
    /// `ahead` was read before; the client has to take what is written on these terms.
    pub fn new(stream: S, ahead: BytesMut, terms: Terms) -> Self {
        Self { stream, ahead, terms, timer: Timer::default(), uptake: Uptake::default() }
    }
}

impl<S: Taken> Guarded<S> {
    /// See [`Taken::n_taken`].
    pub fn n_taken(&self) -> Option<u64> {
        self.stream.n_taken()
    }

    /// A write that waits for the client must not wait for ever: the codec does not ask a body for its deadline meanwhile.
    fn wait_for_client<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.uptake = Uptake::default();
            return written;
        }
        let Self { stream, terms, timer, uptake, .. } = self;
        ready!(uptake.poll(timer, *terms, || stream.n_taken(), cx));
        Poll::Ready(Err(io::Error::from(io::ErrorKind::TimedOut)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let ahead = this.ahead.split_to(this.ahead.len().min(buf.remaining()));
        buf.put_slice(&ahead);
        if this.ahead.is_empty() {
            this.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Taken + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.wait_for_client(cx, written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_flush(cx);
        this.wait_for_client(cx, written)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.wait_for_client(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(50);
    const TERMS: Terms = Terms { stall: TIMEOUT, bytes_per_second: 1 };

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_left() {
        let (client, server) = tokio::io::duplex(64);
        let mut stream = Guarded::new(server, BytesMut::new(), TERMS);
        let written = tokio::time::timeout(TIMEOUT * 20, stream.write_all(&[0; 1_024])).await.unwrap();
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(client);
    }

    #[tokio::test]
    async fn what_was_looked_at_is_read_again() {
        for (text, spoken) in [
            (&b"PUT /a HTTP/1.1\r\nHost: a\r\n\r\n"[..], Spoken::Http1),
            (b"PRI * HTTP/1.1\r\n\r\n........", Spoken::Http1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nmore", Spoken::Http2),
        ] {
            let (mut client, server) = tokio::io::duplex(1024);
            client.write_all(text).await.unwrap();
            drop(client);
            let mut server = server;
            let (detected, ahead) = detect(&mut server).await.unwrap();
            assert_eq!(detected, spoken);
            let mut stream = Guarded::new(server, ahead, TERMS);
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, text);
        }
    }
}
