//! Parts of a store made by hand, for benchmarks: sealed segments without their bodies, whose
//! pages are as the store writes them and everything else is a hole; the records of such a
//! segment; a watermark that the caller moves.

use std::sync::Arc;

use crate::budget::Budget;
use crate::codec::{Encoder, crc};
use crate::digest::Digest;
use crate::disk::Disk;
use crate::lease::SegmentFile;
use crate::page::{
    Class, PAGE_LEN, RecordsUse, SegmentHeader, Trailer, Uuid, encode_records, round_up,
};
use crate::record::{BodyEntry, CRC_STRIDE_BYTES, Kind, Record};
use crate::segment::file_name;
use crate::store::GENERATION_SHIFT;
use crate::watermark::Watermark;

/// Far behind what the store numbers itself in the first generation.
const FIRST_NUMBER: u64 = 1 << 32;

/// A file of a store.
pub struct Forged {
    pub name: String,
    pub len: u64,
    /// Offsets and bytes.
    pub pages: Vec<(u64, Vec<u8>)>,
}

/// The records of bodies that lie one after the other.
pub struct Records(Vec<Record>);

impl Records {
    /// Of bodies of these digests and lengths. `first`: the sequence of the first of them.
    pub fn new(first: u64, bodies: &[(Digest, u64)]) -> Records {
        let mut end = 2 * PAGE_LEN;
        let mut records = Vec::with_capacity(bodies.len());
        for (place, (digest, len)) in bodies.iter().enumerate() {
            let entry = BodyEntry {
                digest: *digest,
                offset: end + PAGE_LEN,
                len: *len,
                created: 1,
                media_type: Some("application/vnd.oci.image.layer.v1.tar+gzip".into()),
                crcs: vec![7; len.div_ceil(CRC_STRIDE_BYTES) as usize],
            };
            end = entry.offset + round_up(*len);
            let sequence = (1 << GENERATION_SHIFT) + FIRST_NUMBER + first + place as u64;
            let kind = Kind::Body(entry);
            records.push(Record { sequence, kind });
        }
        Records(records)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut records = Encoder::default();
        for record in &self.0 {
            record.encode(&mut records);
        }
        records.bytes
    }

    /// How many there are in `bytes`, which must be exactly `count`; `None`: they are damaged.
    pub fn decode(bytes: &[u8], count: u32) -> Option<usize> {
        Record::decode_all(bytes, count).map(|records| records.len())
    }

    /// Where the last of the bodies ends in its segment.
    fn end(&self) -> u64 {
        let end = |record: &Record| match &record.kind {
            Kind::Body(entry) => entry.offset + round_up(entry.len),
            _ => 0,
        };
        self.0.last().map_or(2 * PAGE_LEN, end)
    }
}

/// The `number`th segment, of the store's first generation, with bodies of these digests and
/// lengths. `first`: the sequence of the first of them.
pub fn segment(uuid: Uuid, number: u64, first: u64, bodies: &[(Digest, u64)]) -> Forged {
    let id = (1 << GENERATION_SHIFT) + FIRST_NUMBER + number;
    let class = if bodies.len() == 1 {
        Class::Solo
    } else {
        Class::Shared
    };
    let header = SegmentHeader {
        uuid,
        segment: id,
        class,
        created: 1,
        area_offset: PAGE_LEN,
        area_len: PAGE_LEN,
    };
    let records = Records::new(first, bodies);
    let end = records.end();
    let count = u32::try_from(bodies.len()).expect("bodies of one segment");
    let footer = encode_records(RecordsUse::Footer, &uuid, id, 0, count, &records.encode());
    let offset = end + footer.len() as u64;
    let trailer = Trailer {
        uuid,
        segment: id,
        class,
        offset,
        records_offset: end,
        records_len: footer.len() as u64,
        records_crc: crc(&footer),
        by_recovery: false,
    };
    Forged {
        name: file_name(id, class),
        len: offset + PAGE_LEN,
        pages: vec![
            (0, header.encode()),
            (end, footer),
            (offset, trailer.encode()),
        ],
    }
}

/// The watermark of a body that nobody fills.
pub struct Marker<D: Disk>(Arc<Watermark<D>>);

impl<D: Disk> Marker<D> {
    /// Of a body of unknown length in `file`, with no byte withheld.
    pub fn new(file: D::File) -> Marker<D> {
        let file = SegmentFile::staging(file, 0, 0, Arc::new(Budget::new(1 << 30, 1 << 20)));
        Marker(Watermark::new(Arc::new(file), 0, None, 0))
    }

    pub fn watermark(&self) -> &Arc<Watermark<D>> {
        &self.0
    }

    /// Lets the first `written` bytes be read, and wakes those who wait for one of them.
    pub fn advance(&self, written: u64) {
        self.0.advance(written);
    }
}
