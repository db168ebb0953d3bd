//! One request on its way to an endpoint: pick, connect or reuse, send; and again, as long as that cannot do harm.

use std::{
    io,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use http::{Request, Response, request::Parts, response};
use http_body_util::BodyExt as _;

use crate::{
    balance::Tried,
    endpoint::{Active, Health},
    h1::spare,
    http::{
        Downstream, Worker,
        body::{ResponseBody, Streamed},
        fault::{Fault, Kind, Language, Retry},
        header,
        interim::Bounded,
    },
    limits,
    metrics::names::Limit,
    pool::{
        Lease, OpenError, Origin, SendError,
        body::{Keeper, RequestBody},
        incoming::Incoming,
        interim::Interim,
    },
    retry,
    upstream::{Freshness, Upstream},
};

/// What a request is sent with.
#[derive(Clone, Copy)]
pub(super) struct Forward<'a> {
    pub(super) worker: &'a Worker,
    pub(super) downstream: &'a Downstream,
    pub(super) service: &'a Upstream,
    pub(super) retry: &'a retry::Policy,
    /// Bound on each try.
    pub(super) timeout: Option<Duration>,
    /// When the request began.
    pub(super) started: Instant,
    /// Takes what comes before the response.
    pub(super) interim: &'a dyn Interim,
}

/// The head of a response, and what its body comes over.
pub(super) struct Forwarded {
    pub(super) head: response::Parts,
    pub(super) body: Box<Streamed>,
    pub(super) n_retries: usize,
}

impl Forwarded {
    fn new(response: Response<Incoming>, lease: Lease, active: Active, n_retries: usize) -> Self {
        let (head, incoming) = response.into_parts();
        Self { head, body: Streamed::new(incoming, lease, active), n_retries }
    }
}

/// A request that may have to be sent more than once. Whoever sends it borrows it, because a future holds the room of what is
/// moved into it twice, at every stage.
pub(super) struct Message {
    pub(super) head: Parts,
    pub(super) body: RequestBody,
}

/// How far a request has come.
struct Course {
    tried: Tried,
    /// The endpoint whose kept connection turned out to be dead: it gets a new connection before another is picked.
    again: Option<usize>,
    n_retries: usize,
    /// The next try was waited for already.
    has_waited: bool,
    last: Fault,
}

/// Why a try came to nothing.
struct Failed {
    fault: Fault,
    /// Whether another try does no harm; the message is whole then.
    may_repeat: bool,
    burden: Burden,
}

/// What another try costs.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Burden {
    /// Nothing: no endpoint has begun with the request, and the same endpoint may have it.
    SameEndpoint,
    /// Nothing, but this endpoint shall not have it now.
    OtherEndpoint,
    /// An endpoint has had the request already: another try is more load.
    Charged,
}

impl Forward<'_> {
    /// Sends a message until something comes of it.
    pub(super) async fn run(&self, message: &mut Message) -> Result<Forwarded, Fault> {
        self.service.budget().deposit(self.worker.idx);
        let last = Fault::new(Kind::NoEndpoint);
        let mut course =
            Course { tried: Tried::default(), again: None, n_retries: 0, has_waited: false, last };
        loop {
            let (picked, freshness) = self.next(&mut course).await?;
            let failed = match self.once(picked, freshness, message, course.n_retries).await {
                Ok(forwarded) => return Ok(forwarded),
                Err(failed) => failed,
            };
            course.last = failed.fault;
            if !failed.may_repeat {
                return Err(failed.fault);
            }
            if failed.burden == Burden::SameEndpoint {
                course.again = Some(picked);
                continue;
            }
            course.tried.push(picked);
            if course.n_retries >= self.retry.attempts {
                return Err(failed.fault);
            }
            if failed.burden == Burden::Charged {
                tokio::time::sleep(self.retry.wait(course.n_retries)).await;
                course.has_waited = true;
            }
            course.n_retries += 1;
        }
    }

    /// A connection to an endpoint, without a request.
    pub(super) async fn connect(&self) -> Result<Forwarded, Fault> {
        let (mut tried, mut last) = (Tried::default(), Fault::new(Kind::NoEndpoint));
        for n_retries in 0..limits::TRIES {
            let Some(picked) = self.service.pick(&self.downstream.flow, &tried) else { return Err(last) };
            self.service.stats().tried(self.worker.idx);
            // One that was used for requests may be half closed, or worse.
            match self.lease(picked, Freshness::New).await {
                Ok(mut lease) => {
                    let incoming = lease.raw().ok_or(Fault::new(Kind::Unsupported))?;
                    let active = lease.endpoint().begin();
                    return Ok(Forwarded::new(Response::new(incoming), lease, active, n_retries));
                }
                Err(cause) => last = Fault::new(unopened(&cause)),
            }
            tried.push(picked);
        }
        Err(last)
    }

    /// The endpoint to try, and how.
    async fn next(&self, course: &mut Course) -> Result<(usize, Freshness), Fault> {
        if let Some(picked) = course.again.take() {
            self.service.stats().retried(self.worker.idx);
            return Ok((picked, Freshness::New));
        }
        if course.n_retries > 0 {
            self.service.stats().retried(self.worker.idx);
        }
        let has_waited = std::mem::take(&mut course.has_waited);
        let flow = &self.downstream.flow;
        if let Some(picked) = self.service.pick(flow, &course.tried) {
            return Ok((picked, Freshness::Any));
        }
        // Every endpoint was tried. One that refused is asked again, others only where somebody wants that.
        let retry = self.retry;
        if course.n_retries == 0 || !(retry.is_written || course.last.kind == Kind::Refused) {
            return Err(course.last);
        }
        course.tried = Tried::default();
        if !has_waited {
            tokio::time::sleep(retry.wait(course.n_retries - 1)).await;
        }
        let picked = self.service.pick(flow, &course.tried).ok_or(course.last)?;
        Ok((picked, Freshness::Any))
    }

    async fn lease(&self, picked: usize, freshness: Freshness) -> Result<Lease, OpenError> {
        let own = &self.downstream.own;
        self.service.connect_or_reuse(picked, self.worker.idx, own, freshness).await
    }

    /// One try.
    async fn once(
        &self,
        picked: usize,
        freshness: Freshness,
        message: &mut Message,
        n_retries: usize,
    ) -> Result<Forwarded, Failed> {
        let mut lease = match self.lease(picked, freshness).await {
            Ok(lease) => lease,
            Err(cause) => {
                let fault = Fault::new(unopened(&cause));
                return Err(Failed { fault, may_repeat: true, burden: Burden::OtherEndpoint });
            }
        };
        self.service.stats().tried(self.worker.idx);
        let active = lease.endpoint().begin();
        let keeper = message.lend();
        let interim = Bounded::new(self.interim, &self.worker.metrics.families);
        match lease.send(&message.head, &mut message.body, &interim, self.timeout).await {
            Ok(response) => {
                self.judge(Forwarded::new(response, lease, active, n_retries), message, keeper, n_retries)
            }
            Err(SendError::TimedOut) => Err(self.timed_out(message, keeper, n_retries)),
            Err(cause) => {
                let is_kept = lease.origin() != Origin::Opened && freshness == Freshness::Any;
                Err(self.failed((&lease, is_kept), &cause, message, (keeper, n_retries)))
            }
        }
    }

    /// A try that took too long is repeated only where somebody wants that: the endpoint may still be at it.
    fn timed_out(&self, message: &mut Message, keeper: Option<Keeper>, n_retries: usize) -> Failed {
        let wanted = self.retry.is_written && n_retries < self.retry.attempts;
        let may_repeat = wanted && message.is_idempotent() && message.restore(keeper) && self.withdraw();
        Failed { fault: Fault::new(Kind::TryTimeout), may_repeat, burden: Burden::Charged }
    }

    /// Whether a response is the last word. One that is not is dropped, with its connection unless its body is at hand.
    fn judge(
        &self,
        forwarded: Forwarded,
        message: &mut Message,
        keeper: Option<Keeper>,
        n_retries: usize,
    ) -> Result<Forwarded, Failed> {
        let retry = self.retry;
        let is_wanted = n_retries < retry.attempts
            && ((retry.includes(forwarded.head.status.as_u16()) && message.is_idempotent())
                || (!retry.calls.is_empty() && message.is_refused_call(&forwarded, retry.calls)));
        // Asked first: a body that cannot be sent again costs no token.
        let is_possible = keeper.as_ref().is_none_or(Keeper::is_whole);
        if !is_wanted || !is_possible || !self.withdraw() || !message.restore(keeper) {
            spare::keep_fields(std::mem::take(&mut message.head.headers));
            return Ok(forwarded);
        }
        let mut body = ResponseBody::upstream(forwarded.body);
        // Frames that an answer of an overloaded endpoint may have; more are not worth the wait.
        for _ in 0..FRAMES {
            match body.frame().now_or_never() {
                Some(Some(Ok(_))) => {}
                Some(None | Some(Err(_))) | None => break,
            }
        }
        let fault = Fault::new(Kind::NoEndpoint);
        Err(Failed { fault, may_repeat: true, burden: Burden::Charged })
    }

    fn failed(
        &self,
        (lease, is_kept): (&Lease, bool),
        cause: &SendError,
        message: &mut Message,
        (keeper, n_retries): (Option<Keeper>, usize),
    ) -> Failed {
        let is_down = lease.endpoint().health() == Health::Down;
        if matches!(cause, SendError::Unaccepted) {
            self.service.unaccepted(lease.endpoint().addr());
        }
        let fault = Fault::new(match cause {
            SendError::Body => Kind::ClientGone,
            SendError::Stalled => Kind::SlowBody,
            SendError::Protocol => Kind::Protocol,
            SendError::Refused => Kind::Refused,
            SendError::Unsupported => Kind::Unsupported,
            SendError::Unaccepted => Kind::Handshake,
            SendError::Closed | SendError::Unsent if is_down => Kind::EndpointDown,
            SendError::Closed | SendError::Unsent => Kind::Reset,
            SendError::TimedOut => Kind::TryTimeout,
        });
        let (is_harmless, is_seen) = match cause {
            SendError::Unsent | SendError::Unaccepted => (true, false),
            // The endpoint may have done what it was asked for.
            SendError::Closed => (message.is_idempotent(), !is_down),
            SendError::Refused => (true, true),
            SendError::Body
            | SendError::Stalled
            | SendError::Protocol
            | SendError::Unsupported
            | SendError::TimedOut => (false, false),
        };
        // A kept connection that ends at once was ended before the request came; later it was the request, perhaps.
        let is_race = matches!(cause, SendError::Unsent | SendError::Unaccepted)
            || matches!(cause, SendError::Closed)
                && self.worker.clock.now().duration_since(self.started) < limits::RACE;
        let burden = match (is_kept && is_race && !is_down, is_seen) {
            (true, _) => Burden::SameEndpoint,
            (false, true) => Burden::Charged,
            (false, false) => Burden::OtherEndpoint,
        };
        let is_paid = || n_retries < self.retry.attempts && self.withdraw();
        let may_repeat = is_harmless
            && fault.retry != Retry::Never
            && message.restore(keeper)
            && (burden != Burden::Charged || is_paid());
        Failed { fault, may_repeat, burden }
    }

    /// Takes a retry out of the service's budget.
    fn withdraw(&self) -> bool {
        let is_granted = self.service.budget().withdraw(self.worker.idx, self.worker.clock.now());
        if !is_granted {
            self.worker.metrics.families.limit(Limit::RetryBudget);
        }
        is_granted
    }
}

/// Frames of a body that are taken before its connection is given up.
const FRAMES: usize = 4;

fn unopened(cause: &OpenError) -> Kind {
    match cause {
        OpenError::Full => Kind::Overload,
        OpenError::Io(cause) if cause.kind() == io::ErrorKind::AddrNotAvailable => Kind::LocalPorts,
        OpenError::Io(_) if cause.is_of_node() => Kind::Descriptors,
        OpenError::Io(_) => Kind::Connect,
        OpenError::Handshake(_) => Kind::Handshake,
    }
}

impl Message {
    /// A request as the endpoint gets it.
    pub(super) const fn new(head: Parts, body: RequestBody) -> Self {
        Self { head, body }
    }

    /// Where a request is to stand.
    pub(super) fn none() -> Self {
        Self::new(Request::new(()).into_parts().0, RequestBody::empty())
    }

    /// Whether a call of gRPC came to nothing but one of these statuses, in a head that ends the response: whoever lists them
    /// says that calls may be repeated then, which their method does not tell.
    fn is_refused_call(&self, forwarded: &Forwarded, calls: retry::Calls) -> bool {
        let status = forwarded.head.headers.get("grpc-status");
        status.is_some_and(|status| calls.includes(status.as_bytes()))
            && forwarded.body.is_end()
            && Language::of(&self.head) == Language::Grpc
    }

    fn is_idempotent(&self) -> bool {
        header::is_idempotent(&self.head.method)
    }

    /// Lends the body to a try; none where there is no body.
    fn lend(&mut self) -> Option<Keeper> {
        let (body, keeper) = self.body.take().lend();
        self.body = body;
        keeper
    }

    /// Takes back what was lent; whether the message is whole again.
    fn restore(&mut self, keeper: Option<Keeper>) -> bool {
        let Some(keeper) = keeper else { return true };
        let Some(body) = keeper.take_back() else { return false };
        self.body = body;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_node_lacks_is_told_from_an_endpoint_that_refuses() {
        // What connect(2) says when every local port towards the address is taken.
        let exhausted = io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
        assert_eq!(unopened(&OpenError::Io(exhausted)), Kind::LocalPorts);
        for cause in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM] {
            let cause = io::Error::from_raw_os_error(cause);
            assert_eq!(unopened(&OpenError::Io(cause)), Kind::Descriptors);
        }
        let refused = io::Error::from_raw_os_error(libc::ECONNREFUSED);
        assert_eq!(unopened(&OpenError::Io(refused)), Kind::Connect);
        assert_eq!(unopened(&OpenError::Full), Kind::Overload);
    }

    #[tokio::test]
    async fn a_body_is_whole_however_often_nothing_of_it_was_sent() {
        let head = Request::put("/").body(()).unwrap().into_parts().0;
        let body = http_body_util::Full::new(bytes::Bytes::from_static(b"all of it"));
        let mut message = Message::new(head, RequestBody::new(body));
        for is_begun in [false, false, true, false, true] {
            let keeper = message.lend();
            if is_begun {
                let mut sent = message.body.take();
                sent.frame().await.unwrap().unwrap();
            }
            assert!(message.restore(keeper));
        }
        assert_eq!(message.body.collect().await.unwrap().to_bytes(), "all of it");
    }
}
