//! Bodies that break on their way: gone on with where they broke, on the same upstream or the
//! next, and failed visibly when nobody can go on. What reaches a client is right or not complete.

use std::net::SocketAddr;

use serde_json::{Value, json};

use sha2::{Digest as _, Sha512};

use entrepot_tests::deadline::{until, until_true};
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{Hashed, fetch, get_hashed};
use entrepot_tests::origin::{Held, Origin};

const REPOSITORY: &str = "library/big";

/// 256 MiB that break every 20 MB. `ENTREPOT_RESUME_BYTES` and `ENTREPOT_RESUME_BREAK` ask for
/// others, 4 GiB and 300 MB before a release.
const BODY_LEN: u64 = 256 << 20;
const BREAK_LEN: u64 = 20_000_000;
const CLIENTS: usize = 16;

/// A body of this length is streamed before it is verified, so its clients see how it ends.
const STREAMED_LEN: u64 = 8 << 20;

fn from_env(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is a number of bytes")),
        Err(_) => default,
    }
}

fn target(blob: &Held) -> String {
    format!("/v2/dh/{REPOSITORY}/blobs/{}", blob.digest)
}

/// A server before upstreams in this order, which believes in a stall after a second.
fn before(origins: &[&Origin]) -> Entrepot {
    let mut config = Config::new().project("dh", "default = true", &[]);
    for origin in origins {
        let keys = format!("url = \"{}\"\nread_timeout = \"1s\"", origin.url());
        config = config.upstream("dh", &keys);
    }
    Setup::new(&config).capacity("12GiB").start()
}

#[track_caller]
fn expect_whole(server: SocketAddr, blob: &Held) -> Hashed {
    let hashed = get_hashed(server, &target(blob)).expect("a head");
    assert_eq!(hashed.head.status, 200, "{}", hashed.head.raw);
    let arrived = (&hashed.broken, hashed.len, &hashed.digest);
    assert_eq!(arrived, (&None, blob.size, &blob.digest));
    hashed
}

/// Never a complete 200; its bytes could only be wrong.
fn expect_cut(server: SocketAddr, blob: &Held) {
    if let Ok(hashed) = get_hashed(server, &target(blob)) {
        let complete = hashed.head.status == 200 && hashed.broken.is_none();
        assert!(!complete, "a complete 200: {}", hashed.head.raw);
    }
}

fn clients_get_all(server: &Entrepot, blob: &Held) {
    let addr = server.addr();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| expect_whole(addr, blob));
        }
    });
}

fn bytes_sent(origins: &[&Origin]) -> u64 {
    let blobs = origins
        .iter()
        .flat_map(|origin| origin.log("kind=blob&method=GET"));
    blobs
        .map(|request| request["bytes"].as_u64().expect("bytes"))
        .sum()
}

fn range_of(request: &Value) -> Option<&str> {
    request["fields"]["range"][0].as_str()
}

fn check_upstream_bytes(origins: &[&Origin], blob: &Held) {
    let sent = bytes_sent(origins);
    println!("{sent} bytes from upstream for {} of the body", blob.size);
    assert!(sent * 100 <= blob.size * 102, "{sent} of {}", blob.size);
}

#[test]
fn a_body_over_a_connection_that_breaks_reaches_many_clients_once() {
    let (len, broken) = (
        from_env("ENTREPOT_RESUME_BYTES", BODY_LEN),
        from_env("ENTREPOT_RESUME_BREAK", BREAK_LEN),
    );
    let origin = Origin::start();
    let blob = origin.blob(&[REPOSITORY], len, 1);
    let matching = json!({"kind": "blob", "method": "GET"});
    origin.fault(matching, json!({"truncate_at": broken}));
    let server = before(&[&origin]);
    clients_get_all(&server, &blob);
    check_upstream_bytes(&[&origin], &blob);

    let requests = origin.log("kind=blob&method=GET");
    assert_eq!(requests.len() as u64, len.div_ceil(broken));
    let etag = format!("\"{}\"", blob.digest);
    for (nth, request) in requests.iter().enumerate().skip(1) {
        let start = nth as u64 * broken;
        let rest = format!("bytes={start}-{}", len - 1);
        assert_eq!(range_of(request), Some(rest.as_str()), "{request}");
        assert_eq!(request["fields"]["if-range"][0], etag.as_str(), "{request}");
    }
    let resumes = server.metric("entrepot_fill_resumes_total", &[]);
    assert_eq!(resumes, (requests.len() - 1) as f64);
    assert_eq!(
        server.metric("entrepot_fill_repeated_bytes_total", &[]),
        0.0
    );
}

#[test]
fn the_next_upstream_goes_on_when_the_first_dies_for_good() {
    let len = from_env("ENTREPOT_RESUME_BYTES", BODY_LEN);
    let (first, second) = (Origin::start(), Origin::start());
    let blob = first.blob(&[REPOSITORY], len, 2);
    second.blob(&[REPOSITORY], len, 2);
    first.fault(
        json!({"kind": "blob", "method": "GET"}),
        json!({"halt_at": "50%"}),
    );
    let server = before(&[&first, &second]);
    std::thread::scope(|scope| {
        scope.spawn(|| clients_get_all(&server, &blob));
        first.wait(json!({"kind": "blob", "state": "halted"}), 1);
        first.go_down();
    });
    check_upstream_bytes(&[&first, &second], &blob);
    let requests = second.log("kind=blob&method=GET");
    assert_eq!(requests.len(), 1, "{requests:#?}");
    assert!(range_of(&requests[0]).is_some_and(|range| range.ends_with(&format!("-{}", len - 1))));
    // What the first one called its body says nothing to the second.
    assert_eq!(requests[0]["fields"]["if-range"], Value::Null);
}

/// The first answer and six attempts, each of which the client may repeat once after a 5xx.
const REQUESTS_MAX: usize = 1 + 6 * 2;

/// Answers to "the rest" that are not the rest.
fn misfits() -> Vec<(&'static str, Value)> {
    let whole = STREAMED_LEN;
    vec![
        (
            "another start",
            json!({"set_headers": {"Content-Range": format!("bytes 0-{}/{whole}", whole - 1)}}),
        ),
        (
            "no Content-Range",
            json!({"drop_headers": ["Content-Range"]}),
        ),
        (
            "another ETag",
            json!({"set_headers": {"ETag": "\"other\""}}),
        ),
        ("shorter than it says", json!({"body_add": -10})),
        ("416", json!({"status": 416})),
        ("gone", json!({"status": 404})),
        ("forbidden", json!({"status": 403})),
        ("broken", json!({"status": 503})),
        ("a web page", json!({"html": true})),
    ]
}

#[test]
fn what_is_not_the_rest_is_never_joined() {
    for (nth, (name, misfit)) in misfits().into_iter().enumerate() {
        let (first, second) = (Origin::start(), Origin::start());
        let blob = first.blob(&[REPOSITORY], STREAMED_LEN, nth as u64);
        second.blob(&[REPOSITORY], STREAMED_LEN, nth as u64);
        let rest = json!({"kind": "blob", "method": "GET", "range": true});
        first.fault(rest, misfit.clone());
        let matching = json!({"kind": "blob", "method": "GET"});
        first.fault(matching, json!({"truncate_at": "50%"}));

        let alone = before(&[&first]);
        expect_cut(alone.addr(), &blob);
        let asked = first.count("kind=blob&method=GET");
        assert!(asked <= REQUESTS_MAX, "{name}: asked {asked} times");
        first.clear_log();

        let both = before(&[&first, &second]);
        expect_whole(both.addr(), &blob);
        assert_eq!(second.count("kind=blob&method=GET"), 1, "{name}");
        assert_eq!(
            both.metric("entrepot_wrong_digests_total", &[]),
            0.0,
            "{name}"
        );

        // Nothing of the failed one stayed, and nothing is held against its upstream; but an error
        // that it answered is remembered for a while.
        first.clear_faults();
        if misfit["status"].is_null() {
            expect_whole(alone.addr(), &blob);
        }
    }
}

#[test]
fn an_upstream_without_ranges_is_read_again_up_to_where_it_broke() {
    let origin = Origin::start();
    let blob = origin.blob(&[REPOSITORY], STREAMED_LEN, 1);
    let rest = json!({"kind": "blob", "method": "GET", "range": true});
    origin.fault(rest, json!({"whole": true}));
    let matching = json!({"kind": "blob", "method": "GET"});
    origin.fault(matching, json!({"truncate_at": "50%"}));
    let server = before(&[&origin]);
    expect_whole(server.addr(), &blob);
    assert_eq!(origin.count("kind=blob&method=GET&status=200"), 2);
    let repeated = server.metric("entrepot_fill_repeated_bytes_total", &[]);
    assert_eq!(repeated, (STREAMED_LEN / 2) as f64);
}

#[test]
fn an_expired_address_is_not_used_again() {
    let origin = Origin::start();
    let blob = origin.blob(&[REPOSITORY], STREAMED_LEN, 1);
    let at_registry = json!({"listener": "registry", "kind": "blob"});
    origin.fault(at_registry, json!({"redirect": "cdn"}));
    let at_cdn = json!({"listener": "cdn", "kind": "blob"});
    origin.fault_times(2, at_cdn, json!({"truncate_at": 3_000_000}));
    let server = before(&[&origin]);
    expect_whole(server.addr(), &blob);
    let signed = origin.log("listener=cdn&method=GET");
    let mut signatures: Vec<&str> = signed
        .iter()
        .map(|request| request["query"].as_str().expect("a query"))
        .collect();
    signatures.dedup();
    assert_eq!(signatures.len(), 3, "{signed:#?}");
    assert_eq!(origin.count("listener=registry&kind=blob&method=GET"), 3);
}

#[test]
fn a_stalled_upstream_is_left_for_the_next() {
    let (first, second) = (Origin::start(), Origin::start());
    let blob = first.blob(&[REPOSITORY], STREAMED_LEN, 1);
    second.blob(&[REPOSITORY], STREAMED_LEN, 1);
    let matching = json!({"kind": "blob", "method": "GET"});
    first.fault(matching, json!({"stall_at": "75%"}));
    let server = before(&[&first, &second]);
    expect_whole(server.addr(), &blob);
    let rest = second.log("kind=blob&method=GET");
    let expected = format!("bytes={}-{}", STREAMED_LEN / 4 * 3, STREAMED_LEN - 1);
    assert_eq!(range_of(&rest[0]), Some(expected.as_str()));
    assert_eq!(first.count("kind=blob&method=GET"), 1);
    until_true("the request's line names who ended the body", || {
        let log = server.log();
        let mut lines = log.iter().filter(|line| line["message"] == "served");
        lines.any(|line| line["upstream"] == second.url())
    });
}

/// Who can't be reached for a moment costs no `read_timeout`, and may be back at the next attempt.
#[test]
fn timeouts_that_take_no_time_do_not_end_a_body() {
    let origin = Origin::start();
    let blob = origin.blob(&[REPOSITORY], STREAMED_LEN, 1);
    let matching = json!({"kind": "blob", "method": "GET"});
    origin.fault_times(1, matching, json!({"halt_at": "50%"}));
    let keys = format!(
        "url = \"{}\"\nconnect_timeout = \"100ms\"\nbreaker = {{ failures = 1000 }}",
        origin.url()
    );
    let config = Config::new().project("dh", "default = true", &[]);
    let server = Setup::new(&config.upstream("dh", &keys)).start();
    std::thread::scope(|scope| {
        scope.spawn(|| expect_whole(server.addr(), &blob));
        origin.wait(json!({"kind": "blob", "state": "halted"}), 1);
        let attempts = || server.metric("entrepot_upstream_requests_total", &["GET"]);
        let before = attempts();
        origin.call("stop-accepting", json!({}));
        until_true("a third attempt", || attempts() >= before + 3.0);
        origin.call("resume-listening", json!({}));
    });
}

/// Unknown at first, the length is known from the first answer that says it.
#[test]
fn a_body_of_unknown_length_is_gone_on_with() {
    let origin = Origin::start();
    let blob = origin.blob(&[REPOSITORY], STREAMED_LEN, 1);
    let matching = json!({"kind": "blob", "method": "GET"});
    let broken = json!({"chunked": true, "truncate_at": "50%"});
    origin.fault_times(2, matching, broken);
    let server = before(&[&origin]);
    expect_whole(server.addr(), &blob);
    let requests = origin.log("kind=blob&method=GET");
    let half = STREAMED_LEN / 2;
    assert_eq!(range_of(&requests[1]), Some(&*format!("bytes={half}-")));
    let rest = format!("bytes={}-{}", half + half / 2, STREAMED_LEN - 1);
    assert_eq!(range_of(&requests[2]), Some(&*rest));
}

#[test]
fn a_wrong_splice_is_fetched_once_more_in_one_answer() {
    let origin = Origin::start();
    let blob = origin.blob(&[REPOSITORY], STREAMED_LEN, 1);
    let rest = json!({"kind": "blob", "method": "GET", "range": true});
    origin.fault(rest, json!({"flip_at": 0}));
    let matching = json!({"kind": "blob", "method": "GET"});
    origin.fault_times(1, matching, json!({"truncate_at": "50%"}));
    let server = before(&[&origin]);
    expect_cut(server.addr(), &blob);
    // The second fill runs although nobody asked for it again.
    until("the second fill ends", || {
        let verified = server.metric("entrepot_fills_total", &["verified"]);
        (verified == 1.0).then_some(())
    });
    origin.go_down();
    expect_whole(server.addr(), &blob);
    let ranges: Vec<bool> = origin
        .log("kind=blob&method=GET")
        .iter()
        .map(|request| range_of(request).is_some())
        .collect();
    assert_eq!(ranges, [false, true, false]);
    assert_eq!(server.metric("entrepot_wrong_digests_total", &[]), 1.0);
}

#[test]
fn wrong_bytes_of_one_upstream_are_replaced_by_those_of_the_next() {
    let (first, second) = (Origin::start(), Origin::start());
    let blob = first.blob(&[REPOSITORY], STREAMED_LEN, 1);
    second.blob(&[REPOSITORY], STREAMED_LEN, 1);
    first.fault(
        json!({"kind": "blob", "method": "GET"}),
        json!({"flip_at": -1}),
    );
    let server = before(&[&first, &second]);
    expect_cut(server.addr(), &blob);
    expect_whole(server.addr(), &blob);
    assert_eq!(first.count("kind=blob&method=GET"), 1);
    assert_eq!(second.count("kind=blob&method=GET"), 1);
}

fn sha512(bytes: &[u8]) -> String {
    let hex = Sha512::digest(bytes);
    let hex: String = hex.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha512:{hex}")
}

/// The name decides by which algorithm a body is verified, resumed ones and wrong ones included.
#[test]
fn a_sha512_body_is_verified_by_its_own_digest() {
    let origin = Origin::start();
    let held = |seed: u64| {
        let body = json!({"repositories": [REPOSITORY], "size": STREAMED_LEN, "seed": seed,
            "algorithm": "sha512"});
        let answer = origin.call("blobs", body);
        Held {
            digest: answer["digest"].as_str().expect("a digest").to_owned(),
            size: STREAMED_LEN,
        }
    };
    let (good, bad) = (held(1), held(2));
    assert!(good.digest.starts_with("sha512:"));
    let of = |blob: &Held| json!({"contains": blob.digest, "method": "GET"});
    origin.fault_times(1, of(&good), json!({"truncate_at": "50%"}));
    origin.fault(of(&bad), json!({"flip_at": "50%"}));
    let server = before(&[&origin]);
    expect_cut(server.addr(), &bad);
    let whole = server.get(&target(&good)).expect(200);
    assert_eq!(sha512(&whole.body), good.digest);
    server.wait_committed();
    assert_eq!(
        origin.count(&format!("method=GET&contains={}", good.digest)),
        2
    );

    origin.go_down();
    let server = server.kill9().start();
    let again = server.get(&target(&good)).expect(200);
    assert_eq!(sha512(&again.body), good.digest);
    expect_cut(server.addr(), &bad);
}

/// A manifest may name other places for a layer. The client may go there; without `foreign_layers`
/// we never do, and what the repository has is served from it.
#[test]
fn the_urls_of_a_foreign_layer_are_not_followed_unless_permitted() {
    const FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    let (origin, elsewhere) = (Origin::start(), Origin::start());
    let config = origin.text_blob(&[REPOSITORY], "{}");
    let [held, absent] = ["held here, too", "held elsewhere only"].map(|text| {
        let layer = elsewhere.text_blob(&[REPOSITORY], text);
        let url = format!("{}/v2/{REPOSITORY}/blobs/{}", elsewhere.url(), layer.digest);
        (layer, url)
    });
    origin.text_blob(&[REPOSITORY], "held here, too");
    let layer = |(layer, url): &(Held, String)| json!({"mediaType": FOREIGN, "digest": layer.digest, "size": layer.size, "urls": [url]});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": config.digest, "size": config.size},
        "layers": [layer(&held), layer(&absent)],
    });
    let text = manifest.to_string();
    origin.manifest(REPOSITORY, MANIFEST, &text, &["windows"]);

    let server = before(&[&origin]);
    let tag = format!("/v2/dh/{REPOSITORY}/manifests/windows");
    assert_eq!(server.get(&tag).expect(200).text(), text);
    let served = server.get(&target(&held.0)).expect(200);
    assert_eq!(served.text(), "held here, too");
    for method in ["GET", "HEAD"] {
        let answer = fetch(server.addr(), method, &target(&absent.0), &[]);
        let answer = answer.expect("an answer");
        assert_eq!((answer.status(), answer.broken), (404, None), "{method}");
    }
    assert!(elsewhere.log("").is_empty(), "{:#?}", elsewhere.log(""));
}
