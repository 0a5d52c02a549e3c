//! Small file systems on loop devices, which run full and fail on demand; root's right.
//!
//! The device's backing file is sparse and lies in memory: when that is used up, writes fail, and
//! where it was cut short, reads do.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

use crate::process::{command, run_ok, tool};
use crate::temp::TempDir;

/// What is written at once to use up the memory.
const PIECE_LEN: usize = 1 << 20;
/// Inode tables and the like are in front of this: a device cut off here still has its files.
const METADATA_LEN: u64 = 16 << 20;

#[derive(Clone, Copy, Debug)]
pub enum FileSystem {
    Ext4,
    Xfs,
}

/// A mounted file system of its own.
pub struct Disk {
    dir: TempDir,
}

impl Disk {
    /// `len` bytes, all of them there.
    pub fn new(file_system: FileSystem, len: u64) -> Disk {
        Disk::within(file_system, len, len + (64 << 20))
    }

    /// `len` bytes, of which only `memory` can be written.
    fn within(file_system: FileSystem, len: u64, memory: u64) -> Disk {
        let disk = Disk {
            dir: TempDir::new("disk"),
        };
        for folder in ["memory", "disk"] {
            std::fs::create_dir(disk.dir.join(folder)).expect("a folder to mount on");
        }
        let size = format!("size={memory}");
        mount(
            &["-t", "tmpfs", "-o", &size, "tmpfs"],
            &disk.dir.join("memory"),
        );
        let image = disk.image();
        let file = File::create_new(&image).expect("an image");
        file.set_len(len).expect("a sparse file");
        let (name, package, options): (_, _, &[&str]) = match file_system {
            // Without a journal it goes on after a failed write of its own.
            FileSystem::Ext4 => ("mkfs.ext4", "e2fsprogs", &["-q", "-O", "^has_journal"]),
            FileSystem::Xfs => ("mkfs.xfs", "xfsprogs", &["-q"]),
        };
        let mut make = command(tool(name, package));
        make.args(options).arg(&image);
        run_ok(make);
        let image = image.display().to_string();
        mount(&["-o", "loop", &image], &disk.path());
        disk
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.join("disk")
    }

    fn image(&self) -> PathBuf {
        self.dir.join("memory/image")
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("memory/ballast")
    }

    /// From now on what is written to places that were never written fails.
    pub fn break_writes(&self) {
        let mut ballast = File::create(self.ballast()).expect("a file");
        let piece = vec![1; PIECE_LEN];
        while ballast.write_all(&piece).is_ok() {}
    }

    /// Whether files of a folder can be made and removed, by root neither. What `break_writes` says
    /// holds only for places that no file had before.
    pub fn protect(folder: &Path, on: bool) {
        let mut change = command(tool("chattr", "e2fsprogs"));
        change.arg(if on { "+i" } else { "-i" }).arg(folder);
        run_ok(change);
    }

    /// From now on writes work again.
    pub fn mend(&self) {
        std::fs::remove_file(self.ballast()).expect("the ballast goes");
    }

    /// From now on reads of bytes that are not in memory fail, and never work again.
    pub fn break_reads(&self) {
        let image = OpenOptions::new().write(true).open(self.image());
        image
            .expect("the image")
            .set_len(METADATA_LEN)
            .expect("cut short");
    }

    /// Has the kernel forget the pages of a file, so that the next read asks the device.
    pub fn drop_cache(file: &Path) {
        let mut forget = command(tool("dd", "coreutils"));
        forget.arg(format!("if={}", file.display()));
        forget.args(["iflag=nocache", "count=0", "status=none"]);
        run_ok(forget);
    }
}

fn mount(args: &[&str], on: &Path) {
    let mut mount = command(tool("mount", "mount"));
    mount.args(args).arg(on);
    run_ok(mount);
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A server that was killed may hold it a moment longer than the test.
        for folder in ["disk", "memory"] {
            let _ = unmount(self.dir.join(folder), UnmountFlags::DETACH);
        }
    }
}
