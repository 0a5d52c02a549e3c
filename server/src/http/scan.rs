//! How far a run of permitted octets goes: the inner loops of the head parser.
//!
//! The sets are the tables in `field`. Eight octets at a time are first compared with what is
//! common in each set, by arithmetic on one word; only an octet that is not common is looked up.

use super::field;

/// How many of the first octets are token characters (RFC 9110 §5.6.2).
#[inline]
pub(super) fn token_len(bytes: &[u8]) -> usize {
    // Letters and "-".
    let rare = |word: u64| !(letters(word) | between(word, b'-', b'-'));
    run_len(bytes, rare, field::is_token)
}

/// How many of the first octets may stand in a request target.
#[inline]
pub(super) fn target_len(bytes: &[u8]) -> usize {
    // Letters, digits, "-", ".", "/" and ":".
    let rare = |word: u64| !(letters(word) | between(word, b'-', b':'));
    run_len(bytes, rare, field::is_target)
}

/// How many of the first octets may stand in a field value (RFC 9110 §5.5).
#[inline]
pub(super) fn value_len(bytes: &[u8]) -> usize {
    // Everything printable in ASCII.
    let rare = |word: u64| !between(word, b' ', b'~');
    run_len(bytes, rare, field::is_value)
}

const WORD_LEN: usize = size_of::<u64>();
/// The same octet eight times.
const ONES: u64 = u64::from_ne_bytes([1; WORD_LEN]);
/// The bit of each octet by which the comparisons below answer.
const ANSWER: u64 = ONES << 7;

#[inline(always)]
fn run_len(bytes: &[u8], rare: impl Fn(u64) -> u64, goes_on: impl Fn(u8) -> bool) -> usize {
    let mut at = 0;
    loop {
        while let Some(octets) = bytes[at..].first_chunk() {
            let rare = rare(u64::from_le_bytes(*octets)) & ANSWER;
            if rare != 0 {
                at += rare.trailing_zeros() as usize / 8;
                break;
            }
            at += WORD_LEN;
        }
        if at >= bytes.len() || !goes_on(bytes[at]) {
            return at;
        }
        at += 1;
    }
}

fn letters(word: u64) -> u64 {
    between(word | (ONES * 0x20), b'a', b'z')
}

/// Answers for each octet whether it is ASCII and within these bounds. No sum of two numbers of
/// seven bits carries into the next octet.
fn between(word: u64, first: u8, last: u8) -> u64 {
    let low = word & !ANSWER;
    let not_below = low + ONES * u64::from(0x80 - first);
    let above = low + ONES * u64::from(0x7f - last);
    not_below & !above & !word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_ends_where_the_table_says() {
        type Len = fn(&[u8]) -> usize;
        type GoesOn = fn(u8) -> bool;
        let cases: [(Len, GoesOn); 3] = [
            (token_len, field::is_token),
            (target_len, field::is_target),
            (value_len, field::is_value),
        ];
        for (len, goes_on) in cases {
            for octet in 0..=255 {
                for at in 0..40 {
                    let mut run = [b'a'; 40];
                    run[at] = octet;
                    let expected = if goes_on(octet) { run.len() } else { at };
                    assert_eq!(len(&run), expected, "{octet:#x} at {at}");
                    assert_eq!(len(&run[..at]), at);
                }
            }
        }
    }
}
