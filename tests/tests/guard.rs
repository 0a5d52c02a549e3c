//! What the server holds to whatever its operator, its upstreams and the moment are: it stays up,
//! and nobody gets what they may not see.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};

use entrepot_tests::deadline::PATIENCE;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::get_hashed;
use entrepot_tests::origin::Origin;
use entrepot_tests::sha256::digest;

fn rewrite(server: &Entrepot, text: &str) {
    std::fs::write(server.setup().config_path(), text).expect("written");
}

/// One line through the control socket.
fn ask(server: &Entrepot, request: &Value) -> Value {
    let socket = server.setup().store_path().join("control.sock");
    let mut stream = UnixStream::connect(socket).expect("the server runs");
    writeln!(stream, "{request}").expect("a line goes out");
    let mut answer = String::new();
    let read = BufReader::new(stream).read_line(&mut answer);
    read.expect("the server answers");
    serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{request}: {answer:?}"))
}

#[test]
fn a_refresh_during_a_reload_names_no_project_that_a_core_has_not_heard_of() {
    const RELOADS: usize = 40;
    let origin = Origin::start();
    origin.image("team/app", "1", 1);
    // No default project: what nobody serves yet is said to be so.
    let mut config = Config::new().project("p", "", &[origin.url()]);
    let setup = Setup::new(&config).args(&["--set", "shards=2"]);
    let mut server = setup.start();
    for number in 0..RELOADS {
        let name = format!("p{number}");
        config = config.project(&name, "", &[origin.url()]);
        rewrite(&server, config.text());
        server.process().signal(Signal::HUP);
        let image = json!({ "refresh": format!("{name}/team/app:1") });
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = ask(&server, &image);
            if answer.get("refreshed").is_some() {
                break;
            }
            let why = answer["error"].as_str().unwrap_or_default();
            assert!(why.contains("no project serves"), "{answer}");
            assert!(Instant::now() < deadline, "{name} was not taken over");
        }
    }
}

#[test]
fn what_a_login_was_shown_is_not_shown_without_it() {
    let origin = Origin::start_with(&["--auth", "basic", "--user", "ci:secret"]);
    let image = origin.image("team/app", "1", 1);
    let layer = &image.manifests[0].layers[0].digest;
    let config = |login: &str| {
        let keys = format!("url = \"{}\"\n{login}", origin.url());
        Config::new()
            .project("p", "freshness = [{ for = \"1h\" }]", &[])
            .upstream("p", &keys)
    };
    let with_login = config("username = \"ci\"\npassword = \"secret\"");
    let server = Setup::new(&with_login).start();
    let private = [
        "/v2/p/team/app/manifests/1".to_owned(),
        format!("/v2/p/team/app/manifests/{}", image.digest),
        format!("/v2/p/team/app/blobs/{layer}"),
        "/v2/p/team/app/tags/list".to_owned(),
    ];
    let pulled = || {
        let answers = private.iter().map(|target| server.get(target).expect(200));
        answers
            .map(|answer| digest(&answer.body))
            .collect::<Vec<_>>()
    };
    let reloaded = |config: &Config| {
        rewrite(&server, config.text());
        let answer = ask(&server, &json!({ "reload": {} }));
        assert_eq!(answer["reloaded"]["projects"], 1, "{answer}");
    };
    let shown = pulled();
    assert_eq!((&shown[0], &shown[2]), (&image.digest, layer));
    let blobs = origin.count("kind=blob&method=GET");

    reloaded(&config(""));
    for target in &private {
        let answer = server.get(target);
        assert!(answer.status() >= 400, "{target}: {}", answer.head.raw);
        let answer = server.head(target);
        assert!(answer.status() >= 400, "{target}: {}", answer.head.raw);
    }
    // Nor when nobody can be asked.
    origin.go_down();
    for target in &private {
        let answer = server.get(target);
        assert!(answer.status() >= 400, "{target}: {}", answer.head.raw);
    }
    origin.come_back();

    // To the login it is shown again, and was not forgotten meanwhile.
    reloaded(&with_login);
    assert_eq!(pulled(), shown);
    assert_eq!(origin.count("kind=blob&method=GET"), blobs);
}

#[test]
fn a_login_page_proves_nothing() {
    let (registry, sso, other) = (Origin::start(), Origin::start(), Origin::start());
    let blob = registry.blob(&["team/app"], 70_000, 1);
    let target = |project: &str| format!("/v2/{project}/any/thing/blobs/{}", blob.digest);
    let held = format!("/v2/p/team/app/blobs/{}", blob.digest);
    let page = |headers: Value| json!({"status": 200, "headers": headers, "body": "<html>Please log in</html>"});
    let config = Config::new()
        .project("p", "", &[registry.url()])
        .project("sso", "", &[sso.url()])
        .project("both", "", &[sso.url(), other.url()]);
    let server = Setup::new(&config).start();

    // Of what nobody has: the page is not its head.
    let html = json!({"Content-Type": "text/html; charset=utf-8"});
    sso.fault(json!({"contains": "/any/thing/"}), page(html));
    let absent = format!("/v2/sso/any/thing/blobs/sha256:{}", "ab".repeat(32));
    assert_eq!(server.head(&absent).status(), 502);

    assert_eq!(digest(&server.get(&held).expect(200).body), blob.digest);
    server.get(&target("sso")).expect(502);
    assert_eq!(server.head(&target("sso")).status(), 502);
    for headers in [
        // As some do it, of a length that only chance makes right.
        json!({"Content-Type": "application/octet-stream"}),
        json!({"Docker-Content-Digest": format!("sha256:{}", "ab".repeat(32))}),
    ] {
        sso.clear_faults();
        sso.fault(json!({"contains": "/any/thing/"}), page(headers));
        server.get(&target("sso")).expect(502);
    }

    // Nor does what was answered before anybody had the body.
    let later = registry.blob(&["team/app"], 70_000, 2);
    let guessed = format!("/v2/sso/any/thing/blobs/{}", later.digest);
    let plain = json!({"Content-Type": "application/octet-stream"});
    sso.clear_faults();
    sso.fault(json!({"contains": "/any/thing/"}), page(plain));
    server.head(&guessed);
    server.get(&guessed).expect(502);
    let held = format!("/v2/p/team/app/blobs/{}", later.digest);
    server.get(&held).expect(200);
    server.get(&guessed).expect(502);

    // Who has it is asked all the same.
    other.blob(&["any/thing"], 70_000, 1);
    let proven = server.get(&target("both")).expect(200);
    assert_eq!(digest(&proven.body), blob.digest);
    assert_eq!(other.count("kind=blob&method=HEAD"), 1);
    assert_eq!(other.count("kind=blob&method=GET"), 0);
}

#[test]
fn a_fill_from_an_upstream_that_a_reload_took_away_is_not_joined() {
    let (first, second) = (Origin::start(), Origin::start());
    let before = |origin: &Origin| Config::new().project("p", "", &[origin.url()]);
    let server = Setup::new(&before(&first)).start();
    let blob = first.blob(&["team/app"], 8 << 20, 1);
    first.fault(json!({"kind": "blob"}), json!({"halt_at": "50%"}));
    let target = format!("/v2/p/team/app/blobs/{}", blob.digest);
    std::thread::scope(|scope| {
        let early = scope.spawn(|| get_hashed(server.addr(), &target));
        first.wait(json!({"kind": "blob", "state": "halted"}), 1);
        rewrite(&server, before(&second).text());
        server.ask_ok(&["reload"]);
        server.get(&target).expect_error(404, "BLOB_UNKNOWN");
        first.release();
        // Who began under the old rules has it by the old rules.
        let early = early.join().expect("a client").expect("a head");
        assert_eq!((early.broken, early.digest), (None, blob.digest));
    });
}
