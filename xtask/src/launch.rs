//! Builds the agent for speed and hands over to the demo or the benchmark, which live with the test harness.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::{ebpf, setup, shell};

/// Runs the demo.
pub(crate) fn demo(keep: bool) -> Result<()> {
    setup::ensure(&[setup::Set::Build, setup::Set::Test])?;
    ebpf::build(false)?;
    let arguments = if keep { vec!["--keep".to_owned()] } else { Vec::new() };
    launch("sluice-demo", &arguments)
}

/// Runs the benchmark.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    setup::ensure(&[setup::Set::Build, setup::Set::Test, setup::Set::Bench])?;
    ebpf::build(true)?;
    launch("sluice-bench", arguments)
}

fn launch(binary: &str, arguments: &[String]) -> Result<()> {
    shell::say("building the agent (release)");
    shell::run(
        Command::new("cargo")
            .current_dir(shell::root())
            .args(["build", "--quiet", "--release", "--locked"])
            .args(["--package", "gateway-userspace", "--package", "gateway-tests", "--bins"]),
    )?;
    let folder: PathBuf = shell::target().join("release");
    shell::run(Command::new(folder.join(binary)).args(arguments).env("SLUICE_BIN", folder.join("sluice")))
}
