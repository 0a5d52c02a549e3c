//! What the clients of a simulated process do, and what they must see.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use entrepot_storage::disk::sim::{Executor, Random, SimDisk, SimWorld};
use entrepot_storage::{
    Body, Digest, Disk, Fill, FillError, FillSpec, FillState, ForgetKey, LinkKey, LinkRecord,
    Proof, Refusal, Store, TagKey, TagKind, TagRecord, Watermark, WriteError, Writer,
    repository_slice,
};

use super::model::{Content, Model, Presence, Value};
use super::run::Plan;
use super::steps::Counts;

/// Leases that are kept while everything else goes on.
const HELD_MAX: usize = 6;
/// Groups until nothing is uncommitted: two for bodies, more for tags of other writers' bodies.
const DRAIN_GROUPS: usize = 5;

/// One process and those who use it.
pub struct Process {
    pub plan: Rc<Plan>,
    pub world: SimWorld,
    pub executor: std::rc::Weak<Executor>,
    pub disk: SimDisk,
    pub store: Arc<Store<SimDisk>>,
    pub writers: Vec<Writer<SimDisk>>,
    pub model: Rc<RefCell<Model>>,
    pub counts: Rc<RefCell<Counts>>,
    pub random: RefCell<Random>,
    pub clock: Rc<Cell<u64>>,
    pub forgetting: Rc<Cell<u32>>,
    /// Faults injected before this process.
    pub faults_before: u64,
    pub operations_left: Cell<u64>,
    pub clients: Cell<usize>,
    pub followers: Cell<usize>,
    /// Who waits for the clients.
    pub waiting: RefCell<Option<Waker>>,
    pub held: RefCell<Vec<(usize, Body<SimDisk>)>>,
    pub running: RefCell<Vec<Source>>,
}

/// A running fill, for those who join it.
#[derive(Clone)]
pub struct Source {
    watermark: Arc<Watermark<SimDisk>>,
    fed: Rc<Vec<u8>>,
    taken: Rc<Cell<u64>>,
    length: Option<u64>,
    right: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feed {
    Right,
    Wrong,
    Short,
    Long,
    Dropped,
}

impl Process {
    pub fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        if let Some(executor) = self.executor.upgrade() {
            executor.spawn(task);
        }
    }

    pub fn lenient(&self) -> bool {
        self.world.faults_injected() > self.faults_before
    }

    /// Whether a refusal for lack of space is to be expected.
    fn may_be_full(&self) -> bool {
        self.plan.tight || self.plan.faults.full > 0
    }

    fn now(&self) -> u64 {
        self.clock.set(self.clock.get() + self.below(40));
        self.clock.get()
    }

    fn below(&self, end: u64) -> u64 {
        self.random.borrow_mut().below(end)
    }

    fn chance(&self, parts: u64) -> bool {
        self.random.borrow_mut().chance(parts)
    }

    fn pick_content(&self) -> usize {
        let len = self.model.borrow().contents.len();
        // Some are asked for far more often.
        let end = if self.chance(500) {
            len.div_ceil(5)
        } else {
            len
        };
        self.below(end as u64) as usize
    }

    fn digest(&self, content: usize) -> Digest {
        Digest::parse(&self.model.borrow().contents[content].digest).expect("the oracle's digest")
    }

    fn owner(&self, digest: &Digest) -> &Writer<SimDisk> {
        &self.writers[digest.slice() % self.writers.len()]
    }

    fn repository_writer(&self, repository: &str) -> usize {
        repository_slice("p", repository) % self.writers.len()
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
        if self.world.faults_injected() == 0 {
            let used = self.store.usage().used;
            let there = self.world.bytes_of(".seg") + self.world.bytes_of(".rec");
            assert_eq!(used, there, "what counts as used is what is there");
        }
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
        match index.expect("drawn below the sum") {
            0 => self.fill(Feed::Right).await,
            1 => self.fill(Feed::Wrong).await,
            2 => self.fill(Feed::Short).await,
            3 => self.fill(Feed::Long).await,
            4 => self.fill(Feed::Dropped).await,
            5 => self.join(),
            6 => self.look_up(self.pick_content()).await,
            7 => self.put_tag(),
            8 => self.look_at_tags(),
            9 => self.put_link(),
            10 => self.forget_body().await,
            11 => self.forget_tag().await,
            12 => self.forget_link().await,
            13 => {
                self.commit(self.below(self.writers.len() as u64) as usize)
                    .await
            }
            14 => self.drain().await,
            15 => self.seal().await,
            16 => self.load().await,
            _ => self.check_held().await,
        }
    }

    async fn fill(self: &Rc<Self>, feed: Feed) {
        let content = self.pick_content();
        let digest = self.digest(content);
        let (bytes, media_type) = {
            let model = self.model.borrow();
            let Content {
                bytes, media_type, ..
            } = &model.contents[content];
            (bytes.clone(), media_type.clone())
        };
        let fed = Rc::new(self.spoil(&bytes, feed));
        let known = self.chance(700);
        let length = known.then_some(bytes.len() as u64);
        let staging = self.chance(80);
        // A purge that is under way now may stop it too.
        let purges = self.model.borrow().bodies[content].purges_ended();
        let spec = FillSpec {
            digest,
            length,
            media_type: media_type.as_deref(),
        };
        let writer = self.owner(&digest);
        let made = match (staging, self.chance(30)) {
            (true, _) => writer.staging(spec).await,
            (false, false) => writer.fill(spec).await,
            (false, true) => match self.cut(writer.fill(spec)).await {
                Some(made) => made,
                None => return,
            },
        };
        let fill = match made {
            Ok(fill) => fill,
            Err(refusal) => return self.check_refusal(refusal, staging),
        };
        // From here on it runs: a purge that is under way may or may not stop it.
        self.model.borrow_mut().bodies[content].fills += u64::from(!staging);
        let right = *fed == bytes;
        let taken = Rc::new(Cell::new(0));
        let source = Source {
            watermark: fill.watermark(),
            fed,
            taken,
            length,
            right,
        };
        self.running.borrow_mut().push(source.clone());
        for _ in 0..self.below(3) {
            self.follow(source.clone());
        }
        let outcome = self.feed(fill, &source, feed, content, staging).await;
        self.running
            .borrow_mut()
            .retain(|other| !Arc::ptr_eq(&other.watermark, &source.watermark));
        if let Some(outcome) = outcome {
            self.check_end(outcome, &source, content, purges, staging)
                .await;
        }
    }

    fn spoil(&self, bytes: &[u8], feed: Feed) -> Vec<u8> {
        let mut fed = bytes.to_vec();
        match feed {
            Feed::Wrong if !fed.is_empty() => {
                let at = self.below(fed.len() as u64) as usize;
                fed[at] ^= 1 << self.below(8);
            }
            Feed::Short => fed.truncate(self.below(fed.len() as u64 + 1) as usize),
            Feed::Long => fed.extend_from_slice(&[7; 10]),
            _ => {}
        }
        fed
    }

    /// `None`: dropped on the way, by intent.
    async fn feed(
        self: &Rc<Self>,
        mut fill: Fill<SimDisk>,
        source: &Source,
        feed: Feed,
        content: usize,
        staging: bool,
    ) -> Option<Result<Body<SimDisk>, FillError>> {
        let fed = &source.fed;
        let piece_max = (fed.len() as u64 / (1 + self.below(8))).max(1);
        let mut at = 0;
        while at < fed.len() {
            let len = (1 + self.below(piece_max) as usize).min(fed.len() - at);
            let piece = fed[at..at + len].to_vec();
            source.taken.set((at + len) as u64);
            let written = if self.chance(30) {
                match self.cut(fill.write(piece)).await {
                    Some(written) => written,
                    // Not taken: it is given again.
                    None => continue,
                }
            } else {
                fill.write(piece).await
            };
            if let Err(error) = written {
                return Some(Err(error));
            }
            at += len;
            assert_eq!(fill.written(), at as u64);
            if feed == Feed::Dropped && self.chance(400) {
                return None;
            }
            if self.chance(50) {
                self.halt(&fill, source).await;
            }
        }
        if feed == Feed::Dropped && self.chance(500) {
            return None;
        }
        if !staging && source.right {
            self.model.borrow_mut().finishing(content);
        }
        let now = self.now();
        if self.chance(20) {
            // Cut before its end it has failed; if not, this is its end.
            return match self.cut(fill.finish(now)).await {
                Some(outcome) => {
                    self.note_finish(&outcome, content, staging);
                    Some(outcome)
                }
                None => None,
            };
        }
        let outcome = fill.finish(now).await;
        self.note_finish(&outcome, content, staging);
        Some(outcome)
    }

    /// The source halts here: what may be read must be seen without another byte or an end.
    async fn halt(&self, fill: &Fill<SimDisk>, source: &Source) {
        let released = self.released(source);
        if released > 0 {
            let mut follower = fill.watermark().follow();
            let (readable, state) = follower.wait(released - 1).await;
            assert!(readable == released || state != FillState::Running);
        }
    }

    fn note_finish(
        &self,
        outcome: &Result<Body<SimDisk>, FillError>,
        content: usize,
        staging: bool,
    ) {
        if outcome.is_ok() && !staging {
            self.model.borrow_mut().finished(content);
        }
    }

    async fn check_end(
        &self,
        outcome: Result<Body<SimDisk>, FillError>,
        source: &Source,
        content: usize,
        purges: u64,
        staging: bool,
    ) {
        let purged = self.model.borrow().bodies[content].purges > purges;
        match outcome {
            Ok(body) => {
                assert!(source.right, "a wrong body of {content} was accepted");
                self.check_body(content, &body).await;
                if self.chance(200) && !staging {
                    self.hold(content, body);
                }
            }
            Err(FillError::Forgotten) => assert!(purged, "nobody purged {content}"),
            Err(FillError::DiskFailed) => assert!(self.lenient(), "the disk did not fail"),
            Err(FillError::Full) => assert!(self.may_be_full() && source.length.is_none()),
            Err(error) => {
                let length = source.fed.len() as u64;
                let expected = match source.length {
                    _ if source.right => None,
                    Some(known) if length > known => Some(FillError::TooLong),
                    Some(known) if length < known => Some(FillError::TooShort),
                    _ => Some(FillError::WrongDigest),
                };
                assert_eq!(Some(error), expected, "content {content}");
            }
        }
    }

    fn check_refusal(&self, refusal: Refusal, staging: bool) {
        match refusal {
            Refusal::Full | Refusal::TooLarge => {
                assert!(self.may_be_full() || staging, "refused: {refusal}");
            }
            Refusal::DiskFailed => assert!(self.lenient(), "the disk did not fail"),
            Refusal::MediaTypeTooLong => panic!("no media type is that long"),
        }
    }

    fn hold(&self, content: usize, body: Body<SimDisk>) {
        let mut held = self.held.borrow_mut();
        if held.len() >= HELD_MAX {
            held.remove(0);
        }
        held.push((content, body));
    }

    fn join(self: &Rc<Self>) {
        let running = self.running.borrow();
        if running.is_empty() {
            return;
        }
        let source = running[self.below(running.len() as u64) as usize].clone();
        drop(running);
        self.follow(source);
    }

    /// Reads a running fill as its bytes come: never a wrong one, never too early.
    fn follow(self: &Rc<Self>, source: Source) {
        let process = Rc::clone(self);
        let leaves_early = self.chance(150);
        self.followers.set(self.followers.get() + 1);
        self.spawn(async move {
            let mut follower = source.watermark.follow();
            let mut at = 0;
            loop {
                let (readable, state) = follower.wait(at).await;
                process.check_released(&source, readable, state);
                if let FillState::Failed(_) = state {
                    break;
                }
                process.check_followed(&source, at, readable).await;
                at = readable;
                if state == FillState::Verified || leaves_early && process.chance(300) {
                    break;
                }
            }
            process.followers.set(process.followers.get() - 1);
        });
    }

    /// How much may be read before the digest matched (S2).
    fn released(&self, source: &Source) -> u64 {
        let withheld = self.plan.withheld_len;
        let taken = source.taken.get();
        match source.length {
            Some(length) => taken.min(length.saturating_sub(withheld)),
            None => taken.saturating_sub(withheld),
        }
    }

    fn check_released(&self, source: &Source, readable: u64, state: FillState) {
        let released = self.released(source);
        if state == FillState::Verified {
            assert!(source.right, "a wrong body was verified");
            assert_eq!(readable, source.fed.len() as u64);
        } else {
            assert!(
                readable <= released,
                "S2: {readable} readable of {released}, {state:?}"
            );
        }
    }

    async fn check_followed(&self, source: &Source, at: u64, readable: u64) {
        let lease = source.watermark.lease();
        let (offset, len) = (lease.offset() + at, (readable - at) as usize);
        let Ok(read) = self.disk.read(lease.file(), offset, len).await else {
            return;
        };
        if !lease.revoked() {
            let expected = &source.fed[at as usize..readable as usize];
            assert!(read == expected, "a follower read wrong bytes");
        }
    }

    pub async fn check_body(&self, content: usize, body: &Body<SimDisk>) {
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
        let read = self
            .disk
            .read(body.lease.file(), body.lease.offset(), expected.len())
            .await;
        if let Ok(read) = read
            && !body.lease.revoked()
        {
            assert!(read == expected, "wrong bytes: body {content}");
            self.counts.borrow_mut().checked_bodies += 1;
        }
    }

    pub async fn look_up(&self, content: usize) {
        let found = self.store.body(&self.digest(content), self.now());
        match self.model.borrow().bodies[content].now {
            Presence::Absent => assert!(found.is_none(), "body {content} is there"),
            Presence::Present => {
                assert!(
                    found.is_some() || self.lenient(),
                    "body {content} is missing"
                );
            }
            Presence::Maybe => {}
        }
        if let Some(body) = found {
            self.check_body(content, &body).await;
            if self.chance(100) {
                self.hold(content, body);
            }
        }
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

    fn value(&self) -> Value {
        let content = self.pick_content();
        let origin = format!("https://{}.example", self.below(2));
        let long = self.chance(200);
        let note_len = if long { self.below(3000) as usize } else { 0 };
        Value {
            content,
            origin,
            time: self.now(),
            note_len,
        }
    }

    fn put_tag(&self) {
        let key = self.plan.tag(self.below(self.plan.tags));
        let again = self
            .model
            .borrow()
            .tags
            .get(&key)
            .and_then(|state| state.now.clone());
        let value = match again {
            Some(again) if self.chance(400) => Value {
                time: self.now(),
                ..again
            },
            _ => self.value(),
        };
        if self
            .model
            .borrow()
            .tags
            .get(&key)
            .is_some_and(|state| state.forgetting)
        {
            return;
        }
        let record = TagRecord {
            digest: self.digest(value.content),
            origin: value.origin.as_str().into(),
            checked: value.time,
            note: "n".repeat(value.note_len).into(),
        };
        self.model.borrow_mut().put_tag(&key, value);
        let writer = &self.writers[self.repository_writer(repository(&key))];
        ready(writer.put_tag(tag_key(&key), record)).expect("few records wait");
    }

    fn put_link(&self) {
        let repository = self.plan.repository(self.below(self.plan.repositories));
        let value = self.value();
        let key = (repository.clone(), value.content);
        if self
            .model
            .borrow()
            .links
            .get(&key)
            .is_some_and(|state| state.forgetting)
        {
            return;
        }
        let value = Value {
            note_len: 0,
            ..value
        };
        let record = LinkRecord {
            origin: value.origin.as_str().into(),
            proof: Proof::Fetched,
            at: value.time,
        };
        let link = self.link_key(&key);
        self.model.borrow_mut().put_link(key, value);
        let writer = &self.writers[self.repository_writer(&repository)];
        ready(writer.put_link(link, record)).expect("few records wait");
    }

    fn link_key(&self, (repository, content): &(String, usize)) -> LinkKey {
        let digest = self.digest(*content);
        LinkKey {
            project: "p".into(),
            repository: repository.as_str().into(),
            digest,
        }
    }

    fn look_at_tags(&self) {
        for (key, state) in &self.model.borrow().tags {
            if !state.forgetting {
                assert_eq!(self.found_tag(key), state.now, "tag {key}");
            }
        }
        for (key, state) in &self.model.borrow().links {
            if !state.forgetting {
                assert_eq!(self.found_link(key), state.now, "link {key:?}");
            }
        }
    }

    pub fn found_tag(&self, key: &str) -> Option<Value> {
        let found = self.store.tag(&tag_key(key))?;
        Some(Value {
            content: self.content_of(&found.digest),
            origin: found.origin.to_string(),
            time: found.checked,
            note_len: found.note.len(),
        })
    }

    pub fn found_link(&self, key: &(String, usize)) -> Option<Value> {
        let found = self.store.link(&self.link_key(key))?;
        let (origin, time) = (found.origin.to_string(), found.at);
        Some(Value {
            content: key.1,
            origin,
            time,
            note_len: 0,
        })
    }

    fn content_of(&self, digest: &Digest) -> usize {
        let text = digest.to_string();
        let model = self.model.borrow();
        model
            .contents
            .iter()
            .position(|content| content.digest == text)
            .expect("one of ours")
    }

    async fn forget_body(&self) {
        let content = self.pick_content();
        let digest = self.digest(content);
        let fills = self.model.borrow_mut().forget_begins(content);
        let outcome = self
            .forget(self.owner(&digest), ForgetKey::Body(digest))
            .await;
        self.model
            .borrow_mut()
            .forget_ends(content, fills, outcome.is_ok());
        let gone = self.model.borrow().bodies[content].now == Presence::Absent;
        assert!(
            !gone || self.store.body(&digest, self.now()).is_none(),
            "{content} is still there"
        );
    }

    async fn forget(&self, writer: &Writer<SimDisk>, what: ForgetKey) -> Result<(), WriteError> {
        self.forgetting.set(self.forgetting.get() + 1);
        let outcome = writer.forget(what).await;
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

    async fn forget_tag(&self) {
        let key = self.plan.tag(self.below(self.plan.tags));
        match self.model.borrow_mut().tags.get_mut(&key) {
            Some(state) if !state.forgetting => {
                state.forgetting = true;
                state.possible.push(None);
            }
            _ => return,
        }
        let writer = &self.writers[self.repository_writer(repository(&key))];
        let outcome = self.forget(writer, ForgetKey::Tag(tag_key(&key))).await;
        let mut model = self.model.borrow_mut();
        let state = model.tags.get_mut(&key).expect("keys stay");
        state.forgetting = false;
        state.version += 1;
        match outcome {
            Ok(()) => state.forgotten(),
            Err(_) => state.now = None,
        }
    }

    async fn forget_link(&self) {
        let keys: Vec<_> = self.model.borrow().links.keys().cloned().collect();
        if keys.is_empty() {
            return;
        }
        let key = keys[self.below(keys.len() as u64) as usize].clone();
        match self.model.borrow_mut().links.get_mut(&key) {
            Some(state) if !state.forgetting => {
                state.forgetting = true;
                state.possible.push(None);
            }
            _ => return,
        }
        let writer = &self.writers[self.repository_writer(&key.0)];
        let outcome = self
            .forget(writer, ForgetKey::Link(self.link_key(&key)))
            .await;
        let mut model = self.model.borrow_mut();
        let state = model.links.get_mut(&key).expect("keys stay");
        state.forgetting = false;
        state.version += 1;
        match outcome {
            Ok(()) => state.forgotten(),
            Err(_) => state.now = None,
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
            |content| Digest::parse(&content.digest).is_ok_and(|d| d.slice() % count == number),
            |key| self.repository_writer(repository(key)) == number,
        );
        let outcome = writer.commit(self.now()).await;
        self.check_write(outcome);
        if outcome.is_ok() {
            self.model
                .borrow_mut()
                .committed(group, writer.uncommitted() == 0, self.lenient());
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
        if let Some(bytes) = self.owner(&digest).load(&digest, self.now()).await {
            assert!(
                *bytes == self.model.borrow().contents[content].bytes,
                "loaded {content}"
            );
        }
    }

    /// Polls a future a few times and then drops it.
    async fn cut<F: Future>(&self, future: F) -> Option<F::Output> {
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

/// Of calls that change memory only: they never wait.
fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut cx = std::task::Context::from_waker(Waker::noop());
    match future.as_mut().poll(&mut cx) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

/// Keys of tags are `repository:name`.
fn repository(key: &str) -> &str {
    key.split(':').next().expect("split yields one at least")
}

fn tag_key(key: &str) -> TagKey {
    let (repository, name) = key.split_once(':').expect("a tag's key");
    let kind = if name.starts_with("list") {
        TagKind::Listing
    } else {
        TagKind::Tag
    };
    TagKey {
        project: "p".into(),
        repository: repository.into(),
        kind,
        name: name.into(),
    }
}
