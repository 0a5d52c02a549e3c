//! Projects as the serving path sees them: who serves a name, and by which rules.
//!
//! Built once from the configuration. `resolve` turns the three URL shapes into a project and
//! the upstream's repository name; `ns` is a key into this table and never an address to dial.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use entrepot_storage::{Digest, SLICES, repository_slice};

use crate::config;
use crate::failure::{Failure, FailureKind};
use crate::oci::name::normalise_docker_hub;
use crate::upstream::UpstreamId;

/// The registry whose single-component names get `library/`.
const DOCKER_HUB: &str = "docker.io";

pub struct Project {
    pub name: Arc<str>,
    /// Active upstreams in priority order, with their origins.
    pub upstreams: Vec<(UpstreamId, Arc<str>)>,
    rules: config::Project,
    docker_hub: bool,
}

impl Project {
    /// True when records from this origin still count for the project (R10).
    pub fn trusts(&self, origin: &str) -> bool {
        self.upstreams.iter().any(|(_, known)| **known == *origin)
    }

    /// How long an answer for this tag needs no revalidation.
    pub fn fresh_for(&self, tag: &str) -> Duration {
        self.rules.fresh_for(tag)
    }

    /// How long after its last check a cached copy may stand in for this failure.
    pub fn stale_for(&self, failure: &Failure) -> Duration {
        let stale = &self.rules.stale;
        match failure.kind {
            FailureKind::NotFound => stale.not_found,
            FailureKind::Denied => stale.denied,
            FailureKind::RateLimited => stale.rate_limited,
            FailureKind::ServerError | FailureKind::BadBody => stale.server_error,
            FailureKind::Unreachable | FailureKind::Timeout | FailureKind::Busy => {
                stale.unreachable
            }
        }
    }
}

/// A repository of a project: the unit of ownership, of links and of tags.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Repository {
    pub project: usize,
    /// The name upstream knows it by.
    pub name: Arc<str>,
}

pub struct Projects {
    projects: Vec<Project>,
    by_name: HashMap<Arc<str>, usize>,
    by_host: HashMap<String, usize>,
    default: Option<usize>,
}

impl Projects {
    /// `origins` are all configured upstreams' origins, in the order of their ids.
    pub fn new(config: &config::Config, origins: &[Arc<str>]) -> Projects {
        let mut next = 0;
        let projects: Vec<Project> = config
            .projects
            .iter()
            .map(|project| {
                let mut upstreams = Vec::new();
                for upstream in &project.upstreams {
                    if upstream.active {
                        upstreams.push((UpstreamId(next), origins[next].clone()));
                    }
                    next += 1;
                }
                Project {
                    name: project.name.as_str().into(),
                    upstreams,
                    rules: project.clone(),
                    docker_hub: project.serves.iter().any(|host| host == DOCKER_HUB),
                }
            })
            .collect();
        let by_name = projects
            .iter()
            .enumerate()
            .map(|(i, p)| (p.name.clone(), i))
            .collect();
        let by_host = config
            .projects
            .iter()
            .enumerate()
            .flat_map(|(i, project)| project.serves.iter().map(move |host| (host.clone(), i)))
            .collect();
        let default = config.projects.iter().position(|project| project.default);
        Projects {
            projects,
            by_name,
            by_host,
            default,
        }
    }

    pub fn get(&self, index: usize) -> &Project {
        &self.projects[index]
    }

    /// The project and repository a request means; `None` when nobody serves it.
    ///
    /// A path prefix wins, then `ns`, then a first component that is a project's name, then the
    /// default project.
    pub fn resolve<'a>(
        &self,
        prefix: Option<&str>,
        ns: Option<&str>,
        name: &'a str,
    ) -> Option<(usize, Cow<'a, str>)> {
        if let Some(prefix) = prefix {
            let index = *self.by_name.get(prefix)?;
            return Some((index, self.upstream_name(index, name)));
        }
        let named = name.split_once('/').and_then(|(first, rest)| {
            let index = *self.by_name.get(first)?;
            Some((index, rest))
        });
        let index = match (ns.map(|host| self.by_host.get(host)), named) {
            // `/v2/<project>/<repository>?ns=<host>`, if the host is that project's; another
            // registry may have a namespace of the project's name.
            (Some(Some(&by_host)), Some((index, rest))) if by_host == index => {
                return Some((index, self.upstream_name(index, rest)));
            }
            (Some(Some(&by_host)), _) => by_host,
            (Some(None), _) => return None,
            (None, Some((index, rest))) => return Some((index, self.upstream_name(index, rest))),
            (None, None) => self.default?,
        };
        Some((index, self.upstream_name(index, name)))
    }

    /// The name by which the store knows a repository of a project, also of one that is no longer
    /// configured.
    pub fn upstream_name_in<'a>(&self, project: &str, name: &'a str) -> Cow<'a, str> {
        match self.by_name.get(project) {
            Some(index) => self.upstream_name(*index, name),
            None => Cow::Borrowed(name),
        }
    }

    fn upstream_name<'a>(&self, index: usize, name: &'a str) -> Cow<'a, str> {
        if self.projects[index].docker_hub {
            normalise_docker_hub(name)
        } else {
            Cow::Borrowed(name)
        }
    }
}

/// The shard that owns a digest: its index entry and its fill.
pub fn digest_owner(digest: &Digest, shards: usize) -> usize {
    digest.slice() * shards / SLICES
}

/// The shard that owns a repository: its tags, links and their revalidation.
pub fn repository_owner(project: &str, repository: &str, shards: usize) -> usize {
    repository_slice(project, repository) * shards / SLICES
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of an empty configuration.
    fn builtin() -> Projects {
        let home = |name: &str| (name == "HOME").then(|| "/nonexistent".to_owned());
        let loaded = config::load(&config::Sources::default(), &home);
        let config = loaded.expect("an empty configuration is valid").config;
        let origins: Vec<Arc<str>> = config
            .projects
            .iter()
            .flat_map(|project| &project.upstreams)
            .map(|upstream| upstream.url.to_string().into())
            .collect();
        Projects::new(&config, &origins)
    }

    #[test]
    fn every_shape_of_a_name_finds_its_project() {
        let projects = builtin();
        let cases = [
            (None, None, "dh/nginx", Some(("dh", "library/nginx"))),
            (
                None,
                None,
                "dh/bitnami/redis",
                Some(("dh", "bitnami/redis")),
            ),
            (Some("ghcr"), None, "owner/app", Some(("ghcr", "owner/app"))),
            (
                Some("ghcr"),
                Some("docker.io"),
                "owner/app",
                Some(("ghcr", "owner/app")),
            ),
            (Some("nope"), None, "owner/app", None),
            (
                None,
                Some("ghcr.io"),
                "owner/app",
                Some(("ghcr", "owner/app")),
            ),
            (
                None,
                Some("ghcr.io"),
                "ghcr/owner/app",
                Some(("ghcr", "owner/app")),
            ),
            (
                None,
                Some("docker.io"),
                "alpine",
                Some(("dh", "library/alpine")),
            ),
            (
                None,
                Some("docker.io"),
                "ghcr/app",
                Some(("dh", "ghcr/app")),
            ),
            (None, Some("evil.example"), "alpine", None),
            (None, Some("evil.example"), "ghcr/owner/app", None),
            (None, None, "alpine", Some(("dh", "library/alpine"))),
            (None, None, "team/app", Some(("dh", "team/app"))),
        ];
        for (prefix, ns, name, expected) in cases {
            let found = projects.resolve(prefix, ns, name);
            let found = found
                .as_ref()
                .map(|(index, name)| (&*projects.get(*index).name, &**name));
            assert_eq!(found, expected, "{prefix:?} {ns:?} {name}");
        }
    }
}
