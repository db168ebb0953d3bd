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
    metrics::tunnel::TunnelOutcome,
    taken::Taken,
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
            TunnelOutcome::Ended | TunnelOutcome::Drained => End::Close,
            TunnelOutcome::Broken | TunnelOutcome::Idle => End::Cut,
        }
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
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(End::Cut)),
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
