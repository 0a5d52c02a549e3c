//! Forged segments, put where a store will find them.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use bytes::Bytes;
use entrepot_storage::Disk;
use entrepot_storage::forge::Forged;

use crate::memory::MemoryDisk;

pub async fn write_to_memory(disk: &MemoryDisk, forged: Forged) {
    let file = disk.create(&forged.name, forged.len).await.expect("memory");
    for (offset, bytes) in forged.pages {
        let written = disk.write(&file, offset, Bytes::from(bytes)).await;
        written.expect("memory");
    }
}

/// Into the directory of a store. Bodies are holes and take no room.
pub fn write_to_directory(path: &Path, forged: &Forged) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600);
    let file = file.open(path.join(&forged.name))?;
    file.set_len(forged.len)?;
    for (offset, bytes) in &forged.pages {
        file.write_all_at(bytes, *offset)?;
    }
    Ok(())
}
