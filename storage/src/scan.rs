//! Scanning one segment file at recovery: from its trailer if it is sealed, else by walking its
//! commit pages, after which it is sealed here.
//!
//! Foreign bytes are never trusted: a page counts if its CRC, uuid, segment and index are right,
//! a body if its extent lies in the file and its record header tells the same.

use std::io;

use bytes::Bytes;

use crate::disk::Disk;
use crate::page::{
    Class, PAGE_LEN, RecordHeader, RecordsPage, RecordsUse, SegmentHeader, Trailer, Uuid,
    claimed_len, decode_records, encode_records,
};
use crate::record::{BodyEntry, Kind, Record};

pub(crate) enum Scan {
    Ours(Scanned),
    /// Of another store.
    Foreign,
    /// Created, and never committed to.
    Empty,
}

pub(crate) struct Scanned {
    pub(crate) segment: u64,
    pub(crate) class: Class,
    pub(crate) len: u64,
    pub(crate) records: Vec<Record>,
    pub(crate) sealed_now: bool,
    /// Its writer's trailer was there, so what it covers was written and synced as a whole. Not
    /// so if a recovery sealed it: its bodies are unverified at every start, until a compaction
    /// copied them.
    pub(crate) was_sealed: bool,
    /// Some of its pages are not what its trailer knows.
    pub(crate) damaged: bool,
    /// Entries dropped because their body is not where they say.
    pub(crate) invalid: u64,
}

/// What identifies the pages of a segment.
struct Own<'s, D: Disk> {
    disk: &'s D,
    file: &'s D::File,
    len: u64,
    uuid: &'s Uuid,
    segment: u64,
    /// Its name says that it holds small records.
    small: bool,
}

/// A segment file as the directory has it.
pub(crate) struct Candidate<'s> {
    pub(crate) segment: u64,
    pub(crate) small: bool,
    pub(crate) len: u64,
    pub(crate) uuid: &'s Uuid,
    /// The process that wrote it may have ended before its last sync.
    pub(crate) recent: bool,
}

pub(crate) async fn scan<D: Disk>(
    disk: &D,
    file: &D::File,
    candidate: Candidate<'_>,
) -> io::Result<Scan> {
    let own = Own {
        disk,
        file,
        len: candidate.len,
        uuid: candidate.uuid,
        segment: candidate.segment,
        small: candidate.small,
    };
    if candidate.recent {
        disk.sync(file).await?;
    }
    match own.sealed().await? {
        Some(scan) => Ok(scan),
        None => {
            if !candidate.recent {
                disk.sync(file).await?;
            }
            own.unsealed().await
        }
    }
}

impl<D: Disk> Own<'_, D> {
    /// `None`: no trailer, or it is not to be believed.
    async fn sealed(&self) -> io::Result<Option<Scan>> {
        let Some(offset) = self.len.checked_sub(PAGE_LEN) else {
            return Ok(None);
        };
        let page = self.read(offset, PAGE_LEN).await?;
        let Some(trailer) = Trailer::decode(&page) else {
            return Ok(None);
        };
        if trailer.uuid != *self.uuid {
            return Ok(Some(Scan::Foreign));
        }
        let end = trailer.records_offset.checked_add(trailer.records_len);
        if trailer.segment != self.segment && trailer.class == Class::Small {
            return self.renamed(trailer.segment).map(Some);
        }
        if trailer.segment != self.segment
            || trailer.offset != offset
            || end.is_none_or(|end| end > offset)
        {
            return Ok(None);
        }
        let bytes = self
            .read(trailer.records_offset, trailer.records_len)
            .await?;
        let whole = crate::codec::crc(&bytes) == trailer.records_crc;
        let records = match trailer.class {
            Class::Small if whole => self.walk_bytes(&bytes, 0).records,
            // A purge in one page must not be lost because another one is damaged.
            Class::Small => self.salvage(&bytes),
            Class::Shared | Class::Solo => match decode_records(RecordsUse::Footer, &bytes) {
                Some(page) if whole && self.owns(&page) => page.records,
                _ => return Ok(None),
            },
        };
        let mut scanned = self.scanned(trailer.class, records, false);
        scanned.was_sealed = !trailer.by_recovery;
        scanned.damaged = !whole;
        Ok(Some(Scan::Ours(scanned)))
    }

    /// Nothing in it counts under this name. Purges must not be lost so easily.
    fn renamed(&self, segment: u64) -> io::Result<Scan> {
        if self.small {
            let was = format!("by its header it is {segment:016x}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, was));
        }
        Ok(Scan::Foreign)
    }

    fn owns(&self, page: &RecordsPage) -> bool {
        page.uuid == *self.uuid && page.segment == self.segment
    }

    /// Of small records the header says nothing that is not known.
    fn small_header(&self) -> Option<SegmentHeader> {
        self.small.then_some(SegmentHeader {
            uuid: *self.uuid,
            segment: self.segment,
            class: Class::Small,
            created: 0,
            area_offset: PAGE_LEN,
            area_len: 0,
        })
    }

    async fn unsealed(&self) -> io::Result<Scan> {
        if self.len < PAGE_LEN {
            return Ok(Scan::Empty);
        }
        let page = self.read(0, PAGE_LEN).await?;
        let Some(header) = SegmentHeader::decode(&page).or_else(|| self.small_header()) else {
            return Ok(Scan::Empty);
        };
        if header.uuid != *self.uuid {
            return Ok(Scan::Foreign);
        }
        if header.segment != self.segment {
            return self.renamed(header.segment);
        }
        let mut walked = self.walk(&header).await?;
        if walked.records.is_empty() {
            return Ok(Scan::Empty);
        }
        let found = walked.records.len();
        walked.records = self.in_place(walked.records).await?;
        let invalid = (found - walked.records.len()) as u64;
        let sealed_now = self.seal(&header, &walked).await.is_ok_and(|sealed| sealed);
        let mut scanned = self.scanned(header.class, walked.records, sealed_now);
        scanned.invalid += invalid;
        Ok(Scan::Ours(scanned))
    }

    /// The commit pages, area after area, up to the first that is not valid.
    async fn walk(&self, header: &SegmentHeader) -> io::Result<Walked> {
        let mut walked = Walked {
            records: Vec::new(),
            pages: 0,
            end: header.area_offset,
        };
        let mut next = Some((header.area_offset, header.area_len));
        if header.class == Class::Small {
            next = Some((PAGE_LEN, self.len.saturating_sub(2 * PAGE_LEN)));
        }
        let mut last_area = 0;
        while let Some((offset, len)) = next.take() {
            // Areas only go forward, so that a walk ends whatever the pages say.
            if offset <= last_area || offset.checked_add(len).is_none_or(|end| end > self.len) {
                break;
            }
            last_area = offset;
            let bytes = self.read(offset, len).await?;
            let mut part = self.walk_bytes(&bytes, walked.pages);
            walked.pages = part.pages;
            walked.end = offset + part.end;
            if let Some(Record {
                kind: Kind::Area { offset, len },
                ..
            }) = part.records.last()
            {
                next = Some((*offset, *len));
                part.records.pop();
            }
            walked.records.append(&mut part.records);
        }
        Ok(walked)
    }

    /// Pages from the start of `bytes`, the first of which has index `pages`.
    fn walk_bytes(&self, bytes: &[u8], pages: u32) -> Walked {
        let mut walked = Walked {
            records: Vec::new(),
            pages,
            end: 0,
        };
        let mut rest = bytes;
        while let Some(len) = claimed_len(RecordsUse::Commit, rest) {
            let Some((page, behind)) = usize::try_from(len)
                .ok()
                .and_then(|len| rest.split_at_checked(len))
            else {
                break;
            };
            match decode_records(RecordsUse::Commit, page) {
                Some(page) if self.owns(&page) && page.index == walked.pages => {
                    walked.records.extend(page.records);
                }
                _ => break,
            }
            walked.pages += 1;
            walked.end += len;
            rest = behind;
        }
        walked
    }

    /// Every page that is whole, wherever it is.
    fn salvage(&self, bytes: &[u8]) -> Vec<Record> {
        let mut records = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let len = claimed_len(RecordsUse::Commit, rest).unwrap_or(PAGE_LEN);
            let len = len.min(rest.len() as u64) as usize;
            let (page, behind) = rest.split_at(len);
            match decode_records(RecordsUse::Commit, page) {
                Some(page) if self.owns(&page) => {
                    records.extend(page.records);
                    rest = behind;
                }
                _ => rest = &rest[rest.len().min(PAGE_LEN as usize)..],
            }
        }
        records
    }

    /// Writes footer and trailer. `false`: there is no room, so it is walked again next time.
    async fn seal(&self, header: &SegmentHeader, walked: &Walked) -> io::Result<bool> {
        let offset = self.len - PAGE_LEN;
        let (records_offset, records_len, records_crc) = if header.class == Class::Small {
            let len = walked.end - PAGE_LEN;
            (
                PAGE_LEN,
                len,
                crate::codec::crc(&self.read(PAGE_LEN, len).await?),
            )
        } else {
            let mut encoded = crate::codec::Encoder::default();
            for record in &walked.records {
                record.encode(&mut encoded);
            }
            let count = walked.records.len() as u32;
            let (uuid, encoded) = (self.uuid, encoded.bytes);
            let page = encode_records(RecordsUse::Footer, uuid, self.segment, 0, count, &encoded);
            let len = page.len() as u64;
            let Some(at) = offset.checked_sub(len).filter(|at| *at >= walked.taken()) else {
                return Ok(false);
            };
            let crc = crate::codec::crc(&page);
            self.disk.write(self.file, at, Bytes::from(page)).await?;
            (at, len, crc)
        };
        let (uuid, segment, class) = (*self.uuid, self.segment, header.class);
        let trailer = Trailer {
            uuid,
            segment,
            class,
            offset,
            records_offset,
            records_len,
            records_crc,
            by_recovery: true,
        };
        self.disk
            .write(self.file, offset, Bytes::from(trailer.encode()))
            .await?;
        self.disk.sync(self.file).await?;
        Ok(true)
    }

    fn scanned(&self, class: Class, records: Vec<Record>, sealed_now: bool) -> Scanned {
        let found = records.len();
        let records: Vec<Record> = records
            .into_iter()
            .filter(|record| self.inside(record))
            .collect();
        let invalid = (found - records.len()) as u64;
        Scanned {
            segment: self.segment,
            class,
            len: self.len,
            records,
            sealed_now,
            was_sealed: false,
            damaged: false,
            invalid,
        }
    }

    fn inside(&self, record: &Record) -> bool {
        let Kind::Body(entry) = &record.kind else {
            return true;
        };
        let end = entry.offset.checked_add(entry.len);
        entry.offset.is_multiple_of(PAGE_LEN)
            && entry.offset >= 2 * PAGE_LEN
            && end.is_some_and(|end| end <= self.len - PAGE_LEN)
    }

    /// Of a segment nobody sealed in time, each body's own header must agree.
    async fn in_place(&self, records: Vec<Record>) -> io::Result<Vec<Record>> {
        let mut agreeing = Vec::new();
        for record in records {
            let agrees = match &record.kind {
                Kind::Body(_) if !self.inside(&record) => false,
                Kind::Body(entry) => self.header_agrees(record.sequence, entry).await?,
                _ => true,
            };
            if agrees {
                agreeing.push(record);
            }
        }
        Ok(agreeing)
    }

    async fn header_agrees(&self, fill: u64, entry: &BodyEntry) -> io::Result<bool> {
        let offset = entry.offset - PAGE_LEN;
        let page = self.read(offset, PAGE_LEN).await?;
        Ok(RecordHeader::decode(&page).is_some_and(|header| {
            header.uuid == *self.uuid
                && header.segment == self.segment
                && header.offset == offset
                && header.fill == fill
                && header.digest == entry.digest
                && header.len.is_none_or(|len| len == entry.len)
        }))
    }

    async fn read(&self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidData)?;
        self.disk.read(self.file, offset, len).await
    }
}

struct Walked {
    records: Vec<Record>,
    pages: u32,
    /// Behind the last valid page.
    end: u64,
}

impl Walked {
    /// Behind everything that is of use.
    fn taken(&self) -> u64 {
        let ends = self.records.iter().map(|record| match &record.kind {
            Kind::Body(entry) => entry.offset.saturating_add(entry.len),
            _ => 0,
        });
        ends.max().unwrap_or(0).max(self.end)
    }
}
