//! Loading the embedded object: maps pinned under the layout's version, compared before they are reused.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapError, MapInfo},
};
use gateway_common::{
    layout::{FLOW_LAYOUT_VERSION, LAYOUT_VERSION, PIN_ROOT},
    map::{self, Description, Kind, MapDef},
};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::statfs,
};

use crate::kernel::{
    Error, Settings,
    pin::{FILTER, NEXT_FILTER, PREFIX, encoded},
};

/// The kernel programs, as `cargo xtask build-ebpf` made them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sluice-kernel"));

/// `BPF_FS_MAGIC` of the UAPI.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// `BPF_F_MMAPABLE` and the flag that aya adds to none.
const MAPPED: u32 = 1 << 10;

/// Where things are pinned.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    tables: PathBuf,
    flows: PathBuf,
}

impl Pins {
    /// Under a BPF file system.
    pub(super) fn under(bpffs: &Path) -> Self {
        let root = bpffs.join(PIN_ROOT);
        Self {
            tables: root.join(format!("v{LAYOUT_VERSION}")),
            flows: root.join(format!("flow-v{FLOW_LAYOUT_VERSION}")),
        }
    }

    /// The pin of a map.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        let folder = if is_of_flows(name) { &self.flows } else { &self.tables };
        folder.join(name.to_lowercase())
    }

    /// The pin of the service index of another layout, until its entries stand in the present one.
    pub(super) fn former_index(&self) -> PathBuf {
        self.tables.join("former_service_index")
    }

    /// The pin of a link.
    pub(super) fn link(&self, name: &str) -> PathBuf {
        self.tables.join(format!("{PREFIX}{}", encoded(name)))
    }

    /// The folder of tables and links.
    pub(super) fn tables(&self) -> &Path {
        &self.tables
    }

    /// The pin of a program that hangs on a filter, which has no link.
    pub(super) fn filter(&self, name: &str) -> PathBuf {
        self.tables.join(format!("{FILTER}{}", encoded(name)))
    }

    /// The pin of a program that is about to hang on a filter.
    pub(super) fn next_filter(&self, name: &str) -> PathBuf {
        self.tables.join(format!("{NEXT_FILTER}{}", encoded(name)))
    }

    /// The folder of the flow tables.
    pub(super) fn flows(&self) -> &Path {
        &self.flows
    }

    pub(super) fn make(&self) -> Result<(), Error> {
        for folder in [&self.tables, &self.flows] {
            fs::create_dir_all(folder).map_err(|source| Error::PinFolder { path: folder.clone(), source })?;
        }
        if let Some(root) = self.tables.parent() {
            // Whoever can write the maps controls the node's traffic.
            drop(fs::set_permissions(root, fs::Permissions::from_mode(0o700)));
        }
        Ok(())
    }
}

/// Whether a map belongs to the flow tables.
fn is_of_flows(name: &str) -> bool {
    let all = [
        map::Flows::NAME,
        map::Displaced::NAME,
        map::Replies::NAME,
        map::Sequences::NAME,
        map::ServiceFlows::NAME,
        map::EndpointFlows::NAME,
    ];
    all.contains(&name)
}

/// Makes sure that a BPF file system is mounted.
pub(super) fn ensure_bpffs(path: &Path) -> Result<(), Error> {
    let is_mounted = || statfs(path).is_ok_and(|stat| stat.filesystem_type().0 == BPF_FS_MAGIC);
    if is_mounted() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(|source| Error::PinFolder { path: path.to_owned(), source })?;
    mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), None::<&str>)
        .map_err(|errno| Error::MountBpffs { path: path.to_owned(), source: errno.into() })?;
    tracing::info!(path = %path.display(), "mounted a BPF file system");
    Ok(())
}

/// Loads the object. Maps that are pinned already are taken over; their capacity stays.
pub(super) fn load(settings: &Settings, pins: &Pins) -> Result<Ebpf, Error> {
    pins.make()?;
    let mut loader = EbpfLoader::new();
    for description in map::ALL {
        let path = pins.map(description.name);
        let mut wanted = settings.capacity_of(description);
        let flows = pins.map(map::Flows::NAME);
        if description.name == map::Sequences::NAME && flows.exists() {
            // One for each bucket of the flow table, whatever that has.
            let failed = |source| Error::Map { name: map::Flows::NAME, source };
            wanted = MapInfo::from_pin(&flows).map_err(failed)?.max_entries();
        }
        let capacity = if path.exists() { pinned_capacity(description, &path, wanted)? } else { wanted };
        let capacity = if capacity != wanted && description.name == map::SocketPeers::NAME {
            // What it holds means nothing to packets: it is made anew, and programs that are attached get it in a moment.
            fs::remove_file(&path).map_err(|source| Error::PinFolder { path: path.clone(), source })?;
            wanted
        } else {
            capacity
        };
        loader.map_max_entries(description.name, capacity);
        loader.map_pin_path(description.name, path);
    }
    loader.load(OBJECT).map_err(|source| Error::Load { source: Box::new(source) })
}

/// Compares a pinned map with its definition: the loader would take over anything under the right name.
fn pinned_capacity(description: &Description, path: &Path, wanted: u32) -> Result<u32, Error> {
    let name = description.name;
    let info = MapInfo::from_pin(path).map_err(|source| Error::Map { name, source })?;
    if !is_like(description, &info).map_err(|source| Error::Map { name, source })? {
        return Err(Error::ForeignPin { path: path.to_owned() });
    }
    let present = info.max_entries();
    if present != wanted && name != map::SocketPeers::NAME {
        tracing::info!(map = name, present, wanted, "a pinned map keeps its capacity until `sluice cleanup`");
    }
    Ok(present)
}

/// Whether a map has the kind and the sizes of its definition.
fn is_like(description: &Description, info: &MapInfo) -> Result<bool, MapError> {
    let kind = info.map_type()?;
    let sizes = (info.key_size(), info.value_size());
    let value_size = match description.kind {
        Kind::SockMap => 4,
        Kind::RingBuf => 0,
        Kind::Array
        | Kind::MappedArray
        | Kind::PerCpuArray
        | Kind::ProgArray
        | Kind::LpmTrie
        | Kind::LruHash => description.value_size,
    };
    Ok(kind == type_of(description.kind)
        && Some(sizes) == u32::try_from(description.key_size).ok().zip(u32::try_from(value_size).ok())
        && (info.map_flags() & MAPPED != 0) == (description.kind == Kind::MappedArray))
}

/// Whether there is a pinned map with the kind and the sizes of a definition.
pub(super) fn is_pinned(description: &Description, path: &Path) -> bool {
    MapInfo::from_pin(path).and_then(|info| is_like(description, &info)).unwrap_or(false)
}

const fn type_of(kind: Kind) -> aya::maps::MapType {
    use aya::maps::MapType;
    match kind {
        Kind::Array | Kind::MappedArray => MapType::Array,
        Kind::PerCpuArray => MapType::PerCpuArray,
        Kind::SockMap => MapType::SockMap,
        Kind::ProgArray => MapType::ProgramArray,
        Kind::LpmTrie => MapType::LpmTrie,
        Kind::RingBuf => MapType::RingBuf,
        Kind::LruHash => MapType::LruHash,
    }
}
