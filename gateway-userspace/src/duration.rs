//! Durations as people write them: numbers with their units, as in the Gateway API (GEP-2257).

use std::time::Duration;

/// The pattern of a duration, as in the Gateway API (GEP-2257): one to four numbers of at most five digits, each
/// with its unit.
pub const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

/// Reads a duration of [`PATTERN`].
pub fn read(text: &str) -> Option<Duration> {
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

/// Writes a duration so that [`read`] reads it: in the largest unit that divides it.
pub fn write(duration: Duration) -> String {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_need_units() {
        let check =
            |text: &str, ms: Option<u64>| assert_eq!(read(text), ms.map(Duration::from_millis), "{text}");
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

    proptest! {
        #[test]
        fn written_durations_read_back(ms in 0_u64..99_999) {
            let written = Duration::from_millis(ms);
            prop_assert_eq!(read(&write(written)), Some(written));
        }
    }
}
