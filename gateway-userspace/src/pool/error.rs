//! Why a request got no response, or no connection.

use std::io;

/// Why a request got no response.
#[derive(Debug)]
pub enum SendError {
    /// The body came from a client that broke off.
    Body,
    /// The client sent its body too slowly, or nothing of it for too long.
    Stalled,
    /// The connection ended before the response; how far the request got is unknown.
    Closed,
    /// There was no response in time.
    TimedOut,
    /// The response was not HTTP.
    Protocol,
    /// Nothing of the request was sent, or the connection ended before the endpoint looked at it.
    Unsent,
    /// The endpoint did nothing with it, and said so: any request may be sent again.
    Refused,
    /// The endpoint takes no tunnels.
    Unsupported,
    /// The endpoint did not let us in, and so did nothing.
    Unaccepted,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum OpenError {
    /// The cap on connections to this endpoint is reached.
    Full,
    /// It could not be opened.
    Io(io::Error),
    /// The endpoint and we did not agree on who we are, or on how to speak.
    Handshake(io::Error),
}

impl OpenError {
    /// Whether this node has no descriptor or memory for a connection, wherever it leads.
    pub fn is_of_node(&self) -> bool {
        matches!(self, Self::Io(cause) if is_of_node(cause))
    }
}

/// Whether this node has no descriptor or memory for a connection, wherever it leads.
pub fn is_of_node(cause: &io::Error) -> bool {
    matches!(cause.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
