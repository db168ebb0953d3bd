//! Free numbers, as ranges: first fit, given back in any order.

use std::collections::BTreeMap;

use crate::image::Range;

/// The free numbers below a capacity.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Pool {
    /// First number of each free range, and how many; neighbours are always joined.
    ranges: BTreeMap<u32, u32>,
}

impl Pool {
    /// All numbers below `capacity`.
    pub(super) fn new(capacity: u32) -> Self {
        let mut pool = Self { ranges: BTreeMap::new() };
        pool.give(Range { first: 0, count: capacity });
        pool
    }

    /// These numbers.
    pub(super) fn of(numbers: impl IntoIterator<Item = u32>) -> Self {
        let mut pool = Self { ranges: BTreeMap::new() };
        for first in numbers {
            pool.give(Range { first, count: 1 });
        }
        pool
    }

    /// The lowest range of `count` numbers; none when there is no such range.
    pub(super) fn take(&mut self, count: u32) -> Option<u32> {
        let first = self.ranges.iter().find(|(_, free)| **free >= count).map(|(first, _)| *first)?;
        self.reserve(Range { first, count }).then_some(first)
    }

    /// The lowest number that the other pool does not have, else the lowest; none when there is none left.
    pub(super) fn take_but(&mut self, avoided: &Self) -> Option<u32> {
        let outside = |(first, count): (&u32, &u32)| {
            let end = first.saturating_add(*count);
            let mut number = *first;
            while let Some(beyond) = avoided.end_at(number) {
                number = beyond;
            }
            (number < end).then_some(number)
        };
        match self.ranges.iter().find_map(outside) {
            Some(number) => self.reserve(Range { first: number, count: 1 }).then_some(number),
            None => self.take(1),
        }
    }

    /// The first number behind the range that has this one; none when no range has it.
    fn end_at(&self, number: u32) -> Option<u32> {
        let (first, count) = self.ranges.range(..=number).next_back()?;
        let end = first.saturating_add(*count);
        (number < end).then_some(end)
    }

    /// Takes a certain range; false when not all of it is free. An empty one is always free.
    pub(super) fn reserve(&mut self, wanted: Range) -> bool {
        if wanted.count == 0 {
            return true;
        }
        let Some((first, count)) = self.ranges.range(..=wanted.first).next_back().map(|(f, c)| (*f, *c))
        else {
            return false;
        };
        let before = wanted.first - first;
        let Some(after) = before.checked_add(wanted.count).and_then(|used| count.checked_sub(used)) else {
            return false;
        };
        self.ranges.remove(&first);
        for (first, count) in [(first, before), (first + before + wanted.count, after)] {
            if count > 0 {
                self.ranges.insert(first, count);
            }
        }
        true
    }

    /// Gives a range back that was taken.
    pub(super) fn give(&mut self, range: Range) {
        if range.count == 0 {
            return;
        }
        let Range { mut first, mut count } = range;
        if let Some(next) = self.ranges.remove(&(first + count)) {
            count += next;
        }
        let before = self.ranges.range(..first).next_back().map(|(f, c)| (*f, *c));
        if let Some((before, length)) = before.filter(|(before, length)| before + length == first) {
            self.ranges.remove(&before);
            first = before;
            count += length;
        }
        self.ranges.insert(first, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_whole_again() {
        let mut pool = Pool::new(100);
        let taken: Vec<u32> = [10, 20, 30].into_iter().filter_map(|count| pool.take(count)).collect();
        assert_eq!(taken, [0, 10, 30]);
        pool.give(Range { first: 10, count: 20 });
        assert_eq!(pool.take(21), Some(60), "the first fit");
        assert_eq!(pool.take(20), Some(10));
        for (first, count) in [(60, 21), (0, 10), (30, 30), (10, 20)] {
            pool.give(Range { first, count });
        }
        assert_eq!(pool, Pool::new(100));
        assert_eq!(pool.take(101), None);
    }

    #[test]
    fn numbers_that_are_avoided_are_taken_last() {
        let mut pool = Pool::new(8);
        assert!(pool.reserve(Range { first: 3, count: 1 }));
        let avoided = Pool::of([0, 1, 3, 4, 6, 7]);
        let taken: Vec<u32> = std::iter::from_fn(|| pool.take_but(&avoided)).collect();
        assert_eq!(taken, [2, 5, 0, 1, 4, 6, 7]);
    }

    #[test]
    fn a_range_is_reserved_once() {
        let mut pool = Pool::new(10);
        assert!(pool.reserve(Range { first: 4, count: 4 }));
        assert!(!pool.reserve(Range { first: 7, count: 1 }));
        assert!(!pool.reserve(Range { first: 2, count: 3 }));
        assert!(!pool.reserve(Range { first: 8, count: 3 }), "beyond the end");
        assert!(pool.reserve(Range { first: 8, count: 2 }));
        assert!(pool.reserve(Range { first: 500, count: 0 }));
    }
}
