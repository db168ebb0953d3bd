//! Who may read responses in a browser: answers to preflights, and fields of responses (Fetch standard, section 3.2).

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

/// What browsers are told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cors {
    /// Who may ask.
    pub origins: Vec<Origin>,
    /// Methods that may be used.
    pub methods: Allowed,
    /// Fields that may be sent.
    pub headers: Allowed,
    /// Fields of responses that may be read, as one list.
    pub exposed: Option<HeaderValue>,
    /// Whether credentials may be sent.
    pub credentials: bool,
    /// Seconds for which an answer may be remembered.
    pub max_age_s: u64,
}

/// Origins that may ask.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// Every origin.
    Any,
    /// This one.
    Exact(String),
    /// Every origin that begins with the first and ends with the second, with a label or more between them.
    Wildcard(String, String),
}

/// Names that are allowed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Allowed {
    /// All.
    Any,
    /// None but those that are always allowed.
    None,
    /// These, as one list.
    Listed(HeaderValue),
}

impl Origin {
    fn includes(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(one) => one.eq_ignore_ascii_case(origin),
            Self::Wildcard(begin, end) => {
                let origin = origin.to_ascii_lowercase();
                let label =
                    origin.strip_prefix(begin.as_str()).and_then(|rest| rest.strip_suffix(end.as_str()));
                label.is_some_and(|label| !label.is_empty() && !label.contains(['/', ':', '@']))
            }
        }
    }
}

/// Whether a request asks what may be asked, rather than asking itself.
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

impl Cors {
    /// The fields of the answer to a preflight. A stranger gets none, which browsers understand.
    pub fn preflight(&self, request: &HeaderMap) -> HeaderMap {
        let mut answer = HeaderMap::new();
        if !self.admit(request.get(header::ORIGIN), &mut answer) {
            return answer;
        }
        let mut allow = |name: HeaderName, allowed: &Allowed, asked: HeaderName| {
            let value = match allowed {
                Allowed::None => None,
                Allowed::Listed(list) => Some(list.clone()),
                // With credentials, a star is a name like any other.
                Allowed::Any if self.credentials => request.get(asked).cloned(),
                Allowed::Any => Some(HeaderValue::from_static("*")),
            };
            if let Some(value) = value {
                answer.insert(name, value);
            }
        };
        let (methods, headers) = (&self.methods, &self.headers);
        allow(header::ACCESS_CONTROL_ALLOW_METHODS, methods, header::ACCESS_CONTROL_REQUEST_METHOD);
        allow(header::ACCESS_CONTROL_ALLOW_HEADERS, headers, header::ACCESS_CONTROL_REQUEST_HEADERS);
        answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(self.max_age_s));
        // Nobody reads it here, and the Gateway API's conformance suite asks for it.
        if let Some(exposed) = &self.exposed {
            answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed.clone());
        }
        answer
    }

    /// Changes the fields of a response to `origin`. What the endpoint says about it does not count.
    pub fn respond(&self, origin: Option<&HeaderValue>, response: &mut HeaderMap) {
        for name in [
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
        ] {
            response.remove(name);
        }
        if self.admit(origin, response)
            && let Some(exposed) = &self.exposed
        {
            response.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed.clone());
        }
    }

    fn admit(&self, origin: Option<&HeaderValue>, response: &mut HeaderMap) -> bool {
        let is_open = self.origins.contains(&Origin::Any) && !self.credentials;
        if !is_open {
            // What is remembered for one origin must not be shown to another.
            response.append(header::VARY, HeaderValue::from_static("origin"));
        }
        let Some(origin) = origin else { return false };
        let includes = |text: &str| self.origins.iter().any(|one| one.includes(text));
        if !origin.to_str().is_ok_and(includes) {
            return false;
        }
        let value = if is_open { HeaderValue::from_static("*") } else { origin.clone() };
        response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, value);
        if self.credentials {
            response.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors() -> Cors {
        Cors {
            origins: vec![
                Origin::Exact("https://www.foo.com".to_owned()),
                Origin::Wildcard("https://".to_owned(), ".bar.com".to_owned()),
            ],
            methods: Allowed::Listed(HeaderValue::from_static("GET, PUT")),
            headers: Allowed::Any,
            exposed: Some(HeaderValue::from_static("x-a, x-b")),
            credentials: true,
            max_age_s: 3_600,
        }
    }

    fn asked(origin: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
        headers.insert(header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("PUT"));
        headers.insert(header::ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_static("x-c"));
        headers
    }

    #[track_caller]
    fn check(headers: &HeaderMap, expected: &[(&str, &str)]) {
        let mut found: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        found.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn those_who_may_ask_are_told_what() {
        for origin in
            ["https://www.foo.com", "https://a.bar.com", "https://a.b.bar.com", "HTTPS://WWW.FOO.COM"]
        {
            check(
                &cors().preflight(&asked(origin)),
                &[
                    ("access-control-allow-credentials", "true"),
                    ("access-control-allow-headers", "x-c"),
                    ("access-control-allow-methods", "GET, PUT"),
                    ("access-control-allow-origin", origin),
                    ("access-control-expose-headers", "x-a, x-b"),
                    ("access-control-max-age", "3600"),
                    ("vary", "origin"),
                ],
            );
        }
        for origin in [
            "https://foo.com",
            "https://bar.com",
            "http://a.bar.com",
            "https://evil.test/.bar.com",
            "null",
            "https://.bar.com",
        ] {
            check(&cors().preflight(&asked(origin)), &[("vary", "origin")]);
        }
    }

    #[test]
    fn an_open_resource_says_so_to_everybody() {
        let open = Cors { origins: vec![Origin::Any], methods: Allowed::Any, credentials: false, ..cors() };
        check(
            &open.preflight(&asked("https://a.test")),
            &[
                ("access-control-allow-headers", "*"),
                ("access-control-allow-methods", "*"),
                ("access-control-allow-origin", "*"),
                ("access-control-expose-headers", "x-a, x-b"),
                ("access-control-max-age", "3600"),
            ],
        );
    }

    #[test]
    fn responses_carry_what_the_gateway_says() {
        let mut response = HeaderMap::new();
        response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        response.insert(header::VARY, HeaderValue::from_static("accept"));
        let mut strange = response.clone();
        cors().respond(Some(&HeaderValue::from_static("https://www.foo.com")), &mut response);
        check(
            &response,
            &[
                ("access-control-allow-credentials", "true"),
                ("access-control-allow-origin", "https://www.foo.com"),
                ("access-control-expose-headers", "x-a, x-b"),
                ("vary", "accept"),
                ("vary", "origin"),
            ],
        );
        cors().respond(Some(&HeaderValue::from_static("https://evil.test")), &mut strange);
        check(&strange, &[("vary", "accept"), ("vary", "origin")]);
    }
}
