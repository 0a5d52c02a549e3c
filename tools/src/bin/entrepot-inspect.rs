//! What is in a store; see tools/README.md.

use std::process::ExitCode;

use clap::Parser;
use entrepot_tools::inspect::cli;

fn main() -> ExitCode {
    cli::run(cli::Arguments::parse())
}
