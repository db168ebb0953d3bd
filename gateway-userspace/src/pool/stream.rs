//! Bodies over one stream of HTTP/2, towards clients and endpoints alike: read with back-pressure, written as the peer's
//! windows allow.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};

use crate::{h1, pool::body::BoxError};

/// A body that the peer sends. What was taken makes room for more, so whoever takes it waits for its own reader.
#[derive(Debug)]
pub struct Received {
    stream: RecvStream,
    hint: SizeHint,
    is_in_trailers: bool,
}

impl Received {
    /// The body behind these fields.
    pub fn new(stream: RecvStream, fields: &HeaderMap) -> Self {
        let length = fields.get(header::CONTENT_LENGTH).and_then(|value| h1::number(value.as_bytes()));
        let hint = if stream.is_end_stream() { Some(0) } else { length };
        Self {
            stream,
            hint: hint.map_or_else(SizeHint::default, SizeHint::with_exact),
            is_in_trailers: false,
        }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let this = self.get_mut();
        if !this.is_in_trailers {
            if let Some(data) = ready!(this.stream.poll_data(cx)) {
                let data = data?;
                this.stream.flow_control().release_capacity(data.len())?;
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            this.is_in_trailers = true;
        }
        let trailers = ready!(this.stream.poll_trailers(cx))?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.stream.is_end_stream() { SizeHint::with_exact(0) } else { self.hint }
    }
}

/// A body that is written to the peer.
#[derive(Debug)]
pub struct Sending<B> {
    /// Where it comes from.
    pub body: B,
    /// Where it goes.
    pub stream: SendStream<Bytes>,
    /// Read, and not written for want of room.
    waiting: Option<Bytes>,
    /// Pieces that were read so far.
    pieces: u64,
}

/// What became of a body.
#[derive(Debug)]
pub enum Sent {
    /// All of it is written, or as good as.
    Whole,
    /// The peer takes no more.
    Unwanted,
    /// It broke off; the peer has not been told.
    Broken(BoxError),
}

impl<B> Sending<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    /// Nothing is written yet.
    pub const fn new(body: B, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, waiting: None, pieces: 0 }
    }

    /// Whether the peer is waited for, and not the body.
    pub const fn is_blocked(&self) -> bool {
        self.waiting.is_some()
    }

    /// Pieces of the body that were read so far.
    pub const fn pieces(&self) -> u64 {
        self.pieces
    }

    /// Writes what can be written now.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Sent> {
        loop {
            while self.waiting.is_some() && self.stream.capacity() == 0 {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Poll::Ready(Sent::Unwanted),
                }
            }
            if let Some(data) = self.waiting.take()
                && self.stream.send_data(data, false).is_err()
            {
                return Poll::Ready(Sent::Unwanted);
            }
            let piece = ready!(Pin::new(&mut self.body).poll_frame(cx));
            self.pieces = self.pieces.wrapping_add(1);
            let ended = match piece {
                None => self.stream.send_data(Bytes::new(), true),
                Some(Err(cause)) => return Poll::Ready(Sent::Broken(cause.into())),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if self.body.is_end_stream() => self.stream.send_data(data, true),
                    Ok(data) => {
                        if !data.is_empty() {
                            // The codec asks for the rest by itself; a claim on more would keep it from other streams.
                            self.stream.reserve_capacity(1);
                            self.waiting = Some(data);
                        }
                        continue;
                    }
                    Err(frame) => self.stream.send_trailers(frame.into_trailers().unwrap_or_default()),
                },
            };
            return Poll::Ready(if ended.is_ok() { Sent::Whole } else { Sent::Unwanted });
        }
    }
}
