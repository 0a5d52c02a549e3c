//! Real clients pull a multi-arch image from a real registry through the cache: cold, warm,
//! with the upstream stopped, and after a crash with the upstream still down.
//!
//! Each client's own store is empty before each pull. A tap between cache and registry notes
//! every request before it passes it on.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use entrepot_tests::clients::{self, Containerd, Docker, Podman};
use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http;
use entrepot_tests::image::Image;
use entrepot_tests::registry::Registry;
use entrepot_tests::tap::Tap;
use entrepot_tests::temp::TempDir;

/// One layer that is streamed while it arrives, one below the withheld length, one tiny.
const LAYER_LENS: [usize; 3] = [3 << 20, 300_000, 100];

struct World {
    image: Image,
    registry: Registry,
    tap: Tap,
    setup: Setup,
}

impl World {
    fn new(seed: u64) -> World {
        let image = Image::new(seed, &LAYER_LENS);
        let registry = Registry::start();
        registry.push(&image, "library/multi", "v1");
        let tap = Tap::before(registry.addr());
        let setup = Setup::new(&Config::one(&tap.url()));
        World {
            image,
            registry,
            tap,
            setup,
        }
    }

    fn blobs(&self) -> BTreeSet<&str> {
        let blobs = self
            .image
            .variants
            .iter()
            .flat_map(|variant| variant.blobs());
        blobs.map(|blob| blob.digest.as_str()).collect()
    }

    /// Every phase of the acceptance, each with one whole pull by one client.
    fn pull_in_every_phase(mut self, pull: impl Fn(&Image, SocketAddr)) {
        let server = self.setup.start();
        pull(&self.image, server.addr());
        assert_eq!(
            self.tap.blob_gets(),
            self.blobs().len(),
            "cold: {:#?}",
            self.tap.seen()
        );
        for blob in self.blobs() {
            assert_eq!(
                self.tap.count("GET", blob),
                1,
                "cold: {blob} was fetched again"
            );
        }

        self.tap.clear();
        pull(&self.image, server.addr());
        assert_eq!(self.tap.blob_gets(), 0, "warm: {:#?}", self.tap.seen());
        assert_eq!(
            self.tap.count("GET", "/manifests/"),
            0,
            "warm: {:#?}",
            self.tap.seen()
        );

        self.registry.stop();
        pull(&self.image, server.addr());

        server.wait_committed();
        let server = server.kill9().start();
        pull(&self.image, server.addr());
    }
}

fn check_skopeo_folder(image: &Image, copied: &TempDir) {
    let folder = copied.join("image");
    for blob in image.everything() {
        let name = blob
            .digest
            .strip_prefix("sha256:")
            .expect("a sha256 digest");
        // The index is written as manifest.json, the manifests as <digest>.manifest.json.
        let names = [
            name.to_owned(),
            format!("{name}.manifest.json"),
            "manifest.json".to_owned(),
        ];
        let mut found = names
            .iter()
            .filter_map(|name| std::fs::read(folder.join(name)).ok());
        assert!(
            found.any(|bytes| bytes == blob.bytes),
            "skopeo has no {name}"
        );
    }
}

#[test]
fn skopeo_copies_and_inspects_in_every_phase() {
    World::new(10).pull_in_every_phase(|image, addr| {
        let name = "dh/library/multi:v1";
        check_skopeo_folder(image, &clients::skopeo_copy(addr, name));
        let inspected = clients::skopeo_inspect(addr, name);
        assert_eq!(inspected["Digest"], image.index.digest);
        assert_eq!(inspected["RepoTags"], serde_json::json!(["v1"]));
        let layers = image.variants[0]
            .layers
            .iter()
            .map(|layer| layer.digest.as_str());
        let layers: Vec<_> = layers.collect();
        assert_eq!(inspected["Layers"], serde_json::json!(layers));
    });
}

#[test]
fn podman_pulls_through_a_mirror_in_every_phase() {
    World::new(20).pull_in_every_phase(|image, addr| {
        for variant in &image.variants {
            let podman = Podman::with_mirror(addr, "dh");
            let layers = podman.pull("docker.io/library/multi:v1", variant.architecture);
            assert_eq!(layers, variant.diff_ids);
        }
    });
}

#[test]
fn podman_pulls_by_the_full_name() {
    let world = World::new(22);
    let server = world.setup.start();
    let name = format!("{}/dh/library/multi:v1", server.addr());
    let layers = Podman::new().pull(&name, "amd64");
    assert_eq!(layers, world.image.variants[0].diff_ids);
}

#[test]
fn a_docker_daemon_pulls_through_a_mirror_in_every_phase() {
    World::new(30).pull_in_every_phase(|image, addr| {
        let docker = Docker::start(addr, true);
        for variant in &image.variants {
            let pulled = docker.pull("library/multi:v1", variant.architecture);
            assert_eq!(
                pulled,
                (image.index.digest.clone(), variant.diff_ids.clone())
            );
        }
    });
}

#[test]
fn a_docker_daemon_pulls_by_the_full_name() {
    let world = World::new(32);
    let server = world.setup.start();
    let docker = Docker::start(server.addr(), false);
    let name = format!("{}/dh/library/multi:v1", server.addr());
    let variant = &world.image.variants[0];
    let pulled = docker.pull(&name, variant.architecture);
    assert_eq!(
        pulled,
        (world.image.index.digest.clone(), variant.diff_ids.clone())
    );
}

fn containerd_pulls(image: &Image, hosts: &str) {
    let containerd = Containerd::start(hosts);
    for variant in &image.variants {
        containerd.pull("docker.io/library/multi:v1", variant.architecture);
    }
    let held: BTreeSet<String> = containerd.content().into_iter().collect();
    let all = image.everything();
    let all: BTreeSet<String> = all.into_iter().map(|blob| blob.digest.clone()).collect();
    assert_eq!(held, all);
}

#[test]
fn containerd_pulls_through_a_host_with_a_path_in_every_phase() {
    World::new(40).pull_in_every_phase(|image, addr| {
        containerd_pulls(image, &format!("[host.\"http://{addr}/dh\"]\n"));
    });
}

#[test]
fn containerd_pulls_through_a_host_without_a_path() {
    let world = World::new(42);
    let server = world.setup.start();
    containerd_pulls(
        &world.image,
        &format!("[host.\"http://{}\"]\n", server.addr()),
    );
}

#[test]
fn containerd_pulls_through_a_host_that_overrides_the_path() {
    let world = World::new(44);
    let server = world.setup.start();
    let url = format!("http://{}/v2/dh", server.addr());
    containerd_pulls(
        &world.image,
        &format!("[host.\"{url}\"]\noverride_path = true\n"),
    );
}

/// Which blob GET of a cold pull the cache is killed at.
const CRASH_AT_BLOB_GET: [usize; 4] = [1, 3, 5, 8];

#[test]
fn a_crash_at_any_moment_leaves_right_bytes_or_a_clean_error() {
    for (round, blob_get) in CRASH_AT_BLOB_GET.into_iter().enumerate() {
        let mut world = World::new(50 + 2 * round as u64);
        let server = world.setup.start();
        crash_during_a_pull(&world, &server, blob_get);
        world.registry.stop();

        let server = server.kill9().start();
        let complete = check_everything(&world.image, &server);
        println!("killed at blob GET {blob_get}: {complete} bodies survived");

        world.registry.resume();
        // An upstream that failed again and again is left alone for a moment.
        until_true("upstream is asked again", || {
            server.get("/v2/dh/library/multi/manifests/v1").status() == 200
        });
        check_skopeo_folder(
            &world.image,
            &clients::skopeo_copy(server.addr(), "dh/library/multi:v1"),
        );
    }
}

/// Returns when the tap has seen the given blob GET; the pull may go on or be over.
fn crash_during_a_pull(world: &World, server: &Entrepot, blob_get: usize) {
    let into = TempDir::new("crash");
    let addr = server.addr();
    std::thread::scope(|scope| {
        let pull = scope
            .spawn(|| clients::skopeo_copy_works(addr, "dh/library/multi:v1", &into.join("image")));
        until_true("the pull reaches its blobs", || {
            world.tap.blob_gets() >= blob_get
        });
        server.kill9_now();
        let _ = pull.join();
    });
}

/// Asks for everything by digest and by tag; returns how many were served.
fn check_everything(image: &Image, server: &Entrepot) -> usize {
    let mut complete = 0;
    for blob in image.everything() {
        for kind in ["blobs", "manifests"] {
            let target = format!("/v2/dh/library/multi/{kind}/{}", blob.digest);
            let answer = server.get(&target);
            if answer.is_complete_200() {
                assert!(answer.body == blob.bytes, "{target}: wrong bytes");
                complete += 1;
            } else {
                check_clean_error(&target, &answer);
            }
        }
    }
    let tag = server.get("/v2/dh/library/multi/manifests/v1");
    match tag.is_complete_200() {
        true => assert_eq!(tag.body, image.index.bytes),
        false => check_clean_error("the tag", &tag),
    }
    complete
}

fn check_clean_error(what: &str, answer: &http::Answer) {
    assert!(
        (500..=504).contains(&answer.status()),
        "{what}: {}",
        answer.head.raw
    );
    assert_eq!(answer.broken, None, "{what}");
    assert!(answer.error_code().is_some(), "{what}: {}", answer.text());
}
