//! The one gate through which requests to an upstream go, whichever core they come from.
//!
//! Every upstream has a gate on one shard, its owner (as its tokens have). `source` enters it by
//! mailbox before it sends, and tells it what it heard. The gate counts connections (`permits`),
//! gives up an upstream that fails for a while (`breaker`), obeys its rate limit (`governor`) and
//! remembers what it does not have (`negative`). What it decides about one upstream is pure and
//! stands in `one`; `owner` is the shard's part, `pass` the asker's, `board` what all may read.

mod board;
mod breaker;
mod governor;
mod negative;
mod one;
mod owner;
mod pass;
mod permits;
#[cfg(test)]
mod tests;

pub use board::{Board, FIGURES, Shown};
pub use breaker::Rules as BreakerRules;
pub use governor::Lane;
pub use owner::Gates;
pub use pass::{
    Enter, Heard, Leave, Name, Pass, Refusal, Rules, SPARE_WAIT_MAX, Standing, Urgency, WAIT_MAX,
};
