//! Room that messages leave behind for the next ones of the same thread: a connection that waits holds none of it, and a
//! request in the middle of others asks the allocator for none.
//!
//! Lists are last in, first out, so that what is used next is what was used last.

use std::cell::RefCell;

use http::HeaderMap;

/// Pieces of each kind that a thread keeps. Of heads and fields as long as most are it is a hundred KiB; there are seldom more
/// under way that have not been passed on.
const MOST: usize = 32;
/// Bytes of a head that is kept; longer ones are given back.
pub const HEAD_BYTES: std::ops::RangeInclusive<usize> = 2_048..=4_096;
/// Fields of a map that is kept; larger ones are given back.
const FIELDS: usize = 64;

struct Spare {
    heads: Vec<Vec<u8>>,
    fields: Vec<HeaderMap>,
}

thread_local! {
    static SPARE: RefCell<Spare> = const { RefCell::new(Spare { heads: Vec::new(), fields: Vec::new() }) };
}

/// Nothing where the thread is ending.
fn with<T>(act: impl FnOnce(&mut Spare) -> Option<T>) -> Option<T> {
    SPARE.try_with(|spare| act(&mut *spare.try_borrow_mut().ok()?)).ok().flatten()
}

/// Room for a head: more bytes than most have, with a short body.
pub fn head() -> Vec<u8> {
    with(|spare| spare.heads.pop()).unwrap_or_else(|| Vec::with_capacity(*HEAD_BYTES.start()))
}

/// Keeps the room of a head.
pub fn keep_head(mut head: Vec<u8>) {
    if HEAD_BYTES.contains(&head.capacity()) {
        head.clear();
        with(|spare| (spare.heads.len() < MOST).then(|| spare.heads.push(head)));
    }
}

/// No fields, and room for so many.
pub fn fields(n: usize) -> HeaderMap {
    let Some(mut fields) = with(|spare| spare.fields.pop()) else { return HeaderMap::with_capacity(n) };
    // Heads are bounded far below what a map can hold.
    fields.reserve(n);
    fields
}

/// Keeps the room of fields.
pub fn keep_fields(mut fields: HeaderMap) {
    if (1..=FIELDS).contains(&fields.capacity()) {
        fields.clear();
        with(|spare| (spare.fields.len() < MOST).then(|| spare.fields.push(fields)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_used_again_and_nothing_of_what_was_in_it() {
        let mut used = head();
        used.extend_from_slice(b"secret");
        let place = used.as_ptr();
        keep_head(used);
        let again = head();
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        let mut used = fields(20);
        used.append("x-secret", "1".parse().unwrap());
        used.append("x-secret", "2".parse().unwrap());
        let room = used.capacity();
        keep_fields(used);
        let again = fields(1);
        assert_eq!((again.capacity(), again.len(), again.get("x-secret")), (room, 0, None));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        for _ in 0..2 * MOST {
            keep_head(Vec::with_capacity(2_048));
            keep_fields(HeaderMap::with_capacity(8));
        }
        keep_head(Vec::with_capacity(100_000));
        keep_fields(HeaderMap::with_capacity(10_000));
        let kept = with(|spare| Some((spare.heads.len(), spare.fields.len()))).unwrap();
        assert_eq!(kept, (MOST, MOST));
        assert!(head().capacity() <= *HEAD_BYTES.end() && fields(1).capacity() <= FIELDS);
    }
}
