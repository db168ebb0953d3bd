//! The file as a source: one pass from bytes to settings and a snapshot, or every fault of both.

use std::{
    hash::RandomState,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    config::{
        Config, agent,
        fault::{Collector, Fault, Faults},
        files::{self, Files, Fingerprints},
        keys,
        read::{Reader, View},
        yaml::{Document, Value},
    },
    limits,
    snapshot::{
        Snapshot,
        build::{Built, build, check},
        draft::{Problem, Severity},
    },
    source::wanted,
};

/// A file that was read and makes sense.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Settings of the process.
    pub config: Config,
    /// What is wanted.
    pub snapshot: Snapshot,
    /// What somebody should look at nevertheless.
    pub warnings: Faults,
}

/// One reading of the file: what came of it, and what it was made from.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) outcome: Result<Loaded, Faults>,
    pub(super) fingerprints: Fingerprints,
}

/// Reads the file once.
pub fn load(file: &Path) -> Result<Loaded, Faults> {
    read(file, 1, RandomState::new()).outcome
}

/// Reads `text` as if it stood in `file`; other files that it names are read from the file system.
pub fn parse(file: &Path, text: &str) -> Result<Loaded, Faults> {
    let files = Files::new(&files::parent(file), RandomState::new());
    understand(file, text, &files, 1)
}

/// Reads the file and everything it names; `hasher` keys the fingerprints.
pub(super) fn read(file: &Path, generation: u64, hasher: RandomState) -> Reading {
    let files = Files::new(&files::parent(file), hasher);
    // The path is absolute or starts at the current folder, so it has to be looked up from its own folder by name.
    let name = file
        .file_name()
        .map_or_else(|| file.display().to_string(), |name| name.to_string_lossy().into_owned());
    let outcome = match files.read(&name, limits::CONFIG_BYTES) {
        Err(wrong) => Err(Faults::of_file(file, wrong.message, wrong.remedy)),
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => understand(file, &text, &files, generation),
            Err(error) => {
                let message = format!("not UTF-8 from byte {}", error.utf8_error().valid_up_to());
                Err(Faults::of_file(file, message, "save the file as UTF-8".to_owned()))
            }
        },
    };
    Reading { outcome, fingerprints: files.fingerprints() }
}

fn understand(file: &Path, text: &str, files: &Files, generation: u64) -> Result<Loaded, Faults> {
    let collector = Collector::default();
    let Some(document) = Document::parse(&Arc::from(file), text, &collector) else {
        return Err(collector.finish());
    };
    let reader = Reader::new(&document, &collector);
    let Some(root) = root(&reader) else { return Err(collector.finish()) };
    let agent = agent::read(&root, files);
    let draft = wanted::read(&root, files);
    let located =
        |problem: Problem| -> Fault { document.fault(problem.place, problem.message, problem.remedy) };
    let (Some(agent), true) = (agent, collector.is_empty()) else {
        let problems = check(&draft).into_iter().filter(|problem| problem.severity == Severity::Fault);
        problems.map(located).for_each(|fault| collector.push(fault));
        return Err(collector.finish());
    };
    match build(draft, generation) {
        Ok(Built { snapshot, warnings }) => {
            warnings.into_iter().map(located).for_each(|fault| collector.push(fault));
            let config = Config { file: PathBuf::from(file), agent };
            Ok(Loaded { config, snapshot, warnings: collector.finish() })
        }
        Err(problems) => {
            let faults = problems.into_iter().filter(|problem| problem.severity == Severity::Fault);
            faults.map(located).for_each(|fault| collector.push(fault));
            Err(collector.finish())
        }
    }
}

/// An empty file is refused: it is far more often an accident than the wish to serve nothing.
fn root<'d>(reader: &Reader<'d>) -> Option<View<'d>> {
    let place = reader.document().root();
    if *reader.document().value(place) == Value::Null {
        reader.fault(place, "the file is empty", "write `listeners: []` to serve nothing");
        return None;
    }
    reader.view(place, &keys::ROOT)
}
