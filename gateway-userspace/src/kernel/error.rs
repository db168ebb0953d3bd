//! What can go wrong between the agent and the kernel, in words for operators.

use std::{fmt, io, path::PathBuf};

use aya::{programs::ProgramError, sys::SyscallError};

/// What went wrong with the kernel.
#[derive(Debug)]
#[expect(missing_docs, reason = "the message of each says what it means")]
pub enum Error {
    Attach { what: &'static str, source: ProgramError },
    Cgroup { path: PathBuf, source: io::Error },
    Filter { path: PathBuf, source: io::Error },
    ForeignPin { path: PathBuf },
    Interface { name: String, source: io::Error },
    Link { what: &'static str, source: aya::programs::links::LinkError },
    Load { source: Box<aya::EbpfError> },
    Locked { path: PathBuf },
    Map { name: &'static str, source: aya::maps::MapError },
    MountBpffs { path: PathBuf, source: io::Error },
    Namespace { source: io::Error },
    NoMap { name: &'static str },
    Pin { path: PathBuf, source: aya::pin::PinError },
    Running,
    PinFolder { path: PathBuf, source: io::Error },
    PortsOverlap { ports: std::ops::RangeInclusive<u16>, ephemeral: std::ops::RangeInclusive<u16> },
    Memory { name: &'static str, source: io::Error },
    Unsupported { missing: Vec<String> },
    Verifier { what: &'static str, source: ProgramError },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attach { what, source } if what.starts_with("xdp") && is_taken(source) => write!(
                f,
                "cannot attach {what}: another XDP program holds the interface; remove it, or write `attach: auto`"
            ),
            Self::Attach { what, source } if is_denied(source) => write!(
                f,
                "cannot attach {what}: the agent may not, or a program of somebody else holds the control group or one above it alone (attached without BPF_F_ALLOW_MULTI)"
            ),
            Self::Attach { what, .. } => write!(f, "cannot attach {what}"),
            Self::Cgroup { path, .. } => write!(
                f,
                "cannot use {} as a control group; write the folder of one of version 2 (`grep cgroup2 /proc/mounts` shows where they are)",
                path.display()
            ),
            Self::Filter { path, .. } => {
                write!(f, "cannot find, replace or remove the filter of {}", path.display())
            }
            Self::ForeignPin { path } => {
                let path = path.display();
                write!(
                    f,
                    "{path} is pinned but is not the map of this version; `sluice cleanup` removes it and ends existing flows"
                )
            }
            Self::Interface { name, .. } => write!(f, "there is no interface {name}"),
            Self::Link { what, .. } => write!(f, "the link of {what} cannot be pinned"),
            Self::Load { .. } => f.write_str("cannot load the kernel object"),
            Self::Locked { path } => {
                write!(f, "another agent holds {}; stop it first", path.display())
            }
            Self::Map { name, .. } => write!(f, "map {name}"),
            Self::MountBpffs { path, .. } => {
                write!(f, "cannot mount a BPF file system at {}", path.display())
            }
            Self::Namespace { .. } => f.write_str("cannot open the network namespace"),
            Self::NoMap { name } => {
                write!(f, "the kernel object has no {name}: it was built from other sources")
            }
            Self::Pin { path, .. } => write!(f, "cannot pin {}", path.display()),
            Self::PinFolder { path, .. } => write!(f, "cannot use {}", path.display()),
            Self::PortsOverlap { ports, ephemeral } => write!(
                f,
                "translationPorts {}-{} overlaps this node's own ports {}-{} (net.ipv4.ip_local_port_range); choose a range outside, or narrow that setting",
                ports.start(),
                ports.end(),
                ephemeral.start(),
                ephemeral.end()
            ),
            Self::Running => f.write_str("another agent runs in this network namespace; stop it first"),
            Self::Memory { name, .. } => write!(f, "cannot reach map {name} through memory"),
            Self::Unsupported { missing } => write!(f, "missing: {}", missing.join("; ")),
            Self::Verifier { what, .. } => write!(f, "the kernel's verifier refused {what}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Attach { source, .. } | Self::Verifier { source, .. } => Some(source),
            Self::Link { source, .. } => Some(source),
            Self::Load { source } => Some(source.as_ref()),
            Self::Map { source, .. } => Some(source),
            Self::Pin { source, .. } => Some(source),
            Self::Cgroup { source, .. }
            | Self::Filter { source, .. }
            | Self::Interface { source, .. }
            | Self::MountBpffs { source, .. }
            | Self::Namespace { source }
            | Self::PinFolder { source, .. }
            | Self::Memory { source, .. } => Some(source),
            Self::ForeignPin { .. }
            | Self::Locked { .. }
            | Self::NoMap { .. }
            | Self::PortsOverlap { .. }
            | Self::Running
            | Self::Unsupported { .. } => None,
        }
    }
}

/// Whether somebody else sits where a program should.
fn is_taken(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(SyscallError { io_error, .. }) = error else { return false };
    matches!(io_error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

/// Whether the kernel says that this may not be.
fn is_denied(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(SyscallError { io_error, .. }) = error else { return false };
    io_error.raw_os_error() == Some(libc::EPERM)
}
