//! A full store, or a full file system: bodies pass through, and clients notice nothing.

use serde_json::json;

use entrepot_tests::entrepot::{Config, Setup};
use entrepot_tests::http::get_hashed;
use entrepot_tests::origin::Origin;
use entrepot_tests::process::{command, run_ok, tool};
use entrepot_tests::sha256::digest;
use entrepot_tests::temp::TempDir;

fn blob_target(digest: &str) -> String {
    format!("/v2/dh/library/app/blobs/{digest}")
}

/// A budget that a few bodies exhaust.
const SMALL_CAPACITY: &str = "128MiB";
const SMALL_CAPACITY_LEN: f64 = (128 << 20) as f64;

#[test]
fn a_full_store_is_not_noticed_by_clients() {
    let origin = Origin::start();
    let setup = Setup::new(&Config::one(origin.url())).capacity(SMALL_CAPACITY);
    let server = setup.start();
    let capacity = server.metric("entrepot_store_capacity_bytes", &[]);
    assert!(capacity <= SMALL_CAPACITY_LEN, "{capacity}");
    // 320 MiB in bodies of 16 MiB, four at a time, and small ones between.
    for round in 0..5 {
        std::thread::scope(|scope| {
            for nth in 0..4 {
                let blob = origin.blob(&["library/app"], 16 << 20, 10 * round + nth);
                let addr = server.addr();
                scope.spawn(move || {
                    let hashed = get_hashed(addr, &blob_target(&blob.digest)).expect("a head");
                    assert_eq!((hashed.broken, hashed.digest), (None, blob.digest));
                });
            }
        });
        let small = origin.blob(&["library/app"], 1_000 + round, 100 + round);
        let body = server.get(&blob_target(&small.digest)).expect(200).body;
        assert_eq!(digest(&body), small.digest);
        let tag = round.to_string();
        let image = origin.image("library/app", &tag, 1_000 + round);
        let manifest = server
            .get(&format!("/v2/dh/library/app/manifests/{tag}"))
            .expect(200);
        assert_eq!(digest(&manifest.body), image.digest);
    }
    let used = server.metric("entrepot_store_used_bytes", &[]);
    println!("used {used} of {capacity}");
    assert!(used <= capacity, "used {used} of {capacity}");
    // Ranges and HEADs of what was not kept work too.
    let blob = origin.blob(&["library/app"], 16 << 20, 999);
    let target = blob_target(&blob.digest);
    server.head(&target).expect(200);
    let range = [("Range", "bytes=100-199")];
    let part = server.get_with(&target, &range).expect(206).body;
    let whole = server.get(&target).expect(200).body;
    assert_eq!(digest(&whole), blob.digest);
    assert!(part == whole[100..200]);
}

/// Their length is not known when they are admitted.
#[test]
fn bodies_of_unknown_length_get_through_a_full_store() {
    let origin = Origin::start();
    let setup = Setup::new(&Config::one(origin.url())).capacity(SMALL_CAPACITY);
    let server = setup.start();
    origin.fault(json!({"kind": "blob"}), json!({"chunked": true}));
    for seed in 0..14 {
        let blob = origin.blob(&["library/app"], 16 << 20, seed);
        // One may meet the end of the budget while it streams, and is then cut; never twice.
        let mut pulls = (0..2).map(|_| get_hashed(server.addr(), &blob_target(&blob.digest)));
        let whole = pulls.find_map(|pull| pull.ok().filter(|hashed| hashed.broken.is_none()));
        let whole = whole.unwrap_or_else(|| panic!("body {seed} was cut twice"));
        assert_eq!((whole.head.status, whole.digest), (200, blob.digest));
    }
    let used = server.metric("entrepot_store_used_bytes", &[]);
    let capacity = server.metric("entrepot_store_capacity_bytes", &[]);
    assert!(used <= capacity, "used {used} of {capacity}");
}

/// The file system is full long before the budget is.
#[test]
fn a_full_file_system_is_not_noticed_by_clients() {
    let origin = Origin::start();
    let disk = SmallDisk::mount("200m");
    let setup = Setup::new(&Config::one(origin.url())).store(&disk.dir.join("disk/store"));
    let server = setup.start();
    for seed in 0..20 {
        let blob = origin.blob(&["library/app"], 16 << 20, seed);
        let hashed = get_hashed(server.addr(), &blob_target(&blob.digest)).expect("a head");
        assert_eq!(
            (hashed.broken, hashed.digest),
            (None, blob.digest),
            "body {seed}"
        );
    }
    server.get("/v2/").expect(200);
    let (status, _) = server.terminate();
    assert_eq!(status.code(), Some(0));
}

/// A small file system in memory; root's right.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    fn mount(size: &str) -> SmallDisk {
        let dir = TempDir::new("disk");
        let target = dir.join("disk");
        std::fs::create_dir(&target).expect("a folder to mount on");
        let mut mount = command(tool("mount", "mount"));
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(target);
        run_ok(mount);
        SmallDisk { dir }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(self.dir.join("disk"), flags);
    }
}
