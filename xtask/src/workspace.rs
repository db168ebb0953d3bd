//! Where things are: the workspace and its target folder.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The folders that every command works in.
#[derive(Clone, Debug)]
pub(crate) struct Workspace {
    /// The folder of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target folder, wherever the user put it.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Finds both from where cargo started this program and where it put it.
    pub(crate) fn find() -> Result<Self> {
        let package = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let root = package.parent().context("the folder of xtask has no parent")?.to_path_buf();
        let executable = env::current_exe().context("cannot find out where xtask is")?;
        // `<target>/<profile>/xtask`: right for the variable, the flag and the configuration file alike.
        let target = executable.ancestors().nth(2).map_or_else(|| root.join("target"), Path::to_path_buf);
        Ok(Self { root, target })
    }

    /// Where tools that no package manager has are installed.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// The kernel objects, one file for each.
    pub(crate) fn object(&self, name: &str) -> PathBuf {
        self.target.join("bpf").join(name)
    }

    /// A binary of a cargo profile (`debug` or `release`).
    pub(crate) fn binary(&self, profile: &str, name: &str) -> PathBuf {
        self.target.join(profile).join(name)
    }
}
