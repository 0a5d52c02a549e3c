//! What a crash can hit, told from what the disk was doing, and how often it was hit.
//!
//! Knows the magics of pages, for counting only: no check depends on it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bytes::Bytes;
use entrepot_storage::disk::sim::{Fault, InFlight, Injected, Operation};

use super::plan::{KINDS, Kind, Plan};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Reserve,
    Grow,
    RecordHeader,
    BodyWrite,
    BodySync,
    CommitWrite,
    CommitSync,
    FooterWrite,
    FooterSync,
    SmallWrite,
    SmallSync,
    DirectorySync,
    Superblock,
    Unlink,
    /// While the store was being opened.
    Recovery,
    /// While recovery sealed what was open.
    RecoverySeal,
    /// While a purge was under way.
    Forget,
    Staging,
    /// The compactor.
    CompactRead,
    CompactCreate,
    CompactWrite,
    CompactSync,
    /// While the copies were being entered.
    CompactSeal,
    /// While the store was maintained.
    Maintain,
    /// No operation of the disk was under way.
    Quiet,
    /// While a repository or project was forgotten as a whole.
    ForgetScope,
    /// While a drive was brought back.
    BringBack,
}

pub const ALL: [Step; 27] = [
    Step::Reserve,
    Step::Grow,
    Step::RecordHeader,
    Step::BodyWrite,
    Step::BodySync,
    Step::CommitWrite,
    Step::CommitSync,
    Step::FooterWrite,
    Step::FooterSync,
    Step::SmallWrite,
    Step::SmallSync,
    Step::DirectorySync,
    Step::Superblock,
    Step::Unlink,
    Step::Recovery,
    Step::RecoverySeal,
    Step::Forget,
    Step::Staging,
    Step::CompactRead,
    Step::CompactCreate,
    Step::CompactWrite,
    Step::CompactSync,
    Step::CompactSeal,
    Step::Maintain,
    Step::Quiet,
    Step::ForgetScope,
    Step::BringBack,
];

/// What some run must meet.
const INJECTED: [Fault; 19] = [
    Fault::Gone,
    Fault::Hung,
    Fault::ReadFailed,
    Fault::WriteFailed,
    Fault::SyncFailed,
    Fault::DirectorySyncFailed,
    Fault::UnlinkFailed,
    Fault::StorageFull,
    Fault::QuotaExceeded,
    Fault::ShortWrite,
    Fault::SlowOperation,
    Fault::PagesUncached,
    Fault::BitFlipped,
    Fault::WriteMisdirected,
    Fault::SyncLied,
    Fault::WriteLost,
    Fault::WriteTorn,
    Fault::NameLost,
    Fault::LengthLost,
];

/// Steps that few runs come to.
pub const RARE: [Step; 4] = [
    Step::CompactCreate,
    Step::CompactWrite,
    Step::CompactSync,
    Step::CompactSeal,
];

impl Step {
    /// Whether a run of this plan may come to it.
    pub fn possible(self, plan: &Plan) -> bool {
        match self {
            Step::ForgetScope => plan.weight(Kind::ForgetScope) > 0,
            Step::BringBack => plan.breaks(),
            _ => true,
        }
    }

    /// Of so many hits a crash takes one.
    pub fn often(self) -> u64 {
        if RARE.contains(&self) { 1 } else { 6 }
    }
}

/// What the driver knows and the disk does not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Phase {
    pub opening: bool,
    pub forgetting: bool,
    pub maintaining: bool,
    pub scoping: bool,
    pub returning: bool,
}

pub fn hit(in_flight: &[InFlight], phase: Phase) -> Vec<Step> {
    let mut steps = Vec::new();
    for operation in in_flight {
        of_operation(operation, &mut steps);
    }
    if phase.opening {
        let seals = steps
            .iter()
            .any(|s| matches!(s, Step::FooterWrite | Step::FooterSync));
        steps.push(Step::Recovery);
        steps.extend(seals.then_some(Step::RecoverySeal));
    }
    steps.extend(phase.forgetting.then_some(Step::Forget));
    steps.extend(phase.maintaining.then_some(Step::Maintain));
    steps.extend(phase.scoping.then_some(Step::ForgetScope));
    steps.extend(phase.returning.then_some(Step::BringBack));
    if in_flight.is_empty() {
        steps.push(Step::Quiet);
    }
    steps.sort_unstable();
    steps.dedup();
    steps
}

fn of_operation(operation: &InFlight, steps: &mut Vec<Step>) {
    if operation.name.starts_with("STORE") {
        steps.push(Step::Superblock);
        return;
    }
    if operation.direct {
        let entry = |bytes: &Bytes| {
            let step = of_write(bytes, false);
            matches!(step, Step::CommitWrite | Step::FooterWrite)
        };
        let enters = operation.bytes.iter().any(entry);
        steps.extend(match operation.operation {
            Operation::Write | Operation::Sync if enters => Some(Step::CompactSeal),
            Operation::Read => Some(Step::CompactRead),
            Operation::Create => Some(Step::CompactCreate),
            Operation::Write => Some(Step::CompactWrite),
            Operation::Sync => Some(Step::CompactSync),
            _ => None,
        });
        return;
    }
    let small = operation.name.ends_with(".rec");
    match operation.operation {
        Operation::Create => steps.push(Step::Reserve),
        Operation::Anonymous => steps.push(Step::Staging),
        Operation::Grow => steps.push(Step::Grow),
        Operation::SyncDir => steps.push(Step::DirectorySync),
        Operation::Unlink => steps.push(Step::Unlink),
        Operation::Write => steps.extend(operation.bytes.iter().map(|b| of_write(b, small))),
        Operation::Sync if small => steps.push(Step::SmallSync),
        Operation::Sync => {
            for bytes in &operation.bytes {
                steps.push(match of_write(bytes, small) {
                    Step::CommitWrite => Step::CommitSync,
                    Step::FooterWrite => Step::FooterSync,
                    _ => Step::BodySync,
                });
            }
        }
        _ => {}
    }
}

fn of_write(bytes: &[u8], small: bool) -> Step {
    match bytes.get(..8) {
        Some(b"ENTRSEGM") => Step::Reserve,
        Some(b"ENTRBODY") => Step::RecordHeader,
        Some(b"ENTRCOMM") if small => Step::SmallWrite,
        Some(b"ENTRCOMM") => Step::CommitWrite,
        Some(b"ENTRFOOT" | b"ENTRTRLR") => Step::FooterWrite,
        _ => Step::BodyWrite,
    }
}

/// What a run did, beside crashes and what was injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Done {
    /// Operations of clients.
    Asked(Kind),
    /// The record of a repository, or of the project, was written or tried to.
    RepositoryForgotten,
    ProjectForgotten,
    /// A drive stopped to work.
    DriveBroken,
    /// Another than before, from then on the one that may have missed something.
    TurnTaken,
    /// One that had every small record, when another had not.
    CompleteBroken,
    /// The others had every small record some time after it went.
    CompleteWithout,
    /// A process ended soon after a purge that such a drive may have missed.
    HurriedAfterPurge,
    /// All drives had every small record; then a blank one took the place of one.
    DriveReplaced,
    /// No drive was there that had every small record.
    BegunAnew,
    /// The one that had was brought back in that process.
    BroughtBackAnew,
    /// Some segments could not be read then.
    BroughtBackInPart,
    /// And everything was purged.
    PurgedInPart,
    /// One that was just brought back stopped to work, and the process ended after some purges.
    BrokenAgain,
    BroughtBack,
    BodiesBroughtBack,
    /// Bodies purged that a volume had which was offline.
    PurgedOffline,
    /// A crash left one copy of a superblock torn.
    SuperblockTorn,
    /// One copy was damaged, and the store opened.
    SuperblockMended,
    /// Both were, and it was refused; then they were as before, and so was the store.
    SuperblockRefused,
}

const DONE: [Done; 19] = [
    Done::RepositoryForgotten,
    Done::ProjectForgotten,
    Done::DriveBroken,
    Done::TurnTaken,
    Done::CompleteBroken,
    Done::CompleteWithout,
    Done::HurriedAfterPurge,
    Done::DriveReplaced,
    Done::BegunAnew,
    Done::BroughtBackAnew,
    Done::BroughtBackInPart,
    Done::PurgedInPart,
    Done::BrokenAgain,
    Done::BroughtBack,
    Done::BodiesBroughtBack,
    Done::PurgedOffline,
    Done::SuperblockTorn,
    Done::SuperblockMended,
    Done::SuperblockRefused,
];

#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub operations: u64,
    pub power_losses: u64,
    pub kills: u64,
    pub clean_ends: u64,
    pub injected: Injected,
    pub checked_bodies: u64,
    /// Read with a byte that the media changed.
    pub decayed_bodies: u64,
    pub compacted: u64,
    pub scrubbed: u64,
    /// Bodies that verify, scrub or compaction found to be damaged.
    pub mismatches: u64,
    pub evicted_idle: u64,
    pub evicted_room: u64,
    hits: BTreeMap<Step, u64>,
    done: BTreeMap<Done, u64>,
}

impl Counts {
    pub fn crash(&mut self, steps: &[Step]) {
        for step in steps {
            *self.hits.entry(*step).or_default() += 1;
        }
    }

    pub fn count(&mut self, done: Done) {
        self.add_to(done, 1);
    }

    pub fn add_to(&mut self, done: Done, count: u64) {
        *self.done.entry(done).or_default() += count;
    }

    /// Each kind of what a run may do, and how often it was.
    fn all_done(&self) -> impl Iterator<Item = (String, u64)> {
        let asked = KINDS.map(|kind| (format!("asked {kind:?}"), Done::Asked(kind)));
        let done = DONE.map(|done| (format!("done {done:?}"), done));
        let all = asked.into_iter().chain(done);
        all.map(|(name, done)| (name, self.done.get(&done).copied().unwrap_or(0)))
    }

    pub fn crashes(&self) -> u64 {
        self.power_losses + self.kills
    }

    pub fn add(&mut self, other: &Counts) {
        self.operations += other.operations;
        self.power_losses += other.power_losses;
        self.kills += other.kills;
        self.clean_ends += other.clean_ends;
        self.injected.add(&other.injected);
        self.decayed_bodies += other.decayed_bodies;
        self.compacted += other.compacted;
        self.scrubbed += other.scrubbed;
        self.mismatches += other.mismatches;
        self.evicted_idle += other.evicted_idle;
        self.evicted_room += other.evicted_room;
        self.checked_bodies += other.checked_bodies;
        for (done, count) in &other.done {
            self.add_to(*done, *count);
        }
        for (step, hits) in &other.hits {
            *self.hits.entry(*step).or_default() += hits;
        }
    }

    pub fn never_hit(&self) -> Vec<String> {
        let steps = ALL.iter().filter(|step| !self.hits.contains_key(step));
        let faults = INJECTED
            .iter()
            .filter(|fault| self.injected.of(**fault) == 0);
        let steps = steps.map(|step| format!("a crash in {step:?}"));
        let never = |(name, count)| (count == 0).then_some(name);
        steps
            .chain(faults.map(|fault| format!("{fault:?}")))
            .chain(self.all_done().filter_map(never))
            .collect()
    }

    pub fn report(&self, runs: u64) -> String {
        let mut text = String::new();
        let mut line = |name: &str, count: u64| {
            writeln!(text, "{name:<28}{count:>12}").expect("a String takes everything");
        };
        line("runs", runs);
        line("operations", self.operations);
        line("crashes", self.crashes());
        line("  power losses", self.power_losses);
        line("  kills", self.kills);
        line("clean ends", self.clean_ends);
        line("bodies read and compared", self.checked_bodies);
        line("  with bytes that decayed", self.decayed_bodies);
        line("segments compacted", self.compacted);
        line("segments scrubbed", self.scrubbed);
        line("damaged bodies dropped", self.mismatches);
        line("bodies evicted as idle", self.evicted_idle);
        line("bodies evicted for room", self.evicted_room);
        for (name, count) in self.all_done() {
            line(&name, count);
        }
        for step in ALL {
            let hits = self.hits.get(&step).copied().unwrap_or(0);
            line(&format!("crashes in {step:?}"), hits);
        }
        for fault in INJECTED {
            line(&format!("injected {fault:?}"), self.injected.of(fault));
        }
        text
    }
}
