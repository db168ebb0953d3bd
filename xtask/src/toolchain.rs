//! Finds or installs what builds the kernel object: a compiler with a `core` for the BPF target, and bpf-linker.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    apt::{self, Package, Proof},
    process,
    workspace::Workspace,
};

/// The target of the kernel object.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// The linker is pinned: its version decides which BTF and which instructions come out.
const LINKER_VERSION: &str = "0.13.0";

/// The LLVM inside that linker. It reads the bitcode of compilers with this LLVM or an older one, not of newer ones.
pub(crate) const LINKER_LLVM: u32 = 22;

/// Debian's compiler, which brings a compiled `core` for the BPF target.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

const COMPILER_PACKAGES: [Package; 2] = [
    Package {
        name: "rustc-web",
        proof: Proof::File("/var/lib/dpkg/info/rustc-web.list"),
        why: "a compiler that knows the BPF target",
    },
    Package {
        name: "libstd-rust-web-dev-bpf",
        proof: Proof::File("/usr/lib/rustlib/bpfel-unknown-none/lib"),
        why: "the core library of the BPF target",
    },
];

const LINKER_PACKAGES: [Package; 5] = [
    Package {
        name: "llvm-22-dev",
        proof: Proof::File("/usr/lib/llvm-22/bin/llvm-config"),
        why: "building bpf-linker",
    },
    Package {
        name: "libpolly-22-dev",
        proof: Proof::File("/usr/lib/llvm-22/lib/libPolly.a"),
        why: "building bpf-linker: LLVM's libraries refer to it",
    },
    Package { name: "g++", proof: Proof::Program("g++"), why: "linking bpf-linker with LLVM, which is C++" },
    Package { name: "zlib1g-dev", proof: Proof::File("/usr/include/zlib.h"), why: "building bpf-linker" },
    Package { name: "libzstd-dev", proof: Proof::File("/usr/include/zstd.h"), why: "building bpf-linker" },
];

/// A compiler that can build for the BPF target.
#[derive(Clone, Debug)]
pub(crate) struct Compiler {
    /// Its full path.
    pub(crate) rustc: PathBuf,
    /// Its release, as in `1.95.0`.
    pub(crate) release: String,
    /// Where its `core` comes from.
    pub(crate) core: Core,
}

/// Where the `core` library for the BPF target comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Core {
    /// Compiled, and beside the compiler.
    Precompiled,
    /// Its source is there, and cargo builds it.
    Source,
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = match self.core {
            Core::Precompiled => "its own core",
            Core::Source => "core from rust-src",
        };
        write!(f, "rustc {} ({}), {core}", self.release, self.rustc.display())
    }
}

/// The compiler for the BPF target. One that is named is used or refused; otherwise the first that fits, and if none
/// does, Debian's is installed.
pub(crate) fn compiler() -> Result<Compiler> {
    if let Some(named) = env::var_os("SLUICE_BPF_RUSTC") {
        return probe(Path::new(&named))
            .context("SLUICE_BPF_RUSTC names a compiler that cannot build for BPF");
    }
    let mut refused = Vec::new();
    for candidate in [active_rustc(), Some(PathBuf::from(DEBIAN_RUSTC))].into_iter().flatten() {
        match probe(&candidate) {
            Ok(compiler) => return Ok(compiler),
            Err(reason) => refused.push(format!("  {reason:#}")),
        }
    }
    eprintln!("setup: no compiler here can build for {TARGET}:\n{}", refused.join("\n"));
    apt::install(&COMPILER_PACKAGES).context(
        "the kernel object needs a compiler: install the packages named below, or `rustup component add rust-src`, \
         or name a compiler in SLUICE_BPF_RUSTC",
    )?;
    probe(Path::new(DEBIAN_RUSTC))
}

/// The compiler of the active toolchain, by its real path: behind rustup's shim its sysroot could change with the folder.
fn active_rustc() -> Option<PathBuf> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let sysroot = process::output(Command::new(rustc).args(["--print", "sysroot"]))?;
    Some(Path::new(&sysroot).join("bin/rustc"))
}

/// What a compiler says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    /// Its release, as in `1.95.0`.
    pub(crate) release: String,
    /// The major version of its LLVM; zero when it does not say.
    pub(crate) llvm: u32,
}

/// Asks a compiler for its version.
pub(crate) fn version(rustc: &Path) -> Result<Version> {
    let said = process::output(Command::new(rustc).arg("-vV"))
        .with_context(|| format!("{} does not run", rustc.display()))?;
    let field = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim();
    let llvm = field("LLVM version:").split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    Ok(Version { release: field("release:").to_owned(), llvm })
}

/// Asks a compiler whether it can build for the BPF target.
fn probe(rustc: &Path) -> Result<Compiler> {
    let shown = rustc.display();
    let Version { release, llvm } = version(rustc)?;
    if llvm > LINKER_LLVM {
        bail!("{shown}: its LLVM {llvm} is newer than the LLVM {LINKER_LLVM} of bpf-linker {LINKER_VERSION}");
    }
    let sysroot = process::output(Command::new(rustc).args(["--print", "sysroot"]))
        .with_context(|| format!("{shown} does not say where its libraries are"))?;
    let libraries = Path::new(&sysroot).join("lib/rustlib");
    let core = if has_core(&libraries.join(TARGET).join("lib")) {
        Core::Precompiled
    } else if libraries.join("src/rust/library/Cargo.lock").is_file() {
        Core::Source
    } else {
        bail!("{shown}: neither a compiled core for {TARGET} nor rust-src");
    };
    Ok(Compiler { rustc: rustc.to_path_buf(), release, core })
}

fn has_core(dir: &Path) -> bool {
    let Ok(entries) = fs::read_dir(dir) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

/// The pinned bpf-linker, built once into the target folder if it is nowhere.
pub(crate) fn linker(workspace: &Workspace) -> Result<PathBuf> {
    for variable in ["SLUICE_BPF_LINKER", "BPF_LINKER"] {
        if let Some(named) = env::var_os(variable).map(PathBuf::from) {
            if is_pinned_linker(&named) {
                return Ok(named);
            }
            bail!("{variable} names {}, which is not bpf-linker {LINKER_VERSION}", named.display());
        }
    }
    let cached = workspace.tools().join("bin/bpf-linker");
    let found = [Some(cached.clone()), process::find("bpf-linker")];
    if let Some(linker) = found.into_iter().flatten().find(|linker| is_pinned_linker(linker)) {
        return Ok(linker);
    }
    build_linker(workspace)?;
    if !is_pinned_linker(&cached) {
        bail!("{} was built, but does not say that it is version {LINKER_VERSION}", cached.display());
    }
    Ok(cached)
}

fn is_pinned_linker(linker: &Path) -> bool {
    let version = process::output(Command::new(linker).arg("--version"));
    version.is_some_and(|version| version.split_whitespace().last() == Some(LINKER_VERSION))
}

fn build_linker(workspace: &Workspace) -> Result<()> {
    apt::install(&LINKER_PACKAGES).with_context(|| {
        format!("bpf-linker {LINKER_VERSION} is neither in SLUICE_BPF_LINKER nor on the path, and building it needs LLVM")
    })?;
    let tools = workspace.tools();
    eprintln!("setup: building bpf-linker {LINKER_VERSION} into {} (once, under a minute)", tools.display());
    let mut command = process::cargo();
    command
        .args([
            "install",
            "bpf-linker",
            "--version",
            LINKER_VERSION,
            "--locked",
            "--no-default-features",
            "--quiet",
        ])
        .args(["--features", &format!("llvm-{LINKER_LLVM}"), "--root"])
        .arg(&tools)
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{LINKER_LLVM}"))
        // Without it cargo would build into the workspace's target folder and mix a foreign tree into it.
        .env("CARGO_TARGET_DIR", tools.join("build"));
    process::run(&mut command)?;
    let build = tools.join("build");
    fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))
}
