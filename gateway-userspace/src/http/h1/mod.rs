//! One downstream connection of HTTP/1: request after request, each served by [`exchange`](crate::http::exchange), with
//! one read and one write for most of them.
//!
//! States: waiting for a head (idle, or within one), a request under way, its response on the way out, and then either the
//! next head or the end. A connection goes on only if both sides say so and the request was read to its last byte; where
//! that is in doubt it is closed, after what was sent has had the time to arrive.

mod reply;
mod tunnel;
mod wire;

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{Method, Response, Version};
use http_body::Body as _;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    drain::Drain,
    h1::{
        Framing,
        head::{self, Head},
        out::Body,
        spare,
    },
    http::{
        Downstream, Scheme, Worker,
        body::ResponseBody,
        exchange,
        forward::Message,
        h1::wire::{NoHead, Uploaded, Wire},
        tunnel::Named,
        uptake::{Terms, Uptake},
    },
    limits,
    metrics::{refusal::Refusal, timeout::ClientTimeout},
    pool::body::{RequestBody, Stalled},
    taken::Taken,
    timer::{Timer, Wait},
};

/// Serves a connection to its end. `ahead` was read before.
pub(super) fn serve<S>(
    worker: Arc<Worker>,
    downstream: Arc<Downstream>,
    stream: S,
    ahead: BytesMut,
    drain: Drain,
) -> impl Future<Output = ()> + Send
where
    S: AsyncRead + AsyncWrite + Taken + Send + Unpin + 'static,
{
    // A future keeps the room of what it is given, also after it handed it on, and a session of TLS is large.
    let wire = Arc::new(Mutex::new(Wire::new(stream, ahead)));
    let (timer, is_first) = (Timer::default(), true);
    run(Connection { wire, worker, downstream, timer, drain: drain.clone(), is_first }, drain)
}

async fn run<S>(connection: Connection<S>, mut drain: Drain)
where
    S: AsyncRead + AsyncWrite + Taken + Send + Unpin + 'static,
{
    let mut connection = connection;
    let mut begun = pin!(drain.begun());
    let mut is_asked = false;
    // Each request stands where the one before did, from its head to its end.
    let mut message = Message::none();
    loop {
        let mut patience = Patience::default();
        let next = poll_fn(|cx| {
            // To be woken; once is enough, because the task stays the same. A request that is there already is answered all
            // the same: its client was let in.
            if !is_asked {
                is_asked = begun.as_mut().poll(cx).is_pending();
            }
            connection.poll_next(&mut message, &mut patience, cx)
        });
        let ended = match next.await {
            Ok(asked) => connection.exchange(&mut message, &asked).await,
            Err(end) => Err(end),
        };
        match ended {
            Ok(()) => message = Message::none(),
            Err(End::Close) => return connection.close(false).await,
            Err(End::Linger) => return connection.linger().await,
            Err(End::BrokenOff) => return connection.break_off().await,
            Err(End::Cut) => return,
        }
    }
}

/// How long a request has been waited for.
#[derive(Debug, Default)]
struct Patience {
    /// Since the connection was free, or since the first byte came.
    wait: Wait,
    /// A byte has come. Once: one that turns out to be of an empty line in front of the request begins nothing anew.
    has_begun: bool,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    /// Everything was said.
    Close,
    /// The client may still be sending what nobody wants.
    Linger,
    /// The client must see that something is missing, which nothing but the end of its connection can tell.
    BrokenOff,
    /// The client left, or what it got says that something is missing.
    Cut,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Cut
    }
}

struct Connection<S> {
    wire: Arc<Mutex<Wire<S>>>,
    worker: Arc<Worker>,
    downstream: Arc<Downstream>,
    timer: Timer,
    drain: Drain,
    is_first: bool,
}

/// What is known about a request while its response is made.
#[derive(Clone, Debug)]
struct Asked {
    method: Method,
    version: Version,
    framing: Framing,
    keeps_alive: bool,
    awaits_continue: bool,
    wants_websocket: bool,
}

impl From<&Head> for Asked {
    fn from(head: &Head) -> Self {
        Self {
            method: head.parts.method.clone(),
            version: head.parts.version,
            framing: head.framing,
            keeps_alive: head.keeps_alive,
            awaits_continue: head.awaits_continue,
            wants_websocket: head.wants_websocket,
        }
    }
}

impl<S> Connection<S>
where
    S: AsyncRead + AsyncWrite + Taken + Send + Unpin + 'static,
{
    /// The next request, read and understood; its head becomes that of `message`.
    fn poll_next(
        &mut self,
        message: &mut Message,
        patience: &mut Patience,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Asked, End>> {
        let mut wire = self.wire.lock();
        let refusal = match wire.poll_head(cx) {
            Poll::Ready(Ok(bytes)) => match head::parse(&bytes) {
                Ok(head) => {
                    let asked = Asked::from(&head);
                    message.head = head.parts;
                    return Poll::Ready(Ok(asked));
                }
                Err(refusal) => refusal,
            },
            Poll::Ready(Err(NoHead::Refused(refusal))) => refusal,
            Poll::Ready(Err(NoHead::Closed)) => return Poll::Ready(Err(End::Cut)),
            Poll::Pending => {
                let is_in_head = wire.is_in_head();
                if !is_in_head && self.drain.has_begun() {
                    return Poll::Ready(Err(End::Close));
                }
                if is_in_head && !patience.has_begun {
                    *patience = Patience { wait: Wait::default(), has_begun: true };
                }
                // The first head has to come at once, the others after a while; each has to end in time.
                let is_short = is_in_head || self.is_first;
                let timeouts = &self.worker.timeouts;
                let bound = if is_short { timeouts.head } else { timeouts.idle };
                ready!(self.timer.poll(&mut patience.wait, bound, cx));
                let missed = if is_short { ClientTimeout::Head } else { ClientTimeout::Idle };
                self.worker.metrics.families.client_timeout(missed);
                if !is_in_head {
                    return Poll::Ready(Err(End::Close));
                }
                Refusal::Slow
            }
        };
        let answer = reply::refuse(&mut wire.out, refusal);
        exchange::refuse(&self.worker, &self.downstream, (None, refusal), Some(answer));
        Poll::Ready(Err(End::Linger))
    }

    /// Serves one request. No error means that the connection goes on.
    async fn exchange(&mut self, message: &mut Message, asked: &Asked) -> Result<(), End> {
        self.is_first = false;
        if asked.wants_websocket {
            message.head.extensions.insert(Named::from_static("websocket"));
        }
        let may_tunnel = asked.wants_websocket || asked.method == Method::CONNECT;
        let is_empty = {
            let mut wire = self.wire.lock();
            wire.begin(asked.framing, asked.awaits_continue);
            wire.hears_interim = asked.version != Version::HTTP_10;
            if may_tunnel {
                wire.hold();
            }
            wire.is_read() && !may_tunnel
        };
        if !is_empty {
            let terms = self.worker.terms(&message.head);
            message.body = RequestBody::new(Uploaded::new(&self.wire)).within(terms);
        }
        let response = match self.response(message).await {
            Ok(response) => response,
            Err(end) => {
                self.count_refusal();
                return Err(end);
            }
        };
        // What nobody has taken of the request, nobody will.
        message.body = RequestBody::empty();
        if response.body().is_tunnel() {
            let (parts, body) = response.into_parts();
            reply::tunnel(&mut self.wire.lock().out, &parts);
            return Err(self.tunnel(body).await);
        }
        let replied = self.reply(asked, response).await;
        let is_read = match replied {
            // Its client was told that the connection goes on.
            Ok(true) => self.read_rest().await,
            Ok(false) | Err(_) => self.wire.lock().skip(),
        };
        // Also where the response broke off for it.
        self.count_refusal();
        match (replied?, is_read) {
            (true, true) => Ok(()),
            (false, true) => Err(End::Close),
            (_, false) => Err(End::Linger),
        }
    }

    /// Reads what is still on its way of a request that was answered before it was read, for a while; true when that was all
    /// of it.
    async fn read_rest(&mut self) -> bool {
        let (mut wait, mut n_left) = (Wait::default(), limits::LINGER_BYTES);
        poll_fn(|cx| match self.wire.lock().poll_skip(&mut n_left, cx) {
            Poll::Ready(is_read) => Poll::Ready(is_read),
            Poll::Pending => self.timer.poll(&mut wait, limits::LINGER, cx).map(|()| false),
        })
        .await
    }

    /// Counts what was wrong with the body, if anything was.
    fn count_refusal(&self) {
        if let Some(refusal) = self.wire.lock().refusal() {
            self.worker.metrics.families.refuse(refusal);
        }
    }

    /// Waits for the response, and for the client to leave.
    async fn response(&mut self, message: &mut Message) -> Result<Response<ResponseBody>, End> {
        let mut exchange = pin!(exchange::run(&self.worker, &self.downstream, message, self.wire.as_ref()));
        let mut wait = Wait::default();
        poll_fn(|cx| match exchange.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Ok(response)),
            Poll::Pending => {
                let mut wire = self.wire.lock();
                // Interim responses; a client that takes none of them waits for its response all the same.
                if !wire.out.is_empty() && matches!(wire.poll_write(cx), Poll::Ready(Err(_))) {
                    return Poll::Ready(Err(End::Cut));
                }
                // To wait for a client, the runtime has to watch its connection.
                if !wire.has_waited() {
                    ready!(self.timer.poll(&mut wait, limits::DEPARTURE, cx));
                }
                wire.poll_gone(cx).map(|()| Err(End::Cut))
            }
        })
        .await
    }

    /// Writes a response; whether the connection goes on.
    async fn reply(&mut self, asked: &Asked, response: Response<ResponseBody>) -> Result<bool, End> {
        let (mut parts, body) = response.into_parts();
        let mut reply = {
            let mut wire = self.wire.lock();
            // A body that is being read somewhere may still come to its end.
            let is_wanted = Arc::strong_count(&self.wire) > 1;
            // What is behind a request to connect may be meant for somebody else.
            let keeps_alive = asked.keeps_alive
                && asked.method != Method::CONNECT
                // Whoever was not told to send its body may do so or not, and nobody can tell which.
                && !wire.awaits_continue()
                && !self.drain.has_begun()
                && !body.ends_connection()
                && !self.worker.load.is_memory_scarce()
                && (is_wanted || wire.skip());
            let form = reply::head(&mut wire.out, asked, &mut parts, &body.size_hint(), keeps_alive);
            spare::keep_fields(parts.headers);
            let mut reply = Reply {
                body: Some(body),
                form,
                is_whole: false,
                keeps_alive: keeps_alive && form != Body::UntilClose,
                n_uploaded: 0,
                wait: Wait::default(),
            };
            if form == Body::None {
                // The connection to the endpoint is free before the head is written.
                reply.finish();
            }
            reply
        };
        let mut uptake = Uptake::default();
        poll_fn(|cx| self.poll_reply(&mut reply, &mut uptake, cx)).await?;
        Ok(reply.keeps_alive)
    }

    fn poll_reply(
        &mut self,
        reply: &mut Reply,
        uptake: &mut Uptake,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), End>> {
        loop {
            let has_room = self.wire.lock().out.has_room();
            // Not with the lock: whoever gets a response may still be reading the request.
            let piece = reply.poll_piece(has_room, cx);
            let is_waiting = has_room && piece.is_pending();
            if let Poll::Ready(piece) = piece {
                if let Some(Err(cause)) = &piece
                    && cause.is::<Stalled>()
                {
                    self.worker.metrics.families.client_timeout(ClientTimeout::Body);
                }
                reply.push(&mut self.wire.lock(), piece)?;
            }
            let mut wire = self.wire.lock();
            match wire.poll_write(cx) {
                Poll::Ready(Ok(())) => *uptake = Uptake::default(),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(End::Cut)),
                Poll::Pending => {
                    // A client that takes nothing is left. One that is still sending its request may read when that is over:
                    // what it sends is as good as what it takes.
                    let terms = Terms::from(&self.worker.timeouts);
                    let n_sent = (reply.n_uploaded > 0).then_some(reply.n_uploaded);
                    let n_moved =
                        || wire.n_taken().map_or(n_sent, |n| Some(n.saturating_add(reply.n_uploaded)));
                    ready!(uptake.poll(&mut self.timer, terms, n_moved, cx));
                    self.worker.metrics.families.client_timeout(ClientTimeout::Response);
                    if reply.form == Body::UntilClose {
                        wire.break_off();
                    }
                    return Poll::Ready(Err(End::Cut));
                }
            }
            if reply.body.is_none() {
                return Poll::Ready(Ok(()));
            }
            if is_waiting && reply.is_whole {
                ready!(self.timer.poll(&mut reply.wait, limits::STREAM_END, cx));
                reply.finish();
                return Poll::Ready(Ok(()));
            }
            if is_waiting {
                // A client that leaves is noticed only where its connection is watched.
                if !wire.has_waited() {
                    ready!(self.timer.poll(&mut reply.wait, limits::DEPARTURE, cx));
                }
                return wire.poll_gone(cx).map(|()| Err(End::Cut));
            }
        }
    }

    /// Writes what waits, and says that it was all. Where nothing more is read and the bytes are not encrypted, closing the
    /// socket says so.
    async fn close(&mut self, is_read_on: bool) {
        let is_told = is_read_on || self.downstream.scheme == Scheme::Https;
        let mut wait = Wait::default();
        poll_fn(|cx| {
            let mut wire = self.wire.lock();
            let closed = match wire.poll_write(cx) {
                Poll::Ready(Ok(())) if is_told => wire.poll_shutdown(cx),
                closed @ (Poll::Ready(_) | Poll::Pending) => closed,
            };
            if closed.is_ready() { Poll::Ready(()) } else { self.timer.poll(&mut wait, limits::LINGER, cx) }
        })
        .await;
    }

    /// Closes, and reads on for a while what the client is still sending.
    async fn linger(&mut self) {
        self.close(true).await;
        let (mut wait, mut n_bytes) = (Wait::default(), 0);
        poll_fn(|cx| {
            loop {
                match self.wire.lock().poll_forget(cx) {
                    Poll::Ready(Ok(n @ 1..)) if n_bytes < limits::LINGER_BYTES => n_bytes += n,
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return self.timer.poll(&mut wait, limits::LINGER, cx),
                }
            }
        })
        .await;
    }
}

/// A response on its way out.
struct Reply {
    /// None at its end.
    body: Option<ResponseBody>,
    form: Body,
    /// The client has all that the head announced; the endpoint has not said that it was all.
    is_whole: bool,
    keeps_alive: bool,
    /// See [`ResponseBody::poll_beside`].
    n_uploaded: u64,
    /// How long its next piece has been waited for, before its client is watched.
    wait: Wait,
}

type Piece = Option<Result<http_body::Frame<Bytes>, crate::pool::body::BoxError>>;

impl Reply {
    /// The client has all of it.
    fn finish(&mut self) {
        if let Some(body) = self.body.take() {
            body.suffices();
        }
    }

    /// The next piece of the body, where there is room for one; else, and while there is none, what of the exchange does not
    /// wait for room.
    fn poll_piece(&mut self, has_room: bool, cx: &mut Context<'_>) -> Poll<Piece> {
        let Some(body) = &mut self.body else { return Poll::Pending };
        if has_room && let Poll::Ready(piece) = Pin::new(&mut *body).poll_frame(cx) {
            return Poll::Ready(piece);
        }
        match body.poll_beside(cx) {
            Err(cause) => Poll::Ready(Some(Err(cause))),
            Ok(n_uploaded) => {
                self.n_uploaded = self.n_uploaded.max(n_uploaded);
                Poll::Pending
            }
        }
    }

    /// The next piece of the body.
    fn push<S>(&mut self, wire: &mut Wire<S>, piece: Piece) -> Result<(), End> {
        let is_end = self.body.as_ref().is_none_or(ResponseBody::is_end_stream);
        if self.is_whole {
            let is_empty = |piece: &Piece| matches!(piece, Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty));
            if is_end || !is_empty(&piece) {
                self.finish();
            }
            return Ok(());
        }
        let trailers = match piece {
            None => None,
            Some(Err(cause)) => {
                tracing::debug!(%cause, "a response broke off");
                return Err(if self.form == Body::UntilClose { End::BrokenOff } else { End::Cut });
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    wire.out.data(&mut self.form, data).map_err(|_| End::Cut)?;
                    if !is_end {
                        if self.form == Body::Length(0) {
                            (self.is_whole, self.wait) = (true, Wait::default());
                        }
                        return Ok(());
                    }
                    None
                }
                Err(frame) => frame.into_trailers().ok(),
            },
        };
        self.body = None;
        // A response that is shorter than it said must not look whole.
        if wire.out.end(self.form, trailers.as_ref()) { Ok(()) } else { Err(End::Cut) }
    }
}
