//! Pins of another layout: what an agent of another version left is taken over as far as both mean the same by it.
//!
//! Links move to the folder of this layout, where they go on with their program until it is replaced in place: at no moment
//! two agents' programs sit on one hook, or none. Maps move when nothing changed in them, above all those that hold the
//! numbers of services and endpoints (of the service index, whose entries stand elsewhere in each layout, what it holds is
//! moved); without them the entries of the flow table would mean others, and it is let go.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::Ebpf;
use gateway_common::{
    layout::{self, FLOW_LAYOUT_VERSION, LAYOUT_VERSION},
    map::{self, Description, MapDef as _},
};

use crate::kernel::{
    Error, attach,
    map::{indexed, mapped, mapped_at, write_index},
    object::{self, Pins},
    pin,
};

/// The tables that name each other's rows, and the seed: all of them are taken over, or none.
const TABLES: [&str; 7] = [
    map::ServiceIndex::NAME,
    map::Services::NAME,
    map::PortRanges::NAME,
    map::Slots::NAME,
    map::Endpoints::NAME,
    map::Filter::NAME,
    map::SettingsMap::NAME,
];

/// Takes over what is pinned under other layouts, the newest first, and removes the rest of it. It may be called again
/// after it was interrupted.
pub(super) fn take_over(pins: &Pins) -> Result<(), Error> {
    let Some(root) = pins.tables().parent().filter(|root| root.exists()) else { return Ok(()) };
    let mut tables = others(root, "v", LAYOUT_VERSION)?;
    tables.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    for (version, folder) in &tables {
        tracing::info!(
            version,
            layout = LAYOUT_VERSION,
            "taking over what an agent of another layout pinned"
        );
        take_folder(pins, *version, folder)?;
    }
    // Their entries name rows of tables, and no program goes on with them that could be told about new ones.
    for (version, folder) in others(root, "flow-v", FLOW_LAYOUT_VERSION)? {
        tracing::warn!(version, layout = FLOW_LAYOUT_VERSION, "flows of another layout are forgotten");
        pin::remove_tree(&folder, &mut Vec::new())?;
    }
    Ok(())
}

/// Puts what the service index of another layout holds into the present one, which no packet looks into before the new
/// programs are attached. It may be called again after it was interrupted.
pub(super) fn fill_index(pins: &Pins, object: &Ebpf) -> Result<(), Error> {
    let from = pins.former_index();
    if !from.exists() {
        return Ok(());
    }
    let former = indexed(&mapped_at::<map::ServiceIndex>(&from)?);
    let buckets = mapped::<map::ServiceIndex>(object)?;
    let mut index = indexed(&buckets);
    let mut left: u32 = 0;
    for entry in former.entries() {
        match index.put(*entry) {
            Some(writes) => write_index(&buckets, &writes)?,
            None => left = left.saturating_add(1),
        }
    }
    if left > 0 {
        tracing::warn!(
            services = left,
            "no room in this layout's index: these services get new numbers, their open flows choose anew"
        );
    }
    pin::remove(&from)?;
    Ok(())
}

/// Folders that agents of any layout pinned tables and hooks in.
pub(super) fn all(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut folders = if root.exists() { others(root, "v", LAYOUT_VERSION)? } else { Vec::new() };
    let present = root.join(format!("v{LAYOUT_VERSION}"));
    folders.extend(present.exists().then_some((LAYOUT_VERSION, present)));
    Ok(folders.into_iter().map(|(_, folder)| folder).collect())
}

/// Folders of other versions.
fn others(root: &Path, prefix: &str, present: u32) -> Result<Vec<(u32, PathBuf)>, Error> {
    let failed = |source| Error::PinFolder { path: root.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let version: Option<u32> = name.and_then(|name| name.strip_prefix(prefix)?.parse().ok());
        found.extend(version.filter(|version| *version != present).map(|version| (version, path)));
    }
    Ok(found)
}

fn take_folder(pins: &Pins, version: u32, folder: &Path) -> Result<(), Error> {
    pins.make()?;
    let are_tables_kept = map::ALL
        .iter()
        .filter(|description| TABLES.contains(&description.name))
        .all(|description| is_there(pins, description) || is_same(description, version, folder));
    if !are_tables_kept {
        tracing::warn!(
            "services and endpoints get new numbers in this layout: flows that are open choose anew"
        );
        if pins.flows().exists() {
            pin::remove_tree(pins.flows(), &mut Vec::new())?;
            pins.make()?;
        }
    }
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::PinFolder { path, source }
    };
    let entries: io::Result<Vec<PathBuf>> =
        fs::read_dir(folder).map_err(failed(folder))?.map(|entry| entry.map(|entry| entry.path())).collect();
    for from in entries.map_err(failed(folder))? {
        let Some(name) = from.file_name().and_then(|name| name.to_str()) else { continue };
        let map = map::ALL.iter().find(|description| description.name.to_lowercase() == name);
        let is_kept = map.map_or_else(
            || attach::is_known(name),
            |description| {
                let is_table = TABLES.contains(&description.name);
                (are_tables_kept || !is_table) && is_same(description, version, folder)
            },
        );
        let moved = map.filter(|description| layout::has_moved_since(description.name, version));
        let to = moved.map_or_else(|| pins.tables().join(name), |_| pins.former_index());
        let is_there = to.exists() || map.is_some_and(|description| is_there(pins, description));
        if is_kept && !is_there {
            fs::rename(&from, &to).map_err(failed(&from))?;
        } else {
            pin::remove(&from)?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(folder)(error)),
        _ => Ok(()),
    }
}

/// Whether an agent of this layout left the map, or it was taken over before.
fn is_there(pins: &Pins, description: &Description) -> bool {
    let is_former = description.name == map::ServiceIndex::NAME && pins.former_index().exists();
    pins.map(description.name).exists() || is_former
}

/// Whether a folder of this version has the map, and its values mean the same in both layouts.
fn is_same(description: &Description, version: u32, folder: &Path) -> bool {
    (layout::is_unchanged_since(description.name, version)
        || layout::has_moved_since(description.name, version))
        && object::is_pinned(description, &folder.join(description.name.to_lowercase()))
}
