//! The thread that writes: it takes what the workers have gathered, all of it at once, and follows a file that is moved.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt as _, MetadataExt as _},
    },
    path::PathBuf,
    time::Duration,
};

use crate::{access::Log, config::AccessOutput, metrics::names::Limit};

/// Time between two batches. Chosen: soon enough to follow along, and few system calls.
const INTERVAL: Duration = Duration::from_millis(200);

/// Where lines go.
#[derive(Debug)]
pub(super) struct Output {
    /// None for standard output.
    path: Option<PathBuf>,
    lines: Lines<File>,
}

impl Output {
    pub(super) fn open(output: &AccessOutput) -> io::Result<Self> {
        let (path, lines) = match output {
            // Past the buffer of the standard library, which does not tell how much of it was written.
            AccessOutput::Stdout => (None, Lines::new(io::stdout().as_fd().try_clone_to_owned()?.into())),
            AccessOutput::File(path) => (Some(path.clone()), append(path)?),
        };
        Ok(Self { path, lines })
    }

    fn write(&mut self, batch: &[u8]) -> Result<(), Broken> {
        if let Some(path) = &self.path {
            let is_lost = |cause| Broken { cause, n_lost: n_lines(batch) };
            // Whoever rotates logs moves the file away.
            if !is_there(path, &self.lines.to).map_err(is_lost)? {
                self.lines = append(path).map_err(is_lost)?;
            }
        }
        self.lines.write(batch)
    }
}

/// Why a batch was not written to its end.
#[derive(Debug)]
struct Broken {
    cause: io::Error,
    n_lost: usize,
}

/// Whole lines, also where writing fails in the middle of one: a disk that is full takes what it has room for.
#[derive(Debug)]
struct Lines<W> {
    to: W,
    /// What was written ends in the middle of a line.
    is_torn: bool,
}

impl<W: Write> Lines<W> {
    const fn new(to: W) -> Self {
        Self { to, is_torn: false }
    }

    fn write(&mut self, batch: &[u8]) -> Result<(), Broken> {
        let mut rest = batch;
        while self.is_torn || !rest.is_empty() {
            // What is there of a line becomes one of its own. Taking it back would look like another file to who reads along.
            let next = if self.is_torn { b"\n" } else { rest };
            let cause = match self.to.write(next) {
                Ok(0) => io::ErrorKind::WriteZero.into(),
                Ok(_) if self.is_torn => {
                    self.is_torn = false;
                    continue;
                }
                Ok(n) => {
                    rest = rest.get(n..).unwrap_or_default();
                    continue;
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                Err(cause) => cause,
            };
            let n_written = batch.len() - rest.len();
            let written = batch.get(..n_written).unwrap_or_default();
            self.is_torn |= written.last().is_some_and(|byte| *byte != b'\n');
            return Err(Broken { cause, n_lost: n_lines(rest) });
        }
        Ok(())
    }
}

/// Lines that end in these bytes.
fn n_lines(bytes: &[u8]) -> usize {
    bytes.split_inclusive(|byte| *byte == b'\n').count()
}

fn append(path: &PathBuf) -> io::Result<Lines<File>> {
    let to = OpenOptions::new().append(true).create(true).open(path)?;
    // An agent that ended on a full disk may have left half a line.
    let is_torn = last_byte(path).is_ok_and(|last| last.is_some_and(|last| last != b'\n'));
    Ok(Lines { to, is_torn })
}

/// The last byte of a regular file, if it has any.
fn last_byte(path: &PathBuf) -> io::Result<Option<u8>> {
    let there = fs::metadata(path)?;
    let Some(last) = there.len().checked_sub(1).filter(|_| there.is_file()) else { return Ok(None) };
    let mut byte = [0];
    File::open(path)?.read_exact_at(&mut byte, last)?;
    Ok(Some(byte[0]))
}

fn is_there(path: &PathBuf, file: &File) -> io::Result<bool> {
    let open = file.metadata()?;
    Ok(fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (open.dev(), open.ino())))
}

/// Writes until the log is closed, and then what is left.
pub(super) fn run(log: &Log, mut output: Output) {
    let mut batch = Vec::new();
    let mut is_failing = false;
    loop {
        let mut state = log.signal.state.lock();
        if !state.is_full && !state.is_closing {
            let _timed_out = log.signal.changed.wait_for(&mut state, INTERVAL);
        }
        state.is_full = false;
        let is_last = state.is_closing;
        drop(state);
        for shard in &log.shards {
            // The worker gets an empty buffer that has grown already.
            std::mem::swap(&mut *shard.0.lock(), &mut batch);
            if batch.is_empty() {
                continue;
            }
            match output.write(&batch) {
                Ok(()) => is_failing = false,
                Err(Broken { cause, n_lost }) => {
                    (0..n_lost).for_each(|_| log.metrics.families.limit(Limit::AccessLog));
                    if !is_failing {
                        tracing::warn!(%cause, n_lost, "cannot write the access log; lines are dropped until it can be");
                    }
                    is_failing = true;
                }
            }
            batch.clear();
        }
        if is_last {
            log.signal.state.lock().is_closed = true;
            log.signal.changed.notify_all();
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for so many bytes, which takes as many of a batch as it has room for.
    struct Disk {
        room: usize,
        written: Vec<u8>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(self.room);
            if n == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= n;
            self.written.extend(bytes.iter().take(n));
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_costs_the_lines_that_it_did_not_take_whole_and_no_other() {
        for (room, n_lost, torn) in [(0, 3, ""), (1, 3, "a\n"), (3, 2, "a1\n"), (7, 1, "a1\na2\na\n")] {
            let mut lines = Lines::new(Disk { room, written: Vec::new() });
            assert_eq!(lines.write(b"a1\na2\na3\n").unwrap_err().n_lost, n_lost, "{room}");
            assert_eq!(lines.write(b"b1\n").unwrap_err().n_lost, 1, "{room}");
            lines.to.room = 100;
            lines.write(b"c1\nc2\n").unwrap();
            let text = String::from_utf8(lines.to.written).unwrap();
            assert_eq!(text, format!("{torn}c1\nc2\n"), "{room}");
        }
    }

    #[test]
    fn what_an_earlier_agent_left_of_a_line_is_one_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        for (name, there, wanted) in
            [("torn", "a1\na", "a1\na\nb1\n"), ("whole", "a1\n", "a1\nb1\n"), ("new", "", "b1\n")]
        {
            let path = folder.path().join(name);
            fs::write(&path, there).unwrap();
            let mut output = Output::open(&AccessOutput::File(path.clone())).unwrap();
            output.write(b"b1\n").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), wanted);
        }
    }
}
