//! What is in a store, without the server and beside it; tools/README.md is its manual.
//!
//! Nothing is written and no lock is taken. Unlike the other programs of this crate it decodes
//! with the store's own functions (`entrepot_storage::inspect`): it must not differ from them.

pub mod cli;
mod explain;
mod file;
mod list;
mod load;
mod map;
mod show;
mod text;
mod verdict;
mod verify;
