//! The body of an answer, read in large pieces until its clean end or an error.
//!
//! Read by a fill, which must know one from the other (R6): only `Ok(None)` is the end. At a
//! clean end the connection goes back to the pool; in every other case it is closed.
//! Nothing is verified here but the framing, and nothing is read ahead of the reader.

use std::any::Any;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use monoio::time::timeout;

use crate::http::framing::ChunkedDecoder;
use crate::http::upstream_head::BodyFraming;

use super::Counters;
use super::connect::{Connection, Got, StreamError};
use super::error::BodyError;
use super::pool::{Key, Pool};

/// A piece is at least this long unless the upstream pauses: smaller writes cost a store more
/// than their bytes.
pub const PIECE_LEN_MIN: usize = 64 << 10;
pub const PIECE_LEN_MAX: usize = 256 << 10;
/// A pause of an upstream. Nothing that a client would notice.
const GATHER: Duration = Duration::from_millis(2);
/// Bytes for each second of waiting, or the body is given up: a drip must not hold a fill for ever.
/// Judged whenever the waiting comes to a read timeout, because storage was seen to pause for tens
/// of seconds and go on.
const PACE_MIN: u64 = 512;
/// What is read of an answer nobody wants, to keep its connection. Registries send about 200 B.
const DRAIN_LEN_MAX: u64 = 16 << 10;
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// Dropping it closes the connection, unless all was read.
pub struct Body(State);

enum State {
    Reading(Box<Reading>),
    Ended,
    Failed(BodyError),
}

struct Reading {
    connection: Connection,
    left: Left,
    /// Where the connection goes at a clean end; `None` once it cannot be used again.
    keep: Option<(Rc<Pool>, Key)>,
    read_timeout: Duration,
    /// Of the whole answer.
    deadline: Option<Instant>,
    pace: Pace,
    /// How much to ask for; follows what arrives.
    room: usize,
    /// The first piece goes out as it comes: its reader waits for a first byte.
    first: bool,
    /// Met after bytes that had to be delivered before it.
    failure: Option<BodyError>,
    /// Dropped when the body has ended or is given up.
    kept: Option<Box<dyn Any>>,
    counters: Arc<Counters>,
}

enum Left {
    Length(u64),
    Chunked(ChunkedDecoder),
    UntilClose,
}

/// What a body needs to know of the exchange it belongs to.
pub(super) struct Exchange {
    pub connection: Connection,
    pub framing: BodyFraming,
    pub keep: Option<(Rc<Pool>, Key)>,
    pub read_timeout: Duration,
    pub deadline: Option<Instant>,
    pub counters: Arc<Counters>,
}

impl Body {
    pub fn empty() -> Body {
        Body(State::Ended)
    }

    pub(super) fn new(exchange: Exchange) -> Body {
        let Exchange {
            connection,
            framing,
            keep,
            read_timeout,
            deadline,
            counters,
        } = exchange;
        let left = match framing {
            BodyFraming::Empty => Left::Length(0),
            BodyFraming::Length(len) => Left::Length(len),
            BodyFraming::Chunked => Left::Chunked(ChunkedDecoder::new()),
            BodyFraming::UntilClose => Left::UntilClose,
        };
        let reading = Box::new(Reading {
            connection,
            keep: keep.filter(|_| !matches!(left, Left::UntilClose)),
            left,
            read_timeout,
            deadline,
            pace: Pace::over(read_timeout),
            room: PIECE_LEN_MIN,
            first: true,
            failure: None,
            kept: None,
            counters,
        });
        match reading.left {
            Left::Length(0) => Body(reading.end()),
            _ => Body(State::Reading(reading)),
        }
    }

    /// Keeps something for as long as this body occupies its connection.
    pub fn keep(&mut self, what: impl Any) {
        if let State::Reading(reading) = &mut self.0 {
            reading.kept = Some(Box::new(what));
        }
    }

    /// The next piece, never empty; `None` at the clean end, again and again.
    /// A read that is dropped before it is done fails the body.
    pub async fn read(&mut self) -> Result<Option<Vec<u8>>, BodyError> {
        let abandoned = State::Failed(BodyError::Abandoned);
        let mut reading = match std::mem::replace(&mut self.0, abandoned) {
            State::Reading(reading) => reading,
            ended => {
                let answer = match &ended {
                    State::Failed(error) => Err(error.clone()),
                    _ => Ok(None),
                };
                self.0 = ended;
                return answer;
            }
        };
        match reading.piece().await {
            Ok((piece, ended)) => {
                self.0 = if ended {
                    reading.end()
                } else {
                    State::Reading(reading)
                };
                Ok(Some(piece).filter(|piece| !piece.is_empty()))
            }
            Err(error) => {
                self.0 = State::Failed(error.clone());
                Err(error)
            }
        }
    }

    /// The whole body, for those that are small by nature.
    pub async fn collect(&mut self, len_max: usize) -> Result<Vec<u8>, BodyError> {
        let mut whole = Vec::new();
        while let Some(piece) = self.read().await? {
            if whole.len() + piece.len() > len_max {
                self.0 = State::Failed(BodyError::TooLong);
                return Err(BodyError::TooLong);
            }
            match whole.is_empty() {
                true => whole = piece,
                false => whole.extend_from_slice(&piece),
            }
        }
        Ok(whole)
    }

    /// Reads a short rest so that the connection can be used again; gives up on a long one.
    pub async fn drain(mut self) {
        let short = match &self.0 {
            State::Reading(reading) => match reading.left {
                Left::Length(left) => left <= DRAIN_LEN_MAX,
                Left::Chunked(_) => true,
                Left::UntilClose => false,
            },
            _ => false,
        };
        if short {
            // How it ends only decides whether the connection is kept.
            let _ = timeout(DRAIN_TIMEOUT, self.collect(DRAIN_LEN_MAX as usize)).await;
        }
    }
}

impl Reading {
    /// Some bytes and whether they are the last.
    async fn piece(&mut self) -> Result<(Vec<u8>, bool), BodyError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let mut piece = Vec::new();
        let mut ended = self.take_held(&mut piece)?;
        while !ended {
            if !piece.is_empty() {
                let enough = self.first || piece.len() >= PIECE_LEN_MIN;
                if enough || !self.connection.readable_within(GATHER).await {
                    break;
                }
            }
            match self.receive(&mut piece).await {
                Ok(end) => ended = end,
                Err(failure) if piece.is_empty() => return Err(failure),
                Err(failure) => {
                    self.failure = Some(failure);
                    break;
                }
            }
        }
        self.first = false;
        self.room = match piece.len() {
            len if len >= self.room => (self.room * 2).min(PIECE_LEN_MAX),
            len if len < self.room / 4 => (self.room / 2).max(PIECE_LEN_MIN),
            _ => self.room,
        };
        if let Left::Length(left) = &mut self.left {
            *left -= piece.len() as u64;
        }
        Ok((piece, ended))
    }

    /// What came with the head, or after the last read. True at the end of the body.
    fn take_held(&mut self, piece: &mut Vec<u8>) -> Result<bool, BodyError> {
        self.counters
            .body_bytes
            .add(self.connection.held.len() as u64);
        if let Left::Chunked(_) = self.left {
            return self.decode(piece);
        }
        *piece = std::mem::take(&mut self.connection.held);
        Ok(self.cut(piece))
    }

    /// Receives once. True at the end of the body.
    async fn receive(&mut self, piece: &mut Vec<u8>) -> Result<bool, BodyError> {
        let chunked = matches!(self.left, Left::Chunked(_));
        let room = match self.left {
            // Not a byte beyond the body: what follows is not ours.
            Left::Length(left) => left.min(self.room as u64) as usize - piece.len(),
            _ => self.room.saturating_sub(piece.len()).max(PIECE_LEN_MIN),
        };
        let connection = &mut self.connection;
        let mut raw = if chunked {
            std::mem::take(&mut connection.held)
        } else {
            Vec::new()
        };
        let buffer = if chunked { &mut raw } else { &mut *piece };
        let before = buffer.len();
        let start = Instant::now();
        let left = self.deadline.map(|at| at.saturating_duration_since(start));
        let patience = left.map_or(self.read_timeout, |left| left.min(self.read_timeout));
        let got = timeout(patience, connection.read(buffer, room)).await;
        let received = buffer.len() - before;
        self.counters.body_bytes.add(received as u64);
        let paced = match got.map_err(|_| out_of_time(self.deadline))?? {
            Got::Bytes => self.pace.add(start.elapsed(), received),
            Got::End { clean: true } if matches!(self.left, Left::UntilClose) => return Ok(true),
            Got::End { .. } => return Err(BodyError::Truncated),
        };
        let ended = match chunked {
            true => {
                self.connection.held = raw;
                self.decode(piece)?
            }
            false => self.cut(piece),
        };
        // What is all here came in time.
        if !ended {
            paced?;
        }
        Ok(ended)
    }

    fn decode(&mut self, piece: &mut Vec<u8>) -> Result<bool, BodyError> {
        let Left::Chunked(decoder) = &mut self.left else {
            return Ok(false);
        };
        let held = &mut self.connection.held;
        let (consumed, ended) = decoder.decode(held, piece)?;
        if consumed < held.len() {
            self.keep = None;
        }
        held.clear();
        Ok(ended)
    }

    /// True if the piece completes a body of known length. Bytes beyond that are dropped, and the
    /// connection with them.
    fn cut(&mut self, piece: &mut Vec<u8>) -> bool {
        let Left::Length(left) = self.left else {
            return false;
        };
        if piece.len() as u64 > left {
            piece.truncate(left as usize);
            self.keep = None;
        }
        piece.len() as u64 == left
    }

    fn end(self: Box<Reading>) -> State {
        let Reading {
            connection, keep, ..
        } = *self;
        // Bytes that nobody asked for would be taken for the next answer.
        if let Some((pool, key)) = keep
            && connection.held.is_empty()
        {
            pool.give(key, connection);
        }
        State::Ended
    }
}

fn out_of_time(deadline: Option<Instant>) -> BodyError {
    match deadline.is_some_and(|at| at <= Instant::now()) {
        true => BodyError::TotalTimeout,
        false => BodyError::Timeout,
    }
}

impl From<StreamError> for BodyError {
    fn from(error: StreamError) -> BodyError {
        match error {
            StreamError::Io(kind) => BodyError::Lost(kind),
            StreamError::Tls(reason) => BodyError::Tls(reason),
        }
    }
}

/// Bytes received per time spent waiting for them; the reader's own time does not count.
struct Pace {
    /// Judged each time this much was waited.
    window: Duration,
    waited: Duration,
    received: u64,
}

impl Pace {
    fn over(window: Duration) -> Pace {
        Pace {
            window,
            waited: Duration::ZERO,
            received: 0,
        }
    }

    fn add(&mut self, waited: Duration, received: usize) -> Result<(), BodyError> {
        self.waited += waited;
        self.received += received as u64;
        if self.waited < self.window {
            return Ok(());
        }
        // By what is asked of a window: one long pause that ends in time is none too many.
        let least = self.window.as_millis() * u128::from(PACE_MIN) / 1000;
        let enough = u128::from(self.received) >= least;
        *self = Pace::over(self.window);
        match enough {
            true => Ok(()),
            false => Err(BodyError::TooSlow),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BodyError, Duration, PACE_MIN, Pace};

    #[test]
    fn a_drip_is_too_slow_and_a_pause_is_not() {
        let second = Duration::from_secs(1);
        for window in [1, 5, 60, 600] {
            let (len, window) = (window as usize * PACE_MIN as usize, second * window);
            let mut drip = Pace::over(window);
            let seconds = (0..).take_while(|_| drip.add(second, 1).is_ok()).count();
            assert_eq!(seconds as u64 + 1, window.as_secs());

            let mut pause = Pace::over(window);
            assert_eq!(pause.add(window - second / 2, 1), Ok(()));
            assert_eq!(pause.add(second, len), Ok(()));
            assert_eq!(pause.add(window, len - 1), Err(BodyError::TooSlow));
        }
    }
}
