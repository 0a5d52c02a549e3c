//! What a volume that comes back knows and the store does not: purges, and small records if nobody
//! could read it when the store was opened.
//!
//! Mostly there is nothing, for what is durable is on every complete volume. But a store that was
//! opened while all of those were away began anew, without their purges; and a record that one
//! volume got before a crash may never have been said to be durable.

use std::sync::Arc;

use crate::clock::Age;
use crate::digest::SLICES;
use crate::disk::Disk;
use crate::key::{ForgetKey, ScopeKey};
use crate::page::Class;
use crate::record::{Kind, Record};
use crate::recover::Found;
use crate::volume::Volume;
use crate::wait::Walk;
use crate::writer::Shared;

impl<D: Disk> Shared<D> {
    /// Takes in what is new, purges first, before the bodies of the volume are. It must not be
    /// on this volume alone: the others have a checkpoint then.
    pub(crate) async fn learn(&self, volume: &Volume<D>, found: &[Found<D>]) {
        let mut walk = Walk::default();
        let mut learned = false;
        for found in found {
            for record in &found.scanned.records {
                if let Kind::Forget(key) = &record.kind {
                    learned |= self.learn_purge(key, record.sequence, &mut walk).await;
                }
                walk.visit();
                walk.rest(self.tasks()).await;
            }
        }
        if volume.never_read() {
            let small = |found: &&Found<D>| found.scanned.class == Class::Small;
            let age = self.store.clock.now();
            for record in found.iter().filter(small).flat_map(|f| &f.scanned.records) {
                learned |= self.learn_record(record, age);
                walk.visit();
                walk.rest(self.tasks()).await;
            }
        }
        if learned {
            let others = self.store.volumes.iter();
            others.for_each(Volume::want_checkpoint);
        }
    }

    /// Whether it was not known.
    async fn learn_purge(&self, key: &ForgetKey, sequence: u64, walk: &mut Walk) -> bool {
        let (store, index) = (&self.store, &self.store.index);
        if store.forgets.kills(key, sequence) {
            return false;
        }
        // Before the index, as every purge does.
        store.forgets.note(key, sequence);
        match key {
            ForgetKey::Body(digest) => {
                // A purge of another process: nothing that it kills is being written in this one.
                if let Some(removed) = index.remove_body(digest, |body| body.sequence <= sequence) {
                    let file = Arc::clone(&removed.lease.file);
                    drop(removed);
                    self.reclaim(&file);
                }
            }
            ForgetKey::Tag(key) => index.tags.remove_up_to(key, sequence),
            ForgetKey::Link(key) => index.links.remove_up_to(key, sequence),
            ForgetKey::Statistics(key) => index.statistics.remove_up_to(key, sequence),
            ForgetKey::Scope(scope) => self.learn_scope(scope, sequence, walk).await,
        }
        true
    }

    async fn learn_scope(&self, scope: &ScopeKey, sequence: u64, walk: &mut Walk) {
        let one = scope.repository.is_some().then(|| scope.slice());
        for slice in (0..SLICES).filter(|slice| one.is_none_or(|one| one == *slice)) {
            self.store.index.remove_scope(slice, scope, sequence);
            walk.visit_all(self.store.index.small_count(slice));
            walk.rest(self.tasks()).await;
        }
    }

    /// Whether it is of a kind that is taken in. The index keeps what is newer.
    fn learn_record(&self, record: &Record, age: Age) -> bool {
        let (index, forgets) = (&self.store.index, &self.store.forgets);
        let sequence = record.sequence;
        // Asked last: a purge notes itself before it looks into the index.
        match record.kind.clone() {
            Kind::Tag(key, tag) => {
                index.tags.put(key.clone(), tag, sequence, age);
                if forgets.kills(&ForgetKey::Tag(key.clone()), sequence) {
                    index.tags.remove_up_to(&key, sequence);
                }
            }
            Kind::Link(key, link) => {
                index.links.put(key.clone(), link, sequence, age);
                if forgets.kills(&ForgetKey::Link(key.clone()), sequence) {
                    index.links.remove_up_to(&key, sequence);
                }
            }
            Kind::Statistics(key, statistics) => {
                index.statistics.put(key.clone(), statistics, sequence, age);
                if forgets.kills(&ForgetKey::Statistics(key.clone()), sequence) {
                    index.statistics.remove_up_to(&key, sequence);
                }
            }
            Kind::Unknown { .. } => self.store.keep_unknown(record),
            Kind::Body(_) | Kind::Forget(_) | Kind::Area { .. } | Kind::Recency(_) => return false,
        }
        true
    }
}
