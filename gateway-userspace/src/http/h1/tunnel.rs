//! A downstream connection of HTTP/1 that has become a tunnel: bytes both ways until both sides have ended.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    h1::out,
    http::{
        body::ResponseBody,
        h1::{Connection, End},
    },
    limits,
    metrics::tunnel::TunnelOutcome,
    taken::Taken,
    timer::Wait,
};

/// The way to the client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    Open,
    /// The endpoint has ended it; the client has not been told.
    Ending,
    Ended,
}

impl<S> Connection<S>
where
    S: AsyncRead + AsyncWrite + Taken + Send + Unpin + 'static,
{
    /// Serves a tunnel to its end.
    pub(super) async fn tunnel(&mut self, mut body: ResponseBody) -> End {
        self.wire.lock().open();
        let (mut way, mut is_uploading) = (Way::Open, true);
        let outcome = poll_fn(|cx| {
            if is_uploading && let Poll::Ready(ended) = body.poll_upload_end(cx) {
                if ended.is_err() {
                    return Poll::Ready(TunnelOutcome::Broken);
                }
                is_uploading = false;
            }
            match self.poll_download(&mut body, &mut way, cx) {
                Poll::Ready(Err(_)) => return Poll::Ready(TunnelOutcome::Broken),
                Poll::Ready(Ok(())) if !is_uploading => return Poll::Ready(TunnelOutcome::Ended),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
            body.poll_over(self.drain.has_begun(), || self.wire.lock().n_taken(), cx)
        })
        .await;
        body.end(outcome);
        match outcome {
            TunnelOutcome::Drained => End::Close,
            TunnelOutcome::Ended => {
                self.leave(true).await;
                End::Cut
            }
            TunnelOutcome::Broken | TunnelOutcome::Idle => End::BrokenOff,
        }
    }

    /// Leaves a client that would take an ordinary end for that of the bytes.
    pub(super) async fn break_off(&mut self) {
        self.leave(false).await;
        self.wire.lock().break_off();
    }

    /// Leaves a client that may still be sending: the kernel resets a connection that is closed before everything was read,
    /// and takes back what the client has not got. So that is waited for, and some of what comes is read. A connection that
    /// broke off is not said to have ended.
    async fn leave(&mut self, has_ended: bool) {
        let (mut bound, mut look) = (Wait::default(), Wait::default());
        let (mut n_forgotten, mut n_taken) = (0, None);
        poll_fn(|cx| {
            let mut wire = self.wire.lock();
            let mut written = wire.poll_write(cx);
            if has_ended && matches!(written, Poll::Ready(Ok(()))) {
                written = wire.poll_shutdown(cx);
            }
            if matches!(written, Poll::Ready(Err(_))) {
                return Poll::Ready(());
            }
            while n_forgotten < limits::LINGER_BYTES {
                match wire.poll_forget(cx) {
                    Poll::Ready(Ok(n @ 1..)) => n_forgotten += n,
                    // It has ended its side as well: what it has not got is not taken back.
                    Poll::Ready(_) if written.is_ready() => return Poll::Ready(()),
                    Poll::Ready(_) | Poll::Pending => break,
                }
            }
            loop {
                if written.is_ready() && wire.has_taken_all() {
                    return Poll::Ready(());
                }
                if wire.n_taken() != n_taken {
                    (n_taken, bound) = (wire.n_taken(), Wait::default());
                }
                if self.timer.poll(&mut bound, limits::LINGER, cx).is_ready() {
                    return Poll::Ready(());
                }
                ready!(self.timer.poll(&mut look, limits::LINGER_LOOK, cx));
                look = Wait::default();
            }
        })
        .await;
    }

    /// Ready when the endpoint has ended its side and the client has been told.
    fn poll_download(
        &self,
        body: &mut ResponseBody,
        way: &mut Way,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), End>> {
        loop {
            let mut is_waiting = false;
            if *way == Way::Open && self.wire.lock().out.has_room() {
                // Not with the lock: the other direction reads from the same connection.
                match Pin::new(&mut *body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => {
                        let data = frame.into_data().unwrap_or_default();
                        let written = self.wire.lock().out.data(&mut out::Body::UntilClose, data);
                        written.map_err(|_| End::Cut)?;
                    }
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(End::BrokenOff)),
                    Poll::Ready(None) => *way = Way::Ending,
                    Poll::Pending => is_waiting = true,
                }
            }
            let mut wire = self.wire.lock();
            ready!(wire.poll_write(cx))?;
            if *way == Way::Ending {
                ready!(wire.poll_shutdown(cx))?;
                *way = Way::Ended;
            }
            if *way == Way::Ended {
                return Poll::Ready(Ok(()));
            }
            if is_waiting {
                return Poll::Pending;
            }
        }
    }
}
