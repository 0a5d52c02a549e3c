//! What the two programs of this crate are made of; see README.md for their use.
//!
//! Neither shares code with the server or the store: tests use them as an independent oracle.

pub mod load;
pub mod origin;
