//! The workshop: everything that is done with this workspace, behind one door. One file for each command.
#![allow(
    clippy::disallowed_methods,
    reason = "the bans of clippy.toml are for the product; a workshop reads the environment"
)]

mod agent;
mod apt;
mod build_ebpf;
mod check;
mod deny;
mod fresh_root;
mod go;
mod kernel_matrix;
mod launch;
mod license;
mod process;
mod setup;
mod source_hash;
mod test;
mod tidy;
mod toolchain;
mod verifier;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{setup::Purpose, workspace::Workspace};

/// Builds, tests, checks, demonstrates and measures Sluice, and installs what that needs.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", disable_version_flag = true)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Task {
    /// Install what is missing; the other commands do this by themselves.
    Setup {
        /// What the machine is to be able to do.
        #[arg(long = "for", value_enum, value_delimiter = ',', default_value = "build,test,demo")]
        purposes: Vec<Purpose>,
    },
    /// Compile the kernel programs to the object that the agent embeds.
    BuildEbpf {
        /// Also build the programs that ours are measured against.
        #[arg(long)]
        reference: bool,
        /// Make it a build for debugging, which writes a record for each dropped packet that the agent logs.
        #[arg(long)]
        log: bool,
    },
    /// Build the agent as it is shipped, and say where it is.
    Build,
    /// Make the record of hot code anew that such a build takes.
    Profile,
    /// Run every suite; as root with everything privileged.
    Test {
        /// Leave out what takes minutes: the other kernels.
        #[arg(long)]
        quick: bool,
        /// Run only what runs on this other kernel, under emulation; may be given more than once.
        #[arg(long = "kernel", value_name = "VERSION")]
        kernels: Vec<String>,
        /// Run only tests whose name contains one of these.
        filters: Vec<String>,
    },
    /// Show the main job in network namespaces.
    Demo {
        /// Passed on: `--keep` leaves everything running and says how to look around.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure, side by side with what we are compared with.
    Bench {
        /// Passed on: `l4`, `node`, `l7`, `routes` or `publish`, `--json`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Keep an agent busy while its configuration changes and its endpoints die, and look what is left behind.
    Soak {
        /// Passed on: `--time 1h`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run everything that a change must pass.
    Check,
    /// Check the dependencies against deny.toml.
    Deny,
    /// Check layers, budgets, names and words.
    Tidy,
    /// Run the kernel object on other kernels, under emulation.
    KernelMatrix,
    /// Run the README's commands in a Debian that has nothing but Rust.
    FreshRoot(fresh_root::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    let workspace = Workspace::find()?;
    match task {
        Task::Setup { purposes } => setup::run(&workspace, &purposes),
        Task::BuildEbpf { log: true, .. } => build_ebpf::run_with_log(&workspace, build_ebpf::OBJECT),
        Task::BuildEbpf { reference, .. } => build_ebpf::run(&workspace, reference),
        Task::Build => agent::run(&workspace),
        Task::Profile => agent::record(&workspace),
        Task::Test { kernels, .. } if !kernels.is_empty() => kernel_matrix::run(&workspace, &kernels),
        Task::Test { quick, filters, .. } => test::run(&workspace, quick, &filters),
        Task::Demo { arguments } => launch::demo(&workspace, &arguments),
        Task::Bench { arguments } => launch::bench(&workspace, &arguments),
        Task::Soak { arguments } => launch::soak(&workspace, &arguments),
        Task::Check => check::run(&workspace),
        Task::Deny => deny::run(&workspace),
        Task::Tidy => tidy::run(&workspace),
        Task::KernelMatrix => kernel_matrix::run(&workspace, &[]),
        Task::FreshRoot(options) => fresh_root::run(&workspace, &options),
    }
}
