//! What is evicted, what is not, and what a restart knows of it.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use entrepot_storage::disk::sim::{Ending, Executor, Random, SimDisk, SimWorld, Step};
use entrepot_storage::{
    Digest, Disk, FillSpec, ForgetKey, LinkKey, LinkRecord, Options, Proof, ScopeKey, Store,
    TagKey, TagKind, TagRecord, Usage, VolumeSpec, Writer,
};

const NOW: u64 = 1_800_000_000;
const CAPACITY: u64 = 64 << 20;
/// A body of this length has a segment of its own.
const LARGE: usize = 100_000;
/// The same; what such a segment has beside its body is next to nothing.
const HUGE: usize = 1_500_000;
/// Records of 1 KiB: more than a volume of this capacity keeps without a checkpoint.
const OTHERS: u64 = 3000;
/// And one of this length is small.
const SMALL: usize = 1_000;
const IDLE_AFTER: u64 = 3600;
const SMALL_IDLE_AFTER: u64 = 10 * IDLE_AFTER;
const PIN_MAX: u64 = 600;

/// A process with a store and one writer, and the time as it is told.
struct Process {
    disk: SimDisk,
    store: Arc<Store<SimDisk>>,
    writer: Writer<SimDisk>,
    now: u64,
}

fn options() -> Options {
    let mut options = Options::new(1, [3; 16]);
    options.segment_len = Some(256 << 10);
    options.small_max = SMALL as u32;
    options.idle_after = IDLE_AFTER;
    options.small_idle_after = SMALL_IDLE_AFTER;
    options.pin_max = PIN_MAX;
    options
}

/// Runs `task` with the store as the last process left it, then the machine loses power.
fn process<F: Future<Output = ()> + 'static>(
    world: &SimWorld,
    options: Options,
    now: u64,
    task: impl FnOnce(Process) -> F + 'static,
) {
    let executor = Executor::new(Random::new(11));
    let disk = SimDisk::new(world, &executor);
    let done = Rc::new(RefCell::new(false));
    let told = Rc::clone(&done);
    executor.spawn(async move {
        let volume = VolumeSpec {
            disk: disk.clone(),
            capacity: CAPACITY,
        };
        let (store, _) = Store::open(vec![volume], options, now)
            .await
            .expect("opens");
        let writer = store.writer(vec![disk.clone()], 0);
        task(Process {
            disk,
            store,
            writer,
            now,
        })
        .await;
        told.replace(true);
    });
    while !*done.borrow() {
        assert_ne!(executor.step(world), Step::Idle, "nobody was woken");
    }
    drop(executor);
    world.end(Ending::PowerLoss);
}

fn roomy() -> SimWorld {
    SimWorld::new(Random::new(7), 4 * CAPACITY)
}

fn content(name: u64, len: usize) -> Vec<u8> {
    let mut content = vec![7; len];
    content[..8].copy_from_slice(&name.to_le_bytes());
    content
}

fn digest(name: u64, len: usize) -> Digest {
    Digest::sha256(&content(name, len))
}

impl Process {
    async fn put(&self, name: u64, len: usize) {
        let content = content(name, len);
        let spec = FillSpec {
            digest: Digest::sha256(&content),
            length: Some(len as u64),
            media_type: None,
        };
        let mut fill = self.writer.fill(spec).await.expect("admitted");
        fill.write(content).await.expect("written");
        fill.finish(self.now).await.expect("verified");
    }

    /// Three groups: bodies, entries, and the footers of full segments.
    async fn settle(&self) {
        for _ in 0..3 {
            self.writer.commit(self.now).await.expect("committed");
        }
        assert_eq!(self.writer.uncommitted(), 0);
    }

    async fn put_durably(&self, names: impl IntoIterator<Item = u64>, len: usize) {
        for name in names {
            self.put(name, len).await;
        }
        self.settle().await;
    }

    /// Lets time pass, a minute at a time.
    async fn wait(&mut self, seconds: u64) {
        let until = self.now + seconds;
        while self.now < until {
            self.now = until.min(self.now + 60);
            self.writer.maintain(self.now).await;
        }
    }

    fn has(&self, name: u64, len: usize) -> bool {
        self.store.body(&digest(name, len)).is_some()
    }

    fn usage(&self) -> Usage {
        self.store.usage()
    }
}

#[test]
fn what_nobody_asks_for_goes() {
    process(&roomy(), options(), NOW, async |mut process| {
        process.put_durably([1, 2], LARGE).await;
        process.put_durably([3], SMALL).await;
        let body = process.store.body(&digest(1, LARGE)).expect("there");
        process.wait(IDLE_AFTER / 2).await;
        assert!(process.has(2, LARGE), "and is young again");
        process.wait(IDLE_AFTER / 2 + 120).await;
        assert!(!process.has(1, LARGE) && process.has(2, LARGE) && process.has(3, SMALL));
        let evicted = process.usage().evicted_idle;
        assert_eq!((evicted.bodies, evicted.bytes), (1, LARGE as u64));
        let read = process
            .disk
            .read(body.lease.file(), body.lease.offset(), LARGE);
        assert!(read.await.expect("no faults") == content(1, LARGE), "S5");
        assert!(process.usage().pinned > LARGE as u64);
        drop(body);
        assert_eq!(process.usage().pinned, 0);
        // A day, and nothing that is asked for now and then.
        for _ in 0..24 {
            process.wait(IDLE_AFTER).await;
            assert!(process.has(2, LARGE), "in use");
        }
        assert!(!process.has(3, SMALL), "small ones are not kept for ever");
    });
}

#[test]
fn a_jump_of_the_clock_makes_nothing_old() {
    process(&roomy(), options(), NOW, async |mut process| {
        process.put_durably([1], LARGE).await;
        for jump in [1 << 30, 1 << 20, 1 << 31] {
            process.now = NOW + jump;
            process.writer.maintain(process.now).await;
        }
        process.wait(IDLE_AFTER - 600).await;
        assert_eq!(process.usage().evicted_idle.bodies, 0);
        process.wait(1200).await;
        assert_eq!(process.usage().evicted_idle.bodies, 1, "nor immortal");
    });
}

#[test]
fn a_restart_knows_when_bodies_were_asked_for() {
    let world = roomy();
    process(&world, options(), NOW, async |mut process| {
        process.put_durably([1, 2], LARGE).await;
        process.wait(IDLE_AFTER / 2).await;
        assert!(process.has(2, LARGE));
        process.wait(120).await;
    });
    // A long downtime counts for nothing.
    process(&world, options(), NOW + (1 << 25), async |mut process| {
        process.wait(IDLE_AFTER / 2).await;
        assert_eq!(process.usage().evicted_idle.bodies, 1);
        assert!(!process.has(1, LARGE) && process.has(2, LARGE));
    });
}

#[test]
fn restarts_make_nothing_immortal() {
    let world = roomy();
    process(&world, options(), NOW, async |process| {
        // Its times are not written: the process ends within the minute.
        process.put_durably([1], LARGE).await;
    });
    for restart in 1..=8 {
        process(&world, options(), NOW + restart, async |mut process| {
            process.wait(IDLE_AFTER / 4).await;
        });
    }
    process(&world, options(), NOW, async |process| {
        assert!(!process.has(1, LARGE));
    });
}

#[test]
fn under_pressure_the_oldest_go() {
    process(&roomy(), options(), NOW, async |mut process| {
        let mut names = 0;
        let gone = |process: &Process| {
            let usage = process.usage();
            // Whichever comes first: on so small a store one body is more than is between the marks.
            usage.evicted_pressure.bodies + usage.evicted_room.bodies
        };
        while gone(&process) == 0 {
            process.put_durably([names], HUGE).await;
            process.wait(30).await;
            names += 1;
            assert!(names < 60, "that is more than it can hold");
        }
        // Of those of about the same age lots are drawn, until enough is gone.
        process.wait(600).await;
        let usage = process.usage();
        assert!(usage.used - usage.dead <= CAPACITY * 97 / 100, "{usage:?}");
        let gone = gone(&process);
        assert!((1..=6).contains(&gone), "{usage:?}");
        assert_eq!(usage.bodies, names - gone);
        // Ages within an eighth are as good as equal.
        let kept = |name: &u64| process.has(*name, HUGE);
        assert!((0..names / 2).filter(|name| !kept(name)).count() as u64 == gone);
        assert!((names / 2..names).all(|name| kept(&name)));
        let bodies = process.usage().bodies;
        process.wait(60).await;
        assert!(
            process.usage().bodies + 1 >= bodies,
            "near the lower mark it ends"
        );
    });
}

#[test]
fn small_bodies_stay_under_pressure() {
    process(&roomy(), options(), NOW, async |mut process| {
        process.put_durably(0..20, SMALL).await;
        process.wait(600).await;
        // More than it can hold.
        for name in 100..160 {
            process.put_durably([name], HUGE).await;
            process.wait(10).await;
        }
        let usage = process.usage();
        let evicted = usage.evicted_pressure.bodies + usage.evicted_room.bodies;
        assert!(evicted >= 15, "{usage:?}");
        assert!((0..20).all(|name| process.has(name, SMALL)), "{usage:?}");
    });
}

#[test]
fn a_full_file_system_gets_room_from_the_longest_unused() {
    let world = SimWorld::new(Random::new(7), 2 << 20);
    process(&world, options(), NOW, async |mut process| {
        let mut names = 0;
        while process.usage().evicted_room.bodies == 0 {
            process.put_durably([names], LARGE).await;
            process.wait(1).await;
            names += 1;
            assert!(names < 100, "it is far smaller");
        }
        assert!(!process.has(0, LARGE) && process.has(1, LARGE) && process.has(names - 1, LARGE));
        // What is read cannot make room.
        let held = process.store.body(&digest(1, LARGE)).expect("there");
        for name in names..names + 10 {
            process.wait(1).await;
            process.put_durably([name], LARGE).await;
        }
        assert!(process.has(1, LARGE), "its reader is not disturbed");
        assert!(!held.lease.revoked() && process.usage().revoked == 0);
    });
}

#[test]
fn a_slow_reader_loses_what_is_gone_long_since() {
    process(&roomy(), options(), NOW, async |mut process| {
        process.put_durably([1, 2], LARGE).await;
        let body = process.store.body(&digest(1, LARGE)).expect("there");
        process.wait(IDLE_AFTER + 120).await;
        assert!(!process.has(1, LARGE) && !body.lease.revoked());
        process.wait(PIN_MAX - 120).await;
        assert!(!body.lease.revoked());
        process.wait(240).await;
        assert!(body.lease.revoked());
        assert_eq!(process.usage().revoked, 1);
    });
}

fn tag_key(name: u64) -> TagKey {
    TagKey {
        project: "p".into(),
        repository: "r".into(),
        kind: TagKind::Tag,
        name: name.to_string().into(),
    }
}

#[test]
fn tags_and_links_go_when_nobody_uses_them() {
    process(&roomy(), options(), NOW, async |mut process| {
        process.put_durably([1], SMALL).await;
        let digest = digest(1, SMALL);
        for name in 0..2 {
            let tag = TagRecord {
                digest,
                origin: "https://a".into(),
                checked: NOW,
                note: "".into(),
            };
            process
                .writer
                .put_tag(tag_key(name), tag)
                .await
                .expect("put");
        }
        let link = LinkKey {
            project: "p".into(),
            repository: "r".into(),
            digest,
        };
        let proven = LinkRecord {
            origin: "https://a".into(),
            proof: Proof::Fetched,
            at: NOW,
        };
        let put = process.writer.put_link(link.clone(), proven);
        put.await.expect("put");
        process.settle().await;
        process.wait(SMALL_IDLE_AFTER / 2).await;
        assert!(process.store.tag(&tag_key(1)).is_some());
        process.wait(SMALL_IDLE_AFTER / 2 + 120).await;
        assert!(process.store.tag(&tag_key(0)).is_none());
        assert!(process.store.tag(&tag_key(1)).is_some());
        assert!(process.store.link(&link).is_none());
        assert_eq!(process.usage().evicted_records, 2);
    });
}

#[test]
fn tags_have_a_bound() {
    let mut options = options();
    options.small_records_max = 100;
    process(&roomy(), options, NOW, async |mut process| {
        process.put_durably([1], SMALL).await;
        for name in 0..120 {
            let tag = TagRecord {
                digest: digest(1, SMALL),
                origin: "https://a".into(),
                checked: NOW,
                note: "".into(),
            };
            process
                .writer
                .put_tag(tag_key(name), tag)
                .await
                .expect("put");
            process.wait(60).await;
        }
        let usage = process.usage();
        assert!(usage.tags <= 100, "{usage:?}");
        assert_eq!(usage.evicted_records, 120 - usage.tags);
        assert!((100..120).all(|name| process.store.tag(&tag_key(name)).is_some()));
    });
}

fn link_key() -> LinkKey {
    LinkKey {
        project: "p".into(),
        repository: "r".into(),
        digest: digest(1, SMALL),
    }
}

impl Process {
    /// A body, a tag and a link to it, durable.
    async fn put_names(&self) {
        self.put_durably([1], SMALL).await;
        let tag = TagRecord {
            digest: digest(1, SMALL),
            origin: "https://a".into(),
            checked: self.now,
            note: "".into(),
        };
        self.writer.put_tag(tag_key(1), tag).await.expect("put");
        let link = LinkRecord {
            origin: "https://a".into(),
            proof: Proof::Fetched,
            at: self.now,
        };
        self.writer.put_link(link_key(), link).await.expect("put");
        self.settle().await;
    }

    /// Enough records elsewhere that a checkpoint is due.
    async fn put_others(&mut self) {
        for name in 0..OTHERS {
            let key = LinkKey {
                repository: "s".into(),
                digest: digest(name, SMALL),
                ..link_key()
            };
            let link = LinkRecord {
                origin: "o".repeat(1000).into(),
                proof: Proof::Fetched,
                at: self.now,
            };
            self.writer.put_link(key, link).await.expect("put");
        }
        self.settle().await;
        self.wait(120).await;
    }

    fn names(&self) -> (bool, bool) {
        let tag = self.store.tag(&tag_key(1)).is_some();
        (tag, self.store.link(&link_key()).is_some())
    }
}

/// Names are evicted, then their repository or project is purged; power is lost at once, or
/// after the small log was written anew.
#[test]
fn a_purge_of_a_scope_kills_what_was_evicted() {
    for repository in [Some("r"), None] {
        for checkpoints in [false, true] {
            let world = roomy();
            process(&world, options(), NOW, async move |mut process| {
                process.put_names().await;
                process.wait(SMALL_IDLE_AFTER + 120).await;
                assert_eq!(process.names(), (false, false), "evicted");
                let scope = ForgetKey::Scope(ScopeKey {
                    project: "p".into(),
                    repository: repository.map(Into::into),
                });
                process.writer.forget(scope).await.expect("forgotten");
                if checkpoints {
                    process.put_others().await;
                }
            });
            process(&world, options(), NOW, async |process| {
                assert_eq!(process.names(), (false, false), "{:?}", process.usage());
                process.put_names().await;
            });
            process(&world, options(), NOW, async |process| {
                assert_eq!(process.names(), (true, true), "what came later lives");
            });
        }
    }
}
