//! One downstream connection: HTTP/1.1 or HTTP/2, until it ends or drains.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::Poll,
};

use bytes::BytesMut;
use http::Request;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    drain::{Drain, Tasks},
    http::{
        Downstream, Worker, exchange, h1,
        stream::{self, Guarded, Spoken},
    },
    limits,
    pool::body::RequestBody,
};

/// Pings that a client does not answer end its connection: a dead one must not hold its streams.
const PING_INTERVAL: std::time::Duration = std::time::Duration::from_secs(30);

/// Bytes that one stream of HTTP/2 may have waiting to be written. A client that opens all its streams and reads none
/// holds a hundred times as much.
const SEND_BUFFER_BYTES: usize = 16 * 1024;

/// Serves a connection. `spoken` is what was agreed before, if anything was.
pub async fn serve<S>(
    worker: Arc<Worker>,
    downstream: Arc<Downstream>,
    stream: S,
    spoken: Option<Spoken>,
    drain: Drain,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut stream = stream;
    let (spoken, ahead) = match spoken {
        Some(Spoken::Http1) => (Spoken::Http1, BytesMut::new()),
        // Also what was agreed on has to begin in time.
        None | Some(Spoken::Http2) => {
            match tokio::time::timeout(limits::HEAD_TIMEOUT, stream::detect(&mut stream)).await {
                Ok(Ok((Spoken::Http1, _))) if spoken.is_some() => return,
                Ok(Ok(detected)) => detected,
                Ok(Err(_)) | Err(_) => return,
            }
        }
    };
    match spoken {
        Spoken::Http1 => h1::serve(worker, downstream, stream, ahead, drain).await,
        Spoken::Http2 => {
            let ended = http2(worker, downstream, Guarded::new(stream, ahead), drain).await;
            if let Err(cause) = ended {
                tracing::debug!(%cause, "a downstream connection broke off");
            }
        }
    }
}

async fn http2<S>(
    worker: Arc<Worker>,
    downstream: Arc<Downstream>,
    stream: Guarded<S>,
    drain: Drain,
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let tasks = worker.tasks.clone();
    let activity = Arc::new(Activity::default());
    let watched = Arc::clone(&activity);
    let service = service_fn(move |request: Request<Incoming>| {
        let (worker, downstream) = (Arc::clone(&worker), Arc::clone(&downstream));
        let serving = activity.begin();
        async move {
            let _serving = serving;
            Ok::<_, Infallible>(exchange::run(&worker, &downstream, request.map(RequestBody::from)).await)
        }
    });
    let connection = http2::Builder::new(Executor(tasks))
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::STREAMS)
        .max_header_list_size(u32::try_from(limits::HEAD_BYTES).unwrap_or(u32::MAX))
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .serve_connection(TokioIo::new(stream), service);
    until_drained(pin!(connection), drain, watched.idle(), http2::Connection::graceful_shutdown).await
}

/// Requests of one connection of HTTP/2, whose codec has no bound on idle time.
#[derive(Debug, Default)]
struct Activity {
    active: AtomicUsize,
    begun: AtomicU64,
}

/// One request that is being served.
struct Serving(Arc<Activity>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Activity {
    fn begin(self: &Arc<Self>) -> Serving {
        self.active.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        Serving(Arc::clone(self))
    }

    /// Resolves when no request has begun for a while and none is being served. Responses that still stream may end.
    async fn idle(self: Arc<Self>) {
        let mut seen = 0;
        loop {
            tokio::time::sleep(limits::DOWNSTREAM_IDLE).await;
            let begun = self.begun.load(Ordering::Relaxed);
            if begun == seen && self.active.load(Ordering::Relaxed) == 0 {
                return;
            }
            seen = begun;
        }
    }
}

/// Drives a connection; when the drain begins or it is idle, tells it once to finish what it has and take no more.
async fn until_drained<C>(
    mut connection: Pin<&mut C>,
    mut drain: Drain,
    idle: impl Future<Output = ()>,
    finish: impl Fn(Pin<&mut C>),
) -> hyper::Result<()>
where
    C: Future<Output = hyper::Result<()>>,
{
    let watch = drain.clone();
    let mut begun = pin!(drain.begun());
    let mut idle = pin!(idle);
    let mut waits = Waits::No;
    poll_fn(|cx| {
        // The wait takes a lock whenever it is polled, so it is polled once, to be woken, and then when it is over.
        let over = match waits {
            Waits::No => begun.as_mut().poll(cx).is_ready(),
            Waits::Yes => watch.has_begun(),
            Waits::Over => false,
        };
        let over = over || (!matches!(waits, Waits::Over) && idle.as_mut().poll(cx).is_ready());
        if over {
            waits = Waits::Over;
            finish(connection.as_mut());
        } else if matches!(waits, Waits::No) {
            waits = Waits::Yes;
        }
        match connection.as_mut().poll(cx) {
            Poll::Ready(ended) => Poll::Ready(ended),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

enum Waits {
    No,
    Yes,
    Over,
}

/// Runs the streams of HTTP/2 on the worker that accepted the connection.
#[derive(Clone, Debug)]
struct Executor(Tasks);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        drop(self.0.spawn("downstream stream", future));
    }
}
