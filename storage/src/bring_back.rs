//! Bringing a volume back that was offline: it is probed, looked through, what it knows is learned,
//! and its bodies join the index under the forget records of the meantime. Then the small log is
//! written to it anew; until that is done it is online but not complete.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use bytes::Bytes;

use crate::disk::Disk;
use crate::index::{Flags, IndexedBody};
use crate::key::ForgetKey;
use crate::lease::{Lease, Place, SegmentFile};
use crate::member::{belongs, new_id};
use crate::open::{empty, look};
use crate::page::PAGE_LEN;
use crate::record::{Kind, Record};
use crate::recover::{Found, Source, gather, lowest};
use crate::store::OpenError;
use crate::superblock::{Superblock, SuperblockFile};
use crate::volume::{Own, Volume};
use crate::wait::{Walk, detached};
use crate::writer::{Shared, Writer};

/// It may be gone: one that was made too late to count removes what it finds under its name.
async fn unlink_probe<D: Disk>(disk: &D) -> io::Result<()> {
    match disk.unlink(PROBE).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        unlinked => unlinked,
    }
}

#[cfg(test)]
pub(crate) mod tests;

/// Written and read to see whether the disk does either.
const PROBE: &str = "PROBE";

/// What came back with a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BroughtBack {
    pub bodies: u64,
    /// Segments that could not be read: their bodies are missing until the volume is read in full,
    /// and purges are kept as long.
    pub unreadable: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum BringBackError {
    #[error("there is no such volume")]
    Unknown,
    #[error("the volume is online")]
    Online,
    /// Each writer notices in its next `maintain`, which may wait for what hangs.
    #[error(
        "not all shards have noticed yet that the volume is offline: try again in a few seconds; \
             if that does not help, its disk does not answer: restart the server"
    )]
    Busy,
    /// It is not known what of it is still to be written.
    #[error(
        "a compaction of the volume has not ended: try again in a few seconds; if that does not \
             help, its disk does not answer: restart the server"
    )]
    Compacting,
    #[error("only the writer of shard 0 can do this")]
    NotHere,
    #[error(transparent)]
    Volume(#[from] OpenError),
}

impl<D: Disk> Writer<D> {
    /// Puts a volume that is offline to use again, after its disk was repaired or replaced. On
    /// the writer of shard 0. What fails leaves it offline.
    pub async fn bring_back(&self, volume: usize) -> Result<BroughtBack, BringBackError> {
        let shared = Rc::clone(&self.shared);
        let work = async move { shared.bring_back(volume).await };
        detached(self.shared.tasks(), work).await
    }
}

impl<D: Disk> Shared<D> {
    async fn bring_back(self: Rc<Self>, number: usize) -> Result<BroughtBack, BringBackError> {
        let _alone = self.upkeep.bringing_back.turn().await;
        let volume = self.store.volumes.get(number);
        let volume = volume.ok_or(BringBackError::Unknown)?;
        if volume.online() {
            return Err(BringBackError::Online);
        }
        if self.shard() != 0 {
            return Err(BringBackError::NotHere);
        }
        let number = number as u8;
        self.all_ended(number)?;
        let names = self.own(number, volume).await?;
        self.probe(number).await.map_err(failed("probing it"))?;
        // Only now: a disk that hangs must not keep the shard from its maintenance.
        let _turn = self.maintaining.turn().await;
        self.all_ended(number)?;
        self.store.stays_behind(number);
        let written = self.write_superblock(number).await;
        written.map_err(failed("writing the superblock"))?;
        let source = Source {
            disk: self.disk(number).clone(),
            volume: number,
            names,
            // Nothing that was written before it went offline is known to be durable.
            settled: 0,
        };
        let mut gathered = gather(self.tasks(), self.store.uuid, vec![source]).await;
        let gathered = gathered.remove(0);
        if let Some(source) = gathered.too_many_files {
            return Err(OpenError::TooManyFiles(source).into());
        }
        if let Some((name, source)) = gathered.small_unreadable {
            return Err(OpenError::SmallRecordsUnreadable { name, source }.into());
        }
        self.learn(volume, &gathered.found).await;
        let (mut bodies, mut walk) = (0, Walk::default());
        for found in gathered.found {
            walk.visit_all(found.scanned.records.len() as u64);
            bodies += self.take_in(volume, found);
            walk.rest(self.tasks()).await;
        }
        let unreadable = gathered.unreadable;
        self.put_online(number, unreadable.is_empty()).await;
        Ok(BroughtBack { bodies, unreadable })
    }

    /// Every owner has dropped what it had of the volume; else it might drop what comes now. Nor
    /// does the compactor write or unlink anything there.
    fn all_ended(&self, volume: u8) -> Result<(), BringBackError> {
        let changes = *self.store.offline_changes();
        let noticed = self.store.losers.load(std::sync::atomic::Ordering::Acquire);
        if noticed < changes * self.store.owners as u64 {
            return Err(BringBackError::Busy);
        }
        match self.compacts(volume) {
            true => Err(BringBackError::Compacting),
            false => Ok(()),
        }
    }

    /// Makes sure whose volume it is, and lists what is to be looked through.
    async fn own(&self, number: u8, volume: &Volume<D>) -> Result<Vec<String>, OpenError> {
        let disk = self.disk(number);
        if volume.member().is_some() {
            return disk.list().await.map_err(failed("listing the store"));
        }
        let mut place = look(disk).await?;
        let online = self.store.online();
        let newest = online
            .first()
            .and_then(|n| self.store.volume(*n).superblock());
        let newest = newest.ok_or(OpenError::SuperblockMissing)?;
        let mut id = new_id(&newest.volume, newest.generation, usize::from(number));
        if let Some((found, _)) = &place.superblock {
            if found.uuid != newest.uuid {
                return Err(OpenError::AnotherStore);
            }
            // A copy of a volume is not that volume.
            let mut members = self.store.volumes.iter().filter_map(Volume::member);
            let copy = members.any(|member| member.id == found.volume);
            if belongs(found, &newest) && !copy {
                id = found.volume;
            } else {
                let emptied = empty(disk, &place.names).await;
                emptied.map_err(failed("emptying a volume that went its own way"))?;
                place.names.clear();
                place.superblock = None;
            }
        }
        let superblock = Superblock {
            settled: 0,
            capacity: volume.budget.capacity(),
            volume: id,
            ..newest
        };
        let file = match place.superblock {
            Some((_, file)) => file,
            None => {
                let made = SuperblockFile::create(disk, &superblock).await;
                made.map_err(failed("creating the superblock"))?
            }
        };
        volume.set_own(Own {
            _lock: place.lock,
            superblock,
            file,
        });
        self.store.not_missing(&id);
        Ok(place.names)
    }

    async fn probe(&self, number: u8) -> io::Result<()> {
        let disk = self.disk(number);
        // Left over from a probe that failed.
        unlink_probe(disk).await?;
        let file = disk.create(PROBE, PAGE_LEN).await?;
        let bytes = Bytes::from(self.store.uuid.repeat(PAGE_LEN as usize / 16));
        disk.write(&file, 0, bytes.clone()).await?;
        disk.sync(&file).await?;
        let read = disk.read(&file, 0, bytes.len()).await?;
        unlink_probe(disk).await?;
        disk.sync_dir().await?;
        if read != bytes {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(())
    }

    /// The bodies of a segment join the index.
    fn take_in(&self, volume: &Volume<D>, found: Found<D>) -> u64 {
        let scanned = found.scanned;
        let place = Place {
            volume: found.volume,
            id: scanned.segment,
            class: scanned.class,
            floor: lowest(&scanned.records),
        };
        volume.budget.found(scanned.len);
        let budget = Arc::clone(&volume.budget);
        let file = SegmentFile::new(found.file, place, scanned.len, budget);
        let file = Arc::new(file);
        let held = file.hold();
        volume.register_returning(Arc::clone(&file));
        let mut bodies = 0;
        for record in scanned.records {
            bodies += u64::from(self.take_in_body(&file, record, scanned.was_sealed));
        }
        file.seal();
        drop(held);
        self.reclaim(&file);
        bodies
    }

    fn take_in_body(&self, file: &Arc<SegmentFile<D>>, record: Record, sealed: bool) -> bool {
        let (index, sequence) = (&self.store.index, record.sequence);
        let Kind::Body(entry) = record.kind else {
            return false;
        };
        let unverified = if sealed { 0 } else { Flags::UNVERIFIED };
        let known = index.with_body(&entry.digest, |body| body.sequence >= sequence);
        if known == Some(true) {
            return false;
        }
        let replaced = index.insert_body(IndexedBody {
            digest: entry.digest,
            sequence,
            lease: Lease::new(Arc::clone(file), entry.offset, entry.len),
            media_type: index.media_types.intern(entry.media_type.as_ref()),
            bytes: None,
            recency: AtomicU32::new(self.store.clock.now()),
            flags: Flags::new(Flags::DURABLE | unverified),
        });
        // Asked last: a purge notes itself before it looks into the index.
        let key = ForgetKey::Body(entry.digest);
        if self.store.forgets.kills(&key, sequence) {
            index.remove_body(&entry.digest, |body| body.sequence == sequence);
            return false;
        }
        if let Some(replaced) = replaced {
            let file = replaced.file();
            drop(replaced);
            self.reclaim(&file);
        }
        true
    }
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> OpenError {
    move |source| OpenError::Disk { doing, source }
}
