//! Durations (`10m`) and sizes (`2TiB`): a whole number and one unit, read and written.

use std::time::Duration;

pub const DURATION_EXPECTED: &str =
    "a whole number and a unit (ms, s, m, h, d, w), such as \"10m\"";
pub const SIZE_EXPECTED: &str =
    "a whole number and a unit (B, KiB, MiB, GiB, TiB, or kB, MB, GB, TB), such as \"512MiB\"";
pub const CAPACITY_EXPECTED: &str =
    "a size such as \"2TiB\", or a percentage of the file system such as \"90%\"";

/// Milliseconds per unit, largest first: the order in which a duration is written.
const DURATIONS: [(&str, u64); 6] = [
    ("w", 7 * 24 * 3_600_000),
    ("d", 24 * 3_600_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Bytes per unit. Sizes are written in the binary ones, largest first.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
];
const BINARY_SIZES: usize = 5;

pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let (_, ms) = DURATIONS.iter().find(|(name, _)| *name == unit)?;
    Some(Duration::from_millis(number.checked_mul(*ms)?))
}

/// In the largest unit that divides it; weeks are written as days, as people count.
pub fn format_duration(duration: Duration) -> String {
    let total = duration.as_millis() as u64;
    if total == 0 {
        return "0s".to_owned();
    }
    let exact = DURATIONS[1..]
        .iter()
        .find(|(_, ms)| total.is_multiple_of(*ms));
    let (unit, ms) = exact.expect("every duration is a number of milliseconds");
    format!("{}{unit}", total / ms)
}

/// Unit names in any case, so that `512mib` and `2TB` mean what they say.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let (_, bytes) = SIZES
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    number.checked_mul(*bytes)
}

pub fn format_size(size: u64) -> String {
    let exact = SIZES[..BINARY_SIZES]
        .iter()
        .find(|(_, bytes)| size.is_multiple_of(*bytes) && size >= *bytes);
    let (unit, bytes) = exact.unwrap_or(&("B", 1));
    format!("{}{unit}", size / bytes)
}

/// More than 0, at most 100.
pub fn parse_percent(text: &str) -> Option<f64> {
    let number = text.strip_suffix('%')?.trim_end();
    let plain = number
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let percent: f64 = number.parse().ok().filter(|_| plain)?;
    (percent > 0.0 && percent <= 100.0).then_some(percent)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::{format_duration, format_size, parse_duration, parse_percent, parse_size};
    use std::time::Duration;

    #[test]
    fn durations() {
        for (text, ms) in [
            ("0s", 0),
            ("250ms", 250),
            ("5s", 5_000),
            ("10m", 600_000),
            ("36h", 36 * 3_600_000),
            ("60d", 60 * 24 * 3_600_000),
            ("14 d", 14 * 24 * 3_600_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Some(Duration::from_millis(ms)),
                "{text}"
            );
            let written = format_duration(Duration::from_millis(ms));
            assert_eq!(parse_duration(&written), Some(Duration::from_millis(ms)));
        }
        assert_eq!(parse_duration("2w"), parse_duration("14d"));
        for text in [
            "",
            "5",
            "s",
            "-5s",
            "+5s",
            "1.5h",
            "5 minutes",
            "5S",
            "1h30m",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
        assert_eq!(parse_duration("18446744073709551615w"), None, "overflow");
        assert_eq!(format_duration(Duration::from_secs(90)), "90s");
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0B", 0),
            ("512MiB", 512 << 20),
            ("512mib", 512 << 20),
            ("2TiB", 2 << 40),
            ("64 KiB", 64 << 10),
            ("2TB", 2_000_000_000_000),
            ("1kB", 1_000),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
            assert_eq!(parse_size(&format_size(bytes)), Some(bytes), "{text}");
        }
        for text in ["", "5", "5X", "-5MiB", "1.5GiB", "90%", "99999999TiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
        assert_eq!(format_size(512 << 20), "512MiB");
        assert_eq!(format_size(1_000), "1000B");
    }

    #[test]
    fn percentages() {
        assert_eq!(parse_percent("90%"), Some(90.0));
        assert_eq!(parse_percent("0.5 %"), Some(0.5));
        for text in [
            "", "%", "90", "0%", "101%", "-1%", "1e1%", "inf%", "NaN%", "1.2.3%",
        ] {
            assert_eq!(parse_percent(text), None, "{text}");
        }
    }
}
