//! A YAML document as a tree in which every value knows where it stands.
//!
//! The library gives events with positions; this keeps them, so that one pass over the tree can report everything
//! that is wrong. Only what a configuration needs is accepted: one document, mappings with text keys, no tags,
//! no merge keys. Aliases are copied, within a bound on the nodes of the whole tree.

use std::{borrow::Cow, collections::HashMap, path::Path, sync::Arc};

use serde_saphyr::granit_parser::{
    ErrorKind, Event, Parser, ScalarStyle, ScanError, Span, StrInput, options,
};

use crate::{
    config::{
        fault::{Collector, Fault},
        read::quote,
    },
    place::Place,
};

/// A line and a column, both counted from 1; the column in characters.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Mark {
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

/// The tree.
#[derive(Debug)]
pub struct Document {
    file: Arc<Path>,
    nodes: Vec<Node>,
}

/// What stands at a place.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// A scalar without quotes.
    Plain(String),
    /// A scalar in quotes or a block.
    Quoted(String),
    /// A sequence.
    List(Vec<Place>),
    /// A mapping; keys occur once.
    Map(Vec<Entry>),
}

/// One key of a mapping and its value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub mark: Mark,
    /// The value.
    pub value: Place,
}

#[derive(Debug)]
struct Node {
    mark: Mark,
    value: Value,
    /// The node it is in, and its index there.
    parent: Option<(Place, u32)>,
}

impl Document {
    /// Parses `text`. Faults of structure go to `collector`, and what can still be understood is returned;
    /// after a fault of syntax there is nothing to return.
    pub fn parse(file: &Arc<Path>, text: &str, collector: &Collector) -> Option<Self> {
        let limits =
            options! { emit_comments: false, flow_nesting_limit: MAX_DEPTH, block_nesting_limit: MAX_DEPTH };
        let mut builder = Builder {
            document: Self { file: Arc::clone(file), nodes: Vec::new() },
            collector,
            parser: Parser::new_from_str_with_options(text, limits),
            anchors: HashMap::new(),
        };
        match builder.document() {
            Ok(()) => Some(builder.document),
            Err(fault) => {
                collector.push(*fault);
                None
            }
        }
    }

    /// The top of the tree.
    pub const fn root(&self) -> Place {
        Place::new(0)
    }

    /// What stands at `place`.
    pub fn value(&self, place: Place) -> &Value {
        self.node(place).map_or(&Value::Null, |node| &node.value)
    }

    /// Where `place` is in the file.
    pub fn mark(&self, place: Place) -> Mark {
        self.node(place).map_or(Mark { line: 0, column: 0 }, |node| node.mark)
    }

    /// Keys and indices from the top to `place`.
    pub fn path(&self, place: Place) -> String {
        let mut steps = Vec::new();
        let mut at = place;
        while let Some((parent, idx)) = self.node(at).and_then(|node| node.parent) {
            steps.push((parent, idx));
            at = parent;
        }
        steps.into_iter().rev().fold(String::new(), |path, (parent, idx)| self.step(&path, parent, idx))
    }

    /// The path of the node with index `idx` in `parent`, which has `path`.
    fn step(&self, path: &str, parent: Place, idx: u32) -> String {
        match self.value(parent) {
            Value::Map(entries) => join(path, entries.get(index(idx)).map_or("", |entry| entry.key.as_str())),
            Value::List(_) => format!("{path}[{idx}]"),
            Value::Null | Value::Plain(_) | Value::Quoted(_) => path.to_owned(),
        }
    }

    /// The path of a node that is about to be added.
    fn path_of_slot(&self, slot: Slot) -> String {
        slot.parent.map_or_else(String::new, |(parent, idx)| self.step(&self.path(parent), parent, idx))
    }

    /// A fault at `place`.
    pub fn fault(&self, place: Place, message: String, remedy: String) -> Fault {
        self.fault_at(self.mark(place), self.path(place), message, remedy)
    }

    /// A fault at a mark, such as that of a key.
    pub fn fault_at(&self, mark: Mark, path: String, message: String, remedy: String) -> Fault {
        let Mark { line, column } = mark;
        Fault { file: Arc::clone(&self.file), line, column, path, message, remedy }
    }

    fn node(&self, place: Place) -> Option<&Node> {
        self.nodes.get(index(place.index()))
    }
}

/// The path of `key` below `path`.
pub fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// A fault is boxed on its way out of the recursion: it is rare and large.
type Stopped = Box<Fault>;

struct Builder<'t, 'c> {
    document: Document,
    collector: &'c Collector,
    parser: Parser<'t, StrInput<'t>>,
    anchors: HashMap<usize, Place>,
}

/// Where the next node goes.
#[derive(Clone, Copy)]
struct Slot {
    parent: Option<(Place, u32)>,
    depth: usize,
}

impl Slot {
    const fn below(self, parent: Place, idx: u32) -> Self {
        Self { parent: Some((parent, idx)), depth: self.depth + 1 }
    }
}

impl<'t> Builder<'t, '_> {
    fn document(&mut self) -> Result<(), Stopped> {
        let top = Slot { parent: None, depth: 0 };
        let mut n_documents = 0_u32;
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::StreamEnd) {
                break;
            }
            if matches!(event, Event::DocumentStart(..)) {
                n_documents += 1;
                if n_documents > 1 {
                    let remedy = "write one document, without a second `---`";
                    return Err(self.stop(span, "a second YAML document begins here", remedy));
                }
                let (event, span) = self.next()?;
                self.node(event, span, top)?;
            }
        }
        if self.document.nodes.is_empty() {
            self.push(Value::Null, Mark { line: 1, column: 1 }, top)?;
        }
        Ok(())
    }

    fn next(&mut self) -> Result<(Event<'t>, Span), Stopped> {
        match self.parser.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => Err(self.syntax(&error)),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the library may add events; none but these is of use here"
    )]
    fn node(&mut self, event: Event<'t>, span: Span, slot: Slot) -> Result<Place, Stopped> {
        let mark = mark(span);
        let (place, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                if tag.is_some() {
                    self.refuse_tag(mark, self.document.path_of_slot(slot));
                }
                let text = text.into_owned();
                let value = match style {
                    ScalarStyle::Plain if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL") => {
                        Value::Null
                    }
                    ScalarStyle::Plain => Value::Plain(text),
                    ScalarStyle::SingleQuoted
                    | ScalarStyle::DoubleQuoted
                    | ScalarStyle::Literal
                    | ScalarStyle::Folded => Value::Quoted(text),
                };
                (self.push(value, mark, slot)?, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                if tag.is_some() {
                    self.refuse_tag(mark, self.document.path_of_slot(slot));
                }
                (self.list(mark, slot)?, anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                if tag.is_some() {
                    self.refuse_tag(mark, self.document.path_of_slot(slot));
                }
                (self.map(mark, slot)?, anchor)
            }
            Event::Alias(anchor) => {
                let Some(original) = self.anchors.get(&anchor).copied() else {
                    let remedy = "write the value out here";
                    return Err(self.stop(
                        span,
                        "this alias repeats a key, or the value it stands in",
                        remedy,
                    ));
                };
                (self.copy(original, mark, slot)?, 0)
            }
            _ => return Err(self.stop(span, "a value is expected here", "write one, or remove the key")),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, place);
        }
        Ok(place)
    }

    fn list(&mut self, mark: Mark, slot: Slot) -> Result<Place, Stopped> {
        let place = self.push(Value::List(Vec::new()), mark, slot)?;
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                break;
            }
            items.push(self.node(event, span, slot.below(place, count(items.len())))?);
        }
        self.set(place, Value::List(items));
        Ok(place)
    }

    fn map(&mut self, mark: Mark, slot: Slot) -> Result<Place, Stopped> {
        let place = self.push(Value::Map(Vec::new()), mark, slot)?;
        let mut entries: Vec<Entry> = Vec::new();
        let mut keys: HashMap<String, Mark> = HashMap::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let key_mark = self::mark(span);
            let key = self.key(event, span, place)?;
            // The entry has to stand in the tree before its value is read, so that paths below it have its key.
            let idx = count(entries.len());
            entries.push(Entry { key: key.clone(), mark: key_mark, value: place });
            self.set(place, Value::Map(std::mem::take(&mut entries)));
            let (event, span) = self.next()?;
            let value = self.node(event, span, slot.below(place, idx))?;
            entries = self.take_entries(place);
            if let Some(entry) = entries.last_mut() {
                entry.value = value;
            }
            if let Some(first) = keys.get(&key) {
                let message = format!("key {} is written twice, first in line {}", quote(&key), first.line);
                let path = join(&self.document.path(place), &key);
                let fault = self.document.fault_at(key_mark, path, message, "keep one of them".to_owned());
                self.collector.push(fault);
                entries.pop();
            } else {
                keys.insert(key, key_mark);
            }
        }
        self.set(place, Value::Map(entries));
        Ok(place)
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the library may add events; none but these is of use here"
    )]
    fn key(&mut self, event: Event<'t>, span: Span, map: Place) -> Result<String, Stopped> {
        match event {
            Event::Scalar(text, ScalarStyle::Plain, _, _) if text == "<<" => {
                let remedy = "write the keys out, or alias a whole value";
                let path = self.document.path(map);
                let message = "merge keys are not part of YAML 1.2".to_owned();
                Err(Box::new(self.document.fault_at(mark(span), path, message, remedy.to_owned())))
            }
            Event::Scalar(text, _, _, tag) => {
                if tag.is_some() {
                    self.refuse_tag(mark(span), self.document.path(map));
                }
                Ok(Cow::into_owned(text))
            }
            _ => Err(self.stop(span, "a key is not text here", "write a single word before the colon")),
        }
    }

    /// Copies what an anchor names. Inside the copy, marks stay those of the original: that is what has to be edited.
    fn copy(&mut self, original: Place, mark: Mark, slot: Slot) -> Result<Place, Stopped> {
        let value = self.document.value(original).clone();
        let place = self.push(value.clone(), mark, slot)?;
        match value {
            Value::Null | Value::Plain(_) | Value::Quoted(_) => {}
            Value::List(items) => {
                let mut copies = Vec::new();
                for (idx, item) in items.into_iter().enumerate() {
                    let mark = self.document.mark(item);
                    copies.push(self.copy(item, mark, slot.below(place, count(idx)))?);
                }
                self.set(place, Value::List(copies));
            }
            Value::Map(entries) => {
                let mut copies = Vec::new();
                for (idx, entry) in entries.into_iter().enumerate() {
                    let mark = self.document.mark(entry.value);
                    let value = self.copy(entry.value, mark, slot.below(place, count(idx)))?;
                    copies.push(Entry { value, ..entry });
                }
                self.set(place, Value::Map(copies));
            }
        }
        Ok(place)
    }

    fn push(&mut self, value: Value, mark: Mark, slot: Slot) -> Result<Place, Stopped> {
        let stop = |message: String, remedy: &str| {
            let path = self.document.path_of_slot(slot);
            Box::new(self.document.fault_at(mark, path, message, remedy.to_owned()))
        };
        if slot.depth >= MAX_DEPTH {
            return Err(stop(
                format!("nested deeper than {MAX_DEPTH} levels"),
                "flatten it: no key is that deep",
            ));
        }
        if self.document.nodes.len() >= MAX_NODES {
            let message = format!("more than {MAX_NODES} values, those repeated by aliases included");
            return Err(stop(message, "write fewer endpoints, or use fewer aliases"));
        }
        let place = Place::new(count(self.document.nodes.len()));
        self.document.nodes.push(Node { mark, value, parent: slot.parent });
        Ok(place)
    }

    fn set(&mut self, place: Place, value: Value) {
        if let Some(node) = self.document.nodes.get_mut(index(place.index())) {
            node.value = value;
        }
    }

    fn take_entries(&mut self, place: Place) -> Vec<Entry> {
        match self.document.nodes.get_mut(index(place.index())).map(|node| &mut node.value) {
            Some(Value::Map(entries)) => std::mem::take(entries),
            Some(Value::Null | Value::Plain(_) | Value::Quoted(_) | Value::List(_)) | None => Vec::new(),
        }
    }

    fn refuse_tag(&self, mark: Mark, path: String) {
        let remedy = "remove the tag, and put text that looks like a number in quotes".to_owned();
        let message = "tags have no meaning here".to_owned();
        self.collector.push(self.document.fault_at(mark, path, message, remedy));
    }

    #[expect(clippy::unnecessary_box_returns, reason = "what recursion carries along should be small")]
    fn stop(&self, span: Span, message: &str, remedy: &str) -> Stopped {
        Box::new(self.document.fault_at(mark(span), String::new(), message.to_owned(), remedy.to_owned()))
    }

    #[expect(clippy::unnecessary_box_returns, reason = "what recursion carries along should be small")]
    fn syntax(&self, error: &ScanError) -> Stopped {
        let marker = error.marker();
        let mark = Mark { line: count(marker.line()), column: count(marker.col()).saturating_add(1) };
        let message = format!("not valid YAML: {}", error.info());
        Box::new(self.document.fault_at(mark, String::new(), message, syntax_remedy(error.kind()).to_owned()))
    }
}

fn syntax_remedy(kind: &ErrorKind) -> &'static str {
    if matches!(
        kind,
        ErrorKind::TabNotAllowed
            | ErrorKind::TabInBlockIndentation
            | ErrorKind::TabInIndentation
            | ErrorKind::TabInPlainScalar
            | ErrorKind::TabAtBlockScalarStart
    ) {
        return "indent with spaces instead of a tab";
    }
    if matches!(
        kind,
        ErrorKind::UnclosedQuotedScalar
            | ErrorKind::InvalidQuotedScalarIndent
            | ErrorKind::DocumentIndicatorInQuotedScalar
    ) {
        return "close the quote on the same line";
    }
    if matches!(
        kind,
        ErrorKind::UnclosedFlowCollection { .. }
            | ErrorKind::UnexpectedEofFlowMapping
            | ErrorKind::UnexpectedEofFlowSequence
            | ErrorKind::UnexpectedEofImplicitFlowMapping
            | ErrorKind::ExpectedFlowMappingSeparator
            | ErrorKind::ExpectedFlowSequenceSeparator
            | ErrorKind::MismatchedFlowCollectionEnd { .. }
    ) {
        return "close every `[` with `]` and every `{` with `}`, and put `,` between items";
    }
    if matches!(kind, ErrorKind::UnknownAnchor) {
        return "write `&name` at the value before `*name` repeats it, or quote text that begins with `*`";
    }
    if matches!(kind, ErrorKind::UnknownQuotedScalarEscape) {
        return "write a backslash twice, or use single quotes";
    }
    if matches!(kind, ErrorKind::RecursionLimitExceeded) {
        return "flatten it: no key is that deep";
    }
    if matches!(
        kind,
        ErrorKind::MappingValueNotAllowed | ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey
    ) {
        return "write one `key: value` to a line, and quote text that contains `: `";
    }
    "indent the keys of one mapping alike, with a space after each `:` and `-`; other faults show once this is read"
}

fn mark(span: Span) -> Mark {
    Mark { line: count(span.start.line()), column: count(span.start.col()).saturating_add(1) }
}

/// Nodes, lines and columns are bounded far below four billion by the size of the file.
fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn index(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Levels of nesting. The deepest key of the reference stands at 9; the rest is room.
const MAX_DEPTH: usize = 32;

/// Values of one document. 100,000 endpoints with three keys each need 400,000.
const MAX_NODES: usize = 1_000_000;
