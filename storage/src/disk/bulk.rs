//! Bulk disk: what the compactor asks of the world.
//!
//! Large reads and writes at whole pages, of files that nobody else writes, on a thread of its
//! own. `DirectDisk` is the real one and leaves the page cache alone; every `Disk` is one too, so
//! that the simulation drives the same compactor.

use std::future::Future;
use std::io;

use bytes::Bytes;

use super::Disk;
use crate::page::PAGE_LEN;

pub trait BulkDisk: 'static {
    /// An open file. Used on the thread that opened it.
    type File: 'static;
    /// What a read gives.
    type Read: AsRef<[u8]>;
    /// What a write takes.
    type Buffer: AsMut<[u8]>;

    /// A buffer of `len` bytes, which are whole pages; what they are is not said.
    fn buffer(&self, len: usize) -> Self::Buffer;

    /// An existing file, to be read.
    fn open(&self, name: &str) -> impl Future<Output = io::Result<Self::File>>;

    /// A new file of `len` allocated bytes, to be read and written. If it fails nothing is left
    /// of it.
    fn create(&self, name: &str, len: u64) -> impl Future<Output = io::Result<Self::File>>;

    /// Exactly `len` bytes. Both numbers are whole pages, and the range lies in the file:
    /// `UnexpectedEof` if it does not.
    fn read(
        &self,
        file: &Self::File,
        offset: u64,
        len: usize,
    ) -> impl Future<Output = io::Result<Self::Read>>;

    /// Writes the first `len` bytes of the buffer. Both numbers are whole pages.
    fn write(
        &self,
        file: &Self::File,
        offset: u64,
        buffer: Self::Buffer,
        len: usize,
    ) -> impl Future<Output = io::Result<()>>;

    /// Makes every completed write of the file, and its length, durable.
    fn sync(&self, file: &Self::File) -> impl Future<Output = io::Result<()>>;

    /// Makes every completed create and unlink durable.
    fn sync_dir(&self) -> impl Future<Output = io::Result<()>>;

    fn unlink(&self, name: &str) -> impl Future<Output = io::Result<()>>;

    /// Waits until `bytes` more may be moved.
    fn pause(&self, bytes: u64) -> impl Future<Output = ()>;
}

pub(crate) fn whole_pages(number: u64) -> bool {
    number.is_multiple_of(PAGE_LEN)
}

impl<D: Disk> BulkDisk for D {
    type File = D::File;
    type Read = Vec<u8>;
    type Buffer = Vec<u8>;

    fn buffer(&self, len: usize) -> Vec<u8> {
        vec![0; len]
    }

    async fn open(&self, name: &str) -> io::Result<D::File> {
        Ok(Disk::open(self, name).await?.0)
    }

    async fn create(&self, name: &str, len: u64) -> io::Result<D::File> {
        Disk::create(self, name, len).await
    }

    async fn read(&self, file: &D::File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        debug_assert!(whole_pages(offset) && whole_pages(len as u64));
        let read = Disk::read(self, file, offset, len).await?;
        if read.len() < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(read)
    }

    async fn write(
        &self,
        file: &D::File,
        offset: u64,
        mut buffer: Vec<u8>,
        len: usize,
    ) -> io::Result<()> {
        debug_assert!(whole_pages(offset) && whole_pages(len as u64));
        buffer.truncate(len);
        Disk::write(self, file, offset, Bytes::from(buffer)).await
    }

    async fn sync(&self, file: &D::File) -> io::Result<()> {
        Disk::sync(self, file).await
    }

    async fn sync_dir(&self) -> io::Result<()> {
        Disk::sync_dir(self).await
    }

    async fn unlink(&self, name: &str) -> io::Result<()> {
        Disk::unlink(self, name).await
    }

    /// Such a disk has no clock: others get their turn.
    async fn pause(&self, _bytes: u64) {
        self.give_way().await;
    }
}
