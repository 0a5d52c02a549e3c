//! What a store must come through, one thing at a time; the numbers are those of the table in
//! `storage/README.md`, which says where the others are tested.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use entrepot_storage::disk::sim::{
    Ending, Executor, Fault, Faults, InFlight, Operation, Random, SimDisk, SimWorld, Step,
};
use entrepot_storage::{
    Body, Digest, Disk, Fill, FillFailure, FillSpec, FillState, ForgetKey, Options, Store,
    VolumeSpec, WriteError, Writer, owner,
};

const NOW: u64 = 1_800_000_000;
const YEAR: u64 = 365 * 24 * 3600;
const CAPACITY: u64 = 64 << 20;
const BODY_LEN: u32 = 40_000;

const READ_ONLY: Faults = Faults {
    read_only: true,
    ..Faults::NONE
};

fn world(seed: u64) -> SimWorld {
    SimWorld::new(Random::new(seed), CAPACITY * 2)
}

/// Runs `task` until it ends, or until `stop` says so of what is under way.
fn process<F: Future<Output = ()> + 'static>(
    world: &SimWorld,
    ending: Ending,
    stop: impl Fn(&[InFlight]) -> bool,
    task: impl FnOnce(SimDisk) -> F,
) {
    let executor = Executor::new(Random::new(11));
    let done = Rc::new(Cell::new(false));
    let (task, told) = (task(SimDisk::new(world, &executor)), Rc::clone(&done));
    executor.spawn(async move {
        task.await;
        told.set(true);
    });
    while !done.get() && !stop(&world.in_flight()) {
        assert_ne!(executor.step(world), Step::Idle, "nobody was woken");
    }
    drop(executor);
    world.end(ending);
}

fn whole<F: Future<Output = ()> + 'static>(world: &SimWorld, task: impl FnOnce(SimDisk) -> F) {
    process(world, Ending::PowerLoss, |_| false, task);
}

type Opened = (Arc<Store<SimDisk>>, Vec<Writer<SimDisk>>);

async fn open_with(disk: &SimDisk, shards: usize, change: impl FnOnce(&mut Options)) -> Opened {
    let mut options = Options::new(shards, [3; 16]);
    options.segment_len = Some(256 << 10);
    options.withheld_len = 1000;
    options.small_max = 0;
    change(&mut options);
    let volume = VolumeSpec {
        disk: disk.clone(),
        capacity: CAPACITY,
    };
    let opened = Store::open(vec![volume], options, NOW).await;
    let (store, _) = opened.expect("opens");
    let writers = (0..shards)
        .map(|shard| store.writer(vec![disk.clone()], shard))
        .collect();
    (store, writers)
}

async fn open(disk: &SimDisk) -> Opened {
    open_with(disk, 1, |_| {}).await
}

fn content(number: u8) -> Vec<u8> {
    let byte = |n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8 ^ number;
    (0..BODY_LEN).map(byte).collect()
}

fn digest(number: u8) -> Digest {
    Digest::sha256(&content(number))
}

fn writer_of(writers: &[Writer<SimDisk>], number: u8) -> &Writer<SimDisk> {
    &writers[owner(digest(number).slice(), writers.len())]
}

async fn begin(writers: &[Writer<SimDisk>], number: u8) -> Fill<SimDisk> {
    let spec = FillSpec {
        digest: digest(number),
        length: Some(u64::from(BODY_LEN)),
        media_type: None,
    };
    let fill = writer_of(writers, number).fill(spec).await;
    fill.expect("admitted")
}

async fn put(writers: &[Writer<SimDisk>], number: u8) -> Body<SimDisk> {
    let mut fill = begin(writers, number).await;
    fill.write(content(number)).await.expect("written");
    fill.finish(NOW).await.expect("verified")
}

async fn commit(writers: &[Writer<SimDisk>]) {
    for writer in writers.iter().chain(writers) {
        writer.commit(NOW).await.expect("committed");
    }
}

async fn bytes(disk: &SimDisk, body: &Body<SimDisk>) -> Vec<u8> {
    let (file, offset) = (body.lease.file(), body.lease.offset());
    disk.read(file, offset, body.len as usize)
        .await
        .expect("no faults")
}

/// Whether it is there; if it is, it is right or said to be wrong before anyone reads it.
async fn sound(disk: &SimDisk, opened: &Opened, number: u8) -> bool {
    let (store, writers) = opened;
    let Some(body) = store.body(&digest(number)) else {
        return false;
    };
    if body.unverified && !writer_of(writers, number).verify(&digest(number)).await {
        assert!(store.body(&digest(number)).is_none(), "it is dropped");
        return false;
    }
    assert!(bytes(disk, &body).await == content(number), "body {number}");
    true
}

fn writes_entries(in_flight: &[InFlight]) -> bool {
    let entry = |operation: &InFlight| {
        operation.operation == Operation::Write
            && operation.name.ends_with(".seg")
            && operation.bytes.iter().any(|b| b.starts_with(b"ENTRCOMM"))
    };
    in_flight.iter().any(entry)
}

#[test]
fn scenario_01_a_kill_within_a_fill_leaves_nothing() {
    let world = world(1);
    process(
        &world,
        Ending::Kill,
        |_| false,
        |disk| async move {
            let (store, writers) = open(&disk).await;
            let mut fill = begin(&writers, 1).await;
            let half = content(1)[..BODY_LEN as usize / 2].to_vec();
            fill.write(half).await.expect("written");
            commit(&writers).await;
            assert!(store.body(&digest(1)).is_none());
            std::mem::forget(fill);
        },
    );
    whole(&world, |disk| async move {
        let opened = open(&disk).await;
        assert!(!sound(&disk, &opened, 1).await);
        put(&opened.1, 1).await;
        assert!(sound(&disk, &opened, 1).await);
    });
}

#[test]
fn scenario_02_verified_and_not_committed_is_absent_after_a_kill() {
    let world = world(2);
    process(
        &world,
        Ending::Kill,
        |_| false,
        |disk| async move {
            let (_store, writers) = open(&disk).await;
            put(&writers, 1).await;
        },
    );
    whole(&world, |disk| async move {
        let opened = open(&disk).await;
        assert!(opened.0.body(&digest(1)).is_none(), "no entry, no body");
    });
}

#[test]
fn scenario_03_power_fails_between_the_sync_of_a_body_and_its_entry() {
    let mut left = [0, 0];
    for seed in 0..40 {
        let world = world(seed);
        process(
            &world,
            Ending::PowerLoss,
            writes_entries,
            |disk| async move {
                let (_store, writers) = open(&disk).await;
                put(&writers, 1).await;
                commit(&writers).await;
            },
        );
        let seen = Rc::new(Cell::new(false));
        let told = Rc::clone(&seen);
        whole(&world, |disk| async move {
            let opened = open(&disk).await;
            told.set(sound(&disk, &opened, 1).await);
        });
        left[usize::from(seen.get())] += 1;
    }
    // The entry was never synced, but may have reached the media; the body had been.
    assert!(left[0] > 0, "{left:?}");
}

#[test]
fn scenario_04_an_entry_without_its_body_is_never_served() {
    // The drive says that it wrote the body and did not.
    let mut rejected = 0;
    for seed in 0..60 {
        let world = world(seed);
        let liar = world.clone();
        whole(&world, |disk| async move {
            let (_store, writers) = open(&disk).await;
            liar.set_faults(Faults {
                lie: 1000,
                ..Faults::NONE
            });
            put(&writers, 1).await;
            commit(&writers).await;
            liar.set_faults(Faults::NONE);
        });
        let found = Rc::new(Cell::new(false));
        let told = Rc::clone(&found);
        whole(&world, |disk| async move {
            let opened = open(&disk).await;
            told.set(opened.0.body(&digest(1)).is_some() && !sound(&disk, &opened, 1).await);
        });
        rejected += u32::from(found.get());
    }
    assert!(rejected > 0, "no seed left an entry without its body");
}

#[test]
fn scenario_08_recovery_that_is_cut_again_and_again_finds_the_same() {
    let world = world(8);
    whole(&world, |disk| async move {
        let (_store, writers) = open(&disk).await;
        for number in 1..6 {
            put(&writers, number).await;
        }
        commit(&writers).await;
        let purge = ForgetKey::Body(digest(5));
        writers[0].forget(purge).await.expect("durable");
    });
    for cut in 1..=10 {
        let from = world.issued();
        let counted = world.clone();
        let stop = move |_: &[InFlight]| counted.issued() >= from + 3 * cut;
        process(&world, Ending::PowerLoss, stop, |disk| async move {
            open(&disk).await;
        });
    }
    whole(&world, |disk| async move {
        let opened = open(&disk).await;
        for number in 1..5 {
            assert!(sound(&disk, &opened, number).await, "body {number}");
        }
        assert!(opened.0.body(&digest(5)).is_none(), "it was purged");
    });
}

#[test]
fn scenario_14_a_write_in_two_strokes_shows_nobody_a_part_of_it() {
    let world = world(14);
    let faults = Faults {
        short: 900,
        ..Faults::NONE
    };
    world.set_faults(faults);
    whole(&world, |disk| async move {
        let opened = open(&disk).await;
        let mut fill = begin(&opened.1, 1).await;
        let mut follower = fill.watermark().follow();
        let lease = fill.watermark().lease();
        for piece in content(1).chunks(5000) {
            fill.write(piece.to_vec()).await.expect("written");
            let (readable, _) = follower.wait(0).await;
            let read = disk.read(lease.file(), lease.offset(), readable as usize);
            let read = read.await.expect("no faults");
            assert!(read == content(1)[..readable as usize]);
        }
        fill.finish(NOW).await.expect("verified");
        commit(&opened.1).await;
    });
    assert!(world.injected().of(Fault::ShortWrite) > 0);
    world.set_faults(Faults::NONE);
    whole(&world, |disk| async move {
        let opened = open(&disk).await;
        assert!(sound(&disk, &opened, 1).await);
    });
}

#[test]
fn scenario_15_a_file_system_that_turns_read_only_loses_what_was_not_durable() {
    let world = world(15);
    let remounted = world.clone();
    whole(&world, |disk| async move {
        let opened = open(&disk).await;
        put(&opened.1, 1).await;
        commit(&opened.1).await;
        opened.1[0].seal_all(NOW).await.expect("sealed");
        put(&opened.1, 2).await;
        remounted.set_faults(READ_ONLY);
        let outcome = opened.1[0].commit(NOW).await;
        assert_eq!(outcome, Err(WriteError::DiskFailed));
        assert!(opened.0.body(&digest(2)).is_none());
        remounted.set_faults(Faults::NONE);
    });
    whole(&world, |disk| async move {
        let opened = open(&disk).await;
        assert!(sound(&disk, &opened, 1).await);
        assert!(!sound(&disk, &opened, 2).await);
        put(&opened.1, 2).await;
    });
}

#[test]
fn scenario_17_times_that_cannot_be_written_cost_times_only() {
    let world = world(17);
    let full = world.clone();
    whole(&world, |disk| async move {
        let opened = open(&disk).await;
        put(&opened.1, 1).await;
        commit(&opened.1).await;
        full.set_faults(Faults {
            full: 1000,
            quota: 500,
            ..Faults::NONE
        });
        for minute in 1..10 {
            assert!(sound(&disk, &opened, 1).await);
            opened.1[0].maintain(NOW + minute * 60).await;
        }
        full.set_faults(Faults::NONE);
    });
    whole(&world, |disk| async move {
        let opened = open(&disk).await;
        assert!(sound(&disk, &opened, 1).await);
    });
}

#[test]
fn scenario_18_a_slow_reader_of_an_unlinked_segment_reads_on_and_is_counted() {
    let world = world(18);
    whole(&world, |disk| async move {
        let (store, writers) = open(&disk).await;
        let body = put(&writers, 1).await;
        commit(&writers).await;
        writers[0].seal_all(NOW).await.expect("sealed");
        let before = store.usage().used;
        let purge = ForgetKey::Body(digest(1));
        writers[0].forget(purge).await.expect("durable");
        assert!(store.body(&digest(1)).is_none());
        assert!(!body.lease.revoked());
        assert!(bytes(&disk, &body).await == content(1));
        assert!(store.usage().used >= before, "it counts until it is closed");
        drop(body);
        assert!(store.usage().used < before);
    });
}

#[test]
fn scenario_22_a_thousand_followers_learn_that_their_fill_broke_and_one_copy_is_made() {
    let world = world(22);
    whole(&world, |disk| async move {
        let (store, writers) = open(&disk).await;
        let mut fill = begin(&writers, 1).await;
        let mut followers: Vec<_> = (0..1000).map(|_| fill.watermark().follow()).collect();
        let half = content(1)[..BODY_LEN as usize / 2].to_vec();
        fill.write(half).await.expect("written");
        fill.fail(FillFailure::Upstream);
        for follower in &mut followers {
            let (readable, state) = follower.wait(u64::from(BODY_LEN)).await;
            assert_eq!(state, FillState::Failed(FillFailure::Upstream));
            assert!(readable <= u64::from(BODY_LEN) / 2);
        }
        drop(followers);
        put(&writers, 1).await;
        commit(&writers).await;
        assert_eq!(store.usage().bodies, 1);
    });
}

#[test]
fn scenario_23_the_number_of_cores_changes_and_nothing_is_lost() {
    let world = world(23);
    for (round, shards) in [16, 3, 64, 1].into_iter().enumerate() {
        whole(&world, |disk| async move {
            let opened = open_with(&disk, shards, |_| {}).await;
            for number in 0..round as u8 * 8 {
                assert!(sound(&disk, &opened, number).await, "body {number}");
            }
            for number in round as u8 * 8..round as u8 * 8 + 8 {
                put(&opened.1, number).await;
            }
            commit(&opened.1).await;
            assert_eq!(opened.0.usage().bodies, (round as u64 + 1) * 8);
        });
    }
}

#[test]
fn scenario_24_a_clock_that_jumps_evicts_nothing_and_makes_nothing_immortal() {
    const IDLE_AFTER: u64 = 3600;
    let world = world(24);
    whole(&world, |disk| async move {
        let idle = |options: &mut Options| options.idle_after = IDLE_AFTER;
        let (store, writers) = open_with(&disk, 1, idle).await;
        put(&writers, 1).await;
        put(&writers, 2).await;
        commit(&writers).await;
        let clock = RefCell::new(NOW);
        let turn = async |to: u64| {
            clock.replace(to);
            writers[0].maintain(to).await;
        };
        for jump in [NOW + YEAR, NOW + 1, NOW + 2 * YEAR, NOW + 2] {
            turn(jump).await;
        }
        assert_eq!(store.usage().bodies, 2, "four jumps are four minutes");
        for _ in 0..IDLE_AFTER / 60 + 5 {
            assert!(store.body(&digest(1)).is_some(), "it is in use");
            let to = *clock.borrow() + 60;
            turn(to).await;
        }
        assert!(store.body(&digest(2)).is_none(), "it was idle for an hour");
        assert!(store.body(&digest(1)).is_some());
    });
}
