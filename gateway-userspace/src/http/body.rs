//! The body of a response on its way to a client: it holds the connection it comes from, and gives it back at its end.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use crate::{
    access::Line,
    endpoint::Active,
    http::{header, load::UnderWay, still::Still, tunnel::Tunnel},
    metrics::tunnel::TunnelOutcome,
    net::sys,
    pool::{
        Lease,
        body::{BoxError, RequestBody},
        incoming::Incoming,
    },
};

/// A response body.
#[derive(Debug)]
pub struct ResponseBody {
    source: Source,
    /// The line of the access log that ends with this body.
    line: Option<Box<Line>>,
    /// Its request is under way as long as it is.
    under_way: Option<UnderWay>,
    /// Nothing was done with the request, and nothing will be done with further ones of its connection.
    ends_connection: bool,
}

#[derive(Debug)]
enum Source {
    /// Said by the gateway.
    Text(Option<Bytes>),
    /// Streamed from an endpoint.
    Upstream(Box<Streamed>),
}

/// What a body comes over. It stays in its place while the response goes from hand to hand.
#[derive(Debug)]
pub(super) struct Streamed {
    incoming: Incoming,
    lease: Lease,
    /// Counts the request as long as its response is under way.
    _active: Active,
    /// When the whole exchange must be over.
    deadline: Option<Pin<Box<Sleep>>>,
    /// How long the endpoint may say nothing, how often it has said something, and how long it has not.
    idle: Option<Duration>,
    n_frames: u64,
    silence: Option<Still<u64>>,
    /// The body is that of a tunnel, and has another direction.
    tunnel: Option<Box<Tunnel>>,
}

/// The response took longer than the route allows.
#[derive(Debug)]
pub struct TooLate;

impl std::fmt::Display for TooLate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the response took longer than the route allows")
    }
}

impl std::error::Error for TooLate {}

impl ResponseBody {
    /// A text, or nothing.
    pub fn text(text: Bytes) -> Self {
        Self::new(Source::Text(Some(text).filter(|text| !text.is_empty())))
    }

    /// A response that streams from an endpoint.
    pub(super) const fn upstream(streamed: Box<Streamed>) -> Self {
        Self::new(Source::Upstream(streamed))
    }

    const fn new(source: Source) -> Self {
        Self { source, line: None, under_way: None, ends_connection: false }
    }
}

impl ResponseBody {
    /// Whether this is one direction of a tunnel; the other one has to be driven too.
    pub fn is_tunnel(&self) -> bool {
        matches!(&self.source, Source::Upstream(streamed) if streamed.tunnel.is_some())
    }

    /// Drives the other direction of a tunnel; ready when the client has ended it.
    pub(super) fn poll_upload_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match &mut self.source {
            Source::Text(_) => Poll::Ready(Ok(())),
            Source::Upstream(streamed) => streamed.incoming.poll_upload_end(cx),
        }
    }

    /// Goes on with what does not wait for the client to take its response: the rest of its request, which it may send to
    /// the end before it reads, and the time that the exchange has. For whoever waits for the client instead of polling for
    /// the next frame. Returns how many bytes of the request went on so far, or nothing when it is over.
    ///
    /// # Errors
    /// As those of the frames.
    pub(super) fn poll_beside(&mut self, cx: &mut Context<'_>) -> Result<u64, BoxError> {
        match &mut self.source {
            Source::Upstream(streamed) if streamed.tunnel.is_none() => streamed.poll_beside(cx),
            Source::Upstream(_) | Source::Text(_) => Ok(0),
        }
    }

    /// The client has all that the head announced, which may be nothing: what is left of the body is no part of the response.
    pub(super) fn suffices(mut self) {
        if let Some(line) = &mut self.line {
            line.complete();
        }
    }

    /// See [`Tunnel::poll_over`]; `n_taken` changes when the client takes something.
    pub(super) fn poll_over(
        &mut self,
        is_draining: bool,
        mut n_taken: impl FnMut() -> Option<u64>,
        cx: &mut Context<'_>,
    ) -> Poll<TunnelOutcome> {
        let Source::Upstream(streamed) = &mut self.source else { return Poll::Ready(TunnelOutcome::Ended) };
        let Streamed { incoming, tunnel, .. } = &mut **streamed;
        match tunnel {
            Some(tunnel) => {
                let taken = || [n_taken(), incoming.socket().and_then(|socket| sys::queued(&socket))];
                tunnel.poll_over(is_draining, taken, cx)
            }
            None => Poll::Ready(TunnelOutcome::Ended),
        }
    }

    /// How a tunnel ends.
    pub(super) fn end(&mut self, outcome: TunnelOutcome) {
        if let Some(tunnel) = self.tunnel_mut() {
            tunnel.end(outcome);
        }
    }

    fn tunnel_mut(&mut self) -> Option<&mut Tunnel> {
        match &mut self.source {
            Source::Text(_) => None,
            Source::Upstream(streamed) => streamed.tunnel.as_deref_mut(),
        }
    }

    /// Nothing was done with the request, and its client has to repeat it on another connection.
    pub(super) const fn end_connection(&mut self) {
        self.ends_connection = true;
    }

    /// Whether no further request of the connection is served; see [`ResponseBody::end_connection`].
    pub(super) const fn ends_connection(&self) -> bool {
        self.ends_connection
    }

    /// Hands over what says that the request is under way.
    pub fn hold(&mut self, under_way: Option<UnderWay>) {
        self.under_way = under_way;
    }

    /// Hands over the line of the access log, to be ended with this body.
    pub fn log(&mut self, line: Option<Box<Line>>) {
        self.line = line;
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // A body of known length, or none at all, is not polled beyond its last byte.
        if self.line.is_some() && self.is_end_stream() {
            self.line.as_mut().into_iter().for_each(|line| line.complete());
        }
    }
}

impl Streamed {
    /// What comes over `lease`.
    pub(super) fn new(incoming: Incoming, lease: Lease, active: Active) -> Box<Self> {
        Box::new(Self {
            incoming,
            lease,
            _active: active,
            deadline: None,
            idle: None,
            n_frames: 0,
            silence: None,
            tunnel: None,
        })
    }

    /// What it comes over.
    pub(super) const fn lease(&self) -> &Lease {
        &self.lease
    }

    /// When the whole exchange must be over.
    pub(super) fn ends_by(&mut self, deadline: Option<Pin<Box<Sleep>>>) {
        self.deadline = deadline;
    }

    /// How long the endpoint may say nothing from now on, while somebody listens.
    pub(super) const fn may_be_silent(&mut self, idle: Option<Duration>) {
        self.idle = idle;
    }

    /// Ready when the endpoint has said nothing for too long.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (Some(idle), n_frames) = (self.idle, self.n_frames) else { return Poll::Pending };
        self.silence.get_or_insert_with(|| Still::new(idle, n_frames)).poll(|| n_frames, cx)
    }

    /// No other request goes over the connection behind it, if it is one for each request.
    pub(super) const fn retire(&mut self) {
        self.incoming.retire();
    }

    /// HTTP is over: what follows are the bytes of both sides, those of the client as they come from `client`.
    pub(super) fn open(&mut self, client: RequestBody, tunnel: Box<Tunnel>) {
        self.incoming.open(client);
        self.tunnel = Some(tunnel);
    }

    /// Whether nothing more will come.
    pub(super) fn is_end(&self) -> bool {
        self.incoming.is_end_stream()
    }

    /// Gives the connection back as soon as nothing more will come.
    fn finish(&mut self) {
        self.lease.finish(&mut self.incoming);
    }

    /// Whether the whole exchange should be over.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready())
    }

    fn poll_beside(&mut self, cx: &mut Context<'_>) -> Result<u64, BoxError> {
        if self.is_late(cx) {
            return Err(Box::new(TooLate));
        }
        self.incoming.poll_upload(cx)
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.is_late(cx) {
            return Poll::Ready(Some(Err(Box::new(TooLate))));
        }
        let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            // Tunnels have two directions, and a bound for both.
            Poll::Pending if self.tunnel.is_some() => return Poll::Pending,
            Poll::Pending => {
                ready!(self.poll_silence(cx));
                return Poll::Ready(Some(Err(Box::new(TooLate))));
            }
        };
        self.n_frames += 1;
        if let Some(tunnel) = &self.tunnel {
            if let Some(Ok(frame)) = &frame {
                tunnel.received(frame);
            }
            return Poll::Ready(frame);
        }
        if frame.is_none() || self.incoming.is_end_stream() {
            self.finish();
        }
        Poll::Ready(frame)
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        // A body of known length, or none at all, is not polled beyond its last byte.
        if self.tunnel.is_none() && self.incoming.is_end_stream() {
            self.finish();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = match &mut this.source {
            Source::Text(text) => text.take().map(|text| Ok(Frame::data(text))),
            Source::Upstream(streamed) => ready!(streamed.poll_frame(cx)),
        };
        // Fields of one connection are no other's, behind a body as in front of it (RFC 9110, section 6.5.1).
        let mut frame = frame;
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            header::strip_hop_by_hop(trailers);
        }
        if let Some(line) = &mut this.line {
            match &frame {
                Some(Ok(frame)) => line.sent(frame.data_ref().map_or(0, Bytes::len)),
                Some(Err(_)) => {}
                None => line.complete(),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Text(text) => text.is_none(),
            Source::Upstream(streamed) => streamed.tunnel.is_none() && streamed.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Text(text) => {
                SizeHint::with_exact(u64::try_from(text.as_ref().map_or(0, Bytes::len)).unwrap_or(u64::MAX))
            }
            Source::Upstream(streamed) if streamed.tunnel.is_some() => SizeHint::default(),
            Source::Upstream(streamed) => streamed.incoming.size_hint(),
        }
    }
}
