//! Connections to endpoints of all services and workers together: each holds a descriptor of the process, and whoever has
//! used up its descriptors can accept nobody, not even whoever asks what is wrong.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// So many and no more.
#[derive(Clone, Debug)]
pub struct Places {
    n_taken: Arc<AtomicUsize>,
    most: usize,
}

/// The place of one connection, as long as it is there.
#[derive(Debug)]
pub struct Place(Arc<AtomicUsize>);

impl Places {
    /// None taken yet.
    pub fn new(most: usize) -> Self {
        Self { n_taken: Arc::default(), most }
    }

    /// Takes a place.
    ///
    /// # Errors
    /// As of a process that has no descriptor left.
    pub(super) fn take(&self) -> io::Result<Place> {
        // Counted first, so that two who come at once do not both get the last one.
        let place = Place(Arc::clone(&self.n_taken));
        if self.n_taken.fetch_add(1, Ordering::AcqRel) >= self.most {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
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
}
