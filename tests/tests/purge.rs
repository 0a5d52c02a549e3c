//! Purges through the control socket: what is named is gone, stays gone, and is fetched anew;
//! what is not named stays.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};

use serde_json::json;

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{Connection, get_hashed};
use entrepot_tests::origin::Origin;
use entrepot_tests::sha256::{Hash, digest};
use entrepot_tests::temp::TempDir;
use entrepot_tests::world::World;

/// sysexits.h: EX_UNAVAILABLE and EX_CONFIG.
const UNAVAILABLE: i32 = 69;
const CONFIG: i32 = 78;

fn blob_target(repository: &str, digest: &str) -> String {
    format!("/v2/dh/{repository}/blobs/{digest}")
}

/// Whether the server still has it without asking upstream for the bytes.
fn is_held(origin: &Origin, server: &Entrepot, target: &str) -> bool {
    let fetched = || origin.count("method=GET");
    let before = fetched();
    server.get(target).expect(200);
    fetched() == before
}

#[test]
fn a_purged_body_is_gone_from_every_repository_and_stays_gone() {
    let origin = Origin::start();
    let server = Entrepot::before(origin.url());
    let repositories = ["team/a", "team/b"];
    let purged = origin.blob(&repositories, 300_000, 1);
    let kept = origin.blob(&repositories, 300_000, 2);
    for repository in repositories {
        for blob in [&purged, &kept] {
            server
                .get(&blob_target(repository, &blob.digest))
                .expect(200);
        }
    }
    server.wait_committed();
    let said = server.ask_ok(&["purge", "digest", &purged.digest]);
    assert!(said.contains("forgot 1 body, 2 links"), "{said}");
    let said = server.ask_ok(&["purge", "digest", &purged.digest]);
    assert!(said.contains("nothing was held"), "{said}");

    // Durable when the command returned: a crash does not bring it back.
    let setup = server.kill9();
    origin.go_down();
    let server = setup.start();
    for repository in repositories {
        let gone = server.get(&blob_target(repository, &purged.digest));
        assert_eq!(gone.status(), 502, "{}", gone.head.raw);
        let held = server
            .get(&blob_target(repository, &kept.digest))
            .expect(200);
        assert_eq!(digest(&held.body), kept.digest);
    }
    origin.come_back();
    let target = blob_target("team/a", &purged.digest);
    let fetched = origin.count("kind=blob&method=GET");
    assert_eq!(digest(&server.get(&target).expect(200).body), purged.digest);
    assert_eq!(origin.count("kind=blob&method=GET"), fetched + 1);
    assert!(is_held(&origin, &server, &target), "a later pull keeps it");
}

/// A repository's links come with the ends of its fills, so nothing in the index names whose they
/// are.
#[test]
fn a_running_fill_of_what_is_purged_is_stopped_and_commits_nothing() {
    for what in ["digest", "repository", "project"] {
        let origin = Origin::start();
        let server = Entrepot::before(origin.url());
        let blob = origin.blob(&["library/app"], 8 << 20, 1);
        let target = blob_target("library/app", &blob.digest);
        let name = match what {
            "digest" => &*blob.digest,
            "repository" => "dh/library/app",
            _ => "dh",
        };
        origin.fault_times(1, json!({"kind": "blob"}), json!({"halt_at": "50%"}));
        std::thread::scope(|scope| {
            let pull = scope.spawn(|| get_hashed(server.addr(), &target));
            origin.wait(json!({"kind": "blob", "state": "halted"}), 1);
            until_true("the fill runs", || {
                server.metric("entrepot_fills_running", &[]) == 1.0
            });
            server.ask_ok(&["purge", what, name]);
            origin.release();
            let cut = pull.join().expect("no panic").expect("a head");
            assert!(cut.broken.is_some(), "{what}: a purged body is completed");
        });
        until_true("the fill has ended", || {
            server.metric("entrepot_fills_running", &[]) == 0.0
        });
        assert_eq!(server.metric("entrepot_store_bodies", &[]), 0.0);
        assert!(!is_held(&origin, &server, &target), "{what}");
        let body = server.get(&target).expect(200).body;
        assert_eq!(digest(&body), blob.digest, "a later pull fetches it anew");
    }
}

/// What is fetched for two repositories is not taken from the one by a purge of the other, whoever
/// began; who was purged has to prove anew that it is his.
#[test]
fn a_purge_leaves_a_fill_to_another_repository() {
    for (first, second, purged) in [
        ("team/b", "team/a", "team/a"),
        ("team/a", "team/b", "team/a"),
    ] {
        let origin = Origin::start();
        let server = Entrepot::before(origin.url());
        let blob = origin.blob(&[first, second], 8 << 20, 1);
        let matching = json!({"kind": "blob", "method": "GET"});
        origin.fault_times(1, matching, json!({"halt_at": "50%"}));
        let clients = [first, second].map(|repository| {
            let mut client = Connection::open(server.addr());
            client.request("GET", &blob_target(repository, &blob.digest), &[]);
            let head = client.read_head().expect("a head while the body comes");
            assert_eq!(head.status, 200, "{repository}: {}", head.raw);
            (client, head)
        });
        server.ask_ok(&["purge", "repository", &format!("dh/{purged}")]);
        origin.release();
        for (mut client, head) in clients {
            let mut hash = Hash::default();
            let read = client.read_body("GET", &head, &mut |bytes| hash.update(bytes));
            assert_eq!((read, hash.digest()), (Ok(()), blob.digest.clone()));
        }
        until_true("the fill has ended", || {
            server.metric("entrepot_fills_running", &[]) == 0.0
        });
        let theirs = blob_target("team/b", &blob.digest);
        let own = blob_target(purged, &blob.digest);
        origin.go_down();
        server.get(&theirs).expect(200);
        assert_eq!(server.get(&own).status(), 502, "begun by {first}");
        origin.come_back();
        assert!(is_held(&origin, &server, &own), "with a proof of its own");
    }
}

#[test]
fn a_purged_tag_is_resolved_anew_and_its_lists_are_forgotten() {
    let origin = Origin::start();
    // Fresh for an hour: upstream is not asked, unless the tag is gone.
    let keys = "serves = [\"docker.io\"]\ndefault = true\nfreshness = [{ for = \"1h\" }]";
    let config = Config::new().project("dh", keys, &[origin.url()]);
    let server = Setup::new(&config).start();
    let image = origin.image("library/app", "1", 1);
    let by_tag = "/v2/dh/library/app/manifests/1";
    let list = "/v2/dh/library/app/tags/list";
    for _ in 0..2 {
        assert_eq!(digest(&server.get(by_tag).expect(200).body), image.digest);
    }
    assert_eq!(origin.count("kind=manifest&method=HEAD"), 1);
    server.get(list).expect(200);

    // The project says "library/app" in two ways.
    let said = server.ask_ok(&["purge", "tag", "dh/app:1"]);
    assert!(said.contains("forgot 1 tag, 1 listing"), "{said}");
    let setup = server.kill9();
    origin.go_down();
    let server = setup.start();
    assert_eq!(server.get(by_tag).status(), 502, "the tag");
    assert_eq!(server.get(list).status(), 502, "the list of tags");
    let by_digest = format!("/v2/dh/library/app/manifests/{}", image.digest);
    if image.digest == digest(&server.get(&by_digest).body) {
        println!("the manifest itself was durable in time");
    }
    origin.come_back();
    assert_eq!(digest(&server.get(by_tag).expect(200).body), image.digest);
}

#[test]
fn a_purged_repository_takes_along_what_only_it_had() {
    let origin = Origin::start();
    let server = Entrepot::before(origin.url());
    let own = origin.blob(&["team/a"], 200_000, 1);
    let shared = origin.blob(&["team/a", "team/b"], 200_000, 2);
    let image = origin.image("team/a", "1", 3);
    let manifest = "/v2/dh/team/a/manifests/1";
    server.get(&blob_target("team/a", &own.digest)).expect(200);
    for repository in ["team/a", "team/b"] {
        server
            .get(&blob_target(repository, &shared.digest))
            .expect(200);
    }
    assert_eq!(digest(&server.get(manifest).expect(200).body), image.digest);
    server.get("/v2/dh/team/a/tags/list").expect(200);
    assert_eq!(server.metric("entrepot_store_bodies", &[]), 4.0);

    // Three bodies: the layer, the manifest and the cached list.
    let said = server.ask_ok(&["purge", "repository", "dh/team/a"]);
    assert!(
        said.contains("forgot 3 bodies, 1 tag, 1 listing, 3 links"),
        "{said}"
    );
    assert_eq!(server.metric("entrepot_store_bodies", &[]), 1.0);
    let target = blob_target("team/b", &shared.digest);
    assert!(is_held(&origin, &server, &target), "another repository's");
    for (target, expected) in [
        (blob_target("team/a", &own.digest), &own.digest),
        (manifest.to_owned(), &image.digest),
    ] {
        assert!(!is_held(&origin, &server, &target), "{target}");
        assert_eq!(digest(&server.get(&target).expect(200).body), *expected);
    }
}

#[test]
fn a_purged_project_leaves_the_others_alone() {
    let (first, second) = (Origin::start(), Origin::start());
    let config =
        Config::new()
            .project("one", "", &[first.url()])
            .project("two", "", &[second.url()]);
    let server = Setup::new(&config).start();
    let mut targets = Vec::new();
    for nth in 0..6 {
        let repository = format!("team/r{nth}");
        for (project, origin) in [("one", &first), ("two", &second)] {
            let seed = nth + 100 * u64::from(project == "two");
            let blob = origin.blob(&[&repository], 5_000, seed);
            targets.push((
                project,
                format!("/v2/{project}/{repository}/blobs/{}", blob.digest),
            ));
        }
    }
    for (_, target) in &targets {
        server.get(target).expect(200);
    }
    let said = server.ask_ok(&["purge", "project", "one"]);
    assert!(said.contains("forgot 6 bodies, 6 links"), "{said}");
    first.go_down();
    second.go_down();
    for (project, target) in &targets {
        let expected = if *project == "one" { 502 } else { 200 };
        assert_eq!(server.get(target).status(), expected, "{target}");
    }
}

#[test]
fn the_socket_is_its_users_only_and_a_dead_ones_file_is_replaced() {
    let world = World::new();
    let socket = world.server.setup().store_path().join("control.sock");
    let metadata = socket.metadata().expect("the control socket");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let setup = world.server.kill9();
    assert!(socket.exists(), "SIGKILL leaves the file");

    let unserved = setup.ask(&["purge", "project", "dh"]);
    let said = String::from_utf8_lossy(&unserved.stderr).into_owned();
    assert_eq!(unserved.status.code(), Some(UNAVAILABLE), "{said}");
    assert!(
        said.contains("no server answers on") && said.contains("--control"),
        "{said}"
    );

    let server = setup.start();
    server.ask_ok(&["purge", "project", "dh"]);
    let (status, setup) = server.terminate();
    assert_eq!(status.code(), Some(0));
    assert!(!socket.exists(), "an orderly end removes it");
    let unserved = setup.ask(&["purge", "project", "dh"]);
    assert_eq!(unserved.status.code(), Some(UNAVAILABLE));
}

#[test]
fn what_cannot_be_purged_is_said() {
    let world = World::new();
    let server = &world.server;
    for (args, code, part) in [
        (["digest", "sha256:123"], 2, "invalid value"),
        (["tag", "dh/library/app"], 1, "is not a tag"),
        (["tag", "app:1"], 1, "is not a tag"),
        (["repository", "dh"], 1, "is not a repository"),
        (["repository", "dh/../x"], 1, "is not a repository"),
        (["project", "dh/x"], 1, "is not the name of a project"),
    ] {
        let output = server.ask(&["purge", args[0], args[1]]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(part), "{args:?}: {said}");
    }
    // What nobody configured is no error: its records may be left from another configuration.
    let said = server.ask_ok(&["purge", "project", "unknown"]);
    assert!(said.contains("nothing was held"), "{said}");
}

#[test]
fn a_socket_path_that_no_address_can_hold_is_refused_at_start() {
    let origin = Origin::start();
    let dir = TempDir::new("long");
    let long = dir.join("s".repeat(120));
    let setup = Setup::new(&Config::one(origin.url())).store(&long);
    let (code, said) = setup.refused();
    assert_eq!(code, Some(CONFIG), "{said}");
    assert!(
        said.contains("has at most 107") && said.contains("--control"),
        "{said}"
    );
    // Another place for it, and the store may be where it is.
    let socket = dir.join("c.sock").display().to_string();
    let server = setup.args(&["--control", &socket]).start();
    server.ask_ok(&["purge", "project", "dh", "--control", &socket]);
}
