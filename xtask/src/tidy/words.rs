//! Words that must not stand in the repository: open ends, leftovers of debugging, and paths of one machine.

use super::{Fault, source::Source};

/// Open ends in comments, and what stands for them. Written in two parts, so that this file does not name them.
const OPEN_ENDS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Macros that are left behind.
const LEFTOVERS: [&str; 3] = ["dbg!", "todo!", "unimplemented!"];

/// Folders of one machine, in two parts for the same reason.
const MACHINE_PATHS: [&str; 3] = [concat!("/wo", "rk/"), concat!("/tmp", "/w/"), concat!("/ho", "me/")];

/// Checks the words of a Rust file.
pub(crate) fn check(source: &Source, faults: &mut Vec<Fault>) {
    for (index, line) in source.comments.lines().enumerate() {
        for word in OPEN_ENDS {
            if line.split(|c: char| !c.is_ascii_alphanumeric()).any(|part| part == word) {
                let what = format!("an open end: {word}");
                let remedy = "finish it, or write the limit into the reference where a user meets it";
                faults.push(Fault::new(&source.path, index + 1, what, remedy));
            }
        }
    }
    for name in LEFTOVERS {
        let word = name.trim_end_matches('!');
        for at in source.words(word) {
            if source.code.get(at + word.len()..).is_some_and(|rest| rest.starts_with('!')) {
                let what = format!("`{name}` is left behind");
                faults.push(Fault::new(&source.path, source.line_of(at), what, "remove it"));
            }
        }
    }
}

/// Checks the words of any text, code or not.
pub(crate) fn check_text(path: &str, text: &str, faults: &mut Vec<Fault>) {
    for (index, line) in text.lines().enumerate() {
        for machine in MACHINE_PATHS {
            if line.contains(machine) {
                let what = format!("a path of one machine: {machine}");
                faults.push(Fault::new(path, index + 1, what, "say where it is on every machine"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_file(text: &str, expected: &[&str]) {
        let mut faults = Vec::new();
        check(&Source::new("a/src/b.rs", text), &mut faults);
        check_text("a/src/b.rs", text, &mut faults);
        let found: Vec<String> =
            faults.iter().map(|fault| format!("{}: {}", fault.line, fault.what)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn open_ends_are_found_in_comments_only() {
        let word = OPEN_ENDS[0];
        check_file(&format!("// {word}: later\n"), &[&format!("1: an open end: {word}")]);
        check_file(&format!("const {word}: u8 = 0;\n"), &[]);
    }

    #[test]
    fn leftovers_are_found_in_code_only() {
        check_file("fn a() { dbg!(1); }\n", &["1: `dbg!` is left behind"]);
        check_file("// dbg!(1)\n", &[]);
    }

    #[test]
    fn paths_of_one_machine_are_found_everywhere() {
        let path = MACHINE_PATHS[0];
        check_file(
            &format!("const A: &str = \"{path}a\";\n"),
            &[&format!("1: a path of one machine: {path}")],
        );
    }
}
