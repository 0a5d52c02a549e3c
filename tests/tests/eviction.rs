//! A store smaller than what is asked of it: it evicts and compacts, keeps to its budget, and
//! clients notice nothing.
//!
//! `ENTREPOT_CHURN_ROUNDS` runs the crashes longer, `ENTREPOT_CHURN_SEED` repeats the choices,
//! `ENTREPOT_SATURATION` is how many times its capacity is pulled through the store.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use entrepot_tests::deadline::until_true;
use entrepot_tests::dice::{Dice, setting};
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{Connection, get_hashed};
use entrepot_tests::origin::{Held, Origin};
use entrepot_tests::sha256::Hash;

const MIB: u64 = 1 << 20;
const CAPACITY: u64 = 256 * MIB;
/// Large enough for segments of their own, and small enough to share one.
const BODY_LENS: [u64; 4] = [100_000, MIB, 3 * MIB, 6 * MIB];

/// Far more than the buffers of two sockets.
const LONG_LEN: u64 = 96 * MIB;

/// More than the buffers of two sockets, and what a segment of 64 MiB has four of.
const SHARED_LEN: u64 = 15 * MIB;
const SEGMENT_BODIES: u64 = 4;

const SATURATION: u64 = 3;
const ROUNDS: u64 = 3;
const CLIENTS: u64 = 4;
/// What they pull: twice the capacity.
const BODIES: u64 = 200;
/// Some commit groups, and time for eviction to begin.
const KILLED_WITHIN_MS: u64 = 2_500;

fn target(digest: &str) -> String {
    format!("/v2/dh/library/app/blobs/{digest}")
}

fn blob(origin: &Origin, seed: u64) -> Held {
    let len = BODY_LENS[seed as usize % BODY_LENS.len()];
    origin.blob(&["library/app"], len, seed)
}

fn small_store(origin: &Origin) -> Setup {
    let capacity = format!("{}MiB", CAPACITY / MIB);
    Setup::new(&Config::one(origin.url())).capacity(&capacity)
}

fn assert_within_budget(server: &Entrepot) {
    let used = server.metric("entrepot_store_used_bytes", &[]);
    let staging = server.metric("entrepot_store_staging_bytes", &[]);
    assert!(used <= CAPACITY as f64, "used {used} of {CAPACITY}");
    assert!(staging <= CAPACITY as f64 * 0.02, "staging {staging}");
}

#[track_caller]
fn pull(server: &Entrepot, held: &Held) {
    let hashed = get_hashed(server.addr(), &target(&held.digest)).expect("a head");
    assert_eq!(
        (hashed.head.status, hashed.broken, &hashed.digest),
        (200, None, &held.digest)
    );
}

#[test]
fn several_times_the_capacity_passes_through_and_the_newest_stays() {
    let origin = Origin::start();
    let server = small_store(&origin).start();
    let wanted = setting("ENTREPOT_SATURATION", SATURATION) * CAPACITY;
    let (mut pulled, mut seed, mut bodies) = (0, 0, Vec::new());
    while pulled < wanted {
        let body = blob(&origin, seed);
        pull(&server, &body);
        assert_within_budget(&server);
        pulled += body.size;
        seed += 1;
        bodies.push(body);
    }
    let verified = server.metric("entrepot_fills_total", &["verified"]);
    let staged = server.metric("entrepot_fills_total", &["staged"]);
    println!("{seed} bodies, {pulled} bytes: {verified} stored, {staged} passed through");
    assert!(server.metric("entrepot_store_evicted_bodies_total", &[]) > 0.0);
    let compacted = server.metric("entrepot_compaction_segments_total", &[]);
    let written = server.metric("entrepot_compaction_written_bytes_total", &[]);
    println!("{compacted} segments compacted, {written} bytes written for it");
    // It is filled faster than a slow disk makes them durable, and before that none can go.
    assert!(staged * 6.0 <= seed as f64, "nearly all of them are stored");

    // What was pulled last is held, the oldest is not. The last of a burst may have passed through:
    // room is made within a second or two, and the next pull of them is stored.
    let newest: Vec<&Held> = bodies.iter().rev().take(8).collect();
    until_true("the newest bodies are stored", || {
        let before = server.metric("entrepot_fills_total", &["staged"]);
        newest.iter().for_each(|body| pull(&server, body));
        server.metric("entrepot_fills_total", &["staged"]) == before
    });
    assert_within_budget(&server);
    origin.go_down();
    let held = newest
        .iter()
        .filter(|body| server.get(&target(&body.digest)).status() == 200);
    let held = held.count();
    assert!(held >= 6, "{held} of the newest 8 are held");
    assert_eq!(server.get(&target(&bodies[0].digest)).status(), 502);
    let (status, setup) = server.terminate();
    assert_eq!(status.code(), Some(0));
    let server = setup.start();
    assert_within_budget(&server);
    for body in newest.iter().take(2) {
        pull(&server, body);
    }
}

#[test]
fn what_nobody_asks_for_goes_and_what_is_asked_for_stays() {
    let origin = Origin::start();
    let setup = Setup::new(&Config::one(origin.url()));
    let server = setup.args(&["--set", "store.idle_after=3s"]).start();
    let (idle, busy) = (blob(&origin, 1), blob(&origin, 2));
    pull(&server, &idle);
    pull(&server, &busy);
    assert_eq!(server.metric("entrepot_store_bodies", &[]), 2.0);
    until_true("the idle one is evicted", || {
        pull(&server, &busy);
        server.metric("entrepot_store_bodies", &[]) == 1.0
    });
    assert!(server.metric("entrepot_store_evicted_bodies_total", &["idle"]) >= 1.0);
    let fetched = origin.count("kind=blob&method=GET");
    pull(&server, &busy);
    assert_eq!(
        origin.count("kind=blob&method=GET"),
        fetched,
        "held all along"
    );
    pull(&server, &idle);
    assert_eq!(
        origin.count("kind=blob&method=GET"),
        fetched + 1,
        "fetched anew"
    );
}

/// It holds the bytes of a file that is unlinked, and with them their room.
#[test]
fn a_slow_reader_of_what_is_gone_is_cut_after_its_time() {
    let origin = Origin::start();
    let setup = Setup::new(&Config::one(origin.url()));
    let server = setup.args(&["--set", "store.pin_max=2s"]).start();
    let body = origin.blob(&["library/app"], LONG_LEN, 1);
    pull(&server, &body);
    server.wait_committed();
    let mut connection = Connection::open(server.addr());
    connection.request("GET", &target(&body.digest), &[]);
    let head = connection.read_head().expect("a head");
    let mut read = 0;
    let ended = connection.read_body("GET", &head, &mut |bytes| {
        if read == 0 {
            server.ask_ok(&["purge", "digest", &body.digest]);
            let pinned = server.metric("entrepot_volume_pinned_bytes", &[]);
            assert!(pinned >= LONG_LEN as f64, "{pinned} are pinned");
            until_true("its lease is revoked", || {
                server.metric("entrepot_volume_revoked_total", &[]) >= 1.0
            });
        }
        read += bytes.len() as u64;
    });
    assert!(
        ended.is_err() && read < LONG_LEN,
        "{read} bytes, then {ended:?}"
    );
    until_true("its room is free again", || {
        server.metric("entrepot_volume_pinned_bytes", &[]) == 0.0
    });
}

/// Its segment is compacted away under it, and the old place taken from it: the body is elsewhere
/// now, and it gets every byte of it.
#[test]
fn a_slow_reader_of_what_was_moved_gets_all_of_it() {
    let origin = Origin::start();
    let setup = Setup::new(&Config::one(origin.url())).capacity("512MiB");
    let setup = setup.args(&["--shards", "1", "--set", "store.segment=64MiB"]);
    // Bodies that share segments are what is moved.
    let setup = setup.args(&["--set", "store.solo_min=1GiB"]);
    let server = setup.args(&["--set", "store.pin_max=2s"]).start();
    let body = origin.blob(&["library/app"], SHARED_LEN, 1);
    let begin = || {
        let mut connection = Connection::open(server.addr());
        connection.request("GET", &target(&body.digest), &[]);
        let head = connection.read_head().expect("a head");
        assert_eq!(head.length().expect("a length"), Some(SHARED_LEN));
        (connection, head)
    };
    let follower = begin();
    pull(&server, &body);
    let hit = begin();

    // They share its segment; with the last one the next begins.
    let others: Vec<Held> = (2..=SEGMENT_BODIES + 1)
        .map(|seed| origin.blob(&["library/app"], SHARED_LEN, seed))
        .collect();
    others.iter().for_each(|other| pull(&server, other));
    server.wait_committed();
    for other in &others {
        server.ask_ok(&["purge", "digest", &other.digest]);
    }
    until_true("it is elsewhere, and the leases are revoked", || {
        server.metric("entrepot_volume_revoked_total", &[]) >= 1.0
    });
    assert!(server.metric("entrepot_volume_pinned_bytes", &[]) > 0.0);
    origin.go_down();
    for (mut connection, head) in [follower, hit] {
        let mut hash = Hash::default();
        let read = connection.read_body("GET", &head, &mut |bytes| hash.update(bytes));
        assert_eq!((read, hash.len()), (Ok(()), SHARED_LEN));
        assert_eq!(hash.digest(), body.digest);
    }
    assert_eq!(server.metric("entrepot_resumed_total", &[]), 2.0);
    until_true("the room of the old segment is free again", || {
        server.metric("entrepot_volume_pinned_bytes", &[]) == 0.0
    });
}

/// Clients pull at random, and one purges, until the server is killed. Returns what was purged.
fn churn(server: &Entrepot, origin: &Origin, seed: u64, kill_after: Duration) -> Vec<String> {
    let (whole, killed) = (AtomicU64::new(0), AtomicBool::new(false));
    let begin = Instant::now();
    let mut purged = Vec::new();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (whole, killed) = (&whole, &killed);
            scope.spawn(move || {
                let mut dice = Dice::new(seed + client);
                while !killed.load(Ordering::Relaxed) {
                    let body = blob(origin, dice.roll(BODIES));
                    if let Ok(hashed) = get_hashed(server.addr(), &target(&body.digest))
                        && hashed.head.status == 200
                        && hashed.broken.is_none()
                    {
                        assert_eq!(hashed.digest, body.digest);
                        whole.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        // Bodies that only this one asks for: nobody fetches them again.
        let mut number = seed * 1_000 + 1_000_000;
        while begin.elapsed() < kill_after || whole.load(Ordering::Relaxed) == 0 {
            let body = blob(origin, number);
            pull(server, &body);
            server.ask_ok(&["purge", "digest", &body.digest]);
            purged.push(body.digest);
            number += 1;
        }
        server.kill9_now();
        killed.store(true, Ordering::Relaxed);
    });
    purged
}

#[test]
fn crashes_while_it_evicts_and_compacts_cost_misses_only() {
    let seed = setting("ENTREPOT_CHURN_SEED", u64::from(std::process::id()));
    println!("ENTREPOT_CHURN_SEED={seed}");
    let origin = Origin::start();
    let mut setup = small_store(&origin);
    let mut dice = Dice::new(seed);
    let mut purged = Vec::new();
    for round in 0..setting("ENTREPOT_CHURN_ROUNDS", ROUNDS) {
        let server = setup.start();
        let moment = Duration::from_millis(dice.roll(KILLED_WITHIN_MS));
        purged.extend(churn(&server, &origin, dice.roll(1 << 20), moment));
        setup = server.kill9();

        origin.go_down();
        let server = setup.start();
        assert_within_budget(&server);
        let mut served = 0;
        for number in 0..BODIES {
            // The origin's control port is still there.
            let body = blob(&origin, number);
            let hashed = get_hashed(server.addr(), &target(&body.digest)).expect("an answer");
            if hashed.head.status == 200 {
                assert_eq!((hashed.broken, hashed.digest), (None, body.digest));
                served += 1;
            }
        }
        for digest in &purged {
            assert_eq!(
                server.get(&target(digest)).status(),
                502,
                "{digest} was purged"
            );
        }
        println!(
            "round {round}: {served} of {BODIES} held, {} purged",
            purged.len()
        );
        setup = server.kill9();
        origin.come_back();
    }
}
