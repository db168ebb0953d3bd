//! The `sluice` binary: reads the command line, calls the library, maps outcomes to exit codes.

use std::{io::Write, path::Path, process::ExitCode};

use gateway_userspace::{
    app::{self, Ended},
    config::{
        args::{self, Command},
        fault::Faults,
        reference::markdown,
        schema::json_schema,
    },
    source::file::{self, Loaded},
};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            // The chain of causes on one line; a backtrace helps nobody who runs this.
            eprintln!("sluice: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    match args::parse().command {
        Command::Agent { config } => agent(&config),
        Command::Cleanup { bpffs } => cleanup(&bpffs),
        Command::Check { file } => check(&file),
        Command::ConfigSchema => print(&format!("{:#}\n", json_schema())),
        Command::ConfigReference => print(&markdown()),
    }
}

/// Exit code of a refused configuration, like that of a refused command line.
const REFUSED: u8 = 2;

fn agent(path: &Path) -> anyhow::Result<ExitCode> {
    match app::run(path)? {
        Ended::Drained => Ok(ExitCode::SUCCESS),
        Ended::Refused(faults) => refuse(&faults, path),
    }
}

fn cleanup(bpffs: &Path) -> anyhow::Result<ExitCode> {
    let removed = app::cleanup(bpffs)?;
    if removed.is_empty() {
        return print("nothing to remove\n");
    }
    let lines: Vec<String> = removed.iter().map(|line| format!("removed {line}\n")).collect();
    print(&lines.concat())
}

fn refuse(faults: &Faults, path: &Path) -> anyhow::Result<ExitCode> {
    let n = faults.count();
    let plural = if n == 1 { "" } else { "s" };
    writeln!(std::io::stderr().lock(), "{faults}\n{n} fault{plural} in {}", path.display())?;
    Ok(ExitCode::from(REFUSED))
}

fn check(path: &Path) -> anyhow::Result<ExitCode> {
    match file::load(path) {
        Ok(Loaded { config, snapshot, warnings }) => {
            let mut stderr = std::io::stderr().lock();
            for warning in &warnings {
                writeln!(stderr, "warning: {warning}")?;
            }
            print(&format!("{}\n", gateway_userspace::source::summary::of(&config, &snapshot)))
        }
        Err(faults) => refuse(&faults, path),
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
