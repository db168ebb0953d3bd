//! One line: an object that grows while its request is served, and is handed over when its response has ended.

use std::{
    cell::Cell,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    access::{Desk, wall},
    clock::Clock,
    config::AccessField,
};

/// The line of a request that is being served. Dropped, it is whole.
#[derive(Debug)]
pub struct Line {
    desk: Arc<Desk>,
    clock: Clock,
    started: Instant,
    text: Vec<u8>,
    n_sent: u64,
    is_whole: bool,
}

impl Line {
    pub(super) fn new(desk: Arc<Desk>, clock: Clock, started: Instant) -> Self {
        let mut text = Vec::with_capacity(512);
        text.push(b'{');
        let mut line = Self { desk, clock, started, text, n_sent: 0, is_whole: false };
        if line.key(AccessField::Time) {
            write_time(&mut line.text, wall());
        }
        line
    }

    /// Adds text that came from a peer; bytes beyond ASCII stand as the characters of those numbers.
    pub fn text(&mut self, field: AccessField, value: &[u8]) {
        if self.key(field) {
            write_text(&mut self.text, value);
        }
    }

    /// Adds text that needs no escapes: a name of the configuration, an address, a word of ours.
    pub fn word(&mut self, field: AccessField, value: &str) {
        if self.key(field) {
            self.text.push(b'"');
            self.text.extend_from_slice(value.as_bytes());
            self.text.push(b'"');
        }
    }

    /// Adds a number.
    pub fn number(&mut self, field: AccessField, value: u64) {
        if self.key(field) {
            write_number(&mut self.text, value);
        }
    }

    /// Adds a time, in microseconds.
    pub fn duration(&mut self, field: AccessField, value: Duration) {
        self.number(field, u64::try_from(value.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts bytes of the body.
    pub fn sent(&mut self, n_bytes: usize) {
        self.n_sent = self.n_sent.saturating_add(u64::try_from(n_bytes).unwrap_or(u64::MAX));
    }

    /// The body has ended as it should.
    pub const fn complete(&mut self) {
        self.is_whole = true;
    }

    /// Begins a field, if lines have it.
    fn key(&mut self, field: AccessField) -> bool {
        let Some(key) = self.desk.keys.of(field) else { return false };
        // The first one has no comma.
        let from = usize::from(self.text.len() == 1);
        self.text.extend_from_slice(key.get(from..).unwrap_or_default());
        true
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.number(AccessField::BytesSent, self.n_sent);
        let elapsed = self.clock.now().saturating_duration_since(self.started);
        self.duration(AccessField::Duration, elapsed);
        if self.key(AccessField::Complete) {
            self.text.extend_from_slice(if self.is_whole { b"true" } else { b"false" });
        }
        self.text.extend_from_slice(b"}\n");
        self.desk.log.push(self.desk.worker, &self.text);
    }
}

/// Text as JSON has it (RFC 8259, section 7).
fn write_text(to: &mut Vec<u8>, value: &[u8]) {
    to.reserve(value.len().saturating_add(2));
    to.push(b'"');
    let mut rest = value;
    loop {
        let n_plain = n_plain(rest);
        let (plain, after) = rest.split_at(n_plain);
        to.extend_from_slice(plain);
        let Some((byte, after)) = after.split_first() else { break };
        if matches!(byte, b'"' | b'\\') {
            to.extend_from_slice(&[b'\\', *byte]);
        } else {
            let digit = |nibble: u8| b"0123456789abcdef".get(usize::from(nibble)).copied().unwrap_or(b'0');
            to.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 15)]);
        }
        rest = after;
    }
    to.push(b'"');
}

/// How many bytes at the beginning stand for themselves: printable, neither quote nor backslash.
fn n_plain(text: &[u8]) -> usize {
    let is_plain = |byte: &u8| matches!(byte, 0x20..=0x7e) && !matches!(byte, b'"' | b'\\');
    // Eight in one go, as long as all are.
    let (words, _) = text.as_chunks();
    let ahead = 8 * words.iter().position(|word| !are_plain(*word)).unwrap_or(words.len());
    let rest = text.get(ahead..).unwrap_or_default();
    ahead + rest.iter().position(|byte| !is_plain(byte)).unwrap_or(rest.len())
}

/// Whether all of eight bytes are; it may say no where they are.
fn are_plain(bytes: [u8; 8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x80 * ONES;
    let word = u64::from_le_bytes(bytes);
    // A byte below a number borrows from its highest bit; those that have it already are sorted out beside it.
    let below = |word: u64, least: u64| word.wrapping_sub(least * ONES);
    let odd = word
        | word.wrapping_add(ONES)
        | below(word, 0x20)
        | below(word ^ (u64::from(b'"') * ONES), 1)
        | below(word ^ (u64::from(b'\\') * ONES), 1);
    odd & HIGHS == 0
}

/// A number in decimal. The formatter of the standard library takes several times as long, and a line has five.
fn write_number(to: &mut Vec<u8>, value: u64) {
    // The largest has twenty digits.
    let mut digits = [b'0'; 20];
    let (mut rest, mut n) = (value, 0);
    for place in digits.iter_mut().rev() {
        *place = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        n += 1;
        if rest == 0 {
            break;
        }
    }
    to.extend_from_slice(digits.get(digits.len() - n..).unwrap_or_default());
}

thread_local! {
    /// The second that was written last, and its text up to the point.
    static SECOND: Cell<(u64, [u8; 20])> = const { Cell::new((u64::MAX, [0; 20])) };
}

/// A time as RFC 3339 has it, in UTC, with milliseconds.
pub fn rfc3339(time: SystemTime) -> String {
    let mut text = Vec::new();
    write_instant(&mut text, time);
    String::from_utf8(text).unwrap_or_default()
}

fn write_time(to: &mut Vec<u8>, time: SystemTime) {
    to.push(b'"');
    write_instant(to, time);
    to.push(b'"');
}

fn write_instant(to: &mut Vec<u8>, time: SystemTime) {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (last, mut text) = SECOND.get();
    if last != since.as_secs() {
        text = second(since.as_secs());
        SECOND.set((since.as_secs(), text));
    }
    to.extend_from_slice(&text);
    let ms = since.subsec_millis();
    let digit = |n: u32| b'0' + u8::try_from(n % 10).unwrap_or(0);
    to.extend_from_slice(&[digit(ms / 100), digit(ms / 10), digit(ms), b'Z']);
}

/// A second since 1970, with a point behind it.
fn second(since: u64) -> [u8; 20] {
    let (days, second) = (since / 86_400, since % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    let text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.");
    // A year of five digits is beyond the calendar of RFC 3339.
    text.as_bytes().try_into().unwrap_or(*b"9999-12-31T23:59:59.")
}

/// Year, month and day of the Gregorian calendar, from days since 1970. Years begin in March, so that the leap day is the
/// last one; 400 years have 146,097 days.
const fn date(days: u64) -> (u64, u64, u64) {
    // From the first of March of the year 0.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    // Five months from March have 153 days, again and again.
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal() {
        for value in [0, 7, 10, 99, 100, 1_234_567_890, u64::MAX] {
            let mut text = Vec::new();
            write_number(&mut text, value);
            assert_eq!(String::from_utf8(text).unwrap(), value.to_string());
        }
    }

    #[test]
    fn text_is_json() {
        for value in ["", "plain", "\"", "a\\b\"", "\u{1}\n~\u{7f}end"] {
            let mut text = Vec::new();
            write_text(&mut text, value.as_bytes());
            assert_eq!(serde_json::from_slice::<String>(&text).unwrap(), value);
        }
    }

    #[test]
    fn eight_bytes_are_plain_where_each_is() {
        let is_plain = |byte: u8| matches!(byte, 0x20..=0x7e) && !matches!(byte, b'"' | b'\\');
        for byte in 0..=u8::MAX {
            for at in 0..8 {
                let mut word = *b"plain ~!";
                if let Some(place) = word.get_mut(at) {
                    *place = byte;
                }
                assert_eq!(are_plain(word), is_plain(byte), "{byte} at {at}");
                let mut text = word.to_vec();
                text.extend_from_slice(b"behind\"");
                let n = if is_plain(byte) { 14 } else { at };
                assert_eq!(n_plain(&text), n, "{byte} at {at}");
            }
        }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, ms, expected) in [
            (0, 0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, 999, "2000-02-28T23:59:59.999Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.001Z"),
            (951_868_800, 0, "2000-03-01T00:00:00.000Z"),
            (1_709_210_096, 7, "2024-02-29T12:34:56.007Z"),
            (1_735_689_599, 0, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000Z"),
            (4_107_542_400, 120, "2100-03-01T00:00:00.120Z"),
        ] {
            let mut text = Vec::new();
            write_time(
                &mut text,
                SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(ms),
            );
            assert_eq!(String::from_utf8(text).unwrap(), format!("\"{expected}\""));
        }
    }
}
