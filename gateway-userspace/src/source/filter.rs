//! What a rule does besides forwarding, read into values.

use std::collections::HashSet;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use crate::{
    config::read::{View, Wrong},
    filter::{
        Answer, BackendFilters, Filters, Respond,
        cors::{Allowed, Cors, Origin},
        edit::Edits,
        redirect::{Redirect, Scheme},
        rewrite::{PathRewrite, Rewrite},
    },
    name::ServiceName,
    place::Located,
    snapshot::{listener::Hostname, route::Mirror},
    source::text,
};

/// Reads the filters of a rule; what is wrong was reported.
pub(super) fn filters(view: &View<'_>) -> Located<Filters> {
    let redirect = view.table("redirect").and_then(|view| redirect(&view)).map(Answer::Redirect);
    let respond = view.table("respond").and_then(|view| respond(&view)).map(Answer::Respond);
    let value = Filters {
        request_headers: view.table("requestHeaders").map(|view| edits(&view)).unwrap_or_default(),
        response_headers: view.table("responseHeaders").map(|view| edits(&view)).unwrap_or_default(),
        rewrite: view.table("rewrite").map(|view| rewrite(&view)),
        cors: view.table("cors").and_then(|view| cors(&view)),
        answer: redirect.or(respond),
    };
    let answers = [view.has("redirect"), view.has("respond")];
    if answers == [true, true] {
        view.reader().fault(
            view.place_of("respond"),
            "the rule redirects already",
            "write `redirect` or `respond`",
        );
    } else if view.has("rewrite") && answers.contains(&true) {
        let remedy = "remove it: `redirect` has a path and a host of its own";
        view.reader().fault(
            view.place_of("rewrite"),
            "nothing is forwarded whose target could change",
            remedy,
        );
    }
    Located { value, place: view.place() }
}

/// Reads the filters of a backend; what is wrong was reported.
pub(super) fn backend_filters(view: &View<'_>) -> BackendFilters {
    BackendFilters {
        request_headers: view.table("requestHeaders").map(|view| edits(&view)).unwrap_or_default(),
        response_headers: view.table("responseHeaders").map(|view| edits(&view)).unwrap_or_default(),
    }
}

/// Reads a mirror; the place is that of the service.
pub(super) fn mirror(view: &View<'_>) -> Option<Located<Mirror>> {
    let service = view.text("service", |name| text::name(name).map(ServiceName::new));
    let percent = view.integer("percent");
    let (service, percent) = (service?, percent?.value);
    Some(service.map(|service| Mirror { service, percent }))
}

fn edits(view: &View<'_>) -> Edits {
    let mut seen = HashSet::new();
    let mut once = |name: Option<Located<HeaderName>>| {
        let Located { value: name, place } = name?;
        if !seen.insert(name.clone()) {
            let message = format!("{name} is changed already");
            view.reader().fault(place, message, "write each name once");
        }
        Some(name)
    };
    let mut fields = |key| {
        let mut fields = Vec::new();
        for field in view.tables(key) {
            let name = once(field.text("name", field_name));
            let value =
                field.text("value", |value| text::header_value(value).and_then(|value| field_value(&value)));
            fields.extend(name.zip(value.map(|value| value.value)));
        }
        fields
    };
    let (set, add) = (fields("set"), fields("add"));
    let remove = view.texts("remove", field_name).into_iter().filter_map(|name| once(Some(name))).collect();
    Edits { set, add, remove }
}

/// A field that a filter may change: not one that frames the message or belongs to the connection.
fn field_name(text: &str) -> Result<HeaderName, Wrong> {
    const FRAMING: [&str; 11] = [
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    ];
    let lower = text.to_ascii_lowercase();
    if lower == "host" {
        return Err(Wrong::new("it is changed elsewhere", "use `rewrite: {hostname: ...}`"));
    }
    if FRAMING.contains(&lower.as_str()) {
        return Err(Wrong::new("it says how the message is framed", "leave it to the gateway"));
    }
    text::header_name(text)
}

fn field_value(text: &str) -> Result<HeaderValue, Wrong> {
    let wrong = |_| Wrong::new("a letter of it is not allowed", "write visible letters and spaces");
    HeaderValue::from_str(text).map_err(wrong)
}

fn rewrite(view: &View<'_>) -> Rewrite {
    let host = view.text("hostname", |host| text::host(host).and_then(|host| field_value(&host)));
    let path = view.table("path").and_then(|path| path_rewrite(&path));
    Rewrite { host: host.map(|host| host.value), path }
}

fn path_rewrite(view: &View<'_>) -> Option<PathRewrite> {
    let is_full = view.word("type", |word| match word {
        "ReplaceFullPath" => Some(true),
        "ReplacePrefixMatch" => Some(false),
        _ => None,
    });
    let value = view.text("value", text::path);
    let (is_full, value) = (is_full?.value, value?.value);
    Some(if is_full { PathRewrite::Full(value) } else { PathRewrite::Prefix(value) })
}

fn redirect(view: &View<'_>) -> Option<Redirect> {
    let scheme = view.word("scheme", |word| match word {
        "http" => Some(Scheme::Http),
        "https" => Some(Scheme::Https),
        _ => None,
    });
    let host = view.text("hostname", |host| match text::hostname(host)? {
        Hostname::Exact(host) => Ok(host),
        Hostname::Wildcard(_) => Err(Wrong::new("it is a pattern", "write one name")),
    });
    let port = view.integer("port");
    let path = view.table("path").and_then(|path| path_rewrite(&path));
    let status = view.integer::<u16>("status")?;
    let code = StatusCode::from_u16(status.value).ok().filter(|code| {
        matches!(
            *code,
            StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT
        )
    });
    if code.is_none() {
        let message = format!("{} is no redirect", status.value);
        view.reader().fault(status.place, message, "write 301, 302, 303, 307 or 308");
    }
    Some(Redirect {
        status: code?,
        scheme: scheme.map(|scheme| scheme.value),
        host: host.map(|host| host.value),
        port: port.map(|port| port.value),
        path,
    })
}

fn respond(view: &View<'_>) -> Option<Respond> {
    const MAX_BYTES: usize = 4_096;
    let status = view.integer::<u16>("status");
    let body = view.text("body", |body| {
        let wrong = || Wrong::new("it is too long", format!("write at most {MAX_BYTES} bytes"));
        if body.len() > MAX_BYTES { Err(wrong()) } else { Ok(Bytes::copy_from_slice(body.as_bytes())) }
    });
    let content_type =
        view.text("contentType", |kind| text::header_value(kind).and_then(|kind| field_value(&kind)));
    let (status, body) = (status?, body?);
    let code = StatusCode::from_u16(status.value).ok()?;
    let is_bare =
        matches!(code, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED);
    if is_bare && !body.value.is_empty() {
        let message = format!("a response of status {} has no body", code.as_u16());
        view.reader().fault(body.place, message, "remove it, or write another status");
    }
    Some(Respond { status: code, body: body.value, content_type: content_type?.value })
}

fn cors(view: &View<'_>) -> Option<Cors> {
    let origins = view.texts("origins", origin).into_iter().map(|origin| origin.value).collect();
    let methods = view.texts("methods", |method| {
        let wrong = |_| Wrong::new("it is no method", "write a method such as PUT, in capitals, or *");
        if method == "*" {
            Ok(method.to_owned())
        } else {
            method.parse::<Method>().map(|one| one.to_string()).map_err(wrong)
        }
    });
    let names = |key| {
        view.texts(key, |name| {
            if name == "*" {
                Ok(name.to_owned())
            } else {
                text::header_name(name).map(|name| name.to_string())
            }
        })
    };
    let (headers, exposed) = (names("headers"), names("exposed"));
    let credentials = view.word("credentials", |word| match word {
        "allow" => Some(true),
        "omit" => Some(false),
        _ => None,
    });
    let max_age = view.duration("maxAge");
    let exposed = match allowed(exposed) {
        Allowed::Any => Some(HeaderValue::from_static("*")),
        Allowed::None => None,
        Allowed::Listed(list) => Some(list),
    };
    let credentials = credentials?.value;
    if credentials && exposed.as_ref().is_some_and(|exposed| exposed == "*") {
        let remedy = "list the fields: with credentials, browsers take the star for a name";
        view.reader().fault(view.place_of("exposed"), "a star has no meaning with credentials", remedy);
    }
    Some(Cors {
        origins,
        methods: allowed(methods),
        headers: allowed(headers),
        exposed,
        credentials,
        max_age_s: max_age?.value.as_secs(),
    })
}

fn allowed(names: Vec<Located<String>>) -> Allowed {
    if names.iter().any(|name| name.value == "*") {
        return Allowed::Any;
    }
    let names: Vec<String> = names.into_iter().map(|name| name.value).collect();
    if names.is_empty() {
        return Allowed::None;
    }
    HeaderValue::try_from(names.join(", ")).map_or(Allowed::None, Allowed::Listed)
}

/// `*`, or scheme, host and port as a browser sends them, with at most one `*.` in front of the host.
fn origin(text: &str) -> Result<Origin, Wrong> {
    if text == "*" {
        return Ok(Origin::Any);
    }
    let remedy =
        "write an origin such as https://www.example.org, with a port unless it is that of the scheme";
    let (scheme, rest) = text.split_once("://").ok_or_else(|| Wrong::new("it has no scheme", remedy))?;
    let (host, port) = rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)));
    let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|number| number.to_string() == port));
    if !is_port || scheme.is_empty() || host.contains('/') {
        return Err(Wrong::new("it is more than an origin", remedy));
    }
    let known = HeaderValue::from_str(text).is_ok();
    let port = port.map_or_else(String::new, |port| format!(":{port}"));
    let scheme = scheme.to_ascii_lowercase();
    match text::hostname(host)? {
        Hostname::Exact(host) if known => Ok(Origin::Exact(format!("{scheme}://{host}{port}"))),
        Hostname::Wildcard(suffix) if known => {
            Ok(Origin::Wildcard(format!("{scheme}://"), format!(".{suffix}{port}")))
        }
        Hostname::Exact(_) | Hostname::Wildcard(_) => {
            Err(Wrong::new("a letter of it is not allowed", remedy))
        }
    }
}
