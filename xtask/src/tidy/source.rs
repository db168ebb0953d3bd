//! A Rust file taken apart as far as the checks need it: code without comments and strings, comments without code, and
//! which lines are tests. A lexer for a few kinds of tokens, not a parser; rustfmt's layout is not relied on.

/// One file. All three texts have the same lines and columns as the file.
#[derive(Debug)]
pub(crate) struct Source {
    /// Path relative to the workspace.
    pub(crate) path: String,
    /// The file as it is.
    pub(crate) text: String,
    /// Code alone; comments and the contents of strings are spaces.
    pub(crate) code: String,
    /// Comments alone; everything else is spaces.
    pub(crate) comments: String,
    /// For each line, whether it belongs to a test.
    is_test: Vec<bool>,
}

impl Source {
    /// Takes a file apart.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let (code, comments) = split(text);
        let in_test_folder = path.split('/').any(|part| part == "tests") && !path.starts_with("tests/src/");
        let whole = in_test_folder || path.ends_with("/tests.rs");
        let mut is_test = vec![whole; text.lines().count()];
        if !whole {
            mark_tests(&code, &mut is_test);
        }
        Self { path: path.to_owned(), text: text.to_owned(), code, comments, is_test }
    }

    /// The line of a byte, counted from one.
    pub(crate) fn line_of(&self, byte: usize) -> usize {
        self.code.bytes().take(byte).filter(|b| *b == b'\n').count() + 1
    }

    /// Whether a line, counted from one, belongs to a test.
    pub(crate) fn is_test(&self, line: usize) -> bool {
        line.checked_sub(1).and_then(|index| self.is_test.get(index)).copied().unwrap_or(false)
    }

    /// How many lines are no test.
    pub(crate) fn n_lines(&self) -> usize {
        self.is_test.iter().filter(|is_test| !**is_test).count()
    }

    /// Every place in the code, outside tests, where `word` stands alone, as a byte.
    pub(crate) fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        let places = self.code.match_indices(word).map(|(at, _)| at);
        places.filter(move |at| is_word(&self.code, *at, word.len()) && !self.is_test(self.line_of(*at)))
    }
}

/// Whether the bytes before and after do not continue an identifier.
pub(crate) fn is_word(text: &str, at: usize, len: usize) -> bool {
    let continues = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let bytes = text.as_bytes();
    let before = at.checked_sub(1).and_then(|index| bytes.get(index));
    !continues(before) && !continues(bytes.get(at + len))
}

/// The byte after the bracket that closes the one at `open`.
pub(crate) fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

/// Marks the items under `#[cfg(test)]` and `#[test]`.
fn mark_tests(code: &str, is_test: &mut [bool]) {
    for attribute in ["#[cfg(test)]", "#[test]"] {
        for (start, _) in code.match_indices(attribute) {
            let rest = start + attribute.len();
            let end = code.bytes().enumerate().skip(rest).find_map(|(at, byte)| match byte {
                b';' => Some(at + 1),
                b'{' => Some(closing(code, at)),
                _ => None,
            });
            let line = |byte: usize| code.bytes().take(byte).filter(|b| *b == b'\n').count();
            let (first, last) = (line(start), line(end.unwrap_or(code.len()).saturating_sub(1)));
            for mark in is_test.iter_mut().take(last + 1).skip(first) {
                *mark = true;
            }
        }
    }
}

/// What the lexer is in.
#[derive(Clone, Copy, Eq, PartialEq)]
enum In {
    Code,
    Line,
    Block(usize),
    Text,
    Raw(usize),
}

/// Code and comments of a text, each with spaces for the other.
fn split(text: &str) -> (String, String) {
    let bytes = text.as_bytes();
    let (mut code, mut comments) = (Vec::with_capacity(bytes.len()), Vec::with_capacity(bytes.len()));
    let mut state = In::Code;
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let rest = bytes.get(at..).unwrap_or_default();
        let (next, len) = step(state, rest, bytes.get(..at).unwrap_or_default());
        let of_comment = matches!(state, In::Line | In::Block(_)) || matches!(next, In::Line | In::Block(_));
        let of_code = state == In::Code && next == In::Code && len == 1;
        for byte in rest.iter().take(len) {
            let blank = if *byte == b'\n' { b'\n' } else { b' ' };
            code.push(if of_code { *byte } else { blank });
            comments.push(if of_comment { *byte } else { blank });
        }
        debug_assert!(len > 0, "the lexer stands still at {byte}");
        (state, at) = (next, at + len);
    }
    // Only whole characters were replaced or kept, except inside comments and strings, where bytes became spaces.
    (String::from_utf8_lossy(&code).into_owned(), String::from_utf8_lossy(&comments).into_owned())
}

/// What the lexer is in after the next bytes, and how many they are.
fn step(state: In, rest: &[u8], before: &[u8]) -> (In, usize) {
    match state {
        In::Code => step_code(rest, before),
        In::Line => (if rest.first() == Some(&b'\n') { In::Code } else { In::Line }, 1),
        In::Block(depth) if rest.starts_with(b"/*") => (In::Block(depth + 1), 2),
        In::Block(1) if rest.starts_with(b"*/") => (In::Code, 2),
        In::Block(depth) if rest.starts_with(b"*/") => (In::Block(depth - 1), 2),
        In::Block(_) => (state, 1),
        In::Text if rest.first() == Some(&b'\\') => (In::Text, rest.len().min(2)),
        In::Text => (if rest.first() == Some(&b'"') { In::Code } else { In::Text }, 1),
        In::Raw(hashes) => {
            let ends = rest.first() == Some(&b'"')
                && rest.iter().skip(1).take_while(|byte| **byte == b'#').count() >= hashes;
            if ends { (In::Code, 1 + hashes) } else { (state, 1) }
        }
    }
}

fn step_code(rest: &[u8], before: &[u8]) -> (In, usize) {
    if rest.starts_with(b"//") {
        return (In::Line, 2);
    }
    if rest.starts_with(b"/*") {
        return (In::Block(1), 2);
    }
    let in_word = before.last().is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let is_raw = rest.starts_with(b"r\"")
        || rest.starts_with(b"r#")
        || rest.starts_with(b"br\"")
        || rest.starts_with(b"br#");
    if is_raw && !in_word {
        let prefix = rest.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
        let hashes = rest.iter().skip(prefix).take_while(|byte| **byte == b'#').count();
        // Without the quote it is a raw identifier, as in `r#type`.
        if rest.get(prefix + hashes) == Some(&b'"') {
            return (In::Raw(hashes), prefix + hashes + 1);
        }
    }
    match rest.first() {
        Some(b'"') => (In::Text, 1),
        Some(b'\'') => (In::Code, character(rest)),
        _ => (In::Code, 1),
    }
}

/// How long a character literal is; one where the quote begins a lifetime.
fn character(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        let end = rest.iter().skip(3).position(|byte| *byte == b'\'');
        return end.map_or(1, |end| end + 4);
    }
    // A character takes one to four bytes, and the quote follows at once.
    let end = rest.iter().take(6).skip(2).position(|byte| *byte == b'\'');
    match end {
        Some(end) if end == 0 || rest.get(1).is_some_and(|byte| !byte.is_ascii()) => end + 3,
        Some(_) | None => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, code: &str) {
        let (found, _) = split(text);
        assert_eq!(found, code);
        assert_eq!(found.len(), text.len());
    }

    #[test]
    fn strings_and_comments_are_no_code() {
        check("a(\"{\") // {", "a(   )     ");
        check("a /* { /* } */ { */ b", &format!("a{}b", " ".repeat(19)));
        check("r#\"{\"{\"# b", "         b");
        check("\"\\\"{\" b", "      b");
    }

    #[test]
    fn lifetimes_are_code_and_characters_are_not() {
        check("f<'a>('{', 'b', '\\'')", "f<'a>(   ,    ,     )");
        check("r#type 'x", "r#type 'x");
    }

    #[test]
    fn comments_are_kept_apart() {
        let (_, comments) = split("let a = \"b\"; // c");
        assert_eq!(comments, "             // c");
    }

    #[test]
    fn test_modules_are_found() {
        let source =
            Source::new("a/src/b.rs", "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n");
        let tests: Vec<usize> = (1..=6).filter(|line| source.is_test(*line)).collect();
        assert_eq!(tests, [2, 3, 4, 5]);
        assert_eq!(source.n_lines(), 2);
    }

    #[test]
    fn words_stand_alone() {
        let source = Source::new("a/src/b.rs", "aya::x; maya::y; aya_log::z; aya");
        assert_eq!(source.words("aya").collect::<Vec<_>>(), [0, 29]);
    }
}
