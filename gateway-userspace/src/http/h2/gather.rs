//! What is ready at the same time leaves in one write: streams that have something to send wake their connection only after
//! everything that can run has run, and after the sockets have been asked once more for what else is ready.
//!
//! Without it each response is a record of TLS and a system call of its own, because the stream that is ready first wakes
//! the connection before the next one has been looked at. Bytes of the client, and room for more bytes to it, wake the
//! connection at once.

use std::{
    future::Future as _,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Wakes the task of one connection, late.
#[derive(Debug)]
pub(super) struct Gather {
    task: Mutex<Waker>,
    is_woken: AtomicBool,
    /// The client takes no more for now.
    is_blocked: AtomicBool,
    /// Told whenever the connection has written everything.
    written: Notify,
}

impl Default for Gather {
    fn default() -> Self {
        Self {
            task: Mutex::new(Waker::noop().clone()),
            is_woken: AtomicBool::new(false),
            is_blocked: AtomicBool::new(false),
            written: Notify::new(),
        }
    }
}

impl Gather {
    /// The connection is about to be polled by the task behind `cx`: whoever wakes it from now on wakes it again.
    pub(super) fn begin(&self, cx: &Context<'_>) {
        let mut task = self.task.lock();
        if !task.will_wake(cx.waker()) {
            task.clone_from(cx.waker());
        }
        drop(task);
        self.is_woken.store(false, Ordering::Release);
    }

    /// The connection was polled, and has written everything or not.
    pub(super) fn end(&self, is_written: bool) {
        self.is_blocked.store(!is_written, Ordering::Release);
        if is_written {
            self.written.notify_waiters();
        }
    }

    /// Ready when what the codec has by now, and the client has room for, is written. It may never be: the client may leave.
    pub(super) async fn written(self: &Arc<Self>) {
        let mut written = pin!(self.written.notified());
        written.as_mut().enable();
        // It may have nothing else to do.
        self.wake_by_ref();
        written.await;
    }

    /// Whether the connection has bytes that it cannot write.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Acquire)
    }

    /// What wakes the task at once.
    pub(super) fn task(&self) -> Waker {
        self.task.lock().clone()
    }
}

impl Wake for Gather {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_woken.swap(true, Ordering::AcqRel) {
            return;
        }
        let task = self.task();
        // Whoever yields runs again after the others, and after the driver; outside of a runtime at once. What is polled once
        // and dropped leaves its waker there.
        let later = pin!(tokio::task::yield_now());
        if let Poll::Ready(()) = later.poll(&mut Context::from_waker(&task)) {
            task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::atomic::AtomicUsize, time::Duration};

    use super::*;

    #[tokio::test]
    async fn a_connection_runs_once_after_all_that_is_ready() {
        const STREAMS: usize = 8;
        let gather = Arc::new(Gather::default());
        let said = Arc::new(AtomicUsize::new(0));
        let mut seen = Vec::new();
        let mut is_begun = false;
        let connection = poll_fn(|cx| {
            gather.begin(cx);
            if !std::mem::replace(&mut is_begun, true) {
                for _ in 0..STREAMS {
                    let (gather, said) = (Arc::clone(&gather), Arc::clone(&said));
                    drop(crate::drain::Tasks::default().spawn("stream", async move {
                        said.fetch_add(1, Ordering::Relaxed);
                        Waker::from(gather).wake();
                    }));
                }
                return Poll::Pending;
            }
            seen.push(said.load(Ordering::Relaxed));
            if seen.last() == Some(&STREAMS) { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::time::timeout(Duration::from_secs(5), connection).await.expect("it is woken");
        assert_eq!(seen, [STREAMS]);
    }

    #[test]
    fn without_a_runtime_nothing_waits() {
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let task = Waker::from(Arc::clone(&count));
        let gather = Arc::new(Gather::default());
        for expected in 1..3 {
            gather.begin(&Context::from_waker(&task));
            Waker::from(Arc::clone(&gather)).wake_by_ref();
            Waker::from(Arc::clone(&gather)).wake_by_ref();
            assert_eq!(count.0.load(Ordering::Relaxed), expected);
        }
    }
}
