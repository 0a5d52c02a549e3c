//! How long a start takes: records a second on one core, and seconds for each TB.
//!
//! `cargo bench -p entrepot-bench --bench recovery -- path=/tmp bodies=1000000 tb=1`.
//! In memory: segments of small bodies, so that records and nothing else cost time. On the file
//! system of `path`: a store of so many TB of bodies as registries have them, 25 MB on average.
//! Every file, page and record of it that a start reads is real; the bodies, which it does not
//! read, are holes. Cold: the pages of the files are dropped first; their inodes stay cached.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use entrepot_bench::forged::{write_to_directory, write_to_memory};
use entrepot_bench::memory::MemoryDisk;
use entrepot_bench::trace::{Random, len};
use entrepot_bench::{argument, block_on, cpu_ns, measured};
use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::forge::{Forged, segment};
use entrepot_storage::{Digest, Disk, Options, Recovered, Store, VolumeSpec};
use rustix::fs::{Advice, fadvise};

const UUID: [u8; 16] = [5; 16];
const NOW: u64 = 1_800_000_000;
const CAPACITY: u64 = 1 << 50;
const SEGMENT_LEN: u64 = 1 << 30;
/// Of a store up to 4 TiB.
const SOLO_MIN: u64 = 4 << 20;
/// Of the store in memory: manifests, configs and small layers.
const SMALL_LEN: u64 = 64 << 10;
const TB: u64 = 1_000_000_000_000;
const ROUNDS: usize = 5;

/// Segments that hold bodies of these lengths, in their order.
fn segments(random: &mut Random, lens: impl Iterator<Item = u64>) -> Vec<Forged> {
    let mut forged = Vec::new();
    let (mut shared, mut shared_bytes, mut first) = (Vec::new(), 0, 0);
    let mut make = |bodies: &[(Digest, u64)]| {
        forged.push(segment(UUID, forged.len() as u64, first, bodies));
        first += bodies.len() as u64;
    };
    for len in lens {
        if len >= SOLO_MIN {
            make(&[(random.digest(), len)]);
            continue;
        }
        if shared_bytes + len > SEGMENT_LEN {
            make(&std::mem::take(&mut shared));
            shared_bytes = 0;
        }
        shared.push((random.digest(), len));
        shared_bytes += len;
    }
    make(&shared);
    forged
}

async fn open<D: Disk>(disk: D) -> Recovered {
    let volume = VolumeSpec {
        disk,
        capacity: CAPACITY,
    };
    let opened = Store::open(vec![volume], Options::new(1, UUID), NOW).await;
    opened
        .unwrap_or_else(|failure| panic!("{}", failure.error))
        .1
}

struct Took {
    seconds: f64,
    cpu_seconds: f64,
}

/// The fastest of several starts.
async fn starts<D: Disk>(bodies: usize, mut before: impl FnMut(), disk: impl Fn() -> D) -> Took {
    let mut best: Option<Took> = None;
    for _ in 0..ROUNDS {
        before();
        let (started, cpu) = (Instant::now(), cpu_ns());
        let recovered = open(disk()).await;
        let took = Took {
            seconds: started.elapsed().as_secs_f64(),
            cpu_seconds: (cpu_ns() - cpu) as f64 / 1e9,
        };
        assert_eq!(recovered.bodies, bodies as u64);
        if best.as_ref().is_none_or(|best| took.seconds < best.seconds) {
            best = Some(took);
        }
    }
    best.expect("more than one round")
}

fn report(name: &str, bodies: usize, took: &Took) {
    println!(
        "{name:<44}{:>9.3} s{:>9.3} s of CPU{:>12.0} records/s/core",
        took.seconds,
        took.cpu_seconds,
        bodies as f64 / took.cpu_seconds,
    );
}

async fn in_memory(bodies: usize) {
    let disk = MemoryDisk::default();
    open(disk.clone()).await;
    let mut random = Random::new(1);
    for forged in segments(&mut random, std::iter::repeat_n(SMALL_LEN, bodies)) {
        write_to_memory(&disk, forged).await;
    }
    open(disk.clone()).await;
    let took = starts(bodies, || {}, || disk.clone()).await;
    report(&format!("in memory, {bodies} bodies"), bodies, &took);
}

/// A directory that goes with its value.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Drops the cached pages of all files.
fn cool(path: &Path) {
    for entry in fs::read_dir(path).expect("lists") {
        let file = File::open(entry.expect("an entry").path()).expect("opens");
        file.sync_data().expect("synced");
        fadvise(&file, 0, None, Advice::DontNeed).expect("advised");
    }
}

async fn on_disk(path: &Path, bytes: u64) {
    let name = format!("entrepot-recovery-{}", std::process::id());
    let directory = Directory(path.join(name));
    let disk = || UringDisk::open(&directory.0).expect("a directory");
    open(disk()).await;
    let mut random = Random::new(2);
    let mut lens = Vec::new();
    let mut sum = 0;
    while sum < bytes {
        lens.push(len(&mut random, 1));
        sum += lens[lens.len() - 1];
    }
    let forged = segments(&mut random, lens.iter().copied());
    for forged in &forged {
        write_to_directory(&directory.0, forged).expect("room for a few pages of each segment");
    }
    println!(
        "{}: {} bodies of {:.1} MB on average in {} segments, {:.3} TB",
        path.display(),
        lens.len(),
        sum as f64 / lens.len() as f64 / 1e6,
        forged.len(),
        sum as f64 / TB as f64,
    );
    // Syncs what was written since the last start, as a start after a crash does.
    let started = Instant::now();
    open(disk()).await;
    println!(
        "first start, all segments unsettled: {:.3} s",
        started.elapsed().as_secs_f64()
    );
    let warm = starts(lens.len(), || {}, disk).await;
    report("warm", lens.len(), &warm);
    let cold = starts(lens.len(), || cool(&directory.0), disk).await;
    report("data pages cold", lens.len(), &cold);
    let per_tb = |took: &Took| took.seconds * TB as f64 / sum as f64;
    println!(
        "s per TB: warm {:.3}, cold {:.3}",
        per_tb(&warm),
        per_tb(&cold)
    );
}

fn main() {
    let (bodies, tb) = if measured() {
        ("1000000", "1")
    } else {
        ("5000", "0.01")
    };
    let bodies = argument("bodies", bodies).parse().expect("a number");
    let tb: f64 = argument("tb", tb).parse().expect("a number");
    let path = argument("path", &std::env::temp_dir().to_string_lossy());
    block_on(async {
        in_memory(bodies).await;
        on_disk(Path::new(&path), (tb * TB as f64) as u64).await;
    });
}
