//! SIGKILL under load, again and again: what a restart serves is right, and what one restart
//! served, no later one loses (S3, S4).
//!
//! `ENTREPOT_CRASH_ROUNDS` runs it longer, `ENTREPOT_CRASH_SEED` repeats the choices.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use entrepot_tests::deadline::until_true;
use entrepot_tests::dice::{Dice, setting};
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{Broken, fetch, get_hashed};
use entrepot_tests::origin::{HeldImage, Origin};
use entrepot_tests::sha256::digest;

const ROUNDS: u64 = 8;
const CLIENTS: u64 = 8;
/// What every round adds.
const BODIES: u64 = 20;
const BODY_LENS: [u64; 4] = [300, 90_000, 2_000_000, 70_000_000];

/// Two commit groups and what is between them.
const KILLED_WITHIN_MS: u64 = 3_000;

/// Targets with the digest of what they must serve.
type Targets = Vec<(String, String)>;

fn new_targets(origin: &Origin, seed: u64) -> Targets {
    let mut targets = Targets::new();
    for nth in 0..BODIES {
        // The first is long enough for a segment of its own.
        let len = BODY_LENS[if nth == 0 { 3 } else { nth as usize % 3 }];
        let blob = origin.blob(&["library/app"], len, seed + nth);
        targets.push((
            format!("/v2/dh/library/app/blobs/{}", blob.digest),
            blob.digest,
        ));
    }
    let images: Vec<HeldImage> = (0..BODIES / 4)
        .map(|nth| origin.image("library/app", &format!("t{seed}-{nth}"), seed + nth))
        .collect();
    for (nth, image) in images.into_iter().enumerate() {
        let by_tag = format!("/v2/dh/library/app/manifests/t{seed}-{nth}");
        let by_digest = format!("/v2/dh/library/app/manifests/{}", image.digest);
        targets.push((by_tag, image.digest.clone()));
        targets.push((by_digest, image.digest));
    }
    targets
}

/// Clients pull at random until the server is killed.
fn load(server: &Entrepot, targets: &Targets, seed: u64, kill_after: Duration) {
    let whole = AtomicU64::new(0);
    let killed = AtomicBool::new(false);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (whole, killed) = (&whole, &killed);
            scope.spawn(move || {
                let mut dice = Dice::new(seed + client);
                while !killed.load(Ordering::Relaxed) {
                    let (target, expected) = dice.pick(targets);
                    if let Ok(hashed) = get_hashed(server.addr(), target)
                        && hashed.head.status == 200
                        && hashed.broken.is_none()
                    {
                        assert_eq!(hashed.digest, *expected, "{target}");
                        whole.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        until_true("the moment has come", || {
            begin.elapsed() >= kill_after && whole.load(Ordering::Relaxed) > 0
        });
        server.kill9_now();
        killed.store(true, Ordering::Relaxed);
    });
}

/// What is served without an upstream.
fn survivors(server: &Entrepot, targets: &Targets) -> BTreeSet<String> {
    let mut served = BTreeSet::new();
    for (target, expected) in targets {
        let hashed = get_hashed(server.addr(), target).expect("an answer");
        if hashed.head.status == 200 {
            assert_eq!(
                (hashed.broken, &hashed.digest),
                (None, expected),
                "{target}"
            );
            served.insert(target.clone());
            continue;
        }
        let clean = (500..=504).contains(&hashed.head.status) && hashed.broken.is_none();
        assert!(clean, "{target}: {}", hashed.head.raw);
    }
    served
}

#[test]
fn what_one_restart_served_no_later_one_loses() {
    let seed = setting("ENTREPOT_CRASH_SEED", u64::from(std::process::id()));
    println!("ENTREPOT_CRASH_SEED={seed}");
    let origin = Origin::start();
    let mut targets = Targets::new();
    let mut dice = Dice::new(seed);
    let mut setup = Setup::new(&Config::one(origin.url()));
    let mut durable = BTreeSet::new();
    for round in 0..setting("ENTREPOT_CRASH_ROUNDS", ROUNDS) {
        targets.extend(new_targets(&origin, seed * 10_000 + round * 100));
        let server = setup.start();
        let moment = Duration::from_millis(dice.roll(KILLED_WITHIN_MS));
        load(&server, &targets, dice.roll(1 << 30), moment);
        setup = server.kill9();

        origin.go_down();
        let server = setup.start();
        let served = survivors(&server, &targets);
        let lost: Vec<_> = durable.difference(&served).collect();
        assert!(lost.is_empty(), "round {round} lost {lost:#?}");
        println!(
            "round {round}: {} of {} survived",
            served.len(),
            targets.len()
        );
        durable = served;
        setup = server.kill9();
        origin.come_back();
    }
}

#[test]
fn an_orderly_end_keeps_everything() {
    let origin = Origin::start();
    let targets = new_targets(&origin, 7);
    let server = Entrepot::before(origin.url());
    for (target, expected) in &targets {
        let hashed = get_hashed(server.addr(), target).expect("an answer");
        assert_eq!(
            (hashed.broken, &hashed.digest),
            (None, expected),
            "{target}"
        );
    }
    let (status, setup) = server.terminate();
    assert_eq!(status.code(), Some(0));
    origin.go_down();
    let server = setup.start();
    assert_eq!(survivors(&server, &targets).len(), targets.len());
    // Recovering what is already sealed changes nothing.
    let server = server.kill9().start();
    assert_eq!(survivors(&server, &targets).len(), targets.len());
}

/// The tag must not outlive its manifest, nor name one that was never held.
#[test]
fn a_tag_that_survives_names_a_manifest_that_survives() {
    let origin = Origin::start();
    let mut setup = Setup::new(&Config::one(origin.url()));
    let target = "/v2/dh/library/app/manifests/moving";
    for round in 0..6 {
        let image = origin.image("library/app", "moving", round);
        let server = setup.start();
        let pulled = server.get(target).expect(200);
        assert_eq!(digest(&pulled.body), image.digest);
        if round % 2 == 0 {
            server.wait_committed();
        }
        setup = server.kill9();
        origin.go_down();
        let server = setup.start();
        let answer = fetch(server.addr(), "GET", target, &[]);
        match answer {
            Ok(answer) if answer.is_complete_200() => {
                let named = answer.field("docker-content-digest").map(str::to_owned);
                assert_eq!(named, Some(digest(&answer.body)));
                if round % 2 == 0 {
                    assert_eq!(digest(&answer.body), image.digest, "the durable one");
                }
            }
            Ok(answer) => {
                assert!(round % 2 == 1, "round {round}: {}", answer.head.raw);
                assert_eq!((answer.status(), answer.broken), (502, None::<Broken>));
            }
            Err(broken) => panic!("round {round}: {broken:?}"),
        }
        setup = server.kill9();
        origin.come_back();
    }
}
