//! Who the cache is for its upstreams: credentials that change, client certificates, egress
//! proxies, token services of other domains.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::get_hashed;
use entrepot_tests::origin::Origin;
use entrepot_tests::temp::TempDir;
use entrepot_tests::witness::Witness;

const TAG: &str = "/v2/dh/library/app/manifests/1";
/// Seven answers of two seconds each, and the pauses between them.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(40);

fn one(url: &str, keys: &str) -> Setup {
    let keys = format!("url = \"{url}\"\n{keys}");
    let config = Config::new().project("dh", "default = true", &[]);
    Setup::new(&config.upstream("dh", &keys))
}

#[test]
fn a_password_file_is_followed() {
    let login = [
        "--auth",
        "basic",
        "--user",
        "ci:new",
        "--private",
        "library/app",
    ];
    let origin = Origin::start_with(&login);
    origin.image("library/app", "1", 1);
    let setup = one(origin.url(), "");
    let file = setup.dir().write("password", "old\n");
    let keys = format!(
        "url = \"{}\"\nusername = \"ci\"\npassword_credential = \"password\"\nnegative_for = \"0s\"",
        origin.url()
    );
    let config = Config::new().project("dh", "default = true", &[]);
    let folder = setup.dir().path().to_str().expect("a UTF-8 path");
    let server = Setup::new(&config.upstream("dh", &keys))
        .variable("CREDENTIALS_DIRECTORY", folder)
        .start();
    assert_ne!(server.get(TAG).status(), 200);
    fs::write(&file, "new\n").expect("the password");
    until_true("the new password is in use", || {
        server.get(TAG).status() == 200
    });
    let log = server.log();
    let told = |line: &&serde_json::Value| line["message"] == "the password has changed";
    assert_eq!(log.iter().filter(told).count(), 1);
}

#[test]
fn everything_goes_through_the_proxy() {
    let names = "registry.invalid";
    for tls in [false, true] {
        let dir = TempDir::new("proxy");
        let ca = dir.join("ca.pem");
        let ca = ca.to_str().expect("a UTF-8 path");
        let args = ["--tls", "--ca-out", ca, "--tls-name", names];
        let origin = Origin::start_with(if tls { &args } else { &[] });
        origin.image("library/app", "1", 1);
        let port = origin.addr().port();
        let known = HashMap::from([(format!("{names}:{port}"), origin.addr())]);
        let proxy = Witness::proxy(known);
        let (scheme, more) = match tls {
            true => ("https", format!("ca_file = \"{ca}\"")),
            false => ("http", String::new()),
        };
        let url = format!("{scheme}://{names}:{port}");
        let through = format!("http://me:let-me-out@{}", proxy.addr());
        // By the key and by the environment.
        let by_key = one(&url, &format!("proxy = \"{through}\"\n{more}"));
        let variable = if tls { "HTTPS_PROXY" } else { "http_proxy" };
        let by_environment = one(&url, &more).variable(variable, &through);
        for setup in [by_key, by_environment] {
            setup.start().get(TAG).expect(200);
        }
        assert_eq!(origin.count("kind=manifest&method=GET"), 2);
        let heads = proxy.text();
        let form = match tls {
            true => format!("CONNECT {names}:{port} HTTP/1.1\r\n"),
            false => format!("GET http://{names}:{port}/v2/library/app/manifests/"),
        };
        assert!(heads.contains(&form), "{heads}");

        let before = heads.len();
        let excepted = one(&url, &more)
            .variable(variable, &through)
            .variable("NO_PROXY", ".invalid");
        assert_eq!(excepted.start().get(TAG).status(), 502);
        let wrong = one(
            &url,
            &format!("proxy = \"http://{}\"\n{more}", proxy.addr()),
        );
        let refused = wrong.start().get(TAG);
        assert_eq!(refused.status(), 502, "407 is not the client's business");
        assert!(proxy.text().len() > before);
    }
}

#[test]
fn a_token_service_elsewhere_has_to_be_listed() {
    let origin = Origin::start_with(&["--auth", "token"]);
    origin.image("library/app", "1", 1);
    // The same service under a name that is not the upstream's.
    let realm = format!("http://localhost:{}", origin.token().port());
    let challenge = format!("Bearer realm=\"{realm}/token\",service=\"entrepot-origin\"");
    origin.fault(
        json!({"listener": "registry", "authorization": false}),
        json!({"status": 401, "headers": {"WWW-Authenticate": challenge}}),
    );
    let foreign = one(origin.url(), "").start().get(TAG);
    assert_ne!(foreign.status(), 200);
    assert_eq!(origin.count("listener=token"), 0);
    let listed = one(origin.url(), &format!("realms = [\"{realm}\"]"));
    listed.start().get(TAG).expect(200);
    assert_eq!(origin.count("listener=token"), 1);
}

#[test]
fn private_places_can_be_forbidden() {
    let origin = Origin::start();
    let blob = origin.blob(&["library/app"], 1000, 1);
    origin.fault(
        json!({"listener": "registry", "kind": "blob"}),
        json!({"redirect": "cdn"}),
    );
    let target = format!("/v2/dh/library/app/blobs/{}", blob.digest);
    one(origin.url(), "").start().get(&target).expect(200);
    let seen = origin.count("listener=cdn");
    assert!(seen > 0);
    let forbidden = one(origin.url(), "private = false").start().get(&target);
    assert_eq!(forbidden.status(), 502);
    assert_eq!(origin.count("listener=cdn"), seen);
}

#[test]
fn a_failure_by_chance_is_not_the_clients() {
    for fault in [json!({"status": 503}), json!({"refuse": true})] {
        let origin = Origin::start();
        let blob = origin.blob(&["library/app"], 1000, 1);
        let server = Entrepot::before(origin.url());
        origin.fault_times(1, json!({"kind": "blob", "method": "GET"}), fault.clone());
        let target = format!("/v2/dh/library/app/blobs/{}", blob.digest);
        server.get(&target).expect(200);
        assert_eq!(origin.count("kind=blob&method=GET"), 2, "{fault}");
    }
}

#[test]
fn a_client_certificate_is_shown_to_its_upstream_and_nobody_else() {
    let dir = TempDir::new("mtls");
    let path = |name: &str| dir.join(name).display().to_string();
    let (ca, folder) = (path("ca.pem"), dir.path().display().to_string());
    let args = ["--tls", "--ca-out", &ca, "--clients", &folder];
    let origin = Origin::start_with(&[&args[..], &["--auth", "token"]].concat());
    origin.image("library/app", "1", 1);
    let blob = origin.blob(&["library/app"], 1000, 1);
    let to_cdn = json!({"listener": "registry", "kind": "blob"});
    origin.fault(to_cdn, json!({"redirect": "cdn"}));
    let trusting = format!("ca_file = \"{ca}\"\nbreaker = {{ failures = 0 }}");
    let shown = |name: &str| {
        let (pem, key) = (path(&format!("{name}.pem")), path(&format!("{name}.key")));
        format!("{trusting}\nclient_cert_file = \"{pem}\"\nclient_key_file = \"{key}\"")
    };
    let server = one(origin.url(), &shown("good")).start();
    server.get(TAG).expect(200);
    let target = format!("/v2/dh/library/app/blobs/{}", blob.digest);
    server.get(&target).expect(200);
    for (listener, certified) in [("registry", true), ("token", true), ("cdn", false)] {
        let log = origin.log(&format!("listener={listener}"));
        assert!(!log.is_empty(), "{listener}");
        let same = log.iter().all(|ask| ask["certified"] == certified);
        assert!(same, "{listener}: {log:#?}");
    }

    origin.clear_log();
    for (name, keys) in [
        ("a stranger's", shown("stranger")),
        ("none", trusting.clone()),
    ] {
        let server = one(origin.url(), &keys).start();
        let refused = server.get(TAG);
        assert_eq!(refused.status(), 502, "{name}: {}", refused.head.raw);
        until_true("the log says what the upstream said", || {
            let log = server.log();
            log.iter().any(|line| line.to_string().contains("alert"))
        });
    }
    assert_eq!(origin.count(""), 0, "refused before any request");

    // A certificate that is replaced while the server runs.
    let replace = |from: &str| {
        for end in ["pem", "key"] {
            let from = path(&format!("{from}.{end}"));
            fs::copy(from, path(&format!("current.{end}"))).expect("copied");
        }
    };
    replace("stranger");
    let server = one(origin.url(), &shown("current")).start();
    server.get(TAG).expect(502);
    replace("good");
    until_true("the new certificate is shown", || {
        server.get(TAG).status() == 200
    });
}

/// What is trusted goes with the connections and sessions that were made with it.
#[test]
fn a_ca_file_is_read_again_by_a_reload() {
    let dir = TempDir::new("ca");
    let path = |name: &str| dir.join(name).display().to_string();
    let start = |name: &str| Origin::start_with(&["--tls", "--ca-out", &path(name)]);
    let (origin, _other) = (start("its.pem"), start("another.pem"));
    origin.image("library/app", "1", 1);
    origin.image("library/app", "2", 2);
    let trust = |name: &str| {
        fs::copy(path(name), path("trusted.pem")).expect("copied");
    };
    trust("another.pem");
    let keys = format!(
        "ca_file = \"{}\"\nbreaker = {{ failures = 0 }}",
        path("trusted.pem")
    );
    let server = one(origin.url(), &keys).start();
    server.get(TAG).expect(502);
    trust("its.pem");
    server.ask_ok(&["reload"]);
    server.get(TAG).expect(200);
    trust("another.pem");
    server.ask_ok(&["reload"]);
    server.get("/v2/dh/library/app/manifests/2").expect(502);
}

#[test]
fn an_answer_that_takes_too_long_altogether_is_gone_on_with_or_given_up() {
    let origin = Origin::start();
    let blobs = [1, 2].map(|seed| origin.blob(&["library/app"], 5 << 20, seed));
    let server = one(origin.url(), "total_timeout = \"2s\"").start();
    let get = |nth: usize| {
        let target = format!("/v2/dh/library/app/blobs/{}", blobs[nth].digest);
        get_hashed(server.addr(), &target)
    };
    let bodies = json!({"kind": "blob", "method": "GET"});
    // It gets on: the rest is asked for, and the whole is right.
    let slow = origin.fault(bodies.clone(), json!({"rate": 2 << 20}));
    let hashed = get(0).expect("a head");
    assert_eq!(
        (hashed.broken, hashed.digest),
        (None, blobs[0].digest.clone())
    );
    assert!(origin.count("kind=blob&method=GET") >= 2);
    origin.call("faults/clear", json!({"id": slow}));
    // It does not: far less than the minute without a byte that is allowed.
    origin.fault(bodies, json!({"stall_at": 65536}));
    let began = Instant::now();
    let cut = get(1);
    assert!(
        cut.is_err()
            || cut.is_ok_and(|hashed| hashed.broken.is_some() || hashed.head.status == 502)
    );
    assert!(began.elapsed() < GIVEN_UP_WITHIN, "{:?}", began.elapsed());
    let log = server.log();
    let said = |line: &serde_json::Value| line.to_string().contains("longer than total_timeout");
    assert!(log.iter().any(said), "{log:#?}");
}

#[test]
fn what_no_proxy_holds_and_nobody_understands_is_said_once() {
    let config = Config::new().project(
        "dh",
        "default = true",
        &["https://one.example", "https://two.example"],
    );
    let server = Setup::new(&config)
        .variable("HTTPS_PROXY", "http://127.0.0.1:1")
        .variable("NO_PROXY", "localhost,http://wrong.example,.good.example")
        .start();
    let log = server.log();
    let said: Vec<_> = log
        .iter()
        .filter(|line| line.to_string().contains("NO_PROXY"))
        .collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(said[0]["level"], "WARN");
    assert!(
        said[0].to_string().contains("http://wrong.example"),
        "{said:?}"
    );
    assert!(!said[0].to_string().contains("good.example"), "{said:?}");
}
