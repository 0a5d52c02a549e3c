//! HTTP/1.1 as bytes in, types out: heads, body framing, ranges, dates, entity tags.
//!
//! Called by the connection loop (requests, our responses) and by the upstream client
//! (their responses). Nothing here reads a socket, a clock or a configuration.
//! Ambiguous framing is refused and never repaired (R7): each broken rule is a variant of
//! `HeadError` or `ChunkError`, and every such error ends the connection.
//! Not here: HTTP/2, obsolete date forms, content codings.

pub mod date;
pub mod etag;
pub(crate) mod field;
pub mod framing;
#[cfg(test)]
pub(crate) mod fuzzing;
pub mod head;
pub mod multipart;
pub mod range;
pub mod rate_limit;
pub mod response;
mod scan;
mod target;
pub mod upstream_head;
