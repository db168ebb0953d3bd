//! Ready or not, and why not.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// Whether traffic should come here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Readiness {
    /// It should.
    Ready,
    /// It should not, for these reasons.
    NotReady(Vec<String>),
}

/// Conditions that must all be met. Names are a closed set of the program's own, so the board is bounded.
#[derive(Debug, Default)]
pub struct Board(Mutex<BTreeMap<&'static str, String>>);

impl Board {
    /// A condition is not met, and why.
    pub fn missing(&self, condition: &'static str, why: &str) {
        self.0.lock().insert(condition, why.to_owned());
    }

    /// A condition is met.
    pub fn met(&self, condition: &'static str) {
        self.0.lock().remove(condition);
    }

    /// All conditions together.
    pub fn readiness(&self) -> Readiness {
        let missing = self.0.lock();
        if missing.is_empty() {
            return Readiness::Ready;
        }
        Readiness::NotReady(missing.iter().map(|(condition, why)| format!("{condition}: {why}")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_nothing_is_missing() {
        let board = Board::default();
        board.missing("configuration", "not read yet");
        board.missing("kernel", "not loaded yet");
        board.met("kernel");
        assert_eq!(board.readiness(), Readiness::NotReady(vec!["configuration: not read yet".to_owned()]));
        board.met("configuration");
        assert_eq!(board.readiness(), Readiness::Ready);
    }
}
