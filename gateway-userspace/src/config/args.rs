//! The command line and the environment.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Everything `sluice` can be asked for.
#[derive(Debug, Parser)]
#[command(
    name = "sluice",
    version,
    about = "An eBPF-accelerated sidecarless proxy",
    arg_required_else_help = true
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a configuration file until SIGTERM; SIGHUP and changes of the file are taken while it runs.
    Agent {
        /// The configuration file.
        #[arg(long, env = "SLUICE_CONFIG")]
        config: PathBuf,
    },
    /// Put this host back: remove links, pinned maps and local routes; safe to repeat.
    Cleanup {
        /// The BPF file system.
        #[arg(long, default_value = "/sys/fs/bpf")]
        bpffs: PathBuf,
    },
    /// Check a configuration file: prints every fault at once and exits with 2, or what would be served and exits
    /// with 0.
    Check {
        /// The configuration file.
        #[arg(env = "SLUICE_CONFIG")]
        file: PathBuf,
    },
    /// Print the JSON schema of the configuration file (draft 2020-12).
    ConfigSchema,
    /// Print the reference of the configuration file in Markdown.
    ConfigReference,
}

/// Reads the command line; prints help or what is wrong with it, and exits, by itself.
pub fn parse() -> Args {
    Args::parse()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
