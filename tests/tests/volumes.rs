//! Several disks, and disks that run full.

use std::path::Path;

use entrepot_tests::deadline::until_within;
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
