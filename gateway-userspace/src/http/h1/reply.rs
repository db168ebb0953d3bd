//! The head of a response, as its client gets it.

use http::{Method, StatusCode, Version, header, response::Parts};
use http_body::SizeHint;

use crate::{
    clock,
    h1::{
        date, number,
        out::{Body, Out},
    },
    http::h1::Asked,
    metrics::refusal::Refusal,
};

/// Writes the head; how the body has to follow.
pub(super) fn head(
    out: &mut Out,
    asked: &Asked,
    parts: &mut Parts,
    hint: &SizeHint,
    keeps_alive: bool,
) -> Body {
    let is_bodiless = parts.status.is_informational()
        || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let said = parts.headers.get(header::CONTENT_LENGTH).and_then(|value| number(value.as_bytes()));
    if said.is_none() {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    let is_old = asked.version == Version::HTTP_10;
    let form = match said.or(hint.exact()) {
        _ if is_bodiless || asked.method == Method::HEAD => Body::None,
        Some(0) => Body::None,
        Some(length) => Body::Length(length),
        None if is_old => Body::UntilClose,
        None => Body::Chunked,
    };
    out.status(Version::HTTP_11, parts.status);
    out.fields(&parts.headers);
    match (form, hint.exact()) {
        (Body::Chunked, _) => out.field(b"transfer-encoding", b"chunked"),
        (Body::Length(length), _) if said.is_none() => {
            out.field(b"content-length", length.to_string().as_bytes());
        }
        // Without it a client would wait for the end of the connection. What an endpoint would have answered to GET is
        // not known here, what the gateway would have is.
        (Body::None, Some(length))
            if said.is_none() && !is_bodiless && (asked.method != Method::HEAD || length > 0) =>
        {
            out.field(b"content-length", length.to_string().as_bytes());
        }
        (Body::None | Body::Length(_) | Body::UntilClose, _) => {}
    }
    finish(out, parts.headers.contains_key(header::DATE), connection(is_old, keeps_alive, form));
    form
}

/// Writes the head behind which bytes follow that are not HTTP.
pub(super) fn tunnel(out: &mut Out, parts: &Parts) {
    out.status(Version::HTTP_11, parts.status);
    out.fields(&parts.headers);
    let is_upgrade = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    if is_upgrade {
        out.field(b"upgrade", b"websocket");
    }
    finish(out, parts.headers.contains_key(header::DATE), is_upgrade.then_some(b"upgrade"));
}

/// What is said about the connection, where the version does not say it by itself.
const fn connection(is_old: bool, keeps_alive: bool, form: Body) -> Option<&'static [u8]> {
    match (is_old, keeps_alive && !matches!(form, Body::UntilClose)) {
        (false, false) => Some(b"close"),
        (true, true) => Some(b"keep-alive"),
        (false, true) | (true, false) => None,
    }
}

fn finish(out: &mut Out, is_dated: bool, connection: Option<&[u8]>) {
    if let Some(connection) = connection {
        out.field(b"connection", connection);
    }
    if !is_dated {
        out.field(b"date", date::format(clock::wall()).as_bytes());
    }
    out.text(b"\r\n");
}

/// Writes the whole answer to bytes that are refused; its status, and the bytes of its body.
pub(super) fn refuse(out: &mut Out, refusal: Refusal) -> (StatusCode, usize) {
    let status = status(refusal);
    let text = match refusal {
        Refusal::Chunk => "bad request: a chunk is malformed\n",
        Refusal::Coding => "bad request: the transfer coding is not exactly `chunked`\n",
        Refusal::Expect => "no other expectation than `100-continue` can be met\n",
        Refusal::Field => "bad request: a field is malformed\n",
        Refusal::HeadTooLarge => "the head of the request is too large\n",
        Refusal::Host => "bad request: there is not exactly one `host`\n",
        Refusal::Length => {
            "bad request: `content-length` is malformed, repeated, or beside `transfer-encoding`\n"
        }
        Refusal::Line => "bad request: the request line is malformed\n",
        Refusal::LineEnd => "bad request: a line does not end with carriage return and line feed\n",
        Refusal::Path => "bad request: the path has no form that everybody reads alike\n",
        Refusal::Slow => "the request took too long\n",
        Refusal::Target => "bad request: the target is malformed\n",
        Refusal::Underscore => "bad request: the name of a field has an underscore\n",
        Refusal::Version => "HTTP/1.1 and HTTP/1.0 are spoken here\n",
    };
    out.status(Version::HTTP_11, status);
    out.field(b"content-type", b"text/plain");
    out.field(b"content-length", text.len().to_string().as_bytes());
    finish(out, false, Some(b"close"));
    out.text(text.as_bytes());
    (status, text.len())
}

/// The status that answers bytes which are refused.
const fn status(refusal: Refusal) -> StatusCode {
    match refusal {
        Refusal::Chunk
        | Refusal::Coding
        | Refusal::Field
        | Refusal::Host
        | Refusal::Length
        | Refusal::Line
        | Refusal::LineEnd
        | Refusal::Path
        | Refusal::Target
        | Refusal::Underscore => StatusCode::BAD_REQUEST,
        Refusal::Expect => StatusCode::EXPECTATION_FAILED,
        Refusal::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Refusal::Slow => StatusCode::REQUEST_TIMEOUT,
        Refusal::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
    }
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;
    use crate::h1::Framing;

    #[track_caller]
    fn check(
        (method, version): (Method, Version),
        (status, length): (u16, Option<&str>),
        exact: Option<u64>,
        expected: (Body, &str),
    ) {
        let mut parts =
            Response::builder().status(status).header("date", "x").body(()).unwrap().into_parts().0;
        if let Some(length) = length {
            parts.headers.insert("content-length", length.parse().unwrap());
        }
        let mut hint = SizeHint::new();
        if let Some(exact) = exact {
            hint.set_exact(exact);
        }
        let asked = Asked {
            method,
            version,
            framing: Framing::None,
            keeps_alive: true,
            awaits_continue: false,
            wants_websocket: false,
        };
        let mut out = Out::default();
        let form = head(&mut out, &asked, &mut parts, &hint, true);
        let text = String::from_utf8(out.head().to_vec()).unwrap();
        let fields = text.split_once("\r\n").unwrap().1.replace("date: x\r\n", "");
        assert_eq!((form, fields.trim_end()), expected);
    }

    #[test]
    fn a_body_is_framed_for_its_client() {
        let (new, old) = ((Method::GET, Version::HTTP_11), (Method::GET, Version::HTTP_10));
        let head = (Method::HEAD, Version::HTTP_11);
        check(new.clone(), (200, Some("3")), Some(3), (Body::Length(3), "content-length: 3"));
        check(new.clone(), (200, None), Some(3), (Body::Length(3), "content-length: 3"));
        check(new.clone(), (200, None), Some(0), (Body::None, "content-length: 0"));
        check(new.clone(), (200, None), None, (Body::Chunked, "transfer-encoding: chunked"));
        check(new.clone(), (200, Some("x")), None, (Body::Chunked, "transfer-encoding: chunked"));
        check(new.clone(), (204, None), Some(0), (Body::None, ""));
        check(new, (304, Some("9")), Some(0), (Body::None, "content-length: 9"));
        check(head.clone(), (200, Some("9")), Some(0), (Body::None, "content-length: 9"));
        check(head.clone(), (200, None), Some(0), (Body::None, ""));
        check(head, (503, None), Some(9), (Body::None, "content-length: 9"));
        check(old.clone(), (200, None), None, (Body::UntilClose, ""));
        check(
            old,
            (200, Some("3")),
            Some(3),
            (Body::Length(3), "content-length: 3\r\nconnection: keep-alive"),
        );
    }
}
