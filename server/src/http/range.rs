//! Byte ranges: what a client asks for, and what a `Content-Range` says (RFC 9110 §14).
//!
//! The connection loop parses `Range` and resolves it once the length is known; the upstream
//! client checks the `Content-Range` of a 206 before it splices bodies.

use super::field;

/// What a `Range` field asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeRequest<'v> {
    /// Malformed or in another unit: ignored (RFC 9110 §14.2).
    None,
    One(ByteRange),
    Several(RangeSet<'v>),
}

/// Ranges that are answered one by one; a request for more is answered with everything (RFC 9110
/// §14.2 allows both). podman asks for 1,024 at most, and wants each of them back.
pub const RANGES_MAX: usize = 1024;

/// The members of a `Range` field, each of them well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeSet<'v>(&'v [u8]);

impl<'v> RangeSet<'v> {
    /// In the order in which they were asked for.
    pub fn members(self) -> impl Iterator<Item = ByteRange> + 'v {
        field::members(self.0)
            .filter(|member| !member.is_empty())
            .filter_map(member_range)
    }

    /// Those that a representation of this length satisfies, in the order asked and as they were
    /// asked: a client may count its parts. `None`: the field is ignored, for there are too many
    /// of them, or they overlap so that together they are more than everything.
    pub fn resolve(self, length: u64) -> Result<Option<Vec<(u64, u64)>>, Unsatisfiable> {
        if self.members().count() > RANGES_MAX {
            return Ok(None);
        }
        let satisfied = self.members().map(|range| range.resolve(length));
        let parts: Vec<(u64, u64)> = satisfied.filter_map(Result::ok).collect();
        if parts.is_empty() {
            return Err(Unsatisfiable);
        }
        let wanted = parts
            .iter()
            .try_fold(0_u64, |sum, (start, end)| sum.checked_add(end - start));
        Ok(wanted
            .is_some_and(|wanted| wanted <= length)
            .then_some(parts))
    }
}

/// One range whose relation to a length is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// `first-last`, both included.
    Between { first: u64, last: u64 },
    /// `first-`
    From { first: u64 },
    /// `-length`
    Suffix { length: u64 },
}

/// No octet of the representation is in the range: 416 with `Content-Range: bytes */length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("range not satisfiable")]
pub struct Unsatisfiable;

impl ByteRange {
    /// The octets of a representation of this length: first included, end excluded.
    pub fn resolve(self, length: u64) -> Result<(u64, u64), Unsatisfiable> {
        let (start, end) = match self {
            // RFC 9110 §14.1.2: a last position beyond the end means the end.
            ByteRange::Between { first, last } => (first, last.saturating_add(1).min(length)),
            ByteRange::From { first } => (first, length),
            ByteRange::Suffix { length: suffix } => (length.saturating_sub(suffix), length),
        };
        // Of an empty representation nothing is satisfied: no Content-Range could say it.
        if start < end {
            Ok((start, end))
        } else {
            Err(Unsatisfiable)
        }
    }
}

/// Parses the value of a `Range` field.
pub fn parse(value: &[u8]) -> RangeRequest<'_> {
    // RFC 9110 §14.1: range unit names are case-insensitive.
    let Some((unit, set)) = value.split_at_checked(UNIT.len()) else {
        return RangeRequest::None;
    };
    if !unit.eq_ignore_ascii_case(UNIT) {
        return RangeRequest::None;
    }
    let mut request = RangeRequest::None;
    // RFC 9110 §5.6.1.2: empty list members are ignored.
    for member in field::members(set).filter(|member| !member.is_empty()) {
        let Some(range) = member_range(member) else {
            return RangeRequest::None;
        };
        request = match request {
            RangeRequest::None => RangeRequest::One(range),
            _ => RangeRequest::Several(RangeSet(set)),
        };
    }
    request
}

const UNIT: &[u8] = b"bytes=";

fn member_range(member: &[u8]) -> Option<ByteRange> {
    let dash = member.iter().position(|byte| *byte == b'-')?;
    let (first, last) = (&member[..dash], &member[dash + 1..]);
    match (first, last) {
        ([], []) => None,
        ([], _) => Some(ByteRange::Suffix {
            length: position(last)?,
        }),
        (_, []) => Some(ByteRange::From {
            first: position(first)?,
        }),
        _ => {
            let (first, last) = (position(first)?, position(last)?);
            // RFC 9110 §14.1.1: a range whose last position is before its first is invalid.
            (first <= last).then_some(ByteRange::Between { first, last })
        }
    }
}

/// A number of any size. No representation reaches the end of 64 bits, so what lies beyond is
/// as far outside as the end itself.
fn position(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(field::digits(digits).unwrap_or(u64::MAX))
}

/// What a `Content-Range` field says (RFC 9110 §14.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentRange {
    /// `bytes first-last/length`, with the end excluded; the length may be withheld (`*`).
    Part {
        start: u64,
        end: u64,
        length: Option<u64>,
    },
    /// `bytes */length`
    Unsatisfied { length: u64 },
}

impl ContentRange {
    /// Parses the value of a `Content-Range` field; `None` for anything malformed.
    pub fn parse(value: &[u8]) -> Option<ContentRange> {
        let (unit, rest) = value.split_at_checked(CONTENT_UNIT.len())?;
        if !unit.eq_ignore_ascii_case(CONTENT_UNIT) {
            return None;
        }
        let slash = rest.iter().position(|byte| *byte == b'/')?;
        let (part, length) = (&rest[..slash], &rest[slash + 1..]);
        if part == b"*" {
            let length = field::digits(length)?;
            return Some(ContentRange::Unsatisfied { length });
        }
        let dash = part.iter().position(|byte| *byte == b'-')?;
        let start = field::digits(&part[..dash])?;
        let end = field::digits(&part[dash + 1..])?.checked_add(1)?;
        let length = match length {
            b"*" => None,
            digits => Some(field::digits(digits)?),
        };
        // RFC 9110 §14.4: invalid if last < first or if the length is not greater than last.
        if start >= end || length.is_some_and(|length| length < end) {
            return None;
        }
        Some(ContentRange::Part { start, end, length })
    }
}

const CONTENT_UNIT: &[u8] = b"bytes ";

impl std::fmt::Display for ContentRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            ContentRange::Part { start, end, length } => {
                write!(f, "bytes {start}-{}/", end.saturating_sub(1))?;
                match length {
                    Some(length) => write!(f, "{length}"),
                    None => write!(f, "*"),
                }
            }
            ContentRange::Unsatisfied { length } => write!(f, "bytes */{length}"),
        }
    }
}

/// What must hold for any bytes at all.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    for length in [0, 1, 10, 1 << 40, u64::MAX] {
        let parts = match parse(data) {
            RangeRequest::None => Vec::new(),
            RangeRequest::One(range) => range.resolve(length).into_iter().collect(),
            RangeRequest::Several(ranges) => match ranges.resolve(length) {
                Ok(parts) => parts.unwrap_or_default(),
                Err(Unsatisfiable) => Vec::new(),
            },
        };
        assert!(parts.len() <= RANGES_MAX);
        let wanted: u64 = parts.iter().map(|(start, end)| end - start).sum();
        assert!(wanted <= length);
        assert!(
            parts
                .iter()
                .all(|(start, end)| start < end && *end <= length)
        );
    }
    if let Some(range) = ContentRange::parse(data) {
        let text = range.to_string();
        assert_eq!(ContentRange::parse(text.as_bytes()), Some(range), "{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(value: &str) -> ByteRange {
        match parse(value.as_bytes()) {
            RangeRequest::One(range) => range,
            other => panic!("{value}: {other:?}"),
        }
    }

    #[test]
    fn ranges_of_a_hundred_octets() {
        let cases = [
            ("bytes=0-0", Ok((0, 1))),
            ("bytes=0-99", Ok((0, 100))),
            ("bytes=0-100", Ok((0, 100))),
            ("bytes=10-19", Ok((10, 20))),
            ("BYTES=10-19", Ok((10, 20))),
            ("bytes= 10-19\t", Ok((10, 20))),
            ("bytes=,10-19, ,", Ok((10, 20))),
            ("bytes=010-019", Ok((10, 20))),
            ("bytes=99-", Ok((99, 100))),
            ("bytes=0-", Ok((0, 100))),
            ("bytes=-1", Ok((99, 100))),
            ("bytes=-100", Ok((0, 100))),
            ("bytes=-101", Ok((0, 100))),
            ("bytes=-18446744073709551615", Ok((0, 100))),
            ("bytes=-99999999999999999999", Ok((0, 100))),
            ("bytes=0-18446744073709551615", Ok((0, 100))),
            ("bytes=0-99999999999999999999", Ok((0, 100))),
            ("bytes=100-", Err(Unsatisfiable)),
            ("bytes=100-200", Err(Unsatisfiable)),
            ("bytes=-0", Err(Unsatisfiable)),
            ("bytes=18446744073709551615-", Err(Unsatisfiable)),
            (
                "bytes=99999999999999999998-99999999999999999999",
                Err(Unsatisfiable),
            ),
        ];
        for (value, expected) in cases {
            assert_eq!(one(value).resolve(100), expected, "{value}");
        }
    }

    #[test]
    fn nothing_of_an_empty_representation() {
        for value in ["bytes=0-", "bytes=0-0", "bytes=-1", "bytes=-0"] {
            assert_eq!(one(value).resolve(0), Err(Unsatisfiable), "{value}");
        }
    }

    fn several(value: &str) -> RangeSet<'_> {
        match parse(value.as_bytes()) {
            RangeRequest::Several(ranges) => ranges,
            other => panic!("{value}: {other:?}"),
        }
    }

    #[test]
    fn several_ranges_of_a_hundred_octets() {
        let parts = |parts: &[(u64, u64)]| Ok(Some(parts.to_vec()));
        let cases = [
            ("bytes=0-1,3-4", parts(&[(0, 2), (3, 5)])),
            ("bytes=90-94 , ,-5", parts(&[(90, 95), (95, 100)])),
            ("bytes=50-59,10-19", parts(&[(50, 60), (10, 20)])),
            ("bytes=0-0,0-0", parts(&[(0, 1), (0, 1)])),
            ("bytes=0-9,100-,-0", parts(&[(0, 10)])),
            ("bytes=0-49,50-", parts(&[(0, 50), (50, 100)])),
            ("bytes=0-49,49-", Ok(None)),
            ("bytes=0-,0-,0-", Ok(None)),
            ("bytes=100-,200-300", Err(Unsatisfiable)),
        ];
        for (value, expected) in cases {
            assert_eq!(several(value).resolve(100), expected, "{value}");
        }
        assert_eq!(several("bytes=0-,-1").resolve(0), Err(Unsatisfiable));
    }

    #[test]
    fn as_many_ranges_as_podman_sends() {
        let asked = |count: u64| {
            let members: Vec<String> = (0..count).map(|nth| format!("{}-{0}", 2 * nth)).collect();
            format!("bytes={}", members.join(","))
        };
        let value = asked(RANGES_MAX as u64);
        let parts = several(&value).resolve(1 << 20);
        assert_eq!(
            parts.map(|parts| parts.map_or(0, |parts| parts.len())),
            Ok(RANGES_MAX)
        );
        let value = asked(RANGES_MAX as u64 + 1);
        assert_eq!(several(&value).resolve(1 << 20), Ok(None));
    }

    #[test]
    fn malformed_ranges_and_other_units_are_ignored() {
        let cases = [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=1",
            "bytes=a-b",
            "bytes=1-0",
            "bytes=1-2-3",
            "bytes=--1",
            "bytes=+1-2",
            "bytes=1 -2",
            "bytes=1- 2",
            "bytes =1-2",
            "bytes=0-1,x",
            "bytes=0-1;2-3",
            "octets=0-1",
            "lines=1-2",
            " bytes=0-1",
            "none",
        ];
        for value in cases {
            assert_eq!(parse(value.as_bytes()), RangeRequest::None, "{value}");
        }
        assert_eq!(parse(b"bytes=0-\xff"), RangeRequest::None);
    }

    #[test]
    fn content_ranges() {
        let part = |start, end, length| Some(ContentRange::Part { start, end, length });
        let cases = [
            ("bytes 0-0/1", part(0, 1, Some(1))),
            ("Bytes 10-19/100", part(10, 20, Some(100))),
            ("bytes 10-19/*", part(10, 20, None)),
            (
                "bytes */100",
                Some(ContentRange::Unsatisfied { length: 100 }),
            ),
            ("bytes 10-19/19", None),
            ("bytes 10-9/100", None),
            ("bytes 10-/100", None),
            ("bytes -9/100", None),
            ("bytes */*", None),
            ("bytes 10-19", None),
            ("bytes=10-19/100", None),
            ("bytes 10-19/100 ", None),
            ("bytes 10-18446744073709551615/*", None),
            ("", None),
        ];
        for (value, expected) in cases {
            assert_eq!(ContentRange::parse(value.as_bytes()), expected, "{value}");
        }
        let text = ContentRange::Part {
            start: 10,
            end: 20,
            length: Some(100),
        }
        .to_string();
        assert_eq!(text, "bytes 10-19/100");
        let text = ContentRange::Unsatisfied { length: 100 }.to_string();
        assert_eq!(text, "bytes */100");
    }

    #[test]
    fn fuzz_mutated_ranges() {
        let seeds: [&[u8]; 6] = [
            b"bytes=0-",
            b"bytes=10-19",
            b"bytes=-500",
            b"bytes=0-1,5-6",
            b"bytes 10-19/100",
            b"bytes */100",
        ];
        let words: [&[u8]; 8] = [
            b"-",
            b",",
            b"bytes",
            b"=",
            b"18446744073709551615",
            b"0",
            b"/",
            b"*",
        ];
        crate::http::fuzzing::run(&seeds, &words, fuzz);
    }
}
