//! One HTTP/1.1 connection to an endpoint, without a task of its own: whoever leases it writes the request and reads the
//! response in place, so that an exchange wakes nobody else. An idle one is not watched; that its peer closed it is seen
//! when it is taken or swept.
//!
//! The body of a request may still be under way when the response begins; whoever reads the response drives both.

use std::{
    future::poll_fn,
    io,
    os::fd::RawFd,
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Response, StatusCode, header, request::Parts, response};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWrite as _, ReadBuf};

use crate::{
    h1::{
        Framing, answer,
        chunk::{Chunks, Piece},
        out::{self, Out},
    },
    pool::{
        SendError,
        body::{BoxError, RequestBody, Stalled},
        handshake::Counted,
        interim::Interim,
        link::Link,
    },
    timer::{Timer, Wait},
};

/// Bytes that are read at once, at first and at most: a body that fills what is there gets more.
const READ_BYTES: usize = 8 * 1_024;
const MOST_READ_BYTES: usize = 64 * 1_024;

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// Before the stream, so that it is off the list of descriptors when its descriptor is closed.
    _counted: Counted,
    stream: Link,
    /// Read and not taken yet.
    bytes: BytesMut,
    out: Out,
    /// For responses, one after the other.
    timer: Timer,
}

impl Connection {
    pub(super) fn new(counted: Counted, stream: Link) -> Self {
        Self {
            _counted: counted,
            stream,
            bytes: BytesMut::new(),
            out: Out::default(),
            timer: Timer::default(),
        }
    }

    /// Whether the endpoint has neither closed it nor said anything unasked. No system call as long as nothing happened.
    pub(super) fn is_idle(&mut self) -> bool {
        let mut byte = [0];
        let mut cx = Context::from_waker(Waker::noop());
        self.bytes.is_empty()
            && Pin::new(&mut self.stream).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
    }

    /// Like [`Connection::is_idle`], and gives back the buffers: it has been idle for a while.
    pub(super) fn rest(&mut self) -> bool {
        let is_idle = self.is_idle();
        if is_idle {
            self.bytes = BytesMut::new();
            self.timer = Timer::default();
        }
        is_idle
    }

    /// Reads more; zero at the end.
    fn poll_read(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<io::Result<usize>> {
        self.bytes.reserve(len);
        pin!(self.stream.read_buf(&mut self.bytes)).poll(cx)
    }
}

/// Sends a request, and waits for the head of the response, for no longer than `bound`. While the body is sent, the bound
/// begins anew with each piece of it, and as long as the client has to send the next one: neither is the endpoint's fault.
pub(super) async fn send(
    connection: Box<Connection>,
    parts: &Parts,
    body: &mut RequestBody,
    interim: &dyn Interim,
    bound: Option<Duration>,
) -> Result<Response<Receiving>, SendError> {
    let mut receiving = Receiving {
        connection: Some(connection),
        upload: Upload::new(&parts.headers, body.take()),
        pieces: 0,
        n_uploaded: 0,
        is_broken: false,
        is_reusable: false,
        rest: Rest::End,
        read_bytes: READ_BYTES,
        tunnel: None,
        awaits_continue: parts.headers.contains_key(header::EXPECT),
    };
    if let Some(connection) = &mut receiving.connection {
        let target = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        connection.out.request(&parts.method, target);
        connection.out.fields(&parts.headers);
        connection.out.text(b"\r\n");
    }
    let (mut wait, mut pieces) = (Wait::default(), 0);
    let head = poll_fn(|cx| {
        let head = receiving.poll_head(cx, &parts.method, interim);
        if head.is_pending()
            && let Some(bound) = bound
        {
            if receiving.pieces != pieces || receiving.waits_for_client() {
                (wait, pieces) = (Wait::default(), receiving.pieces);
            }
            let Some(connection) = &mut receiving.connection else { return head };
            ready!(connection.timer.poll(&mut wait, bound, cx));
            return Poll::Ready(Err(SendError::TimedOut));
        }
        head
    })
    .await?;
    Ok(Response::from_parts(head, receiving))
}

/// The body of a request that is being written.
#[derive(Debug)]
struct Upload {
    body: RequestBody,
    form: out::Body,
    /// Bytes that were read so far.
    n_bytes: u64,
}

impl Upload {
    fn new(fields: &HeaderMap, body: RequestBody) -> Option<Self> {
        if body.is_empty() {
            return None;
        }
        let length = fields.get(header::CONTENT_LENGTH).and_then(|value| crate::h1::number(value.as_bytes()));
        Some(Self { body, form: length.map_or(out::Body::Chunked, out::Body::Length), n_bytes: 0 })
    }

    /// The next piece; true at the end.
    fn poll(&mut self, out: &mut Out, cx: &mut Context<'_>) -> Poll<Result<bool, SendError>> {
        Poll::Ready(match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            None if out.end(self.form, None) => Ok(true),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.n_bytes += u64::try_from(data.len()).unwrap_or(0);
                    out.data(&mut self.form, data).map(|()| false).map_err(|_| SendError::Body)
                }
                Err(frame) if out.end(self.form, frame.trailers_ref()) => Ok(true),
                Err(_) => Err(SendError::Body),
            },
            Some(Err(cause)) if cause.is::<Stalled>() => Err(SendError::Stalled),
            None | Some(Err(_)) => Err(SendError::Body),
        })
    }
}

/// The body of a response, and whatever of the request is still to be written.
#[derive(Debug)]
pub struct Receiving {
    /// None when it was given back.
    connection: Option<Box<Connection>>,
    upload: Option<Upload>,
    /// Pieces of the upload that were taken so far.
    pieces: u64,
    /// Bytes of the upload that were read so far.
    n_uploaded: u64,
    /// The endpoint takes no more of the request; its answer may still come.
    is_broken: bool,
    is_reusable: bool,
    rest: Rest,
    read_bytes: usize,
    /// None as long as HTTP is spoken.
    tunnel: Option<Tunnel>,
    /// The client was promised a word of the endpoint before it sends its body, and there was none.
    awaits_continue: bool,
}

/// The way to the endpoint of a tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Tunnel {
    Open,
    /// The client has ended it, and the endpoint has been told.
    Ended,
}

/// What is still to come.
#[derive(Debug)]
enum Rest {
    Length(u64),
    Chunks(Chunks),
    UntilClose,
    End,
}

/// The endpoint closed the connection in the middle of its response, or spoke nonsense there.
#[derive(Debug)]
struct BrokenOff;

impl std::fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the response broke off")
    }
}

impl std::error::Error for BrokenOff {}

impl Receiving {
    /// The connection, if it can serve the next request.
    pub(super) fn take(&mut self) -> Option<Box<Connection>> {
        let is_over = matches!(self.rest, Rest::End) && self.upload.is_none() && !self.is_broken;
        self.connection.take_if(|connection| {
            is_over && self.is_reusable && connection.bytes.is_empty() && connection.out.is_empty()
        })
    }

    /// No other request goes over this connection.
    pub(super) const fn retire(&mut self) {
        self.is_reusable = false;
    }

    /// HTTP is over: what follows are the bytes of both sides.
    pub(super) fn open(&mut self, client: RequestBody) {
        self.retire();
        self.upload = Some(Upload { body: client, form: out::Body::UntilClose, n_bytes: 0 });
        self.rest = Rest::UntilClose;
        self.tunnel = Some(Tunnel::Open);
    }

    /// The socket of the connection.
    pub(super) fn socket(&self) -> Option<RawFd> {
        self.connection.as_ref().map(|connection| connection.stream.socket())
    }

    /// A tunnel without a request.
    pub(super) fn raw(connection: Box<Connection>) -> Self {
        Self {
            connection: Some(connection),
            upload: None,
            pieces: 0,
            n_uploaded: 0,
            is_broken: false,
            is_reusable: false,
            rest: Rest::UntilClose,
            read_bytes: READ_BYTES,
            tunnel: None,
            awaits_continue: false,
        }
    }

    /// Drives what is written of a tunnel; ready when the client has ended it and the endpoint has been told.
    pub(super) fn poll_upload_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.poll_upload(cx).is_err() {
            return Poll::Ready(Err(BoxError::from("the client broke off")));
        }
        let Some(connection) = &mut self.connection else { return Poll::Ready(Ok(())) };
        let is_written = self.is_broken || (self.upload.is_none() && connection.out.is_empty());
        if !is_written {
            return Poll::Pending;
        }
        if self.tunnel == Some(Tunnel::Open) && !self.is_broken {
            // An endpoint that is gone says so where it is read from.
            let _told = ready!(Pin::new(&mut connection.stream).poll_shutdown(cx));
            self.tunnel = Some(Tunnel::Ended);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        method: &Method,
        interim: &dyn Interim,
    ) -> Poll<Result<response::Parts, SendError>> {
        self.poll_upload(cx)?;
        loop {
            let Some(connection) = &mut self.connection else { return Poll::Ready(Err(SendError::Closed)) };
            if let Some(len) = answer::find(&connection.bytes).map_err(|_| SendError::Protocol)? {
                let head = connection.bytes.split_to(len).freeze();
                let answer = answer::parse(&head, method).map_err(|_| SendError::Protocol)?;
                if answer.parts.status.is_informational()
                    && answer.parts.status != StatusCode::SWITCHING_PROTOCOLS
                {
                    self.awaits_continue &= answer.parts.status != StatusCode::CONTINUE;
                    interim.pass(answer.parts);
                    continue;
                }
                self.is_reusable = answer.is_reusable;
                self.rest = match answer.framing {
                    Framing::None => Rest::End,
                    Framing::Length(length) => Rest::Length(length),
                    Framing::Chunked => Rest::Chunks(Chunks::default()),
                    Framing::UntilClose => Rest::UntilClose,
                };
                return Poll::Ready(Ok(answer.parts));
            }
            match ready!(connection.poll_read(cx, READ_BYTES)) {
                Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
                    return Poll::Ready(Err(SendError::Unaccepted));
                }
                Ok(0) | Err(_) => return Poll::Ready(Err(SendError::Closed)),
                Ok(_) => {}
            }
        }
    }

    /// Whether the endpoint has everything that the client has sent so far, and the client is to send more. One that was
    /// promised a word of the endpoint before may wait for that (RFC 9110, section 10.1.1).
    fn waits_for_client(&self) -> bool {
        let is_promised = self.awaits_continue && self.pieces == 0;
        self.upload.is_some()
            && !is_promised
            && self.connection.as_ref().is_some_and(|connection| connection.out.is_empty())
    }

    /// Writes what can be written now. An endpoint that takes no more may have answered already.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), SendError> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let out = &mut connection.out;
        while !self.is_broken && (!out.is_empty() || self.upload.is_some()) {
            let mut is_waiting = false;
            if let Some(upload) = &mut self.upload
                && out.has_room()
            {
                match upload.poll(out, cx) {
                    Poll::Ready(done) => {
                        self.pieces = self.pieces.wrapping_add(1);
                        self.n_uploaded = upload.n_bytes;
                        if done? {
                            self.upload = None;
                        }
                    }
                    Poll::Pending => is_waiting = true,
                }
            }
            match out.poll_write(&mut connection.stream, cx) {
                Poll::Ready(Ok(())) if is_waiting => break,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    self.is_broken = true;
                    self.upload = None;
                }
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// See [`Incoming::poll_upload`](super::incoming::Incoming::poll_upload).
    pub(super) fn drive_upload(&mut self, cx: &mut Context<'_>) -> Result<u64, BoxError> {
        match self.poll_upload(cx) {
            Ok(()) => Ok(self.n_uploaded),
            Err(SendError::Stalled) => Err(Box::new(Stalled)),
            Err(_) => Err(BoxError::from(BrokenOff)),
        }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let broken = || Poll::Ready(Some(Err(BoxError::from(BrokenOff))));
        if let Err(cause) = self.drive_upload(cx) {
            return Poll::Ready(Some(Err(cause)));
        }
        loop {
            let Some(connection) = &mut self.connection else { return Poll::Ready(None) };
            let bytes = &mut connection.bytes;
            match &mut self.rest {
                Rest::End => return Poll::Ready(None),
                Rest::Length(left) if !bytes.is_empty() => {
                    let len = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= u64::try_from(len).unwrap_or(*left);
                    if *left == 0 {
                        self.rest = Rest::End;
                    }
                    return Poll::Ready(Some(Ok(Frame::data(bytes.split_to(len).freeze()))));
                }
                Rest::UntilClose if !bytes.is_empty() => {
                    return Poll::Ready(Some(Ok(Frame::data(bytes.split().freeze()))));
                }
                Rest::Chunks(chunks) => match chunks.next(bytes) {
                    Ok(Piece::Data(data)) => {
                        if chunks.is_over(bytes) {
                            self.rest = Rest::End;
                        }
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    Ok(Piece::End(trailers)) => {
                        self.rest = Rest::End;
                        return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                    }
                    Ok(Piece::Nothing) => {}
                    Err(_) => return broken(),
                },
                Rest::Length(_) | Rest::UntilClose => {}
            }
            let n = match ready!(connection.poll_read(cx, self.read_bytes)) {
                Ok(0) if matches!(self.rest, Rest::UntilClose) => {
                    self.rest = Rest::End;
                    0
                }
                Ok(0) | Err(_) => return broken(),
                Ok(n) => n,
            };
            if n >= self.read_bytes {
                self.read_bytes = (self.read_bytes * 2).min(MOST_READ_BYTES);
            }
        }
    }
}

impl Body for Receiving {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.get_mut().poll_piece(cx)
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.rest, Rest::End)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.rest {
            Rest::Length(left) => SizeHint::with_exact(*left),
            Rest::End => SizeHint::with_exact(0),
            Rest::Chunks(_) | Rest::UntilClose => SizeHint::default(),
        }
    }
}
