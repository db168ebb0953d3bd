//! Runs every suite, and adds up what the runners say.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{ebpf, setup, shell};

#[derive(Debug, Default)]
struct Tally {
    passed: u64,
    failed: u64,
}

/// Runs the suites; as root with everything privileged, and then nothing is skipped.
pub(crate) fn test(quick: bool, filters: &[String]) -> Result<()> {
    setup::ensure(&[setup::Set::Build, setup::Set::Test])?;
    ebpf::build(true)?;
    shell::say("building the agent and the suites");
    shell::run(cargo().args(["build", "--quiet", "--locked", "--bins"]))?;
    let mut tally = Tally::default();
    let mut test = cargo();
    test.args(["test", "--locked", "--no-fail-fast", "--workspace", "--exclude", "xtask", "--"]);
    // Suites that measure time share two cores badly with each other.
    test.args(filters).env("SLUICE_BIN", shell::target().join("debug/sluice"));
    if shell::is_root() {
        test.env("SLUICE_TESTS", "all");
    }
    let suites = counted(&mut test, &mut tally);
    let mut own = cargo();
    let workshop =
        counted(own.args(["test", "--locked", "--package", "xtask", "--"]).args(filters), &mut tally);
    let _ = quick;
    println!("{} passed, {} failed", tally.passed, tally.failed);
    suites.and(workshop)?;
    ensure!(tally.failed == 0, "{} tests failed", tally.failed);
    Ok(())
}

fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(shell::root());
    cargo
}

/// Runs a command, shows what it prints and counts the results of its test runners.
fn counted(command: &mut Command, tally: &mut Tally) -> Result<()> {
    let line = shell::describe(command);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run: {line}"))?;
    let output = child.stdout.take().context("the runner has no output")?;
    for text in BufReader::new(output).lines() {
        let text = text.context("cannot read what the runner prints")?;
        println!("{text}");
        count(&text, tally);
    }
    let status = child.wait().with_context(|| format!("cannot wait for: {line}"))?;
    ensure!(status.success(), "failed ({status}): {line}");
    Ok(())
}

fn count(line: &str, tally: &mut Tally) {
    let Some(results) = line.strip_prefix("test result:") else { return };
    let number = |word: &str| {
        let part = results.split([';', '.']).find(|part| part.trim_end().ends_with(word))?;
        part.trim().strip_suffix(word)?.trim().parse::<u64>().ok()
    };
    tally.passed += number("passed").unwrap_or(0);
    tally.failed += number("failed").unwrap_or(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up() {
        let mut tally = Tally::default();
        count(
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.06s",
            &mut tally,
        );
        count(
            "test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.06s",
            &mut tally,
        );
        count("test something ... ok", &mut tally);
        assert_eq!((tally.passed, tally.failed), (9, 1));
    }
}
