//! A load generator that costs little beside the server it measures; README.md is its manual.
//!
//! One thread and epoll. By default bodies are discarded inside the kernel.

pub mod cli;
mod fetch;
mod reply;
mod report;
mod run;
mod socket;
mod target;
#[cfg(test)]
mod tests;
