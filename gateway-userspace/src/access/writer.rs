//! The thread that writes: it takes what the workers have gathered, all of it at once, and follows a file that is moved.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::Duration,
};

use crate::{access::Log, config::AccessOutput, metrics::names::Limit};

/// Time between two batches. Chosen: soon enough to follow along, and few system calls.
const INTERVAL: Duration = Duration::from_millis(200);

/// Where lines go.
#[derive(Debug)]
pub(super) enum Output {
    Stdout,
    File { path: PathBuf, file: File },
}

impl Output {
    pub(super) fn open(output: &AccessOutput) -> io::Result<Self> {
        match output {
            AccessOutput::Stdout => Ok(Self::Stdout),
            AccessOutput::File(path) => Ok(Self::File { path: path.clone(), file: append(path)? }),
        }
    }

    fn write(&mut self, batch: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(batch)?;
                stdout.flush()
            }
            Self::File { path, file } => {
                // Whoever rotates logs moves the file away.
                if !is_there(path, file)? {
                    *file = append(path)?;
                }
                file.write_all(batch)
            }
        }
    }
}

fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
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
                Err(cause) => {
                    let n_lines = batch.split_inclusive(|byte| *byte == b'\n').count();
                    (0..n_lines).for_each(|_| log.metrics.families.limit(Limit::AccessLog));
                    if !is_failing {
                        tracing::warn!(%cause, n_lines, "cannot write the access log; lines are dropped until it can be");
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
