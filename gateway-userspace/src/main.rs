//! The `sluice` binary: reads the command line, calls the library, maps outcomes to exit codes.

use std::{io::Write, path::Path, process::ExitCode};

use gateway_userspace::{
    config::{
        args::{self, Command},
        reference::markdown,
        schema::json_schema,
    },
    source::file::{self, Loaded},
};

fn main() -> anyhow::Result<ExitCode> {
    match args::parse().command {
        Command::Check { file } => check(&file),
        Command::ConfigSchema => print(&format!("{:#}\n", json_schema())),
        Command::ConfigReference => print(&markdown()),
    }
}

/// Exit code of a refused configuration, like that of a refused command line.
const REFUSED: u8 = 2;

fn check(path: &Path) -> anyhow::Result<ExitCode> {
    match file::load(path) {
        Ok(Loaded { config, snapshot, warnings }) => {
            let mut stderr = std::io::stderr().lock();
            for warning in &warnings {
                writeln!(stderr, "warning: {warning}")?;
            }
            print(&format!("{}\n", gateway_userspace::source::summary::of(&config, &snapshot)))
        }
        Err(faults) => {
            let mut stderr = std::io::stderr().lock();
            let n = faults.count();
            writeln!(stderr, "{faults}\n{n} fault{} in {}", if n == 1 { "" } else { "s" }, path.display())?;
            Ok(ExitCode::from(REFUSED))
        }
    }
}

/// Prints to standard output; a reader that went away is no fault of ours.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error.into()),
    }
}
