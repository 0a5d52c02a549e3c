//! The exchange between the owners of the index and the compactor: bounded queues without locks.
//!
//! The planner (the maintenance of shard 0's writer) gives jobs; the compactor asks each owner
//! which bodies are live, copies or checks them, and reports; the planner has the owners switch
//! to the copies. Nobody waits for room: what does not fit is offered again at the next turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;

use crate::Seconds;
use crate::digest::{Digest, SLICES};
use crate::page::{Class, Uuid};

/// Jobs given and not done: one is copied while the owners switch to the copies of another.
pub(crate) const JOBS_MAX: usize = 4;
/// Messages to one owner: one question, switches of all jobs, and findings of as many.
const OWNER_QUEUE_MAX: usize = 2 * JOBS_MAX + 1;

pub struct Exchange {
    pub(crate) uuid: Uuid,
    pub(crate) jobs: ArrayQueue<Job>,
    pub(crate) owners: Box<[ArrayQueue<ToOwner>]>,
    pub(crate) answers: ArrayQueue<Answer>,
    pub(crate) reports: ArrayQueue<Report>,
    pub(crate) counters: Counters,
    urgent: AtomicBool,
    /// The job whose questions are to be answered; 0: none.
    asking: AtomicU64,
    /// Compactors there are: without one a job would only keep its segments.
    attending: AtomicUsize,
}

/// Bytes and events since the start.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) read: AtomicU64,
    pub(crate) written: AtomicU64,
    pub(crate) compacted: AtomicU64,
    pub(crate) scrubbed: AtomicU64,
    pub(crate) scrubbed_bytes: AtomicU64,
    pub(crate) mismatches: AtomicU64,
    pub(crate) unlisted: AtomicU64,
    pub(crate) failed: AtomicU64,
}

/// What the compactor did since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compaction {
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// Segments whose live bodies were copied out of them.
    pub segments: u64,
    pub scrubbed_segments: u64,
    /// Bytes of bodies that were read and checked by the scrub.
    pub scrubbed_bytes: u64,
    /// Bodies dropped because their bytes are not what was written, or cannot be read.
    pub mismatches: u64,
    /// Segments whose footer could not be read: their bodies are copied to another.
    pub unlisted_segments: u64,
    /// Jobs given up because the disk failed or was full.
    pub failed: u64,
}

pub(crate) fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// A segment to read, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    pub(crate) segment: u64,
    pub(crate) class: Class,
    /// Of its file.
    pub(crate) len: u64,
    /// Its footer cannot be read: its owners know what is in it.
    pub(crate) unlisted: bool,
    /// Its bodies are to be checked before they are served.
    pub(crate) unverified: bool,
}

#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) number: u64,
    pub(crate) volume: u8,
    pub(crate) sources: Vec<Source>,
    /// Where the live bodies go; `None`: they are only checked.
    pub(crate) target: Option<Target>,
}

/// The survivor segment to make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) segment: u64,
    /// What the planner took from the budget.
    pub(crate) len_max: u64,
    pub(crate) created: Seconds,
}

/// One body of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) digest: Digest,
    pub(crate) sequence: u64,
    pub(crate) segment: u64,
}

#[derive(Debug)]
pub(crate) enum ToOwner {
    Ask(Question),
    /// These are in another segment too: take that one if they are live.
    Switch {
        job: u64,
        target: u64,
        moves: Arc<[Move]>,
    },
    /// What a check found.
    Found(Vec<Finding>),
}

#[derive(Debug, Default)]
pub(crate) struct Question {
    pub(crate) job: u64,
    /// Which of these are live, and how recent? The number is the compactor's.
    pub(crate) places: Vec<(u32, Place)>,
    /// What is live in these at all?
    pub(crate) segments: Vec<u64>,
}

/// A body whose copy is durable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Move {
    pub(crate) place: Place,
    /// Of the copy in the survivor segment.
    pub(crate) offset: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) place: Place,
    /// Its bytes are what was written.
    pub(crate) sound: bool,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) job: u64,
    /// The numbers in the question, each with its recency.
    pub(crate) live: Vec<(u32, u32)>,
    pub(crate) listed: Vec<Listed>,
}

/// A live body as its owner knows it.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) place: Place,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) media_type: Option<Arc<str>>,
    pub(crate) recency: u32,
}

#[derive(Debug)]
pub(crate) enum Report {
    /// The copies are durable. Nothing was live: no file was made.
    Copied {
        job: u64,
        copied: Option<Copied>,
        unlisted: Vec<u64>,
        unread: Vec<u64>,
    },
    Scrubbed {
        job: u64,
        unlisted: Vec<u64>,
        unread: Vec<u64>,
    },
    /// Nothing is left of the target, or it could not be removed.
    Failed {
        job: u64,
        /// Segments that could not be read in full: to be left alone for a while.
        unread: Vec<u64>,
        /// `Interrupted`: nothing that the disk is to blame for.
        kind: std::io::ErrorKind,
    },
    Switched {
        job: u64,
    },
}

#[derive(Debug)]
pub(crate) struct Copied {
    /// Of the file.
    pub(crate) len: u64,
    /// The lowest sequence in it.
    pub(crate) floor: u64,
    /// For each owner.
    pub(crate) moves: Vec<Arc<[Move]>>,
}

impl Exchange {
    pub(crate) fn new(uuid: Uuid, shards: usize) -> Arc<Exchange> {
        let shards = shards.clamp(1, SLICES);
        Arc::new(Exchange {
            uuid,
            jobs: ArrayQueue::new(JOBS_MAX),
            owners: (0..shards)
                .map(|_| ArrayQueue::new(OWNER_QUEUE_MAX))
                .collect(),
            // Of each owner, and what it was about to say to a compactor that is gone.
            answers: ArrayQueue::new(2 * shards),
            reports: ArrayQueue::new(JOBS_MAX * (shards + 1)),
            counters: Counters::default(),
            urgent: AtomicBool::new(false),
            asking: AtomicU64::new(0),
            attending: AtomicUsize::new(0),
        })
    }

    /// Whether room is needed now: the compactor's thread must not starve then. Its budget of
    /// bytes holds all the same.
    pub fn urgent(&self) -> bool {
        self.urgent.load(Ordering::Relaxed)
    }

    /// Nothing waits for the compactor or for an owner.
    pub fn is_quiet(&self) -> bool {
        self.jobs.is_empty()
            && self.answers.is_empty()
            && self.reports.is_empty()
            && self.owners.iter().all(ArrayQueue::is_empty)
            && self.asking.load(Ordering::Relaxed) == 0
            && !self.urgent()
    }

    pub(crate) fn set_urgent(&self, urgent: bool) {
        self.urgent.store(urgent, Ordering::Relaxed);
    }

    pub(crate) fn attended(&self) -> bool {
        self.attending.load(Ordering::Relaxed) > 0
    }

    /// A compactor has come.
    pub(crate) fn attend(&self) {
        self.attending.fetch_add(1, Ordering::Relaxed);
    }

    /// It goes, and nobody takes the jobs that wait.
    pub(crate) fn leave(&self) {
        self.attending.fetch_sub(1, Ordering::Relaxed);
        while let Some(job) = self.jobs.pop() {
            self.give_up(job.number);
        }
    }

    /// Nobody goes on with this job, and no disk is to blame.
    pub(crate) fn give_up(&self, job: u64) {
        let (unread, kind) = (Vec::new(), std::io::ErrorKind::Interrupted);
        let report = Report::Failed { job, unread, kind };
        let told = self.reports.push(report);
        told.expect("room for one report of each job");
    }

    /// From now on answers to another job's questions are of no use.
    pub(crate) fn ask_for(&self, job: u64) {
        self.asking.store(job, Ordering::Release);
        while self.answers.pop().is_some() {}
    }

    pub(crate) fn asks_for(&self, job: u64) -> bool {
        self.asking.load(Ordering::Acquire) == job
    }

    pub(crate) fn owner(&self, digest: &Digest) -> usize {
        crate::owner(digest.slice(), self.owners.len())
    }

    pub fn compaction(&self) -> Compaction {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        Compaction {
            read_bytes: get(&counters.read),
            written_bytes: get(&counters.written),
            segments: get(&counters.compacted),
            scrubbed_segments: get(&counters.scrubbed),
            scrubbed_bytes: get(&counters.scrubbed_bytes),
            mismatches: get(&counters.mismatches),
            unlisted_segments: get(&counters.unlisted),
            failed: get(&counters.failed),
        }
    }
}

/// Sends what there is room for. Whether anything was.
pub(crate) fn offer(exchange: &Exchange, outgoing: &mut Vec<(usize, ToOwner)>) -> bool {
    let mut sent = false;
    while let Some((owner, message)) = outgoing.pop() {
        match exchange.owners[owner].push(message) {
            Ok(()) => sent = true,
            Err(message) => {
                outgoing.push((owner, message));
                break;
            }
        }
    }
    sent
}
