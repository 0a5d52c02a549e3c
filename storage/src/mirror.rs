//! The small log on every volume: each page of small records is written to all that are online.
//!
//! A record is durable when a volume that has the whole log has it, every other was tried, and of
//! those that failed the superblocks say that they are not complete any more (`attest`): the next
//! checkpoint writes them everything again.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use crate::disk::Disk;
use crate::page::{Class, PAGE_LEN, records_page_len};
use crate::reserve::Draft;
use crate::segment::{Area, Segment, Slot, State};
use crate::wait::all;
use crate::writer::{Shared, WriteError};

/// Records are packed into pages up to this length, unless one alone is longer.
const PAGE_RECORDS_LEN_MAX: usize = 32 << 10;

/// Encoded records, packed into pages.
#[derive(Default)]
pub(crate) struct Pages {
    /// {encoded records, how many}
    pages: Vec<(Vec<u8>, u32)>,
    /// No record in them that a forget record could kill has a lower sequence.
    floor: u64,
}

impl Pages {
    pub(crate) fn new(floor: u64) -> Pages {
        let pages = Vec::new();
        Pages { pages, floor }
    }

    pub(crate) fn add(&mut self, encoded: &[u8]) {
        match self.pages.last_mut() {
            Some((page, count)) if page.len() + encoded.len() <= PAGE_RECORDS_LEN_MAX => {
                page.extend_from_slice(encoded);
                *count += 1;
            }
            _ => self.pages.push((encoded.to_vec(), 1)),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
}

impl<D: Disk> Shared<D> {
    /// Durable when it returns `Ok`. Within a turn of `small.writing`.
    pub(crate) async fn write_mirrored(self: &Rc<Self>, pages: Pages) -> Result<(), WriteError> {
        let volumes = self.store.online();
        let pages = Rc::new(pages);
        let outcomes = Rc::new(RefCell::new(Vec::new()));
        let tasks = volumes.into_iter().map(|volume| {
            let (shared, pages) = (Rc::clone(self), Rc::clone(&pages));
            let outcomes = Rc::clone(&outcomes);
            async move {
                let outcome = shared.write_pages(volume, &pages).await;
                outcomes.borrow_mut().push((volume, outcome));
            }
        });
        all(self.tasks(), tasks.collect()).await;
        let outcomes = outcomes.take();
        let reached = outcomes.iter().map(|(n, outcome)| (*n, outcome.is_ok()));
        let reached: Vec<(u8, bool)> = reached.collect();
        // Asked again: who could not be told is offline, and may have been the one.
        let durable = || self.store.reached(&reached);
        if durable() && (self.tell().await && durable()) {
            return Ok(());
        }
        let failed = outcomes.into_iter().find_map(|(_, outcome)| outcome.err());
        Err(failed.unwrap_or(WriteError::DiskFailed))
    }

    /// The same on one volume.
    pub(crate) async fn write_pages(&self, volume: u8, pages: &Pages) -> Result<(), WriteError> {
        let mut last = None;
        for (encoded, count) in &pages.pages {
            let segment = self.small_segment(volume, encoded.len() as u64).await?;
            // Before the record is there, so that what kills it is never let go too early.
            segment.file.lower_floor(pages.floor);
            let slot = segment.small_page(encoded, *count);
            self.write_slot(&segment, slot).await?;
            last = Some(segment);
        }
        match last {
            Some(segment) => self.sync_small(&segment).await,
            None => Ok(()),
        }
    }

    fn small_current(&self, volume: u8) -> Option<Rc<Segment<D>>> {
        self.small.segments.borrow().get(&volume).cloned()
    }

    /// A segment with room for a page of `len` bytes of records.
    async fn small_segment(&self, volume: u8, len: u64) -> Result<Rc<Segment<D>>, WriteError> {
        let geometry = self.store.geometry;
        if let Some(segment) = self.small_current(volume) {
            let needed = segment.small_file_len(len);
            if needed <= segment.len.get() {
                return Ok(segment);
            }
            if needed <= segment.len_max {
                self.grow(&segment, needed, geometry.small_step).await?;
                return Ok(segment);
            }
            self.seal_small(volume).await?;
        }
        let area = Area {
            offset: PAGE_LEN,
            end: PAGE_LEN,
        };
        let needed = area.end + records_page_len(len) + PAGE_LEN;
        let len = needed.max(geometry.small_step);
        let draft = Draft {
            class: Class::Small,
            area,
            len,
            len_at_once: len,
            len_max: geometry.small_len,
        };
        let segment = self.create_on(volume, &draft).await?;
        let current = Rc::clone(&segment);
        self.small.segments.borrow_mut().insert(volume, current);
        Ok(segment)
    }

    /// For a drain.
    pub(crate) async fn end_small(&self) -> Result<(), WriteError> {
        let _turn = self.small.writing.turn().await;
        let mut outcome = Ok(());
        for volume in self.store.online() {
            outcome = outcome.and(self.seal_small(volume).await);
        }
        outcome
    }

    /// Records that come now go to a new segment. Within a turn of `small.writing`.
    pub(crate) async fn seal_small(&self, volume: u8) -> Result<(), WriteError> {
        let Some(segment) = self.small.segments.borrow_mut().remove(&volume) else {
            return Ok(());
        };
        for slot in segment.footer() {
            self.write_slot(&segment, slot).await?;
        }
        self.sync_small(&segment).await?;
        segment.state.set(State::Sealed);
        segment.file.seal();
        Ok(())
    }

    async fn write_slot(&self, segment: &Rc<Segment<D>>, slot: Slot) -> Result<(), WriteError> {
        let outcome = self
            .disk(segment.file.volume)
            .write(&segment.file.file, slot.offset, slot.bytes)
            .await;
        self.check_small(segment, &outcome)
    }

    async fn sync_small(&self, segment: &Rc<Segment<D>>) -> Result<(), WriteError> {
        let disk = self.disk(segment.file.volume);
        let mut outcome = disk.sync(&segment.file.file).await;
        if outcome.is_ok() && !segment.named.get() {
            outcome = disk.sync_dir().await;
            segment.named.set(outcome.is_ok());
        }
        self.check_small(segment, &outcome)
    }

    /// What was durable in a failed segment stays: among it are forget records.
    fn check_small(
        &self,
        segment: &Rc<Segment<D>>,
        outcome: &io::Result<()>,
    ) -> Result<(), WriteError> {
        let Err(error) = outcome else {
            return Ok(());
        };
        let volume = segment.file.volume;
        self.store.disk_failed(volume, error);
        if segment.state.replace(State::GivenUp) != State::GivenUp {
            self.store.segment_failed(volume, self.now.get());
        }
        let mut segments = self.small.segments.borrow_mut();
        let current = segments.get(&volume);
        if current.is_some_and(|current| Rc::ptr_eq(current, segment)) {
            segments.remove(&volume);
        }
        Err(WriteError::DiskFailed)
    }
}
