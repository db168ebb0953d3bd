//! Files that a configuration consists of: read within a bound, and remembered, so that a change of any of them can
//! be told from a mere touch.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs::File,
    hash::{BuildHasher, RandomState},
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
};

use crate::config::read::Wrong;

/// Reads files and remembers what was in them. Relative names start at the folder of the configuration file.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    hasher: RandomState,
    seen: RefCell<Fingerprints>,
}

/// What was in each file: a hash of its content, or none when it could not be read. Hashes are keyed, and compare
/// only when they were made by clones of one key.
pub type Fingerprints = BTreeMap<PathBuf, Option<u64>>;

impl Files {
    /// Files of the configuration in `folder`; `hasher` keys the fingerprints.
    pub fn new(folder: &Path, hasher: RandomState) -> Self {
        Self { folder: folder.to_owned(), hasher, seen: RefCell::default() }
    }

    /// The path that `name` stands for.
    pub fn path(&self, name: &str) -> PathBuf {
        if self.folder == Path::new(".") { PathBuf::from(name) } else { self.folder.join(name) }
    }

    /// The content of a file of at most `max` bytes.
    pub fn read(&self, name: &str, max: u64) -> Result<Vec<u8>, Wrong> {
        let path = self.path(name);
        let content = read_bounded(&path, max);
        let fingerprint = content.as_ref().ok().map(|content| self.hasher.hash_one(content));
        self.seen.borrow_mut().insert(path, fingerprint);
        content
    }

    /// What was read.
    pub fn fingerprints(self) -> Fingerprints {
        self.seen.into_inner()
    }
}

/// The folders in which a change of these files shows: theirs, and those of every symbolic link on the way, because
/// a mounted `ConfigMap` is changed by renaming a link that the file's own path goes through.
pub fn folders<'p>(files: impl Iterator<Item = &'p PathBuf>) -> BTreeSet<PathBuf> {
    const MAX_LINKS: usize = 40;
    let mut folders = BTreeSet::new();
    for file in files {
        let mut at = file.clone();
        for _ in 0..MAX_LINKS {
            folders.insert(parent(&at));
            match at.read_link() {
                Ok(target) => at = parent(&at).join(target),
                Err(_) => break,
            }
        }
        if let Ok(real) = file.canonicalize() {
            folders.insert(parent(&real));
        }
    }
    folders
}

/// The folder of a file; of a bare name, the current one.
pub fn parent(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    }
}

/// The content of a file of at most `max` bytes, without remembering it.
pub fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>, Wrong> {
    let cannot = |error: std::io::Error| {
        let remedy = if error.kind() == ErrorKind::NotFound {
            "create it, or correct the path"
        } else if error.kind() == ErrorKind::PermissionDenied {
            "let the user of sluice read it"
        } else {
            "make it a readable file"
        };
        Wrong::new(format!("{} cannot be read: {error}", path.display()), remedy)
    };
    // A FIFO or a device would block or never end.
    let meta = std::fs::metadata(path).map_err(cannot)?;
    if !meta.is_file() {
        let message = format!("{} is not a regular file", path.display());
        return Err(Wrong::new(message, "write the path of a file"));
    }
    let mut content = Vec::new();
    File::open(path)
        .map_err(cannot)?
        .take(max.saturating_add(1))
        .read_to_end(&mut content)
        .map_err(cannot)?;
    if u64::try_from(content.len()).unwrap_or(u64::MAX) > max {
        let message = format!("{} is larger than {max} bytes", path.display());
        return Err(Wrong::new(message, format!("write at most {max} bytes into it")));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_bounded_and_remembered() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), b"four").unwrap();
        let files = Files::new(dir.path(), RandomState::new());
        assert_eq!(files.read("a", 4).unwrap(), b"four");
        assert!(files.read("a", 3).unwrap_err().message.contains("larger than 3 bytes"));
        assert!(files.read("b", 3).unwrap_err().remedy.contains("create it"));
        assert!(files.read(".", 3).unwrap_err().message.contains("not a regular file"));
        let seen = files.fingerprints();
        assert_eq!(seen.len(), 3);
        assert_eq!(seen.get(&dir.path().join("b")), Some(&None));
    }

    #[test]
    fn folders_follow_links() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("..1");
        std::fs::create_dir(&real).unwrap();
        std::fs::write(real.join("f"), b"").unwrap();
        std::os::unix::fs::symlink("..1", dir.path().join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/f", dir.path().join("f")).unwrap();
        let folders = folders([dir.path().join("f")].iter());
        assert!(folders.contains(dir.path()));
        assert!(folders.contains(&real.canonicalize().unwrap()));
    }
}
