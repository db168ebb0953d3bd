//! Regular expressions over what requests carry, compiled once and bounded, and texts that are matched exactly or by one.

use std::fmt;

use regex::bytes::{Regex, RegexBuilder};

/// Bytes of an expression.
const MAX_BYTES: usize = 1_024;

/// Bytes of a compiled expression, and of what a thread remembers while it matches. Chosen: alternatives of a hundred
/// words fit, counted repetitions of large classes do not. Matching takes time in proportion to the text, whatever the
/// expression is.
const COMPILED_BYTES: usize = 128 * 1024;

/// A regular expression that has to match a whole text. Letters and classes are those of ASCII.
#[derive(Clone)]
pub struct Pattern {
    text: Box<str>,
    regex: Regex,
}

/// Why an expression is refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Error {
    /// It is no expression; why, in the words of the parser.
    Syntax(String),
    /// It is empty, or longer than an expression may be.
    Length,
    /// Compiled, it would be larger than an expression may be.
    Size,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(why) => f.write_str(why),
            Self::Length => write!(f, "it is empty or longer than {MAX_BYTES} bytes"),
            Self::Size => write!(f, "it takes more than {COMPILED_BYTES} bytes when it is compiled"),
        }
    }
}

impl std::error::Error for Error {}

impl Pattern {
    /// Compiles an expression in the syntax of RE2: no look-around, no references back.
    pub fn new(text: &str) -> Result<Self, Error> {
        if text.is_empty() || text.len() > MAX_BYTES {
            return Err(Error::Length);
        }
        // By itself first: within the anchors, an unbalanced parenthesis could close theirs.
        compile(text)?;
        let regex = compile(&format!(r"\A(?:{text})\z"))?;
        Ok(Self { text: text.into(), regex })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it matches the whole of `text`.
    pub fn matches(&self, text: &[u8]) -> bool {
        self.regex.is_match(text)
    }
}

fn compile(text: &str) -> Result<Regex, Error> {
    let built = RegexBuilder::new(text)
        .unicode(false)
        .size_limit(COMPILED_BYTES)
        .dfa_size_limit(COMPILED_BYTES)
        .nest_limit(64)
        .build();
    built.map_err(|error| {
        if matches!(error, regex::Error::CompiledTooBig(_)) {
            return Error::Size;
        }
        // The parser draws a picture over several lines; its last line says what is wrong.
        let message = error.to_string();
        let last = message.lines().last().unwrap_or_default();
        Error::Syntax(last.strip_prefix("error: ").unwrap_or(last).to_owned())
    })
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.text)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Eq for Pattern {}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// What a value has to be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Text {
    /// Exactly this.
    Exact(String),
    /// Something that the expression matches as a whole.
    Pattern(Pattern),
}

impl Text {
    /// Whether `value` is such a value.
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes() == value,
            Self::Pattern(pattern) => pattern.matches(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_matches_the_whole_text() {
        let pattern = Pattern::new("/v[0-9]+/.*|/old").unwrap();
        for (text, expected) in [
            ("/v1/", true),
            ("/v12/a", true),
            ("/old", true),
            ("/older", false),
            ("/x/v1/", false),
            ("/v1", false),
            ("/v1/\n", false),
            ("/old\n", false),
        ] {
            assert_eq!(pattern.matches(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_expression_or_too_large_is_refused() {
        for text in ["a)|(b", "(", "[z-a]", "(?=x)", r"\1", "*"] {
            let refused = Pattern::new(text).unwrap_err();
            assert!(
                matches!(&refused, Error::Syntax(why) if !why.contains('\n') && !why.is_empty()),
                "{refused:?}"
            );
        }
        assert_eq!(Pattern::new("").unwrap_err(), Error::Length);
        assert_eq!(Pattern::new(&"a".repeat(1_025)).unwrap_err(), Error::Length);
        assert_eq!(Pattern::new("([a-z]{200}){200}").unwrap_err(), Error::Size);
    }
}
