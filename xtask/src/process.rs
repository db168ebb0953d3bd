//! Starting other programs: a clean environment for cargo, errors that name the command, and where programs are.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Runs a command to its end; anything but success is an error that shows the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", shown(command));
    }
    Ok(())
}

/// What a command prints, without the white space around it; `None` when it cannot be started or fails.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The cargo that started this program, or the one on the path, in an environment as if a human had called it:
/// `cargo run` leaves variables that would make build scripts and other compilers run differently.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let inherited = ["CARGO_PKG_", "CARGO_CFG_", "CARGO_MANIFEST_", "CARGO_BIN_"];
        if inherited.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command.env_remove("LD_LIBRARY_PATH");
    command
}

/// The full path of a program. The folders for administrators are searched too: they are missing from the path of
/// ordinary users, and `ip` and `bpftool` live there.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let administrators = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(administrators).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Whether this process may do what root may. Read from `/proc`, which saves a dependency.
pub(crate) fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1));
    effective == Some("0")
}

/// Whether something of type `kind` is mounted on `dir` here.
pub(crate) fn is_mounted(dir: &Path, kind: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next().is_some_and(|at| Path::new(at) == dir) && fields.next() == Some(kind)
    })
}

/// The mirror of Debian that this machine's package manager uses, or the public one.
pub(crate) fn debian_mirror() -> String {
    let entries = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    let texts = entries.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let uris = texts.flat_map(|text| text.lines().filter_map(mirror_in).collect::<Vec<_>>());
    let debian = uris.filter(|uri| uri.ends_with("/debian")).min();
    debian.unwrap_or_else(|| "http://deb.debian.org/debian".to_owned())
}

fn mirror_in(line: &str) -> Option<String> {
    Some(line.strip_prefix("URIs:")?.trim().trim_end_matches('/').to_owned())
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    format!("`{}`", words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "))
}
