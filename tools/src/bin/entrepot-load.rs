//! A load generator for registries; see tools/README.md.

use std::process::ExitCode;

use clap::Parser;
use entrepot_tools::load::{cli, commands};

fn main() -> ExitCode {
    commands::run(cli::Arguments::parse()).unwrap_or_else(|error| {
        eprintln!("entrepot-load: {error}");
        ExitCode::FAILURE
    })
}
