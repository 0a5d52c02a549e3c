//! Layers that a manifest says are elsewhere: asked for where the project permits it, when no
//! upstream has them, without credentials, and nowhere near.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use serde_json::json;

use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{fetch, get_hashed};
use entrepot_tests::origin::{Held, Origin};
use entrepot_tests::sha256::digest;
use entrepot_tests::temp::TempDir;

const REPOSITORY: &str = "windows/servercore";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
const NONDISTRIBUTABLE: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
/// A name that only the proxy knows: what is public to look at is on this machine all the same.
const HOST: &str = "foreign.invalid";
const LAYER_LEN: u64 = 5_000_000;

/// A registry, the place where its foreign layers are, and a proxy that leads there by name.
struct World {
    dir: TempDir,
    origin: Origin,
    foreign: Origin,
    proxy: SocketAddr,
}

impl World {
    fn new() -> World {
        let dir = TempDir::new("foreign");
        let ca = dir.join("ca.pem").display().to_string();
        let foreign = Origin::start_with(&["--tls", "--ca-out", &ca, "--tls-name", HOST]);
        let named = format!("{HOST}:{}", foreign.addr().port());
        let proxy = tunnel(HashMap::from([(named, foreign.addr())]));
        World {
            dir,
            origin: Origin::start(),
            foreign,
            proxy,
        }
    }

    fn host(&self) -> String {
        format!("{HOST}:{}", self.foreign.addr().port())
    }

    fn config(&self, permitted: &str, more: &str) -> Config {
        let keys = format!("default = true\nforeign_layers = [\"{permitted}\"]");
        let upstream = format!(
            "url = \"{}\"\nca_file = \"{}\"\nproxy = \"http://{}\"\nno_proxy = [\"127.0.0.1\"]\n\
             username = \"ci\"\npassword = \"secret\"\n{more}",
            self.origin.url(),
            self.dir.join("ca.pem").display(),
            self.proxy
        );
        Config::new()
            .project("dh", &keys, &[])
            .upstream("dh", &upstream)
    }

    fn start(&self, permitted: &str, more: &str) -> Entrepot {
        Setup::new(&self.config(permitted, more)).start()
    }

    fn layer(&self, seed: u64) -> Held {
        self.foreign.blob(&[REPOSITORY], LAYER_LEN, seed)
    }

    fn url(&self, layer: &Held) -> String {
        let path = format!("/v2/{REPOSITORY}/blobs/{}", layer.digest);
        format!("https://{}{path}", self.host())
    }

    /// An image whose only layer is elsewhere.
    fn image(&self, kind: (&str, &str), tag: &str, layer: &Held, urls: &[&str]) {
        self.image_in(REPOSITORY, kind, tag, layer, urls);
    }

    fn image_in(
        &self,
        repository: &str,
        kind: (&str, &str),
        tag: &str,
        layer: &Held,
        urls: &[&str],
    ) {
        let (media_type, layer_type) = kind;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type,
            "config": {"mediaType": "application/json", "digest": layer.digest, "size": 2},
            "layers": [{"mediaType": layer_type, "digest": layer.digest, "size": layer.size,
                "urls": urls}],
        });
        let text = manifest.to_string();
        self.origin.manifest(repository, media_type, &text, &[tag]);
    }
}

/// A proxy that knows a few names.
fn tunnel(known: HashMap<String, SocketAddr>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("a bound listener");
    let known = Arc::new(known);
    // The threads end with the test process.
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let known = known.clone();
            thread::spawn(move || lead(client, &known));
        }
    });
    addr
}

fn lead(mut client: TcpStream, known: &HashMap<String, SocketAddr>) -> io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let named = head
        .strip_prefix("CONNECT ")
        .and_then(|rest| rest.split(' ').next());
    let Some(server) = named.and_then(|name| known.get(name)) else {
        return client.write_all(b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n");
    };
    let server = TcpStream::connect(server)?;
    client.write_all(b"HTTP/1.1 200 Through\r\n\r\n")?;
    let (mut up, mut to_server) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut up, &mut to_server);
        to_server.shutdown(Shutdown::Write)
    });
    let mut from_server = server;
    let copied = io::copy(&mut from_server, &mut client);
    // What ends there ends here.
    client.shutdown(Shutdown::Both)?;
    copied.map(drop)
}

fn manifest(tag: &str) -> String {
    format!("/v2/dh/{REPOSITORY}/manifests/{tag}")
}

fn blob(layer: &Held) -> String {
    format!("/v2/dh/{REPOSITORY}/blobs/{}", layer.digest)
}

#[test]
fn a_foreign_layer_comes_from_the_place_that_is_permitted() {
    let world = World::new();
    let server = world.start(&world.host(), "");
    for (seed, kind) in [(1, (DOCKER, FOREIGN)), (2, (OCI, NONDISTRIBUTABLE))] {
        let layer = world.layer(seed);
        let tag = format!("{seed}");
        let urls = [
            "https://elsewhere.invalid/layer",
            &world.url(&layer).replace("https", "http"),
            &world.url(&layer),
        ];
        world.image(kind, &tag, &layer, &urls);
        let target = blob(&layer);
        // Nobody has said yet where it is.
        server.get(&target).expect_error(404, "BLOB_UNKNOWN");
        server.get(&manifest(&tag)).expect(200);
        let head = fetch(server.addr(), "HEAD", &target, &[]).expect("an answer");
        assert_eq!(head.status(), 200, "{}", head.head.raw);
        for _ in 0..2 {
            let answer = server.get(&target).expect(200);
            assert_eq!(digest(&answer.body), layer.digest);
        }
        let asked = format!("method=GET&contains={}", layer.digest);
        assert_eq!(world.foreign.count(&asked), 1, "the second one is a hit");
        // Another repository has not been told, and does not see what is held (R9).
        let other = format!("/v2/dh/windows/other/blobs/{}", layer.digest);
        server.get(&other).expect_error(404, "BLOB_UNKNOWN");
    }
    for request in world.foreign.log("") {
        assert!(request["authorization"].is_null(), "{request}");
    }

    // What came from a place that is no longer permitted is nobody's any more.
    let layer = world.layer(1);
    let config = world.config("registry.example", "");
    std::fs::write(server.setup().config_path(), config.text()).expect("written");
    server.ask_ok(&["reload"]);
    server.get(&blob(&layer)).expect_error(404, "BLOB_UNKNOWN");
}

#[test]
fn a_foreign_layer_is_verified_and_gone_on_with() {
    let world = World::new();
    let server = world.start(&world.host(), "");
    let (broken, wrong) = (world.layer(1), world.layer(2));
    for (tag, layer) in [("broken", &broken), ("wrong", &wrong)] {
        world.image((DOCKER, FOREIGN), tag, layer, &[&world.url(layer)]);
        server.get(&manifest(tag)).expect(200);
    }
    let matching = json!({"method": "GET", "contains": broken.digest});
    let then = json!({"truncate_at": "50%"});
    world.foreign.fault_times(1, matching, then);
    let hashed = get_hashed(server.addr(), &blob(&broken)).expect("a head");
    assert_eq!((hashed.broken, hashed.digest), (None, broken.digest));

    let matching = json!({"method": "GET", "contains": wrong.digest});
    world.foreign.fault(matching, json!({"flip_at": -1}));
    let hashed = get_hashed(server.addr(), &blob(&wrong));
    assert!(!hashed.is_ok_and(|hashed| hashed.broken.is_none() && hashed.head.status == 200));
}

#[test]
fn no_other_place_is_asked() {
    let world = World::new();
    let layer = world.layer(1);
    let near = world.url(&layer).replace(HOST, "127.0.0.1");
    let near_host = world.host().replace(HOST, "127.0.0.1");
    for (nth, (permitted, url, more, status)) in [
        // Of another host, or of another port of the host.
        ("mcr.example", world.url(&layer), "", 404),
        (HOST, world.url(&layer), "", 404),
        // Near, which takes the word of the operator.
        (near_host.as_str(), near.clone(), "", 502),
        (near_host.as_str(), near.clone(), "private = true", 200),
    ]
    .into_iter()
    .enumerate()
    {
        let tag = format!("{nth}");
        world.image((DOCKER, FOREIGN), &tag, &layer, &[&url]);
        let server = world.start(permitted, more);
        server.get(&manifest(&tag)).expect(200);
        let answer = server.get(&blob(&layer));
        assert_eq!(answer.status(), status, "{permitted}: {}", answer.text());
        let asked = world.foreign.count("kind=blob");
        assert_eq!(asked > 0, status == 200, "{permitted}");
    }
}

#[test]
fn a_place_does_not_lead_to_a_near_one() {
    let world = World::new();
    let layer = world.layer(1);
    world.image((DOCKER, FOREIGN), "1", &layer, &[&world.url(&layer)]);
    let server = world.start(&world.host(), "");
    server.get(&manifest("1")).expect(200);
    let near = format!("https://{}/secret", world.foreign.addr());
    let matching = json!({"kind": "blob"});
    world.foreign.fault(matching, json!({"redirect": near}));
    let answer = server.get(&blob(&layer)).expect(502);
    assert!(
        answer.text().contains("private address"),
        "{}",
        answer.text()
    );
    assert_eq!(world.foreign.count("path=/secret"), 0);
    // And a mere redirect is followed as one of an upstream is.
    world.foreign.clear_faults();
    let public = world.url(&layer) + "?signed";
    let matching = json!({"kind": "blob"});
    world
        .foreign
        .fault_times(1, matching, json!({"redirect": public}));
    let answer = server.get(&blob(&layer)).expect(200);
    assert_eq!(digest(&answer.body), layer.digest);
}

#[test]
fn a_place_proves_no_access_to_what_another_repository_fetched() {
    let world = World::new();
    let server = world.start(&world.host(), "");
    let secret = world.origin.blob(&["private/app"], LAYER_LEN, 1);
    let theirs = format!("/v2/dh/private/app/blobs/{}", secret.digest);
    server.get(&theirs).expect(200);
    // Whoever may push a manifest anywhere may name the digest, and a place that answers 200.
    let public = world.layer(2);
    world.image((DOCKER, FOREIGN), "1", &secret, &[&world.url(&public)]);
    server.get(&manifest("1")).expect(200);
    let held = server.get(&theirs).expect(200).body;
    for _ in 0..2 {
        // What comes is of that place, and never whole.
        if let Ok(answer) = fetch(server.addr(), "GET", &blob(&secret), &[]) {
            let whole = answer.status() == 200 && answer.broken.is_none();
            assert!(!whole, "{}", answer.head.raw);
            let begun = answer.body.len().min(1_000);
            assert!(begun == 0 || answer.body[..begun] != held[..begun]);
        }
    }
}

/// Windows images of many repositories share their base layers.
#[test]
fn another_repository_fetches_a_held_layer_once_and_then_shares_it() {
    let world = World::new();
    let server = world.start(&world.host(), "");
    let layer = world.layer(1);
    let gets = format!("method=GET&contains={}", layer.digest);
    for (nth, repository) in [REPOSITORY, "windows/nanoserver"].into_iter().enumerate() {
        let urls = [&*world.url(&layer)];
        world.image_in(repository, (DOCKER, FOREIGN), "1", &layer, &urls);
        server
            .get(&format!("/v2/dh/{repository}/manifests/1"))
            .expect(200);
        let target = format!("/v2/dh/{repository}/blobs/{}", layer.digest);
        for _ in 0..2 {
            let answer = server.get(&target).expect(200);
            assert_eq!(digest(&answer.body), layer.digest);
            assert_eq!(world.foreign.count(&gets), nth + 1, "{repository}");
        }
    }
}

/// Whoever may push a manifest may name a wrong place on a host where others have the right one.
#[test]
fn a_wrong_place_keeps_nobody_from_another_on_the_same_host() {
    let world = World::new();
    let server = world.start(&world.host(), "");
    let short = |seed| world.foreign.blob(&[REPOSITORY], 100_000, seed);
    let (layer, next, other) = (short(1), short(2), short(3));
    let get = |repository: &str, layer: &Held, urls: &[&str]| {
        world.image_in(repository, (DOCKER, FOREIGN), "1", layer, urls);
        let manifest = format!("/v2/dh/{repository}/manifests/1");
        server.get(&manifest).expect(200);
        server.get(&format!("/v2/dh/{repository}/blobs/{}", layer.digest))
    };
    let wrong = &*world.url(&other);
    let refused = get("windows/wrong", &layer, &[wrong]);
    assert!(refused.status() >= 400, "{}", refused.head.raw);
    let answer = get("windows/right", &layer, &[&world.url(&layer)]).expect(200);
    assert_eq!(digest(&answer.body), layer.digest);
    // Nor one of the same manifest.
    let answer = get("windows/both", &next, &[wrong, &world.url(&next)]).expect(200);
    assert_eq!(digest(&answer.body), next.digest);
    let asked = format!("method=GET&contains={}", other.digest);
    assert_eq!(
        world.foreign.count(&asked),
        2,
        "once for each of the layers"
    );
}
