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
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;

use crate::{
    limits,
    pool::pace::{Pace, Terms},
    timer::{Timer, Wait},
};

/// A request body. Most requests have none, and carry no room for one from hand to hand.
#[derive(Debug, Default)]
pub struct RequestBody(Option<Box<Present>>);

/// A body that there is.
#[derive(Debug)]
struct Present {
    source: Source,
    /// As announced.
    hint: SizeHint,
    /// How slow the client may be; none lets it be silent for as long as it wants.
    terms: Option<Terms>,
    pace: Pace,
    /// A piece of it has come.
    has_begun: bool,
    timer: Timer,
    /// Lasts while the client is waited for.
    wait: Wait,
}

#[derive(Debug)]
enum Source {
    Own(Stream),
    /// Shared with whoever may take it back; none once that happened.
    Lent(Arc<Mutex<Option<Stream>>>),
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
    /// What looks over the fields behind the body.
    trailers: Option<Clean>,
}

/// Looks over fields behind a body; an error refuses the body with them.
type Clean = Box<dyn Fn(&mut HeaderMap) -> Result<(), BoxError> + Send>;

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("n_passed", &self.n_passed).finish_non_exhaustive()
    }
}

impl Stream {
    const fn new(incoming: Client) -> Self {
        Self {
            incoming,
            again: VecDeque::new(),
            passed: VecDeque::new(),
            n_passed: 0,
            is_whole: true,
            trailers: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = match self.again.pop_front() {
            Some(data) => Frame::data(data),
            None => match ready!(self.incoming.as_mut().poll_frame(cx)) {
                Some(Ok(mut frame)) => {
                    if let (Some(trailers), Some(clean)) = (frame.trailers_mut(), &self.trailers) {
                        if let Err(cause) = clean(trailers) {
                            return Poll::Ready(Some(Err(cause)));
                        }
                        if trailers.is_empty() {
                            return Poll::Ready(None);
                        }
                    }
                    frame
                }
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

    /// From the beginning, of which nothing is missing.
    fn rewind(mut self) -> Self {
        self.passed.append(&mut self.again);
        let again = std::mem::take(&mut self.passed);
        Self { again, trailers: self.trailers, ..Self::new(self.incoming) }
    }
}

/// The way to get a lent body back. It is given up when the response has begun.
#[derive(Debug)]
pub struct Keeper {
    stream: Arc<Mutex<Option<Stream>>>,
    hint: SizeHint,
    terms: Option<Terms>,
}

impl Keeper {
    /// Whether all of the body is still there.
    pub fn is_whole(&self) -> bool {
        self.stream.lock().as_ref().is_some_and(|stream| stream.is_whole)
    }

    /// The body, whole; none when too much of it has been passed on, which then goes on being sent.
    pub fn take_back(self) -> Option<RequestBody> {
        let stream = self.stream.lock().take_if(|stream| stream.is_whole)?;
        Some(RequestBody::of(Source::Own(stream.rewind()), self.hint, self.terms))
    }
}

impl From<Incoming> for RequestBody {
    fn from(incoming: Incoming) -> Self {
        if incoming.is_end_stream() { Self::empty() } else { Self::new(incoming) }
    }
}

impl RequestBody {
    /// What a codec reads, waited for as long as it takes: somebody else looks after the time.
    pub fn new<B>(incoming: B) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let hint = incoming.size_hint();
        let client = Box::pin(http_body_util::BodyExt::map_err(incoming, Into::into));
        Self::of(Source::Own(Stream::new(client)), hint, None)
    }

    /// No body.
    pub const fn empty() -> Self {
        Self(None)
    }

    fn of(source: Source, hint: SizeHint, terms: Option<Terms>) -> Self {
        let (pace, timer, wait) = (Pace::default(), Timer::default(), Wait::default());
        Self(Some(Box::new(Present { source, hint, terms, pace, has_begun: false, timer, wait })))
    }

    /// Breaks off where the client is slower than this.
    #[must_use]
    pub fn within(self, terms: Terms) -> Self {
        self.on(Some(terms))
    }

    fn on(mut self, terms: Option<Terms>) -> Self {
        if let Some(present) = &mut self.0 {
            present.terms = terms;
        }
        self
    }

    /// The body as `wrap` passes it on, on the same terms.
    #[must_use]
    pub fn wrapped<B>(self, wrap: impl FnOnce(Self) -> B) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let terms = self.0.as_ref().and_then(|present| present.terms);
        Self::new(wrap(self.patient())).on(terms)
    }

    /// The body, with none left in its place.
    #[must_use]
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// Lets what `cleaner` makes look over the fields behind the body before anybody gets them; where it refuses them, the
    /// body breaks off.
    pub fn clean_trailers<F>(&mut self, cleaner: impl FnOnce() -> F)
    where
        F: Fn(&mut HeaderMap) -> Result<(), BoxError> + Send + 'static,
    {
        if let Some(present) = &mut self.0
            && let Source::Own(stream) = &mut present.source
        {
            stream.trailers = Some(Box::new(cleaner()));
        }
    }

    /// Waits for the client as long as it takes: somebody else looks after the time.
    #[must_use]
    pub fn patient(self) -> Self {
        self.on(None)
    }

    /// Whether there is nothing to send, so that it can be sent any number of times.
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Lends the body: what is sent, and the way to get it back.
    pub fn lend(self) -> (Self, Option<Keeper>) {
        let Some(present) = self.0 else { return (Self::empty(), None) };
        let Present { source, hint, terms, .. } = *present;
        match source {
            Source::Own(stream) => {
                let stream = Arc::new(Mutex::new(Some(stream)));
                let source = Source::Lent(Arc::clone(&stream));
                (Self::of(source, hint, terms), Some(Keeper { stream, hint, terms }))
            }
            source @ Source::Lent(_) => (Self::of(source, hint, terms), None),
        }
    }
}

impl Present {
    /// How long the client may take for what comes next; none lets it take as long as it wants.
    ///
    /// Whoever says how long its body is owes all of it. A body without a length may be a conversation as soon as the
    /// endpoint has begun to speak. One of gRPC is as soon as the client has said something: endpoints send their head with
    /// their first message, so nothing tells whose turn it is, and the bounds of the rule hold for the call.
    fn bound(&self) -> Option<Duration> {
        let terms = self.terms.as_ref()?;
        let is_answered = match &self.source {
            Source::Lent(shared) => Arc::strong_count(shared) == 1,
            Source::Own(_) => false,
        };
        let is_announced = self.hint.exact().is_some();
        match (is_announced, terms.is_conversation, is_answered) {
            (false, true, true) => None,
            (false, true, false) if self.has_begun => None,
            (false, true, false) | (false, false, true) => Some(terms.stall),
            (true, ..) | (false, false, false) => Some(self.pace.bound(terms.stall)),
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
        let Some(this) = &mut self.get_mut().0 else { return Poll::Ready(None) };
        let polled = match &mut this.source {
            Source::Own(stream) => stream.poll(cx),
            Source::Lent(shared) => match &mut *shared.lock() {
                Some(stream) => stream.poll(cx),
                None => return Poll::Ready(Some(Err(Box::new(TakenBack)))),
            },
        };
        let Poll::Ready(frame) = polled else {
            let Some(bound) = this.bound() else { return Poll::Pending };
            ready!(this.timer.poll(&mut this.wait, bound, cx));
            return Poll::Ready(Some(Err(Box::new(Stalled))));
        };
        let len = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        let rate = this.terms.as_ref().map_or(0, |terms| terms.bytes_per_second);
        this.has_begun |= len > 0;
        // Nobody may have asked for what was there: the client is not to blame for more than it was allowed.
        let lasted = std::mem::take(&mut this.wait).lasted();
        let waited = this.bound().map_or(Duration::ZERO, |bound| lasted.min(bound));
        this.pace.moved(len, waited, rate);
        Poll::Ready(frame.map(|frame| frame.map_err(|cause| BoxError::from(Broken(cause)))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|present| match &present.source {
            Source::Own(stream) => stream.is_end(),
            Source::Lent(shared) => shared.lock().as_ref().is_some_and(Stream::is_end),
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |present| present.hint)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    const STALL: Duration = Duration::from_millis(300);
    const TERMS: Terms = Terms { stall: STALL, bytes_per_second: 1_024, is_conversation: false };
    const GRPC: Terms = Terms { is_conversation: true, ..TERMS };
    /// Often enough not to be silent, and too long between them.
    const OFTEN: Duration = Duration::from_millis(100);
    const SELDOM: Duration = Duration::from_millis(450);

    /// A body of which a byte comes at a time, with this time between two of them.
    struct Trickle {
        pause: Duration,
        timer: Timer,
        wait: Wait,
        hint: SizeHint,
    }

    impl Body for Trickle {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            let this = self.get_mut();
            ready!(this.timer.poll(&mut this.wait, this.pause, cx));
            this.wait = Wait::default();
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"a")))))
        }

        fn size_hint(&self) -> SizeHint {
            self.hint
        }
    }

    fn trickle(pause: Duration, length: Option<u64>, terms: Terms) -> RequestBody {
        let hint = length.map_or_else(SizeHint::default, SizeHint::with_exact);
        RequestBody::new(Trickle { pause, timer: Timer::default(), wait: Wait::default(), hint })
            .within(terms)
    }

    /// Whoever got the response gives up the way back.
    fn answered(body: RequestBody) -> RequestBody {
        let (lent, keeper) = body.lend();
        drop(keeper);
        lent
    }

    /// Whether a body is given up: then at the bound, and else not in four times as long.
    async fn is_given_up(mut body: RequestBody) -> bool {
        let begun = tokio::time::Instant::now();
        let read = async {
            loop {
                if let Err(cause) = body.frame().await.unwrap() {
                    assert!(cause.is::<Stalled>());
                    assert!(begun.elapsed() >= STALL, "after {:?}", begun.elapsed());
                    return;
                }
            }
        };
        tokio::time::timeout(STALL * 4, read).await.is_ok()
    }

    #[tokio::test]
    async fn a_body_that_trickles_is_given_up_with_and_without_a_length() {
        let announced = Some(1_000_000);
        assert!(is_given_up(trickle(OFTEN, announced, TERMS)).await);
        assert!(is_given_up(trickle(OFTEN, None, TERMS)).await);
        assert!(is_given_up(trickle(SELDOM, None, TERMS)).await);
        let slow = Terms { bytes_per_second: 1, ..TERMS };
        assert!(!is_given_up(trickle(OFTEN, None, slow)).await, "it is as fast as it must");
        assert!(is_given_up(trickle(OFTEN, announced, GRPC)).await, "whoever says how much owes it");
    }

    #[tokio::test]
    async fn a_conversation_goes_on_when_the_endpoint_has_begun_to_speak() {
        assert!(!is_given_up(answered(trickle(OFTEN, None, TERMS))).await);
        assert!(is_given_up(answered(trickle(SELDOM, None, TERMS))).await, "but not in silence");
        assert!(is_given_up(answered(trickle(OFTEN, Some(1_000_000), TERMS))).await);
        let (lent, keeper) = trickle(OFTEN, None, TERMS).lend();
        assert!(is_given_up(lent).await, "it may still be sent again");
        drop(keeper);
    }

    #[tokio::test]
    async fn a_call_of_grpc_is_a_conversation_and_may_be_silent_when_it_is_answered() {
        assert!(!is_given_up(trickle(OFTEN, None, GRPC)).await);
        assert!(is_given_up(trickle(SELDOM, None, GRPC)).await, "nobody has said anything yet");
        assert!(!is_given_up(answered(trickle(SELDOM, None, GRPC))).await);
    }

    #[tokio::test]
    async fn a_call_of_grpc_that_has_begun_may_be_silent_before_it_is_answered() {
        let later = |announced| {
            let mut body = trickle(SELDOM, announced, GRPC);
            body.0.as_mut().unwrap().has_begun = true;
            body
        };
        assert!(!is_given_up(later(None)).await);
        assert!(is_given_up(later(Some(1_000_000))).await, "whoever says how much owes it");
        let mut body = trickle(OFTEN, None, GRPC);
        assert!(!body.0.as_ref().unwrap().has_begun);
        body.frame().await.unwrap().unwrap();
        assert!(body.0.as_ref().unwrap().has_begun);
    }

    #[tokio::test]
    async fn time_in_which_nobody_asks_for_a_body_costs_the_client_no_more_than_it_was_allowed() {
        let fast = Terms { bytes_per_second: 4, ..TERMS };
        let mut body = trickle(OFTEN, Some(1_000_000), fast);
        tokio::time::timeout(OFTEN / 2, body.frame()).await.expect_err("it has to wait");
        // Its endpoint is busy with something else.
        tokio::time::sleep(STALL * 4).await;
        body.frame().await.unwrap().unwrap();
        assert_eq!(
            body.0.as_ref().unwrap().bound(),
            Some(Duration::from_millis(250)),
            "its byte has earned something"
        );
        body.frame().await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn nobody_hurries_a_body_that_is_looked_after_elsewhere() {
        assert!(!is_given_up(trickle(SELDOM, None, TERMS).patient()).await);
        assert!(is_given_up(trickle(OFTEN, None, TERMS).wrapped(|body| body)).await);
    }
}
