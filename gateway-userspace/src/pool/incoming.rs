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
    http2,
};

/// A response body on its way.
#[derive(Debug)]
pub struct Incoming(Codec);

#[derive(Debug)]
enum Codec {
    Http1(Receiving),
    Http2(http2::Receiving),
}

impl From<Receiving> for Incoming {
    fn from(receiving: Receiving) -> Self {
        Self(Codec::Http1(receiving))
    }
}

impl From<http2::Receiving> for Incoming {
    fn from(receiving: http2::Receiving) -> Self {
        Self(Codec::Http2(receiving))
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
            Codec::Http2(receiving) => Pin::new(receiving).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Codec::Http1(receiving) => receiving.is_end_stream(),
            Codec::Http2(receiving) => receiving.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Codec::Http1(receiving) => receiving.size_hint(),
            Codec::Http2(receiving) => receiving.size_hint(),
        }
    }
}
