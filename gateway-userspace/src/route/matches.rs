//! What else must hold for a route to be taken: method, headers, query parameters.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, Method, header};

use crate::{pattern::Text, route::Request};

/// Conditions of one match; all must hold.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// The method, if it matters.
    pub method: Option<Method>,
    /// Header values.
    pub headers: Vec<(HeaderName, Text)>,
    /// Query parameters, after decoding.
    pub query: Vec<(String, Text)>,
}

impl Conditions {
    /// More specific conditions compare greater.
    pub(super) fn rank(&self) -> (bool, usize, usize) {
        (self.method.is_some(), self.headers.len(), self.query.len())
    }

    /// Whether a request fulfills them.
    pub(super) fn hold(&self, request: &Request<'_>) -> bool {
        self.method.as_ref().is_none_or(|method| method == request.method)
            && self.headers.iter().all(|(name, value)| header_is(request.headers, name, value))
            && self.query.iter().all(|(name, value)| parameter_is(request.query, name, value))
    }
}

/// Compares a header's value; several fields of one name count as one, joined by commas (RFC 9110, section 5.3), or as
/// cookies are, which clients of HTTP/2 split (RFC 9113, section 8.2.3).
fn header_is(headers: &HeaderMap, name: &HeaderName, wanted: &Text) -> bool {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return false };
    let Some(second) = values.next() else { return wanted.matches(first.as_bytes()) };
    let between: &[u8] = if *name == header::COOKIE { b"; " } else { b"," };
    let mut joined = first.as_bytes().to_vec();
    for value in std::iter::once(second).chain(values) {
        joined.extend_from_slice(between);
        joined.extend_from_slice(value.as_bytes());
    }
    wanted.matches(&joined)
}

/// Compares the first parameter of a name, as the Gateway API asks for.
fn parameter_is(query: Option<&str>, name: &str, wanted: &Text) -> bool {
    let mut pairs =
        query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs
        .find(|(key, _)| decoded(key) == name.as_bytes())
        .is_some_and(|(_, value)| wanted.matches(&decoded(value)))
}

/// Decodes `%XX` and `+` (WHATWG URL, `application/x-www-form-urlencoded`).
fn decoded(text: &str) -> Cow<'_, [u8]> {
    if !text.bytes().any(|byte| byte == b'+' || byte == b'%') {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut rest = text.bytes();
    let bytes = std::iter::from_fn(|| {
        let byte = rest.next()?;
        match byte {
            b'+' => Some(b' '),
            b'%' => {
                let mut ahead = rest.clone();
                let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
                match (digit(ahead.next()), digit(ahead.next())) {
                    (Some(high), Some(low)) => {
                        rest = ahead;
                        u8::try_from(high * 16 + low).ok()
                    }
                    _ => Some(b'%'),
                }
            }
            _ => Some(byte),
        }
    });
    Cow::Owned(bytes.collect())
}
