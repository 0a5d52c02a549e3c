//! A survivor segment: what the compactor writes.
//!
//! An ordinary sealed segment, of which nothing counts before its bodies are durable (S3): until
//! then its commit area is empty, and a recovery that meets it removes it.

use std::io;

use crate::disk::bulk::BulkDisk;
use crate::exchange::{Counters, Target, count};
use crate::page::{
    Class, PAGE_LEN, RecordHeader, RecordsUse, SegmentHeader, Trailer, Uuid, encode_records,
    records_page_len, round_up,
};
use crate::record::{BodyEntry, CRC_STRIDE_BYTES, PREFIX_LEN, Record};
use crate::segment::file_name;

/// Bytes of one write.
const WRITE_LEN: usize = 1 << 20;

/// How long each part of a survivor segment is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    bodies: u64,
    /// Of all records, encoded.
    encoded: u64,
    /// The commit pages that are full, and what the last one holds.
    pages: u64,
    page_filled: u64,
}

impl Layout {
    pub(crate) fn add_body(&mut self, entry: &BodyEntry) {
        self.bodies += PAGE_LEN + round_up(entry.len);
        self.add_record(entry.encoded_len());
    }

    /// A record of `len` bytes with its prefix.
    pub(crate) fn add_record(&mut self, len: u64) {
        self.encoded += len;
        if self.page_filled > 0 && records_page_len(self.page_filled + len) > PAGE_LEN {
            self.pages += records_page_len(self.page_filled);
            self.page_filled = 0;
        }
        self.page_filled += len;
    }

    fn area_len(&self) -> u64 {
        self.pages + records_page_len(self.page_filled)
    }

    /// Of the file: header, commit area, bodies, footer, trailer.
    pub(crate) fn len(&self) -> u64 {
        PAGE_LEN + self.area_len() + self.bodies + records_page_len(self.encoded) + PAGE_LEN
    }
}

pub(crate) struct Survivor<B: BulkDisk> {
    file: B::File,
    name: String,
    uuid: Uuid,
    target: Target,
    len: u64,
    area_end: u64,
    /// Where `buffer` goes.
    at: u64,
    buffer: Option<B::Buffer>,
    filled: usize,
    records: Vec<Record>,
}

impl<B: BulkDisk> Survivor<B> {
    pub(crate) async fn create(
        disk: &B,
        uuid: Uuid,
        target: Target,
        layout: &Layout,
    ) -> io::Result<Survivor<B>> {
        let name = file_name(target.segment, Class::Shared);
        let len = layout.len();
        if len > target.len_max {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = disk.create(&name, len).await?;
        let area_end = PAGE_LEN + layout.area_len();
        Ok(Survivor {
            file,
            name,
            uuid,
            target,
            len,
            area_end,
            at: area_end,
            buffer: None,
            filled: 0,
            records: Vec::new(),
        })
    }

    /// Removes what there is of it.
    pub(crate) async fn give_up(self, disk: &B) {
        let _ = disk.unlink(&self.name).await;
    }

    /// Begins a body with its record header; says where it will be.
    pub(crate) async fn begin(
        &mut self,
        disk: &B,
        sequence: u64,
        entry: &BodyEntry,
    ) -> io::Result<u64> {
        let offset = self.end();
        let header = RecordHeader {
            uuid: self.uuid,
            segment: self.target.segment,
            offset,
            fill: sequence,
            digest: entry.digest,
            len: Some(entry.len),
            created: entry.created,
            media_type: entry.media_type.as_deref().unwrap_or(""),
        };
        self.append(disk, &header.encode()).await?;
        Ok(offset + PAGE_LEN)
    }

    /// The next bytes of a body.
    pub(crate) async fn append(&mut self, disk: &B, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let buffer = self.buffer.get_or_insert_with(|| disk.buffer(WRITE_LEN));
            let (now, later) = bytes.split_at(bytes.len().min(WRITE_LEN - self.filled));
            buffer.as_mut()[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == WRITE_LEN {
                self.flush(disk).await?;
            }
        }
        Ok(())
    }

    /// Pads the body to a whole page.
    pub(crate) async fn end_body(&mut self, disk: &B) -> io::Result<()> {
        let padding = round_up(self.end()) - self.end();
        let zeros = [0; PAGE_LEN as usize];
        self.append(disk, &zeros[..padding as usize]).await
    }

    /// The body that was ended last counts, or a record that is no body.
    pub(crate) fn enter(&mut self, record: Record) {
        self.records.push(record);
    }

    fn end(&self) -> u64 {
        self.at + self.filled as u64
    }

    /// Called at whole pages only.
    async fn flush(&mut self, disk: &B) -> io::Result<()> {
        let Some(buffer) = self.buffer.take() else {
            return Ok(());
        };
        disk.write(&self.file, self.at, buffer, self.filled).await?;
        self.at += self.filled as u64;
        self.filled = 0;
        Ok(())
    }

    /// Makes the bodies durable and then counts them: header, commit pages, footer and trailer
    /// follow the first sync. Returns the length of the file and the lowest sequence in it.
    pub(crate) async fn seal(&mut self, disk: &B, counters: &Counters) -> io::Result<(u64, u64)> {
        self.flush(disk).await?;
        let header = self.header().encode();
        self.write(disk, 0, &header).await?;
        disk.sync(&self.file).await?;
        self.write_records(disk).await?;
        disk.sync(&self.file).await?;
        disk.sync_dir().await?;
        count(&counters.written, self.len);
        let sequences = self.records.iter().map(|record| record.sequence);
        Ok((self.len, sequences.min().unwrap_or(u64::MAX)))
    }

    fn header(&self) -> SegmentHeader {
        SegmentHeader {
            uuid: self.uuid,
            segment: self.target.segment,
            class: Class::Shared,
            created: self.target.created,
            area_offset: PAGE_LEN,
            area_len: self.area_end - PAGE_LEN,
        }
    }

    async fn write_records(&mut self, disk: &B) -> io::Result<()> {
        let (uuid, segment) = (self.uuid, self.target.segment);
        let (mut all, mut page) = (Vec::new(), Vec::new());
        let (mut count, mut index, mut pages) = (0, 0, Vec::new());
        for record in &self.records {
            let encoded = record.encoded();
            if count > 0 && records_page_len((page.len() + encoded.len()) as u64) > PAGE_LEN {
                pages.extend(encode_records(
                    RecordsUse::Commit,
                    &uuid,
                    segment,
                    index,
                    count,
                    &page,
                ));
                (page, count, index) = (Vec::new(), 0, index + 1);
            }
            page.extend_from_slice(&encoded);
            all.extend_from_slice(&encoded);
            count += 1;
        }
        if count > 0 {
            pages.extend(encode_records(
                RecordsUse::Commit,
                &uuid,
                segment,
                index,
                count,
                &page,
            ));
        }
        assert!(
            pages.len() as u64 <= self.area_end - PAGE_LEN,
            "the area was made for these records"
        );
        self.write(disk, PAGE_LEN, &pages).await?;
        let total = u32::try_from(self.records.len()).expect("records of one segment");
        let footer = encode_records(RecordsUse::Footer, &uuid, segment, 0, total, &all);
        let trailer_offset = self.len - PAGE_LEN;
        let offset = trailer_offset - footer.len() as u64;
        assert!(offset >= self.at, "room for the footer was kept");
        self.write(disk, offset, &footer).await?;
        let trailer = Trailer {
            uuid,
            segment,
            class: Class::Shared,
            offset: trailer_offset,
            records_offset: offset,
            records_len: footer.len() as u64,
            records_crc: crate::codec::crc(&footer),
            by_recovery: false,
        };
        self.write(disk, trailer_offset, &trailer.encode()).await
    }

    /// Whole pages at once or in several writes.
    async fn write(&self, disk: &B, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut at = offset;
        for part in bytes.chunks(WRITE_LEN) {
            let mut buffer = disk.buffer(part.len());
            buffer.as_mut()[..part.len()].copy_from_slice(part);
            disk.write(&self.file, at, buffer, part.len()).await?;
            at += part.len() as u64;
        }
        Ok(())
    }
}

/// The most a survivor segment of these bodies can take, whatever their names. `extents`: their
/// bytes with headers and padding.
pub(crate) fn len_max(bodies: u64, extents: u64) -> u64 {
    let entries = bodies * BodyEntry::encoded_max(0) + 4 * extents.div_ceil(CRC_STRIDE_BYTES);
    let entries = entries + 4 * bodies;
    // Two commit pages in a row hold more than one page's worth, less what each begins with.
    let area = round_up(entries / 4 * 9) + PAGE_LEN;
    let footer = records_page_len(entries);
    PAGE_LEN + area + extents + footer + PAGE_LEN
}

impl BodyEntry {
    /// Of its record, prefix included.
    pub(crate) fn encoded_len(&self) -> u64 {
        let digest = 1 + self.digest.as_bytes().len();
        let media_type = self.media_type.as_ref().map_or(0, |text| text.len());
        (PREFIX_LEN + digest + 3 * 8 + 2 * 4 + media_type + 4 * self.crcs.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::lease::extent_len;
    use crate::record::Kind;

    fn entry(len: u64, media_type: usize) -> BodyEntry {
        BodyEntry {
            digest: Digest::sha256(&len.to_le_bytes()),
            offset: PAGE_LEN,
            len,
            created: 1,
            media_type: Some("m".repeat(media_type).into()),
            crcs: vec![1; len.div_ceil(CRC_STRIDE_BYTES) as usize],
        }
    }

    #[test]
    fn a_layout_is_as_long_as_what_it_is_for() {
        let entry = entry(5 << 20, 40);
        let record = Record {
            sequence: 1,
            kind: Kind::Body(entry.clone()),
        };
        assert_eq!(entry.encoded_len(), record.encoded().len() as u64);
        let mut layout = Layout::default();
        layout.add_body(&entry);
        // Header, commit page, record header, body, footer, trailer.
        assert_eq!(layout.len(), 5 * PAGE_LEN + (5 << 20));
    }

    #[test]
    fn no_segment_is_longer_than_its_bound() {
        for (bodies, len, media_type) in [
            (1, 0, 0),
            (1, 1, 1024),
            (1000, 1, 1024),
            (1000, 4097, 700),
            (300, (3 << 20) + 1, 60),
            (2, 20 << 30, 1024),
        ] {
            let entry = entry(len, media_type);
            let mut layout = Layout::default();
            for _ in 0..bodies {
                layout.add_body(&entry);
            }
            let bound = len_max(bodies, bodies * extent_len(len));
            assert!(layout.len() <= bound, "{bodies} of {len}: {bound}");
        }
    }
}
