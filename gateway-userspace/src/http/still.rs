//! How long nothing has moved: looked at a few times in the time after which something counts as idle, so that what moves all
//! the time sets no timer.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

/// Looks in the time after which something counts as idle: it ends that much later at most.
const LOOKS: u32 = 4;

/// Something that may stand still.
#[derive(Debug)]
pub(super) struct Still<T> {
    look: Pin<Box<Sleep>>,
    length: Duration,
    /// What changes when it moves, as it was at the last look.
    seen: T,
    n_looks: u32,
}

impl<T: PartialEq> Still<T> {
    /// Idle when what is `seen` now stays the same for so long.
    pub(super) fn new(idle: Duration, seen: T) -> Self {
        let length = idle / LOOKS;
        Self { look: Box::pin(tokio::time::sleep(length)), length, seen, n_looks: 0 }
    }

    /// Ready when it has stood still for too long; `now` is asked at each look.
    pub(super) fn poll(&mut self, mut now: impl FnMut() -> T, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.look.as_mut().poll(cx));
            let now = now();
            self.n_looks = if self.seen == now { self.n_looks + 1 } else { 0 };
            if self.n_looks >= LOOKS {
                return Poll::Ready(());
            }
            self.seen = now;
            self.look.as_mut().reset(Instant::now() + self.length);
        }
    }
}
