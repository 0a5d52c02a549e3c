//! The records of a segment, to bytes and back: what a seal writes and a start reads.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use entrepot_bench::trace::Random;
use entrepot_storage::Digest;
use entrepot_storage::forge::Records;

const RECORDS: u32 = 10_000;
/// One checksum of four bytes stands in a record for each MiB of its body.
const LENS: [(&str, u64); 2] = [("64KiB", 64 << 10), ("32MiB", 32 << 20)];

fn codec(criterion: &mut Criterion) {
    for (name, len) in LENS {
        let mut random = Random::new(1);
        let bodies: Vec<(Digest, u64)> = (0..RECORDS).map(|_| (random.digest(), len)).collect();
        let records = Records::new(0, &bodies);
        let bytes = records.encode();
        assert_eq!(Records::decode(&bytes, RECORDS), Some(RECORDS as usize));
        let mut group = criterion.benchmark_group(format!("record/{name}"));
        group.throughput(Throughput::Elements(u64::from(RECORDS)));
        group.bench_function("encode", |bencher| {
            bencher.iter(|| black_box(&records).encode().len());
        });
        group.bench_function("decode", |bencher| {
            bencher.iter(|| Records::decode(black_box(&bytes), RECORDS));
        });
        group.finish();
    }
}

criterion_group!(benches, codec);
criterion_main!(benches);
