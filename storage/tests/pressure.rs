//! Stores that are full: what is evicted, and that room is made.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use entrepot_storage::disk::sim::{Ending, Executor, Faults, Random, SimDisk, SimWorld, Step};
use entrepot_storage::{
    Compactor, Digest, FillError, FillSpec, ForgetKey, Options, Refusal, Store, Usage, VolumeSpec,
    Writer, owner,
};

const START: u64 = 1_800_000_000;
const SEGMENT_LEN: u64 = 256 << 10;
const MIB: u64 = 1 << 20;
/// Steps of the disk after which something waits for nobody.
const STEPS_MAX: u64 = 20_000_000;
const FILE_SYSTEM_LEN: u64 = 64 << 20;

fn content(number: u64, len: u64) -> Vec<u8> {
    let mut content = vec![number as u8; len as usize];
    content[..8].copy_from_slice(&number.to_le_bytes());
    content
}

fn small(number: u64) -> Vec<u8> {
    content(number, 20_000 + (number * 7919) % 20_000)
}

struct Process {
    store: Arc<Store<SimDisk>>,
    writers: Vec<Writer<SimDisk>>,
    now: Cell<u64>,
}

fn options(shards: usize) -> Options {
    let mut options = Options::new(shards, [3; 16]);
    options.segment_len = Some(SEGMENT_LEN);
    options.small_max = 0;
    options.scrub_every = 0;
    options
}

/// Opens a store, with its compactor at work.
async fn open(disk: &SimDisk, executor: &Executor, capacity: u64, shards: usize) -> Process {
    open_with(disk, executor, capacity, options(shards)).await
}

async fn open_with(
    disk: &SimDisk,
    executor: &Executor,
    capacity: u64,
    options: Options,
) -> Process {
    let shards = options.shards;
    let disk = disk.clone();
    let volumes = vec![VolumeSpec {
        disk: disk.clone(),
        capacity,
    }];
    let (store, _) = Store::open(volumes, options, START).await.expect("opens");
    let writer = |shard| store.writer(vec![disk.clone()], shard);
    let writers = (0..shards).map(writer).collect();
    let mut compactor = Compactor::new(store.exchange(), vec![disk.clone()]);
    executor.spawn(async move {
        loop {
            if !compactor.step().await {
                use entrepot_storage::Disk;
                // Others go on: the compactor has no clock here.
                let _ = disk.space().await;
            }
        }
    });
    Process {
        store,
        writers,
        now: Cell::new(START),
    }
}

impl Process {
    fn writer(&self, digest: &Digest) -> &Writer<SimDisk> {
        &self.writers[owner(digest.slice(), self.writers.len())]
    }

    async fn put(&self, content: Vec<u8>) -> Result<(), Refusal> {
        let digest = Digest::sha256(&content);
        let spec = FillSpec {
            digest,
            length: Some(content.len() as u64),
            media_type: None,
        };
        let mut fill = self.writer(&digest).fill(spec).await?;
        fill.write(content).await.map_err(failed)?;
        fill.finish(self.now.get()).await.map_err(failed)?;
        Ok(())
    }

    /// Lets time pass and every writer do what is due.
    async fn maintain(&self, times: usize) {
        for _ in 0..times {
            self.now.set(self.now.get() + 1);
            for writer in &self.writers {
                let _ = writer.commit(self.now.get()).await;
                writer.maintain(self.now.get()).await;
            }
        }
    }

    /// Every writer does what is due, several times within a second.
    async fn turns(&self, times: usize) {
        for _ in 0..times {
            for writer in &self.writers {
                writer.maintain(self.now.get()).await;
            }
        }
    }

    async fn seal(&self) {
        for writer in &self.writers {
            writer.seal_all(self.now.get()).await.expect("no faults");
        }
    }

    fn usage(&self) -> Usage {
        self.store.usage()
    }
}

fn failed(error: FillError) -> Refusal {
    panic!("the disk has no faults: {error}")
}

/// Runs `task` in a process until it ends.
fn process<F: Future<Output = ()> + 'static>(
    world: &SimWorld,
    task: impl FnOnce(SimDisk, Rc<Executor>) -> F,
) {
    let executor = Executor::new(Random::new(1));
    let disk = SimDisk::new(world, &executor);
    let ended = Rc::new(Cell::new(false));
    let (told, task) = (Rc::clone(&ended), task(disk, Rc::clone(&executor)));
    executor.spawn(async move {
        task.await;
        told.set(true);
    });
    for _ in 0..STEPS_MAX {
        if ended.get() {
            return world.end(Ending::PowerLoss);
        }
        assert_ne!(executor.step(world), Step::Idle, "nobody was woken");
    }
    panic!("it never ends");
}

fn world() -> SimWorld {
    SimWorld::new(Random::new(1), FILE_SYSTEM_LEN)
}

#[test]
fn no_owner_evicts_for_all_at_the_start_of_a_full_store() {
    const OWNERS: usize = 16;
    const BODIES: u64 = 400;
    let (world, held) = (world(), Rc::new(Cell::new(0)));
    let told = Rc::clone(&held);
    process(&world, |disk, executor| async move {
        let process = open(&disk, &executor, 40 * MIB, OWNERS).await;
        for number in 0..BODIES {
            process.put(small(number)).await.expect("there is room");
        }
        process.seal().await;
        told.set(process.usage().used - process.usage().dead);
    });
    process(&world, |disk, executor| async move {
        let capacity = held.get() * 100 / 97;
        let process = open(&disk, &executor, capacity, OWNERS).await;
        process.maintain(5).await;
        let evicted = process.usage().evicted_pressure;
        assert!(evicted.bodies > 0, "there was too much");
        assert!(evicted.bytes < capacity / 100 * 12, "{evicted:?}");
        let (mut had, mut has) = ([0; OWNERS], [0; OWNERS]);
        for number in 0..BODIES {
            let digest = Digest::sha256(&small(number));
            let owner = owner(digest.slice(), OWNERS);
            had[owner] += 1;
            has[owner] += u64::from(process.store.body(&digest).is_some());
        }
        for (had, has) in had.into_iter().zip(has) {
            assert!(has > had / 2, "{has} of {had} are left");
        }
    });
}

#[test]
fn a_store_with_less_capacity_than_it_uses_is_compacted_and_takes_purges() {
    const BODIES: u64 = 60;
    let world = world();
    process(&world, |disk, executor| async move {
        let process = open(&disk, &executor, 8 * MIB, 2).await;
        for number in 0..BODIES {
            process.put(small(number)).await.expect("there is room");
        }
        process.seal().await;
        for number in (0..BODIES).filter(|number| number % 3 != 0) {
            let digest = Digest::sha256(&small(number));
            let forgotten = process.writer(&digest).forget(ForgetKey::Body(digest));
            forgotten.await.expect("durable");
        }
    });
    process(&world, |disk, executor| async move {
        let process = open(&disk, &executor, MIB * 3 / 2, 2).await;
        let before = process.usage();
        assert!(before.used > before.capacity, "{before:?}");
        let digest = Digest::sha256(&small(0));
        let forgotten = process.writer(&digest).forget(ForgetKey::Body(digest));
        forgotten.await.expect("a purge can always be written");
        process.maintain(60).await;
        let after = process.usage();
        assert!(after.used < after.capacity, "{before:?} {after:?}");
        // Compaction made the room; eviction may take what is over the marks.
        assert!(after.evicted_pressure.bodies <= 2, "{after:?}");
        process.put(small(1000)).await.expect("there is room again");
    });
}

#[test]
fn a_full_store_makes_room_for_a_body_that_no_owner_alone_could() {
    const CAPACITY: u64 = 8 * MIB;
    process(&world(), |disk, executor| async move {
        let process = open(&disk, &executor, CAPACITY, 2).await;
        for number in 0..700 {
            // Refused now and then: a cache may say so.
            let _ = process.put(small(number)).await;
            process.maintain(1).await;
        }
        process.maintain(120).await;
        let steady = process.usage();
        let held = steady.used - steady.dead;
        assert!(
            held > CAPACITY / 100 * 80,
            "too much was evicted: {steady:?}"
        );
        let large = content(1, CAPACITY / 100 * 75);
        let mut refused = 0;
        while let Err(refusal) = process.put(large.clone()).await {
            assert_eq!(refusal, Refusal::Full);
            refused += 1;
            assert!(refused < 60, "never: {:?}", process.usage());
            process.maintain(1).await;
        }
        assert!(refused > 0, "no owner alone could");
        process.maintain(120).await;
        let body = process.store.body(&Digest::sha256(&large));
        assert!(body.is_some(), "what the room was made for stays");
        let after = process.usage();
        let held = after.used - after.dead;
        assert!(held > CAPACITY / 100 * 80, "it went on: {after:?}");
    });
}

/// Filled again and again within the second in which it was looked at.
#[test]
fn a_small_store_that_is_full_is_looked_at_at_once() {
    const ROUNDS: u64 = 4;
    /// Has a segment of its own.
    const LEN: u64 = 2 * MIB;
    process(&world(), |disk, executor| async move {
        let process = open(&disk, &executor, 256 * MIB, 2).await;
        process.maintain(1).await;
        let (mut number, mut evicted) = (0, 0);
        for round in 0..ROUNDS {
            while process.put(content(number, LEN)).await.is_ok() {
                number += 1;
                let usage = process.usage();
                if usage.used - usage.dead > usage.capacity / 1000 * 966 {
                    break;
                }
            }
            process.seal().await;
            process.turns(4).await;
            let usage = process.usage();
            let evicted_now = usage.evicted_pressure.bodies;
            assert!(evicted_now > evicted, "round {round}: {usage:?}");
            evicted = evicted_now;
        }
        assert_eq!(process.now.get(), START + 1);
    });
}

#[test]
fn a_small_store_is_not_filled_with_what_cannot_be_evicted() {
    process(&world(), |disk, executor| async move {
        let process = open(&disk, &executor, 16 * MIB, 1).await;
        let writer = &process.writers[0];
        let mut number = 0;
        while !writer.wants_commit() {
            process.put(small(number)).await.expect("there is room");
            number += 1;
        }
        let waiting = writer.uncommitted();
        assert!((MIB..2 * MIB).contains(&waiting), "{waiting} wait");
        for _ in 0..2 {
            writer.commit(process.now.get()).await.expect("no faults");
        }
        assert!(!writer.wants_commit());
    });
}

#[test]
fn a_store_of_as_many_files_as_may_be_open_makes_room_for_another() {
    const FILES_MAX: u64 = 40;
    /// Open segments of small records, of which there is always one more.
    const SMALL_MAX: u64 = 4;
    process(&world(), |disk, executor| async move {
        let options = Options {
            solo_min: Some(16 << 10),
            files_max: FILES_MAX,
            ..options(2)
        };
        let process = open_with(&disk, &executor, 32 * MIB, options).await;
        let mut refused = 0;
        for number in 0..200 {
            refused += u64::from(process.put(small(number)).await.is_err());
            process.maintain(2).await;
            let segments = process.usage().segments;
            assert!(
                segments <= FILES_MAX + SMALL_MAX,
                "{segments} after {number}"
            );
        }
        assert!(refused < 10, "{refused}");
        let bodies = process.usage().bodies;
        assert!(bodies > FILES_MAX / 2, "too much was evicted: {bodies}");
        let last = Digest::sha256(&small(199));
        assert!(process.store.body(&last).is_some());
    });
}

/// Of a large body, and the spec for it.
fn large(content: &[u8]) -> FillSpec<'static> {
    FillSpec {
        digest: Digest::sha256(content),
        length: Some(content.len() as u64),
        media_type: None,
    }
}

fn longest(world: &SimWorld) -> u64 {
    let files = world.files().into_iter();
    let bodies = files.filter(|(name, _)| name.ends_with(".seg"));
    bodies.map(|(_, len)| len).max().unwrap_or(0)
}

#[test]
fn a_large_body_begins_before_all_of_its_file_is_allocated() {
    for piece_len in [1000, SEGMENT_LEN as usize, MIB as usize] {
        let world = world();
        let files = world.clone();
        process(&world, move |disk, executor| async move {
            let process = open(&disk, &executor, 16 * MIB, 1).await;
            let content = content(1, 2 * MIB);
            let spec = large(&content);
            let mut fill = process.writers[0].fill(spec).await.expect("room");
            assert!(longest(&files) < MIB / 4, "only its beginning");
            assert!(process.usage().used > 2 * MIB, "all of it counts");
            for piece in content.chunks(piece_len) {
                fill.write(piece.to_vec()).await.expect("written");
            }
            fill.finish(START).await.expect("verified");
            process.maintain(3).await;
            assert!(longest(&files) > 2 * MIB);
            let (store, writers) = (process.store, process.writers);
            writers[0].seal_all(START).await.expect("no faults");
            assert!(store.body(&spec.digest).is_some());
        });
        process(&world, |disk, executor| async move {
            let process = open(&disk, &executor, 16 * MIB, 1).await;
            let body = process.store.body(&large(&content(1, 2 * MIB)).digest);
            assert!(body.is_some_and(|body| !body.unverified), "it was sealed");
        });
    }
}

#[test]
fn a_disk_that_is_full_after_all_ends_a_large_body_and_nothing_else() {
    for quota in [0, 1000] {
        let world = world();
        let faulty = world.clone();
        process(&world, move |disk, executor| async move {
            let process = open(&disk, &executor, 16 * MIB, 1).await;
            process.put(small(1)).await.expect("room");
            process.maintain(3).await;
            let content = content(2, 2 * MIB);
            let used = process.usage().used;
            let spec = large(&content);
            let mut fill = process.writers[0].fill(spec).await.expect("room");
            faulty.set_faults(Faults {
                full: 1000 - quota,
                quota,
                ..Faults::NONE
            });
            let mut written = Ok(());
            for piece in content.chunks(10_000) {
                if written.is_ok() {
                    written = fill.write(piece.to_vec()).await;
                }
            }
            assert_eq!(written, Err(FillError::Full));
            assert!(fill.written() > 0, "what had space was taken");
            drop(fill);
            faulty.set_faults(Faults::NONE);
            process.maintain(3).await;
            assert_eq!(process.usage().used, used);
            assert!(process.store.body(&Digest::sha256(&small(1))).is_some());
            process.put(content).await.expect("room again");
        });
    }
}

#[test]
fn what_is_promised_to_one_large_body_is_not_given_to_another() {
    let world = SimWorld::new(Random::new(1), 16 * MIB);
    process(&world, |disk, executor| async move {
        let process = open(&disk, &executor, 64 * MIB, 1).await;
        let (one, other) = (content(1, 9 * MIB), content(2, 9 * MIB));
        let writer = &process.writers[0];
        let mut fill = writer.fill(large(&one)).await.expect("room");
        let refused = writer.fill(large(&other)).await.map(drop);
        assert_eq!(refused, Err(Refusal::Full), "though little is allocated");
        let staged = writer.staging(large(&other)).await.map(drop);
        assert_eq!(staged, Err(Refusal::TooLarge));
        for piece in one.chunks(10_000) {
            fill.write(piece.to_vec()).await.expect("it was promised");
        }
        fill.finish(START).await.expect("verified");
        process.seal().await;
        process.writers[0]
            .forget(ForgetKey::Body(Digest::sha256(&one)))
            .await
            .expect("durable");
        process.maintain(3).await;
        process.put(other).await.expect("its promise is over");
    });
}

#[test]
fn a_large_body_gets_the_room_of_the_longest_unused_while_it_comes_in() {
    let world = SimWorld::new(Random::new(1), 16 * MIB);
    let others = world.clone();
    process(&world, |disk, executor| async move {
        let process = open(&disk, &executor, 64 * MIB, 1).await;
        process.put(content(1, 4 * MIB)).await.expect("room");
        process.seal().await;
        process.maintain(3).await;
        let new = content(2, 4 * MIB);
        let writer = &process.writers[0];
        let mut fill = writer.fill(large(&new)).await.expect("room");
        // Somebody else takes it.
        others.fill_drive(0);
        for piece in new.chunks(10_000) {
            fill.write(piece.to_vec()).await.expect("room was made");
        }
        fill.finish(START).await.expect("verified");
        let old = Digest::sha256(&content(1, 4 * MIB));
        assert!(process.store.body(&old).is_none(), "it went for it");
    });
}
