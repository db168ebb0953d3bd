//! Redirects: the address that a client is sent to.

use http::{HeaderValue, StatusCode};

use crate::filter::rewrite::PathRewrite;

/// Where to send a client; what is absent stays as it was asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// Another scheme.
    pub scheme: Option<Scheme>,
    /// Another host.
    pub host: Option<String>,
    /// Another port.
    pub port: Option<u16>,
    /// Another path. The query stays.
    pub path: Option<PathRewrite>,
}

/// A scheme to send a client to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scheme {
    /// In plain text.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Scheme of the connection.
    pub scheme: Scheme,
    /// Host name without port; empty when there was none.
    pub host: &'a str,
    /// Port of the listener.
    pub port: u16,
    /// Path in its one form.
    pub path: &'a str,
    /// Length of the prefix that matched.
    pub prefix_bytes: usize,
    /// Query without the question mark.
    pub query: Option<&'a str>,
}

impl Redirect {
    /// The value of `location`; none when it could not be one. With another scheme and no port, the port is that of the
    /// scheme, else that of the listener; one that the scheme implies is left out (Gateway API,
    /// `HTTPRequestRedirectFilter`).
    pub fn location(&self, asked: &Asked<'_>) -> Option<HeaderValue> {
        let path = match &self.path {
            Some(rewrite) => rewrite.apply(asked.path, asked.prefix_bytes),
            None => asked.path.into(),
        };
        let scheme = self.scheme.unwrap_or(asked.scheme);
        let port = self.port.unwrap_or(if self.scheme.is_some() { scheme.port() } else { asked.port });
        let host = self.host.as_deref().unwrap_or(asked.host);
        let mut location = String::with_capacity(host.len() + path.len() + 16);
        if !host.is_empty() {
            location.push_str(scheme.as_str());
            location.push_str("://");
            location.push_str(host);
            if port != scheme.port() {
                location.push(':');
                location.push_str(&port.to_string());
            }
        }
        location.push_str(&path);
        if let Some(query) = asked.query {
            location.push('?');
            location.push_str(query);
        }
        HeaderValue::try_from(location).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Redirect =
        Redirect { status: StatusCode::FOUND, scheme: None, host: None, port: None, path: None };

    #[track_caller]
    fn check(redirect: &Redirect, scheme: Scheme, port: u16, expected: &str) {
        let asked =
            Asked { scheme, host: "a.test", port, path: "/x/y", prefix_bytes: 2, query: Some("q=%2F") };
        assert_eq!(redirect.location(&asked).unwrap(), expected);
    }

    #[test]
    fn what_is_absent_stays() {
        use Scheme::{Http, Https};
        check(&NOTHING, Http, 80, "http://a.test/x/y?q=%2F");
        check(&NOTHING, Http, 8_080, "http://a.test:8080/x/y?q=%2F");
        check(&NOTHING, Https, 443, "https://a.test/x/y?q=%2F");
        let https = Redirect { scheme: Some(Https), ..NOTHING };
        check(&https, Http, 8_080, "https://a.test/x/y?q=%2F");
        check(&Redirect { port: Some(8_443), ..https.clone() }, Http, 80, "https://a.test:8443/x/y?q=%2F");
        check(&Redirect { port: Some(443), ..https }, Http, 80, "https://a.test/x/y?q=%2F");
        check(&Redirect { port: Some(80), ..NOTHING }, Http, 8_080, "http://a.test/x/y?q=%2F");
        let elsewhere = Redirect { host: Some("b.test".to_owned()), ..NOTHING };
        check(&elsewhere, Http, 80, "http://b.test/x/y?q=%2F");
        let path = Redirect { path: Some(PathRewrite::Prefix("/z".to_owned())), ..NOTHING };
        check(&path, Http, 80, "http://a.test/z/y?q=%2F");
    }

    #[test]
    fn without_a_host_the_address_is_relative() {
        let asked =
            Asked { scheme: Scheme::Http, host: "", port: 80, path: "/x", prefix_bytes: 0, query: None };
        assert_eq!(NOTHING.location(&asked).unwrap(), "/x");
    }
}
