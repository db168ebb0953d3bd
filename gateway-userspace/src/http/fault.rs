//! Why a request failed, and the one table from that to a response. `docs/reference/faults.md` is made from it.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header, request::Parts};

use crate::http::body::ResponseBody;
pub use crate::metrics::names::FaultKind as Kind;

/// Why an exchange failed, in the terms that matter to the next decision.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fault {
    /// Who is to blame.
    pub side: Side,
    /// What happened.
    pub kind: Kind,
    /// May it be sent again.
    pub retry: Retry,
}

/// Who is to blame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// The client.
    Downstream,
    /// We, or our configuration.
    Gateway,
    /// The endpoint.
    Upstream,
}

impl Side {
    /// The word of the reference.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Downstream => "client",
            Self::Gateway => "gateway",
            Self::Upstream => "endpoint",
        }
    }
}

/// May a request be sent again, given how far it got.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Retry {
    /// No.
    Never,
    /// Yes, if sending it twice does no harm and its body is still whole.
    IfIdempotent,
    /// Yes: the endpoint has not seen it.
    Safe,
}

impl Retry {
    /// The words of the reference.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Never => "no",
            Self::IfIdempotent => "if idempotent",
            Self::Safe => "yes",
        }
    }
}

/// What a client reads answers in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Language {
    /// Status and text.
    Http,
    /// A status of gRPC, in a response without a body.
    Grpc,
}

impl Language {
    /// What the client of a request speaks. gRPC-Web is read by HTTP clients.
    pub fn of(parts: &Parts) -> Self {
        let is_grpc = |value: &HeaderValue| {
            let rest = value.as_bytes().strip_prefix(b"application/grpc");
            rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
        };
        // gRPC has no other method.
        let is_grpc =
            parts.method == Method::POST && parts.headers.get(header::CONTENT_TYPE).is_some_and(is_grpc);
        if is_grpc { Self::Grpc } else { Self::Http }
    }
}

/// A status of gRPC (its document `statuscodes.md`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Grpc(u8, &'static str);

impl Grpc {
    const CANCELLED: Self = Self(1, "CANCELLED");
    const DEADLINE_EXCEEDED: Self = Self(4, "DEADLINE_EXCEEDED");
    const INTERNAL: Self = Self(13, "INTERNAL");
    const RESOURCE_EXHAUSTED: Self = Self(8, "RESOURCE_EXHAUSTED");
    const UNAVAILABLE: Self = Self(14, "UNAVAILABLE");
    const UNIMPLEMENTED: Self = Self(12, "UNIMPLEMENTED");

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        self.1
    }
}

/// What follows from one kind of fault.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The kind.
    pub kind: Kind,
    /// Who is to blame.
    pub side: Side,
    /// May the request be sent again.
    pub retry: Retry,
    /// What a client of HTTP gets.
    pub status: StatusCode,
    /// What a client of gRPC gets.
    pub grpc: Grpc,
    /// Seconds after which another attempt may fare better.
    pub retry_after_s: Option<u8>,
    /// One line for the client, which names the fault but no address.
    pub text: &'static str,
    /// What happened, for the operator.
    pub meaning: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

impl Fault {
    /// A fault of this kind.
    pub const fn new(kind: Kind) -> Self {
        let row = row(kind);
        Self { side: row.side, kind, retry: row.retry }
    }

    /// The response that a client sees.
    pub fn response(self, language: Language) -> Response<ResponseBody> {
        const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
        const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
        let row = row(self.kind);
        let mut response;
        match language {
            Language::Http => {
                response = Response::new(ResponseBody::text(Bytes::from_static(row.text.as_bytes())));
                *response.status_mut() = row.status;
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            }
            Language::Grpc => {
                response = Response::new(ResponseBody::text(Bytes::new()));
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(row.grpc.number())));
                headers.insert(GRPC_MESSAGE, HeaderValue::from_static(row.text.trim_ascii_end()));
            }
        }
        if let Some(seconds) = row.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(u16::from(seconds)));
        }
        response
    }
}

#[expect(clippy::indexing_slicing, reason = "as many rows as kinds, in their order: a test compares")]
const fn row(kind: Kind) -> &'static Row {
    &TABLE[kind.index()]
}

/// What follows from each kind of fault, in their order.
pub static TABLE: [Row; Kind::COUNT] = [
    Row {
        kind: Kind::BadRequest,
        side: Side::Downstream,
        retry: Retry::Never,
        status: StatusCode::BAD_REQUEST,
        grpc: Grpc::INTERNAL,
        retry_after_s: None,
        text: "bad request\n",
        meaning: "The request is not HTTP as it is accepted here, or its path has no form that everybody reads alike.",
        remedy: "Correct the client; `paths` of the listener says what is done with unusual paths.",
    },
    Row {
        kind: Kind::ClientGone,
        side: Side::Downstream,
        retry: Retry::Never,
        status: StatusCode::BAD_REQUEST,
        grpc: Grpc::CANCELLED,
        retry_after_s: None,
        text: "the request broke off\n",
        meaning: "The client went away or its body broke off.",
        remedy: "None; a client in a hurry.",
    },
    Row {
        kind: Kind::Connect,
        side: Side::Upstream,
        retry: Retry::Safe,
        status: StatusCode::SERVICE_UNAVAILABLE,
        grpc: Grpc::UNAVAILABLE,
        retry_after_s: None,
        text: "no endpoint could be reached\n",
        meaning: "No connection to an endpoint could be opened.",
        remedy: "Look at the endpoint, and at `connectTimeout`; a health check keeps requests away from it.",
    },
    Row {
        kind: Kind::Descriptors,
        side: Side::Gateway,
        retry: Retry::Safe,
        status: StatusCode::SERVICE_UNAVAILABLE,
        grpc: Grpc::UNAVAILABLE,
        retry_after_s: Some(1),
        text: "the gateway cannot open another connection\n",
        meaning: "This node has no file descriptor, or no memory, for another connection to an endpoint.",
        remedy: "Raise `LimitNOFILE` of the agent, or `fs.file-max`; send less.",
    },
    Row {
        kind: Kind::EndpointDown,
        side: Side::Upstream,
        retry: Retry::IfIdempotent,
        status: StatusCode::SERVICE_UNAVAILABLE,
        grpc: Grpc::UNAVAILABLE,
        retry_after_s: None,
        text: "the endpoint went down\n",
        meaning: "The endpoint went down while it had the request.",
        remedy: "Look at the endpoint; let it end its requests before it stops.",
    },
    Row {
        kind: Kind::Handshake,
        side: Side::Upstream,
        retry: Retry::Safe,
        status: StatusCode::BAD_GATEWAY,
        grpc: Grpc::UNAVAILABLE,
        retry_after_s: None,
        text: "no agreement with the endpoint over TLS\n",
        meaning: "The endpoint's certificate is not good for its name or leads to nobody who is trusted, or it did not accept ours, or speaks no TLS, or no HTTP/2.",
        remedy: "Look at the agent's log for the cause; correct `tls` of the service or the endpoint's certificate.",
    },
    Row {
        kind: Kind::HeadTooLarge,
        side: Side::Downstream,
        retry: Retry::Never,
        status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        grpc: Grpc::RESOURCE_EXHAUSTED,
        retry_after_s: None,
        text: "too many header fields\n",
        meaning: "The head of the request has too many fields.",
        remedy: "Send fewer; often cookies.",
    },
    Row {
        kind: Kind::LocalPorts,
        side: Side::Gateway,
        retry: Retry::Safe,
        status: StatusCode::SERVICE_UNAVAILABLE,
        grpc: Grpc::UNAVAILABLE,
        retry_after_s: Some(1),
        text: "no local port is free towards the endpoint\n",
        meaning: "No local port is free for another connection to the endpoint.",
        remedy: "Widen `net.ipv4.ip_local_port_range`, add endpoints, or let endpoints keep connections open for longer.",
    },
    Row {
        kind: Kind::Misdirected,
        side: Side::Downstream,
        retry: Retry::Never,
        status: StatusCode::MISDIRECTED_REQUEST,
        grpc: Grpc::INTERNAL,
        retry_after_s: None,
        text: "the connection was opened for another listener\n",
        meaning: "The request is meant for another listener than the one its TLS connection was opened for.",
        remedy: "Clients open another connection by themselves; a certificate that names fewer hosts saves them the way.",
    },
    Row {
        kind: Kind::MissingService,
        side: Side::Gateway,
        retry: Retry::Never,
        status: StatusCode::INTERNAL_SERVER_ERROR,
        // What the Gateway API asks for where a GRPCRoute has no valid backend.
        grpc: Grpc::UNAVAILABLE,
        retry_after_s: None,
        text: "the route leads to a service that does not exist\n",
        meaning: "The route names a service that does not exist, or gives no backend a weight.",
        remedy: "Write the service, or correct the route.",
    },
    Row {
        kind: Kind::NoEndpoint,
        side: Side::Gateway,
        retry: Retry::Never,
        status: StatusCode::SERVICE_UNAVAILABLE,
        grpc: Grpc::UNAVAILABLE,
        retry_after_s: Some(1),
        text: "no endpoint is available\n",
        meaning: "No endpoint may receive.",
        remedy: "Look at `sluice_endpoint_up`.",
    },
    Row {
        kind: Kind::NoRoute,
        side: Side::Gateway,
        retry: Retry::Never,
        status: StatusCode::NOT_FOUND,
        grpc: Grpc::UNIMPLEMENTED,
        retry_after_s: None,
        text: "no route matches\n",
        meaning: "No route matches.",
        remedy: "Write a route, or correct the request.",
    },
    Row {
        kind: Kind::Overload,
        side: Side::Upstream,
        retry: Retry::Safe,
        status: StatusCode::SERVICE_UNAVAILABLE,
        grpc: Grpc::UNAVAILABLE,
        retry_after_s: Some(1),
        text: "too many connections to the endpoint\n",
        meaning: "All connections to the endpoint that are allowed are in use.",
        remedy: "Add endpoints.",
    },
    Row {
        kind: Kind::Protocol,
        side: Side::Upstream,
        retry: Retry::Never,
        status: StatusCode::BAD_GATEWAY,
        grpc: Grpc::UNAVAILABLE,
        retry_after_s: None,
        text: "the endpoint did not speak HTTP\n",
        meaning: "The endpoint sent something that is not HTTP, or answered the wish for a tunnel with a success that opens none.",
        remedy: "Look at the endpoint, and at `protocol` of the service.",
    },
    Row {
        kind: Kind::Refused,
        side: Side::Upstream,
        retry: Retry::Safe,
        status: StatusCode::SERVICE_UNAVAILABLE,
        grpc: Grpc::UNAVAILABLE,
        retry_after_s: None,
        text: "the endpoint refused the request\n",
        meaning: "The endpoint said that it did nothing with the request.",
        remedy: "Look at the endpoint: it sheds load, or stops.",
    },
    Row {
        kind: Kind::Reset,
        side: Side::Upstream,
        retry: Retry::IfIdempotent,
        status: StatusCode::BAD_GATEWAY,
        grpc: Grpc::UNAVAILABLE,
        retry_after_s: None,
        text: "the endpoint closed the connection\n",
        meaning: "The endpoint closed the connection before it answered.",
        remedy: "Look at the endpoint; if it closes idle connections, let it keep them longer than a minute.",
    },
    Row {
        kind: Kind::RequestTimeout,
        side: Side::Gateway,
        retry: Retry::Never,
        status: StatusCode::GATEWAY_TIMEOUT,
        grpc: Grpc::DEADLINE_EXCEEDED,
        retry_after_s: None,
        text: "the request took too long\n",
        meaning: "The time for the whole exchange was over.",
        remedy: "Look at the endpoint, or raise `timeouts.request` of the rule.",
    },
    Row {
        kind: Kind::Shed,
        side: Side::Gateway,
        retry: Retry::Never,
        status: StatusCode::SERVICE_UNAVAILABLE,
        grpc: Grpc::UNAVAILABLE,
        retry_after_s: Some(1),
        text: "the gateway has too much to do\n",
        meaning: "A bound of the gateway is reached; `sluice_limit_reached_total` says which.",
        remedy: "Send less, or give the agent more cores and memory; bounds that can be written are in the configuration.",
    },
    Row {
        kind: Kind::SlowBody,
        side: Side::Downstream,
        retry: Retry::Never,
        status: StatusCode::REQUEST_TIMEOUT,
        grpc: Grpc::CANCELLED,
        retry_after_s: None,
        text: "the body of the request did not come in time\n",
        meaning: "The client sent nothing of its body for too long, or too little of it.",
        remedy: "None where it is an attack; for clients behind slow links raise `stall`, or lower `bytesPerSecond`, of `agent.clientTimeouts`.",
    },
    Row {
        kind: Kind::Stale,
        side: Side::Gateway,
        retry: Retry::Safe,
        status: StatusCode::MISDIRECTED_REQUEST,
        grpc: Grpc::UNAVAILABLE,
        retry_after_s: None,
        text: "the connection is of former days; open another one\n",
        meaning: "The connection was let in before the listener changed what its clients have to prove, or before it was removed. It ends; over HTTP/2 the stream is refused (`REFUSED_STREAM`).",
        remedy: "None: clients repeat the request on another connection, nothing was done with it.",
    },
    Row {
        kind: Kind::TryTimeout,
        side: Side::Upstream,
        retry: Retry::IfIdempotent,
        status: StatusCode::GATEWAY_TIMEOUT,
        grpc: Grpc::DEADLINE_EXCEEDED,
        retry_after_s: None,
        text: "the endpoint took too long\n",
        meaning: "The time for one try was over.",
        remedy: "Look at the endpoint, or raise `timeouts.backendRequest` of the rule.",
    },
    Row {
        kind: Kind::Unsupported,
        side: Side::Downstream,
        retry: Retry::Never,
        status: StatusCode::NOT_IMPLEMENTED,
        grpc: Grpc::UNIMPLEMENTED,
        retry_after_s: None,
        text: "not supported\n",
        meaning: "A tunnel that the rule refuses, or that the endpoint does not offer, or a protocol that is not spoken.",
        remedy: "See `tunnels` of the rule.",
    },
];

#[cfg(test)]
mod tests {
    use http::Request;
    use http_body::Body as _;

    use super::*;

    #[test]
    fn every_kind_has_its_row() {
        for (kind, row) in Kind::ALL.iter().zip(&TABLE) {
            assert_eq!(*kind, row.kind);
            assert!(row.text.ends_with('\n') && row.status.as_u16() >= 400);
        }
    }

    #[test]
    fn clients_of_grpc_are_told_in_their_words() {
        let parts = |method: Method, kind: &str| {
            let request = Request::builder().method(method).header("content-type", kind);
            request.body(()).unwrap().into_parts().0
        };
        for (method, kind, expected) in [
            (Method::POST, "application/grpc", Language::Grpc),
            (Method::POST, "application/grpc+proto", Language::Grpc),
            (Method::POST, "application/grpc; a=b", Language::Grpc),
            (Method::POST, "application/grpc-web", Language::Http),
            (Method::GET, "application/grpc", Language::Http),
            (Method::POST, "text/plain", Language::Http),
        ] {
            assert_eq!(Language::of(&parts(method, kind)), expected, "{kind}");
        }
        let response = Fault::new(Kind::NoEndpoint).response(Language::Grpc);
        let get = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!((get("grpc-status"), get("grpc-message")), (Some("14"), Some("no endpoint is available")));
        assert_eq!((get("content-type"), get("retry-after")), (Some("application/grpc"), Some("1")));
        assert!(response.body().is_end_stream());
    }
}
