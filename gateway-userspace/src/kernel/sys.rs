//! The system calls that aya does not wrap: replacing the program of any link, and mapping an array into memory.
#![expect(unsafe_code, reason = "bpf(2) and mmap(2) take raw pointers")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
};

use gateway_common::slot::{Slot, SlotChunk};

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

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

/// Opens a pinned object.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let address = u64::try_from(path.as_ptr().addr()).map_err(io::Error::other)?;
    let fd = bpf(BPF_OBJ_GET, &mut ObjGet { path: address, ..ObjGet::default() })?;
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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

/// What a link hangs on: the index of an interface for XDP and TCX, the inode of a network namespace for socket lookup;
/// zero once that is gone.
pub(super) fn link_target(link: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = LinkInfo::default();
    let len = u32::try_from(size_of::<LinkInfo>()).map_err(io::Error::other)?;
    let address =
        u64::try_from(std::ptr::from_mut(&mut info).expose_provenance()).map_err(io::Error::other)?;
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut GetInfo { fd: raw(link), len, info: address })?;
    Ok(info.target)
}

/// The `SLOTS` map, in this process's memory.
#[derive(Debug)]
pub(super) struct SlotMemory {
    base: NonNull<AtomicU32>,
    n_slots: usize,
}

// SAFETY: the memory is shared with the kernel anyway, and every access is atomic.
unsafe impl Send for SlotMemory {}

impl SlotMemory {
    /// Maps `n_chunks` chunks (Linux 5.5).
    pub(super) fn new(map: BorrowedFd<'_>, n_chunks: u32) -> io::Result<Self> {
        let n_slots = usize::try_from(n_chunks).map_err(io::Error::other)? * SlotChunk::LEN;
        let len = n_slots * size_of::<Slot>();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice disturbs nothing.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, map.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Self { base, n_slots })
    }

    fn at(&self, slot: usize) -> Option<&AtomicU32> {
        if slot >= self.n_slots {
            return None;
        }
        // SAFETY: the index is within the mapping.
        let at = unsafe { self.base.add(slot) };
        // SAFETY: the mapping lives as long as `self`, and its pages are aligned.
        Some(unsafe { at.as_ref() })
    }

    /// Writes slots from the start of a chunk on. The service value that makes them current is written by a system
    /// call, which orders them.
    pub(super) fn write(&self, first_chunk: u32, slots: &[Slot]) -> io::Result<()> {
        let first = usize::try_from(first_chunk).unwrap_or(usize::MAX).saturating_mul(SlotChunk::LEN);
        if first.saturating_add(slots.len()) > self.n_slots {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the half lies beyond the map"));
        }
        for (idx, slot) in slots.iter().enumerate() {
            if let Some(at) = self.at(first + idx) {
                at.store(bytemuck::cast(*slot), Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Reads slots from the start of a chunk on.
    pub(super) fn read(&self, first_chunk: u32, n_slots: u32) -> Vec<Slot> {
        let first = usize::try_from(first_chunk).unwrap_or(usize::MAX).saturating_mul(SlotChunk::LEN);
        let count = usize::try_from(n_slots).unwrap_or(0);
        (0..count)
            .map_while(|idx| self.at(first.saturating_add(idx)))
            .map(|at| bytemuck::cast(at.load(Ordering::Relaxed)))
            .collect()
    }
}

impl Drop for SlotMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and nothing borrows from it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.n_slots * size_of::<Slot>()) };
    }
}
