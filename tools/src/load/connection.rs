//! One connection: a request out, an answer in, again.

use std::rc::Rc;
use std::time::Instant;

use super::digest::{Expected, Hasher};
use super::executor::Executor;
use super::meter::{ErrorClass, Meter};
use super::reply::{self, Chunked, Framing, Head};
use super::stream::{Stream, class_of};
use super::url::Origin;

/// Small: what comes of the body with the head is copied. A body of 4 KiB still fits.
const HEAD_READ_LEN: usize = 8 * 1024;
/// Bodies that are looked at are read in pieces of this.
const BODY_READ_LEN: usize = 128 * 1024;
/// Longer bodies are not kept: manifests are limited to 4 MiB by most registries.
const KEPT_LEN_MAX: usize = 16 << 20;

pub struct Connection {
    /// Whom it leads to.
    pub origin: Origin,
    executor: Rc<Executor>,
    stream: Stream,
    buffer: Vec<u8>,
    /// Of `buffer`: the last answer's head.
    head_len: usize,
    /// For bodies that are looked at; made when needed.
    large: Vec<u8>,
    /// When it was last of use; `None` for a new one.
    pub last_used: Option<Instant>,
}

/// What to do with an answer.
pub struct Wanted<'w> {
    pub request: &'w Rc<[u8]>,
    pub head_only: bool,
    /// The digest of a good answer's body.
    pub digest: Option<&'w Expected>,
    /// Its length.
    pub len: Option<u64>,
    pub keep: bool,
    pub meter: &'w Meter,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub first_byte_at: Instant,
    pub done_at: Instant,
    /// The body is what it should be, or nobody asked.
    pub right: bool,
    /// The connection cannot be used again.
    pub close: bool,
    /// When it was to be kept.
    pub body: Vec<u8>,
    /// Docker-Content-Digest, of a manifest's HEAD.
    pub digest: Option<Expected>,
}

/// A failed exchange, and whether any of the answer came.
#[derive(Clone, Copy, Debug)]
pub struct Broken {
    pub class: ErrorClass,
    pub began: bool,
}

/// What a body comes to while it is read.
struct Intake<'w> {
    len: u64,
    hasher: Option<Hasher>,
    kept: Option<Vec<u8>>,
    meter: &'w Meter,
}

impl Connection {
    pub fn new(executor: Rc<Executor>, origin: Origin, stream: Stream) -> Connection {
        Connection {
            origin,
            executor,
            stream,
            buffer: vec![0; HEAD_READ_LEN],
            head_len: 0,
            large: Vec::new(),
            last_used: None,
        }
    }

    /// The head of the last answer.
    pub fn head(&self) -> &str {
        std::str::from_utf8(&self.buffer[..self.head_len]).unwrap_or_default()
    }

    pub async fn exchange(&mut self, wanted: &Wanted<'_>) -> Result<Answer, Broken> {
        self.head_len = 0;
        let broken = |began| move |class| Broken { class, began };
        let sent = self.stream.send(wanted.request);
        sent.map_err(|_| broken(false)(ErrorClass::Reset))?;
        let (head, filled, first_byte_at) = self.read_head(wanted.head_only).await?;
        let good = (200..300).contains(&head.status);
        let mut intake = Intake {
            len: 0,
            hasher: wanted.digest.filter(|_| good).map(Expected::hasher),
            kept: wanted.keep.then(Vec::new),
            meter: wanted.meter,
        };
        let body = self.read_body(&head, filled, &mut intake).await;
        body.map_err(broken(true))?;
        let done_at = self.executor.now();
        self.last_used = Some(done_at);
        let verdict = intake.hasher.zip(wanted.digest);
        let same = verdict.is_none_or(|(hasher, expected)| hasher.agrees(expected));
        let len = wanted.len.filter(|_| good && !wanted.head_only);
        Ok(Answer {
            status: head.status,
            first_byte_at,
            done_at,
            right: same && len.is_none_or(|len| len == intake.len),
            close: head.close,
            body: intake.kept.unwrap_or_default(),
            digest: None,
        })
    }

    /// The head, how much of the buffer is filled, and when the first of it came.
    async fn read_head(&mut self, head_only: bool) -> Result<(Head, usize, Instant), Broken> {
        let mut filled = 0;
        let mut first_byte_at = None;
        loop {
            let began = filled > 0;
            let broken = |class| Broken { class, began };
            if filled == self.buffer.len() {
                if filled >= reply::HEAD_LEN_MAX {
                    return Err(broken(ErrorClass::Head));
                }
                self.buffer.resize(filled * 2, 0);
            }
            let buffer = std::mem::take(&mut self.buffer);
            let finished = self.stream.read(buffer, filled).await;
            self.buffer = finished.buffer;
            let len = finished.result;
            let len = len.map_err(|error| broken(class_of(&error, ErrorClass::Reset)))?;
            if len == 0 {
                return Err(broken(ErrorClass::Reset));
            }
            filled += len;
            let at = *first_byte_at.get_or_insert_with(|| self.executor.now());
            let head = reply::parse_head(&self.buffer[..filled], head_only);
            let head = head.map_err(|_| broken(ErrorClass::Head))?;
            match head {
                // Interim answers (RFC 9110 §15.2) come before the real one.
                Some(head) if head.status < 200 => {
                    self.buffer.copy_within(head.len..filled, 0);
                    filled -= head.len;
                }
                Some(head) => {
                    self.head_len = head.len;
                    return Ok((head, filled, at));
                }
                None => {}
            }
        }
    }

    async fn read_body(
        &mut self,
        head: &Head,
        filled: usize,
        intake: &mut Intake<'_>,
    ) -> Result<(), ErrorClass> {
        let early = &self.buffer[head.len..filled];
        match head.framing {
            Framing::Length(len) => {
                // More than it promised: we never ask before an answer has ended.
                let left = len
                    .checked_sub(early.len() as u64)
                    .ok_or(ErrorClass::Head)?;
                intake.take(early)?;
                self.read_rest(left, intake).await
            }
            Framing::Chunked => self.read_chunked(head.len..filled, intake).await,
            Framing::UntilClose => {
                intake.take(early)?;
                loop {
                    let len = self.read_large().await?;
                    if len == 0 {
                        return Ok(());
                    }
                    intake.take(&self.large[..len])?;
                }
            }
        }
    }

    async fn read_rest(
        &mut self,
        mut left: u64,
        intake: &mut Intake<'_>,
    ) -> Result<(), ErrorClass> {
        let blind = self.stream.is_plain() && intake.is_blind();
        while left > 0 {
            let len = if blind {
                let discarded = self.stream.discard(left).await;
                discarded.map_err(|error| class_of(&error, ErrorClass::Truncated))?
            } else {
                self.read_large().await?
            };
            if len == 0 {
                return Err(ErrorClass::Truncated);
            }
            match blind {
                true => intake.count(len as u64),
                false => intake.take(&self.large[..len])?,
            }
            left = left.checked_sub(len as u64).ok_or(ErrorClass::Head)?;
        }
        Ok(())
    }

    async fn read_chunked(
        &mut self,
        early: std::ops::Range<usize>,
        intake: &mut Intake<'_>,
    ) -> Result<(), ErrorClass> {
        let mut chunked = Chunked::default();
        let mut input = self.buffer[early].to_vec();
        loop {
            let mut taken = Ok(());
            let used = chunked.decode(&input, |body| {
                if taken.is_ok() {
                    taken = intake.take(body);
                }
            });
            taken?;
            if used != Ok(input.len()) {
                return Err(ErrorClass::Head);
            }
            if chunked.is_done() {
                return Ok(());
            }
            let len = self.read_large().await?;
            if len == 0 {
                return Err(ErrorClass::Truncated);
            }
            input.clear();
            input.extend_from_slice(&self.large[..len]);
        }
    }

    /// Reads into `large`; more than the body, if the server sent more.
    async fn read_large(&mut self) -> Result<usize, ErrorClass> {
        let mut buffer = std::mem::take(&mut self.large);
        buffer.resize(BODY_READ_LEN, 0);
        let finished = self.stream.read(buffer, 0).await;
        self.large = finished.buffer;
        let cut = |error| class_of(&error, ErrorClass::Truncated);
        finished.result.map_err(cut)
    }
}

impl Intake<'_> {
    /// Nobody looks at the bytes.
    fn is_blind(&self) -> bool {
        self.hasher.is_none() && self.kept.is_none()
    }

    fn count(&mut self, len: u64) {
        self.len += len;
        self.meter.add_bytes(len);
    }

    fn take(&mut self, body: &[u8]) -> Result<(), ErrorClass> {
        self.count(body.len() as u64);
        if let Some(hasher) = &mut self.hasher {
            hasher.update(body);
        }
        match &mut self.kept {
            Some(kept) if kept.len() + body.len() > KEPT_LEN_MAX => Err(ErrorClass::Head),
            Some(kept) => {
                kept.extend_from_slice(body);
                Ok(())
            }
            None => Ok(()),
        }
    }
}
