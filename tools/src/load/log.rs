//! Access logs: entrepot's own, as text or JSON, nginx's combined format, and entrepot-origin's.

use std::time::Duration;

use serde_json::Value;

use super::url::Url;

/// One request of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Since some moment that all lines of a log share.
    pub at: Duration,
    pub head_only: bool,
    /// With its query.
    pub path: String,
    /// What was answered.
    pub status: Option<u16>,
}

/// The entry of a line; `None` for a line that is none, or for a method that no client of a
/// cache sends.
pub fn parse(line: &str) -> Option<Entry> {
    let line = line.trim();
    if line.starts_with('{') {
        return parse_json(&serde_json::from_str(line).ok()?);
    }
    parse_text(line).or_else(|| parse_combined(line))
}

fn parse_json(line: &Value) -> Option<Entry> {
    let text = |name: &str| line.get(name).and_then(Value::as_str);
    let status = line.get("status").and_then(Value::as_u64);
    let status = status.and_then(|status| u16::try_from(status).ok());
    // entrepot-origin's
    if let Some(ms) = line.get("t_ms").and_then(Value::as_u64) {
        let query = text("query").filter(|query| !query.is_empty());
        let query = query.map_or(String::new(), |query| format!("?{query}"));
        let path = format!("{}{query}", text("path")?);
        return entry(Duration::from_millis(ms), text("method")?, path, status);
    }
    let at = parse_rfc3339(text("timestamp")?)?;
    let path = path_of(text)?;
    entry(at, text("method")?, path, status)
}

/// A line of entrepot: `2026-01-02T03:04:05.678Z  INFO served method=GET ...`
fn parse_text(line: &str) -> Option<Entry> {
    let (at, rest) = line.split_once(' ')?;
    let at = parse_rfc3339(at)?;
    let value = |name: &str| {
        let mut words = rest.split(' ').filter_map(|word| word.split_once('='));
        let found = words.find(|(is, _)| *is == name)?;
        Some(found.1.trim_matches('"'))
    };
    let status = value("status").and_then(|status| status.parse().ok());
    entry(at, value("method")?, path_of(value)?, status)
}

/// What entrepot was asked for: the log names the parts.
fn path_of<'l>(value: impl Fn(&str) -> Option<&'l str>) -> Option<String> {
    let what = match value("kind")? {
        "base" => return Some("/v2/".to_owned()),
        "tag" | "manifest" => "manifests",
        "blob" => "blobs",
        _ => return None,
    };
    let (project, repository) = (value("project")?, value("repository")?);
    let reference = value("reference")?;
    Some(format!("/v2/{project}/{repository}/{what}/{reference}"))
}

/// `1.2.3.4 - - [02/Jan/2026:03:04:05 +0000] "GET /v2/ HTTP/1.1" 200 2 "-" "-"`
fn parse_combined(line: &str) -> Option<Entry> {
    let (_, rest) = line.split_once(" [")?;
    let (at, rest) = rest.split_once("] \"")?;
    let (request, rest) = rest.split_once('"')?;
    let mut words = request.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let status = rest.split_whitespace().next()?.parse().ok();
    entry(parse_clf_time(at)?, method, path.to_owned(), status)
}

fn entry(at: Duration, method: &str, path: String, status: Option<u16>) -> Option<Entry> {
    let head_only = match method {
        "GET" => false,
        "HEAD" => true,
        _ => return None,
    };
    // What would not go into a request's first line.
    let whole = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
    whole.then_some(Entry {
        at,
        head_only,
        path,
        status,
    })
}

impl Entry {
    /// Where it goes now.
    pub fn url(&self, base: &Url) -> Url {
        Url {
            origin: base.origin.clone(),
            path: self.path.clone(),
        }
    }
}

/// Since 1970, in UTC, with or without parts of a second.
fn parse_rfc3339(text: &str) -> Option<Duration> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let day = days(date.next()??, date.next()??, date.next()??)?;
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let fraction: f64 = format!("0.{fraction}").parse().ok()?;
    Some(Duration::from_secs(day * 86_400 + seconds(clock)?) + Duration::from_secs_f64(fraction))
}

/// `02/Jan/2026:03:04:05 +0000`
fn parse_clf_time(text: &str) -> Option<Duration> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let (text, zone) = text.split_once(' ')?;
    let (date, clock) = text.split_once(':')?;
    let mut date = date.splitn(3, '/');
    let (day, month, year) = (date.next()?, date.next()?, date.next()?);
    let month = MONTHS.find(month).filter(|_| month.len() == 3)? as u64 / 3 + 1;
    let day = days(year.parse().ok()?, month, day.parse().ok()?)?;
    let zone: i64 = zone.parse().ok()?;
    let behind = (zone / 100) * 3600 + (zone % 100) * 60;
    let utc = (day * 86_400 + seconds(clock)?).checked_add_signed(-behind)?;
    Some(Duration::from_secs(utc))
}

fn seconds(clock: &str) -> Option<u64> {
    let mut parts = clock.splitn(3, ':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    (hour < 24 && minute < 60 && second <= 60).then_some(hour * 3600 + minute * 60 + second)
}

/// Since 1970-01-01, in the Gregorian calendar (Hinnant's days_from_civil).
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1970..10_000).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let of_era = year % 400;
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    Some(year / 400 * 146_097 + day_of_era - 719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_kind() {
        let at = Duration::from_millis(1_767_323_045_250);
        let entry = |at: Duration, head_only: bool, path: &str, status: u16| {
            Some(Entry {
                at,
                head_only,
                path: path.to_owned(),
                status: Some(status),
            })
        };
        for (line, expected) in [
            (
                "2026-01-02T03:04:05.250000Z  INFO served peer=1.2.3.4:5 method=HEAD project=dh \
                 repository=library/app reference=1.0 kind=tag status=200 cache=hit upstream=- \
                 bytes=1 ms=0.1",
                entry(at, true, "/v2/dh/library/app/manifests/1.0", 200),
            ),
            (
                r#"{"timestamp":"2026-01-02T03:04:05.25Z","level":"INFO","message":"served",
                 "method":"GET","project":"dh","repository":"a","reference":"sha256:0",
                 "kind":"blob","status":404}"#,
                entry(at, false, "/v2/dh/a/blobs/sha256:0", 404),
            ),
            (
                r#"{"timestamp":"2026-01-02T03:04:05.25Z","method":"GET","kind":"base","status":200}"#,
                entry(at, false, "/v2/", 200),
            ),
            (
                "1.2.3.4 - me [02/Jan/2026:04:04:05 +0100] \"GET /v2/?ns=x HTTP/1.1\" 200 2 \"-\" \"-\"",
                entry(at - Duration::from_millis(250), false, "/v2/?ns=x", 200),
            ),
            (
                r#"{"n":1,"t_ms":12,"method":"GET","path":"/v2/a","query":"x=1","status":200}"#,
                entry(Duration::from_millis(12), false, "/v2/a?x=1", 200),
            ),
            ("2026-01-02T03:04:05Z  INFO listening addr=1", None),
            (
                "1.2.3.4 - - [02/Jan/2026:04:04:05 +0100] \"PUT / HTTP/1.1\" 200 2",
                None,
            ),
            (
                "1.2.3.4 - - [40/Foo/2026:04:04:05 +0100] \"GET / HTTP/1.1\" 200 2",
                None,
            ),
            ("{\"t_ms\":1,\"method\":\"GET\",\"path\":\"/a b\"}", None),
            ("{}", None),
            ("", None),
        ] {
            assert_eq!(parse(line), expected, "{line}");
        }
    }

    #[test]
    fn days_since_1970() {
        assert_eq!(days(1970, 1, 1), Some(0));
        assert_eq!(days(2000, 3, 1), Some(11_017));
        assert_eq!(days(2024, 2, 29), Some(19_782));
        assert_eq!(days(2026, 13, 1), None);
    }
}
