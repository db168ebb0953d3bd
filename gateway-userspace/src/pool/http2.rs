//! One stream of HTTP/2 to an endpoint, without a task of its own: whoever waits for the response also writes the request.

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, SendStream, client::SendRequest};
use http::{Method, Request, Response, StatusCode, header, request::Parts};
use http_body::{Body, Frame, SizeHint};

use crate::{
    limits,
    pool::{
        SendError,
        body::{BoxError, RequestBody, Stalled},
        interim::Interim,
        stream::{Received, Sending, Sent},
    },
    timer::{Timer, Wait},
};

/// Why a stream came to nothing, and whether that says something about its connection.
pub(super) struct Failed {
    pub(super) error: SendError,
    pub(super) is_of_connection: bool,
}

impl Failed {
    /// The endpoint did not let us in.
    pub(super) const fn unaccepted() -> Self {
        Self { error: SendError::Unaccepted, is_of_connection: true }
    }

    /// Nobody else shall begin with a connection that gave no answer.
    pub(super) const fn timed_out() -> Self {
        Self { error: SendError::TimedOut, is_of_connection: true }
    }

    const fn of_stream(error: SendError) -> Self {
        Self { error, is_of_connection: false }
    }
}

impl From<h2::Error> for Failed {
    fn from(cause: h2::Error) -> Self {
        tracing::debug!(%cause, "no response over HTTP/2");
        // Whether the endpoint said that it did nothing with the request (RFC 9113, section 8.7). Streams that a GOAWAY
        // covers go on; only those beyond its last one get this error.
        let is_unprocessed = cause.is_reset() && cause.reason() == Some(Reason::REFUSED_STREAM);
        let error = if cause.is_remote() && is_unprocessed {
            SendError::Refused
        } else if cause.is_remote() && cause.is_go_away() {
            SendError::Unsent
        } else if is_unaccepted(&cause) {
            SendError::Unaccepted
        } else {
            SendError::Closed
        };
        Self { error, is_of_connection: !cause.is_reset() }
    }
}

/// Whether the endpoint did not let us in.
pub(super) fn is_unaccepted(cause: &h2::Error) -> bool {
    cause.get_io().is_some_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied)
}

/// How long the endpoint may take.
#[derive(Debug)]
struct Patience {
    bound: Option<Duration>,
    timer: Timer,
    wait: Wait,
}

impl Patience {
    fn new(bound: Option<Duration>) -> Self {
        Self { bound, timer: Timer::default(), wait: Wait::default() }
    }

    /// Begins anew.
    fn renew(&mut self) {
        self.wait = Wait::default();
    }

    /// Ready when it is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Failed> {
        let Some(bound) = self.bound else { return Poll::Pending };
        self.timer.poll(&mut self.wait, bound, cx).map(|()| Failed::timed_out())
    }
}

/// Sends a request, and waits for the head of the response, for no longer than `bound`. While the body is sent, the bound
/// begins anew with each piece of it, and as long as the client has to send the next one: neither is the endpoint's fault.
pub(super) async fn send(
    sender: &mut SendRequest<Bytes>,
    head: &Parts,
    body: &mut RequestBody,
    interim: &dyn Interim,
    bound: Option<Duration>,
) -> Result<Response<Receiving>, Failed> {
    let mut patience = Patience::new(bound);
    let is_ready = poll_fn(|cx| match sender.poll_ready(cx) {
        Poll::Pending => patience.poll(cx).map(Err),
        Poll::Ready(outcome) => Poll::Ready(Ok(outcome)),
    });
    if let Err(cause) = is_ready.await? {
        let error = if is_unaccepted(&cause) { SendError::Unaccepted } else { SendError::Unsent };
        return Err(Failed { error, is_of_connection: true });
    }
    // Behind CONNECT the client's bytes follow, as soon as the endpoint agrees.
    let is_tunnel = head.method == Method::CONNECT;
    if is_tunnel && !takes_tunnels(sender).await {
        return Err(Failed::of_stream(SendError::Unsupported));
    }
    let is_empty = body.is_empty() && !is_tunnel;
    let (mut response, stream) = match sender.send_request(Request::from_parts(head.clone(), ()), is_empty) {
        Ok(sent) => sent,
        // The connection ended this moment: nothing was written.
        Err(cause) => {
            let error = if is_unaccepted(&cause) { SendError::Unaccepted } else { SendError::Unsent };
            return Err(Failed { error, is_of_connection: true });
        }
    };
    let (mut upload, mut reserved) = (None, None);
    if is_tunnel {
        reserved = Some(stream);
    } else if !is_empty {
        upload = Some(Sending::new(body.take(), stream));
    }
    let mut pieces = None;
    // A client that was promised a word of the endpoint before it sends may wait for that (RFC 9110, section 10.1.1).
    let mut is_promised = head.headers.contains_key(header::EXPECT);
    let head = poll_fn(|cx| {
        if let Err(error) = poll_upload(&mut upload, cx) {
            return Poll::Ready(Err(Failed::of_stream(error)));
        }
        let now = upload.as_ref().map(Sending::pieces);
        is_promised &= now.is_none_or(|n| n == 0);
        if now != pieces || !is_promised && upload.as_ref().is_some_and(|upload| !upload.is_blocked()) {
            pieces = now;
            patience.renew();
        }
        while let Poll::Ready(Some(Ok(head))) = response.poll_informational(cx) {
            is_promised &= head.status() != StatusCode::CONTINUE;
            interim.pass(head.into_parts().0);
        }
        match Pin::new(&mut response).poll(cx) {
            Poll::Pending => patience.poll(cx).map(Err),
            Poll::Ready(head) => Poll::Ready(head.map_err(Failed::from)),
        }
    })
    .await?;
    let (head, stream) = head.into_parts();
    let received = Received::new(stream, &head.headers);
    Ok(Response::from_parts(head, Receiving { received, upload, held: reserved }))
}

/// Writes what can be written now. An endpoint that takes no more says why in its response.
fn poll_upload(upload: &mut Option<Sending<RequestBody>>, cx: &mut Context<'_>) -> Result<(), SendError> {
    let Some(sending) = upload else { return Ok(()) };
    match sending.poll(cx) {
        Poll::Pending => return Ok(()),
        Poll::Ready(Sent::Whole | Sent::Unwanted) => {}
        Poll::Ready(Sent::Broken(cause)) => {
            sending.stream.send_reset(Reason::CANCEL);
            *upload = None;
            let is_slow = cause.is::<Stalled>();
            return Err(if is_slow { SendError::Stalled } else { SendError::Body });
        }
    }
    *upload = None;
    Ok(())
}

/// The body of a response, and whatever of the request is still to be written.
#[derive(Debug)]
pub struct Receiving {
    received: Received,
    upload: Option<Sending<RequestBody>>,
    /// The way to the endpoint of a tunnel that is not open yet.
    held: Option<SendStream<Bytes>>,
}

/// Whether the endpoint takes extended CONNECT (RFC 8441, section 3). It says so when it is connected to, and nothing tells
/// when it has.
async fn takes_tunnels(sender: &SendRequest<Bytes>) -> bool {
    const STEPS: u32 = 50;
    for _ in 0..STEPS {
        if sender.is_extended_connect_protocol_enabled() {
            return true;
        }
        tokio::time::sleep(limits::SETTINGS_TIMEOUT / STEPS).await;
    }
    sender.is_extended_connect_protocol_enabled()
}

impl Receiving {
    /// The endpoint agreed: what follows are the bytes of both sides.
    pub(super) fn open(&mut self, client: RequestBody) {
        self.upload = self.held.take().map(|stream| Sending::new(client, stream));
    }

    /// See [`Incoming::poll_upload`](super::incoming::Incoming::poll_upload).
    pub(super) fn drive_upload(&mut self, cx: &mut Context<'_>) -> Result<u64, BoxError> {
        match poll_upload(&mut self.upload, cx) {
            Ok(()) => Ok(self.upload.as_ref().map_or(0, Sending::n_bytes)),
            Err(SendError::Stalled) => Err(Box::new(Stalled)),
            Err(_) => Err("the request broke off".into()),
        }
    }

    /// Drives what is written of a tunnel; ready when the client has ended it.
    pub(super) fn poll_upload_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if poll_upload(&mut self.upload, cx).is_err() {
            return Poll::Ready(Err(BoxError::from("the client broke off")));
        }
        if self.upload.is_some() { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}

impl Body for Receiving {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Err(cause) = this.drive_upload(cx) {
            return Poll::Ready(Some(Err(cause)));
        }
        Poll::Ready(match ready!(Pin::new(&mut this.received).poll_frame(cx)) {
            // The response is whole, the endpoint just wants no more of the request (RFC 9113, section 8.1).
            Some(Err(cause)) if cause.is_reset() && cause.reason() == Some(Reason::NO_ERROR) => None,
            frame => frame.map(|frame| frame.map_err(BoxError::from)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.received.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.received.size_hint()
    }
}
