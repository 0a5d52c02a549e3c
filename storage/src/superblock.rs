//! The superblock: the file `STORE`, which says whose and of what format the segments are.
//!
//! Two copies, each with its CRC. The file is made as a whole (new file, sync, rename, sync of
//! the directory); from then on the older copy is overwritten and synced, which needs no space
//! and leaves the other if it is torn. Every open raises the generation and makes it durable
//! before anything is named by it: segment ids and sequences begin with it, so none is ever used
//! twice.

use std::io;

use bytes::Bytes;

use crate::Seconds;
use crate::disk::Disk;
use crate::page::{self, FORMAT_VERSION, Magic, PAGE_LEN, Uuid};
use crate::store::OpenError;

pub const NAME: &str = "STORE";
const NAME_NEW: &str = "STORE.new";
const MAGIC: Magic = b"ENTRSTOR";
const COPIES: usize = 2;

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

/// The file, and which copy is the older one.
pub(crate) struct SuperblockFile<D: Disk> {
    file: D::File,
    older: usize,
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
        page::end(out)
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

    /// The newer of the copies that are whole, and which one it is not.
    pub(crate) fn decode_file(bytes: &[u8]) -> Result<(Superblock, usize), OpenError> {
        let mut newest: Option<(Superblock, usize)> = None;
        for (number, copy) in bytes.chunks(PAGE_LEN as usize).take(COPIES).enumerate() {
            let Some(found) = Superblock::decode(copy).transpose()? else {
                continue;
            };
            let age = |superblock: &Superblock| (superblock.generation, superblock.settled);
            if newest.is_none_or(|(other, _)| age(&found) > age(&other)) {
                newest = Some((found, 1 - number));
            }
        }
        newest.ok_or(OpenError::SuperblockDamaged)
    }
}

impl<D: Disk> SuperblockFile<D> {
    pub(crate) async fn read(disk: &D) -> Result<(Superblock, SuperblockFile<D>), OpenError> {
        let failed = |source| OpenError::Disk {
            doing: "reading the superblock",
            source,
        };
        let (file, _) = disk.open(NAME).await.map_err(failed)?;
        let len = PAGE_LEN as usize * COPIES;
        let bytes = disk.read(&file, 0, len).await.map_err(failed)?;
        let (superblock, older) = Superblock::decode_file(&bytes)?;
        Ok((superblock, SuperblockFile { file, older }))
    }

    /// Of a new store.
    pub(crate) async fn create(disk: &D, first: &Superblock) -> io::Result<SuperblockFile<D>> {
        // Left over from a process that ended here.
        match disk.unlink(NAME_NEW).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let bytes = Bytes::from(first.encode().repeat(COPIES));
        let file = disk.create(NAME_NEW, bytes.len() as u64).await?;
        disk.write(&file, 0, bytes).await?;
        disk.sync(&file).await?;
        disk.rename(NAME_NEW, NAME).await?;
        disk.sync_dir().await?;
        Ok(SuperblockFile { file, older: 0 })
    }

    /// Durable when it returns; torn, the other copy stands.
    pub(crate) async fn write(&mut self, disk: &D, superblock: &Superblock) -> io::Result<()> {
        let offset = self.older as u64 * PAGE_LEN;
        let bytes = Bytes::from(superblock.encode());
        disk.write(&self.file, offset, bytes).await?;
        disk.sync(&self.file).await?;
        self.older = 1 - self.older;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(generation: u64, settled: u64) -> Superblock {
        Superblock {
            uuid: [3; 16],
            generation,
            settled,
            created: 5,
            capacity: 1 << 40,
            segment_len: 1 << 30,
        }
    }

    #[test]
    fn the_newer_whole_copy_counts() {
        let (old, new) = (superblock(4, 4), superblock(5, 4));
        let mut bytes = [old.encode(), new.encode()].concat();
        let decoded = Superblock::decode_file(&bytes).expect("both are whole");
        assert_eq!(decoded, (new, 0));
        bytes[PAGE_LEN as usize + 20] ^= 1;
        let decoded = Superblock::decode_file(&bytes).expect("one is whole");
        assert_eq!(decoded, (old, 1));
        bytes[20] ^= 1;
        let error = Superblock::decode_file(&bytes).expect_err("none is whole");
        assert!(matches!(error, OpenError::SuperblockDamaged));
        assert!(Superblock::decode_file(&[]).is_err());
        let settled = [superblock(5, 5).encode(), new.encode()].concat();
        let decoded = Superblock::decode_file(&settled).expect("both are whole");
        assert_eq!(decoded, (superblock(5, 5), 1));
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
