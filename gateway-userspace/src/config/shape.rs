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

/// The pattern of a duration, as in the Gateway API (GEP-2257): one to four numbers of at most five digits, each
/// with its unit.
pub const DURATION_PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

/// Reads a duration of [`DURATION_PATTERN`].
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    let mut n_parts = 0;
    while !rest.is_empty() {
        let n_digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, after) = rest.split_at_checked(n_digits)?;
        if !(1..=5).contains(&n_digits) || n_parts == 4 {
            return None;
        }
        let n: u64 = digits.parse().ok()?;
        let (unit, after) = if let Some(after) = after.strip_prefix("ms") {
            (Duration::from_millis(n), after)
        } else if let Some(after) = after.strip_prefix('s') {
            (Duration::from_secs(n), after)
        } else if let Some(after) = after.strip_prefix('m') {
            (Duration::from_secs(n * 60), after)
        } else {
            (Duration::from_secs(n * 3_600), after.strip_prefix('h')?)
        };
        total += unit;
        rest = after;
        n_parts += 1;
    }
    (n_parts > 0).then_some(total)
}

/// Writes a duration so that [`duration`] reads it: in the largest unit that divides it.
pub fn write_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        "0s".to_owned()
    } else if millis.is_multiple_of(3_600_000) {
        format!("{}h", millis / 3_600_000)
    } else if millis.is_multiple_of(60_000) {
        format!("{}m", millis / 60_000)
    } else if millis.is_multiple_of(1_000) {
        format!("{}s", millis / 1_000)
    } else {
        format!("{millis}ms")
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
    fn durations_need_units() {
        let check =
            |text: &str, ms: Option<u64>| assert_eq!(duration(text), ms.map(Duration::from_millis), "{text}");
        check("30s", Some(30_000));
        check("1m30s", Some(90_000));
        check("250ms", Some(250));
        check("1h1m1s1ms", Some(3_661_001));
        check("0s", Some(0));
        check("30", None);
        check("", None);
        check("s", None);
        check("-1s", None);
        check("1.5s", None);
        check("1d", None);
        check("100000s", None);
        check("1s1s1s1s1s", None);
        check("1 s", None);
    }

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
        fn written_durations_read_back(ms in 0_u64..99_999) {
            let written = Duration::from_millis(ms);
            prop_assert_eq!(duration(&write_duration(written)), Some(written));
        }

        #[test]
        fn any_words_have_a_symmetric_distance(a in ".{0,12}", b in ".{0,12}") {
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &a), 0);
        }
    }
}
