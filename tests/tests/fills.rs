//! Who shares a fill, who may not, who waits for one, and what is passed on without one.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{Connection, get, get_hashed};
use entrepot_tests::origin::{Held, Origin};
use entrepot_tests::ranges::sent;
use entrepot_tests::sha256::digest;

const MIB: u64 = 1 << 20;
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const TAG: &str = "/v2/dh/library/app/manifests/1";
/// Of what waits for nobody for long, on a busy machine.
const SOON: Duration = Duration::from_secs(10);

fn blob_target(name: &str, blob: &Held) -> String {
    format!("/v2/{name}/blobs/{}", blob.digest)
}

/// The same manifest in each of some repositories, as their tag 1.
fn manifest_of(origin: &Origin, repositories: &[&str]) -> Held {
    let text = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).to_string();
    let put = |repository: &&str| origin.manifest(repository, OCI_MANIFEST, &text, &["1"]);
    let mut held: Vec<Held> = repositories.iter().map(put).collect();
    held.pop().expect("a repository")
}

fn gets_of_blobs() -> Value {
    json!({"kind": "blob", "method": "GET"})
}

/// Waits until a further ask has reached its owner.
fn has_asked(server: &Entrepot, before: f64) {
    until_true("it has asked", || {
        server.metric("entrepot_messages_total", &[]) > before
    });
}

/// containerd asks for the tag by HEAD and then for its digest, which others may have fetched.
#[test]
fn a_tag_moves_whoever_fetched_its_manifest() {
    let origin = Origin::start();
    let held = manifest_of(&origin, &["team/one", "team/two"]);
    let server = Entrepot::before(origin.url());
    let target = |name: &str| format!("/v2/dh/team/{name}/manifests/{}", held.digest);
    server.head("/v2/dh/team/two/manifests/1").expect(200);
    for name in ["one", "two"] {
        server.get(&target(name)).expect(200);
    }
    origin.go_down();
    let stale = server.get("/v2/dh/team/two/manifests/1").expect(200);
    assert_eq!(digest(&stale.body), held.digest);
    assert!(stale.field("warning").is_some(), "{}", stale.head.raw);
}

/// A HEAD costs nothing at the registry whose GETs are limited: it says that the tag moved.
#[test]
fn a_moved_tag_that_may_not_be_fetched_now_is_served_as_it_was() {
    for others_wait in [false, true] {
        let origin = Origin::start();
        let first = origin.image("library/app", "1", 1);
        let server = Entrepot::before(origin.url());
        server.get(TAG).expect(200);
        let second = origin.image("library/app", "new", 2);
        origin.tag("library/app", "1", &second.digest);
        let limited = json!({"status": 429, "headers": {"Retry-After": "25"}});
        origin.fault(json!({"kind": "manifest", "method": "GET"}), limited);
        if others_wait {
            let addr = server.addr();
            let target = format!("/v2/dh/library/app/manifests/{}", second.digest);
            // It has nothing else to wait for.
            thread::spawn(move || get(addr, &target));
            until_true("the limit is met", || {
                server.metric("entrepot_upstream_held_lanes", &[]) == 1.0
            });
        }
        for _ in 0..2 {
            let began = Instant::now();
            let answer = server.get(TAG).expect(200);
            assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
            assert_eq!(digest(&answer.body), first.digest);
            assert!(answer.field("warning").is_some(), "{}", answer.head.raw);
        }
        let limited = origin.count("kind=manifest&method=GET&status=429");
        assert_eq!(limited, 1, "{others_wait}");
    }
}

/// Its length is proof enough once it is known.
#[test]
fn who_comes_before_the_head_proves_itself_by_what_the_head_says() {
    let origin = Origin::start();
    let blob = origin.blob(&["team/one", "team/two"], 8 * MIB, 1);
    let server = Entrepot::before(origin.url());
    origin.fault_times(1, gets_of_blobs(), json!({"hang": true}));
    let nameless = json!({"drop_headers": ["Docker-Content-Digest"]});
    origin.fault(json!({"kind": "blob", "method": "HEAD"}), nameless);
    thread::scope(|scope| {
        let pull = |name: &str| {
            let (addr, target) = (
                server.addr(),
                blob_target(&format!("dh/team/{name}"), &blob),
            );
            scope.spawn(move || get_hashed(addr, &target).expect("a head"))
        };
        let one = pull("one");
        origin.wait(gets_of_blobs(), 1);
        let before = server.metric("entrepot_messages_total", &[]);
        let two = pull("two");
        has_asked(&server, before);
        origin.release();
        for client in [one, two] {
            let hashed = client.join().expect("a client");
            assert_eq!((hashed.broken, &hashed.digest), (None, &blob.digest));
        }
    });
    assert_eq!(origin.count("kind=blob&method=GET"), 1);
    assert_eq!(origin.count("kind=blob&method=HEAD"), 1);
}

#[test]
fn what_an_upstream_brings_after_a_reload_took_it_away_is_for_nobody() {
    let (first, second) = (Origin::start(), Origin::start());
    let before = |origin: &Origin| Config::new().project("p", "", &[origin.url()]);
    let server = Setup::new(&before(&first)).start();
    let blob = first.blob(&["team/app"], 8 * MIB, 1);
    first.fault(gets_of_blobs(), json!({"hang": true}));
    let target = blob_target("p/team/app", &blob);
    thread::scope(|scope| {
        let addr = server.addr();
        let target = &target;
        let pull = || scope.spawn(move || get(addr, target).status());
        let early = pull();
        first.wait(gets_of_blobs(), 1);
        std::fs::write(server.setup().config_path(), before(&second).text()).expect("written");
        server.ask_ok(&["reload"]);
        let asked = server.metric("entrepot_messages_total", &[]);
        let late = pull();
        has_asked(&server, asked);
        first.release();
        assert_eq!(late.join().expect("a client"), 404);
        early.join().expect("a client");
    });
    assert!(second.count("kind=blob") > 0, "that is who is asked now");
}

/// A range joins a fill that runs; when that is refused, none is begun for it.
#[test]
fn a_range_that_is_passed_on_begins_no_fill_after_another_was_refused() {
    let origin = Origin::start();
    let blob = origin.blob(&["team/one", "team/two"], 8 * MIB, 1);
    let keys = "default = true\ncold_ranges = \"pass\"";
    let server = Setup::new(&Config::new().project("dh", keys, &[origin.url()])).start();
    // It has a link of its own.
    let two = blob_target("dh/team/two", &blob);
    server.head(&two).expect(200);
    let of_one = json!({"kind": "blob", "method": "GET", "repository": "team/one"});
    origin.fault(of_one.clone(), json!({"hang": true, "status": 403}));
    thread::scope(|scope| {
        let refused = scope.spawn(|| server.get(&blob_target("dh/team/one", &blob)).status());
        origin.wait(of_one, 1);
        let before = server.metric("entrepot_messages_total", &[]);
        let part = scope.spawn(|| server.get_with(&two, &[("Range", "bytes=5000000-5000999")]));
        has_asked(&server, before);
        origin.release();
        assert_eq!(refused.join().expect("a client"), 403);
        let part = part.join().expect("a client").expect(206);
        assert_eq!(part.body.len(), 1000);
    });
    let of_two = origin.log("kind=blob&method=GET&repository=team/two");
    assert_eq!(of_two.len(), 1, "{of_two:#?}");
    assert_eq!(sent(&origin).0, 1000);
    assert_eq!(server.metric("entrepot_fills_total", &[]), 0.0);
}

/// What proves nothing is fetched in its own name: of whom it is right, and once.
#[test]
fn what_is_passed_on_is_asked_of_the_next_when_it_is_wrong_and_then_linked() {
    let (first, second) = (Origin::start(), Origin::start());
    let config = Config::new().project("known", "", &[second.url()]).project(
        "both",
        "",
        &[first.url(), second.url()],
    );
    let server = Setup::new(&config).start();
    let mut blob = first.blob(&["team/two"], 500_000, 1);
    let mut manifest = manifest_of(&first, &["team/two"]);
    for origin in [&first, &second] {
        blob = origin.blob(&["team/one", "team/two"], 500_000, 1);
        manifest = manifest_of(origin, &["team/one", "team/two"]);
        // Neither a length nor a digest.
        let says_nothing = json!({"chunked": true, "drop_headers": ["Docker-Content-Digest"]});
        origin.fault(json!({"method": "HEAD"}), says_nothing);
    }
    first.fault(gets_of_blobs(), json!({"flip_at": 100}));
    for (path, held, of) in [("blobs", &blob, &second), ("manifests", &manifest, &first)] {
        let target = |name: &str| format!("/v2/{name}/{path}/{}", held.digest);
        server.get(&target("known/team/one")).expect(200);
        server.wait_committed();
        for origin in [&first, &second] {
            origin.clear_log();
        }
        for _ in 0..2 {
            let answer = server.get(&target("both/team/two")).expect(200);
            assert_eq!(digest(&answer.body), held.digest, "{path}");
        }
        assert_eq!(of.count("method=GET&repository=team/two"), 1, "{path}");
    }
    assert_eq!(server.metric("entrepot_relays_total", &[]), 2.0);
}

/// Others may wait for the connection that is kept for it.
#[test]
fn a_client_that_is_too_slow_is_not_passed_on_to_for_ever() {
    let origin = Origin::start();
    // More than all sockets on the way buffer.
    let blob = origin.blob(&["library/app"], 64 * MIB, 1);
    let limits = ["limits.body_max=1MiB", "limits.send_timeout=10m"];
    let server = Setup::new(&Config::one(origin.url()))
        .capacity("128MiB")
        .args(&["--set", limits[0], "--set", limits[1]])
        .start();
    let mut client = Connection::open(server.addr());
    client.request("GET", &blob_target("dh/library/app", &blob), &[]);
    let head = client.read_head().expect("a head");
    assert_eq!(server.metric("entrepot_relays_total", &[]), 1.0);
    // It takes nothing, for which it has ten minutes elsewhere.
    until_true("its connection upstream is free", || {
        server.metric("entrepot_upstream_permits", &[]) == 0.0
    });
    let read = client.read_body("GET", &head, &mut |_| ());
    assert!(read.is_err(), "it was cut");
}
