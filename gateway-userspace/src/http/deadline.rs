//! How long a request may take: as the rule says, and no longer than its client waits. Clients of gRPC say so (gRPC over
//! HTTP/2, `grpc-timeout`); nobody else does.

use std::time::Duration;

use http::{HeaderName, request::Parts};

use crate::http::fault::Language;

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The bound on a whole exchange; none where neither side has one.
pub(super) fn of(rule: Option<Duration>, parts: &Parts) -> Option<Duration> {
    if Language::of(parts) != Language::Grpc {
        return rule;
    }
    let client = parts.headers.get(&GRPC_TIMEOUT).and_then(|value| read(value.as_bytes()));
    rule.into_iter().chain(client).min()
}

/// At most eight digits and a unit. What is not that means nothing, as to endpoints.
fn read(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.len() > 8 {
        return None;
    }
    let n = crate::h1::number(digits)?;
    Some(match unit {
        b'H' => Duration::from_secs(n.checked_mul(3_600)?),
        b'M' => Duration::from_secs(n.checked_mul(60)?),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::{of as bound_of, *};

    #[test]
    fn the_earlier_of_both_counts() {
        let of = |rule: Option<u64>, kind: &str, timeout: &str| {
            let request = Request::post("/a").header("content-type", kind).header("grpc-timeout", timeout);
            let parts = request.body(()).unwrap().into_parts().0;
            bound_of(rule.map(Duration::from_millis), &parts).map(|bound| bound.as_micros())
        };
        for (rule, timeout, expected) in [
            (None, "200m", Some(200_000)),
            (Some(100), "200m", Some(100_000)),
            (Some(300), "200m", Some(200_000)),
            (None, "2H", Some(7_200_000_000)),
            (None, "3M", Some(180_000_000)),
            (None, "99999999S", Some(99_999_999_000_000)),
            (None, "7u", Some(7)),
            (None, "7000n", Some(7)),
        ] {
            assert_eq!(of(rule, "application/grpc+proto", timeout), expected, "{timeout}");
            assert_eq!(of(rule, "text/plain", timeout), rule.map(|bound| u128::from(bound) * 1_000));
        }
        for timeout in ["", "5", "m", "-1S", "1.5S", "1s", "123456789S", " 1S"] {
            assert_eq!(of(Some(1), "application/grpc", timeout), Some(1_000), "{timeout:?}");
        }
    }
}
