//! The system calls that aya does not wrap: replacing the program of any link, reading many entries of a map at once, and
//! mapping an array into memory.
#![expect(unsafe_code, reason = "bpf(2) and mmap(2) take raw pointers")]

use std::{
    ffi::CString,
    io,
    marker::PhantomData,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixDatagram},
    },
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use bytemuck::Zeroable as _;
use gateway_common::{
    map::MapDef,
    slot::{Slot, SlotChunk},
};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `BPF_LINK_TYPE_CGROUP` of `linux/bpf.h`.
const BPF_LINK_TYPE_CGROUP: u32 = 3;

/// `SO_NETNS_COOKIE` of `asm-generic/socket.h`.
const SO_NETNS_COOKIE: libc::c_int = 71;

#[repr(C)]
#[derive(Default)]
struct ObjGet {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkDetach {
    link: u32,
}

#[repr(C)]
#[derive(Default)]
struct GetInfo {
    fd: u32,
    len: u32,
    info: u64,
}

/// `struct bpf_link_info`, up to what the links of this agent hang on.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    target: u32,
    rest: [u32; 11],
}

/// The part of `union bpf_attr` that loading a program reads.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    n_instructions: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    version_and_flags: [u32; 2],
}

/// The part of `union bpf_attr` that running a program reads and writes.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    returned: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_sizes: [u32; 2],
    contexts: [u64; 2],
    flags_and_processor: [u32; 2],
}

/// The part of `union bpf_attr` that reading many entries of a map reads and writes.
#[repr(C)]
#[derive(Default)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    flags: [u64; 2],
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: each caller passes the attributes that its command reads, and their true size.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // A descriptor that is borrowed is open, and an open descriptor is not negative.
    u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)
}

/// Whether the kernel has atomic operations that tell what was there before (Linux 5.12): it takes a program with one.
pub(super) fn has_atomics() -> bool {
    // `struct bpf_insn`: r0 = 0; [r10 - 8] = r0; r1 = 0; compare and exchange [r10 - 8]; exit.
    const PROGRAM: [[u8; 8]; 5] = [
        [0xb7, 0x00, 0, 0, 0, 0, 0, 0],
        [0x7b, 0x0a, 0xf8, 0xff, 0, 0, 0, 0],
        [0xb7, 0x01, 0, 0, 0, 0, 0, 0],
        [0xdb, 0x1a, 0xf8, 0xff, 0xf1, 0, 0, 0],
        [0x95, 0x00, 0, 0, 0, 0, 0, 0],
    ];
    const SOCKET_FILTER: u32 = 1;
    let address = |pointer: *const u8| u64::try_from(pointer.expose_provenance()).unwrap_or(0);
    let mut load = ProgLoad {
        kind: SOCKET_FILTER,
        n_instructions: u32::try_from(PROGRAM.len()).unwrap_or(0),
        instructions: address(PROGRAM.as_ptr().cast()),
        license: address(c"GPL".as_ptr().cast()),
        ..ProgLoad::default()
    };
    match bpf(BPF_PROG_LOAD, &mut load) {
        Ok(fd) => {
            if let Ok(fd) = libc::c_int::try_from(fd) {
                // SAFETY: the kernel has just made this descriptor for us; dropping it unloads the program.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
            }
            true
        }
        // What else may be wrong is said where it matters.
        Err(error) => error.raw_os_error() != Some(libc::EINVAL),
    }
}

/// Opens a pinned object.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let address = u64::try_from(path.as_ptr().addr()).map_err(io::Error::other)?;
    let fd = bpf(BPF_OBJ_GET, &mut ObjGet { path: address, ..ObjGet::default() })?;
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs a program once over a packet; what it returned. The packet as it is afterwards is not asked for.
pub(super) fn run_program(program: BorrowedFd<'_>, packet: &[u8]) -> io::Result<u32> {
    let size_in = u32::try_from(packet.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let data_in = u64::try_from(packet.as_ptr().expose_provenance()).map_err(io::Error::other)?;
    let mut run = TestRun { program: raw(program), size_in, data_in, repeat: 1, ..TestRun::default() };
    bpf(BPF_PROG_TEST_RUN, &mut run)?;
    Ok(run.returned)
}

/// Reads about as many entries of a hash map as said, from its beginning on (Linux 5.6): how many there were, and in how many
/// of the map's buckets; none for all of them.
pub(super) fn count_entries<M: MapDef>(map: BorrowedFd<'_>, about: u32) -> io::Result<(u32, Option<u32>)> {
    let room = usize::try_from(about).map_err(io::Error::other)?;
    let (mut keys, mut values) = (vec![M::Key::zeroed(); room], vec![M::Value::zeroed(); room]);
    let mut next = 0_u32;
    let address = |at: usize| u64::try_from(at).map_err(io::Error::other);
    let mut batch = Batch {
        to: address((&raw mut next).expose_provenance())?,
        keys: address(keys.as_mut_ptr().expose_provenance())?,
        values: address(values.as_mut_ptr().expose_provenance())?,
        count: about,
        map: raw(map),
        ..Batch::default()
    };
    match bpf(BPF_MAP_LOOKUP_BATCH, &mut batch) {
        Ok(_) => Ok((batch.count, Some(next))),
        // There is nothing behind what was read.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((batch.count, None)),
        Err(error) => Err(error),
    }
}

/// Replaces the program of a link atomically (Linux 5.7).
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    bpf(
        BPF_LINK_UPDATE,
        &mut LinkUpdate { link: raw(link), program: raw(program), ..LinkUpdate::default() },
    )?;
    Ok(())
}

/// Takes the program of a link off its hook, now (Linux 5.9).
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &mut LinkDetach { link: raw(link) })?;
    Ok(())
}

/// What a link hangs on: the index of an interface for XDP and TCX, the inode of a network namespace for socket lookup, that
/// of a control group for the sockets of processes; zero once that is gone.
pub(super) fn link_target(link: BorrowedFd<'_>) -> io::Result<u64> {
    let mut info = LinkInfo::default();
    let len = u32::try_from(size_of::<LinkInfo>()).map_err(io::Error::other)?;
    let address =
        u64::try_from(std::ptr::from_mut(&mut info).expose_provenance()).map_err(io::Error::other)?;
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut GetInfo { fd: raw(link), len, info: address })?;
    let LinkInfo { kind, target, rest: [next, ..], .. } = info;
    // Control groups have numbers of two words.
    let high = if kind == BPF_LINK_TYPE_CGROUP { u64::from(next) << 32 } else { 0 };
    Ok(high | u64::from(target))
}

/// The kernel's number of this process's network namespace (Linux 5.14).
pub(super) fn network_cookie() -> io::Result<u64> {
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    let value: *mut u64 = &raw mut cookie;
    // SAFETY: the kernel writes as many bytes as are said at most.
    let code = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, value.cast(), &raw mut len)
    };
    if code != 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// A map that is an array, in this process's memory.
#[derive(Debug)]
pub(super) struct MappedRows<T> {
    base: NonNull<AtomicU64>,
    n_words: usize,
    of: PhantomData<T>,
}

// SAFETY: the memory is shared with the kernel anyway, and every access is atomic.
unsafe impl<T> Send for MappedRows<T> {}

// SAFETY: as above.
unsafe impl<T> Sync for MappedRows<T> {}

impl<T: bytemuck::Pod> MappedRows<T> {
    /// Words of a value.
    const WORDS: usize = size_of::<T>() / 8;

    /// Maps `n` values (Linux 5.5).
    pub(super) fn new(map: BorrowedFd<'_>, n: u32) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8), "the kernel rounds values up to eight bytes") };
        let n_words = usize::try_from(n).map_err(io::Error::other)? * Self::WORDS;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice disturbs nothing.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), n_words * 8, protection, libc::MAP_SHARED, map.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Self { base, n_words, of: PhantomData })
    }

    /// Values of the map.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.n_words / Self::WORDS).unwrap_or(u32::MAX)
    }

    /// A word of a value.
    pub(super) fn word(&self, row: u32, word: usize) -> Option<&AtomicU64> {
        let row = usize::try_from(row).ok()?;
        let at = row.checked_mul(Self::WORDS)?.checked_add(word)?;
        if word >= Self::WORDS || at >= self.n_words {
            return None;
        }
        // SAFETY: the index is within the mapping.
        let at = unsafe { self.base.add(at) };
        // SAFETY: the mapping lives as long as `self`, and its pages are aligned.
        Some(unsafe { at.as_ref() })
    }

    /// A value, word by word.
    pub(super) fn get(&self, row: u32) -> Option<T> {
        let mut value = T::zeroed();
        for (at, word) in bytemuck::bytes_of_mut(&mut value).chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&self.word(row, at)?.load(Ordering::Acquire).to_ne_bytes());
        }
        Some(value)
    }

    /// Writes the words of a value that differ, in this order of words. Others see each of them whole, and in order.
    pub(super) fn put(&self, row: u32, value: &T, order: &[usize]) -> io::Result<()> {
        for word in order {
            let at = self.word(row, *word).ok_or_else(beyond)?;
            let bytes = bytemuck::bytes_of(value).get(word * 8..word * 8 + 8);
            let new = u64::from_ne_bytes(bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(beyond)?);
            if at.load(Ordering::Relaxed) != new {
                at.store(new, Ordering::Release);
            }
        }
        Ok(())
    }
}

fn beyond() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the row lies beyond the map")
}

impl MappedRows<SlotChunk> {
    /// Writes slots from the start of a chunk on. The service value that makes them current is written afterwards.
    pub(super) fn write(&self, first_chunk: u32, slots: &[Slot]) -> io::Result<()> {
        let mut order = [0; size_of::<SlotChunk>() / 8];
        for (at, word) in order.iter_mut().enumerate() {
            *word = at;
        }
        for (chunk, part) in (first_chunk..).zip(slots.chunks(SlotChunk::LEN)) {
            let mut value = SlotChunk::default();
            for (to, from) in value.slots.iter_mut().zip(part) {
                *to = *from;
            }
            self.put(chunk, &value, &order)?;
        }
        Ok(())
    }

    /// Reads slots from the start of a chunk on.
    pub(super) fn read(&self, first_chunk: u32, n_slots: u32) -> Vec<Slot> {
        let count = usize::try_from(n_slots).unwrap_or(0);
        let chunks = (first_chunk..).map_while(|chunk| self.get(chunk));
        chunks.take(count.div_ceil(SlotChunk::LEN)).flat_map(|chunk| chunk.slots).take(count).collect()
    }
}

impl<T> Drop for MappedRows<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and nothing borrows from it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.n_words * 8) };
    }
}
