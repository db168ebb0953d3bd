//! The workshop: one door to everything that builds, checks, tests, shows and measures Sluice.
#![allow(clippy::disallowed_methods, reason = "the workshop reads the environment and starts processes")]

mod ebpf;
mod launch;
mod setup;
mod shell;
mod source_hash;
mod suites;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The command line of the workshop.
#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, check, test, show and measure Sluice")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what building, testing, the demo and the benchmarks need.
    Setup,
    /// Build the kernel object that the agent embeds.
    BuildEbpf {
        /// Build the reference programs of the benchmark as well.
        #[arg(long)]
        reference: bool,
    },
    /// Run every suite.
    Test {
        /// Leave out what takes minutes: the matrix of kernels.
        #[arg(long)]
        quick: bool,
        /// Run only tests whose name contains one of these.
        filters: Vec<String>,
    },
    /// Show the main job in network namespaces.
    Demo {
        /// Leave everything running and say how to look around.
        #[arg(long)]
        keep: bool,
    },
    /// Measure, side by side with the baselines.
    Bench {
        /// Passed on: `l4` or `l7`, `--json`, `--rounds N`, `--quick`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Setup => setup::ensure(&[setup::Set::Build, setup::Set::Test, setup::Set::Bench]),
        Command::BuildEbpf { reference } => ebpf::build(reference),
        Command::Test { quick, filters } => suites::test(quick, &filters),
        Command::Demo { keep } => launch::demo(keep),
        Command::Bench { arguments } => launch::bench(&arguments),
    }
}
