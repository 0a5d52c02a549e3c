//! `verify`: reads every page and every body of a store, or of one segment.

use std::io::{self, Write};
use std::path::Path;

use entrepot_storage::inspect::{
    BodyFault, BodyPlace, Depth, Fault, Kind, Segment, State, Uuid, read_segment,
};
use indicatif::{ProgressBar, ProgressStyle};

use super::file::Direct;
use super::load::{InspectError, Loaded, Place, at};

pub struct Asked {
    /// Of this segment only.
    pub segment: Option<u64>,
    /// Hash every body too.
    pub digests: bool,
}

#[derive(Default)]
pub struct Checked {
    pub segments: u64,
    pub bodies: u64,
    pub bytes: u64,
    pub faults: u64,
}

/// Writes a line for each fault, then a summary.
pub fn verify(
    loaded: &Loaded,
    asked: &Asked,
    out: &mut dyn Write,
) -> Result<Checked, InspectError> {
    let chosen: Vec<Place<'_>> = loaded
        .segments()
        .filter(|place| asked.segment.is_none_or(|id| id == place.segment.id))
        .collect();
    if let (Some(id), true) = (asked.segment, chosen.is_empty()) {
        return Err(InspectError::NoSegment(id));
    }
    let bar = progress(chosen.iter().map(|place| body_bytes(place.segment)).sum());
    let mut run = Run {
        asked,
        out,
        bar,
        checked: Checked::default(),
    };
    if asked.segment.is_none() {
        run.volumes(loaded).map_err(at(Path::new(STDOUT)))?;
    }
    for place in chosen {
        run.segment(place).map_err(at(&place.path()))?;
    }
    run.bar.finish_and_clear();
    let checked = run.checked;
    writeln!(
        out,
        "{} segments, {} bodies, {} bytes checked: {} faults",
        checked.segments, checked.bodies, checked.bytes, checked.faults
    )
    .map_err(at(Path::new(STDOUT)))?;
    Ok(checked)
}

pub const STDOUT: &str = "standard output";

fn body_bytes(segment: &Segment) -> u64 {
    let len = |record: &entrepot_storage::inspect::Record| match &record.kind {
        Kind::Body(entry) => entry.len,
        _ => 0,
    };
    segment.records.iter().map(len).sum()
}

/// Drawn on stderr, and only if that is a terminal.
fn progress(bytes: u64) -> ProgressBar {
    let template = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).expect("a valid template");
    ProgressBar::new(bytes).with_style(style)
}

struct Run<'r> {
    asked: &'r Asked,
    out: &'r mut dyn Write,
    bar: ProgressBar,
    checked: Checked,
}

impl Run<'_> {
    fn fault(&mut self, what: &str, fault: &str) -> io::Result<()> {
        self.checked.faults += 1;
        let out = &mut self.out;
        self.bar.suspend(|| writeln!(out, "{what}: {fault}"))
    }

    fn note(&mut self, what: &str, note: &str) -> io::Result<()> {
        let out = &mut self.out;
        self.bar.suspend(|| writeln!(out, "note: {what}: {note}"))
    }

    fn volumes(&mut self, loaded: &Loaded) -> io::Result<()> {
        for note in loaded.notes() {
            self.note("the store", &note)?;
        }
        for volume in &loaded.volumes {
            let path = volume.path.display().to_string();
            if let Err(error) = &volume.superblock {
                self.fault(&path, error)?;
            }
            for (name, error) in &volume.unopened {
                self.fault(&format!("{path}/{name}"), &error.to_string())?;
            }
        }
        Ok(())
    }

    fn segment(&mut self, place: Place<'_>) -> io::Result<()> {
        let path = place.path();
        let name = path.display().to_string();
        self.bar.set_message(format!("{:016x}", place.segment.id));
        let uuid = place.volume.uuid();
        let Some((source, segment)) = read_twice(&path, place.segment, uuid)? else {
            return Ok(());
        };
        self.checked.segments += 1;
        for fault in &segment.faults {
            if fault.is_expected() {
                self.note(&name, &fault.to_string())?;
            } else {
                self.fault(&name, &fault.to_string())?;
            }
        }
        match segment.state {
            State::Foreign if segment.faults.is_empty() => {
                self.note(&name, "is of another store: ignored")?;
            }
            State::Unsealed => self.note(&name, "is not sealed: being written, or left so")?,
            State::Foreign | State::Sealed | State::Empty => {}
        }
        let Some(uuid) = segment.uuid.filter(|_| segment.state != State::Foreign) else {
            return Ok(());
        };
        for record in &segment.records {
            if let Kind::Body(entry) = &record.kind {
                let body = BodyPlace {
                    uuid,
                    segment: segment.id,
                    sequence: record.sequence,
                    entry,
                };
                self.body(&name, &source, body)?;
            }
        }
        Ok(())
    }

    fn body(&mut self, name: &str, source: &Direct, body: BodyPlace<'_>) -> io::Result<()> {
        let what = format!("{name}: {}", body.entry.digest);
        self.checked.bodies += 1;
        if let Err(fault) = body.check_header(source) {
            self.fault(&what, &fault.to_string())?;
            if fault == BodyFault::Outside {
                return Ok(());
            }
        }
        let mut bytes = 0;
        let faults = body.check_bytes(source, self.asked.digests, |step| {
            bytes += step.len() as u64;
            self.bar.inc(step.len() as u64);
            Ok(())
        })?;
        self.checked.bytes += bytes;
        for fault in faults {
            self.fault(&what, &fault.to_string())?;
        }
        Ok(())
    }
}

/// A running server may be within writing a page. What is still wrong when it is read again is
/// damage. `None`: it was reclaimed in the meantime.
fn read_twice(
    path: &Path,
    known: &Segment,
    uuid: Option<Uuid>,
) -> io::Result<Option<(Direct, Segment)>> {
    let read = || match Direct::open(path) {
        Ok(source) => {
            let small = known.class == entrepot_storage::inspect::Class::Small;
            let segment = read_segment(&source, known.id, small, uuid, Depth::Pages);
            Ok(Some((source, segment)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let first = read()?;
    match &first {
        Some((_, segment)) if !segment.faults.iter().all(Fault::is_expected) => read(),
        _ => Ok(first),
    }
}
