//! What one reading of the configuration comes to: its upstreams by id, its projects by index.
//!
//! Made by `start` and, while the server runs, by `reload`. Ids and indices only grow: what a
//! request under way names stays what it was. A changed upstream is a new one, so that no token,
//! connection or verdict of the old settings outlives them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use entrepot_storage::Digest;

use crate::config::{self, Config};
use crate::project::Projects;
use crate::upstream::{SetupError, TrustRoots, Upstream, UpstreamId};

/// Upstreams of all configurations since the start: some kilobytes each. Room for a large
/// configuration whose credentials change every day for years.
const UPSTREAMS_MAX: usize = 65_536;

#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    #[error("{0}")]
    Upstream(#[from] SetupError),
    #[error("cannot read {}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error(
        "{UPSTREAMS_MAX} upstreams were configured since the start, and no more are numbered: \
             restart the server"
    )]
    TooMany,
}

pub struct Generation {
    pub config: Arc<Config>,
    /// By id, those that are no longer configured included.
    pub upstreams: Arc<[Arc<Upstream>]>,
    pub projects: Arc<Projects>,
    /// What each upstream was made of.
    made: Vec<Made>,
}

/// What tells whether a configured upstream is one that there is already.
#[derive(Clone, PartialEq, Eq)]
struct Made {
    project: String,
    upstream: config::Upstream,
    /// Of the certificates, whose files may change under the same names.
    files: Option<Digest>,
}

impl Made {
    fn of(project: &config::Project, upstream: &config::Upstream) -> Result<Made, GenerationError> {
        let files = upstream.ca_file.as_deref().map(digest_of).transpose()?;
        Ok(Made {
            project: project.name.clone(),
            upstream: upstream.clone(),
            files,
        })
    }
}

fn digest_of(path: &Path) -> Result<Digest, GenerationError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Digest::sha256(&bytes)),
        Err(error) => {
            let path = path.to_owned();
            Err(GenerationError::File { path, error })
        }
    }
}

impl Generation {
    /// That of the start. Reads certificates, so it blocks, as does `next`.
    pub fn first(config: Arc<Config>, roots: &TrustRoots) -> Result<Generation, GenerationError> {
        let nothing = Generation {
            config: config.clone(),
            upstreams: Arc::default(),
            projects: Arc::default(),
            made: Vec::new(),
        };
        nothing.next(config, roots)
    }

    /// That of a configuration read later. An error changes nothing.
    pub fn next(
        &self,
        config: Arc<Config>,
        roots: &TrustRoots,
    ) -> Result<Generation, GenerationError> {
        let mut upstreams = self.upstreams.to_vec();
        let mut all_made = self.made.clone();
        let mut active = Vec::new();
        for project in &config.projects {
            let mut ids = Vec::new();
            for upstream in &project.upstreams {
                let made = Made::of(project, upstream)?;
                let known = all_made.iter().position(|known| *known == made);
                let id = match known {
                    Some(id) => id,
                    None if all_made.len() >= UPSTREAMS_MAX => {
                        return Err(GenerationError::TooMany);
                    }
                    None => {
                        upstreams.push(Arc::new(Upstream::new(upstream, roots)?));
                        all_made.push(made);
                        all_made.len() - 1
                    }
                };
                if upstream.active {
                    ids.push((UpstreamId(id), Arc::from(upstreams[id].origin())));
                }
            }
            active.push(ids);
        }
        Ok(Generation {
            projects: Arc::new(Projects::new(&self.projects, &config, active)),
            upstreams: upstreams.into(),
            made: all_made,
            config,
        })
    }

    /// The steps by which all shards get from one generation to this one, each on every shard
    /// before the next on any: a shard is asked about nothing that it has not heard of.
    pub fn steps_from(self: &Arc<Self>, before: &Generation) -> [Adoption; 3] {
        let step = |projects| Adoption {
            upstreams: self.upstreams.clone(),
            projects,
        };
        [
            step(before.projects.clone()),
            step(Arc::new(self.projects.routed_as(&before.projects))),
            step(self.projects.clone()),
        ]
    }
}

/// What a shard takes over in one step.
#[derive(Clone)]
pub struct Adoption {
    pub upstreams: Arc<[Arc<Upstream>]>,
    pub projects: Arc<Projects>,
}

/// The generation in effect, for threads that are no shards.
pub struct Current(Mutex<Arc<Generation>>);

impl Current {
    pub fn new(first: Generation) -> Current {
        Current(Mutex::new(Arc::new(first)))
    }

    pub fn get(&self) -> Arc<Generation> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn set(&self, generation: Arc<Generation>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = generation;
    }
}
