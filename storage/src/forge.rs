//! Sealed segments without their bodies, for benchmarks of recovery: the pages a start reads are
//! as the store writes them, everything else is a hole.

use crate::codec::{Encoder, crc};
use crate::digest::Digest;
use crate::page::{
    Class, PAGE_LEN, RecordsUse, SegmentHeader, Trailer, Uuid, encode_records, round_up,
};
use crate::record::{BodyEntry, CRC_STRIDE_BYTES, Kind, Record};
use crate::segment::file_name;
use crate::store::GENERATION_SHIFT;

/// Far behind what the store numbers itself in the first generation.
const FIRST_NUMBER: u64 = 1 << 32;

/// A file of a store.
pub struct Forged {
    pub name: String,
    pub len: u64,
    /// Offsets and bytes.
    pub pages: Vec<(u64, Vec<u8>)>,
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
    let mut end = 2 * PAGE_LEN;
    let mut records = Encoder::default();
    for (place, (digest, len)) in bodies.iter().enumerate() {
        let entry = BodyEntry {
            digest: *digest,
            offset: end + PAGE_LEN,
            len: *len,
            created: 1,
            media_type: Some("application/vnd.oci.image.layer.v1.tar+gzip".into()),
            crcs: vec![7; len.div_ceil(CRC_STRIDE_BYTES) as usize],
        };
        end += PAGE_LEN + round_up(*len);
        let sequence = (1 << GENERATION_SHIFT) + FIRST_NUMBER + first + place as u64;
        let kind = Kind::Body(entry);
        Record { sequence, kind }.encode(&mut records);
    }
    let count = u32::try_from(bodies.len()).expect("bodies of one segment");
    let footer = encode_records(RecordsUse::Footer, &uuid, id, 0, count, &records.bytes);
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
