//! The planner, owners and a compactor step by step, on a simulated disk.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use super::Pending;
use crate::compact::Compactor;
use crate::digest::Digest;
use crate::disk::sim::{Ending, Executor, Faults, Random, SimDisk, SimWorld, Step};
use crate::exchange::{Finding, Place, ToOwner};
use crate::index::IndexedBody;
use crate::key::ForgetKey;
use crate::lease::SegmentFile;
use crate::page::Class;
use crate::store::{Options, Store};
use crate::volume::{Floors, VolumeSpec};
use crate::writer::{FillSpec, Shared, Writer};

const START: u64 = 1_800_000_000;
const CAPACITY: u64 = 8 << 20;
const SEGMENT_LEN: u64 = 256 << 10;
const BODIES: u64 = 30;
/// Turns after which something waits for nobody.
const TURNS_MAX: usize = 10_000;

fn content(number: u64) -> Vec<u8> {
    let mut content = number.to_le_bytes().repeat(2500);
    content.extend(number.to_be_bytes());
    content
}

fn digest(number: u64) -> Digest {
    Digest::sha256(&content(number))
}

struct Process {
    world: SimWorld,
    disk: SimDisk,
    store: Arc<Store<SimDisk>>,
    writers: Vec<Writer<SimDisk>>,
    compactor: RefCell<Compactor<SimDisk>>,
}

impl Process {
    fn planner(&self) -> &Rc<Shared<SimDisk>> {
        &self.writers[0].shared
    }

    fn owner(&self, number: u64) -> &Writer<SimDisk> {
        &self.writers[crate::owner(digest(number).slice(), self.writers.len())]
    }

    fn new_compactor(&self) -> Compactor<SimDisk> {
        Compactor::new(self.store.exchange(), vec![self.disk.clone()])
    }

    /// Nobody else looks at the compactor while it works.
    #[expect(clippy::await_holding_refcell_ref)]
    async fn step(&self) -> bool {
        self.compactor.borrow_mut().step().await
    }

    async fn put(&self, number: u64) {
        let content = content(number);
        let spec = FillSpec {
            digest: digest(number),
            length: Some(content.len() as u64),
            media_type: None,
        };
        let mut fill = self.owner(number).fill(spec).await.expect("admitted");
        fill.write(content).await.expect("written");
        fill.finish(START).await.expect("verified");
    }

    async fn purge(&self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            let key = ForgetKey::Body(digest(number));
            self.owner(number).forget(key).await.expect("durable");
        }
    }

    async fn seal(&self) {
        for writer in &self.writers {
            writer.seal_all(START).await.expect("no faults");
        }
    }

    /// Sealed segments of which most is dead.
    async fn decayed(&self) {
        for number in 0..BODIES {
            self.put(number).await;
        }
        self.seal().await;
        self.purge((0..BODIES).filter(|number| number % 3 != 0))
            .await;
    }

    fn live(&self) -> Vec<u64> {
        let there = |number: &u64| self.store.body(&digest(*number)).is_some();
        (0..BODIES).filter(there).collect()
    }

    fn later(&self, seconds: u64) {
        for at in (0..=seconds).step_by(60) {
            self.store.clock.advance(START + at);
        }
        self.store.clock.advance(START + seconds);
    }

    /// Planner, owners and compactor take turns until `done`.
    async fn work(&self, done: impl Fn(&Process) -> bool) {
        for _ in 0..TURNS_MAX {
            if done(self) {
                return;
            }
            self.planner().plan_reclaim().await;
            self.turn().await;
        }
        panic!("not in time: {:?}", self.store.exchange().compaction());
    }

    /// The same without the planner.
    async fn turn(&self) {
        self.step().await;
        for writer in &self.writers {
            writer.shared.serve_compactor().await;
        }
    }

    fn segments(&self) -> Vec<Arc<SegmentFile<SimDisk>>> {
        let registry = self.store.volume(0).registry();
        let bodies = registry.values().filter(|file| file.class != Class::Small);
        bodies.cloned().collect()
    }

    fn files(&self) -> BTreeSet<String> {
        let files = self.world.files().into_iter().map(|(name, _)| name);
        files.filter(|name| name.ends_with(".seg")).collect()
    }

    fn used(&self) -> u64 {
        self.store.volume(0).usage(self.store.clock.now()).used
    }

    async fn floors(&self) -> Floors {
        let volume = self.store.volume(0);
        volume.forget_left(&self.disk).await.expect("no faults");
        volume.floors()
    }

    /// Until what runs beside this has ended: each turn is an operation of the disk.
    async fn quiet(&self) {
        for _ in 0..50 {
            self.disk_turn().await;
        }
    }

    async fn disk_turn(&self) {
        crate::disk::Disk::space(&self.disk).await.expect("asked");
    }
}

/// One process of a new store with this many shards, which is told to `task`.
fn process<F: Future<Output = ()> + 'static>(
    shards: usize,
    task: impl FnOnce(Rc<Process>) -> F + 'static,
) {
    let world = SimWorld::new(Random::new(5), CAPACITY * 3);
    let executor = Executor::new(Random::new(5));
    let disk = SimDisk::new(&world, &executor);
    let ended = Rc::new(RefCell::new(false));
    let (told, of) = (Rc::clone(&ended), world.clone());
    executor.spawn(async move {
        let mut options = Options::new(shards, [3; 16]);
        options.segment_len = Some(SEGMENT_LEN);
        options.withheld_len = 1000;
        options.small_max = 0;
        options.scrub_every = 0;
        let volume = VolumeSpec {
            disk: disk.clone(),
            capacity: CAPACITY,
        };
        let (store, _) = Store::open(vec![volume], options, START)
            .await
            .expect("opens");
        let writer = |shard| store.writer(vec![disk.clone()], shard);
        let writers = (0..shards).map(writer).collect();
        let compactor = Compactor::new(store.exchange(), vec![disk.clone()]);
        task(Rc::new(Process {
            world: of,
            disk,
            store,
            writers,
            compactor: RefCell::new(compactor),
        }))
        .await;
        told.replace(true);
    });
    while !*ended.borrow() {
        assert_ne!(executor.step(&world), Step::Idle, "nobody was woken");
    }
    world.end(Ending::PowerLoss);
}

#[test]
fn a_survivor_segment_is_no_victim_before_all_have_switched() {
    process(1, |process| async move {
        process.decayed().await;
        let planner = process.planner();
        let [first, ..] = &planner.settled(0)[..] else {
            panic!("sealed segments");
        };
        let before = planner.settled(0).len();
        planner.reclaim.pending.borrow_mut().push(Pending {
            number: 1,
            volume: 0,
            scrub: false,
            victims: Vec::new(),
            target: None,
            survivor: Some(first.hold()),
            outgoing: Vec::new(),
            switching: 1,
        });
        let settled = planner.settled(0);
        assert_eq!(settled.len(), before - 1);
        assert!(settled.iter().all(|file| file.id != first.id));
        planner.reclaim.pending.borrow_mut().clear();
    });
}

#[test]
fn a_dead_segment_that_nobody_unlinked_goes() {
    process(1, |process| async move {
        process.put(1).await;
        process.seal().await;
        // A later one takes its place, and is purged before it is durable.
        process.put(1).await;
        process.purge([1]).await;
        process.seal().await;
        process.planner().plan_reclaim().await;
        process.quiet().await;
        assert!(process.segments().is_empty());
        assert_eq!(process.files(), BTreeSet::new());
    });
}

#[test]
fn the_target_of_a_failed_job_is_removed_and_outlived_by_purges_of_what_is_in_it() {
    process(1, |process| async move {
        process.decayed().await;
        process.quiet().await;
        let lowest = process.floors().await.bodies;
        let (before, used) = (process.files(), process.used());
        // The copies are whole when the directory cannot be synced, and the name stays.
        process.world.set_faults(Faults {
            sync_dir: 1000,
            unlink: 1000,
            ..Faults::NONE
        });
        process
            .work(|process| process.store.exchange().compaction().failed > 0)
            .await;
        process.turn().await;
        process.planner().plan_reclaim().await;
        assert!(process.files().is_superset(&before) && process.files() != before);
        assert!(process.used() > used, "the file is still there");
        process.world.set_faults(Faults::NONE);
        process.purge(0..BODIES).await;
        process.quiet().await;
        assert_eq!(process.segments().len(), 0);
        assert_eq!(process.floors().await.bodies, lowest);
        process.later(20);
        process.planner().plan_reclaim().await;
        assert_eq!(process.files(), BTreeSet::new());
        assert_eq!(process.floors().await.bodies, Floors::NONE.bodies);
        assert_eq!(process.segments().len(), 0);
        process.quiet().await;
        assert!(process.used() < used);
    });
}

#[test]
fn what_a_disk_does_not_read_for_a_while_is_there_afterwards() {
    process(1, |process| async move {
        process.decayed().await;
        let live = process.live();
        process.world.set_faults(Faults {
            read: 1000,
            ..Faults::NONE
        });
        let compaction = |process: &Process| process.store.exchange().compaction();
        process.work(|process| compaction(process).failed > 0).await;
        // Its report, which has the segments left alone.
        process.turn().await;
        process.planner().plan_reclaim().await;
        process.world.set_faults(Faults::NONE);
        assert_eq!(process.live(), live);
        process.later(1000);
        process
            .work(|process| compaction(process).segments > 0)
            .await;
        assert_eq!(process.live(), live);
        assert_eq!(compaction(&process).mismatches, 0);
    });
}

#[test]
fn a_verification_that_was_short_of_something_drops_nothing() {
    process(1, |process| async move {
        process.put(1).await;
        process.seal().await;
        let busy = 1000;
        process.world.set_faults(Faults {
            busy,
            ..Faults::NONE
        });
        assert!(!process.writers[0].suspect(&digest(1)).await);
        assert!(process.store.body(&digest(1)).is_some());
        process.world.set_faults(Faults::NONE);
        assert!(process.writers[0].suspect(&digest(1)).await);
    });
}

#[test]
fn many_broken_bodies_cost_few_syncs() {
    process(1, |process| async move {
        process.decayed().await;
        let findings = process.live().into_iter().map(|number| {
            let found = |body: &IndexedBody<SimDisk>| (body.sequence, body.lease.file.id);
            let body = process.store.index.with_body(&digest(number), found);
            let (sequence, segment) = body.expect("there");
            let digest = digest(number);
            let place = Place {
                digest,
                sequence,
                segment,
            };
            let sound = false;
            Finding { place, sound }
        });
        let findings: Vec<_> = findings.collect();
        let syncs = |process: &Process| process.world.issued();
        let (count, before) = (findings.len() as u64, syncs(&process));
        let told = process.store.exchange().owners[0].push(ToOwner::Found(findings));
        assert!(told.is_ok());
        process.planner().serve_compactor().await;
        assert!(process.live().is_empty());
        let issued = syncs(&process) - before;
        // Segments are unlinked beside it.
        assert!(issued < 2 * count, "{issued} operations for {count}");
    });
}

#[test]
fn the_questions_of_a_compactor_that_is_gone_are_not_answered() {
    process(2, |process| async move {
        process.decayed().await;
        let inbox = |owner: usize| process.store.exchange().owners[owner].len();
        process.planner().plan_reclaim().await;
        while inbox(0) + inbox(1) < 2 {
            process.step().await;
        }
        process.compactor.replace(process.new_compactor());
        // The job of the old one ends, and its victims are left alone for a while.
        process.planner().plan_reclaim().await;
        process.later(1000);
        process.planner().plan_reclaim().await;
        while inbox(0) + inbox(1) < 4 {
            process.step().await;
        }
        process
            .work(|process| process.store.exchange().compaction().segments > 0)
            .await;
    });
}
