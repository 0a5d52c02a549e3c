//! Pages: every byte the store writes that is not a body.
//!
//! A page is a multiple of 4 KiB and begins {magic, version, CRC of the page, uuid of the store};
//! it names its segment and its own place, so that neither a misdirected write nor an old image
//! of the same disk can pass for it. Pages are written once and never rewritten.

use crate::Seconds;
use crate::codec::{Encoder, Reader, crc};
use crate::digest::Digest;
use crate::record::Record;

pub const PAGE_LEN: u64 = 4096;
/// The format of segments and all pages in them.
pub(crate) const PAGE_VERSION: u32 = 1;

pub type Uuid = [u8; 16];
pub(crate) type Magic = &'static [u8; 8];

const SEGMENT_MAGIC: Magic = b"ENTRSEGM";
const BODY_MAGIC: Magic = b"ENTRBODY";
const COMMIT_MAGIC: Magic = b"ENTRCOMM";
const FOOTER_MAGIC: Magic = b"ENTRFOOT";
const TRAILER_MAGIC: Magic = b"ENTRTRLR";

const CRC_AT: std::ops::Range<usize> = 12..16;
/// {magic, version, CRC, uuid, segment, index, count, page length, used length}
const RECORDS_AT: usize = 8 + 4 + 4 + 16 + 8 + 4 + 4 + 8 + 8;
/// A body of unknown length in its record header; its commit entry decides.
const LEN_UNKNOWN: u64 = u64::MAX;

pub(crate) fn round_up(len: u64) -> u64 {
    len.div_ceil(PAGE_LEN) * PAGE_LEN
}

pub(crate) fn begin(magic: Magic, uuid: &Uuid) -> Encoder {
    begin_version(magic, PAGE_VERSION, uuid)
}

pub(crate) fn begin_version(magic: Magic, version: u32, uuid: &Uuid) -> Encoder {
    let mut out = Encoder::default();
    out.raw(magic);
    out.u32(version);
    out.u32(0);
    out.raw(uuid);
    out
}

/// Pads to whole pages and fills in the CRC.
pub(crate) fn end(out: Encoder) -> Vec<u8> {
    let mut bytes = out.bytes;
    bytes.resize(round_up(bytes.len() as u64) as usize, 0);
    let sum = crc(&bytes);
    bytes[CRC_AT].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The reader behind the uuid, and the version, if the page is whole and of this kind.
pub(crate) fn open<'b>(bytes: &'b [u8], magic: Magic) -> Option<(Reader<'b>, u32, Uuid)> {
    let mut reader = Reader::new(bytes);
    if reader.raw(8)? != magic {
        return None;
    }
    let version = reader.u32()?;
    let sum = reader.u32()?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..CRC_AT.start]);
    hasher.update(&[0; 4]);
    hasher.update(&bytes[CRC_AT.end..]);
    let uuid = reader.array()?;
    (hasher.finalize() == sum).then_some((reader, version, uuid))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Many bodies.
    Shared,
    /// One large body, or one of unknown length.
    Solo,
    /// Tags, links, statistics, forget records: nothing but pages.
    Small,
}

impl Class {
    fn code(self) -> u8 {
        match self {
            Class::Shared => 1,
            Class::Solo => 2,
            Class::Small => 3,
        }
    }

    fn from_code(code: u8) -> Option<Class> {
        match code {
            1 => Some(Class::Shared),
            2 => Some(Class::Solo),
            3 => Some(Class::Small),
            _ => None,
        }
    }
}

/// The first page of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) uuid: Uuid,
    pub(crate) segment: u64,
    pub(crate) class: Class,
    pub(crate) created: Seconds,
    /// Where the first commit pages are; of a `Small` one to the end of the file.
    pub(crate) area_offset: u64,
    pub(crate) area_len: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = begin(SEGMENT_MAGIC, &self.uuid);
        out.u64(self.segment);
        out.u8(self.class.code());
        out.u64(self.created);
        out.u64(self.area_offset);
        out.u64(self.area_len);
        end(out)
    }

    pub(crate) fn decode(page: &[u8]) -> Option<SegmentHeader> {
        let (mut reader, version, uuid) = open(page, SEGMENT_MAGIC)?;
        (version == PAGE_VERSION).then_some(())?;
        Some(SegmentHeader {
            uuid,
            segment: reader.u64()?,
            class: Class::from_code(reader.u8()?)?,
            created: reader.u64()?,
            area_offset: reader.u64()?,
            area_len: reader.u64()?,
        })
    }
}

/// The page before a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader<'h> {
    pub(crate) uuid: Uuid,
    pub(crate) segment: u64,
    /// Of this page.
    pub(crate) offset: u64,
    pub(crate) fill: u64,
    pub(crate) digest: Digest,
    pub(crate) len: Option<u64>,
    pub(crate) created: Seconds,
    pub(crate) media_type: &'h str,
}

impl<'h> RecordHeader<'h> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = begin(BODY_MAGIC, &self.uuid);
        out.u64(self.segment);
        out.u64(self.offset);
        out.u64(self.fill);
        out.digest(&self.digest);
        out.u64(self.len.unwrap_or(LEN_UNKNOWN));
        out.u64(self.created);
        out.text(self.media_type);
        end(out)
    }

    pub(crate) fn decode(page: &'h [u8]) -> Option<RecordHeader<'h>> {
        let (mut reader, version, uuid) = open(page, BODY_MAGIC)?;
        (version == PAGE_VERSION).then_some(())?;
        Some(RecordHeader {
            uuid,
            segment: reader.u64()?,
            offset: reader.u64()?,
            fill: reader.u64()?,
            digest: reader.digest()?,
            len: Some(reader.u64()?).filter(|len| *len != LEN_UNKNOWN),
            created: reader.u64()?,
            media_type: reader.text()?,
        })
    }
}

/// Records of a segment: a commit page, or the footer that repeats them all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordsPage {
    pub(crate) uuid: Uuid,
    pub(crate) segment: u64,
    /// Commit pages of a segment count from 0; the first that is missing ends them.
    pub(crate) index: u32,
    pub(crate) len: u64,
    pub(crate) records: Vec<Record>,
}

/// What a page of records is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordsUse {
    Commit,
    Footer,
}

impl RecordsUse {
    fn magic(self) -> Magic {
        match self {
            RecordsUse::Commit => COMMIT_MAGIC,
            RecordsUse::Footer => FOOTER_MAGIC,
        }
    }
}

/// Length of a page that holds `encoded` bytes of records.
pub(crate) fn records_page_len(encoded: u64) -> u64 {
    round_up(RECORDS_AT as u64 + encoded)
}

/// `encoded`: `count` records, one after another.
pub(crate) fn encode_records(
    purpose: RecordsUse,
    uuid: &Uuid,
    segment: u64,
    index: u32,
    count: u32,
    encoded: &[u8],
) -> Vec<u8> {
    let mut out = begin(purpose.magic(), uuid);
    out.u64(segment);
    out.u32(index);
    out.u32(count);
    out.u64(records_page_len(encoded.len() as u64));
    out.u64(encoded.len() as u64);
    out.raw(encoded);
    end(out)
}

/// How long the page that begins here claims to be; not checked beyond the magic.
pub(crate) fn claimed_len(purpose: RecordsUse, bytes: &[u8]) -> Option<u64> {
    let mut reader = Reader::new(bytes);
    if reader.raw(8)? != purpose.magic() {
        return None;
    }
    reader.raw(RECORDS_AT - 8 - 16)?;
    reader
        .u64()
        .filter(|len| *len > 0 && len.is_multiple_of(PAGE_LEN))
}

pub(crate) fn decode_records(purpose: RecordsUse, bytes: &[u8]) -> Option<RecordsPage> {
    let (mut reader, version, uuid) = open(bytes, purpose.magic())?;
    (version == PAGE_VERSION).then_some(())?;
    let (segment, index, count) = (reader.u64()?, reader.u32()?, reader.u32()?);
    let (len, used) = (reader.u64()?, usize::try_from(reader.u64()?).ok()?);
    let records = Record::decode_all(reader.raw(used)?, count)?;
    (len == bytes.len() as u64).then_some(RecordsPage {
        uuid,
        segment,
        index,
        len,
        records,
    })
}

/// The last page of a sealed segment: a valid one means sealed, and finds the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) uuid: Uuid,
    pub(crate) segment: u64,
    pub(crate) class: Class,
    /// Of this page.
    pub(crate) offset: u64,
    /// The footer; of a `Small` segment its commit pages, which are their own footer.
    pub(crate) records_offset: u64,
    pub(crate) records_len: u64,
    pub(crate) records_crc: u32,
    /// Written by a recovery: nobody knows of the bodies that they were written as a whole.
    pub(crate) by_recovery: bool,
}

impl Trailer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = begin(TRAILER_MAGIC, &self.uuid);
        out.u64(self.segment);
        out.u8(self.class.code());
        out.u64(self.offset);
        out.u64(self.records_offset);
        out.u64(self.records_len);
        out.u32(self.records_crc);
        out.u8(u8::from(self.by_recovery));
        end(out)
    }

    pub(crate) fn decode(page: &[u8]) -> Option<Trailer> {
        let (mut reader, version, uuid) = open(page, TRAILER_MAGIC)?;
        (version == PAGE_VERSION).then_some(())?;
        Some(Trailer {
            uuid,
            segment: reader.u64()?,
            class: Class::from_code(reader.u8()?)?,
            offset: reader.u64()?,
            records_offset: reader.u64()?,
            records_len: reader.u64()?,
            records_crc: reader.u32()?,
            // What older programs wrote has a zero here.
            by_recovery: reader.u8()? != 0,
        })
    }
}

/// Decodes foreign bytes as every kind of page. For the fuzzer.
pub fn fuzz(bytes: &[u8]) {
    let _ = SegmentHeader::decode(bytes);
    let _ = RecordHeader::decode(bytes);
    let _ = Trailer::decode(bytes);
    let _ = claimed_len(RecordsUse::Commit, bytes);
    let _ = decode_records(RecordsUse::Commit, bytes);
    let _ = decode_records(RecordsUse::Footer, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Kind;

    const UUID: Uuid = [7; 16];

    fn records_page() -> Vec<u8> {
        let record = Record {
            sequence: 3,
            kind: Kind::Area {
                offset: 4096,
                len: 8192,
            },
        };
        encode_records(RecordsUse::Commit, &UUID, 9, 2, 1, &record.encoded())
    }

    #[test]
    fn decodes_what_it_encodes() {
        let header = SegmentHeader {
            uuid: UUID,
            segment: 9,
            class: Class::Solo,
            created: 5,
            area_offset: 4096,
            area_len: 8192,
        };
        assert_eq!(SegmentHeader::decode(&header.encode()), Some(header));
        let header = RecordHeader {
            uuid: UUID,
            segment: 9,
            offset: 12288,
            fill: 11,
            digest: Digest::sha256(b"x"),
            len: None,
            created: 5,
            media_type: "text/plain",
        };
        assert_eq!(RecordHeader::decode(&header.encode()), Some(header.clone()));
        let trailer = Trailer {
            uuid: UUID,
            segment: 9,
            class: Class::Small,
            offset: 1 << 20,
            records_offset: 4096,
            records_len: 4096,
            records_crc: 77,
            by_recovery: true,
        };
        assert_eq!(Trailer::decode(&trailer.encode()), Some(trailer));
        let page = records_page();
        assert_eq!(claimed_len(RecordsUse::Commit, &page), Some(PAGE_LEN));
        let decoded = decode_records(RecordsUse::Commit, &page).expect("own page");
        assert_eq!(
            (decoded.segment, decoded.index, decoded.records.len()),
            (9, 2, 1)
        );
    }

    #[test]
    fn one_flipped_bit_anywhere_is_noticed() {
        let page = records_page();
        for at in 0..page.len() {
            let mut flipped = page.clone();
            flipped[at] ^= 0x10;
            assert_eq!(
                decode_records(RecordsUse::Commit, &flipped),
                None,
                "byte {at}"
            );
        }
    }

    #[test]
    fn a_page_of_another_kind_is_not_taken() {
        let page = records_page();
        assert_eq!(decode_records(RecordsUse::Footer, &page), None);
        assert_eq!(Trailer::decode(&page), None);
        assert_eq!(SegmentHeader::decode(&[0; PAGE_LEN as usize]), None);
        fuzz(&page);
    }
}
