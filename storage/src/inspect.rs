//! Reading a store's files from outside, for `entrepot-inspect`: no lock, no write, no sealing.
//!
//! Recovery (`scan`) asks what may be believed and repairs; this asks what is there, and names
//! everything that is not as it should be. Both decode with the same functions. It works beside a
//! running server: what it reads is the bytes of one moment.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;

use crate::Seconds;
use crate::codec::crc;
use crate::digest::Hasher;
use crate::member::{Found, Standing, decide};
pub use crate::page::{Class, PAGE_LEN, Uuid};
use crate::page::{
    RecordHeader, RecordsPage, RecordsUse, SegmentHeader, Trailer, claimed_len, decode_records,
};
pub use crate::record::{BodyEntry, CRC_STRIDE_BYTES, Kind, Record};
pub use crate::segment::{file_name, is_small, parse_file_name};
use crate::store::OpenError;
pub use crate::superblock::NAME as SUPERBLOCK_NAME;
use crate::superblock::Superblock;

/// The bytes of a file.
pub trait Source {
    /// When it was opened: the file may have grown since, and never shrinks (S1).
    fn file_len(&self) -> u64;

    /// Exactly `len` bytes; `UnexpectedEof` where the file ends before.
    fn read(&self, offset: u64, len: usize) -> io::Result<Cow<'_, [u8]>>;
}

/// What the file `STORE` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFile {
    pub uuid: Uuid,
    pub generation: u64,
    /// Segments of generations before this one were durable and sealed when it began.
    pub settled: u64,
    pub created: Seconds,
    pub capacity: u64,
    pub segment_len: u64,
    /// Of this volume.
    pub volume: Uuid,
    superblock: Superblock,
}

/// Decodes the file `STORE` of a volume: the newer of its copies that are whole.
pub fn store_file(bytes: &[u8]) -> Result<StoreFile, OpenError> {
    let (superblock, _) = Superblock::decode_file(bytes)?;
    Ok(StoreFile {
        uuid: superblock.uuid,
        generation: superblock.generation,
        settled: superblock.settled,
        created: superblock.created,
        capacity: superblock.capacity,
        segment_len: superblock.segment_len,
        volume: superblock.volume,
        superblock,
    })
}

/// What a start from some volumes of one store would make of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Of each volume, whether what is on it counts. If not it went its own way, or lacks purges,
    /// and would be emptied.
    pub belongs: Vec<bool>,
    /// Volumes of the store that are not among them.
    pub missing: Vec<Uuid>,
}

/// `None`: a volume without a readable superblock, which is taken as one that belongs.
pub fn membership(files: &[Option<&StoreFile>]) -> Membership {
    let found: Vec<Found<'_>> = files
        .iter()
        .map(|file| file.map_or(Found::Away, |file| Found::Superblock(&file.superblock)))
        .collect();
    let Ok(decided) = decide(&found) else {
        return Membership {
            belongs: vec![true; files.len()],
            missing: Vec::new(),
        };
    };
    let newest = decided.newest.and_then(|number| files[number]);
    let members = newest.map_or(&[][..], |file| &file.superblock.members);
    let given = |id: &Uuid| files.iter().flatten().any(|file| file.volume == *id);
    Membership {
        belongs: decided
            .standings
            .iter()
            .map(|standing| *standing != Standing::Diverged)
            .collect(),
        missing: members
            .iter()
            .map(|member| member.id)
            .filter(|id| !given(id))
            .collect(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its trailer and the records it points to are whole.
    Sealed,
    /// Being written, or left by a process that ended; the next start seals it.
    Unsealed,
    /// Without a whole record.
    Empty,
    /// Of another store, or under another segment's name: ignored by the store.
    Foreign,
}

/// What is wrong with a segment's pages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("{len} bytes at {offset} cannot be read: {why}")]
    Unreadable { offset: u64, len: u64, why: String },
    #[error("the header is damaged")]
    Header,
    #[error("its header says segment {found:016x}: renamed, copied or misdirected")]
    OtherId { found: u64 },
    #[error("the trailer is damaged, or the file was cut: not read as sealed")]
    Trailer,
    #[error("the footer is damaged: read from the commit pages instead")]
    Footer,
    #[error("pages of small records are damaged: only the whole ones are read")]
    SmallPages,
    #[error(
        "{missing} records of the footer are not in the commit pages, damaged from {offset} on"
    )]
    CommitPages { missing: u64, offset: u64 },
    #[error("the page at {offset} is not whole: torn by a crash, or being written now")]
    Torn { offset: u64 },
}

impl Fault {
    /// What a crash or a running server leaves behind without any damage.
    pub fn is_expected(&self) -> bool {
        matches!(self, Fault::Torn { .. })
    }
}

/// What is wrong with a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyFault {
    #[error("its extent is not inside the file")]
    Outside,
    #[error("its own header, the page before it, does not agree")]
    Header,
    #[error("bytes {from} to {to} of the body do not match their CRC")]
    Crc { from: u64, to: u64 },
    #[error("the bytes have another digest, although every CRC matches")]
    Digest,
    #[error("bytes {from} to {to} of the body cannot be read: {why}")]
    Unreadable { from: u64, to: u64, why: String },
}

/// What a segment file says.
#[derive(Clone, Debug)]
pub struct Segment {
    pub id: u64,
    /// From its header or trailer; if neither is whole, from its name.
    pub class: Class,
    pub state: State,
    pub len: u64,
    /// `None`: the header is damaged.
    pub created: Option<Seconds>,
    /// Of the store its pages belong to, if one of them is whole.
    pub uuid: Option<Uuid>,
    /// Store and segment, as its header has them.
    pub says: Option<(Uuid, u64)>,
    /// In the order of their pages.
    pub records: Vec<Record>,
    pub faults: Vec<Fault>,
}

/// How much of a sealed segment is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Header, trailer and footer: what a start reads.
    Records,
    /// The commit pages too, which a start needs only if the footer is lost.
    Pages,
}

/// Reads the segment with the id `id`. `uuid`: of its store, where that is known.
pub fn read_segment(
    source: &dyn Source,
    id: u64,
    small: bool,
    uuid: Option<Uuid>,
    depth: Depth,
) -> Segment {
    let mut found = Segment {
        id,
        class: if small { Class::Small } else { Class::Shared },
        state: State::Empty,
        len: source.file_len(),
        created: None,
        uuid,
        says: None,
        records: Vec::new(),
        faults: Vec::new(),
    };
    if found.len < PAGE_LEN {
        return found;
    }
    let header = found.header(source, small);
    if found.state == State::Foreign {
        return found;
    }
    match found.sealed(source) {
        Sealed::Read if depth == Depth::Pages => found.compare_commit_pages(source, header),
        Sealed::Read | Sealed::Foreign => {}
        Sealed::No => found.unsealed(source, header),
    }
    found
}

/// Whether the file ends with a whole trailer of this segment: then it is never written again.
pub fn has_trailer(source: &dyn Source, id: u64) -> bool {
    let offset = source.file_len().checked_sub(PAGE_LEN);
    offset.is_some_and(|offset| {
        let page = read(source, offset, PAGE_LEN).ok();
        let trailer = page.and_then(|page| Trailer::decode(&page));
        trailer.is_some_and(|trailer| trailer.segment == id && trailer.offset == offset)
    })
}

enum Sealed {
    Read,
    Foreign,
    No,
}

impl Segment {
    /// `None` with a fault, unless the page was never written.
    fn header(&mut self, source: &dyn Source, small: bool) -> Option<SegmentHeader> {
        let page = self.page(source, 0, PAGE_LEN)?;
        let header = SegmentHeader::decode(&page);
        match &header {
            None if zero(&page) => {}
            None => self.faults.push(Fault::Header),
            Some(header) => {
                self.says = Some((header.uuid, header.segment));
                let known = *self.uuid.get_or_insert(header.uuid);
                self.class = header.class;
                self.created = Some(header.created);
                if header.uuid != known {
                    self.state = State::Foreign;
                } else if header.segment != self.id || (header.class == Class::Small) != small {
                    self.faults.push(Fault::OtherId {
                        found: header.segment,
                    });
                    self.state = State::Foreign;
                }
            }
        }
        header
    }

    /// Reads the trailer and what it points to.
    fn sealed(&mut self, source: &dyn Source) -> Sealed {
        let offset = self.len - PAGE_LEN;
        let Some(page) = self.page(source, offset, PAGE_LEN) else {
            return Sealed::No;
        };
        let Some(trailer) = Trailer::decode(&page) else {
            // Room for the trailer is kept free to the end: other bytes there were one.
            if !zero(&page) {
                self.faults.push(Fault::Trailer);
            }
            return Sealed::No;
        };
        if trailer.uuid != *self.uuid.get_or_insert(trailer.uuid) {
            self.state = State::Foreign;
            return Sealed::Foreign;
        }
        let end = trailer.records_offset.checked_add(trailer.records_len);
        if trailer.segment != self.id
            || trailer.offset != offset
            || end.is_none_or(|end| end > offset)
        {
            self.faults.push(Fault::Trailer);
            return Sealed::No;
        }
        self.class = trailer.class;
        let Some(bytes) = self.page(source, trailer.records_offset, trailer.records_len) else {
            return Sealed::No;
        };
        let whole = crc(&bytes) == trailer.records_crc;
        match trailer.class {
            Class::Small => {
                if !whole {
                    self.faults.push(Fault::SmallPages);
                }
                self.records = self.salvage(&bytes);
            }
            Class::Shared | Class::Solo => match decode_records(RecordsUse::Footer, &bytes) {
                Some(page) if whole && self.owns(&page) => self.records = page.records,
                _ => {
                    self.faults.push(Fault::Footer);
                    return Sealed::No;
                }
            },
        }
        self.state = State::Sealed;
        Sealed::Read
    }

    /// Walks the commit pages as the next start will.
    fn unsealed(&mut self, source: &dyn Source, header: Option<SegmentHeader>) {
        let Some(walked) = self.walk(source, header) else {
            return;
        };
        self.records = walked.records;
        if !self.records.is_empty() {
            self.state = State::Unsealed;
        }
        let Some(offset) = walked.stopped else {
            return;
        };
        let torn = self.page(source, offset, PAGE_LEN);
        if torn.is_some_and(|page| !zero(&page)) {
            self.faults.push(Fault::Torn { offset });
        }
    }

    /// The footer repeats the commit pages: what it has and they lack, they have lost.
    fn compare_commit_pages(&mut self, source: &dyn Source, header: Option<SegmentHeader>) {
        if self.class == Class::Small {
            return;
        }
        let Some(walked) = self.walk(source, header) else {
            return;
        };
        let entered: BTreeMap<u64, &Record> = walked
            .records
            .iter()
            .map(|record| (record.sequence, record))
            .collect();
        let lacks = |record: &&Record| entered.get(&record.sequence) != Some(record);
        let missing = self.records.iter().filter(lacks).count() as u64;
        if missing > 0 {
            let offset = walked.stopped.unwrap_or(0);
            self.faults.push(Fault::CommitPages { missing, offset });
        }
    }

    /// The commit pages, area after area, up to the first that is not valid. `None`: nothing
    /// says where they are.
    fn walk(&mut self, source: &dyn Source, header: Option<SegmentHeader>) -> Option<Walked> {
        let (mut offset, mut end) = match (header, self.class) {
            (_, Class::Small) => (PAGE_LEN, self.len.checked_sub(PAGE_LEN)?),
            (Some(header), _) => (
                header.area_offset,
                header.area_offset.checked_add(header.area_len)?,
            ),
            (None, _) => return None,
        };
        let mut walked = Walked {
            records: Vec::new(),
            stopped: None,
        };
        let mut index = 0;
        while offset
            .checked_add(PAGE_LEN)
            .is_some_and(|page| page <= end.min(self.len))
        {
            let Some((len, page)) = self.commit_page(source, offset, end, index) else {
                walked.stopped = Some(offset);
                break;
            };
            index += 1;
            offset += len;
            walked.records.extend(page.records);
            if let Some(Kind::Area { offset: next, len }) = walked.records.last().map(|r| &r.kind) {
                // Areas only go forward, so that a walk ends whatever the pages say.
                if *next < offset || next.checked_add(*len).is_none() {
                    break;
                }
                (offset, end) = (*next, next + len);
                walked.records.pop();
            }
        }
        Some(walked)
    }

    fn commit_page(
        &mut self,
        source: &dyn Source,
        offset: u64,
        end: u64,
        index: u32,
    ) -> Option<(u64, RecordsPage)> {
        let first = self.page(source, offset, PAGE_LEN)?;
        let len = claimed_len(RecordsUse::Commit, &first)?;
        if offset.checked_add(len)? > end.min(self.len) {
            return None;
        }
        let bytes = self.page(source, offset, len)?;
        let page = decode_records(RecordsUse::Commit, &bytes)?;
        (self.owns(&page) && page.index == index).then_some((len, page))
    }

    /// The records of every commit page that is whole, wherever it is.
    fn salvage(&self, bytes: &[u8]) -> Vec<Record> {
        let mut records = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let len = claimed_len(RecordsUse::Commit, rest).unwrap_or(PAGE_LEN);
            let len = len.min(rest.len() as u64) as usize;
            match decode_records(RecordsUse::Commit, &rest[..len]) {
                Some(page) if self.owns(&page) => {
                    records.extend(page.records);
                    rest = &rest[len..];
                }
                _ => rest = &rest[rest.len().min(PAGE_LEN as usize)..],
            }
        }
        records
    }

    fn owns(&self, page: &RecordsPage) -> bool {
        Some(page.uuid) == self.uuid && page.segment == self.id
    }

    fn page<'s>(&mut self, source: &'s dyn Source, offset: u64, len: u64) -> Option<Cow<'s, [u8]>> {
        match read(source, offset, len) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                let why = error.to_string();
                self.faults.push(Fault::Unreadable { offset, len, why });
                None
            }
        }
    }
}

struct Walked {
    records: Vec<Record>,
    /// The first page that is not whole, if there is room for one behind those that are.
    stopped: Option<u64>,
}

fn zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn read(source: &dyn Source, offset: u64, len: u64) -> io::Result<Cow<'_, [u8]>> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    source.read(offset, len)
}

/// A body as its commit entry has it, and where that was found.
#[derive(Clone, Copy, Debug)]
pub struct BodyPlace<'b> {
    pub uuid: Uuid,
    pub segment: u64,
    pub sequence: u64,
    pub entry: &'b BodyEntry,
}

impl BodyPlace<'_> {
    /// Compares the body's own header with its entry.
    pub fn check_header(&self, source: &dyn Source) -> Result<(), BodyFault> {
        let entry = self.entry;
        let end = entry.offset.checked_add(entry.len);
        let inside = entry.offset.is_multiple_of(PAGE_LEN)
            && entry.offset >= 2 * PAGE_LEN
            && end.is_some_and(|end| end <= source.file_len());
        if !inside {
            return Err(BodyFault::Outside);
        }
        let offset = entry.offset - PAGE_LEN;
        let page = read(source, offset, PAGE_LEN).map_err(|error| BodyFault::Unreadable {
            from: 0,
            to: 0,
            why: format!("the header before it: {error}"),
        })?;
        let agrees = RecordHeader::decode(&page).is_some_and(|header| {
            header.uuid == self.uuid
                && header.segment == self.segment
                && header.offset == offset
                && header.fill == self.sequence
                && header.digest == entry.digest
                && header.len.is_none_or(|len| len == entry.len)
        });
        agrees.then_some(()).ok_or(BodyFault::Header)
    }

    /// Reads the body in steps of a MiB, checks the CRC of each and hands it to `step`, wrong or
    /// not. With `digest` the whole is hashed too.
    pub fn check_bytes(
        &self,
        source: &dyn Source,
        digest: bool,
        mut step: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<Vec<BodyFault>> {
        let entry = self.entry;
        let mut faults = Vec::new();
        let mut hasher = digest.then(|| Hasher::new(entry.digest.algorithm()));
        for (number, expected) in entry.crcs.iter().enumerate() {
            let from = number as u64 * CRC_STRIDE_BYTES;
            let to = (from + CRC_STRIDE_BYTES).min(entry.len);
            let bytes = match read(source, entry.offset + from, to - from) {
                Ok(bytes) => bytes,
                Err(error) => {
                    let why = error.to_string();
                    faults.push(BodyFault::Unreadable { from, to, why });
                    continue;
                }
            };
            if crc(&bytes) != *expected {
                faults.push(BodyFault::Crc { from, to });
            }
            if let Some(hasher) = &mut hasher {
                hasher.update(&bytes);
            }
            step(&bytes)?;
        }
        let other = hasher.is_some_and(|hasher| hasher.finish() != entry.digest);
        if other && faults.is_empty() {
            faults.push(BodyFault::Digest);
        }
        Ok(faults)
    }
}
