//! The frames of a client's connection, as they arrive: the codec answers each of them, so somebody has to see that most of
//! them are good for something, and that heads end in time.
//!
//! The codec says `PROTOCOL_ERROR` of whatever it cannot read. Where the specification has another word for it that can be said
//! without decoding heads, it is said here, and the codec gets nothing of that frame.
//!
//! A frame that carries nothing costs one point. Requests and data earn points, and so does what is written to the client:
//! whoever receives data sends PING and updates of windows. When nothing is left, the connection ends.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use crate::{
    http::h2::{batch::Batched, payload::Payload},
    limits,
    metrics::misuse::Misuse,
    taken::Taken,
};

/// Points that a connection may save up, and gets back in a second when it has none.
const MOST_POINTS: u32 = 10 * limits::CONTROL_FRAMES;
const POINTS_PER_SECOND: u32 = 100;

/// Bytes written that earn a point: more than the answers to PING and SETTINGS, which earn none thereby.
const BYTES_PER_POINT: usize = 64;

/// Bytes that are read and forgotten when a connection ends, so that its last words are not lost with it.
const FORGOTTEN_BYTES: usize = 256 * 1024;

/// What the connection and its stream tell each other.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    misuse: Option<Misuse>,
    n_reads: u64,
}

impl Seen {
    /// The connection must end.
    pub(super) fn accuse(&self, misuse: Misuse) {
        self.0.lock().misuse.get_or_insert(misuse);
    }

    /// Why the connection must end.
    pub(super) fn misuse(&self) -> Option<Misuse> {
        self.0.lock().misuse
    }

    /// Changes whenever something arrived.
    pub(super) fn n_reads(&self) -> u64 {
        self.0.lock().n_reads
    }
}

/// Goes through frames without keeping them.
#[derive(Debug)]
struct Walker {
    /// Bytes to come of the preface or of a payload.
    skip: usize,
    header: [u8; HEADER_BYTES],
    n_header: usize,
    /// A head has begun and its last frame has not been read.
    is_in_head: bool,
    /// The payload that is skipped ends the head.
    ends_head: bool,
    points: u32,
    refilled: Instant,
    n_unpaid: usize,
    /// The settings of the client have arrived, which come before anything else (RFC 9113, section 3.4).
    has_settings: bool,
    /// The last stream that the client has opened.
    last_stream: u32,
    payload: Payload,
}

const HEADER_BYTES: usize = 9;
const PREFACE_BYTES: usize = 24;

/// Types and flags of frames (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

impl Walker {
    fn new() -> Self {
        Self {
            skip: PREFACE_BYTES,
            header: [0; HEADER_BYTES],
            n_header: 0,
            is_in_head: false,
            ends_head: false,
            points: limits::CONTROL_FRAMES,
            refilled: Instant::now(),
            n_unpaid: 0,
            has_settings: false,
            last_stream: 0,
            payload: Payload::Any,
        }
    }

    /// An error comes with the number of bytes in front of what is wrong.
    fn read(&mut self, whole: &[u8]) -> Result<(), (usize, Misuse)> {
        let mut bytes = whole;
        while !bytes.is_empty() {
            let n_good = whole.len() - bytes.len();
            let (skipped, rest) = bytes.split_at_checked(self.skip).unwrap_or((bytes, &[]));
            self.payload.see(skipped).map_err(|misuse| (n_good, misuse))?;
            bytes = rest;
            self.skip -= skipped.len();
            if self.skip == 0 {
                self.is_in_head &= !std::mem::take(&mut self.ends_head);
            }
            let n_good = whole.len() - bytes.len();
            let room = self.header.get_mut(self.n_header..).unwrap_or_default();
            let n = room.len().min(bytes.len());
            room.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            bytes = bytes.get(n..).unwrap_or_default();
            self.n_header += n;
            if self.n_header == HEADER_BYTES {
                self.n_header = 0;
                self.frame().map_err(|misuse| (n_good, misuse))?;
            }
        }
        Ok(())
    }

    /// The header of a frame is whole.
    fn frame(&mut self) -> Result<(), Misuse> {
        let [a, b, c, kind, flags, id @ ..] = self.header;
        if !self.has_settings && (kind != SETTINGS || flags & ACK != 0) {
            return Err(Misuse::Protocol);
        }
        self.has_settings = true;
        self.skip = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
        // Within a head, nothing but its rest is allowed, whatever its size.
        if !self.is_in_head && !has_size(kind, flags, self.skip) {
            return Err(Misuse::FrameSize);
        }
        if kind != CONTINUATION {
            self.payload = self.payload_of(kind, flags, u32::from_be_bytes(id) & 0x7fff_ffff);
        }
        if matches!(kind, HEADERS | CONTINUATION) {
            let is_last = flags & END_HEADERS != 0;
            self.is_in_head = !is_last || self.skip > 0;
            self.ends_head = is_last && self.skip > 0;
        }
        match kind {
            DATA if self.skip > 0 => self.earn(1),
            HEADERS => self.earn(1),
            GOAWAY => {}
            DATA if flags & END_STREAM != 0 => {}
            _ => return self.pay(),
        }
        Ok(())
    }

    /// What is looked for in the payload of a frame.
    fn payload_of(&mut self, kind: u8, flags: u8, stream: u32) -> Payload {
        match kind {
            SETTINGS if flags & ACK == 0 => Payload::settings(),
            HEADERS if stream > self.last_stream => {
                self.last_stream = stream;
                Payload::Any
            }
            HEADERS => Payload::trailers(flags),
            _ => Payload::Any,
        }
    }

    fn earn(&mut self, points: u32) {
        self.points = self.points.saturating_add(points).min(MOST_POINTS);
    }

    fn pay(&mut self) -> Result<(), Misuse> {
        if self.points == 0 {
            let now = Instant::now();
            let ms = now.duration_since(self.refilled).min(Duration::from_secs(10)).as_millis();
            self.refilled = now;
            self.earn(u32::try_from(ms).unwrap_or(u32::MAX) * POINTS_PER_SECOND / 1_000);
        }
        self.points = self.points.checked_sub(1).ok_or(Misuse::Control)?;
        Ok(())
    }

    fn written(&mut self, n_bytes: usize) {
        self.n_unpaid += n_bytes;
        self.earn(u32::try_from(self.n_unpaid / BYTES_PER_POINT).unwrap_or(u32::MAX));
        self.n_unpaid %= BYTES_PER_POINT;
    }
}

/// Whether a frame of this kind may be of this size (RFC 9113, section 6).
const fn has_size(kind: u8, flags: u8, len: usize) -> bool {
    match kind {
        PRIORITY => len == 5,
        RST_STREAM | WINDOW_UPDATE => len == 4,
        SETTINGS if flags & ACK != 0 => len == 0,
        SETTINGS => len.is_multiple_of(6),
        PING => len == 8,
        GOAWAY => len >= 8,
        _ => true,
    }
}

/// A stream whose frames are looked at.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: Batched<S>,
    seen: Arc<Seen>,
    walker: Walker,
    head_timeout: Duration,
    /// Runs while a head is incomplete.
    head: Option<Pin<Box<Sleep>>>,
}

impl<S> Watched<S> {
    /// A head has to end within `head_timeout`.
    pub(super) fn new(stream: Batched<S>, seen: Arc<Seen>, head_timeout: Duration) -> Self {
        Self { stream, seen, walker: Walker::new(), head_timeout, head: None }
    }

    /// Accuses a client that does not end a head.
    fn poll_head(&mut self, cx: &mut Context<'_>) {
        if !self.walker.is_in_head {
            self.head = None;
            return;
        }
        let timeout = self.head_timeout;
        let head = self.head.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        if head.as_mut().poll(cx).is_ready() {
            self.seen.accuse(Misuse::Slow);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.seen.misuse().is_some() {
            // Nothing more is listened to; the connection sees why as soon as it has nothing to read.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        let new = buf.filled().get(before..).unwrap_or_default();
        if !new.is_empty() {
            this.seen.0.lock().n_reads += 1;
            if let Err((n_good, misuse)) = this.walker.read(new) {
                this.seen.accuse(misuse);
                buf.set_filled(before + n_good);
                if n_good == 0 {
                    // Nothing would be the end of the connection.
                    return Poll::Pending;
                }
            }
        }
        this.poll_head(cx);
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Taken + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = ready!(Pin::new(&mut this.stream).poll_write(cx, buf))?;
        this.walker.written(n);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let ended = ready!(Pin::new(&mut this.stream).poll_shutdown(cx));
        // What is not read would turn the end into a reset, which may overtake what was written.
        let (mut room, mut n_bytes) = ([0; 4 * 1_024], 0);
        while n_bytes < FORGOTTEN_BYTES {
            let mut read = ReadBuf::new(&mut room);
            match Pin::new(&mut this.stream).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => n_bytes += read.filled().len(),
                Poll::Ready(_) | Poll::Pending => break,
            }
        }
        Poll::Ready(ended)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, bufs))?;
        this.walker.written(n);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, len: usize) -> Vec<u8> {
        let size = u32::try_from(len).unwrap().to_be_bytes();
        let mut frame = vec![size[1], size[2], size[3], kind, flags, 0, 0, 0, 1];
        frame.resize(HEADER_BYTES + len, 0);
        frame
    }

    fn walker() -> Walker {
        let mut walker = Walker::new();
        walker.read(&[0; PREFACE_BYTES]).unwrap();
        walker.has_settings = true;
        walker
    }

    #[test]
    fn frames_are_found_however_they_arrive() {
        let bytes = [frame(HEADERS, 0, 5), frame(CONTINUATION, END_HEADERS, 7), frame(DATA, 0, 300)].concat();
        for step in [1, 2, 8, 9, 10, 500] {
            let mut walker = walker();
            let mut was_in_head = 0;
            for piece in bytes.chunks(step) {
                walker.read(piece).unwrap();
                was_in_head += usize::from(walker.is_in_head);
            }
            assert_eq!((walker.skip, walker.n_header, walker.is_in_head), (0, 0, false), "{step}");
            assert_eq!(walker.points, limits::CONTROL_FRAMES + 1, "{step}");
            assert_eq!(was_in_head > 0, step < 30, "{step}");
        }
    }

    #[test]
    fn settings_are_first() {
        for (first, expected) in [
            (frame(SETTINGS, 0, 0), Ok(())),
            (frame(SETTINGS, ACK, 0), Err((PREFACE_BYTES, Misuse::Protocol))),
            (frame(HEADERS, END_HEADERS, 1), Err((PREFACE_BYTES, Misuse::Protocol))),
        ] {
            let bytes = [vec![0; PREFACE_BYTES], first].concat();
            assert_eq!(Walker::new().read(&bytes), expected);
        }
    }

    #[test]
    fn what_is_wrong_is_kept_from_the_codec() {
        let good = frame(PING, 0, 8);
        let large_window = [&frame(SETTINGS, 0, 6)[..HEADER_BYTES], &[0, 4, 0x80, 0, 0, 0]].concat();
        for (bad, n_more, misuse) in [
            (frame(PING, 0, 7), 0, Misuse::FrameSize),
            (frame(SETTINGS, ACK, 6), 0, Misuse::FrameSize),
            (frame(SETTINGS, 0, 7), 0, Misuse::FrameSize),
            (frame(RST_STREAM, 0, 5), 0, Misuse::FrameSize),
            (frame(GOAWAY, 0, 7), 0, Misuse::FrameSize),
            (large_window, HEADER_BYTES, Misuse::FlowControl),
        ] {
            let expected = Err((good.len() + n_more, misuse));
            assert_eq!(walker().read(&[&good[..], &bad, &good].concat()), expected, "{bad:?}");
        }
        // The codec has a word for what stands within a head.
        assert_eq!(walker().read(&[frame(HEADERS, 0, 3), frame(PING, 0, 7)].concat()), Ok(()));
        // Fields of a request, and then behind it.
        let headers = |payload: u8| {
            let mut headers = frame(HEADERS, END_HEADERS, 1);
            headers[HEADER_BYTES] = payload;
            headers
        };
        let (head, trailers) = (headers(0x82), headers(0x8f));
        assert_eq!(walker().read(&[&head[..], &trailers].concat()), Ok(()));
        let expected = Err((2 * HEADER_BYTES + 1, Misuse::Protocol));
        assert_eq!(walker().read(&[&head[..], &head].concat()), expected);
        // In the rest of a head whose first frame is empty.
        let mut rest = head.clone();
        rest[3] = CONTINUATION;
        let split = [&head[..], &frame(HEADERS, 0, 0), &rest].concat();
        assert_eq!(walker().read(&split), Err((3 * HEADER_BYTES + 1, Misuse::Protocol)));
    }

    #[test]
    fn what_carries_nothing_is_paid_for() {
        let fresh = walker;
        for empty in [frame(PING, 0, 8), frame(DATA, 0, 0), frame(CONTINUATION, 0, 0), frame(77, 0, 3)] {
            let mut walker = fresh();
            let n = (0..10_000).take_while(|_| walker.read(&empty).is_ok()).count();
            // A point or two may have come meanwhile.
            assert!((1_000..1_100).contains(&n), "{n}");
            let mut walker = fresh();
            (walker.points, walker.refilled) = (0, walker.refilled - Duration::from_secs(1));
            let n = (0..10_000).take_while(|_| walker.read(&empty).is_ok()).count();
            assert!((100..200).contains(&n), "{n}");
        }
        // One PING for every request, or for every packet of a response, is what clients do.
        let mut walker = walker();
        for _ in 0..100_000 {
            walker.read(&[frame(HEADERS, END_HEADERS, 9), frame(PING, 0, 8)].concat()).unwrap();
            walker.written(1_200);
            walker.read(&frame(PING, 0, 8)).unwrap();
        }
    }
}
