//! The footer of a sealed segment, read from the end of its file through any bulk disk.

use std::io;

use crate::disk::bulk::BulkDisk;
use crate::page::{Class, PAGE_LEN, RecordsUse, Trailer, Uuid, decode_records};
use crate::record::Record;

/// What a file must be to be read as a segment of bodies.
pub(crate) struct Sealed<'s> {
    pub(crate) uuid: &'s Uuid,
    pub(crate) segment: u64,
    /// Of the file.
    pub(crate) len: u64,
}

/// All records of the segment. `None`: there is no footer, or it is not what was written.
pub(crate) async fn read<B: BulkDisk>(
    disk: &B,
    file: &B::File,
    sealed: &Sealed<'_>,
) -> io::Result<Option<Vec<Record>>> {
    let Some(offset) = sealed.len.checked_sub(PAGE_LEN) else {
        return Ok(None);
    };
    let page = disk.read(file, offset, PAGE_LEN as usize).await?;
    let Some(trailer) = sealed.trailer(page.as_ref(), offset) else {
        return Ok(None);
    };
    let Ok(len) = usize::try_from(trailer.records_len) else {
        return Ok(None);
    };
    let bytes = disk.read(file, trailer.records_offset, len).await?;
    Ok(sealed.records(bytes.as_ref(), &trailer))
}

impl Sealed<'_> {
    fn trailer(&self, page: &[u8], offset: u64) -> Option<Trailer> {
        let trailer = Trailer::decode(page)?;
        let end = trailer.records_offset.checked_add(trailer.records_len)?;
        let bodies = matches!(trailer.class, Class::Shared | Class::Solo);
        let pages = trailer.records_offset.is_multiple_of(PAGE_LEN)
            && trailer.records_len.is_multiple_of(PAGE_LEN);
        (bodies
            && pages
            && trailer.uuid == *self.uuid
            && trailer.segment == self.segment
            && trailer.offset == offset
            && end <= offset)
            .then_some(trailer)
    }

    fn records(&self, bytes: &[u8], trailer: &Trailer) -> Option<Vec<Record>> {
        if crate::codec::crc(bytes) != trailer.records_crc {
            return None;
        }
        let page = decode_records(RecordsUse::Footer, bytes)?;
        (page.uuid == *self.uuid && page.segment == self.segment).then_some(page.records)
    }
}
