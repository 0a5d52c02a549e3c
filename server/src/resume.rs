//! A body on its way in, over as many answers as it takes.
//!
//! Read by `fetch`. When an answer breaks, the rest is asked for where it broke: at the same
//! upstream while that one gets on, else at the others first. Only what says that it is the rest
//! of a body of the same length is joined (RFC 9110 §14.4, §15.3.7), or a whole one of that length
//! is skipped up to there; whether the bytes are right is for the digest to say. Every request
//! begins at the registry: an address it signed an hour ago may have expired. Whoever waits for the
//! body has a right to it of its own: where one source is refused, the rest is asked for in the
//! name of the next (R9).

mod rest;

use std::sync::Arc;
use std::time::{Duration, Instant};

use entrepot_storage::Digest;
use monoio::time::sleep;

use crate::failure::{Failure, FailureKind};
use crate::fetch::BodyKind;
use crate::http::etag;
use crate::http::range::ContentRange;
use crate::jitter::jittered;
use crate::manifests::Manifest;
use crate::metrics::{Counter, Metrics};
use crate::project::Repository;
use crate::source::{Answer, Refused, Search, Sources, Wanted, body_path};
use crate::upstream::{Body, BodyError, Method, Part, Response, Validator, without_account};
use crate::whole::{Share, Whole};

use rest::{Unfit, rest};

/// Attempts in a row that brought less than `PROGRESS_LEN`; then the body is given up. With the
/// pauses between them about three seconds: longer than a proxy takes to restart, shorter than
/// clients wait for a byte.
const FRUITLESS_MAX: u32 = 6;
/// Answers in a row that were too slow and brought less than `PROGRESS_LEN`: each takes the whole
/// `read_timeout`, so a second one is as long as clients are kept waiting for better.
const SLOW_MAX: u32 = 2;
/// An answer that brings this much was worth asking for: a body of 4 GiB may break as often as
/// its length allows.
const PROGRESS_LEN: u64 = 1 << 20;
/// Before the first attempt. A connection that broke is rarely alone.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Doubled for each fruitless attempt up to here.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// How a body begins.
pub enum Opening {
    Answer(Answer),
    Manifest(Manifest),
}

impl Opening {
    pub fn origin(&self) -> &Arc<str> {
        match self {
            Opening::Answer(answer) => &answer.origin,
            Opening::Manifest(manifest) => &manifest.origin,
        }
    }

    /// Only a manifest's type is checked, and worth keeping.
    pub fn media_type(&self) -> Option<&'static str> {
        match self {
            Opening::Answer(_) => None,
            Opening::Manifest(manifest) => Some(manifest.media_type),
        }
    }
}

/// Who is asked for a body, in whose name and for how long.
pub struct Course<'a> {
    pub sources: &'a Sources,
    pub metrics: &'a Metrics,
    /// Asked for in its name first.
    pub source: &'a Repository,
    /// All in whose names it may be asked for, each on a proof of its own (R9).
    pub proven: &'a dyn Fn() -> Vec<Repository>,
    pub digest: Digest,
    /// Of who sent wrong bytes under this digest a moment ago.
    pub refused: &'a Refused<'a>,
    /// False when one answer must do.
    pub resumes: bool,
}

/// Why an answer did not bring the rest of the body.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("{0}")]
    Broken(#[from] BodyError),
    #[error("the answer ended {0} bytes before the body")]
    Short(u64),
}

pub struct Arriving<'a> {
    course: Course<'a>,
    /// In whose name the current answer was given.
    source: Repository,
    /// Of whom it is.
    origin: Arc<str>,
    /// The same, or the place there that was asked.
    asked: Arc<str>,
    body: Body,
    /// A manifest, which was collected and checked before anything else.
    collected: Option<Whole>,
    /// Its room, while its bytes are on their way to the store.
    held: Option<Share>,
    /// As the first answer gave it.
    len: Option<u64>,
    /// As any answer gave it.
    total: Option<u64>,
    /// Bytes of the body, each counted once.
    arrived: u64,
    /// What the current answer still repeats.
    repeated: u64,
    validator: Option<Validator>,
    /// Answers that bytes were taken from.
    answers: u32,
    /// Where the current answer began to bring something new.
    resumed_at: u64,
    fruitless: u32,
    /// Of those, answers that were too slow.
    slow: u32,
    /// Who brought little or was slow: asked after the others.
    weak: Vec<Arc<str>>,
    /// Who has another body; not asked again for this one.
    unfit: Vec<Arc<str>>,
}

impl<'a> Arriving<'a> {
    pub fn new(course: Course<'a>, opening: Opening) -> Arriving<'a> {
        let origin = opening.origin().clone();
        let mut asked = origin.clone();
        let (len, validator, body, collected) = match opening {
            Opening::Answer(answer) => {
                asked = answer.asked().clone();
                let response = answer.response;
                let validator = validator(&asked, &response);
                (response.length, validator, response.body, None)
            }
            Opening::Manifest(Manifest { whole, .. }) => {
                let len = whole.bytes.len() as u64;
                (Some(len), None, Body::empty(), Some(whole))
            }
        };
        Arriving {
            source: course.source.clone(),
            course,
            origin,
            asked,
            body,
            collected,
            held: None,
            len,
            total: len,
            arrived: 0,
            repeated: 0,
            validator,
            answers: 1,
            resumed_at: 0,
            fruitless: 0,
            slow: 0,
            weak: Vec::new(),
            unfit: Vec::new(),
        }
    }

    /// Of the whole body, if the first answer said it.
    pub fn announced_len(&self) -> Option<u64> {
        self.len
    }

    pub fn arrived(&self) -> u64 {
        self.arrived
    }

    /// Who sends just now.
    pub fn origin(&self) -> &Arc<str> {
        &self.origin
    }

    /// Who was asked for what comes just now, as [`Answer::asked`] says.
    pub fn asked(&self) -> &Arc<str> {
        &self.asked
    }

    /// True when the bytes are of more than one answer.
    pub fn is_spliced(&self) -> bool {
        self.answers > 1
    }

    /// The next piece; `None` at the clean end. While `wanted` holds, what breaks is gone on with.
    pub async fn next(&mut self, wanted: &dyn Fn() -> bool) -> Result<Option<Vec<u8>>, String> {
        loop {
            match self.piece().await {
                Ok(piece) => return Ok(piece),
                Err(lost) if self.course.resumes => self.resume(lost, wanted).await?,
                Err(lost) => return Err(lost.to_string()),
            }
        }
    }

    async fn piece(&mut self) -> Result<Option<Vec<u8>>, Lost> {
        if let Some(Whole { bytes, share }) = self.collected.take() {
            // Until the store has it.
            self.held = Some(share);
            self.arrived += bytes.len() as u64;
            return Ok(Some(bytes).filter(|bytes| !bytes.is_empty()));
        }
        while let Some(mut piece) = self.read().await? {
            let again = self.repeated.min(piece.len() as u64);
            if again > 0 {
                self.repeated -= again;
                self.course.metrics.add(Counter::RepeatedBytes, again);
                piece.drain(..again as usize);
            }
            if !piece.is_empty() {
                self.arrived += piece.len() as u64;
                return Ok(Some(piece));
            }
        }
        match self.total.and_then(|total| total.checked_sub(self.arrived)) {
            None | Some(0) => Ok(None),
            Some(missing) => Err(Lost::Short(missing)),
        }
    }

    async fn read(&mut self) -> Result<Option<Vec<u8>>, BodyError> {
        match self.body.read().await {
            // The bytes are all there; what is missing is the end of a coding.
            Err(_) if self.total == Some(self.arrived) => Ok(None),
            read => read,
        }
    }

    /// Finds an answer that brings the rest.
    async fn resume(&mut self, lost: Lost, wanted: &dyn Fn() -> bool) -> Result<(), String> {
        let broken = Instant::now();
        let mut why = format!("{}: {lost}", without_account(&self.origin));
        self.judge(&lost);
        // Its connection may be the only one that the upstream is allowed.
        self.body = Body::empty();
        loop {
            self.fruitless += 1;
            if self.fruitless > FRUITLESS_MAX || self.slow >= SLOW_MAX || !wanted() {
                return Err(why);
            }
            sleep(jittered(pause(self.fruitless))).await;
            let asked = Instant::now();
            match self.ask_again().await {
                Ok(status) => {
                    self.course.metrics.count(Counter::FillResumes);
                    tracing::info!(
                        digest = %self.course.digest, upstream = without_account(&self.origin),
                        repository = %self.source.name, status, at = self.arrived, ms = broken.elapsed().as_millis() as u64, why,
                        "fill resumed"
                    );
                    return Ok(());
                }
                Err(failure) => {
                    // One that never answers takes as long as one that sends too little; one that
                    // can't be reached, or is not asked, does not.
                    let timeout = failure.kind == FailureKind::Timeout;
                    self.slow += u32::from(timeout && asked.elapsed() >= self.patience() / 2);
                    why = failure.detail.to_string();
                }
            }
        }
    }

    /// How long an upstream may send nothing.
    fn patience(&self) -> Duration {
        self.course.sources.read_timeout(&self.source)
    }

    /// Whether the answer that ended was worth its request, and its origin is asked first again.
    fn judge(&mut self, lost: &Lost) {
        let progress = self.arrived - self.resumed_at >= PROGRESS_LEN;
        if progress {
            (self.fruitless, self.slow) = (0, 0);
        }
        let slow = matches!(lost, Lost::Broken(BodyError::Timeout | BodyError::TooSlow));
        self.slow += u32::from(slow && !progress);
        self.weak.retain(|asked| *asked != self.asked);
        if slow || !progress {
            self.weak.push(self.asked.clone());
        }
    }

    /// Asks for the rest in the name that it was asked for in so far, and where that gets no answer
    /// in those of the others. Answers the status of what will be read from now on.
    async fn ask_again(&mut self) -> Result<u16, Failure> {
        let asked = self.source.clone();
        let mut failed = match self.ask_as(asked.clone()).await {
            Ok(status) => return Ok(status),
            Err(failure) => failure,
        };
        // It has no link before the end, and was answered the body itself.
        let began = self.course.source;
        let mut others = (self.course.proven)();
        others.retain(|other| other != began);
        others.insert(0, began.clone());
        for other in others.into_iter().filter(|other| *other != asked) {
            match self.ask_as(other).await {
                Ok(status) => return Ok(status),
                Err(failure) => failed = Failure::worse(failed, failure),
            }
        }
        Err(failed)
    }

    /// Asks for the rest in one name: first those that did well so far, the last one before the
    /// others.
    async fn ask_as(&mut self, source: Repository) -> Result<u16, Failure> {
        let project = self.course.sources.project(source.project);
        let mut origins = project.upstreams.iter().map(|(_, origin)| origin);
        let strong = origins.any(|origin| !self.weak.contains(origin) && !self.is_passed(origin));
        let answer = self.first(&source, strong).await;
        let answer = match answer {
            // Rather one that did badly than none.
            Err(_) if strong && !self.weak.is_empty() => self.first(&source, false).await?,
            answer => answer?,
        };
        let asked = answer.asked().clone();
        let Answer {
            origin, response, ..
        } = answer;
        match self.fits(&asked, &response) {
            Ok(repeated) => {
                self.validator = validator(&asked, &response);
                self.repeated = repeated;
                self.resumed_at = self.arrived;
                self.answers += 1;
                self.source = source;
                self.origin = origin;
                self.asked = asked;
                self.body = response.body;
                Ok(response.status)
            }
            Err(unfit) => {
                let why = format!("answered the rest of a body with {unfit}");
                let failure = Failure::of(FailureKind::BadBody, &origin, why);
                self.unfit.push(asked);
                Err(failure)
            }
        }
    }

    async fn first(&self, source: &Repository, strong: bool) -> Result<Answer, Failure> {
        let path = body_path(BodyKind::Blob, &self.course.digest);
        let wanted = Wanted {
            method: Method::Get,
            path: &path,
            accept: None,
            range: Some(Part {
                first: self.arrived,
                last: self.total.map(|total| total - 1),
                if_range: self.validator.clone(),
            }),
        };
        let search = Search {
            prefer: Some(&self.origin),
            anew: true,
            layer: Some(self.course.digest),
            refused: Some(&|asked| self.is_passed(asked) || (strong && self.weak.contains(asked))),
            ..Search::default()
        };
        Ok(self.course.sources.first(source, &wanted, search).await?)
    }

    fn is_passed(&self, asked: &Arc<str>) -> bool {
        self.unfit.contains(asked) || (self.course.refused)(asked)
    }

    /// How many bytes of the answer have arrived already.
    fn fits(&mut self, asked: &Arc<str>, response: &Response) -> Result<u64, Unfit> {
        let known = self
            .validator
            .as_ref()
            .filter(|known| known.asked == *asked);
        let now = response.head.field("etag").and_then(etag::strong);
        if let (Some(known), Some(now)) = (known, now)
            && *known.etag != *now
        {
            return Err(Unfit::Etag);
        }
        let part = response.head.field("content-range");
        let part = part.and_then(ContentRange::parse);
        let (repeated, total) = rest(response.status, part, response.length, self.arrived)?;
        if self.total.is_some() && self.total != total {
            return Err(Unfit::Length);
        }
        self.total = total;
        Ok(repeated)
    }
}

fn validator(asked: &Arc<str>, response: &Response) -> Option<Validator> {
    let etag = etag::strong(response.head.field("etag")?)?;
    Some(Validator {
        asked: asked.clone(),
        etag: etag.into(),
    })
}

fn pause(fruitless: u32) -> Duration {
    let doubled = PAUSE_MIN * 2_u32.pow(fruitless.saturating_sub(1).min(16));
    doubled.min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::{Duration, FRUITLESS_MAX, PAUSE_MAX, PAUSE_MIN, pause};

    #[test]
    fn pauses_grow_to_their_bound() {
        assert_eq!(pause(1), PAUSE_MIN);
        assert_eq!(pause(2), PAUSE_MIN * 2);
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
        let all: Duration = (1..=FRUITLESS_MAX).map(pause).sum();
        assert!(all < Duration::from_secs(5), "{all:?}");
    }
}
