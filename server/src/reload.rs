//! Reading the configuration again while the server runs.
//!
//! Called at SIGHUP and by `control`, on threads that may wait; one at a time. Projects,
//! upstreams, rules, credentials and the log's level change; the rest waits for a restart, and
//! the answer names it. A configuration that is wrong changes nothing. No request under way is
//! disturbed: what it names stays what it was (see `generation`).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::{self, Config, Loaded, Problems};
use crate::control::Reloaded;
use crate::generation::{Adoption, Current, GenerationError};
use crate::logging::Filter;
use crate::mailbox::{Mailboxes, Message};
use crate::metrics::{Operations, ReloadResult};
use crate::notify;
use crate::upstream::TrustRoots;

/// How long the shards may take for one step: each only swaps what it looks at.
const STEP_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error("{0}")]
    Config(Problems),
    #[error("{0}")]
    Generation(#[from] GenerationError),
    #[error("the server is stopping or does not get on: reload again")]
    Stuck,
}

/// Reads the sources that the server was started with, for one that listens there already.
pub type Load = Box<dyn Fn(&[SocketAddr]) -> Result<Loaded, Problems> + Send + Sync>;

pub struct Reloader {
    pub load: Load,
    pub current: Arc<Current>,
    pub mailboxes: Arc<Mailboxes>,
    pub filter: Filter,
    pub operations: Arc<Operations>,
    /// Held while a reload runs.
    pub turn: Mutex<()>,
}

impl Reloader {
    /// Returns when every shard goes by the new configuration; logs what came of it.
    pub fn reload(&self) -> Result<Reloaded, ReloadError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        told(notify::reloading());
        let outcome = self.read_and_adopt();
        self.operations.reload(match &outcome {
            Ok(_) => ReloadResult::Reloaded,
            Err(ReloadError::Config(_) | ReloadError::Generation(_)) => ReloadResult::Refused,
            Err(ReloadError::Stuck) => ReloadResult::Stuck,
        });
        match &outcome {
            Ok(reloaded) => {
                for warning in &reloaded.warnings {
                    tracing::warn!("{warning}");
                }
                if !reloaded.restart.is_empty() {
                    let keys = reloaded.restart.join(", ");
                    tracing::warn!(keys, "these keys take effect with a restart");
                }
                tracing::info!(projects = reloaded.projects, "reloaded");
            }
            Err(ReloadError::Config(Problems(problems))) => {
                for problem in problems {
                    tracing::error!(%problem, "not reloaded: the configuration is wrong");
                }
            }
            Err(error) => tracing::error!(%error, "not reloaded"),
        }
        told(notify::ready());
        outcome
    }

    fn read_and_adopt(&self) -> Result<Reloaded, ReloadError> {
        let before = self.current.numbered();
        let loaded = (self.load)(&before.config.listen).map_err(ReloadError::Config)?;
        let restart = config::needing_restart(&before.config, &loaded.config);
        let config = Config {
            projects: loaded.config.projects,
            log: config::Log {
                level: loaded.config.log.level,
                ..before.config.log.clone()
            },
            ..Config::clone(&before.config)
        };
        let level = config.log.level.clone();
        let next = before.next(Arc::new(config), &TrustRoots::native())?;
        let next = Arc::new(next);
        self.current.number(next.clone());
        for step in next.steps_from(&self.current.get()) {
            self.adopt(&step)?;
        }
        self.current.publish(next.clone());
        self.filter.set(&level);
        Ok(Reloaded {
            projects: next.projects.count(),
            warnings: loaded.warnings.iter().map(ToString::to_string).collect(),
            restart,
        })
    }

    fn adopt(&self, step: &Adoption) -> Result<(), ReloadError> {
        let deadline = Instant::now() + STEP_PATIENCE;
        let shards = self.mailboxes.shards();
        let (reply, answers) = flume::bounded(shards);
        for shard in 0..shards {
            let message = Message::Adopt {
                adoption: step.clone(),
                reply: reply.clone(),
            };
            let sent = self.mailboxes.send_by(shard, message, deadline);
            sent.then_some(()).ok_or(ReloadError::Stuck)?;
        }
        // What is left are the shards' ends: without them nobody answers any more.
        drop(reply);
        for _ in 0..shards {
            let adopted = answers.recv_deadline(deadline);
            adopted.map_err(|_| ReloadError::Stuck)?;
        }
        Ok(())
    }
}

/// A service manager that can't be told is a nuisance and no reason not to reload.
fn told(outcome: std::io::Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!(%error, "the service manager was not told");
    }
}
