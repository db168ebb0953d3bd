//! `cargo xtask build-ebpf`: compiles the kernel programs to an object that the agent embeds.

use std::{env, fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    process,
    setup::{self, Tools},
    source_hash,
    toolchain::{Core, TARGET},
    workspace::Workspace,
};

/// The object with the product's programs.
pub(crate) const OBJECT: &str = "sluice-kernel";

/// Our programs as a build for debugging, for the suites.
pub(crate) const WITH_LOG: &str = "sluice-kernel-log";

/// The object with the programs that ours are measured against.
const REFERENCE: &str = "sluice-reference";

/// Installs what is missing and builds the object, and with `reference` also the one to measure against.
pub(crate) fn run(workspace: &Workspace, reference: bool) -> Result<()> {
    let tools = setup::ensure(workspace, &[])?;
    build(workspace, &tools, &Object { program: OBJECT, features: "kernel", name: OBJECT })?;
    if reference {
        build(workspace, &tools, &Object { program: REFERENCE, features: "kernel", name: REFERENCE })?;
    }
    Ok(())
}

/// Builds the object that writes a record for each dropped packet: in place of the one that the agent embeds, or under
/// a name of its own beside it.
pub(crate) fn run_with_log(workspace: &Workspace, name: &str) -> Result<()> {
    let tools = setup::ensure(workspace, &[])?;
    build(workspace, &tools, &Object { program: OBJECT, features: "log", name })
}

/// What to build.
struct Object<'a> {
    /// The binary of the kernel crate.
    program: &'a str,
    features: &'a str,
    /// What the result is called.
    name: &'a str,
}

/// Builds one object with tools that are there, and records what it was built from.
fn build(workspace: &Workspace, tools: &Tools, object: &Object<'_>) -> Result<()> {
    // Taken before the build: a source that changes meanwhile must make the object look old, never new.
    let hash = source_hash::of(&workspace.root).context("cannot read the kernel object's sources")?;
    let dir = workspace.target.join("ebpf").join(&tools.compiler.release);
    let mut command = process::cargo();
    command
        .current_dir(&workspace.root)
        .args(["build", "--package", "gateway-ebpf", "--release", "--locked", "--quiet"])
        .args(["--features", object.features, "--bin", object.program])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&dir);
    for name in ["RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "RUSTDOCFLAGS"]
    {
        command.env_remove(name);
    }
    command
        .env("RUSTC", &tools.compiler.rustc)
        // aya-ebpf needs unstable features; a stable cargo also takes `-Z` only with this.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&tools.linker));
    match tools.compiler.core {
        Core::Precompiled => {}
        Core::Source => {
            command.args(["-Z", "build-std=core"]);
        }
    }
    process::run(&mut command)
        .with_context(|| format!("building {} with {}", object.name, tools.compiler))?;

    let built = dir.join(TARGET).join("release").join(object.program);
    let kept = workspace.object(object.name);
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    write_if_changed(&kept, &bytes)?;
    write_if_changed(&kept.with_extension("hash"), hash.as_bytes())?;
    println!("{}", kept.display());
    Ok(())
}

/// The compiler's flags. It passes the instruction set and its features on to the linker by itself.
fn flags(linker: &Path) -> String {
    [
        format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
        format!("-Clinker={}", linker.display()),
        // Debug info and `--btf` together name the fields in bpftool.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Version 3 of the instruction set, with 32-bit registers and atomics: Linux 5.12 and later.
        "-Ctarget-cpu=v3".to_owned(),
        // A header field is one load: the kernel allows unaligned packet access where the machine does.
        "-Ctarget-feature=+allows-misaligned-mem-access".to_owned(),
    ]
    .join("\u{1f}")
}

/// Leaves an equal file alone: a new time stamp would make cargo rebuild the agent for nothing.
fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
