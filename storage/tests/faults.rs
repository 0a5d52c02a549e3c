//! The store on a disk that fails or decays in one chosen way.

mod machine;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use entrepot_storage::disk::sim::{Ending, Faults, Random, SimDisk, SimWorld};
use entrepot_storage::{
    Body, Digest, Disk, FillError, FillFailure, FillSpec, FillState, ForgetKey, OpenError, Options,
    Recovered, Refusal, Store, TagKey, TagKind, TagRecord, VolumeSpec, WriteError, Writer,
};

const NOW: u64 = 1_800_000_000;
const CAPACITY: u64 = 64 << 20;
const PAGE_LEN: u64 = 4096;

const NO_FAULTS: Faults = Faults::NONE;
const SYNC_FAILS: Faults = Faults {
    sync: 1000,
    ..NO_FAULTS
};
const WRITE_FAILS: Faults = Faults {
    write: 1000,
    ..NO_FAULTS
};
const DIRECTORY_FAILS: Faults = Faults {
    sync_dir: 1000,
    ..NO_FAULTS
};
const READ_FAILS: Faults = Faults {
    read: 1000,
    ..NO_FAULTS
};

fn world() -> SimWorld {
    SimWorld::new(Random::new(7), CAPACITY * 2)
}

/// One process: runs `task` to its end, then the machine loses power.
fn process<T: 'static, F: Future<Output = T> + 'static>(
    world: &SimWorld,
    task: impl FnOnce(SimDisk, SimWorld) -> F,
) -> T {
    machine::run(world, Ending::PowerLoss, |executor| {
        task(SimDisk::new(world, executor), world.clone())
    })
}

type Opened = (Arc<Store<SimDisk>>, Writer<SimDisk>, Recovered);

async fn open_with(
    disk: &SimDisk,
    capacity: u64,
    options: Options,
) -> Result<(Arc<Store<SimDisk>>, Recovered), OpenError> {
    let disk = disk.clone();
    let opened = Store::open(vec![VolumeSpec { disk, capacity }], options, NOW).await;
    opened.map_err(|failure| failure.error)
}

async fn try_open(disk: &SimDisk) -> Result<Opened, OpenError> {
    let mut options = Options::new(1, [3; 16]);
    options.segment_len = Some(256 << 10);
    options.withheld_len = 1000;
    options.small_max = 0;
    let (store, recovered) = open_with(disk, CAPACITY, options).await?;
    let writer = store.writer(vec![disk.clone()], 0);
    Ok((store, writer, recovered))
}

async fn open(disk: &SimDisk) -> Opened {
    try_open(disk).await.expect("opens")
}

fn content(number: u8) -> Vec<u8> {
    (0..5000_u32)
        .map(|n| (n as u8).wrapping_mul(31) ^ number)
        .collect()
}

fn digest(number: u8) -> Digest {
    Digest::sha256(&content(number))
}

async fn put(writer: &Writer<SimDisk>, number: u8) -> Result<Body<SimDisk>, FillError> {
    let content = content(number);
    let length = Some(content.len() as u64);
    let spec = FillSpec {
        digest: Digest::sha256(&content),
        length,
        media_type: None,
    };
    let mut fill = writer.fill(spec).await.expect("admitted");
    fill.write(content).await?;
    fill.finish(NOW).await
}

async fn put_durably(writer: &Writer<SimDisk>, numbers: impl IntoIterator<Item = u8>) {
    for number in numbers {
        put(writer, number).await.expect("verified");
    }
    for _ in 0..2 {
        writer.commit(NOW).await.expect("committed");
    }
    assert_eq!(writer.uncommitted(), 0);
}

async fn check(disk: &SimDisk, store: &Store<SimDisk>, numbers: impl IntoIterator<Item = u8>) {
    for number in numbers {
        let body = store.body(&digest(number)).expect("there");
        let (offset, len) = (body.lease.offset(), body.len as usize);
        let read = disk
            .read(body.lease.file(), offset, len)
            .await
            .expect("no faults");
        assert!(read == content(number), "body {number}");
    }
}

fn segments(world: &SimWorld, suffix: &str) -> Vec<(String, u64)> {
    world
        .files()
        .into_iter()
        .filter(|(name, _)| name.ends_with(suffix))
        .collect()
}

#[test]
fn a_failed_sync_costs_the_segment_and_is_never_retried() {
    let world = world();
    process(&world, |disk, world| async move {
        let (store, writer, _) = open(&disk).await;
        put_durably(&writer, [1]).await;
        let body = put(&writer, 2).await.expect("verified");
        let running = writer
            .fill(FillSpec {
                digest: digest(3),
                length: Some(5000),
                media_type: None,
            })
            .await
            .expect("admitted");
        let mut follower = running.watermark().follow();
        world.set_faults(SYNC_FAILS);
        assert_eq!(writer.commit(NOW).await, Err(WriteError::DiskFailed));
        world.set_faults(NO_FAULTS);
        assert!(body.lease.revoked());
        let failed = FillState::Failed(FillFailure::DiskFailed);
        assert_eq!(follower.wait(0).await, (0, failed));
        assert_eq!(
            running.finish(NOW).await.map(|_| ()),
            Err(FillError::DiskFailed)
        );
        assert!(
            [1, 2]
                .iter()
                .all(|number| store.body(&digest(*number)).is_none())
        );
        // And the one their forget records were written to.
        assert_eq!(store.usage().quarantined, 2);
        // The forget records wait for the next group; then everything goes on elsewhere.
        put_durably(&writer, [2]).await;
        check(&disk, &store, [2]).await;
        assert_eq!(store.usage().bodies, 1);
    });
    process(&world, |disk, _| async move {
        let (store, _, recovered) = open(&disk).await;
        assert_eq!(recovered.bodies, 1);
        check(&disk, &store, [2]).await;
        assert!(
            store.body(&digest(1)).is_none(),
            "its records were forgotten"
        );
    });
}

#[test]
fn a_failed_write_fails_its_segment_only() {
    let world = world();
    process(&world, |disk, world| async move {
        let (store, writer, _) = open(&disk).await;
        put_durably(&writer, [1]).await;
        writer.seal_all(NOW).await.expect("sealed");
        put(&writer, 2).await.expect("verified");
        world.set_faults(WRITE_FAILS);
        assert_eq!(
            put(&writer, 3).await.map(|_| ()),
            Err(FillError::DiskFailed)
        );
        world.set_faults(NO_FAULTS);
        assert!(store.body(&digest(2)).is_none(), "it shared the segment");
        check(&disk, &store, [1]).await;
        put_durably(&writer, [3]).await;
        check(&disk, &store, [1, 3]).await;
    });
}

#[test]
fn a_name_that_is_not_durable_makes_nothing_durable() {
    let world = world();
    process(&world, |disk, world| async move {
        let (store, writer, _) = open(&disk).await;
        put(&writer, 1).await.expect("verified");
        world.set_faults(DIRECTORY_FAILS);
        assert_eq!(writer.commit(NOW).await, Err(WriteError::DiskFailed));
        world.set_faults(NO_FAULTS);
        assert!(store.body(&digest(1)).is_none());
        writer.commit(NOW).await.expect("nothing is left");
        assert_eq!(writer.uncommitted(), 0);
    });
}

#[test]
fn small_records_of_a_failed_segment_are_written_again() {
    let world = world();
    let key = TagKey {
        project: "p".into(),
        repository: "r".into(),
        kind: TagKind::Tag,
        name: "t".into(),
    };
    let again = key.clone();
    process(&world, |disk, world| async move {
        let (_store, writer, _) = open(&disk).await;
        put_durably(&writer, [1, 2]).await;
        writer
            .forget(ForgetKey::Body(digest(1)))
            .await
            .expect("durable");
        let tag = TagRecord {
            digest: digest(2),
            origin: "o".into(),
            checked: NOW,
            note: "".into(),
        };
        writer.put_tag(key, tag).await.expect("queued");
        world.set_faults(SYNC_FAILS);
        assert_eq!(writer.commit(NOW).await, Err(WriteError::DiskFailed));
        assert!(writer.uncommitted() > 0, "it still waits");
        world.set_faults(NO_FAULTS);
        writer.commit(NOW).await.expect("elsewhere");
        assert_eq!(writer.uncommitted(), 0);
    });
    process(&world, |disk, _| async move {
        let (store, _, recovered) = open(&disk).await;
        assert_eq!((recovered.bodies, recovered.tags), (1, 1));
        assert!(store.tag(&again).is_some());
        assert!(
            store.body(&digest(1)).is_none(),
            "the purge was durable before"
        );
    });
}

/// Polls both until both are done.
async fn both<A: Future, B: Future>(first: A, second: B) -> (A::Output, B::Output) {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let (mut one, mut other) = (None, None);
    poll_fn(move |cx| {
        if one.is_none()
            && let Poll::Ready(output) = first.as_mut().poll(cx)
        {
            one = Some(output);
        }
        if other.is_none()
            && let Poll::Ready(output) = second.as_mut().poll(cx)
        {
            other = Some(output);
        }
        match (one.take(), other.take()) {
            (Some(first), Some(second)) => Poll::Ready((first, second)),
            (first, second) => {
                (one, other) = (first, second);
                Poll::Pending
            }
        }
    })
    .await
}

#[test]
fn what_is_forgotten_while_its_write_fails_is_not_written_again() {
    let world = world();
    process(&world, |disk, world| async move {
        let (store, writer, _) = open(&disk).await;
        put_durably(&writer, [2]).await;
        let key = TagKey {
            project: "p".into(),
            repository: "r".into(),
            kind: TagKind::Tag,
            name: "t".into(),
        };
        let tag = TagRecord {
            digest: digest(2),
            origin: "o".into(),
            checked: NOW,
            note: "".into(),
        };
        writer.put_tag(key.clone(), tag).await.expect("queued");
        world.set_faults(WRITE_FAILS);
        // Once the first was polled the tag is being written.
        let forget = writer.forget(ForgetKey::Tag(key));
        let (commit, forget) = both(writer.commit(NOW), forget).await;
        assert_eq!(
            (commit, forget),
            (Err(WriteError::DiskFailed), Err(WriteError::DiskFailed))
        );
        let waiting = store.usage().uncommitted_records;
        assert_eq!(waiting, 1, "the forget record and not the tag");
        world.set_faults(NO_FAULTS);
        writer.commit(NOW).await.expect("elsewhere");
        assert_eq!(writer.uncommitted(), 0);
    });
}

#[test]
fn what_a_recovery_sealed_is_unverified_at_every_start() {
    let world = world();
    process(&world, |disk, _| async move {
        let (_store, writer, _) = open(&disk).await;
        put_durably(&writer, [1]).await;
        writer.seal_all(NOW).await.expect("sealed");
        put_durably(&writer, [2]).await;
    });
    for start in 0..3 {
        process(&world, move |disk, _| async move {
            let (store, _, recovered) = open(&disk).await;
            assert_eq!(recovered.sealed > 0, start == 0);
            let body = |number| store.body(&digest(number)).expect("there");
            assert!(!body(1).unverified, "its writer sealed it");
            assert!(body(2).unverified, "start {start}");
        });
    }
}

#[test]
fn a_body_whose_group_is_being_synced_goes_with_its_segment() {
    let world = world();
    process(&world, |disk, world| async move {
        let (store, writer, _) = open(&disk).await;
        put(&writer, 1).await.expect("verified");
        // While the first group is being synced a second body is finished in the segment.
        let second = async { put(&writer, 2).await };
        world.set_faults(SYNC_FAILS);
        let (commit, _) = both(writer.commit(NOW), second).await;
        assert_eq!(commit, Err(WriteError::DiskFailed));
        assert!(store.body(&digest(1)).is_none());
        assert_eq!(writer.uncommitted(), 0);
    });
}

#[test]
fn a_full_file_system_is_a_refusal() {
    let world = world();
    process(&world, |disk, world| async move {
        let (store, writer, _) = open(&disk).await;
        world.set_faults(Faults {
            full: 1000,
            ..NO_FAULTS
        });
        let spec = FillSpec {
            digest: digest(1),
            length: Some(5000),
            media_type: None,
        };
        assert_eq!(writer.fill(spec).await.map(|_| ()), Err(Refusal::Full));
        assert_eq!(writer.staging(spec).await.map(|_| ()), Err(Refusal::Full));
        assert_eq!((store.usage().used, store.usage().staging), (0, 0));
        world.set_faults(NO_FAULTS);
        put_durably(&writer, [1]).await;
        check(&disk, &store, [1]).await;
    });
}

/// Offsets of the pages of a segment file that begin with `magic`.
async fn pages(disk: &SimDisk, name: &str, magic: &[u8]) -> Vec<u64> {
    let (file, len) = disk.open(name).await.expect("there");
    let bytes = disk.read(&file, 0, len as usize).await.expect("no faults");
    let offsets = (0..len).step_by(PAGE_LEN as usize);
    offsets
        .filter(|at| bytes[*at as usize..].starts_with(magic))
        .collect()
}

#[test]
fn a_decayed_page_never_yields_a_wrong_body() {
    for (magic, bodies_left) in [
        (b"ENTRSEGM", 3),
        (b"ENTRFOOT", 3),
        (b"ENTRTRLR", 3),
        (b"ENTRCOMM", 3),
        (b"ENTRBODY", 3),
    ] {
        let world = world();
        process(&world, |disk, _| async move {
            let (_store, writer, _) = open(&disk).await;
            put_durably(&writer, 1..4).await;
            writer.seal_all(NOW).await.expect("sealed");
        });
        let (name, _) = segments(&world, ".seg").remove(0);
        process(&world, |disk, world| async move {
            let at = pages(&disk, &name, magic).await[0];
            world.flip(&name, at + 20);
            let (store, _, recovered) = open(&disk).await;
            assert_eq!(
                recovered.bodies,
                bodies_left,
                "{}",
                String::from_utf8_lossy(magic)
            );
            check(&disk, &store, 1..4).await;
        });
    }
}

#[test]
fn a_decayed_page_of_small_records_costs_no_other() {
    let world = world();
    process(&world, |disk, _| async move {
        let (_store, writer, _) = open(&disk).await;
        // The fourth keeps their segment.
        put_durably(&writer, 1..5).await;
        for number in 1..4 {
            let what = ForgetKey::Body(digest(number));
            writer.forget(what).await.expect("durable");
        }
        writer.seal_all(NOW).await.expect("sealed");
    });
    let (name, _) = segments(&world, ".rec").remove(0);
    process(&world, |disk, world| async move {
        let at = pages(&disk, &name, b"ENTRCOMM").await[1];
        world.flip(&name, at + 100);
        let (store, _, recovered) = open(&disk).await;
        assert_eq!((recovered.bodies, recovered.forgotten), (2, 2));
        assert_eq!(recovered.damaged, [name]);
        check(&disk, &store, [2, 4]).await;
    });
}

#[test]
fn of_an_unsealed_segment_the_pages_before_the_decayed_one_count() {
    let world = world();
    process(&world, |disk, _| async move {
        let (_store, writer, _) = open(&disk).await;
        // Three groups, so three pages; no seal.
        for number in 1..4 {
            put_durably(&writer, [number]).await;
        }
    });
    let (name, _) = segments(&world, ".seg").remove(0);
    process(&world, |disk, world| async move {
        let at = pages(&disk, &name, b"ENTRCOMM").await[1];
        world.flip(&name, at + 100);
        let (store, _, recovered) = open(&disk).await;
        assert_eq!((recovered.bodies, recovered.sealed), (1, 1));
        check(&disk, &store, [1]).await;
    });
}

#[test]
fn a_misdirected_record_header_costs_its_body() {
    let world = world();
    process(&world, |disk, _| async move {
        let (_store, writer, _) = open(&disk).await;
        put_durably(&writer, 1..4).await;
    });
    let (name, _) = segments(&world, ".seg").remove(0);
    process(&world, |disk, world| async move {
        let at = pages(&disk, &name, b"ENTRBODY").await[1];
        world.flip(&name, at + 60);
        let (store, _, recovered) = open(&disk).await;
        assert_eq!((recovered.bodies, recovered.invalid), (2, 1));
        check(&disk, &store, [1, 3]).await;
    });
}

#[test]
fn each_reason_not_to_open_is_named() {
    let world = world();
    process(&world, |disk, _| async move {
        let (_store, writer, _) = open(&disk).await;
        put_durably(&writer, [1]).await;
        writer
            .forget(ForgetKey::Body(digest(1)))
            .await
            .expect("durable");
        assert!(matches!(
            try_open(&disk).await.map(|_| ()),
            Err(OpenError::Locked)
        ));
    });
    process(&world, |disk, world| async move {
        let small = Options::new(1, [3; 16]);
        let opened = open_with(&disk, 1000, small).await.map(|_| ());
        assert!(matches!(
            opened,
            Err(OpenError::CapacityTooSmall { capacity: 1000, .. })
        ));

        world.set_faults(READ_FAILS);
        let opened = try_open(&disk).await.map(|_| ());
        assert!(matches!(
            opened,
            Err(OpenError::Disk {
                doing: "reading the superblock",
                ..
            })
        ));
        world.set_faults(SYNC_FAILS);
        let opened = try_open(&disk).await.map(|_| ());
        assert!(matches!(
            opened,
            Err(OpenError::Disk {
                doing: "writing the superblock",
                ..
            })
        ));
        world.set_faults(NO_FAULTS);
        open(&disk).await;

        world.flip("STORE", 100);
        open(&disk).await;
        world.flip("STORE", 100);
        world.flip("STORE", PAGE_LEN + 100);
        let opened = try_open(&disk).await.map(|_| ());
        assert!(
            matches!(opened, Err(OpenError::SuperblockDamaged)),
            "{opened:?}"
        );
    });
}

#[test]
fn without_the_purges_nothing_is_served() {
    // The read of the small records fails and no other: some seed does that.
    let mut seen = 0;
    for seed in 0..200 {
        let world = SimWorld::new(Random::new(seed), CAPACITY * 2);
        process(&world, |disk, _| async move {
            let (_store, writer, _) = open(&disk).await;
            put_durably(&writer, [1, 2]).await;
            writer
                .forget(ForgetKey::Body(digest(1)))
                .await
                .expect("durable");
        });
        seen += process(&world, |disk, world| async move {
            world.set_faults(Faults {
                read: 200,
                ..NO_FAULTS
            });
            match try_open(&disk).await {
                Ok((store, ..)) => {
                    assert!(store.body(&digest(1)).is_none());
                    0
                }
                Err(OpenError::SmallRecordsUnreadable { name, .. }) => {
                    assert!(name.ends_with(".rec"));
                    1
                }
                Err(_) => 0,
            }
        });
    }
    assert!(seen > 0);
}
