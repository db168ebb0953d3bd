//! The body of a response as it comes from an endpoint, whatever is spoken there.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::pool::{
    body::BoxError,
    http1::{Connection, Receiving},
};

/// A response body on its way.
#[derive(Debug)]
pub struct Incoming(Codec);

#[derive(Debug)]
enum Codec {
    Http1(Receiving),
    Http2(hyper::body::Incoming),
}

impl From<Receiving> for Incoming {
    fn from(receiving: Receiving) -> Self {
        Self(Codec::Http1(receiving))
    }
}

impl From<hyper::body::Incoming> for Incoming {
    fn from(incoming: hyper::body::Incoming) -> Self {
        Self(Codec::Http2(incoming))
    }
}

impl Incoming {
    /// The connection behind it, if it goes with the body and can serve the next request.
    pub(super) fn take(&mut self) -> Option<Box<Connection>> {
        match &mut self.0 {
            Codec::Http1(receiving) => receiving.take(),
            Codec::Http2(_) => None,
        }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.get_mut().0 {
            Codec::Http1(receiving) => Pin::new(receiving).poll_frame(cx),
            Codec::Http2(incoming) => {
                Pin::new(incoming).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Codec::Http1(receiving) => receiving.is_end_stream(),
            Codec::Http2(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Codec::Http1(receiving) => receiving.size_hint(),
            Codec::Http2(incoming) => incoming.size_hint(),
        }
    }
}
