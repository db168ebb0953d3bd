//! A hash over the sources of the kernel object. Shared by xtask, which records it beside the object, and by the
//! agent's build script, which refuses an object that is older than its sources.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// What the kernel object is made of, relative to the root.
const SOURCES: [&str; 6] = [
    "gateway-ebpf/src",
    "gateway-ebpf/Cargo.toml",
    "gateway-common/src",
    "gateway-common/Cargo.toml",
    "Cargo.toml",
    "Cargo.lock",
];

/// The files that count, in a fixed order.
///
/// # Errors
/// When a source cannot be read.
pub(crate) fn files(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut left: Vec<PathBuf> = SOURCES.iter().map(|source| root.join(source)).collect();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            for entry in fs::read_dir(&path)? {
                left.push(entry?.path());
            }
        } else {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// FNV-1a over names and contents, as sixteen hex digits. It guards against forgetting, not against an attacker.
///
/// # Errors
/// When a source cannot be read.
pub(crate) fn of_sources(root: &Path) -> io::Result<String> {
    let mut state: u64 = 0xcbf2_9ce4_8422_2325;
    let mut absorb = |bytes: &[u8]| {
        for byte in bytes {
            state = (state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for file in files(root)? {
        let name = file.strip_prefix(root).unwrap_or(&file);
        absorb(name.to_string_lossy().as_bytes());
        absorb(&fs::read(&file)?);
    }
    Ok(format!("{state:016x}"))
}
