//! `cargo xtask build` and `cargo xtask profile`: the agent as it is shipped, which its compiler builds with a record of
//! which of its code is hot, and that record.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    apt::{self, Package, Proof},
    build_ebpf, launch, process,
    setup::{self, Purpose},
    toolchain::{self, LINKER_LLVM, Version},
    workspace::Workspace,
};

/// Cargo's profile of the shipped agent.
const PROFILE: &str = "agent";
/// That of an agent which counts what it does.
const COUNTING: &str = "counting";
/// How long the agent is kept busy for a record.
const TIME: &str = "60s";

/// The compiler that builds the agent. Records name functions as it does, and are in a format of its LLVM.
fn compiler() -> Result<Version> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    toolchain::version(Path::new(&rustc))
}

/// Where a record for this compiler is, if there is one.
fn place(compiler: &Version, workspace: &Workspace) -> PathBuf {
    folder(workspace).join(format!("rustc-{}.profdata", compiler.release))
}

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.root.join("gateway-userspace/profile")
}

/// Builds the kernel object and the agent; says where it is.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    setup::install(Purpose::Build)?;
    build_ebpf::run(workspace, false)?;
    println!("{}", build(workspace)?.display());
    Ok(())
}

/// Builds the agent as it is shipped; where it is.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let compiler = compiler()?;
    let record = place(&compiler, workspace);
    let flags = if record.is_file() {
        eprintln!("xtask: building the agent (profile {PROFILE}, with {})", shown(workspace, &record));
        // What changed since the record was made is built without it; how much that is shows when it is made anew.
        format!("-Cprofile-use={} -Cllvm-args=-no-pgo-warn-mismatch", record.display())
    } else {
        eprintln!(
            "xtask: building the agent (profile {PROFILE}) without a record of its hot code, which costs some processor \
             time: there is none for rustc {} in {}; `cargo xtask profile` makes one",
            compiler.release,
            shown(workspace, &folder(workspace)),
        );
        String::new()
    };
    cargo_build(workspace, PROFILE, &flags)
}

/// Keeps an agent busy that counts what it does, and records the counts for this compiler.
pub(crate) fn record(workspace: &Workspace) -> Result<()> {
    setup::install(Purpose::Build)?;
    build_ebpf::run(workspace, false)?;
    let compiler = compiler()?;
    let merge = merger(&compiler)?;
    let counts = workspace.target.join("counts");
    eprintln!("xtask: building an agent that counts what it does");
    let agent = cargo_build(workspace, COUNTING, &format!("-Cprofile-generate={}", counts.display()))?;
    // Programs that ran for the build have counted, too.
    if counts.exists() {
        fs::remove_dir_all(&counts).with_context(|| format!("cannot remove {}", counts.display()))?;
    }
    launch::soak_with(workspace, &agent, &["--time".to_owned(), TIME.to_owned()])?;
    let record = place(&compiler, workspace);
    let folder = folder(workspace);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // Without functions that did not run, it is a sixth as large.
    process::run(
        Command::new(merge).args(["merge", "--sparse", "--output"]).arg(&record).args(files(&counts)?),
    )?;
    for former in files(&folder)?.iter().filter(|former| **former != record) {
        fs::remove_file(former).with_context(|| format!("cannot remove {}", former.display()))?;
    }
    println!("{}", shown(workspace, &record));
    Ok(())
}

/// The program that makes a record of counts, of the compiler's LLVM.
fn merger(compiler: &Version) -> Result<PathBuf> {
    let program = format!("llvm-profdata-{}", compiler.llvm);
    if let Some(found) = process::find(&program) {
        return Ok(found);
    }
    if compiler.llvm != LINKER_LLVM {
        bail!(
            "there is no {program}, which the counts of rustc {} need: install LLVM {}",
            compiler.release,
            compiler.llvm
        );
    }
    apt::install(&[Package {
        name: "llvm-22",
        proof: Proof::Program("llvm-profdata-22"),
        why: "making a record of what the agent counted",
    }])?;
    process::find(&program).with_context(|| format!("there is no {program} though its package is installed"))
}

fn cargo_build(workspace: &Workspace, profile: &str, flags: &str) -> Result<PathBuf> {
    let own = env::var("RUSTFLAGS").unwrap_or_default();
    let flags = format!("{own} {flags}").trim().to_owned();
    let mut command = process::cargo();
    command.current_dir(&workspace.root).args(["build", "--profile", profile, "--locked", "--quiet"]).args([
        "--package",
        "gateway-userspace",
        "--bin",
        "sluice",
    ]);
    if !flags.is_empty() {
        command.env("RUSTFLAGS", flags);
    }
    process::run(&mut command)?;
    Ok(workspace.binary(profile, "sluice"))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    if files.is_empty() {
        bail!("there is nothing in {}", folder.display());
    }
    Ok(files)
}

fn shown(workspace: &Workspace, path: &Path) -> String {
    path.strip_prefix(&workspace.root).unwrap_or(path).display().to_string()
}
