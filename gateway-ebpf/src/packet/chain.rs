//! Extension headers of IPv6: the walk along them, to what a packet carries.

use bytemuck::{Pod, Zeroable};
use gateway_common::{addr::Protocol, counter::Reason};

use super::ip::{Piece, piece_of};
use crate::{env::Env, verdict::Verdict};

/// Extension headers of IPv6 (IANA "IPv6 Extension Header Types"), without the fragment header.
pub(super) const HOP_BY_HOP: u8 = 0;
pub(super) const ROUTING: u8 = 43;
pub(super) const FRAGMENT: u8 = 44;
pub(super) const ENCAPSULATION: u8 = 50;
pub(super) const AUTHENTICATION: u8 = 51;
pub(super) const DESTINATION: u8 = 60;
pub(super) const MOBILITY: u8 = 135;
pub(super) const HIP: u8 = 139;
pub(super) const SHIM6: u8 = 140;

/// A walk along extension headers (RFC 8200, section 4).
pub(super) struct Chain {
    /// What comes next.
    pub(super) next: u8,
    /// Where it begins.
    pub(super) end: u32,
    /// Bytes from there to the end of the packet.
    pub(super) left: u32,
    pub(super) piece: Piece,
    pub(super) identification: u32,
}

/// Headers that are read. Hosts need not read more than a few (RFC 8504, section 5.3).
const HEADERS: u32 = 6;

/// The first bytes of an extension header.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Extension {
    next: u8,
    length: u8,
    kind: u8,
    segments_left: u8,
    identification: [u8; 4],
}

/// Extension headers that are read of a packet that an ICMP error quotes, that of a fragment, and one beside it.
const QUOTED_HEADERS: u32 = 2;

/// Bytes of each.
const QUOTED_BYTES: u32 = 8;

/// Goes past the extension headers of a quoted packet that begin at this offset: the protocol behind them, and their bytes.
///
/// # Errors
/// The verdict about an error whose quotation does not say which flow it is about.
#[inline(always)]
pub(crate) fn past_quoted<E: Env>(env: &E, at: u32, first: u8) -> Result<(u8, u32), Verdict> {
    let (mut next, mut bytes) = (first, 0);
    for _ in 0..QUOTED_HEADERS {
        if !matches!(next, HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT) {
            break;
        }
        let header: Extension = env.load(at + bytes).ok_or(Verdict::Drop(Reason::BadIcmp))?;
        if next == FRAGMENT {
            // A later piece has no ports.
            if u16::from_be_bytes([header.kind, header.segments_left]) & !7 != 0 {
                return Err(Verdict::Pass(Reason::IcmpNoFlow));
            }
        } else if header.length != 0 || next == ROUTING && header.segments_left != 0 {
            return Err(Verdict::Pass(Reason::IcmpNoFlow));
        }
        bytes += QUOTED_BYTES;
        next = header.next;
    }
    Ok((next, bytes))
}

impl Chain {
    /// Walks to what is no extension header.
    #[inline(always)]
    pub(super) fn walk<E: Env>(&mut self, env: &E) -> Result<(), Verdict> {
        for idx in 0..HEADERS {
            match self.next {
                HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT => self.step(env, idx)?,
                ENCAPSULATION | AUTHENTICATION | MOBILITY | HIP | SHIM6 => {
                    return Err(Verdict::Pass(Reason::ExtensionHeader));
                }
                _ => return Ok(()),
            }
            // What stands behind the header of a later piece is payload, whatever it says.
            if self.piece == Piece::Later {
                return Ok(());
            }
        }
        match self.next {
            HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT | ENCAPSULATION | AUTHENTICATION | MOBILITY
            | HIP | SHIM6 => Err(Verdict::Pass(Reason::ExtensionHeader)),
            _ => Ok(()),
        }
    }

    #[inline(always)]
    fn step<E: Env>(&mut self, env: &E, idx: u32) -> Result<(), Verdict> {
        let bad = Verdict::Drop(Reason::BadExtension);
        let header: Extension = env.load(self.end).ok_or(bad)?;
        let bytes = if self.next == FRAGMENT { 8 } else { (u32::from(header.length) + 1) * 8 };
        if bytes > self.left {
            return Err(bad);
        }
        if self.next == HOP_BY_HOP && idx != 0 {
            return Err(bad);
        }
        if self.next == ROUTING && header.segments_left != 0 {
            // The destination is a place on the way, and the stack's business.
            return Err(Verdict::Pass(Reason::ExtensionHeader));
        }
        self.left -= bytes;
        if self.next == FRAGMENT {
            self.fragment(header)?;
        }
        self.next = header.next;
        self.end += bytes;
        if self.end > LAST {
            return Err(Verdict::Pass(Reason::ExtensionHeader));
        }
        Ok(())
    }

    #[inline(always)]
    fn fragment(&mut self, header: Extension) -> Result<(), Verdict> {
        if self.piece != Piece::Whole {
            return Err(Verdict::Drop(Reason::BadExtension));
        }
        let word = u16::from_be_bytes([header.kind, header.segments_left]);
        let (offset, has_more) = (u32::from(word & !7), word & 1 != 0);
        // A piece that is all of its packet (RFC 6946).
        if offset != 0 || has_more {
            let is_tcp = header.next == Protocol::TCP.number();
            self.piece = piece_of(offset, has_more, self.left, is_tcp)?;
            self.identification = u32::from_ne_bytes(header.identification);
        }
        Ok(())
    }

    /// Where the transport header begins, as a byte: the verifier follows that.
    #[inline(always)]
    pub(super) fn transport(&self) -> Result<u8, Verdict> {
        u8::try_from(self.end).map_err(|_| Verdict::Pass(Reason::ExtensionHeader))
    }
}

/// The last place where a transport header may begin.
const LAST: u32 = 0xff;
