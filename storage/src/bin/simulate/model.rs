//! What must be true of a store, kept apart from it: what was put, what must survive, what must
//! not come back. Shares no code with the store: its own maps, its own SHA-256.

use std::collections::BTreeMap;

use entrepot_storage::disk::sim::Random;
use sha2::Digest as _;

use super::named::{Scope, Value, ValueState, repository};

/// A body that may be put; its bytes follow from the seed.
pub struct Content {
    pub digest: String,
    pub bytes: Vec<u8>,
    pub media_type: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Absent,
    Present,
    /// What happens next to each other decides.
    Maybe,
}

#[derive(Clone, Debug)]
pub struct BodyState {
    pub now: Presence,
    /// A crash must not lose it.
    pub durable: bool,
    /// A crash may leave it.
    pub possible: bool,
    /// Groups committed since it was finished.
    pub groups: u32,
    /// Counts finishes, so that a group knows what it was about.
    pub version: u64,
    pub forgets: u32,
    /// Counts purges begun.
    pub purges: u64,
    /// Was purged, or lost to a fault: its tags may point to nothing.
    pub parted: bool,
    /// Found where the kernel may show what the media do not have: no group makes it durable.
    pub shaky: bool,
    /// A purge was cut off by a crash: a drive that is away may have its record, and bring it
    /// later.
    pub half_purged: bool,
    /// Counts fills begun.
    pub fills: u64,
    /// When it was used: by the latest and the earliest that the store's age clock may say.
    pub uses: Vec<Use>,
    /// Where it was seen since it was purged last: an older copy may be the durable one.
    pub files: Vec<FileId>,
}

/// A moment, by the clocks of `Ages`.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    pub latest: u64,
    pub earliest: u64,
}

/// Of one file and no other, ever: its drive, and its number there.
pub type FileId = (usize, u64);

impl BodyState {
    pub fn purges_ended(&self) -> u64 {
        self.purges - u64::from(self.forgets)
    }
}

pub struct Model {
    pub contents: Vec<Content>,
    pub bodies: Vec<BodyState>,
    pub tags: BTreeMap<String, ValueState>,
    pub links: BTreeMap<(String, usize), ValueState>,
    /// Of each drive: something failed that may have cost records. Nothing must be there then,
    /// but what must not be there still must not.
    pub lenient: Vec<bool>,
    /// Nothing but the media keep small records, and these media lose them: old values and purged
    /// bodies may be found.
    pub amnesia: bool,
    /// Bodies were copied to other files: where they are is known only when they are seen.
    pub moved: bool,
    /// Bodies were evicted for room: any may be gone.
    pub evicted: bool,
    pub ages: Ages,
    /// What is being forgotten as a whole.
    scope: Option<Scope>,
}

/// The age clock of the store, as it may stand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ages {
    /// At most: every step of the clock counted, a jump as a minute.
    pub latest: u64,
    /// At least: what maintenance that ended was told, a minute a time.
    pub earliest: u64,
    /// `latest` when the process began.
    pub opened: u64,
}

/// Seconds of touches that a crash may lose: a minute, and the step in which it is over.
const RECENCY_LOSS: u64 = 121;
/// Writers tell the clock the time next to each other, so that it may be a little ahead.
pub const AGE_SLACK: u64 = 300;

/// What a call to commit is about to make durable.
pub struct Group {
    bodies: Vec<(usize, u64)>,
    tags: Vec<(String, u64)>,
    links: Vec<((String, usize), u64)>,
}

impl Model {
    pub fn new(random: &mut Random, lens: &[usize]) -> Model {
        let contents: Vec<Content> = lens
            .iter()
            .enumerate()
            .map(|(n, len)| content(random, n, *len))
            .collect();
        let body = BodyState {
            now: Presence::Absent,
            durable: false,
            possible: false,
            groups: 0,
            version: 0,
            forgets: 0,
            purges: 0,
            parted: false,
            shaky: false,
            half_purged: false,
            fills: 0,
            uses: Vec::new(),
            files: Vec::new(),
        };
        Model {
            bodies: vec![body; contents.len()],
            contents,
            tags: BTreeMap::new(),
            links: BTreeMap::new(),
            lenient: Vec::new(),
            amnesia: false,
            moved: false,
            evicted: false,
            ages: Ages::default(),
            scope: None,
        }
    }

    pub fn finishing(&mut self, content: usize) {
        self.bodies[content].possible = true;
    }

    pub fn finished(&mut self, content: usize) {
        let body = &mut self.bodies[content];
        body.now = if body.forgets > 0 {
            Presence::Maybe
        } else {
            Presence::Present
        };
        body.groups = 0;
        body.shaky = false;
        body.half_purged = false;
        body.version += 1;
    }

    /// A crash may bring it back: nothing is written of it.
    pub fn evicted(&mut self, content: usize) {
        let body = &mut self.bodies[content];
        body.now = Presence::Maybe;
        body.durable = false;
        body.parted = true;
        // A tag that waited for it is given up, as after a purge.
        body.purges += 1;
        body.version += 1;
    }

    /// What was there before it came may have been evicted meanwhile.
    pub fn doubted(&mut self, content: usize) {
        let body = &mut self.bodies[content];
        body.durable = false;
        body.parted = true;
        body.purges += 1;
    }

    /// A drive comes back: what was not found without it may be on it.
    pub fn may_return(&mut self) {
        for body in &mut self.bodies {
            if body.now == Presence::Absent && body.possible {
                body.now = Presence::Maybe;
            }
            // Or the record of a purge that was cut off.
            if body.now == Presence::Present && body.half_purged {
                body.now = Presence::Maybe;
                body.parted = true;
                body.purges += 1;
            }
        }
        let values = self.tags.values_mut().chain(self.links.values_mut());
        values.for_each(ValueState::may_return);
    }

    pub fn forget_begins(&mut self, content: usize) -> u64 {
        let body = &mut self.bodies[content];
        body.forgets += 1;
        body.purges += 1;
        body.parted = true;
        body.now = Presence::Maybe;
        body.durable = false;
        body.fills
    }

    /// `fills_before`: from `forget_begins`. Who began to fill since then may have come after it.
    pub fn forget_ends(&mut self, content: usize, fills_before: u64, durable: bool) {
        let body = &mut self.bodies[content];
        body.forgets -= 1;
        if body.forgets == 0 && body.fills == fills_before {
            body.now = Presence::Absent;
            body.possible &= !durable;
            body.files.clear();
        }
    }

    /// What a commit that begins now must make durable, of what `mine` owns.
    pub fn group(
        &self,
        mine: impl Fn(&Content) -> bool,
        my_repository: impl Fn(&str) -> bool,
    ) -> Group {
        let waiting = |(n, body): (usize, &BodyState)| {
            let waits = body.now == Presence::Present && !body.durable && mine(&self.contents[n]);
            waits.then_some((n, body.version))
        };
        let tags = self.tags.iter().filter(|(name, _)| my_repository(name));
        let links = self
            .links
            .iter()
            .filter(|((name, _), _)| my_repository(name));
        Group {
            bodies: self.bodies.iter().enumerate().filter_map(waiting).collect(),
            tags: tags
                .map(|(key, state)| (key.clone(), state.version))
                .collect(),
            links: links
                .map(|(key, state)| (key.clone(), state.version))
                .collect(),
        }
    }

    /// The commit succeeded. `all`: and nothing was left uncommitted. Bodies that are `lost` may
    /// have been given up, and tags of theirs with them.
    pub fn committed(&mut self, group: Group, all: bool, lost: impl Fn(&BodyState) -> bool) {
        for (content, version) in group.bodies {
            let body = &mut self.bodies[content];
            let there = body.now == Presence::Present && !body.shaky;
            if body.version == version && there {
                body.groups += 1;
                body.durable |= all || body.groups >= 2;
            }
        }
        if !all {
            return;
        }
        for (key, version) in group.tags {
            let state = self.tags.get_mut(&key).expect("keys stay");
            // A tag is written only if its body was there all the time.
            let Some(value) = state.now.clone() else {
                continue;
            };
            let body = &self.bodies[value.content];
            let there = body.now == Presence::Present && state.body_purges == Some(body.purges);
            if state.version == version && there && !lost(body) {
                state.settle(&value);
            }
        }
        for (key, version) in group.links {
            let state = self.links.get_mut(&key).expect("keys stay");
            if let Some(value) = state.now.clone()
                && state.version == version
            {
                state.settle(&value);
            }
        }
    }

    /// Whether the tag may be put just now; if so it is.
    pub fn put_tag(&mut self, key: &str, value: Value) -> bool {
        let body = &self.bodies[value.content];
        let purges = (body.now == Presence::Present).then_some(body.purges);
        let scoped = self.in_scope(repository(key));
        let state = self
            .tags
            .entry(key.to_owned())
            .or_insert_with(ValueState::absent);
        if state.forgetting && !scoped || scoped && !state.put_in_scope() {
            return false;
        }
        // Of a value that says the same an earlier one may be what is written.
        let same = state
            .now
            .as_ref()
            .is_some_and(|now| now.says_the_same(&value));
        state.body_purges = if same && state.body_purges != purges {
            None
        } else {
            purges
        };
        state.put(value);
        true
    }

    pub fn put_link(&mut self, key: (String, usize), value: Value) -> bool {
        let scoped = self.in_scope(&key.0);
        let state = self.links.entry(key).or_insert_with(ValueState::absent);
        if state.forgetting && !scoped || scoped && !state.put_in_scope() {
            return false;
        }
        state.put(value);
        true
    }

    fn in_scope(&self, repository: &str) -> bool {
        let scope = self.scope.as_ref();
        scope.is_some_and(|scope| scope.holds(repository))
    }

    /// Whether it may be forgotten just now, one scope at a time; if so that begins.
    pub fn scope_begins(&mut self, scope: &Scope) -> bool {
        if self.scope.is_some() {
            return false;
        }
        self.scope = Some(scope.clone());
        self.scoped(scope).for_each(ValueState::scope_begins);
        true
    }

    pub fn scope_killed(&mut self, scope: &Scope) {
        self.scoped(scope).for_each(ValueState::scope_killed);
    }

    pub fn scope_ends(&mut self) {
        self.scope = None;
    }

    /// Tags and links of the scope.
    fn scoped(&mut self, scope: &Scope) -> impl Iterator<Item = &mut ValueState> {
        let tags = self.tags.iter_mut();
        let tags = tags.filter(|(key, _)| scope.holds(repository(key)));
        let links = self.links.iter_mut();
        let links = links.filter(|((repository, _), _)| scope.holds(repository));
        let tags = tags.map(|(_, state)| state);
        tags.chain(links.map(|(_, state)| state))
    }

    pub fn seen(&mut self, content: usize, file: FileId) {
        let files = &mut self.bodies[content].files;
        if !files.contains(&file) {
            files.push(file);
        }
    }

    pub fn used(&mut self, content: usize) {
        let Ages {
            latest, earliest, ..
        } = self.ages;
        self.bodies[content].uses.push(Use { latest, earliest });
    }

    /// Whether the body was not used for so long that it may have been evicted.
    pub fn idle(&self, body: &BodyState, idle_after: u64) -> bool {
        let last = body
            .uses
            .last()
            .map_or(self.ages.opened, |used| used.latest);
        self.ages.latest - last + AGE_SLACK > idle_after
    }

    /// A crash: what was under way may or may not have happened.
    pub fn crashed(&mut self) {
        for body in &mut self.bodies {
            body.half_purged |= body.forgets > 0;
            body.forgets = 0;
            // A crash loses what was used in the last minute.
            let kept = self.ages.earliest;
            body.uses
                .retain(|used| used.earliest + RECENCY_LOSS <= kept);
        }
        self.ages.opened = self.ages.latest;
        for state in self.tags.values_mut().chain(self.links.values_mut()) {
            state.crashed();
        }
        self.scope = None;
    }

    /// What recovery found becomes what is there. Panics if it must not be, or is missing and not
    /// `lost` to the media or `away`.
    pub fn found_body(
        &mut self,
        content: usize,
        found: bool,
        lenient: bool,
        lost: bool,
        away: bool,
    ) {
        let name = &self.contents[content].digest;
        let body = &mut self.bodies[content];
        assert!(
            found || lenient || lost || away || !body.durable,
            "lost: body {content} {name}: {body:?}"
        );
        assert!(
            !found || body.possible || self.amnesia,
            "came back: body {content} {name}: {body:?}"
        );
        body.parted |= (lenient || lost) && !found;
        body.now = if found {
            Presence::Present
        } else {
            Presence::Absent
        };
        // After a failed sync the kernel may show what the media do not have, until it restarts.
        // It returns with its drive.
        let alone = self.lenient.len() == 1;
        let doubtful = lenient || body.half_purged && !alone;
        body.durable = found && !doubtful || body.durable && away;
        body.shaky = found && doubtful;
        body.possible = found || (body.possible && (lenient || lost || !alone));
        body.version += 1;
    }
}

fn content(random: &mut Random, number: usize, len: usize) -> Content {
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.draw().to_le_bytes());
    }
    bytes.truncate(len);
    let mut digest = "sha256:".to_owned();
    for byte in sha2::Sha256::digest(&bytes) {
        digest.push_str(&format!("{byte:02x}"));
    }
    let media_type =
        (!number.is_multiple_of(3)).then(|| format!("application/vnd.example.{number}"));
    Content {
        digest,
        bytes,
        media_type,
    }
}
