//! How fast the compactor is: fills a store, purges half of it, and compacts the rest on a thread
//! of its own, with direct I/O.
//!
//! `cargo run --release -p entrepot-storage --example compact -- DIRECTORY [MIB] [BODY_KIB]`

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use entrepot_storage::disk::direct::{DirectDisk, Rate, executor, sleep};
use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{
    Compactor, Digest, Exchange, FillSpec, ForgetKey, Options, Store, VolumeSpec,
};

const START: u64 = 1_800_000_000;
/// Purges in one group.
const GROUP: usize = 1000;
/// How often a server maintains its store.
const LOOK: Duration = Duration::from_millis(100);

fn content(number: u64, len: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Runs the compactor until told to stop; returns the CPU time of its thread, in seconds.
fn compact(exchange: Arc<Exchange>, path: PathBuf, stop: Arc<AtomicBool>) -> f64 {
    let executor = executor().expect("io_uring is available");
    executor.run(async move {
        let disk = DirectDisk::new(&path, Rate::new(0));
        let mut compactor = Compactor::new(exchange, vec![disk]);
        while !stop.load(Ordering::Relaxed) {
            if !compactor.step().await {
                sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanoseconds = stat
        .split(' ')
        .next()
        .and_then(|text| text.parse::<f64>().ok());
    nanoseconds.expect("a number") / 1e9
}

async fn measure(path: &Path, mib: u64, body_len: usize) {
    let disk = UringDisk::open(path).expect("a directory");
    let capacity = (mib << 20) * 5 / 2;
    let volumes = vec![VolumeSpec {
        disk: disk.clone(),
        capacity,
    }];
    let mut options = Options::new(1, [9; 16]);
    options.segment_len = Some(256 << 20);
    options.small_max = 0;
    let (store, _) = Store::open(volumes, options, START).await.expect("opens");
    let writer = store.writer(vec![disk], 0);
    let count = (mib << 20) / body_len as u64;
    let mut digests = Vec::new();
    for number in 0..count {
        let content = content(number, body_len);
        let digest = Digest::sha256(&content);
        let spec = FillSpec {
            digest,
            length: Some(body_len as u64),
            media_type: None,
        };
        let mut fill = writer.fill(spec).await.expect("admitted");
        fill.write(content).await.expect("written");
        fill.finish(START).await.expect("verified");
        if writer.wants_commit() {
            writer.commit(START).await.expect("committed");
        }
        digests.push(digest);
    }
    writer.seal_all(START).await.expect("sealed");
    let purged: Vec<ForgetKey> = digests
        .iter()
        .step_by(2)
        .copied()
        .map(ForgetKey::Body)
        .collect();
    for group in purged.chunks(GROUP) {
        writer.forget_all(group.to_vec()).await.expect("durable");
    }

    let (exchange, stop) = (store.exchange(), Arc::new(AtomicBool::new(false)));
    let segments = store.usage().segments;
    let (moved, told) = (exchange.clone(), Arc::clone(&stop));
    let path = path.to_owned();
    let began = Instant::now();
    let thread = std::thread::spawn(move || compact(moved, path, told));
    let (mut now, mut last, mut ended) = (START, (0, 0), Instant::now());
    // Until nothing has moved for two seconds of looks.
    while ended.elapsed() < Duration::from_secs(2) {
        now += 11;
        writer.maintain(now).await;
        monoio::time::sleep(LOOK).await;
        let done = exchange.compaction();
        let seen = (done.read_bytes, done.written_bytes);
        if seen != last {
            (last, ended) = (seen, Instant::now());
        }
    }
    stop.store(true, Ordering::Relaxed);
    let cpu = thread.join().expect("it ended");
    let seconds = (ended - began).as_secs_f64();
    let done = exchange.compaction();
    let (read, written) = (done.read_bytes as f64, done.written_bytes as f64);
    println!(
        "{} of {segments} segments, {:.0} MB copied in {seconds:.2} s: {:.0} MB/s, CPU {:.2} s/GB, \
         {} mismatches, {} failed",
        done.segments,
        written / 1e6,
        written / 1e6 / seconds,
        cpu / (read / 1e9),
        done.mismatches,
        done.failed,
    );
}

fn main() {
    let mut words = std::env::args().skip(1);
    let path = PathBuf::from(words.next().expect("a directory that may be filled"));
    let number = |word: Option<String>, default| {
        word.map_or(default, |word| word.parse().expect("a number"))
    };
    let mib = number(words.next(), 1024);
    let body_len = number(words.next(), 4096) << 10;
    monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .enable_timer()
        .build()
        .expect("io_uring is available")
        .block_on(measure(&path, mib, body_len as usize));
}
