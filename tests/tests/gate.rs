//! The gate of an upstream: given up while it fails, left alone when it says so, never asked for
//! more at once than configured, and not asked again at once for what it does not have.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{Answer, get, get_hashed};
use entrepot_tests::origin::{Held, Origin};
use entrepot_tests::sha256::digest;

const TAG: &str = "/v2/dh/library/app/manifests/1";
/// Of what waits for nobody, on a busy machine.
const SOON: Duration = Duration::from_secs(5);
/// Of a breaker, short so that a test sees several of its pauses.
const PAUSE: Duration = Duration::from_millis(400);

/// One default project whose upstream has further keys; two shards, so that gates are asked from
/// another core.
fn before(origin: &Origin, keys: &str) -> Entrepot {
    let keys = format!("url = \"{}\"\n{keys}", origin.url());
    let config = Config::new().project("dh", "default = true", &[]);
    let setup = Setup::new(&config.upstream("dh", &keys));
    setup.args(&["--shards", "2"]).start()
}

fn blob_target(blob: &Held) -> String {
    format!("/v2/dh/library/app/blobs/{}", blob.digest)
}

fn retry_after(answer: &Answer) -> Option<u64> {
    answer.field("retry-after")?.parse().ok()
}

#[test]
fn a_failing_upstream_is_given_up_and_probed_by_one() {
    let origin = Origin::start();
    let blob = origin.blob(&["library/app"], 1_000, 1);
    let keys = "breaker = { failures = 3, pause = \"400ms\", pause_max = \"400ms\" }";
    let server = before(&origin, keys);
    let refuse = origin.fault(json!({}), json!({"refuse": true}));
    let target = blob_target(&blob);
    for _ in 0..3 {
        server.get(&target).expect(502);
    }
    assert_eq!(server.metric("entrepot_upstream_breaker", &[]), 2.0);
    let opened = Instant::now();
    let asked = origin.count("kind=blob");
    let refused = server.get(&target);
    assert_eq!(refused.status(), 502, "{}", refused.head.raw);
    if opened.elapsed() < PAUSE / 2 {
        assert_eq!(retry_after(&refused), Some(1), "{}", refused.head.raw);
        assert_eq!(origin.count("kind=blob"), asked, "it was asked while open");
    }
    until_true("a probe is sent and fails", || {
        server.get(&target).expect(502);
        origin.count("kind=blob") > asked
    });
    origin.call("faults/clear", json!({"id": refuse}));
    until_true("the upstream is asked again", || {
        server.get(&target).status() == 200
    });
    assert_eq!(server.metric("entrepot_upstream_breaker", &[]), 0.0);
    let opened = server.metric("entrepot_upstream_breaker_opened_total", &[]);
    assert!(opened >= 2.0, "{opened}");
    let log = server.log();
    let said = |what: &str| log.iter().filter(|line| line["message"] == what).count() as f64;
    assert_eq!(said("upstream fails and is not asked for now"), opened);
    assert_eq!(said("upstream answers again"), 1.0);
}

#[test]
fn a_rate_limited_miss_waits_and_one_asks_first() {
    let origin = Origin::start();
    let blobs: Vec<Held> = (0..8)
        .map(|seed| origin.blob(&["library/app"], 1_000, seed))
        .collect();
    let server = before(&origin, "");
    let limited = json!({"status": 429, "headers": {"Retry-After": "2"}});
    origin.fault_times(1, json!({"kind": "blob"}), limited);
    let began = Instant::now();
    let addr = server.addr();
    meet_the_limit(&server, &origin, &blobs[0]);
    let clients: Vec<_> = blobs[1..]
        .iter()
        .map(blob_target)
        .map(|target| thread::spawn(move || get(addr, &target).expect(200)))
        .collect();
    for client in clients {
        client.join().expect("no client sees the limit");
    }
    assert!(began.elapsed() >= Duration::from_millis(1_900));
    let statuses: Vec<u64> = origin
        .log("kind=blob")
        .iter()
        .filter_map(|request| request["status"].as_u64())
        .collect();
    assert_eq!(statuses.len(), 9, "one was refused and asked again");
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 1);
}

/// Has a client of its own meet the limit, so that the others come after it.
fn meet_the_limit(server: &Entrepot, origin: &Origin, blob: &Held) {
    let (addr, target) = (server.addr(), blob_target(blob));
    thread::spawn(move || get(addr, &target));
    origin.wait(json!({"kind": "blob", "status": 429}), 1);
    until_true("its lane is held", || {
        server.metric("entrepot_upstream_held_lanes", &[]) == 1.0
    });
}

#[test]
fn a_limit_that_lasts_is_passed_on_and_nothing_loops() {
    for (named, least) in [("120", 100), ("86400", 290)] {
        let origin = Origin::start();
        let blob = origin.blob(&["library/app"], 1_000, 1);
        let server = before(&origin, "");
        let limited = json!({"status": 429, "headers": {"Retry-After": named}});
        origin.fault(json!({}), limited);
        for _ in 0..20 {
            let answer = server.get(&blob_target(&blob));
            assert_eq!(answer.status(), 429, "{}", answer.head.raw);
            let after = retry_after(&answer).expect("a time to come back at");
            assert!((least..=300).contains(&after), "{}", answer.head.raw);
        }
        assert_eq!(origin.count("kind=blob"), 1, "the others were held");
    }
}

#[test]
fn limited_manifests_do_not_hold_layers_or_checks_of_tags() {
    let origin = Origin::start();
    let image = origin.image("library/app", "1", 1);
    let server = before(&origin, "");
    server.get(TAG).expect(200);
    let limited = json!({"status": 429, "headers": {"Retry-After": "120"}});
    origin.fault(json!({"kind": "manifest", "method": "GET"}), limited);
    let other = origin.image("library/other", "1", 2);
    let target = format!("/v2/dh/library/other/manifests/{}", other.digest);
    server.get(&target).expect(429);
    let tag = server.get(TAG).expect(200);
    assert!(tag.field("warning").is_none(), "{}", tag.head.raw);
    let layer = &image.manifests[0].layers[0];
    let hashed = get_hashed(server.addr(), &blob_target(layer)).expect("a head");
    assert_eq!((hashed.broken, hashed.digest), (None, layer.digest.clone()));
}

#[test]
fn the_budget_is_seen_and_stretches() {
    let origin = Origin::start();
    origin.image("library/app", "1", 1);
    let server = before(&origin, "");
    for (remaining, stretch) in [(99, 1.0), (40, 2.0), (5, 8.0)] {
        let budget = json!({"limit": 100, "window_s": 21600, "remaining": remaining});
        origin.call("rate-limit", budget);
        server.get(TAG).expect(200);
        until_true("the budget is on the board", || {
            let left = server.metric("entrepot_upstream_budget_remaining", &[]);
            // The first pull costs one.
            let seen = left <= f64::from(remaining) && left >= f64::from(remaining - 1);
            seen && server.metric("entrepot_upstream_stretch", &[]) == stretch
        });
    }
}

#[test]
fn no_more_connections_than_permits_and_the_rest_waits() {
    let origin = Origin::start();
    let blobs: Vec<Held> = (0..8)
        .map(|seed| origin.blob(&["library/app"], 2 << 20, seed))
        .collect();
    origin.fault(
        json!({"kind": "blob", "method": "GET"}),
        json!({"halt_at": "50%"}),
    );
    let image = origin.image("library/app", "1", 1);
    let server = before(&origin, "connections_max = 4");
    server.get(TAG).expect(200);
    let clients = pull_in_threads(&server, &blobs);
    origin.wait(json!({"kind": "blob", "state": "halted"}), 3);
    until_true("the others wait", || {
        server.metric("entrepot_upstream_waiting", &[]) == 5.0
    });
    assert_eq!(server.metric("entrepot_upstream_permits", &[]), 3.0);
    assert_eq!(origin.count("kind=blob"), 3);

    // The fourth is kept for checks of tags: none of them waits for the end of a body.
    origin.clear_log();
    for _ in 0..10 {
        let began = Instant::now();
        let tag = server.get(TAG).expect(200);
        assert_eq!(tag.field("warning"), None, "{}", tag.head.raw);
        assert_eq!(digest(&tag.body), image.digest);
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    }
    assert_eq!(origin.count("kind=manifest&method=HEAD"), 10);
    assert_eq!(server.metric("entrepot_upstream_waiting", &[]), 5.0);
    origin.release();
    for client in clients {
        client.join().expect("all are served in the end");
    }
    until_true("all permits are given back", || {
        server.metric("entrepot_upstream_permits", &[]) == 0.0
    });
}

fn pull_in_threads(server: &Entrepot, blobs: &[Held]) -> Vec<thread::JoinHandle<()>> {
    let addr = server.addr();
    let pull = |blob: &Held| {
        let (target, digest) = (blob_target(blob), blob.digest.clone());
        thread::spawn(move || {
            let hashed = get_hashed(addr, &target).expect("a head");
            assert_eq!((hashed.broken, hashed.digest), (None, digest));
        })
    };
    blobs.iter().map(pull).collect()
}

/// RFC 9110 §10.2.3: not only a 429 says for how long.
#[test]
fn a_busy_upstream_that_names_a_time_is_left_alone_until_then() {
    let origin = Origin::start();
    let blobs: Vec<Held> = (0..4)
        .map(|seed| origin.blob(&["library/app"], 1_000, seed))
        .collect();
    let server = before(&origin, "");
    let busy = json!({"status": 503, "headers": {"Retry-After": "2"}});
    origin.fault_times(1, json!({"kind": "blob"}), busy);
    let began = Instant::now();
    let (addr, target) = (server.addr(), blob_target(&blobs[0]));
    let first = thread::spawn(move || get(addr, &target));
    until_true("its lane is held", || {
        server.metric("entrepot_upstream_held_lanes", &[]) == 1.0
    });
    for client in pull_in_threads(&server, &blobs[1..]) {
        client.join().expect("no client sees it");
    }
    first.join().expect("an answer").expect(200);
    assert!(began.elapsed() >= Duration::from_millis(1_900));
    assert_eq!(origin.count("kind=blob"), 5, "only the first asked twice");

    // For longer than a client waits: passed on, and nobody asks.
    let busy = json!({"status": 503, "headers": {"Retry-After": "86400"}});
    origin.fault(json!({"kind": "blob"}), busy);
    let absent = blob_target(&origin.blob(&["library/app"], 1_000, 9));
    origin.clear_log();
    for _ in 0..10 {
        let answer = server.get(&absent);
        assert_eq!(answer.status(), 502, "{}", answer.head.raw);
        let after = retry_after(&answer).expect("a time to come back at");
        assert!((290..=300).contains(&after), "{}", answer.head.raw);
    }
    assert_eq!(origin.count("kind=blob"), 1);
}

/// That another upstream is asked meanwhile, and lacks it, is no reason not to wait.
#[test]
fn who_comes_while_a_busy_upstream_is_left_alone_waits_although_there_is_another() {
    let (busy, other) = (Origin::start(), Origin::start());
    let blobs: Vec<Held> = (0..4)
        .map(|seed| busy.blob(&["library/app"], 1_000, seed))
        .collect();
    let config = Config::new().project("dh", "default = true", &[busy.url(), other.url()]);
    let server = Setup::new(&config).args(&["--shards", "2"]).start();
    let unavailable = json!({"status": 503, "headers": {"Retry-After": "3"}});
    busy.fault_times(1, json!({"kind": "blob"}), unavailable);
    let clients = pull_in_threads(&server, &blobs[..1]);
    until_true("its lane is held", || {
        server.metric("entrepot_upstream_held_lanes", &[]) == 1.0
    });
    let later = pull_in_threads(&server, &blobs[1..]);
    for client in clients.into_iter().chain(later) {
        client.join().expect("no client sees it");
    }
    assert_eq!(busy.count("kind=blob"), 5, "only the first asked twice");
}

/// Ids are never given twice, so those of former configurations must not pile up.
#[test]
fn the_metrics_know_the_upstreams_of_now_and_no_others() {
    let origin = Origin::start();
    origin.image("library/app", "1", 1);
    let server = before(&origin, "");
    let shown = || {
        let page = get(server.admin(), "/metrics").expect(200).text();
        let series = page.lines().filter(|line| {
            line.starts_with("entrepot_upstream_breaker{") && line.contains("project=\"dh\"")
        });
        series.map(str::to_owned).collect::<Vec<_>>()
    };
    server.get(TAG).expect(200);
    let first = shown();
    assert_eq!(first.len(), 1, "{first:?}");
    for nth in 1..=5 {
        // Another setting, so another upstream.
        let keys = format!(
            "url = \"{}\"\nconnections_max = {}",
            origin.url(),
            100 + nth
        );
        let config = Config::new().project("dh", "default = true", &[]);
        let text = config.upstream("dh", &keys);
        std::fs::write(server.setup().config_path(), text.text()).expect("the configuration");
        server.ask_ok(&["reload"]);
        server.get(TAG).expect(200);
        let now = shown();
        assert_eq!(now.len(), 1, "{now:?}");
        assert_ne!(now, first);
    }
}

#[test]
fn what_is_not_there_is_asked_for_once_until_it_is_forgotten() {
    let origin = Origin::start();
    origin.image("library/app", "1", 1);
    let server = before(&origin, "negative_for = \"30s\"");
    let missing = "/v2/dh/library/app/manifests/later";
    for _ in 0..10 {
        server.get(missing).expect(404);
    }
    assert_eq!(origin.count("kind=manifest&contains=later"), 1);
    assert_eq!(server.metric("entrepot_upstream_negatives", &[]), 1.0);
    let answers = server.metric("entrepot_upstream_negative_answers_total", &[]);
    assert_eq!(answers, 9.0);
    origin.image("library/app", "later", 2);
    server.get(missing).expect(404);
    server.ask_ok(&["purge", "tag", "dh/library/app:later"]);
    server.get(missing).expect(200);
}

/// A tag that is cached is asked for every time, whatever was said the last time.
#[test]
fn what_is_cached_has_no_negative_answer() {
    let origin = Origin::start();
    let image = origin.image("library/app", "1", 1);
    let server = before(&origin, "negative_for = \"30s\"");
    server.get(TAG).expect(200);
    origin.call("delete", json!({"repository": "library/app", "tag": "1"}));
    server.get(TAG).expect(404);
    origin.tag("library/app", "1", &image.digest);
    server.get(TAG).expect(200);
}
