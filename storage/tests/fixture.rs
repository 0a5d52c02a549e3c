//! Stores that earlier programs wrote: each must be found as it was left.
//!
//! A fixture is the files of a store without their zeros: for each file its name, its length and
//! the runs that are not zero, all numbers little-endian. Those in `fixtures/` were made by the last
//! program of each format, and stay.

mod machine;

use std::future::Future;
use std::sync::Arc;

use entrepot_storage::disk::sim::{Ending, Random, SimDisk, SimWorld};
use entrepot_storage::{
    Digest, Disk, FillSpec, ForgetKey, LinkKey, LinkKeyRef, LinkRecord, Options, Proof, Recovered,
    RepositoryKey, RepositoryKeyRef, Statistics, Store, TagKey, TagKeyRef, TagKind, TagRecord,
    VolumeSpec, Writer,
};

const V1: &[u8] = include_bytes!("fixtures/v1.store");
const V2: &[u8] = include_bytes!("fixtures/v2.store");

const NOW: u64 = 1_800_000_000;
const CAPACITY: u64 = 64 << 20;
const UUID: [u8; 16] = [0x1f; 16];
/// Over a quarter of a segment, so it gets one of its own.
const SOLO_LEN: usize = 40 << 10;
/// Zeros up to this many are kept in a run: a new run costs as much.
const GAP_MAX: usize = 12;

fn world() -> SimWorld {
    SimWorld::new(Random::new(7), CAPACITY * 2)
}

/// One process: runs `task` to its end, then it is killed.
fn process<T: 'static, F: Future<Output = T> + 'static>(
    world: &SimWorld,
    task: impl FnOnce(SimDisk) -> F,
) -> T {
    machine::run(world, Ending::Kill, |executor| {
        task(SimDisk::new(world, executor))
    })
}

async fn open(disk: &SimDisk) -> (Arc<Store<SimDisk>>, Writer<SimDisk>, Recovered) {
    let mut options = Options::new(1, UUID);
    options.segment_len = Some(128 << 10);
    let volume = VolumeSpec {
        disk: disk.clone(),
        capacity: CAPACITY,
    };
    let opened = Store::open(vec![volume], options, NOW).await;
    let (store, recovered) = opened.expect("opens");
    let writer = store.writer(vec![disk.clone()], 0);
    (store, writer, recovered)
}

/// Mostly zeros, so that a fixture is short.
fn content(number: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (at, byte) in bytes.iter_mut().enumerate().step_by(499) {
        *byte = number ^ (at / 499) as u8;
    }
    bytes
}

fn body(number: u8) -> Vec<u8> {
    content(number, if number == 9 { SOLO_LEN } else { 5000 })
}

fn digest(number: u8) -> Digest {
    Digest::sha256(&body(number))
}

fn tag_key(name: &str) -> TagKey {
    TagKey {
        project: "project".into(),
        repository: "library/thing".into(),
        kind: TagKind::Tag,
        name: name.into(),
    }
}

fn tag(number: u8) -> TagRecord {
    TagRecord {
        digest: digest(number),
        origin: "https://registry.example".into(),
        checked: NOW,
        note: "".into(),
    }
}

fn link_key(number: u8) -> LinkKey {
    LinkKey {
        project: "project".into(),
        repository: "library/thing".into(),
        digest: digest(number),
    }
}

fn link() -> LinkRecord {
    LinkRecord {
        origin: "https://registry.example".into(),
        proof: Proof::Fetched,
        at: NOW,
    }
}

fn repository() -> RepositoryKey {
    RepositoryKey {
        project: "project".into(),
        repository: "library/thing".into(),
    }
}

const STATISTICS: Statistics = Statistics {
    pulls: 3,
    served_bytes: 15_000,
    upstream_bytes: 5_000,
    last_pull: NOW,
};

async fn put(writer: &Writer<SimDisk>, number: u8) {
    let content = body(number);
    let spec = FillSpec {
        digest: Digest::sha256(&content),
        length: Some(content.len() as u64),
        media_type: (number == 1).then_some("application/vnd.oci.image.manifest.v1+json"),
    };
    let mut fill = writer.fill(spec).await.expect("admitted");
    fill.write(content).await.expect("written");
    fill.finish(NOW).await.expect("verified");
}

async fn commit(writer: &Writer<SimDisk>) {
    for _ in 0..3 {
        writer.commit(NOW).await.expect("committed");
    }
    assert_eq!(writer.uncommitted(), 0);
}

/// Everything a store can hold: sealed segments, shared and solo, in the first process; segments
/// that were still open in the second, which was killed.
fn make(world: &SimWorld) {
    process(world, |disk| async move {
        let (_store, writer, _) = open(&disk).await;
        for number in [1, 2, 3, 9] {
            put(&writer, number).await;
        }
        commit(&writer).await;
        for (name, number) in [("latest", 1), ("old", 3)] {
            let put = writer.put_tag(tag_key(name), tag(number)).await;
            put.expect("queued");
        }
        for number in [1, 3] {
            let put = writer.put_link(link_key(number), link()).await;
            put.expect("queued");
        }
        let forgotten = writer.forget(ForgetKey::Body(digest(2))).await;
        forgotten.expect("durable");
        commit(&writer).await;
        writer.seal_all(NOW).await.expect("sealed");
    });
    process(world, |disk| async move {
        let (_store, writer, _) = open(&disk).await;
        for number in [4, 5] {
            put(&writer, number).await;
        }
        commit(&writer).await;
        let moved = writer.put_tag(tag_key("latest"), tag(4)).await;
        moved.expect("queued");
        let put = writer.put_statistics(repository(), STATISTICS).await;
        put.expect("queued");
        for key in [
            ForgetKey::Tag(tag_key("old")),
            ForgetKey::Link(link_key(3)),
            ForgetKey::Body(digest(5)),
        ] {
            writer.forget(key).await.expect("durable");
        }
        commit(&writer).await;
    });
}

fn pack(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    let number = |out: &mut Vec<u8>, value: usize| {
        out.extend(u32::try_from(value).expect("short files").to_le_bytes());
    };
    for (name, bytes) in files {
        number(&mut out, name.len());
        out.extend(name.as_bytes());
        number(&mut out, bytes.len());
        let mut at = 0;
        while let Some(start) = bytes[at..].iter().position(|byte| *byte != 0) {
            let start = at + start;
            let mut end = start;
            while let Some(next) = bytes[end..].iter().position(|byte| *byte != 0)
                && next <= GAP_MAX
            {
                end += next + 1;
            }
            number(&mut out, start);
            number(&mut out, end - start);
            out.extend(&bytes[start..end]);
            at = end;
        }
        number(&mut out, bytes.len());
        number(&mut out, 0);
    }
    out
}

fn unpack(mut packed: &[u8]) -> Vec<(String, Vec<u8>)> {
    fn take<'p>(packed: &mut &'p [u8], len: usize) -> &'p [u8] {
        let (taken, rest) = packed.split_at(len);
        *packed = rest;
        taken
    }
    fn number(packed: &mut &[u8]) -> usize {
        let bytes = take(packed, 4).try_into().expect("four bytes");
        u32::from_le_bytes(bytes) as usize
    }
    let mut files = Vec::new();
    while !packed.is_empty() {
        let len = number(&mut packed);
        let name = String::from_utf8(take(&mut packed, len).to_vec()).expect("a name");
        let mut bytes = vec![0; number(&mut packed)];
        loop {
            let (start, len) = (number(&mut packed), number(&mut packed));
            if len == 0 {
                break;
            }
            bytes[start..start + len].copy_from_slice(take(&mut packed, len));
        }
        files.push((name, bytes));
    }
    files
}

async fn files(disk: &SimDisk) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut names = disk.list().await.expect("no faults");
    names.sort();
    for name in names {
        let (file, len) = disk.open(&name).await.expect("there");
        let bytes = disk.read(&file, 0, len as usize).await.expect("no faults");
        files.push((name, bytes));
    }
    files
}

fn restore(world: &SimWorld, packed: &[u8]) {
    let files = unpack(packed);
    process(world, |disk| async move {
        for (name, bytes) in files {
            let file = disk.create(&name, bytes.len() as u64).await.expect("room");
            disk.write(&file, 0, bytes.into()).await.expect("written");
            disk.sync(&file).await.expect("synced");
        }
        disk.sync_dir().await.expect("synced");
    });
}

async fn check(disk: &SimDisk, store: &Store<SimDisk>) {
    for number in [1, 3, 4, 9] {
        let found = store.body(&digest(number)).expect("there");
        let (offset, len) = (found.lease.offset(), found.len as usize);
        let read = disk.read(found.lease.file(), offset, len).await;
        assert!(read.expect("no faults") == body(number), "body {number}");
    }
    let media_type = |number| store.body(&digest(number)).and_then(|b| b.media_type);
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    assert_eq!(media_type(1).as_deref(), Some(manifest));
    assert_eq!(media_type(3), None);
    assert!(store.body(&digest(2)).is_none(), "purged, then sealed");
    assert!(store.body(&digest(5)).is_none(), "purged");
    let latest = tag_key("latest");
    assert_eq!(store.tag(TagKeyRef::from(&latest)), Some(tag(4)));
    assert_eq!(store.tag(TagKeyRef::from(&tag_key("old"))), None);
    let linked = |number| store.link(LinkKeyRef::from(&link_key(number)));
    assert_eq!((linked(1), linked(3)), (Some(link()), None));
    let counts = store.statistics(RepositoryKeyRef::from(&repository()));
    assert_eq!(counts, Some(STATISTICS));
}

fn found_as_it_was_left(packed: &[u8]) {
    let world = world();
    restore(&world, packed);
    // The second time as this program left it.
    for generation in [3, 4] {
        process(&world, move |disk| async move {
            let (store, writer, recovered) = open(&disk).await;
            assert_eq!((recovered.uuid, recovered.generation), (UUID, generation));
            assert_eq!(
                (recovered.bodies, recovered.tags, recovered.links),
                (4, 1, 1)
            );
            assert_eq!(recovered.sealed, if generation == 3 { 2 } else { 0 });
            assert_eq!(recovered.invalid, 0);
            assert!(recovered.foreign.is_empty() && recovered.unreadable.is_empty());
            check(&disk, &store).await;
            put(&writer, 5).await;
            commit(&writer).await;
            let forgotten = writer.forget(ForgetKey::Body(digest(5))).await;
            forgotten.expect("durable");
            commit(&writer).await;
            writer.seal_all(NOW).await.expect("sealed");
        });
    }
}

#[test]
fn a_store_of_version_1_is_found_as_it_was_left() {
    found_as_it_was_left(V1);
}

#[test]
fn a_store_of_version_2_is_found_as_it_was_left() {
    found_as_it_was_left(V2);
}

/// `FIXTURE=v3.store cargo test -p entrepot-storage --test fixture today` keeps it: for the day
/// before the format changes.
#[test]
fn a_store_of_today_is_found_as_it_was_left() {
    let world = world();
    make(&world);
    let packed = process(&world, |disk| async move {
        let files = files(&disk).await;
        let packed = pack(&files);
        assert!(unpack(&packed) == files);
        packed
    });
    if let Ok(name) = std::env::var("FIXTURE") {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
        std::fs::write(format!("{directory}/{name}"), &packed).expect("written");
    }
    found_as_it_was_left(&packed);
}
