//! The programs at the sockets of a control group: all of them sit there, or none.
//!
//! Those that tell a process whom it talks to come first and go last: a socket that was given an endpoint without them
//! would show it.

use std::{
    fs::File,
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, links::FdLink},
};
use gateway_common::{counter::Hook, socket::SocketScope};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use super::{Attacher, failed, program};
use crate::kernel::{
    Error, Kernel,
    pin::{self, Target},
    sys,
};

/// The programs, in the order in which they are attached.
const PROGRAMS: [Hook; 8] = [
    Hook::GetPeerName4,
    Hook::GetPeerName6,
    Hook::RecvMsg4,
    Hook::RecvMsg6,
    Hook::SendMsg4,
    Hook::SendMsg6,
    Hook::Connect4,
    Hook::Connect6,
];

/// Whose sockets are translated.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Connect {
    /// The folder of the control group.
    pub cgroup: PathBuf,
    /// Sockets and endpoints that are remembered.
    pub sockets: u32,
}

/// How far the programs have come.
#[derive(Debug, Default)]
pub(super) enum Sockets {
    /// Not loaded.
    #[default]
    Unused,
    /// The kernel refused to load them, and why.
    Refused(String),
    /// Loaded.
    Ready,
    /// On the control group with this number.
    On(u64),
}

/// Whether a pin is that of one of the links.
pub(super) fn is_link(name: &str) -> bool {
    PROGRAMS.iter().any(|hook| hook.name() == name)
}

impl Attacher {
    /// Attaches to a control group, or takes over what an earlier agent left there. Nothing happens where the programs are
    /// there already.
    fn connect(&mut self, path: &Path) -> Result<(), Error> {
        let group = Group::open(path)?;
        match &self.sockets {
            Sockets::On(id) if *id == group.id => return Ok(()),
            Sockets::Refused(why) => return Err(Error::Unsupported { missing: vec![why.clone()] }),
            Sockets::Unused => {
                if let Err(error) = load(&mut self.object) {
                    let why = format!(
                        "programs at sockets that can refuse (Linux 6.1 or later has all that is needed): {error}"
                    );
                    self.sockets = Sockets::Refused(why.clone());
                    return Err(Error::Unsupported { missing: vec![why] });
                }
            }
            Sockets::On(_) | Sockets::Ready => {}
        }
        self.sockets = Sockets::Ready;
        for hook in PROGRAMS {
            if let Err(error) = self.sit_at(hook.name(), &group) {
                self.disconnect()?;
                return Err(error);
            }
        }
        self.sockets = Sockets::On(group.id);
        tracing::info!(cgroup = %path.display(), "attached: processes are given endpoints at their sockets");
        Ok(())
    }

    fn sit_at(&mut self, name: &'static str, group: &Group) -> Result<(), Error> {
        let path = self.pins.link(name);
        let program = program::<CgroupSockAddr>(&mut self.object, name)?;
        let fd = program.fd().map_err(failed(name))?;
        if pin::replace(&path, Target(group.id), fd.as_fd())? {
            return Ok(());
        }
        // A link is one among several in every case; the flag for that is refused.
        let id = program.attach(&group.file, CgroupAttachMode::Single).map_err(failed(name))?;
        let link = program.take_link(id).map_err(failed(name))?;
        let link: FdLink = link.try_into().map_err(|source| Error::Link { what: name, source })?;
        pin::keep(link, &path)
    }

    /// Detaches what this agent, or one before it, attached to a control group.
    fn disconnect(&self) -> Result<(), Error> {
        for hook in PROGRAMS.into_iter().rev() {
            if pin::remove(&self.pins.link(hook.name()))? {
                tracing::info!(program = hook.name(), "detached from its control group");
            }
        }
        Ok(())
    }
}

impl Kernel {
    /// Says whose sockets may be translated; where nothing is configured, ends what an earlier agent began.
    pub(in crate::kernel) fn begin_with_sockets(&mut self) -> Result<(), Error> {
        if self.connect.is_none() {
            return self.attacher.disconnect();
        }
        let network = sys::network_cookie().map_err(|source| Error::Namespace { source })?;
        self.writer.maps_mut().put_socket_scope(SocketScope { network })
    }

    /// Attaches to the control group that is configured, if one is and that has not been done.
    ///
    /// # Errors
    /// When it is not there, or the kernel refuses; nothing is attached then.
    pub fn connect_sockets(&mut self) -> Result<(), Error> {
        match &self.connect {
            Some(connect) => self.attacher.connect(&connect.cgroup),
            None => Ok(()),
        }
    }

    /// The control group whose sockets are translated, and whether they are at present.
    pub fn connected(&self) -> Option<(&Path, bool)> {
        let connect = self.connect.as_ref()?;
        Some((&connect.cgroup, matches!(self.attacher.sockets, Sockets::On(_))))
    }
}

/// A control group, open.
struct Group {
    file: File,
    /// The kernel's number.
    id: u64,
}

impl Group {
    fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Cgroup { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let kind = fstatfs(&file).map_err(|errno| failed(errno.into()))?.filesystem_type();
        if kind != CGROUP2_SUPER_MAGIC {
            return Err(failed(io::Error::other("it is no folder of a cgroup2 file system")));
        }
        let id = file.metadata().map_err(failed)?.ino();
        Ok(Self { file, id })
    }
}

fn load(object: &mut Ebpf) -> Result<(), Error> {
    for hook in PROGRAMS {
        let name = hook.name();
        let refused = |source| Error::Verifier { what: name, source };
        program::<CgroupSockAddr>(object, name)?.load().map_err(refused)?;
    }
    Ok(())
}
