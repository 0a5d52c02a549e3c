//! Compaction and scrub from end to end: a store, its writers and a compactor on a simulated
//! disk, with purges and refills on the way and a crash at any step.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use entrepot_storage::disk::sim::{Ending, Executor, Random, SimDisk, SimWorld, Step};
use entrepot_storage::{
    Compaction, Compactor, Digest, Disk, FillSpec, ForgetKey, Options, Recovered, Store,
    VolumeSpec, Writer, owner,
};

const START: u64 = 1_800_000_000;
const CAPACITY: u64 = 4 << 20;
const SEGMENT_LEN: u64 = 256 << 10;
const SHARDS: usize = 2;
/// Steps of the disk after which something waits for nobody.
const STEPS_MAX: u64 = 5_000_000;

fn content(number: u64) -> Vec<u8> {
    let len = 20_000 + (number * 7919) % 20_000;
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(byte).take(len as usize).collect()
}

fn digest(number: u64) -> Digest {
    Digest::sha256(&content(number))
}

/// A store that is open, with its compactor at work.
struct Process {
    store: Arc<Store<SimDisk>>,
    writers: Vec<Writer<SimDisk>>,
    disk: SimDisk,
    recovered: Recovered,
    now: Cell<u64>,
}

async fn open(disk: &SimDisk, executor: &Executor, scrub_every: u64) -> Rc<Process> {
    let process = open_only(disk, scrub_every).await;
    compact(&process, executor);
    process
}

async fn open_only(disk: &SimDisk, scrub_every: u64) -> Rc<Process> {
    let mut options = Options::new(SHARDS, [3; 16]);
    options.segment_len = Some(SEGMENT_LEN);
    options.withheld_len = 1000;
    options.small_max = 0;
    options.scrub_every = scrub_every;
    let volumes = vec![VolumeSpec {
        disk: disk.clone(),
        capacity: CAPACITY,
    }];
    let (store, recovered) = Store::open(volumes, options, START).await.expect("opens");
    let writer = |shard| store.writer(vec![disk.clone()], shard);
    let writers = (0..SHARDS).map(writer).collect();
    Rc::new(Process {
        store,
        writers,
        disk: disk.clone(),
        recovered,
        now: Cell::new(START),
    })
}

/// A compactor that is always at work.
fn compact(process: &Process, executor: &Executor) {
    let disk = process.disk.clone();
    let mut compactor = Compactor::new(process.store.exchange(), vec![disk.clone()]);
    executor.spawn(async move {
        loop {
            if !compactor.step().await {
                // Others go on: the compactor has no clock here.
                let _ = disk.space().await;
            }
        }
    });
}

impl Process {
    fn writer(&self, number: u64) -> &Writer<SimDisk> {
        &self.writers[owner(digest(number).slice(), SHARDS)]
    }

    async fn put(&self, number: u64) {
        let content = content(number);
        let spec = FillSpec {
            digest: Digest::sha256(&content),
            length: Some(content.len() as u64),
            media_type: Some("application/test"),
        };
        let mut fill = self.writer(number).fill(spec).await.expect("admitted");
        fill.write(content).await.expect("written");
        fill.finish(self.now.get()).await.expect("verified");
    }

    async fn purge(&self, number: u64) {
        let key = ForgetKey::Body(digest(number));
        self.writer(number).forget(key).await.expect("durable");
    }

    async fn seal(&self) {
        for writer in &self.writers {
            writer.seal_all(self.now.get()).await.expect("no faults");
        }
    }

    /// Lets time pass and every writer do what is due.
    async fn maintain(&self, times: usize) {
        for _ in 0..times {
            self.now.set(self.now.get() + 1);
            for writer in &self.writers {
                writer.maintain(self.now.get()).await;
            }
        }
    }

    async fn until(&self, done: impl Fn(Compaction) -> bool) {
        for _ in 0..2000 {
            if done(self.store.exchange().compaction()) {
                // Its report, the switches, and their acknowledgements.
                return self.maintain(20).await;
            }
            self.maintain(1).await;
        }
        panic!("not in time: {:?}", self.store.exchange().compaction());
    }

    async fn read(&self, number: u64) -> Option<Vec<u8>> {
        let body = self.store.body(&digest(number))?;
        let read = self
            .disk
            .read(body.lease.file(), body.lease.offset(), body.len as usize);
        Some(read.await.expect("no faults"))
    }

    async fn check(&self, there: impl IntoIterator<Item = u64>) {
        for number in there {
            let read = self.read(number).await;
            assert!(read == Some(content(number)), "body {number}");
        }
    }

    async fn check_gone(&self, gone: impl IntoIterator<Item = u64>) {
        for number in gone {
            assert!(self.read(number).await.is_none(), "body {number}");
        }
    }
}

/// Runs `task` in a process until it ends or `steps` are over; whether it ended.
fn process<F: Future<Output = ()> + 'static>(
    world: &SimWorld,
    seed: u64,
    steps: u64,
    task: impl FnOnce(SimDisk, Rc<Executor>) -> F,
) -> bool {
    let executor = Executor::new(Random::new(seed));
    let disk = SimDisk::new(world, &executor);
    let ended = Rc::new(Cell::new(false));
    let (told, task) = (Rc::clone(&ended), task(disk, Rc::clone(&executor)));
    executor.spawn(async move {
        task.await;
        told.set(true);
    });
    for _ in 0..steps {
        if ended.get() {
            break;
        }
        assert_ne!(executor.step(world), Step::Idle, "nobody was woken");
    }
    assert!(ended.get() || steps < STEPS_MAX, "it never ends");
    world.end(Ending::PowerLoss);
    ended.get()
}

fn world(seed: u64) -> SimWorld {
    SimWorld::new(Random::new(seed), CAPACITY * 3)
}

const BODIES: u64 = 60;

fn purged(number: u64) -> bool {
    !number.is_multiple_of(3)
}

fn kept() -> impl Iterator<Item = u64> {
    (0..BODIES).filter(|number| !purged(*number))
}

/// Bodies in sealed segments, of which two thirds are then purged.
async fn decay(process: &Process) {
    for number in 0..BODIES {
        process.put(number).await;
    }
    process.seal().await;
    for number in (0..BODIES).filter(|number| purged(*number)) {
        process.purge(number).await;
    }
}

#[test]
fn dead_bytes_come_back_and_live_bodies_stay() {
    for seed in 0..5 {
        let world = world(seed);
        process(&world, seed, STEPS_MAX, |disk, executor| async move {
            let process = open(&disk, &executor, 0).await;
            decay(&process).await;
            let leases: Vec<_> = kept()
                .map(|number| process.store.body(&digest(number)).expect("there").lease)
                .collect();
            let before = process.store.usage();
            process.until(|done| done.segments >= 4).await;
            process.maintain(50).await;
            process.check(kept()).await;
            process
                .check_gone((0..BODIES).filter(|number| purged(*number)))
                .await;
            let after = process.store.usage();
            assert!(after.segments < before.segments, "{before:?} {after:?}");
            assert_eq!(after.bodies, kept().count() as u64);
            for (lease, number) in leases.into_iter().zip(kept()) {
                let content = content(number);
                let read = process
                    .disk
                    .read(lease.file(), lease.offset(), content.len());
                assert!(read.await.expect("no faults") == content, "S5");
            }
            let freed = process.store.usage();
            assert!(
                freed.used + (400 << 10) < before.used,
                "{before:?} {freed:?}"
            );
            let compaction = process.store.exchange().compaction();
            assert_eq!((compaction.mismatches, compaction.failed), (0, 0));
        });
        process(&world, seed, STEPS_MAX, |disk, executor| async move {
            let process = open(&disk, &executor, 0).await;
            assert_eq!(process.recovered.bodies, kept().count() as u64);
            process.check(kept()).await;
            let body = process.store.body(&digest(0)).expect("there");
            assert_eq!(body.media_type.as_deref(), Some("application/test"));
        });
    }
}

/// What a process that is cut off knows to be durable.
#[derive(Clone, Default)]
struct Known(Rc<RefCell<BTreeMap<u64, bool>>>);

#[test]
fn whatever_step_a_crash_hits_nothing_is_lost_and_nothing_purged_returns() {
    let mut ended = 0;
    let compacted = Rc::new(Cell::new(0));
    for seed in 0..60 {
        let world = world(seed);
        let known = Known::default();
        let filled = Rc::clone(&known.0);
        process(&world, seed, STEPS_MAX, |disk, executor| async move {
            let process = open(&disk, &executor, 0).await;
            decay(&process).await;
            filled
                .borrow_mut()
                .extend((0..BODIES).map(|number| (number, !purged(number))));
        });
        // Several processes, each cut off somewhere in opening, compacting, purging, refilling.
        for round in 0..3 {
            let (known, compacted) = (known.clone(), Rc::clone(&compacted));
            let steps = 300 + (seed * 37 + round * 411) % 2500;
            let cut = process(&world, seed + round, steps, |disk, executor| async move {
                let process = open(&disk, &executor, 0).await;
                for turn in 0..40 {
                    process.maintain(1).await;
                    let number = (seed * 13 + round * 7 + turn * 5) % BODIES;
                    let there = known.0.borrow().get(&number).copied();
                    match (turn % 4, there) {
                        (1, Some(true)) => {
                            known.0.borrow_mut().remove(&number);
                            process.purge(number).await;
                            known.0.borrow_mut().insert(number, false);
                        }
                        (2, Some(false)) => {
                            known.0.borrow_mut().remove(&number);
                            process.put(number).await;
                            for writer in &process.writers {
                                for _ in 0..2 {
                                    writer.commit(START).await.expect("no faults");
                                }
                            }
                            known.0.borrow_mut().insert(number, true);
                        }
                        _ => {}
                    }
                    let done = process.store.exchange().compaction().segments;
                    compacted.set(compacted.get() + done);
                }
            });
            ended += u64::from(cut);
        }
        let known = known.0.take();
        process(&world, seed, STEPS_MAX, |disk, executor| async move {
            let process = open(&disk, &executor, 0).await;
            for round in 0..2 {
                for (number, there) in &known {
                    if *there {
                        process.check([*number]).await;
                    } else {
                        process.check_gone([*number]).await;
                    }
                }
                if round == 0 {
                    process.maintain(200).await;
                }
            }
        });
    }
    assert!(
        (10..170).contains(&ended),
        "{ended} of 180 were not cut off"
    );
}

#[test]
fn what_was_purged_and_came_back_meanwhile_is_not_switched() {
    let world = world(4);
    process(&world, 4, STEPS_MAX, |disk, _| async move {
        let process = open_only(&disk, 0).await;
        decay(&process).await;
        let exchange = process.store.exchange();
        let mut compactor = Compactor::new(process.store.exchange(), vec![disk.clone()]);
        while exchange.compaction().segments == 0 {
            process.maintain(1).await;
            while compactor.step().await {
                if exchange.compaction().segments > 0 {
                    break;
                }
            }
        }
        // The copies are durable and reported, and nobody has switched.
        compactor.step().await;
        for number in kept() {
            process.purge(number).await;
            process.put(number).await;
        }
        process.seal().await;
        let body = |number| process.store.body(&digest(number)).expect("there");
        let leases: Vec<_> = kept().map(|number| body(number).lease).collect();
        process.maintain(3).await;
        for (lease, number) in leases.iter().zip(kept()) {
            let same = std::ptr::eq(lease.file(), body(number).lease.file());
            assert!(same, "body {number}");
        }
        for _ in 0..100 {
            compactor.step().await;
            process.maintain(1).await;
        }
        process.check(kept()).await;
    });
    process(&world, 4, STEPS_MAX, |disk, _| async move {
        let process = open_only(&disk, 0).await;
        process.check(kept()).await;
    });
}

#[test]
fn the_scrub_drops_what_has_decayed() {
    let world = world(1);
    let outer = world.clone();
    process(&world, 1, STEPS_MAX, |disk, executor| async move {
        let process = open(&disk, &executor, 100).await;
        for number in 0..30 {
            process.put(number).await;
        }
        process.seal().await;
        let body = process.store.body(&digest(7)).expect("there");
        let (offset, file) = (body.lease.offset() + body.len / 2, body.lease.clone());
        let segments = outer.files();
        let mut flipped = false;
        for (name, len) in segments.iter().filter(|(name, _)| name.ends_with(".seg")) {
            let (other, _) = process.disk.open(name).await.expect("there");
            let range = (file.offset(), body.len as usize);
            let same = *len > offset
                && process
                    .disk
                    .read(&other, range.0, range.1)
                    .await
                    .expect("inside")
                    == content(7);
            if same {
                outer.flip(name, offset);
                flipped = true;
            }
        }
        assert!(flipped);
        process.until(|done| done.scrubbed_segments >= 12).await;
        process.check_gone([7]).await;
        process.check((0..30).filter(|number| *number != 7)).await;
        let compaction = process.store.exchange().compaction();
        assert_eq!(compaction.mismatches, 1);
    });
    process(&world, 1, STEPS_MAX, |disk, executor| async move {
        let process = open(&disk, &executor, 0).await;
        process.check_gone([7]).await;
    });
}

#[test]
fn what_nobody_sealed_is_checked_before_it_is_served() {
    let world = world(2);
    process(&world, 2, STEPS_MAX, |disk, executor| async move {
        let process = open(&disk, &executor, 0).await;
        for number in 0..6 {
            process.put(number).await;
        }
        for writer in &process.writers {
            for _ in 0..2 {
                writer.commit(START).await.expect("no faults");
            }
        }
    });
    let outer = world.clone();
    process(&world, 2, STEPS_MAX, |disk, executor| async move {
        let process = open(&disk, &executor, 100).await;
        for number in 0..6 {
            let body = process.store.body(&digest(number)).expect("there");
            assert!(body.unverified);
        }
        let broken = process.store.body(&digest(3)).expect("there").lease;
        for (name, _) in outer
            .files()
            .into_iter()
            .filter(|(name, _)| name.ends_with(".seg"))
        {
            let (file, _) = process.disk.open(&name).await.expect("there");
            let len = content(3).len();
            let read = process.disk.read(&file, broken.offset(), len).await;
            if read.expect("inside") == content(3) {
                outer.flip(&name, broken.offset() + 5);
            }
        }
        assert!(process.writer(2).verify(&digest(2)).await);
        assert!(!process.store.body(&digest(2)).expect("there").unverified);
        assert!(!process.writer(3).verify(&digest(3)).await);
        process.check_gone([3]).await;
        assert!(!process.writer(9).verify(&digest(9)).await, "not there");
        // The scrub takes them first, at once.
        process.until(|done| done.scrubbed_segments >= 2).await;
        for number in [0, 1, 2, 4, 5] {
            let body = process.store.body(&digest(number)).expect("there");
            assert!(!body.unverified, "body {number}");
        }
    });
}
