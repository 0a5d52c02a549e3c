//! One run: processes that start, work and end badly, on one disk, until the last ends well.

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::rc::Rc;

use entrepot_storage::disk::sim::{
    Ending, Executor, Faults, Random, SimDisk, SimWorld, Step as Ran,
};
use entrepot_storage::{Compactor, OpenError, Options, Store, VolumeSpec};

use super::client::Process;
use super::model::Model;
use super::plan::{Media, Plan};
use super::recovered;
use super::steps::{self, Counts, Phase, Step};

/// One run in so many is about compaction: in the others few crashes meet it.
const COMPACTING_EVERY: u64 = 5;
const OPERATIONS_MIN: u64 = 500;
const CRASHES_MIN: u64 = 3;
/// Operations of the disk within one process: far more than any run needs, so that one that
/// never ends is a failure.
const STEPS_MAX: u64 = 20_000_000;

/// Failed starts of one run: faults make some, and then it opens again.
const REFUSED_MAX: u64 = 200;

/// Sets the second stream of a seed apart from the first of another.
const APART: u64 = 0x5eed_0000_0000_0000;
const TURNS: u64 = 0x7153_0000_0000_0000;

/// What outlives a process.
pub struct Run {
    pub plan: Rc<Plan>,
    pub world: SimWorld,
    pub model: Rc<RefCell<Model>>,
    pub counts: Rc<RefCell<Counts>>,
    pub clock: Rc<Cell<u64>>,
    pub random: Random,
    /// For what not every run does.
    pub apart: Random,
    /// For the turns that drives take.
    pub turns: Random,
    /// Of the next process.
    pub stale: Rc<Cell<usize>>,
    /// The last process ended when all drives had everything.
    pub settled: bool,
    /// It ended when only the drive that may have missed something had every small record.
    pub alone: bool,
    /// The last process ended with the machine.
    pub rebooted: bool,
    /// It was opened with all its drives.
    pub founded: Rc<Cell<bool>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Crashed,
    /// The store could not be opened, as may be when the disk fails.
    Refused,
    Done,
}

/// What the driver of one process sees of it.
#[derive(Default)]
struct Watch {
    opening: Cell<bool>,
    refused: Cell<bool>,
    /// What recovery found was compared.
    checked: Cell<bool>,
    done: Cell<bool>,
    settled: Cell<bool>,
    /// It ends before much is done.
    brief: Cell<bool>,
    forgetting: Rc<Cell<u32>>,
    maintaining: Rc<Cell<u32>>,
    scoping: Rc<Cell<bool>>,
    returning: Rc<Cell<bool>>,
    process: RefCell<Option<Rc<Process>>>,
}

pub fn run(seed: u64) -> Counts {
    let mut random = Random::new(seed);
    let mut apart = Random::new(seed ^ APART);
    let mut turns = Random::new(seed ^ TURNS);
    let mut plan = Plan::draw(&mut random, &mut apart, &mut turns);
    if seed % COMPACTING_EVERY == COMPACTING_EVERY - 1 {
        plan.compacts();
    }
    let mut model = Model::new(&mut random, &plan.lens);
    model.amnesia = plan.amnesia();
    model.lenient = vec![false; plan.drives()];
    let run = Run {
        world: SimWorld::with_drives(random.fork(), &vec![plan.total; plan.drives()]),
        stale: Rc::new(Cell::new(plan.weak)),
        turns,
        settled: false,
        alone: false,
        plan: Rc::new(plan),
        model: Rc::new(RefCell::new(model)),
        counts: Rc::default(),
        clock: Rc::new(Cell::new(1_800_000_000)),
        random,
        apart,
        rebooted: true,
        founded: Rc::default(),
    };
    run.all()
}

impl Run {
    fn all(mut self) -> Counts {
        let crashes = CRASHES_MIN + self.random.below(4);
        let mut refused = 0;
        let mut note = |end| {
            refused += u64::from(end == End::Refused);
            assert!(refused < REFUSED_MAX, "the store does not open any more");
            end
        };
        while self.counts.borrow().crashes() < crashes {
            let operations = 60 + self.random.below(160);
            note(self.process(operations, false));
        }
        loop {
            let left = OPERATIONS_MIN.saturating_sub(self.counts.borrow().operations);
            if note(self.process(left.max(40), true)) == End::Done {
                break;
            }
        }
        // After a drain even a power loss takes nothing: the last process only looks.
        while note(self.process(0, true)) != End::Done {}
        self.counts.borrow_mut().injected = self.world.injected();
        self.counts.take()
    }

    /// A process from its start to its end, bad or, if `last`, good.
    fn process(&mut self, operations: u64, last: bool) -> End {
        self.harm_superblocks();
        let faulty = !last || self.random.chance(300);
        // A new store is made where all drives are: what is on a missing one is not known.
        let leaves = !last && self.founded.get() && self.random.chance(self.plan.leaves);
        let replaced = self.take_turns();
        let leaves = (leaves || !last && self.leaves_alone()) && !replaced;
        let brief = replaced && !last && self.turns.chance(700);
        let operations = if brief {
            self.turns.below(8)
        } else {
            operations
        };
        let stale = self.stale.get();
        let away = leaves.then_some(stale);
        let mut repaired = Faults::NONE;
        for drive in 0..self.plan.drives() {
            let alone = self.plan.drives() == 1;
            // While another may have missed something it has no errors.
            let faulty = faulty && (alone || self.founded.get()) && stale == self.plan.weak;
            if drive == stale {
                repaired = self.plan.faults(drive, faulty);
            }
            let mut faults = self.plan.faults(drive, faulty);
            faults.gone = away == Some(drive);
            self.world.set_drive_faults(drive, faults);
        }
        let errors_before = errors(&self.world);
        let before = self.names();
        let executor = Executor::new(self.random.fork());
        let watch = Rc::new(Watch::default());
        watch.brief.set(brief);
        let start = self.start(
            &executor,
            &watch,
            operations,
            last,
            errors_before.clone(),
            (away.is_some(), repaired),
        );
        executor.spawn(start);
        let end = self.drive(&executor, &watch, last);
        if let Some(process) = watch.process.borrow().as_ref()
            && watch.checked.get()
        {
            process.note_evicted();
        }
        drop(executor);
        let ending = if self.random.chance(300) {
            Ending::Kill
        } else {
            Ending::PowerLoss
        };
        let mut counts = self.counts.borrow_mut();
        match (end, ending) {
            (End::Crashed, Ending::PowerLoss) => counts.power_losses += 1,
            (End::Crashed, Ending::Kill) => counts.kills += 1,
            (End::Done, _) => counts.clean_ends += 1,
            (End::Refused, _) => {}
        }
        drop(counts);
        if let Some(process) = watch.process.borrow().as_ref() {
            process.count_upkeep();
            self.alone = process.stale_alone();
        }
        self.settled = watch.settled.get();
        let mut model = self.model.borrow_mut();
        model.crashed();
        for (drive, errors) in errors(&self.world).into_iter().enumerate() {
            // What a failed sync lost shows only when the machine goes down.
            let cleared = self.rebooted && watch.checked.get();
            let failed = errors > errors_before[drive];
            model.lenient[drive] = failed || model.lenient[drive] && !cleared;
        }
        drop(model);
        self.world.end(ending);
        if away.is_some() && !watch.checked.get() {
            self.excuse_emptied(&before);
        }
        self.rebooted = ending == Ending::PowerLoss;
        end
    }

    fn drive(&mut self, executor: &Rc<Executor>, watch: &Watch, last: bool) -> End {
        let rare = self.random.chance(self.plan.rare);
        let possible = |step: &Step| step.possible(&self.plan);
        let all: Vec<Step> = steps::ALL.into_iter().filter(possible).collect();
        let target = *self.random.pick(if rare { &steps::RARE[..] } else { &all });
        let mut countdown = 1 + self.random.below(target.often());
        let mut issued = 0;
        for _ in 0..STEPS_MAX {
            let ran = executor.step(&self.world);
            if watch.refused.get() {
                return End::Refused;
            }
            if watch.done.get() && !last {
                return self.crash(watch);
            }
            if watch.done.get() && ran == Ran::Idle {
                watch
                    .process
                    .borrow()
                    .as_ref()
                    .expect("it started")
                    .check_at_rest();
                return End::Done;
            }
            assert!(ran != Ran::Idle, "everybody waits and nobody was woken");
            if last || self.world.issued() == issued && target != Step::Quiet {
                continue;
            }
            issued = self.world.issued();
            if self.hit(watch).contains(&target) {
                countdown -= 1;
                if countdown == 0 {
                    return self.crash(watch);
                }
            }
        }
        panic!("the process does not end");
    }

    fn hit(&self, watch: &Watch) -> Vec<Step> {
        let phase = Phase {
            opening: watch.opening.get(),
            forgetting: watch.forgetting.get() > 0,
            maintaining: watch.maintaining.get() > 0,
            scoping: watch.scoping.get(),
            returning: watch.returning.get(),
        };
        steps::hit(&self.world.in_flight(), phase)
    }

    fn crash(&self, watch: &Watch) -> End {
        self.counts.borrow_mut().crash(&self.hit(watch));
        End::Crashed
    }

    fn start(
        &mut self,
        executor: &Rc<Executor>,
        watch: &Rc<Watch>,
        operations: u64,
        last: bool,
        errors_before: Vec<u64>,
        (broken, repaired): (bool, Faults),
    ) -> impl Future<Output = ()> + 'static {
        let (world, plan) = (self.world.clone(), Rc::clone(&self.plan));
        let (model, counts) = (Rc::clone(&self.model), Rc::clone(&self.counts));
        let (clock, watch) = (Rc::clone(&self.clock), Rc::clone(watch));
        let mut random = self.random.fork();
        let founded = Rc::clone(&self.founded);
        let stale = Rc::clone(&self.stale);
        let disks: Vec<SimDisk> = (0..plan.drives())
            .map(|drive| SimDisk::of_drive(&world, executor, drive))
            .collect();
        let executor = Rc::downgrade(executor);
        async move {
            // S8: nothing on the disk depends on how many write.
            let shards = 1 + random.index(3);
            let options = Options {
                shards,
                uuid: std::array::from_fn(|_| random.draw() as u8),
                ..plan.options.clone()
            };
            watch.opening.set(true);
            let capacity = plan.capacity;
            let volume = |disk: &SimDisk| VolumeSpec {
                disk: disk.clone(),
                capacity,
            };
            let volumes = disks.iter().map(volume).collect();
            let opened = Store::open(volumes, options, clock.get()).await;
            watch.opening.set(false);
            let faults = errors(&world) != errors_before;
            let (store, recovered) = match opened.map_err(|failure| failure.error) {
                Ok(opened) => opened,
                Err(OpenError::Disk { source, .. })
                    if faults
                        || matches!(
                            source.kind(),
                            ErrorKind::StorageFull | ErrorKind::QuotaExceeded
                        ) =>
                {
                    return watch.refused.set(true);
                }
                Err(OpenError::SmallRecordsUnreadable { .. } | OpenError::AwayFromNew(_))
                    if faults =>
                {
                    return watch.refused.set(true);
                }
                Err(error) => panic!("not opened: {error}"),
            };
            founded.set(founded.get() || recovered.away.is_empty());
            let strange = recovered.invalid + recovered.foreign.len() as u64;
            let sound = plan.media == Media::Sound;
            assert!(strange == 0 || !sound, "{recovered:?}");
            let writers = (0..shards)
                .map(|shard| store.writer(disks.clone(), shard))
                .collect();
            let bulk = disks.iter().map(SimDisk::direct).collect();
            let compactor = Compactor::new(store.exchange(), bulk);
            let moved = model.borrow().moved;
            let maintained = Cell::new(clock.get());
            let process = Rc::new(Process {
                executor,
                disks,
                writers,
                model,
                counts,
                clock,
                random: RefCell::new(random),
                forgetting: Rc::clone(&watch.forgetting),
                maintaining: Rc::clone(&watch.maintaining),
                scoping: Rc::clone(&watch.scoping),
                returning: Rc::clone(&watch.returning),
                stale,
                broken: Cell::new(broken),
                repaired: Cell::new(repaired),
                anew: Cell::new(false),
                in_part: Cell::new(false),
                reluctant: Cell::new(false),
                hurried: Cell::new(false),
                compactor: RefCell::new(Some(compactor)),
                moved,
                maintained,
                errors_before,
                operations_left: Cell::new(operations),
                clients: Cell::new(0),
                followers: Cell::new(0),
                waiting: RefCell::default(),
                held: RefCell::default(),
                evicted: Cell::new(0),
                running: RefCell::default(),
                plan,
                world,
                store,
            });
            watch.process.replace(Some(Rc::clone(&process)));
            recovered::check(&process, &recovered).await;
            watch.checked.set(true);
            work(&process, last).await;
            let settles = !last && !watch.brief.get() && !process.hurried.get();
            watch.settled.set(settles && process.settles().await);
            watch.done.set(true);
        }
    }
}

/// Of each drive, so far.
fn errors(world: &SimWorld) -> Vec<u64> {
    let drives = 0..world.drives();
    drives
        .map(|drive| world.drive_injected(drive).errors())
        .collect()
}

async fn work(process: &Rc<Process>, last: bool) {
    if process.anew.get() && process.chance(600) {
        process.mend_drive().await;
    }
    let clients = 1 + process.random.borrow_mut().index(6);
    process.clients.set(clients);
    for _ in 0..clients {
        process.spawn(Rc::clone(process).client());
    }
    process.clients_gone().await;
    if !last {
        return;
    }
    process.mend_at_last().await;
    process.settle().await;
    process.held.borrow_mut().clear();
    process.tidy().await;
    let count = process.model.borrow().contents.len();
    for content in 0..count {
        process.look_up(content).await;
    }
    process.held.borrow_mut().clear();
    process.check_mortal().await;
    for _ in 0..process.writers.len() * 2 {
        process.seal().await;
    }
    process.tidy().await;
}
