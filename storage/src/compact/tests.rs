//! The compactor against owners made up by the test, on the simulated disk and on a real one.

mod unread;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use super::Compactor;
use crate::digest::Digest;
use crate::disk::Disk;
use crate::disk::bulk::BulkDisk;
use crate::disk::direct::{DirectDisk, Rate, executor};
use crate::disk::sim::{Ending, Executor, Faults, Random, SimDisk, SimWorld, Step};
use crate::exchange::{
    Answer, Exchange, Finding, Job, Listed, Place, Report, Source, Target, ToOwner,
};
use crate::footer::{self, Sealed};
use crate::page::{Class, PAGE_LEN, Uuid, round_up};
use crate::record::{BodyEntry, CRC_STRIDE_BYTES, Kind, Record};
use crate::segment::file_name;
use crate::survivor::{Layout, Survivor, len_max};

const UUID: Uuid = [7; 16];
const CREATED: u64 = 1_800_000_000;
const TARGET: u64 = 100;
const UNKNOWN: u8 = 200;

fn content(number: u64) -> Vec<u8> {
    // Of no length, of less than a page, of whole pages, of more than a MiB.
    let len = [0, 100, 8192, (1 << 20) + 5, 5000, (2 << 20) - 1][number as usize % 6];
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(byte).take(len).collect()
}

fn entry(number: u64) -> BodyEntry {
    let content = content(number);
    BodyEntry {
        digest: Digest::sha256(&content),
        offset: 0,
        len: content.len() as u64,
        created: CREATED,
        media_type: number
            .is_multiple_of(2)
            .then(|| "application/x".repeat(number as usize % 30).into()),
        crcs: content
            .chunks(CRC_STRIDE_BYTES as usize)
            .map(crate::codec::crc)
            .collect(),
    }
}

/// A sealed segment of these bodies, each with its number as sequence, and an unknown record.
async fn make<B: BulkDisk>(disk: &B, segment: u64, numbers: &[u64]) -> Source {
    let mut layout = Layout::default();
    let payload = vec![1, 2, 3];
    let unknown = Record {
        sequence: segment,
        kind: Kind::Unknown {
            code: UNKNOWN,
            payload,
        },
    };
    for number in numbers {
        layout.add_body(&entry(*number));
    }
    layout.add_record(unknown.encoded().len() as u64);
    let target = Target {
        segment,
        len_max: u64::MAX,
        created: CREATED,
    };
    let made = Survivor::create(disk, UUID, target, &layout).await;
    let mut survivor = made.expect("room");
    for number in numbers {
        let entry = entry(*number);
        let offset = survivor.begin(disk, *number, &entry).await.expect("room");
        let content = content(*number);
        survivor.append(disk, &content).await.expect("room");
        survivor.end_body(disk).await.expect("room");
        let entry = BodyEntry { offset, ..entry };
        survivor.enter(Record {
            sequence: *number,
            kind: Kind::Body(entry),
        });
    }
    survivor.enter(unknown);
    let sealed = survivor.seal(disk, &Default::default()).await;
    Source {
        segment,
        class: Class::Shared,
        len: sealed.expect("no faults").0,
        unlisted: false,
        unverified: false,
    }
}

/// The bodies of a segment, by sequence, as its footer and its bytes say.
async fn bodies<B: BulkDisk>(disk: &B, segment: u64, len: u64) -> BTreeMap<u64, Place> {
    let name = file_name(segment, Class::Shared);
    let file = disk.open(&name).await.expect("there");
    let sealed = Sealed {
        uuid: &UUID,
        segment,
        len,
    };
    let records = footer::read(disk, &file, &sealed).await.expect("readable");
    let mut bodies = BTreeMap::new();
    for record in records.expect("a footer") {
        let Kind::Body(entry) = record.kind else {
            continue;
        };
        let pages = round_up(entry.len) as usize;
        let read = match pages {
            0 => Vec::new(),
            _ => {
                let read = disk.read(&file, entry.offset, pages).await;
                read.expect("inside").as_ref()[..entry.len as usize].to_vec()
            }
        };
        assert!(read == content(record.sequence), "body {}", record.sequence);
        let place = Place {
            digest: entry.digest,
            sequence: record.sequence,
            segment,
        };
        bodies.insert(record.sequence, place);
    }
    bodies
}

/// Answers for all owners: live is what `live` says, as recent as its sequence is low.
fn answer(exchange: &Exchange, live: &[u64], listed: &[Listed]) {
    for owner in &exchange.owners {
        while let Some(message) = owner.pop() {
            let ToOwner::Ask(question) = message else {
                continue;
            };
            let recent = |(number, place): (u32, Place)| {
                live.contains(&place.sequence)
                    .then(|| (number, 1000 - place.sequence as u32))
            };
            let listed = listed.iter().filter(|listed| {
                question.segments.contains(&listed.place.segment)
                    && live.contains(&listed.place.sequence)
            });
            let answer = Answer {
                job: question.job,
                live: question.places.into_iter().filter_map(recent).collect(),
                listed: listed.cloned().collect(),
            };
            exchange.answers.push(answer).expect("room for each owner");
            // Only one owner knows what is listed.
        }
    }
}

fn job(sources: Vec<Source>, target: Option<Target>) -> Job {
    Job {
        number: 1,
        volume: 0,
        sources,
        target,
    }
}

fn target() -> Option<Target> {
    Some(Target {
        segment: TARGET,
        len_max: len_max(20, 20 << 20),
        created: CREATED,
    })
}

/// Runs the job to its report.
async fn run<B: BulkDisk>(
    disk: B,
    job: Job,
    live: Vec<u64>,
    listed: Vec<Listed>,
) -> (Arc<Exchange>, Report) {
    let exchange = Exchange::new(UUID, 1);
    assert!(exchange.jobs.push(job).is_ok());
    let mut compactor = Compactor::new(Arc::clone(&exchange), vec![disk]);
    let mut waits = 0;
    loop {
        if !compactor.step().await {
            waits += 1;
            assert!(waits < 3, "it waits for nothing but the answers");
            answer(&exchange, &live, &listed);
        }
        if let Some(report) = exchange.reports.pop() {
            assert!(!compactor.step().await, "nothing is left to do");
            let told = exchange.owners.iter().any(|owner| !owner.is_empty());
            assert!(
                told || exchange.is_quiet(),
                "a job that ended keeps nobody awake"
            );
            return (exchange, report);
        }
    }
}

/// One process on a simulated disk.
fn simulated<T: 'static, F: Future<Output = T> + 'static>(
    world: &SimWorld,
    task: impl FnOnce(SimDisk) -> F,
) -> T {
    let executor = Executor::new(Random::new(3));
    let disk = SimDisk::new(world, &executor);
    let output = Rc::new(RefCell::new(None));
    let (told, task) = (Rc::clone(&output), task(disk));
    executor.spawn(async move {
        let value = task.await;
        told.borrow_mut().replace(value);
    });
    while output.borrow().is_none() {
        assert_ne!(executor.step(world), Step::Idle, "nobody was woken");
    }
    output.take().expect("just seen")
}

fn world() -> SimWorld {
    SimWorld::new(Random::new(5), 256 << 20)
}

async fn copies_what_is_live<B: BulkDisk>(disk: B, again: B) {
    let first: Vec<u64> = (1..=12).collect();
    let sources = vec![
        make(&disk, 10, &first).await,
        make(&disk, 11, &[20, 21, 22, 23]).await,
    ];
    let live = vec![1, 2, 3, 4, 6, 9, 12, 20, 21];
    let (exchange, report) = run(disk, job(sources, target()), live.clone(), Vec::new()).await;
    let Report::Copied {
        copied: Some(copied),
        unlisted,
        ..
    } = report
    else {
        panic!("copied, not {report:?}");
    };
    assert!(unlisted.is_empty());
    assert_eq!(copied.floor, 1);
    let found = bodies(&again, TARGET, copied.len).await;
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), live);
    let moves: Vec<u64> = copied.moves[0].iter().map(|m| m.place.sequence).collect();
    assert_eq!(
        moves,
        [21, 20, 12, 9, 6, 4, 3, 2, 1],
        "the least recent come first"
    );
    let offsets: Vec<u64> = copied.moves[0].iter().map(|m| m.offset).collect();
    assert!(offsets.is_sorted());
    let compaction = exchange.compaction();
    assert_eq!((compaction.segments, compaction.mismatches), (2, 0));
    assert!(compaction.written_bytes >= compaction.read_bytes);
}

#[test]
fn live_bodies_are_copied_in_order_of_recency() {
    simulated(&world(), |disk| copies_what_is_live(disk.clone(), disk));
}

#[test]
fn a_job_that_nobody_goes_on_with_keeps_nobody_awake() {
    let exchange = simulated(&world(), |disk| async move {
        let source = make(&disk, 10, &[1, 2]).await;
        let exchange = Exchange::new(UUID, 1);
        assert!(exchange.jobs.push(job(vec![source], target())).is_ok());
        let mut compactor = Compactor::new(Arc::clone(&exchange), vec![disk]);
        while compactor.step().await {}
        exchange
    });
    assert!(matches!(exchange.owners[0].pop(), Some(ToOwner::Ask(_))));
    assert!(matches!(
        exchange.reports.pop(),
        Some(Report::Failed { .. })
    ));
    assert!(exchange.is_quiet());
}

#[test]
fn it_does_the_same_on_a_real_disk() {
    let name = format!("entrepot-compact-{}", std::process::id());
    let path: PathBuf = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&path).expect("a directory");
    let rate = Rate::new(0);
    executor().expect("io_uring is available").run(async {
        let disk = DirectDisk::new(&path, rate);
        let again = disk.another(&path);
        copies_what_is_live(disk, again).await;
    });
    let left = std::fs::read_dir(&path).expect("a directory").count();
    std::fs::remove_dir_all(&path).expect("ours");
    assert_eq!(left, 3, "two sources and a survivor segment");
}

#[test]
fn nothing_live_and_nothing_unknown_makes_no_file() {
    let world = world();
    simulated(&world, |disk| async move {
        let source = make(&disk, 10, &[1, 2]).await;
        // Another one's segment: not a footer of ours.
        let foreign = Source {
            segment: 10,
            len: source.len - PAGE_LEN,
            ..source
        };
        let (_, report) = run(disk, job(vec![foreign], target()), vec![], vec![]).await;
        let Report::Copied {
            copied, unlisted, ..
        } = report
        else {
            panic!("copied, not {report:?}");
        };
        assert!(copied.is_none());
        assert_eq!(unlisted, [10]);
    });
    assert_eq!(world.files().len(), 1);
}

#[test]
fn what_has_changed_is_not_copied_but_told() {
    let world = world();
    let source = simulated(&world, |disk| async move {
        make(&disk, 10, &[1, 2, 3, 4]).await
    });
    let places = simulated(&world, move |disk| async move {
        bodies(&disk, 10, source.len).await
    });
    // The last byte of body 3, which is followed by a page of body 4's and its 5000 bytes.
    let layout_end = source.len - 2 * PAGE_LEN;
    let body_4 = layout_end - 2 * PAGE_LEN;
    let body_3_end = body_4 - PAGE_LEN - (PAGE_LEN - 5) - 1;
    world.flip("000000000000000a.seg", body_3_end);
    let live = vec![1, 2, 3, 4];
    for target in [target(), None] {
        let live = live.clone();
        let (exchange, report) = simulated(&world, move |disk| {
            run(disk, job(vec![source], target), live, Vec::new())
        });
        match report {
            Report::Copied {
                copied: Some(copied),
                ..
            } => {
                let moved: Vec<u64> = copied.moves[0].iter().map(|m| m.place.sequence).collect();
                assert_eq!(moved, [4, 2, 1]);
            }
            Report::Scrubbed { .. } => {}
            other => panic!("not {other:?}"),
        }
        let Some(ToOwner::Found(findings)) = exchange.owners[0].pop() else {
            panic!("a finding");
        };
        let (place, sound) = (places[&3], false);
        assert_eq!(findings, [Finding { place, sound }]);
    }
}

#[test]
fn without_a_footer_the_owners_know_what_there_is() {
    let world = world();
    let source = simulated(&world, |disk| async move {
        make(&disk, 10, &[1, 2, 3, 4]).await
    });
    let listed = simulated(&world, move |disk| async move {
        let file = BulkDisk::open(&disk, "000000000000000a.seg").await;
        let file = file.expect("there");
        let sealed = Sealed {
            uuid: &UUID,
            segment: 10,
            len: source.len,
        };
        let records = footer::read(&disk, &file, &sealed).await.expect("readable");
        let listed = |record: Record| match record.kind {
            Kind::Body(entry) => Some(Listed {
                place: Place {
                    digest: entry.digest,
                    sequence: record.sequence,
                    segment: 10,
                },
                offset: entry.offset,
                len: entry.len,
                media_type: entry.media_type,
                recency: 5,
            }),
            _ => None,
        };
        let listed = records.expect("a footer").into_iter().filter_map(listed);
        listed.collect::<Vec<_>>()
    });
    // The footer, and a byte of body 2, which only its digest can tell.
    world.flip("000000000000000a.seg", source.len - 2 * PAGE_LEN + 100);
    world.flip("000000000000000a.seg", listed[1].offset);
    let live = vec![1, 2, 3, 4];
    let (exchange, report) = simulated(&world, move |disk| {
        run(disk, job(vec![source], target()), live, listed)
    });
    let Report::Copied {
        copied: Some(copied),
        unlisted,
        ..
    } = report
    else {
        panic!("copied, not {report:?}");
    };
    assert_eq!(unlisted, [10]);
    let found = simulated(&world, move |disk| async move {
        bodies(&disk, TARGET, copied.len).await
    });
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [1, 3, 4]);
    assert_eq!(exchange.compaction().unlisted_segments, 1);
}

#[test]
fn a_failing_disk_leaves_nothing_of_the_target() {
    for write in [true, false] {
        let world = world();
        let source = simulated(
            &world,
            |disk| async move { make(&disk, 10, &[1, 2, 3]).await },
        );
        let fails = 1000;
        world.set_faults(Faults {
            write: if write { fails } else { 0 },
            sync: if write { 0 } else { fails },
            ..Faults::default()
        });
        let (exchange, report) = simulated(&world, move |disk| {
            run(disk, job(vec![source], target()), vec![1, 2], Vec::new())
        });
        assert!(matches!(report, Report::Failed { job: 1, .. }));
        assert_eq!(exchange.compaction().failed, 1);
        assert_eq!(world.files().len(), 1);
    }
}

#[test]
fn a_crash_at_any_step_leaves_a_whole_copy_or_none() {
    let (mut whole, mut none) = (0, 0);
    for steps in 1..70 {
        let world = SimWorld::new(Random::new(steps), 256 << 20);
        let source = simulated(&world, |disk| async move {
            make(&disk, 10, &[1, 2, 3, 5, 8]).await
        });
        let executor = Executor::new(Random::new(steps));
        let disk = SimDisk::new(&world, &executor);
        executor.spawn(async move {
            run(disk, job(vec![source], target()), vec![1, 2, 3], vec![]).await;
        });
        for _ in 0..steps {
            executor.step(&world);
        }
        drop(executor);
        world.end(Ending::PowerLoss);
        let name = file_name(TARGET, Class::Shared);
        let target = world.files().into_iter().find(|(found, _)| *found == name);
        let Some((_, len)) = target else {
            none += 1;
            continue;
        };
        let found = simulated(&world, move |disk| async move {
            let file = Disk::open(&disk, &name).await.expect("there").0;
            let candidate = crate::scan::Candidate {
                segment: TARGET,
                small: false,
                len,
                uuid: &UUID,
                recent: true,
            };
            match crate::scan::scan(&disk, &file, candidate).await {
                Ok(crate::scan::Scan::Ours(scanned)) => scanned.records,
                _ => Vec::new(),
            }
        });
        let bodies = |record: &Record| match &record.kind {
            Kind::Body(entry) => Some((record.sequence, entry.clone())),
            _ => None,
        };
        let found: Vec<_> = found.iter().filter_map(bodies).collect();
        // Pages of entries may be cut off; what is left is right.
        match found.len() {
            0 => none += 1,
            _ => whole += 1,
        }
        for (sequence, entry) in found {
            let name = file_name(TARGET, Class::Shared);
            let read = simulated(&world, move |disk| async move {
                let file = Disk::open(&disk, &name).await.expect("there").0;
                let len = entry.len as usize;
                Disk::read(&disk, &file, entry.offset, len).await
            });
            assert!(read.expect("readable") == content(sequence));
        }
    }
    assert!(whole > 3 && none > 3, "{whole} {none}");
}
