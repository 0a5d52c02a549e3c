//! The only place of the server that touches file descriptors.
//!
//! `socket` wraps an accepted connection, `sendfile` moves extents of the store to it,
//! `warm` reads cold pages off the shard, `watchdog` cuts connections that make no progress,
//! `buffers` lends memory to those that have a request, `turns` orders large bodies.
//! Nothing here knows HTTP.

pub mod buffers;
pub mod limits;
pub mod sendfile;
pub mod socket;
pub mod turns;
pub mod warm;
pub mod watchdog;
