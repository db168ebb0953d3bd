//! One stream of HTTP/2: a request, its response, and the body that follows, as the client's windows allow.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, response::Parts};
use http_body::Body as _;
use parking_lot::Mutex;

use crate::{
    clock,
    config::ClientTimeouts,
    drain::Drain,
    h1::{self, date},
    http::{
        Downstream, Worker,
        body::{ResponseBody, TooLate},
        exchange,
        forward::Message,
        h2::Serving,
        header as fields,
    },
    metrics::{refusal::Refusal, timeout::ClientTimeout, tunnel::TunnelOutcome},
    pool::{
        body::{BoxError, RequestBody, Stalled},
        interim::Interim,
        pace::Pace,
        stream::{Received, Sending, Sent},
    },
    timer::{Timer, Wait},
};

/// Serves one stream to its end.
pub(super) async fn serve(
    worker: Arc<Worker>,
    downstream: Arc<Downstream>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    (serving, drain): (Serving, Drain),
) {
    let (parts, stream) = request.into_parts();
    if let Err(refusal) = check(&parts) {
        exchange::refuse(&worker, &downstream, (Some(&parts), refusal), None);
        respond.send_reset(Reason::PROTOCOL_ERROR);
        return;
    }
    let expected = parts.headers.get_all(header::EXPECT);
    if !expected.iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        // RFC 9110, section 10.1.1.
        let status = StatusCode::EXPECTATION_FAILED;
        exchange::refuse(&worker, &downstream, (Some(&parts), Refusal::Expect), Some((status, 0)));
        let mut refused = Response::new(());
        *refused.status_mut() = status;
        if let Err(cause) = respond.send_response(refused, true) {
            tracing::debug!(%cause, "a response cannot be sent");
        }
        return;
    }
    let method = parts.method.clone();
    let awaits_continue = AtomicBool::new(parts.headers.contains_key(header::EXPECT));
    let client = Client { respond: Mutex::new(respond), awaits_continue };
    let body = if stream.is_end_stream() && method != Method::CONNECT {
        RequestBody::empty()
    } else {
        RequestBody::new(Received::new(stream, &parts.headers)).within(worker.terms(&parts))
    };
    let mut message = Message::new(parts, body);
    let Some(response) = respond_to(&worker, &downstream, &mut message, &client).await else {
        return serving.taken_back();
    };
    if response.body().ends_connection() {
        // The connection ends by itself. The client may send it again (RFC 9113, section 8.7), whatever it asks for.
        client.respond.into_inner().send_reset(Reason::REFUSED_STREAM);
        return;
    }
    let (parts, body) = response.into_parts();
    let (head, is_bodiless) = head(parts, &method, &body);
    match client.respond.into_inner().send_response(head, is_bodiless) {
        Ok(_) if is_bodiless => body.suffices(),
        Ok(stream) if body.is_tunnel() => tunnel(&serving, body, stream, drain).await,
        Ok(stream) => send(&worker, &serving, body, stream).await,
        Err(cause) => tracing::debug!(%cause, "a response cannot be sent"),
    }
}

/// Looks for what the codec lets through and the specification does not.
fn check(parts: &http::request::Parts) -> Result<(), Refusal> {
    // Two names for the host are none (RFC 9113, section 8.3.1).
    let is_for_one_host = match (parts.uri.authority(), parts.headers.get(header::HOST)) {
        (Some(authority), Some(host)) => host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()),
        (Some(_), None) => true,
        (None, _) => parts.method != Method::CONNECT,
    };
    // As over HTTP/1: where there are two, somebody behind may go by the other one (RFC 9110, section 8.6).
    let mut lengths = parts.headers.get_all(header::CONTENT_LENGTH).iter();
    // The codec takes an empty one for zero; whoever frames the body by it would not.
    let is_length = lengths.next().is_none_or(|length| h1::number(length.as_bytes()).is_some());
    let has_one_length = is_length && lengths.next().is_none();
    // Section 8.2.1.
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let has_ends =
        |value: &HeaderValue| is_blank(value.as_bytes().first()) || is_blank(value.as_bytes().last());
    if !is_for_one_host {
        Err(Refusal::Host)
    } else if !has_one_length {
        Err(Refusal::Length)
    } else if parts.headers.values().any(has_ends) {
        Err(Refusal::Field)
    } else {
        Ok(())
    }
}

/// Waits for the response; none when the client does not want it any more.
async fn respond_to(
    worker: &Worker,
    downstream: &Downstream,
    message: &mut Message,
    client: &Client,
) -> Option<Response<ResponseBody>> {
    let mut exchange = pin!(exchange::run(worker, downstream, message, client));
    poll_fn(|cx| match exchange.as_mut().poll(cx) {
        Poll::Ready(response) => Poll::Ready(Some(response)),
        Poll::Pending => client.respond.lock().poll_reset(cx).map(|_| None),
    })
    .await
}

/// The head of a response as the client gets it, and whether nothing follows it.
fn head(mut parts: Parts, method: &Method, body: &ResponseBody) -> (Response<()>, bool) {
    let has_none =
        *method == Method::HEAD || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let length = body.size_hint().exact().filter(|length| !has_none || *length > 0);
    if let Some(length) = length
        && !parts.headers.contains_key(header::CONTENT_LENGTH)
    {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    // Filters may have written what belongs to connections of HTTP/1.
    fields::strip_hop_by_hop(&mut parts.headers);
    if !parts.headers.contains_key(header::DATE)
        && let Ok(date) = HeaderValue::try_from(date::format(clock::wall()).as_str())
    {
        parts.headers.insert(header::DATE, date);
    }
    parts.version = Version::HTTP_2;
    (Response::from_parts(parts, ()), has_none || body.is_end_stream())
}

/// Sends a body to its end, unless the client leaves it or takes it too slowly.
async fn send(worker: &Worker, serving: &Serving, body: ResponseBody, stream: SendStream<Bytes>) {
    let mut sending = Sending::new(body, stream);
    let mut reader = Reader::default();
    let sent = poll_fn(|cx| {
        if sending.stream.poll_reset(cx).is_ready() {
            return Poll::Ready(Sent::Unwanted);
        }
        let sent = sending.poll(cx);
        if sent.is_pending()
            && sending.is_blocked()
            && let Err(cause) = reader.poll_beside(&mut sending, cx)
        {
            return Poll::Ready(Sent::Broken(cause));
        }
        if sent.is_pending() && reader.poll(&sending, (&worker.timeouts, serving), cx).is_ready() {
            return Poll::Ready(Sent::Broken(Box::new(Untaken)));
        }
        sent
    })
    .await;
    if let Sent::Broken(cause) = sent {
        tracing::debug!(%cause, "a response broke off");
        let slow = cause.is::<Untaken>().then_some(ClientTimeout::Response);
        let slow = slow.or(cause.is::<Stalled>().then_some(ClientTimeout::Body));
        if let Some(slow) = slow {
            worker.metrics.families.client_timeout(slow);
        }
        let calm = slow.map(|_| Reason::ENHANCE_YOUR_CALM);
        // Clients of gRPC read an endpoint's reason.
        let reason = cause.downcast_ref::<h2::Error>().and_then(h2::Error::reason);
        // Which they take for their deadline, where that is over.
        let late = cause.is::<TooLate>().then_some(Reason::CANCEL);
        if calm.or(late).is_none() {
            delivered(serving, &mut sending.stream).await;
        }
        sending.stream.send_reset(reason.or(late).or(calm).unwrap_or(Reason::INTERNAL_ERROR));
    }
}

/// Serves a tunnel until both sides have ended it.
async fn tunnel(serving: &Serving, body: ResponseBody, stream: SendStream<Bytes>, mut drain: Drain) {
    let watch = drain.clone();
    let mut begun = pin!(drain.begun());
    let mut is_waiting = false;
    let mut sending = Sending::new(body, stream);
    let (mut is_sending, mut is_uploading) = (true, true);
    let mut n_blocked = 0;
    let mut is_cut_short = false;
    let outcome = poll_fn(|cx| {
        let is_draining = if is_waiting { watch.has_begun() } else { begun.as_mut().poll(cx).is_ready() };
        is_waiting = true;
        if sending.stream.poll_reset(cx).is_ready() {
            return Poll::Ready(TunnelOutcome::Broken);
        }
        if is_uploading && let Poll::Ready(ended) = sending.body.poll_upload_end(cx) {
            if ended.is_err() {
                return Poll::Ready(TunnelOutcome::Broken);
            }
            is_uploading = false;
        }
        if is_sending && let Poll::Ready(sent) = sending.poll(cx) {
            if !matches!(sent, Sent::Whole) {
                is_cut_short = matches!(sent, Sent::Broken(_));
                return Poll::Ready(TunnelOutcome::Broken);
            }
            is_sending = false;
        }
        if !is_sending && !is_uploading {
            return Poll::Ready(TunnelOutcome::Ended);
        }
        // A connection that cannot be written ends by itself when its client takes nothing.
        let n_taken = || {
            n_blocked += u64::from(serving.is_blocked());
            Some(n_blocked)
        };
        sending.body.poll_over(is_draining, n_taken, cx)
    })
    .await;
    sending.body.end(outcome);
    if is_cut_short {
        delivered(serving, &mut sending.stream).await;
    }
    match outcome {
        TunnelOutcome::Ended => {}
        // As a connection that is reset (RFC 9113, section 8.5).
        TunnelOutcome::Broken => sending.stream.send_reset(Reason::CONNECT_ERROR),
        TunnelOutcome::Idle | TunnelOutcome::Drained => sending.stream.send_reset(Reason::CANCEL),
    }
}

/// Waits until a client has been sent what an endpoint said before it broke off: a reset takes back what waits. Or until the
/// client leaves.
async fn delivered(serving: &Serving, stream: &mut SendStream<Bytes>) {
    let mut written = pin!(serving.written());
    poll_fn(|cx| match stream.poll_reset(cx) {
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => written.as_mut().poll(cx),
    })
    .await;
}

/// The client takes nothing of its response, or too little.
#[derive(Debug)]
struct Untaken;

impl std::fmt::Display for Untaken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the client does not take the response")
    }
}

impl std::error::Error for Untaken {}

/// Bounds the time in which a client takes nothing of one stream, or too little: its connection may be busy with others.
/// While there is nothing to take, as in a stream that waits for events, no time passes.
#[derive(Debug, Default)]
struct Reader {
    pace: Pace,
    timer: Timer,
    wait: Wait,
    n_bytes: u64,
    /// See [`ResponseBody::poll_beside`].
    n_uploaded: u64,
}

impl Reader {
    /// Goes on with what of the exchange does not wait for the client.
    fn poll_beside(
        &mut self,
        sending: &mut Sending<ResponseBody>,
        cx: &mut Context<'_>,
    ) -> Result<(), BoxError> {
        self.n_uploaded = self.n_uploaded.max(sending.body.poll_beside(cx)?);
        Ok(())
    }

    /// Ready when the client was waited for too long.
    fn poll(
        &mut self,
        sending: &Sending<ResponseBody>,
        (timeouts, serving): (&ClientTimeouts, &Serving),
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        // The streams of a connection share its link, and what is asked of it.
        let share = timeouts.bytes_per_second / serving.n_active().max(1);
        // A client that is still sending its request may read when that is over: what it sends is as good as what it takes.
        let n_bytes = sending.n_bytes().saturating_add(self.n_uploaded);
        if n_bytes != self.n_bytes {
            let moved = usize::try_from(n_bytes - self.n_bytes).unwrap_or(usize::MAX);
            self.n_bytes = n_bytes;
            self.pace.moved(moved, std::mem::take(&mut self.wait).lasted(), share);
        }
        if !sending.is_blocked() {
            return Poll::Pending;
        }
        ready!(self.timer.poll(&mut self.wait, self.pace.bound(timeouts.stall), cx));
        if !serving.is_blocked() {
            return Poll::Ready(());
        }
        // Nothing of any stream can be written, and whether the client takes what was is judged for all of them.
        self.wait = Wait::default();
        self.timer.poll(&mut self.wait, timeouts.stall, cx)
    }
}

/// The client of one stream, before its response.
#[derive(Debug)]
struct Client {
    respond: Mutex<SendResponse<Bytes>>,
    /// It waits to be told that its body is wanted.
    awaits_continue: AtomicBool,
}

impl Interim for Client {
    fn pass(&self, head: Parts) {
        if head.status == StatusCode::CONTINUE && !self.awaits_continue.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut response = Response::from_parts(head, ());
        *response.version_mut() = Version::HTTP_2;
        if let Err(cause) = self.respond.lock().send_informational(response) {
            tracing::debug!(%cause, "an interim response cannot be sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_codec_lets_through_is_refused_by_its_reason() {
        let parts = |fields: &[(&str, &'static str)]| {
            let mut request = Request::get("http://a.test/");
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            request.body(()).unwrap().into_parts().0
        };
        assert_eq!(check(&parts(&[("host", "A.test"), ("content-length", "1")])), Ok(()));
        assert_eq!(check(&parts(&[("host", "b.test")])), Err(Refusal::Host));
        assert_eq!(check(&parts(&[("content-length", "1"), ("content-length", "1")])), Err(Refusal::Length));
        for wrong in ["", "+1", "1,1", "0x1"] {
            assert_eq!(check(&parts(&[("content-length", wrong)])), Err(Refusal::Length), "{wrong}");
        }
        assert_eq!(check(&parts(&[("x-a", "b "), ("x-b", "c")])), Err(Refusal::Field));
    }
}
