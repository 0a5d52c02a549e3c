//! The rules of a project: how long tags are trusted, what is served when nobody may be asked,
//! which repositories may be pulled, and asking now.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{Answer, Connection, ask_together, request_text};
use entrepot_tests::origin::Origin;
use entrepot_tests::sha256::digest;

const TAG: &str = "/v2/dh/library/app/manifests/1";

/// As an nginx-based proxy has had them for years.
const TIERS: &str = r"freshness = [
  { tags = '(stable|nightly|production|test)', for = '10m' },
  { tags = '(.*)(\d|\.)+(.*)(\d|\.)+(.*)(\d|\.)+', for = '60d' },
  { for = '1h' } ]";

fn with_keys(origin: &Origin, keys: &str) -> Setup {
    Setup::new(&Config::new().project("dh", keys, &[origin.url()]))
}

fn rewrite(server: &Entrepot, config: &Config) {
    std::fs::write(server.setup().config_path(), config.text()).expect("written");
    server.ask_ok(&["reload"]);
}

/// The stale answer announces itself; returns its age in seconds.
#[track_caller]
fn stale_age_s(answer: &Answer) -> u64 {
    let raw = &answer.head.raw;
    assert_eq!(answer.status(), 200, "{raw}");
    let field = |name: &str| {
        answer
            .field(name)
            .unwrap_or_else(|| panic!("{name}: {raw}"))
    };
    assert!(field("warning").starts_with("299 "), "{raw}");
    assert!(field("cache-status").contains("detail=stale"), "{raw}");
    field("age").parse().expect("seconds")
}

#[test]
fn the_classic_tiers_are_three_lines() {
    let origin = Origin::start();
    let tags = [
        "stable",
        "my-test-2",
        "1.27",
        "1.27.3",
        "v1.2.3-alpine",
        "latest",
        "v1",
    ];
    for tag in tags {
        origin.image("library/app", tag, 1);
    }
    let server = with_keys(&origin, TIERS).start();
    for _ in 0..2 {
        for tag in tags {
            let target = format!("/v2/dh/library/app/manifests/{tag}");
            server.get(&target).expect(200);
        }
    }
    for tag in tags {
        let path = format!("/v2/library/app/manifests/{tag}");
        let heads = origin.count(&format!("method=HEAD&path={path}"));
        assert_eq!(heads, 1, "{tag}");
    }
}

#[test]
fn offline_asks_nobody_and_says_that_it_did_not() {
    let origin = Origin::start();
    let image = origin.image("library/app", "1", 1);
    let server = Entrepot::before(origin.url());
    server.get(TAG).expect(200);
    server.get("/v2/dh/library/app/tags/list").expect(200);
    let layer = &image.manifests[0].layers[0].digest;
    let layer = format!("/v2/dh/library/app/blobs/{layer}");
    server.get(&layer).expect(200);
    let keys = "default = true\noffline = true\nstale = { unreachable = \"0s\" }";
    rewrite(&server, &Config::new().project("dh", keys, &[origin.url()]));
    origin.clear_log();
    let answer = server.get(TAG);
    stale_age_s(&answer);
    assert_eq!(digest(&answer.body), image.digest);
    stale_age_s(&server.head(TAG));
    assert_eq!(server.get("/v2/dh/library/app/tags/list").status(), 200);
    let hit = server.get(&layer).expect(200);
    assert!(hit.field("warning").is_none(), "{}", hit.head.raw);
    let missing = server.get("/v2/dh/library/app/manifests/2");
    assert_eq!(missing.status(), 502, "{}", missing.head.raw);
    assert!(missing.text().contains("is offline"), "{}", missing.text());
    let refreshed = server.ask(&["refresh", "dh/library/app:1"]);
    assert_eq!(refreshed.status.code(), Some(1));
    assert_eq!(origin.log(""), Vec::<Value>::new());
}

#[test]
fn a_timeout_has_a_rule_of_its_own() {
    for (rule, status) in [("timeout = \"0s\"", 504), ("unreachable = \"0s\"", 200)] {
        let origin = Origin::start();
        origin.image("library/app", "1", 1);
        let keys = format!("default = true\nstale = {{ {rule} }}");
        let upstream = format!("url = \"{}\"\nread_timeout = \"500ms\"", origin.url());
        let config = Config::new()
            .project("dh", &keys, &[])
            .upstream("dh", &upstream);
        let server = Setup::new(&config).start();
        server.get(TAG).expect(200);
        origin.fault(json!({"kind": "manifest"}), json!({"hang": true}));
        let answer = server.get(TAG);
        assert_eq!(answer.status(), status, "{rule}: {}", answer.head.raw);
    }
}

/// A kept list that may not be given for the limit is no reason not to wait for its end.
#[test]
fn a_list_that_may_not_stand_in_is_waited_for() {
    for (rule, waits) in [("0s", true), ("1d", false)] {
        let origin = Origin::start();
        origin.image("library/app", "1", 1);
        let keys = format!("default = true\nstale = {{ rate_limited = '{rule}' }}");
        let server = with_keys(&origin, &keys).start();
        let list = "/v2/dh/library/app/tags/list";
        server.get(list).expect(200);
        let limited = json!({"status": 429, "headers": {"Retry-After": "1"}});
        origin.fault_times(1, json!({"kind": "tags"}), limited);
        let answer = server.get(list).expect(200);
        let fresh = answer.field("warning").is_none();
        assert_eq!(fresh, waits, "{rule}: {}", answer.head.raw);
    }
}

#[test]
fn lists_say_which_repositories_may_be_pulled() {
    let origin = Origin::start();
    for name in ["library/app", "library/secret", "team/a/b", "other/app"] {
        origin.image(name, "1", 1);
    }
    let keys = "serves = [\"docker.io\"]\nallow = [\"library/*\", \"team/**\"]\n\
                deny = [\"*/secret\"]";
    let server = with_keys(&origin, keys).start();
    for (name, status) in [
        ("library/app", 200),
        ("app", 200),
        ("team/a/b", 200),
        ("library/secret", 403),
        ("secret", 403),
        ("other/app", 403),
        ("other/library/app", 403),
    ] {
        let answer = server.get(&format!("/v2/dh/{name}/manifests/1"));
        assert_eq!(answer.status(), status, "{name}: {}", answer.head.raw);
        if status == 403 {
            assert_eq!(answer.error_code().as_deref(), Some("DENIED"), "{name}");
        }
    }
    assert_eq!(origin.count("repository=library/secret"), 0);
    assert_eq!(origin.count("repository=other/app"), 0);
    // What is cached already is refused too, from the moment it is listed.
    let keys = "serves = [\"docker.io\"]\ndeny = [\"library/app\"]";
    rewrite(&server, &Config::new().project("dh", keys, &[origin.url()]));
    server.get(TAG).expect_error(403, "DENIED");
    server
        .get("/v2/dh/library/app/tags/list")
        .expect_error(403, "DENIED");
    server.get("/v2/dh/other/app/manifests/1").expect(200);
}

#[test]
fn refresh_asks_now() {
    let origin = Origin::start();
    let first = origin.image("library/app", "1", 1);
    let keys = "default = true\nserves = [\"docker.io\"]\nfreshness = [{ for = '1h' }]";
    let server = with_keys(&origin, keys).start();
    server.get(TAG).expect(200);
    let second = origin.image("library/app", "new", 2);
    origin.tag("library/app", "1", &second.digest);
    assert_eq!(digest(&server.get(TAG).expect(200).body), first.digest);
    let said = server.ask_ok(&["refresh", "dh/app:1"]);
    let expected = format!(
        "dh/app:1: {}, moved at {}; it was {}",
        second.digest,
        origin.url(),
        first.digest
    );
    assert_eq!(said, expected);
    assert_eq!(digest(&server.get(TAG).expect(200).body), second.digest);
    let said = server.ask_ok(&["refresh", "dh/library/app:1"]);
    assert!(said.contains("unchanged"), "{said}");
    assert_eq!(origin.count("method=HEAD&kind=manifest"), 3);

    origin.go_down();
    let stale = server.ask(&["refresh", "dh/library/app:1"]);
    assert_eq!(stale.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&stale.stdout).contains("seconds ago"));
    for wrong in ["dh/library/app:", "library", "dh/App:1"] {
        assert_eq!(
            server.ask(&["refresh", wrong]).status.code(),
            Some(1),
            "{wrong}"
        );
    }
}

#[test]
fn a_head_and_a_pull_of_one_tag_are_one_question() {
    let origin = Origin::start();
    let image = origin.image("library/app", "1", 1);
    let server = Entrepot::before(origin.url());
    server.get("/v2/").expect(200);
    origin.fault(
        json!({"kind": "manifest", "method": "HEAD"}),
        json!({"hang": true}),
    );
    let mut clients: Vec<_> = ["HEAD", "GET", "HEAD", "GET"]
        .into_iter()
        .map(|method| (method, Connection::open(server.addr())))
        .collect();
    // The answer to the first tells that the second is there.
    for (method, client) in &mut clients {
        let both = request_text("GET", "/v2/", &[]) + &request_text(method, TAG, &[]);
        client.write(both.as_bytes());
        client.answer("GET").expect("an answer").expect(200);
    }
    origin.wait(json!({"kind": "manifest", "method": "HEAD"}), 1);
    origin.release();
    for (method, client) in &mut clients {
        let answer = client.answer(method).expect("an answer").expect(200);
        assert_eq!(
            answer.field("docker-content-digest"),
            Some(image.digest.as_str())
        );
    }
    assert_eq!(origin.count("kind=manifest&method=HEAD"), 1);
    assert_eq!(origin.count("kind=manifest&method=GET"), 1);
}

/// Pulls one tag from many connections until the end, while it moves twice a second. Returns how
/// many pulls there were.
fn pull_for(origin: &Origin, server: &Entrepot, pullers: usize, length: Duration) -> usize {
    let digests: Vec<String> = (1..=2)
        .map(|seed| {
            origin
                .image("library/app", &format!("seed{seed}"), seed)
                .digest
        })
        .collect();
    origin.tag("library/app", "1", &digests[0]);
    server.get(TAG).expect(200);
    origin.clear_log();
    let end = Instant::now() + length;
    std::thread::scope(|scope| {
        let pull = |_| {
            scope.spawn(|| {
                let mut connection = Connection::open(server.addr());
                let mut pulls = 0;
                while Instant::now() < end {
                    connection.request("GET", TAG, &[]);
                    let answer = connection.answer("GET").expect("an answer").expect(200);
                    assert!(digests.contains(&digest(&answer.body)));
                    pulls += 1;
                }
                pulls
            })
        };
        let pullers: Vec<_> = (0..pullers).map(pull).collect();
        for turn in 1.. {
            if Instant::now() >= end {
                break;
            }
            origin.tag("library/app", "1", &digests[turn % 2]);
            // The pace of the tag, not a wait for anything.
            std::thread::sleep(Duration::from_millis(500));
        }
        let pulls = pullers
            .into_iter()
            .map(|puller| puller.join().expect("pulls"));
        pulls.sum()
    })
}

fn number(variable: &str, default: u64) -> u64 {
    let given = std::env::var(variable).ok();
    given.map_or(default, |given| given.parse().expect("a number"))
}

/// `ENTREPOT_PULLERS=1000 ENTREPOT_PULL_SECONDS=30` for the promise as it is made.
#[test]
fn a_moving_tag_is_asked_for_once_in_its_time() {
    let pullers = number("ENTREPOT_PULLERS", 100) as usize;
    let seconds = number("ENTREPOT_PULL_SECONDS", 5);
    let origin = Origin::start();
    let keys = "default = true\nfreshness = [{ for = '10s' }]";
    let server = with_keys(&origin, keys).start();
    let pulls = pull_for(&origin, &server, pullers, Duration::from_secs(seconds));
    let heads = origin.count("kind=manifest&method=HEAD");
    println!("{pulls} pulls by {pullers} in {seconds} s: {heads} HEADs");
    assert!(pulls >= pullers);
    assert!(heads <= (seconds as usize).div_ceil(9), "{heads} HEADs");
}

/// Without freshness each pull is checked, and never by two questions at a time.
#[test]
fn without_freshness_there_is_one_question_at_a_time() {
    let pullers = number("ENTREPOT_PULLERS", 100) as usize;
    let seconds = number("ENTREPOT_PULL_SECONDS", 2);
    let origin = Origin::start();
    let server = Entrepot::before(origin.url());
    let held = json!({"kind": "manifest", "method": "HEAD"});
    // Answers that take their time leave a second question room to overtake.
    origin.fault(held.clone(), json!({"delay_ms": 3}));
    let pulls = pull_for(&origin, &server, pullers, Duration::from_secs(seconds));
    let path = "/v2/library/app/manifests/1";
    let counters = origin.ask(&format!("counters?contains={path}"));
    let heads = &counters["paths"][path];
    println!("{pulls} pulls by {pullers} in {seconds} s: {heads}");
    assert!(pulls >= pullers);
    assert!(heads["head"].as_u64() >= Some(10), "{heads}");
    assert_eq!(heads["heads_at_once"], 1, "two questions at a time");
    origin.clear_faults();
    origin.clear_log();
    // One that halts is in flight while others come; a second one would be logged.
    origin.fault(held.clone(), json!({"hang": true}));
    let mut clients = ask_together(server.addr(), TAG, pullers);
    origin.wait(held, 1);
    server.get("/v2/").expect(200);
    assert_eq!(origin.count("kind=manifest&method=HEAD"), 1);
    origin.release();
    for client in &mut clients {
        client.answer("GET").expect("an answer").expect(200);
    }
}
