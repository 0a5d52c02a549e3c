//! The superblock: the file `STORE`, which says whose and of what format the segments are.
//!
//! Two copies in one file, each with its CRC; replaced as a whole (new file, sync, rename, sync
//! of the directory) at every open, because the generation must be durable before anything is
//! named by it: segment ids and sequences begin with it, so none is ever used twice.

use std::io;

use bytes::Bytes;

use crate::Seconds;
use crate::disk::Disk;
use crate::page::{self, FORMAT_VERSION, Magic, PAGE_LEN, Uuid};
use crate::store::OpenError;

pub(crate) const NAME: &str = "STORE";
const NAME_NEW: &str = "STORE.new";
const MAGIC: Magic = b"ENTRSTOR";
const COPIES: u64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) uuid: Uuid,
    /// How often the store was opened.
    pub(crate) generation: u64,
    /// Files that generations before this one wrote are known to be durable.
    pub(crate) settled: u64,
    pub(crate) created: Seconds,
    /// What the store was opened with last, for those who inspect it.
    pub(crate) capacity: u64,
    pub(crate) segment_len: u64,
}

impl Superblock {
    fn encode(&self) -> Vec<u8> {
        let mut out = page::begin(MAGIC, &self.uuid);
        out.u64(self.generation);
        out.u64(self.settled);
        out.u64(self.created);
        out.u64(PAGE_LEN);
        out.u64(self.capacity);
        out.u64(self.segment_len);
        let copy = page::end(out);
        copy.repeat(COPIES as usize)
    }

    fn decode(copy: &[u8]) -> Option<Result<Superblock, OpenError>> {
        let (mut reader, version, uuid) = page::open(copy, MAGIC)?;
        if version > FORMAT_VERSION {
            return Some(Err(OpenError::NewerFormat {
                found: version,
                known: FORMAT_VERSION,
            }));
        }
        let (generation, settled, created) = (reader.u64()?, reader.u64()?, reader.u64()?);
        (reader.u64()? == PAGE_LEN).then_some(())?;
        let (capacity, segment_len) = (reader.u64()?, reader.u64()?);
        Some(Ok(Superblock {
            uuid,
            generation,
            settled,
            created,
            capacity,
            segment_len,
        }))
    }

    fn decode_file(bytes: &[u8]) -> Result<Superblock, OpenError> {
        bytes
            .chunks(PAGE_LEN as usize)
            .find_map(Superblock::decode)
            .unwrap_or(Err(OpenError::SuperblockDamaged))
    }

    pub(crate) async fn read<D: Disk>(disk: &D) -> Result<Superblock, OpenError> {
        let failed = |source| OpenError::Disk {
            doing: "reading the superblock",
            source,
        };
        let (file, _) = disk.open(NAME).await.map_err(failed)?;
        let len = (PAGE_LEN * COPIES) as usize;
        let bytes = disk.read(&file, 0, len).await.map_err(failed)?;
        Superblock::decode_file(&bytes)
    }

    pub(crate) async fn write<D: Disk>(&self, disk: &D) -> io::Result<()> {
        // Left over from a process that ended here.
        match disk.unlink(NAME_NEW).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let bytes = Bytes::from(self.encode());
        let file = disk.create(NAME_NEW, bytes.len() as u64).await?;
        disk.write(&file, 0, bytes).await?;
        disk.sync(&file).await?;
        disk.rename(NAME_NEW, NAME).await?;
        disk.sync_dir().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> Superblock {
        Superblock {
            uuid: [3; 16],
            generation: 4,
            settled: 4,
            created: 5,
            capacity: 1 << 40,
            segment_len: 1 << 30,
        }
    }

    #[test]
    fn one_good_copy_is_enough() {
        let bytes = superblock().encode();
        for damaged in [0, PAGE_LEN as usize] {
            let mut bytes = bytes.clone();
            bytes[damaged + 20] ^= 1;
            assert_eq!(
                Superblock::decode_file(&bytes).expect("one copy"),
                superblock()
            );
        }
        let mut bytes = bytes;
        bytes[20] ^= 1;
        bytes[PAGE_LEN as usize + 20] ^= 1;
        let error = Superblock::decode_file(&bytes).expect_err("no copy");
        assert!(matches!(error, OpenError::SuperblockDamaged));
        assert!(Superblock::decode_file(&[]).is_err());
    }

    #[test]
    fn a_newer_format_is_named() {
        let mut out = page::begin(MAGIC, &[3; 16]);
        out.bytes[8..12].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
        let bytes = page::end(out);
        let error = Superblock::decode_file(&bytes).expect_err("newer");
        assert_eq!(
            error.to_string(),
            "the store has format 2; this program knows up to 1"
        );
    }
}
