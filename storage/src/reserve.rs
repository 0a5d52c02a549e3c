//! Room for bodies: places in segments, new segments, longer files, staging files.
//!
//! A place in the open segment is taken at once if its file has the room; everything else is
//! done one after another, as a task that goes on if its caller stops waiting. Room is counted, and
//! looked for in the file system, before a body begins, so that a full disk is met here and not in
//! the middle of one. Of a large body's own file only the beginning is allocated by then: ext4 takes
//! a millisecond a GiB, and a client waits. The rest is promised, so that nobody else is admitted on
//! it; only a quota, or whoever else fills the disk just then, can make it fail.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use crate::budget::{Promise, Purpose};
use crate::digest::Digest;
use crate::disk::Disk;
use crate::fill::{Fill, Progress};
use crate::lease::{Place, SegmentFile};
use crate::page::{Class, PAGE_LEN, RecordHeader, SegmentHeader, records_page_len, round_up};
use crate::record::{BodyEntry, MEDIA_TYPE_LEN_MAX};
use crate::segment::{Area, Plan, Segment, State, file_name};
use crate::store::refusal;
use crate::wait::detached;
use crate::watermark::{FillFailure, Watermark};
use crate::writer::{FillSpec, Refusal, Shared};

/// A file of unknown length grows by this part of what it has: as much is unused at most.
const GROWTH_PARTS: u64 = 4;
/// And by this at most: bounds what one call allocates.
const GROWTH_MAX_BYTES: u64 = 64 << 20;

/// A wish for room, owned so that it outlives its caller.
pub(crate) struct Order {
    digest: Digest,
    length: Option<u64>,
    media_type: Option<Arc<str>>,
}

impl Order {
    pub(crate) fn new(spec: &FillSpec<'_>) -> Result<Order, Refusal> {
        let media_type = spec.media_type.filter(|text| !text.is_empty());
        if media_type.is_some_and(|text| text.len() > MEDIA_TYPE_LEN_MAX) {
            return Err(Refusal::MediaTypeTooLong);
        }
        Ok(Order {
            digest: spec.digest,
            length: spec.length,
            media_type: media_type.map(Arc::from),
        })
    }
}

/// What a new segment file is to be.
pub(crate) struct Draft {
    pub(crate) class: Class,
    pub(crate) area: Area,
    pub(crate) len: u64,
    /// So much of that is allocated when the file is made; all of it while room is wished for.
    pub(crate) len_at_once: u64,
    pub(crate) len_max: u64,
}

impl<D: Disk> Shared<D> {
    pub(crate) async fn fill(self: &Rc<Self>, order: Order) -> Result<Fill<D>, Refusal> {
        let solo = self.store.geometry.solo(order.length);
        if self.draft(&order).len > self.store.bodies_max() {
            return Err(Refusal::TooLarge);
        }
        if !solo && let Some(fill) = self.reserve_now(&order) {
            return Ok(fill);
        }
        let shared = Rc::clone(self);
        detached(self.tasks(), async move {
            let _turn = shared.reserving.turn().await;
            if solo {
                shared.reserve_in_new(&order).await
            } else {
                shared.reserve_in_open(&order).await
            }
        })
        .await
    }

    /// A place in the open segment, if its file has the room already.
    fn reserve_now(self: &Rc<Self>, order: &Order) -> Option<Fill<D>> {
        let open = self.open.borrow().clone()?;
        let plan = self.plan(&open, order);
        (plan.file_len <= open.len.get()).then(|| self.start(&open, &plan, order))
    }

    async fn reserve_in_open(self: &Rc<Self>, order: &Order) -> Result<Fill<D>, Refusal> {
        loop {
            // Others take places while this one waits, and the segment may be given up.
            let open = self.open.borrow().clone();
            let Some(open) = open else { break };
            let plan = self.plan(&open, order);
            if plan.file_len <= open.len.get() {
                return Ok(self.start(&open, &plan, order));
            }
            if plan.file_len > open.len_max {
                break;
            }
            let step = self.store.geometry.step;
            self.grow(&open, plan.file_len, step).await?;
        }
        self.reserve_in_new(order).await
    }

    async fn reserve_in_new(self: &Rc<Self>, order: &Order) -> Result<Fill<D>, Refusal> {
        let draft = self.draft(order);
        let segment = self.create(&draft).await?;
        self.segments.borrow_mut().push(Rc::clone(&segment));
        if draft.class == Class::Shared {
            // Only now: without room for a new one the old one still serves smaller bodies.
            let full = self.open.replace(Some(Rc::clone(&segment)));
            if let Some(full) = full.filter(|full| full.state.get() == State::Open) {
                full.state.set(State::Full);
            }
        }
        let plan = self.plan(&segment, order);
        let fill = self.start(&segment, &plan, order);
        if let Some(promise) = segment.promise.take() {
            self.allocate_rest(fill.progress(), promise, segment.len.get());
        }
        Ok(fill)
    }

    /// The rest of a new file of `len`, while its body comes in: once its first bytes are there for
    /// whoever waits, and in parts, for writes wait for each.
    fn allocate_rest(self: &Rc<Self>, progress: &Rc<Progress<D>>, mut promise: Promise, len: u64) {
        progress.allocated.set(len - promise.left());
        let (shared, progress) = (Rc::clone(self), Rc::clone(progress));
        self.tasks().spawn(async move {
            while promise.left() > 0 && progress.needs_space().await {
                let allocated = len - promise.left();
                let more = allocated.min(promise.left());
                let end = allocated + more;
                if let Err(error) = shared.allocate_to(&progress, end, more).await {
                    return shared.allocation_failed(&progress, &error, len).await;
                }
                promise.keep(more);
                progress.allocated_now(end);
            }
        });
    }

    /// With room made for it if the disk is full after all.
    async fn allocate_to(&self, progress: &Progress<D>, end: u64, more: u64) -> io::Result<()> {
        let (file, volume) = (&progress.file.file, progress.file.volume);
        let disk = self.disk(volume);
        match disk.grow(file, end).await {
            Err(error) if refusal(&error) == Refusal::Full && !progress.ended() => {
                if !self.make_room(volume, more).await {
                    return Err(error);
                }
                disk.grow(file, end).await
            }
            outcome => outcome,
        }
    }

    async fn allocation_failed(&self, progress: &Rc<Progress<D>>, error: &io::Error, len: u64) {
        if refusal(error) != Refusal::Full {
            return self.write_failed(progress, error);
        }
        if !progress.ended() {
            self.end_fill(progress, FillFailure::Full);
            // While it counts a file gets all of its space at once, or is refused.
            self.wish_for(progress.file.volume, len, len).await;
        }
    }

    fn plan(&self, segment: &Segment<D>, order: &Order) -> Plan {
        let (length, entry_max) = self.extent(order);
        segment.plan(length, entry_max)
    }

    /// Bytes to reserve for the body, and for its commit entry.
    fn extent(&self, order: &Order) -> (u64, u64) {
        let geometry = &self.store.geometry;
        match order.length {
            Some(length) => (length, BodyEntry::encoded_max(length)),
            None => {
                let entry_max = BodyEntry::encoded_max(geometry.unknown_len_max);
                (geometry.unknown_step, entry_max)
            }
        }
    }

    /// The segment that would be made for this body.
    fn draft(&self, order: &Order) -> Draft {
        let geometry = &self.store.geometry;
        let (length, entry_max) = self.extent(order);
        let (class, area_len) = if geometry.solo(order.length) {
            (Class::Solo, records_page_len(entry_max))
        } else {
            (Class::Shared, geometry.area_len)
        };
        let area = Area {
            offset: PAGE_LEN,
            end: PAGE_LEN + area_len,
        };
        let room = |length: u64| {
            let pages = records_page_len(entry_max) + 2 * PAGE_LEN;
            round_up(length.saturating_add(area.end + pages).min(i64::MAX as u64))
        };
        let (len, len_max) = match (class, order.length) {
            (Class::Shared, _) => (room(length).max(geometry.step), geometry.segment_len),
            (_, None) => (room(length), room(geometry.unknown_len_max)),
            (_, Some(_)) => (room(length), room(length)),
        };
        let len = len.min(len_max);
        let beginning = area.end + PAGE_LEN + round_up(geometry.step);
        Draft {
            class,
            area,
            len,
            len_at_once: match (class, order.length) {
                (Class::Solo, Some(_)) => len.min(beginning),
                _ => len,
            },
            len_max,
        }
    }

    /// A new segment file on the volume with the largest free share, or the next that takes it.
    async fn create(&self, draft: &Draft) -> Result<Rc<Segment<D>>, Refusal> {
        let mut refused = Refusal::DiskFailed;
        let mut full = None;
        for volume in self.store.writable() {
            let budget = &self.store.volume(volume).budget;
            match self.create_on(volume, draft).await {
                Ok(segment) => {
                    budget.wish.granted(draft.len);
                    return Ok(segment);
                }
                Err(refusal) => refused = refusal,
            }
            if refused == Refusal::Full && draft.len <= budget.bodies_max() {
                full = full.or(Some(volume));
            }
        }
        if let Some(full) = full {
            self.wish_for(full, draft.len, 0).await;
        }
        Err(refused)
    }

    /// A new segment file with its header, once more with room made for it if the volume is full.
    /// Nothing in it is durable before its first sync.
    pub(crate) async fn create_on(
        &self,
        volume: u8,
        draft: &Draft,
    ) -> Result<Rc<Segment<D>>, Refusal> {
        match self.try_create_on(volume, draft).await {
            Err(Refusal::Full) if self.make_room(volume, draft.len).await => {
                self.try_create_on(volume, draft).await
            }
            outcome => outcome,
        }
    }

    async fn try_create_on(&self, volume: u8, draft: &Draft) -> Result<Rc<Segment<D>>, Refusal> {
        let (disk, purpose) = (self.disk(volume), purpose(draft.class));
        let budget = &self.store.volume(volume).budget;
        if purpose == Purpose::Bodies && self.store.files_over() > 0 {
            return Err(Refusal::Full);
        }
        // A wish that counts is for room that this file system may not have, whatever it shows.
        let at_once = match budget.wish.ceiling(self.store.clock.now()) {
            Some(_) => draft.len,
            None => draft.len_at_once,
        };
        // Before the look, so that of two who look at once not both are admitted.
        let promise = Promise::new(budget, draft.len - at_once);
        let bytes = (draft.len, promise.left());
        self.store.allocate(disk, volume, bytes, purpose).await?;
        let place = Place {
            volume,
            id: self.store.next_segment(),
            class: draft.class,
            floor: self.store.sequence(),
        };
        let name = file_name(place.id, draft.class);
        let file = match disk.create(&name, at_once).await {
            Ok(file) => file,
            Err(error) => {
                budget.give_back(draft.len, purpose);
                return Err(self.create_failed(volume, &error));
            }
        };
        let id = place.id;
        let file = SegmentFile::new(file, place, draft.len, Arc::clone(budget));
        let segment = Rc::new(Segment::new(id, draft, self.store.uuid, file));
        segment.promise.set((promise.left() > 0).then_some(promise));
        let header = SegmentHeader {
            uuid: self.store.uuid,
            segment: id,
            class: draft.class,
            created: self.now.get(),
            area_offset: draft.area.offset,
            area_len: draft.area.end - draft.area.offset,
        };
        let header = header.encode().into();
        if let Err(error) = disk.write(&segment.file.file, 0, header).await {
            // Nothing is in it yet: what stays of it is removed by the next recovery.
            let _ = disk.unlink(&name).await;
            return Err(self.create_failed(volume, &error));
        }
        self.store
            .volume(volume)
            .register(Arc::clone(&segment.file));
        if segment.file.abandoned() {
            // The volume went offline meanwhile: whoever brings it back must not find a file that
            // is written to.
            let _ = disk.unlink(&name).await;
            return Err(Refusal::DiskFailed);
        }
        Ok(segment)
    }

    /// A segment that could not be made is one that was given up, unless the disk is only full.
    fn create_failed(&self, volume: u8, error: &io::Error) -> Refusal {
        let refusal = refusal(error);
        if refusal != Refusal::Full {
            self.store.disk_failed(volume, error);
            self.store.segment_failed(volume, self.now.get());
        }
        refusal
    }

    /// Lengthens a segment's file to `needed`, and by a step if it may become that long.
    pub(crate) async fn grow(
        &self,
        segment: &Segment<D>,
        needed: u64,
        step: u64,
    ) -> Result<(), Refusal> {
        let stepped = (segment.len.get() + round_up(step)).min(segment.len_max);
        let len = needed.max(stepped);
        let from = segment.len.get();
        self.grow_file(&segment.file, from, len, purpose(segment.class))
            .await?;
        segment.len.set(len);
        Ok(())
    }

    async fn grow_file(
        &self,
        file: &SegmentFile<D>,
        from: u64,
        to: u64,
        purpose: Purpose,
    ) -> Result<(), Refusal> {
        let (volume, len) = (file.volume, to - from);
        let outcome = match self.try_grow_file(file, from, to, purpose).await {
            Err(Refusal::Full)
                if purpose != Purpose::Staging && self.make_room(volume, len).await =>
            {
                self.try_grow_file(file, from, to, purpose).await
            }
            outcome => outcome,
        };
        if purpose == Purpose::Bodies {
            match &outcome {
                Ok(()) => self.store.volume(volume).budget.wish.granted(len),
                Err(Refusal::Full) => self.wish_for(volume, len, 0).await,
                Err(_) => {}
            }
        }
        outcome
    }

    async fn try_grow_file(
        &self,
        file: &SegmentFile<D>,
        from: u64,
        to: u64,
        purpose: Purpose,
    ) -> Result<(), Refusal> {
        let disk = self.disk(file.volume);
        self.store
            .allocate(disk, file.volume, (to - from, 0), purpose)
            .await?;
        match disk.grow(&file.file, to).await {
            Ok(()) => {
                file.charge(to - from);
                Ok(())
            }
            Err(error) => {
                let budget = &self.store.volume(file.volume).budget;
                budget.give_back(to - from, purpose);
                self.store.disk_failed(file.volume, &error);
                Err(refusal(&error))
            }
        }
    }

    /// Takes the planned place and starts the fill with its record header.
    fn start(self: &Rc<Self>, segment: &Rc<Segment<D>>, plan: &Plan, order: &Order) -> Fill<D> {
        segment.reserve(plan);
        let file = Arc::clone(&segment.file);
        let fill = self.begin(
            order,
            Some(Rc::clone(segment)),
            file,
            plan.offset + PAGE_LEN,
        );
        let header = RecordHeader {
            uuid: self.store.uuid,
            segment: segment.id,
            offset: plan.offset,
            fill: fill.progress().sequence,
            digest: order.digest,
            len: order.length,
            created: self.now.get(),
            media_type: order.media_type.as_deref().unwrap_or(""),
        };
        let header = header.encode().into();
        fill.progress().issue(self, plan.offset, 0, header);
        fill
    }

    fn begin(
        self: &Rc<Self>,
        order: &Order,
        segment: Option<Rc<Segment<D>>>,
        file: Arc<SegmentFile<D>>,
        offset: u64,
    ) -> Fill<D> {
        let sequence = self.store.next_sequence();
        let withheld_len = self.store.geometry.withheld_len;
        let watermark = Watermark::new(Arc::clone(&file), offset, order.length, withheld_len);
        let (digest, length) = (order.digest, order.length);
        let progress = Progress::new(digest, sequence, segment, file, offset, watermark);
        let progress = Rc::new(progress);
        self.run(&progress);
        Fill::new(Rc::clone(self), progress, length, order.media_type.clone())
    }

    pub(crate) async fn stage(self: &Rc<Self>, order: Order) -> Result<Fill<D>, Refusal> {
        let (length, _) = self.extent(&order);
        if length > self.store.staging_max() {
            return Err(Refusal::TooLarge);
        }
        let shared = Rc::clone(self);
        detached(self.tasks(), async move {
            let mut refused = Refusal::DiskFailed;
            for volume in shared.store.writable() {
                match shared.anonymous(volume, round_up(length)).await {
                    Ok(file) => return Ok(shared.begin(&order, None, file, 0)),
                    Err(refusal) => refused = refusal,
                }
            }
            Err(refused)
        })
        .await
    }

    async fn anonymous(&self, volume: u8, len: u64) -> Result<Arc<SegmentFile<D>>, Refusal> {
        let (disk, purpose) = (self.disk(volume), Purpose::Staging);
        let budget = &self.store.volume(volume).budget;
        self.store.allocate(disk, volume, (len, 0), purpose).await?;
        match disk.anonymous(len).await {
            Ok(file) => {
                let budget = Arc::clone(budget);
                Ok(Arc::new(SegmentFile::staging(file, volume, len, budget)))
            }
            Err(error) => {
                budget.give_back(len, purpose);
                self.store.disk_failed(volume, &error);
                Err(refusal(&error))
            }
        }
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
        if progress.has_room(end) {
            return Ok(());
        }
        let (shared, progress) = (Rc::clone(self), Rc::clone(progress));
        let grown = detached(self.tasks(), async move {
            // A caller that stopped waiting may have left one under way.
            let _turn = progress.growing.turn().await;
            if progress.has_room(end) {
                return Ok(());
            }
            shared.grow_now(&progress, end).await
        });
        grown.await.map_err(|refusal| match refusal {
            Refusal::DiskFailed => FillFailure::DiskFailed,
            Refusal::Full | Refusal::TooLarge | Refusal::MediaTypeTooLong => FillFailure::Full,
        })
    }

    async fn grow_now(&self, progress: &Progress<D>, end: u64) -> Result<(), Refusal> {
        let len = progress.file.charged();
        let step_min = self.store.geometry.unknown_step;
        let step = (len / GROWTH_PARTS).clamp(step_min, GROWTH_MAX_BYTES.max(step_min));
        match &progress.segment {
            Some(segment) => {
                let needed = segment.file_len_for(progress.offset, end);
                self.grow(segment, needed, step).await
            }
            None => {
                let to = round_up(end.max(len + step));
                self.grow_file(&progress.file, len, to, Purpose::Staging)
                    .await
            }
        }
    }
}

fn purpose(class: Class) -> Purpose {
    match class {
        Class::Shared | Class::Solo => Purpose::Bodies,
        Class::Small => Purpose::SmallRecords,
    }
}
