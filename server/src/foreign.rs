//! Layers that a manifest says are elsewhere: which manifests named which places for them.
//!
//! For projects with `foreign_layers` only. `registry` notes what is in a manifest before a client
//! has it; the owner of the repository remembers it, and `source` asks for it when every upstream
//! says that it does not have such a layer. A restart forgets: the next pull of the manifest tells
//! it again.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use entrepot_storage::{Digest, FillState};

use crate::lookup::Found;
use crate::mailbox::{Message, Reply};
use crate::oci::manifest;
use crate::project::{Project, Repository};
use crate::service::Service;
use crate::upstream::Place;

/// Layers whose places a shard remembers; beyond it the oldest are forgotten. An image has one to
/// three of them. With places of 8 KiB, the longest, 32 MiB.
const LAYERS_MAX: usize = 1024;
/// Places of one layer. Windows images name one or two.
const PLACES_MAX: usize = 4;

pub enum ForeignAsk {
    /// A manifest of the repository names these layers and their places.
    Note {
        source: Repository,
        layers: Vec<(Digest, Vec<Arc<str>>)>,
        reply: Reply<()>,
    },
    /// Where the layer is by a manifest of the repository.
    Places {
        source: Repository,
        digest: Digest,
        reply: Reply<Vec<Arc<str>>>,
    },
}

/// What the manifests of a shard's repositories named.
#[derive(Default)]
pub struct Foreign {
    known: RefCell<Known>,
}

type Key = (Repository, Digest);

#[derive(Default)]
struct Known {
    places: HashMap<Key, Vec<Arc<str>>>,
    /// Oldest first.
    order: VecDeque<Key>,
}

impl Foreign {
    pub fn new() -> Rc<Foreign> {
        Rc::default()
    }

    pub fn take(&self, ask: ForeignAsk) {
        match ask {
            ForeignAsk::Note {
                source,
                layers,
                reply,
            } => {
                for (digest, places) in layers {
                    self.note((source.clone(), digest), places);
                }
                let _ = reply.try_send(());
            }
            ForeignAsk::Places {
                source,
                digest,
                reply,
            } => {
                let places = self.known.borrow().places.get(&(source, digest)).cloned();
                let _ = reply.try_send(places.unwrap_or_default());
            }
        }
    }

    fn note(&self, key: Key, places: Vec<Arc<str>>) {
        let known = &mut *self.known.borrow_mut();
        if known.places.insert(key.clone(), places).is_some() {
            return;
        }
        known.order.push_back(key);
        if known.order.len() > LAYERS_MAX
            && let Some(oldest) = known.order.pop_front()
        {
            known.places.remove(&oldest);
        }
    }
}

/// Has the repository's owner know what the manifest names, so that who has it may ask for it.
/// One that is being fetched is waited for: only a verified one is believed.
pub async fn note(service: &Service, source: &Repository, digest: Digest, found: &mut Found) {
    let lookup = &service.lookup;
    let project = lookup.sources.project(source.project);
    if !project.has_foreign_layers() {
        return;
    }
    match found {
        Found::Held { .. } => {}
        Found::Follow(following) => {
            if following.follower.wait(u64::MAX).await.1 != FillState::Verified {
                return;
            }
        }
        // What is held is not known to be this repository's.
        Found::Relay | Found::Cold => return,
    }
    let body = lookup.store.body(&digest);
    let Some(body) = body.filter(|body| body.len <= lookup.sources.whole.len_max()) else {
        return;
    };
    if let Some(bytes) = service.warmer.read(&body).await {
        note_bytes(service, source, &bytes).await;
    }
}

/// The same of a verified manifest that is the repository's.
pub async fn note_bytes(service: &Service, source: &Repository, bytes: &[u8]) {
    let lookup = &service.lookup;
    let project = lookup.sources.project(source.project);
    if !project.has_foreign_layers() {
        return;
    }
    let layers = manifest::foreign_layers(bytes).into_iter();
    let layers: Vec<_> = layers
        .map(|(digest, urls)| (digest, permitted(&project, urls)))
        .filter(|(_, places)| !places.is_empty())
        .collect();
    if layers.is_empty() {
        return;
    }
    let source = source.clone();
    let owner = lookup.owner(&source);
    let note = |reply| {
        Message::Foreign(ForeignAsk::Note {
            source,
            layers,
            reply,
        })
    };
    lookup.post().tell(owner, note).await;
}

fn permitted(project: &Project, urls: Vec<String>) -> Vec<Arc<str>> {
    let permitted = |url: &String| {
        let place = Place::parse(url);
        place.is_ok_and(|place| project.leads_to(place.origin()))
    };
    let places = urls.into_iter().filter(permitted).take(PLACES_MAX);
    places.map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(foreign: &Foreign, project: usize, digest: Digest) -> usize {
        let (reply, answer) = flume::bounded(1);
        let source = repository(project);
        foreign.take(ForeignAsk::Places {
            source,
            digest,
            reply,
        });
        answer.try_recv().expect("an answer").len()
    }

    fn repository(project: usize) -> Repository {
        let name = "windows/servercore".into();
        Repository { project, name }
    }

    #[test]
    fn the_oldest_are_forgotten_and_repositories_do_not_share() {
        let foreign = Foreign::default();
        let digest = |nth: usize| Digest::sha256(nth.to_string().as_bytes());
        for nth in 0..=LAYERS_MAX {
            let place = Arc::from("https://m.example/x");
            foreign.note((repository(0), digest(nth)), vec![place]);
        }
        assert_eq!(places(&foreign, 0, digest(0)), 0);
        assert_eq!(places(&foreign, 0, digest(1)), 1);
        assert_eq!(places(&foreign, 1, digest(1)), 0);
        // Told again it does not count twice.
        foreign.note((repository(0), digest(1)), Vec::new());
        assert_eq!(foreign.known.borrow().order.len(), LAYERS_MAX);
        assert_eq!(places(&foreign, 0, digest(2)), 1);
    }
}
