//! The bytes to one client, in few writes: the codec asks for every piece of a body to be written and flushed before it takes
//! the next one, which is a record of TLS and a system call for each; here pieces wait for each other until the connection
//! waits for something else.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    http::{h2::gather::Gather, stream::Guarded},
    taken::Taken,
};

/// Bytes that wait for each other: what fits a record of TLS (RFC 8446, section 5.1). More is not copied but written.
const BATCH_BYTES: usize = 16 * 1_024;

/// A stream whose writes wait for [`Batched::poll_out`], shared by the codec and by whoever drives it.
#[derive(Debug)]
pub(super) struct Batched<S> {
    shared: Arc<Mutex<Batch<S>>>,
    gather: Arc<Gather>,
}

impl<S> Clone for Batched<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), gather: Arc::clone(&self.gather) }
    }
}

#[derive(Debug)]
struct Batch<S> {
    stream: Guarded<S>,
    bytes: Vec<u8>,
    n_written: usize,
    /// Something was written since the last flush.
    is_dirty: bool,
    /// The codec has something to write that did not fit.
    is_full: bool,
}

impl<S> Batched<S> {
    /// What the stream waits for wakes the task behind `gather` at once.
    pub(super) fn new(stream: Guarded<S>, gather: Arc<Gather>) -> Self {
        let batch = Batch { stream, bytes: Vec::new(), n_written: 0, is_dirty: false, is_full: false };
        Self { shared: Arc::new(Mutex::new(batch)), gather }
    }
}

impl<S: Taken> Batched<S> {
    /// See [`Taken::n_taken`].
    pub(super) fn n_taken(&self) -> Option<u64> {
        self.shared.lock().stream.n_taken()
    }
}

impl<S: AsyncWrite + Taken + Unpin> Batched<S> {
    /// Writes what waits, and lets nothing stay behind in the stream. False where the codec has more, which did not fit.
    pub(super) fn poll_out(&self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut batch = self.shared.lock();
        ready!(batch.poll_out(cx))?;
        Poll::Ready(Ok(!batch.is_full))
    }
}

impl<S: AsyncWrite + Taken + Unpin> Batch<S> {
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_bytes(cx))?;
        if self.is_dirty {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.is_dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.bytes.get(self.n_written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.n_written += n,
            }
            self.is_dirty = true;
        }
        // Whoever has nothing to say holds nothing.
        self.n_written = 0;
        self.bytes = Vec::new();
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, bufs: &[io::IoSlice<'_>], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let n_bytes: usize = bufs.iter().map(|buf| buf.len()).sum();
        if self.bytes.len() + n_bytes > BATCH_BYTES {
            ready!(self.poll_bytes(cx))?;
        }
        if n_bytes >= BATCH_BYTES {
            self.is_dirty = true;
            return Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        }
        self.bytes.reserve(n_bytes);
        for buf in bufs {
            self.bytes.extend_from_slice(buf);
        }
        Poll::Ready(Ok(n_bytes))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Batched<S> {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let task = self.gather.task();
        Pin::new(&mut self.shared.lock().stream).poll_read(&mut Context::from_waker(&task), buf)
    }
}

impl<S: AsyncWrite + Taken + Unpin> AsyncWrite for Batched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let task = self.gather.task();
        let mut batch = self.shared.lock();
        let written = batch.poll_write(bufs, &mut Context::from_waker(&task));
        batch.is_full = written.is_pending();
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The codec flushes after each piece; see [`Batched::poll_out`].
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let task = self.gather.task();
        let cx = &mut Context::from_waker(&task);
        let mut batch = self.shared.lock();
        ready!(batch.poll_out(cx))?;
        Pin::new(&mut batch.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use bytes::BytesMut;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::http::uptake::Terms;

    const TERMS: Terms = Terms { stall: Duration::from_mins(1), bytes_per_second: 1 };

    fn batched(room: usize) -> (Batched<tokio::io::DuplexStream>, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(room);
        (Batched::new(Guarded::new(near, BytesMut::new(), TERMS), Arc::default()), far)
    }

    /// What the connection does whenever it runs.
    async fn begin(batched: &Batched<tokio::io::DuplexStream>) {
        poll_fn(|cx| {
            batched.gather.begin(cx);
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test]
    async fn pieces_wait_for_each_other() {
        let (mut near, mut far) = batched(BATCH_BYTES);
        begin(&near).await;
        for piece in [&b"one "[..], b"two ", b"three"] {
            near.write_all(piece).await.unwrap();
            near.flush().await.unwrap();
        }
        let mut room = [0; 64];
        let early = tokio::time::timeout(Duration::from_millis(20), far.read(&mut room)).await;
        early.expect_err("nothing was written yet");
        poll_fn(|cx| near.poll_out(cx)).await.unwrap();
        let n = far.read(&mut room).await.unwrap();
        assert_eq!(&room[..n], b"one two three");
        assert_eq!(near.shared.lock().bytes.capacity(), 0, "whoever is idle holds nothing");
    }

    #[tokio::test]
    async fn what_is_written_arrives_in_order_whatever_the_client_takes_at_once() {
        let piece = |idx: usize| vec![u8::try_from(idx).unwrap(); idx * idx * 3 + 1];
        let expected: Vec<u8> = (0..100).flat_map(piece).collect();
        for room in [100, 64 * 1_024] {
            let (mut near, mut far) = batched(room);
            let write = async {
                begin(&near).await;
                for idx in 0..100 {
                    near.write_all(&piece(idx)).await.unwrap();
                }
                near.shutdown().await.unwrap();
            };
            let mut all = Vec::new();
            let ((), read) = tokio::join!(write, far.read_to_end(&mut all));
            read.unwrap();
            assert!(all == expected, "{room}");
        }
    }
}
