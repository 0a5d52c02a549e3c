//! Makes a store that knows many bodies and holds none of their bytes: `entrepot-ballast PATH N`.
//!
//! What a start reads of it is as the store writes it; the bodies, which nobody may ask for, are
//! holes. For measuring what a hit costs beside so many records (`bench/compare records`).

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use entrepot_bench::block_on;
use entrepot_bench::forged::write_to_directory;
use entrepot_bench::trace::Random;
use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::forge::segment;
use entrepot_storage::{Digest, Options, Store, VolumeSpec};

const UUID: [u8; 16] = [9; 16];
const NOW: u64 = 1_800_000_000;
/// The server that opens it later says what it may use.
const CAPACITY: u64 = 1 << 40;
const BODIES_PER_SEGMENT: usize = 10_000;
const BODY_LEN: u64 = 4 << 10;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, count] = &arguments[..] else {
        eprintln!("usage: entrepot-ballast PATH BODIES");
        return ExitCode::from(2);
    };
    let Ok(count) = count.parse() else {
        eprintln!("entrepot-ballast: {count} is no number");
        return ExitCode::from(2);
    };
    match make(&PathBuf::from(path), count) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("entrepot-ballast: {path}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn make(path: &Path, count: usize) -> std::io::Result<()> {
    create(path)?;
    let mut random = Random::new(1);
    let bodies: Vec<(Digest, u64)> = (0..count).map(|_| (random.digest(), BODY_LEN)).collect();
    for (number, bodies) in bodies.chunks(BODIES_PER_SEGMENT).enumerate() {
        let first = (number * BODIES_PER_SEGMENT) as u64;
        let forged = segment(UUID, number as u64, first, bodies);
        write_to_directory(path, &forged)?;
    }
    Ok(())
}

/// An empty store: its superblock says whose segments these are.
fn create(path: &Path) -> std::io::Result<()> {
    let disk = UringDisk::open(path)?;
    let volume = VolumeSpec {
        disk,
        capacity: CAPACITY,
    };
    let opened = block_on(Store::open(vec![volume], Options::new(1, UUID), NOW));
    opened.map_err(|failure| std::io::Error::other(failure.error.to_string()))?;
    Ok(())
}
