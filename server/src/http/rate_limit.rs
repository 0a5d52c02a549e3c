//! What a server says of how often it may be asked: `Retry-After` (RFC 9110 §10.2.3), and the
//! two fields with which registries count down, `ratelimit-limit: 100;w=21600` and
//! `ratelimit-remaining: 20;w=21600` (draft-ietf-httpapi-ratelimit-headers-02, and Docker Hub).
//!
//! A value that is not understood is a value not given: what to do then is not decided here.

use super::date;
use super::field::{digits, trim};

/// Requests that a window of time may still hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// In a whole window; never 0.
    pub limit: u64,
    /// At most `limit`.
    pub remaining: u64,
    /// Length of the window, where the server says it.
    pub window_s: Option<u64>,
}

/// Seconds to wait, from a number or from a date later than `now_s` (seconds since 1970).
pub fn retry_after(value: &[u8], now_s: u64) -> Option<u64> {
    let value = trim(value);
    digits(value).or_else(|| date::parse(value)?.checked_sub(now_s))
}

/// `None` unless both fields are there and make sense together.
pub fn budget(limit: &[u8], remaining: &[u8]) -> Option<Budget> {
    let (limit, window_s) = quota(limit)?;
    let (remaining, second_window_s) = quota(remaining)?;
    (limit > 0 && remaining <= limit).then_some(Budget {
        limit,
        remaining,
        window_s: window_s.or(second_window_s),
    })
}

/// A number with parameters, of which only `w` means anything here. Of a list the first counts.
fn quota(value: &[u8]) -> Option<(u64, Option<u64>)> {
    let first = value.split(|byte| *byte == b',').next()?;
    let mut parts = first.split(|byte| *byte == b';').map(trim);
    let count = digits(parts.next()?)?;
    let window_s = parts
        .filter_map(|part| part.strip_prefix(b"w="))
        .find_map(digits);
    Some((count, window_s))
}

/// What must hold for any bytes at all.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    let _ = retry_after(data, 1_700_000_000);
    let mut halves = data.splitn(2, |byte| *byte == b'\n');
    let (limit, remaining) = (halves.next(), halves.next());
    if let Some(budget) = budget(limit.unwrap_or_default(), remaining.unwrap_or_default()) {
        assert!(budget.limit > 0 && budget.remaining <= budget.limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_come_back_is_seconds_or_a_date() {
        let now_s = 784_111_777;
        let cases = [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:36 GMT", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
            ("99999999999999999999999", None),
        ];
        for (value, expected) in cases {
            assert_eq!(retry_after(value.as_bytes(), now_s), expected, "{value:?}");
        }
    }

    #[test]
    fn a_budget_needs_both_fields() {
        let of = |limit, remaining, window_s| {
            Some(Budget {
                limit,
                remaining,
                window_s,
            })
        };
        let cases = [
            ("100;w=21600", "20;w=21600", of(100, 20, Some(21_600))),
            ("100", "20", of(100, 20, None)),
            ("100", "0;w=60", of(100, 0, Some(60))),
            ("100, 100;w=10", " 7 ", of(100, 7, None)),
            ("100;burst=5;w=60", "7", of(100, 7, Some(60))),
            ("0", "0", None),
            ("100", "101", None),
            ("100", "", None),
            ("many", "7", None),
        ];
        for (limit, remaining, expected) in cases {
            let found = budget(limit.as_bytes(), remaining.as_bytes());
            assert_eq!(found, expected, "{limit:?} {remaining:?}");
        }
    }

    #[test]
    fn no_bytes_break_it() {
        let seeds: [&[u8]; 2] = [b"100;w=21600\n20;w=21600", b"Sun, 06 Nov 1994 08:49:37 GMT"];
        let words: [&[u8]; 4] = [b";w=", b",", b"\n", b"18446744073709551615"];
        crate::http::fuzzing::run(&seeds, &words, fuzz);
    }
}
