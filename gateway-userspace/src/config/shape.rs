//! Shapes: what may be written where. One description serves the reader, the JSON schema and the reference page, so
//! that they cannot disagree.

use std::time::Duration;

/// A mapping with known keys.
#[derive(Debug)]
pub struct Table {
    /// What it describes, unique among tables; names its definition in the schema.
    pub name: &'static str,
    /// One paragraph for the reference.
    pub doc: &'static str,
    /// The keys it may have.
    pub fields: &'static [Field],
    /// Keys of which exactly one is written; empty when that is not asked.
    pub one_of: &'static [&'static str],
}

/// One key of a table.
#[derive(Debug)]
pub struct Field {
    /// The key.
    pub key: &'static str,
    /// What its value may be.
    pub shape: Shape,
    /// What its absence means.
    pub presence: Presence,
    /// One sentence for the reference.
    pub doc: &'static str,
}

/// What the absence of a key means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Presence {
    /// A fault; the text is an example of what to write.
    Required(&'static str),
    /// The same as this value, written out.
    Default(&'static str),
    /// Something that no value says; the text says what.
    Absent(&'static str),
}

/// What a value may be.
#[derive(Debug)]
pub enum Shape {
    /// A mapping with known keys.
    Table(&'static Table),
    /// A sequence.
    List(&'static List),
    /// Text of a certain form.
    Text(&'static Text),
    /// A whole number within inclusive bounds.
    Integer {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// One of these words.
    Word(&'static [&'static str]),
    /// A length of time with its unit, within inclusive bounds.
    Duration {
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
    },
}

/// A sequence.
#[derive(Debug)]
pub struct List {
    /// What each item is.
    pub item: Shape,
    /// Fewest items.
    pub min: usize,
    /// Most items.
    pub max: usize,
}

/// Text of a certain form.
#[derive(Debug)]
pub struct Text {
    /// What it is, with its article: "a host name".
    pub what: &'static str,
    /// An example that is valid.
    pub example: &'static str,
    /// A regular expression for the schema that every valid text matches, and most others do not.
    pub pattern: &'static str,
    /// Whether a bare number is text, too.
    pub number: bool,
}

impl Table {
    /// The field of that key.
    pub fn field(&self, key: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.key == key)
    }
}

/// The word of `known` that `written` was probably meant to be: at most a third of its letters differ.
pub fn meant<'k>(written: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let lower = written.to_lowercase();
    let bound = 1.max(written.chars().count() / 3);
    known
        .map(|word| (distance(&lower, &word.to_lowercase()), word))
        .filter(|(distance, _)| *distance <= bound)
        .min()
        .map(|(_, word)| word)
}

/// Insertions, deletions, replacements and swaps of neighbors between two words (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    if b.len() > MAX_WORD || a.chars().count() > MAX_WORD {
        return usize::MAX;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    let mut last = None;
    for (row, x) in a.chars().enumerate() {
        let mut line = vec![row + 1];
        for (column, &y) in b.iter().enumerate() {
            let at = |line: &[usize], column: usize| line.get(column).copied().unwrap_or(usize::MAX - 1);
            let mut cost = (at(&above, column) + usize::from(x != y))
                .min(at(&above, column + 1) + 1)
                .min(at(&line, column) + 1);
            let swapped = column > 0 && b.get(column - 1) == Some(&x) && last == Some(y);
            if swapped && row > 0 {
                cost = cost.min(at(&before, column - 1) + 1);
            }
            line.push(cost);
        }
        before = std::mem::replace(&mut above, line);
        last = Some(x);
    }
    above.last().copied().unwrap_or(usize::MAX)
}

/// Letters of a word worth correcting; the longest key has 18.
const MAX_WORD: usize = 40;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_word_is_meant_when_it_is_close() {
        let known = ["hostname", "hostnames", "listeners", "tls"];
        let check = |written, word| assert_eq!(meant(written, known.into_iter()), word, "{written}");
        check("hostnam", Some("hostname"));
        check("hsotname", Some("hostname"));
        check("Listeners", Some("listeners"));
        check("tsl", Some("tls"));
        check("certificates", None);
        check("", None);
    }

    proptest! {
        #[test]
        fn any_words_have_a_symmetric_distance(a in ".{0,12}", b in ".{0,12}") {
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &a), 0);
        }
    }
}
