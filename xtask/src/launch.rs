//! `cargo xtask demo` and `cargo xtask bench`: builds the agent for speed and hands over to programs of the test crate,
//! which have the harness.

use anyhow::Result;

use crate::{
    build_ebpf, process,
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
    launch(workspace, "sluice-bench", arguments)
}

fn launch(workspace: &Workspace, program: &str, arguments: &[String]) -> Result<()> {
    eprintln!("xtask: building the agent (release)");
    process::run(
        process::cargo()
            .current_dir(&workspace.root)
            .args(["build", "--release", "--locked", "--quiet", "--bins"])
            .args(["--package", "gateway-userspace", "--package", "gateway-tests"]),
    )?;
    let binary = |name| workspace.binary("release", name);
    process::run(
        std::process::Command::new(binary(program))
            .args(arguments)
            .env("SLUICE_BIN", binary("sluice"))
            .env("SLUICE_BPF_OBJECT", workspace.object(build_ebpf::OBJECT)),
    )
}
