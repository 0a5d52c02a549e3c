//! Memory of the index for each body, and what a hit costs in it.
//!
//! Tables double, so bytes per body depend on how many there are: the two extremes are shown.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use entrepot_bench::block_on;
use entrepot_bench::memory::MemoryDisk;
use entrepot_bench::trace::Random;
use entrepot_storage::forge::segment;
use entrepot_storage::{
    Algorithm, Candidate, Digest, Disk, Need, Options, Room, Store, VolumeSpec, victims,
};

const UUID: [u8; 16] = [5; 16];
const NOW: u64 = 1_800_000_000;
/// Just before and just after most of the tables double: 256 slices, seven eighths full at most.
const BODIES: [usize; 2] = [850_000, 980_000];
const BODIES_PER_SEGMENT: usize = 10_000;
const BODY_LEN: u64 = 64 << 10;
/// Segments of a store of 4 TB.
const SEGMENTS: u64 = 4_000;

fn digest(random: &mut Random) -> Digest {
    let words: Vec<u8> = (0..4).flat_map(|_| random.draw().to_le_bytes()).collect();
    Digest::from_bytes(Algorithm::Sha256, &words).expect("32 bytes")
}

async fn open(disk: &MemoryDisk) -> Arc<Store<MemoryDisk>> {
    let volume = VolumeSpec {
        disk: disk.clone(),
        capacity: 1 << 50,
    };
    let opened = Store::open(vec![volume], Options::new(1, UUID), NOW).await;
    opened
        .unwrap_or_else(|failure| panic!("{}", failure.error))
        .0
}

/// A store that found so many bodies, and their digests.
async fn store(bodies: usize) -> (Arc<Store<MemoryDisk>>, Vec<Digest>) {
    let disk = MemoryDisk::default();
    drop(open(&disk).await);
    let mut random = Random::new(1);
    let digests: Vec<Digest> = (0..bodies).map(|_| digest(&mut random)).collect();
    for (number, digests) in digests.chunks(BODIES_PER_SEGMENT).enumerate() {
        let bodies: Vec<(Digest, u64)> = digests.iter().map(|digest| (*digest, BODY_LEN)).collect();
        let first = number * BODIES_PER_SEGMENT;
        let forged = segment(UUID, number as u64, first as u64, &bodies);
        let file = disk.create(&forged.name, forged.len).await.expect("memory");
        for (offset, bytes) in forged.pages {
            let written = disk.write(&file, offset, Bytes::from(bytes)).await;
            written.expect("memory");
        }
    }
    (open(&disk).await, digests)
}

fn lookups(criterion: &mut Criterion) {
    for bodies in BODIES {
        let (store, digests) = block_on(store(bodies));
        let (entry, tables) = store.index_memory();
        let digest = size_of::<Digest>();
        println!(
            "{bodies} bodies: an entry is {entry} bytes, {} beside the digest; tables {:.1} bytes \
            for each body, {:.1} beside the digest",
            entry - digest,
            tables as f64 / bodies as f64,
            tables as f64 / bodies as f64 - digest as f64,
        );
        let mut random = Random::new(2);
        let mut next = || &digests[(random.draw() % digests.len() as u64) as usize];
        criterion.bench_function(&format!("index/hit/{bodies}"), |bencher| {
            bencher.iter(|| black_box(store.body(black_box(next()))).is_some());
        });
        let unknown = Digest::sha256(b"never stored");
        criterion.bench_function(&format!("index/miss/{bodies}"), |bencher| {
            bencher.iter(|| black_box(store.body(black_box(&unknown))).is_some());
        });
    }
}

fn pickers(criterion: &mut Criterion) {
    const LEN: u64 = 1 << 30;
    let mut random = Random::new(3);
    let mut candidate = |segment| Candidate {
        segment,
        len: LEN,
        live: random.draw() % LEN,
        bodies: random.draw() % 100,
        age: SEGMENTS - segment,
    };
    let candidates: Vec<Candidate> = (0..SEGMENTS).map(&mut candidate).collect();
    let room = Room {
        copied: LEN,
        reserved: LEN,
    };
    for (name, need) in [("urgent", Need::Urgent), ("idle", Need::Idle)] {
        criterion.bench_function(&format!("pick/{name}/{SEGMENTS}"), |bencher| {
            bencher.iter(|| victims(black_box(&candidates), need, room));
        });
    }
}

criterion_group!(benches, lookups, pickers);
criterion_main!(benches);
