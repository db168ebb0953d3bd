//! Typed readers over the tree: each takes what its shape allows, and a fault at its place for everything else.

use std::time::Duration;

use crate::{
    config::{
        fault::Collector,
        shape::{self, Field, List, Presence, Shape, Table, Text},
        yaml::{Document, Value, join},
    },
    duration,
    place::{Located, Place},
};

/// Why a text is not what it should be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wrong {
    /// What is wrong, without repeating the text.
    pub message: String,
    /// What to write instead.
    pub remedy: String,
}

impl Wrong {
    /// Both halves of the sentence.
    pub fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: remedy.into() }
    }
}

/// The document being read and the faults found so far.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'d> {
    document: &'d Document,
    collector: &'d Collector,
}

/// A mapping being read by its table. Where it was not written, it has no keys, and defaults follow.
#[derive(Clone, Copy, Debug)]
pub struct View<'d> {
    reader: Reader<'d>,
    table: &'static Table,
    place: Place,
    written: bool,
}

impl<'d> Reader<'d> {
    /// Reads `document`; faults go to `collector`.
    pub const fn new(document: &'d Document, collector: &'d Collector) -> Self {
        Self { document, collector }
    }

    /// The document.
    pub const fn document(&self) -> &'d Document {
        self.document
    }

    /// Reports a fault.
    pub fn fault(&self, place: Place, message: impl Into<String>, remedy: impl Into<String>) {
        self.collector.push(self.document.fault(place, message.into(), remedy.into()));
    }

    /// Reads the mapping at `place`: refuses other values, unknown keys, and missing ones.
    pub fn view(&self, place: Place, table: &'static Table) -> Option<View<'d>> {
        let entries = match self.document.value(place) {
            Value::Map(entries) => entries,
            other @ (Value::Null | Value::Plain(_) | Value::Quoted(_) | Value::List(_)) => {
                let remedy = format!("write a mapping with {}", keys(table));
                self.fault(place, format!("expected a mapping, found {}", describe(other)), remedy);
                return None;
            }
        };
        let has = |key: &str| entries.iter().any(|entry| entry.key == key);
        let path = |key: &str| join(&self.document.path(place), key);
        let mut misspelled = Vec::new();
        for entry in entries.iter().filter(|entry| table.field(&entry.key).is_none()) {
            let absent = table.fields.iter().map(|field| field.key).filter(|key| !has(key));
            let remedy = match shape::meant(&entry.key, absent) {
                Some(meant) => {
                    misspelled.push(meant);
                    format!("write \"{meant}\" instead")
                }
                None => format!("remove it; {} has {}", table.name, keys(table)),
            };
            let message = format!("unknown key {}", quote(&entry.key));
            self.collector.push(self.document.fault_at(entry.mark, path(&entry.key), message, remedy));
        }
        for field in table.fields {
            if let Presence::Required(example) = field.presence
                && !has(field.key)
                && !misspelled.contains(&field.key)
            {
                let path = path(field.key);
                let remedy = format!("write `{}: {example}`", field.key);
                let mark = self.document.mark(place);
                self.collector.push(self.document.fault_at(mark, path, "missing".to_owned(), remedy));
            }
        }
        let n_written = table.one_of.iter().filter(|key| has(key)).count();
        if !table.one_of.is_empty() && n_written != 1 {
            let found = if n_written == 0 { "none" } else { "more than one" };
            let words = table.one_of.join("` or `");
            self.fault(
                place,
                format!("{found} of `{words}` is written"),
                format!("write exactly one of `{words}`"),
            );
        }
        Some(View { reader: *self, table, place, written: true })
    }

    fn wrong_type(&self, place: Place, expected: &str, remedy: String) {
        let found = describe(self.document.value(place));
        self.fault(place, format!("expected {expected}, found {found}"), remedy);
    }

    fn text<T>(
        &self,
        place: Place,
        text: &Text,
        parse: impl FnOnce(&str) -> Result<T, Wrong>,
    ) -> Option<Located<T>> {
        let written = match self.document.value(place) {
            Value::Quoted(written) => written,
            Value::Plain(written) if text.number || !is_other_type(written) => written,
            Value::Plain(written) => {
                self.wrong_type(place, text.what, format!("write \"{written}\" in quotes if that is meant"));
                return None;
            }
            Value::Null | Value::List(_) | Value::Map(_) => {
                self.wrong_type(place, text.what, format!("write text such as `{}`", text.example));
                return None;
            }
        };
        match parse(written) {
            Ok(value) => Some(Located { value, place }),
            Err(Wrong { message, remedy }) => {
                self.fault(place, format!("{} is not {}: {message}", quote(written), text.what), remedy);
                None
            }
        }
    }
}

impl<'d> View<'d> {
    /// Where the mapping stands.
    pub const fn place(&self) -> Place {
        self.place
    }

    /// The reader.
    pub const fn reader(&self) -> Reader<'d> {
        self.reader
    }

    /// Whether `key` is written here.
    pub fn has(&self, key: &str) -> bool {
        self.find(key).1.is_some()
    }

    /// The mapping at `key`; none when it is absent or no mapping.
    pub fn table(&self, key: &str) -> Option<View<'d>> {
        let (field, place) = self.find(key);
        let Some(Field { shape: Shape::Table(table), .. }) = field else { return self.misread(key) };
        self.reader.view(place?, table)
    }

    /// The mapping at `key`, or an empty one that gives defaults.
    pub fn table_or_defaults(&self, key: &str) -> Option<View<'d>> {
        let (field, place) = self.find(key);
        let Some(Field { shape: Shape::Table(table), .. }) = field else { return self.misread(key) };
        match place {
            Some(place) => self.reader.view(place, table),
            None => Some(View { reader: self.reader, table, place: self.place, written: false }),
        }
    }

    /// The mappings of the list at `key`.
    pub fn tables(&self, key: &str) -> Vec<View<'d>> {
        let Some((list, items)) = self.items(key) else { return Vec::new() };
        let Shape::Table(table) = list.item else { return self.misread(key).unwrap_or_default() };
        items.iter().filter_map(|item| self.reader.view(*item, table)).collect()
    }

    /// The texts of the list at `key`.
    pub fn texts<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T, Wrong>) -> Vec<Located<T>> {
        let Some((list, items)) = self.items(key) else { return Vec::new() };
        let Shape::Text(text) = list.item else { return self.misread(key).unwrap_or_default() };
        items.iter().filter_map(|item| self.reader.text(*item, text, &parse)).collect()
    }

    /// The text at `key`, or its default; none when absent without one, or wrong.
    pub fn text<T>(&self, key: &str, parse: impl FnOnce(&str) -> Result<T, Wrong>) -> Option<Located<T>> {
        let (field, place) = self.find(key);
        let Some(Field { shape: Shape::Text(text), presence, .. }) = field else { return self.misread(key) };
        match place {
            Some(place) => self.reader.text(place, text, parse),
            None => self.default(*presence, |written| parse(written).ok()),
        }
    }

    /// The number at `key`, or its default; none when absent without one, or wrong.
    pub fn integer<T: TryFrom<u64>>(&self, key: &str) -> Option<Located<T>> {
        let (field, place) = self.find(key);
        let Some(Field { shape: Shape::Integer { min, max }, presence, .. }) = field else {
            return self.misread(key);
        };
        let Some(place) = place else {
            return self.default(*presence, |written| T::try_from(written.parse().ok()?).ok());
        };
        let remedy = format!("write a whole number from {min} to {max}");
        let written = match self.reader.document.value(place) {
            Value::Plain(written) => written,
            Value::Quoted(written) if written.parse::<u64>().is_ok() => {
                self.reader.wrong_type(place, "a number", format!("write {written} without quotes"));
                return None;
            }
            Value::Null | Value::Quoted(_) | Value::List(_) | Value::Map(_) => {
                self.reader.wrong_type(place, "a number", remedy);
                return None;
            }
        };
        let digits = !written.is_empty() && written.bytes().all(|byte| byte.is_ascii_digit());
        let value = written.parse::<u64>().ok().filter(|n| digits && (*min..=*max).contains(n));
        if let Some(value) = value.and_then(|n| T::try_from(n).ok()) {
            return Some(Located { value, place });
        }
        if digits || written.strip_prefix('-').is_some_and(|rest| rest.parse::<u64>().is_ok()) {
            self.reader.fault(place, format!("{written} is out of range"), remedy);
        } else {
            self.reader.fault(place, format!("{} is not a whole number", quote(written)), remedy);
        }
        None
    }

    /// The duration at `key`, or its default; none when absent without one, or wrong.
    pub fn duration(&self, key: &str) -> Option<Located<Duration>> {
        let (field, place) = self.find(key);
        let Some(Field { shape: Shape::Duration { min, max }, presence, .. }) = field else {
            return self.misread(key);
        };
        let Some(place) = place else { return self.default(*presence, duration::read) };
        let (from, to) = (duration::write(*min), duration::write(*max));
        let written = match self.reader.document.value(place) {
            Value::Plain(written) | Value::Quoted(written) => written,
            Value::Null | Value::List(_) | Value::Map(_) => {
                let remedy = format!("write a number with its unit, from {from} to {to}");
                self.reader.wrong_type(place, "a duration", remedy);
                return None;
            }
        };
        match duration::read(written) {
            Some(value) if (*min..=*max).contains(&value) => return Some(Located { value, place }),
            Some(_) => {
                let remedy = format!("write a duration from {from} to {to}");
                self.reader.fault(place, format!("{written} is out of range"), remedy);
            }
            None if written.len() <= 5 && duration::read(&format!("{written}s")).is_some() => {
                self.reader.fault(
                    place,
                    format!("{written} has no unit"),
                    format!("write {written}s or {written}ms"),
                );
            }
            None => {
                let remedy = "write numbers with the units h, m, s or ms, such as 1m30s";
                self.reader.fault(place, format!("{} is not a duration", quote(written)), remedy);
            }
        }
        None
    }

    /// The word at `key`, or its default, as `decode` has it; none when absent without one, or wrong.
    pub fn word<T>(&self, key: &str, decode: impl Fn(&str) -> Option<T>) -> Option<Located<T>> {
        let (field, place) = self.find(key);
        let Some(Field { shape: Shape::Word(words), presence, .. }) = field else { return self.misread(key) };
        let Some(place) = place else { return self.default(*presence, decode) };
        let all = format!("write one of {}", words.join(", "));
        let written = match self.reader.document.value(place) {
            Value::Plain(written) | Value::Quoted(written) => written,
            Value::Null | Value::List(_) | Value::Map(_) => {
                self.reader.wrong_type(place, "a word", all);
                return None;
            }
        };
        if let Some(value) = words.iter().find(|word| *word == written).and_then(|word| decode(word)) {
            return Some(Located { value, place });
        }
        let remedy = match shape::meant(written, words.iter().copied()) {
            Some(meant) => format!("write {meant} instead"),
            None => all,
        };
        self.reader.fault(place, format!("{} is unknown", quote(written)), remedy);
        None
    }

    /// The place of `key` for a fault about it, or of the mapping when it is not written.
    pub fn place_of(&self, key: &str) -> Place {
        self.find(key).1.unwrap_or(self.place)
    }

    fn items(&self, key: &str) -> Option<(&'static List, &'d [Place])> {
        let (field, place) = self.find(key);
        let Some(Field { shape: Shape::List(list), .. }) = field else { return self.misread(key) };
        let place = place?;
        let Value::List(items) = self.reader.document.value(place) else {
            let remedy = if list.min == 0 {
                "write `[]` or items that begin with `-`"
            } else {
                "write `- ` and an item"
            };
            self.reader.wrong_type(place, "a list", remedy.to_owned());
            return None;
        };
        if items.len() < list.min {
            let remedy = match field.map(|field| field.presence) {
                Some(Presence::Required(example)) => format!("write an item, such as in `{key}: {example}`"),
                Some(Presence::Default(_) | Presence::Absent(_)) | None => {
                    format!("write an item, or remove `{key}`")
                }
            };
            self.reader.fault(place, "an empty list", remedy);
        }
        if items.len() > list.max {
            let message = format!("{} items, more than the bound of {}", items.len(), list.max);
            self.reader.fault(place, message, format!("write at most {} items", list.max));
        }
        Some((list, items.get(..items.len().min(list.max)).unwrap_or_default()))
    }

    fn find(&self, key: &str) -> (Option<&'static Field>, Option<Place>) {
        #[cfg(test)]
        tests::note(self.table.name, key);
        let place = match self.reader.document.value(self.place) {
            Value::Map(entries) if self.written => {
                entries.iter().find(|entry| entry.key == key).map(|entry| entry.value)
            }
            Value::Map(_) | Value::Null | Value::Plain(_) | Value::Quoted(_) | Value::List(_) => None,
        };
        (self.table.field(key), place)
    }

    fn default<T>(&self, presence: Presence, parse: impl FnOnce(&str) -> Option<T>) -> Option<Located<T>> {
        match presence {
            Presence::Default(written) => Some(Located { value: parse(written)?, place: self.place }),
            Presence::Required(_) | Presence::Absent(_) => None,
        }
    }

    /// A reader that asks for a key as another type than its table says is a defect of ours; it must not pass.
    fn misread<T>(&self, key: &str) -> Option<T> {
        let message = format!("{}.{key} is read as what it is not", self.table.name);
        self.reader.fault(self.place, message, "report this as a defect of sluice");
        None
    }
}

/// Whether YAML 1.2 takes an unquoted scalar for a number or a boolean.
fn is_other_type(written: &str) -> bool {
    let unsigned = written.strip_prefix(['-', '+']).unwrap_or(written);
    let number = unsigned.starts_with(|first: char| first.is_ascii_digit() || first == '.')
        && (unsigned.parse::<f64>().is_ok()
            || unsigned.strip_prefix("0x").is_some_and(|hex| u64::from_str_radix(hex, 16).is_ok())
            || unsigned.strip_prefix("0o").is_some_and(|octal| u64::from_str_radix(octal, 8).is_ok()));
    number
        || matches!(written, "true" | "True" | "TRUE" | "false" | "False" | "FALSE")
        || matches!(unsigned, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN")
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Plain(written) if is_other_type(written) => {
            if written.starts_with(['t', 'T', 'f', 'F']) {
                format!("the boolean {written}")
            } else {
                format!("the number {written}")
            }
        }
        Value::Plain(written) | Value::Quoted(written) => format!("the text {}", quote(written)),
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "a mapping".to_owned(),
    }
}

/// Quotes text from outside so that it stays on one line and short.
pub(super) fn quote(written: &str) -> String {
    const LONGEST: usize = 60;
    let mut quoted: String = written.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if written.chars().nth(LONGEST).is_some() {
        quoted.push_str("...");
    }
    format!("\"{quoted}\"")
}

fn keys(table: &Table) -> String {
    match table.fields {
        [] => "no keys: `{}`".to_owned(),
        fields => format!("the keys {}", fields.iter().map(|field| field.key).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    //! Notes which keys are read, so that a test can compare them with the tables.

    use std::{cell::RefCell, collections::BTreeSet};

    thread_local! {
        static READ: RefCell<BTreeSet<(&'static str, String)>> = const { RefCell::new(BTreeSet::new()) };
    }

    pub(crate) fn note(table: &'static str, key: &str) {
        READ.with_borrow_mut(|read| read.insert((table, key.to_owned())));
    }

    pub(crate) fn noted() -> BTreeSet<(&'static str, String)> {
        READ.with_borrow(BTreeSet::clone)
    }

    #[test]
    fn numbers_and_booleans_are_told_from_text() {
        for number in ["1", "-1", "1.5", "0x1f", "0o17", ".5", "1e3", ".inf", "true", "False"] {
            assert!(super::is_other_type(number), "{number}");
        }
        for text in ["no", "on", "1a", "10.0.0.1", "200-399", "inf", "nan", "infinity", "", "-", "e3"] {
            assert!(!super::is_other_type(text), "{text}");
        }
    }

    #[test]
    fn quoted_text_stays_short_and_on_one_line() {
        assert_eq!(super::quote("a\nb"), "\"a\\nb\"");
        assert_eq!(super::quote(&"x".repeat(100)).len(), 65);
    }
}
