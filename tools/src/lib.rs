//! What the programs of this crate are made of; see README.md for their use.
//!
//! `origin` and `load` share no code with the server or the store: tests use them as an
//! independent oracle. `inspect` reads stores, with the store's own decoders.

pub mod inspect;
pub mod load;
pub mod origin;
