//! Manifests that break on their way in: asked for once more, and then of the next upstream.

use serde_json::{Value, json};

use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::origin::{HeldImage, Origin};
use entrepot_tests::sha256::digest;

const REPOSITORY: &str = "library/app";

fn target(reference: &str) -> String {
    format!("/v2/dh/{REPOSITORY}/manifests/{reference}")
}

fn before(origins: &[&Origin]) -> Entrepot {
    let urls: Vec<&str> = origins.iter().map(|origin| origin.url()).collect();
    Setup::new(&Config::new().project("dh", "default = true", &urls)).start()
}

/// What breaks a manifest.
fn faults() -> [Value; 6] {
    [
        json!({"truncate_at": "50%"}),
        json!({"reset_at": "50%"}),
        json!({"length_add": 10}),
        json!({"body_add": -1}),
        json!({"flip_at": 3}),
        json!({"chunked": true, "truncate_at": -1}),
    ]
}

fn gets(origin: &Origin) -> usize {
    origin.count("kind=manifest&method=GET")
}

/// The same image on all of them.
fn image(origins: &[&Origin], seed: u64) -> HeldImage {
    let images = origins
        .iter()
        .map(|origin| origin.image(REPOSITORY, "1", seed));
    let mut images: Vec<HeldImage> = images.collect();
    images.pop().expect("an origin")
}

fn get_manifests() -> Value {
    json!({"kind": "manifest", "method": "GET"})
}

#[test]
fn a_manifest_that_breaks_once_is_asked_for_once_more() {
    for (nth, fault) in faults().into_iter().enumerate() {
        // By tag, by digest, and by a tag whose upstream knows no HEAD.
        for (way, by_tag, heads) in [(0, true, true), (1, false, true), (2, true, false)] {
            let honest = ["flip_at", "body_add"].map(|key| !fault[key].is_null());
            if !heads && honest.contains(&true) {
                // Nothing says what the manifest should have been.
                continue;
            }
            let origin = Origin::start();
            let image = image(&[&origin], 10 * nth as u64 + way);
            if !heads {
                origin.fault(
                    json!({"kind": "manifest", "method": "HEAD"}),
                    json!({"status": 405}),
                );
            }
            origin.fault_times(1, get_manifests(), fault.clone());
            let server = before(&[&origin]);
            let reference = if by_tag { "1" } else { image.digest.as_str() };
            let answer = server.get(&target(reference)).expect(200);
            assert_eq!(digest(&answer.body), image.digest, "{fault}");
            assert_eq!(gets(&origin), 2, "{fault}");
        }
    }
}

#[test]
fn a_manifest_that_breaks_twice_is_asked_of_the_next_upstream() {
    for (nth, fault) in faults().into_iter().enumerate() {
        let (first, second) = (Origin::start(), Origin::start());
        let image = image(&[&first, &second], nth as u64);
        first.fault(get_manifests(), fault.clone());
        for reference in ["1", image.digest.as_str()] {
            let server = before(&[&first, &second]);
            let answer = server.get(&target(reference)).expect(200);
            assert_eq!(digest(&answer.body), image.digest, "{fault}");
            assert_eq!((gets(&first), gets(&second)), (2, 1), "{fault}");
            first.clear_log();
            second.clear_log();
        }

        // Alone it is asked no more than that either.
        let server = before(&[&first]);
        let answer = server.get(&target(&image.digest));
        assert_eq!(answer.status(), 502, "{fault}: {}", answer.head.raw);
        assert_eq!((answer.broken, gets(&first)), (None, 2), "{fault}");
        first.clear_log();
    }
}

/// A proxy that wants a login first answers everything with its page.
#[test]
fn an_upstream_that_answers_a_tag_with_no_manifest_does_not_hide_the_next() {
    for (nth, fault) in [
        json!({"html": true}),
        json!({"status": 200, "body": "{}", "headers": {"Content-Type": "application/json"}}),
        json!({"status": 200, "body": " ".repeat(5 << 20),
            "headers": {"Content-Type": "application/json"}}),
    ]
    .into_iter()
    .enumerate()
    {
        let (first, second) = (Origin::start(), Origin::start());
        let image = image(&[&first, &second], nth as u64);
        first.fault(get_manifests(), fault);
        first.fault(
            json!({"kind": "manifest", "method": "HEAD"}),
            json!({"html": true}),
        );
        let server = before(&[&first, &second]);
        let answer = server.get(&target("1")).expect(200);
        assert_eq!(digest(&answer.body), image.digest, "{nth}");
        assert_eq!(gets(&first), 1, "{nth}: it would say the same again");
        // Alone it is a clean error, and the same one as ever.
        let alone = before(&[&first]).get(&target("1"));
        assert_eq!((alone.status(), alone.broken), (502, None), "{nth}");
    }
}

/// An upstream whose every manifest breaks is not sent twice as many requests.
#[test]
fn manifests_that_always_break_are_asked_again_from_the_budget_of_retries() {
    const PULLS: usize = 30;
    let origin = Origin::start();
    let server = Setup::new(&Config::one(origin.url()))
        .args(&["--shards", "1"])
        .start();
    origin.fault(get_manifests(), json!({"truncate_at": "50%"}));
    for seed in 0..PULLS {
        let image = origin.image(REPOSITORY, "1", seed as u64);
        let answer = server.get(&target(&image.digest));
        assert_eq!(answer.status(), 502, "{}", answer.head.raw);
    }
    // Ten are saved up, and ten requests earn one.
    let asked = gets(&origin);
    assert!((PULLS + 10..=PULLS + 15).contains(&asked), "{asked}");
}
