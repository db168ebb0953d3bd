//! `sluice check` against the corpus: what is wrong is refused with its place and a remedy, what is right is not.
//!
//! A bad file marks the lines that are at fault with `# <-`, by hand. Beside it stands everything that has to be
//! printed about it; `UPDATE_EXPECT=1` writes that anew, for review.

#![cfg(test)]
#![expect(clippy::disallowed_methods, reason = "the environment says whether to write what is expected")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn corpus(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/testdata").join(folder);
    let entries = std::fs::read_dir(&folder).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    files
}

/// Runs the real binary in the folder of the file, so that messages carry its bare name.
fn check(file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice"))
        .arg("check")
        .arg(file.file_name().unwrap())
        .current_dir(file.parent().unwrap())
        .output()
        .unwrap()
}

/// The line of a fault, which has to have the form `FILE:LINE:COLUMN: ...; remedy`, or `FILE: ...; remedy` when it
/// is about the whole file.
fn place(fault: &str, name: &str) -> Option<u32> {
    let rest = fault.strip_prefix(name).unwrap_or_else(|| panic!("{fault}: does not begin with the file"));
    let (_, remedy) = rest.rsplit_once("; ").unwrap_or_else(|| panic!("{fault}: no remedy"));
    assert!(remedy.len() > 5, "{fault}: no remedy");
    let rest = rest.strip_prefix(':').unwrap_or_else(|| panic!("{fault}: no colon"));
    let (line, rest) = rest.split_once(':')?;
    let line = line.parse().ok()?;
    let column: u32 = rest.split_once(':').unwrap().0.parse().unwrap();
    assert!(line > 0 && column > 0, "{fault}: no place");
    Some(line)
}

#[test]
fn every_bad_file_is_refused_with_its_places_and_remedies() {
    let files = corpus("bad");
    assert!(files.len() >= 100, "the corpus has shrunk to {} files", files.len());
    let mut failures = Vec::new();
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let output = check(&file);
        let printed = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}: {printed}");
        assert!(output.stdout.is_empty(), "{name}: faults belong on standard error");
        let mut lines: Vec<&str> = printed.lines().collect();
        let total = lines.pop().unwrap();
        assert!(total.starts_with(&format!("{} fault", lines.len())), "{name}: {total}");
        let places: BTreeSet<u32> = lines.iter().filter_map(|fault| place(fault, &name)).collect();
        let text = String::from_utf8_lossy(&std::fs::read(&file).unwrap()).into_owned();
        let marked: BTreeSet<u32> =
            text.lines().zip(1..).filter(|(line, _)| line.contains("# <-")).map(|(_, n)| n).collect();
        if !marked.is_empty() && marked != places {
            failures.push(format!("{name}: lines {marked:?} are marked, {places:?} reported:\n{printed}"));
        }
        let expected = file.with_extension("expected");
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(&expected, &printed).unwrap();
        }
        let expected = std::fs::read_to_string(&expected).unwrap_or_default();
        if expected != printed {
            failures.push(format!("{name}: expected:\n{expected}printed:\n{printed}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_good_file_is_sound() {
    let files = corpus("good");
    assert!(files.len() >= 5, "the corpus has shrunk to {} files", files.len());
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let output = check(&file);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}: {stderr}");
        assert!(stderr.lines().all(|line| line.starts_with("warning: ")), "{name}: {stderr}");
        assert_eq!(name.starts_with("warning-"), !stderr.is_empty(), "{name}: {stderr}");
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(stdout.contains(" is sound: it serves "), "{stdout}");
    }
}

#[test]
fn a_file_that_is_not_there_is_refused() {
    let output = check(Path::new("/no-such-file.yaml"));
    assert_eq!(output.status.code(), Some(2));
    let printed = String::from_utf8(output.stderr).unwrap();
    assert!(printed.contains("cannot be read"), "{printed}");
    assert_eq!(place(printed.lines().next().unwrap(), "no-such-file.yaml"), None);
}

#[test]
fn the_schema_is_printed_as_json() {
    let output = Command::new(env!("CARGO_BIN_EXE_sluice")).arg("config-schema").output().unwrap();
    assert!(output.status.success());
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
}
