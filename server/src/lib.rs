//! entrepot: a pull-through cache for OCI registries.
//!
//! `main` wires `shard`s, one per core; `README.md` beside this crate has the map of the layers
//! and who may import whom. The modules are public for the binary, the benchmarks and the fuzz
//! targets; this is not a library for others.

pub mod access;
pub mod admin;
pub mod allowance;
pub mod cli;
pub mod clock;
pub mod cold;
pub mod compactor;
pub mod config;
pub mod connection;
pub mod control;
pub mod due;
pub mod failure;
pub mod fetch;
pub mod foreign;
pub mod freshness;
pub mod gate;
pub mod generation;
pub mod http;
pub mod jitter;
pub mod listing;
pub mod logging;
pub mod lookup;
pub mod mailbox;
pub mod manifests;
pub mod metrics;
pub mod net;
pub mod notify;
pub mod oci;
pub mod parts;
pub mod pinning;
pub mod preflight;
pub mod priority;
pub mod project;
pub mod purge;
pub mod reading;
pub mod refresh;
pub mod registry;
pub mod relay;
pub mod reload;
pub mod respond;
pub mod resume;
pub mod ring;
pub mod service;
pub mod shard;
pub mod source;
pub mod start;
pub mod upkeep;
pub mod upstream;
pub mod verify;
pub mod whole;
