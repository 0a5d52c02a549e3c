//! Tags, lists and referrers: revalidated by one HEAD, served stale when upstream fails, and the
//! answer says so.

use serde_json::{Value, json};

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{Answer, Connection, ask_together};
use entrepot_tests::origin::Origin;
use entrepot_tests::sha256::digest;

const TAG: &str = "/v2/dh/library/app/manifests/1";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Clients that pull one tag at the same moment.
const CLIENTS: usize = 16;

fn with_keys(origin: &Origin, keys: &str) -> Setup {
    Setup::new(&Config::new().project("dh", keys, &[origin.url()]))
}

/// RFC 9211, and RFC 9111 §5.5 as the distribution specification uses it.
#[track_caller]
fn check_stale(answer: &Answer) {
    let raw = &answer.head.raw;
    assert_eq!(answer.status(), 200, "{raw}");
    assert!(
        answer
            .field("warning")
            .is_some_and(|value| value.starts_with("299 ")),
        "{raw}"
    );
    assert!(
        answer
            .field("cache-status")
            .is_some_and(|value| value.contains("hit")),
        "{raw}"
    );
    let age = answer.field("age").map(str::parse::<u64>);
    assert!(matches!(age, Some(Ok(_))), "{raw}");
}

#[test]
fn a_tag_pull_is_one_head_and_a_get_only_when_it_moved() {
    let origin = Origin::start();
    let first = origin.image("library/app", "1", 1);
    let server = Entrepot::before(origin.url());
    for pull in 1..=3 {
        let answer = server.get(TAG).expect(200);
        assert_eq!(digest(&answer.body), first.digest);
        assert!(answer.field("warning").is_none(), "{}", answer.head.raw);
        assert_eq!(origin.count("kind=manifest&method=HEAD"), pull);
        assert_eq!(origin.count("kind=manifest&method=GET"), 1);
    }
    let second = origin.image("library/app", "new", 2);
    origin.tag("library/app", "1", &second.digest);
    assert_eq!(digest(&server.get(TAG).expect(200).body), second.digest);
    assert_eq!(origin.count("kind=manifest&method=HEAD"), 4);
    assert_eq!(origin.count("kind=manifest&method=GET"), 2);
    // And back: the old manifest is still held.
    origin.tag("library/app", "1", &first.digest);
    assert_eq!(digest(&server.get(TAG).expect(200).body), first.digest);
    assert_eq!(origin.count("kind=manifest&method=GET"), 2);
}

#[test]
fn pulls_of_one_tag_at_once_are_one_head() {
    let origin = Origin::start();
    let image = origin.image("library/app", "1", 1);
    let server = Entrepot::before(origin.url());
    server.get(TAG).expect(200);
    origin.clear_log();
    origin.fault(
        json!({"kind": "manifest", "method": "HEAD"}),
        json!({"hang": true}),
    );

    let mut clients = ask_together(server.addr(), TAG, CLIENTS);
    origin.wait(json!({"kind": "manifest", "method": "HEAD"}), 1);
    origin.release();
    for client in &mut clients {
        let answer = client.answer("GET").expect("an answer").expect(200);
        assert_eq!(digest(&answer.body), image.digest);
    }
    assert_eq!(
        origin.count("kind=manifest"),
        1,
        "{:#?}",
        origin.log("kind=manifest")
    );
    until_true("the collapsed ones are counted", || {
        server.metric("entrepot_requests_total", &["collapsed"]) >= (CLIENTS - 1) as f64
    });
}

#[test]
fn a_tier_trusts_its_tags_for_its_time() {
    let origin = Origin::start();
    origin.image("library/app", "1.2.3", 1);
    origin.image("library/app", "latest", 2);
    let tiers = "freshness = [{ tags = '^\\d+\\.\\d+\\.\\d+$', for = \"1h\" }, { for = \"0s\" }]";
    let server = with_keys(&origin, tiers).start();
    for _ in 0..3 {
        server.get("/v2/dh/library/app/manifests/1.2.3").expect(200);
        server
            .get("/v2/dh/library/app/manifests/latest")
            .expect(200);
    }
    assert_eq!(origin.count("kind=manifest&contains=1.2.3"), 1);
    assert_eq!(origin.count("kind=manifest&contains=latest"), 3);
}

#[test]
fn a_failing_upstream_is_stood_in_for_by_the_cached_copy() {
    let origin = Origin::start();
    let image = origin.image("library/app", "1", 1);
    let server = Entrepot::before(origin.url());
    server.get(TAG).expect(200);
    let limited = json!({"status": 429, "headers": {"Retry-After": "1"}});
    for fault in [
        json!({"status": 500}),
        json!({"status": 503}),
        limited,
        json!({"refuse": true}),
        json!({"raw": "nonsense\r\n\r\n"}),
        json!({"reset_at": 0, "status": 502}),
    ] {
        origin.fault(json!({"kind": "manifest"}), fault.clone());
        for method in ["GET", "HEAD"] {
            let mut connection = Connection::open(server.addr());
            connection.request(method, TAG, &[]);
            let answer = connection.answer(method).expect("an answer");
            check_stale(&answer);
            let named = answer.field("docker-content-digest");
            assert_eq!(named, Some(image.digest.as_str()), "{fault}");
        }
        origin.clear_faults();
        // What it named as its time to come back is respected.
        until_true("the tag is fresh again", || {
            server.get(TAG).expect(200).field("warning").is_none()
        });
    }
    origin.go_down();
    let answer = server.get(TAG);
    check_stale(&answer);
    assert_eq!(digest(&answer.body), image.digest);
    assert!(server.metric("entrepot_requests_total", &["stale"]) > 0.0);
}

#[test]
fn an_upstream_that_does_not_answer_is_stood_in_for_after_its_timeout() {
    let origin = Origin::start();
    let image = origin.image("library/app", "1", 1);
    let config = Config::new().project("dh", "default = true", &[]);
    let keys = format!("url = \"{}\"\nread_timeout = \"1s\"", origin.url());
    let server = Setup::new(&config.upstream("dh", &keys)).start();
    server.get(TAG).expect(200);
    origin.fault(json!({"kind": "manifest"}), json!({"hang": true}));
    let answer = server.get(TAG);
    check_stale(&answer);
    assert_eq!(digest(&answer.body), image.digest);
    // By digest nothing needs to be asked.
    let by_digest = format!("/v2/dh/library/app/manifests/{}", image.digest);
    server.get(&by_digest).expect(200);
}

#[test]
fn a_deleted_or_forbidden_tag_is_not_served() {
    let origin = Origin::start();
    origin.image("library/app", "1", 1);
    let server = Entrepot::before(origin.url());
    server.get(TAG).expect(200);
    let fault = origin.fault(json!({"kind": "manifest"}), json!({"status": 403}));
    let denied = server.get(TAG);
    assert!(
        matches!(denied.status(), 401 | 403 | 404),
        "{}",
        denied.head.raw
    );
    origin.call("faults/clear", json!({"id": fault}));
    origin.call("delete", json!({"repository": "library/app", "tag": "1"}));
    server.get(TAG).expect_error(404, "MANIFEST_UNKNOWN");
}

#[test]
fn the_time_a_copy_stands_in_is_bounded_and_configurable() {
    let origin = Origin::start();
    origin.image("library/app", "1", 1);
    let keys = "stale = { unreachable = \"0s\", server_error = \"1h\", not_found = \"1h\" }";
    let server = with_keys(&origin, keys).start();
    server.get(TAG).expect(200);
    origin.fault(json!({"kind": "manifest"}), json!({"status": 500}));
    check_stale(&server.get(TAG));
    origin.clear_faults();
    origin.call("delete", json!({"repository": "library/app", "tag": "1"}));
    check_stale(&server.get(TAG));
    origin.go_down();
    let answer = server.get(TAG);
    assert_eq!(answer.status(), 502, "{}", answer.head.raw);
}

#[test]
fn a_head_of_a_tag_needs_no_get() {
    let origin = Origin::start();
    let image = origin.image("library/app", "1", 1);
    let server = Entrepot::before(origin.url());
    let answer = server.head(TAG).expect(200);
    assert_eq!(
        answer.field("docker-content-digest"),
        Some(image.digest.as_str())
    );
    assert_eq!(
        answer.field("content-type"),
        Some(image.media_type.as_str())
    );
    assert!(answer.head.length().expect("a length").is_some());
}

/// containerd and dockerd ask for a tag by HEAD only, and then for its digest.
#[test]
fn a_tag_that_is_only_asked_for_by_head_stands_in_too() {
    let origin = Origin::start();
    let image = origin.image("library/app", "1", 1);
    let server = Entrepot::before(origin.url());
    server.head(TAG).expect(200);
    let by_digest = format!("/v2/dh/library/app/manifests/{}", image.digest);
    server.get(&by_digest).expect(200);

    // It moves, and is asked for in the same way.
    let moved = origin.image("library/app", "1", 2);
    server.head(TAG).expect(200);
    let by_digest = format!("/v2/dh/library/app/manifests/{}", moved.digest);
    server.get(&by_digest).expect(200);

    server.wait_committed();
    origin.go_down();
    let server = server.kill9().start();
    let mut connection = Connection::open(server.addr());
    connection.request("HEAD", TAG, &[]);
    let answer = connection.answer("HEAD").expect("an answer");
    check_stale(&answer);
    let named = answer.field("docker-content-digest");
    assert_eq!(named, Some(moved.digest.as_str()));
    let answer = server.get(TAG);
    check_stale(&answer);
    assert_eq!(digest(&answer.body), moved.digest);
}

#[test]
fn an_upstream_without_head_or_digest_field_is_served_all_the_same() {
    let origin = Origin::start();
    for (tag, fault) in [
        ("a", json!({"status": 405})),
        ("b", json!({"drop_headers": ["Docker-Content-Digest"]})),
        (
            "c",
            json!({"drop_headers": ["Docker-Content-Digest", "ETag", "Content-Length"]}),
        ),
    ] {
        let image = origin.image("library/app", tag, u64::from(tag.as_bytes()[0]));
        let method = if tag == "a" {
            json!({"method": "HEAD"})
        } else {
            json!({})
        };
        origin.fault(method, fault.clone());
        let server = Entrepot::before(origin.url());
        for _ in 0..2 {
            let target = format!("/v2/dh/library/app/manifests/{tag}");
            let answer = server.get(&target).expect(200);
            assert_eq!(digest(&answer.body), image.digest, "{fault}");
            let named = answer.field("docker-content-digest");
            assert_eq!(named, Some(image.digest.as_str()), "{fault}");
        }
        origin.clear_faults();
    }
}

#[test]
fn a_flapping_tag_is_always_one_whole_image() {
    let origin = Origin::start();
    let images = [1, 2].map(|seed| origin.image("library/app", &format!("s{seed}"), seed));
    let digests = [images[0].digest.as_str(), images[1].digest.as_str()];
    origin.call(
        "tags",
        json!({"repository": "library/app", "tag": "1", "digests": digests}),
    );
    let server = Entrepot::before(origin.url());
    for _ in 0..6 {
        let answer = server.get(TAG).expect(200);
        let got = digest(&answer.body);
        assert!(digests.contains(&got.as_str()));
        assert_eq!(answer.field("docker-content-digest"), Some(got.as_str()));
    }
}

fn tags_of(answer: &Answer) -> Vec<String> {
    let list: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let tags = list["tags"].as_array().expect("tags").iter();
    tags.map(|tag| tag.as_str().expect("a tag").to_owned())
        .collect()
}

#[test]
fn tag_lists_are_forwarded_and_kept_for_when_upstream_is_down() {
    let origin = Origin::start();
    for (seed, tag) in ["a", "b", "c"].into_iter().enumerate() {
        origin.image("library/app", tag, seed as u64);
    }
    let server = Entrepot::before(origin.url());
    let list = "/v2/dh/library/app/tags/list";
    assert_eq!(tags_of(&server.get(list).expect(200)), ["a", "b", "c"]);
    origin.image("library/app", "d", 9);
    assert_eq!(tags_of(&server.get(list).expect(200)), ["a", "b", "c", "d"]);
    let page = server.get(&format!("{list}?n=2")).expect(200);
    assert_eq!(tags_of(&page), ["a", "b"]);

    server.wait_committed();
    origin.go_down();
    let server = server.kill9().start();
    let kept = server.get(list);
    check_stale(&kept);
    assert_eq!(tags_of(&kept), ["a", "b", "c", "d"]);
    let kept = server.get(&format!("{list}?n=2"));
    check_stale(&kept);
    assert_eq!(
        (tags_of(&kept), kept.field("link")),
        (tags_of(&page), page.field("link"))
    );
    // Another page was never asked for.
    assert_eq!(server.get(&format!("{list}?n=3")).status(), 502);
}

#[test]
fn the_pages_of_a_tag_list_can_be_followed_in_every_url_shape() {
    let origin = Origin::start();
    for seed in 0..5 {
        origin.image("library/app", &format!("t{seed}"), seed);
    }
    let server = Entrepot::before(origin.url());
    for start in [
        "/v2/dh/library/app/tags/list?n=2",
        "/dh/v2/library/app/tags/list?n=2",
        "/v2/library/app/tags/list?n=2",
        "/v2/library/app/tags/list?n=2&ns=docker.io",
    ] {
        let mut target = start.to_owned();
        let mut tags = Vec::new();
        // Five tags are three pages; a fourth would be a loop.
        for _ in 0..4 {
            let answer = server.get(&target).expect(200);
            tags.extend(tags_of(&answer));
            let Some(link) = answer.field("link") else {
                break;
            };
            let (next, rest) = link.split_once('>').expect("a link");
            assert!(
                rest.contains("rel=\"next\"") || rest.contains("rel=next"),
                "{link}"
            );
            target = next.trim_start_matches('<').to_owned();
            assert!(
                target.starts_with('/'),
                "a link leads here, not upstream: {link}"
            );
        }
        assert_eq!(tags, ["t0", "t1", "t2", "t3", "t4"], "{start}");
    }
}

#[test]
fn referrers_are_forwarded_and_kept_for_when_upstream_is_down() {
    let origin = Origin::start();
    let image = origin.image("library/app", "1", 1);
    for artifact_type in ["application/sbom", "application/signature"] {
        origin.call(
            "artifacts",
            json!({"repository": "library/app", "size": 10,
            "artifact_type": artifact_type, "subject": image.digest}),
        );
    }
    let server = Entrepot::before(origin.url());
    let all = format!("/v2/dh/library/app/referrers/{}", image.digest);
    let some = format!("{all}?artifactType=application/sbom");
    let count = |answer: &Answer| {
        assert_eq!(
            answer.field("content-type"),
            Some(INDEX),
            "{}",
            answer.head.raw
        );
        let index: Value = serde_json::from_slice(&answer.body).expect("JSON");
        index["manifests"].as_array().expect("manifests").len()
    };
    assert_eq!(count(&server.get(&all).expect(200)), 2);
    assert_eq!(count(&server.get(&some).expect(200)), 1);
    let none = "/v2/dh/library/app/referrers/sha256:\
        0000000000000000000000000000000000000000000000000000000000000000";
    assert_eq!(count(&server.get(none).expect(200)), 0);

    server.wait_committed();
    origin.go_down();
    let server = server.kill9().start();
    for (target, expected) in [(&all, 2), (&some, 1)] {
        let kept = server.get(target);
        check_stale(&kept);
        assert_eq!(count(&kept), expected);
    }
}
