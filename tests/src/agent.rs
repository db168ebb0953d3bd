//! The agent as a process: started in a namespace, asked over its admin endpoint, stopped.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{netns::Ns, privilege};

/// The `sluice` binary: `SLUICE_BIN`, or beside the tests.
///
/// # Panics
/// When it was not built.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("SLUICE_BIN") {
        return PathBuf::from(path);
    }
    let here = std::env::current_exe().expect("this program has a path");
    let found = here.ancestors().skip(1).map(|folder| folder.join("sluice")).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("no sluice binary; run `cargo build -p gateway-userspace`, or set SLUICE_BIN")
    })
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    /// Starts it inside a namespace.
    pub fn spawn(ns: &Ns, config: &Path, log: &Path) -> Result<Self> {
        let file = File::create(log).context("cannot make the log")?;
        let mut command = ns.command(binary().to_str().context("the path of sluice is not text")?);
        command.args(["agent", "--config"]).arg(config).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().context("cannot start sluice")?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Starts it inside a namespace and waits until it is ready.
    pub fn start(ns: &Ns, config: &Path, log: &Path) -> Result<Self> {
        let mut agent = Self::spawn(ns, config, log)?;
        // Where the machine is emulated, the verifier takes most of a minute.
        let deadline = Duration::from_secs(if privilege::is_emulated() { 180 } else { 20 });
        let started = Instant::now();
        while ns.run(|| get("/ready")).is_none_or(|(status, _)| status != 200) {
            if let Some(status) = agent.child.try_wait()? {
                bail!("sluice ended with {status}:\n{}", agent.log());
            }
            if started.elapsed() > deadline {
                bail!("sluice is not ready after {deadline:?}:\n{}", agent.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(agent)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("a process id")?;
        kill(Pid::from_raw(pid), signal).context("cannot send a signal")
    }

    /// Waits for its end.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if started.elapsed() > deadline {
                bail!("sluice still runs after {deadline:?}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Status and body of a page of the admin endpoint of this thread's namespace.
pub fn get(path: &str) -> Option<(u16, String)> {
    let addr = "127.0.0.1:9901".parse().expect("an address");
    crate::client::get(addr, "admin", path, Duration::from_secs(2)).ok()
}

/// One value of `/metrics`: of the first line that begins with `name`.
pub fn metric(text: &str, name: &str) -> Option<f64> {
    text.lines().find(|line| line.starts_with(name))?.rsplit(' ').next()?.parse().ok()
}

/// Runs another command of the binary.
pub fn sluice(ns: &Ns, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let mut command: Command = ns.command(binary().to_str().context("the path of sluice is not text")?);
    let output = command.args(arguments).output().context("cannot run sluice")?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Ok((output.status.code(), text))
}
