//! The compactor: copies live bodies out of segments, and reads bodies to see whether they are
//! still what was written.
//!
//! On a thread of its own, with its own disks. It knows neither the store nor the index: what is
//! live it asks of the owners, over the exchange, and they switch to the copies when the planner
//! tells them. Nothing it does is visible before that, and a crash at any step leaves the old
//! bodies where they are.

mod copy;
mod gather;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use crate::check::Check;
use crate::disk::bulk::BulkDisk;
use crate::disk::too_many_files;
use crate::exchange::{Exchange, Finding, Job, Move, Place, Report, ToOwner, count, offer};
use crate::record::{BodyEntry, Record};
use crate::survivor::Survivor;

/// Bytes of bodies read in one step, about: bounds how long a step takes.
const STEP_BYTES: u64 = 1 << 20;
/// So many reads of one job that fail are a failing disk, and not one of its sectors.
const FAILED_READS_MAX: usize = 3;
/// Bodies that could not be read once. Of more the oldest are given another chance.
const SUSPECTS_MAX: usize = 1024;
/// Entries of one job's segments, live or not: they and the questions take some 64 MiB.
const ENTRIES_MAX: usize = 1 << 18;

pub struct Compactor<B: BulkDisk> {
    exchange: Arc<Exchange>,
    /// By the number of their volume.
    disks: Vec<B>,
    work: Option<Work<B>>,
    /// The job that it took and has not reported.
    job: Option<u64>,
    /// Where one more failed read means that the body is lost.
    suspects: Vec<Place>,
    entries_max: usize,
}

/// A job under way.
struct Work<B: BulkDisk> {
    job: Job,
    /// By source; `None`: it could not be opened.
    files: Vec<Option<B::File>>,
    bodies: Vec<Found>,
    /// Records that are no bodies, kept as they are.
    others: Vec<Record>,
    /// So many of the segments are read that their entries stay within this, about.
    entries_max: usize,
    unlisted: Vec<u64>,
    /// Segments that could not be read in full.
    unread: Vec<u64>,
    failed_reads: usize,
    unreadable: Vec<Place>,
    suspects: Vec<Place>,
    findings: Vec<Finding>,
    stage: Stage<B>,
}

enum Stage<B: BulkDisk> {
    Read,
    /// Questions that wait for room, and how many answers are to come.
    Ask(Vec<(usize, ToOwner)>, usize),
    Copy(Box<Copying<B>>),
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
        exchange.attend();
        exchange.ask_for(0);
        Compactor {
            exchange,
            disks,
            work: None,
            job: None,
            suspects: Vec::new(),
            entries_max: ENTRIES_MAX,
        }
    }

    /// Does the next piece of work, about a MiB of it. `false`: there is nothing to do before an
    /// owner or the planner has done something. A future that is dropped loses the job.
    pub async fn step(&mut self) -> bool {
        let mut work = match self.work.take() {
            Some(work) => work,
            None => match self.next_job() {
                Some(job) => Work::new(job, std::mem::take(&mut self.suspects), self.entries_max),
                None => return false,
            },
        };
        let disk = &self.disks[usize::from(work.job.volume)];
        let outcome = match work.stage {
            Stage::Read => work.read(disk, &self.exchange).await.map(|()| true),
            Stage::Ask(..) => work.ask(disk, &self.exchange).await,
            Stage::Copy(_) => work.copy(disk, &self.exchange).await.map(|()| true),
            Stage::Tell(..) => {
                let told = work.tell(&self.exchange);
                if told.done {
                    self.job = None;
                    self.exchange.ask_for(0);
                    self.suspects = work.suspects;
                } else {
                    self.work = Some(work);
                }
                return told.progress;
            }
        };
        let progress = match outcome {
            Ok(progress) => progress,
            Err(error) => {
                work.fail(disk, &self.exchange, &error).await;
                true
            }
        };
        self.work = Some(work);
        progress
    }

    fn next_job(&mut self) -> Option<Job> {
        self.give_up_lost();
        let job = self.exchange.jobs.pop()?;
        self.job = Some(job.number);
        Some(job)
    }

    /// A job whose work was dropped.
    fn give_up_lost(&mut self) {
        if let Some(lost) = self.job.take() {
            self.exchange.ask_for(0);
            self.exchange.give_up(lost);
        }
    }
}

impl<B: BulkDisk> Drop for Compactor<B> {
    fn drop(&mut self) {
        self.give_up_lost();
        self.exchange.leave();
    }
}

struct Told {
    done: bool,
    progress: bool,
}

impl<B: BulkDisk> Work<B> {
    fn new(job: Job, suspects: Vec<Place>, entries_max: usize) -> Work<B> {
        Work {
            job,
            files: Vec::new(),
            bodies: Vec::new(),
            others: Vec::new(),
            entries_max,
            unlisted: Vec::new(),
            unread: Vec::new(),
            failed_reads: 0,
            unreadable: Vec::new(),
            suspects,
            findings: Vec::new(),
            stage: Stage::Read,
        }
    }

    /// Gives the target up: what is in the sources stays there.
    async fn fail(&mut self, disk: &B, exchange: &Exchange, error: &io::Error) {
        count(&exchange.counters.failed, 1);
        let job = self.job.number;
        let stage = std::mem::replace(&mut self.stage, Stage::Read);
        if let Stage::Copy(copying) = stage
            && let Some(survivor) = copying.survivor
        {
            survivor.give_up(disk).await;
        }
        let mut unread = std::mem::take(&mut self.unread);
        if !transient(error) && self.failed_reads < FAILED_READS_MAX {
            // It was something else: no source is to blame.
            unread.clear();
        }
        let kind = match error.kind() {
            // Nothing is known of the bytes, but of the disk.
            kind @ io::ErrorKind::TimedOut => kind,
            _ if transient(error) => io::ErrorKind::Interrupted,
            kind => kind,
        };
        self.conclude(exchange, Report::Failed { job, unread, kind });
    }

    /// What is in this source stays there for now. `Err`: it is not the only one.
    fn read_failed(&mut self, source: usize, error: io::Error) -> io::Result<()> {
        let segment = self.job.sources[source].segment;
        if !self.unread.contains(&segment) {
            self.unread.push(segment);
        }
        self.failed_reads += 1;
        if transient(&error) || self.failed_reads >= FAILED_READS_MAX {
            return Err(error);
        }
        Ok(())
    }

    /// Bodies that could not be read while the rest of the job could: those of which it is known
    /// from an earlier job are lost, the others get another chance.
    fn judge_unreadable(&mut self) {
        for place in std::mem::take(&mut self.unreadable) {
            if let Some(at) = self.suspects.iter().position(|known| *known == place) {
                self.suspects.remove(at);
                let sound = false;
                self.findings.push(Finding { place, sound });
                continue;
            }
            if self.suspects.len() == SUSPECTS_MAX {
                self.suspects.remove(0);
            }
            self.suspects.push(place);
        }
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

/// An error that says nothing of the bytes that were to be read, nor, but for `TimedOut`, of their
/// disk.
pub(crate) fn transient(error: &io::Error) -> bool {
    let kind = matches!(
        error.kind(),
        io::ErrorKind::Interrupted
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::OutOfMemory
            | io::ErrorKind::TimedOut
    );
    kind || too_many_files(error) || error.raw_os_error() == Some(libc::ENOBUFS)
}
