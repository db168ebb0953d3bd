//! The flows of one worker, of all its addresses: so many and no more, and the oldest gives way.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
};

/// What a flow is found by.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Key {
    /// The number of the forwarder that has it.
    pub(super) forwarder: u64,
    /// Whose it is.
    pub(super) client: SocketAddr,
}

/// Flows by client, and the order in which they began.
#[derive(Debug)]
pub(super) struct Table<F> {
    most: usize,
    flows: HashMap<Key, (u64, F)>,
    /// Flows that ended stay here until they are come upon: their number tells them from a later one of the same client.
    order: VecDeque<(Key, u64)>,
    last: u64,
}

impl<F> Table<F> {
    /// Room for so many flows.
    pub(super) fn new(most: usize) -> Self {
        Self { most: most.max(1), flows: HashMap::new(), order: VecDeque::new(), last: 0 }
    }

    /// A number that nothing else has.
    pub(super) const fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// A client's flow.
    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut F> {
        self.flows.get_mut(key).map(|(_, flow)| flow)
    }

    /// Adds a flow; how many had to give way.
    pub(super) fn insert(&mut self, key: Key, number: u64, flow: F) -> usize {
        self.remove(&key);
        let mut n_ended = 0;
        while self.flows.len() >= self.most && self.take_oldest().is_some() {
            n_ended += 1;
        }
        self.flows.insert(key, (number, flow));
        self.order.push_back((key, number));
        if self.order.len() > self.most.saturating_mul(2) {
            let Self { flows, order, .. } = self;
            order.retain(|(key, number)| flows.get(key).is_some_and(|(own, _)| own == number));
        }
        n_ended
    }

    /// Takes the oldest flow out.
    pub(super) fn take_oldest(&mut self) -> Option<F> {
        while let Some((key, number)) = self.order.pop_front() {
            if self.flows.get(&key).is_some_and(|(own, _)| *own == number) {
                return self.flows.remove(&key).map(|(_, flow)| flow);
            }
        }
        None
    }

    /// Forgets a client's flow.
    pub(super) fn remove(&mut self, key: &Key) {
        self.flows.remove(key);
    }

    /// Forgets this very flow, and not a later one of the same client; whether it was there.
    pub(super) fn end(&mut self, key: &Key, number: u64) -> bool {
        let is_there = self.flows.get(key).is_some_and(|(own, _)| *own == number);
        if is_there {
            self.flows.remove(key);
        }
        is_there
    }

    /// Forgets all flows of a forwarder.
    pub(super) fn retire(&mut self, forwarder: u64) {
        self.flows.retain(|key, _| key.forwarder != forwarder);
        self.order.retain(|(key, _)| key.forwarder != forwarder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(forwarder: u64, port: u16) -> Key {
        Key { forwarder, client: SocketAddr::from(([192, 0, 2, 1], port)) }
    }

    fn begin(table: &mut Table<u16>, key: Key) -> (u64, usize) {
        let number = table.number();
        (number, table.insert(key, number, key.client.port()))
    }

    fn there(table: &mut Table<u16>, keys: &[Key]) -> Vec<bool> {
        keys.iter().map(|key| table.get_mut(key).is_some()).collect()
    }

    #[test]
    fn the_oldest_gives_way_whichever_forwarder_has_it() {
        let mut table = Table::new(2);
        let keys = [key(1, 1), key(2, 1), key(2, 2)];
        let n_ended: Vec<_> = keys.map(|key| begin(&mut table, key).1).into();
        assert_eq!(n_ended, [0, 0, 1]);
        assert_eq!(there(&mut table, &keys), [false, true, true]);
        table.retire(2);
        assert_eq!(there(&mut table, &keys), [false; 3]);
        assert!(table.order.is_empty());
    }

    #[test]
    fn a_client_that_came_again_is_as_young_as_its_last_flow() {
        let mut table = Table::new(2);
        let (again, other, third) = (key(1, 1), key(1, 2), key(1, 3));
        let (first, _) = begin(&mut table, again);
        assert!(table.end(&again, first));
        begin(&mut table, other);
        begin(&mut table, again);
        assert!(!table.end(&again, first), "its flow is another one now");
        assert_eq!(begin(&mut table, third).1, 1);
        assert_eq!(there(&mut table, &[again, other, third]), [true, false, true]);
    }

    #[test]
    fn the_oldest_that_is_left_is_taken() {
        let mut table = Table::new(4);
        let keys = [key(1, 1), key(1, 2), key(1, 3)];
        let numbers = keys.map(|key| begin(&mut table, key).0);
        assert!(table.end(&keys[0], numbers[0]));
        assert_eq!([table.take_oldest(), table.take_oldest(), table.take_oldest()], [Some(2), Some(3), None]);
    }

    #[test]
    fn what_ended_does_not_pile_up() {
        let mut table = Table::new(4);
        for n in 0..1_000 {
            let key = key(1, n % 2);
            let (number, n_ended) = begin(&mut table, key);
            assert_eq!(n_ended, 0);
            assert!(n % 3 != 0 || table.end(&key, number));
            assert!(table.order.len() <= 8, "{}", table.order.len());
        }
    }
}
