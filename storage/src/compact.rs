//! The compactor: copies live bodies out of segments, and reads bodies to see whether they are
//! still what was written.
//!
//! On a thread of its own, with its own disks. It knows neither the store nor the index: what is
//! live it asks of the owners, over the exchange, and they switch to the copies when the planner
//! tells them. Nothing it does is visible before that, and a crash at any step leaves the old
//! bodies where they are.

use std::io;
use std::sync::Arc;

use crate::check::Check;
use crate::disk::bulk::BulkDisk;
use crate::exchange::{
    Answer, Copied, Exchange, Finding, Job, Move, Place, Question, Report, Source, ToOwner, count,
    offer,
};
use crate::footer::{self, Sealed};
use crate::page::{PAGE_LEN, round_up};
use crate::record::{BodyEntry, CRC_STRIDE_BYTES, Kind, Record};
use crate::segment::file_name;
use crate::survivor::{Layout, Survivor};

/// Bytes of bodies read in one step, about: bounds how long a step takes.
const STEP_BYTES: u64 = 1 << 20;

pub struct Compactor<B: BulkDisk> {
    exchange: Arc<Exchange>,
    /// By the number of their volume.
    disks: Vec<B>,
    work: Option<Work<B>>,
}

/// A job under way.
struct Work<B: BulkDisk> {
    job: Job,
    /// By source; `None`: it is gone, and so is what was in it.
    files: Vec<Option<B::File>>,
    bodies: Vec<Found>,
    /// Records that are no bodies, kept as they are.
    others: Vec<Record>,
    unlisted: Vec<u64>,
    findings: Vec<Finding>,
    stage: Stage<B>,
}

enum Stage<B: BulkDisk> {
    Read,
    /// Questions that wait for room, and how many answers are to come.
    Ask(Vec<(usize, ToOwner)>, usize),
    Copy(Copying<B>),
    /// Findings and a report that wait for room.
    Tell(Vec<(usize, ToOwner)>, Report),
}

struct Found {
    source: usize,
    sequence: u64,
    entry: BodyEntry,
    /// The CRCs of its entry are not known.
    unlisted: bool,
    /// Known once its owner said that it is live.
    recency: Option<u32>,
}

struct Copying<B: BulkDisk> {
    /// `None`: nothing is copied.
    survivor: Option<Survivor<B>>,
    next: usize,
    body: Option<Body>,
    moves: Vec<Move>,
}

/// A body that is being read.
struct Body {
    read: u64,
    check: Check,
    /// Of the copy.
    offset: u64,
}

impl<B: BulkDisk> Compactor<B> {
    /// `disks`: one of each volume, in their order.
    pub fn new(exchange: Arc<Exchange>, disks: Vec<B>) -> Compactor<B> {
        exchange.set_attended(true);
        Compactor {
            exchange,
            disks,
            work: None,
        }
    }

    /// Does the next piece of work, about a MiB of it. `false`: there is nothing to do before an
    /// owner or the planner has done something. A future that is dropped loses the job.
    pub async fn step(&mut self) -> bool {
        let next = || self.exchange.jobs.pop().map(Work::new);
        let Some(mut work) = self.work.take().or_else(next) else {
            return false;
        };
        let disk = &self.disks[usize::from(work.job.volume)];
        let outcome = match work.stage {
            Stage::Read => work.read(disk, &self.exchange).await.map(|()| true),
            Stage::Ask(..) => work.ask(disk, &self.exchange).await,
            Stage::Copy(_) => work.copy(disk, &self.exchange).await.map(|()| true),
            Stage::Tell(..) => {
                let told = work.tell(&self.exchange);
                if !told.done {
                    self.work = Some(work);
                }
                return told.progress;
            }
        };
        let progress = match outcome {
            Ok(progress) => progress,
            Err(_) => {
                work.fail(disk, &self.exchange).await;
                true
            }
        };
        self.work = Some(work);
        progress
    }
}

impl<B: BulkDisk> Drop for Compactor<B> {
    fn drop(&mut self) {
        self.exchange.set_attended(false);
    }
}

struct Told {
    done: bool,
    progress: bool,
}

impl<B: BulkDisk> Work<B> {
    fn new(job: Job) -> Work<B> {
        Work {
            job,
            files: Vec::new(),
            bodies: Vec::new(),
            others: Vec::new(),
            unlisted: Vec::new(),
            findings: Vec::new(),
            stage: Stage::Read,
        }
    }

    /// Opens the next source and reads its footer.
    async fn read(&mut self, disk: &B, exchange: &Exchange) -> io::Result<()> {
        let number = self.files.len();
        let Some(source) = self.job.sources.get(number).copied() else {
            self.stage = self.questions(exchange);
            return Ok(());
        };
        let file = match disk.open(&file_name(source.segment, source.class)).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.files.push(None);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let records = match self.listed(disk, &file, &source, exchange).await? {
            Some(records) => records,
            None => {
                self.unlisted.push(source.segment);
                Vec::new()
            }
        };
        self.files.push(Some(file));
        for record in records {
            match record.kind {
                Kind::Body(entry) => self.bodies.push(Found {
                    source: number,
                    sequence: record.sequence,
                    entry,
                    unlisted: false,
                    recency: None,
                }),
                Kind::Area { .. } => {}
                _ => self.others.push(record),
            }
        }
        Ok(())
    }

    async fn listed(
        &self,
        disk: &B,
        file: &B::File,
        source: &Source,
        exchange: &Exchange,
    ) -> io::Result<Option<Vec<Record>>> {
        if source.unlisted {
            return Ok(None);
        }
        let sealed = Sealed {
            uuid: &exchange.uuid,
            segment: source.segment,
            len: source.len,
        };
        let listed = match footer::read(disk, file, &sealed).await {
            Ok(listed) => listed,
            Err(error) if transient(&error) => return Err(error),
            Err(_) => None,
        };
        if listed.is_none() {
            count(&exchange.counters.unlisted, 1);
        }
        Ok(listed)
    }

    /// One question to each owner that may have something to say.
    fn questions(&self, exchange: &Exchange) -> Stage<B> {
        let job = self.job.number;
        let question = |_| Question {
            job,
            places: Vec::new(),
            segments: self.unlisted.clone(),
        };
        let mut questions: Vec<Question> = (0..exchange.owners.len()).map(question).collect();
        for (number, found) in self.bodies.iter().enumerate() {
            let place = self.place(found);
            let number = u32::try_from(number).expect("bodies of a few segments");
            questions[exchange.owner(&place.digest)]
                .places
                .push((number, place));
        }
        let asked = |(_, question): &(usize, Question)| {
            !question.places.is_empty() || !question.segments.is_empty()
        };
        let questions = questions.into_iter().enumerate().filter(asked);
        let outgoing: Vec<_> = questions
            .map(|(owner, question)| (owner, ToOwner::Ask(question)))
            .collect();
        let answers = outgoing.len();
        Stage::Ask(outgoing, answers)
    }

    fn place(&self, found: &Found) -> Place {
        Place {
            digest: found.entry.digest,
            sequence: found.sequence,
            segment: self.job.sources[found.source].segment,
        }
    }

    /// Sends what is left of the questions and takes answers. Whether there was any.
    async fn ask(&mut self, disk: &B, exchange: &Exchange) -> io::Result<bool> {
        let Stage::Ask(outgoing, answers) = &mut self.stage else {
            unreachable!("called while asking");
        };
        let mut progress = offer(exchange, outgoing);
        let mut taken = Vec::new();
        while let Some(answer) = exchange.answers.pop() {
            progress = true;
            if answer.job == self.job.number {
                *answers -= 1;
                taken.push(answer);
            }
        }
        let complete = *answers == 0;
        for answer in taken {
            self.take(answer);
        }
        if complete {
            self.bodies.retain(|found| found.recency.is_some());
            // What was idle for as long expires together.
            self.bodies.sort_by_key(|found| found.recency);
            self.begin(disk, exchange).await?;
        }
        Ok(complete || progress)
    }

    fn take(&mut self, answer: Answer) {
        for (number, recency) in answer.live {
            self.bodies[number as usize].recency = Some(recency);
        }
        for listed in answer.listed {
            let of = |source: &Source| source.segment == listed.place.segment;
            let Some(source) = self.job.sources.iter().position(of) else {
                continue;
            };
            let created = self.job.target.map_or(0, |target| target.created);
            let entry = BodyEntry {
                digest: listed.place.digest,
                offset: listed.offset,
                len: listed.len,
                created,
                media_type: listed.media_type,
                crcs: vec![0; listed.len.div_ceil(CRC_STRIDE_BYTES) as usize],
            };
            self.bodies.push(Found {
                source,
                sequence: listed.place.sequence,
                entry,
                unlisted: true,
                recency: Some(listed.recency),
            });
        }
    }

    /// Makes the survivor segment, if there is anything to put into it.
    async fn begin(&mut self, disk: &B, exchange: &Exchange) -> io::Result<()> {
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
        self.stage = Stage::Copy(Copying {
            survivor,
            next: 0,
            body: None,
            moves: Vec::new(),
        });
        Ok(())
    }

    async fn copy(&mut self, disk: &B, exchange: &Exchange) -> io::Result<()> {
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
        let mut sound = true;
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
                    sound = body.check.update(piece);
                    if sound && let Some(survivor) = &mut copying.survivor {
                        survivor.append(disk, piece).await?;
                    }
                }
                Err(error) if transient(&error) => return Err(error),
                Err(_) => sound = false,
            }
            body.read += len;
            count(&exchange.counters.read, len);
        }
        let ended = !sound || body.read == found.entry.len;
        if ended {
            self.end_body(disk, exchange, sound).await?;
        }
        let moved = PAGE_LEN + len;
        let both = matches!(&self.stage, Stage::Copy(copying) if copying.survivor.is_some());
        disk.pause(if both { 2 * moved } else { moved }).await;
        Ok(moved)
    }

    /// The body was read to its end, or to where it is not what was written.
    async fn end_body(&mut self, disk: &B, exchange: &Exchange, sound: bool) -> io::Result<()> {
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
        let crcs = body.check.finish().filter(|_| sound);
        if crcs.is_none() || (copying.survivor.is_none() && source.unverified) {
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
        let job = self.job.number;
        let unlisted = std::mem::take(&mut self.unlisted);
        let sources = self.job.sources.len() as u64;
        let report = if self.job.target.is_some() {
            count(&exchange.counters.compacted, sources);
            Report::Copied {
                job,
                copied,
                unlisted,
            }
        } else {
            count(&exchange.counters.scrubbed, sources);
            Report::Scrubbed { job, unlisted }
        };
        self.conclude(exchange, report);
        Ok(())
    }

    /// Gives the target up: what is in the sources stays there.
    async fn fail(&mut self, disk: &B, exchange: &Exchange) {
        count(&exchange.counters.failed, 1);
        let job = self.job.number;
        let stage = std::mem::replace(&mut self.stage, Stage::Read);
        if let Stage::Copy(Copying {
            survivor: Some(survivor),
            ..
        }) = stage
        {
            survivor.give_up(disk).await;
        }
        self.conclude(exchange, Report::Failed { job });
    }

    fn conclude(&mut self, exchange: &Exchange, report: Report) {
        let mut findings = vec![Vec::new(); exchange.owners.len()];
        for finding in std::mem::take(&mut self.findings) {
            findings[exchange.owner(&finding.place.digest)].push(finding);
        }
        let findings = findings.into_iter().enumerate();
        let outgoing = findings
            .filter(|(_, findings)| !findings.is_empty())
            .map(|(owner, findings)| (owner, ToOwner::Found(findings)))
            .collect();
        self.stage = Stage::Tell(outgoing, report);
    }

    fn tell(&mut self, exchange: &Exchange) -> Told {
        let Stage::Tell(outgoing, report) = &mut self.stage else {
            unreachable!("called while telling");
        };
        let progress = offer(exchange, outgoing);
        if !outgoing.is_empty() {
            let done = false;
            return Told { done, progress };
        }
        let placeholder = Report::Switched { job: 0 };
        match exchange
            .reports
            .push(std::mem::replace(report, placeholder))
        {
            Ok(()) => Told {
                done: true,
                progress: true,
            },
            Err(kept) => {
                *report = kept;
                let done = false;
                Told { done, progress }
            }
        }
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

/// An error that says nothing of the bytes that were to be read.
fn transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory
    )
}

#[cfg(test)]
mod tests;
