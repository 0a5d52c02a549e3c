//! The OCI distribution protocol as types: endpoints, names, errors, challenges, manifests.
//!
//! Called by the connection loop and the upstream client. Pure like `http`: bytes in, types out.
//! A digest is parsed here once and is a `Digest` from then on; no text of a request ever
//! becomes a path. Sections cited as "OCI" are those of the distribution specification 1.1.

pub mod challenge;
pub mod endpoint;
pub mod error;
pub mod manifest;
pub mod name;
