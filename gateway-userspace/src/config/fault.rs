//! Faults of a configuration: what is wrong, where, and what to write instead; all of them at once.

use std::{cell::RefCell, fmt, path::Path, sync::Arc};

/// One thing wrong with a configuration file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// The file.
    pub file: Arc<Path>,
    /// Line, counted from 1; zero when the fault is about the whole file.
    pub line: u32,
    /// Column in characters, counted from 1; zero when the fault is about the whole file.
    pub column: u32,
    /// Keys and indices from the top to the value, such as `listeners[0].port`; empty at the top.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to write or do instead.
    pub remedy: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", OneLine(&self.path))?;
        }
        write!(f, ": {}; {}", OneLine(&self.message), OneLine(&self.remedy))
    }
}

/// Text that may repeat what stands in the file: shown on one line, without control characters, and bounded.
struct OneLine<'t>(&'t str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars().take(MAX_LETTERS) {
            if letter.is_control() {
                write!(f, "{}", letter.escape_default())?;
            } else {
                write!(f, "{letter}")?;
            }
        }
        if self.0.chars().nth(MAX_LETTERS).is_some() { f.write_str("...") } else { Ok(()) }
    }
}

/// Everything wrong with a configuration, in the order of the file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Faults {
    list: Vec<Fault>,
    n_dropped: usize,
}

impl Faults {
    /// A single fault about a whole file, such as one that cannot be read.
    pub fn of_file(file: &Path, message: String, remedy: String) -> Self {
        let fault = Fault { file: Arc::from(file), line: 0, column: 0, path: String::new(), message, remedy };
        Self { list: vec![fault], n_dropped: 0 }
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The faults that were kept, at most [`MAX_FAULTS`].
    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.list.iter()
    }

    /// How many there were, those beyond the bound included.
    pub fn count(&self) -> usize {
        self.list.len().saturating_add(self.n_dropped)
    }
}

impl<'a> IntoIterator for &'a Faults {
    type Item = &'a Fault;
    type IntoIter = std::slice::Iter<'a, Fault>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (idx, fault) in self.list.iter().enumerate() {
            if idx > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{fault}")?;
        }
        if self.n_dropped > 0 {
            write!(f, "\nand {} more; correct these first", self.n_dropped)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Where faults gather while a file is read.
#[derive(Debug, Default)]
pub struct Collector(RefCell<Faults>);

impl Collector {
    /// Adds one fault; beyond [`MAX_FAULTS`] it is only counted.
    pub fn push(&self, fault: Fault) {
        let mut faults = self.0.borrow_mut();
        if faults.list.len() < MAX_FAULTS {
            faults.list.push(fault);
        } else {
            faults.n_dropped = faults.n_dropped.saturating_add(1);
        }
    }

    /// Whether nothing was found yet.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Everything that was found, by place in the file.
    pub fn finish(self) -> Faults {
        let mut faults = self.0.into_inner();
        faults.list.sort_by(|a, b| (a.line, a.column, &a.path).cmp(&(b.line, b.column, &b.path)));
        faults
    }
}

/// Faults that are kept and printed. Chosen: nobody reads more, and a generated file of 100,000 endpoints can be
/// wrong in every one of them.
pub const MAX_FAULTS: usize = 1_000;

/// Letters of a path, a message or a remedy that are shown. The longest of ours has some 200.
const MAX_LETTERS: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(line: u32, message: &str) -> Fault {
        Fault {
            file: Arc::from(Path::new("f.yaml")),
            line,
            column: 2,
            path: "a[0].b".to_owned(),
            message: message.to_owned(),
            remedy: "write 1".to_owned(),
        }
    }

    #[test]
    fn faults_come_in_the_order_of_the_file() {
        let collector = Collector::default();
        collector.push(fault(7, "late"));
        collector.push(fault(3, "early"));
        let printed = collector.finish().to_string();
        assert_eq!(printed, "f.yaml:3:2: a[0].b: early; write 1\nf.yaml:7:2: a[0].b: late; write 1");
    }

    #[test]
    fn faults_beyond_the_bound_are_counted() {
        let collector = Collector::default();
        for _ in 0..MAX_FAULTS + 5 {
            collector.push(fault(1, "again"));
        }
        let faults = collector.finish();
        assert_eq!(faults.count(), MAX_FAULTS + 5);
        assert_eq!(faults.iter().count(), MAX_FAULTS);
        assert!(faults.to_string().ends_with("and 5 more; correct these first"));
    }

    #[test]
    fn a_fault_stays_on_one_line() {
        let faulty = Fault { path: "a\nb\u{1b}".to_owned(), message: "x".repeat(9_999), ..fault(1, "") };
        let printed = faulty.to_string();
        assert!(printed.starts_with("f.yaml:1:2: a\\nb\\u{1b}: xxx"), "{printed}");
        assert!(printed.ends_with("xxx...; write 1"), "{printed}");
        assert!(printed.len() < 600, "{printed}");
    }

    #[test]
    fn a_fault_of_the_whole_file_has_no_line() {
        let faults = Faults::of_file(Path::new("x"), "cannot be read".to_owned(), "create it".to_owned());
        assert_eq!(faults.to_string(), "x: cannot be read; create it");
    }
}
