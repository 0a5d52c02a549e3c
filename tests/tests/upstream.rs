//! How the cache speaks to upstreams: logins, redirects, TLS, and several upstreams of a project.

use std::time::{Duration, Instant};

use serde_json::json;

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{Connection, get_hashed};
use entrepot_tests::origin::Origin;
use entrepot_tests::sha256::digest;
use entrepot_tests::temp::TempDir;

const TAG: &str = "/v2/dh/library/app/manifests/1";

/// One default project whose upstream has further keys.
fn one(origin: &Origin, keys: &str) -> Setup {
    let keys = format!("url = \"{}\"\n{keys}", origin.url());
    Setup::new(
        &Config::new()
            .project("dh", "default = true", &[])
            .upstream("dh", &keys),
    )
}

fn blob_target(repository: &str, digest: &str) -> String {
    format!("/v2/dh/{repository}/blobs/{digest}")
}

/// Manifest by tag, then every body below it.
fn pull_all(server: &Entrepot, origin: &Origin, repository: &str, tag: &str) {
    let held = origin.ask("repositories");
    let manifest = server
        .get(&format!("/v2/dh/{repository}/manifests/{tag}"))
        .expect(200);
    let expected = held[repository]["tags"][tag][0]
        .as_str()
        .expect("the tag's digest");
    assert_eq!(digest(&manifest.body), expected);
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.body).expect("JSON");
    let layers = manifest["layers"].as_array().expect("layers").iter();
    for part in layers.chain([&manifest["config"]]) {
        let expected = part["digest"].as_str().expect("a digest");
        let body = server
            .get(&blob_target(repository, expected))
            .expect(200)
            .body;
        assert_eq!(digest(&body), expected);
    }
}

#[test]
fn an_anonymous_token_is_fetched_once_for_a_scope() {
    let origin = Origin::start_with(&["--auth", "token"]);
    origin.image("library/app", "1", 1);
    let server = Entrepot::before(origin.url());
    for _ in 0..3 {
        pull_all(&server, &origin, "library/app", "1");
    }
    let tokens = origin.log("listener=token");
    assert_eq!(tokens.len(), 1, "{tokens:#?}");
    assert_eq!(tokens[0]["authorization"], json!(null));
    let query = tokens[0]["query"]
        .as_str()
        .unwrap_or_default()
        .replace("%3A", ":");
    let query = query.replace("%2F", "/");
    assert!(
        query.contains("scope=repository:library/app:pull"),
        "{query}"
    );
    assert!(query.contains("service=entrepot-origin"), "{query}");
}

#[test]
fn a_login_opens_its_private_repository() {
    for auth in ["token", "basic"] {
        let args = [
            "--auth",
            auth,
            "--user",
            "ci:secret",
            "--private",
            "library/app",
        ];
        let origin = Origin::start_with(&args);
        origin.image("library/app", "1", 1);
        let login = "username = \"ci\"\npassword = \"secret\"";
        let server = one(&origin, login).start();
        pull_all(&server, &origin, "library/app", "1");
        if auth == "token" {
            let tokens = origin.log("listener=token");
            assert!(
                tokens.iter().all(|ask| ask["authorization"] == "basic"),
                "{tokens:#?}"
            );
        }
        let wrong = one(&origin, "username = \"ci\"\npassword = \"wrong\"").start();
        for server in [wrong, Entrepot::before(origin.url())] {
            let refused = server.get(TAG);
            // 401 would ask the client for a login it does not have.
            assert!(
                matches!(refused.status(), 403 | 404 | 502),
                "{}",
                refused.head.raw
            );
            assert!(refused.error_code().is_some(), "{}", refused.text());
        }
    }
}

#[test]
fn an_expired_or_revoked_token_is_replaced() {
    let origin = Origin::start_with(&["--auth", "token", "--token-ttl", "1"]);
    let server = Entrepot::before(origin.url());
    origin.image("library/app", "1", 1);
    pull_all(&server, &origin, "library/app", "1");
    origin.call("auth", json!({"revoke_tokens": true}));
    origin.image("library/app", "2", 2);
    pull_all(&server, &origin, "library/app", "2");

    // A registry that claims a longer life than it grants: the 401 tells.
    origin.call("auth", json!({"expires_in_s": 3600, "token_ttl_s": 1}));
    origin.call("auth", json!({"revoke_tokens": true}));
    origin.image("library/app", "3", 3);
    pull_all(&server, &origin, "library/app", "3");
    let tokens = origin.count("listener=token");
    until_true("a second token was needed", || {
        pull_all(&server, &origin, "library/app", "3");
        origin.count("listener=token") > tokens
    });
}

#[test]
fn a_401_loop_ends() {
    let origin = Origin::start_with(&["--auth", "token"]);
    origin.image("library/app", "1", 1);
    origin.fault(json!({"listener": "registry"}), json!({"status": 401}));
    let server = Entrepot::before(origin.url());
    let answer = server.get(TAG);
    assert!(
        matches!(answer.status(), 403 | 404 | 502),
        "{}",
        answer.head.raw
    );
    assert!(origin.count("") <= 8, "{:#?}", origin.log(""));
}

#[test]
fn a_redirect_to_another_port_carries_no_authorization() {
    let args = [
        "--auth",
        "token",
        "--user",
        "ci:secret",
        "--private",
        "library/app",
    ];
    let origin = Origin::start_with(&args);
    origin.image("library/app", "1", 1);
    let big = origin.blob(&["library/app"], 5_000_000, 1);
    origin.fault(
        json!({"kind": "blob", "listener": "registry"}),
        json!({"redirect": "cdn"}),
    );
    let server = one(&origin, "username = \"ci\"\npassword = \"secret\"").start();
    pull_all(&server, &origin, "library/app", "1");
    let hashed = get_hashed(server.addr(), &blob_target("library/app", &big.digest));
    let hashed = hashed.expect("a head");
    assert_eq!((hashed.broken, hashed.digest), (None, big.digest));

    let cdn = origin.log("listener=cdn");
    assert!(!cdn.is_empty());
    for request in cdn {
        assert_eq!(request["authorization"], json!(null), "{request}");
        assert_eq!(request["status"], 200, "{request}");
    }
}

#[test]
fn redirects_are_followed_a_bounded_number_of_times() {
    let origin = Origin::start();
    let blob = origin.blob(&["library/app"], 100, 1);
    let target = blob_target("library/app", &blob.digest);
    let url = format!("{}/v2/library/app/blobs/{}", origin.url(), blob.digest);
    let server = Entrepot::before(origin.url());

    let matching = json!({"kind": "blob", "method": "GET"});
    for status in [301, 302, 303, 307, 308] {
        let server = Entrepot::before(origin.url());
        let then = json!({"redirect": "cdn", "status": status});
        origin.fault_times(1, matching.clone(), then);
        let answer = server.get(&target).expect(200);
        assert_eq!(digest(&answer.body), blob.digest, "{status}");
    }
    origin.fault(matching, json!({"redirect": url}));
    origin.clear_log();
    let answer = server.get(&target);
    assert_eq!(answer.status(), 502, "{}", answer.head.raw);
    // The first request, and at most five hops; asked at most twice.
    assert!(
        origin.count("kind=blob") <= 12,
        "{:#?}",
        origin.log("kind=blob")
    );
}

#[test]
fn an_own_ca_is_trusted_when_it_is_configured() {
    let dir = TempDir::new("ca");
    let ca = dir.join("ca.pem");
    let ca = ca.to_str().expect("a path in UTF-8");
    let origin = Origin::start_with(&["--tls", "--ca-out", ca]);
    origin.image("library/app", "1", 1);
    let big = origin.blob(&["library/app"], 5_000_000, 1);

    let trusting = one(&origin, &format!("ca_file = \"{ca}\"")).start();
    pull_all(&trusting, &origin, "library/app", "1");
    let hashed = get_hashed(trusting.addr(), &blob_target("library/app", &big.digest));
    let hashed = hashed.expect("a head");
    assert_eq!((hashed.broken, hashed.digest), (None, big.digest));

    let careless = one(&origin, "tls_verify = false").start();
    pull_all(&careless, &origin, "library/app", "1");

    let strict = Entrepot::before(origin.url());
    let answer = strict.get(TAG);
    assert_eq!(answer.status(), 502, "{}", answer.head.raw);
}

#[test]
fn a_bad_certificate_is_refused_and_the_log_says_why() {
    for leaf in ["expired", "wrong-name"] {
        let dir = TempDir::new("ca");
        let ca = dir.join("ca.pem");
        let ca = ca.to_str().expect("a path in UTF-8");
        let origin = Origin::start_with(&["--tls", "--ca-out", ca, "--tls-leaf", leaf]);
        origin.image("library/app", "1", 1);
        let server = one(&origin, &format!("ca_file = \"{ca}\"")).start();
        let answer = server.get(TAG);
        assert_eq!(answer.status(), 502, "{leaf}: {}", answer.head.raw);
        assert_eq!(origin.count(""), 0, "{leaf}: asked all the same");
        until_true("the log names the certificate", || {
            let log = server.log();
            log.iter()
                .any(|line| line.to_string().contains("certificate"))
        });
    }
}

#[test]
fn upstreams_are_tried_in_order() {
    let first = Origin::start();
    let second = Origin::start();
    let of_first = first.image("library/app", "1", 1);
    second.image("library/app", "1", 2);
    let of_second = second.image("library/other", "1", 3);
    let config = Config::new().project("dh", "default = true", &[first.url(), second.url()]);
    let server = Setup::new(&config).start();

    // Both have it: the first decides, and the second is not asked.
    assert_eq!(digest(&server.get(TAG).expect(200).body), of_first.digest);
    assert_eq!(second.count(""), 0);
    // Only the second has it.
    let other = "/v2/dh/library/other/manifests/1";
    assert_eq!(
        digest(&server.get(other).expect(200).body),
        of_second.digest
    );
    for layer in &of_second.manifests[0].layers {
        let body = server
            .get(&blob_target("library/other", &layer.digest))
            .expect(200)
            .body;
        assert_eq!(digest(&body), layer.digest);
    }
    // Nobody has it.
    server
        .get("/v2/dh/library/none/manifests/1")
        .expect_error(404, "MANIFEST_UNKNOWN");

    // The cached copy of the first comes before the second's namesake.
    first.go_down();
    assert_eq!(digest(&server.get(TAG).expect(200).body), of_first.digest);
    // What the first never gave falls through to the second.
    let third = second.image("library/third", "1", 4);
    let answer = server.get("/v2/dh/library/third/manifests/1").expect(200);
    assert_eq!(digest(&answer.body), third.digest);
}

#[test]
fn an_upstream_that_refuses_is_passed_over() {
    for status in [401, 403, 404] {
        let first = Origin::start();
        let second = Origin::start();
        let image = second.image("library/app", "1", 1);
        first.fault(json!({}), json!({"status": status}));
        let config = Config::new().project("dh", "default = true", &[first.url(), second.url()]);
        let server = Setup::new(&config).start();
        assert_eq!(
            digest(&server.get(TAG).expect(200).body),
            image.digest,
            "{status}"
        );
        let layer = &image.manifests[0].layers[0].digest;
        let body = server
            .get(&blob_target("library/app", layer))
            .expect(200)
            .body;
        assert_eq!(digest(&body), *layer, "{status}");
    }
}

#[test]
fn an_inactive_upstream_is_never_asked() {
    let first = Origin::start();
    let second = Origin::start();
    first.image("library/app", "1", 1);
    let image = second.image("library/app", "1", 2);
    let config = Config::new()
        .project("dh", "default = true", &[])
        .upstream("dh", &format!("url = \"{}\"\nactive = false", first.url()))
        .upstream("dh", &format!("url = \"{}\"", second.url()));
    let server = Setup::new(&config).start();
    assert_eq!(digest(&server.get(TAG).expect(200).body), image.digest);
    assert_eq!(first.ask("counters")["connections"]["registry"], 0);
}

#[test]
fn an_unreachable_upstream_is_a_502_within_its_connect_timeout() {
    // RFC 5737 addresses answer nothing; whether the machine refuses or drops, it must end.
    let config = Config::new().project("dh", "default = true", &[]);
    let keys = "url = \"http://192.0.2.1:81\"\nconnect_timeout = \"500ms\"";
    let server = Setup::new(&config.upstream("dh", keys)).start();
    let begin = Instant::now();
    let answer = server.get(TAG);
    assert!(matches!(answer.status(), 502 | 504), "{}", answer.head.raw);
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "{:?}",
        begin.elapsed()
    );
    assert!(answer.error_code().is_some(), "{}", answer.text());
}

#[test]
fn a_connection_the_upstream_closed_is_replaced_unseen() {
    let origin = Origin::start();
    origin.image("library/app", "1", 1);
    origin.fault(json!({}), json!({"close": true}));
    let server = Entrepot::before(origin.url());
    for _ in 0..5 {
        pull_all(&server, &origin, "library/app", "1");
    }
    origin.clear_faults();
    pull_all(&server, &origin, "library/app", "1");
    origin.call("close-connections", json!({}));
    pull_all(&server, &origin, "library/app", "1");
}

#[test]
fn connections_to_an_upstream_are_used_again() {
    let origin = Origin::start();
    origin.image("library/app", "1", 1);
    let server = Setup::new(&Config::one(origin.url()))
        .args(&["--shards", "1"])
        .start();
    for _ in 0..10 {
        pull_all(&server, &origin, "library/app", "1");
    }
    let connections = &origin.ask("counters")["connections"]["registry"];
    assert!(
        connections.as_u64().is_some_and(|count| count <= 2),
        "{connections}"
    );
}

#[test]
fn nonsense_from_upstream_is_a_502() {
    let origin = Origin::start();
    // Each is to be seen by the client, so none may be the last that is asked for.
    let server = one(&origin, "breaker = { failures = 0 }").start();
    let answers = [
        json!({"raw": "nonsense\r\n\r\n"}),
        json!({"raw": "HTTP/0.9 200 OK\r\n\r\n"}),
        json!({"raw": "HTTP/2.0 200 OK\r\n\r\n"}),
        json!({"raw": "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"}),
        json!({"raw": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"}),
        json!({"raw": "HTTP/1.1 100 Continue\r\n\r\n", "raw_repeat": 10_000}),
        json!({"raw": "X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", "raw_repeat": 100_000}),
        json!({"raw": ""}),
        json!({"set_headers": {"Content-Encoding": "gzip"}}),
        json!({"status": 500}),
        json!({"status": 503}),
        json!({"status": 204}),
        json!({"status": 418}),
    ];
    for (nth, then) in answers.into_iter().enumerate() {
        let blob = origin.blob(&["library/app"], 1_000, nth as u64);
        origin.fault(json!({"contains": blob.digest}), then.clone());
        let answer = server.get(&blob_target("library/app", &blob.digest));
        assert!(
            matches!(answer.status(), 502..=504),
            "{then}: {}",
            answer.head.raw
        );
        assert_eq!(answer.broken, None, "{then}");
    }
    // None of it hurt anyone else.
    let good = origin.blob(&["library/app"], 1_000, 1_000);
    let body = server
        .get(&blob_target("library/app", &good.digest))
        .expect(200)
        .body;
    assert_eq!(digest(&body), good.digest);
}

#[test]
fn a_rate_limit_without_a_copy_is_passed_on_with_its_time() {
    let origin = Origin::start();
    origin.image("library/app", "1", 1);
    let limited = json!({"status": 429, "headers": {"Retry-After": "60"}});
    origin.fault(json!({"kind": "manifest"}), limited);
    let server = Entrepot::before(origin.url());
    let answer = server.get(TAG);
    assert!(matches!(answer.status(), 429 | 503), "{}", answer.head.raw);
    let after = answer
        .field("retry-after")
        .and_then(|text| text.parse::<u64>().ok());
    assert!(after.is_some(), "{}", answer.head.raw);
}

#[test]
fn credentials_of_clients_stay_here() {
    // R11: dockerd sends its login for Docker Hub to every mirror.
    let origin = Origin::start();
    origin.image("library/app", "1", 1);
    let server = Entrepot::before(origin.url());
    let mut connection = Connection::open(server.addr());
    connection.request("GET", TAG, &[("Authorization", "Basic dXNlcjpwYXNz")]);
    connection.answer("GET").expect("an answer").expect(200);
    for request in origin.log("") {
        assert_eq!(request["authorization"], json!(null), "{request}");
    }
}
