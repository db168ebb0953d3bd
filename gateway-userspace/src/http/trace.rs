//! Trace context (W3C, Trace Context level 1): what a client sends passes on if it is valid, and begins here if it is not.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::TraceSettings;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Version, trace, parent and flags, with dashes between them.
const LEN: usize = 55;

/// Checks the trace context of a request, and begins one where there is none.
pub fn propagate(headers: &mut HeaderMap, settings: TraceSettings) {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let (first, second) = (values.next(), values.next());
    let is_there = first.is_some();
    if second.is_none() && first.is_some_and(|value| is_valid(value.as_bytes())) {
        return;
    }
    if is_there {
        headers.remove(TRACEPARENT);
    }
    // The state belongs to a context that cannot be read (section 3.3.1).
    headers.remove(TRACESTATE);
    if settings.is_created {
        let percent = settings.sampled_percent;
        let is_sampled = percent >= 100 || fastrand::u32(..100) < percent;
        headers.insert(TRACEPARENT, begin([(); 3].map(|()| random()), u8::from(is_sampled)));
    }
}

/// The trace that a request belongs to, as 32 digits; none when there is none.
pub fn id(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get(TRACEPARENT)?.as_bytes().get(3..35)
}

/// A number for half of a trace, or for a parent: those that are all zero are none (section 3.2.2).
fn random() -> u64 {
    fastrand::u64(..).max(1)
}

/// A context of a trace of two numbers, and of a parent.
fn begin([high, low, parent]: [u64; 3], flags: u8) -> HeaderValue {
    let mut text = *b"00-                                -                -00";
    for (at, number) in [(3, high), (19, low), (36, parent)] {
        if let Some(digits) = text.get_mut(at..at + 16) {
            digits.copy_from_slice(&hexadecimal(number));
        }
    }
    if let Some(last) = text.last_mut() {
        *last = b'0' + (flags & 1);
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The sixteen digits of a number, eight in one go.
fn hexadecimal(number: u64) -> [u8; 16] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let half = |half: u64| {
        // A digit in each byte.
        let pairs = (half | half << 16) & 0x0000_ffff_0000_ffff;
        let bytes = (pairs | pairs << 8) & 0x00ff_00ff_00ff_00ff;
        let digits = (bytes | bytes << 4) & (15 * ONES);
        // Six more make sixteen of those from ten on.
        let are_letters = (digits + 6 * ONES) >> 4 & ONES;
        let to_letters = u64::from(b'a' - b'0' - 10);
        (digits + u64::from(b'0') * ONES + to_letters * are_letters).to_be_bytes()
    };
    let mut text = [0; 16];
    for (to, digit) in text.iter_mut().zip(half(number >> 32).into_iter().chain(half(number & 0xffff_ffff))) {
        *to = digit;
    }
    text
}

/// Whether a value is a context that anybody can read (section 3.2.2, and section 4.3 on versions to come).
fn is_valid(value: &[u8]) -> bool {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let part = |from: usize, to: usize| value.get(from..to).filter(|part| part.iter().all(is_digit));
    let is_zero = |part: &[u8]| part.iter().all(|byte| *byte == b'0');
    let dashes = [2, 35, 52].iter().all(|at| value.get(*at) == Some(&b'-'));
    let (Some(version), Some(trace), Some(parent), Some(_flags)) =
        (part(0, 2), part(3, 35), part(36, 52), part(53, LEN))
    else {
        return false;
    };
    let has_end = match value.get(LEN) {
        None => true,
        Some(more) => *more == b'-' && version != b"00",
    };
    dashes && has_end && version != b"ff" && !is_zero(trace) && !is_zero(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const CREATE: TraceSettings = TraceSettings { is_created: true, sampled_percent: 100 };

    fn propagated(values: &[&str], settings: TraceSettings) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, HeaderValue::from_str(value).unwrap());
        }
        headers.append(TRACESTATE, HeaderValue::from_static("a=1"));
        headers.append(TRACESTATE, HeaderValue::from_static("b=2"));
        propagate(&mut headers, settings);
        headers
    }

    #[test]
    fn numbers_have_sixteen_digits() {
        for number in [0, 1, 0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, u64::MAX, 0x0f9a_0f9a << 30] {
            assert_eq!(hexadecimal(number), *format!("{number:016x}").as_bytes());
        }
        let made = begin([0x4bf9_2f35_77b3_4da6, 0xa3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7], 1);
        assert_eq!(made, GOOD);
    }

    #[test]
    fn what_is_valid_passes_on_as_it_is() {
        let future = GOOD.replace("00-4b", "cc-4b") + "-what-the-future-brings";
        for value in [GOOD, &GOOD.replace("-01", "-ff"), &future, &GOOD.replace("00-4b", "01-4b")] {
            let headers = propagated(&[value], CREATE);
            assert_eq!(headers.get(TRACEPARENT).unwrap(), value);
            assert_eq!(headers.get_all(TRACESTATE).iter().count(), 2);
            assert_eq!(id(&headers), Some(&b"4bf92f3577b34da6a3ce929d0e0e4736"[..]));
        }
    }

    #[test]
    fn what_is_not_begins_anew_without_the_state_of_another() {
        let upper = GOOD.to_uppercase();
        let bad = [
            "",
            "00",
            &GOOD[..54],
            &upper,
            &GOOD.replace("00-4b", "ff-4b"),
            &GOOD.replace("00-4b", "0g-4b"),
            &(GOOD.to_owned() + "-more"),
            &(GOOD.to_owned() + "x"),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", "00000000000000000000000000000000"),
            &GOOD.replace("00f067aa0ba902b7", "0000000000000000"),
            &GOOD.replace("-00f", "_00f"),
        ];
        let cases: Vec<Vec<&str>> =
            bad.iter().map(|one| vec![*one]).chain([vec![], vec![GOOD, GOOD]]).collect();
        for values in cases {
            let headers = propagated(&values, CREATE);
            let made = headers.get(TRACEPARENT).unwrap().as_bytes();
            assert!(
                is_valid(made) && made != GOOD.as_bytes() && made.ends_with(b"-01"),
                "{values:?}: {made:?}"
            );
            assert!(!headers.contains_key(TRACESTATE), "{values:?}");
            let other = propagated(&values, CREATE);
            assert_ne!(id(&headers), id(&other), "each is one of its own");
            let left = propagated(&values, TraceSettings { is_created: false, ..CREATE });
            assert!(left.is_empty(), "{values:?}");
        }
        let unsampled = propagated(&[], TraceSettings { sampled_percent: 0, ..CREATE });
        assert!(unsampled.get(TRACEPARENT).unwrap().as_bytes().ends_with(b"-00"));
    }
}
