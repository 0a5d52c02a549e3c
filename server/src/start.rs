//! The steps of a start, in the order in which `main` takes them.
//!
//! Each ends in a `Fatal` that says what to do. Nothing here outlives the start.

mod store;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use entrepot_storage::{OpenError, VolumeState};
use flume::RecvTimeoutError;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::admin::Admin;
use crate::allowance::Allowance;
use crate::compactor::{self, Running};
use crate::config::{Config, CongestionControl};
use crate::control::BindError;
use crate::control::server::{self, Control, SocketFile};
use crate::gate::Board;
use crate::generation::{Current, Generation, GenerationError};
use crate::logging::{DroppedLines, Filter};
use crate::mailbox::{Mailboxes, Message};
use crate::metrics::Metrics;
use crate::net::socket::{listen, may_control_by};
use crate::net::warm::Warmer;
use crate::preflight::{Fatal, Passed};
use crate::purge::Purger;
use crate::refresh::Refresher;
use crate::reload::{Load, Reloader};
use crate::shard::{self, Drained, Parts, Seat};
use crate::upstream::{self, Resolver, TrustRoots};

/// Linux' own default, without a timer for each connection. Where the machine has bbr instead,
/// 1 MiB bodies got half as much, one at a time.
const PREFERRED: &str = "cubic";

/// Why a start ended.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Machine(#[from] Fatal),
    #[error("{0}")]
    Upstream(#[from] GenerationError),
    #[error("{0}")]
    Control(#[from] BindError),
    #[error("the store {} cannot be opened: {error}", path.display())]
    Store { path: PathBuf, error: OpenError },
    #[error("{doing}: {error}")]
    System {
        doing: &'static str,
        error: std::io::Error,
    },
}

fn system(doing: &'static str) -> impl Fn(std::io::Error) -> StartError {
    move |error| StartError::System { doing, error }
}

/// One shard per core unless the configuration says otherwise.
pub fn shard_count(config: &Config) -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    config.shards.unwrap_or(cores).max(1)
}

/// SIGTERM, SIGINT and SIGHUP, caught before any thread starts.
pub struct Signals(signal_hook::iterator::Signals);

pub fn signals() -> Result<Signals, StartError> {
    let signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]);
    signals.map(Signals).map_err(system("catching SIGTERM"))
}

impl Signals {
    /// Returns at the first SIGTERM or SIGINT; the next one then ends the process at once.
    /// SIGHUP has the configuration read again.
    pub fn wait(mut self, reloader: &Reloader) {
        let mut ends = self.0.forever().filter(|signal| {
            *signal != SIGHUP || {
                // Its outcome is logged; nobody else waits for it.
                let _ = reloader.reload();
                false
            }
        });
        let _ = ends.next();
        for signal in [SIGTERM, SIGINT] {
            // Without it a second signal is ignored, which is no worse than before.
            let _ = signal_hook::flag::register_conditional_shutdown(
                signal,
                1,
                Arc::new(AtomicBool::new(true)),
            );
        }
    }
}

/// For each shard one listener of each address's `SO_REUSEPORT` group.
pub fn listeners(config: &Config, shards: usize) -> Result<Vec<Vec<TcpListener>>, StartError> {
    let congestion_control = congestion_control(config)?;
    let mut by_shard: Vec<Vec<TcpListener>> = (0..shards).map(|_| Vec::new()).collect();
    for &address in &config.listen {
        let mut bound = address;
        for listeners in &mut by_shard {
            let listener = listen(bound, congestion_control)
                .map_err(|error| Fatal::Listen { address, error })?;
            // With port 0 the first one chose.
            bound = listener
                .local_addr()
                .map_err(|error| Fatal::Listen { address, error })?;
            listeners.push(listener);
        }
        tracing::info!(addr = %bound, "listening");
    }
    Ok(by_shard)
}

/// The congestion control of clients' connections; `None` is what the machine has for all.
fn congestion_control(config: &Config) -> Result<Option<&str>, Fatal> {
    let may = |name| may_control_by(name, config.listen[0]);
    let chosen = match &config.congestion_control {
        CongestionControl::System => None,
        CongestionControl::Named(name) => {
            may(name).map_err(|error| Fatal::CongestionControl {
                name: name.clone(),
                why: match error.raw_os_error() {
                    Some(libc::ENOENT) => "this kernel has no such algorithm".to_owned(),
                    Some(libc::EPERM) => "this user may not choose it".to_owned(),
                    _ => error.to_string(),
                },
            })?;
            Some(&**name)
        }
        CongestionControl::Preferred => may(PREFERRED).is_ok().then_some(PREFERRED),
    };
    let shown = chosen.unwrap_or("the machine's");
    tracing::info!(congestion_control = shown, "clients' connections");
    Ok(chosen)
}

/// Opens and recovers the store, loads certificates, starts the helper threads.
pub fn parts(
    config: Arc<Config>,
    passed: &Passed,
    mailboxes: Arc<Mailboxes>,
) -> Result<Parts, StartError> {
    let roots = TrustRoots::native();
    let generation = Generation::first(config.clone(), &roots)?;
    let current = Arc::new(Current::new(generation));
    follow_files(current.clone())?;
    let (disks, store) = store::open(&config, passed, mailboxes.shards())?;
    Ok(Parts {
        current,
        resolver: Resolver::start().map_err(system("starting the name threads"))?,
        warmer: Warmer::start(disks.len()).map_err(system("starting the warming threads"))?,
        connections: Allowance::new(passed.connections_max),
        fills: Allowance::new(config.limits.fills_max),
        drained: Drained::new(mailboxes.shards()),
        board: Arc::new(Board::default()),
        operations: Arc::default(),
        store,
        disks,
        mailboxes,
        config,
    })
}

/// Passwords and certificates in files are followed, those of later configurations too.
fn follow_files(current: Arc<Current>) -> Result<(), StartError> {
    upstream::follow_files(move || current.get().asked())
        .map_err(system("starting the credentials thread"))
}

/// Binds the admin listener; it answers at once and is ready when `ready` is.
pub fn admin(
    parts: &Parts,
    metrics: &[Arc<Metrics>],
    ready: &Arc<AtomicBool>,
    log: DroppedLines,
) -> Result<SocketAddr, StartError> {
    let address = parts.config.admin;
    let admin = Admin {
        current: parts.current.clone(),
        store: parts.store.clone(),
        metrics: metrics.to_vec(),
        board: parts.board.clone(),
        operations: parts.operations.clone(),
        ready: ready.clone(),
        log,
    };
    crate::admin::start(address, admin)
        .map_err(|error| StartError::Machine(Fatal::Listen { address, error }))
}

/// What reads the configuration again, from where it was read first.
pub fn reloader(parts: &Parts, load: Load, filter: Filter) -> Arc<Reloader> {
    Arc::new(Reloader {
        load,
        current: parts.current.clone(),
        mailboxes: parts.mailboxes.clone(),
        filter,
        operations: parts.operations.clone(),
        turn: Mutex::default(),
    })
}

/// Binds the control socket; what it is asked waits for the shards. `None` when it would be on a
/// disk that is away, which is no reason not to serve what is on the others.
pub fn control(parts: &Parts, reloader: &Arc<Reloader>) -> Result<Option<SocketFile>, StartError> {
    let path = &parts.config.control;
    let on_first = path.starts_with(&parts.config.store.paths[0]);
    let away = on_first && parts.store.volumes()[0].state == VolumeState::Offline;
    let control = Control {
        purger: Purger::new(parts.mailboxes.clone(), parts.current.clone()),
        store: parts.store.clone(),
        paths: parts.config.store.paths.clone(),
        mailboxes: parts.mailboxes.clone(),
        reloader: reloader.clone(),
        refresher: Refresher {
            store: parts.store.clone(),
            mailboxes: parts.mailboxes.clone(),
            current: parts.current.clone(),
            operations: parts.operations.clone(),
        },
    };
    match server::start(path, control) {
        Err(error @ BindError::Failed { .. }) if away => {
            tracing::error!(%error, "no purges: name another path with control");
            Ok(None)
        }
        started => Ok(Some(started?)),
    }
}

/// Starts the compactor's thread.
pub fn compactor(parts: &Parts) -> Result<Running, StartError> {
    let store = &parts.config.store;
    let paths = store.paths.clone();
    compactor::start(parts.store.exchange(), paths, store.background_rate)
        .map_err(system("starting the compactor"))
}

/// How long the store may take to end once `limits.drain_timeout` is over: footers and superblocks
/// on disks that work take a second. One that hangs must not keep the process: what it leaves is
/// what a crash leaves.
const STORE_END_WAIT: Duration = Duration::from_secs(20);

/// The running shards.
pub struct Shards {
    /// Hung up by the end of each shard's thread.
    ended: Vec<flume::Receiver<()>>,
    drains: Vec<flume::Sender<()>>,
}

/// Starts a thread for each shard; returns when all have their rings.
pub fn shards(
    parts: &Arc<Parts>,
    listeners: Vec<Vec<TcpListener>>,
    mailboxes: Vec<flume::Receiver<Message>>,
    metrics: &[Arc<Metrics>],
) -> Result<Shards, StartError> {
    let (started, on_started) = flume::unbounded();
    let (mut ended, mut drains) = (Vec::new(), Vec::new());
    for (index, (mailbox, listeners)) in mailboxes.into_iter().zip(listeners).enumerate() {
        let (drain, on_drain) = flume::bounded(1);
        let seat = Seat {
            index,
            listeners,
            mailbox,
            metrics: metrics[index].clone(),
            started: started.clone(),
            drain: on_drain,
        };
        let parts = parts.clone();
        let (ending, on_end) = flume::bounded(0);
        let thread = thread::Builder::new().name(format!("shard-{index}"));
        let run = move || {
            let _ending: flume::Sender<()> = ending;
            shard::run(parts, seat);
        };
        thread.spawn(run).map_err(system("starting a shard"))?;
        ended.push(on_end);
        drains.push(drain);
    }
    for ring in on_started.iter().take(ended.len()) {
        ring.map_err(crate::preflight::ring_error)?;
    }
    Ok(Shards { ended, drains })
}

impl Shards {
    /// Has all drain, which takes `patience` at most, and waits until their part of the store has
    /// ended, too. False: it has not in time.
    pub fn drain(self, patience: Duration) -> bool {
        for drain in &self.drains {
            let _ = drain.send(());
        }
        let deadline = Instant::now() + patience + STORE_END_WAIT;
        // A panic aborts the process, so a thread that hung up has returned.
        self.ended
            .iter()
            .all(|ended| ended.recv_deadline(deadline) == Err(RecvTimeoutError::Disconnected))
    }
}

/// A service manager that can't be told is a nuisance and no reason to stop.
pub fn told(outcome: std::io::Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!(%error, "the service manager was not told");
    }
}

/// The line that says the server is up, and as what.
pub fn announce(config: &Config, admin: SocketAddr) {
    tracing::info!(addr = %admin, "admin");
    for project in &config.projects {
        let upstreams: Vec<String> = project
            .upstreams
            .iter()
            .map(|upstream| upstream.url.to_string())
            .collect();
        tracing::info!(project = %project.name, upstreams = %upstreams.join(" "), "serving");
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
}
