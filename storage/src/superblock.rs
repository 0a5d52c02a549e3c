//! The superblock: the file `STORE` of each volume, which says whose and of what format its
//! segments are, and which volumes the store has.
//!
//! Two copies, each with its CRC. The file is made as a whole (new file, sync, rename, sync of
//! the directory); from then on the older copy is overwritten and synced, which needs no space
//! and leaves the other if it is torn. Every open raises the generation and makes it durable
//! before anything is named by it: segment ids and sequences begin with it, so none is ever used
//! twice. Until the store serves, a superblock only notes that there was one open more: a start
//! that was cut off before has changed nothing. A volume that served without the others went its
//! own way: see `member`.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::Seconds;
use crate::codec::{Encoder, Reader};
use crate::disk::Disk;
use crate::page::{self, Magic, PAGE_LEN, Uuid};
use crate::store::OpenError;
use crate::volume::VOLUMES_MAX;

pub const NAME: &str = "STORE";
const NAME_NEW: &str = "STORE.new";
const MAGIC: Magic = b"ENTRSTOR";
const COPIES: usize = 2;

/// The format of a store; a newer one is refused. Version 1 knew one volume only.
const FORMAT_VERSION: u32 = 2;
/// Opens that are remembered. A volume that missed more is emptied when it comes back.
pub(crate) const OPENS_MAX: usize = 64;
/// Of which so many have not served: a service that is started again and again and never gets so
/// far must not use up the memory of those that did.
pub(crate) const UNSERVED_MAX: usize = 16;

const _: () = assert!(OPENS_MAX * 16 + VOLUMES_MAX * 17 + 256 < PAGE_LEN as usize);

/// One open of the store. The stamp tells apart two that raised the same generation, each
/// without the other's volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) generation: u64,
    pub(crate) stamp: u64,
}

/// A volume of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: Uuid,
    /// Every small record is there; not so while the volume is away or only just back.
    pub(crate) complete: bool,
}

impl Member {
    /// While it is away it misses small records.
    pub(crate) fn without_all(self) -> Member {
        let complete = false;
        Member { complete, ..self }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) uuid: Uuid,
    /// How often the store was opened.
    pub(crate) generation: u64,
    /// Files that generations before this one wrote to this volume are known to be durable.
    pub(crate) settled: u64,
    pub(crate) created: Seconds,
    /// What the volume was opened with last, for those who inspect it.
    pub(crate) capacity: u64,
    pub(crate) segment_len: u64,
    /// Numbers the superblocks of all volumes since the open that served last: the highest knows
    /// best.
    pub(crate) change: u64,
    /// This volume.
    pub(crate) volume: Uuid,
    /// It and all others.
    pub(crate) members: Vec<Member>,
    /// The last opens, the newest at the end: that of `generation`.
    pub(crate) opens: Vec<Opening>,
    /// So many of them, at the end, have not served as far as this volume knows.
    pub(crate) unserved: usize,
}

/// The file, and which copy is the older one.
pub(crate) struct SuperblockFile<D: Disk> {
    file: Arc<D::File>,
    older: usize,
}

impl<D: Disk> Clone for SuperblockFile<D> {
    fn clone(&self) -> SuperblockFile<D> {
        SuperblockFile {
            file: Arc::clone(&self.file),
            older: self.older,
        }
    }
}

impl Superblock {
    fn encode(&self) -> Vec<u8> {
        assert!(self.members.len() <= VOLUMES_MAX * 2 && self.opens.len() <= OPENS_MAX);
        let mut out = page::begin_version(MAGIC, FORMAT_VERSION, &self.uuid);
        out.u64(self.generation);
        out.u64(self.settled);
        out.u64(self.created);
        out.u64(PAGE_LEN);
        out.u64(self.capacity);
        out.u64(self.segment_len);
        self.encode_members(&mut out);
        page::end(out)
    }

    /// What version 1 did not have.
    fn encode_members(&self, out: &mut Encoder) {
        out.u64(self.change);
        out.raw(&self.volume);
        out.u32(self.members.len() as u32);
        for member in &self.members {
            out.raw(&member.id);
            out.u8(u8::from(member.complete));
        }
        out.u32(self.opens.len() as u32);
        for open in &self.opens {
            out.u64(open.generation);
            out.u64(open.stamp);
        }
        // Zero, as what follows in the page, where a version 2 without it is read.
        out.u32(self.unserved as u32);
    }

    fn decode_members(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        self.change = reader.u64()?;
        self.volume = reader.array()?;
        let member = |reader: &mut Reader<'_>| {
            Some(Member {
                id: reader.array()?,
                complete: reader.u8()? != 0,
            })
        };
        let count = reader.u32()?;
        self.members = (0..count)
            .map(|_| member(reader))
            .collect::<Option<Vec<Member>>>()?;
        let open = |reader: &mut Reader<'_>| {
            Some(Opening {
                generation: reader.u64()?,
                stamp: reader.u64()?,
            })
        };
        let count = reader.u32()?;
        self.opens = (0..count)
            .map(|_| open(reader))
            .collect::<Option<Vec<Opening>>>()?;
        self.unserved = reader.u32()? as usize;
        Some(())
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
        let mut superblock = Superblock {
            uuid,
            generation,
            settled,
            created,
            capacity,
            segment_len,
            change: settled,
            // Of version 1: the only volume, which had the name of its store.
            volume: uuid,
            members: vec![Member {
                id: uuid,
                complete: true,
            }],
            opens: vec![Opening {
                generation,
                stamp: 0,
            }],
            unserved: 0,
        };
        if version > 1 {
            superblock.decode_members(&mut reader)?;
        }
        Some(Ok(superblock))
    }

    /// Which of two superblocks of a store knows more; of those that know as much, which is newer.
    pub(crate) fn age(&self) -> (u64, u64, u64) {
        let served = self.served().map_or(0, |open| open.generation);
        (served, self.change, self.generation)
    }

    /// The last open that served.
    pub(crate) fn served(&self) -> Option<Opening> {
        let end = self.opens.len().checked_sub(self.unserved)?;
        self.opens[..end].last().copied()
    }

    /// There was one more open, which has not served.
    pub(crate) fn note(&mut self, opening: Opening) {
        if self.unserved == UNSERVED_MAX {
            self.opens.remove(self.opens.len() - UNSERVED_MAX);
            self.unserved -= 1;
        }
        if self.opens.len() == OPENS_MAX {
            self.opens.remove(0);
        }
        self.opens.push(opening);
        self.unserved += 1;
        self.generation = opening.generation;
    }

    /// The newer of the copies that are whole, and which one it is not.
    pub(crate) fn decode_file(bytes: &[u8]) -> Result<(Superblock, usize), OpenError> {
        let mut newest: Option<(Superblock, usize)> = None;
        for (number, copy) in bytes.chunks(PAGE_LEN as usize).take(COPIES).enumerate() {
            let Some(found) = Superblock::decode(copy).transpose()? else {
                continue;
            };
            if newest
                .as_ref()
                .is_none_or(|(other, _)| found.age() > other.age())
            {
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
        let file = Arc::new(file);
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
        let file = Arc::new(file);
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

    fn superblock(generation: u64, change: u64) -> Superblock {
        let member = |id| Member {
            id: [id; 16],
            complete: id == 1,
        };
        Superblock {
            uuid: [3; 16],
            generation,
            settled: 1,
            created: 5,
            capacity: 1 << 40,
            segment_len: 1 << 30,
            change,
            volume: [1; 16],
            members: (1..=VOLUMES_MAX as u8).map(member).collect(),
            opens: (0..OPENS_MAX as u64)
                .map(|generation| Opening {
                    generation,
                    stamp: generation * 7,
                })
                .collect(),
            unserved: 0,
        }
    }

    #[test]
    fn the_newer_whole_copy_counts() {
        let (old, new) = (superblock(4, 4), superblock(5, 4));
        let mut bytes = [old.encode(), new.encode()].concat();
        let decoded = Superblock::decode_file(&bytes).expect("both are whole");
        assert_eq!(decoded, (new.clone(), 0));
        bytes[PAGE_LEN as usize + 20] ^= 1;
        let decoded = Superblock::decode_file(&bytes).expect("one is whole");
        assert_eq!(decoded, (old.clone(), 1));
        bytes[20] ^= 1;
        let error = Superblock::decode_file(&bytes).expect_err("none is whole");
        assert!(matches!(error, OpenError::SuperblockDamaged));
        assert!(Superblock::decode_file(&[]).is_err());
        let settled = [superblock(5, 5).encode(), new.encode()].concat();
        let decoded = Superblock::decode_file(&settled).expect("both are whole");
        assert_eq!(decoded, (superblock(5, 5), 1));
    }

    #[test]
    fn starts_that_never_served_do_not_displace_those_that_did() {
        let mut superblock = superblock(OPENS_MAX as u64 - 1, 4);
        let (served, age) = (superblock.served(), superblock.age());
        for generation in 100..200 {
            superblock.note(Opening {
                generation,
                stamp: 1,
            });
            assert_eq!(superblock.served(), served);
            assert!(superblock.age() > age);
            let bytes = superblock.encode().repeat(COPIES);
            let decoded = Superblock::decode_file(&bytes).expect("both are whole");
            assert_eq!(decoded.0, superblock);
        }
        assert_eq!(superblock.opens.len(), OPENS_MAX);
        assert_eq!(
            superblock.opens.last().map(|open| open.generation),
            Some(199)
        );
        assert_eq!(superblock.unserved, UNSERVED_MAX);
    }

    #[test]
    fn a_newer_format_is_named() {
        let out = page::begin_version(MAGIC, FORMAT_VERSION + 1, &[3; 16]);
        let bytes = page::end(out);
        let error = Superblock::decode_file(&bytes).expect_err("newer");
        assert_eq!(
            error.to_string(),
            "the store has format 3; this program knows up to 2"
        );
    }
}
