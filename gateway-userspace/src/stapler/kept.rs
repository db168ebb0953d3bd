//! Answers in files, so that clients are told them from the first handshake after a restart on. What is in a file proves
//! nothing: whoever reads it checks it as if it had just been fetched.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use crate::ocsp;

const ENDING: &str = "der";

/// A folder with a file for each certificate.
#[derive(Debug)]
pub(super) struct Kept(PathBuf);

impl Kept {
    /// In this folder, which is made where it is missing.
    pub(super) fn new(folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name).with_extension(ENDING)
    }

    /// What was written last, if anything was.
    pub(super) fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.path(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut answer = Vec::new();
        file.take(ocsp::MAX_BYTES).read_to_end(&mut answer)?;
        Ok(Some(answer))
    }

    /// Writes an answer in place of the last one. A reader sees the one or the other.
    pub(super) fn write(&self, name: &str, answer: &[u8]) -> io::Result<()> {
        let new = self.0.join(name).with_extension("new");
        fs::write(&new, answer)?;
        fs::rename(new, self.path(name))
    }

    /// Removes what was written about a certificate.
    pub(super) fn forget(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes what was written about all certificates but these.
    pub(super) fn retain(&self, names: &HashSet<&str>) -> io::Result<()> {
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            let is_ours = path.extension() == Some(OsStr::new(ENDING));
            let is_wanted = |name: &str| names.contains(name);
            if is_ours && !path.file_stem().and_then(OsStr::to_str).is_some_and(is_wanted) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    pub(super) fn folder(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_for_each_certificate_and_none_for_others() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::new(folder.path().join("made/ocsp")).unwrap();
        assert_eq!(kept.read("a").unwrap(), None);
        for (name, answer) in [("a", b"1"), ("a", b"2"), ("b", b"3")] {
            kept.write(name, answer).unwrap();
        }
        fs::write(kept.folder().join("note.txt"), "of somebody else").unwrap();
        assert_eq!(kept.read("a").unwrap().as_deref(), Some(&b"2"[..]));
        kept.retain(&HashSet::from(["b", "c"])).unwrap();
        assert_eq!((kept.read("a").unwrap(), kept.read("b").unwrap()), (None, Some(b"3".to_vec())));
        kept.forget("b").unwrap();
        kept.forget("b").unwrap();
        let left: Vec<_> = fs::read_dir(kept.folder()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["note.txt"]);
    }
}
