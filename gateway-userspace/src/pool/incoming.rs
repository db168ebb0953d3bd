//! The body of a response as it comes from an endpoint, whatever is spoken there.

use std::{
    os::fd::RawFd,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::pool::{
    body::{BoxError, RequestBody},
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
    /// No other request goes over the connection behind it, if it is one for each request.
    pub const fn retire(&mut self) {
        match &mut self.0 {
            Codec::Http1(receiving) => receiving.retire(),
            Codec::Http2(_) => {}
        }
    }

    /// HTTP is over: what follows are the bytes of both sides, those of the client as they come from `client`.
    pub fn open(&mut self, client: RequestBody) {
        match &mut self.0 {
            Codec::Http1(receiving) => receiving.open(client),
            Codec::Http2(receiving) => receiving.open(client),
        }
    }

    /// Drives what is still to be written of the request; returns how many bytes of it went on so far, or nothing when it is
    /// over.
    ///
    /// # Errors
    /// As those of the body: what is written of the request broke off.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<u64, BoxError> {
        match &mut self.0 {
            Codec::Http1(receiving) => receiving.drive_upload(cx),
            Codec::Http2(receiving) => receiving.drive_upload(cx),
        }
    }

    /// Drives what is written to the endpoint of a tunnel; ready when the client has ended its side.
    pub fn poll_upload_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match &mut self.0 {
            Codec::Http1(receiving) => receiving.poll_upload_end(cx),
            Codec::Http2(receiving) => receiving.poll_upload_end(cx),
        }
    }

    /// The socket behind it, if no other response comes over it; open as long as the body.
    pub fn socket(&self) -> Option<RawFd> {
        match &self.0 {
            Codec::Http1(receiving) => receiving.socket(),
            Codec::Http2(_) => None,
        }
    }

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
