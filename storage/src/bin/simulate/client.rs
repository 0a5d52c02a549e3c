//! What the clients of a simulated process do, and what they must see.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use entrepot_storage::disk::sim::{Executor, Faults, Random, SimDisk, SimFile, SimWorld};
use entrepot_storage::{
    Body, Compactor, Digest, Disk, ForgetKey, Store, WriteError, Writer, owner, repository_slice,
};

use super::fills::{Feed, Source};
use super::model::{BodyState, FileId, Model, Presence};
use super::named::repository;
use super::plan::{KINDS, Kind, Media, Plan};
use super::steps::{Counts, Done};

/// Leases that are kept while everything else goes on.
const HELD_MAX: usize = 6;
/// Groups until nothing is uncommitted: two for bodies, more for tags of other writers' bodies.
const DRAIN_GROUPS: usize = 5;

/// One process and those who use it.
pub struct Process {
    pub plan: Rc<Plan>,
    pub world: SimWorld,
    pub executor: std::rc::Weak<Executor>,
    /// By volume.
    pub disks: Vec<SimDisk>,
    pub store: Arc<Store<SimDisk>>,
    pub writers: Vec<Writer<SimDisk>>,
    pub model: Rc<RefCell<Model>>,
    pub counts: Rc<RefCell<Counts>>,
    pub random: RefCell<Random>,
    pub clock: Rc<Cell<u64>>,
    pub forgetting: Rc<Cell<u32>>,
    pub maintaining: Rc<Cell<u32>>,
    pub scoping: Rc<Cell<bool>>,
    pub returning: Rc<Cell<bool>>,
    /// The one drive that may have missed something, and nobody can tell: the others are there at
    /// every start, until all have everything again.
    pub stale: Rc<Cell<usize>>,
    /// That drive does not work.
    pub broken: Cell<bool>,
    /// What it does when it works.
    pub repaired: Cell<Faults>,
    /// The store began without any drive that had every small record.
    pub anew: Cell<bool>,
    /// Some of its segments could not be read when it was brought back last.
    pub in_part: Cell<bool>,
    /// It took several attempts.
    pub reluctant: Cell<bool>,
    /// It ends before anything was mended.
    pub hurried: Cell<bool>,
    /// The time that maintenance was told last.
    pub maintained: Cell<u64>,
    /// Resting between its bursts.
    pub compactor: RefCell<Option<Compactor<SimDisk>>>,
    /// Errors of each drive before this process.
    pub errors_before: Vec<u64>,
    /// Bodies were copied to other files before: where they are is known only when they are seen.
    pub moved: bool,
    pub operations_left: Cell<u64>,
    pub clients: Cell<usize>,
    pub followers: Cell<usize>,
    /// Who waits for the clients.
    pub waiting: RefCell<Option<Waker>>,
    pub held: RefCell<Vec<(usize, Body<SimDisk>)>>,
    /// Evictions that the model knows of.
    pub evicted: Cell<u64>,
    pub running: RefCell<Vec<Source>>,
}

impl Process {
    pub fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        if let Some(executor) = self.executor.upgrade() {
            executor.spawn(task);
        }
    }

    /// Whether the drive failed in this process.
    pub fn failed(&self, drive: usize) -> bool {
        self.world.drive_injected(drive).errors() > self.errors_before[drive]
    }

    pub fn drives(&self) -> std::ops::Range<usize> {
        0..self.disks.len()
    }

    /// Whether some drive failed in this process.
    pub fn lenient(&self) -> bool {
        self.drives().any(|drive| self.failed(drive))
    }

    /// Whether the body may be gone: the drive it was seen on last has failed, or the media
    /// damaged its file.
    pub fn lost(&self, body: &BodyState) -> bool {
        if body.files.is_empty() {
            return self.plan.media != Media::Sound || self.lenient();
        }
        body.files.iter().any(|file| self.file_lost(*file))
    }

    fn file_lost(&self, (drive, number): FileId) -> bool {
        let moved = self.moved || self.store.exchange().compaction().written_bytes > 0;
        let moved = moved && drive == self.plan.weak;
        let damaged = moved || self.world.file_damaged(drive, number);
        self.failed(drive) || self.plan.media != Media::Sound && damaged
    }

    /// Whether a refusal for lack of space is to be expected.
    pub fn may_be_full(&self) -> bool {
        self.plan.may_be_full()
    }

    pub fn now(&self) -> u64 {
        let step = self.below(40);
        self.model.borrow_mut().ages.latest += step;
        self.clock.set(self.clock.get() + step);
        self.clock.get()
    }

    pub fn below(&self, end: u64) -> u64 {
        self.random.borrow_mut().below(end)
    }

    pub fn chance(&self, parts: u64) -> bool {
        self.random.borrow_mut().chance(parts)
    }

    pub fn pick_content(&self) -> usize {
        let len = self.model.borrow().contents.len();
        // Some are asked for far more often.
        let end = if self.chance(500) {
            len.div_ceil(5)
        } else {
            len
        };
        self.below(end as u64) as usize
    }

    pub fn digest(&self, content: usize) -> Digest {
        Digest::parse(&self.model.borrow().contents[content].digest).expect("the oracle's digest")
    }

    pub fn owner(&self, digest: &Digest) -> &Writer<SimDisk> {
        &self.writers[owner(digest.slice(), self.writers.len())]
    }

    pub fn repository_writer(&self, repository: &str) -> usize {
        owner(repository_slice("p", repository), self.writers.len())
    }

    pub async fn client(self: Rc<Self>) {
        while self.operations_left.get() > 0 {
            self.operations_left.set(self.operations_left.get() - 1);
            self.counts.borrow_mut().operations += 1;
            self.operation().await;
            let usage = self.store.usage();
            assert!(
                usage.used <= usage.capacity || self.plan.tight,
                "over budget: {usage:?}"
            );
        }
        self.clients.set(self.clients.get() - 1);
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }

    pub async fn clients_gone(&self) {
        poll_fn(|cx| {
            if self.clients.get() == 0 {
                return Poll::Ready(());
            }
            self.waiting.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Nothing is left to do and nobody works.
    pub fn check_at_rest(&self) {
        assert_eq!(
            self.followers.get(),
            0,
            "followers still wait for fills that ended"
        );
        if self.world.injected().errors() == 0 && self.plan.media == Media::Sound {
            assert!(self.accounted(), "what counts as used is what is there");
        }
    }

    /// Whether what counts as used is what is there: no job is under way, and none was lost.
    pub fn accounted(&self) -> bool {
        let there = self.world.bytes_of(".seg") + self.world.bytes_of(".rec");
        self.store.usage().used == there
    }

    async fn operation(self: &Rc<Self>) {
        let weights = self.plan.weights;
        let mut drawn = self.below(weights.iter().sum());
        let index = weights
            .iter()
            .position(|weight| match drawn.checked_sub(*weight) {
                Some(rest) => {
                    drawn = rest;
                    false
                }
                None => true,
            });
        let kind = KINDS[index.expect("drawn below the sum")];
        self.counts.borrow_mut().count(Done::Asked(kind));
        match kind {
            Kind::Right => self.fill(Feed::Right).await,
            Kind::Wrong => self.fill(Feed::Wrong).await,
            Kind::Short => self.fill(Feed::Short).await,
            Kind::Long => self.fill(Feed::Long).await,
            Kind::Dropped => self.fill(Feed::Dropped).await,
            Kind::Join => self.join(),
            Kind::LookUp => self.look_up(self.pick_content()).await,
            Kind::PutTag => self.put_tag(),
            Kind::LookAtTags => self.look_at_tags(),
            Kind::PutLink => self.put_link(),
            Kind::ForgetBody => self.forget_body(self.pick_content()).await,
            Kind::ForgetTag => self.forget_tag().await,
            Kind::ForgetLink => self.forget_link().await,
            Kind::Commit => {
                self.commit(self.below(self.writers.len() as u64) as usize)
                    .await
            }
            Kind::Drain => self.drain().await,
            Kind::Seal => self.seal().await,
            Kind::Load => self.load().await,
            Kind::Maintain => self.maintain().await,
            Kind::Compact => self.compact(),
            Kind::Jump => self.jump(),
            Kind::CheckHeld => self.check_held().await,
            Kind::ForgetScope => self.forget_scope().await,
            Kind::Break => self.break_drive(),
            Kind::Mend => self.mend_drive().await,
        }
    }

    pub fn hold(&self, content: usize, body: Body<SimDisk>) {
        let mut held = self.held.borrow_mut();
        if held.len() >= HELD_MAX {
            held.remove(0);
        }
        held.push((content, body));
    }

    /// Of a body that may be served: it is right, or the media changed it where nobody looks.
    pub async fn check_body(&self, content: usize, body: &Body<SimDisk>) {
        self.check_body_since(content, body, 0).await;
    }

    /// The same of a body that was verified when so many operations had been issued.
    async fn check_body_since(&self, content: usize, body: &Body<SimDisk>, since: u64) {
        let expected = {
            let model = self.model.borrow();
            assert_eq!(
                body.media_type.as_deref(),
                model.contents[content].media_type.as_deref()
            );
            model.contents[content].bytes.clone()
        };
        assert_eq!(body.len, expected.len() as u64, "length of {content}");
        if let Some(bytes) = &body.bytes {
            assert!(*bytes == expected, "wrong bytes in RAM: {content}");
        }
        let file = body.lease.file();
        let disk = &self.disks[file.drive()];
        let read = disk.read(file, body.lease.offset(), expected.len()).await;
        let place = (file.drive(), file.number());
        self.model.borrow_mut().seen(content, place);
        if let Ok(read) = read
            && !body.lease.revoked()
        {
            self.check_bytes(file, body.lease.offset(), &read, &expected, since);
            self.counts.borrow_mut().checked_bodies += 1;
        }
    }

    /// A byte that was read from a lease is right, or the media changed that very byte, and not
    /// before `since` operations were issued.
    pub fn check_bytes(
        &self,
        file: &SimFile,
        offset: u64,
        read: &[u8],
        expected: &[u8],
        since: u64,
    ) {
        if read == expected {
            return;
        }
        self.counts.borrow_mut().decayed_bodies += 1;
        for (at, byte) in expected.iter().enumerate() {
            let at_file = offset + at as u64;
            assert!(
                read.get(at) == Some(byte) || file.damaged(at_file..at_file + 1, since),
                "wrong byte at {at} of {}, and no fault of the media",
                expected.len()
            );
        }
    }

    pub fn evicted(&self) -> u64 {
        let usage = self.store.usage();
        usage.evicted_idle.bodies + usage.evicted_pressure.bodies + usage.evicted_room.bodies
    }

    /// Bodies that the store gave up for others: as many may be missing as it says.
    pub fn note_evicted(&self) {
        let evicted = self.evicted();
        // What the media cost is missing too, and is counted with them.
        let strict = !self.lenient() && self.plan.media == Media::Sound;
        if strict && evicted == self.evicted.get() {
            return;
        }
        let count = self.model.borrow().contents.len();
        for content in 0..count {
            let there = self.model.borrow().bodies[content].now == Presence::Present;
            if there && self.store.body(&self.digest(content)).is_none() {
                let state = self.model.borrow().bodies[content].clone();
                assert!(
                    self.evictable(content, &state) || self.lost(&state),
                    "body {content} was evicted too early: {state:?}"
                );
                self.evicted.set(self.evicted.get() + 1);
                self.model.borrow_mut().evicted(content);
            }
        }
        assert!(
            self.evicted.get() <= evicted || self.lenient() || self.plan.media != Media::Sound,
            "more is missing than was evicted"
        );
    }

    pub async fn look_up(&self, content: usize) {
        self.note_evicted();
        let found = self.store.body(&self.digest(content));
        let state = self.model.borrow().bodies[content].clone();
        if found.is_some() {
            self.model.borrow_mut().used(content);
        }
        match state.now {
            Presence::Absent => assert!(found.is_none(), "body {content} is there"),
            Presence::Present => {
                assert!(
                    found.is_some() || self.lost(&state),
                    "body {content} is missing: {state:?}"
                );
            }
            Presence::Maybe => {}
        }
        if let Some(body) = found {
            if !self.check_found(content, &body).await {
                return;
            }
            if self.chance(100) {
                self.hold(content, body);
            }
        }
    }

    /// Verifies the body first if it asks for that. Whether it may be served.
    pub async fn check_found(&self, content: usize, body: &Body<SimDisk>) -> bool {
        if !body.unverified {
            self.check_body(content, body).await;
            return true;
        }
        let since = self.world.issued();
        let digest = self.digest(content);
        let file = body.lease.file();
        let place = (file.drive(), file.number());
        self.model.borrow_mut().seen(content, place);
        let (before, purges) = {
            let model = self.model.borrow();
            (model.bodies[content].version, model.bodies[content].purges)
        };
        if self.owner(&digest).verify(&digest).await {
            self.check_body_since(content, body, since).await;
            return true;
        }
        self.note_evicted();
        let state = self.model.borrow().bodies[content].clone();
        let same = (state.version, state.purges) == (before, purges);
        assert!(
            !same || self.lost(&state),
            "body {content} was not verified"
        );
        false
    }

    async fn check_held(&self) {
        let held = self.held.borrow().clone();
        for (content, body) in held {
            self.check_body(content, &body).await;
        }
        let mut held = self.held.borrow_mut();
        if !held.is_empty() {
            let index = self.below(held.len() as u64) as usize;
            held.remove(index);
        }
    }

    pub async fn forget_body(&self, content: usize) {
        let digest = self.digest(content);
        let purged_away = self.kept_offline(content);
        let fills = self.model.borrow_mut().forget_begins(content);
        let outcome = self
            .forget(self.owner(&digest), ForgetKey::Body(digest))
            .await;
        self.model
            .borrow_mut()
            .forget_ends(content, fills, outcome.is_ok());
        if purged_away && outcome.is_ok() {
            self.counts.borrow_mut().count(Done::PurgedOffline);
        }
        if outcome.is_ok() {
            self.hurry();
        }
        let gone = self.model.borrow().bodies[content].now == Presence::Absent;
        assert!(
            !gone || self.store.body(&digest).is_none(),
            "{content} is still there"
        );
    }

    pub async fn forget(
        &self,
        writer: &Writer<SimDisk>,
        what: ForgetKey,
    ) -> Result<(), WriteError> {
        self.forget_all(writer, vec![what]).await
    }

    pub async fn forget_all(
        &self,
        writer: &Writer<SimDisk>,
        all: Vec<ForgetKey>,
    ) -> Result<(), WriteError> {
        self.forgetting.set(self.forgetting.get() + 1);
        let outcome = writer.forget_all(all).await;
        self.forgetting.set(self.forgetting.get() - 1);
        self.check_write(outcome);
        outcome
    }

    fn check_write(&self, outcome: Result<(), WriteError>) {
        match outcome {
            Ok(()) => {}
            Err(WriteError::DiskFailed) => assert!(self.lenient(), "the disk did not fail"),
            Err(WriteError::Full) => assert!(self.may_be_full(), "not full"),
            Err(error) => panic!("{error}"),
        }
    }

    async fn commit(&self, number: usize) {
        let writer = &self.writers[number];
        if self.chance(50) {
            // Nobody waits for it: it goes on, and nothing is known of it.
            let _ = self.cut(writer.commit(self.now())).await;
            return;
        }
        let count = self.writers.len();
        let group = self.model.borrow().group(
            |content| {
                Digest::parse(&content.digest).is_ok_and(|d| owner(d.slice(), count) == number)
            },
            |key| self.repository_writer(repository(key)) == number,
        );
        let outcome = writer.commit(self.now()).await;
        self.check_write(outcome);
        self.note_evicted();
        if outcome.is_ok() {
            let all = writer.uncommitted() == 0;
            let mut model = self.model.borrow_mut();
            model.committed(group, all, |body| self.lost(body) || self.may_evict());
        }
    }

    async fn drain(&self) {
        for _ in 0..DRAIN_GROUPS {
            for number in 0..self.writers.len() {
                self.commit(number).await;
            }
        }
    }

    /// With nobody else about, the groups of a drain make everything durable.
    pub async fn settle(&self) {
        for _ in 0..DRAIN_GROUPS {
            for writer in &self.writers {
                self.check_write(writer.commit(self.now()).await);
            }
        }
        self.drain().await;
        for writer in &self.writers {
            let uncommitted = writer.uncommitted();
            assert!(
                uncommitted == 0 || self.lenient() || self.may_be_full(),
                "{uncommitted}"
            );
        }
    }

    pub async fn seal(&self) {
        let number = self.below(self.writers.len() as u64) as usize;
        let outcome = self.writers[number].seal_all(self.now()).await;
        self.check_write(outcome);
    }

    async fn load(&self) {
        let content = self.pick_content();
        let digest = self.digest(content);
        if let Some(bytes) = self.owner(&digest).load(&digest).await {
            assert!(
                *bytes == self.model.borrow().contents[content].bytes,
                "loaded {content}"
            );
        }
    }

    /// Polls a future a few times and then drops it.
    pub async fn cut<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut polls = self.below(6);
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polls == 0 => Poll::Ready(None),
            Poll::Pending => {
                polls -= 1;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        })
        .await
    }
}
