//! The bytes of one file: read, read past the page cache, or mapped.
//!
//! Listings map sealed segments, for they look at a few pages of each. Whatever is checked is
//! read instead, so that a bad sector is an error with a place and not a signal, and read with
//! `O_DIRECT` where the file system can, so that the disk is checked and not the page cache, and
//! a running server keeps what it has cached.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use entrepot_storage::inspect::{PAGE_LEN, Source};
use memmap2::Mmap;

use super::map;

/// Bytes of a file by `pread`. Its length is what it was when it was opened.
pub struct Read {
    file: File,
    len: u64,
}

impl Read {
    pub fn open(path: &Path) -> io::Result<Read> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Read { file, len })
    }
}

impl Source for Read {
    fn file_len(&self) -> u64 {
        self.len
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Cow<'_, [u8]>> {
        let mut bytes = vec![0; within(self.len, offset, len)?];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(Cow::Owned(bytes))
    }
}

/// Bytes of a sealed segment, mapped.
pub struct Mapped {
    map: Mmap,
}

impl Mapped {
    /// Of a file that was found to be sealed.
    pub fn sealed(file: &Read, segment: u64) -> io::Result<Mapped> {
        Ok(Mapped {
            map: map::sealed(&file.file, segment)?,
        })
    }
}

impl Source for Mapped {
    fn file_len(&self) -> u64 {
        self.map.len() as u64
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Cow<'_, [u8]>> {
        within(self.file_len(), offset, len)?;
        let offset = offset as usize;
        Ok(Cow::Borrowed(&self.map[offset..offset + len]))
    }
}

/// Bytes of the disk itself, where the file system allows it; else as `Read`.
pub struct Direct {
    plain: Read,
    direct: Option<File>,
    /// One page longer than what is asked for, so that it can begin at a multiple of a page.
    buffer: RefCell<Vec<u8>>,
}

impl Direct {
    pub fn open(path: &Path) -> io::Result<Direct> {
        let plain = Read::open(path)?;
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(path);
        let direct = match opened {
            Ok(file) => Some(file),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => None,
            Err(error) => return Err(error),
        };
        Ok(Direct {
            plain,
            direct,
            buffer: RefCell::default(),
        })
    }

    /// Whole pages around the range.
    fn read_direct(&self, file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let page = PAGE_LEN as usize;
        let from = offset / PAGE_LEN * PAGE_LEN;
        let before = (offset - from) as usize;
        let span = (before + len).next_multiple_of(page);
        let mut buffer = self.buffer.borrow_mut();
        if buffer.len() < span + page {
            buffer.resize(span + page, 0);
        }
        let start = buffer.as_ptr().align_offset(page);
        let aligned = &mut buffer[start..start + span];
        let mut done = 0;
        while done < before + len {
            match file.read_at(&mut aligned[done..], from + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(aligned[before..before + len].to_vec())
    }
}

impl Source for Direct {
    fn file_len(&self) -> u64 {
        self.plain.len
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Cow<'_, [u8]>> {
        within(self.plain.len, offset, len)?;
        let Some(file) = &self.direct else {
            return self.plain.read(offset, len);
        };
        match self.read_direct(file, offset, len) {
            // The file system opens such files and refuses to read them, or this is the odd end
            // of a file that was cut.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.plain.read(offset, len)
            }
            read => read.map(Cow::Owned),
        }
    }
}

/// Before anything is allocated for what a damaged page asks for.
fn within(file_len: u64, offset: u64, len: usize) -> io::Result<usize> {
    let end = offset.checked_add(len as u64);
    match end.is_some_and(|end| end <= file_len) {
        true => Ok(len),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn all_ways_read_the_same() {
        let path = std::env::temp_dir().join(format!("entrepot-inspect-{}", std::process::id()));
        let content: Vec<u8> = (0..3 * PAGE_LEN + 100)
            .map(|at| (at * 7 / 3) as u8)
            .collect();
        File::create(&path)
            .and_then(|mut file| file.write_all(&content))
            .expect("a file");
        let read = Read::open(&path).expect("opens");
        let mapped = Mapped::sealed(&read, 1).expect("maps");
        let direct = Direct::open(&path).expect("opens");
        let sources: [&dyn Source; 3] = [&read, &mapped, &direct];
        for (offset, len) in [(0, 4096), (5, 1), (4090, 5000), (12288, 100), (12388, 0)] {
            let expected = &content[offset..offset + len];
            for source in sources {
                assert_eq!(&*source.read(offset as u64, len).expect("inside"), expected);
            }
        }
        for (offset, len) in [(12288, 101), (u64::MAX, 2), (20000, 1)] {
            for source in sources {
                let error = source.read(offset, len).expect_err("outside");
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            }
        }
        std::fs::remove_file(&path).expect("removed");
    }
}
