//! What somebody did to the files of a store while it was closed: each has its answer.

mod machine;

use std::future::Future;

use bytes::Bytes;
use entrepot_storage::disk::sim::{Ending, Random, SimDisk, SimWorld};
use entrepot_storage::{
    Digest, Disk, FillSpec, ForgetKey, OpenError, OpenFailure, Options, Recovered, Store,
    VolumeSpec,
};

const NOW: u64 = 1_800_000_000;
const CAPACITY: u64 = 64 << 20;
const PAGE_LEN: u64 = 4096;

/// One process: runs `task` to its end and is killed.
fn process<T: 'static, F: Future<Output = T> + 'static>(
    world: &SimWorld,
    task: impl FnOnce(SimDisk) -> F,
) -> T {
    machine::run(world, Ending::Kill, |executor| {
        task(SimDisk::new(world, executor))
    })
}

type Opened = (std::sync::Arc<Store<SimDisk>>, Recovered);

async fn open(disk: &SimDisk) -> Result<Opened, OpenFailure> {
    let mut options = Options::new(1, [3; 16]);
    options.segment_len = Some(256 << 10);
    let disk = disk.clone();
    let capacity = CAPACITY;
    Store::open(vec![VolumeSpec { disk, capacity }], options, NOW).await
}

fn content(number: u8) -> Vec<u8> {
    vec![number; 5000]
}

fn digest(number: u8) -> Digest {
    Digest::sha256(&content(number))
}

/// Bodies 1 and 2 in one sealed segment, 3 in another, 9 purged.
fn world() -> SimWorld {
    let world = SimWorld::new(Random::new(7), CAPACITY * 2);
    process(&world, |disk| async move {
        let (store, _) = open(&disk).await.expect("opens");
        let writer = store.writer(vec![disk.clone()], 0);
        for group in [&[1, 2, 9][..], &[3]] {
            for number in group {
                let content = content(*number);
                let spec = FillSpec {
                    digest: Digest::sha256(&content),
                    length: Some(content.len() as u64),
                    media_type: None,
                };
                let mut fill = writer.fill(spec).await.expect("admitted");
                fill.write(content).await.expect("written");
                fill.finish(NOW).await.expect("verified");
            }
            writer.seal_all(NOW).await.expect("sealed");
        }
        let purged = writer.forget(ForgetKey::Body(digest(9))).await;
        purged.expect("durable");
        writer.seal_all(NOW).await.expect("sealed");
    });
    world
}

fn names(world: &SimWorld, suffix: &str) -> Vec<String> {
    let files = world.files().into_iter().map(|(name, _)| name);
    files.filter(|name| name.ends_with(suffix)).collect()
}

/// What is there of 1, 2 and 3 after the next start; 9 never is.
fn present(world: &SimWorld) -> (Vec<u8>, Recovered) {
    process(world, |disk| async move {
        let (store, recovered) = open(&disk).await.expect("opens");
        assert!(store.body(&digest(9)).is_none(), "it was purged");
        let there = |number: &u8| store.body(&digest(*number)).is_some();
        ((1..4).filter(there).collect(), recovered)
    })
}

fn failure(world: &SimWorld) -> String {
    process(world, |disk| async move {
        let failure = open(&disk).await.map(|_| ()).expect_err("refused");
        failure.to_string()
    })
}

/// Replaces a file by its first `len` bytes.
async fn cut(disk: &SimDisk, name: &str, len: u64) {
    let (file, _) = disk.open(name).await.expect("there");
    let bytes = disk.read(&file, 0, len as usize).await.expect("no faults");
    drop(file);
    disk.unlink(name).await.expect("there");
    let file = disk.create(name, len).await.expect("room");
    disk.write(&file, 0, bytes.into()).await.expect("no faults");
}

#[test]
fn a_missing_segment_costs_its_bodies() {
    let world = world();
    let name = names(&world, ".seg").remove(0);
    process(&world, |disk| async move {
        disk.unlink(&name).await.expect("there");
    });
    let (there, recovered) = present(&world);
    assert_eq!(there, [3]);
    assert_eq!((recovered.invalid, recovered.unreadable.len()), (0, 0));
}

#[test]
fn an_empty_segment_is_removed_and_a_short_one_is_walked() {
    for (len, expected) in [
        (0, vec![3]),
        (PAGE_LEN / 2, vec![3]),
        (64 << 10, vec![1, 2, 3]),
    ] {
        let world = world();
        let name = names(&world, ".seg").remove(0);
        let cut_name = name.clone();
        process(&world, move |disk| async move {
            cut(&disk, &cut_name, len).await;
        });
        let (there, _) = present(&world);
        assert_eq!(there, expected, "cut to {len}");
        assert_eq!(names(&world, ".seg").contains(&name), len > PAGE_LEN);
    }
}

#[test]
fn a_renamed_segment_of_bodies_is_left_alone() {
    let world = world();
    let name = names(&world, ".seg").remove(0);
    process(&world, |disk| async move {
        let renamed = disk.rename(&name, "00000100000000aa.seg").await;
        renamed.expect("there");
    });
    let (there, recovered) = present(&world);
    assert_eq!(there, [3]);
    assert_eq!(recovered.foreign, ["00000100000000aa.seg"]);
    assert!(names(&world, ".seg").contains(&recovered.foreign[0]));
}

#[test]
fn a_renamed_segment_of_purges_is_not_passed_over() {
    let world = world();
    let was = names(&world, ".rec").pop().expect("purges");
    let id = was.trim_end_matches(".rec").to_owned();
    process(&world, |disk| async move {
        let renamed = disk.rename(&was, "00000100000000aa.rec").await;
        renamed.expect("there");
    });
    let failure = failure(&world);
    assert!(failure.contains("00000100000000aa.rec"), "{failure}");
    assert!(failure.contains(&id), "{failure}");
}

#[test]
fn files_that_are_not_of_the_store_are_left_alone() {
    let world = world();
    let extra = ["README", "77.seg", "0000010000000003.seg.bak", "STORE.old"];
    process(&world, move |disk| async move {
        for name in extra {
            let file = disk.create(name, 100).await.expect("room");
            disk.write(&file, 0, Bytes::from_static(b"not ours"))
                .await
                .expect("no faults");
        }
    });
    let (there, recovered) = present(&world);
    assert_eq!((there, recovered.foreign.len()), (vec![1, 2, 3], 0));
    let files = world.files();
    assert!(
        extra
            .iter()
            .all(|extra| files.iter().any(|(name, _)| name == extra))
    );
}

#[test]
fn a_superblock_that_is_short_missing_or_newer_says_so() {
    for (len, message) in [
        (
            0,
            "volume 0: the superblock of the store is damaged in both copies",
        ),
        (
            100,
            "volume 0: the superblock of the store is damaged in both copies",
        ),
    ] {
        let world = world();
        process(
            &world,
            move |disk| async move { cut(&disk, "STORE", len).await },
        );
        assert_eq!(failure(&world), message);
    }
    let world = world();
    process(&world, |disk| async move {
        disk.unlink("STORE").await.expect("there");
    });
    let before = world.files();
    assert_eq!(
        failure(&world),
        "volume 0: there are segments but no superblock: not a store, or not all of one"
    );
    let after: Vec<_> = world.files();
    assert_eq!(after, before, "nothing was changed");
}

#[test]
fn one_copy_of_the_superblock_is_enough() {
    let world = world();
    process(
        &world,
        |disk| async move { cut(&disk, "STORE", PAGE_LEN).await },
    );
    assert_eq!(present(&world).0, [1, 2, 3]);
}

#[test]
fn a_superblock_that_went_back_in_time_does_not_name_two_segments_alike() {
    let world = SimWorld::new(Random::new(7), CAPACITY * 2);
    let old = process(&world, |disk| async move {
        open(&disk).await.expect("opens");
        let (file, len) = disk.open("STORE").await.expect("there");
        let read = disk.read(&file, 0, len as usize).await;
        read.expect("no faults")
    });
    let highest = process(&world, |disk| async move {
        let (store, recovered) = open(&disk).await.expect("opens");
        let writer = store.writer(vec![disk.clone()], 0);
        let purged = writer.forget(ForgetKey::Body(digest(9))).await;
        purged.expect("durable");
        recovered.generation
    });
    assert!(!names(&world, ".rec").is_empty());
    process(&world, |disk| async move {
        disk.unlink("STORE").await.expect("there");
        let len = old.len() as u64;
        let file = disk.create("STORE", len).await.expect("room");
        disk.write(&file, 0, old.into()).await.expect("no faults");
        // Of nobody here: there is no end to what a name may say.
        let stray = disk.create("ffffffffffffffff.seg", 100).await;
        stray.expect("room");
    });
    let generation = process(&world, |disk| async move {
        open(&disk).await.expect("opens").1.generation
    });
    assert_eq!(generation, highest + 1);
}

#[test]
fn a_second_process_is_refused() {
    let world = world();
    process(&world, |disk| async move {
        let _first = open(&disk).await.expect("opens");
        let second = open(&disk).await.map(|_| ()).expect_err("in use");
        assert!(matches!(second.error, OpenError::Locked));
        assert_eq!(
            second.to_string(),
            "volume 0: the store is in use by another process"
        );
    });
}
