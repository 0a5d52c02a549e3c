//! Reading the configuration again: what changes, what waits for a restart, what a wrong file
//! does, and what becomes of pulls that run meanwhile.

use std::os::unix::net::UnixDatagram;
use std::process::Output;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use entrepot_tests::deadline::{PATIENCE, until, until_true};
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::Connection;
use entrepot_tests::origin::Origin;
use entrepot_tests::sha256::{Hash, digest};
use entrepot_tests::temp::TempDir;

const TAG: &str = "/v2/dh/library/app/manifests/1";

fn rewrite(server: &Entrepot, text: &str) {
    std::fs::write(server.setup().config_path(), text).expect("written");
}

fn reload(server: &Entrepot) -> Output {
    server.ask(&["reload"])
}

#[track_caller]
fn reloaded(server: &Entrepot) -> String {
    let output = reload(server);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned()
}

#[test]
fn projects_upstreams_and_rules_change_while_a_pull_runs() {
    let (old, new) = (Origin::start(), Origin::start());
    let first = old.image("library/app", "1", 1);
    let second = new.image("library/app", "1", 2);
    new.image("team/app", "1", 3);
    let blob = old.blob(&["library/app"], 8 << 20, 1);
    old.fault(json!({"contains": blob.digest}), json!({"halt_at": "50%"}));
    let server = Entrepot::before(old.url());
    assert_eq!(digest(&server.get(TAG).expect(200).body), first.digest);
    server.get("/v2/other/team/app/manifests/1").expect(404);
    let mut client = Connection::open(server.addr());
    let target = format!("/v2/dh/library/app/blobs/{}", blob.digest);
    client.request("GET", &target, &[]);
    let head = client.read_head().expect("a head while the body arrives");
    old.wait(json!({"kind": "blob", "state": "halted"}), 1);

    let config = Config::one(new.url()).project("other", "", &[new.url()]);
    rewrite(&server, config.text());
    assert_eq!(reloaded(&server), "reloaded: 2 projects");
    assert_eq!(digest(&server.get(TAG).expect(200).body), second.digest);
    server.get("/v2/other/team/app/manifests/1").expect(200);
    old.release();
    let mut hash = Hash::default();
    let read = client.read_body("GET", &head, &mut |bytes| hash.update(bytes));
    assert_eq!((read, hash.digest()), (Ok(()), blob.digest.clone()));
    // Bytes of an upstream that is gone are nobody's any more.
    server.get(&target).expect(404);

    // And back: the first upstream is the one it was, and so is the project that went.
    rewrite(&server, Config::one(old.url()).text());
    reloaded(&server);
    assert_eq!(digest(&server.get(TAG).expect(200).body), first.digest);
    server.get("/v2/other/team/app/manifests/1").expect(404);
    assert_eq!(server.metric("entrepot_projects", &[]), 1.0);
}

/// Who asked before is not disturbed, and who asks now asks elsewhere.
#[test]
fn nobody_joins_who_asks_an_upstream_that_is_gone_for_a_part() {
    let (old, new) = (Origin::start(), Origin::start());
    let blob = old.blob(&["library/app"], 100_000, 1);
    new.blob(&["library/app"], 10, 2);
    old.fault(json!({"kind": "blob"}), json!({"hang": true}));
    let keys = "default = true\ncold_ranges = \"pass\"";
    let config = |origin: &Origin| Config::new().project("dh", keys, &[origin.url()]);
    let server = Setup::new(&config(&old)).start();
    let target = format!("/v2/dh/library/app/blobs/{}", blob.digest);
    let range = [("Range", "bytes=10-19")];
    let mut before = Connection::open(server.addr());
    before.request("GET", &target, &range);
    old.wait(json!({"kind": "blob", "state": "halted"}), 1);

    rewrite(&server, config(&new).text());
    reloaded(&server);
    let after = server.get_with(&target, &range);
    assert_eq!(after.status(), 404, "{}", after.head.raw);
    old.release();
    before.answer("GET").expect("an answer").expect(206);
}

#[test]
fn a_wrong_configuration_changes_nothing_and_says_where() {
    let origin = Origin::start();
    let image = origin.image("library/app", "1", 1);
    let server = Entrepot::before(origin.url());
    for (text, line, what) in [
        (
            "[project.dh]\n\n[[project.dh.upstream]]\nurl = \"ftp://x\"\n",
            4,
            "project.dh.upstream.url",
        ),
        ("[limits]\nfills_max = 0\n", 2, "limits.fills_max"),
        ("[log]\nlevel = \"info\n", 2, "not TOML"),
    ] {
        rewrite(&server, text);
        let refused = reload(&server);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        let place = format!("{}:{line}:", server.setup().config_path().display());
        assert!(said.contains(&place), "{said}");
        assert!(said.contains(what), "{said}");
        assert_eq!(digest(&server.get(TAG).expect(200).body), image.digest);
    }
    // What else is asked of the server does not depend on its file either.
    server.ask_ok(&["refresh", "dh/library/app:1"]);
    server.ask_ok(&["purge", "tag", "dh/library/app:1"]);
    server.ask_ok(&["volumes"]);
}

#[test]
fn reloads_and_refreshes_are_counted() {
    let origin = Origin::start();
    let first = origin.image("library/app", "1", 1);
    let second = origin.image("library/app", "2", 2);
    let server = Entrepot::before(origin.url());
    let reloads = |result: &str| {
        let label = format!("result=\"{result}\"");
        server.metric("entrepot_reloads_total", &[&label])
    };
    let refreshes = |result: &str| {
        let label = format!("result=\"{result}\"");
        server.metric("entrepot_refreshes_total", &[&label])
    };
    let loaded = || server.metric("entrepot_loaded_timestamp_seconds", &[]);
    let started = loaded();
    assert!(started > 0.0);
    rewrite(&server, "nonsense = 1\n");
    assert_eq!(reload(&server).status.code(), Some(1));
    assert_eq!((reloads("refused"), reloads("reloaded")), (1.0, 0.0));
    assert_eq!(loaded(), started);
    rewrite(&server, Config::one(origin.url()).text());
    until_true("a later second", || {
        reloaded(&server);
        loaded() > started
    });
    assert!(reloads("reloaded") >= 1.0);

    let refresh = || server.ask(&["refresh", "dh/library/app:1"]);
    for (digest, result) in [
        (&first.digest, "new"),
        (&first.digest, "unchanged"),
        (&second.digest, "moved"),
    ] {
        origin.tag("library/app", "1", digest);
        refresh();
        assert_eq!(refreshes(result), 1.0, "{result}");
    }
    origin.go_down();
    refresh();
    assert_eq!(refreshes("stale"), 1.0);
    server.ask(&["refresh", "dh/library/none:1"]);
    assert_eq!(refreshes("failed"), 1.0);
    assert_eq!(server.metric("entrepot_refreshes_total", &[]), 5.0);
    until_true("the log says what came of them", || {
        let log = server.log();
        let told = |result: &str| log.iter().any(|line| line["result"] == result);
        ["new", "unchanged", "moved", "stale", "failed"]
            .into_iter()
            .all(told)
    });
}

#[test]
fn what_cannot_change_is_named() {
    let origin = Origin::start();
    let server = Entrepot::before(origin.url());
    let text = format!(
        "shards = 7\n[limits]\nfills_max = 5\n{}",
        Config::one(origin.url()).text()
    );
    rewrite(&server, &text);
    let said = reloaded(&server);
    assert_eq!(
        said,
        "reloaded: 1 projects\nunchanged until a restart: limits.fills_max, shards"
    );
}

#[test]
fn credentials_change() {
    let origin = Origin::start_with(&["--auth", "basic", "--user", "ci:new"]);
    let image = origin.image("library/app", "1", 1);
    let config = |password: &str| {
        let keys = format!(
            "url = \"{}\"\nusername = \"ci\"\npassword = \"{password}\"",
            origin.url()
        );
        Config::new()
            .project("dh", "default = true", &[])
            .upstream("dh", &keys)
    };
    let server = Setup::new(&config("old")).start();
    let denied = server.get(TAG);
    assert!(denied.status() >= 400, "{}", denied.head.raw);
    rewrite(&server, config("new").text());
    reloaded(&server);
    assert_eq!(digest(&server.get(TAG).expect(200).body), image.digest);
}

/// Where a token is the password, the name is the same for everybody.
#[test]
fn what_one_token_was_shown_is_not_served_to_the_next() {
    let origin = Origin::start_with(&["--auth", "basic", "--user", "token:one"]);
    let blob = origin.blob(&["library/app"], 1_000, 1);
    let target = format!("/v2/dh/library/app/blobs/{}", blob.digest);
    let config = |token: &str| {
        let keys = format!(
            "url = \"{}\"\nusername = \"token\"\npassword = \"{token}\"",
            origin.url()
        );
        Config::new()
            .project("dh", "default = true", &[])
            .upstream("dh", &keys)
    };
    let server = Setup::new(&config("one")).start();
    server.get(&target).expect(200);
    rewrite(&server, config("another").text());
    reloaded(&server);
    let denied = server.get(&target);
    assert_eq!(denied.status(), 403, "{}", denied.head.raw);
    // It is still the first one's.
    origin.go_down();
    rewrite(&server, config("one").text());
    reloaded(&server);
    assert_eq!(digest(&server.get(&target).expect(200).body), blob.digest);
}

#[test]
fn sighup_reloads_and_the_service_manager_is_told() {
    let origin = Origin::start();
    let dir = TempDir::new("notify");
    let path = dir.join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket
        .set_read_timeout(Some(PATIENCE))
        .expect("a time limit");
    let told = || {
        let mut bytes = [0; 256];
        let len = socket.recv(&mut bytes).expect("a word");
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    };
    let setup = Setup::new(&Config::one(origin.url()));
    let mut server = setup
        .variable("NOTIFY_SOCKET", &path.display().to_string())
        .start();
    assert_eq!(told(), "READY=1\n");
    let text = format!(
        "[log]\nlevel = \"debug\"\n{}",
        Config::one(origin.url()).text()
    );
    rewrite(&server, &text);
    server.process().signal(Signal::HUP);
    let reloading = told();
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert_eq!(told(), "READY=1\n");
    until("a line that it did", || {
        let log = server.log();
        log.iter()
            .any(|line| line["message"] == "reloaded")
            .then_some(())
    });
    server.get("/v2/dh/library/none/manifests/1").expect(404);
    until_true("lines of the level that came with the reload", || {
        server.log().iter().any(|line| line["level"] == "DEBUG")
    });
    server.process().signal(Signal::TERM);
    assert_eq!(
        server
            .process()
            .wait_exit_within(Duration::from_secs(60))
            .code(),
        Some(0)
    );
}
