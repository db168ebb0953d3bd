//! Makes a fresh Debian 12 able to build, test and measure: finds what is there, says what it installs.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::shell;

/// What a command needs beyond Rust itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Set {
    /// A C compiler for the crypto library.
    Build,
    /// Namespaces, clients and servers of the suites and of the demo.
    Test,
    /// Kernels under emulation.
    Kernels,
    /// A root of its own.
    FreshRoot,
    /// Load generators and the proxies to compare with.
    Bench,
}

/// A program and the Debian package that brings it.
const NEEDS: &[(Set, &str, &str)] = &[
    (Set::Build, "cc", "gcc"),
    (Set::Build, "make", "make"),
    (Set::Test, "ip", "iproute2"),
    (Set::Test, "ethtool", "ethtool"),
    (Set::Test, "bpftool", "bpftool"),
    (Set::Test, "curl", "curl"),
    (Set::Test, "openssl", "openssl"),
    (Set::Kernels, "qemu-system-x86_64", "qemu-system-x86"),
    (Set::Kernels, "busybox", "busybox-static"),
    (Set::Kernels, "cpio", "cpio"),
    (Set::Kernels, "xz", "xz-utils"),
    (Set::Kernels, "dpkg-deb", "dpkg"),
    (Set::FreshRoot, "debootstrap", "debootstrap"),
    (Set::Bench, "nginx", "nginx-light"),
    (Set::Bench, "haproxy", "haproxy"),
    (Set::Bench, "wrk", "wrk"),
    (Set::Bench, "h2load", "nghttp2-client"),
];

/// The C headers come without a program to look for.
const LIBC_HEADER: (&str, &str) = ("/usr/include/stdio.h", "libc6-dev");

/// Makes sure that everything of these sets is there.
pub(crate) fn ensure(sets: &[Set]) -> Result<()> {
    let mut missing: Vec<&str> = NEEDS
        .iter()
        .filter(|(set, program, _)| sets.contains(set) && !shell::on_path(program))
        .map(|(_, _, package)| *package)
        .collect();
    if sets.contains(&Set::Build) && !Path::new(LIBC_HEADER.0).exists() {
        missing.push(LIBC_HEADER.1);
    }
    install(&missing, "to build and run what was asked for")
}

/// Installs Debian packages after saying so.
pub(crate) fn install(packages: &[&str], purpose: &str) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !shell::on_path("apt-get") {
        bail!(
            "missing: {list} (Debian's names), {purpose}; this system has no apt-get: install them by hand"
        );
    }
    if !shell::is_root() {
        bail!(
            "missing: {list}, {purpose}; run as root, or: sudo apt-get install --no-install-recommends {list}"
        );
    }
    shell::say(&format!("installing {list}, {purpose}"));
    shell::run(Command::new("apt-get").args(["-qq", "update"]))?;
    shell::run(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-qq", "-y", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0", "install"])
            .args(packages)
            .stdout(std::process::Stdio::null()),
    )
}

/// A compiler for the BPF target.
#[derive(Debug)]
pub(crate) struct Compiler {
    /// The program.
    pub(crate) rustc: PathBuf,
    /// Its release.
    pub(crate) release: String,
    /// Whether `core` has to be built along.
    pub(crate) build_core: bool,
}

/// The BPF target.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// The LLVM that the pinned linker is built against; it cannot read the bitcode of a newer one.
const LLVM: u32 = 22;

/// bpf-linker, pinned.
const LINKER: &str = "0.13.0";

/// Finds a compiler for the BPF target, or installs Debian's.
pub(crate) fn compiler() -> Result<Compiler> {
    if let Some(chosen) = std::env::var_os("SLUICE_BPF_RUSTC") {
        return probe(Path::new(&chosen)).map_err(|why| anyhow::anyhow!("SLUICE_BPF_RUSTC: {why}"));
    }
    let mut tried = Vec::new();
    let active = shell::output("rustc", &["--print", "sysroot"])
        .map(|sysroot| PathBuf::from(sysroot).join("bin/rustc"));
    for candidate in active.into_iter().chain([PathBuf::from(DEBIAN_RUSTC)]) {
        match probe(&candidate) {
            Ok(compiler) => return Ok(compiler),
            Err(why) => tried.push(why),
        }
    }
    let purpose = "a Rust compiler with a core library for the BPF target";
    install(&["rustc-web", "libstd-rust-web-dev-bpf"], purpose)
        .map_err(|error| error.context(format!("no compiler for {TARGET}: {}", tried.join("; "))))?;
    probe(Path::new(DEBIAN_RUSTC))
        .map_err(|why| anyhow::anyhow!("after installing Debian's rustc-web: {why}"))
}

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

fn probe(rustc: &Path) -> Result<Compiler, String> {
    let name = rustc.display();
    let version = shell::output(rustc, &["-vV"]).ok_or_else(|| format!("{name} does not run"))?;
    let field =
        |key: &str| version.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("").trim().to_owned();
    let release = field("release:");
    let llvm: u32 =
        field("LLVM version:").split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if llvm > LLVM {
        return Err(format!("{name} has LLVM {llvm}, newer than bpf-linker's {LLVM}"));
    }
    let sysroot =
        shell::output(rustc, &["--print", "sysroot"]).ok_or_else(|| format!("{name} has no sysroot"))?;
    let library = Path::new(&sysroot).join("lib/rustlib");
    let precompiled = std::fs::read_dir(library.join(TARGET).join("lib")).is_ok_and(|mut files| {
        files.any(|file| file.is_ok_and(|file| file.file_name().to_string_lossy().starts_with("libcore-")))
    });
    if !precompiled && !library.join("src/rust/library/Cargo.lock").is_file() {
        return Err(format!(
            "{name} has neither a core for {TARGET} nor rust-src (rustup component add rust-src)"
        ));
    }
    Ok(Compiler { rustc: rustc.to_owned(), release, build_core: !precompiled })
}

/// Finds the pinned linker, or builds it once.
pub(crate) fn linker() -> Result<PathBuf> {
    let own = shell::target().join("tools/bin/bpf-linker");
    let chosen = std::env::var_os("SLUICE_BPF_LINKER").map(PathBuf::from);
    let is_right =
        |path: &Path| shell::output(path, &["--version"]).is_some_and(|version| version.contains(LINKER));
    if let Some(found) =
        chosen.into_iter().chain([own.clone(), "bpf-linker".into()]).find(|path| is_right(path))
    {
        return Ok(found);
    }
    let prefix = format!("/usr/lib/llvm-{LLVM}");
    if !Path::new(&prefix).join("bin/llvm-config").exists() {
        let llvm = [
            &*format!("llvm-{LLVM}-dev"),
            &*format!("libpolly-{LLVM}-dev"),
            "zlib1g-dev",
            "libzstd-dev",
            "g++",
        ];
        install(&llvm, "to build bpf-linker, which links the kernel object")?;
    }
    shell::say(&format!("building bpf-linker {LINKER}, once, into {}", own.display()));
    shell::run(
        Command::new("cargo")
            .env("LLVM_PREFIX", &prefix)
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_TARGET_DIR")
            .args([
                "install",
                "bpf-linker",
                "--quiet",
                "--version",
                LINKER,
                "--locked",
                "--no-default-features",
            ])
            .args(["--features", &format!("llvm-{LLVM}"), "--root"])
            .arg(shell::target().join("tools")),
    )?;
    Ok(own)
}
