//! A synthetic upstream registry; see tools/README.md.

use std::process::ExitCode;

use clap::Parser;
use entrepot_tools::origin::cli;

fn main() -> ExitCode {
    match cli::run(cli::Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("entrepot-origin: {error}");
            ExitCode::FAILURE
        }
    }
}
