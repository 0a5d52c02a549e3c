//! What the benchmarks stand on; README.md says what each of them measures.

pub mod lru;
pub mod memory;
pub mod trace;
