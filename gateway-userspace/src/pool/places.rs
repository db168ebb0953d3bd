//! Connections to endpoints of all services and workers together: each holds a descriptor of the process, and whoever has
//! used up its descriptors can accept nobody, not even whoever asks what is wrong.

use std::{io, sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Time for idle connections to make room: their workers close them as soon as they come to it.
const PATIENCE: Duration = Duration::from_millis(100);

/// So many and no more.
#[derive(Clone, Debug)]
pub struct Places(Arc<Semaphore>);

/// The place of one connection, as long as it is there.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "given back when it is dropped")] OwnedSemaphorePermit);

impl Places {
    /// None taken yet.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))))
    }

    /// Takes a place.
    ///
    /// # Errors
    /// As of a process that has no descriptor left.
    pub(super) fn take(&self) -> io::Result<Place> {
        let permit = Arc::clone(&self.0).try_acquire_owned();
        permit.map(Place).map_err(|_| io::Error::from_raw_os_error(libc::EMFILE))
    }

    /// Takes a place, which may become free in a moment.
    ///
    /// # Errors
    /// As of a process that has no descriptor left.
    pub(super) async fn wait(&self) -> io::Result<Place> {
        let permit = tokio::time::timeout(PATIENCE, Arc::clone(&self.0).acquire_owned()).await;
        permit.ok().and_then(Result::ok).map(Place).ok_or_else(|| io::Error::from_raw_os_error(libc::EMFILE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_its_connection_is_gone() {
        let places = Places::new(2);
        let (first, _second) = (places.take().unwrap(), places.take().unwrap());
        for _ in 0..2 {
            assert_eq!(places.take().unwrap_err().raw_os_error(), Some(libc::EMFILE));
        }
        drop(first);
        let _third = places.take().unwrap();
        places.take().unwrap_err();
    }

    #[tokio::test]
    async fn who_waits_gets_what_becomes_free() {
        let places = Places::new(1);
        let first = places.take().unwrap();
        let given_back = async {
            tokio::task::yield_now().await;
            drop(first);
        };
        let (second, ()) = tokio::join!(places.wait(), given_back);
        assert_eq!(places.wait().await.unwrap_err().raw_os_error(), Some(libc::EMFILE), "not for ever");
        drop(second);
        drop(places.wait().await.unwrap());
    }
}
