//! Hanging programs at TC where the kernel has no links there.

use std::{fs, io, path::Path};

use aya::programs::{
    SchedClassifier,
    tc::{self, TcAttachOptions},
};

use crate::kernel::{
    Error,
    attach::{BESIDE, failed},
    filter, pin,
};

/// Hangs a program on a filter of the clsact queueing discipline, for kernels before 6.6: it has no link and stays by
/// itself. Where a filter of ours stands already, its program is replaced in place.
///
/// The program is pinned as the next one before it runs, and takes the place of the former pin afterwards: at every moment
/// a pin says whose the filter is, also when this process ends in between.
pub(super) fn hang(program: &mut SchedClassifier, path: &Path, next: &Path) -> Result<(), Error> {
    let failed_pin = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::PinFolder { path, source }
    };
    let failed_filter = |source| Error::Filter { path: path.to_owned(), source };
    let Some(place) = pin::filter_of(path) else {
        return Err(failed_filter(io::ErrorKind::InvalidInput.into()));
    };
    let name = place.hook;
    let side = place.side();
    // One that is there already is as good; where it cannot be, the next step says so.
    drop(tc::qdisc_add_clsact(&place.interface));
    if let Some(filter) = filter::of_pin(next, &place).map_err(failed_filter)? {
        std::mem::forget(filter);
        fs::rename(next, path).map_err(failed_pin(next))?;
    } else {
        pin::remove(next)?;
    }
    program.pin(next).map_err(|source| Error::Pin { path: next.to_owned(), source })?;
    let id = if let Some(filter) = filter::of_pin(path, &place).map_err(failed_filter)? {
        program.attach_to_link(filter)
    } else {
        // Another interface may have had the name, and have the filter still.
        pin::remove(path)?;
        // Without a priority a filter comes before those that are there.
        let priority = if BESIDE.contains(&name) { LAST } else { 0 };
        let options = TcAttachOptions::Netlink(tc::NlOptions { priority, ..tc::NlOptions::default() });
        program.attach_with_options(&place.interface, side, options)
    };
    let link = program.take_link(id.map_err(failed(name))?).map_err(failed(name))?;
    // Without a link that is pinned, the filter must outlive this value.
    std::mem::forget(link);
    fs::rename(next, path).map_err(failed_pin(next))
}

/// Priority of a filter that comes last: behind those to which the kernel gave one, from 49152 down.
const LAST: u16 = 0xff00;
