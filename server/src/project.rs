//! Projects as the serving path sees them: who serves a name, and by which rules.
//!
//! Built from the configuration at the start and at each reload. `resolve` turns the three URL
//! shapes into a project and the upstream's repository name; `ns` is a key into this table and
//! never an address to dial. An index is never given to another name, so requests under way stay
//! right across a reload.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use entrepot_storage::{Digest, SLICES, repository_slice};

use crate::config::{self, ColdRanges, Url};
use crate::failure::{Failure, FailureKind};
use crate::oci::name::normalise_docker_hub;
use crate::upstream::{self, UpstreamId};

/// The registry whose single-component names get `library/`.
const DOCKER_HUB: &str = "docker.io";

pub struct Project {
    pub name: Arc<str>,
    /// Active upstreams in priority order, with their origins.
    pub upstreams: Vec<(UpstreamId, Arc<str>)>,
    /// Origins that its manifests' layers may be fetched from when no upstream has them.
    foreign: Vec<String>,
    rules: config::Project,
    docker_hub: bool,
}

impl Project {
    fn new(rules: &config::Project, upstreams: Vec<(UpstreamId, Arc<str>)>) -> Project {
        Project {
            name: rules.name.as_str().into(),
            upstreams,
            foreign: rules.foreign_layers.iter().map(Url::to_string).collect(),
            docker_hub: rules.serves.iter().any(|host| host == DOCKER_HUB),
            rules: rules.clone(),
        }
    }

    /// True when records from this origin still count for the project (R10).
    pub fn trusts(&self, origin: &str) -> bool {
        let mut asked = self.upstreams.iter();
        asked.any(|(_, asked)| upstream::counts_for(origin, asked))
            || self.foreign.iter().any(|known| *known == origin)
    }

    /// Whether layers may be elsewhere than at its upstreams.
    pub fn has_foreign_layers(&self) -> bool {
        !self.foreign.is_empty()
    }

    /// Whether a layer may be fetched from this place because a manifest says so.
    pub fn leads_to(&self, place: &Url) -> bool {
        self.rules.foreign_layers.contains(place)
    }

    /// Whether the project's lists let clients pull the repository.
    pub fn permits(&self, repository: &str) -> bool {
        self.rules.permits(repository)
    }

    /// Whether no upstream may be asked.
    pub fn is_offline(&self) -> bool {
        self.rules.offline
    }

    /// How long an answer for this tag needs no revalidation.
    pub fn fresh_for(&self, tag: &str) -> Duration {
        self.rules.fresh_for(tag)
    }

    /// True when a range of a layer that is not held starts a fill of the whole layer.
    pub fn fills_cold(&self) -> bool {
        self.rules.cold_ranges == ColdRanges::Fill
    }

    /// How long after its last check a cached copy may stand in for this failure.
    pub fn stale_for(&self, failure: &Failure) -> Duration {
        let stale = &self.rules.stale;
        match failure.kind {
            FailureKind::NotFound => stale.not_found,
            FailureKind::Denied => stale.denied,
            FailureKind::RateLimited => stale.rate_limited,
            FailureKind::ServerError | FailureKind::BadBody => stale.server_error,
            FailureKind::Timeout => stale.timeout,
            FailureKind::Unreachable | FailureKind::Busy => stale.unreachable,
            // The operator's own word: what is cached is all there is.
            FailureKind::Offline => Duration::MAX,
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

#[derive(Clone, Default)]
pub struct Projects {
    /// Also those that are no longer configured: requests under way may name them.
    projects: Vec<Arc<Project>>,
    routes: Arc<Routes>,
}

/// Which project serves a name; of configured ones only.
#[derive(Default)]
struct Routes {
    by_name: HashMap<Arc<str>, usize>,
    by_host: HashMap<String, usize>,
    default: Option<usize>,
}

impl Projects {
    /// Those of a configuration, in the places that they have in `before`. `upstreams` are the
    /// active ones of each configured project.
    pub fn new(
        before: &Projects,
        config: &config::Config,
        upstreams: Vec<Vec<(UpstreamId, Arc<str>)>>,
    ) -> Projects {
        let mut projects = before.projects.clone();
        let mut routes = Routes::default();
        for (rules, upstreams) in config.projects.iter().zip(upstreams) {
            let project = Arc::new(Project::new(rules, upstreams));
            let known = projects.iter().position(|known| known.name == project.name);
            let index = known.unwrap_or(projects.len());
            routes.by_name.insert(project.name.clone(), index);
            let hosts = rules.serves.iter().map(|host| (host.clone(), index));
            routes.by_host.extend(hosts);
            if rules.default {
                routes.default = Some(index);
            }
            match known {
                Some(index) => projects[index] = project,
                None => projects.push(project),
            }
        }
        Projects {
            projects,
            routes: Arc::new(routes),
        }
    }

    /// These projects, found by the names and hosts of others: what all shards know before any
    /// of them sends a request there.
    pub fn routed_as(&self, before: &Projects) -> Projects {
        Projects {
            projects: self.projects.clone(),
            routes: before.routes.clone(),
        }
    }

    /// How many are configured.
    pub fn count(&self) -> usize {
        self.routes.by_name.len()
    }

    /// Those that a name leads to.
    pub fn configured(&self) -> impl Iterator<Item = &Project> {
        self.routes.by_name.values().map(|index| self.get(*index))
    }

    /// The upstreams that those ask.
    pub fn upstreams(&self) -> HashSet<UpstreamId> {
        let asked = self.configured().flat_map(|project| &project.upstreams);
        asked.map(|(id, _)| *id).collect()
    }

    /// Whether the index was given to a project by now.
    pub fn knows(&self, index: usize) -> bool {
        index < self.projects.len()
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
            let index = *self.routes.by_name.get(prefix)?;
            return Some((index, self.upstream_name(index, name)));
        }
        let named = name.split_once('/').and_then(|(first, rest)| {
            let index = *self.routes.by_name.get(first)?;
            Some((index, rest))
        });
        let index = match (ns.map(|host| self.routes.by_host.get(host)), named) {
            // `/v2/<project>/<repository>?ns=<host>`, if the host is that project's; another
            // registry may have a namespace of the project's name.
            (Some(Some(&by_host)), Some((index, rest))) if by_host == index => {
                return Some((index, self.upstream_name(index, rest)));
            }
            (Some(Some(&by_host)), _) => by_host,
            (Some(None), _) => return None,
            (None, Some((index, rest))) => return Some((index, self.upstream_name(index, rest))),
            (None, None) => self.routes.default?,
        };
        Some((index, self.upstream_name(index, name)))
    }

    /// The name by which the store knows a repository of a project, also of one that is no longer
    /// configured.
    pub fn upstream_name_in<'a>(&self, project: &str, name: &'a str) -> Cow<'a, str> {
        match self.routes.by_name.get(project) {
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

/// A project as one shard knows it now; later reloads do not change it. Taking one touches no
/// count that other cores write.
pub struct ProjectRef {
    projects: Rc<Projects>,
    index: usize,
}

impl ProjectRef {
    pub fn new(projects: Rc<Projects>, index: usize) -> ProjectRef {
        ProjectRef { projects, index }
    }
}

impl Deref for ProjectRef {
    type Target = Project;

    fn deref(&self) -> &Project {
        self.projects.get(self.index)
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
        let upstreams = config.projects.iter().map(|_| Vec::new()).collect();
        Projects::new(&Projects::default(), &config, upstreams)
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
