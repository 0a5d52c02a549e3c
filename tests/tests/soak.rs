//! Many clients, a few bodies, a store too small for them and an upstream that fails now and
//! then: whatever is completed is right, and when upstream is well again, so is everything.
//!
//! `ENTREPOT_SOAK_SECONDS` runs it longer, `ENTREPOT_SOAK_SEED` runs one sequence of choices
//! again (the interleaving is the machine's).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use entrepot_tests::deadline::until_within;
use entrepot_tests::dice::{Dice, setting};
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{Connection, get_hashed};
use entrepot_tests::origin::{Held, Origin};
use entrepot_tests::sha256::{Hash, digest};

const SOAK_SECONDS: u64 = 12;
const CLIENTS: u64 = 16;
const BODIES: u64 = 40;

/// Well below what the bodies take together.
const CAPACITY: &str = "48MiB";
const BODY_LENS: [u64; 5] = [0, 700, 200_000, 3_000_000, 12_000_000];

/// A wrong digest is held against its source for a moment, and the moment is short here.
const HOLDOFF: &str = "limits.mismatch_holdoff=200ms";
const WELL_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Each body is in two of three repositories.
const REPOSITORIES: [&str; 3] = ["team/a", "team/b", "team/c"];

fn repositories_of(nth: u64) -> [&'static str; 2] {
    let first = nth as usize % 3;
    [REPOSITORIES[first], REPOSITORIES[(first + 1) % 3]]
}

fn faults() -> [Value; 9] {
    [
        json!({"flip_at": "50%"}),
        json!({"reset_at": "50%"}),
        json!({"truncate_at": -1}),
        json!({"refuse": true}),
        json!({"status": 503}),
        json!({"chunked": true}),
        json!({"chunked": true, "truncate_at": "50%"}),
        json!({"rate": 3_000_000}),
        json!({"redirect": "cdn"}),
    ]
}

#[derive(Default)]
struct Tally {
    complete: AtomicU64,
    parts: AtomicU64,
    failed: AtomicU64,
    left: AtomicU64,
}

/// What one client does with one body, and what must hold of it.
fn visit(server: &Entrepot, dice: &mut Dice, nth: u64, body: &Held, tally: &Tally) {
    let repository = *dice.pick(&repositories_of(nth));
    let target = format!("/v2/dh/{repository}/blobs/{}", body.digest);
    let mut connection = Connection::open(server.addr());
    match dice.roll(8) {
        0 => {
            // Leaves in the middle.
            connection.request("GET", &target, &[]);
            let _ = connection.read_head();
            tally.left.fetch_add(1, Ordering::Relaxed);
        }
        1 => {
            connection.request("HEAD", &target, &[]);
            if let Ok(answer) = connection.answer("HEAD")
                && answer.status() == 200
            {
                assert_eq!(answer.head.length(), Ok(Some(body.size)), "{target}");
            }
        }
        2 | 3 if body.size > 0 => {
            let first = dice.roll(body.size);
            let last = (first + dice.roll(100_000)).min(body.size - 1);
            let range = format!("bytes={first}-{last}");
            connection.request("GET", &target, &[("Range", &range)]);
            let Ok(answer) = connection.answer("GET") else {
                return;
            };
            assert_ne!(
                answer.status(),
                200,
                "{target} {range}: everything and not the range"
            );
            if answer.status() == 206 && answer.broken.is_none() {
                assert_eq!(
                    answer.body.len() as u64,
                    last - first + 1,
                    "{target} {range}"
                );
                tally.parts.fetch_add(1, Ordering::Relaxed);
            }
        }
        _ => {
            connection.request("GET", &target, &[]);
            let Ok(head) = connection.read_head() else {
                return;
            };
            let mut hash = Hash::default();
            let read = connection.read_body("GET", &head, &mut |bytes| hash.update(bytes));
            if head.status == 200 && read.is_ok() {
                assert_eq!(hash.digest(), body.digest, "{target}: a complete 200");
                tally.complete.fetch_add(1, Ordering::Relaxed);
            } else {
                tally.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn requests(origin: &Origin) -> u64 {
    origin.ask("counters")["requests"]
        .as_u64()
        .expect("a number")
}

#[test]
fn whatever_is_completed_is_right() {
    let seed = setting("ENTREPOT_SOAK_SEED", u64::from(std::process::id()));
    let seconds = setting("ENTREPOT_SOAK_SECONDS", SOAK_SECONDS);
    println!("ENTREPOT_SOAK_SEED={seed}");
    let origin = Origin::start();
    let bodies: Vec<Held> = (0..BODIES)
        .map(|nth| {
            let len = BODY_LENS[nth as usize % BODY_LENS.len()];
            origin.blob(&repositories_of(nth), len, seed ^ nth)
        })
        .collect();
    let setup = Setup::new(&Config::one(origin.url())).capacity(CAPACITY);
    let server = setup.args(&["--set", HOLDOFF]).start();
    let tally = Tally::default();
    let end = Instant::now() + Duration::from_secs(seconds);

    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (server, bodies, tally) = (&server, &bodies, &tally);
            scope.spawn(move || {
                let mut dice = Dice::new(seed + client);
                while Instant::now() < end {
                    let nth = dice.roll(BODIES);
                    visit(server, &mut dice, nth, &bodies[nth as usize], tally);
                }
            });
        }
        let mut dice = Dice::new(seed + CLIENTS);
        while Instant::now() < end {
            let body = dice.pick(&bodies);
            let fault = dice.pick(&faults()).clone();
            origin.fault_times(1, json!({"kind": "blob", "contains": body.digest}), fault);
            // The faults keep the pace of the requests: most are good, some are not.
            let seen = requests(&origin);
            until_within(WELL_AGAIN_AFTER, "requests upstream", || {
                (requests(&origin) > seen + 2 || Instant::now() >= end).then_some(())
            });
        }
    });
    println!(
        "{} whole, {} parts, {} failed, {} left",
        tally.complete.load(Ordering::Relaxed),
        tally.parts.load(Ordering::Relaxed),
        tally.failed.load(Ordering::Relaxed),
        tally.left.load(Ordering::Relaxed)
    );
    assert!(tally.complete.load(Ordering::Relaxed) > 0);

    origin.clear_faults();
    for (nth, body) in (0..BODIES).zip(&bodies) {
        for repository in repositories_of(nth) {
            let target = format!("/v2/dh/{repository}/blobs/{}", body.digest);
            until_within(WELL_AGAIN_AFTER, "upstream is well again", || {
                let hashed = get_hashed(server.addr(), &target).ok()?;
                let good = hashed.head.status == 200 && hashed.broken.is_none();
                good.then(|| assert_eq!(hashed.digest, body.digest))
            });
        }
    }
    until_within(
        WELL_AGAIN_AFTER,
        "no fill, follower or connection is left",
        || {
            let gauges = [
                "entrepot_fills_running",
                "entrepot_followers",
                "entrepot_connections",
            ];
            gauges
                .iter()
                .all(|gauge| server.metric(gauge, &[]) == 0.0)
                .then_some(())
        },
    );
    let used = server.metric("entrepot_store_used_bytes", &[]);
    let capacity = server.metric("entrepot_store_capacity_bytes", &[]);
    assert!(used <= capacity, "used {used} of {capacity}");
    let (status, setup) = server.terminate();
    assert_eq!(status.code(), Some(0));

    // What was kept is right after a restart, and what was not is a clean error.
    origin.go_down();
    let server = setup.start();
    let mut kept = 0;
    for (nth, body) in (0..BODIES).zip(&bodies) {
        let target = format!("/v2/dh/{}/blobs/{}", repositories_of(nth)[0], body.digest);
        let answer = server.get(&target);
        match answer.is_complete_200() {
            true => {
                assert_eq!(digest(&answer.body), body.digest);
                kept += 1;
            }
            false => assert_eq!(answer.status(), 502, "{}", answer.head.raw),
        }
    }
    println!("{kept} of {BODIES} bodies were kept");
    assert!(kept > 0);
}
