//! Memory of the index for each body, and what a hit costs in it, alone and beside another core.
//!
//! Tables double, so bytes per body depend on how many there are: the two extremes are shown.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use entrepot_bench::block_on;
use entrepot_bench::forged::write_to_memory;
use entrepot_bench::memory::{FILLER, MemoryDisk};
use entrepot_bench::trace::Random;
use entrepot_storage::forge::segment;
use entrepot_storage::{
    Candidate, Digest, FillSpec, Need, Options, Room, Store, VolumeSpec, victims,
};

const UUID: [u8; 16] = [5; 16];
const NOW: u64 = 1_800_000_000;
/// Just before and just after most of the tables double: 256 slices, seven eighths full at most.
const BODIES: [usize; 2] = [850_000, 980_000];
const BODIES_PER_SEGMENT: usize = 10_000;
const BODY_LEN: u64 = 64 << 10;
/// Of the contended runs.
const SHARED_BODIES: usize = 100_000;
/// Bodies that a busy shard may take in; as fast as it can would fill memory and prove little.
const FILLS_PER_S: u32 = 5_000;
/// Segments of a store of 4 TB.
const SEGMENTS: u64 = 4_000;

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

/// A store on `disk` that found so many bodies, and their digests.
async fn store(disk: &MemoryDisk, bodies: usize) -> (Arc<Store<MemoryDisk>>, Vec<Digest>) {
    drop(open(disk).await);
    let mut random = Random::new(1);
    let digests: Vec<Digest> = (0..bodies).map(|_| random.digest()).collect();
    for (number, digests) in digests.chunks(BODIES_PER_SEGMENT).enumerate() {
        let bodies: Vec<(Digest, u64)> = digests.iter().map(|digest| (*digest, BODY_LEN)).collect();
        let first = number * BODIES_PER_SEGMENT;
        let forged = segment(UUID, number as u64, first as u64, &bodies);
        write_to_memory(disk, forged).await;
    }
    (open(disk).await, digests)
}

fn lookups(criterion: &mut Criterion) {
    for bodies in BODIES {
        let (store, digests) = block_on(store(&MemoryDisk::default(), bodies));
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

/// What a second thread does, if there is one.
type Other<'a> = Option<&'a (dyn Fn() + Sync)>;

/// Lookups here while another thread looks up as well, or fills.
fn contended(criterion: &mut Criterion) {
    let disk = MemoryDisk::default();
    let (store, digests) = block_on(store(&disk, SHARED_BODIES));
    let stopped = AtomicBool::new(false);
    let reader = || read(&store, &digests, &stopped);
    let filler = || fill(&store, &disk, &stopped);
    let others: [(&str, Other); 3] = [
        ("alone", None),
        ("beside/reader", Some(&reader)),
        ("beside/filler", Some(&filler)),
    ];
    for (name, other) in others {
        stopped.store(false, Ordering::Relaxed);
        thread::scope(|scope| {
            if let Some(other) = other {
                scope.spawn(other);
            }
            let mut random = Random::new(2);
            let mut next = || &digests[(random.draw() % digests.len() as u64) as usize];
            criterion.bench_function(&format!("index/{name}/{SHARED_BODIES}"), |bencher| {
                bencher.iter(|| black_box(store.body(black_box(next()))).is_some());
            });
            stopped.store(true, Ordering::Relaxed);
        });
    }
}

fn read(store: &Store<MemoryDisk>, digests: &[Digest], stopped: &AtomicBool) {
    let mut random = Random::new(4);
    while !stopped.load(Ordering::Relaxed) {
        let digest = &digests[(random.draw() % digests.len() as u64) as usize];
        black_box(store.body(black_box(digest)));
    }
}

/// Inserts bodies of a page, at a steady rate.
fn fill(store: &Arc<Store<MemoryDisk>>, disk: &MemoryDisk, stopped: &AtomicBool) {
    block_on(async {
        let writer = store.writer(vec![disk.clone()], 0);
        let (started, mut filled) = (Instant::now(), 0_u32);
        while !stopped.load(Ordering::Relaxed) {
            if started.elapsed() < Duration::from_secs(1) * filled / FILLS_PER_S {
                std::hint::spin_loop();
                continue;
            }
            let mut body = FILLER.to_vec();
            body.extend_from_slice(&filled.to_le_bytes());
            let spec = FillSpec {
                digest: Digest::sha256(&body),
                length: Some(body.len() as u64),
                media_type: None,
            };
            let mut fill = writer.fill(spec).await.expect("room");
            fill.write(body).await.expect("memory does not fail");
            fill.finish(NOW).await.expect("the right bytes");
            filled += 1;
        }
    });
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

criterion_group!(benches, lookups, contended, pickers);
criterion_main!(benches);
