//! What the verifier of each kernel goes through for each program, against the record of it: a program that grows beyond
//! its record comes nearer to the verifier's limit of a million instructions, which one kernel or another then reaches.

use std::{collections::BTreeMap, env, fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{test::Tally, workspace::Workspace};

/// Percent above the record that pass.
const MARGIN: u64 = 10;

/// A kernel, and a program.
type Key = (String, String);

/// The record, and what was found in this run.
#[derive(Debug)]
pub(crate) struct Record {
    path: PathBuf,
    known: BTreeMap<Key, u64>,
    found: BTreeMap<Key, u64>,
}

impl Record {
    /// The record of the repository.
    pub(crate) fn read(workspace: &Workspace) -> Self {
        let path = workspace.root.join("tests/testdata/verifier.txt");
        let known = parse(&fs::read_to_string(&path).unwrap_or_default());
        Self { path, known, found: BTreeMap::new() }
    }

    /// Takes a line of the smoke test, as in `verified xdp_balance 123456`.
    pub(crate) fn note(&mut self, kernel: &str, line: &str) {
        let Some(rest) = line.strip_prefix("verified ") else { return };
        if let Some((program, n)) = rest.split_once(' ')
            && let Ok(n) = n.trim().parse()
        {
            self.found.insert((kernel.to_owned(), program.to_owned()), n);
        }
    }

    /// Holds what was found against the record, or rewrites it when `UPDATE_EXPECT` asks for that.
    pub(crate) fn close(&self, tally: &mut Tally) -> Result<()> {
        if env::var_os("UPDATE_EXPECT").is_some() {
            let mut known = self.known.clone();
            known.retain(|(kernel, _), _| !self.found.keys().any(|(found, _)| found == kernel));
            known.extend(self.found.clone());
            return fs::write(&self.path, render(&known))
                .with_context(|| format!("cannot write {}", self.path.display()));
        }
        let faults = faults(&self.known, &self.found);
        tally.passed += u64::try_from(self.found.len().saturating_sub(faults.len())).unwrap_or(0);
        tally.failed += u64::try_from(faults.len()).unwrap_or(u64::MAX);
        for fault in faults {
            println!("FAILED {fault}; if that is meant, UPDATE_EXPECT=1 cargo xtask kernel-matrix");
        }
        Ok(())
    }
}

fn faults(known: &BTreeMap<Key, u64>, found: &BTreeMap<Key, u64>) -> Vec<String> {
    let check = |((kernel, program), n): (&Key, &u64)| {
        let Some(recorded) = known.get(&(kernel.clone(), program.clone())) else {
            return Some(format!("the verifier of Linux {kernel} has no record of {program}"));
        };
        let too_many = *n > recorded.saturating_mul(100 + MARGIN) / 100;
        too_many.then(|| {
            format!(
                "the verifier of Linux {kernel} goes through {n} instructions of {program}: {recorded} are recorded"
            )
        })
    };
    // A program that has another name now, or that nobody loads, would have no bound any more.
    let is_seen = |kernel: &str| found.keys().any(|(seen, _)| seen == kernel);
    let missing = |key: &&Key| is_seen(&key.0) && !found.contains_key(*key);
    let missing = known.keys().filter(missing).map(|(kernel, program)| {
        format!("the verifier of Linux {kernel} tells nothing of {program}, of which there is a record")
    });
    found.iter().filter_map(check).chain(missing).collect()
}

const HEAD: &str = "\
# Instructions that the verifier goes through for each program, by kernel; its limit is 1000000.
# `cargo xtask kernel-matrix` fails above a tenth more; UPDATE_EXPECT=1 writes it anew.
";

fn render(known: &BTreeMap<Key, u64>) -> String {
    let line = |((kernel, program), n): (&Key, &u64)| format!("{kernel} {program} {n}\n");
    known.iter().map(line).fold(HEAD.to_owned(), |text, line| text + &line)
}

fn parse(text: &str) -> BTreeMap<Key, u64> {
    let entry = |line: &str| {
        let mut words = line.split(' ');
        let key = (words.next()?.to_owned(), words.next()?.to_owned());
        Some((key, words.next()?.parse().ok()?))
    };
    text.lines().filter(|line| !line.starts_with('#')).filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(n: u64) -> BTreeMap<Key, u64> {
        BTreeMap::from([(("6.1".to_owned(), "xdp".to_owned()), n)])
    }

    #[test]
    fn a_tenth_more_passes_and_no_more() {
        assert!(faults(&one(1_000), &one(1_100)).is_empty());
        assert!(faults(&one(1_000), &one(7)).is_empty());
        assert_eq!(faults(&one(1_000), &one(1_101)).len(), 1);
    }

    #[test]
    fn a_program_without_a_record_is_a_fault() {
        assert_eq!(faults(&BTreeMap::new(), &one(1)).len(), 1);
    }

    #[test]
    fn a_record_without_a_program_is_a_fault_where_the_kernel_was_asked() {
        let two = || one(1).into_iter().chain([(("6.1".to_owned(), "sweep".to_owned()), 1)]).collect();
        assert_eq!(faults(&two(), &one(1)).len(), 1);
        assert!(faults(&two(), &two()).is_empty());
        assert!(faults(&one(1), &BTreeMap::new()).is_empty(), "another kernel, or one that does not tell");
    }

    #[test]
    fn the_record_is_read_as_it_is_written() {
        assert_eq!(parse(&render(&one(5))), one(5));
    }
}
