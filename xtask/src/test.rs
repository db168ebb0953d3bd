//! `cargo xtask test`: runs every suite, and adds up what the runners say.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build_ebpf, go, kernel_matrix, process,
    setup::{self, Purpose},
    workspace::Workspace,
};

/// Runs the suites whose tests match one of `filters`, or all; as root with everything privileged.
pub(crate) fn run(workspace: &Workspace, quick: bool, filters: &[String]) -> Result<()> {
    setup::install(Purpose::Test)?;
    build_ebpf::run(workspace, false)?;
    build_ebpf::run_with_log(workspace, build_ebpf::WITH_LOG)?;
    eprintln!("xtask: building the agent and the suites");
    build_programs(workspace)?;
    let mut tally = Tally::default();
    suites(workspace, filters, &mut tally)?;
    if !quick {
        kernel_matrix::all(workspace, &[], &mut tally)?;
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 {
        bail!("{} tests failed", tally.failed);
    }
    Ok(())
}

/// The suites start these programs, and cargo does not build a program for the tests of another crate.
fn build_programs(workspace: &Workspace) -> Result<()> {
    process::run(
        process::cargo()
            .current_dir(&workspace.root)
            .args(["build", "--locked", "--quiet", "--bins"])
            .args(["--package", "gateway-userspace", "--package", "gateway-tests"]),
    )
}

/// Runs what `cargo test` runs. The kernel crate's library is among it, built for the host.
fn suites(workspace: &Workspace, filters: &[String], tally: &mut Tally) -> Result<()> {
    let mut command = process::cargo();
    command
        .current_dir(&workspace.root)
        .args(["test", "--workspace", "--locked", "--no-fail-fast", "--"])
        .args(filters)
        .env("SLUICE_BIN", workspace.binary("debug", "sluice"));
    match go::ensure(workspace) {
        Ok(programs) => drop(command.envs(programs)),
        // Tests that are all wanted say what they miss.
        Err(error) if !process::is_root() => eprintln!("xtask: no suites of gRPC and no h2spec: {error:#}"),
        Err(error) => return Err(error),
    }
    let mut mount = None;
    if process::is_root() {
        command.env("SLUICE_TESTS", "all");
        mount = BpfMount::make()?;
    } else {
        eprintln!("xtask: not root: tests that need privilege are skipped");
    }
    let outcome = counted(&mut command, tally);
    drop(mount);
    outcome
}

/// Runs a command, shows what it prints and counts the results of its test runners.
fn counted(command: &mut Command, tally: &mut Tally) -> Result<()> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let output = child.stdout.take().context("the runner has no output")?;
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read what the runner prints")?;
        println!("{line}");
        tally.count(&line);
    }
    let status = child.wait().context("cannot wait for the runner")?;
    // A suite that does not compile, or that dies, reports no result: it must not look like success.
    if !status.success() && tally.failed == 0 {
        tally.failed += 1;
    }
    Ok(())
}

/// How many tests ended how.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Tally {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
}

impl Tally {
    /// Adds one line of the kernel smoke test, as in `ok xdp_balance: ...`.
    pub(crate) fn count_program(&mut self, line: &str) {
        self.passed += u64::from(line.starts_with("ok "));
        self.failed += u64::from(line.starts_with("FAILED "));
    }

    /// Adds the closing line of one suite, as in `test result: ok. 5 passed; 0 failed; 0 ignored; ...`.
    pub(crate) fn count(&mut self, line: &str) {
        let Some(results) = line.strip_prefix("test result:") else { return };
        let number = |word: &str| {
            results
                .split([';', '.'])
                .find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<u64>().ok())
        };
        self.passed += number("passed").unwrap_or(0);
        self.failed += number("failed").unwrap_or(0);
    }
}

/// The file system that pinned maps live in, mounted for as long as the suites run where the machine has none.
struct BpfMount;

impl BpfMount {
    const DIR: &'static str = "/sys/fs/bpf";

    fn make() -> Result<Option<Self>> {
        if process::is_mounted(Path::new(Self::DIR), "bpf") {
            return Ok(None);
        }
        eprintln!("xtask: mounting a bpf file system on {} for the suites", Self::DIR);
        process::run(Command::new("mount").args(["-t", "bpf", "bpf", Self::DIR]))?;
        Ok(Some(Self))
    }
}

impl Drop for BpfMount {
    fn drop(&mut self) {
        if let Err(error) = process::run(Command::new("umount").arg(Self::DIR)) {
            eprintln!("xtask: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(lines: &[&str], passed: u64, failed: u64) {
        let mut tally = Tally::default();
        for line in lines {
            tally.count(line);
        }
        assert_eq!(tally, Tally { passed, failed });
    }

    #[test]
    fn results_of_all_suites_are_added_up() {
        check(
            &[
                "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.06s",
                "test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.06s",
            ],
            9,
            1,
        );
    }

    #[test]
    fn programs_of_the_smoke_test_count() {
        let mut tally = Tally::default();
        for line in ["ok xdp_balance: native XDP", "FAILED sk_lookup: the verifier refuses it", "6.1.0-42"] {
            tally.count_program(line);
        }
        assert_eq!(tally, Tally { passed: 1, failed: 1 });
    }

    #[test]
    fn other_lines_do_not_count() {
        check(&["test something ... ok", "running 5 tests", "", "5 passed; 3 failed"], 0, 0);
    }
}
