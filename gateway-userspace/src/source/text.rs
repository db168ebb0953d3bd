//! Small languages of wanted things: names, host names, paths, header fields.

use std::ops::RangeInclusive;

use crate::{
    config::read::Wrong,
    pattern::{self, Pattern},
    retry::Calls,
    snapshot::listener::Hostname,
    target,
};

/// A name: a label of metrics and dumps, so it is short and plain. As in Kubernetes (RFC 1123, with dots).
pub fn name(text: &str) -> Result<&str, Wrong> {
    let remedy = "write lower-case letters, digits, `-` and `.`, beginning and ending with a letter or digit";
    if text.is_empty() {
        return Err(Wrong::new("it is empty", remedy));
    }
    if text.len() > MAX_NAME {
        return Err(Wrong::new("it is too long", format!("write at most {MAX_NAME} letters")));
    }
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let outer = |byte: Option<u8>| byte.is_some_and(|byte| inner(byte) && byte.is_ascii_alphanumeric());
    if !text.bytes().all(inner) {
        return Err(Wrong::new("a letter of it is not allowed", remedy));
    }
    if !outer(text.bytes().next()) || !outer(text.bytes().last()) {
        return Err(Wrong::new("it begins or ends with a sign", remedy));
    }
    Ok(text)
}

/// A port, or a range of ports.
pub fn ports(text: &str) -> Result<RangeInclusive<u16>, Wrong> {
    let remedy = "write a port or first-last, such as 30000-32767";
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let port = text.parse::<u16>().ok().filter(|port| digits && *port >= FIRST_PORT);
        port.ok_or_else(|| Wrong::new("a port is a number from 1 to 65535", remedy))
    };
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(Wrong::new("it ends before it begins", format!("write {last}-{first}")));
    }
    Ok(first..=last)
}

/// Port zero is nobody's.
pub const FIRST_PORT: u16 = 1;

/// A host name, exact or `*.` and a suffix (RFC 1123; a wildcard as in the Gateway API).
pub fn hostname(text: &str) -> Result<Hostname, Wrong> {
    let lower = text.to_ascii_lowercase();
    let (suffix, wildcard) = match lower.strip_prefix("*.") {
        Some(suffix) => (suffix, true),
        None => (lower.as_str(), false),
    };
    if suffix.contains('*') {
        let remedy =
            if text == "*" { "leave it out to serve all names" } else { "write *. once, at the beginning" };
        return Err(Wrong::new("`*` stands for whole labels at the beginning", remedy));
    }
    if suffix.is_empty() {
        return Err(Wrong::new("it is empty", "write a name such as www.example.org"));
    }
    if let Some(bare) = suffix.strip_suffix('.') {
        let star = if wildcard { "*." } else { "" };
        return Err(Wrong::new("it ends with a dot", format!("write {star}{bare}")));
    }
    if let Some((bare, port)) = suffix.rsplit_once(':')
        && port.bytes().all(|byte| byte.is_ascii_digit())
        && !bare.contains(':')
    {
        return Err(Wrong::new("it has a port", format!("write {bare}; the port is that of the listener")));
    }
    if suffix.contains("//") || suffix.contains('/') {
        return Err(Wrong::new(
            "it is an address of a page",
            "write the name alone, such as www.example.org",
        ));
    }
    if suffix.parse::<std::net::IpAddr>().is_ok() {
        return Err(Wrong::new("it is an address", "write a name, or leave it out to serve all names"));
    }
    if !suffix.is_ascii() {
        return Err(Wrong::new("it has letters beyond ASCII", "write it as DNS has it, with xn--"));
    }
    if suffix.len() > MAX_NAME {
        return Err(Wrong::new("it is too long", format!("write at most {MAX_NAME} letters")));
    }
    if !suffix.split('.').all(is_label) {
        let remedy = "write labels of letters, digits and `-`, at most 63 each, with dots between them";
        return Err(Wrong::new("a label of it is not allowed", remedy));
    }
    let suffix = suffix.to_owned();
    Ok(if wildcard { Hostname::Wildcard(suffix) } else { Hostname::Exact(suffix) })
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// A path as a request carries it, in the one form that is compared: as in the Gateway API, without empty or dot
/// segments and without an encoded slash.
pub fn path(text: &str) -> Result<String, Wrong> {
    const MAX_BYTES: usize = 1_024;
    if !text.starts_with('/') {
        return Err(Wrong::new("it does not begin with /", format!("write /{text}")));
    }
    if text.contains(['?', '#']) {
        let remedy = "write the path alone; `queryParams` match the query";
        return Err(Wrong::new("it has a query or a fragment", remedy));
    }
    if text.contains("//") {
        return Err(Wrong::new("it has an empty segment", format!("write {}", squeeze(text))));
    }
    if text.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(Wrong::new("it has a dot segment", "write the path it leads to"));
    }
    if text.to_ascii_lowercase().contains("%2f") {
        return Err(Wrong::new(
            "it has an encoded slash",
            "write / or leave it out: both forms would differ",
        ));
    }
    if text.len() > MAX_BYTES {
        return Err(Wrong::new("it is too long", format!("write at most {MAX_BYTES} bytes")));
    }
    if text.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err(Wrong::new(
            "it has a space or a letter beyond ASCII",
            "write it percent-encoded, such as %20",
        ));
    }
    match target::normal(text, target::Rules::DEFAULT) {
        Ok(normal) if normal == text => Ok(text.to_owned()),
        Ok(normal) => Err(Wrong::new("requests are compared in another form", format!("write {normal}"))),
        Err(refusal @ target::Refusal::Escape) => {
            Err(Wrong::new(refusal.to_string(), "write %25 for a percent sign"))
        }
        Err(refusal) => Err(Wrong::new(refusal.to_string(), "write a path that requests can carry")),
    }
}

fn squeeze(text: &str) -> String {
    let mut squeezed = String::new();
    for letter in text.chars() {
        if letter != '/' || !squeezed.ends_with('/') {
            squeezed.push(letter);
        }
    }
    squeezed
}

/// The name of a header field that a match may ask for.
pub fn header_name(text: &str) -> Result<http::HeaderName, Wrong> {
    const MAX_BYTES: usize = 256;
    if text.starts_with(':') || text.eq_ignore_ascii_case("host") {
        let remedy =
            if text.eq_ignore_ascii_case(":method") { "use `method`" } else { "use `hostnames` or `path`" };
        return Err(Wrong::new("it is matched elsewhere", remedy));
    }
    if text.len() > MAX_BYTES {
        return Err(Wrong::new("it is too long", format!("write at most {MAX_BYTES} bytes")));
    }
    let remedy = "write letters, digits and `-`, such as x-canary";
    http::HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| Wrong::new("a letter of it is not allowed", remedy))
}

/// The name of a header field that the agent alone may write: no field of HTTP itself has such a name.
pub fn own_header_name(text: &str) -> Result<http::HeaderName, Wrong> {
    let name = header_name(text)?;
    if name.as_str().starts_with("x-forwarded-") && name != "x-forwarded-client-cert" {
        return Err(Wrong::new("it says something else", "write x-forwarded-client-cert"));
    }
    if !name.as_str().starts_with("x-") {
        return Err(Wrong::new("it does not begin with x-", format!("write x-{name}")));
    }
    Ok(name)
}

/// The value of a header field.
pub fn header_value(text: &str) -> Result<String, Wrong> {
    const MAX_BYTES: usize = 4_096;
    if text.is_empty() || text.len() > MAX_BYTES {
        return Err(Wrong::new("it is empty or too long", format!("write 1 to {MAX_BYTES} bytes")));
    }
    if text.trim_matches([' ', '\t']) != text {
        let remedy = "write it without: a request's value carries none";
        return Err(Wrong::new("it begins or ends with a space", remedy));
    }
    if http::HeaderValue::from_str(text).is_err() {
        return Err(Wrong::new("a letter of it is not allowed", "write visible letters and spaces"));
    }
    Ok(text.to_owned())
}

/// The name of a query parameter.
pub fn query_name(text: &str) -> Result<String, Wrong> {
    bounded(text, 256)
}

/// The value of a query parameter.
pub fn query_value(text: &str) -> Result<String, Wrong> {
    bounded(text, 1_024)
}

fn bounded(text: &str, max: usize) -> Result<String, Wrong> {
    if text.is_empty() || text.len() > max {
        return Err(Wrong::new("it is empty or too long", format!("write 1 to {max} bytes")));
    }
    Ok(text.to_owned())
}

/// A regular expression.
pub fn pattern(text: &str) -> Result<Pattern, Wrong> {
    Pattern::new(text).map_err(|error| {
        let remedy = match &error {
            pattern::Error::Syntax(_) => {
                "write it in the syntax of RE2, which has no look-around and no references back"
            }
            pattern::Error::Length | pattern::Error::Size => "write a shorter one, or several matches",
        };
        Wrong::new(error.to_string(), remedy)
    })
}

/// What a check sends as `host`.
pub fn host(text: &str) -> Result<String, Wrong> {
    let remedy = "write a name such as app.example.org, with or without a port";
    match text.parse::<http::uri::Authority>() {
        Ok(authority)
            if !text.contains('@') && !authority.host().is_empty() && text.len() <= MAX_NAME + 6 =>
        {
            Ok(text.to_owned())
        }
        Ok(_) | Err(_) => Err(Wrong::new("it cannot be parsed", remedy)),
    }
}

/// One status or an inclusive range of them.
pub fn statuses(text: &str) -> Result<RangeInclusive<u16>, Wrong> {
    let remedy = "write a status such as 200, or a range such as 200-399";
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let status = |text: &str| {
        let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        let status = text.parse::<u16>().ok().filter(|status| digits && (100..=599).contains(status));
        status.ok_or_else(|| Wrong::new("a status is a number from 100 to 599", remedy))
    };
    let (first, last) = (status(first)?, status(last)?);
    if first > last {
        return Err(Wrong::new("it ends before it begins", format!("write {last}-{first}")));
    }
    Ok(first..=last)
}

/// The number of a status of gRPC that a call may be repeated after.
pub fn call_status(text: &str) -> Result<u8, Wrong> {
    let known = Calls::WORDS.iter().find(|(word, _)| *word == text);
    known.map(|(_, number)| *number).ok_or_else(|| {
        let words = Calls::WORDS.map(|(word, _)| word).join(", ");
        Wrong::new("calls are not repeated after such a status", format!("write one of {words}"))
    })
}

/// Letters of a name, as DNS and Kubernetes have it.
const MAX_NAME: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels() {
        for right in ["web", "web-1", "a.b", "0"] {
            assert!(name(right).is_ok(), "{right}");
        }
        for wrong in ["", "Web", "-web", "web-", ".", "a b", "a/b", "ü", &"x".repeat(254)] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn host_names_are_exact_or_wildcards() {
        assert_eq!(hostname("WWW.Example.org").unwrap(), Hostname::Exact("www.example.org".to_owned()));
        assert_eq!(hostname("*.example.org").unwrap(), Hostname::Wildcard("example.org".to_owned()));
        let wrong = [
            "",
            "*",
            "*.",
            "a.*.b",
            "*a.b",
            "example.org.",
            "example.org:443",
            "https://example.org",
            "10.0.0.1",
            "::1",
            "bücher.example",
            "-a.b",
            "a..b",
            "a_b",
        ];
        for wrong in wrong {
            assert!(hostname(wrong).is_err(), "{wrong}");
        }
        assert!(hostname("a.b:80").unwrap_err().remedy.starts_with("write a.b;"));
    }

    #[test]
    fn paths_have_one_form() {
        for right in ["/", "/api", "/api/", "/a%20b", "/.well-known", "/..."] {
            assert!(path(right).is_ok(), "{right}");
        }
        for wrong in [
            "", "api", "/a//b", "/a?b", "/a#b", "/a/../b", "/.", "/a%2Fb", "/a b", "/ü", "/%", "/%é1",
            "/%00", "/%61",
        ] {
            assert!(path(wrong).is_err(), "{wrong}");
        }
        assert_eq!(path("//a///b").unwrap_err().remedy, "write /a/b");
        assert_eq!(path("/%61|").unwrap_err().remedy, "write /a%7C");
    }

    #[test]
    fn fields_of_a_match_can_occur() {
        assert_eq!(header_name("X-Canary").unwrap().as_str(), "x-canary");
        for wrong in ["", "a b", ":path", "Host", "ü"] {
            assert!(header_name(wrong).is_err(), "{wrong}");
        }
        assert_eq!(own_header_name("X-Client").unwrap().as_str(), "x-client");
        for wrong in ["content-length", "x-forwarded-for", "client"] {
            assert!(own_header_name(wrong).is_err(), "{wrong}");
        }
        assert!(header_value("a b").is_ok());
        for wrong in ["", " a", "a\n"] {
            assert!(header_value(wrong).is_err(), "{wrong}");
        }
        assert!(host("app:8080").is_ok());
        for wrong in ["", "a b", "user@host", "/x"] {
            assert!(host(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn statuses_are_ranges() {
        assert_eq!(statuses("204").unwrap(), 204..=204);
        assert_eq!(statuses("200-399").unwrap(), 200..=399);
        for wrong in ["", "2xx", "20", "399-200", "600", "200-", "+200"] {
            assert!(statuses(wrong).is_err(), "{wrong}");
        }
    }
}
