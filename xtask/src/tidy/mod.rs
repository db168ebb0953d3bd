//! `cargo xtask tidy`: what the compiler and clippy cannot see: the layer table, budgets, names and words. A rule that
//! is not checked here is a wish.

mod budget;
mod layers;
mod source;
mod words;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use self::source::Source;
use crate::workspace::Workspace;

/// Folders that hold nothing of ours.
const SKIPPED: [&str; 5] = [".git", "target", "corpus", "artifacts", "testdata"];

/// Endings of files that are read.
const TEXTS: [&str; 7] = ["rs", "toml", "md", "yaml", "yml", "json", "service"];

/// Something that a rule forbids.
#[derive(Debug)]
struct Fault {
    path: String,
    line: usize,
    what: String,
    remedy: String,
}

impl Fault {
    fn new(path: &str, line: usize, what: String, remedy: &str) -> Self {
        Self { path: path.to_owned(), line, what, remedy: remedy.to_owned() }
    }
}

/// Checks every file and prints every fault.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let mut files = Vec::new();
    list(&workspace.root, &mut files)?;
    files.sort();
    let mut faults = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let path = file.strip_prefix(&workspace.root).unwrap_or(file).to_string_lossy().into_owned();
        words::check_text(&path, &text, &mut faults);
        layers::check_document(&path, &text, &mut faults);
        if file.extension().is_some_and(|extension| extension == "rs") {
            let source = Source::new(&path, &text);
            layers::check(&source, &mut faults);
            budget::check(&source, &mut faults);
            words::check(&source, &mut faults);
        }
    }
    faults.sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line)));
    for Fault { path, line, what, remedy } in &faults {
        println!("{path}:{line}: {what}\n    {remedy}");
    }
    if !faults.is_empty() {
        bail!("tidy: {} faults in {} files", faults.len(), files.len());
    }
    println!("tidy: {} files, no faults", files.len());
    Ok(())
}

/// Adds the texts below a folder.
fn list(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_symlink() || SKIPPED.contains(&&*name) {
            continue;
        }
        if path.is_dir() {
            list(&path, files)?;
        } else if path.extension().is_some_and(|extension| TEXTS.iter().any(|text| extension == *text)) {
            files.push(path);
        }
    }
    Ok(())
}
