//! One downstream connection of HTTP/2, on the codec of the crate `h2`: it accepts streams, each a task on the same worker,
//! and ends when it is idle, when the drain begins, when its client is silent, and when the client abuses it.
//!
//! What a client can make us hold has a bound for each stream and one for the connection: bytes that endpoints have not
//! taken, bytes that the client has not taken, heads. What it can make us do has one too: see [`frames`] for frames that
//! carry nothing, [`Activity`] for requests that are taken back, the codec for streams that are faulty.

mod batch;
mod frames;
mod gather;
mod payload;
mod presence;
mod stream;

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use h2::{Ping, PingPong, Reason, server::Connection};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep},
};

use crate::{
    config::ClientTimeouts,
    drain::Drain,
    http::{
        Downstream, Worker,
        h2::{
            batch::Batched,
            frames::{Seen, Watched},
            gather::Gather,
            presence::{Presence, Verdict},
        },
        stream::Guarded,
    },
    limits,
    metrics::{misuse::Misuse, names::Limit, timeout::ClientTimeout},
    net::clients::Streams,
    taken::Taken,
};

/// How often a connection is looked at, at least, and how often it is until it is idle: one without requests ends then. For
/// one with requests see [`presence`].
const LOOK: Duration = Duration::from_secs(25);
const LOOKS: u32 = 3;

/// Time for a client without requests to close its connection after it was told that it ends.
const GOODBYE: Duration = Duration::from_secs(5);

/// Streams that a client may reset before we look at them.
const UNSEEN_RESETS: usize = 20;

/// Serves a connection to its end.
pub(super) fn serve<S>(
    worker: Arc<Worker>,
    downstream: Arc<Downstream>,
    stream: Guarded<S>,
    drain: Drain,
) -> impl Future<Output = ()> + Send
where
    S: AsyncRead + AsyncWrite + Taken + Send + Unpin + 'static,
{
    let gather = Arc::new(Gather::default());
    // A future keeps the room of what it is given, also after it handed it on, and a session of TLS is large.
    let stream = Batched::new(stream, Arc::clone(&gather));
    run(worker, downstream, (stream, gather), drain)
}

async fn run<S>(
    worker: Arc<Worker>,
    downstream: Arc<Downstream>,
    (stream, gather): (Batched<S>, Arc<Gather>),
    drain: Drain,
) where
    S: AsyncRead + AsyncWrite + Taken + Send + Unpin + 'static,
{
    let metrics = Arc::clone(&worker.metrics);
    let seen = Arc::new(Seen::default());
    let watched = Watched::new(stream.clone(), Arc::clone(&seen), worker.timeouts.head);
    let opening = Box::pin(open(watched, stream.clone(), Arc::clone(&gather)));
    let mut connection = match tokio::time::timeout(worker.timeouts.head, opening).await {
        Ok(Some(connection)) => connection,
        Ok(None) => return,
        Err(_) => return metrics.families.client_timeout(ClientTimeout::Head),
    };
    let pings = connection.ping_pong();
    let ClientTimeouts { idle, answer, .. } = worker.timeouts;
    let pause = (idle / LOOKS).min(LOOK).min(answer);
    let look = Box::pin(tokio::time::sleep(pause));
    let activity =
        Arc::new(Activity::new(Arc::clone(&seen), downstream.streams.clone(), Arc::clone(&gather)));
    let mut served = Served {
        connection,
        stream,
        drain: drain.clone(),
        worker,
        downstream,
        activity,
        pings,
        waker: Waker::from(Arc::clone(&gather)),
        gather,
        pause,
        look,
        last: Last::default(),
        presence: Presence::new(Instant::now(), answer),
        is_ending: false,
        is_cut: false,
    };
    if let Err(cause) = until_end(&mut served, drain).await {
        tracing::debug!(%cause, "a downstream connection broke off");
        if let Some(misuse) = misuse(&cause) {
            metrics.families.misuse(misuse);
        }
        if cause.get_io().is_some_and(is_untaken) {
            metrics.families.client_timeout(ClientTimeout::Response);
        }
    }
}

/// Begins a connection; none when the client does not speak HTTP/2.
async fn open<S>(
    watched: Watched<S>,
    stream: Batched<S>,
    gather: Arc<Gather>,
) -> Option<Box<Connection<Watched<S>, Bytes>>>
where
    S: AsyncRead + AsyncWrite + Taken + Send + Unpin + 'static,
{
    let mut opening = h2::server::Builder::new()
        .initial_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits::STREAMS)
        .max_header_list_size(u32::try_from(limits::HEAD_BYTES).unwrap_or(u32::MAX))
        .max_send_buffer_size(limits::STREAM_SEND_BYTES)
        .max_pending_accept_reset_streams(UNSEEN_RESETS)
        .enable_connect_protocol()
        .max_local_error_reset_streams(Some(limits::FAULTY_STREAMS))
        .handshake::<_, Bytes>(watched);
    poll_fn(|cx| {
        gather.begin(cx);
        let opened = Pin::new(&mut opening).poll(cx);
        // Whoever reads next sees why it cannot be written.
        let _written = stream.poll_out(cx);
        opened
    })
    .await
    .ok()
    .map(Box::new)
}

/// Drives a connection; when the drain begins, it takes no more requests. It borrows, because a future holds the room of what
/// is moved into it twice.
async fn until_end<S>(served: &mut Served<S>, mut drain: Drain) -> Result<(), h2::Error>
where
    S: AsyncRead + AsyncWrite + Taken + Send + Unpin + 'static,
{
    let watch = drain.clone();
    let mut begun = pin!(drain.begun());
    let mut is_waiting = false;
    poll_fn(|cx| {
        // The wait takes a lock whenever it is polled, so it is polled once, to be woken.
        let is_over = if is_waiting { watch.has_begun() } else { begun.as_mut().poll(cx).is_ready() };
        is_waiting = true;
        if is_over {
            served.end();
        }
        served.poll(cx)
    })
    .await
}

/// Asks whether the client still is there, unless it cannot be asked.
fn can_ask(pings: &mut PingPong) -> bool {
    pings.send_ping(Ping::opaque()).is_ok()
}

/// What a client did wrong, where it is to blame.
fn misuse(cause: &h2::Error) -> Option<Misuse> {
    if cause.is_remote() {
        return None;
    }
    Some(match cause.reason()? {
        Reason::ENHANCE_YOUR_CALM => Misuse::Excess,
        Reason::COMPRESSION_ERROR => Misuse::Compression,
        Reason::FLOW_CONTROL_ERROR => Misuse::FlowControl,
        Reason::FRAME_SIZE_ERROR => Misuse::FrameSize,
        Reason::PROTOCOL_ERROR | Reason::STREAM_CLOSED => Misuse::Protocol,
        _ => return None,
    })
}

/// Whether this is the guard of the stream, whose client takes nothing; the kernel's own word has a number.
fn is_untaken(cause: &io::Error) -> bool {
    cause.kind() == io::ErrorKind::TimedOut && cause.raw_os_error().is_none()
}

/// What a client is told.
const fn reason(misuse: Misuse) -> Reason {
    match misuse {
        Misuse::Compression => Reason::COMPRESSION_ERROR,
        Misuse::Control | Misuse::Excess | Misuse::Resets | Misuse::Slow => Reason::ENHANCE_YOUR_CALM,
        Misuse::FlowControl => Reason::FLOW_CONTROL_ERROR,
        Misuse::FrameSize => Reason::FRAME_SIZE_ERROR,
        Misuse::Protocol => Reason::PROTOCOL_ERROR,
    }
}

/// What was seen at the last look.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    begun: u64,
    idle: u32,
}

/// A connection.
struct Served<S> {
    /// In room of its own, because it is large and goes from hand to hand.
    connection: Box<Connection<Watched<S>, Bytes>>,
    /// What the connection writes to.
    stream: Batched<S>,
    /// For tunnels, which do not end by themselves.
    drain: Drain,
    worker: Arc<Worker>,
    downstream: Arc<Downstream>,
    activity: Arc<Activity>,
    pings: Option<PingPong>,
    /// Wakes the connection for what its streams send.
    gather: Arc<Gather>,
    waker: Waker,
    /// Between two looks.
    pause: Duration,
    look: Pin<Box<Sleep>>,
    last: Last,
    /// Of the client, while streams are under way.
    presence: Presence,
    /// The client was told to send no more requests.
    is_ending: bool,
    /// The client was told why it is not served any more.
    is_cut: bool,
}

impl<S> Served<S>
where
    S: AsyncRead + AsyncWrite + Taken + Send + Unpin + 'static,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        self.gather.begin(cx);
        loop {
            if !self.is_cut
                && let Some(misuse) = self.activity.seen.misuse()
            {
                self.is_cut = true;
                self.worker.metrics.families.misuse(misuse);
                if misuse == Misuse::Slow {
                    self.worker.metrics.families.client_timeout(ClientTimeout::Head);
                }
                self.connection.abrupt_shutdown(reason(misuse));
            }
            if self.poll_look(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            match self.connection.poll_accept(&mut Context::from_waker(&self.waker)) {
                Poll::Ready(Some(Ok((request, mut respond)))) => {
                    let Some(serving) = self.activity.begin() else {
                        self.worker.metrics.families.limit(Limit::ClientStreams);
                        // The client may send it again (RFC 9113, section 8.7).
                        respond.send_reset(Reason::REFUSED_STREAM);
                        continue;
                    };
                    let (worker, downstream) = (Arc::clone(&self.worker), Arc::clone(&self.downstream));
                    let stream =
                        stream::serve(worker, downstream, request, respond, (serving, self.drain.clone()));
                    drop(self.worker.tasks.spawn("downstream stream", stream));
                }
                Poll::Ready(Some(Err(cause))) => return Poll::Ready(Err(cause)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending if !self.is_cut && self.activity.seen.misuse().is_some() => {}
                Poll::Pending => break,
            }
        }
        // Everything that the streams had to say, at once.
        match self.stream.poll_out(cx) {
            Poll::Ready(Ok(is_written)) => self.gather.end(is_written),
            Poll::Ready(Err(cause)) => {
                tracing::debug!(%cause, "a client takes nothing more");
                if is_untaken(&cause) {
                    self.worker.metrics.families.client_timeout(ClientTimeout::Response);
                }
                return Poll::Ready(Ok(()));
            }
            Poll::Pending => self.gather.end(false),
        }
        Poll::Pending
    }

    /// Takes no more requests; once.
    fn end(&mut self) {
        if !self.is_ending {
            self.is_ending = true;
            self.connection.graceful_shutdown();
            self.look.as_mut().reset(Instant::now() + GOODBYE);
        }
    }

    /// Ready when nobody is there any more, or when whoever is there does not go.
    fn poll_look(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.presence.is_asked() && self.pings.as_mut().is_some_and(|pings| pings.poll_pong(cx).is_ready())
        {
            self.presence.answered();
        }
        while self.look.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let is_idle = self.activity.n_active.load(Ordering::Relaxed) == 0;
            let (n_reads, n_taken) = (self.activity.seen.n_reads(), || self.stream.n_taken());
            let verdict = self.presence.look(now, n_reads, n_taken, is_idle);
            if verdict == Verdict::Gone {
                self.worker.metrics.families.client_timeout(ClientTimeout::Silent);
                return Poll::Ready(());
            }
            if self.is_ending && is_idle {
                return Poll::Ready(());
            }
            self.look.as_mut().reset(self.presence.next(now, self.pause));
            let Last { begun, idle } = self.last;
            self.last = Last {
                begun: self.activity.n_begun.load(Ordering::Relaxed),
                idle: if is_idle { idle + 1 } else { 0 },
            };
            if self.last.begun != begun {
                self.last.idle = u32::from(is_idle);
            }
            if self.pause * self.last.idle >= self.worker.timeouts.idle {
                if !self.is_ending {
                    self.worker.metrics.families.client_timeout(ClientTimeout::Idle);
                }
                self.end();
            } else if verdict == Verdict::Ask
                && (self.presence.is_asked() || self.pings.as_mut().is_some_and(can_ask))
            {
                self.presence.asked(now, self.stream.n_taken());
            }
        }
        Poll::Pending
    }
}

/// The requests of one connection.
#[derive(Debug)]
struct Activity {
    n_active: AtomicUsize,
    n_begun: AtomicU64,
    taken_back: Mutex<TakenBack>,
    seen: Arc<Seen>,
    /// Those of the client on all its connections.
    streams: Option<Streams>,
    /// What wakes the connection.
    gather: Arc<Gather>,
}

/// Requests that were taken back since a moment.
#[derive(Debug)]
struct TakenBack {
    since: Instant,
    n_begun: u64,
    count: u32,
}

/// Time in which requests that are taken back are counted together.
const WINDOW: Duration = Duration::from_secs(10);

/// One request that is being served.
#[derive(Debug)]
struct Serving(Arc<Activity>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.n_active.fetch_sub(1, Ordering::Relaxed);
        if let Some(streams) = &self.0.streams {
            streams.end();
        }
    }
}

impl Activity {
    fn new(seen: Arc<Seen>, streams: Option<Streams>, gather: Arc<Gather>) -> Self {
        let taken_back = TakenBack { since: Instant::now(), n_begun: 0, count: 0 };
        Self {
            n_active: AtomicUsize::new(0),
            n_begun: AtomicU64::new(0),
            taken_back: Mutex::new(taken_back),
            seen,
            streams,
            gather,
        }
    }

    /// Begins a request, unless the client has as many as it may.
    fn begin(self: &Arc<Self>) -> Option<Serving> {
        if !self.streams.as_ref().is_none_or(Streams::begin) {
            return None;
        }
        self.n_active.fetch_add(1, Ordering::Relaxed);
        self.n_begun.fetch_add(1, Ordering::Relaxed);
        Some(Serving(Arc::clone(self)))
    }
}

impl Serving {
    /// Requests that are under way on the connection.
    fn n_active(&self) -> u32 {
        u32::try_from(self.0.n_active.load(Ordering::Relaxed)).unwrap_or(u32::MAX)
    }

    /// Whether the connection has bytes that its client does not take. See [`Guarded`] for how long it may.
    fn is_blocked(&self) -> bool {
        self.0.gather.is_blocked()
    }

    /// Ready when all that streams have handed over by now, and the client has room for, is written. It may never be: the client
    /// may leave.
    async fn written(&self) {
        self.0.gather.written().await;
    }

    /// The client does not want its answer any more. Each such request is work for nothing, here and at an endpoint.
    fn taken_back(&self) {
        let (now, n_begun) = (Instant::now(), self.0.n_begun.load(Ordering::Relaxed));
        let mut taken_back = self.0.taken_back.lock();
        if now.duration_since(taken_back.since) > WINDOW {
            *taken_back = TakenBack { since: now, n_begun: n_begun.saturating_sub(1), count: 0 };
        }
        taken_back.count += 1;
        let most = u64::from(taken_back.count) * 2 > n_begun.saturating_sub(taken_back.n_begun);
        if taken_back.count > limits::TAKEN_BACK && most {
            self.0.seen.accuse(Misuse::Resets);
        }
    }
}
