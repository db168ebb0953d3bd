//! The life of one request: route, pick, connect or reuse, send, receive, log.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header as names,
    request::Parts, uri::PathAndQuery,
};
use tokio::time::Sleep;

use crate::{
    access::Line,
    config::AccessField,
    field::{Underscored, Underscores},
    http::{
        Downstream, Scheme, Worker,
        body::ResponseBody,
        deadline,
        fault::{Fault, Kind, Language},
        filtered::{self, Remembered},
        forward::{Forward, Forwarded, Message},
        forwarded, header,
        load::UnderWay,
        mirror, trace,
        tunnel::{Opening, Wanted},
    },
    limits,
    metrics::{names::Families, refusal::Refusal, shard::RouteStats, timeout::ClientTimeout},
    pool::{body::BoxError, interim::Interim},
    route,
    state::{Bind, HttpBind, HttpListener, Matched, Rule, State},
};

/// Serves one request with the state of this moment. What is left of the message then is of no use.
pub(super) async fn run(
    worker: &Worker,
    downstream: &Downstream,
    message: &mut Message,
    interim: &dyn Interim,
) -> Response<ResponseBody> {
    let started = worker.clock.now();
    let state = worker.published.load();
    let parts = &mut message.head;
    let language = Language::of(parts);
    let wanted = Wanted::of(parts);
    // Before fields are added here.
    let n_fields = parts.headers.len();
    if parts.headers.contains_key(names::CONNECTION) {
        header::forget_named(&mut parts.headers);
    }
    trace::propagate(&mut parts.headers, worker.trace);
    let mut line = begin(worker, downstream, parts, started);
    let Some(bind) = current(&state, downstream) else {
        return turn_away(worker, downstream, line, (started, language));
    };
    let (routed, counted) = find(worker, &state, bind, downstream, (parts, n_fields));
    let routed = routed.map(|routed| Routed { wanted, ..routed });
    let filters = routed.as_ref().ok().and_then(|routed| routed.rule.filters.as_deref());
    let filters = filters.map(|filters| (filters, Remembered::of(filters, &parts.method, &parts.headers)));
    let mut under_way = None;
    let done = match routed.and_then(|routed| {
        under_way = Some(begin_request(worker).map_err(Stop::Fault)?);
        Ok(routed)
    }) {
        Ok(routed) => {
            let client = Client { downstream, interim, started };
            serve(worker, client, routed, message, &mut line).await.map_err(Stop::Fault)
        }
        Err(stop) => Err(stop),
    };
    let mut response = done.unwrap_or_else(|stop| {
        let fault = match stop {
            Stop::Fault(fault) => fault,
            Stop::Elsewhere(location) => {
                let mut response = filtered::bare(StatusCode::TEMPORARY_REDIRECT);
                response.headers_mut().insert(names::LOCATION, location);
                return response;
            }
        };
        if fault.kind == Kind::SlowBody {
            worker.metrics.families.client_timeout(ClientTimeout::Body);
        }
        counted.fault(worker.idx, fault.kind);
        if let Some(line) = &mut line {
            line.word(AccessField::Fault, fault.kind.as_str());
        }
        fault.response(language)
    });
    if let Some((filters, remembered)) = filters {
        filtered::respond(filters, &remembered, response.headers_mut());
    }
    let elapsed = worker.clock.now().duration_since(started);
    counted.record(worker.idx, response.status().as_u16(), elapsed);
    if let Some(line) = &mut line {
        line.number(AccessField::Status, response.status().as_u16().into());
        line.duration(AccessField::HeadTime, elapsed);
    }
    response.body_mut().log(line);
    // A tunnel may be open for days, and has a bound of its own.
    if !response.body().is_tunnel() {
        response.body_mut().hold(under_way);
    }
    drop(state);
    response
}

/// What a connection's requests are served with, if it would be let in there now as it was.
fn current<'s>(state: &'s State, downstream: &Downstream) -> Option<&'s HttpBind> {
    match state.binds.get(&downstream.bind)? {
        Bind::Http(bind) if bind.admission() == downstream.admitted.scope => Some(bind),
        Bind::Http(_) | Bind::Balanced(_) | Bind::Passthrough(_) => None,
    }
}

/// Has the client send its request again on another connection.
fn turn_away(
    worker: &Worker,
    downstream: &Downstream,
    mut line: Option<Box<Line>>,
    (started, language): (Instant, Language),
) -> Response<ResponseBody> {
    let fault = Fault::new(Kind::Stale);
    let mut response = fault.response(language);
    response.body_mut().end_connection();
    let elapsed = worker.clock.now().duration_since(started);
    if let Some(counted) = &downstream.admitted.counted {
        counted.fault(worker.idx, fault.kind);
        counted.record(worker.idx, response.status().as_u16(), elapsed);
    }
    if let Some(line) = &mut line {
        line.word(AccessField::Fault, fault.kind.as_str());
        line.number(AccessField::Status, response.status().as_u16().into());
        line.duration(AccessField::HeadTime, elapsed);
    }
    response.body_mut().log(line);
    response
}

/// Begins a request, unless there is too much to do.
fn begin_request(worker: &Worker) -> Result<UnderWay, Fault> {
    worker.load.begin().map_err(|limit| {
        worker.metrics.families.limit(limit);
        Fault::new(Kind::Shed)
    })
}

/// Counts what is no request, and logs it: what is known of it, and the status and the bytes that it was answered with, if
/// it was.
pub(super) fn refuse(
    worker: &Worker,
    downstream: &Downstream,
    (parts, refusal): (Option<&Parts>, Refusal),
    answer: Option<(StatusCode, usize)>,
) {
    worker.metrics.families.refuse(refusal);
    tracing::debug!(reason = refusal.as_str(), "the bytes of a request were refused");
    let started = worker.clock.now();
    let line = match parts {
        Some(parts) => begin(worker, downstream, parts, started),
        None => begin_unread(worker, downstream, started),
    };
    let Some(mut line) = line else { return };
    line.word(AccessField::Refusal, refusal.as_str());
    if let Some((status, n_bytes)) = answer {
        line.number(AccessField::Status, status.as_u16().into());
        line.sent(n_bytes);
        line.complete();
    }
}

/// Begins the line of the access log with what is known before the client has said anything.
fn begin_unread(worker: &Worker, downstream: &Downstream, started: Instant) -> Option<Box<Line>> {
    let mut line = worker.access.as_ref()?.begin(&worker.clock, started)?;
    line.text(AccessField::Client, downstream.client.as_bytes());
    if !downstream.server_name.is_empty() {
        line.text(AccessField::ServerName, downstream.server_name.as_bytes());
    }
    Some(line)
}

/// Begins the line of the access log with what the client said.
fn begin(worker: &Worker, downstream: &Downstream, parts: &Parts, started: Instant) -> Option<Box<Line>> {
    let mut line = begin_unread(worker, downstream, started)?;
    line.text(AccessField::Method, parts.method.as_str().as_bytes());
    if let Some(authority) = header::authority(parts) {
        line.text(AccessField::Host, authority.as_bytes());
    }
    let target = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
    line.text(AccessField::Target, target.as_bytes());
    line.word(AccessField::Protocol, version(parts.version));
    if let Some(agent) = parts.headers.get(names::USER_AGENT) {
        line.text(AccessField::UserAgent, agent.as_bytes());
    }
    if let Some(id) = trace::id(&parts.headers) {
        line.text(AccessField::Trace, id);
    }
    Some(line)
}

/// Where a request goes.
struct Routed<'s> {
    listener: &'s HttpListener,
    /// Fields that say who a client is.
    identities: &'s Arc<[HeaderName]>,
    rule: &'s Rule,
    prefix_bytes: usize,
    /// What is spoken instead of HTTP.
    wanted: Option<Wanted>,
}

/// Why a request goes nowhere.
enum Stop {
    Fault(Fault),
    /// The client finds what it wants there.
    Elsewhere(HeaderValue),
}

/// Route: the most specific listener for the host name, then its most specific route.
fn find<'s>(
    worker: &Worker,
    state: &'s State,
    bind: &'s HttpBind,
    downstream: &Downstream,
    (parts, n_fields): (&mut Parts, usize),
) -> (Result<Routed<'s>, Stop>, &'s RouteStats) {
    let fault = |kind, counted: &'s Arc<RouteStats>| (Err(Stop::Fault(Fault::new(kind))), counted.as_ref());
    let refuse = |reason, kind, counted: &'s Arc<RouteStats>| {
        worker.metrics.families.refuse(reason);
        fault(kind, counted)
    };
    // The codec of HTTP/1 refuses more by itself; HTTP/2 counts bytes only.
    if n_fields > limits::HEADERS && header::n_counted(n_fields, parts) > limits::HEADERS {
        return refuse(Refusal::HeadTooLarge, Kind::HeadTooLarge, &bind.unmatched);
    }
    let authority = header::authority(parts).unwrap_or_default();
    if !header::is_sound(authority) || header::has_unreadable_host(parts) {
        return refuse(Refusal::Host, Kind::BadRequest, &bind.unmatched);
    }
    if !header::is_web(&parts.uri) {
        return refuse(Refusal::Target, Kind::BadRequest, &bind.unmatched);
    }
    let listener = bind.listeners.lookup(&header::host_name(authority)).next();
    if downstream.scheme == Scheme::Https && !is_of_connection(bind, downstream, listener) {
        return fault(Kind::Misdirected, &bind.unmatched);
    }
    let Some(listener) = listener else {
        return fault(Kind::NoRoute, &bind.unmatched);
    };
    if without_underscores(&worker.metrics.families, listener.underscores, &mut parts.headers).is_err() {
        return refuse(Refusal::Underscore, Kind::BadRequest, &listener.unmatched);
    }
    // Before routes are looked at: they may ask for an identity like for any field, and shall not go by claims.
    if listener.trusted_hops == 0 {
        forwarded::forget(&mut parts.headers);
    }
    downstream.identify(state, bind, &mut parts.headers);
    // CONNECT has no path (RFC 9110, section 9.3.6).
    let is_connect = parts.method == Method::CONNECT;
    if !is_connect {
        match header::normalize(parts, listener.paths) {
            Ok(false) => {}
            Ok(true) => {
                let elsewhere = header::location(parts).map_or_else(Stop::Fault, Stop::Elsewhere);
                return (Err(elsewhere), &listener.unmatched);
            }
            Err(_) => return refuse(Refusal::Path, Kind::BadRequest, &listener.unmatched),
        }
    }
    let request = route::Request {
        host: &header::host_name(header::authority(parts).unwrap_or_default()),
        path: if is_connect { "/" } else { parts.uri.path() },
        query: parts.uri.query(),
        method: &parts.method,
        headers: &parts.headers,
    };
    match listener.table.find(&request) {
        Some(Matched { rule, prefix_bytes }) => {
            let (identities, prefix_bytes) = (&state.identity_headers, *prefix_bytes);
            (Ok(Routed { listener, identities, rule, prefix_bytes, wanted: None }), &rule.stats)
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
        (None, Some(_)) => false,
        // Another connection would not help whoever asks for a name that nobody serves.
        (Some(_) | None, None) => true,
    }
}

/// Who a request comes from.
#[derive(Clone, Copy)]
struct Client<'a> {
    downstream: &'a Downstream,
    /// Takes what comes before the response.
    interim: &'a dyn Interim,
    /// When it came.
    started: Instant,
}

/// A version of HTTP, as the access log names it.
const fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

/// Judges the names of fields, in front of a body and behind it, and counts those that go no further.
fn without_underscores(
    families: &Families,
    rule: Underscores,
    fields: &mut HeaderMap,
) -> Result<(), Underscored> {
    let n_gone = rule.apply(fields)?;
    if n_gone > 0 {
        families.underscored.inc_by(u64::try_from(n_gone).unwrap_or(u64::MAX));
    }
    Ok(())
}

/// What looks over the fields behind the body of a request.
fn behind(
    worker: &Worker,
    identities: &Arc<[HeaderName]>,
    underscores: Underscores,
) -> impl Fn(&mut HeaderMap) -> Result<(), BoxError> + Send + 'static {
    let (metrics, identities) = (Arc::clone(&worker.metrics), Arc::clone(identities));
    move |trailers| {
        if without_underscores(&metrics.families, underscores, trailers).is_err() {
            metrics.families.refuse(Refusal::Underscore);
            return Err("the name of a field behind the body has an underscore".into());
        }
        header::clean_trailers(trailers, &identities);
        Ok(())
    }
}

/// Answers, or makes what the endpoint gets and sends it.
async fn serve(
    worker: &Worker,
    client: Client<'_>,
    routed: Routed<'_>,
    message: &mut Message,
    line: &mut Option<Box<Line>>,
) -> Result<Response<ResponseBody>, Fault> {
    let Client { downstream, interim, started } = client;
    let Routed { listener, identities, rule, prefix_bytes, wanted } = routed;
    message.body.clean_trailers(|| behind(worker, identities, listener.underscores));
    let parts = &mut message.head;
    if let Some(line) = line {
        line.word(AccessField::Listener, listener.name.as_str());
        line.word(AccessField::Route, rule.route.as_str());
    }
    let timeouts = (deadline::of(rule.request_timeout, parts), rule.idle_timeout);
    let filters = rule.filters.as_deref();
    if let Some(filters) = filters {
        if let Some(response) = filtered::answer(filters, downstream, parts, prefix_bytes) {
            let is_mistaken =
                wanted.as_ref().is_some_and(|wanted| wanted.takes_for_tunnel(response.status()));
            return if is_mistaken { Err(Fault::new(Kind::Unsupported)) } else { Ok(response) };
        }
        filtered::rewrite(filters, parts, prefix_bytes)?;
    }
    if !header::count_hop(parts) {
        return filtered::last_hop(&parts.method);
    }
    let backend = rule.backends.draw().ok_or(Fault::new(Kind::MissingService))?;
    let service = &backend.service;
    if let Some(line) = line {
        line.word(AccessField::Service, service.definition().name.as_str());
    }
    let onward = header::Onward {
        downstream,
        trusted_hops: listener.trusted_hops,
        host: filters.and_then(|filters| filters.rewrite.as_ref()?.host.as_ref()),
        protocol: service.definition().protocol,
        is_secured: service.definition().tls.is_some(),
        has_body: !message.body.is_empty() && wanted.is_none(),
    };
    let forward = Forward {
        worker,
        downstream,
        service,
        retry: &rule.retry,
        timeout: rule.backend_timeout,
        started,
        interim,
    };
    if let Some(wanted) = wanted {
        let mut opening = Opening::begin(worker, downstream, wanted, rule.tunnels)?;
        let client = message.body.take();
        let (forwarded, deadline) = if opening.is_raw() {
            (forward.connect().await?, None)
        } else {
            let head = &mut message.head;
            header::to_upstream(head, &onward)?;
            filtered::ask(filters, backend, &mut head.headers);
            opening.ask(head, onward.protocol)?;
            within_deadline(forward, timeouts, message).await?
        };
        note(line, &forwarded);
        return opening
            .answer((forwarded, deadline), client)
            .map(|response| filtered::answered(backend, response));
    }
    if !rule.mirrors.is_empty() {
        message.body = mirror::copy(worker, rule, &message.head, &onward, message.body.take());
    }
    header::to_upstream(&mut message.head, &onward)?;
    filtered::ask(filters, backend, &mut message.head.headers);
    let (forwarded, deadline) = within_deadline(forward, timeouts, message).await?;
    note(line, &forwarded);
    receive(forwarded, deadline).map(|response| filtered::answered(backend, response))
}

fn note(line: &mut Option<Box<Line>>, forwarded: &Forwarded) {
    if let Some(line) = line {
        line.word(AccessField::Endpoint, forwarded.body.lease().endpoint().addr_text());
        line.number(AccessField::Retries, u64::try_from(forwarded.n_retries).unwrap_or(u64::MAX));
    }
}

/// When the rest of an exchange must be over.
pub(super) type Deadline = Option<Pin<Box<Sleep>>>;

/// Bounds the exchange; what is left of the time is for the body, which may be silent for as long as `idle` says. A tunnel has
/// a bound of its own.
async fn within_deadline(
    forward: Forward<'_>,
    (timeout, idle): (Option<Duration>, Option<Duration>),
    message: &mut Message,
) -> Result<(Forwarded, Deadline), Fault> {
    let mut deadline = timeout.map(|timeout| Box::pin(tokio::time::sleep(timeout)));
    let mut forwarded = match &mut deadline {
        None => forward.run(message).await?,
        Some(deadline) => tokio::select! {
            biased;
            forwarded = forward.run(message) => forwarded?,
            () = deadline.as_mut() => return Err(Fault::new(Kind::RequestTimeout)),
        },
    };
    forwarded.body.may_be_silent(idle);
    Ok((forwarded, deadline))
}

/// Receive: the head goes on, the body streams behind it.
pub(super) fn receive(forwarded: Forwarded, deadline: Deadline) -> Result<Response<ResponseBody>, Fault> {
    let Forwarded { mut head, mut body, .. } = forwarded;
    // We never ask for another protocol.
    let is_sound = if head.status == StatusCode::SWITCHING_PROTOCOLS {
        Err(Fault::new(Kind::Protocol))
    } else {
        header::to_downstream(&mut head)
    };
    if let Err(fault) = is_sound {
        body.retire();
        return Err(fault);
    }
    body.ends_by(deadline);
    Ok(Response::from_parts(head, ResponseBody::upstream(body)))
}
