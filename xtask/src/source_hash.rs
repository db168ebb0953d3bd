//! A hash of everything the kernel object is made from. `cargo xtask build-ebpf` records it beside the object, and the
//! agent's build script, which includes this very file, compares it: an object older than its sources is never embedded.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Folders and files whose contents decide what the kernel object is, relative to the workspace.
pub(crate) const SOURCES: [&str; 6] = [
    "Cargo.lock",
    "Cargo.toml",
    "gateway-common/Cargo.toml",
    "gateway-common/src",
    "gateway-ebpf/Cargo.toml",
    "gateway-ebpf/src",
];

/// The hash of [`SOURCES`] under `root`, as 16 hex digits.
pub(crate) fn of(root: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut hash = Fnv1a::new();
    for file in &files {
        let name = file.strip_prefix(root).unwrap_or(file);
        hash.field(name.to_string_lossy().as_bytes());
        hash.field(&fs::read(file)?);
    }
    Ok(format!("{:016x}", hash.0))
}

/// Adds `path`, or every file below it, to `files`.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !path.is_dir() {
        files.push(path.to_path_buf());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}

/// FNV-1a with 64 bits: it finds accidental changes, and nobody gains by forging one.
struct Fnv1a(u64);

impl Fnv1a {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds one field. The length goes first, so that moving a byte from one field to the next changes the hash.
    fn field(&mut self, bytes: &[u8]) {
        for byte in bytes.len().to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
