//! How the server starts, tells how it is, and ends.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use serde_json::json;

use entrepot_tests::deadline::{PATIENCE, until_true};
use entrepot_tests::entrepot::{Config, Entrepot, Setup, program};
use entrepot_tests::http::{Connection, get_hashed};
use entrepot_tests::origin::Origin;
use entrepot_tests::process::{command, run_ok};
use entrepot_tests::sha256::{Hash, digest};
use entrepot_tests::temp::TempDir;

fn nowhere() -> Config {
    Config::one("http://127.0.0.1:1")
}

fn blob_target(digest: &str) -> String {
    format!("/v2/dh/library/app/blobs/{digest}")
}

#[test]
fn sigterm_lets_downloads_end_and_makes_everything_durable() {
    let origin = Origin::start();
    let image = origin.image("library/app", "1", 1);
    let blob = origin.blob(&["library/app"], 8 << 20, 1);
    origin.fault(
        json!({"contains": blob.digest, "method": "GET"}),
        json!({"halt_at": "50%"}),
    );
    let mut server = Entrepot::before(origin.url());
    server.get("/v2/dh/library/app/manifests/1").expect(200);
    let layer = blob_target(&image.manifests[0].layers[0].digest);
    server.get(&layer).expect(200);

    let mut client = Connection::open(server.addr());
    client.request("GET", &blob_target(&blob.digest), &[]);
    let head = client.read_head().expect("a head while the body arrives");
    origin.wait(json!({"kind": "blob", "state": "halted"}), 1);
    server.process().signal(rustix::process::Signal::TERM);
    until_true("new connections are refused", || {
        std::net::TcpStream::connect(server.addr()).is_err()
    });
    assert_eq!(server.process().has_exited(), None, "a download is running");
    origin.release();
    let mut hash = Hash::default();
    let read = client.read_body("GET", &head, &mut |bytes| hash.update(bytes));
    assert_eq!((read, hash.digest()), (Ok(()), blob.digest.clone()));
    drop(client);
    assert_eq!(server.process().wait_exit().code(), Some(0));

    origin.go_down();
    let server = server.setup().start();
    let tag = server.get("/v2/dh/library/app/manifests/1").expect(200);
    assert_eq!(digest(&tag.body), image.digest);
    server.get(&layer).expect(200);
    let hashed = get_hashed(server.addr(), &blob_target(&blob.digest)).expect("a head");
    assert_eq!((hashed.broken, hashed.digest), (None, blob.digest));
}

#[test]
fn sigterm_waits_no_longer_than_its_deadline() {
    let origin = Origin::start();
    let blob = origin.blob(&["library/app"], 8 << 20, 1);
    origin.fault(
        json!({"kind": "blob", "method": "GET"}),
        json!({"stall_at": "50%"}),
    );
    let setup = Setup::new(&Config::one(origin.url()));
    let server = setup.args(&["--set", "limits.drain_timeout=1s"]).start();
    let mut client = Connection::open(server.addr());
    client.request("GET", &blob_target(&blob.digest), &[]);
    let head = client.read_head().expect("a head while the body arrives");
    let (status, _) = server.terminate();
    assert_eq!(status.code(), Some(0));
    let read = client.read_body("GET", &head, &mut |_| ());
    assert!(read.is_err(), "half a body was completed");
}

#[test]
fn an_idle_connection_does_not_hold_up_a_drain() {
    let server = Setup::new(&nowhere()).start();
    let mut idle = Connection::open(server.addr());
    idle.request("GET", "/v2/", &[]);
    idle.answer("GET").expect("an answer").expect(200);
    let (status, _) = server.terminate();
    assert_eq!(status.code(), Some(0));
    assert!(idle.is_closed());
}

#[test]
fn the_service_manager_is_told() {
    let dir = TempDir::new("notify");
    let path = dir.join("socket");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let path = path.to_str().expect("a path in UTF-8");
    let server = Setup::new(&nowhere())
        .variable("NOTIFY_SOCKET", path)
        .start();
    let told = || {
        let mut message = [0; 512];
        let len = socket.recv(&mut message).expect("a message in time");
        String::from_utf8_lossy(&message[..len]).into_owned()
    };
    assert!(told().contains("READY=1"));
    let (status, _) = server.terminate();
    assert!(told().contains("STOPPING=1"));
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_configuration_is_checked_and_printed() {
    let setup = Setup::new(&Config::one("http://127.0.0.1:5002"));
    for verb in ["check-config", "print-config"] {
        let mut entrepot = command(program());
        entrepot.arg(verb).arg("--config").arg(setup.config_path());
        entrepot.env("HOME", setup.dir().path());
        let printed = run_ok(entrepot);
        assert!(!printed.is_empty());
        if verb == "print-config" {
            assert!(printed.contains("http://127.0.0.1:5002"), "{printed}");
            // What is printed can be read again.
            let again = setup.dir().write("again.toml", &printed);
            let mut check = command(program());
            check.arg("check-config").arg("--config").arg(again);
            run_ok(check);
        }
    }
}

#[test]
fn without_a_configuration_the_public_registries_are_there() {
    let home = TempDir::new("home");
    let mut print = command(program());
    print
        .arg("print-config")
        .env("HOME", home.path())
        .env_remove("STATE_DIRECTORY");
    let printed = run_ok(print);
    for name in ["dh", "dhi", "ghcr", "gcr", "\"quay.io\"", "lscr"] {
        assert!(
            printed.contains(&format!("[project.{name}]")),
            "{name}: {printed}"
        );
    }
    assert!(printed.contains("0.0.0.0:5000") && printed.contains("127.0.0.1:5001"));
    assert!(printed.contains(".cache/entrepot"), "{printed}");

    let state = TempDir::new("state");
    let mut print = command(program());
    print
        .arg("print-config")
        .env("HOME", home.path())
        .env("STATE_DIRECTORY", state.path());
    let printed = run_ok(print);
    assert!(
        printed.contains(state.path().to_str().expect("a path in UTF-8")),
        "{printed}"
    );
}

#[test]
fn passwords_are_neither_printed_nor_logged() {
    let origin = Origin::start_with(&["--auth", "token", "--user", "ci:hunter2"]);
    origin.image("library/app", "1", 1);
    let keys = format!(
        "url = \"{}\"\nusername = \"ci\"\npassword = \"hunter2\"",
        origin.url()
    );
    let config = Config::new().project("dh", "access = \"anonymous\"", &[]);
    let setup = Setup::new(&config.upstream("dh", &keys));
    let mut print = command(program());
    print
        .arg("print-config")
        .arg("--config")
        .arg(setup.config_path());
    print.env("HOME", setup.dir().path());
    assert!(!run_ok(print).contains("hunter2"));

    let server = setup.args(&["--set", "log.level=trace"]).start();
    server.get("/v2/dh/library/app/manifests/1").expect(200);
    until_true("the request is logged", || {
        server
            .log()
            .iter()
            .any(|line| line.to_string().contains("\"served\""))
    });
    let said = format!("{:?}", server.log());
    assert!(!said.contains("hunter2"), "the password is in the log");
    assert!(
        !said.contains("Y2k6aHVudGVyMg"),
        "the login is in the log in base64"
    );
}

#[test]
fn the_admin_listener_tells_health_and_counters() {
    let server = Setup::new(&nowhere()).start();
    for path in ["/livez", "/readyz"] {
        entrepot_tests::http::get(server.admin(), path).expect(200);
    }
    let page = entrepot_tests::http::get(server.admin(), "/metrics").expect(200);
    let media_type = page.field("content-type").unwrap_or_default();
    assert!(media_type.starts_with("text/plain"), "{media_type}");
    for name in [
        "entrepot_requests_total",
        "entrepot_fills_total",
        "entrepot_fills_running",
        "entrepot_followers",
        "entrepot_upstream_requests_total",
        "entrepot_upstream_bytes_total",
        "entrepot_served_bytes_total",
        "entrepot_messages_total",
        "entrepot_store_used_bytes",
        "entrepot_store_uncommitted_bytes",
        "entrepot_store_capacity_bytes",
        "entrepot_connections",
    ] {
        server.metric(name, &[]);
        assert!(page.text().contains(&format!("# TYPE {name} ")), "{name}");
    }
    // Neither is on the data port, nor the data on the admin port.
    for path in ["/metrics", "/livez", "/readyz"] {
        assert_ne!(server.get(path).status(), 200, "{path}");
    }
    assert_ne!(
        entrepot_tests::http::get(server.admin(), "/v2/").status(),
        200
    );
}

#[test]
fn every_request_is_logged_with_its_outcome() {
    let origin = Origin::start();
    let image = origin.image("library/app", "1", 1);
    let server = Entrepot::before(origin.url());
    let layer = blob_target(&image.manifests[0].layers[0].digest);
    server.get(&layer).expect(200);
    server.get(&layer).expect(200);
    server.get("/v2/dh/library/app/manifests/1").expect(200);
    origin.go_down();
    server.get("/v2/dh/library/app/manifests/1").expect(200);
    for word in ["miss", "hit", "stale"] {
        until_true(&format!("the log says {word}"), || {
            let quoted = format!("\"{word}\"");
            server
                .log()
                .iter()
                .any(|line| line.to_string().contains(&quoted))
        });
    }
    let within = Duration::from_secs(5);
    entrepot_tests::deadline::until_within(within, "requests are counted", || {
        let count = |result: &str| server.metric("entrepot_requests_total", &[result]);
        (count("miss") >= 2.0 && count("hit") >= 1.0 && count("stale") >= 1.0).then_some(())
    });
}
