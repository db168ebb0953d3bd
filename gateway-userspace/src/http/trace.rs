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
        let flags = u8::from(fastrand::u32(..100) < settings.sampled_percent);
        headers.insert(TRACEPARENT, begin(fastrand::u128(1..), fastrand::u64(1..), flags));
    }
}

/// The trace that a request belongs to, as 32 digits; none when there is none.
pub fn id(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get(TRACEPARENT)?.as_bytes().get(3..35)
}

fn begin(trace: u128, parent: u64, flags: u8) -> HeaderValue {
    let mut text = [b'-'; LEN];
    for (at, bytes) in [(0, &[0][..]), (3, &trace.to_be_bytes()), (36, &parent.to_be_bytes()), (53, &[flags])]
    {
        let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        for (to, digit) in text.iter_mut().skip(at).zip(digits) {
            *to = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
        }
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
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
