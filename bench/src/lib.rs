//! What the benchmarks stand on; README.md says what each of them measures.

use std::future::Future;

pub mod forged;
pub mod lru;
pub mod memory;
pub mod trace;

/// Runs what the store needs a runtime for.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .enable_timer()
        .build()
        .expect("io_uring is available")
        .block_on(work)
}

/// Nanoseconds that this thread was on a core.
pub fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let first = text.split_whitespace().next().expect("three numbers");
    first.parse().expect("a number")
}

/// The value of `name=value` among the arguments, or `default`.
pub fn argument(name: &str, default: &str) -> String {
    let value = |argument: String| Some(argument.strip_prefix(name)?.strip_prefix('=')?.to_owned());
    std::env::args()
        .find_map(value)
        .unwrap_or(default.to_owned())
}

/// Whether this is `cargo bench`, and not a test of all targets, which should be short.
pub fn measured() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}
