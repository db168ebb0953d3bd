//! What has to be known of payloads before the codec sees them, because it would say something else about them, or nothing.

use crate::metrics::misuse::Misuse;

/// Flags of HEADERS (RFC 9113, section 6.2).
const PADDED: u8 = 8;
const PRIORITIZED: u8 = 32;

/// The setting of the window that streams begin with, and what it may be (section 6.5.2).
const INITIAL_WINDOW_SIZE: u16 = 4;
const LARGEST_WINDOW: u32 = 0x7fff_ffff;

/// The last of the entries of the static table that are pseudo-fields (RFC 7541, appendix A).
const LAST_PSEUDO: u8 = 14;

/// What is looked for in the payload that arrives.
#[derive(Debug, Default)]
pub(super) enum Payload {
    /// Nothing.
    #[default]
    Any,
    /// Values of settings; those bytes of the present one that have arrived.
    Settings([u8; 6], usize),
    /// Whether the fields behind a request begin with a pseudo-field.
    Trailers(Begin),
}

impl Payload {
    pub(super) const fn settings() -> Self {
        Self::Settings([0; 6], 0)
    }

    pub(super) const fn trailers(flags: u8) -> Self {
        let padding = if flags & PADDED != 0 { 1 } else { 0 };
        Self::Trailers(Begin::Ahead(if flags & PRIORITIZED != 0 { padding + 5 } else { padding }))
    }

    /// Sees the next bytes of the payload.
    pub(super) fn see(&mut self, bytes: &[u8]) -> Result<(), Misuse> {
        match self {
            Self::Any => Ok(()),
            Self::Settings(entry, n) => {
                for byte in bytes {
                    if let Some(place) = entry.get_mut(*n) {
                        *place = *byte;
                    }
                    *n += 1;
                    if *n < entry.len() {
                        continue;
                    }
                    *n = 0;
                    let [a, b, value @ ..] = *entry;
                    let is_window = u16::from_be_bytes([a, b]) == INITIAL_WINDOW_SIZE;
                    if is_window && u32::from_be_bytes(value) > LARGEST_WINDOW {
                        return Err(Misuse::FlowControl);
                    }
                }
                Ok(())
            }
            Self::Trailers(begin) => {
                for byte in bytes {
                    *begin = begin.next(*byte)?;
                    if *begin == Begin::Fine {
                        *self = Self::Any;
                        break;
                    }
                }
                Ok(())
            }
        }
    }
}

/// The beginning of a block of fields (RFC 7541, section 6). The codec refuses pseudo-fields behind others, but lets those in
/// front of trailers go without a word (RFC 9113, section 8.1: there must be none). One that an earlier block has put into the
/// dynamic table is not seen here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Begin {
    /// So many bytes stand in front of the block.
    Ahead(u8),
    /// A size of the table may come first, and goes on.
    Size,
    /// The length of a name follows.
    Length,
    /// It goes on.
    MoreLength { is_huffman: bool },
    /// The name follows.
    Name { is_huffman: bool },
    /// It is no pseudo-field.
    Fine,
}

impl Begin {
    fn next(self, byte: u8) -> Result<Self, Misuse> {
        // A number whose prefix is full goes on as long as the highest bit says so (RFC 7541, section 5.1).
        let goes_on = byte & 0x80 != 0;
        Ok(match self {
            Self::Ahead(n @ 1..) => Self::Ahead(n - 1),
            Self::Ahead(0) => return Self::field(byte),
            Self::Size if goes_on => Self::Size,
            Self::Size => Self::Ahead(0),
            Self::Length => {
                let is_huffman = goes_on;
                if byte & 0x7f == 0x7f { Self::MoreLength { is_huffman } } else { Self::Name { is_huffman } }
            }
            Self::MoreLength { .. } if goes_on => self,
            Self::MoreLength { is_huffman } => Self::Name { is_huffman },
            // The code of a colon has seven bits, and is no beginning of another one (RFC 7541, appendix B).
            Self::Name { is_huffman: true } if byte >> 1 == 0b101_1100 => return Err(Misuse::Protocol),
            Self::Name { is_huffman: false } if byte == b':' => return Err(Misuse::Protocol),
            Self::Name { .. } | Self::Fine => Self::Fine,
        })
    }

    /// The first byte of a field.
    const fn field(byte: u8) -> Result<Self, Misuse> {
        let index = match byte {
            0x80.. => byte & 0x7f,
            0x40.. => byte & 0x3f,
            0x3f => return Ok(Self::Size),
            0x20.. => return Ok(Self::Ahead(0)),
            _ => byte & 0x0f,
        };
        match index {
            0 if byte < 0x80 => Ok(Self::Length),
            1..=LAST_PSEUDO => Err(Misuse::Protocol),
            _ => Ok(Self::Fine),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trailers(flags: u8, bytes: &[u8]) -> Result<(), Misuse> {
        for step in [1, 2, bytes.len().max(1)] {
            let mut payload = Payload::trailers(flags);
            let seen = bytes.chunks(step).try_for_each(|piece| payload.see(piece));
            if step == bytes.len().max(1) {
                return seen;
            }
            let mut whole = Payload::trailers(flags);
            assert_eq!(seen, whole.see(bytes), "{bytes:?}");
        }
        Ok(())
    }

    #[test]
    fn a_pseudo_field_in_front_is_seen_in_every_spelling() {
        let padded = |flags, ahead: &[u8], block: &[u8]| trailers(flags, &[ahead, block].concat());
        for block in [
            // An entry of the static table, and its name with another value: indexed, not indexed, never indexed.
            &b"\x81"[..],
            b"\x8e",
            b"\x44\x01/",
            b"\x04\x01/",
            b"\x14\x01/",
            b"\x4e\x03200",
            // Its name in full, as it is and by Huffman's code, with a length of one byte and of two.
            b"\x40\x05:path\x01/",
            b"\x00\x02:x\x00",
            b"\x10\x7f\x00:",
            b"\x40\x84\xb9\x58\x33\x3f\x01/",
            b"\x40\xff\x80\x01\xb8",
            // Behind sizes of the table.
            b"\x20\x84",
            b"\x3f\xe1\x1f\x20\x84",
        ] {
            assert_eq!(trailers(0, block), Err(Misuse::Protocol), "{block:?}");
            assert_eq!(padded(PADDED, &[0], block), Err(Misuse::Protocol), "{block:?}");
            assert_eq!(padded(PADDED | PRIORITIZED, &[0x84; 6], block), Err(Misuse::Protocol), "{block:?}");
        }
    }

    #[test]
    fn other_fields_in_front_are_fine_whatever_follows() {
        for block in [
            &b""[..],
            b"\x8f",
            b"\xbe",
            b"\x7f\x00\x01x",
            b"\x0f\x00\x01x",
            b"\x40\x01x\x01:",
            b"\x00\x85\xf2\xb2\x4a\x84\xff\x01:",
            b"\x20\x40\x01x\x01y\x84",
            b"\x40\x00\x01y",
        ] {
            assert_eq!(trailers(0, block), Ok(()), "{block:?}");
        }
    }

    #[test]
    fn windows_have_a_bound() {
        let setting = |id: u16, value: u32| [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat();
        let large = setting(INITIAL_WINDOW_SIZE, LARGEST_WINDOW + 1);
        for (settings, expected) in [
            (vec![setting(INITIAL_WINDOW_SIZE, LARGEST_WINDOW)], Ok(())),
            (vec![setting(3, u32::MAX), setting(0x0400, u32::MAX)], Ok(())),
            (vec![setting(1, 0), large.clone()], Err(Misuse::FlowControl)),
            (vec![large, setting(1, 0)], Err(Misuse::FlowControl)),
        ] {
            for step in [1, 5, 6, 100] {
                let mut payload = Payload::settings();
                let seen = settings.concat().chunks(step).try_for_each(|piece| payload.see(piece));
                assert_eq!(seen, expected, "{step}");
            }
        }
    }
}
