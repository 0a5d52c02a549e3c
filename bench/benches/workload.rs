//! Write amplification and byte-hit ratio of the whole store under a registry workload.
//!
//! One writer, one compactor and the real code over a disk in memory; a request a second of store
//! time. `cargo bench -p entrepot-bench --bench workload -- requests=100000 scale=16 cache=10
//! reuse=even`: so many requests, lengths and geometry divided by `scale`, a cache of that many
//! per cent of the bytes of all blobs. Reported for the whole run, and from when the store was
//! first full.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use entrepot_bench::lru::Lru;
use entrepot_bench::memory::MemoryDisk;
use entrepot_bench::trace::{Content, Reuse, Trace};
use entrepot_bench::{argument, block_on, measured};
use entrepot_storage::{
    Body, Compactor, Digest, Exchange, FillSpec, Options, Refusal, Store, VolumeSpec, Writer,
};

const START: u64 = 1_800_000_000;
const SEED: u64 = 1;
/// Of a store below 500 GB, before it is scaled.
const SEGMENT_LEN: u64 = 256 << 20;
/// Of a store up to 4 TiB, before it is scaled.
const SOLO_MIN: u64 = 4 << 20;
/// The store counts as full from this share of its capacity on, in per cent.
const FULL_PERCENT: u64 = 90;
/// Rounds of compaction after each request: bounds a run in which it would never end.
const ROUNDS_MAX: usize = 64;

struct Asked {
    requests: usize,
    scale: u64,
    cache_percent: u64,
    segment_len: u64,
    reuse: Reuse,
}

impl Asked {
    /// Without `--bench`, as in a test of all targets, only a few requests.
    fn new() -> Asked {
        let number = |name: &str, default: u64| {
            let value = argument(name, &default.to_string());
            value
                .parse()
                .unwrap_or_else(|_| panic!("{name} is a number"))
        };
        let scale = number("scale", 16);
        Asked {
            requests: number("requests", if measured() { 100_000 } else { 1_000 }) as usize,
            scale,
            cache_percent: number("cache", 10),
            segment_len: number("segment", SEGMENT_LEN / scale),
            reuse: match argument("reuse", "even").as_str() {
                "even" => Reuse::Even,
                "skewed" => Reuse::Skewed,
                other => panic!("reuse is even or skewed, not {other}"),
            },
        }
    }
}

/// What was asked for and what came of it.
#[derive(Clone, Copy, Default)]
struct Counts {
    requests: u64,
    bytes: u64,
    hit_bytes: u64,
    oracle_hit_bytes: u64,
    hits: u64,
    oracle_hits: u64,
    refused: u64,
    filled_bytes: u64,
    written_bytes: u64,
    compacted_bytes: u64,
    segments_compacted: u64,
}

impl Counts {
    fn since(self, before: Counts) -> Counts {
        Counts {
            requests: self.requests - before.requests,
            bytes: self.bytes - before.bytes,
            hit_bytes: self.hit_bytes - before.hit_bytes,
            oracle_hit_bytes: self.oracle_hit_bytes - before.oracle_hit_bytes,
            hits: self.hits - before.hits,
            oracle_hits: self.oracle_hits - before.oracle_hits,
            refused: self.refused - before.refused,
            filled_bytes: self.filled_bytes - before.filled_bytes,
            written_bytes: self.written_bytes - before.written_bytes,
            compacted_bytes: self.compacted_bytes - before.compacted_bytes,
            segments_compacted: self.segments_compacted - before.segments_compacted,
        }
    }

    fn print(&self, name: &str) {
        let pages = self.written_bytes - self.filled_bytes;
        let all = self.written_bytes + self.compacted_bytes;
        println!("{name}");
        line("  requests", self.requests);
        line("  byte-hit ratio, %", percent(self.hit_bytes, self.bytes));
        line(
            "  of an exact LRU, %",
            percent(self.oracle_hit_bytes, self.bytes),
        );
        line("  hit ratio, %", percent(self.hits, self.requests));
        line(
            "  of an exact LRU, %",
            percent(self.oracle_hits, self.requests),
        );
        line("  refused", self.refused);
        line("  filled, MB", self.filled_bytes / 1_000_000);
        line("  pages, MB", pages / 1_000_000);
        line(
            "  copied by compaction, MB",
            self.compacted_bytes / 1_000_000,
        );
        line("  segments compacted", self.segments_compacted);
        let ratio = |bytes: u64| format!("{:.4}", bytes as f64 / self.filled_bytes.max(1) as f64);
        line("  write amplification", ratio(all));
        line("  without pages", ratio(all - pages));
    }
}

fn line(name: &str, value: impl Display) {
    println!("{name:<28}{value:>14}");
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.2}", 100.0 * part as f64 / whole.max(1) as f64)
}

struct Run {
    disk: MemoryDisk,
    /// Shares the files; counts what the compactor writes.
    bulk: MemoryDisk,
    store: Arc<Store<MemoryDisk>>,
    writer: Writer<MemoryDisk>,
    exchange: Arc<Exchange>,
    compactor: Compactor<MemoryDisk>,
    oracle: Lru,
    content: Content,
    digests: Vec<Option<Digest>>,
    counts: Counts,
    now: u64,
}

impl Run {
    async fn new(asked: &Asked, capacity: u64, blobs: usize) -> Run {
        let disk = MemoryDisk::default();
        let bulk = disk.counted_apart();
        let mut options = Options::new(1, [1; 16]);
        options.segment_len = Some(asked.segment_len);
        options.solo_min = Some(SOLO_MIN / asked.scale);
        // Small bodies are those of the workload, scaled like all others.
        options.small_max = (u64::from(options.small_max) / asked.scale) as u32;
        let volume = VolumeSpec {
            disk: disk.clone(),
            capacity,
        };
        let opened = Store::open(vec![volume], options, START).await;
        let (store, _) = opened.unwrap_or_else(|failure| panic!("{}", failure.error));
        let writer = store.writer(vec![disk.clone()], 0);
        let exchange = store.exchange();
        Run {
            compactor: Compactor::new(Arc::clone(&exchange), vec![bulk.clone()]),
            exchange,
            disk,
            bulk,
            store,
            writer,
            oracle: Lru::new(capacity),
            content: Content::default(),
            digests: vec![None; blobs],
            counts: Counts::default(),
            now: START,
        }
    }

    async fn ask(&mut self, blob: u32, len: u64) {
        self.now += 1;
        let content = &mut self.content;
        let digest = *self.digests[blob as usize].get_or_insert_with(|| content.digest(blob, len));
        let hit = self.store.body(&digest).is_some();
        let oracle_hit = self.oracle.ask(blob, len);
        if !hit {
            self.fill(blob, len, digest).await;
        }
        self.writer
            .commit(self.now)
            .await
            .expect("memory does not fail");
        self.maintain().await;
        let counts = &mut self.counts;
        counts.requests += 1;
        counts.bytes += len;
        counts.hits += u64::from(hit);
        counts.hit_bytes += if hit { len } else { 0 };
        counts.oracle_hits += u64::from(oracle_hit);
        counts.oracle_hit_bytes += if oracle_hit { len } else { 0 };
        counts.written_bytes = self.disk.written();
        counts.compacted_bytes = self.bulk.written();
        counts.segments_compacted = self.exchange.compaction().segments;
    }

    async fn fill(&mut self, blob: u32, len: u64, digest: Digest) {
        let spec = FillSpec {
            digest,
            length: Some(len),
            media_type: Some("application/vnd.oci.image.layer.v1.tar+gzip"),
        };
        let mut fill = match self.writer.fill(spec).await {
            Ok(fill) => fill,
            Err(Refusal::Full | Refusal::TooLarge) => {
                self.counts.refused += 1;
                return;
            }
            Err(refusal) => panic!("{refusal}"),
        };
        for piece in self.content.pieces(blob, len) {
            fill.write(piece).await.expect("memory does not fail");
        }
        let body: Body<MemoryDisk> = fill.finish(self.now).await.expect("the right bytes");
        self.counts.filled_bytes += body.len;
    }

    /// Eviction and compaction until there is nothing to do.
    async fn maintain(&mut self) {
        for _ in 0..ROUNDS_MAX {
            self.writer.maintain(self.now).await;
            let mut worked = false;
            while self.compactor.step().await {
                worked = true;
            }
            if !worked {
                break;
            }
        }
    }

    fn full(&self) -> bool {
        let usage = self.store.usage();
        usage.used * 100 >= usage.capacity * FULL_PERCENT
    }
}

fn main() {
    let asked = Asked::new();
    let trace = Trace::new(asked.requests, asked.scale, asked.reuse, SEED);
    let capacity = trace.footprint() * asked.cache_percent / 100;
    line("blobs", trace.lens.len());
    line("bytes of all blobs, MB", trace.footprint() / 1_000_000);
    line("capacity, MB", capacity / 1_000_000);
    line("segments of, MB", asked.segment_len / 1_000_000);
    block_on(async {
        let started = Instant::now();
        let mut run = Run::new(&asked, capacity, trace.lens.len()).await;
        let mut at_full: Option<Counts> = None;
        for blob in &trace.requests {
            run.ask(*blob, trace.lens[*blob as usize]).await;
            if at_full.is_none() && run.full() {
                at_full = Some(run.counts);
            }
        }
        run.counts.print("from the empty store on");
        if let Some(before) = at_full {
            run.counts.since(before).print("once it was full");
        }
        let usage = run.store.usage();
        line("used at the end, %", percent(usage.used, usage.capacity));
        line("took, s", started.elapsed().as_secs());
    });
}
