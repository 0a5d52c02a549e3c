//! One keep-alive connection: a request out, an answer in, again.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use super::reply::{self, Chunked, Framing};
use super::report::ErrorClass;
use super::socket;
use super::target::{Hasher, Target};

/// Small: what comes of the body with the head is copied. A body of 4 KiB still fits.
const HEAD_READ_LEN: usize = 8 * 1024;
/// Bodies that are verified or chunked are read in pieces of this.
pub const BODY_READ_LEN: usize = 256 * 1024;

pub struct Fetch {
    pub stream: TcpStream,
    phase: Phase,
    head: Vec<u8>,
    hasher: Option<Hasher>,
    asked_at: Instant,
    first_byte_at: Option<Instant>,
    pub progress_at: Instant,
    status: u16,
    close: bool,
}

enum Phase {
    Idle,
    Head,
    Length(u64),
    Chunked(Chunked),
    UntilClose,
}

/// A whole answer.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub status: u16,
    pub asked_at: Instant,
    pub first_byte_at: Instant,
    pub done_at: Instant,
    /// The body is what it should be, or nobody asked.
    pub right: bool,
    /// The connection cannot be used again.
    pub close: bool,
}

/// What a readable connection came to.
pub enum Progress {
    Waiting,
    Done(Done),
    Failed(ErrorClass),
}

impl Fetch {
    pub fn connect(target: &Target) -> io::Result<Fetch> {
        let stream = TcpStream::connect(target.addr)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let now = Instant::now();
        Ok(Fetch {
            stream,
            phase: Phase::Idle,
            head: Vec::new(),
            hasher: None,
            asked_at: now,
            first_byte_at: None,
            progress_at: now,
            status: 0,
            close: false,
        })
    }

    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Only when idle: the socket has room for a request then.
    pub fn ask(&mut self, target: &Target, now: Instant) -> io::Result<()> {
        self.phase = Phase::Head;
        self.head.clear();
        self.hasher = target.digest.as_ref().map(|digest| digest.hasher());
        self.asked_at = now;
        self.progress_at = now;
        self.first_byte_at = None;
        (&self.stream).write_all(&target.request)
    }

    /// Reads what is there; `buffer` is for bodies, `bytes` counts theirs.
    pub fn advance(&mut self, target: &Target, buffer: &mut [u8], bytes: &mut u64) -> Progress {
        loop {
            let step = match &self.phase {
                Phase::Idle => return self.idle_readable(),
                Phase::Head => self.read_head(target, buffer, bytes),
                _ => self.read_body(buffer, bytes),
            };
            match step {
                Ok(true) => return Progress::Done(self.finish(target)),
                Ok(false) => {}
                Err(Stop::Blocked) => return Progress::Waiting,
                Err(Stop::Failed(class)) => return Progress::Failed(class),
            }
        }
    }

    /// Between requests only the end may come.
    fn idle_readable(&self) -> Progress {
        Progress::Failed(ErrorClass::Reset)
    }

    /// Whether the answer is whole.
    fn read_head(
        &mut self,
        target: &Target,
        buffer: &mut [u8],
        bytes: &mut u64,
    ) -> Result<bool, Stop> {
        let len = read(&self.stream, &mut buffer[..HEAD_READ_LEN])?;
        if len == 0 {
            return Err(Stop::Failed(ErrorClass::Reset));
        }
        let now = Instant::now();
        self.first_byte_at.get_or_insert(now);
        self.progress_at = now;
        self.head.extend_from_slice(&buffer[..len]);
        let parsed = reply::parse_head(&self.head, target.head_only);
        let parsed = parsed.map_err(|_| Stop::Failed(ErrorClass::Head))?;
        let Some(head) = parsed else { return Ok(false) };
        self.status = head.status;
        self.close = head.close;
        self.phase = match head.framing {
            Framing::Length(len) => Phase::Length(len),
            Framing::Chunked => Phase::Chunked(Chunked::default()),
            Framing::UntilClose => Phase::UntilClose,
        };
        let rest = self.head.split_off(head.len);
        if rest.is_empty() {
            return Ok(matches!(self.phase, Phase::Length(0)));
        }
        self.take(&rest, bytes)
    }

    fn read_body(&mut self, buffer: &mut [u8], bytes: &mut u64) -> Result<bool, Stop> {
        if let (Phase::Length(left), None) = (&mut self.phase, &self.hasher) {
            let len = stop_unless_ready(socket::discard(&self.stream, *left))? as u64;
            if len == 0 {
                return Err(Stop::Failed(ErrorClass::Truncated));
            }
            *left -= len;
            *bytes += len;
            self.progress_at = Instant::now();
            return Ok(*left == 0);
        }
        let len_max = match &self.phase {
            Phase::Length(left) => buffer
                .len()
                .min(usize::try_from(*left).unwrap_or(usize::MAX)),
            _ => buffer.len(),
        };
        let len = read(&self.stream, &mut buffer[..len_max])?;
        if len == 0 {
            return match self.phase {
                Phase::UntilClose => Ok(true),
                _ => Err(Stop::Failed(ErrorClass::Truncated)),
            };
        }
        self.progress_at = Instant::now();
        self.take(&buffer[..len], bytes)
    }

    /// Whether the answer is whole with these bytes. More than it promised is malformed: we
    /// never ask before an answer has ended.
    fn take(&mut self, input: &[u8], bytes: &mut u64) -> Result<bool, Stop> {
        let hasher = &mut self.hasher;
        let mut count = |body: &[u8]| {
            *bytes += body.len() as u64;
            if let Some(hasher) = hasher {
                hasher.update(body);
            }
        };
        match &mut self.phase {
            Phase::Length(left) if input.len() as u64 > *left => {
                Err(Stop::Failed(ErrorClass::Head))
            }
            Phase::Length(left) => {
                count(input);
                *left -= input.len() as u64;
                Ok(*left == 0)
            }
            Phase::Chunked(chunked) => match chunked.decode(input, count) {
                Ok(used) if used == input.len() => Ok(chunked.is_done()),
                _ => Err(Stop::Failed(ErrorClass::Head)),
            },
            Phase::UntilClose => {
                count(input);
                Ok(false)
            }
            Phase::Idle | Phase::Head => Err(Stop::Failed(ErrorClass::Head)),
        }
    }

    fn finish(&mut self, target: &Target) -> Done {
        self.phase = Phase::Idle;
        let verdict = self.hasher.take().zip(target.digest.as_ref());
        let ok = (200..300).contains(&self.status);
        let done_at = Instant::now();
        Done {
            status: self.status,
            asked_at: self.asked_at,
            first_byte_at: self.first_byte_at.unwrap_or(done_at),
            done_at,
            right: !ok || verdict.is_none_or(|(hasher, expected)| hasher.agrees(expected)),
            close: self.close,
        }
    }
}

enum Stop {
    Blocked,
    Failed(ErrorClass),
}

fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> Result<usize, Stop> {
    stop_unless_ready(stream.read(buffer))
}

fn stop_unless_ready(read: io::Result<usize>) -> Result<usize, Stop> {
    read.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => Stop::Blocked,
        _ => Stop::Failed(ErrorClass::Reset),
    })
}
