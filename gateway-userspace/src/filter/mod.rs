//! What a rule does with a request besides forwarding it, and with its response: plain values and pure functions.

pub mod cors;
pub mod edit;
pub mod redirect;
pub mod rewrite;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use crate::filter::{cors::Cors, edit::Edits, redirect::Redirect, rewrite::Rewrite};

/// Everything that a rule does.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Filters {
    /// Of the request, as the endpoint gets it.
    pub request_headers: Edits,
    /// Of the response, as the client gets it.
    pub response_headers: Edits,
    /// Another target towards the endpoint.
    pub rewrite: Option<Rewrite>,
    /// Who may read responses in a browser.
    pub cors: Option<Cors>,
    /// An answer of the gateway's own, instead of forwarding.
    pub answer: Option<Answer>,
}

/// What a rule does for one of its backends alone: besides its own filters, between those and the endpoint.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct BackendFilters {
    /// Of the request, after the rule's.
    pub request_headers: Edits,
    /// Of the endpoint's response, before the rule's.
    pub response_headers: Edits,
}

/// An answer of the gateway's own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// Ask elsewhere.
    Redirect(Redirect),
    /// This.
    Respond(Respond),
}

/// A response as it is written in the configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Respond {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: Bytes,
    /// What the body is.
    pub content_type: HeaderValue,
}
