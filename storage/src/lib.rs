//! The log-structured store of entrepot: bodies by digest, tags and links by repository.
//!
//! No sockets, no HTTP, no clock, no randomness of its own: time is a parameter and the world is
//! a [`Disk`]. `storage/README.md` draws the bytes on disk and lists the invariants S1-S8.

mod attest;
mod bring_back;
mod budget;
mod check;
mod checkpoint;
mod clock;
mod codec;
mod commit;
mod compact;
mod digest;
pub mod disk;
mod evict;
mod exchange;
mod fill;
mod footer;
#[doc(hidden)]
pub mod forge;
mod forgets;
mod geometry;
mod histogram;
mod index;
pub mod inspect;
mod key;
mod learn;
mod lease;
mod live;
mod maintain;
mod media;
mod member;
mod mirror;
mod mix;
mod offline;
mod open;
mod page;
mod pick;
mod pins;
mod recency;
mod reclaim;
mod record;
mod recover;
mod relieve;
mod reserve;
mod room;
mod scan;
mod scope;
mod scrub;
mod segment;
mod small;
mod store;
mod sums;
mod superblock;
mod survivor;
mod switch;
mod verify;
mod volume;
mod volumes;
mod wait;
mod watermark;
mod wish;
mod writer;

pub use bring_back::{BringBackError, BroughtBack};
pub use compact::Compactor;
pub use digest::{Algorithm, Digest, DigestError, Hasher, SLICES, owner};
pub use disk::Disk;
pub use evict::{Evicted, IDLE_AFTER_S, PIN_MAX_S, Policy, SMALL_IDLE_AFTER_S, SMALL_RECORDS_MAX};
pub use exchange::{Compaction, Exchange};
pub use fill::{Fill, FillError};
pub use geometry::segments_max;
pub use key::{
    ForgetKey, LinkKey, LinkKeyRef, LinkRecord, Proof, RepositoryKey, RepositoryKeyRef, ScopeKey,
    Statistics, TagKey, TagKeyRef, TagKind, TagRecord, repository_slice,
};
pub use lease::Lease;
#[doc(hidden)]
pub use page::fuzz as fuzz_page;
#[doc(hidden)]
pub use pick::{Candidate, Need, Room, victims};
#[doc(hidden)]
pub use record::fuzz as fuzz_record;
pub use store::{
    Body, OpenError, OpenFailure, Options, Recovered, SCRUB_EVERY, SMALL_BUDGET_BYTES,
    SMALL_MAX_BYTES, Store, Usage, WITHHELD_BYTES,
};
pub use volume::{VOLUMES_MAX, VolumeSpec, VolumeState, VolumeUsage};
pub use watermark::{FillFailure, FillState, Follower, Wait, Watermark};
pub use writer::{FillSpec, Refusal, WriteError, Writer};

/// Unix time in seconds, always given by the caller (S7).
pub type Seconds = u64;
