//! The `entrepot` binary: configuration, then shards, then wait, then drain.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use entrepot::cli::{self, Cli, Command, Given};
use entrepot::config::Config;
use entrepot::logging::Guard;
use entrepot::mailbox::Mailboxes;
use entrepot::metrics::Metrics;
use entrepot::start::{self, StartError};
use entrepot::{logging, notify, preflight};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(given) => serve(&given),
        Command::CheckConfig(given) => cli::check_config(&given),
        Command::PrintConfig(given) => cli::print_config(&given),
        Command::Purge(purge) => cli::purge(&purge),
        Command::Volumes(reach) => cli::volumes(&reach),
        Command::BringBack(asked) => cli::bring_back(&asked),
        Command::Refresh(asked) => cli::refresh(&asked),
        Command::Reload(reach) => cli::reload(&reach),
    }
}

/// Runs until SIGTERM or SIGINT; the exit code says whether it ended as asked.
fn serve(given: &Given) -> ExitCode {
    let loaded = match given.load() {
        Ok(loaded) => loaded,
        Err(problems) => return cli::refused(&problems),
    };
    let log = logging::start(&loaded.config.log);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    match run(Arc::new(loaded.config), given, &log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("entrepot: {error}");
            ExitCode::from(preflight::EXIT_CODE)
        }
    }
}

fn run(config: Arc<Config>, given: &Given, log: &Guard) -> Result<(), StartError> {
    let shards = start::shard_count(&config);
    // The store is opened through a ring of its own.
    let passed = preflight::run(&config, shards + 1)?;
    let signals = start::signals()?;
    let listeners = start::listeners(&config, shards)?;
    let (mailboxes, receivers) = Mailboxes::new(shards);
    let parts = Arc::new(start::parts(config.clone(), &passed, mailboxes)?);
    let metrics: Vec<Arc<Metrics>> = (0..shards).map(|_| Arc::default()).collect();
    let ready = Arc::new(AtomicBool::new(false));
    let admin = start::admin(&parts, &metrics, &ready, log.dropped_lines())?;
    let given = given.clone();
    let load = Box::new(move |listening: &[_]| given.load_again(listening));
    let reloader = start::reloader(&parts, load, log.filter());
    let control = start::control(&parts, &reloader)?;
    let compactor = start::compactor(&parts)?;
    let running = start::shards(&parts, listeners, receivers, &metrics)?;
    ready.store(true, Ordering::Release);
    start::announce(&config, admin);
    start::told(notify::ready());
    signals.wait(&reloader);
    tracing::info!("stopping: requests and fills end, then the store");
    ready.store(false, Ordering::Release);
    start::told(notify::stopping());
    drop(control);
    compactor.stop();
    if !running.drain(config.limits.drain_timeout) {
        tracing::warn!("the store did not end in time: the next start recovers as after a crash");
    }
    tracing::info!("stopped");
    Ok(())
}
