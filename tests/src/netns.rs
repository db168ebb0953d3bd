//! Network namespaces: nodes, clients and endpoints of the suites and of the demo. Named, so that a person can look
//! around in them; removed when the value is dropped, also after a panic.

use std::{
    fs::File,
    os::{fd::AsRawFd, unix::process::CommandExt as _},
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};

/// One namespace.
#[derive(Debug)]
pub struct Ns {
    name: String,
    file: File,
    keep: bool,
}

/// Runs a program and fails with what it printed.
pub fn tool(program: &str, arguments: &str) -> Result<()> {
    let words: Vec<&str> = arguments.split_whitespace().collect();
    let output =
        Command::new(program).args(&words).output().with_context(|| format!("cannot run {program}"))?;
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "{program} {arguments}: {text}");
    Ok(())
}

impl Ns {
    /// Makes one, with its loopback interface up. The name begins with `sluice-` and is unique on this machine.
    pub fn new(role: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sluice-{}-{}-{role}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        tool("ip", &format!("netns add {name}"))?;
        let file =
            File::open(PathBuf::from("/run/netns").join(&name)).context("cannot open the namespace")?;
        let ns = Self { name, file, keep: false };
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// Its name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves it where it is when the value is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Runs `ip` inside.
    pub fn ip(&self, arguments: &str) -> Result<()> {
        tool("ip", &format!("-n {} {arguments}", self.name))
    }

    /// Runs a program inside and waits for it.
    pub fn tool(&self, program: &str, arguments: &str) -> Result<String> {
        let output = self.command(program).args(arguments.split_whitespace()).output()?;
        let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(output.status.success(), "{program} {arguments}: {error}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A program that will start inside. It keeps the file systems of this process, unlike `ip netns exec`, which hides
    /// BPF file systems and control groups. It ends with this process, whatever happens to it.
    #[expect(unsafe_code, reason = "a child joins the namespace between fork and exec")]
    pub fn command(&self, program: &str) -> Command {
        let fd = self.file.as_raw_fd();
        let mut command = Command::new(program);
        let join = move || {
            // SAFETY: a plain system call; the descriptor is open as long as the namespace is, and the parent outlives
            // the fork.
            let joined = unsafe { libc::setns(fd, libc::CLONE_NEWNET) };
            // SAFETY: a plain system call that takes no pointer.
            let bound = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            if joined != 0 || bound != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        };
        // SAFETY: between fork and exec only two system calls are made, and nothing is allocated or locked.
        unsafe { command.pre_exec(join) };
        command.stdin(Stdio::null());
        command
    }

    /// Runs `work` on a thread of its own inside. Sockets stay in the namespace that they were made in.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("the namespace is open");
                work()
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        if !self.keep {
            // A namespace that is gone already is as good.
            drop(tool("ip", &format!("netns del {}", self.name)));
        }
    }
}

/// One end of a link.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Where it is.
    pub ns: &'a Ns,
    /// Its name.
    pub name: &'a str,
    /// Its IPv4 address, in a network of 24 bits.
    pub v4: &'a str,
    /// Its IPv6 address, in a network of 64 bits.
    pub v6: &'a str,
}

/// Connects two namespaces. The link behaves like one of hardware: checksums are made by the sender, because a packet
/// that XDP sends on carries what it came with; and each end takes packets that XDP sends, which needs GRO.
pub fn link(a: End<'_>, b: End<'_>) -> Result<()> {
    a.ns.ip(&format!("link add {} type veth peer name {} netns {}", a.name, b.name, b.ns.name))?;
    for end in [a, b] {
        end.ns.ip(&format!("addr add {}/24 dev {}", end.v4, end.name))?;
        end.ns.ip(&format!("addr add {}/64 dev {} nodad", end.v6, end.name))?;
        end.ns.ip(&format!("link set {} up", end.name))?;
        end.ns.tool("ethtool", &format!("-K {} tx off gro on", end.name))?;
    }
    Ok(())
}
