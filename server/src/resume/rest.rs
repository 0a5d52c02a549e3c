//! Whether an answer is the rest of a body, by its status, its length and its Content-Range. Pure.

use crate::http::range::ContentRange;

/// Why an answer can't be the rest of what has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("a 206 of another part than was asked for")]
    Part,
    #[error("a body of another length")]
    Length,
    #[error("a body of another ETag")]
    Etag,
}

/// What an answer to "the rest from `at`" is: how much of it is known already, and the length of
/// the whole.
pub fn rest(
    status: u16,
    part: Option<ContentRange>,
    length: Option<u64>,
    at: u64,
) -> Result<(u64, Option<u64>), Unfit> {
    match (status, part) {
        (200, _) if length.is_some_and(|length| length < at) => Err(Unfit::Length),
        (200, _) => Ok((at, length)),
        (
            206,
            Some(ContentRange::Part {
                start,
                end,
                length: total,
            }),
        ) => {
            let whole = start == at && total.is_some_and(|total| total == end);
            let honest = length.is_none_or(|length| length == end - start);
            match whole && honest {
                true => Ok((0, total)),
                false => Err(Unfit::Part),
            }
        }
        _ => Err(Unfit::Part),
    }
}

#[cfg(test)]
mod tests {
    use super::{ContentRange, Unfit, rest};

    fn part(start: u64, end: u64, length: Option<u64>) -> Option<ContentRange> {
        Some(ContentRange::Part { start, end, length })
    }

    #[test]
    fn only_the_rest_of_the_body_is_joined() {
        for (name, status, part, length, expected) in [
            (
                "the rest",
                206,
                part(60, 100, Some(100)),
                Some(40),
                Ok((0, Some(100))),
            ),
            (
                "the rest, in chunks",
                206,
                part(60, 100, Some(100)),
                None,
                Ok((0, Some(100))),
            ),
            ("the whole", 200, None, Some(100), Ok((60, Some(100)))),
            ("the whole, in chunks", 200, None, None, Ok((60, None))),
            ("too short to skip", 200, None, Some(59), Err(Unfit::Length)),
            (
                "another start",
                206,
                part(59, 100, Some(100)),
                Some(41),
                Err(Unfit::Part),
            ),
            (
                "another end",
                206,
                part(60, 99, Some(100)),
                Some(39),
                Err(Unfit::Part),
            ),
            (
                "of unknown length",
                206,
                part(60, 100, None),
                Some(40),
                Err(Unfit::Part),
            ),
            (
                "a length that lies",
                206,
                part(60, 100, Some(100)),
                Some(41),
                Err(Unfit::Part),
            ),
            ("no Content-Range", 206, None, Some(40), Err(Unfit::Part)),
            (
                "nothing",
                206,
                Some(ContentRange::Unsatisfied { length: 100 }),
                Some(0),
                Err(Unfit::Part),
            ),
        ] {
            assert_eq!(rest(status, part, length, 60), expected, "{name}");
        }
    }
}
