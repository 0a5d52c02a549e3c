//! The second half of a job: live bodies are read and checked, and copied if there is a target.

use std::io;
use std::sync::Arc;

use super::{Body, Copying, Found, STEP_BYTES, Stage, Work};
use crate::check::Check;
use crate::disk::bulk::BulkDisk;
use crate::exchange::{Copied, Exchange, Finding, Move, Place, Report, count};
use crate::page::{PAGE_LEN, round_up};
use crate::record::{BodyEntry, CRC_STRIDE_BYTES, Kind, Record};
use crate::survivor::{Layout, Survivor};

/// What a body is found to be when it was read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Sound,
    /// Not what was written.
    Broken,
    /// The disk did not say.
    Unread,
}

impl<B: BulkDisk> Work<B> {
    /// Makes the survivor segment, if there is anything to put into it.
    pub(super) async fn begin(&mut self, disk: &B, exchange: &Exchange) -> io::Result<()> {
        let mut layout = Layout::default();
        for found in &self.bodies {
            layout.add_body(&found.entry);
        }
        for record in &self.others {
            layout.add_record(record.encoded().len() as u64);
        }
        let any = !self.bodies.is_empty() || !self.others.is_empty();
        let survivor = match self.job.target.filter(|_| any) {
            Some(target) => Some(Survivor::create(disk, exchange.uuid, target, &layout).await?),
            None => None,
        };
        self.stage = Stage::Copy(Box::new(Copying {
            survivor,
            next: 0,
            body: None,
            moves: Vec::new(),
        }));
        Ok(())
    }

    pub(super) async fn copy(&mut self, disk: &B, exchange: &Exchange) -> io::Result<()> {
        let mut moved = 0;
        while moved < STEP_BYTES {
            let Stage::Copy(copying) = &self.stage else {
                unreachable!("called while copying");
            };
            if copying.next == self.bodies.len() {
                return self.seal(disk, exchange).await;
            }
            moved += self.copy_piece(disk, exchange).await?;
        }
        Ok(())
    }

    /// Reads the next MiB of a body, checks it and appends it. Returns the bytes that were moved.
    async fn copy_piece(&mut self, disk: &B, exchange: &Exchange) -> io::Result<u64> {
        let Stage::Copy(copying) = &mut self.stage else {
            unreachable!("called while copying");
        };
        let found = &self.bodies[copying.next];
        let body = match &mut copying.body {
            Some(body) => body,
            None => copying.body.insert(Body {
                read: 0,
                check: found.check(),
                offset: match &mut copying.survivor {
                    Some(survivor) => survivor.begin(disk, found.sequence, &found.entry).await?,
                    None => 0,
                },
            }),
        };
        let len = (found.entry.len - body.read).min(CRC_STRIDE_BYTES);
        let (mut outcome, mut failed) = (Outcome::Sound, None);
        if len > 0 {
            let read = match &self.files[found.source] {
                Some(file) => {
                    let (offset, pages) = (found.entry.offset + body.read, round_up(len) as usize);
                    disk.read(file, offset, pages).await
                }
                None => Err(io::ErrorKind::NotFound.into()),
            };
            match read {
                Ok(read) => {
                    let piece = &read.as_ref()[..len as usize];
                    if !body.check.update(piece) {
                        outcome = Outcome::Broken;
                    } else if let Some(survivor) = &mut copying.survivor {
                        survivor.append(disk, piece).await?;
                    }
                }
                // The file was cut.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    outcome = Outcome::Broken;
                }
                Err(error) => {
                    outcome = Outcome::Unread;
                    failed = Some((found.source, error));
                }
            }
            body.read += len;
            count(&exchange.counters.read, len);
        }
        let ended = outcome != Outcome::Sound || body.read == found.entry.len;
        if let Some((source, error)) = failed {
            self.read_failed(source, error)?;
        }
        if ended {
            self.end_body(disk, exchange, outcome).await?;
        }
        let moved = PAGE_LEN + len;
        let both = matches!(&self.stage, Stage::Copy(copying) if copying.survivor.is_some());
        disk.pause(if both { 2 * moved } else { moved }).await;
        Ok(moved)
    }

    /// The body was read to its end, or to where it is not what was written.
    async fn end_body(
        &mut self,
        disk: &B,
        exchange: &Exchange,
        outcome: Outcome,
    ) -> io::Result<()> {
        let Stage::Copy(copying) = &mut self.stage else {
            unreachable!("called while copying");
        };
        let found = &self.bodies[copying.next];
        let source = &self.job.sources[found.source];
        let place = Place {
            digest: found.entry.digest,
            sequence: found.sequence,
            segment: source.segment,
        };
        copying.next += 1;
        let body = copying.body.take().expect("a body is being read");
        let crcs = body.check.finish().filter(|_| outcome == Outcome::Sound);
        if outcome == Outcome::Unread {
            self.unreadable.push(place);
        } else if crcs.is_none() || (copying.survivor.is_none() && source.unverified) {
            let sound = crcs.is_some();
            self.findings.push(Finding { place, sound });
        }
        if self.job.target.is_none() {
            count(&exchange.counters.scrubbed_bytes, body.read);
        }
        let Some(survivor) = &mut copying.survivor else {
            return Ok(());
        };
        survivor.end_body(disk).await?;
        if let Some(crcs) = crcs {
            let entry = BodyEntry {
                offset: body.offset,
                crcs,
                ..found.entry.clone()
            };
            survivor.enter(Record {
                sequence: found.sequence,
                kind: Kind::Body(entry),
            });
            let offset = body.offset;
            copying.moves.push(Move { place, offset });
        }
        Ok(())
    }

    /// Makes the copies durable, before anyone hears of them.
    async fn seal(&mut self, disk: &B, exchange: &Exchange) -> io::Result<()> {
        let Stage::Copy(copying) = &mut self.stage else {
            unreachable!("called while copying");
        };
        let mut copied = None;
        if let Some(survivor) = &mut copying.survivor {
            for record in std::mem::take(&mut self.others) {
                survivor.enter(record);
            }
            let (len, floor) = survivor.seal(disk, &exchange.counters).await?;
            let mut moves = vec![Vec::new(); exchange.owners.len()];
            for moved in std::mem::take(&mut copying.moves) {
                moves[exchange.owner(&moved.place.digest)].push(moved);
            }
            let moves = moves.into_iter().map(Arc::from).collect();
            copied = Some(Copied { len, floor, moves });
        }
        self.judge_unreadable();
        let job = self.job.number;
        let unread = std::mem::take(&mut self.unread);
        let unlisted = std::mem::take(&mut self.unlisted);
        let sources = self.job.sources.len() as u64;
        let report = if self.job.target.is_some() {
            count(&exchange.counters.compacted, sources);
            Report::Copied {
                job,
                copied,
                unlisted,
                unread,
            }
        } else {
            count(&exchange.counters.scrubbed, sources);
            Report::Scrubbed {
                job,
                unlisted,
                unread,
            }
        };
        self.conclude(exchange, report);
        Ok(())
    }
}

impl Found {
    fn check(&self) -> Check {
        if self.unlisted {
            Check::by_digest(&self.entry.digest)
        } else {
            Check::by_crcs(&self.entry)
        }
    }
}
