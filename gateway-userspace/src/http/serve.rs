//! One downstream connection: HTTP/1.1 or HTTP/2, until it ends or drains.

use std::{pin::Pin, sync::Arc};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    drain::Drain,
    http::{
        Downstream, Worker, h1, h2,
        stream::{self, Guarded, Spoken},
    },
    metrics::timeout::ClientTimeout,
    taken::Taken,
};

/// What serves a connection to its end.
pub type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Finds out what a connection speaks, and what serves it then; nothing where it says nothing in time. `spoken` is what was
/// agreed before, if anything was.
///
/// In two steps, so that a connection does not hold the room of the first one for as long as it lives.
pub async fn begin<S>(
    worker: Arc<Worker>,
    downstream: Arc<Downstream>,
    stream: S,
    spoken: Option<Spoken>,
    drain: Drain,
) -> Option<Serving>
where
    S: AsyncRead + AsyncWrite + Taken + Send + Unpin + 'static,
{
    let mut stream = stream;
    let (spoken, ahead) = match spoken {
        Some(Spoken::Http1) => (Spoken::Http1, BytesMut::new()),
        // Also what was agreed on has to begin in time.
        None | Some(Spoken::Http2) => {
            let detecting = Box::pin(stream::detect(&mut stream));
            match tokio::time::timeout(worker.timeouts.head, detecting).await {
                Ok(Ok((Spoken::Http1, _))) if spoken.is_some() => return None,
                Ok(Ok(detected)) => detected,
                Ok(Err(_)) => return None,
                Err(_) => {
                    worker.metrics.families.client_timeout(ClientTimeout::Head);
                    return None;
                }
            }
        }
    };
    Some(match spoken {
        Spoken::Http1 => Box::pin(h1::serve(worker, downstream, stream, ahead, drain)),
        Spoken::Http2 => {
            let stream = Guarded::new(stream, ahead, (&worker.timeouts).into());
            Box::pin(h2::serve(worker, downstream, stream, drain))
        }
    })
}
