//! `cargo xtask check`: everything that a change must pass. All cheap checks run before the suites, and each runs even
//! when one before it failed, so that one run shows everything.

use anyhow::{Result, bail};

use crate::{
    build_ebpf, deny, process,
    setup::{self, Purpose},
    test, tidy,
    workspace::Workspace,
};

type Check = fn(&Workspace) -> Result<()>;

/// Runs every check, and then every suite.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    setup::install(Purpose::Build)?;
    build_ebpf::run(workspace, false)?;
    let checks: [(&str, Check); 5] = [
        ("format", format),
        ("clippy", clippy),
        ("clippy of the kernel programs", clippy_kernel),
        ("tidy", tidy::run),
        ("deny", deny::run),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        eprintln!("xtask: {name}");
        if let Err(error) = check(workspace) {
            eprintln!("error: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}; the suites were not run", failed.join(", "));
    }
    test::run(workspace, false, &[])
}

fn format(workspace: &Workspace) -> Result<()> {
    process::run(process::cargo().current_dir(&workspace.root).args(["fmt", "--all", "--check"]))
}

fn clippy(workspace: &Workspace) -> Result<()> {
    let mut command = process::cargo();
    command.current_dir(&workspace.root).args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--quiet",
    ]);
    process::run(command.args(["--", "--deny", "warnings"]))
}

/// The compiler that has a core library for the BPF target often has no clippy, so the programs are checked as if they
/// were built for this machine: aya-ebpf compiles for it. A program without the standard library cannot unwind.
fn clippy_kernel(workspace: &Workspace) -> Result<()> {
    let mut command = process::cargo();
    command
        .current_dir(&workspace.root)
        .env("CARGO_PROFILE_DEV_PANIC", "abort")
        .args([
            "clippy",
            "--package",
            "gateway-ebpf",
            "--features",
            "kernel",
            "--bins",
            "--locked",
            "--quiet",
        ])
        .arg("--target-dir")
        // A profile of its own in the common folder would make cargo rebuild everything back and forth.
        .arg(workspace.target.join("clippy-kernel"));
    process::run(command.args(["--", "--deny", "warnings"]))
}
