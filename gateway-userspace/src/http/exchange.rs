//! The life of one request: route, pick, connect or reuse, send, receive, log.

use std::{pin::Pin, sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode, request::Parts};
use tokio::time::Sleep;

use crate::{
    http::{
        Downstream, Scheme, Worker,
        body::ResponseBody,
        fault::{Fault, Kind, Language},
        filtered::{self, Remembered},
        forward::{Forward, Forwarded, Message},
        header,
    },
    limits,
    metrics::shard::RouteStats,
    pool::body::RequestBody,
    route,
    state::{Bind, HttpBind, HttpListener, Matched, Rule},
    upstream::Upstream,
};

/// Serves one request with the state of this moment.
pub async fn run(
    worker: &Worker,
    downstream: &Downstream,
    request: Request<RequestBody>,
) -> Response<ResponseBody> {
    let started = worker.clock.now();
    let state = worker.published.load();
    let (mut parts, body) = request.into_parts();
    let language = Language::of(&parts);
    let (routed, counted) = match state.binds.get(&downstream.bind) {
        Some(Bind::Http(bind)) => {
            // Before routes are looked at: they may ask for an identity like for any field.
            downstream.identify(&state, bind, &mut parts.headers);
            find(bind, downstream, &mut parts)
        }
        Some(Bind::Balanced(_)) | None => return Fault::new(Kind::NoRoute).response(language),
    };
    let method = parts.method.clone();
    let filters = routed.as_ref().ok().and_then(|routed| routed.rule.filters.as_deref());
    let filters = filters.map(|filters| (filters, Remembered::of(filters, &parts.method, &parts.headers)));
    let done = match routed {
        Ok(routed) => serve(worker, downstream, routed, parts, body).await,
        Err(fault) => Err(fault),
    };
    let mut response = done.unwrap_or_else(|fault| {
        counted.fault(worker.idx, fault.kind);
        fault.response(language)
    });
    if let Some((filters, remembered)) = filters {
        filtered::respond(filters, &remembered, response.headers_mut());
    }
    log(worker, downstream, &method, response.status(), counted, worker.clock.now().duration_since(started));
    drop(state);
    response
}

/// Where a request goes.
#[derive(Clone, Copy)]
struct Routed<'s> {
    listener: &'s HttpListener,
    rule: &'s Rule,
    prefix_bytes: usize,
}

/// Route: the most specific listener for the host name, then its most specific route.
fn find<'s>(
    bind: &'s HttpBind,
    downstream: &Downstream,
    parts: &mut Parts,
) -> (Result<Routed<'s>, Fault>, &'s RouteStats) {
    let fault = |kind, counted: &'s Arc<RouteStats>| (Err(Fault::new(kind)), counted.as_ref());
    if parts.method == Method::CONNECT {
        return fault(Kind::Unsupported, &bind.unmatched);
    }
    // The codec of HTTP/1 refuses more by itself; HTTP/2 counts bytes only.
    if parts.headers.len() > limits::HEADERS {
        return fault(Kind::HeadTooLarge, &bind.unmatched);
    }
    let authority = header::authority(parts).unwrap_or_default();
    if !header::is_sound(authority) {
        return fault(Kind::BadRequest, &bind.unmatched);
    }
    let listener = bind.listeners.lookup(&header::host_name(authority)).next();
    if downstream.scheme == Scheme::Https && !is_of_connection(bind, downstream, listener) {
        return fault(Kind::Misdirected, &bind.unmatched);
    }
    let Some(listener) = listener else {
        return fault(Kind::NoRoute, &bind.unmatched);
    };
    if let Err(refused) = header::normalize(parts, listener.paths) {
        return (Err(refused), &listener.unmatched);
    }
    let request = route::Request {
        host: &header::host_name(header::authority(parts).unwrap_or_default()),
        path: parts.uri.path(),
        query: parts.uri.query(),
        method: &parts.method,
        headers: &parts.headers,
    };
    match listener.table.find(&request) {
        Some(Matched { rule, prefix_bytes }) => {
            (Ok(Routed { listener, rule, prefix_bytes: *prefix_bytes }), &rule.stats)
        }
        None => fault(Kind::NoRoute, &listener.unmatched),
    }
}

/// Whether the listener that a request is meant for is the one that its connection was opened for. Clients send requests
/// for several names over one connection when its certificate is good for them (RFC 9113, section 9.1.1), but what a
/// listener asks of its connections holds for no other.
fn is_of_connection(bind: &HttpBind, downstream: &Downstream, listener: Option<&HttpListener>) -> bool {
    let opened = bind.listeners.lookup(&downstream.server_name).next();
    match (opened, listener) {
        (Some(opened), Some(meant)) => std::ptr::eq(opened, meant),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Answers, or makes what the endpoint gets and sends it.
async fn serve(
    worker: &Worker,
    downstream: &Downstream,
    routed: Routed<'_>,
    mut parts: Parts,
    body: RequestBody,
) -> Result<Response<ResponseBody>, Fault> {
    let Routed { listener, rule, prefix_bytes } = routed;
    let filters = rule.filters.as_deref();
    if let Some(filters) = filters {
        if let Some(response) = filtered::answer(filters, downstream, &parts, prefix_bytes) {
            return Ok(response);
        }
        filtered::rewrite(filters, &mut parts, prefix_bytes)?;
    }
    let service = rule.backends.draw().ok_or(Fault::new(Kind::MissingService))?;
    let onward = header::Onward {
        downstream,
        trusted_hops: listener.trusted_hops,
        host: filters.and_then(|filters| filters.rewrite.as_ref()?.host.as_ref()),
        protocol: service.definition().protocol,
        has_body: !body.is_empty(),
    };
    let mut head = header::to_upstream(parts, &onward)?;
    if let Some(filters) = filters {
        filters.request_headers.apply(&mut head.headers);
    }
    within_deadline(worker, downstream, rule, service, Message::new(head, body)).await
}

/// Bounds the exchange, and hands what is left of the time to the body.
async fn within_deadline(
    worker: &Worker,
    downstream: &Downstream,
    rule: &Rule,
    service: &Upstream,
    message: Message,
) -> Result<Response<ResponseBody>, Fault> {
    let forward = Forward { worker, downstream, service, rule };
    let Some(timeout) = rule.request_timeout else {
        return receive(forward.run(message).await?, None);
    };
    let mut deadline = Box::pin(tokio::time::sleep(timeout));
    tokio::select! {
        biased;
        forwarded = forward.run(message) => receive(forwarded?, Some(deadline)),
        () = deadline.as_mut() => Err(Fault::new(Kind::RequestTimeout)),
    }
}

/// Receive: the head goes on, the body streams behind it.
fn receive(forwarded: Forwarded, deadline: Option<Pin<Box<Sleep>>>) -> Result<Response<ResponseBody>, Fault> {
    let Forwarded { response, lease, active } = forwarded;
    let (mut parts, incoming) = response.into_parts();
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        // We never ask for it.
        return Err(Fault::new(Kind::Protocol));
    }
    header::to_downstream(&mut parts)?;
    Ok(Response::from_parts(parts, ResponseBody::upstream(incoming, lease, active, deadline)))
}

/// Log: numbers always, a line when somebody asked for it.
fn log(
    worker: &Worker,
    downstream: &Downstream,
    method: &Method,
    status: StatusCode,
    counted: &RouteStats,
    elapsed: Duration,
) {
    counted.record(worker.idx, status.as_u16(), elapsed);
    tracing::trace!(%method, status = status.as_u16(), bind = %downstream.bind, ?elapsed, "request");
}
