//! The body of a request on its way to an endpoint: streamed, and remembered as long as it is short, so that the request
//! can be sent again when that does no harm.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};

use crate::limits;

/// A request body.
#[derive(Debug)]
pub struct RequestBody {
    source: Source,
    /// As announced.
    hint: SizeHint,
    /// Runs while the client is waited for.
    stall: Option<Pin<Box<Sleep>>>,
    pace: Pace,
    /// The client may be silent for as long as it wants.
    is_patient: bool,
}

#[derive(Debug)]
enum Source {
    Empty,
    Own(Stream),
    /// Shared with whoever may take it back; none once that happened.
    Lent(Arc<Mutex<Option<Stream>>>),
}

/// How fast a client sends, not counting the time in which nobody asked it to.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    n_bytes: usize,
    waited: Duration,
    /// What the wait that runs may take.
    bound: Duration,
}

impl Pace {
    /// How long the next piece may take.
    fn bound(&mut self, is_announced: bool) -> Duration {
        let earned = Duration::from_secs(
            u64::try_from(self.n_bytes / limits::BODY_BYTES_PER_SECOND).unwrap_or(u64::MAX),
        );
        let left = (limits::STALL + earned).saturating_sub(self.waited);
        self.bound = if is_announced { left.min(limits::STALL) } else { limits::STALL };
        self.bound
    }

    /// A piece has arrived, after this wait.
    fn arrived(&mut self, n_bytes: usize, wait: Option<Pin<Box<Sleep>>>) {
        self.n_bytes = self.n_bytes.saturating_add(n_bytes);
        if let Some(wait) = wait {
            let left = wait.deadline().saturating_duration_since(Instant::now());
            self.waited += self.bound.saturating_sub(left);
        }
    }
}

/// A body as its codec reads it.
type Client = Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>;

/// What comes from the client, and what of it has been passed on.
struct Stream {
    incoming: Client,
    /// Passed on in an earlier try, and to be passed on again.
    again: VecDeque<Bytes>,
    /// Passed on in this try.
    passed: VecDeque<Bytes>,
    n_passed: usize,
    /// Nothing of what was passed on is lost.
    is_whole: bool,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("n_passed", &self.n_passed).finish_non_exhaustive()
    }
}

impl Stream {
    const fn new(incoming: Client) -> Self {
        Self { incoming, again: VecDeque::new(), passed: VecDeque::new(), n_passed: 0, is_whole: true }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = match self.again.pop_front() {
            Some(data) => Frame::data(data),
            None => match ready!(self.incoming.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            },
        };
        self.remember(&frame);
        Poll::Ready(Some(Ok(frame)))
    }

    fn remember(&mut self, frame: &Frame<Bytes>) {
        let len = frame.data_ref().map_or(0, Bytes::len);
        self.n_passed = self.n_passed.saturating_add(len);
        match frame.data_ref() {
            Some(data) if self.is_whole && self.n_passed <= limits::REPLAY_BYTES => {
                self.passed.push_back(data.clone());
            }
            // Too long, or trailers: too rare to be worth it.
            Some(_) | None => {
                self.is_whole = false;
                self.passed.clear();
            }
        }
    }

    fn is_end(&self) -> bool {
        self.again.is_empty() && self.incoming.is_end_stream()
    }

    /// From the beginning.
    fn rewind(mut self) -> Option<Self> {
        let is_whole = self.is_whole;
        self.passed.append(&mut self.again);
        let again = std::mem::take(&mut self.passed);
        is_whole.then(|| Self { again, ..Self::new(self.incoming) })
    }
}

/// The way to get a lent body back.
#[derive(Debug)]
pub struct Keeper {
    stream: Arc<Mutex<Option<Stream>>>,
    hint: SizeHint,
}

impl Keeper {
    /// The body, whole; none when too much of it has been passed on.
    pub fn take_back(self) -> Option<RequestBody> {
        let stream = self.stream.lock().take()?.rewind()?;
        Some(RequestBody {
            source: Source::Own(stream),
            hint: self.hint,
            stall: None,
            pace: Pace::default(),
            is_patient: false,
        })
    }
}

impl From<Incoming> for RequestBody {
    fn from(incoming: Incoming) -> Self {
        if incoming.is_end_stream() { Self::empty() } else { Self::new(incoming) }
    }
}

impl RequestBody {
    /// What a codec reads.
    pub fn new<B>(incoming: B) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let hint = incoming.size_hint();
        let client = Box::pin(http_body_util::BodyExt::map_err(incoming, Into::into));
        Self {
            source: Source::Own(Stream::new(client)),
            hint,
            stall: None,
            pace: Pace::default(),
            is_patient: false,
        }
    }

    /// No body.
    pub fn empty() -> Self {
        Self {
            source: Source::Empty,
            hint: SizeHint::with_exact(0),
            stall: None,
            pace: Pace::default(),
            is_patient: false,
        }
    }

    /// The body, with none left in its place.
    #[must_use]
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self::empty())
    }

    /// Waits for the client as long as it takes: somebody else looks after the time.
    #[must_use]
    pub fn patient(self) -> Self {
        Self { is_patient: true, ..self }
    }

    /// Whether there is nothing to send, so that it can be sent any number of times.
    pub const fn is_empty(&self) -> bool {
        matches!(self.source, Source::Empty)
    }

    /// Lends the body: what is sent, and the way to get it back.
    pub fn lend(self) -> (Self, Option<Keeper>) {
        match self.source {
            Source::Own(stream) => {
                let stream = Arc::new(Mutex::new(Some(stream)));
                let source = Source::Lent(Arc::clone(&stream));
                let keeper = Keeper { stream, hint: self.hint };
                (
                    Self { source, hint: self.hint, stall: None, pace: Pace::default(), is_patient: false },
                    Some(keeper),
                )
            }
            source @ (Source::Empty | Source::Lent(_)) => (
                Self { source, hint: self.hint, stall: None, pace: Pace::default(), is_patient: false },
                None,
            ),
        }
    }
}

/// The client's body broke off.
#[derive(Debug)]
pub struct Broken(BoxError);

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the body of a request broke off")
    }
}

impl std::error::Error for Broken {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

/// The client sent nothing of its body for too long.
#[derive(Debug)]
pub struct Stalled;

impl std::fmt::Display for Stalled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the body of a request stalled")
    }
}

impl std::error::Error for Stalled {}

/// The body was taken back while it was being sent, which ends what was sending it.
#[derive(Debug)]
pub struct TakenBack;

impl std::fmt::Display for TakenBack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the request is sent elsewhere")
    }
}

impl std::error::Error for TakenBack {}

/// Whatever a body fails with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let polled = match &mut this.source {
            Source::Empty => return Poll::Ready(None),
            Source::Own(stream) => stream.poll(cx),
            Source::Lent(shared) => match &mut *shared.lock() {
                Some(stream) => stream.poll(cx),
                None => return Poll::Ready(Some(Err(Box::new(TakenBack)))),
            },
        };
        let Poll::Ready(frame) = polled else {
            if this.is_patient {
                return Poll::Pending;
            }
            // Of a body without a length nobody knows when it should be there: it may be a conversation.
            let is_announced = this.hint.exact().is_some();
            let mut bound = || this.pace.bound(is_announced);
            ready!(this.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(bound()))).as_mut().poll(cx));
            return Poll::Ready(Some(Err(Box::new(Stalled))));
        };
        let len = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        this.pace.arrived(len, this.stall.take());
        Poll::Ready(frame.map(|frame| frame.map_err(|cause| BoxError::from(Broken(cause)))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Own(stream) => stream.is_end(),
            Source::Lent(shared) => shared.lock().as_ref().is_some_and(Stream::is_end),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Own(_) | Source::Lent(_) => self.hint,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(pace: &mut Pace, waited: Duration) {
        // As if the wait had begun so long ago.
        let bound = pace.bound(true);
        pace.arrived(1, Some(Box::pin(tokio::time::sleep(bound.saturating_sub(waited)))));
    }

    #[tokio::test]
    async fn a_body_that_trickles_is_given_up_and_one_that_streams_is_not() {
        let mut pace = Pace::default();
        let step = Duration::from_secs(20);
        for left in [60, 60, 40, 20] {
            assert!(pace.bound(true).as_secs() <= left);
            wait(&mut pace, step);
        }
        assert!(pace.bound(true) < Duration::from_secs(1), "three bytes in a minute");
        assert_eq!(pace.bound(false), limits::STALL, "nobody knows how long it should take");
        pace.arrived(100 * limits::BODY_BYTES_PER_SECOND, None);
        assert_eq!(pace.bound(true), limits::STALL, "it was fast otherwise");
    }
}
