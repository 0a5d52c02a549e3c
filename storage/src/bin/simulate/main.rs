//! Runs the real store on the simulated disk against an independent model.
//!
//! `simulate --seed N` is one run, `simulate --runs N` that many from seed 0. A run makes at least
//! 500 operations and 3 crashes and ends with everything verified. The same seed is the same run;
//! a failing one is named with the command that repeats it. Of many runs the summary counts what
//! the crashes hit and what was injected, and a step or fault that never was is a failure too.

mod client;
mod drives;
mod fills;
mod model;
mod named;
mod plan;
mod recovered;
mod run;
mod steps;
mod superblock;
mod turns;
mod upkeep;
mod values;

use std::cell::Cell;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use steps::Counts;

/// From this many runs on every step must have been hit.
const RUNS_FOR_ALL_STEPS: u64 = 200;

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().flat_map(|word| word.split('=')).collect();
    let range = match words.as_slice() {
        ["--seed", seed] => seed
            .parse()
            .ok()
            .map(|seed: u64| seed..seed.saturating_add(1)),
        ["--runs", runs] => runs.parse().ok().map(|runs: u64| 0..runs),
        ["--runs", runs, "--from", from] => match (runs.parse::<u64>(), from.parse::<u64>()) {
            (Ok(runs), Ok(from)) => Some(from..from.saturating_add(runs)),
            _ => None,
        },
        _ => None,
    };
    let Some(seeds) = range else {
        eprintln!("usage: simulate --seed N | --runs N [--from SEED]");
        return ExitCode::from(2);
    };
    name_failing_seeds();
    let runs = seeds.end - seeds.start;
    let counts = run_all(seeds.start, seeds.end);
    print!("{}", counts.report(runs));
    match counts.never_hit() {
        missing if missing.is_empty() || runs < RUNS_FOR_ALL_STEPS => ExitCode::SUCCESS,
        missing => {
            eprintln!("never: {}", missing.join(", "));
            ExitCode::FAILURE
        }
    }
}

/// A failed check panics; the hook adds how to repeat it and ends the process.
fn name_failing_seeds() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        default(panic);
        if let Some(seed) = SEED.get() {
            eprintln!("FAILED with seed {seed}; the same run again:");
            eprintln!("cargo run --release -p entrepot-storage --bin simulate -- --seed {seed}");
        }
        std::process::exit(1);
    }));
}

fn run_all(first: u64, end: u64) -> Counts {
    let next = Arc::new(AtomicU64::new(first));
    let total = Arc::new(Mutex::new(Counts::default()));
    let count = thread::available_parallelism().map_or(1, usize::from);
    let threads: Vec<_> = (0..count)
        .map(|_| {
            let (next, total) = (Arc::clone(&next), Arc::clone(&total));
            thread::spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    SEED.set(Some(seed));
                    let counts = run::run(seed);
                    total.lock().expect("a panic ends the process").add(&counts);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("a panic ends the process");
    }
    Arc::into_inner(total)
        .expect("threads ended")
        .into_inner()
        .expect("not poisoned")
}
