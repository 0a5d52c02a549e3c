//! Several disks, of which one runs full or fails: the others serve on, and it comes back.

use std::path::{Path, PathBuf};

use entrepot_tests::deadline::{until_true, until_within};
use entrepot_tests::disk::{Disk, FileSystem};
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::get_hashed;
use entrepot_tests::origin::{Held, Origin};
use entrepot_tests::temp::TempDir;

use std::time::Duration;

const MIB: u64 = 1 << 20;
/// What mkfs.xfs takes at least, and a little.
const DISK_LEN: u64 = 320 * MIB;
const BODY_LEN: u64 = 4 * MIB;
const WELL_AGAIN_AFTER: Duration = Duration::from_secs(60);

fn target(digest: &str) -> String {
    format!("/v2/dh/library/app/blobs/{digest}")
}

fn blob(origin: &Origin, seed: u64) -> Held {
    origin.blob(&["library/app"], BODY_LEN, seed)
}

#[track_caller]
fn pull(server: &Entrepot, held: &Held) {
    let hashed = get_hashed(server.addr(), &target(&held.digest)).expect("a head");
    assert_eq!(
        (hashed.head.status, hashed.broken, &hashed.digest),
        (200, None, &held.digest)
    );
}

fn on(volume: &Path) -> String {
    format!("volume=\"{}\"", volume.display())
}

fn segments(store: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(store).expect("the store's directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| path.extension().is_some_and(|ending| ending == "seg"))
        .collect()
}

/// A file system that others fill: what is new passes through, and is stored again once there is
/// room.
fn a_full_file_system_passes_bodies_through(file_system: FileSystem) {
    let origin = Origin::start();
    let disk = Disk::new(file_system, DISK_LEN);
    let setup = Setup::new(&Config::one(origin.url())).store(&disk.path().join("store"));
    let server = setup.start();
    let first = blob(&origin, 0);
    pull(&server, &first);
    let ballast = disk.path().join("ballast");
    let mut file = std::fs::File::create(&ballast).expect("a file");
    while std::io::Write::write_all(&mut file, &vec![1; MIB as usize]).is_ok() {}
    for seed in 1..8 {
        pull(&server, &blob(&origin, seed));
    }
    let staged = server.metric("entrepot_fills_total", &["staged"]);
    let relayed = server.metric("entrepot_relays_total", &[]);
    assert!(staged + relayed > 0.0, "not everything had room");
    drop(file);
    std::fs::remove_file(&ballast).expect("room again");
    let mut seed = 100;
    until_within(WELL_AGAIN_AFTER, "bodies are stored again", || {
        seed += 1;
        let before = server.metric("entrepot_fills_total", &["verified"]);
        pull(&server, &blob(&origin, seed));
        (server.metric("entrepot_fills_total", &["verified"]) > before).then_some(())
    });
    let (status, _) = server.terminate();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_full_ext4_passes_bodies_through() {
    a_full_file_system_passes_bodies_through(FileSystem::Ext4);
}

#[test]
fn a_full_xfs_passes_bodies_through() {
    a_full_file_system_passes_bodies_through(FileSystem::Xfs);
}

#[test]
fn bodies_are_spread_over_the_disks_and_found_in_any_order_of_them() {
    let origin = Origin::start();
    let dir = TempDir::new("volumes");
    let (a, b) = (dir.join("a"), dir.join("b"));
    let setup = Setup::new(&Config::one(origin.url()))
        .store(&a)
        .capacity("512MiB");
    let server = setup
        .clone()
        .args(&["--store", b.to_str().expect("text")])
        .start();
    let bodies: Vec<Held> = (0..40).map(|seed| blob(&origin, seed)).collect();
    for body in &bodies {
        pull(&server, body);
    }
    for volume in [&a, &b] {
        let live = server.metric("entrepot_volume_live_bytes", &[&on(volume)]);
        assert!(
            live >= (10 * BODY_LEN) as f64,
            "{} has {live}",
            volume.display()
        );
    }
    let (status, _) = server.terminate();
    assert_eq!(status.code(), Some(0));
    origin.go_down();
    let setup = setup
        .store(&b)
        .args(&["--store", a.to_str().expect("text")]);
    let server = setup.start();
    for body in &bodies {
        pull(&server, body);
    }
}

#[test]
fn a_disk_that_is_away_at_the_start_is_missed_by_nobody_and_comes_back() {
    let origin = Origin::start();
    let dir = TempDir::new("volumes");
    let (here, away, aside) = (dir.join("a"), dir.join("b"), dir.join("aside"));
    let setup = Setup::new(&Config::one(origin.url()))
        .store(&here)
        .capacity("512MiB");
    let setup = setup.args(&["--store", away.to_str().expect("text")]);
    let server = setup.start();
    let mut bodies: Vec<Held> = (0..24).map(|seed| blob(&origin, seed)).collect();
    for body in &bodies {
        pull(&server, body);
    }
    server.terminate();
    std::fs::rename(&away, &aside).expect("set aside");
    std::fs::write(&away, "no directory").expect("a file in its place");

    let server = setup.start();
    assert_eq!(server.metric("entrepot_volume_online", &[&on(&away)]), 0.0);
    let said = server.ask_ok(&["volumes"]);
    assert!(
        said.contains("offline") && said.contains("online"),
        "{said}"
    );
    let held = server.metric("entrepot_store_bodies", &[]);
    assert!(held > 0.0 && held < 24.0, "{held} of 24 are here");
    // Purged while it may lie on the disk that is away.
    for purged in bodies.drain(..8) {
        server.ask_ok(&["purge", "digest", &purged.digest]);
        pull(&server, &purged);
        server.ask_ok(&["purge", "digest", &purged.digest]);
    }
    server.terminate();
    std::fs::remove_file(&away).expect("the file goes");
    std::fs::rename(&aside, &away).expect("and the disk is back");

    origin.go_down();
    let server = setup.start();
    assert_eq!(server.metric("entrepot_volume_online", &[&on(&away)]), 1.0);
    assert_eq!(server.metric("entrepot_store_bodies", &[]), 16.0);
    for body in &bodies {
        pull(&server, body);
    }
}

#[test]
fn a_disk_that_fails_goes_offline_and_comes_back_with_its_bodies() {
    let origin = Origin::start();
    let dir = TempDir::new("volumes");
    let disk = Disk::new(FileSystem::Ext4, DISK_LEN);
    let (good, bad) = (dir.join("good"), disk.path().join("store"));
    let setup = Setup::new(&Config::one(origin.url()))
        .store(&good)
        .capacity("256MiB");
    let server = setup
        .args(&["--store", bad.to_str().expect("text")])
        .start();
    let mut bodies: Vec<Held> = (0..16).map(|seed| blob(&origin, seed)).collect();
    for body in &bodies {
        pull(&server, body);
    }
    server.wait_committed();
    let there = server.metric("entrepot_volume_live_bytes", &[&on(&bad)]);
    assert!(there > 0.0);

    disk.break_writes();
    let mut seed = 1_000;
    let online = || server.metric("entrepot_volume_online", &[&on(&bad)]);
    until_within(WELL_AGAIN_AFTER, "the broken disk is taken offline", || {
        seed += 1;
        let body = blob(&origin, seed);
        // The first of them may be on their way to the disk when it breaks.
        let hashed = get_hashed(server.addr(), &target(&body.digest)).expect("a head");
        assert!(hashed.broken.is_some() || hashed.digest == body.digest);
        (online() == 0.0).then_some(())
    });
    let said = server.ask_ok(&["volumes"]);
    assert!(
        said.contains("offline") && said.contains("online"),
        "{said}"
    );
    for body in &bodies {
        pull(&server, body);
    }
    bodies.push(blob(&origin, 5_000));
    pull(&server, &bodies[16]);
    let purged = bodies.remove(0);
    server.ask_ok(&["purge", "digest", &purged.digest]);

    Disk::protect(&bad, true);
    let refused = server.ask(&["bring-back", bad.to_str().expect("text")]);
    assert_eq!(refused.status.code(), Some(1), "it is still broken");
    Disk::protect(&bad, false);
    disk.mend();
    server.ask_ok(&["bring-back", bad.to_str().expect("text")]);
    assert_eq!(online(), 1.0);
    until_true("all is durable", || {
        server.metric("entrepot_store_uncommitted_records", &[]) == 0.0
    });
    origin.go_down();
    for body in &bodies {
        pull(&server, body);
    }
    assert_eq!(
        server.get(&target(&purged.digest)).status(),
        502,
        "purged meanwhile"
    );
}

#[test]
fn a_body_that_cannot_be_read_is_fetched_anew() {
    let origin = Origin::start();
    let disk = Disk::new(FileSystem::Ext4, DISK_LEN);
    let store = disk.path().join("store");
    let server = Setup::new(&Config::one(origin.url())).store(&store).start();
    let body = blob(&origin, 1);
    pull(&server, &body);
    server.wait_committed();
    disk.break_reads();
    for segment in segments(&store) {
        Disk::drop_cache(&segment);
    }
    let whole = || {
        let pulled = get_hashed(server.addr(), &target(&body.digest));
        pulled.is_ok_and(|hashed| hashed.broken.is_none() && hashed.digest == body.digest)
    };
    assert!(!whole(), "the bytes are gone");
    until_true("it is fetched anew", whole);
}
