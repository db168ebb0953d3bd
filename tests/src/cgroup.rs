//! A control group for as long as a test needs one: this process moves into it, and back.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};

use crate::netns::tool;

/// A group of version 2 with this process in it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    /// Where the process was.
    former: PathBuf,
    /// What was mounted for it.
    mount: Option<PathBuf>,
}

impl Cgroup {
    /// Makes a group below that of this process, or at the top where that has none, and moves in.
    ///
    /// # Errors
    /// When the kernel has no such groups, or does not let this process.
    pub fn enter() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/self/mounts").context("cannot list mounts")?;
        let mounted = mounts.lines().find_map(|line| {
            let mut words = line.split(' ');
            let (place, kind) = (words.nth(1)?, words.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(place))
        });
        let (root, mount) = if let Some(root) = mounted {
            (root, None)
        } else {
            let root = std::env::temp_dir().join(format!("sluice-cgroup-{}", process::id()));
            fs::create_dir_all(&root)?;
            tool("mount", &format!("-t cgroup2 cgroup2 {}", root.display()))?;
            (root.clone(), Some(root))
        };
        let groups = fs::read_to_string("/proc/self/cgroup").context("cannot read this process's groups")?;
        let own = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        // A process in a namespace of groups may not see its own.
        let former = Some(root.join(own)).filter(|path| path.is_dir()).unwrap_or_else(|| root.clone());
        let name = format!("sluice-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = root.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let group = Self { path, former, mount };
        group.join()?;
        Ok(group)
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves this process in.
    ///
    /// # Errors
    /// When the kernel does not let it.
    pub fn join(&self) -> Result<()> {
        move_to(&self.path)
    }

    /// Moves this process back to where it was.
    ///
    /// # Errors
    /// When the kernel does not let it.
    pub fn leave(&self) -> Result<()> {
        move_to(&self.former)
    }
}

fn move_to(group: &Path) -> Result<()> {
    fs::write(group.join("cgroup.procs"), "0").with_context(|| format!("cannot move to {}", group.display()))
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Whatever is in the way, the next test has a group of its own.
        drop(self.leave());
        drop(fs::remove_dir(&self.path));
        if let Some(mount) = &self.mount {
            drop(tool("umount", &format!("-l {}", mount.display())));
            drop(fs::remove_dir(mount));
        }
    }
}
