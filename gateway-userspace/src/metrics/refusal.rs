//! Why bytes are no request: the closed set that requests are refused by and that is counted.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

/// Why the bytes of a request were refused; the closed set behind the label `reason`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Refusal {
    /// A chunk's size is not a hexadecimal number, or its data does not end where it should.
    Chunk,
    /// A transfer coding that is not exactly `chunked`.
    Coding,
    /// An expectation that is not `100-continue`.
    Expect,
    /// A field's name or value is malformed, or continues the line before.
    Field,
    /// The head has too many bytes or fields.
    HeadTooLarge,
    /// No `host`, more than one, or one that is more than a host and a port.
    Host,
    /// `content-length` is repeated or not a number, or stands beside `transfer-encoding`.
    Length,
    /// The request line is malformed.
    Line,
    /// A line does not end with carriage return and line feed.
    LineEnd,
    /// The path has a spelling that applications read differently, and that `paths` of the listener refuses.
    Path,
    /// The head did not end in time.
    Slow,
    /// The target has a form or a character that it must not have.
    Target,
    /// The name of a field has an underscore, which `underscores` of the listener refuses.
    Underscore,
    /// A version that is not spoken.
    Version,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Chunk,
        Self::Coding,
        Self::Expect,
        Self::Field,
        Self::HeadTooLarge,
        Self::Host,
        Self::Length,
        Self::Line,
        Self::LineEnd,
        Self::Path,
        Self::Slow,
        Self::Target,
        Self::Underscore,
        Self::Version,
    ];

    /// The value of the label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chunk => "chunk",
            Self::Coding => "coding",
            Self::Expect => "expect",
            Self::Field => "field",
            Self::HeadTooLarge => "head_too_large",
            Self::Host => "host",
            Self::Length => "length",
            Self::Line => "line",
            Self::LineEnd => "line_end",
            Self::Path => "path",
            Self::Slow => "slow",
            Self::Target => "target",
            Self::Underscore => "underscore",
            Self::Version => "version",
        }
    }
}

impl EncodeLabelValue for Refusal {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

/// Label of a refused request.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct RefusalLabels {
    /// Why.
    pub reason: Refusal,
}
