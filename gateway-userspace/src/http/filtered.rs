//! The filters of a rule at work: answers of the gateway's own, and changes on the way there and back.

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header as names, request::Parts};

use crate::{
    filter::{
        Answer, Filters,
        cors::is_preflight,
        redirect::{Asked, Redirect, Scheme as Target},
    },
    http::{
        Downstream, Scheme,
        body::ResponseBody,
        fault::{Fault, Kind},
        header,
    },
    state::Backend,
};

/// What the response needs to know about its request.
#[derive(Clone, Debug)]
pub struct Remembered {
    origin: Option<HeaderValue>,
    is_preflight: bool,
}

impl Remembered {
    /// From the head of a request.
    pub fn of(filters: &Filters, method: &Method, headers: &HeaderMap) -> Self {
        match &filters.cors {
            Some(_) => {
                let origin = headers.get(names::ORIGIN).cloned();
                Self { origin, is_preflight: is_preflight(method, headers) }
            }
            None => Self { origin: None, is_preflight: false },
        }
    }
}

/// The gateway's own answer, if the filters have one for this request.
pub fn answer(
    filters: &Filters,
    downstream: &Downstream,
    parts: &Parts,
    prefix_bytes: usize,
) -> Option<Response<ResponseBody>> {
    if let Some(cors) = &filters.cors
        && is_preflight(&parts.method, &parts.headers)
    {
        let mut response = bare(StatusCode::OK);
        *response.headers_mut() = cors.preflight(&parts.headers);
        return Some(response);
    }
    match filters.answer.as_ref()? {
        Answer::Redirect(to) => Some(redirect(to, downstream, parts, prefix_bytes)),
        Answer::Respond(respond) => {
            let mut response = Response::new(ResponseBody::text(respond.body.clone()));
            *response.status_mut() = respond.status;
            if !respond.body.is_empty() {
                response.headers_mut().insert(names::CONTENT_TYPE, respond.content_type.clone());
            }
            Some(response)
        }
    }
}

/// The answer to a request that goes no further, as if no endpoint were behind us (RFC 9110, section 7.6.2). Requests are
/// not said back: fields of theirs are nobody's business but the endpoint's (section 9.3.8).
pub(super) fn last_hop(method: &Method) -> Result<Response<ResponseBody>, Fault> {
    if *method == Method::OPTIONS { Ok(bare(StatusCode::OK)) } else { Err(Fault::new(Kind::Unsupported)) }
}

pub(super) fn bare(status: StatusCode) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::text(bytes::Bytes::new()));
    *response.status_mut() = status;
    response
}

fn redirect(
    to: &Redirect,
    downstream: &Downstream,
    parts: &Parts,
    prefix_bytes: usize,
) -> Response<ResponseBody> {
    let host = header::host_name(header::authority(parts).unwrap_or_default());
    let asked = Asked {
        scheme: match downstream.scheme {
            Scheme::Http => Target::Http,
            Scheme::Https => Target::Https,
        },
        host: &host,
        port: downstream.bind.addr.port(),
        // `*` is no path that anybody could be sent to.
        path: if parts.uri.path().starts_with('/') { parts.uri.path() } else { "/" },
        prefix_bytes,
        query: parts.uri.query(),
    };
    let mut response = bare(to.status);
    if let Some(location) = to.location(&asked) {
        response.headers_mut().insert(names::LOCATION, location);
    }
    response
}

/// Gives a request the path that the endpoint shall get.
pub fn rewrite(filters: &Filters, parts: &mut Parts, prefix_bytes: usize) -> Result<(), Fault> {
    let Some(path) = filters.rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref()) else {
        return Ok(());
    };
    // `*` is no path.
    if !parts.uri.path().starts_with('/') {
        return Err(Fault::new(Kind::BadRequest));
    }
    let path = path.apply(parts.uri.path(), prefix_bytes).into_owned();
    header::set_path(parts, path)
}

/// Changes the head of a request, as the endpoint gets it: the rule's filters first, then those of the backend.
pub fn ask(filters: Option<&Filters>, backend: &Backend, headers: &mut HeaderMap) {
    if let Some(filters) = filters {
        filters.request_headers.apply(headers);
    }
    if let Some(filters) = &backend.filters {
        filters.request_headers.apply(headers);
    }
}

/// Changes the head of an endpoint's response by the filters of its backend; those of the rule come later.
pub fn answered(backend: &Backend, mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    if let Some(filters) = &backend.filters {
        filters.response_headers.apply(response.headers_mut());
    }
    response
}

/// Changes the head of a response, whoever gave it.
pub fn respond(filters: &Filters, remembered: &Remembered, headers: &mut HeaderMap) {
    if let Some(cors) = &filters.cors
        && !remembered.is_preflight
    {
        cors.respond(remembered.origin.as_ref(), headers);
    }
    filters.response_headers.apply(headers);
}
