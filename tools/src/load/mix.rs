//! `mix`: what a registry is asked by many, after published traces.
//!
//! Shares, popularity and bursts are those of a sample of IBM's registry traces (FAST '18):
//! 46.0 % pings, 18.3 % manifests, 35.7 % blobs; Zipf exponents of 0.99 for blobs and 1.66 for
//! manifests; 31 % of blob requests are for a blob never asked for before.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::catalog::{Catalog, Wanted};
use super::client::Client;
use super::digest::Expected;
use super::meter::Kind;
use super::random::Random;
use super::run::{Work, Worker, Workload};
use super::schedule::Turn;
use super::target::Target;
use super::url::Url;

/// For each manifest that is asked for.
const PINGS_MEAN: f64 = 46.0 / 18.3;
const BLOBS_MEAN: f64 = 35.7 / 18.3;
/// Of 1,000 blob requests, for blobs never asked for before, as long as there are some.
const NEW_PERMILLE: u64 = 310;
const BLOB_EXPONENT: f64 = 0.99;
const MANIFEST_EXPONENT: f64 = 1.66;

pub struct Mix {
    pub registry: Url,
    /// Before each repository's name, with a slash at its end; or nothing.
    pub prefix: String,
    pub manifests: Arc<[Wanted]>,
    /// In the order in which they are first asked for.
    pub blobs: Arc<[Wanted]>,
    /// Blobs that were asked for, of all clients together.
    asked: Arc<AtomicUsize>,
    pub seed: u64,
    /// All clients pull the same image at once so often.
    pub herd_every: Option<Duration>,
    pub verify: bool,
    pub fields: String,
    pub manifest_fields: String,
}

impl Mix {
    pub fn new(registry: Url, catalog: Catalog, seed: u64) -> Mix {
        let mut random = Random::new(seed);
        let Catalog {
            mut manifests,
            mut blobs,
        } = catalog;
        random.shuffle(&mut manifests);
        random.shuffle(&mut blobs);
        Mix {
            registry,
            prefix: String::new(),
            manifests: manifests.into(),
            blobs: blobs.into(),
            asked: Arc::default(),
            seed,
            herd_every: None,
            verify: false,
            fields: String::new(),
            manifest_fields: String::new(),
        }
    }
}

/// What one client asks for, one after the other.
struct Draw {
    random: Random,
    seed: u64,
    manifests: Arc<[Wanted]>,
    blobs: Arc<[Wanted]>,
    asked: Arc<AtomicUsize>,
    pings_left: usize,
    blobs_left: usize,
    /// The blobs of a herd: of these, the next ones.
    herd: Option<usize>,
    herds_seen: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Ping,
    Manifest(usize),
    Blob(usize),
}

impl Draw {
    /// `herds` have begun so far.
    fn next(&mut self, herds: u64) -> Step {
        if herds > self.herds_seen {
            self.herds_seen = herds;
            // The same for all clients.
            let mut of_herd = Random::new(self.seed ^ herds);
            self.pings_left = 0;
            self.blobs_left = 1 + of_herd.geometric(BLOBS_MEAN);
            self.herd = Some(of_herd.below(self.blobs.len()));
            return Step::Manifest(of_herd.below(self.manifests.len()));
        }
        if self.blobs_left > 0 {
            self.blobs_left -= 1;
            return Step::Blob(self.blob());
        }
        self.herd = None;
        if self.pings_left > 0 {
            self.pings_left -= 1;
            return Step::Ping;
        }
        self.pings_left = self.random.geometric(PINGS_MEAN);
        self.blobs_left = self.random.geometric(BLOBS_MEAN);
        let count = self.manifests.len();
        Step::Manifest(self.random.zipf(count, MANIFEST_EXPONENT))
    }

    fn blob(&mut self) -> usize {
        if let Some(next) = &mut self.herd {
            let blob = *next;
            *next = (blob + 1) % self.blobs.len();
            return blob;
        }
        let asked = self.asked.load(Ordering::Relaxed).min(self.blobs.len());
        let new = asked == 0 || self.random.draw() % 1000 < NEW_PERMILLE;
        if new && asked < self.blobs.len() {
            let next = self.asked.fetch_add(1, Ordering::Relaxed);
            return next.min(self.blobs.len() - 1);
        }
        self.random.zipf(asked, BLOB_EXPONENT)
    }
}

impl Workload for Mix {
    fn client(&self, worker: Rc<Worker>, client: Client) -> Work {
        let mut draw = Draw {
            random: Random::new(self.seed.wrapping_add(client.number() as u64 + 1)),
            seed: self.seed,
            manifests: self.manifests.clone(),
            blobs: self.blobs.clone(),
            asked: self.asked.clone(),
            pings_left: 0,
            blobs_left: 0,
            herd: None,
            herds_seen: 0,
        };
        let ask = Ask {
            registry: self.registry.clone(),
            prefix: self.prefix.clone(),
            verify: self.verify,
            fields: self.fields.clone(),
            manifest_fields: self.manifest_fields.clone(),
        };
        let ping = ask.target(&draw, Step::Ping);
        let herd_every = self.herd_every;
        Box::pin(async move {
            client.prepare(&ask.registry.origin).await;
            let one = async |turn: Turn| {
                let passed = turn.at.saturating_duration_since(worker.started());
                let herds = herd_every.map_or(0, |every| {
                    (passed.as_secs_f64() / every.as_secs_f64()) as u64
                });
                // What fails is counted; the next turn is another try.
                let _ = match draw.next(herds) {
                    Step::Ping => client.ask(&ping, turn.at).await,
                    step => client.ask(&ask.target(&draw, step), turn.at).await,
                };
            };
            worker.each_turn(one).await;
        })
    }
}

/// How it is asked.
struct Ask {
    registry: Url,
    prefix: String,
    verify: bool,
    fields: String,
    manifest_fields: String,
}

impl Ask {
    fn target(&self, draw: &Draw, step: Step) -> Target {
        let url = |path: String| Url {
            origin: self.registry.origin.clone(),
            path,
        };
        let (wanted, what, kind, fields) = match step {
            Step::Ping => return Target::get(url("/v2/".to_owned()), Kind::Ping, &self.fields),
            Step::Manifest(at) => {
                let wanted = &draw.manifests[at];
                (wanted, "manifests", Kind::Manifest, &self.manifest_fields)
            }
            Step::Blob(at) => (&draw.blobs[at], "blobs", Kind::Blob, &self.fields),
        };
        let Wanted {
            repository,
            reference,
        } = wanted;
        let path = format!("/v2/{}{repository}/{what}/{reference}", self.prefix);
        let mut target = Target::get(url(path), kind, fields);
        if self.verify {
            target.digest = Expected::parse(reference);
        }
        target
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(seed: u64) -> Draw {
        let wanted = |count: usize| -> Arc<[Wanted]> {
            let one = |n: usize| Wanted {
                repository: "a".to_owned(),
                reference: n.to_string(),
            };
            (0..count).map(one).collect()
        };
        Draw {
            random: Random::new(seed),
            seed: 1,
            manifests: wanted(500),
            blobs: wanted(20_000),
            asked: Arc::default(),
            pings_left: 0,
            blobs_left: 0,
            herd: None,
            herds_seen: 0,
        }
    }

    #[test]
    fn shares_and_popularity_are_as_published() {
        let mut draw = draw(1);
        let steps: Vec<Step> = (0..100_000).map(|_| draw.next(0)).collect();
        let share = |fits: fn(&Step) -> bool| {
            let count = steps.iter().filter(|step| fits(step)).count();
            count as f64 / steps.len() as f64
        };
        assert!((0.44..0.48).contains(&share(|step| *step == Step::Ping)));
        let manifests = share(|step| matches!(step, Step::Manifest(_)));
        assert!((0.17..0.20).contains(&manifests), "{manifests}");
        let mut uses = std::collections::HashMap::new();
        let mut blobs = 0;
        for step in &steps {
            if let Step::Blob(blob) = step {
                *uses.entry(blob).or_insert(0) += 1;
                blobs += 1;
            }
        }
        let new = uses.len() as f64 / f64::from(blobs);
        assert!((0.29..0.33).contains(&new), "{new} are new");
        let once = uses.values().filter(|uses| **uses == 1).count();
        let once = once as f64 / uses.len() as f64;
        assert!((0.45..0.80).contains(&once), "{once} are asked for once");
    }

    #[test]
    fn a_herd_asks_for_the_same() {
        let (mut one, mut other) = (draw(1), draw(2));
        for _ in 0..10 {
            one.next(0);
        }
        let herd = |draw: &mut Draw| -> Vec<Step> {
            let mut steps = vec![draw.next(1)];
            while draw.blobs_left > 0 {
                steps.push(draw.next(1));
            }
            steps
        };
        let steps = herd(&mut one);
        assert!(steps.len() > 1);
        assert_eq!(steps, herd(&mut other));
        assert_ne!(one.next(2), steps[0]);
    }
}
