//! What one reading of the configuration comes to: its upstreams by id, its projects by index.
//!
//! Made by `start` and, while the server runs, by `reload`. Ids and indices only grow: what a
//! request under way names stays what it was. A changed upstream is a new one, so that no token,
//! connection or verdict of the old settings outlives them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use entrepot_storage::Digest;

use crate::config::{self, Config};
use crate::project::Projects;
use crate::upstream::{SetupError, TrustRoots, Upstream, UpstreamId};

/// Upstreams of all configurations since the start: some kilobytes each, once what they were asked
/// with is forgotten. Room for a large
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
    /// Of the files of certificates, which may change under the same names.
    files: Vec<Digest>,
}

impl Made {
    fn of(project: &config::Project, upstream: &config::Upstream) -> Result<Made, GenerationError> {
        let certificate = upstream.identity.as_ref().map(|identity| &identity.cert);
        let files = upstream.ca_file.iter().chain(certificate);
        let files: Result<_, _> = files.map(|path| digest_of(path)).collect();
        Ok(Made {
            project: project.name.clone(),
            upstream: upstream.clone(),
            files: files?,
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
                    ids.push((UpstreamId(id), Arc::from(upstreams[id].record_origin())));
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

    /// The upstreams that are asked now.
    pub fn asked(&self) -> Vec<Arc<Upstream>> {
        let ids = self.projects.upstreams();
        ids.iter().map(|id| self.upstreams[id.0].clone()).collect()
    }

    /// The steps by which all shards get to this one from `published`, each on every shard before
    /// the next on any: a shard is asked about nothing that it has not heard of. The first leaves
    /// a shard the projects that it has: after steps that were not finished those differ, and none
    /// may lose an index that it was told of.
    pub fn steps_from(self: &Arc<Self>, published: &Generation) -> [Adoption; 3] {
        let step = |projects| Adoption {
            upstreams: self.upstreams.clone(),
            projects,
        };
        let routed = Arc::new(self.projects.routed_as(&published.projects));
        [
            step(None),
            step(Some(routed)),
            step(Some(self.projects.clone())),
        ]
    }
}

/// What a shard takes over in one step.
#[derive(Clone)]
pub struct Adoption {
    pub upstreams: Arc<[Arc<Upstream>]>,
    /// `None`: those it has.
    pub projects: Option<Arc<Projects>>,
}

/// The generations that matter, for threads that are no shards.
pub struct Current(Mutex<Generations>);

struct Generations {
    published: Arc<Generation>,
    numbered: Arc<Generation>,
}

impl Current {
    pub fn new(first: Generation) -> Current {
        let first = Arc::new(first);
        Current(Mutex::new(Generations {
            published: first.clone(),
            numbered: first,
        }))
    }

    /// The one in effect: every shard knows its projects and upstreams.
    pub fn get(&self) -> Arc<Generation> {
        self.generations().published.clone()
    }

    /// The one whose ids and indices were given last; a reload that got stuck has left it ahead.
    pub fn numbered(&self) -> Arc<Generation> {
        self.generations().numbered.clone()
    }

    /// Before any shard hears of it: its numbers are taken from now on, whatever happens.
    pub fn number(&self, generation: Arc<Generation>) {
        self.generations().numbered = generation;
    }

    /// After every shard adopted it.
    pub fn publish(&self, generation: Arc<Generation>) {
        self.generations().published = generation;
    }

    fn generations(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn configured(projects: &[&str]) -> Arc<Config> {
        let mut sources = Sources::default();
        for name in projects {
            sources.flags.push(config::Flag {
                name: "--set".to_owned(),
                key: format!("project.{name}.upstream"),
                value: config::FlagValue::Typed(format!("[{{url=\"https://{name}.example\"}}]")),
            });
        }
        let home = |name: &str| (name == "HOME").then(|| "/nonexistent".to_owned());
        let loaded = config::load(&sources, &home);
        Arc::new(loaded.expect("a valid configuration").config)
    }

    /// What a shard knows, as `Sources::adopt` takes it over.
    fn adopt(known: &mut Projects, step: &Adoption) {
        if let Some(projects) = &step.projects {
            *known = Projects::clone(projects);
        }
    }

    #[test]
    fn a_stuck_reload_takes_no_index_from_a_shard_and_shows_nobody_a_new_one() {
        let roots = TrustRoots::native();
        let first = Generation::first(configured(&["one"]), &roots).expect("the first");
        let mut ahead = Projects::clone(&first.projects);
        let mut behind = ahead.clone();
        let current = Current::new(first);
        let stuck = current.get().next(configured(&["one", "two"]), &roots);
        let stuck = Arc::new(stuck.expect("the second"));
        current.number(stuck.clone());
        // It got through on one shard and no further than the first step on the other.
        let steps = stuck.steps_from(&current.get());
        steps.iter().for_each(|step| adopt(&mut ahead, step));
        adopt(&mut behind, &steps[0]);
        let named = |projects: &Projects, name: &str| {
            let found = projects.resolve(Some(name), None, "app");
            found.map(|(index, _)| index)
        };
        assert_eq!(named(&current.get().projects, "two"), None, "not in effect");

        let next = current
            .numbered()
            .next(configured(&["one", "three"]), &roots);
        let next = Arc::new(next.expect("the third"));
        current.number(next.clone());
        let [first, second, third] = next.steps_from(&current.get());
        adopt(&mut behind, &first);
        adopt(&mut ahead, &first);
        assert_eq!(named(&behind, "two"), None, "step one routes nobody anew");
        let index = named(&ahead, "two").expect("it was told");
        assert_eq!(&*ahead.get(index).name, "two");
        for known in [&mut behind, &mut ahead] {
            adopt(known, &second);
            assert_eq!(&*known.get(index).name, "two", "for requests under way");
            assert_eq!(named(known, "three"), None, "not before all know it");
            adopt(known, &third);
            assert!(named(known, "three").is_some_and(|three| three > index));
        }
        let asked = |generation: &Generation| {
            let origins = generation.asked().into_iter().map(|upstream| {
                let origin = upstream.record_origin().to_owned();
                origin.contains("two") || origin.contains("three")
            });
            origins.filter(|named| *named).count()
        };
        assert_eq!(asked(&next), 1, "of two only the number is kept");
        current.publish(next);
        assert!(named(&current.get().projects, "three").is_some());
    }
}
