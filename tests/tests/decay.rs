//! Bytes that change on the disk: found by the scrub or when they are asked for, never served,
//! fetched anew.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::{Config, Setup};
use entrepot_tests::origin::{Held, Origin};
use entrepot_tests::sha256::digest;

/// Short enough to share a segment: one of its own is sealed as soon as it is full.
const BODY_LEN: u64 = 3 << 20;
/// Long enough to be unlike everything else in a segment.
const SAMPLE_LEN: usize = 64;

fn target(body: &Held) -> String {
    format!("/v2/dh/library/app/blobs/{}", body.digest)
}

/// Changes a bit in the middle of a body, wherever in the store it is.
fn flip(store: &Path, body: &[u8]) {
    let middle = body.len() / 2;
    let sample = &body[middle..middle + SAMPLE_LEN];
    for entry in std::fs::read_dir(store).expect("the store's directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|ending| ending != "seg") {
            continue;
        }
        let bytes = std::fs::read(&path).expect("a segment");
        let found = bytes
            .windows(SAMPLE_LEN)
            .position(|window| window == sample);
        if let Some(at) = found {
            let file = OpenOptions::new()
                .write(true)
                .open(&path)
                .expect("a segment");
            file.write_all_at(&[bytes[at] ^ 1], at as u64)
                .expect("written");
            return File::sync_all(&file).expect("synced");
        }
    }
    panic!("the body is in no segment of {}", store.display());
}

#[test]
fn the_scrub_finds_a_flipped_bit_before_anybody_asks() {
    let origin = Origin::start();
    let setup = Setup::new(&Config::one(origin.url()));
    let server = setup.args(&["--set", "store.scrub_every=2s"]).start();
    let bodies = [1, 2].map(|seed| origin.blob(&["library/app"], BODY_LEN, seed));
    let bytes = bodies
        .clone()
        .map(|body| server.get(&target(&body)).expect(200).body);
    let (status, setup) = server.terminate();
    assert_eq!(status.code(), Some(0));
    flip(setup.store_path(), &bytes[0]);

    let server = setup.start();
    until_true("the scrub has found it", || {
        server.metric("entrepot_store_mismatches_total", &[]) == 1.0
    });
    assert!(server.metric("entrepot_scrub_bytes_total", &[]) > 0.0);
    until_true("it is dropped", || {
        server.metric("entrepot_store_bodies", &[]) == 1.0
    });
    let fetched = origin.count("kind=blob&method=GET");
    for body in &bodies {
        assert_eq!(
            digest(&server.get(&target(body)).expect(200).body),
            body.digest
        );
    }
    assert_eq!(
        origin.count("kind=blob&method=GET"),
        fetched + 1,
        "the broken one only"
    );
}

/// What a power loss makes of a segment that was open is not known, so it is read first.
#[test]
fn after_a_crash_a_body_is_read_before_it_is_served() {
    let origin = Origin::start();
    let server = Setup::new(&Config::one(origin.url())).start();
    let bodies = [1, 2].map(|seed| origin.blob(&["library/app"], BODY_LEN, seed));
    let bytes = bodies
        .clone()
        .map(|body| server.get(&target(&body)).expect(200).body);
    server.wait_committed();
    let setup = server.kill9();
    flip(setup.store_path(), &bytes[0]);

    let server = setup.start();
    let fetched = origin.count("kind=blob&method=GET");
    for body in &bodies {
        assert_eq!(
            digest(&server.get(&target(body)).expect(200).body),
            body.digest
        );
    }
    assert_eq!(
        origin.count("kind=blob&method=GET"),
        fetched + 1,
        "the broken one only"
    );
}
