//! Secrets: bytes that no log line, no dump and no error message can show.

use std::sync::Arc;

/// Bytes without `Debug` output and without `Display`.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// Takes the bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self(Arc::from(bytes))
    }

    /// The bytes, for the one place that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}
