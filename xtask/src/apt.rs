//! Installing Debian packages: says what and why first, and never starts a service.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// One thing that must be there, and the package that brings it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Package {
    /// Its name in Debian.
    pub(crate) name: &'static str,
    /// How to see that it is there without asking the package manager, which takes longer than the rest of a set-up.
    pub(crate) proof: Proof,
    /// What it is for, to follow "for".
    pub(crate) why: &'static str,
}

/// What shows that a package is installed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Proof {
    /// A program that can be found.
    Program(&'static str),
    /// A file with this path.
    File(&'static str),
}

impl Package {
    /// Whether what the package brings is there, by whatever way it came.
    pub(crate) fn is_present(&self) -> bool {
        match self.proof {
            Proof::Program(name) => process::find(name).is_some(),
            Proof::File(path) => Path::new(path).exists(),
        }
    }
}

/// Installs those of `packages` that are missing.
pub(crate) fn install(packages: &[Package]) -> Result<()> {
    let missing: Vec<&Package> = packages.iter().filter(|package| !package.is_present()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let by_hand = format!("apt-get update && apt-get install --no-install-recommends {}", names.join(" "));
    if process::find("apt-get").is_none() {
        bail!(
            "missing:\n{}\nthis system has no apt-get: install the equivalents of\n  {}",
            listed(&missing),
            names.join(" ")
        );
    }
    if !process::is_root() {
        bail!(
            "missing:\n{}\nonly root can install packages: run\n  sudo sh -c '{by_hand}'",
            listed(&missing)
        );
    }
    for package in &missing {
        eprintln!("setup: installing {} for {}", package.name, package.why);
    }
    let _services = NoServices::set()?;
    process::run(apt_get().args(["update", "-qq"])).with_context(|| format!("set-up needs: {by_hand}"))?;
    let mut command = apt_get();
    command.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&names).stdout(Stdio::null());
    process::run(&mut command).with_context(|| {
        format!(
            "set-up could not install what is missing:\n{}\nto see why, run\n  {by_hand}",
            listed(&missing)
        )
    })?;
    if let Some(package) = missing.iter().find(|package| !package.is_present()) {
        bail!("the package {} is installed, and yet {:?} is not there", package.name, package.proof);
    }
    Ok(())
}

fn listed(packages: &[&Package]) -> String {
    packages.iter().map(|p| format!("  {} for {}", p.name, p.why)).collect::<Vec<_>>().join("\n")
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    command
}

/// While it lives, installing a package starts no service: a web server that is installed to be compared with must
/// not open a port of this machine.
struct NoServices(Option<PathBuf>);

impl NoServices {
    fn set() -> Result<Self> {
        let policy = Path::new("/usr/sbin/policy-rc.d");
        if policy.exists() {
            return Ok(Self(None));
        }
        let context = "cannot keep packages from starting services";
        fs::write(policy, "#!/bin/sh\nexit 101\n").context(context)?;
        fs::set_permissions(policy, fs::Permissions::from_mode(0o755)).context(context)?;
        Ok(Self(Some(policy.to_path_buf())))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(policy) = &self.0
            && let Err(error) = fs::remove_file(policy)
        {
            eprintln!("setup: cannot remove {} ({error}): remove it by hand", policy.display());
        }
    }
}
