//! A segment being written: one append-only file of one writer (S6).
//!
//! Open (takes reservations), full, footed (footer written, not yet durable), sealed; or given
//! up. The end only moves forward: an extent once reserved is never given back, and no byte is
//! written twice (S1). Room for the entries of all reserved fills, and for the footer, is kept
//! free from the moment of their reservation, so that neither commit nor seal can run out of it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::budget::Promise;
use crate::digest::Digest;
use crate::disk::Disk;
use crate::lease::{Kept, SegmentFile};
use crate::page::{
    Class, PAGE_LEN, RecordsUse, Trailer, Uuid, encode_records, records_page_len, round_up,
};
use crate::record::{BodyEntry, Kind, Record};
use crate::reserve::Draft;
use crate::wait::Waiters;

/// Files of bodies, and of small records: without the latter a store is not opened.
const BODIES_SUFFIX: &str = ".seg";
const SMALL_SUFFIX: &str = ".rec";

pub fn file_name(segment: u64, class: Class) -> String {
    let suffix = match class {
        Class::Shared | Class::Solo => BODIES_SUFFIX,
        Class::Small => SMALL_SUFFIX,
    };
    format!("{segment:016x}{suffix}")
}

/// The id in the name of a segment file.
pub fn parse_file_name(name: &str) -> Option<u64> {
    let hex = name
        .strip_suffix(BODIES_SUFFIX)
        .or_else(|| name.strip_suffix(SMALL_SUFFIX))?;
    let lower = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    (hex.len() == 16 && hex.bytes().all(lower)).then_some(())?;
    u64::from_str_radix(hex, 16).ok()
}

/// Whether the file of this name holds small records.
pub fn is_small(name: &str) -> bool {
    name.ends_with(SMALL_SUFFIX)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Open,
    Full,
    /// The footer is written but not known to be durable.
    Footed,
    Sealed,
    /// A write or sync failed, or nothing worth keeping is in it.
    GivenUp,
}

/// A verified body that waits for its commit entry.
pub(crate) struct Finished<D: Disk> {
    pub(crate) sequence: u64,
    pub(crate) entry: BodyEntry,
    /// An older body of the digest, which is durable.
    pub(crate) replaces: Option<Kept<D>>,
}

impl<D: Disk> Finished<D> {
    /// Bytes that wait with it: never 0, for an empty body waits too.
    pub(crate) fn waiting(&self) -> u64 {
        PAGE_LEN + self.entry.len
    }
}

/// A body whose commit entry is written and waits for a sync.
pub(crate) struct Entered<D: Disk> {
    pub(crate) digest: Digest,
    pub(crate) sequence: u64,
    pub(crate) waiting: u64,
    pub(crate) replaces: Option<Kept<D>>,
}

#[derive(Clone, Copy)]
pub(crate) struct Area {
    pub(crate) offset: u64,
    pub(crate) end: u64,
}

pub(crate) struct Segment<D: Disk> {
    pub(crate) id: u64,
    pub(crate) class: Class,
    pub(crate) file: Arc<SegmentFile<D>>,
    pub(crate) uuid: Uuid,
    pub(crate) len_max: u64,
    pub(crate) len: Cell<u64>,
    pub(crate) state: Cell<State>,
    /// Its name is durable.
    pub(crate) named: Cell<bool>,
    /// Of a new file, what is allocated while its body comes in.
    pub(crate) promise: Cell<Option<Promise>>,
    /// Pages were written since the last sync.
    pub(crate) unsynced: Cell<bool>,
    /// Fills that run in it.
    pub(crate) fills: Cell<usize>,
    /// Writes issued and not complete, those of dropped fills included.
    pub(crate) writes: Cell<usize>,
    pub(crate) changed: Waiters,
    pub(crate) finished: RefCell<Vec<Finished<D>>>,
    pub(crate) entered: RefCell<Vec<Entered<D>>>,
    /// Bodies of the group that is being synced, in neither of these.
    pub(crate) syncing: RefCell<Vec<Digest>>,
    end: Cell<u64>,
    area: Cell<Area>,
    areas: RefCell<VecDeque<Area>>,
    area_len: u64,
    page_index: Cell<u32>,
    /// Fills whose entry may yet need a page.
    promised: Cell<u64>,
    footer: RefCell<Footer>,
}

#[derive(Default)]
struct Footer {
    /// All records of the commit pages, encoded; of a `Small` segment, empty.
    encoded: Vec<u8>,
    count: u32,
    /// The most `encoded` can become with all reserved fills.
    bound: u64,
    /// Of a `Small` segment: CRC of all its pages.
    crc: crc32fast::Hasher,
}

/// Where a body will be, and what its reservation changes.
pub(crate) struct Plan {
    /// Of the record header.
    pub(crate) offset: u64,
    /// Length the file must have.
    pub(crate) file_len: u64,
    area: Option<Area>,
    end: u64,
    bound: u64,
}

/// A page to write and its place.
pub(crate) struct Slot {
    pub(crate) offset: u64,
    pub(crate) bytes: Bytes,
}

impl<D: Disk> Segment<D> {
    /// Of a file that was just created with a header and an empty commit area.
    pub(crate) fn new(id: u64, draft: &Draft, uuid: Uuid, file: SegmentFile<D>) -> Segment<D> {
        let (class, area) = (draft.class, draft.area);
        Segment {
            id,
            class,
            file: Arc::new(file),
            uuid,
            len_max: draft.len_max,
            len: Cell::new(draft.len),
            state: Cell::new(if class == Class::Solo {
                State::Full
            } else {
                State::Open
            }),
            named: Cell::new(false),
            promise: Cell::new(None),
            unsynced: Cell::new(false),
            fills: Cell::new(0),
            writes: Cell::new(0),
            changed: Waiters::default(),
            finished: RefCell::default(),
            entered: RefCell::default(),
            syncing: RefCell::default(),
            end: Cell::new(area.end),
            area: Cell::new(area),
            areas: RefCell::default(),
            area_len: area.end - area.offset,
            page_index: Cell::new(0),
            promised: Cell::new(0),
            footer: RefCell::default(),
        }
    }

    /// What reserving `len` bytes for a body with an entry of at most `entry_max` bytes would
    /// take; nothing is changed.
    pub(crate) fn plan(&self, len: u64, entry_max: u64) -> Plan {
        let area =
            (self.class == Class::Shared && self.promised.get() >= self.free_pages()).then(|| {
                Area {
                    offset: self.end.get(),
                    end: self.end.get() + self.area_len,
                }
            });
        let offset = area.map_or(self.end.get(), |area| area.end);
        let end = offset + PAGE_LEN + round_up(len);
        let bound = self.footer.borrow().bound + entry_max;
        let file_len = end + records_page_len(bound) + PAGE_LEN;
        Plan {
            offset,
            file_len,
            area,
            end,
            bound,
        }
    }

    /// Takes what was planned. The plan must be the last one made.
    pub(crate) fn reserve(&self, plan: &Plan) {
        assert!(
            plan.file_len <= self.len.get(),
            "the file was grown for the plan"
        );
        assert!(plan.offset >= self.end.get(), "the end never moves back");
        self.areas.borrow_mut().extend(plan.area);
        self.end.set(plan.end);
        self.footer.borrow_mut().bound = plan.bound;
        self.promised.set(self.promised.get() + 1);
        self.fills.set(self.fills.get() + 1);
    }

    /// Of a body of unknown length: how long the file must be for `body_len` bytes and the footer.
    pub(crate) fn file_len_for(&self, body_offset: u64, body_len: u64) -> u64 {
        let end = body_offset + round_up(body_len);
        end + records_page_len(self.footer.borrow().bound) + PAGE_LEN
    }

    /// Of a body of unknown length: its end moves with it.
    pub(crate) fn extend_to(&self, end: u64) {
        self.end.set(self.end.get().max(end));
    }

    /// A fill left without a body to commit.
    pub(crate) fn release_promise(&self) {
        self.promised.set(self.promised.get() - 1);
    }

    pub(crate) fn fill_ended(&self) {
        self.fills.set(self.fills.get() - 1);
        self.changed.wake_all();
    }

    pub(crate) fn write_issued(&self) {
        self.writes.set(self.writes.get() + 1);
    }

    pub(crate) fn write_completed(&self) {
        self.writes.set(self.writes.get() - 1);
        self.changed.wake_all();
    }

    /// Whether its footer can be written: nothing more can be added to it.
    pub(crate) fn settled(&self) -> bool {
        self.state.get() == State::Full
            && self.fills.get() == 0
            && self.writes.get() == 0
            && self.finished.borrow().is_empty()
    }

    /// The bodies that have commit entries here.
    pub(crate) fn bodies(&self) -> Vec<(Digest, u64)> {
        let footer = self.footer.borrow();
        let records = Record::decode_all(&footer.encoded, footer.count).expect("own records");
        let body = |record: Record| match record.kind {
            Kind::Body(entry) => Some((entry.digest, record.sequence)),
            _ => None,
        };
        records.into_iter().filter_map(body).collect()
    }

    /// All bodies that the index may have in this segment.
    pub(crate) fn indexed(&self) -> Vec<Digest> {
        let mut indexed = self.syncing.borrow().clone();
        indexed.extend(self.finished.borrow().iter().map(|body| body.entry.digest));
        indexed.extend(self.bodies().into_iter().map(|(digest, _)| digest));
        indexed
    }

    pub(crate) fn has_records(&self) -> bool {
        self.page_index.get() > 0
    }

    /// Pages of a shared segment that entries can have; one of each area is kept for the link.
    fn free_pages(&self) -> u64 {
        let pages = |area: &Area| (area.end - area.offset) / PAGE_LEN - 1;
        pages(&self.area.get()) + self.areas.borrow().iter().map(pages).sum::<u64>()
    }

    /// Turns finished bodies into commit pages, each in its place and ready to be written.
    pub(crate) fn enter(&self, bodies: Vec<Finished<D>>) -> Vec<Slot> {
        let mut slots = Vec::new();
        let (mut encoded, mut count) = (Vec::new(), 0);
        for body in bodies {
            let entered = Entered {
                digest: body.entry.digest,
                sequence: body.sequence,
                waiting: body.waiting(),
                replaces: body.replaces,
            };
            let record = Record {
                sequence: body.sequence,
                kind: Kind::Body(body.entry),
            }
            .encoded();
            if count > 0 && records_page_len((encoded.len() + record.len()) as u64) > PAGE_LEN {
                slots.extend(self.place(&encoded, count));
                (encoded, count) = (Vec::new(), 0);
            }
            encoded.extend_from_slice(&record);
            count += 1;
            self.entered.borrow_mut().push(entered);
            self.release_promise();
        }
        if count > 0 {
            slots.extend(self.place(&encoded, count));
        }
        slots
    }

    /// A page of records in the commit area, after a link to the next area if this one is full.
    fn place(&self, encoded: &[u8], count: u32) -> Vec<Slot> {
        let len = records_page_len(encoded.len() as u64);
        let kept = if self.class == Class::Shared {
            PAGE_LEN
        } else {
            0
        };
        let mut slots = Vec::new();
        if self.area.get().offset + len + kept > self.area.get().end {
            let next = self
                .areas
                .borrow_mut()
                .pop_front()
                .expect("a page was promised");
            let kind = Kind::Area {
                offset: next.offset,
                len: next.end - next.offset,
            };
            let link = Record { sequence: 0, kind }.encoded();
            slots.push(self.page(&link, 1));
            self.area.set(next);
        }
        slots.push(self.page(encoded, count));
        let mut footer = self.footer.borrow_mut();
        footer.encoded.extend_from_slice(encoded);
        footer.count += count;
        slots
    }

    /// The next page of the area that is being written.
    fn page(&self, encoded: &[u8], count: u32) -> Slot {
        let index = self.page_index.replace(self.page_index.get() + 1);
        let page = encode_records(
            RecordsUse::Commit,
            &self.uuid,
            self.id,
            index,
            count,
            encoded,
        );
        let area = self.area.get();
        let offset = area.offset;
        assert!(
            offset + page.len() as u64 <= area.end,
            "the page is inside its area"
        );
        self.area.set(Area {
            offset: offset + page.len() as u64,
            end: area.end,
        });
        Slot {
            offset,
            bytes: page.into(),
        }
    }

    /// Of a `Small` segment: how long the file must be for a page of `encoded` bytes.
    pub(crate) fn small_file_len(&self, encoded: u64) -> u64 {
        self.area.get().offset + records_page_len(encoded) + PAGE_LEN
    }

    /// Of a `Small` segment: the next page. The file was grown for it.
    pub(crate) fn small_page(&self, encoded: &[u8], count: u32) -> Slot {
        let area = Area {
            offset: self.area.get().offset,
            end: self.len.get() - PAGE_LEN,
        };
        self.area.set(area);
        let slot = self.page(encoded, count);
        self.end.set(slot.offset + slot.bytes.len() as u64);
        self.footer.borrow_mut().crc.update(&slot.bytes);
        slot
    }

    /// The footer and the trailer, which make it sealed once they are durable.
    pub(crate) fn footer(&self) -> Vec<Slot> {
        assert_eq!(self.writes.get(), 0, "a seal waits for every write issued");
        let footer = self.footer.borrow();
        let trailer_offset = self.len.get() - PAGE_LEN;
        if self.class == Class::Small {
            let (start, end) = (PAGE_LEN, self.end.get());
            let crc = footer.crc.clone().finalize();
            return vec![self.trailer(trailer_offset, start, end - start, crc)];
        }
        let (uuid, id) = (&self.uuid, self.id);
        let page = encode_records(
            RecordsUse::Footer,
            uuid,
            id,
            0,
            footer.count,
            &footer.encoded,
        );
        let offset = trailer_offset - page.len() as u64;
        assert!(offset >= self.end.get(), "room for the footer was kept");
        let crc = crate::codec::crc(&page);
        let trailer = self.trailer(trailer_offset, offset, page.len() as u64, crc);
        vec![
            Slot {
                offset,
                bytes: page.into(),
            },
            trailer,
        ]
    }

    fn trailer(&self, offset: u64, records_offset: u64, records_len: u64, crc: u32) -> Slot {
        let trailer = Trailer {
            uuid: self.uuid,
            segment: self.id,
            class: self.class,
            offset,
            records_offset,
            records_len,
            records_crc: crc,
            by_recovery: false,
        };
        Slot {
            offset,
            bytes: trailer.encode().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_an_id() {
        for (id, class) in [
            (77, Class::Shared),
            (u64::MAX, Class::Solo),
            (0, Class::Small),
        ] {
            let name = file_name(id, class);
            assert_eq!(parse_file_name(&name), Some(id));
            assert_eq!(is_small(&name), class == Class::Small);
        }
        for name in [
            "STORE",
            "77.seg",
            "+00000000000004d.seg",
            "000000000000004D.seg",
            ".seg",
        ] {
            assert_eq!(parse_file_name(name), None, "{name}");
        }
    }
}
