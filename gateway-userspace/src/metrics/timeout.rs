//! The waits for clients that can end: the closed set that is counted.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

/// What a client did not do in time; the closed set behind the label `timeout`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ClientTimeout {
    /// To send the body of its request, or to send it fast enough.
    Body,
    /// To shake hands over TLS.
    Handshake,
    /// To begin its first request, or to end the head of one.
    Head,
    /// To send a `ClientHello` for an endpoint.
    Hello,
    /// To begin another request.
    Idle,
    /// To send a PROXY protocol header.
    ProxyHeader,
    /// To take its response, or to take it fast enough.
    Response,
    /// To answer a PING of HTTP/2 while it had requests under way.
    Silent,
}

impl ClientTimeout {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Body,
        Self::Handshake,
        Self::Head,
        Self::Hello,
        Self::Idle,
        Self::ProxyHeader,
        Self::Response,
        Self::Silent,
    ];

    /// The value of the label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Body => "body",
            Self::Handshake => "handshake",
            Self::Head => "head",
            Self::Hello => "hello",
            Self::Idle => "idle",
            Self::ProxyHeader => "proxy_header",
            Self::Response => "response",
            Self::Silent => "silent",
        }
    }
}

impl EncodeLabelValue for ClientTimeout {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

/// Label of a client that was not waited for any longer.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct ClientTimeoutLabels {
    /// What it did not do.
    pub timeout: ClientTimeout,
}
