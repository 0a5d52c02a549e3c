//! HTTP dates in their one current form, IMF-fixdate (RFC 9110 §5.6.7).
//!
//! Formatted for `Date`; parsed from `Retry-After` and `Date` of upstreams. The two obsolete
//! forms are not parsed: no registry is known to send them, and a date not understood is a date not given.

/// Octets of every IMF-fixdate.
pub const LEN: usize = 29;

const DAYS: [&[u8; 3]; 7] = [b"Sun", b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat"];
const MONTHS: [&[u8; 3]; 12] = [
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
];
const DAY_SECONDS: u64 = 24 * 60 * 60;
/// The last second of year 9999: the form has four digits for the year.
const SECONDS_MAX: u64 = 253_402_300_799;

/// Formats seconds since 1970-01-01 UTC, as `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn format(seconds: u64) -> [u8; LEN] {
    let seconds = seconds.min(SECONDS_MAX);
    let (days, rest) = (seconds / DAY_SECONDS, seconds % DAY_SECONDS);
    let (year, month, day) = civil(days);
    let mut text = *b"Sun, 00 Jan 0000 00:00:00 GMT";
    // 1970-01-01 was a Thursday.
    text[..3].copy_from_slice(DAYS[((days + 4) % 7) as usize]);
    put(&mut text[5..7], day);
    text[8..11].copy_from_slice(MONTHS[month as usize - 1]);
    put(&mut text[12..16], year);
    put(&mut text[17..19], rest / 3600);
    put(&mut text[20..22], rest / 60 % 60);
    put(&mut text[23..25], rest % 60);
    text
}

/// Parses an IMF-fixdate into seconds since 1970-01-01 UTC. The name of the day must be right.
pub fn parse(text: &[u8]) -> Option<u64> {
    let text: &[u8; LEN] = text.try_into().ok()?;
    let month = MONTHS.iter().position(|name| *name == &text[8..11])? as u64 + 1;
    let (day, year) = (get(&text[5..7])?, get(&text[12..16])?);
    let (hour, minute, second) = (
        get(&text[17..19])?,
        get(&text[20..22])?,
        get(&text[23..25])?,
    );
    // A leap second (60) is counted as the first second of the next minute.
    if year < 1970 || day == 0 || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let days = days(year, month, day);
    let seconds = days * DAY_SECONDS + hour * 3600 + minute * 60 + second;
    // Formatting again catches what was not looked at: day of month, punctuation, day name.
    let again = format(seconds - second / 60);
    let second_free = |text: &[u8; LEN]| [&text[..23], &text[25..]] == [&again[..23], &again[25..]];
    (second_free(text) && seconds <= SECONDS_MAX).then_some(seconds)
}

/// Year, month and day of a number of days since 1970-01-01, by years that begin in March, so
/// that the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // since 0000-03-01
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year + carry, month, day)
}

/// The inverse of `civil`, for years from 1970.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let leap_days = year / 4 - year / 100 + year / 400;
    (365 * year + leap_days + (153 * month + 2) / 5 + day) - 719_469
}

fn put(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

fn get(digits: &[u8]) -> Option<u64> {
    super::field::digits(digits)
}

/// What must hold for any bytes at all.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    if let Some(seconds) = parse(data) {
        assert_eq!(parse(&format(seconds)), Some(seconds));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates_both_ways() {
        let cases = [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT"),
            (1_709_164_800, "Thu, 29 Feb 2024 00:00:00 GMT"),
            (1_795_219_200, "Sat, 21 Nov 2026 00:00:00 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (SECONDS_MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ];
        for (seconds, text) in cases {
            assert_eq!(std::str::from_utf8(&format(seconds)), Ok(text));
            assert_eq!(parse(text.as_bytes()), Some(seconds), "{text}");
        }
        assert_eq!(format(u64::MAX), format(SECONDS_MAX));
    }

    #[test]
    fn every_day_of_four_centuries_returns() {
        for day in 0..400 * 366 {
            let seconds = day * DAY_SECONDS + day % DAY_SECONDS;
            assert_eq!(parse(&format(seconds)), Some(seconds));
        }
    }

    #[test]
    fn a_leap_second_is_the_next_minute() {
        let leap = parse(b"Sat, 31 Dec 2016 23:59:60 GMT");
        assert_eq!(leap, parse(b"Sun, 01 Jan 2017 00:00:00 GMT"));
    }

    #[test]
    fn other_forms_are_no_dates() {
        let cases = [
            "",
            "60",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Mon, 06 Nov 1994 08:49:37 GMT",
            "sun, 06 Nov 1994 08:49:37 GMT",
            "Sun, 6 Nov 1994 08:49:37 GMT ",
            "Sun, 06 nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:49:37 GMT",
            "Sun, 06 Nov 1994 08:60:37 GMT",
            "Sun, 06 Nov 1994 08:49:61 GMT",
            "Sun, 06 Nov 1994 08-49-37 GMT",
            "Tue, 30 Feb 2000 00:00:00 GMT",
            "Thu, 00 Jan 1970 00:00:00 GMT",
            "Wed, 31 Dec 1969 23:59:59 GMT",
            "Sun, +6 Nov 1994 08:49:37 GMT",
        ];
        for text in cases {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn fuzz_mutated_dates() {
        let seeds: [&[u8]; 3] = [
            b"Thu, 01 Jan 1970 00:00:00 GMT",
            b"Sat, 31 Dec 2016 23:59:60 GMT",
            b"Fri, 31 Dec 9999 23:59:59 GMT",
        ];
        let words: [&[u8]; 6] = [b"00", b"99", b"Feb", b"Mon", b" ", b":"];
        crate::http::fuzzing::run(&seeds, &words, fuzz);
    }
}
