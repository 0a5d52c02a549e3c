//! `segments` and `records`.

use std::io::{self, Write};

use entrepot_storage::Digest;
use entrepot_storage::inspect::{Class, Kind, Record, StoreFile};
use serde_json::{Value, json};

use super::load::{Loaded, Place};
use super::text;
use super::verdict::{Verdict, Verdicts};

/// Bodies and bytes of a segment, by what a start would find.
#[derive(Default)]
struct Share {
    live_records: usize,
    live_bytes: u64,
    dead_bytes: u64,
}

impl Share {
    fn of(place: Place<'_>, verdicts: &Verdicts<'_>) -> Share {
        let mut share = Share::default();
        for record in &place.segment.records {
            let live =
                place.volume.belongs && verdicts.verdict(record, place.segment.id) == Verdict::Live;
            share.live_records += usize::from(live);
            if let Kind::Body(entry) = &record.kind {
                let bytes = if live {
                    &mut share.live_bytes
                } else {
                    &mut share.dead_bytes
                };
                *bytes += entry.len;
            }
        }
        share
    }
}

pub fn segments(loaded: &Loaded, json: bool, out: &mut dyn Write) -> io::Result<()> {
    let verdicts = Verdicts::new(loaded);
    if json {
        for place in loaded.segments() {
            writeln!(out, "{}", segment_json(place, &verdicts))?;
        }
        return Ok(());
    }
    for note in loaded.notes() {
        writeln!(out, "note: {note}")?;
    }
    for volume in &loaded.volumes {
        volume_line(&volume.path.display().to_string(), &volume.superblock, out)?;
        writeln!(
            out,
            "{:<16}  {:<6}  {:<8}  {:>13}  {:>7}  {:>7}  {:>13}  {:>13}  CREATED",
            "SEGMENT", "CLASS", "STATE", "LENGTH", "RECORDS", "LIVE", "LIVE BYTES", "DEAD BYTES",
        )?;
        for segment in &volume.segments {
            segment_line(Place { volume, segment }, &verdicts, out)?;
        }
        for (name, error) in &volume.unopened {
            writeln!(out, "{name}: {error}")?;
        }
    }
    Ok(())
}

fn volume_line(
    path: &str,
    superblock: &Result<StoreFile, String>,
    out: &mut dyn Write,
) -> io::Result<()> {
    match superblock {
        Ok(store) => writeln!(
            out,
            "{path}: store {}, volume {}, generation {}, capacity {}, segments of {}, created {}",
            text::uuid(&store.uuid),
            text::uuid(&store.volume),
            store.generation,
            store.capacity,
            store.segment_len,
            text::date(store.created),
        ),
        Err(error) => writeln!(out, "{path}: {error}"),
    }
}

fn segment_line(place: Place<'_>, verdicts: &Verdicts<'_>, out: &mut dyn Write) -> io::Result<()> {
    let segment = place.segment;
    let share = Share::of(place, verdicts);
    let bytes = |bytes: u64| match segment.class {
        Class::Small => "-".to_owned(),
        Class::Shared | Class::Solo => bytes.to_string(),
    };
    writeln!(
        out,
        "{:016x}  {:<6}  {:<8}  {:>13}  {:>7}  {:>7}  {:>13}  {:>13}  {}",
        segment.id,
        text::class(segment.class),
        text::state(segment.state),
        segment.len,
        segment.records.len(),
        share.live_records,
        bytes(share.live_bytes),
        bytes(share.dead_bytes),
        segment.created.map_or("-".to_owned(), text::date),
    )?;
    for fault in &segment.faults {
        writeln!(out, "    {fault}")?;
    }
    Ok(())
}

fn segment_json(place: Place<'_>, verdicts: &Verdicts<'_>) -> Value {
    let segment = place.segment;
    let share = Share::of(place, verdicts);
    let faults: Vec<String> = segment.faults.iter().map(ToString::to_string).collect();
    json!({
        "volume": place.volume.path,
        "segment": format!("{:016x}", segment.id),
        "class": text::class(segment.class),
        "state": text::state(segment.state),
        "length": segment.len,
        "records": segment.records.len(),
        "live_records": share.live_records,
        "live_bytes": share.live_bytes,
        "dead_bytes": share.dead_bytes,
        "created": segment.created,
        "faults": faults,
    })
}

/// Which records `records` lists.
pub struct Filter {
    pub segment: Option<u64>,
    /// One of `text::KINDS`.
    pub kind: Option<String>,
    pub digest: Option<Digest>,
    /// `project/repository`.
    pub repository: Option<String>,
}

impl Filter {
    fn takes(&self, place: Place<'_>, record: &Record) -> bool {
        self.segment.is_none_or(|id| id == place.segment.id)
            && self
                .kind
                .as_deref()
                .is_none_or(|kind| kind == text::kind(&record.kind))
            && self
                .digest
                .is_none_or(|digest| digest_of(record) == Some(digest))
            && self
                .repository
                .as_deref()
                .is_none_or(|name| in_repository(record, name))
    }
}

/// The digest that a record is about or points to.
fn digest_of(record: &Record) -> Option<Digest> {
    use entrepot_storage::ForgetKey;
    match &record.kind {
        Kind::Body(entry) => Some(entry.digest),
        Kind::Tag(_, tag) => Some(tag.digest),
        Kind::Link(key, _) | Kind::Forget(ForgetKey::Link(key)) => Some(key.digest),
        Kind::Forget(ForgetKey::Body(digest)) => Some(*digest),
        _ => None,
    }
}

fn in_repository(record: &Record, name: &str) -> bool {
    use entrepot_storage::ForgetKey;
    let (project, repository) = match &record.kind {
        Kind::Tag(key, _) | Kind::Forget(ForgetKey::Tag(key)) => (&key.project, &key.repository),
        Kind::Link(key, _) | Kind::Forget(ForgetKey::Link(key)) => (&key.project, &key.repository),
        Kind::Statistics(key, _) | Kind::Forget(ForgetKey::Statistics(key)) => {
            (&key.project, &key.repository)
        }
        Kind::Forget(ForgetKey::Scope(scope)) => match &scope.repository {
            Some(repository) => (&scope.project, repository),
            None => return name.split('/').next() == Some(&*scope.project),
        },
        _ => return false,
    };
    text::repository(project, repository) == name
}

pub fn records(
    loaded: &Loaded,
    filter: &Filter,
    json: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
    let verdicts = Verdicts::new(loaded);
    for place in loaded.segments() {
        let segment = place.segment;
        for record in segment
            .records
            .iter()
            .filter(|record| filter.takes(place, record))
        {
            let verdict = verdicts.verdict(record, segment.id).text();
            let (kind, sequence) = (text::kind(&record.kind), record.sequence);
            if json {
                let mut value = text::record_json(record);
                value["volume"] = json!(place.volume.path);
                value["segment"] = json!(format!("{:016x}", segment.id));
                value["sequence"] = json!(sequence);
                value["kind"] = json!(kind);
                value["verdict"] = json!(verdict);
                writeln!(out, "{value}")?;
            } else {
                let says = text::record(record);
                let id = segment.id;
                writeln!(
                    out,
                    "{id:016x}  {sequence:#x}  {kind:<10}  {says}  ({verdict})"
                )?;
            }
        }
    }
    Ok(())
}
