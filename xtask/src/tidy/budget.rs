//! How long files and functions may be, how files begin, what they are called, and how documentation ends.

use super::{
    Fault,
    source::{Source, closing},
};

/// Lines of a file without its tests.
const FILE_LINES: usize = 500;

/// Lines of code of a function.
const FUNCTION_LINES: usize = 70;

/// Files that may be longer, and functions (`path: name`) that may be, each with its reason.
const EXCEPTIONS: [(&str, &str); 0] = [];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 12] = [
    "common",
    "const",
    "constants",
    "consts",
    "helper",
    "helpers",
    "misc",
    "traits",
    "type",
    "types",
    "util",
    "utils",
];

/// Checks one file.
pub(crate) fn check(source: &Source, faults: &mut Vec<Fault>) {
    let path = source.path.as_str();
    if !source.text.starts_with("//!") {
        let remedy = "begin with `//!` and one sentence: what would be missing without this file";
        faults.push(Fault::new(path, 1, "no sentence about the file".to_owned(), remedy));
    }
    // The first folder is the crate, whose name is fixed.
    for part in path.split('/').skip(1) {
        let name = part.strip_suffix(".rs").unwrap_or(part);
        if EMPTY_NAMES.contains(&name) {
            let what = format!("`{name}` says nothing about what is inside");
            faults.push(Fault::new(
                path,
                1,
                what,
                "name it for the thing it holds, or move its parts to their users",
            ));
        }
    }
    let n_lines = source.n_lines();
    if n_lines > FILE_LINES && !is_excepted(path) {
        let what = format!("{n_lines} lines without tests, {FILE_LINES} are allowed");
        faults.push(Fault::new(path, 1, what, "split it where one part does not need to know the other"));
    }
    functions(source, faults);
    documentation(source, faults);
}

fn is_excepted(thing: &str) -> bool {
    EXCEPTIONS.iter().any(|(excepted, _)| *excepted == thing)
}

fn functions(source: &Source, faults: &mut Vec<Fault>) {
    for at in source.words("fn") {
        let rest = source.code.get(at..).unwrap_or_default();
        let Some(open) = body(rest) else { continue };
        let end = closing(&source.code, at + open);
        let text = source.code.get(at..end).unwrap_or_default();
        let n_lines = text.lines().filter(|line| !line.trim().is_empty()).count();
        let name: String = rest
            .trim_start_matches("fn")
            .trim_start()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        if n_lines > FUNCTION_LINES && !is_excepted(&format!("{}: {name}", source.path)) {
            let what = format!("`{name}` has {n_lines} lines, {FUNCTION_LINES} are allowed");
            let remedy = "split it along \"decide here, compute there\"";
            faults.push(Fault::new(&source.path, source.line_of(at), what, remedy));
        }
    }
}

/// Where the body of a function begins; none for a declaration or a type.
fn body(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.checked_sub(1)?,
            b'{' if depth == 0 => return Some(at),
            b';' | b',' | b'=' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// A block of documentation ends with a full stop: what does not is a heading that was meant as a sentence.
fn documentation(source: &Source, faults: &mut Vec<Fault>) {
    let lines: Vec<&str> = source.comments.lines().map(str::trim_start).collect();
    for (index, line) in lines.iter().enumerate() {
        let Some(kind) = ["///", "//!"].into_iter().find(|kind| line.starts_with(kind)) else { continue };
        let goes_on = lines.get(index + 1).is_some_and(|next| next.starts_with(kind));
        if goes_on || source.is_test(index + 1) {
            continue;
        }
        let text = line.trim_start_matches(kind).trim();
        let is_prose =
            !text.is_empty() && !["```", "|", "- ", "* ", "["].iter().any(|start| text.starts_with(start));
        if is_prose && !text.ends_with(['.', '!', '?', ':']) && !text.ends_with(".)") && !text.ends_with(".`")
        {
            let remedy = "end the sentence with a full stop";
            faults.push(Fault::new(
                &source.path,
                index + 1,
                "documentation without an end".to_owned(),
                remedy,
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_file(path: &str, text: &str, expected: &[&str]) {
        let mut faults = Vec::new();
        check(&Source::new(path, text), &mut faults);
        let found: Vec<String> =
            faults.iter().map(|fault| format!("{}: {}", fault.line, fault.what)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_file_says_what_it_is_for() {
        check_file("a/src/b.rs", "use a;\n", &["1: no sentence about the file"]);
        check_file("a/src/b.rs", "//! It is for this.\n", &[]);
    }

    #[test]
    fn empty_names_are_refused() {
        check_file("a/src/utils.rs", "//! A.\n", &["1: `utils` says nothing about what is inside"]);
        check_file("a/src/types/b.rs", "//! A.\n", &["1: `types` says nothing about what is inside"]);
        check_file("common/src/b.rs", "//! A.\n", &[]);
    }

    #[test]
    fn long_files_are_refused_but_tests_do_not_count() {
        let long = "//! A.\n".to_owned() + &"const A: u8 = 0;\n".repeat(500);
        check_file("a/src/b.rs", &long, &["1: 501 lines without tests, 500 are allowed"]);
        let tested =
            format!("//! A.\n#[cfg(test)]\nmod tests {{\n{}}}\n", "    const A: u8 = 0;\n".repeat(500));
        check_file("a/src/b.rs", &tested, &[]);
    }

    #[test]
    fn long_functions_are_refused_but_comments_do_not_count() {
        let function = |line: &str| format!("//! A.\nfn long() {{\n{}}}\n", line.repeat(69));
        check_file("a/src/b.rs", &function("    a();\n"), &["2: `long` has 71 lines, 70 are allowed"]);
        check_file("a/src/b.rs", &function("    // Why.\n"), &[]);
    }

    #[test]
    fn types_of_functions_have_no_body() {
        check_file("a/src/b.rs", "//! A.\nstruct A { f: fn(u8) -> u8, g: u8 }\ntrait B { fn c(); }\n", &[]);
    }

    #[test]
    fn documentation_ends_with_a_full_stop() {
        check_file(
            "a/src/b.rs",
            "//! A.\n/// One\n/// two\nfn a() {}\n",
            &["3: documentation without an end"],
        );
        check_file("a/src/b.rs", "//! A.\n/// - item\nfn a() {}\n/// ```\nfn b() {}\n", &[]);
    }
}
