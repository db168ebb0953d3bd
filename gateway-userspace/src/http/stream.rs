//! The bytes of a downstream connection on their way to the codec: told apart by protocol, and checked head by head.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::Sleep,
};

use crate::{http::head::Scanner, limits};

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

/// What the codec gets instead of a head that is refused: it cannot stand in any head, so the codec answers 400 and
/// closes, after the responses to all requests before it.
const POISON: &[u8] = b"\0\r\n\r\n";

/// A stream that can look ahead, and that refuses heads which the codec would take.
#[derive(Debug)]
pub struct Checked<S> {
    stream: S,
    ahead: [u8; PREFACE.len()],
    ahead_start: usize,
    ahead_end: usize,
    scanner: Option<Scanner>,
    is_poisoned: bool,
    /// Bound on one head, from its first byte to its last.
    head_timeout: Duration,
    /// Runs while a head has begun and more of it is awaited.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Bound on the time in which the client takes nothing of what is written.
    stall_timeout: Duration,
    /// Runs while something waits to be written.
    stall: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Checked<S> {
    /// Nothing is checked yet.
    pub const fn new(stream: S) -> Self {
        Self {
            stream,
            ahead: [0; PREFACE.len()],
            ahead_start: 0,
            ahead_end: 0,
            scanner: None,
            is_poisoned: false,
            head_timeout: Duration::MAX,
            deadline: None,
            stall_timeout: limits::STALL,
            stall: None,
        }
    }

    /// Checks every head of HTTP/1 from here on; each must be complete within `timeout`.
    pub fn check_heads(&mut self, timeout: Duration) {
        self.scanner = Some(Scanner::default());
        self.head_timeout = timeout;
    }

    /// Reads until it is clear what is spoken. What was read is read again later.
    pub async fn detect(&mut self) -> io::Result<Spoken> {
        loop {
            let seen = self.ahead.get(..self.ahead_end).unwrap_or_default();
            if !PREFACE.starts_with(seen) {
                return Ok(Spoken::Http1);
            }
            if seen.len() == PREFACE.len() {
                return Ok(Spoken::Http2);
            }
            let rest = self.ahead.get_mut(self.ahead_end..).unwrap_or_default();
            match self.stream.read(rest).await? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                n => self.ahead_end += n,
            }
        }
    }
}

impl<S> Checked<S> {
    /// A write that waits for the client must not wait for ever: the codec does not ask a body for its deadline meanwhile.
    fn wait_for_client<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stall = None;
            return written;
        }
        let timeout = self.stall_timeout;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(stall.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::from(io::ErrorKind::TimedOut)))
    }

    /// Nothing to read now: fine between requests, bounded within a head.
    fn wait_for_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.scanner.as_ref().is_some_and(Scanner::is_in_head) {
            let timeout = self.head_timeout;
            let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
            ready!(deadline.as_mut().poll(cx));
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::TimedOut)));
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Checked<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_poisoned {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        if this.ahead_start < this.ahead_end {
            let ahead = this.ahead.get(this.ahead_start..this.ahead_end).unwrap_or_default();
            let n = ahead.len().min(buf.remaining());
            buf.put_slice(ahead.get(..n).unwrap_or_default());
            this.ahead_start += n;
        } else {
            match Pin::new(&mut this.stream).poll_read(cx, buf) {
                Poll::Ready(read) => read?,
                Poll::Pending => return this.wait_for_head(cx),
            }
        }
        if let Some(scanner) = &mut this.scanner {
            let n_heads = scanner.n_heads();
            let new = buf.filled().get(before..).unwrap_or_default();
            if let Err(refusal) = scanner.scan(new) {
                tracing::debug!(%refusal, "a request was refused");
                // What is in front of the refused head in this read belongs to earlier requests.
                let keep = new.len().min(refusal.at);
                buf.set_filled(before + keep);
                let room = POISON.len().min(buf.remaining());
                buf.put_slice(POISON.get(..room).unwrap_or_default());
                this.is_poisoned = true;
            } else if !scanner.is_in_head() || scanner.n_heads() != n_heads {
                // Whatever head has begun by now, it is another one.
                this.deadline = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Checked<S> {
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
    use tokio::io::AsyncWriteExt;

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_head_that_does_not_end_times_out_and_silence_between_requests_does_not() {
        let (mut client, server) = tokio::io::duplex(1024);
        let mut stream = Checked::new(server);
        stream.check_heads(TIMEOUT);
        let mut bytes = [0; 256];
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert_eq!(stream.read(&mut bytes).await.unwrap(), 27);
        let silence = tokio::time::timeout(TIMEOUT * 3, stream.read(&mut bytes)).await;
        assert!(silence.is_err(), "still waiting: {silence:?}");
        client.write_all(b"GET / HT").await.unwrap();
        assert_eq!(stream.read(&mut bytes).await.unwrap(), 8);
        let slow = tokio::time::timeout(TIMEOUT * 20, stream.read(&mut bytes)).await.unwrap();
        assert_eq!(slow.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn heads_that_follow_each_other_have_a_time_each() {
        let (mut client, server) = tokio::io::duplex(1024);
        let mut stream = Checked::new(server);
        stream.check_heads(TIMEOUT);
        // Each write ends within the next head.
        client.write_all(b"GET / HTTP/1.1\r\nH").await.unwrap();
        let sender = async move {
            for _ in 0..8 {
                client.write_all(b"ost: a\r\n\r\nGET / HTTP/1.1\r\nH").await.unwrap();
                tokio::time::sleep(TIMEOUT / 2).await;
            }
        };
        let mut bytes = [0; 256];
        let receiver = async {
            assert_eq!(stream.read(&mut bytes[..17]).await.unwrap(), 17);
            for _ in 0..8 {
                assert!(stream.read(&mut bytes).await.unwrap() > 0);
            }
        };
        tokio::join!(sender, receiver);
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_left() {
        let (client, server) = tokio::io::duplex(64);
        let mut stream = Checked::new(server);
        stream.stall_timeout = TIMEOUT;
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
            let mut stream = Checked::new(server);
            assert_eq!(stream.detect().await.unwrap(), spoken);
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, text);
        }
    }
}
