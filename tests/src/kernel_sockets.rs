//! The kernel's side of calls at sockets: it has no test run for them, so real calls of this process are what runs.

use std::{fs::File, os::fd::AsRawFd as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{HashMap, MapData},
    programs::{CgroupAttachMode, CgroupSockAddr},
};
use gateway_common::{
    counter::Hook,
    map::{self, MapDef as _},
    socket::{AskedFor, SocketPeer, SocketScope},
};

use crate::{
    kernel_run::Kernel,
    tables::{Tables, raw},
};

/// The programs at sockets.
pub const HOOKS: [Hook; 8] = [
    Hook::Connect4,
    Hook::Connect6,
    Hook::SendMsg4,
    Hook::SendMsg6,
    Hook::RecvMsg4,
    Hook::RecvMsg6,
    Hook::GetPeerName4,
    Hook::GetPeerName6,
];

const PEER: usize = size_of::<SocketPeer>();
const ASKED: usize = size_of::<AskedFor>();
const SCOPE: usize = size_of::<SocketScope>();

impl Kernel {
    /// Attaches the programs at sockets to a control group, until this value ends.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn sit_at(&mut self, cgroup: &Path) -> Result<()> {
        let group = File::open(cgroup).context("cannot open the control group")?;
        for hook in HOOKS {
            let program = self.object().program_mut(hook.name()).context("the object lacks a program")?;
            let program: &mut CgroupSockAddr = program.try_into()?;
            program
                .attach(&group, CgroupAttachMode::Single)
                .with_context(|| format!("cannot attach {}", hook.name()))?;
        }
        Ok(())
    }

    fn peers(&mut self) -> Result<HashMap<&mut MapData, [u8; PEER], [u8; ASKED]>> {
        Ok(HashMap::try_from(self.map(map::SocketPeers::NAME)?)?)
    }

    pub(crate) fn fill_sockets(&mut self, tables: &Tables) -> Result<()> {
        self.array::<SCOPE>(map::SocketScopes::NAME)?.set(0, raw(&tables.socket_scope), 0)?;
        let mut peers = self.peers()?;
        let present: Vec<[u8; PEER]> = peers.keys().collect::<Result<_, _>>()?;
        for key in present {
            peers.remove(&key)?;
        }
        for (peer, asked) in &tables.asked {
            peers.insert(raw::<_, PEER>(peer), raw::<_, ASKED>(asked), 0)?;
        }
        Ok(())
    }

    pub(crate) fn read_sockets(&mut self, tables: &mut Tables) -> Result<()> {
        tables.asked.clear();
        for entry in &self.peers()? {
            let (peer, asked) = entry?;
            tables.asked.insert(bytemuck::pod_read_unaligned(&peer), bytemuck::pod_read_unaligned(&asked));
        }
        Ok(())
    }
}

/// The kernel's number of a socket, or of its network namespace.
fn number(socket: &impl std::os::fd::AsFd, option: libc::c_int) -> Result<u64> {
    let mut number = 0_u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>())?;
    let value: *mut u64 = &raw mut number;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes as many bytes as are said at most.
    #[expect(unsafe_code, reason = "no library has these options")]
    let code = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, option, value.cast(), &raw mut len) };
    ensure!(code == 0, "the kernel does not tell: {}", std::io::Error::last_os_error());
    Ok(number)
}

/// The kernel's number of a socket.
///
/// # Errors
/// When it does not tell.
pub fn cookie(socket: &impl std::os::fd::AsFd) -> Result<u64> {
    number(socket, libc::SO_COOKIE)
}

/// The kernel's number of the network namespace of a socket.
///
/// # Errors
/// When it does not tell (Linux 5.14).
pub fn network(socket: &impl std::os::fd::AsFd) -> Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    number(socket, SO_NETNS_COOKIE)
}
