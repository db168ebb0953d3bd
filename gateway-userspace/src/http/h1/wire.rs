//! The two directions of one downstream HTTP/1 connection: requests as they arrive, responses as they leave. Shared by the
//! loop that serves it and by the body of the request that is under way.
//!
//! An idle connection holds no buffer: reads go to the stack first, and what arrived is as large as it is.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{StatusCode, Version, response::Parts};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    h1::{
        Framing,
        chunk::{Chunks, Piece},
        head::{self, Finder},
        out::Out,
    },
    limits,
    metrics::refusal::Refusal,
    pool::{body::BoxError, interim::Interim},
    taken::Taken,
};

/// Bytes that are read at once: of heads, and of bodies.
const HEAD_READ_BYTES: usize = 4 * 1_024;
const BODY_READ_BYTES: usize = 16 * 1_024;

/// One connection.
#[derive(Debug)]
pub(super) struct Wire<S> {
    stream: S,
    /// A read had to wait.
    has_waited: bool,
    /// Read and not taken yet.
    bytes: BytesMut,
    finder: Finder,
    /// Requests that have begun: the body of an earlier one must not take from a later one.
    n_begun: u64,
    /// What is still to come of the body of the request.
    rest: Rest,
    /// The client waits to be told that its body is wanted.
    awaits_continue: bool,
    /// The client knows that something may come before its response.
    pub(super) hears_interim: bool,
    /// Why the body is malformed.
    refusal: Option<Refusal>,
    /// What is written.
    pub(super) out: Out,
}

#[derive(Debug)]
enum Rest {
    Length(u64),
    Chunks(Chunks),
    /// Whatever the client sends, when its tunnel is open.
    Held,
    /// Whatever the client sends, until it ends its side.
    Open,
    /// Nothing more, or nothing that can be understood.
    End {
        is_good: bool,
    },
}

/// What is next of a body.
enum Next {
    Piece(Frame<Bytes>),
    End,
    /// More bytes have to tell.
    Later,
}

/// Why no request came.
#[derive(Debug)]
pub(super) enum NoHead {
    /// The client left.
    Closed,
    /// Its bytes are refused.
    Refused(Refusal),
}

impl From<Refusal> for NoHead {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl<S> Wire<S> {
    /// `bytes` were read before.
    pub(super) fn new(stream: S, bytes: BytesMut) -> Self {
        Self {
            stream,
            has_waited: false,
            bytes,
            finder: Finder::default(),
            n_begun: 0,
            rest: Rest::End { is_good: true },
            awaits_continue: false,
            hears_interim: false,
            refusal: None,
            out: Out::default(),
        }
    }

    /// Whether something that the client sends was waited for.
    pub(super) const fn has_waited(&self) -> bool {
        self.has_waited
    }

    /// Whether a request has begun.
    pub(super) fn is_in_head(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Whether the body of the last request has been read to its end.
    pub(super) const fn is_read(&self) -> bool {
        matches!(self.rest, Rest::End { is_good: true } | Rest::Held)
    }

    /// A request begins, with a body as its head says.
    pub(super) fn begin(&mut self, framing: Framing, awaits_continue: bool) {
        self.n_begun += 1;
        self.rest = match framing {
            Framing::None | Framing::UntilClose => Rest::End { is_good: true },
            Framing::Length(length) => Rest::Length(length),
            Framing::Chunked => Rest::Chunks(Chunks::default()),
        };
        self.awaits_continue = awaits_continue && !self.is_read();
    }

    /// The client may get a tunnel.
    pub(super) fn hold(&mut self) {
        self.rest = Rest::Held;
    }

    /// The client has got it.
    pub(super) fn open(&mut self) {
        self.rest = Rest::Open;
    }

    /// Reads over what has arrived of a body that nobody wants; true when that was all of it.
    pub(super) fn skip(&mut self) -> bool {
        while let Ok(Next::Piece(_)) = self.piece() {}
        self.is_read()
    }

    /// Whether the client was not told yet that its body is wanted.
    pub(super) const fn awaits_continue(&self) -> bool {
        self.awaits_continue && !self.is_read()
    }

    /// Puts an interim response in front of the response; false when there is no room.
    fn interim(&mut self, head: &Parts) -> bool {
        let is_asked = std::mem::take(&mut self.awaits_continue);
        let is_continue = head.status == StatusCode::CONTINUE;
        self.awaits_continue = is_asked && !is_continue;
        if !self.hears_interim || (is_continue && !is_asked) {
            return true;
        }
        if self.out.len() > limits::INTERIM_BYTES {
            return false;
        }
        self.out.status(Version::HTTP_11, head.status);
        self.out.fields(&head.headers);
        self.out.text(b"\r\n");
        true
    }

    /// Why the body is malformed; once.
    pub(super) const fn refusal(&mut self) -> Option<Refusal> {
        self.refusal.take()
    }

    /// The next piece of the body that is here.
    fn piece(&mut self) -> Result<Next, Refusal> {
        match &mut self.rest {
            Rest::End { .. } => Ok(Next::End),
            Rest::Open if !self.bytes.is_empty() => Ok(Next::Piece(Frame::data(self.bytes.split().freeze()))),
            Rest::Held | Rest::Open => Ok(Next::Later),
            Rest::Length(_) if self.bytes.is_empty() => Ok(Next::Later),
            Rest::Length(left) => {
                let len = usize::try_from(*left).unwrap_or(usize::MAX).min(self.bytes.len());
                *left -= u64::try_from(len).unwrap_or(*left);
                if *left == 0 {
                    self.rest = Rest::End { is_good: true };
                }
                Ok(Next::Piece(Frame::data(self.bytes.split_to(len).freeze())))
            }
            Rest::Chunks(chunks) => match chunks.next(&mut self.bytes) {
                Ok(Piece::Data(data)) => Ok(Next::Piece(Frame::data(data))),
                Ok(Piece::Nothing) => Ok(Next::Later),
                Ok(Piece::End(trailers)) => {
                    self.rest = Rest::End { is_good: true };
                    Ok(trailers.map_or(Next::End, |trailers| Next::Piece(Frame::trailers(trailers))))
                }
                Err(refusal) => {
                    self.rest = Rest::End { is_good: false };
                    self.refusal = Some(refusal);
                    Err(refusal)
                }
            },
        }
    }
}

impl<S: Taken> Wire<S> {
    /// See [`Taken::n_taken`].
    pub(super) fn n_taken(&self) -> Option<u64> {
        self.stream.n_taken()
    }

    /// Whether the client has acknowledged everything that was written to its socket, or nobody can tell.
    pub(super) fn has_taken_all(&self) -> bool {
        self.stream.n_queued().is_none_or(|queued| queued == 0)
    }

    /// See [`Taken::break_off`].
    pub(super) fn break_off(&self) {
        self.stream.break_off();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Reads what has arrived; zero at the end.
    fn poll_fill<const N: usize>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut room = [MaybeUninit::uninit(); N];
        let mut read = ReadBuf::uninit(&mut room);
        let polled = Pin::new(&mut self.stream).poll_read(cx, &mut read);
        self.has_waited |= polled.is_pending();
        ready!(polled)?;
        self.bytes.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }

    /// The bytes of the next head.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, NoHead>> {
        loop {
            if head::skip_empty_lines(&mut self.bytes)?
                && let Some(len) = self.finder.find(&self.bytes)?
            {
                self.finder = Finder::default();
                return Poll::Ready(Ok(self.bytes.split_to(len).freeze()));
            }
            match self.poll_fill::<HEAD_READ_BYTES>(cx) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(NoHead::Closed)),
                Poll::Pending => {
                    if self.bytes.is_empty() {
                        self.bytes = BytesMut::new();
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Resolves when the client leaves while it is waiting for its response.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // What it says meanwhile belongs to its next request; of that no more is read than fits one read.
        while self.is_read() && self.bytes.is_empty() {
            match ready!(self.poll_fill::<HEAD_READ_BYTES>(cx)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }

    /// Writes until nothing waits.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.out.poll_write(&mut self.stream, cx)
    }

    /// Says that nothing more will be written.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    /// Reads and forgets; zero at the end.
    pub(super) fn poll_forget(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.bytes.clear();
        self.poll_fill::<BODY_READ_BYTES>(cx)
    }

    /// Like [`Wire::skip`], and waits for what has not arrived; no more than so many bytes are read.
    pub(super) fn poll_skip(&mut self, n_left: &mut usize, cx: &mut Context<'_>) -> Poll<bool> {
        while !self.is_read() {
            match ready!(self.poll_body(cx)) {
                None => break,
                Some(Ok(frame)) => {
                    let Some(left) = n_left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else {
                        return Poll::Ready(false);
                    };
                    *n_left = left;
                }
                Some(Err(_)) => return Poll::Ready(false),
            }
        }
        Poll::Ready(self.is_read())
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            match self.piece() {
                Ok(Next::Piece(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(Next::End) => return Poll::Ready(None),
                Ok(Next::Later) => {}
                Err(refusal) => return Poll::Ready(Some(Err(BoxError::from(BrokenOff(Some(refusal)))))),
            }
            // Whoever opens it polls then.
            if matches!(self.rest, Rest::Held) {
                return Poll::Pending;
            }
            let filled = ready!(self.poll_fill::<BODY_READ_BYTES>(cx));
            if matches!((&filled, &self.rest), (Ok(0), Rest::Open)) {
                self.rest = Rest::End { is_good: true };
                return Poll::Ready(None);
            }
            if let Ok(0) | Err(_) = filled {
                self.rest = Rest::End { is_good: false };
                return Poll::Ready(Some(Err(BoxError::from(BrokenOff(None)))));
            }
        }
    }
}

impl<S: Send> Interim for Mutex<Wire<S>> {
    fn pass(&self, head: Parts) {
        // Whoever waits for the response writes it.
        if !self.lock().interim(&head) {
            tracing::debug!("a client takes no interim responses");
        }
    }
}

/// The body of a request ended before it was complete.
#[derive(Debug)]
struct BrokenOff(Option<Refusal>);

impl std::fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(refusal) => write!(f, "the body is malformed: {}", refusal.as_str()),
            None => f.write_str("the client closed the connection"),
        }
    }
}

impl std::error::Error for BrokenOff {}

/// The body of one request.
#[derive(Debug)]
pub(super) struct Uploaded<S> {
    wire: Arc<Mutex<Wire<S>>>,
    number: u64,
}

impl<S> Uploaded<S> {
    /// That of the request that began last.
    pub(super) fn new(wire: &Arc<Mutex<Wire<S>>>) -> Self {
        Self { number: wire.lock().n_begun, wire: Arc::clone(wire) }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Body for Uploaded<S> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut wire = self.wire.lock();
        // Whoever asks so late was not waited for, so it was at its end.
        if wire.n_begun == self.number { wire.poll_body(cx) } else { Poll::Ready(None) }
    }

    fn is_end_stream(&self) -> bool {
        let wire = self.wire.lock();
        wire.n_begun != self.number || (wire.is_read() && !matches!(wire.rest, Rest::Held))
    }

    fn size_hint(&self) -> SizeHint {
        let wire = self.wire.lock();
        match &wire.rest {
            _ if wire.n_begun != self.number => SizeHint::with_exact(0),
            Rest::Length(left) => SizeHint::with_exact(*left),
            Rest::Chunks(_) | Rest::Held | Rest::Open => SizeHint::default(),
            Rest::End { .. } => SizeHint::with_exact(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http_body_util::BodyExt as _;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn the_body_of_a_request_takes_nothing_from_the_next_one() {
        let (mut client, server) = tokio::io::duplex(1_024);
        client.write_all(b"abGET / HTTP/1.1\r\nHost: a\r\n\r\ncd").await.unwrap();
        let wire = Arc::new(Mutex::new(Wire::new(server, BytesMut::new())));
        wire.lock().begin(Framing::Length(2), false);
        let mut first = Uploaded::new(&wire);
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), "ab");
        assert!(wire.lock().is_read());
        let head = poll_fn(|cx| wire.lock().poll_head(cx)).await.unwrap();
        assert_eq!(head, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        wire.lock().begin(Framing::Length(2), false);
        assert!(first.frame().await.is_none(), "it is over");
        let second = Uploaded::new(&wire).collect().await.unwrap().to_bytes();
        assert_eq!(second, "cd");
    }
}
