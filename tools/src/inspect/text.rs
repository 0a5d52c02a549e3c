//! Records and segments as text and as JSON.

use entrepot_storage::inspect::{Class, Kind, Record, State};
use entrepot_storage::{ForgetKey, LinkKey, Proof, TagKey, TagKind};
use serde_json::{Value, json};

pub fn class(class: Class) -> &'static str {
    match class {
        Class::Shared => "shared",
        Class::Solo => "solo",
        Class::Small => "small",
    }
}

pub fn state(state: State) -> &'static str {
    match state {
        State::Sealed => "sealed",
        State::Unsealed => "unsealed",
        State::Empty => "empty",
        State::Foreign => "foreign",
    }
}

pub fn proof(proof: Proof) -> &'static str {
    match proof {
        Proof::Fetched => "fetched",
        Proof::Headed => "headed",
        Proof::Manifest => "manifest",
    }
}

/// The words of `--kind`.
pub const KINDS: [&str; 7] = [
    "body",
    "tag",
    "link",
    "statistics",
    "forget",
    "recency",
    "other",
];

pub fn kind(kind: &Kind) -> &'static str {
    match kind {
        Kind::Body(_) => "body",
        Kind::Tag(..) => "tag",
        Kind::Link(..) => "link",
        Kind::Statistics(..) => "statistics",
        Kind::Forget(_) => "forget",
        Kind::Recency(_) => "recency",
        Kind::Area { .. } | Kind::Unknown { .. } => "other",
    }
}

/// `project/repository:tag`; a listing in brackets.
pub fn tag(key: &TagKey) -> String {
    let repository = repository(&key.project, &key.repository);
    match key.kind {
        TagKind::Tag => format!("{repository}:{}", key.name),
        TagKind::Listing => format!("{repository} [{}]", key.name),
    }
}

pub fn link(key: &LinkKey) -> String {
    let repository = repository(&key.project, &key.repository);
    format!("{repository}@{}", key.digest)
}

pub fn repository(project: &str, repository: &str) -> String {
    format!("{project}/{repository}")
}

/// What a record says, in one line.
pub fn record(record: &Record) -> String {
    match &record.kind {
        Kind::Body(entry) => format!(
            "{} offset {} length {} {}",
            entry.digest,
            entry.offset,
            entry.len,
            entry.media_type.as_deref().unwrap_or("-"),
        ),
        Kind::Tag(key, value) => format!(
            "{} -> {} from {} checked {}",
            tag(key),
            value.digest,
            value.origin,
            date(value.checked),
        ),
        Kind::Link(key, value) => format!(
            "{} {} from {} at {}",
            link(key),
            proof(value.proof),
            value.origin,
            date(value.at),
        ),
        Kind::Statistics(key, value) => format!(
            "{} pulls {} served {} fetched {} last {}",
            repository(&key.project, &key.repository),
            value.pulls,
            value.served_bytes,
            value.upstream_bytes,
            date(value.last_pull),
        ),
        Kind::Forget(ForgetKey::Body(digest)) => format!("body {digest}"),
        Kind::Forget(ForgetKey::Tag(key)) => format!("tag {}", tag(key)),
        Kind::Forget(ForgetKey::Link(key)) => format!("link {}", link(key)),
        Kind::Forget(ForgetKey::Statistics(key)) => {
            format!("statistics {}", repository(&key.project, &key.repository))
        }
        Kind::Forget(ForgetKey::Scope(scope)) => match &scope.repository {
            Some(name) => format!("all names of {}", repository(&scope.project, name)),
            None => format!("all names of project {}", scope.project),
        },
        Kind::Unknown { code, payload } => {
            format!("kind {code}, {} bytes, of a later program", payload.len())
        }
        Kind::Recency(recency) => {
            format!(
                "times of {} bodies at {} s of the age clock",
                recency.seen.len(),
                recency.clock
            )
        }
        Kind::Area { offset, len } => format!("commit pages go on at {offset}, {len} bytes"),
    }
}

/// The same with every field; times in seconds, sizes in bytes.
pub fn record_json(record: &Record) -> Value {
    match &record.kind {
        Kind::Body(entry) => json!({
            "digest": entry.digest.to_string(),
            "offset": entry.offset,
            "length": entry.len,
            "created": entry.created,
            "media_type": entry.media_type.as_deref(),
        }),
        Kind::Tag(key, value) => json!({
            "project": key.project,
            "repository": key.repository,
            "listing": key.kind == TagKind::Listing,
            "name": key.name,
            "digest": value.digest.to_string(),
            "origin": &*value.origin,
            "checked": value.checked,
            "note": &*value.note,
        }),
        Kind::Link(key, value) => json!({
            "project": key.project,
            "repository": key.repository,
            "digest": key.digest.to_string(),
            "origin": &*value.origin,
            "proof": proof(value.proof),
            "at": value.at,
        }),
        Kind::Statistics(key, value) => json!({
            "project": key.project,
            "repository": key.repository,
            "pulls": value.pulls,
            "served_bytes": value.served_bytes,
            "upstream_bytes": value.upstream_bytes,
            "last_pull": value.last_pull,
        }),
        Kind::Forget(ForgetKey::Body(digest)) => json!({ "digest": digest.to_string() }),
        Kind::Forget(ForgetKey::Tag(key)) => json!({
            "project": key.project,
            "repository": key.repository,
            "listing": key.kind == TagKind::Listing,
            "name": key.name,
        }),
        Kind::Forget(ForgetKey::Link(key)) => json!({
            "project": key.project,
            "repository": key.repository,
            "digest": key.digest.to_string(),
        }),
        Kind::Forget(ForgetKey::Statistics(key)) => json!({
            "project": key.project,
            "repository": key.repository,
        }),
        Kind::Forget(ForgetKey::Scope(scope)) => json!({
            "project": scope.project,
            "repository": scope.repository,
        }),
        Kind::Unknown { code, payload } => json!({ "code": code, "length": payload.len() }),
        Kind::Recency(recency) => json!({ "clock": recency.clock, "bodies": recency.seen.len() }),
        Kind::Area { offset, len } => json!({ "offset": offset, "length": len }),
    }
}

pub fn uuid(uuid: &[u8; 16]) -> String {
    uuid.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Unix seconds as `2026-11-21T13:15:00Z`.
pub fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, so that a leap day ends its year: era of 400 years, year, day.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, (month + 2) % 12 + 1);
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (1_798_761_600, "2027-01-01T00:00:00Z"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }
}
