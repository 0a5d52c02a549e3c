//! The loop of a run: keeps every connection busy, counts, and stops in time.

use std::io;
use std::time::{Duration, Instant};

use super::fetch::{BODY_READ_LEN, Done, Fetch, Progress};
use super::report::{ErrorClass, Report};
use super::socket::{self, Poll};
use super::target::Target;

/// How often a waiting run looks at its clocks.
const TICK: Duration = Duration::from_millis(100);
/// A server that refuses connections ends the run.
const CONNECT_FAILURES_MAX: u64 = 1_000;

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub enum Extent {
    /// Of all connections together.
    Requests(u64),
    Time {
        warmup: Duration,
        measured: Duration,
    },
}

pub struct Run<'a> {
    target: &'a Target,
    extent: Extent,
    timeout: Duration,
    poll: Poll,
    /// `None` while a connection is down.
    fetches: Vec<Option<Fetch>>,
    asked: u64,
    connect_failures: u64,
    report: Report,
    buffer: Vec<u8>,
}

impl<'a> Run<'a> {
    /// Connects all; a failure here is a failed connection in the report.
    pub fn new(
        target: &'a Target,
        url: &str,
        connections: usize,
        extent: Extent,
        timeout: Duration,
    ) -> io::Result<Run<'a>> {
        let mut run = Run {
            target,
            extent,
            timeout,
            poll: Poll::new()?,
            fetches: Vec::new(),
            asked: 0,
            connect_failures: 0,
            report: Report::new(url, connections),
            buffer: vec![0; BODY_READ_LEN],
        };
        for index in 0..connections {
            run.fetches.push(None);
            run.connect(index)?;
        }
        Ok(run)
    }

    pub fn run(mut self) -> io::Result<Report> {
        let mut started = Instant::now();
        let mut cpu = socket::cpu_time()?;
        let (mut warming, mut until) = match self.extent {
            Extent::Requests(_) => (false, None),
            Extent::Time { warmup, .. } => (true, Some(started + warmup)),
        };
        for index in 0..self.fetches.len() {
            self.ask(index)?;
        }
        let mut ready = Vec::new();
        let mut next_check = started + TICK;
        while !self.is_over() {
            let now = Instant::now();
            if until.is_some_and(|until| now >= until) {
                let Extent::Time { measured, .. } = self.extent else {
                    break;
                };
                if !warming {
                    break;
                }
                self.report.restart();
                warming = false;
                until = Some(now + measured);
                started = now;
                cpu = socket::cpu_time()?;
            }
            if now >= next_check {
                next_check = now + TICK;
                self.look_after_all(now)?;
            }
            let left = until.map_or(TICK, |until| until - now);
            self.poll.wait(left.min(TICK), &mut ready)?;
            for index in &ready {
                self.advance(*index)?;
            }
        }
        self.report.took = started.elapsed();
        self.report.client_cpu = socket::cpu_time()? - cpu;
        Ok(self.report)
    }

    /// Nothing left to wait for.
    fn is_over(&self) -> bool {
        let busy = self.fetches.iter().flatten().any(|fetch| !fetch.is_idle());
        !busy || self.connect_failures >= CONNECT_FAILURES_MAX
    }

    fn advance(&mut self, index: usize) -> io::Result<()> {
        let Some(fetch) = &mut self.fetches[index] else {
            return Ok(());
        };
        match fetch.advance(self.target, &mut self.buffer, &mut self.report.bytes) {
            Progress::Waiting => Ok(()),
            Progress::Done(done) => {
                self.count(index, &done);
                if done.close {
                    self.connect(index)?;
                }
                self.ask(index)
            }
            Progress::Failed(class) => self.fail(index, class),
        }
    }

    fn count(&mut self, index: usize, done: &Done) {
        let latency = done.done_at - done.asked_at;
        let first_byte = done.first_byte_at - done.asked_at;
        self.report.answered(done.status, latency, first_byte);
        self.report.first_bytes[index].get_or_insert(first_byte);
        if !(200..300).contains(&done.status) {
            self.report.failed(ErrorClass::Status);
        }
        if !done.right {
            self.report.failed(ErrorClass::Digest);
        }
    }

    fn fail(&mut self, index: usize, class: ErrorClass) -> io::Result<()> {
        let idle = self.fetches[index].as_ref().is_some_and(Fetch::is_idle);
        // An idle connection may be closed by the server; nobody asked for anything.
        if !idle {
            self.report.failed(class);
        }
        self.connect(index)?;
        self.ask(index)
    }

    /// Replaces the connection, or leaves it down.
    fn connect(&mut self, index: usize) -> io::Result<()> {
        self.fetches[index] = match Fetch::connect(self.target) {
            Ok(fetch) => {
                self.poll.add(&fetch.stream, index)?;
                Some(fetch)
            }
            Err(_) => {
                self.report.failed(ErrorClass::Connect);
                self.connect_failures += 1;
                None
            }
        };
        Ok(())
    }

    /// The next request, if there is one left.
    fn ask(&mut self, index: usize) -> io::Result<()> {
        if !self.wants_more() {
            return Ok(());
        }
        self.asked += 1;
        while let Some(fetch) = &mut self.fetches[index] {
            if fetch.ask(self.target, Instant::now()).is_ok() {
                break;
            }
            // The server closed between two requests: again on a new connection.
            self.report.failed(ErrorClass::Reset);
            self.connect(index)?;
        }
        Ok(())
    }

    fn wants_more(&self) -> bool {
        !matches!(self.extent, Extent::Requests(count) if self.asked >= count)
    }

    /// Gives up what makes no progress and connects again what is down.
    fn look_after_all(&mut self, now: Instant) -> io::Result<()> {
        for index in 0..self.fetches.len() {
            let stuck = self.fetches[index].as_ref().is_some_and(|fetch| {
                !fetch.is_idle() && now.duration_since(fetch.progress_at) >= self.timeout
            });
            if stuck {
                self.fail(index, ErrorClass::Timeout)?;
            } else if self.fetches[index].is_none() && self.wants_more() {
                self.connect(index)?;
                self.ask(index)?;
            }
        }
        Ok(())
    }
}
