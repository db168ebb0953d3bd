//! Why requests fail: the closed set that answers follow from and that is counted.

/// Why a request failed; the closed set behind the label `kind`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum FaultKind {
    /// The request is not HTTP as we accept it.
    BadRequest,
    /// The client went away or its body broke off.
    ClientGone,
    /// No connection to an endpoint could be opened.
    Connect,
    /// This node has no descriptor or memory for another connection to the endpoint.
    Descriptors,
    /// The endpoint went down while it had the request.
    EndpointDown,
    /// The endpoint and the agent did not agree over TLS.
    Handshake,
    /// The head of the request has too many fields.
    HeadTooLarge,
    /// No local port is free for another connection to the endpoint.
    LocalPorts,
    /// The request is meant for another listener than the one its connection was opened for.
    Misdirected,
    /// The route names a service that does not exist.
    MissingService,
    /// No endpoint may receive.
    NoEndpoint,
    /// No route matches.
    NoRoute,
    /// All connections to the endpoint that are allowed are in use.
    Overload,
    /// The endpoint sent something that is not HTTP.
    Protocol,
    /// The endpoint said that it did nothing with the request.
    Refused,
    /// The endpoint closed the connection before it answered.
    Reset,
    /// The time for the whole exchange was over.
    RequestTimeout,
    /// A bound of the gateway is reached.
    Shed,
    /// The client did not send its body in time.
    SlowBody,
    /// The connection was let in otherwise than its listener lets clients in now, or its listener is gone.
    Stale,
    /// The time for one try was over.
    TryTimeout,
    /// A method or a protocol change that is not served.
    Unsupported,
}

impl FaultKind {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// All of them.
    pub const ALL: [Self; 22] = [
        Self::BadRequest,
        Self::ClientGone,
        Self::Connect,
        Self::Descriptors,
        Self::EndpointDown,
        Self::Handshake,
        Self::HeadTooLarge,
        Self::LocalPorts,
        Self::Misdirected,
        Self::MissingService,
        Self::NoEndpoint,
        Self::NoRoute,
        Self::Overload,
        Self::Protocol,
        Self::Refused,
        Self::Reset,
        Self::RequestTimeout,
        Self::Shed,
        Self::SlowBody,
        Self::Stale,
        Self::TryTimeout,
        Self::Unsupported,
    ];

    /// The value of the label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::ClientGone => "client_gone",
            Self::Connect => "connect",
            Self::Descriptors => "descriptors",
            Self::EndpointDown => "endpoint_down",
            Self::Handshake => "handshake",
            Self::HeadTooLarge => "head_too_large",
            Self::LocalPorts => "local_ports",
            Self::Misdirected => "misdirected",
            Self::MissingService => "missing_service",
            Self::NoEndpoint => "no_endpoint",
            Self::NoRoute => "no_route",
            Self::Overload => "overload",
            Self::Protocol => "protocol",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::RequestTimeout => "request_timeout",
            Self::Shed => "shed",
            Self::SlowBody => "slow_body",
            Self::Stale => "stale",
            Self::TryTimeout => "try_timeout",
            Self::Unsupported => "unsupported",
        }
    }

    /// Its place in [`FaultKind::ALL`].
    #[expect(clippy::as_conversions, reason = "a fieldless enum's number, the order of `ALL`")]
    pub const fn index(self) -> usize {
        self as usize
    }
}
