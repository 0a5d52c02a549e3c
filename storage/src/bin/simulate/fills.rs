//! Fills as clients make and follow them: right, wrong, short, long, abandoned.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use entrepot_storage::disk::sim::SimDisk;
use entrepot_storage::{Body, Disk, Fill, FillError, FillSpec, FillState, Refusal, Watermark};

use super::client::Process;
use super::model::Content;

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
pub enum Feed {
    Right,
    Wrong,
    Short,
    Long,
    Dropped,
}

impl Process {
    pub async fn fill(self: &Rc<Self>, feed: Feed) {
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
            // What it replaces may be gone already.
            self.note_evicted();
            self.model.borrow_mut().finishing(content);
        }
        let now = self.now();
        // Cut before its end it has failed; if not, this is its end.
        let outcome = if self.chance(20) {
            self.cut(fill.finish(now)).await
        } else {
            Some(fill.finish(now).await)
        };
        if let Some(outcome) = &outcome {
            self.note_finish(outcome, content, staging);
        }
        if self.evicted() != self.evicted.get() {
            self.model.borrow_mut().doubted(content);
        }
        outcome
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
        if let Ok(body) = outcome
            && !staging
        {
            let file = body.lease.file();
            let mut model = self.model.borrow_mut();
            model.finished(content);
            model.used(content);
            model.seen(content, (file.drive(), file.number()));
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
            Err(FillError::Full) => {
                assert!(self.may_be_full() || staging, "there was room");
            }
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
                assert!(
                    self.plan.may_refuse_bodies() || staging,
                    "refused: {refusal}"
                );
            }
            Refusal::DiskFailed => assert!(self.lenient(), "the disk did not fail"),
            Refusal::MediaTypeTooLong => panic!("no media type is that long"),
        }
    }

    pub fn join(self: &Rc<Self>) {
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
        let disk = &self.disks[lease.file().drive()];
        let Ok(read) = disk.read(lease.file(), offset, len).await else {
            return;
        };
        if !lease.revoked() {
            let expected = &source.fed[at as usize..readable as usize];
            self.check_bytes(lease.file(), offset, &read, expected, 0);
        }
    }
}
