//! What clients speak instead of HTTP: WebSocket, by an upgrade of a connection (RFC 6455) or over a stream of HTTP/2 (RFC
//! 8441), and CONNECT (RFC 9110, section 9.3.6). Either side may be of either version.
//!
//! A tunnel is a request whose body begins when its endpoint has agreed, and a response whose body never says how long it is:
//! whoever writes the response drives both directions, each with back-pressure and an end of its own. Nothing that a client
//! sends behind its request reaches an endpoint before it has agreed.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use aws_lc_rs::{digest, rand};
use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, Version, header, request::Parts};
use http_body::{Body, Frame};
use tokio::time::Sleep;

use crate::{
    http::{
        Downstream, Worker,
        body::ResponseBody,
        exchange::{self, Deadline},
        fault::{Fault, Kind},
        forward::Forwarded,
        header as fields,
        still::Still,
    },
    limits,
    metrics::{
        names::Limit,
        tunnel::{Moved, OpenTunnel, TunnelKind, TunnelOutcome},
    },
    pool::{
        Protocol,
        body::{BoxError, RequestBody},
    },
    tunnel::Tunnels,
};

/// The protocol that a client asks for besides HTTP, whatever version it asks in: an extension of the request.
pub(super) type Named = h2::ext::Protocol;

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// What a client wants.
#[derive(Debug)]
pub(super) enum Wanted {
    /// WebSocket, with the key of the client's handshake, which HTTP/2 has none of.
    WebSocket { version: Version, key: Option<HeaderValue> },
    /// CONNECT.
    Connect,
    /// Something that is not spoken.
    Unknown,
}

impl Wanted {
    /// What a request wants; none wants HTTP. A request for WebSocket is routed as GET in every version.
    pub(super) fn of(parts: &mut Parts) -> Option<Self> {
        let Some(named) = parts.extensions.remove::<Named>() else {
            return (parts.method == Method::CONNECT).then_some(Self::Connect);
        };
        if !named.as_str().eq_ignore_ascii_case("websocket") {
            return Some(Self::Unknown);
        }
        parts.method = Method::GET;
        let key = parts.headers.get(header::SEC_WEBSOCKET_KEY).cloned();
        Some(Self::WebSocket { version: parts.version, key })
    }

    /// Whether a response with this status would be an open tunnel to the client: to whoever asks by CONNECT, any success is
    /// one (RFC 9110, section 9.3.6; RFC 8441, section 5).
    pub(super) fn takes_for_tunnel(&self, status: StatusCode) -> bool {
        let is_connect = match self {
            Self::WebSocket { version, .. } => *version == Version::HTTP_2,
            Self::Connect | Self::Unknown => true,
        };
        is_connect && status.is_success()
    }
}

/// A tunnel that is being opened.
pub(super) struct Opening {
    wanted: Wanted,
    open: OpenTunnel,
    tunnels: Tunnels,
    /// The key of our own handshake, where the client has none.
    own_key: Option<HeaderValue>,
}

impl Opening {
    /// Takes a place, where the rule allows it and there is one.
    pub(super) fn begin(
        worker: &Worker,
        downstream: &Downstream,
        wanted: Wanted,
        tunnels: Tunnels,
    ) -> Result<Self, Fault> {
        let kind = match wanted {
            Wanted::WebSocket { .. } if tunnels.websocket => TunnelKind::WebSocket,
            Wanted::Connect if tunnels.connect => TunnelKind::Connect,
            Wanted::WebSocket { .. } | Wanted::Connect | Wanted::Unknown => {
                return Err(Fault::new(Kind::Unsupported));
            }
        };
        let families = &worker.metrics.families;
        let Some(open) = families.tunnels.begin(downstream.bind.addr, kind, limits::TUNNELS) else {
            families.limit(Limit::Tunnels);
            return Err(Fault::new(Kind::Shed));
        };
        Ok(Self { wanted, open, tunnels, own_key: None })
    }

    /// Whether there is nothing to send but bytes.
    pub(super) const fn is_raw(&self) -> bool {
        matches!(self.wanted, Wanted::Connect)
    }

    /// Asks the endpoint in its own words.
    pub(super) fn ask(&mut self, head: &mut Parts, protocol: Protocol) -> Result<(), Fault> {
        let Wanted::WebSocket { version, key } = &self.wanted else { return Ok(()) };
        match protocol {
            Protocol::Http1 => {
                head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                head.headers.insert(header::UPGRADE, WEBSOCKET);
                if *version == Version::HTTP_2 {
                    let key = own_key()?;
                    head.headers.insert(header::SEC_WEBSOCKET_KEY, key.clone());
                    self.own_key = Some(key);
                }
            }
            Protocol::Http2 => {
                if *version != Version::HTTP_2 && key.is_none() {
                    return Err(Fault::new(Kind::BadRequest));
                }
                head.headers.remove(header::SEC_WEBSOCKET_KEY);
                head.method = Method::CONNECT;
                head.extensions.insert(Named::from_static("websocket"));
            }
        }
        Ok(())
    }

    /// What the client gets: a tunnel, or the endpoint's reasons against it, which have to be over by `deadline` like any other
    /// response. `client` is what it sends meanwhile.
    pub(super) fn answer(
        mut self,
        (mut forwarded, deadline): (Forwarded, Deadline),
        client: RequestBody,
    ) -> Result<Response<ResponseBody>, Fault> {
        let protocol = forwarded.body.lease().protocol();
        let status = forwarded.head.status;
        let is_agreed = match protocol {
            _ if self.is_raw() => true,
            Protocol::Http1 => status == StatusCode::SWITCHING_PROTOCOLS,
            Protocol::Http2 => status.is_success(),
        };
        // Who knows what an endpoint makes of an upgrade that it did not want.
        forwarded.body.retire();
        if !is_agreed && self.wanted.takes_for_tunnel(status) {
            return Err(Fault::new(Kind::Protocol));
        }
        if !is_agreed {
            return exchange::receive(forwarded, deadline);
        }
        let Forwarded { head: mut parts, mut body, .. } = forwarded;
        if let (Wanted::WebSocket { version, key }, false) = (&self.wanted, self.is_raw()) {
            let agreed = parts.headers.get(header::UPGRADE).map(|name| name.as_bytes().to_ascii_lowercase());
            if protocol == Protocol::Http1 && agreed.as_deref() != Some(b"websocket") {
                return Err(Fault::new(Kind::Protocol));
            }
            if let Some(own) = &self.own_key
                && parts.headers.get(header::SEC_WEBSOCKET_ACCEPT) != accept(own).as_ref()
            {
                return Err(Fault::new(Kind::Protocol));
            }
            if *version == Version::HTTP_2 {
                parts.headers.remove(header::SEC_WEBSOCKET_ACCEPT);
                parts.status = StatusCode::OK;
            } else {
                if let (Protocol::Http2, Some(accept)) = (protocol, key.as_ref().and_then(accept)) {
                    parts.headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
                }
                parts.status = StatusCode::SWITCHING_PROTOCOLS;
            }
        }
        fields::interim(&mut parts);
        self.open.open();
        let moved = Arc::clone(self.open.moved());
        let idle = self.tunnels.idle_timeout;
        let tunnel = Box::new(Tunnel { open: self.open, idle, still: None, grace: None });
        body.open(RequestBody::new(Counted { body: client.patient(), moved }), tunnel);
        Ok(Response::from_parts(parts, ResponseBody::upstream(body)))
    }
}

/// A key of our own (RFC 6455, section 4.1): 16 random bytes.
fn own_key() -> Result<HeaderValue, Fault> {
    let mut key = [0; 16];
    // Without random numbers there is no TLS either.
    rand::fill(&mut key).map_err(|_| Fault::new(Kind::Shed))?;
    HeaderValue::try_from(base64(&key)).map_err(|_| Fault::new(Kind::Shed))
}

/// What proves that an endpoint read a key (RFC 6455, section 4.2.2).
fn accept(key: &HeaderValue) -> Option<HeaderValue> {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &[key.as_bytes(), GUID].concat());
    HeaderValue::try_from(base64(digest.as_ref())).ok()
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |idx: usize| u32::from(chunk.get(idx).copied().unwrap_or_default());
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let idx = usize::try_from(group >> (18 - 6 * digit) & 63).unwrap_or_default();
            let letter = ALPHABET.get(idx).copied().unwrap_or_default();
            let is_padding = digit > u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            text.push(if is_padding { '=' } else { char::from(letter) });
        }
    }
    text
}

/// A tunnel that is open.
#[derive(Debug)]
pub(super) struct Tunnel {
    open: OpenTunnel,
    idle: Duration,
    /// Bytes that came, and what both sides had taken.
    still: Option<Still<(u64, Queues)>>,
    /// Runs since the drain began.
    grace: Option<Pin<Box<Sleep>>>,
}

/// A number of each side that changes when it takes what was written to it, where anybody can tell.
pub(super) type Queues = [Option<u64>; 2];

impl Tunnel {
    /// The endpoint sent this.
    pub(super) fn received(&self, frame: &Frame<Bytes>) {
        self.open.moved().from_endpoint(frame.data_ref().map_or(0, Bytes::len));
    }

    /// How it ends.
    pub(super) const fn end(&mut self, outcome: TunnelOutcome) {
        self.open.end(outcome);
    }

    /// Ready when the tunnel has to end, though neither side wants it to; says why. `taken` changes when a side takes what was
    /// written to it: one that reads slowly is not idle.
    pub(super) fn poll_over(
        &mut self,
        is_draining: bool,
        mut taken: impl FnMut() -> Queues,
        cx: &mut Context<'_>,
    ) -> Poll<TunnelOutcome> {
        if is_draining {
            let new = || Box::pin(tokio::time::sleep(limits::TUNNEL_DRAIN));
            if self.grace.get_or_insert_with(new).as_mut().poll(cx).is_ready() {
                return Poll::Ready(TunnelOutcome::Drained);
            }
        }
        let (idle, open) = (self.idle, &self.open);
        let mut moved = || (open.moved().sum(), taken());
        let still = self.still.get_or_insert_with(|| Still::new(idle, moved()));
        still.poll(moved, cx).map(|()| TunnelOutcome::Idle)
    }
}

/// What a client sends through a tunnel.
struct Counted {
    body: RequestBody,
    moved: Arc<Moved>,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            this.moved.from_client(frame.data_ref().map_or(0, Bytes::len));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_its_specification() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn an_accept_is_that_of_the_specification() {
        // RFC 6455, section 1.3.
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_ne!(own_key().unwrap(), own_key().unwrap());
    }
}
