//! The path of a request in its one form: what is matched is what is sent.
//!
//! Two spellings of one path must not take two ways through a gateway, and an endpoint must not read another path than
//! the one that was matched. RFC 3986, section 6.2.2 says which spellings are the same; what it leaves open is settled by
//! [`Rules`], and what cannot be settled is refused.

use std::{borrow::Cow, fmt};

/// What to do with spellings that applications read differently.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rules {
    /// Several slashes in a row.
    pub repeated: Repeated,
    /// `%2F`, `%5C` and `\`.
    pub escaped: Escaped,
    /// `%3B`, `%3F`, `%23` and `%25`.
    pub delimiters: Delimiters,
}

/// What becomes of several slashes in a row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Repeated {
    /// They become one.
    Merge,
    /// They stay: each ends a segment, empty or not.
    Keep,
}

/// What becomes of slashes that are escaped, and of backslashes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Escaped {
    /// The request is refused.
    Reject,
    /// They stay escaped, and end no segment.
    Keep,
    /// They become slashes, and whoever asked is told to ask for that path.
    Redirect,
}

/// What becomes of the escapes of characters that would end a path, a segment's name, or begin an escape. Unescaped they would
/// name something else, so that there is nothing to send a client to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Delimiters {
    /// The request is refused.
    Reject,
    /// They stay escaped.
    Keep,
}

impl Rules {
    /// What holds where nothing is configured.
    pub const DEFAULT: Self =
        Self { repeated: Repeated::Merge, escaped: Escaped::Reject, delimiters: Delimiters::Keep };

    /// Whether a client has to ask again for the one form of a path, instead of being served under it.
    pub fn sends_on(self, path: &str) -> bool {
        let is_escape =
            |escape: &[u8]| escape.eq_ignore_ascii_case(b"%2f") || escape.eq_ignore_ascii_case(b"%5c");
        self.escaped == Escaped::Redirect
            && (path.contains('\\') || path.as_bytes().windows(3).any(is_escape))
    }
}

/// Why a path has no form that everybody reads alike.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// A dot segment with parameters, which some applications take for a dot segment.
    DotParameters,
    /// An escaped `;`, `?`, `#` or `%`.
    EscapedDelimiter,
    /// An escaped slash or backslash, or a bare backslash.
    EscapedSlash,
    /// A `%` that no two hexadecimal digits follow.
    Escape,
    /// An escaped zero byte.
    Null,
    /// It does not begin with a slash.
    Relative,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DotParameters => "it has a dot segment with parameters",
            Self::EscapedDelimiter => "it has an escaped ;, ?, # or %",
            Self::EscapedSlash => "it has an escaped slash or a backslash",
            Self::Escape => "a % in it is not followed by two digits",
            Self::Null => "it has an escaped zero byte",
            Self::Relative => "it does not begin with /",
        })
    }
}

/// The one form of a path: unreserved characters unescaped, everything that a path may not carry escaped, escapes in upper
/// case, no dot segments. A path that is in this form already is not copied.
pub fn normal(path: &str, rules: Rules) -> Result<Cow<'_, str>, Refusal> {
    if !path.starts_with('/') {
        return Err(Refusal::Relative);
    }
    if is_normal(path.as_bytes(), rules.repeated) {
        return Ok(Cow::Borrowed(path));
    }
    let spelled = spell(path, rules)?;
    Ok(Cow::Owned(resolve(&spelled, rules.repeated)?))
}

/// Whether a path is certainly in its form: plain characters, and no segment that is empty or begins with a dot.
fn is_normal(path: &[u8], repeated: Repeated) -> bool {
    let mut after_slash = false;
    for byte in path {
        let is_fine = match byte {
            b'/' => !after_slash || repeated == Repeated::Keep,
            b'.' => !after_slash,
            byte => is_plain(*byte),
        };
        if !is_fine {
            return false;
        }
        after_slash = *byte == b'/';
    }
    true
}

/// What a segment may carry as it is (RFC 3986, section 3.3), but the escape.
const fn is_plain(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(
            byte,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@'
        )
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Every character in its one spelling.
fn spell(path: &str, rules: Rules) -> Result<String, Refusal> {
    let mut spelled = String::with_capacity(path.len() + 8);
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        let (value, is_escape) = match byte {
            b'%' => {
                let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
                let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) else {
                    return Err(Refusal::Escape);
                };
                (u8::try_from(high * 16 + low).map_err(|_| Refusal::Escape)?, true)
            }
            byte => (byte, false),
        };
        match value {
            0 => return Err(Refusal::Null),
            b'/' if !is_escape => spelled.push('/'),
            b'/' | b'\\' if rules.escaped == Escaped::Reject => return Err(Refusal::EscapedSlash),
            b'/' | b'\\' if rules.escaped == Escaped::Redirect => spelled.push('/'),
            b';' | b'?' | b'#' | b'%'
                if (is_escape || !is_plain(value)) && rules.delimiters == Delimiters::Reject =>
            {
                return Err(Refusal::EscapedDelimiter);
            }
            byte if is_unreserved(byte) || (!is_escape && is_plain(byte)) => spelled.push(char::from(byte)),
            byte => {
                spelled.push('%');
                let digit =
                    |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0').to_ascii_uppercase();
                spelled.extend([digit(byte >> 4), digit(byte & 15)]);
            }
        }
    }
    Ok(spelled)
}

/// Follows dot segments (RFC 3986, section 5.2.4); slashes become one before that, as applications that merge them do.
fn resolve(path: &str, repeated: Repeated) -> Result<String, Refusal> {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.strip_prefix('/').unwrap_or(path).split('/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        let (name, has_parameters) =
            segment.split_once(';').map_or((segment, false), |(name, _)| (name, true));
        let is_dots = matches!(name, "." | "..");
        if is_dots && has_parameters {
            return Err(Refusal::DotParameters);
        }
        if segment.is_empty() && !is_last && repeated == Repeated::Merge {
            continue;
        }
        if name == ".." {
            kept.pop();
        }
        if !is_dots {
            kept.push(segment);
        } else if is_last {
            kept.push("");
        }
    }
    let mut resolved = String::with_capacity(path.len());
    for segment in &kept {
        resolved.push('/');
        resolved.push_str(segment);
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEEP: Rules =
        Rules { repeated: Repeated::Keep, escaped: Escaped::Keep, delimiters: Delimiters::Keep };
    const REDIRECT: Rules = Rules { escaped: Escaped::Redirect, ..Rules::DEFAULT };

    #[track_caller]
    fn check(path: &str, rules: Rules, expected: Result<&str, Refusal>) {
        assert_eq!(normal(path, rules).as_deref().map_err(|refusal| *refusal), expected, "{path}");
    }

    #[test]
    fn one_form_for_every_spelling() {
        for (path, merged, kept) in [
            ("/", "/", "/"),
            ("/a/b;c=d/e:f@g", "/a/b;c=d/e:f@g", "/a/b;c=d/e:f@g"),
            ("/%61/%7Eb/%2d", "/a/~b/-", "/a/~b/-"),
            ("/a%c3%a4/ä", "/a%C3%A4/%C3%A4", "/a%C3%A4/%C3%A4"),
            ("/a|b\"{c}", "/a%7Cb%22%7Bc%7D", "/a%7Cb%22%7Bc%7D"),
            ("/%3b%3F%23%25", "/%3B%3F%23%25", "/%3B%3F%23%25"),
            ("/%252e%252e/", "/%252e%252e/", "/%252e%252e/"),
            ("//a///b//", "/a/b/", "//a///b//"),
            ("/a/../b/./c", "/b/c", "/b/c"),
            ("/a/%2e%2E/b", "/b", "/b"),
            ("/a//../b", "/b", "/a/b"),
            ("/..", "/", "/"),
            ("/../../x", "/x", "/x"),
            ("/a/..", "/", "/"),
            ("/a/b/.", "/a/b/", "/a/b/"),
            ("/.well-known/..x/...", "/.well-known/..x/...", "/.well-known/..x/..."),
        ] {
            check(path, Rules::DEFAULT, Ok(merged));
            check(path, KEEP, Ok(kept));
        }
    }

    #[test]
    fn what_applications_read_differently_is_refused() {
        for (path, refusal) in [
            ("", Refusal::Relative),
            ("a", Refusal::Relative),
            ("/%", Refusal::Escape),
            ("/%4", Refusal::Escape),
            ("/%+1", Refusal::Escape),
            ("/%ä", Refusal::Escape),
            ("/%00", Refusal::Null),
            ("/a/..;/b", Refusal::DotParameters),
            ("/a/%2e;x=y/b", Refusal::DotParameters),
        ] {
            check(path, Rules::DEFAULT, Err(refusal));
            check(path, KEEP, Err(refusal));
        }
        for (path, kept) in
            [("/a%2fb", "/a%2Fb"), ("/a%5cb", "/a%5Cb"), ("/a\\b", "/a%5Cb"), ("/..%2f/x", "/..%2F/x")]
        {
            check(path, Rules::DEFAULT, Err(Refusal::EscapedSlash));
            check(path, KEEP, Ok(kept));
        }
    }

    #[test]
    fn escaped_delimiters_are_refused_where_that_is_asked_for() {
        let rules = Rules { delimiters: Delimiters::Reject, ..Rules::DEFAULT };
        for path in ["/a%3bb", "/%3F", "/a/%23", "/100%25", "/%2561"] {
            check(path, rules, Err(Refusal::EscapedDelimiter));
        }
        check("/a;b=c/%20", rules, Ok("/a;b=c/%20"));
    }

    #[test]
    fn escaped_slashes_are_slashes_to_whom_is_sent_on() {
        for (path, expected) in [
            ("/a%2fb", "/a/b"),
            ("/a%5Cb", "/a/b"),
            ("/a\\b", "/a/b"),
            ("/%2f/evil.test", "/evil.test"),
            ("/a/%2e%2e%2f%2e%2e%2Fb", "/b"),
            ("/a%252fb", "/a%252fb"),
        ] {
            check(path, REDIRECT, Ok(expected));
            // Whoever follows is served.
            check(expected, REDIRECT, Ok(expected));
            assert_eq!(REDIRECT.sends_on(path), path != expected, "{path}");
            assert!(!REDIRECT.sends_on(expected), "{expected}");
            assert!(!Rules::DEFAULT.sends_on(path) && !KEEP.sends_on(path), "{path}");
        }
        check("/a%2f..;/b", REDIRECT, Err(Refusal::DotParameters));
        let keep = Rules { repeated: Repeated::Keep, ..REDIRECT };
        check("/a%2f%2fb", keep, Ok("/a//b"));
    }

    fn rules() -> impl Strategy<Value = Rules> {
        let escaped = prop_oneof![Just(Escaped::Reject), Just(Escaped::Keep), Just(Escaped::Redirect)];
        (any::<bool>(), escaped, any::<bool>()).prop_map(|(merge, escaped, reject)| Rules {
            repeated: if merge { Repeated::Merge } else { Repeated::Keep },
            escaped,
            delimiters: if reject { Delimiters::Reject } else { Delimiters::Keep },
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_096))]

        #[test]
        fn any_path_is_normal_once_it_was_made_so(
            path in "/(a|%2[eEfF]|%5C|%3[bF]|%2[35]|%61|%C3|%00|%|\\.|\\.\\.|/|;|\\\\|ä| |\\?|[!-~]){0,12}",
            rules in rules(),
        ) {
            if let Ok(once) = normal(&path, rules) {
                prop_assert_eq!(normal(&once, rules), Ok(Cow::Borrowed(&*once)));
                prop_assert!(once.is_ascii() && once.starts_with('/'));
                let segments: Vec<&str> = once.split('/').collect();
                prop_assert!(!segments.contains(&"..") && !segments.contains(&"."));
                prop_assert!(rules.repeated == Repeated::Keep || !once.contains("//"));
                prop_assert!(!rules.sends_on(&once), "a client is sent on in circles");
                prop_assert!(http::uri::PathAndQuery::try_from(&*once).is_ok_and(|path| path.as_str() == once));
            }
        }
    }
}
