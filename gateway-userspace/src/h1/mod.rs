//! HTTP/1 on the wire (RFC 9112): heads and chunks to values and back, for both sides. Pure: bytes in, values out.
//!
//! Strict where two servers in a row may understand bytes differently, which is how requests are smuggled: what is taken
//! here means one thing only. [`head`] reads requests, [`answer`] responses, [`chunk`] bodies in chunks, [`out`] is what
//! waits to be written, and [`spare`] the room that messages leave behind.

pub mod answer;
pub mod chunk;
pub mod date;
pub mod head;
pub mod out;
pub mod spare;

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// There is none.
    None,
    /// After this many bytes.
    Length(u64),
    /// In chunks.
    Chunked,
    /// When the connection ends; responses only.
    UntilClose,
}

/// Digits only: no sign, no list.
pub fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The words of a field that is a list.
fn words(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests;
