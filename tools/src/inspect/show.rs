//! `show`: the bytes of a body, out of whichever whole copy there is.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use entrepot_storage::Digest;
use entrepot_storage::inspect::{BodyEntry, BodyFault, BodyPlace, Kind, Source};

use super::file::Read;
use super::load::{InspectError, Loaded, Place, at};
use super::verdict::{Verdict, Verdicts};
use super::verify::STDOUT;

/// A commit entry of a body and where it is.
#[derive(Clone, Copy)]
pub struct Copy<'l> {
    pub place: Place<'l>,
    pub sequence: u64,
    pub entry: &'l BodyEntry,
}

impl Copy<'_> {
    pub fn body(&self) -> Option<BodyPlace<'_>> {
        Some(BodyPlace {
            uuid: self.place.segment.uuid?,
            segment: self.place.segment.id,
            sequence: self.sequence,
            entry: self.entry,
        })
    }

    /// All that is wrong with it; empty if the bytes are the body.
    pub fn faults(&self, source: &dyn Source) -> Vec<BodyFault> {
        let Some(body) = self.body() else {
            return vec![BodyFault::Header];
        };
        let mut faults = Vec::new();
        if let Err(fault) = body.check_header(source) {
            faults.push(fault);
        }
        if faults.first() != Some(&BodyFault::Outside) {
            let read = body.check_bytes(source, true, |_| Ok(()));
            faults.extend(read.expect("the step does not fail"));
        }
        faults
    }
}

/// All copies of a body in segments that count, the one that would be served first.
pub fn copies<'l>(loaded: &'l Loaded, digest: &Digest) -> Vec<Copy<'l>> {
    let mut copies = Vec::new();
    for place in loaded.counting() {
        for record in &place.segment.records {
            if let Kind::Body(entry) = &record.kind
                && entry.digest == *digest
            {
                let sequence = record.sequence;
                copies.push(Copy {
                    place,
                    sequence,
                    entry,
                });
            }
        }
    }
    copies.sort_by_key(|copy| std::cmp::Reverse((copy.sequence, copy.place.segment.id)));
    copies
}

/// Writes the body to `output`, or to `out`. Nothing is written before a copy was read to its
/// end and found to have the digest.
pub fn show(
    loaded: &Loaded,
    digest: &Digest,
    output: Option<&Path>,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<(), InspectError> {
    let verdicts = Verdicts::new(loaded);
    for copy in copies(loaded, digest) {
        let path = copy.place.path();
        let source = match Read::open(&path) {
            Ok(source) => source,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(at(&path)(error)),
        };
        let faults = copy.faults(&source);
        let (notes_path, say) = (Path::new("standard error"), path.display());
        if let Some(fault) = faults.first() {
            writeln!(notes, "{say}: {fault}").map_err(at(notes_path))?;
            continue;
        }
        let forgotten = verdicts.forget_of(digest);
        if let Some((forget, _)) = forgotten.filter(|(forget, _)| copy.sequence <= *forget) {
            let verdict = Verdict::Forgotten(forget).text();
            writeln!(notes, "{say}: not served: {verdict}").map_err(at(notes_path))?;
        }
        return match output {
            Some(output) => {
                let file = File::create(output).map_err(at(output))?;
                write(copy, &source, &mut &file, output)
            }
            None => write(copy, &source, out, Path::new(STDOUT)),
        };
    }
    Err(InspectError::NotShown(digest.to_string()))
}

fn write(
    copy: Copy<'_>,
    source: &dyn Source,
    out: &mut dyn Write,
    path: &Path,
) -> Result<(), InspectError> {
    let body = copy.body().expect("it was just read");
    let faults = body.check_bytes(source, true, |step| out.write_all(step));
    let changed = !faults.map_err(at(path))?.is_empty();
    out.flush().map_err(at(path))?;
    match changed {
        true => Err(InspectError::Changed(copy.entry.digest.to_string())),
        false => Ok(()),
    }
}
