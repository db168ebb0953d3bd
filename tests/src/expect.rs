//! Files that a test compares with what the code says, and rewrites when `UPDATE_EXPECT=1` asks for it.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_owned)
}

/// Compares a file with its expected text, or writes it.
///
/// # Panics
/// When they differ and nothing asks for a rewrite.
#[track_caller]
pub fn file(path: &Path, expected: &str) {
    let present = fs::read_to_string(path).unwrap_or_default();
    if present == expected {
        return;
    }
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .unwrap_or_else(|error| panic!("cannot make {}: {error}", folder.display()));
        }
        fs::write(path, expected).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        return;
    }
    let line = present.lines().zip(expected.lines()).position(|(present, expected)| present != expected);
    panic!(
        "{} differs from what the code says, first at line {}; rewrite it with UPDATE_EXPECT=1",
        path.display(),
        line.map_or_else(|| present.lines().count().min(expected.lines().count()) + 1, |line| line + 1)
    );
}
