//! The io_uring of a thread: every one is made here, as the shards need it.
//!
//! Called by `shard`, `preflight` and `start`. A runtime belongs to the thread that makes it.

use std::io;

use io_uring::IoUring;
use monoio::time::TimeDriver;
use monoio::{IoUringDriver, Runtime, RuntimeBuilder};

/// Entries of one ring; the runtime's default, which the measurements were made with.
pub const ENTRIES: u32 = 1_024;

/// What io_uring_setup(2) says to this is for `preflight::ring_error` to explain.
pub fn runtime() -> io::Result<Runtime<TimeDriver<IoUringDriver>>> {
    let mut flags = IoUring::builder();
    // A completion waits for the thread's next system call, instead of interrupting it wherever it
    // is: of small answers to many connections a fifth of the CPU. (Linux 5.19 and 6.0.)
    flags.setup_coop_taskrun().setup_single_issuer();
    RuntimeBuilder::<IoUringDriver>::new()
        .uring_builder(flags)
        .with_entries(ENTRIES)
        .enable_timer()
        .build()
}
