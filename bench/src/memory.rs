//! A disk in memory, for stores larger than memory.
//!
//! Bodies of the benchmarks are one page repeated, and an end of their own (`trace::Content`), so
//! a page of a file is a number of 4 bytes: zero, that page, or one that is kept. Everything else
//! is as a disk has it. Nothing ever waits or fails; every byte written is counted.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use entrepot_storage::Disk;
use entrepot_storage::disk::Space;

pub const PAGE_LEN: usize = 4096;

/// A file system that is never full: only the store's own budget counts.
const SPACE: Space = Space {
    free: 1 << 50,
    total: 1 << 50,
};

type Page = [u8; PAGE_LEN];

/// The page that fills most of every body.
pub const FILLER: Page = filler();

const fn filler() -> Page {
    let mut page = [0; PAGE_LEN];
    let mut state = 0x9e37_79b9_u32;
    let mut at = 0;
    while at < PAGE_LEN {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        page[at] = (state >> 24) as u8;
        at += 1;
    }
    page
}

/// Pages by number: `ZERO`, `FILLER`, or `FIRST_KEPT` and up for those in `kept`.
const ZERO_PAGE: u32 = 0;
const FILLER_PAGE: u32 = 1;
const FIRST_KEPT: u32 = 2;

#[derive(Default)]
struct Content {
    len: u64,
    pages: Vec<u32>,
    kept: Vec<Box<Page>>,
}

impl Content {
    fn grow(&mut self, len: u64) {
        self.len = self.len.max(len);
        self.pages
            .resize((self.len as usize).div_ceil(PAGE_LEN), ZERO_PAGE);
    }

    fn page(&self, number: usize) -> &Page {
        match self.pages[number] {
            ZERO_PAGE => &[0; PAGE_LEN],
            FILLER_PAGE => &FILLER,
            kept => &self.kept[(kept - FIRST_KEPT) as usize],
        }
    }

    fn set_page(&mut self, number: usize, page: &Page) {
        let old = self.pages[number];
        let new = if *page == FILLER {
            FILLER_PAGE
        } else if old >= FIRST_KEPT {
            *self.kept[(old - FIRST_KEPT) as usize] = *page;
            old
        } else {
            self.kept.push(Box::new(*page));
            self.kept.len() as u32 - 1 + FIRST_KEPT
        };
        self.pages[number] = new;
    }

    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = self.len.min(offset.saturating_add(len as u64));
        let mut bytes = Vec::with_capacity(end.saturating_sub(offset) as usize);
        for (number, part) in parts(offset, end) {
            bytes.extend_from_slice(&self.page(number)[part]);
        }
        bytes
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        self.grow(end);
        let mut rest = bytes;
        for (number, part) in parts(offset, end) {
            let (now, later) = rest.split_at(part.len());
            rest = later;
            match now.try_into() {
                Ok(page) => self.set_page(number, page),
                Err(_) => {
                    let mut page = *self.page(number);
                    page[part].copy_from_slice(now);
                    self.set_page(number, &page);
                }
            }
        }
    }
}

/// The pages of a range, and which part of each.
fn parts(offset: u64, end: u64) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut at = offset as usize;
    let end = end as usize;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let (number, from) = (at / PAGE_LEN, at % PAGE_LEN);
            let to = PAGE_LEN.min(from + end - at);
            at += to - from;
            (number, from..to)
        })
    })
}

pub struct MemoryFile(Mutex<Content>);

impl MemoryFile {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A directory. Clones share it and count together.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    files: Arc<Mutex<BTreeMap<String, Arc<MemoryFile>>>>,
    written: Arc<AtomicU64>,
}

impl MemoryDisk {
    /// The same directory, with a count of its own.
    pub fn counted_apart(&self) -> MemoryDisk {
        MemoryDisk {
            files: Arc::clone(&self.files),
            written: Arc::default(),
        }
    }

    /// Bytes written through this disk and its clones.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Arc<MemoryFile>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn made(len: u64) -> Arc<MemoryFile> {
        let mut content = Content::default();
        content.grow(len);
        Arc::new(MemoryFile(Mutex::new(content)))
    }
}

impl Disk for MemoryDisk {
    type File = Arc<MemoryFile>;

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        monoio::spawn(task);
    }

    async fn lock(&self) -> io::Result<Arc<MemoryFile>> {
        Ok(MemoryDisk::made(0))
    }

    async fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files().keys().cloned().collect())
    }

    async fn create(&self, name: &str, len: u64) -> io::Result<Arc<MemoryFile>> {
        let file = MemoryDisk::made(len);
        match self.files().insert(name.to_owned(), Arc::clone(&file)) {
            None => Ok(file),
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    async fn anonymous(&self, len: u64) -> io::Result<Arc<MemoryFile>> {
        Ok(MemoryDisk::made(len))
    }

    async fn grow(&self, file: &Arc<MemoryFile>, len: u64) -> io::Result<()> {
        file.content().grow(len);
        Ok(())
    }

    async fn open(&self, name: &str) -> io::Result<(Arc<MemoryFile>, u64)> {
        let file = self.files().get(name).cloned();
        let file = file.ok_or(io::ErrorKind::NotFound)?;
        let len = file.content().len;
        Ok((file, len))
    }

    async fn read(&self, file: &Arc<MemoryFile>, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        Ok(file.content().read(offset, len))
    }

    async fn write(&self, file: &Arc<MemoryFile>, offset: u64, bytes: Bytes) -> io::Result<()> {
        self.written
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        file.content().write(offset, &bytes);
        Ok(())
    }

    async fn sync(&self, _file: &Arc<MemoryFile>) -> io::Result<()> {
        Ok(())
    }

    async fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    async fn unlink(&self, name: &str) -> io::Result<()> {
        let gone = self.files().remove(name);
        gone.map(|_| ()).ok_or(io::ErrorKind::NotFound.into())
    }

    fn writeback(&self, _file: &Arc<MemoryFile>, _offset: u64, _len: u64) {}

    async fn space(&self) -> io::Result<Space> {
        Ok(SPACE)
    }

    /// Nobody else waits.
    async fn give_way(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_written() {
        let mut content = Content::default();
        content.grow(3 * PAGE_LEN as u64);
        let mut model = vec![0; 3 * PAGE_LEN];
        let filler = FILLER.repeat(2);
        let other: Vec<u8> = (0..9000_u32).map(|at| (at / 7) as u8).collect();
        let writes = [
            (0, &filler[..]),
            (100, &other[..5000]),
            (4096, &filler[..4096]),
            (4000, &other[..200]),
            (8191, &other[..9000]),
        ];
        for (offset, bytes) in writes {
            content.write(offset, bytes);
            let end = offset as usize + bytes.len();
            model.resize(model.len().max(end), 0);
            model[offset as usize..end].copy_from_slice(bytes);
            assert_eq!(content.read(0, usize::MAX >> 1), model);
            assert_eq!(content.read(4095, 3), model[4095..4098]);
        }
        assert_eq!(content.len, model.len() as u64);
    }
}
