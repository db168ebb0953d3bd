//! `cargo xtask fresh-root`: runs the README's commands in a Debian that has nothing but Rust, because a machine that
//! already has everything hides a step that is missing.
//!
//! A small Debian is made once and kept. Each run puts an empty layer over it and over this machine's Rust, so that
//! every run starts equally empty and leaves nothing behind. The mounts live in a mount namespace, and the processes in
//! a process namespace: both end with the command, however it ends.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{self as std_process, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    process,
    setup::{self, Purpose},
    workspace::Workspace,
};

/// The release that the README promises.
const RELEASE: &str = "bookworm";

const CLONE: &str = "root/sluice";

/// What to run in the root.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Run the demo as well, and the tests in full.
    #[arg(long)]
    full: bool,
    /// Take over this machine's bpf-linker, which saves the time to build it and proves less.
    #[arg(long)]
    with_tools: bool,
    /// Run this in the clone instead of the README's commands.
    #[arg(last = true)]
    command: Vec<String>,
    /// Set by this program when it starts itself inside the namespaces.
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

/// Makes the root, runs the commands in it, and removes it.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if let Some(dir) = &options.inside {
        return Root { dir }.run(workspace, options);
    }
    if !process::is_root() {
        bail!("a fresh root needs root: mounts and debootstrap");
    }
    setup::install(Purpose::Root)?;
    let base = base(workspace)?;
    let dir = workspace.target.join("fresh-root").join(format!("run-{}", std_process::id()));
    let outcome = start(&base, &dir);
    // The mounts are gone with their namespace; should one be left, its contents are not ours to remove.
    let removed = process::run(Command::new("rm").args(["-rf", "--one-file-system"]).arg(&dir));
    outcome.and(removed)
}

/// Starts this program again, with mounts and processes of its own.
fn start(base: &Path, dir: &Path) -> Result<()> {
    for layer in ["root", "upper", "work", "home"] {
        make(&dir.join(layer))?;
    }
    let program = env::current_exe().context("cannot find out where xtask is")?;
    let mut arguments: Vec<_> = env::args_os().skip(1).collect();
    // Right after the name of the command, where no `--` can stand before it.
    arguments.splice(1..1, ["--inside".into(), dir.into()]);
    process::run(
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"])
            .arg(program)
            .args(arguments)
            .env("SLUICE_FRESH_BASE", base),
    )
}

/// The small Debian that every run starts from; made at the first run.
fn base(workspace: &Workspace) -> Result<PathBuf> {
    let kept = workspace.target.join("fresh-root");
    let base = kept.join(RELEASE);
    let complete = kept.join(format!("{RELEASE}.complete"));
    if complete.exists() {
        return Ok(base);
    }
    eprintln!("xtask: making a Debian {RELEASE} in {} (once, half a minute)", base.display());
    process::run(Command::new("rm").args(["-rf", "--one-file-system"]).arg(&base))?;
    make(&kept)?;
    let mut command = Command::new("debootstrap");
    command
        .args(["--variant=minbase", RELEASE])
        .arg(&base)
        .arg(process::debian_mirror())
        .stdout(Stdio::null());
    process::run(&mut command)?;
    fs::write(&complete, "").with_context(|| format!("cannot write {}", complete.display()))?;
    Ok(base)
}

/// One run's folders, seen from inside its namespaces.
struct Root<'a> {
    dir: &'a Path,
}

impl Root<'_> {
    fn run(&self, workspace: &Workspace, options: &Options) -> Result<()> {
        let base = env::var_os("SLUICE_FRESH_BASE").context("`--inside` is for this program alone")?;
        self.overlay(Path::new(&base), "system", &self.path(""))?;
        self.share_rust()?;
        self.mount_system()?;
        self.copy_settings()?;
        self.clone(workspace, options.with_tools)?;
        if !options.command.is_empty() {
            return self.enter(&options.command);
        }
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        if options.full {
            self.enter(&words("cargo xtask demo"))?;
            return self.enter(&words("cargo xtask test"));
        }
        self.enter(&words("cargo xtask test --quick"))
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.dir.join("root").join(inside)
    }

    /// Mounts `lower` on `target` with an empty layer above it.
    fn overlay(&self, lower: &Path, name: &str, target: &Path) -> Result<()> {
        let (upper, work) = (self.dir.join("upper").join(name), self.dir.join("work").join(name));
        for dir in [&upper, &work, &target.to_path_buf()] {
            make(dir)?;
        }
        let layers =
            format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        process::run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &layers]).arg(target))
    }

    /// Shows the root this machine's Rust. A linker that was installed with it would hide that set-up can make one.
    fn share_rust(&self) -> Result<()> {
        let home = PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into()));
        for (variable, name) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
            let lower = env::var_os(variable).map_or_else(|| home.join(name), PathBuf::from);
            if !lower.is_dir() {
                bail!("{} is not there: a fresh root shares the Rust that rustup installed", lower.display());
            }
            self.overlay(&lower, name, &self.path("root").join(name))?;
        }
        let linker = self.path("root/.cargo/bin/bpf-linker");
        if linker.exists() {
            fs::remove_file(&linker).with_context(|| format!("cannot hide {}", linker.display()))?;
        }
        Ok(())
    }

    fn mount_system(&self) -> Result<()> {
        process::run(Command::new("mount").args(["-t", "proc", "proc"]).arg(self.path("proc")))?;
        process::run(Command::new("mount").args(["--rbind", "/sys"]).arg(self.path("sys")))?;
        self.devices()?;
        for name in ["run", "tmp"] {
            process::run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(self.path(name)))?;
        }
        Ok(())
    }

    /// The devices that every Debian has, of the root's own: what was done to this machine's is not part of a fresh one.
    fn devices(&self) -> Result<()> {
        let mount = |kind: &str, options: &str, target: &Path| {
            process::run(Command::new("mount").args(["-t", kind, "-o", options, kind]).arg(target))
        };
        mount("tmpfs", "mode=755", &self.path("dev"))?;
        for (name, minor) in [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)] {
            let node = self.path("dev").join(name);
            process::run(Command::new("mknod").args(["-m", "666"]).arg(node).args([
                "c",
                "1",
                &minor.to_string(),
            ]))?;
        }
        for (name, target) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
            ("ptmx", "pts/ptmx"),
        ] {
            let link = self.path("dev").join(name);
            symlink(target, &link).with_context(|| format!("cannot make {}", link.display()))?;
        }
        for (name, kind, options) in
            [("pts", "devpts", "newinstance,mode=620,ptmxmode=666"), ("shm", "tmpfs", "mode=1777")]
        {
            let target = self.path("dev").join(name);
            make(&target)?;
            mount(kind, options, &target)?;
        }
        Ok(())
    }

    /// How this machine reaches the world: names, package sources, and the authorities it trusts.
    fn copy_settings(&self) -> Result<()> {
        for file in ["etc/hosts", "etc/resolv.conf"] {
            copy(&Path::new("/").join(file), &self.path(file))?;
        }
        for dir in ["etc/ssl/certs", "usr/local/share/ca-certificates", "etc/apt/apt.conf.d"] {
            copy(&Path::new("/").join(dir), &self.path(dir))?;
        }
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let list = self.path("etc/apt/sources.list");
        if release.contains(&format!("VERSION_CODENAME={RELEASE}"))
            && Path::new("/etc/apt/sources.list.d").is_dir()
        {
            copy(Path::new("/etc/apt/sources.list.d"), &self.path("etc/apt/sources.list.d"))?;
            if Path::new("/etc/apt/sources.list").exists() {
                return copy(Path::new("/etc/apt/sources.list"), &list);
            }
            return fs::remove_file(&list).with_context(|| format!("cannot remove {}", list.display()));
        }
        let mirror = process::debian_mirror();
        let sources = format!("deb {mirror} {RELEASE} main\ndeb {mirror}-security {RELEASE}-security main\n");
        fs::write(&list, sources).with_context(|| format!("cannot write {}", list.display()))
    }

    /// Clones the last commit: what is not committed is not part of what a reader of the README gets.
    fn clone(&self, workspace: &Workspace, with_tools: bool) -> Result<()> {
        let target = self.path(CLONE);
        let mut git = Command::new("git");
        git.args(["-c", "advice.detachedHead=false", "clone", "--quiet", "--no-hardlinks"]);
        process::run(git.arg(&workspace.root).arg(&target))?;
        let mut status = Command::new("git");
        status.arg("-C").arg(&workspace.root).args(["status", "--porcelain"]);
        if process::output(&mut status).is_some_and(|changes| !changes.is_empty()) {
            eprintln!("xtask: there are changes that are not committed: the fresh root does not have them");
        }
        if with_tools {
            copy(&workspace.tools(), &target.join("target/tools"))?;
        }
        Ok(())
    }

    /// Runs a command in the clone, with no more of this machine's environment than a way to the network.
    fn enter(&self, command: &[String]) -> Result<()> {
        eprintln!("xtask: in the fresh root: {}", command.join(" "));
        let mut enter = Command::new("chroot");
        enter.arg(self.path("")).args(["/usr/bin/env", "--chdir", &format!("/{CLONE}")]).args(command);
        enter.env_clear().env("HOME", "/root").env("LANG", "C.UTF-8");
        enter.env("PATH", "/root/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        for (name, value) in env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            let lower = name.to_lowercase();
            let network =
                ["http_proxy", "https_proxy", "no_proxy", "all_proxy", "ssl_cert_file", "ssl_cert_dir"];
            if network.contains(&lower.as_str())
                || name.starts_with("CARGO_HTTP_")
                || name.starts_with("CARGO_REGISTR")
            {
                enter.env(&name, value);
            }
        }
        process::run(enter.stdin(Stdio::null()))
    }
}

fn make(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))
}

/// Copies a file, or a folder over one of the same name; links become what they point to. What is missing is skipped:
/// not every machine has every setting.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.exists() {
        return Ok(());
    }
    make(to.parent().context("a target without a folder")?)?;
    if to.is_symlink() {
        fs::remove_file(to).with_context(|| format!("cannot replace {}", to.display()))?;
    }
    process::run(Command::new("cp").args(["-rLT"]).arg(from).arg(to))
}
