//! A load generator that costs little beside the server it measures; README.md is its manual.
//!
//! `run` starts threads, each with an `executor` over a `ring` (io_uring). A workload (`single`, `pull`, `herd`, `mix`, `replay`)
//! says what each client does on its turns (`schedule`); a `client` keeps connections and
//! tokens and follows redirects, a `connection` sends requests over a `stream` and reads answers.
//! What came is counted by a `meter` for each thread and told by `report`, `html` and `histogram`.

mod auth;
mod catalog;
pub mod cli;
mod client;
pub mod commands;
mod connection;
mod control;
mod digest;
mod executor;
mod help;
mod herd;
mod histogram;
mod html;
mod image;
mod log;
mod meter;
mod mix;
mod options;
mod plot;
mod progress;
mod pull;
mod random;
mod replay;
mod reply;
mod report;
mod ring;
mod run;
mod schedule;
mod series;
mod single;
mod stream;
mod target;
#[cfg(test)]
mod tests;
mod tls;
mod url;
