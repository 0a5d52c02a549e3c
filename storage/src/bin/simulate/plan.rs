//! What differs between runs: geometry, faults, weights. Kinds of each are switched off and up by
//! run, so that some runs do little else than one of them.

use entrepot_storage::Options;
use entrepot_storage::disk::sim::{Faults, Random};

/// How the media of a run behave, beside what a crash does to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    Sound,
    /// Bits flip.
    Decay,
    /// Synced writes reach another place.
    Misdirect,
    /// Syncs say that they are done and are not.
    Lie,
}

/// What a client may do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Fills of a body: the right one, a wrong one, too few or too many bytes, given up.
    Right,
    Wrong,
    Short,
    Long,
    Dropped,
    /// Follows a running fill.
    Join,
    LookUp,
    PutTag,
    LookAtTags,
    PutLink,
    ForgetBody,
    ForgetTag,
    ForgetLink,
    Commit,
    Drain,
    Seal,
    Load,
    Maintain,
    Compact,
    /// The clock is wrong by a year from now on.
    Jump,
    /// Reads what is leased since long.
    CheckHeld,
    /// A repository or the project.
    ForgetScope,
    /// A drive stops to work, and works again.
    Break,
    Mend,
}

pub const KINDS: [Kind; 24] = [
    Kind::Right,
    Kind::Wrong,
    Kind::Short,
    Kind::Long,
    Kind::Dropped,
    Kind::Join,
    Kind::LookUp,
    Kind::PutTag,
    Kind::LookAtTags,
    Kind::PutLink,
    Kind::ForgetBody,
    Kind::ForgetTag,
    Kind::ForgetLink,
    Kind::Commit,
    Kind::Drain,
    Kind::Seal,
    Kind::Load,
    Kind::Maintain,
    Kind::Compact,
    Kind::Jump,
    Kind::CheckHeld,
    Kind::ForgetScope,
    Kind::Break,
    Kind::Mend,
];

/// Those that every run may do.
const COMMON: usize = 21;

/// Places of some kinds of operations among the weights.
const FILL: usize = 0;
const FORGET: usize = 10;
const MAINTAIN: usize = 17;
const COMPACT: usize = 18;
const BREAK: usize = 22;
const MEND: usize = 23;

/// No run has so many files.
const FILES_MANY: u64 = 100_000;
/// No run takes so long.
const IDLE_AFTER_MAX: u64 = 100_000;

impl Media {
    fn draw(random: &mut Random) -> Media {
        match random.below(100) {
            0..=9 => Media::Decay,
            10..=15 => Media::Misdirect,
            16..=20 => Media::Lie,
            _ => Media::Sound,
        }
    }
}

/// What differs between runs.
pub struct Plan {
    /// Errors of each drive, told as such.
    errors: Vec<Faults>,
    /// What is no error: late, in parts, past the cache; and what the media do.
    noise: Faults,
    pub media: Media,
    /// The one drive that fails now and then, or whose media are not sound.
    pub weak: usize,
    /// Each drive may stop to work or leave, one after the other, and leave for good once all have
    /// everything. Without it, only the weak one.
    pub turns: bool,
    /// The store or its file system is small enough to become full.
    pub tight: bool,
    pub withheld_len: u64,
    /// Of `KINDS`.
    pub weights: [u64; KINDS.len()],
    /// Of a thousand starts, before how many a superblock is damaged.
    pub harms: u64,
    /// Of a thousand processes, how many find a drive missing.
    pub leaves: u64,
    /// Of a thousand processes, how many crash in a step that few runs come to.
    pub rare: u64,
    pub tags: u64,
    pub repositories: u64,
    pub options: Options,
    /// Of each volume.
    pub capacity: u64,
    pub total: u64,
    pub lens: Vec<usize>,
}

impl Plan {
    pub fn drives(&self) -> usize {
        self.errors.len()
    }

    /// Makes it a plan in which little but compaction happens, and most crashes meet it: bodies
    /// die in segments that they share, in a store that has no room for what is dead.
    pub fn compacts(&mut self) {
        self.options.segment_len = Some(128 << 10);
        self.options.solo_min = Some(1 << 20);
        self.tight = true;
        self.capacity = 2 << 20;
        self.total = 4 * self.capacity;
        self.rare = 900;
        for (kind, weight) in [(FILL, 60), (FORGET, 20), (MAINTAIN, 60), (COMPACT, 60)] {
            self.weights[kind] = weight;
        }
    }

    /// Of a drive while one process runs.
    pub fn faults(&self, drive: usize, faulty: bool) -> Faults {
        let errors = if faulty {
            self.errors[drive]
        } else {
            Faults::NONE
        };
        let noise = self.noise;
        let faults = Faults {
            short: noise.short,
            slow: noise.slow,
            uncached: noise.uncached,
            ..errors
        };
        if drive != self.weak {
            return faults;
        }
        Faults {
            flip: noise.flip,
            misdirect: noise.misdirect,
            lie: noise.lie,
            decay_small: noise.decay_small,
            ..faults
        }
    }

    /// Whether a refusal for lack of space is to be expected.
    pub fn may_be_full(&self) -> bool {
        let refuses = |errors: &Faults| errors.full > 0 || errors.quota > 0;
        self.tight || self.errors.iter().any(refuses)
    }

    /// The same of a new body, which may also need one file too many, or have others evicted.
    pub fn may_refuse_bodies(&self) -> bool {
        self.may_be_full() || self.options.files_max < FILES_MANY
    }

    pub fn breaks(&self) -> bool {
        self.weight(Kind::Break) > 0
    }

    pub fn weight(&self, kind: Kind) -> u64 {
        let weights = KINDS.iter().zip(self.weights);
        weights.map(|(k, w)| if *k == kind { w } else { 0 }).sum()
    }

    /// Whether small records may be lost for good: no other drive keeps them.
    pub fn amnesia(&self) -> bool {
        let lost = self.media == Media::Lie || self.noise.decay_small;
        lost && self.drives() == 1
    }

    /// How long a body that is not held in RAM may be idle, if that can happen in a run.
    pub fn idle_after(&self, len: usize) -> Option<u64> {
        let small = len as u64 <= u64::from(self.options.small_max);
        let after = self.options.idle_after;
        (!small && after < IDLE_AFTER_MAX).then_some(after)
    }

    pub fn repository(&self, number: u64) -> String {
        format!("r{number}")
    }

    pub fn tag(&self, number: u64) -> String {
        let repository = self.repository(number % self.repositories);
        let kind = if number.is_multiple_of(4) {
            "list"
        } else {
            "v"
        };
        format!("{repository}:{kind}{number}")
    }

    /// `apart` has a stream of its own, so that what it decides changes no other run.
    pub fn draw(random: &mut Random, apart: &mut Random, turns: &mut Random) -> Plan {
        let tight = random.chance(350);
        let capacity = if tight {
            (1 << 20) + random.below(5 << 20)
        } else {
            256 << 20
        };
        let mut options = Options::new(1, [random.below(256) as u8; 16]);
        options.segment_len = Some(*random.pick(&[128 << 10, 256 << 10, 512 << 10]));
        options.solo_min = Some(*random.pick(&[16 << 10, 40 << 10, 1 << 20]));
        options.small_max = *random.pick(&[0, 1 << 10, 64 << 10]);
        options.small_budget = *random.pick(&[0, 20 << 10, 1 << 30]);
        if random.chance(300) {
            options.idle_after = 600 + random.below(3000);
        }
        options.scrub_every = *random.pick(&[1000, 30 * 24 * 3600]);
        options.withheld_len = *random.pick(&[512, 4 << 10, 16 << 10]);
        let drives = *random.pick(&[1, 1, 1, 2, 2, 3]);
        let weak = random.index(drives);
        let mut errors = vec![Faults::NONE; drives];
        errors[weak] = draw_errors(random);
        let media = Media::draw(random);
        let mut plan = Plan {
            errors,
            noise: draw_noise(random, media),
            media,
            weak,
            turns: false,
            tight,
            withheld_len: options.withheld_len,
            weights: draw_weights(random, apart, drives),
            harms: if apart.chance(250) {
                100 + apart.below(400)
            } else {
                0
            },
            leaves: if drives > 1 && random.chance(300) {
                300
            } else {
                0
            },
            rare: 250,
            tags: 4 + random.below(20),
            repositories: 1 + random.below(4),
            total: if tight && random.chance(300) {
                capacity
            } else {
                capacity * 4
            },
            lens: draw_lens(random),
            capacity,
            options,
        };
        if apart.chance(80) {
            plan.options.files_max = 12 + apart.below(40);
        }
        // Of a superblock that is harmed the older copy may stand, and tell of other turns.
        if drives > 1 && plan.media == Media::Sound && plan.harms == 0 && turns.chance(900) {
            plan.takes_turns(turns);
        }
        plan
    }

    fn takes_turns(&mut self, turns: &mut Random) {
        self.turns = true;
        self.leaves = 300;
        for (kind, weight) in [(BREAK, 1 + turns.below(4)), (MEND, 2 + turns.below(8))] {
            self.weights[kind] = weight;
        }
        self.weights[MAINTAIN] = self.weights[MAINTAIN].max(5);
    }
}

fn draw_errors(random: &mut Random) -> Faults {
    if random.chance(700) {
        return Faults::NONE;
    }
    let mut parts = |max| {
        if random.chance(500) {
            random.below(max)
        } else {
            0
        }
    };
    Faults {
        read: parts(8),
        write: parts(6),
        sync: parts(60),
        sync_dir: parts(60),
        full: parts(100),
        quota: parts(50),
        unlink: parts(100),
        ..Faults::NONE
    }
}

fn draw_noise(random: &mut Random, media: Media) -> Faults {
    let mut often = |max| {
        if random.chance(400) {
            random.below(max)
        } else {
            0
        }
    };
    let (short, slow, uncached) = (often(200), often(60), often(100));
    let parts = |on: Media, parts: u64| if media == on { parts } else { 0 };
    Faults {
        short,
        slow,
        uncached,
        flip: parts(Media::Decay, 1 + random.below(3)),
        misdirect: parts(Media::Misdirect, 1 + random.below(10)),
        lie: parts(Media::Lie, 20 + random.below(500)),
        decay_small: media != Media::Sound && random.chance(300),
        ..Faults::NONE
    }
}

/// Kinds of operations are switched off and up by run.
fn draw_weights(random: &mut Random, apart: &mut Random, drives: usize) -> [u64; KINDS.len()] {
    let mut weights = [
        30, 4, 3, 3, 5, 10, 25, 15, 5, 8, 6, 3, 3, 25, 2, 1, 4, 25, 15, 1, 5, 0, 0, 0,
    ];
    for weight in weights[..COMMON].iter_mut().skip(1) {
        *weight = match random.below(10) {
            0 => 0,
            1 => *weight * 4,
            _ => *weight,
        };
    }
    // Without groups nothing could survive.
    weights[13] = weights[13].max(5);
    if apart.chance(400) {
        weights[21] = 1 + apart.below(6);
    }
    if drives > 1 && apart.chance(500) {
        weights[22] = 1 + apart.below(4);
        weights[23] = 1 + apart.below(8);
    }
    weights
}

fn draw_lens(random: &mut Random) -> Vec<usize> {
    let large = random.chance(120);
    let mut len = |number: u64| match random.below(100) {
        // One is empty; the others are too long to be equal by chance.
        _ if number == 0 => 0,
        0..=9 => 8 + random.below(17),
        10..=54 => 8 + random.below(4 << 10),
        55..=89 => 8 + random.below(24 << 10),
        90..=97 => 8 + random.below(100 << 10),
        _ if large => (1 << 20) + random.below(2 << 20),
        _ => 8 + random.below(60 << 10),
    };
    (0..40).map(|number| len(number) as usize).collect()
}
