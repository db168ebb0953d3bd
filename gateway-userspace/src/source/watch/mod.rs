//! The file as it changes: watched, settled, read again, and handed on when its content is another.
//!
//! Folders are watched, not files: a mounted `ConfigMap` changes by renaming a symbolic link, and an editor by renaming
//! a file, both of which a watch on the file itself misses.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::sync::mpsc;

use crate::{
    config::{
        AgentSettings,
        fault::Faults,
        files::{self, Fingerprints},
    },
    drain::Drain,
    limits,
    snapshot::Snapshot,
    source::file::{self, Loaded, Reading},
};

/// What came of a change.
#[derive(Debug)]
pub struct Update {
    /// The new snapshot, or everything that is wrong with the file.
    pub snapshot: Result<Snapshot, Faults>,
    /// What somebody should look at nevertheless.
    pub warnings: Faults,
    /// Whether the `agent` part differs from what the process started with, so that a restart is needed.
    pub agent_changed: bool,
}

/// A configuration file that is followed.
#[derive(Debug)]
pub struct FileSource {
    file: PathBuf,
    started_with: AgentSettings,
    generation: u64,
    seen: Seen,
    asked: (mpsc::Sender<()>, mpsc::Receiver<()>),
}

/// Asks a source to look at its file now, as SIGHUP does.
#[derive(Clone, Debug)]
pub struct Reload(mpsc::Sender<()>);

impl Reload {
    /// Asks; several requests that were not served yet are one.
    pub fn reload(&self) {
        // A full channel holds a request that has not been served; a closed one belongs to a source that has ended.
        self.0.try_send(()).ok();
    }
}

/// What the files held when they were last read, and the key of the fingerprints.
#[derive(Clone, Debug)]
struct Seen {
    fingerprints: Fingerprints,
    hasher: RandomState,
}

/// Why a source looks at its files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reason {
    Asked,
    Changed,
    Ended,
    Poll,
}

/// Which folders are watched.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Coverage {
    /// Some were not a moment ago.
    Grew,
    /// Some cannot be.
    Partial,
    /// All.
    Whole,
}

impl FileSource {
    /// Reads the file for the first time.
    pub fn open(file: &Path) -> Result<(Loaded, Self), Faults> {
        let hasher = RandomState::new();
        let Reading { outcome, fingerprints } = file::read(file, FIRST_GENERATION, hasher.clone());
        let loaded = outcome?;
        let source = Self {
            file: file.to_owned(),
            started_with: loaded.config.agent.clone(),
            generation: FIRST_GENERATION,
            seen: Seen { fingerprints, hasher },
            asked: mpsc::channel(1),
        };
        Ok((loaded, source))
    }

    /// The handle that asks for a reload.
    pub fn handle(&self) -> Reload {
        Reload(self.asked.0.clone())
    }

    /// Follows the file until the drain begins or nobody takes updates any more.
    pub async fn run(mut self, updates: mpsc::Sender<Update>, mut drain: Drain) {
        let (wake, mut woken) = mpsc::channel(1);
        let mut watch = Watch::new(wake);
        loop {
            let wait = match watch.follow(&self.seen.fingerprints) {
                // What changed after the last reading and before the watch is only found by another look.
                Coverage::Grew => Duration::ZERO,
                Coverage::Whole => POLL,
                Coverage::Partial => POLL_UNWATCHED,
            };
            let reason = tokio::select! {
                () = drain.begun() => Reason::Ended,
                Some(()) = woken.recv() => Reason::Changed,
                Some(()) = self.asked.1.recv() => Reason::Asked,
                () = tokio::time::sleep(wait) => Reason::Poll,
            };
            match reason {
                Reason::Ended => return,
                Reason::Changed => settle(&mut woken).await,
                Reason::Asked | Reason::Poll => {}
            }
            if let Some(update) = self.look(reason).await {
                tokio::select! {
                    () = drain.begun() => return,
                    sent = updates.send(update) => if sent.is_err() { return },
                }
            }
        }
    }

    /// Reads the files again if any of them holds something else, or somebody asks: what was refused then for want of an
    /// address may be served now.
    async fn look(&mut self, reason: Reason) -> Option<Update> {
        let (file, seen, generation) = (self.file.clone(), self.seen.clone(), self.generation + 1);
        // Reading may take a while with 100,000 endpoints, and others live on this runtime.
        let looked = tokio::task::spawn_blocking(move || {
            let is_asked = reason == Reason::Asked;
            if !is_asked && seen.is_current() {
                return None;
            }
            let reading = file::read(&file, generation, seen.hasher.clone());
            (is_asked || reading.fingerprints != seen.fingerprints).then_some(reading)
        });
        let Reading { outcome, fingerprints } = looked.await.ok().flatten()?;
        self.seen.fingerprints = fingerprints;
        Some(match outcome {
            Ok(Loaded { config, snapshot, warnings }) => {
                self.generation = generation;
                let agent_changed = config.agent != self.started_with;
                Update { snapshot: Ok(snapshot), warnings, agent_changed }
            }
            Err(faults) => {
                Update { snapshot: Err(faults), warnings: Faults::default(), agent_changed: false }
            }
        })
    }
}

impl Seen {
    /// Whether every file still holds what it held.
    fn is_current(&self) -> bool {
        self.fingerprints.iter().all(|(path, before)| {
            let now = files::read_bounded(path, limits::CONFIG_BYTES).ok();
            now.map(|content| self.hasher.hash_one(&content)) == *before
        })
    }
}

/// Waits until nothing has happened for a moment, at most for a bounded time.
async fn settle(woken: &mut mpsc::Receiver<()>) {
    let quiet = async { while let Ok(Some(())) = tokio::time::timeout(QUIET, woken.recv()).await {} };
    drop(tokio::time::timeout(SETTLE, quiet).await);
}

/// Watches folders, as far as the system lets it.
struct Watch {
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    /// Folders that could not be watched, so that each is complained about once.
    unwatched: BTreeSet<PathBuf>,
}

impl Watch {
    fn new(wake: mpsc::Sender<()>) -> Self {
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // An error may stand for lost events, so it is looked at, too.
            if event.is_err() || event.is_ok_and(|event| changes(event.kind)) {
                // A full channel holds a wake-up that has not been served.
                wake.try_send(()).ok();
            }
        });
        let watcher = match watcher {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                let seconds = POLL_UNWATCHED.as_secs();
                tracing::warn!(%error, seconds, "files cannot be watched; they are read again at this interval");
                None
            }
        };
        Self { watcher, folders: BTreeSet::new(), unwatched: BTreeSet::new() }
    }

    /// Watches the folders of these files.
    fn follow(&mut self, files: &Fingerprints) -> Coverage {
        let Some(watcher) = &mut self.watcher else { return Coverage::Partial };
        let wanted = files::folders(files.keys());
        for gone in self.folders.difference(&wanted) {
            // A folder that was removed has lost its watch by itself.
            drop(watcher.unwatch(gone));
        }
        let mut failed = BTreeSet::new();
        for folder in &wanted {
            // Watching again costs little, and finds a folder that was replaced by another of its name.
            if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                if !self.unwatched.contains(folder) {
                    tracing::warn!(folder = %folder.display(), %error, "folder cannot be watched");
                }
                failed.insert(folder.clone());
            }
        }
        let grew = wanted.difference(&self.folders).next().is_some();
        self.folders = wanted;
        self.unwatched = failed;
        match (grew, self.unwatched.is_empty()) {
            (true, _) => Coverage::Grew,
            (false, true) => Coverage::Whole,
            (false, false) => Coverage::Partial,
        }
    }
}

/// Whether an event can mean other content. Reading does not: our own reading would wake us for ever.
fn changes(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}

const FIRST_GENERATION: u64 = 1;

/// Silence after which a change counts as complete. Chosen: an editor writes a file and renames it within a few
/// milliseconds, `kubectl` swaps a link once.
const QUIET: Duration = Duration::from_millis(50);

/// The longest that a change is waited for, so that a file which never rests is read nevertheless.
const SETTLE: Duration = Duration::from_secs(1);

/// A look without an event, in case one was lost: network file systems give none for what others write.
const POLL: Duration = Duration::from_secs(10);

/// The same when events are not to be had.
const POLL_UNWATCHED: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
