//! Why a request failed, and the one table from that to a response.

use http::{HeaderValue, Response, StatusCode, header};

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

impl Fault {
    /// A fault of this kind.
    pub const fn new(kind: Kind) -> Self {
        let (side, retry) = match kind {
            Kind::BadRequest | Kind::ClientGone | Kind::HeadTooLarge | Kind::Unsupported => {
                (Side::Downstream, Retry::Never)
            }
            Kind::MissingService | Kind::NoEndpoint | Kind::NoRoute | Kind::RequestTimeout => {
                (Side::Gateway, Retry::Never)
            }
            Kind::Connect | Kind::Overload | Kind::Refused => (Side::Upstream, Retry::Safe),
            Kind::EndpointDown | Kind::Reset => (Side::Upstream, Retry::IfIdempotent),
            Kind::Protocol | Kind::TryTimeout => (Side::Upstream, Retry::Never),
        };
        Self { side, kind, retry }
    }

    /// The status that a client sees.
    pub const fn status(self) -> StatusCode {
        match self.kind {
            Kind::BadRequest | Kind::ClientGone => StatusCode::BAD_REQUEST,
            Kind::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Kind::MissingService => StatusCode::INTERNAL_SERVER_ERROR,
            Kind::NoRoute => StatusCode::NOT_FOUND,
            Kind::Unsupported => StatusCode::NOT_IMPLEMENTED,
            Kind::Protocol | Kind::Reset => StatusCode::BAD_GATEWAY,
            Kind::Connect | Kind::EndpointDown | Kind::NoEndpoint | Kind::Overload | Kind::Refused => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Kind::RequestTimeout | Kind::TryTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The response that a client sees: the status, and one line of text that names the fault but no address.
    pub fn response(self) -> Response<ResponseBody> {
        let text: &'static str = match self.kind {
            Kind::BadRequest => "bad request\n",
            Kind::ClientGone => "the request broke off\n",
            Kind::Connect => "no endpoint could be reached\n",
            Kind::EndpointDown => "the endpoint went down\n",
            Kind::HeadTooLarge => "too many header fields\n",
            Kind::MissingService => "the route leads to a service that does not exist\n",
            Kind::NoEndpoint => "no endpoint is available\n",
            Kind::NoRoute => "no route matches\n",
            Kind::Overload => "too many connections to the endpoint\n",
            Kind::Protocol => "the endpoint did not speak HTTP\n",
            Kind::Refused => "the endpoint refused the request\n",
            Kind::Reset => "the endpoint closed the connection\n",
            Kind::RequestTimeout => "the request took too long\n",
            Kind::TryTimeout => "the endpoint took too long\n",
            Kind::Unsupported => "not supported\n",
        };
        let mut response = Response::new(ResponseBody::text(text));
        *response.status_mut() = self.status();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        response
    }
}
