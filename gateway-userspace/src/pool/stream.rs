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

use crate::{h1, limits, pool::body::BoxError};

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
    /// What waits is the last of the body.
    is_last: bool,
    /// Pieces that were read so far.
    pieces: u64,
    /// Bytes that were handed to the codec.
    n_bytes: u64,
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
        Self { body, stream, waiting: None, is_last: false, pieces: 0, n_bytes: 0 }
    }

    /// Whether the peer is waited for, and not the body.
    pub const fn is_blocked(&self) -> bool {
        self.waiting.is_some()
    }

    /// Bytes of the body that the codec has taken: those that the peer had room for, and at most one piece more.
    pub const fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Pieces of the body that were read so far.
    pub const fn pieces(&self) -> u64 {
        self.pieces
    }

    /// Writes what can be written now.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Sent> {
        loop {
            if self.waiting.is_some() {
                match ready!(self.poll_waiting(cx)) {
                    Ok(()) if self.is_last => return Poll::Ready(Sent::Whole),
                    Ok(()) => {}
                    Err(Unwanted) => return Poll::Ready(Sent::Unwanted),
                }
            }
            let piece = ready!(Pin::new(&mut self.body).poll_frame(cx));
            self.pieces = self.pieces.wrapping_add(1);
            let ended = match piece {
                None => self.stream.send_data(Bytes::new(), true),
                Some(Err(cause)) => return Poll::Ready(Sent::Broken(cause.into())),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.is_last = self.body.is_end_stream();
                        self.waiting = Some(data).filter(|data| !data.is_empty() || self.is_last);
                        continue;
                    }
                    Err(frame) => self.stream.send_trailers(frame.into_trailers().unwrap_or_default()),
                },
            };
            return Poll::Ready(if ended.is_ok() { Sent::Whole } else { Sent::Unwanted });
        }
    }

    /// Hands a piece to the codec: as much as the peer has room for, and where that is plenty, more, which then waits in the
    /// codec. Not the end of a piece: nobody waits for what the codec holds when a body is over, and a peer that takes nothing
    /// has to be waited for.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Unwanted>> {
        while let Some(data) = &mut self.waiting {
            // Claimed here it is used at once; more would be kept from other streams.
            self.stream.reserve_capacity(data.len().min(limits::STREAM_SEND_BYTES));
            let room = self.stream.capacity();
            if room == 0 && !data.is_empty() {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(_)) => continue,
                    Some(Err(_)) | None => return Poll::Ready(Err(Unwanted)),
                }
            }
            let len = match data.len().checked_sub(END_BYTES) {
                _ if room >= data.len() => data.len(),
                // The codec says no more than that there is as much; what is behind it goes with it.
                Some(len) if room >= limits::STREAM_SEND_BYTES => len,
                Some(_) | None => room,
            };
            let now = data.split_to(len);
            let is_done = data.is_empty();
            self.n_bytes = self.n_bytes.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
            if is_done {
                self.waiting = None;
            }
            if self.stream.send_data(now, is_done && self.is_last).is_err() {
                return Poll::Ready(Err(Unwanted));
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The peer takes no more of a body.
struct Unwanted;

/// Bytes of a piece that the peer must have room for when they are handed to the codec. There is room as soon as it has taken
/// everything before them, so a short end costs no further wait where all goes well.
const END_BYTES: usize = 1_024;
