//! Packets that are not all in one piece, or have extension headers: made from whole frames, and made whole again.

use crate::packet::{checksum, u8_of, u16_of};

/// The pieces of a packet, cut at offsets in bytes behind the part that is in all of them: the IPv4 header, or the IPv6
/// header with `unfragmentable` bytes of extension headers. `id` is the identification.
pub fn pieces(frame: &[u8], unfragmentable: usize, id: u32, cuts: &[usize]) -> Vec<Vec<u8>> {
    let v6 = frame[12..14] == [0x86, 0xdd];
    let header = if v6 { 40 + unfragmentable } else { usize::from(frame[14] & 0x0f) * 4 };
    let (head, body) = frame.split_at(14 + header);
    let mut ends: Vec<usize> = cuts.to_vec();
    ends.push(body.len());
    let mut start = 0;
    let mut pieces = Vec::new();
    for end in ends {
        let (offset, more) = (u16_of(start), end != body.len());
        let mut piece = head.to_vec();
        if v6 {
            // The last header in front of the cut says what follows it: the fragment header, which says the rest.
            let at = if unfragmentable == 0 { 14 + 6 } else { 14 + 40 };
            let next = std::mem::replace(&mut piece[at], 44);
            piece.extend([next, 0]);
            piece.extend((offset | u16::from(more)).to_be_bytes());
            piece.extend(id.to_be_bytes());
            let length = u16_of(piece.len() - 54 + end - start);
            piece[18..20].copy_from_slice(&length.to_be_bytes());
        } else {
            let length = u16_of(header + end - start);
            piece[16..18].copy_from_slice(&length.to_be_bytes());
            piece[18..20].copy_from_slice(&id.to_be_bytes()[2..]);
            piece[20..22].copy_from_slice(&(offset / 8 + 0x2000 * u16::from(more)).to_be_bytes());
            piece[24..26].fill(0);
            let sum = checksum(&piece[14..14 + header]);
            piece[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        piece.extend(&body[start..end]);
        pieces.push(piece);
        start = end;
    }
    pieces
}

/// Puts pieces together again, in the order in which they stand; the frame of the packet as if it had never been cut.
///
/// # Panics
///
/// When they are no pieces of one packet.
pub fn together(pieces: &[Vec<u8>]) -> Vec<u8> {
    let first = &pieces[0];
    if first[12..14] == [0x86, 0xdd] {
        // The fragment header is the last one that is in all pieces.
        let mut at = 54;
        let mut before = 20;
        while first[before] != 44 {
            before = at;
            at += (usize::from(first[at + 1]) + 1) * 8;
        }
        let mut whole = first[..at].to_vec();
        whole[before] = first[at];
        for piece in pieces {
            let word = u16::from_be_bytes([piece[at + 2], piece[at + 3]]);
            assert_eq!(usize::from(word & !7), whole.len() - at, "a piece is missing");
            assert_eq!(piece[at + 4..at + 8], first[at + 4..at + 8], "pieces of one packet");
            assert_eq!(piece[22..54], first[22..54], "the same addresses");
            let end = 54 + usize::from(u16::from_be_bytes([piece[18], piece[19]]));
            whole.extend(&piece[at + 8..end]);
        }
        let length = u16_of(whole.len() - 54);
        whole[18..20].copy_from_slice(&length.to_be_bytes());
        return whole;
    }
    let header = usize::from(first[14] & 0x0f) * 4;
    let mut whole = first[..14 + header].to_vec();
    for piece in pieces {
        assert_eq!(checksum(&piece[14..14 + header]), 0, "the header checksum of a piece");
        let offset = usize::from(u16::from_be_bytes([piece[20], piece[21]]) & 0x1fff) * 8;
        assert_eq!(offset, whole.len() - 14 - header, "a piece is missing");
        assert_eq!(
            (&piece[18..20], &piece[26..34]),
            (&first[18..20], &first[26..34]),
            "pieces of one packet"
        );
        let end = 14 + usize::from(u16::from_be_bytes([piece[16], piece[17]]));
        whole.extend(&piece[14 + header..end]);
    }
    let length = u16_of(whole.len() - 14);
    whole[16..18].copy_from_slice(&length.to_be_bytes());
    whole[20..22].fill(0);
    whole[24..26].fill(0);
    let sum = checksum(&whole[14..14 + header]);
    whole[24..26].copy_from_slice(&sum.to_be_bytes());
    whole
}

/// A frame of IPv6 with these extension headers in front of what it had: kind and bytes, of which the first two are
/// written here.
pub fn extended(frame: &[u8], headers: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut chain = Vec::new();
    let mut kinds: Vec<u8> = headers.iter().map(|(kind, _)| *kind).collect();
    kinds.push(frame[20]);
    for ((_, bytes), next) in headers.iter().zip(&kinds[1..]) {
        let mut header = bytes.clone();
        header[0] = *next;
        header[1] = u8_of(header.len() / 8 - 1);
        chain.extend(header);
    }
    let mut extended = frame[..54].to_vec();
    extended[20] = kinds[0];
    extended.extend(chain);
    extended.extend(&frame[54..]);
    let length = u16_of(extended.len() - 54);
    extended[18..20].copy_from_slice(&length.to_be_bytes());
    extended
}

/// A frame of IPv6 without its extension headers.
pub fn plain(frame: &[u8]) -> Vec<u8> {
    let (mut next, mut at) = (frame[20], 54);
    while [0, 43, 60].contains(&next) {
        next = frame[at];
        at += (usize::from(frame[at + 1]) + 1) * 8;
    }
    let mut plain = frame[..54].to_vec();
    plain[20] = next;
    plain.extend(&frame[at..]);
    let length = u16_of(plain.len() - 54);
    plain[18..20].copy_from_slice(&length.to_be_bytes());
    plain
}
