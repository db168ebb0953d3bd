//! The body of a request on its way to an endpoint: streamed, and given back as long as nobody has read from it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;

/// A request body.
#[derive(Debug)]
pub struct RequestBody {
    source: Source,
    /// As announced, for as long as the body lies in a slot.
    hint: SizeHint,
}

#[derive(Debug)]
enum Source {
    Empty,
    Direct(Incoming),
    /// Taken out of the slot by the first poll.
    Lent(Arc<Slot>),
    /// Somebody else took the body back.
    Gone,
}

type Slot = Mutex<Option<Incoming>>;

/// The way to get a lent body back, until it is read for the first time.
#[derive(Debug)]
pub struct Keeper(Arc<Slot>);

impl Keeper {
    /// The body, whole; none when some of it has been read.
    pub fn take_back(self) -> Option<RequestBody> {
        self.0.lock().take().map(RequestBody::from)
    }
}

impl From<Incoming> for RequestBody {
    fn from(incoming: Incoming) -> Self {
        let hint = incoming.size_hint();
        let source = if incoming.is_end_stream() { Source::Empty } else { Source::Direct(incoming) };
        Self { source, hint }
    }
}

impl RequestBody {
    /// No body.
    pub fn empty() -> Self {
        Self { source: Source::Empty, hint: SizeHint::with_exact(0) }
    }

    /// Whether there is nothing to send, so that it can be sent any number of times.
    pub const fn is_empty(&self) -> bool {
        matches!(self.source, Source::Empty)
    }

    /// Lends the body: what is sent, and the way to get it back.
    pub fn lend(self) -> (Self, Option<Keeper>) {
        match self.source {
            Source::Direct(incoming) => {
                let slot = Arc::new(Mutex::new(Some(incoming)));
                (Self { source: Source::Lent(Arc::clone(&slot)), hint: self.hint }, Some(Keeper(slot)))
            }
            source @ (Source::Empty | Source::Lent(_) | Source::Gone) => {
                (Self { source, hint: self.hint }, None)
            }
        }
    }
}

/// The client's body broke off.
#[derive(Debug)]
pub struct Broken(hyper::Error);

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the body of a request broke off")
    }
}

impl std::error::Error for Broken {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// The body was taken back while it was being sent, which ends the connection that was sending it.
#[derive(Debug)]
pub struct TakenBack;

impl std::fmt::Display for TakenBack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the request is sent elsewhere")
    }
}

impl std::error::Error for TakenBack {}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Source::Lent(slot) = &this.source {
            let taken = slot.lock().take();
            this.source = taken.map_or(Source::Gone, Source::Direct);
        }
        match &mut this.source {
            Source::Empty => Poll::Ready(None),
            Source::Direct(incoming) => {
                let frame = ready!(Pin::new(incoming).poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.map_err(|cause| BoxError::from(Broken(cause)))))
            }
            Source::Lent(_) | Source::Gone => Poll::Ready(Some(Err(Box::new(TakenBack)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Direct(incoming) => incoming.is_end_stream(),
            Source::Lent(_) | Source::Gone => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Direct(incoming) => incoming.size_hint(),
            Source::Empty => SizeHint::with_exact(0),
            Source::Lent(_) | Source::Gone => self.hint,
        }
    }
}
