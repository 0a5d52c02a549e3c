//! Every way an upstream fails, and for each of them what a client sees and what upstream was asked.
//!
//! One row, one world: an image is pulled, upstream breaks, and then the same is asked of every
//! row: a hit, which may ask nothing; a tag that is cached, which is served stale or refused by
//! its rule; a miss, which fails clean within its time or is cut short; and, once upstream is mended,
//! a miss that works.
//!
//! Some faults lie below the registry: names that nobody resolves need a resolv.conf of the
//! server's own, so its rows start it in a mount namespace.

#[path = "faults/names.rs"]
mod names;
#[path = "faults/rows.rs"]
mod rows;
#[path = "faults/world.rs"]
mod world;

use std::net::TcpListener;
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use entrepot_tests::deadline::until_within;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{Answer, get_hashed};
use entrepot_tests::origin::{Held, Origin};
use entrepot_tests::registry::free_port;
use entrepot_tests::sha256::digest;

use rows::{Cached, Fault, Row, rows};
use world::{TIMEOUT, World};

/// Worlds that run at once: the machine may have two cores.
const WORLDS: usize = 4;
/// What a miss may take is a little more than twice the timeouts of upstreams in the rows.
const MISS_WITHIN: Duration = Duration::from_secs(10);
/// A client that would ask again at once is held when upstream names a time, each time for so long.
const HELD_WITHIN: Duration = Duration::from_secs(35);
/// A breaker that opened, or a rate limit that was honoured, lets go after this at the latest.
const MENDED_WITHIN: Duration = Duration::from_secs(60);
/// A layer longer than what is withheld.
const LONG: u64 = 3 << 20;
const KEPT: &str = "/v2/dh/library/kept/manifests/1";
const NEW: &str = "/v2/dh/library/new/manifests/1";

#[test]
fn every_fault_has_its_outcome() {
    let rows = rows();
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..WORLDS {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // Every row is seen, whatever became of the others.
                    if catch_unwind(|| row.check()).is_err() {
                        failed.lock().expect("no panic inside").push(row.name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic inside");
    assert!(failed.is_empty(), "failed: {failed:?}");
}

impl Row {
    fn check(&self) {
        let world = World::new(&self.fault);
        let (origin, name) = (world.origin(), self.name);
        let kept = origin.image("library/kept", "1", 1);
        let kept_blob = origin.blob(&["library/kept"], LONG, 2);
        origin.image("library/new", "1", 3);
        let new_blob = origin.blob(&["library/new"], LONG, 4);
        let server = world.server();
        assert_eq!(digest(&server.get(KEPT).expect(200).body), kept.digest);
        pull(&server, "kept", &kept_blob);

        world.break_it(|| server.get(KEPT).field("warning").is_some());
        origin.clear_log();
        pull(&server, "kept", &kept_blob);
        let by_digest = format!("/v2/dh/library/kept/manifests/{}", kept.digest);
        server.get(&by_digest).expect(200);
        assert_eq!(origin.count(""), 0, "{name}: a hit asked upstream");

        self.check_cached(&server.get(KEPT), &kept.digest);
        origin.clear_log();
        self.check_miss(&server, &new_blob);
        let asked = origin.log("");
        assert!(asked.len() <= self.asked_max, "{name}: {asked:#?}");
        self.check_log(&server);

        world.mend();
        until_within(MENDED_WITHIN, &format!("{name}: a miss that works"), || {
            let hashed = get_hashed(server.addr(), &blob_target("new", &new_blob)).ok()?;
            (hashed.head.status == 200 && hashed.broken.is_none())
                .then(|| assert_eq!(hashed.digest, new_blob.digest, "{name}"))
        });
        until_within(MENDED_WITHIN, &format!("{name}: a fresh tag"), || {
            let answer = server.try_get(KEPT).ok()?;
            (answer.status() == 200 && answer.field("warning").is_none()).then_some(())
        });
    }

    /// An operator finds the reason in the log, which is written a little later.
    fn check_log(&self, server: &Entrepot) {
        let wanted = format!("{}: {} in the log", self.name, self.logged);
        until_within(MENDED_WITHIN, &wanted, || {
            let log = server.log();
            let mut lines = log.iter().map(ToString::to_string);
            lines.any(|line| line.contains(self.logged)).then_some(())
        });
    }

    fn check_cached(&self, answer: &Answer, digest_kept: &str) {
        let (name, raw) = (self.name, &answer.head.raw);
        match self.cached {
            Cached::Stale => {
                assert_eq!(answer.status(), 200, "{name}: {raw}");
                assert_eq!(digest(&answer.body), digest_kept, "{name}");
                let warned = answer.field("warning").unwrap_or_default();
                assert!(warned.starts_with("299 "), "{name}: {raw}");
                assert!(answer.field("age").is_some(), "{name}: {raw}");
                let status = answer.field("cache-status").unwrap_or_default();
                assert!(status.contains("hit"), "{name}: {raw}");
            }
            Cached::Confirmed => {
                assert_eq!(answer.status(), 200, "{name}: {raw}");
                assert_eq!(digest(&answer.body), digest_kept, "{name}");
                assert_eq!(answer.field("warning"), None, "{name}: {raw}");
            }
            Cached::Refused(status) => assert_eq!(answer.status(), status, "{name}: {raw}"),
        }
    }

    /// A tag and a layer that are not here.
    fn check_miss(&self, server: &Entrepot, blob: &Held) {
        let name = self.name;
        let started = Instant::now();
        let answer = server.get(NEW);
        assert_eq!(answer.broken, None, "{name}");
        assert!(
            self.miss.contains(&answer.status()),
            "{name}: {}",
            answer.head.raw
        );
        assert!(answer.error_code().is_some(), "{name}: {}", answer.text());
        if matches!(answer.status(), 429 | 503) {
            let after = answer
                .field("retry-after")
                .and_then(|text| text.parse().ok());
            let after: u64 = after.unwrap_or_else(|| panic!("{name}: {}", answer.head.raw));
            assert!((1..=300).contains(&after), "{name}: {after}");
        }
        // Its head may have left before it broke; then it is not complete.
        match get_hashed(server.addr(), &blob_target("new", blob)) {
            Ok(hashed) if hashed.head.status == 200 => {
                assert!(hashed.broken.is_some(), "{name}: a complete 200");
            }
            Ok(hashed) => {
                let status = hashed.head.status;
                assert!(self.miss.contains(&status), "{name}: {}", hashed.head.raw);
            }
            Err(broken) => assert!(self.cuts(), "{name}: {broken:?}"),
        }
        let (took, within) = (started.elapsed(), self.within());
        assert!(took < within, "{name}: {took:?}");
    }

    /// Time for a tag and a blob together.
    fn within(&self) -> Duration {
        match &self.fault {
            fault if fault.holds() => HELD_WITHIN * 2,
            _ => MISS_WITHIN,
        }
    }

    /// Whether a long answer may break off even before its head has left.
    fn cuts(&self) -> bool {
        let Fault::Registry(then) = &self.fault else {
            return false;
        };
        let ends = ["truncate_at", "reset_at", "length_add", "flip_at", "rate"];
        ends.iter().any(|key| !then[key].is_null())
    }
}

fn before(origin: &Origin) -> Entrepot {
    let config = Config::new().project("dh", "default = true", &[]);
    let keys = format!("url = \"{}\"\n{TIMEOUT}", origin.url());
    Setup::new(&config.upstream("dh", &keys)).start()
}

fn blob_target(repository: &str, blob: &Held) -> String {
    format!("/v2/dh/library/{repository}/blobs/{}", blob.digest)
}

#[track_caller]
fn pull(server: &Entrepot, repository: &str, blob: &Held) {
    let hashed = get_hashed(server.addr(), &blob_target(repository, blob)).expect("a head");
    assert_eq!((hashed.broken, hashed.digest), (None, blob.digest.clone()));
}

/// Upstreams that no request reaches.
#[test]
fn an_upstream_that_cannot_be_reached_fails_its_own_project_only() {
    let good = Origin::start();
    let image = good.image("library/app", "1", 1);
    // Takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().expect("an address");
    let hosts = [
        ("nowhere", "https://registry.invalid".to_owned(), 502),
        ("silent", format!("https://{silent}"), 504),
        ("closed", format!("http://127.0.0.1:{}", free_port()), 502),
    ];
    let mut config = Config::new().project("dh", "default = true", &[good.url()]);
    for (name, url, _) in &hosts {
        let keys = format!("url = \"{url}\"\n{TIMEOUT}");
        config = config.project(name, "", &[]).upstream(name, &keys);
    }
    let server = Setup::new(&config).start();
    std::thread::scope(|scope| {
        let asked = hosts.iter().map(|(name, _, status)| {
            let server = &server;
            scope.spawn(move || {
                let started = Instant::now();
                let answer = server.get(&format!("/v2/{name}/app/manifests/1"));
                assert_eq!(answer.status(), *status, "{name}: {}", answer.head.raw);
                assert!(answer.error_code().is_some(), "{name}: {}", answer.text());
                let took = started.elapsed();
                assert!(took < MISS_WITHIN, "{name}: {took:?}");
            })
        });
        let asked: Vec<_> = asked.collect();
        let answer = server.get("/v2/dh/library/app/manifests/1").expect(200);
        assert_eq!(digest(&answer.body), image.digest);
        for asked in asked {
            asked.join().expect("its outcome");
        }
    });
}

/// Docker Hub's limit is used up before the first pull of the day.
#[test]
fn with_nothing_but_429_all_that_is_cached_is_pulled_and_nothing_loops() {
    let origin = Origin::start();
    let images: Vec<_> = (0..8)
        .map(|nth| origin.image(&format!("library/app{nth}"), "1", nth))
        .collect();
    let server = before(&origin);
    let pull_all = |nth: usize| {
        let repository = format!("/v2/dh/library/app{nth}");
        let answer = server.get(&format!("{repository}/manifests/1")).expect(200);
        assert_eq!(digest(&answer.body), images[nth].digest);
        for manifest in &images[nth].manifests {
            for blob in manifest.layers.iter().chain([&manifest.config]) {
                let target = format!("{repository}/blobs/{}", blob.digest);
                let hashed = get_hashed(server.addr(), &target).expect("a head");
                assert_eq!((hashed.broken, hashed.digest), (None, blob.digest.clone()));
            }
        }
    };
    (0..images.len()).for_each(pull_all);
    let limited = json!({"status": 429, "headers": {"Retry-After": "60"}});
    origin.fault(json!({"listener": "registry"}), limited);
    origin.clear_log();
    const PULLS: usize = 25;
    for _ in 0..PULLS {
        (0..images.len()).for_each(pull_all);
    }
    // As the clients that ask again at once: each is told when to come back.
    for _ in 0..PULLS {
        let answer = server.get(NEW);
        assert!(matches!(answer.status(), 429 | 503), "{}", answer.head.raw);
        assert!(answer.field("retry-after").is_some(), "{}", answer.head.raw);
    }
    let asked = origin.log("");
    assert!(asked.len() <= 4, "{asked:#?}");
}
