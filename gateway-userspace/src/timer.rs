//! One timer for all the waits of a connection. A wait that ends in time leaves it alone: it fires some time later, and
//! finds out then what is really waited for.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

/// The timer of one connection.
#[derive(Debug, Default)]
pub struct Timer(Option<Pin<Box<Sleep>>>);

/// One wait, from the first time that it had to wait.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wait(Option<Instant>);

impl Wait {
    /// How long it has lasted.
    pub fn lasted(&self) -> Duration {
        self.0.map_or(Duration::ZERO, |begun| begun.elapsed())
    }
}

impl Timer {
    /// Ready when `wait` has lasted for `bound`; else the task is woken by then.
    pub fn poll(&mut self, wait: &mut Wait, bound: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = *wait.0.get_or_insert_with(Instant::now) + bound;
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn each_wait_has_its_own_bound() {
        let mut timer = Timer::default();
        let started = Instant::now();
        let (long, short) = (Duration::from_millis(300), Duration::from_millis(50));
        let mut wait = Wait::default();
        tokio::time::timeout(short, poll_fn(|cx| timer.poll(&mut wait, long, cx)))
            .await
            .expect_err("it is too early");
        let mut wait = Wait::default();
        poll_fn(|cx| timer.poll(&mut wait, short, cx)).await;
        assert!((100..250).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
        let mut wait = Wait::default();
        poll_fn(|cx| timer.poll(&mut wait, long, cx)).await;
        assert!(started.elapsed().as_millis() >= 400, "{:?}", started.elapsed());
    }
}
