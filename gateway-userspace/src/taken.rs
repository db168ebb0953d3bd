//! What a peer has taken of what was written to it: more than a socket says that is ready for more bytes only when much of its
//! buffer is free. And how it sees that the rest will not come.

/// A stream whose peer tells what it has.
pub trait Taken {
    /// Bytes of the socket that the peer has acknowledged so far; none where nobody can tell. It may cost a system call.
    fn n_taken(&self) -> Option<u64>;

    /// Bytes of the socket that the peer has not acknowledged; none where nobody can tell. It costs a system call.
    fn n_queued(&self) -> Option<u64>;

    /// Makes the end of the stream one that no peer takes for the end of what was to come. What it has not taken by then is lost
    /// to it, unless its end says as much by itself.
    fn break_off(&self);
}

impl<S: Taken + ?Sized> Taken for Box<S> {
    fn n_taken(&self) -> Option<u64> {
        (**self).n_taken()
    }

    fn n_queued(&self) -> Option<u64> {
        (**self).n_queued()
    }

    fn break_off(&self) {
        (**self).break_off();
    }
}

#[cfg(test)]
impl Taken for tokio::io::DuplexStream {
    fn n_taken(&self) -> Option<u64> {
        None
    }

    fn n_queued(&self) -> Option<u64> {
        None
    }

    fn break_off(&self) {}
}
