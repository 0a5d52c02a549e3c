//! Upstreams that send wrong, short, long or broken bodies: no client ever completes a 200 with a
//! wrong digest, nothing of them is kept, and the next good pull works (S2, R6).

use std::time::Duration;

use serde_json::{Value, json};

use entrepot_tests::deadline::until_within;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{Answer, Broken, fetch, get_hashed};
use entrepot_tests::origin::{Held, Origin};
use entrepot_tests::sha256::{absent, digest};

/// Bodies up to this long leave the server only once verified, so their failure is a clean 502.
const WITHHELD_LEN: u64 = 1 << 20;

/// Below the withheld length (ten more are at it), just above, and well above.
const BODY_LENS: [u64; 4] = [1_000, WITHHELD_LEN - 10, WITHHELD_LEN + 1, 5_000_000];

/// Clients that ask for the same bad body at once.
const CLIENTS: usize = 3;

/// A source of a wrong digest is left alone for this long (30 s unless configured), so that a
/// broken upstream is not asked in a loop.
const HOLDOFF: &str = "limits.mismatch_holdoff=5s";
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

fn before(origin: &Origin) -> Entrepot {
    Setup::new(&Config::one(origin.url()))
        .args(&["--set", HOLDOFF])
        .start()
}

/// What the origin does to a body; none of these ever delivers the right bytes.
fn faults() -> Vec<(&'static str, Value)> {
    vec![
        ("first byte wrong", json!({"flip_at": 0})),
        ("middle byte wrong", json!({"flip_at": "50%"})),
        ("last byte wrong", json!({"flip_at": -1})),
        (
            "shorter than it is, honest length",
            json!({"body_add": -10}),
        ),
        ("longer than it is, honest length", json!({"body_add": 10})),
        (
            "length claims ten more",
            json!({"length_add": 10, "flip_at": 0}),
        ),
        ("length claims ten less", json!({"length_add": -10})),
        ("reset at once", json!({"reset_at": 0})),
        ("reset in the middle", json!({"reset_at": "50%"})),
        ("ends in the middle", json!({"truncate_at": "50%"})),
        ("last byte missing", json!({"truncate_at": -1})),
        ("chunked, wrong", json!({"chunked": true, "flip_at": "50%"})),
        (
            "chunked, wrong at the end",
            json!({"chunked": true, "flip_at": -1}),
        ),
        (
            "chunked, ends in the middle",
            json!({"chunked": true, "truncate_at": "50%"}),
        ),
        (
            "until close, ends early",
            json!({"until_close": true, "truncate_at": -1}),
        ),
        (
            "until close, wrong",
            json!({"until_close": true, "flip_at": 0}),
        ),
        ("a web page", json!({"html": true})),
        ("an empty body", json!({"body_add": -1_000_000_000})),
    ]
}

fn target(blob: &Held) -> String {
    format!("/v2/dh/library/bad/blobs/{}", blob.digest)
}

/// One body, one fault, several clients at once.
fn pull_bad_body(server: &Entrepot, name: &str, blob: &Held) {
    let target = target(blob);
    let addr = server.addr();
    let results: Vec<_> = std::thread::scope(|scope| {
        let clients = [(); CLIENTS].map(|()| scope.spawn(|| get_hashed(addr, &target)));
        let results = clients.into_iter().map(|client| client.join());
        results.map(|result| result.expect("a client")).collect()
    });
    for result in results {
        match result {
            Ok(hashed) if hashed.head.status == 200 => {
                let complete = hashed.broken.is_none();
                assert!(!complete, "{name}, {} bytes: a complete 200", blob.size);
                assert!(
                    blob.size > WITHHELD_LEN,
                    "{name}: a 200 before it was verified"
                );
                assert!(
                    hashed.len < blob.size,
                    "{name}: all {} bytes given away",
                    hashed.len
                );
            }
            Ok(hashed) => {
                assert_eq!(hashed.head.status, 502, "{name}, {} bytes", blob.size);
                assert_eq!(hashed.broken, None, "{name}: a broken 502");
            }
            // A large body may break before its head left.
            Err(broken) => {
                assert!(
                    blob.size > WITHHELD_LEN,
                    "{name}: {broken:?} and not a clean 502"
                );
            }
        }
    }
}

fn never_served(server: &Entrepot, name: &str, blob: &Held) {
    match server.try_get(&target(blob)) {
        Ok(answer) => assert_ne!(answer.status(), 200, "{name}: served from the store"),
        Err(broken) => panic!("{name}: no clean error: {broken:?}"),
    }
}

#[test]
fn no_bad_body_is_completed_or_kept_and_the_next_good_pull_works() {
    let origin = Origin::start();
    let server = before(&origin);
    let mut cases = Vec::new();
    for (nth, (name, fault)) in faults().into_iter().enumerate() {
        for len in BODY_LENS {
            let seed = 1_000 * nth as u64 + len;
            let blob = origin.blob(&["library/bad"], len, seed);
            origin.fault(
                json!({"contains": blob.digest, "method": "GET"}),
                fault.clone(),
            );
            cases.push((name, blob));
        }
    }
    for (name, blob) in &cases {
        pull_bad_body(&server, name, blob);
    }
    let bodies = server.metric("entrepot_store_bodies", &[]);
    assert_eq!(bodies, 0.0, "something of them was indexed");

    origin.go_down();
    for (name, blob) in &cases {
        never_served(&server, name, blob);
    }
    let server = server.kill9().start();
    for (name, blob) in &cases {
        never_served(&server, name, blob);
    }

    origin.clear_faults();
    origin.come_back();
    for (name, blob) in &cases {
        until_within(
            FORGIVEN_AFTER,
            &format!("{name}: the next good pull"),
            || {
                let hashed = get_hashed(server.addr(), &target(blob)).ok()?;
                let good = hashed.head.status == 200 && hashed.broken.is_none();
                good.then(|| assert_eq!(hashed.digest, blob.digest, "{name}"))
            },
        );
    }
}

#[test]
fn a_wrong_digest_is_remembered_and_then_forgiven_without_a_restart() {
    let origin = Origin::start();
    let server = before(&origin);
    let blob = origin.blob(&["library/bad"], 5_000_000, 1);
    origin.fault_times(
        1,
        json!({"kind": "blob", "method": "GET"}),
        json!({"flip_at": -1}),
    );
    let first = get_hashed(server.addr(), &target(&blob));
    assert!(!first.is_ok_and(|hashed| hashed.broken.is_none() && hashed.head.status == 200));

    // Ranges included: their bytes would be as wrong.
    let range = server.get_with(&target(&blob), &[("Range", "bytes=0-9")]);
    assert_eq!(range.status(), 502, "{}", range.head.raw);
    assert_eq!(
        origin.count("kind=blob&method=GET"),
        1,
        "asked again in a loop"
    );
    until_within(FORGIVEN_AFTER, "the next good pull", || {
        let hashed = get_hashed(server.addr(), &target(&blob)).ok()?;
        let good = hashed.head.status == 200 && hashed.broken.is_none();
        good.then(|| assert_eq!(hashed.digest, blob.digest))
    });
}

#[test]
fn a_body_broken_once_is_whole_at_the_next_pull() {
    // Resumed, retried or failed: all are right, but a client that got a whole 200 got the truth.
    let origin = Origin::start();
    let server = before(&origin);
    let faults = [
        json!({"reset_at": "50%"}),
        json!({"truncate_at": "50%"}),
        json!({"truncate_at": -1}),
        json!({"refuse": true}),
        json!({"status": 503}),
        json!({"chunked": true, "truncate_at": "50%"}),
    ];
    for (nth, fault) in faults.into_iter().enumerate() {
        for len in [1_000, 5_000_000] {
            let blob = origin.blob(&["library/bad"], len, 10 * nth as u64 + len);
            let matching = json!({"contains": blob.digest, "method": "GET"});
            origin.fault_times(1, matching, fault.clone());
            let first = get_hashed(server.addr(), &target(&blob));
            if let Ok(hashed) = first.as_ref()
                && hashed.head.status == 200
                && hashed.broken.is_none()
            {
                assert_eq!(hashed.digest, blob.digest, "{fault}");
            }
            until_within(FORGIVEN_AFTER, &format!("{fault}: a whole body"), || {
                let hashed = get_hashed(server.addr(), &target(&blob)).ok()?;
                let good = hashed.head.status == 200 && hashed.broken.is_none();
                good.then(|| assert_eq!(hashed.digest, blob.digest))
            });
        }
    }
}

#[test]
fn bodies_of_unknown_length_arrive_whole() {
    let origin = Origin::start();
    let server = before(&origin);
    for (nth, fault) in [json!({"chunked": true}), json!({"until_close": true})]
        .iter()
        .enumerate()
    {
        for len in [0, 1, 1_000, WITHHELD_LEN, WITHHELD_LEN + 1, 5_000_000] {
            let blob = origin.blob(&["library/bad"], len, 10 * nth as u64 + len);
            origin.fault(json!({"contains": blob.digest}), fault.clone());
            for _ in 0..2 {
                let hashed = get_hashed(server.addr(), &target(&blob)).expect("a head");
                assert_eq!(
                    (hashed.broken, hashed.digest),
                    (None, blob.digest.clone()),
                    "{fault}"
                );
            }
            assert_eq!(
                origin.count(&format!("method=GET&contains={}", blob.digest)),
                1
            );
        }
    }
}

/// A wrong manifest is a clean error by digest and by tag, and never what the tag serves.
#[test]
fn wrong_manifests_are_clean_errors() {
    let faults = [
        json!({"flip_at": 3}),
        json!({"body_add": -1}),
        json!({"body_add": 1}),
        json!({"truncate_at": "50%"}),
        json!({"reset_at": "50%"}),
        json!({"html": true}),
        json!({"chunked": true, "flip_at": -1}),
        json!({"status": 200, "body": "{}", "headers": {"Content-Type": "application/json"}}),
        json!({"status": 200, "body": "{".repeat(5 << 20),
            "headers": {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}}),
    ];
    for (nth, fault) in faults.into_iter().enumerate() {
        let origin = Origin::start();
        let image = origin.image("library/bad", "1", nth as u64);
        let server = before(&origin);
        origin.fault(json!({"kind": "manifest", "method": "GET"}), fault.clone());
        for reference in ["1", image.digest.as_str()] {
            let answer = server.get(&format!("/v2/dh/library/bad/manifests/{reference}"));
            check_clean_502(&fault, answer);
        }
    }
}

/// The field names one digest and the body has another.
#[test]
fn a_digest_field_that_lies_is_not_believed() {
    let origin = Origin::start();
    let image = origin.image("library/bad", "1", 1);
    let server = before(&origin);
    let lie = json!({"set_headers": {"Docker-Content-Digest": absent()}});
    origin.fault(json!({"kind": "manifest"}), lie);
    for method in ["GET", "HEAD", "GET"] {
        let answer = fetch(server.addr(), method, "/v2/dh/library/bad/manifests/1", &[]);
        let answer = answer.expect("an answer");
        assert_eq!(answer.broken, None);
        if answer.status() == 200 && method == "GET" {
            // Then it told the truth about what it served.
            assert_eq!(digest(&answer.body), image.digest);
            let named = answer.field("docker-content-digest");
            assert_eq!(named, Some(image.digest.as_str()));
        }
    }
    let target = format!("/v2/dh/library/bad/manifests/{}", absent());
    assert_ne!(server.get(&target).status(), 200);
}

fn check_clean_502(fault: &Value, answer: Answer) {
    assert_eq!(answer.status(), 502, "{fault}: {}", answer.head.raw);
    assert_eq!(answer.broken, None, "{fault}");
    assert!(answer.error_code().is_some(), "{fault}: {}", answer.text());
}

#[test]
fn a_stalled_upstream_ends_the_transfer_and_nothing_else() {
    let origin = Origin::start();
    let config = Config::new().project("dh", "default = true", &[]);
    let keys = format!("url = \"{}\"\nread_timeout = \"1s\"", origin.url());
    let server = Setup::new(&config.upstream("dh", &keys)).start();
    let stalled = origin.blob(&["library/bad"], 5_000_000, 1);
    let other = origin.blob(&["library/bad"], 5_000_000, 2);
    let matching = json!({"contains": stalled.digest, "method": "GET"});
    origin.fault(matching, json!({"stall_at": "50%"}));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| get_hashed(server.addr(), &target(&stalled)));
        origin.wait(json!({"kind": "blob", "contains": stalled.digest}), 1);
        let answer = server.get(&target(&other)).expect(200);
        assert_eq!(digest(&answer.body), other.digest);
        let stalled = waiting.join().expect("a client");
        let broken = match stalled {
            Ok(hashed) => hashed.broken.expect("a body cut short"),
            Err(broken) => broken,
        };
        assert_ne!(broken, Broken::Timeout, "the client was left waiting");
    });
}
