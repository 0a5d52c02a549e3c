//! A volume that returns, step by step, on simulated drives.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};

use super::*;
use crate::compact::Compactor;
use crate::digest::Digest;
use crate::disk::sim::{Executor, Random, SimDisk, SimWorld, Step};
use crate::store::{Options, Store};
use crate::volume::VolumeSpec;
use crate::writer::FillSpec;

const NOW: u64 = 1_800_000_000;
const CAPACITY: u64 = 8 << 20;
const SEGMENT_LEN: u64 = 256 << 10;

/// One process with a new store.
pub(crate) struct Process {
    pub(crate) store: Arc<Store<SimDisk>>,
    world: SimWorld,
    executor: Rc<Executor>,
    disks: Vec<SimDisk>,
    shared: Rc<Shared<SimDisk>>,
}

/// On so many drives.
pub(crate) fn process(drives: usize) -> Process {
    let world = SimWorld::with_drives(Random::new(7), &vec![2 * CAPACITY; drives]);
    let executor = Executor::new(Random::new(7));
    let disk = |drive| SimDisk::of_drive(&world, &executor, drive);
    let disks: Vec<SimDisk> = (0..drives).map(disk).collect();
    let volume = |disk: &SimDisk| VolumeSpec {
        disk: disk.clone(),
        capacity: CAPACITY,
    };
    let volumes = disks.iter().map(volume).collect();
    let mut options = Options::new(1, [1; 16]);
    options.segment_len = Some(SEGMENT_LEN);
    let opening = Store::open(volumes, options, NOW);
    let (store, _) = run(&world, &executor, opening).expect("a new store");
    let Writer { shared } = store.writer(disks.clone(), 0);
    Process {
        store,
        world,
        executor,
        disks,
        shared,
    }
}

/// Until nothing is left to do.
fn run<T: 'static>(
    world: &SimWorld,
    executor: &Executor,
    task: impl Future<Output = T> + 'static,
) -> T {
    let output = Rc::new(RefCell::new(None));
    let told = Rc::clone(&output);
    executor.spawn(async move {
        let value = task.await;
        told.replace(Some(value));
    });
    while executor.step(world) != Step::Idle {}
    output.take().expect("it has ended")
}

impl Process {
    fn writer(&self) -> Writer<SimDisk> {
        let shared = Rc::clone(&self.shared);
        Writer { shared }
    }

    fn run<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        task: impl FnOnce(Writer<SimDisk>) -> F,
    ) -> T {
        run(&self.world, &self.executor, task(self.writer()))
    }
}

/// Brings the second of three volumes back while, after so many steps, the third misses something.
/// Whenever all superblocks are said to know that, that of the second does. Whether there were so
/// many steps.
fn one_returns_while_another_falls_behind(after: usize) -> bool {
    let process = process(3);
    // To look through takes longer than a round.
    process.run(|writer| async move { decay(&writer, 18).await });
    let store = &process.store;
    store.take_offline(1);
    let writer = process.writer();
    process.executor.spawn(async move {
        writer.maintain(NOW).await;
        writer.bring_back(1).await.expect("its disk works");
    });
    let mut steps = 0;
    while process.executor.step(&process.world) != Step::Idle {
        if steps == after {
            assert!(store.reached(&[(0, true), (1, true), (2, false)]));
            let shared = Rc::clone(&process.shared);
            process.executor.spawn(async move {
                shared.tell().await;
            });
        }
        steps += 1;
        let volume = store.volume(1);
        if volume.online() && store.attest.all_told() {
            let said = volume.superblock().expect("its own").members;
            assert_eq!(said, store.members(), "{after}: {steps}");
        }
    }
    assert!(store.volume(1).online() && store.attest.all_told());
    steps > after
}

#[test]
fn a_volume_that_comes_back_is_told_before_it_counts() {
    let mut after = 0;
    while one_returns_while_another_falls_behind(after) {
        after += 1;
    }
    assert!(after > 0, "it takes some steps");
}

#[test]
fn a_disk_that_is_being_probed_keeps_nobody_from_maintenance() {
    let process = process(2);
    process.store.take_offline(1);
    let writer = process.writer();
    process.executor.spawn(async move {
        writer.maintain(NOW).await;
        writer.bring_back(1).await.expect("its disk works");
    });
    let mut probed = 0;
    while process.executor.step(&process.world) != Step::Idle {
        let files = process.world.drive_files(1);
        if files.iter().any(|(name, _)| name == PROBE) {
            probed += 1;
            let mut turn = pin!(process.shared.maintaining.turn());
            let mut cx = Context::from_waker(Waker::noop());
            assert!(turn.as_mut().poll(&mut cx).is_ready(), "{probed}");
        }
    }
    assert!(probed > 0 && process.store.volume(1).online());
}

/// Sealed segments of which most is dead.
async fn decay(writer: &Writer<SimDisk>, bodies: u64) {
    for number in 0..bodies {
        let content = number.to_le_bytes().repeat(2500);
        let digest = Digest::sha256(&content);
        let spec = FillSpec {
            digest,
            length: Some(content.len() as u64),
            media_type: None,
        };
        let mut fill = writer.fill(spec).await.expect("admitted");
        fill.write(content).await.expect("written");
        fill.finish(NOW).await.expect("verified");
        writer.commit(NOW).await.expect("committed");
        if number % 9 != 0 {
            let purged = writer.forget(ForgetKey::Body(digest)).await;
            purged.expect("durable");
        }
    }
    writer.seal_all(NOW).await.expect("sealed");
}

#[test]
fn a_compaction_that_nobody_goes_on_with_keeps_no_volume_away() {
    let process = process(2);
    let compactor = Compactor::new(process.store.exchange(), process.disks.clone());
    process.run(|writer| async move {
        decay(&writer, 90).await;
        writer.maintain(NOW + 60).await;
    });
    assert!(process.shared.compacts(0));
    process.store.take_offline(0);
    let bring_back = |writer: Writer<SimDisk>| async move {
        writer.maintain(NOW + 61).await;
        writer.bring_back(0).await
    };
    let early = process.run(bring_back);
    assert!(
        matches!(early, Err(BringBackError::Compacting)),
        "{early:?}"
    );
    drop(compactor);
    let brought = process.run(bring_back).expect("nobody compacts it");
    assert!(brought.bodies > 0);
}
