//! Pins of links: what keeps packets balanced while no agent runs.
//!
//! A pin can outlive what its link hung on: an interface that was removed and made again under the same name, a network
//! namespace that is gone. Such a link does nothing, so it is told apart before it is taken over.

use std::{
    borrow::Cow,
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::programs::{links::FdLink, tc::SchedClassifierLink};

use crate::kernel::{
    Error, attach,
    filter::{self, Place, Strays},
    sys,
};

/// Begins the name of every pinned link.
pub(super) const PREFIX: &str = "link-";

/// Begins the name of the pin of every program that hangs on a filter. Kernels before 6.6 have no links at TC: the pin
/// says whose the filter is, because names of programs are anybody's.
pub(super) const FILTER: &str = "filter-";

/// Begins the name of the pin of a program that is about to hang on a filter.
pub(super) const NEXT_FILTER: &str = "filter-next-";

/// A name that a BPF file system takes. It refuses dots, which names of interfaces have (`eth0.100`); they have no colons.
pub(super) fn encoded(name: &str) -> String {
    name.replace('.', ":")
}

/// What [`encoded`] was made from.
pub(super) fn decoded(name: &str) -> String {
    name.replace(':', ".")
}

/// What a link hangs on: the index of an interface, the inode of a network namespace, or that of a control group.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Target(pub(super) u64);

impl Target {
    /// The index of an interface.
    pub(super) fn index(self) -> u32 {
        u32::try_from(self.0).unwrap_or(0)
    }
}

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

/// Removes a pin, and with it the link or filter; one that is not there is as good.
pub(super) fn remove(path: &Path) -> Result<bool, Error> {
    remove_one_of(path, None, &mut Strays::default())
}

/// Removes one of several pins; with the index of the interface that it was made for, where this agent made it.
///
/// # Errors
/// See [`remove`].
pub(super) fn remove_one_of(path: &Path, interface: Option<u32>, strays: &mut Strays) -> Result<bool, Error> {
    // The kernel lets go of a link some time after its last pin is gone; the next one would find the hook taken. A link
    // whose target is gone cannot be detached, and need not be.
    if is_link(path)
        && let Ok(link) = sys::open_pin(path)
        && let Err(error) = sys::detach_link(link.as_fd())
    {
        tracing::debug!(pin = %path.display(), %error, "the link was not detached");
    }
    if is_filter(path) && path.exists() {
        let failed = |source| Error::Filter { path: path.to_owned(), source };
        // While the filter stands, the pin is what says that it is ours: it stays where the filter cannot be removed.
        if let Some((filter, interface)) = filter(path, interface, strays).map_err(failed)? {
            filter::detach(filter, &interface).map_err(failed)?;
            tracing::info!(interface, pin = %path.display(), "a filter is removed");
        }
    }
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::PinFolder { path: path.to_owned(), source }),
    }
}

/// The filter of a pin, and the interface where it hangs by now.
fn filter(
    pin: &Path,
    interface: Option<u32>,
    strays: &mut Strays,
) -> io::Result<Option<(SchedClassifierLink, String)>> {
    // Another version may have had a hook of another name.
    let place = filter_of(pin);
    if let Some(place) = &place
        && let Some(filter) = filter::of_pin(pin, place)?
    {
        return Ok(Some((filter, place.interface.clone())));
    }
    // A pod that went away took its filters along: whoever knows its interface need not look at all others.
    if interface.is_some_and(|index| nix::net::if_::if_indextoname(index).is_err()) {
        return Ok(None);
    }
    strays.find(pin, place.map(|place| place.is_ingress), || filters_beside(pin))
}

/// Of several pins that are removed one by one, what failed first; the others are removed all the same.
#[derive(Debug, Default)]
pub(super) struct Failed(Option<Error>);

impl Failed {
    /// What came of one; nothing where it failed.
    pub(super) fn note<T>(&mut self, outcome: Result<T, Error>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                match &self.0 {
                    Some(_) => {
                        let why = anyhow::Error::from(error);
                        tracing::error!("one more hook cannot be removed: {why:#}");
                    }
                    None => self.0 = Some(error),
                }
                None
            }
        }
    }

    /// What came of all.
    ///
    /// # Errors
    /// What failed first.
    pub(super) fn outcome(self) -> Result<(), Error> {
        self.0.map_or(Ok(()), Err)
    }
}

fn file_name(path: &Path) -> Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

/// Where the filter of a pin stands; none for other pins.
pub(super) fn filter_of(pin: &Path) -> Option<Place> {
    let name = file_name(pin);
    let hook = name.strip_prefix(NEXT_FILTER).or_else(|| name.strip_prefix(FILTER))?;
    let hooks = [
        (attach::TC_INGRESS, true),
        (attach::TC_EGRESS, false),
        (attach::TC_RECEIVE, true),
        (attach::TC_PROBE_OUT, false),
        (attach::TC_PROBE_IN, true),
    ];
    hooks.into_iter().find_map(|(name, is_ingress)| {
        let interface = decoded(hook.strip_prefix(name)?.strip_prefix('-')?);
        Some(Place { hook: name, interface, is_ingress })
    })
}

/// The pins of filters in the folder of a pin, and where their filters stand.
fn filters_beside(pin: &Path) -> io::Result<Vec<(PathBuf, Place)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(pin.parent().unwrap_or(pin))? {
        let path = entry?.path();
        found.extend(filter_of(&path).map(|place| (path, place)));
    }
    Ok(found)
}

fn is_link(path: &Path) -> bool {
    file_name(path).starts_with(PREFIX)
}

fn is_filter(path: &Path) -> bool {
    file_name(path).starts_with(FILTER)
}

/// Removes links and filters, and leaves the maps; what cannot be removed keeps none of the others. Notes what was removed.
///
/// # Errors
/// What could not be removed first.
pub(super) fn remove_hooks(folder: &Path, removed: &mut Vec<PathBuf>) -> Result<(), Error> {
    let mut failed = Failed::default();
    let mut strays = Strays::default();
    for path in entries(folder)?.into_iter().filter(|path| is_link(path) || is_filter(path)) {
        if failed.note(remove_one_of(&path, None, &mut strays)) == Some(true) {
            removed.push(path);
        }
    }
    failed.outcome()
}

/// Removes everything below a folder. Links and filters come first, and maps stay where one of them does: no program must run
/// on while its maps go. Notes what was removed.
///
/// # Errors
/// What could not be removed first.
pub(super) fn remove_tree(folder: &Path, removed: &mut Vec<PathBuf>) -> Result<(), Error> {
    remove_hooks(folder, removed)?;
    let mut failed = Failed::default();
    for path in entries(folder)? {
        if path.is_dir() {
            failed.note(remove_tree(&path, removed));
        } else if failed.note(remove(&path)) == Some(true) {
            removed.push(path);
        }
    }
    failed.outcome()?;
    fs::remove_dir(folder).map_err(|source| Error::PinFolder { path: folder.to_owned(), source })
}

/// What a folder holds, by name.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::PinFolder { path: folder.to_owned(), source };
    let entries: io::Result<Vec<PathBuf>> =
        fs::read_dir(folder).map_err(failed)?.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut entries = entries.map_err(failed)?;
    entries.sort();
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_says_where_its_filter_stands() {
        let place = |hook, interface: &str| {
            Some(Place { hook, interface: interface.to_owned(), is_ingress: hook != attach::TC_EGRESS })
        };
        let check = |pin: &str, expected: Option<Place>| {
            assert_eq!(filter_of(&Path::new("/pins").join(pin)), expected, "{pin}");
        };
        check("filter-tc_ingress-eth0", place(attach::TC_INGRESS, "eth0"));
        check("filter-tc_egress-veth-a:100", place(attach::TC_EGRESS, "veth-a.100"));
        check("filter-next-tc_ingress-eth0", place(attach::TC_INGRESS, "eth0"));
        check("filter-tc_receive-eth0", place(attach::TC_RECEIVE, "eth0"));
        check("link-tc_ingress-eth0", None);
        check("filter-tc_other-eth0", None);
        check("services", None);
        assert_eq!(encoded("eth0.100.7"), "eth0:100:7");
        assert_eq!(decoded(&encoded("eth0.100.7")), "eth0.100.7");
    }
}
