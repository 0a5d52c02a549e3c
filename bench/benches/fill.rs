//! What a byte of a fill costs, and how its followers learn of it.
//!
//! The digest alone beside the whole way through the store: digest, checksums, writes to a disk
//! in memory, which keeps a number for each page of such bodies, the index and the commit. And
//! wakes: on the fill's own thread, and to a follower on another shard and back.

use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use entrepot_bench::block_on;
use entrepot_bench::memory::{FILLER, MemoryDisk, PAGE_LEN};
use entrepot_storage::forge::Marker;
use entrepot_storage::{
    Algorithm, Digest, Disk, FillSpec, FillState, Follower, Hasher, Options, Store, VolumeSpec,
    Watermark, Writer,
};

const UUID: [u8; 16] = [5; 16];
const NOW: u64 = 1_800_000_000;
/// As long as what a fill takes from its upstream at once.
const PIECE_LEN: usize = 512 << 10;
const BODY_LEN: usize = 16 << 20;
const FOLLOWERS: [usize; 3] = [0, 1, 64];

fn pieces() -> Vec<Bytes> {
    let piece = Bytes::from(FILLER.repeat(PIECE_LEN / PAGE_LEN));
    vec![piece; BODY_LEN / PIECE_LEN]
}

fn digest_of(algorithm: Algorithm, pieces: &[Bytes]) -> Digest {
    let mut hasher = Hasher::new(algorithm);
    for piece in pieces {
        hasher.update(piece);
    }
    hasher.finish()
}

fn bytes(criterion: &mut Criterion) {
    let pieces = pieces();
    let mut group = criterion.benchmark_group("fill");
    group.throughput(Throughput::Bytes(BODY_LEN as u64));
    for (name, algorithm) in [("sha256", Algorithm::Sha256), ("sha512", Algorithm::Sha512)] {
        group.bench_function(format!("digest/{name}"), |bencher| {
            bencher.iter(|| digest_of(algorithm, black_box(&pieces)));
        });
    }
    let digest = digest_of(Algorithm::Sha256, &pieces);
    group.bench_function("store/sha256", |bencher| {
        // One runtime and one store for all rounds of a measurement.
        bencher.iter_custom(|rounds| {
            block_on(async {
                let writer = writer().await;
                let started = Instant::now();
                for _ in 0..rounds {
                    fill(&writer, digest, &pieces).await;
                }
                started.elapsed()
            })
        });
    });
    group.finish();
}

async fn writer() -> Writer<MemoryDisk> {
    let disk = MemoryDisk::default();
    let volume = VolumeSpec {
        disk: disk.clone(),
        capacity: 1 << 50,
    };
    let opened = Store::open(vec![volume], Options::new(1, UUID), NOW).await;
    let (store, _) = opened.unwrap_or_else(|failure| panic!("{}", failure.error));
    store.writer(vec![disk], 0)
}

async fn fill(writer: &Writer<MemoryDisk>, digest: Digest, pieces: &[Bytes]) {
    let spec = FillSpec {
        digest,
        length: Some(BODY_LEN as u64),
        media_type: None,
    };
    let mut fill = writer.fill(spec).await.expect("room");
    for piece in pieces {
        let taken = fill.write(piece.clone()).await;
        taken.expect("memory does not fail");
    }
    fill.finish(NOW).await.expect("the right bytes");
    writer.commit(NOW).await.expect("memory does not fail");
}

fn marker() -> Marker<MemoryDisk> {
    let disk = MemoryDisk::default();
    Marker::new(block_on(disk.anonymous(0)).expect("memory"))
}

/// All on one thread: registering, the move, and the wakes.
fn wakes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("watermark/wake");
    for count in FOLLOWERS {
        let marker = marker();
        let mut followers: Vec<Follower<MemoryDisk>> =
            (0..count).map(|_| marker.watermark().follow()).collect();
        let mut written = 0;
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                let mut context = Context::from_waker(Waker::noop());
                for follower in &mut followers {
                    let wait = pin!(follower.wait(written));
                    assert!(wait.poll(&mut context).is_pending());
                }
                written += 1;
                marker.advance(written);
            });
        });
    }
    group.finish();
}

/// The fill's thread moves the watermark; a follower on another shard sees it and says so.
fn to_another_shard(criterion: &mut Criterion) {
    criterion.bench_function("watermark/to_another_shard", |bencher| {
        bencher.iter_custom(|rounds| {
            let marker = marker();
            let seen = Arc::new(AtomicU64::new(0));
            let (watermark, told) = (Arc::clone(marker.watermark()), Arc::clone(&seen));
            let follower = thread::spawn(move || follow(&watermark, rounds, &told));
            let started = Instant::now();
            for written in 1..=rounds {
                marker.advance(written);
                while seen.load(Ordering::Acquire) < written {
                    std::hint::spin_loop();
                }
            }
            let took = started.elapsed();
            follower.join().expect("the follower ends");
            took
        });
    });
}

fn follow(watermark: &Arc<Watermark<MemoryDisk>>, end: u64, told: &AtomicU64) {
    block_on(async {
        let mut follower = watermark.follow();
        let mut at = 0;
        while at < end {
            let (readable, state) = follower.wait(at).await;
            assert_eq!(state, FillState::Running);
            at = readable;
            told.store(at, Ordering::Release);
        }
    });
}

criterion_group!(benches, bytes, wakes, to_another_shard);
criterion_main!(benches);
