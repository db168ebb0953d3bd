//! Copies of requests for other services, which never delay the original: what a mirror does not take in time it does not
//! get.
//!
//! The body is copied frame by frame as the original passes, into a queue with a bound; a mirror that falls behind loses
//! its copy, which ends as a request that broke off. Answers are read to a bound and dropped.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::request::Parts;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::{
    http::{
        Downstream, Worker,
        body::ResponseBody,
        forward::{Forward, Message},
        header::{self, Onward},
    },
    limits,
    metrics::limit::Limit,
    pool::{
        body::{BoxError, RequestBody},
        interim::Nobody,
    },
    retry,
    state::{Mirror, Rule},
};

/// Sends the copies that a rule asks for, and gives back the body that the original goes on with. `parts` is the request
/// with its new target, not yet as an endpoint gets it.
pub(super) fn copy(
    worker: &Worker,
    rule: &Rule,
    parts: &Parts,
    onward: &Onward<'_>,
    body: RequestBody,
) -> RequestBody {
    let mut queues = Vec::new();
    for Mirror { service, percent } in &rule.mirrors {
        if *percent < 100 && fastrand::u32(..100) >= *percent {
            continue;
        }
        let Ok(permit) = Arc::clone(&worker.mirrors).try_acquire_owned() else {
            worker.metrics.families.limit(Limit::Mirrors);
            continue;
        };
        let definition = service.definition();
        let onward =
            Onward { protocol: definition.protocol, is_secured: definition.tls.is_some(), ..*onward };
        let mut head = parts.clone();
        if header::to_upstream(&mut head, &onward).is_err() {
            continue;
        }
        if let Some(filters) = &rule.filters {
            filters.request_headers.apply(&mut head.headers);
        }
        let copied = if body.is_empty() {
            RequestBody::empty()
        } else {
            let (queue, copied) = queue(body.size_hint(), worker);
            queues.push(queue);
            RequestBody::new(copied)
        };
        let mut message = Message::new(head, copied);
        let (worker, downstream, service) = (worker.clone(), onward.downstream.clone(), Arc::clone(service));
        drop(worker.tasks.clone().spawn("mirrored request", async move {
            let _permit = permit;
            let sent = send(&worker, &downstream, &service, &mut message);
            if tokio::time::timeout(limits::MIRROR_TIMEOUT, sent).await.is_err() {
                tracing::debug!(service = %service.definition().name, "a mirror took too long");
            }
        }));
    }
    if queues.is_empty() { body } else { body.wrapped(|body| Tapped { body, queues }) }
}

async fn send(
    worker: &Worker,
    downstream: &Downstream,
    service: &crate::upstream::Upstream,
    message: &mut Message,
) {
    let timeout = Some(limits::BACKEND_REQUEST_TIMEOUT);
    let started = worker.clock.now();
    let forward = Forward {
        worker,
        downstream,
        service,
        retry: &retry::Policy::NEVER,
        timeout,
        started,
        interim: &Nobody,
    };
    let Ok(forwarded) = forward.run(message).await else { return };
    let mut body = ResponseBody::upstream(forwarded.body);
    let mut n_bytes = 0;
    // A whole answer leaves its connection whole; a long one is not worth it.
    while n_bytes <= limits::MIRROR_BYTES {
        match body.frame().await {
            Some(Ok(frame)) => n_bytes += frame.data_ref().map_or(0, Bytes::len),
            Some(Err(_)) | None => return,
        }
    }
}

/// The body of the original, which leaves a copy of each frame behind.
struct Tapped {
    body: RequestBody,
    queues: Vec<Queue>,
}

/// The near end of a copy.
struct Queue {
    /// None at the end of the body.
    frames: Sender<Option<Bytes>>,
    n_waiting: Arc<AtomicUsize>,
    families: crate::metrics::names::Families,
}

/// The far end: a body that breaks off unless it was ended.
struct Copied {
    frames: Receiver<Option<Bytes>>,
    n_waiting: Arc<AtomicUsize>,
    hint: SizeHint,
    has_ended: bool,
}

fn queue(hint: SizeHint, worker: &Worker) -> (Queue, Copied) {
    // Frames may be small, so both their number and their bytes have a bound.
    const FRAMES: usize = 64;
    let (sender, receiver) = mpsc::channel(FRAMES);
    let n_waiting = Arc::new(AtomicUsize::new(0));
    let copied = Copied { frames: receiver, n_waiting: Arc::clone(&n_waiting), hint, has_ended: false };
    (Queue { frames: sender, n_waiting, families: worker.metrics.families.clone() }, copied)
}

impl Queue {
    /// Whether the copy goes on.
    fn push(&self, frame: Option<Bytes>) -> bool {
        let len = frame.as_ref().map_or(0, Bytes::len);
        let is_full =
            self.n_waiting.fetch_add(len, Ordering::Relaxed).saturating_add(len) > limits::MIRROR_BYTES;
        if is_full || self.frames.try_send(frame).is_err() {
            // A mirror that has gone away wants no more; that is no bound.
            if !self.frames.is_closed() {
                self.families.limit(Limit::Mirrors);
            }
            return false;
        }
        true
    }

    /// The body is whole. Where there is no room for that word, the copy breaks off.
    fn end(self) {
        let _goes_on = self.push(None);
    }
}

impl Body for Tapped {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.queues.retain(|queue| queue.push(Some(data.clone())));
                }
                if this.body.is_end_stream() {
                    this.queues.drain(..).for_each(Queue::end);
                }
            }
            None => this.queues.drain(..).for_each(Queue::end),
            Some(Err(_)) => this.queues.clear(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Body for Copied {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        if this.has_ended {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(this.frames.poll_recv(cx)) {
            Some(Some(data)) => {
                this.n_waiting.fetch_sub(data.len(), Ordering::Relaxed);
                Some(Ok(Frame::data(data)))
            }
            Some(None) => {
                this.has_ended = true;
                None
            }
            None => Some(Err(io::Error::from(io::ErrorKind::BrokenPipe))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}
