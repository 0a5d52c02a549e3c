//! The writing side of the store, one per shard: fills, tags, links, forgetting.
//!
//! Many fills run at once; everything else of a writer is serialised by its gates. What a caller
//! starts here goes on to its end if the caller stops waiting, so that nothing is left half made.
//! Groups are committed in `commit`, small records in `small`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use bytes::Bytes;

use crate::Seconds;
use crate::budget::Purpose;
use crate::digest::{Digest, Hasher};
use crate::disk::Disk;
use crate::fill::{Fill, Progress};
use crate::index::IndexedBody;
use crate::key::{ForgetKey, LinkKey, LinkRecord, RepositoryKey, Statistics, TagKey, TagRecord};
use crate::lease::SegmentFile;
use crate::page::{Class, PAGE_LEN, RecordHeader, SegmentHeader, records_page_len, round_up};
use crate::record::{BodyEntry, MEDIA_TYPE_LEN_MAX};
use crate::segment::{Area, Finished, Plan, Segment, State, file_name};
use crate::small::SmallLog;
use crate::store::{Body, Store, refusal};
use crate::wait::{Gate, detached};
use crate::watermark::{FillFailure, Watermark};

/// A group is committed at the latest when this many bytes wait for it: bounds what the kernel
/// must write within one sync, and what a crash can lose.
const COMMIT_BYTES: u64 = 256 << 20;
/// Growth of a file of unknown length: a part of what it has, so that at most as much is unused.
const GROWTH_PARTS: u64 = 4;

#[derive(Clone, Copy, Debug)]
pub struct FillSpec<'s> {
    pub digest: Digest,
    /// `None`: unknown until the end.
    pub length: Option<u64>,
    pub media_type: Option<&'s str>,
}

/// Why a body is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the store is full")]
    Full,
    #[error("the body can never fit")]
    TooLarge,
    #[error("the media type is too long")]
    MediaTypeTooLong,
    #[error("the disk failed")]
    DiskFailed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    #[error("the disk failed; what was not durable is lost or will be written again")]
    DiskFailed,
    #[error("the store is full")]
    Full,
    #[error("the record is too long")]
    TooLong,
    #[error("too many records wait to be written")]
    Behind,
}

impl From<Refusal> for WriteError {
    fn from(refusal: Refusal) -> WriteError {
        match refusal {
            Refusal::Full | Refusal::TooLarge => WriteError::Full,
            Refusal::MediaTypeTooLong => WriteError::TooLong,
            Refusal::DiskFailed => WriteError::DiskFailed,
        }
    }
}

pub struct Writer<D: Disk> {
    shared: Rc<Shared<D>>,
}

/// What the writer, its fills and its tasks share. One thread, no lock held across an await.
pub(crate) struct Shared<D: Disk> {
    pub(crate) store: Arc<Store<D>>,
    pub(crate) disk: D,
    /// The segment that takes reservations.
    pub(crate) open: RefCell<Option<Rc<Segment<D>>>>,
    /// All segments with bodies that are not sealed yet, the open one included.
    pub(crate) segments: RefCell<Vec<Rc<Segment<D>>>>,
    pub(crate) small: SmallLog<D>,
    pub(crate) committing: Gate,
    /// Bytes of this writer that a crash would lose.
    pub(crate) uncommitted: Cell<u64>,
    running: RefCell<BTreeMap<u64, Rc<Progress<D>>>>,
    reserving: Gate,
    /// The latest time it was told.
    pub(crate) now: Cell<Seconds>,
    shard: usize,
}

impl<D: Disk> Writer<D> {
    pub(crate) fn new(store: Arc<Store<D>>, disk: D, shard: usize) -> Writer<D> {
        Writer {
            shared: Rc::new(Shared {
                store,
                disk,
                open: RefCell::default(),
                segments: RefCell::default(),
                small: SmallLog::default(),
                committing: Gate::default(),
                uncommitted: Cell::new(0),
                running: RefCell::default(),
                reserving: Gate::default(),
                now: Cell::new(0),
                shard,
            }),
        }
    }

    /// The shard this writer was made for.
    pub fn shard(&self) -> usize {
        self.shared.shard
    }

    /// Reserves room for a body. A refusal leaves nothing behind.
    pub async fn fill(&self, spec: FillSpec<'_>) -> Result<Fill<D>, Refusal> {
        let order = self.shared.order(&spec)?;
        self.shared.admits(order.length)?;
        if !self.shared.store.geometry.solo(order.length)
            && let Some(fill) = self.shared.reserve_now(&order)
        {
            return Ok(fill);
        }
        let shared = Rc::clone(&self.shared);
        detached(
            &self.shared.disk,
            async move { shared.reserve(order).await },
        )
        .await
    }

    /// The same fill into a file without a name: never committed, never in the index, gone with
    /// its last lease.
    pub async fn staging(&self, spec: FillSpec<'_>) -> Result<Fill<D>, Refusal> {
        let order = self.shared.order(&spec)?;
        let shared = Rc::clone(&self.shared);
        detached(&self.shared.disk, async move { shared.stage(order).await }).await
    }

    /// In the index at once; written with a later group, but not before the body it points to is
    /// durable. A tag whose body the store does not hold is never written.
    pub async fn put_tag(&self, key: TagKey, record: TagRecord) -> Result<(), WriteError> {
        self.shared.put_tag(key, record)
    }

    pub async fn put_link(&self, key: LinkKey, record: LinkRecord) -> Result<(), WriteError> {
        self.shared.put_link(key, record)
    }

    pub async fn put_statistics(
        &self,
        key: RepositoryKey,
        statistics: Statistics,
    ) -> Result<(), WriteError> {
        self.shared.put_statistics(key, statistics)
    }

    /// Forgets for good: gone from the index at once, running fills of the digest fail; when this
    /// returns `Ok` no restart brings it back. Leases stay readable.
    pub async fn forget(&self, what: ForgetKey) -> Result<(), WriteError> {
        let shared = Rc::clone(&self.shared);
        detached(&self.shared.disk, async move { shared.forget(what).await }).await
    }

    /// The bytes of a small body: from RAM, or read, checked against the digest and held in RAM
    /// from now on. A body with another digest is forgotten.
    pub async fn load(&self, digest: &Digest, now: Seconds) -> Option<Bytes> {
        let body = self.shared.store.body(digest, now)?;
        if body.bytes.is_some() {
            return body.bytes;
        }
        if body.len > self.shared.store.index.small_max() {
            return None;
        }
        let (shared, digest) = (Rc::clone(&self.shared), *digest);
        detached(&self.shared.disk, async move { shared.load(digest).await }).await
    }

    /// Bytes of bodies and small records that a crash would lose.
    pub fn uncommitted(&self) -> u64 {
        self.shared.uncommitted.get()
    }

    pub fn wants_commit(&self) -> bool {
        self.uncommitted() >= COMMIT_BYTES
    }

    /// Commits a group: syncs what was finished, then writes its commit entries, which the next
    /// group's sync makes durable. So two calls make everything durable that was finished before
    /// the first; tags whose digest another writer owns may need that writer's two calls first.
    /// A failed sync costs the segment, never a retry: `Err` says that this happened.
    pub async fn commit(&self, now: Seconds) -> Result<(), WriteError> {
        let shared = Rc::clone(&self.shared);
        detached(&self.shared.disk, async move { shared.commit(now).await }).await
    }

    /// Commits everything and seals every segment no fill runs in: for a drain.
    pub async fn seal_all(&self, now: Seconds) -> Result<(), WriteError> {
        let shared = Rc::clone(&self.shared);
        detached(&self.shared.disk, async move { shared.seal_all(now).await }).await
    }
}

/// A wish for room, owned so that it outlives its caller.
struct Order {
    digest: Digest,
    length: Option<u64>,
    media_type: Option<Arc<str>>,
    now: Seconds,
}

impl<D: Disk> Shared<D> {
    fn order(&self, spec: &FillSpec<'_>) -> Result<Order, Refusal> {
        if spec
            .media_type
            .is_some_and(|text| text.len() > MEDIA_TYPE_LEN_MAX)
        {
            return Err(Refusal::MediaTypeTooLong);
        }
        let media_type = spec
            .media_type
            .filter(|text| !text.is_empty())
            .map(Arc::from);
        Ok(Order {
            digest: spec.digest,
            length: spec.length,
            media_type,
            now: self.now.get(),
        })
    }

    fn admits(&self, length: Option<u64>) -> Result<(), Refusal> {
        let needed = length.map(|length| {
            let pages = round_up(BodyEntry::encoded_max(length)).saturating_mul(2);
            length.saturating_add(pages).saturating_add(4 * PAGE_LEN)
        });
        match needed {
            Some(needed) if needed > self.store.budget.bodies_max() => Err(Refusal::TooLarge),
            _ => Ok(()),
        }
    }

    /// A place in the open segment, if its file has the room already.
    fn reserve_now(self: &Rc<Self>, order: &Order) -> Option<Fill<D>> {
        let open = self.open.borrow().clone()?;
        let (plan, length) = self.plan_in(&open, order);
        (plan.file_len <= open.len.get()).then(|| self.start(&open, &plan, length, order))
    }

    fn plan_in(&self, segment: &Segment<D>, order: &Order) -> (Plan, u64) {
        let geometry = &self.store.geometry;
        let (reserved, entry_for) = match order.length {
            Some(length) => (length, length),
            None => (geometry.step, geometry.unknown_len_max),
        };
        (
            segment.plan(reserved, BodyEntry::encoded_max(entry_for)),
            reserved,
        )
    }

    async fn reserve(self: Rc<Self>, order: Order) -> Result<Fill<D>, Refusal> {
        let _turn = self.reserving.turn().await;
        if self.store.geometry.solo(order.length) {
            let segment = self.create_solo(&order).await?;
            let (plan, length) = self.plan_in(&segment, &order);
            self.segments.borrow_mut().push(Rc::clone(&segment));
            return Ok(self.start(&segment, &plan, length, &order));
        }
        // While this one waited for its turn another may have made room.
        if let Some(fill) = self.reserve_now(&order) {
            return Ok(fill);
        }
        let open = self.open.borrow().clone();
        if let Some(open) = open {
            let (plan, length) = self.plan_in(&open, &order);
            if plan.file_len <= open.len_max {
                self.grow(&open, plan.file_len, self.store.geometry.step)
                    .await?;
                // Fills that fit went on meanwhile, or the segment was given up.
                let (plan, _) = self.plan_in(&open, &order);
                if open.state.get() == State::Open && plan.file_len <= open.len.get() {
                    return Ok(self.start(&open, &plan, length, &order));
                }
            }
        }
        self.reserve_in_new(&order).await
    }

    async fn reserve_in_new(self: &Rc<Self>, order: &Order) -> Result<Fill<D>, Refusal> {
        let geometry = self.store.geometry;
        let area = Area {
            offset: PAGE_LEN,
            end: PAGE_LEN + geometry.area_len,
        };
        let length = order.length.unwrap_or(geometry.step);
        let first = area.end + body_room(length, BodyEntry::encoded_max(length));
        let len = first.max(geometry.step).min(geometry.segment_len);
        let segment = self
            .create(
                Class::Shared,
                area,
                len,
                geometry.segment_len,
                order.now,
                Purpose::Bodies,
            )
            .await?;
        // Only now: while there is no room for a new one the old one still serves smaller bodies.
        if let Some(full) = self.open.replace(Some(Rc::clone(&segment)))
            && full.state.get() == State::Open
        {
            full.state.set(State::Full);
        }
        self.segments.borrow_mut().push(Rc::clone(&segment));
        let (plan, length) = self.plan_in(&segment, order);
        Ok(self.start(&segment, &plan, length, order))
    }

    async fn create_solo(self: &Rc<Self>, order: &Order) -> Result<Rc<Segment<D>>, Refusal> {
        let geometry = self.store.geometry;
        let area_len = geometry.solo_area(order.length);
        let area = Area {
            offset: PAGE_LEN,
            end: PAGE_LEN + area_len,
        };
        let entry_max = BodyEntry::encoded_max(order.length.unwrap_or(geometry.unknown_len_max));
        let len = area.end + body_room(order.length.unwrap_or(geometry.step), entry_max);
        let len_max = match order.length {
            Some(_) => len,
            None => area.end + body_room(geometry.unknown_len_max, entry_max),
        };
        self.create(Class::Solo, area, len, len_max, order.now, Purpose::Bodies)
            .await
    }

    /// A new segment file with its header. Nothing in it is durable before its first sync.
    pub(crate) async fn create(
        &self,
        class: Class,
        area: Area,
        len: u64,
        len_max: u64,
        now: Seconds,
        purpose: Purpose,
    ) -> Result<Rc<Segment<D>>, Refusal> {
        self.store.allocate(&self.disk, len, purpose).await?;
        let id = self.store.next_segment();
        let name = file_name(id, class);
        let file = match self.disk.create(&name, len).await {
            Ok(file) => file,
            Err(error) => {
                self.store.budget.give_back(len, purpose);
                return Err(refusal(&error));
            }
        };
        let file = SegmentFile::new(file, len, false, Arc::clone(&self.store.budget));
        let uuid = self.store.uuid;
        let segment = Rc::new(Segment::new(id, class, uuid, file, len, len_max, area));
        let header = SegmentHeader {
            uuid,
            segment: id,
            class,
            created: now,
            area_offset: area.offset,
            area_len: area.end - area.offset,
        };
        if self
            .disk
            .write(&segment.file.file, 0, header.encode().into())
            .await
            .is_err()
        {
            // Nothing is in it yet: what stays of it is removed by the next recovery.
            let _ = self.disk.unlink(&name).await;
            return Err(Refusal::DiskFailed);
        }
        self.store.register(id, class, Arc::clone(&segment.file));
        Ok(segment)
    }

    /// Lengthens a segment's file to `needed`, and by a step if it may become that long.
    pub(crate) async fn grow(
        &self,
        segment: &Segment<D>,
        needed: u64,
        step: u64,
    ) -> Result<(), Refusal> {
        let purpose = if segment.class == Class::Small {
            Purpose::SmallRecords
        } else {
            Purpose::Bodies
        };
        let len = segment.len.get();
        let target = needed.max((len + round_up(step)).min(segment.len_max));
        self.store
            .allocate(&self.disk, target - len, purpose)
            .await?;
        match self.disk.grow(&segment.file.file, target).await {
            Ok(()) => {
                segment.file.charge(target - len);
                segment.len.set(target);
                Ok(())
            }
            Err(error) => {
                self.store.budget.give_back(target - len, purpose);
                Err(refusal(&error))
            }
        }
    }

    /// Takes the planned place and starts the fill with its record header.
    fn start(
        self: &Rc<Self>,
        segment: &Rc<Segment<D>>,
        plan: &Plan,
        reserved: u64,
        order: &Order,
    ) -> Fill<D> {
        segment.reserve(plan);
        let sequence = self.store.next_sequence();
        let offset = plan.offset + PAGE_LEN;
        let file = Arc::clone(&segment.file);
        let withheld = self.store.geometry.withheld_len;
        let watermark = Watermark::new(Arc::clone(&file), offset, order.length, withheld);
        debug_assert!(order.length.is_none_or(|length| length == reserved));
        let segment = Some(Rc::clone(segment));
        let digest = order.digest;
        let progress = Rc::new(Progress::new(
            digest,
            sequence,
            segment.clone(),
            file,
            offset,
            watermark,
        ));
        self.running
            .borrow_mut()
            .insert(sequence, Rc::clone(&progress));
        let header = RecordHeader {
            uuid: self.store.uuid,
            segment: segment.as_ref().map_or(0, |segment| segment.id),
            offset: plan.offset,
            fill: sequence,
            digest,
            len: order.length,
            created: order.now,
            media_type: order.media_type.as_deref().unwrap_or(""),
        };
        progress.issue(self, plan.offset, 0, header.encode().into());
        let media_type = order.media_type.clone();
        Fill::new(
            Rc::clone(self),
            progress,
            order.length,
            media_type,
            order.now,
        )
    }

    async fn stage(self: Rc<Self>, order: Order) -> Result<Fill<D>, Refusal> {
        let len = round_up(order.length.unwrap_or(self.store.geometry.step));
        if len > self.store.budget.staging_max() {
            return Err(Refusal::TooLarge);
        }
        self.store
            .allocate(&self.disk, len, Purpose::Staging)
            .await?;
        let file = match self.disk.anonymous(len).await {
            Ok(file) => file,
            Err(error) => {
                self.store.budget.give_back(len, Purpose::Staging);
                return Err(refusal(&error));
            }
        };
        let file = SegmentFile::new(file, len, true, Arc::clone(&self.store.budget));
        let file = Arc::new(file);
        let sequence = self.store.next_sequence();
        let withheld = self.store.geometry.withheld_len;
        let watermark = Watermark::new(Arc::clone(&file), 0, order.length, withheld);
        let progress = Rc::new(Progress::new(
            order.digest,
            sequence,
            None,
            file,
            0,
            watermark,
        ));
        self.running
            .borrow_mut()
            .insert(sequence, Rc::clone(&progress));
        Ok(Fill::new(
            self,
            progress,
            order.length,
            order.media_type,
            order.now,
        ))
    }

    /// Makes room for `end` bytes of a body of unknown length.
    pub(crate) async fn grow_for(
        self: &Rc<Self>,
        progress: &Rc<Progress<D>>,
        end: u64,
    ) -> Result<(), FillFailure> {
        if end > self.store.geometry.unknown_len_max {
            return Err(FillFailure::Full);
        }
        if !self.lacks_room(progress, end) {
            return Ok(());
        }
        let (shared, progress) = (Rc::clone(self), Rc::clone(progress));
        let grown = detached(&self.disk, async move {
            // A caller that stopped waiting may have left one under way.
            let _turn = progress.growing.turn().await;
            if !shared.lacks_room(&progress, end) {
                return Ok(());
            }
            match &progress.segment {
                Some(segment) => {
                    let needed = segment.file_len_for(progress.offset, end);
                    let part = segment.len.get() / GROWTH_PARTS;
                    let step = part.clamp(shared.store.geometry.step, COMMIT_BYTES);
                    shared.grow(segment, needed, step).await?;
                    segment.extend_to(progress.offset + round_up(end));
                    Ok(())
                }
                None => shared.grow_staging(&progress, end).await,
            }
        });
        grown.await.map_err(|refusal| match refusal {
            Refusal::DiskFailed => FillFailure::DiskFailed,
            Refusal::Full | Refusal::TooLarge | Refusal::MediaTypeTooLong => FillFailure::Full,
        })
    }

    fn lacks_room(&self, progress: &Progress<D>, end: u64) -> bool {
        match &progress.segment {
            Some(segment) => {
                let lacks = segment.file_len_for(progress.offset, end) > segment.len.get();
                if !lacks {
                    segment.extend_to(progress.offset + round_up(end));
                }
                lacks
            }
            None => end > progress.file.charged(),
        }
    }

    async fn grow_staging(&self, progress: &Progress<D>, end: u64) -> Result<(), Refusal> {
        let len = progress.file.charged();
        let target = (len + round_up(self.store.geometry.step)).max(round_up(end));
        self.store
            .allocate(&self.disk, target - len, Purpose::Staging)
            .await?;
        match self.disk.grow(&progress.file.file, target).await {
            Ok(()) => {
                progress.file.charge(target - len);
                Ok(())
            }
            Err(error) => {
                self.store.budget.give_back(target - len, Purpose::Staging);
                Err(refusal(&error))
            }
        }
    }

    /// Puts a verified body into the index and into the next group.
    pub(crate) fn settle(
        &self,
        progress: &Progress<D>,
        entry: BodyEntry,
        body: &Body<D>,
        now: Seconds,
    ) {
        let segment = progress.segment.as_ref().expect("staging is not settled");
        self.now.set(now);
        self.store.index.insert_body(IndexedBody {
            digest: entry.digest,
            sequence: progress.sequence,
            segment: segment.id,
            lease: body.lease.clone(),
            media_type: body.media_type.clone(),
            bytes: body.bytes.clone(),
            recency: AtomicU64::new(now),
            durable: AtomicBool::new(false),
        });
        let finished = Finished {
            sequence: progress.sequence,
            entry,
        };
        self.add_uncommitted(finished.waiting());
        segment.finished.borrow_mut().push(finished);
    }

    pub(crate) fn add_uncommitted(&self, bytes: u64) {
        self.uncommitted.set(self.uncommitted.get() + bytes);
        self.store.uncommitted.add(bytes);
    }

    pub(crate) fn remove_uncommitted(&self, bytes: u64) {
        self.uncommitted.set(self.uncommitted.get() - bytes);
        self.store.uncommitted.remove(bytes);
    }

    pub(crate) fn end_fill(&self, progress: &Progress<D>, why: FillFailure) {
        if progress.fail(why) {
            self.fill_ended(progress);
        }
    }

    /// Called once for each fill, whatever its end.
    pub(crate) fn fill_ended(&self, progress: &Progress<D>) {
        self.running.borrow_mut().remove(&progress.sequence);
        let Some(segment) = &progress.segment else {
            return;
        };
        if !progress.verified() {
            segment.release_promise();
            if segment.class == Class::Solo {
                self.give_up(segment);
            }
        }
        segment.fill_ended();
    }

    pub(crate) fn running(&self, which: impl Fn(&Progress<D>) -> bool) -> Vec<Rc<Progress<D>>> {
        let running = self.running.borrow();
        running
            .values()
            .filter(|progress| which(progress))
            .cloned()
            .collect()
    }

    async fn load(self: Rc<Self>, digest: Digest) -> Option<Bytes> {
        let found = |found: &IndexedBody<D>| (found.sequence, found.lease.clone());
        let (sequence, lease) = self.store.index.with_body(&digest, found)?;
        let len = usize::try_from(lease.len()).ok()?;
        let read = self.disk.read(lease.file(), lease.offset(), len).await;
        let bytes = Bytes::from(read.unwrap_or_default());
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        if hasher.finish() != digest {
            self.drop_body(&digest, sequence).await;
            return None;
        }
        if self.store.index.admit_small(lease.len()) {
            self.store.index.hold(&digest, sequence, bytes.clone());
        }
        Some(bytes)
    }
}

/// Header, body, footer and trailer of one body in a file of its own.
fn body_room(length: u64, entry_max: u64) -> u64 {
    PAGE_LEN + round_up(length) + records_page_len(entry_max) + PAGE_LEN
}
