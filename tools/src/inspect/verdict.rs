//! Which record of a key counts, by the rules of recovery: the highest sequence, unless a forget
//! record of that sequence or a higher one kills it; of equal sequences the copy in the segment
//! with the highest id.
//!
//! Files cannot tell what was evicted: eviction writes nothing. So what is live here is what a
//! start would find now, and a running server may serve less.

use std::collections::HashMap;

use entrepot_storage::inspect::{Kind, Record};
use entrepot_storage::{Digest, ForgetKey, LinkKey, RepositoryKey, ScopeKey, TagKey};

use super::load::Loaded;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Live,
    /// The same record is in this segment too, which wins.
    Copy(u64),
    /// A record with this higher sequence replaced it.
    Superseded(u64),
    /// Killed by the forget record with this sequence.
    Forgotten(u64),
}

impl Verdict {
    pub fn text(self) -> String {
        match self {
            Verdict::Live => "live".to_owned(),
            Verdict::Copy(segment) => format!("copy of the one in segment {segment:016x}"),
            Verdict::Superseded(sequence) => format!("superseded by sequence {sequence:#x}"),
            Verdict::Forgotten(sequence) => {
                format!("forgotten by the forget record with sequence {sequence:#x}")
            }
        }
    }
}

#[derive(PartialEq, Eq, Hash)]
enum Key<'l> {
    Body(&'l Digest),
    Tag(&'l TagKey),
    Link(&'l LinkKey),
    Statistics(&'l RepositoryKey),
    /// Only forget records have it.
    Scope(&'l ScopeKey),
}

/// `None`: every record of the kind counts.
fn key(kind: &Kind) -> Option<Key<'_>> {
    match kind {
        Kind::Body(entry) => Some(Key::Body(&entry.digest)),
        Kind::Tag(key, _) => Some(Key::Tag(key)),
        Kind::Link(key, _) => Some(Key::Link(key)),
        Kind::Statistics(key, _) => Some(Key::Statistics(key)),
        _ => None,
    }
}

/// A record by what orders it: its sequence, then its segment.
type Order = (u64, u64);

/// Of every key on all volumes.
pub struct Verdicts<'l> {
    newest: HashMap<Key<'l>, Order>,
    forgets: HashMap<Key<'l>, Order>,
    /// Of repositories and projects: few, and each is looked at.
    scopes: Vec<(&'l ScopeKey, u64)>,
}

impl<'l> Verdicts<'l> {
    pub fn new(loaded: &'l Loaded) -> Verdicts<'l> {
        let mut verdicts = Verdicts {
            newest: HashMap::new(),
            forgets: HashMap::new(),
            scopes: Vec::new(),
        };
        for place in loaded.counting() {
            for record in &place.segment.records {
                verdicts.take(record, place.segment.id);
            }
        }
        verdicts
    }

    fn take(&mut self, record: &'l Record, segment: u64) {
        if let Kind::Forget(ForgetKey::Scope(scope)) = &record.kind {
            self.scopes.push((scope, record.sequence));
        }
        let (keys, key) = match &record.kind {
            Kind::Forget(forget) => (&mut self.forgets, forgotten_key(forget)),
            kind => match key(kind) {
                Some(key) => (&mut self.newest, key),
                None => return,
            },
        };
        let order = (record.sequence, segment);
        let newest = keys.entry(key).or_insert(order);
        *newest = order.max(*newest);
    }

    pub fn verdict(&self, record: &Record, segment: u64) -> Verdict {
        let Some(key) = key(&record.kind) else {
            return Verdict::Live;
        };
        if let Some((forget, _)) = self.forgets.get(&key)
            && record.sequence <= *forget
        {
            return Verdict::Forgotten(*forget);
        }
        if let Some(forget) = self.scope_of(&record.kind, record.sequence) {
            return Verdict::Forgotten(forget);
        }
        match self.newest.get(&key) {
            Some((sequence, _)) if *sequence != record.sequence => Verdict::Superseded(*sequence),
            Some((_, other)) if *other != segment => Verdict::Copy(*other),
            _ => Verdict::Live,
        }
    }

    /// The newest forget record of its repository or project that kills it.
    fn scope_of(&self, kind: &Kind, sequence: u64) -> Option<u64> {
        let (project, repository) = match kind {
            Kind::Tag(key, _) => (&key.project, &key.repository),
            Kind::Link(key, _) => (&key.project, &key.repository),
            Kind::Statistics(key, _) => (&key.project, &key.repository),
            _ => return None,
        };
        let kills = self
            .scopes
            .iter()
            .filter(|(scope, forget)| sequence <= *forget && scope.holds(project, repository));
        kills.map(|(_, forget)| *forget).max()
    }

    /// Sequence and segment of the newest forget record of a body.
    pub fn forget_of(&self, digest: &Digest) -> Option<Order> {
        self.forgets.get(&Key::Body(digest)).copied()
    }
}

fn forgotten_key(forget: &ForgetKey) -> Key<'_> {
    match forget {
        ForgetKey::Body(digest) => Key::Body(digest),
        ForgetKey::Tag(key) => Key::Tag(key),
        ForgetKey::Link(key) => Key::Link(key),
        ForgetKey::Statistics(key) => Key::Statistics(key),
        ForgetKey::Scope(scope) => Key::Scope(scope),
    }
}
