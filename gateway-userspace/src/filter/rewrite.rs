//! Another target: another host, another path, another beginning of the path.

use std::borrow::Cow;

use http::HeaderValue;

/// The target that the endpoint gets.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rewrite {
    /// Another host.
    pub host: Option<HeaderValue>,
    /// Another path.
    pub path: Option<PathRewrite>,
}

/// Another path. Paths are in their one form (`target::normal`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PathRewrite {
    /// This one.
    Full(String),
    /// This instead of the prefix that matched, by whole segments.
    Prefix(String),
}

impl PathRewrite {
    /// The new path; `prefix_bytes` is the length of the prefix that matched, without a slash at its end.
    pub fn apply<'a>(&'a self, path: &'a str, prefix_bytes: usize) -> Cow<'a, str> {
        match self {
            Self::Full(new) => Cow::Borrowed(new),
            Self::Prefix(new) => {
                let rest = path.get(prefix_bytes..).unwrap_or_default();
                let new = new.trim_end_matches('/');
                match (new.is_empty(), rest.is_empty()) {
                    (true, true) => Cow::Borrowed("/"),
                    (true, false) => Cow::Borrowed(rest),
                    (false, true) => Cow::Borrowed(new),
                    (false, false) => Cow::Owned([new, rest].concat()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the Gateway API's `HTTPPathModifier`.
    #[test]
    fn a_prefix_is_replaced_by_whole_segments() {
        for (path, prefix, new, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "/", "/bar"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/bar", "", "/xyz", "/xyz/bar"),
            ("/", "", "/xyz", "/xyz/"),
        ] {
            let rewrite = PathRewrite::Prefix(new.to_owned());
            assert_eq!(rewrite.apply(path, prefix.len()), expected, "{path} {prefix} {new}");
        }
        assert_eq!(PathRewrite::Full("/all".to_owned()).apply("/foo/bar", 4), "/all");
    }
}
