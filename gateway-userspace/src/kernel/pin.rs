//! Pins of links: what keeps packets balanced while no agent runs.
//!
//! A pin can outlive what its link hung on: an interface that was removed and made again under the same name, a network
//! namespace that is gone. Such a link does nothing, so it is told apart before it is taken over.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::programs::{
    links::FdLink,
    tc::{self, TcAttachType},
};

use crate::kernel::{Error, attach, sys};

/// Begins the name of every pinned link.
pub(super) const PREFIX: &str = "link-";

/// Begins the name of the pin of every program that hangs on a filter. Kernels before 6.6 have no links at TC: the pin
/// says whose the filter is, because names of programs are anybody's.
pub(super) const FILTER: &str = "filter-";

/// What a link hangs on: the index of an interface, or the inode of a network namespace.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Target(pub(super) u32);

/// Replaces the program of a pinned link in place. False when there is no such link, or when it hung on something else:
/// its pin is removed then, and the caller attaches anew.
pub(super) fn replace(path: &Path, target: Target, program: BorrowedFd<'_>) -> Result<bool, Error> {
    if !path.exists() {
        return Ok(false);
    }
    let replaced = sys::open_pin(path).and_then(|link| {
        if sys::link_target(link.as_fd())? != target.0 {
            return Err(io::Error::from_raw_os_error(libc::ENOLINK));
        }
        sys::update_link(link.as_fd(), program)
    });
    if let Err(error) = replaced {
        tracing::info!(pin = %path.display(), %error, "a pinned link is severed; attaching anew");
        remove(path)?;
        return Ok(false);
    }
    Ok(true)
}

/// Pins a link: from now on it outlives this process.
pub(super) fn keep(link: FdLink, path: &Path) -> Result<(), Error> {
    link.pin(path).map(drop).map_err(|source| Error::Pin { path: path.to_owned(), source })
}

/// Removes a pin, and with it the link; one that is not there is as good.
pub(super) fn remove(path: &Path) -> Result<bool, Error> {
    // The kernel lets go of a link some time after its last pin is gone; the next one would find the hook taken. A link
    // whose target is gone cannot be detached, and need not be.
    if is_link(path)
        && let Ok(link) = sys::open_pin(path)
        && let Err(error) = sys::detach_link(link.as_fd())
    {
        tracing::debug!(pin = %path.display(), %error, "the link was not detached");
    }
    detach_filter(path);
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::PinFolder { path: path.to_owned(), source }),
    }
}

fn is_link(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
}

fn is_filter(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(FILTER))
}

/// Removes the filter that a pin stands for.
fn detach_filter(path: &Path) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(rest) = name.strip_prefix(FILTER).filter(|_| path.exists()) else { return };
    for (program, side) in
        [(attach::TC_INGRESS, TcAttachType::Ingress), (attach::TC_EGRESS, TcAttachType::Egress)]
    {
        let Some(interface) = rest.strip_prefix(program).and_then(|rest| rest.strip_prefix('-')) else {
            continue;
        };
        // An interface that is gone took its filters along.
        if let Err(error) = tc::qdisc_detach_program(interface, side, program) {
            tracing::debug!(pin = %path.display(), %error, "the filter was not detached");
        }
    }
}

/// Removes links and filters, and leaves the maps. Says what was removed.
pub(super) fn remove_hooks(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::PinFolder { path: folder.to_owned(), source };
    let mut removed = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if (is_link(&path) || is_filter(&path)) && remove(&path)? {
            removed.push(path);
        }
    }
    Ok(removed)
}

/// Removes everything below a folder, links first: no program must run on while its maps go. Says what was removed.
pub(super) fn remove_tree(folder: &Path, removed: &mut Vec<PathBuf>) -> Result<(), Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::PinFolder { path, source }
    };
    let entries: io::Result<Vec<PathBuf>> =
        fs::read_dir(folder).map_err(failed(folder))?.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut entries = entries.map_err(failed(folder))?;
    entries.sort_by_key(|path| (!(is_link(path) || is_filter(path)), path.clone()));
    for path in entries {
        if path.is_dir() {
            remove_tree(&path, removed)?;
        } else if remove(&path)? {
            removed.push(path);
        }
    }
    fs::remove_dir(folder).map_err(failed(folder))
}
