//! Room at once: when a file cannot be made, whole segments go, the longest unused first.
//!
//! Evicting single bodies would free nothing before their segments are compacted. A segment can
//! go only if all that lives in it is this writer's and nobody reads it. If that is not enough,
//! the wish is left for all owners.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock::Age;
use crate::disk::Disk;
use crate::evict::{Cause, SMALL};
use crate::index::{Flags, Seen};
use crate::lease::SegmentFile;
use crate::segment::file_name;
use crate::wait::Walk;
use crate::writer::Shared;

/// A file is closed by a helper of its disk, which this waits for: so many syncs of a directory
/// are longer than the close of any segment.
const CLOSE_WAITS_MAX: usize = 4;

/// Room that could not be made is not looked for again for so long, in seconds of the age clock:
/// it is a walk over the index, and each fill of a full store would begin one.
const NO_ROOM_S: Age = 1;

/// Where there are too many files, one part in this many goes at once: the next files are made
/// without a walk over the index.
const FILES_PARTS: u64 = 256;

/// A sealed segment and what this writer has in it.
struct Holding<D: Disk> {
    file: Arc<SegmentFile<D>>,
    bodies: u64,
    /// Small bodies are among them: they are many, and go last.
    small: bool,
    /// When one of them was last asked for.
    newest: Age,
}

impl<D: Disk> Holding<D> {
    /// Whether it goes with these bodies: no other writer's lives in it, and nobody reads it.
    fn can_go(&self) -> bool {
        // Of each body in the index, of the registry, and this one.
        let own = self.bodies as usize + 2;
        self.file.live_records() == self.bodies && Arc::strong_count(&self.file) == own
    }
}

impl<D: Disk> Shared<D> {
    /// Frees `len` bytes of a volume. `false`: it cannot, and has evicted nothing.
    pub(crate) async fn make_room(&self, volume: u8, len: u64) -> bool {
        let budget = &self.store.volume(volume).budget;
        if len > budget.bodies_max() {
            return false;
        }
        let _turn = self.upkeep.making_room.turn().await;
        let lately = self.upkeep.no_room.borrow().get(&volume).copied();
        let recent = |age: Age| self.store.clock.now() <= age.saturating_add(NO_ROOM_S);
        if lately.is_some_and(|(age, lacked)| lacked <= len && recent(age)) {
            return false;
        }
        let made = self.free_whole(volume, len).await;
        if !made {
            let now = self.store.clock.now();
            let mut no_room = self.upkeep.no_room.borrow_mut();
            no_room.insert(volume, (now, len));
        }
        made
    }

    async fn free_whole(&self, volume: u8, len: u64) -> bool {
        let budget = &self.store.volume(volume).budget;
        let len = len.max((budget.used() + len).saturating_sub(budget.bodies_max()));
        let mut held = self.holdings(volume).await;
        held.retain(|_, holding| holding.can_go());
        let sizes: Vec<_> = held
            .iter()
            .map(|(id, held)| ((held.small, held.newest), held.file.charged(), *id))
            .collect();
        let store = &self.store;
        let due = files_due(store.files_over(), store.files_max, store.owners);
        let Some(going) = oldest(sizes, len, due) else {
            return false;
        };
        held.retain(|id, _| going.contains(id));
        self.evict_holdings(&held).await;
        let mut freed = 0;
        for (_, holding) in held {
            if holding.file.dead() {
                freed += holding.file.charged();
                self.unlink_now(holding.file).await;
            }
        }
        self.closed(volume, len).await;
        freed >= len
    }

    /// Has every owner help to make room for bodies on this volume, in time.
    /// `going` of what it holds go by themselves.
    pub(crate) async fn wish_for(&self, volume: u8, len: u64, going: u64) {
        let budget = &self.store.volume(volume).budget;
        let promised = budget.promised();
        if let Ok(space) = self.disk(volume).space().await {
            let now = self.store.clock.now();
            budget.wish_for(len, going, space.less(promised), now);
        }
    }

    async fn holdings(&self, volume: u8) -> BTreeMap<u64, Holding<D>> {
        let (mut held, mut walk) = (BTreeMap::new(), Walk::default());
        for slice in self.slices() {
            self.store.index.each_body(slice, |body| {
                walk.visit();
                let file = &body.lease.file;
                if file.volume != volume || !body.flags.has(Flags::DURABLE) || !file.sealed() {
                    return;
                }
                let holding = held.entry(file.id).or_insert_with(|| Holding {
                    file: Arc::clone(file),
                    bodies: 0,
                    small: false,
                    newest: 0,
                });
                holding.bodies += 1;
                holding.small |= self.store.eviction.class_of(body.lease.len()) == SMALL;
                holding.newest = holding.newest.max(body.recency());
            });
            walk.rest(self.tasks()).await;
        }
        held
    }

    async fn evict_holdings(&self, held: &BTreeMap<u64, Holding<D>>) {
        let mut walk = Walk::default();
        for slice in self.slices() {
            let mut going = Vec::new();
            self.store.index.each_body(slice, |body| {
                walk.visit();
                if held.contains_key(&body.lease.file.id) {
                    going.push(Seen::of(body));
                }
            });
            for seen in going {
                self.take_out(seen, Cause::Room);
            }
            walk.rest(self.tasks()).await;
        }
    }

    /// As `unlink`, but done when this returns.
    async fn unlink_now(&self, file: Arc<SegmentFile<D>>) {
        let volume = self.store.volume(file.volume);
        let Some(registered) = volume.unregister(file.id) else {
            return;
        };
        volume.unlinked(&registered, self.store.clock.now());
        // A name that stays is found and removed by the next recovery.
        let name = file_name(file.id, file.class);
        let _ = self.disk(file.volume).unlink(&name).await;
    }

    /// Waits until the file system shows what was freed, but not for long.
    async fn closed(&self, volume: u8, len: u64) {
        let disk = self.disk(volume);
        let budget = &self.store.volume(volume).budget;
        for _ in 0..CLOSE_WAITS_MAX {
            // Each may take as long as anybody waits for a disk.
            let promised = budget.promised();
            match disk.space().await {
                Ok(space) if space.less(promised).free < len => {}
                _ => return,
            }
            // Only the time it takes matters.
            if disk.sync_dir().await.is_err() {
                return;
            }
        }
    }
}

/// How many files one owner has to let go, if there are as many as there may be: its part of what
/// all have too many, for they all look at once.
fn files_due(over: u64, max: u64, owners: usize) -> u64 {
    match over {
        0 => 0,
        over => (over + max / FILES_PARTS).div_ceil(owners as u64),
    }
}

/// Of {(small, newest), bytes, id}, the ids of the first that make `len` bytes together, and of
/// `files` if there are as many: without small bodies before those with, and the longest unused
/// first.
fn oldest(mut sizes: Vec<((bool, Age), u64, u64)>, len: u64, files: u64) -> Option<Vec<u64>> {
    sizes.sort_unstable();
    let (mut bytes, mut ids) = (0, Vec::new());
    for (_, size, id) in sizes {
        if bytes >= len && ids.len() as u64 >= files {
            break;
        }
        bytes += size;
        ids.push(id);
    }
    (bytes >= len).then_some(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_share_the_files_that_are_too_many() {
        assert_eq!(files_due(0, 1000, 4), 0);
        assert_eq!(files_due(1, 40, 4), 1);
        assert_eq!(files_due(9, 40, 4), 3);
        assert_eq!(files_due(1, 40 * FILES_PARTS, 1), 41);
        assert_eq!(files_due(1, 40 * FILES_PARTS, 4), 11);
    }

    #[test]
    fn the_longest_unused_go_and_no_more_than_needed() {
        let sizes = vec![
            ((false, 30), 10, 1),
            ((false, 10), 10, 2),
            ((true, 5), 10, 3),
        ];
        assert_eq!(oldest(sizes.clone(), 1, 0), Some(vec![2]));
        assert_eq!(oldest(sizes.clone(), 11, 0), Some(vec![2, 1]));
        assert_eq!(oldest(sizes.clone(), 30, 0), Some(vec![2, 1, 3]));
        assert_eq!(oldest(sizes.clone(), 1, 2), Some(vec![2, 1]));
        assert_eq!(oldest(sizes.clone(), 1, 4), Some(vec![2, 1, 3]));
        assert_eq!(oldest(sizes, 31, 0), None, "nothing is given for nothing");
    }
}
