//! What one repository, project or upstream holds is not served to another without its own proof
//! (R9), and what two share is fetched and stored once.

use serde_json::json;

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{Connection, fetch};
use entrepot_tests::origin::Origin;
use entrepot_tests::sha256::{Hash, digest};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const EMPTY_CONFIG: &str = "application/vnd.oci.empty.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

const LAYER_LEN: u64 = 8 << 20;

#[test]
fn a_layer_of_two_repositories_is_fetched_and_stored_once() {
    let origin = Origin::start();
    let layer = origin.blob(&["team/one", "team/two"], LAYER_LEN, 1);
    let server = Entrepot::before(origin.url());
    let before = server.metric("entrepot_store_used_bytes", &[]);
    for repository in ["team/one", "team/two", "team/one", "team/two"] {
        let target = format!("/v2/dh/{repository}/blobs/{}", layer.digest);
        let answer = server.get(&target).expect(200);
        assert_eq!(digest(&answer.body), layer.digest);
    }
    let gets = origin.log("kind=blob&method=GET");
    assert_eq!(gets.len(), 1, "{gets:#?}");
    assert_eq!(gets[0]["repository"], "team/one");
    // The second repository proves itself once.
    let heads = origin.log("kind=blob&method=HEAD");
    assert_eq!(heads.len(), 1, "{heads:#?}");
    assert_eq!(heads[0]["repository"], "team/two");

    let copies = (server.metric("entrepot_store_used_bytes", &[]) - before) / LAYER_LEN as f64;
    println!("the store grew by {copies} times the layer");
    assert!(copies < 2.0, "stored {copies} times");
}

#[test]
fn a_second_repository_joins_a_running_fill_with_a_head() {
    let origin = Origin::start();
    let layer = origin.blob(&["team/one", "team/two"], LAYER_LEN, 1);
    origin.fault(
        json!({"kind": "blob", "method": "GET"}),
        json!({"halt_at": "50%"}),
    );
    let server = Entrepot::before(origin.url());
    let mut clients = Vec::new();
    for repository in ["team/one", "team/two"] {
        let mut client = Connection::open(server.addr());
        let target = format!("/v2/dh/{repository}/blobs/{}", layer.digest);
        client.request("GET", &target, &[]);
        let head = client.read_head().expect("a head while the body arrives");
        assert_eq!(head.status, 200);
        clients.push((client, head));
    }
    assert_eq!(origin.count("kind=blob&method=GET"), 1);
    assert_eq!(origin.count("kind=blob&method=HEAD&repository=team/two"), 1);
    origin.release();
    for (mut client, head) in clients {
        let mut hash = Hash::default();
        let read = client.read_body("GET", &head, &mut |bytes| hash.update(bytes));
        assert_eq!((read, hash.digest()), (Ok(()), layer.digest.clone()));
    }
}

/// The length of a body that is being fetched is what an upstream says of it.
#[test]
fn the_length_of_a_running_fill_leaves_no_proof() {
    let origin = Origin::start();
    let layer = origin.blob(&["team/one", "team/two"], LAYER_LEN, 1);
    origin.fault(
        json!({"kind": "blob", "method": "HEAD"}),
        json!({"drop_headers": ["Docker-Content-Digest"]}),
    );
    origin.fault_times(
        1,
        json!({"kind": "blob", "method": "GET"}),
        json!({"halt_at": "50%", "flip_at": -1}),
    );
    let server = Setup::new(&Config::one(origin.url()))
        .args(&["--set", "limits.mismatch_holdoff=1ms"])
        .start();
    let target = |name: &str| format!("/v2/dh/team/{name}/blobs/{}", layer.digest);
    let mut clients = Vec::new();
    for name in ["one", "two"] {
        let mut client = Connection::open(server.addr());
        client.request("GET", &target(name), &[]);
        let head = client.read_head().expect("a head while the body arrives");
        assert_eq!(head.status, 200);
        clients.push((client, head));
    }
    assert_eq!(origin.count("kind=blob&method=GET"), 1, "both follow it");
    let gone = json!({"repository": "team/two", "digest": layer.digest});
    origin.call("delete", gone);
    origin.release();
    for (mut client, head) in clients {
        let read = client.read_body("GET", &head, &mut |_| ());
        assert!(read.is_err(), "wrong bytes are not completed");
    }
    until_true("the right bytes are held", || {
        server.get(&target("one")).status() == 200
    });
    server.get(&target("two")).expect_error(404, "BLOB_UNKNOWN");
}

/// Only the bytes can prove it then.
#[test]
fn an_answer_without_digest_and_length_has_its_bytes_fetched() {
    let origins = [Origin::start(), Origin::start()];
    let repositories = ["team/one", "team/two"];
    let layers = origins
        .each_ref()
        .map(|origin| origin.blob(&repositories, 300_000, 1));
    origins[0].fault(
        json!({"kind": "blob", "method": "HEAD"}),
        json!({"chunked": true, "drop_headers": ["Docker-Content-Digest"]}),
    );
    let target = |name: &str| format!("/v2/dh/{name}/blobs/{}", layers[0].digest);
    for upstreams in [1, 2] {
        let urls: Vec<&str> = origins.iter().map(Origin::url).take(upstreams).collect();
        let config = Config::new().project("dh", "default = true", &urls);
        let server = Setup::new(&config).start();
        for name in repositories {
            let answer = server.get(&target(name)).expect(200);
            assert_eq!(digest(&answer.body), layers[0].digest, "{name}");
        }
        // The second upstream says of which body its answer is.
        let fetched = origins[0].count("kind=blob&method=GET");
        assert_eq!(fetched, if upstreams == 1 { 2 } else { 1 });
        assert_eq!(origins[1].count("kind=blob&method=GET"), 0);
        origins[0].clear_log();
    }
}

/// A registry with a private repository, and the server with one project that may read it.
struct Private {
    _registry: Origin,
    evil: Origin,
    server: Entrepot,
    layer: String,
    manifest: String,
}

impl Private {
    fn new() -> Private {
        let args = [
            "--auth",
            "token",
            "--user",
            "ci:secret",
            "--private",
            "team/private",
        ];
        let registry = Origin::start_with(&args);
        let image = registry.image("team/private", "1", 1);
        registry.image("team/public", "1", 2);
        let evil = Origin::start();
        let login = format!(
            "url = \"{}\"\nusername = \"ci\"\npassword = \"secret\"",
            registry.url()
        );
        let config = Config::new()
            .project("corp", "", &[])
            .upstream("corp", &login)
            .project("open", "", &[registry.url()])
            .project("evil", "", &[evil.url()]);
        let server = Setup::new(&config).start();
        Private {
            layer: image.manifests[0].layers[0].digest.clone(),
            manifest: image.digest,
            _registry: registry,
            evil,
            server,
        }
    }

    /// Neither whole, nor in part, nor its length.
    fn check_hidden(&self, target: &str) {
        let requests: [(&str, &[(&str, &str)]); 4] = [
            ("GET", &[]),
            ("HEAD", &[]),
            ("GET", &[("Range", "bytes=0-9")]),
            ("GET", &[("If-None-Match", "*")]),
        ];
        for (method, fields) in requests {
            let answer = fetch(self.server.addr(), method, target, fields).expect("an answer");
            let status = answer.status();
            let refused = matches!(status, 401 | 403 | 404);
            assert!(refused, "{method} {target} {fields:?}: {}", answer.head.raw);
            assert_eq!(answer.broken, None);
            assert!(answer.field("docker-content-digest").is_none());
        }
    }
}

#[test]
fn a_private_digest_is_not_served_through_another_repository() {
    let world = Private::new();
    let layer = format!("/v2/corp/team/private/blobs/{}", world.layer);
    let manifest = format!("/v2/corp/team/private/manifests/{}", world.manifest);
    assert_eq!(
        digest(&world.server.get(&layer).expect(200).body),
        world.layer
    );
    assert_eq!(
        digest(&world.server.get(&manifest).expect(200).body),
        world.manifest
    );

    for name in [
        "corp/team/public",
        "open/team/public",
        "open/team/private",
        "evil/any",
    ] {
        world.check_hidden(&format!("/v2/{name}/blobs/{}", world.layer));
        world.check_hidden(&format!("/v2/{name}/manifests/{}", world.manifest));
    }
    // And still to those who may.
    world.server.get(&layer).expect(200);
}

#[test]
fn a_manifest_that_names_a_private_digest_proves_nothing() {
    let world = Private::new();
    let layer = format!("/v2/corp/team/private/blobs/{}", world.layer);
    let len = world.server.get(&layer).expect(200).body.len();

    let config = world.evil.text_blob(&["evil/app"], "{}");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": EMPTY_CONFIG, "digest": config.digest, "size": 2},
        "layers": [{"mediaType": OCI_LAYER, "digest": world.layer, "size": len}],
    });
    let text = manifest.to_string();
    let manifest = world.evil.manifest("evil/app", OCI_MANIFEST, &text, &["1"]);
    let pulled = world
        .server
        .get("/v2/evil/evil/app/manifests/1")
        .expect(200);
    assert_eq!(digest(&pulled.body), manifest.digest);
    world
        .server
        .get(&format!("/v2/evil/evil/app/blobs/{}", config.digest))
        .expect(200);

    world.check_hidden(&format!("/v2/evil/evil/app/blobs/{}", world.layer));
    let asked = world
        .evil
        .log(&format!("kind=blob&contains={}", world.layer));
    assert!(!asked.is_empty(), "no link means ask upstream");
}

#[test]
fn a_running_fill_is_not_shared_without_proof() {
    let args = [
        "--auth",
        "token",
        "--user",
        "ci:secret",
        "--private",
        "team/private",
    ];
    let registry = Origin::start_with(&args);
    let secret = registry.blob(&["team/private"], LAYER_LEN, 1);
    registry.blob(&["team/public"], 10, 2);
    registry.fault(
        json!({"kind": "blob", "method": "GET", "repository": "team/private",
        "authorization": true}),
        json!({"halt_at": "50%"}),
    );
    let login = format!(
        "url = \"{}\"\nusername = \"ci\"\npassword = \"secret\"",
        registry.url()
    );
    let config = Config::new()
        .project("corp", "", &[])
        .upstream("corp", &login)
        .project("open", "", &[registry.url()]);
    let server = Setup::new(&config).start();

    let mut allowed = Connection::open(server.addr());
    let target = format!("/v2/corp/team/private/blobs/{}", secret.digest);
    allowed.request("GET", &target, &[]);
    let head = allowed.read_head().expect("a head while the body arrives");
    registry.wait(json!({"kind": "blob", "state": "halted"}), 1);
    for name in ["corp/team/public", "open/team/private", "open/team/public"] {
        let answer = server.get(&format!("/v2/{name}/blobs/{}", secret.digest));
        assert!(
            matches!(answer.status(), 401 | 403 | 404),
            "{name}: {}",
            answer.head.raw
        );
    }
    registry.release();
    let mut hash = Hash::default();
    let read = allowed.read_body("GET", &head, &mut |bytes| hash.update(bytes));
    assert_eq!((read, hash.digest()), (Ok(()), secret.digest));
}

#[test]
fn proof_is_kept_and_without_upstream_nobody_gains_any() {
    let origin = Origin::start();
    let layer = origin.blob(&["team/one", "team/two", "team/three"], 1_000, 1);
    let target = |name: &str| format!("/v2/dh/team/{name}/blobs/{}", layer.digest);
    let server = Entrepot::before(origin.url());
    server.get(&target("one")).expect(200);
    server.get(&target("two")).expect(200);
    server.wait_committed();
    origin.go_down();
    let check = |server: &Entrepot| {
        server.get(&target("one")).expect(200);
        server.get(&target("two")).expect(200);
        let unproven = server.get(&target("three"));
        assert_eq!(unproven.status(), 502, "{}", unproven.head.raw);
        assert_eq!(server.head(&target("three")).status(), 502);
    };
    check(&server);
    check(&server.kill9().start());
}

#[test]
fn two_upstreams_with_the_same_names_never_mix() {
    let origins = [Origin::start(), Origin::start()];
    let images = [0, 1].map(|nth| origins[nth].image("library/app", "1", nth as u64));
    assert_ne!(images[0].digest, images[1].digest);
    let config = Config::new()
        .project("one", "", &[origins[0].url()])
        .project("two", "", &[origins[1].url()]);
    let server = Setup::new(&config).start();

    let pull = |server: &Entrepot| {
        // Alternating, so that what one left behind is there when the other asks.
        for nth in [0, 1, 0, 1] {
            let project = ["one", "two"][nth];
            let tag = server
                .get(&format!("/v2/{project}/library/app/manifests/1"))
                .expect(200);
            assert_eq!(digest(&tag.body), images[nth].digest, "{project}");
            for layer in &images[nth].manifests[0].layers {
                let target = format!("/v2/{project}/library/app/blobs/{}", layer.digest);
                let body = server.get(&target).expect(200).body;
                assert_eq!(digest(&body), layer.digest);
            }
        }
    };
    pull(&server);
    // Nor do the digests of one exist in the other.
    for nth in [0, 1] {
        let project = ["two", "one"][nth];
        let target = format!("/v2/{project}/library/app/manifests/{}", images[nth].digest);
        server.get(&target).expect_error(404, "MANIFEST_UNKNOWN");
    }
    server.wait_committed();
    origins.iter().for_each(Origin::go_down);
    pull(&server);
    let server = server.kill9().start();
    pull(&server);
}

#[test]
fn a_changed_upstream_address_does_not_inherit_its_tags() {
    // R10: every key holds the upstream's identity. The same project, pointed elsewhere, must ask.
    let first = Origin::start();
    let second = Origin::start();
    first.image("library/app", "1", 1);
    let image = second.image("library/app", "1", 2);
    let setup = Setup::new(&Config::one(first.url()));
    let server = setup.start();
    server.get("/v2/dh/library/app/manifests/1").expect(200);
    server.wait_committed();
    let (status, setup) = server.terminate();
    assert!(status.success());
    let store = setup.store_path().to_owned();

    let moved = Setup::new(&Config::one(second.url())).store(&store);
    let server = moved.start();
    let answer = server.get("/v2/dh/library/app/manifests/1").expect(200);
    assert_eq!(digest(&answer.body), image.digest);
    second.go_down();
    let stale = server.get("/v2/dh/library/app/manifests/1").expect(200);
    assert_eq!(digest(&stale.body), image.digest);
    until_true("the server still answers", || {
        server.get("/v2/").status() == 200
    });
}
