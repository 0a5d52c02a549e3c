//! `explain`: why a body or a tag is, or is not, what a start would serve.

use std::io::{self, Write};

use entrepot_storage::inspect::{Depth, Kind, Record, State, is_small, read_segment};
use entrepot_storage::{Digest, LinkKey, LinkRecord, Proof, TagKey, TagRecord};

use super::file::Read;
use super::load::{InspectError, Loaded, Place};
use super::show::{Copy, copies};
use super::text;
use super::verdict::{Verdict, Verdicts};

/// What `explain` is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    Body(Digest),
    Tag {
        /// `project/repository`.
        repository: String,
        name: String,
    },
}

impl Subject {
    pub fn parse(text: &str) -> Result<Subject, InspectError> {
        if let Ok(digest) = Digest::parse(text) {
            return Ok(Subject::Body(digest));
        }
        match text.rsplit_once(':') {
            Some((repository, name)) if repository.contains('/') && !name.contains('/') => {
                Ok(Subject::Tag {
                    repository: repository.to_owned(),
                    name: name.to_owned(),
                })
            }
            _ => Err(InspectError::NotAName(text.to_owned())),
        }
    }
}

pub struct Explain<'l> {
    loaded: &'l Loaded,
    verdicts: Verdicts<'l>,
}

impl<'l> Explain<'l> {
    pub fn new(loaded: &'l Loaded) -> Explain<'l> {
        Explain {
            loaded,
            verdicts: Verdicts::new(loaded),
        }
    }

    /// Whether it would be served.
    pub fn run(&self, subject: &Subject, out: &mut dyn Write) -> io::Result<bool> {
        for note in self.loaded.notes() {
            writeln!(out, "{note}")?;
        }
        for volume in &self.loaded.volumes {
            let path = volume.path.display();
            if let Err(error) = &volume.superblock {
                writeln!(out, "{path}: {error}: the store does not open")?;
            }
            for (name, error) in &volume.unopened {
                writeln!(out, "{path}/{name}: {error}: what is in it is not known")?;
            }
        }
        match subject {
            Subject::Body(digest) => {
                let served = self.body(digest, out)?;
                self.proofs(digest, out)?;
                conclude(served, out)
            }
            Subject::Tag { repository, name } => {
                let served = self.tag(repository, name, out)?;
                conclude(served, out)
            }
        }
    }

    /// Its copies, best first, and what kills or hides each.
    fn body(&self, digest: &Digest, out: &mut dyn Write) -> io::Result<bool> {
        writeln!(out, "{digest}")?;
        let mut served = false;
        for copy in copies(self.loaded, digest) {
            served |= self.copy(copy, out)?;
        }
        self.ignored_copies(digest, out)?;
        if let Some((sequence, segment)) = self.verdicts.forget_of(digest) {
            writeln!(
                out,
                "  forgotten up to sequence {sequence:#x} by a record in segment {segment:016x}"
            )?;
        }
        Ok(served)
    }

    fn copy(&self, copy: Copy<'_>, out: &mut dyn Write) -> io::Result<bool> {
        let (segment, entry) = (copy.place.segment, copy.entry);
        writeln!(
            out,
            "  copy in {}: {} and {}, offset {}, length {}, sequence {:#x}, created {}",
            copy.place.path().display(),
            text::class(segment.class),
            text::state(segment.state),
            entry.offset,
            entry.len,
            copy.sequence,
            text::date(entry.created),
        )?;
        if segment.state == State::Unsealed {
            writeln!(
                out,
                "    the segment is not sealed: the next start seals it"
            )?;
        }
        for fault in &segment.faults {
            writeln!(out, "    the segment: {fault}")?;
        }
        let record = Record {
            sequence: copy.sequence,
            kind: Kind::Body(entry.clone()),
        };
        let verdict = self.verdicts.verdict(&record, segment.id);
        writeln!(out, "    {}", verdict.text())?;
        let faults = match Read::open(&copy.place.path()) {
            Ok(source) => copy.faults(&source),
            Err(error) => {
                writeln!(out, "    the file: {error}")?;
                return Ok(false);
            }
        };
        for fault in &faults {
            writeln!(out, "    damaged: {fault}")?;
        }
        if faults.is_empty() {
            writeln!(out, "    whole: its header agrees, CRCs and digest match")?;
        }
        Ok(verdict == Verdict::Live && faults.is_empty())
    }

    /// Copies in files that the store ignores: of another store, or under another name.
    fn ignored_copies(&self, digest: &Digest, out: &mut dyn Write) -> io::Result<()> {
        for place in self.loaded.segments() {
            let segment = place.segment;
            if segment.state != State::Foreign {
                continue;
            }
            let path = place.path();
            let Ok(source) = Read::open(&path) else {
                continue;
            };
            let Some((_, id)) = segment.says else {
                continue;
            };
            let small = path
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(is_small);
            let read = read_segment(&source, id, small, None, Depth::Records);
            let is_it = |record: &Record| matches!(&record.kind, Kind::Body(entry) if entry.digest == *digest);
            if read.records.iter().any(is_it) {
                let why = match segment.faults.first() {
                    Some(fault) => fault.to_string(),
                    None => "it is of another store".to_owned(),
                };
                writeln!(out, "  copy in {}: ignored, {why}", path.display())?;
            }
        }
        Ok(())
    }

    /// The repositories that have, or had, a link to the body, and the tags that point to it.
    fn proofs(&self, digest: &Digest, out: &mut dyn Write) -> io::Result<()> {
        let mut proven = false;
        for (place, record) in self.records() {
            let verdict = self.verdicts.verdict(record, place.segment.id);
            if matches!(verdict, Verdict::Copy(_)) {
                continue;
            }
            match &record.kind {
                Kind::Link(key, link) if key.digest == *digest => {
                    proven |= verdict == Verdict::Live && proves(link);
                    link_line(key, link, verdict, out)?;
                }
                Kind::Tag(key, tag) if tag.digest == *digest => {
                    writeln!(out, "  tag {}: {}", text::tag(key), verdict.text())?;
                }
                _ => {}
            }
        }
        if !proven {
            writeln!(
                out,
                "  no link proves it to any repository: upstream is asked before it is served"
            )?;
        }
        Ok(())
    }

    fn tag(&self, repository: &str, name: &str, out: &mut dyn Write) -> io::Result<bool> {
        writeln!(out, "{repository}:{name}")?;
        let mut live: Option<(&TagKey, &TagRecord)> = None;
        for (place, record) in self.records() {
            let Kind::Tag(key, tag) = &record.kind else {
                continue;
            };
            let is_it = key.kind == entrepot_storage::TagKind::Tag
                && *key.name == *name
                && text::repository(&key.project, &key.repository) == repository;
            let verdict = self.verdicts.verdict(record, place.segment.id);
            if !is_it || matches!(verdict, Verdict::Copy(_)) {
                continue;
            }
            writeln!(
                out,
                "  {} from {} checked {}, sequence {:#x} in {}: {}",
                tag.digest,
                tag.origin,
                text::date(tag.checked),
                record.sequence,
                place.path().display(),
                verdict.text(),
            )?;
            if verdict == Verdict::Live {
                live = Some((key, tag));
            }
        }
        let Some((key, tag)) = live else {
            writeln!(out, "  no record of the tag counts")?;
            return Ok(false);
        };
        let served = self.body(&tag.digest, out)?;
        let proven = self.link(key, &tag.digest, out)?;
        Ok(served && proven)
    }

    /// The link of the tag's own repository.
    fn link(&self, tag: &TagKey, digest: &Digest, out: &mut dyn Write) -> io::Result<bool> {
        let mut proven = false;
        for (place, record) in self.records() {
            if let Kind::Link(key, link) = &record.kind
                && key.digest == *digest
                && key.project == tag.project
                && key.repository == tag.repository
            {
                let verdict = self.verdicts.verdict(record, place.segment.id);
                if !matches!(verdict, Verdict::Copy(_)) {
                    proven |= verdict == Verdict::Live && proves(link);
                    link_line(key, link, verdict, out)?;
                }
            }
        }
        if !proven {
            writeln!(
                out,
                "  no link proves it to the repository: upstream is asked before it is served"
            )?;
        }
        Ok(proven)
    }

    fn records(&self) -> impl Iterator<Item = (Place<'l>, &'l Record)> {
        let places = self.loaded.counting();
        places.flat_map(|place| {
            place
                .segment
                .records
                .iter()
                .map(move |record| (place, record))
        })
    }
}

/// A manifest that names a digest permits asking and proves nothing (R9).
fn proves(link: &LinkRecord) -> bool {
    link.proof != Proof::Manifest
}

fn link_line(
    key: &LinkKey,
    link: &LinkRecord,
    verdict: Verdict,
    out: &mut dyn Write,
) -> io::Result<()> {
    writeln!(
        out,
        "  link of {}: {} from {} at {}: {}",
        text::repository(&key.project, &key.repository),
        text::proof(link.proof),
        link.origin,
        text::date(link.at),
        verdict.text(),
    )
}

fn conclude(served: bool, out: &mut dyn Write) -> io::Result<bool> {
    let conclusion = match served {
        true => "a start would serve it; a running server does unless it was evicted since",
        false => "a start would not serve it from here",
    };
    writeln!(out, "{conclusion}")?;
    Ok(served)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_digests_from_tags() {
        let digest = Digest::sha256(b"x");
        let parsed = Subject::parse(&digest.to_string()).expect("a digest");
        assert_eq!(parsed, Subject::Body(digest));
        let parsed = Subject::parse("dh/library/nginx:1.27").expect("a tag");
        let tag = Subject::Tag {
            repository: "dh/library/nginx".to_owned(),
            name: "1.27".to_owned(),
        };
        assert_eq!(parsed, tag);
        for text in ["nginx:1", "dh/nginx", "sha256:00", "host:1/a"] {
            assert!(Subject::parse(text).is_err(), "{text}");
        }
    }
}
