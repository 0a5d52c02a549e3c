//! Who is to blame when a request fails, and who is asked instead: an upstream, what it cannot do
//! without (its token service, the proxy before it), or a place that it led to.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{get, get_hashed};
use entrepot_tests::origin::Origin;
use entrepot_tests::registry::free_port;
use entrepot_tests::sha256::digest;

const TAG: &str = "/v2/dh/library/app/manifests/1";
const TAGS: &str = "/v2/dh/library/app/tags/list";
/// A breaker that opens soon and stays open for the length of a test.
const BREAKER: &str = "breaker = { failures = 3, pause = \"30s\", pause_max = \"30s\" }";
/// Of what waits for nobody, on a busy machine.
const SOON: Duration = Duration::from_secs(8);

/// One default project whose upstream has further keys.
fn before(url: &str, keys: &str) -> Entrepot {
    let keys = format!("url = \"{url}\"\n{keys}");
    let config = Config::new().project("dh", "default = true", &[]);
    Setup::new(&config.upstream("dh", &keys)).start()
}

fn breaker(server: &Entrepot) -> f64 {
    server.metric("entrepot_upstream_breaker", &[])
}

/// A copy that its rule forbids is no reason not to ask the others.
#[test]
fn the_next_upstream_is_asked_for_what_may_not_stand_in() {
    for (rule, falls_through) in [("0s", true), ("30d", false)] {
        let (first, second) = (Origin::start(), Origin::start());
        let of_first = first.image("library/app", "1", 1);
        let of_second = second.image("library/app", "1", 2);
        second.tag("library/app", "only-second", &of_second.digest);
        let keys = format!("default = true\nstale = {{ unreachable = \"{rule}\" }}");
        let config = Config::new().project("dh", &keys, &[first.url(), second.url()]);
        let server = Setup::new(&config).start();
        assert_eq!(digest(&server.get(TAG).expect(200).body), of_first.digest);
        server.get(TAGS).expect(200);
        assert_eq!(second.count(""), 0);

        first.go_down();
        let tag = server.get(TAG).expect(200);
        let tags = server.get(TAGS).expect(200);
        let expected = if falls_through { of_second } else { of_first };
        assert_eq!(digest(&tag.body), expected.digest, "{rule}");
        assert_eq!(tag.field("warning").is_none(), falls_through, "{rule}");
        let seen = tags.text().contains("only-second");
        assert_eq!(seen, falls_through, "{rule}: {}", tags.text());
    }
}

#[test]
fn an_upstream_without_its_token_service_is_given_up() {
    let origin = Origin::start_with(&["--auth", "token", "--token-ttl", "1"]);
    let image = origin.image("library/app", "1", 1);
    let server = before(origin.url(), &format!("read_timeout = \"1s\"\n{BREAKER}"));
    server.get(TAG).expect(200);
    let hang = origin.fault(json!({"listener": "token"}), json!({"hang": true}));
    until_true("the breaker opens", || {
        let answer = server.get(TAG).expect(200);
        assert_eq!(digest(&answer.body), image.digest);
        breaker(&server) == 2.0
    });
    // From now on nobody waits for it.
    origin.clear_log();
    let began = Instant::now();
    for _ in 0..20 {
        let answer = server.get(TAG).expect(200);
        assert!(answer.field("warning").is_some(), "{}", answer.head.raw);
    }
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(origin.count(""), 0);
    origin.call("faults/clear", json!({"id": hang}));
}

/// It is up, and so is the registry: what is public there, say, needs no token.
#[test]
fn an_upstream_whose_token_service_talks_nonsense_is_not_given_up() {
    let origin = Origin::start_with(&["--auth", "token"]);
    origin.image("library/app", "1", 1);
    let nonsense = json!({"status": 200, "body": "<html>"});
    let fault = origin.fault(json!({"listener": "token"}), nonsense);
    let server = before(origin.url(), BREAKER);
    for _ in 0..5 {
        server.get(TAG).expect(502);
        assert_eq!(breaker(&server), 0.0);
    }
    origin.call("faults/clear", json!({"id": fault}));
    server.get(TAG).expect(200);
}

/// Who we are there is no part of its name, but in records.
#[test]
fn an_upstream_with_a_login_is_called_and_given_up_like_any_other() {
    let login = ["--auth", "basic", "--user", "ci:secret"];
    let origin = Origin::start_with(&login);
    let image = origin.image("library/app", "1", 1);
    let keys = format!("username = \"ci\"\npassword = \"secret\"\n{BREAKER}");
    let server = before(origin.url(), &keys);
    server.get(TAG).expect(200);
    until_true("the log of requests names it", || {
        let log = server.log();
        log.iter()
            .any(|line| line["status"] == 200 && line["upstream"] == origin.url())
    });
    let refreshed = server.ask_ok(&["refresh", "dh/library/app:1"]);
    assert!(refreshed.contains(origin.url()), "{refreshed}");
    let marked = format!("{}#", origin.url());
    assert!(!refreshed.contains(&marked), "{refreshed}");
    origin.go_down();
    for _ in 0..3 {
        assert_eq!(digest(&server.get(TAG).expect(200).body), image.digest);
    }
    let upstream = format!("upstream=\"{}\"", origin.url());
    let breaker = server.metric("entrepot_upstream_breaker", &[&upstream]);
    assert_eq!(breaker, 2.0);
    let missing = server.get("/v2/dh/library/app/manifests/2").text();
    assert!(missing.contains(origin.url()), "{missing}");
    assert!(!missing.contains(&marked), "{missing}");
}

#[test]
fn an_upstream_behind_a_dead_proxy_is_given_up() {
    for scheme in ["http", "https"] {
        let keys = format!(
            "proxy = \"http://127.0.0.1:{}\"\nconnect_timeout = \"1s\"\n{BREAKER}",
            free_port()
        );
        let server = before(&format!("{scheme}://registry.invalid"), &keys);
        for _ in 0..3 {
            let answer = server.get(TAG).expect(502);
            let said = answer.text();
            assert!(said.contains("the proxy http://127.0.0.1:"), "{said}");
        }
        assert_eq!(breaker(&server), 2.0, "{scheme}");
    }
}

/// A registry that answers with a redirect is up, whatever becomes of the redirect.
#[test]
fn a_place_that_a_registry_leads_to_is_not_the_registry() {
    let origin = Origin::start();
    let blob = origin.blob(&["library/app"], 1_000, 1);
    let target = format!("/v2/dh/library/app/blobs/{}", blob.digest);
    let pause = "breaker = { failures = 3, pause = \"100ms\", pause_max = \"100ms\" }";
    let server = before(origin.url(), pause);
    let refuse = origin.fault(json!({}), json!({"refuse": true}));
    until_true("the breaker opens", || {
        server.get(&target).expect(502);
        breaker(&server) == 2.0
    });
    let nobody = format!("http://127.0.0.1:{}/", free_port());
    let away = origin.fault(json!({"kind": "blob"}), json!({"redirect": nobody}));
    origin.call("faults/clear", json!({"id": refuse}));
    until_true("the registry answers again", || {
        server.get(&target).expect(502);
        breaker(&server) == 0.0
    });
    for _ in 0..5 {
        server.get(&target).expect(502);
        assert_eq!(breaker(&server), 0.0);
    }
    // Nor does its limit hold the registry.
    origin.call("faults/clear", json!({"id": away}));
    origin.fault(json!({"listener": "cdn"}), json!({"status": 429}));
    let to_cdn = json!({"listener": "registry", "kind": "blob"});
    let to_cdn = origin.fault(to_cdn, json!({"redirect": "cdn"}));
    server.get(&target).expect(429);
    assert_eq!(server.metric("entrepot_upstream_held_lanes", &[]), 0.0);
    origin.call("faults/clear", json!({"id": to_cdn}));
    server.get(&target).expect(200);
}

/// What it says after a redirect to itself it says of itself.
#[test]
fn a_registry_that_leads_to_itself_is_held_and_given_up_for_what_it_says_there() {
    let origin = Origin::start();
    let blob = origin.blob(&["library/app"], 1_000, 1);
    let path = format!("/v2/library/app/blobs/{}", blob.digest);
    let target = format!("/v2/dh/library/app/blobs/{}", blob.digest);
    let limited = json!({"status": 429, "headers": {"Retry-After": "120"}});
    for (said, status, held, open) in [
        (limited, 429, 1.0, 0.0),
        (json!({"status": 500}), 502, 0.0, 2.0),
    ] {
        origin.clear_faults();
        origin.fault(json!({"contains": "?again"}), said);
        let again = json!({"redirect": format!("{path}?again")});
        origin.fault(json!({"kind": "blob"}), again);
        let server = before(origin.url(), BREAKER);
        for _ in 0..3 {
            server.get(&target).expect(status);
        }
        let metric = |name: &str| server.metric(name, &[]);
        assert_eq!(metric("entrepot_upstream_held_lanes"), held, "{status}");
        assert_eq!(breaker(&server), open, "{status}");
    }
}

#[test]
fn the_limit_of_a_token_service_is_passed_on_with_its_time() {
    let origin = Origin::start_with(&["--auth", "token"]);
    origin.image("library/app", "1", 1);
    let limited = json!({"status": 429, "headers": {"Retry-After": "77"}});
    let fault = origin.fault(json!({"listener": "token"}), limited);
    let server = before(origin.url(), "");
    let answer = server.get(TAG).expect(429);
    assert_eq!(answer.field("retry-after"), Some("77"));
    assert_eq!(server.metric("entrepot_upstream_held_lanes", &[]), 0.0);
    origin.call("faults/clear", json!({"id": fault}));
    server.get(TAG).expect(200);
}

/// With the only connection taken for good, a cached tag does not wait half a minute for it.
#[test]
fn what_is_cached_waits_for_no_connection() {
    let origin = Origin::start();
    let image = origin.image("library/app", "1", 1);
    let blob = origin.blob(&["library/app"], 2 << 20, 1);
    let server = before(origin.url(), "connections_max = 1");
    server.get(TAG).expect(200);
    let halt = json!({"halt_at": "50%"});
    origin.fault(json!({"kind": "blob", "method": "GET"}), halt);
    let (addr, target) = (
        server.addr(),
        format!("/v2/dh/library/app/blobs/{}", blob.digest),
    );
    let pull = thread::spawn(move || get_hashed(addr, &target).expect("a head"));
    origin.wait(json!({"kind": "blob", "state": "halted"}), 1);
    let began = Instant::now();
    let answer = get(server.addr(), TAG).expect(200);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(digest(&answer.body), image.digest);
    assert!(answer.field("warning").is_some(), "{}", answer.head.raw);
    origin.release();
    let hashed = pull.join().expect("no panic");
    assert_eq!((hashed.broken, hashed.digest), (None, blob.digest));
}
