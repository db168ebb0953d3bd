//! Why a connection of HTTP/2 is ended because of its client: the closed set that the server goes by and that is counted.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

/// Why a connection of HTTP/2 was ended; the closed set behind the label `reason`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Misuse {
    /// A head that cannot be decompressed.
    Compression,
    /// Too many frames that carry nothing, such as PING, SETTINGS, PRIORITY, or DATA without data.
    Control,
    /// Too much that costs work and leads to nothing, as the codec counts it: tiny or empty frames, endless heads, streams
    /// that are reset before they are looked at, streams that have to be reset here.
    Excess,
    /// More data than the windows allow.
    FlowControl,
    /// A frame of a size that it must not have.
    FrameSize,
    /// Frames or heads that the protocol does not allow.
    Protocol,
    /// Most requests were taken back before they were answered.
    Resets,
    /// A head that did not end in time.
    Slow,
}

impl Misuse {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Compression,
        Self::Control,
        Self::Excess,
        Self::FlowControl,
        Self::FrameSize,
        Self::Protocol,
        Self::Resets,
        Self::Slow,
    ];

    /// The value of the label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Compression => "compression",
            Self::Control => "control",
            Self::Excess => "excess",
            Self::FlowControl => "flow_control",
            Self::FrameSize => "frame_size",
            Self::Protocol => "protocol",
            Self::Resets => "resets",
            Self::Slow => "slow",
        }
    }
}

impl EncodeLabelValue for Misuse {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

/// Label of a connection that was misused.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct MisuseLabels {
    /// Why.
    pub reason: Misuse,
}
