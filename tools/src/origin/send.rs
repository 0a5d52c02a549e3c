//! Carries out a plan on a connection, byte for byte, and tells the log.

use std::io::{self, Write};

use super::fault::{Faults, Halted};
use super::log::{Log, State};
use super::pace::Pace;
use super::plan::{Coding, Plan, Stop};
use super::wire::Wire;

/// Read and written at a time.
const PIECE_LEN: usize = 256 * 1024;
/// Up to here head and body go out in one write.
const JOINED_LEN_MAX: u64 = 64 * 1024;

pub struct Sender<'a> {
    pub faults: &'a Faults,
    pub log: &'a Log,
    /// Of all answers together.
    pub pace: &'a Pace,
    /// The log entry of this answer.
    pub entry: u64,
    /// The rule that decided, for its halts.
    pub rule: Option<&'a str>,
}

/// How an answer ended, and with it perhaps the connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    KeptAlive,
    Closed,
    Reset,
    Truncated,
    PeerLeft,
}

impl Sender<'_> {
    pub fn send(&self, wire: &mut Wire, plan: &Plan) -> Outcome {
        let own_pace = Pace::default();
        own_pace.set(plan.rate);
        self.log.answered(self.entry, plan.status);
        self.send_all(wire, plan, &own_pace)
            .unwrap_or(Outcome::PeerLeft)
    }

    fn send_all(&self, wire: &mut Wire, plan: &Plan, own_pace: &Pace) -> io::Result<Outcome> {
        let mut buffer = Vec::new();
        let joined = plan.len <= JOINED_LEN_MAX && plan.stops.is_empty() && plan.rate.is_none();
        if joined && plan.coding != Coding::Chunked {
            let mut bytes = plan.head.clone();
            bytes.resize(plan.head.len() + plan.len as usize, 0);
            plan.read_at(0, &mut bytes[plan.head.len()..]);
            self.pace.wait(plan.len as usize);
            wire.write_all(&bytes)?;
            self.log.sent(self.entry, plan.len);
            return Ok(self.ended(plan));
        }
        wire.write_all(&plan.head)?;
        wire.flush()?;
        let mut at = 0;
        loop {
            for stop in plan.stops_at(at) {
                if let Some(outcome) = self.stop(wire, stop) {
                    return Ok(outcome);
                }
            }
            if at >= plan.len {
                break;
            }
            let len_max = self.pace.piece_len(own_pace.piece_len(PIECE_LEN));
            let len = (plan.run_end(at) - at).min(len_max as u64) as usize;
            buffer.resize(len, 0);
            plan.read_at(at, &mut buffer);
            own_pace.wait(len);
            self.pace.wait(len);
            match plan.coding {
                Coding::Length | Coding::UntilClose => wire.write_all(&buffer)?,
                Coding::Chunked => {
                    wire.write_all(format!("{len:x}\r\n").as_bytes())?;
                    wire.write_all(&buffer)?;
                    wire.write_all(b"\r\n")?;
                }
            }
            self.log.sent(self.entry, len as u64);
            at += len as u64;
        }
        if plan.coding == Coding::Chunked {
            wire.write_all(b"0\r\n\r\n")?;
        }
        wire.flush()?;
        Ok(self.ended(plan))
    }

    fn ended(&self, plan: &Plan) -> Outcome {
        if plan.close {
            Outcome::Closed
        } else {
            Outcome::KeptAlive
        }
    }

    /// `None`: go on.
    fn stop(&self, wire: &mut Wire, stop: Stop) -> Option<Outcome> {
        match stop {
            Stop::Halt => (self.halt(wire) == Halted::PeerLeft).then_some(Outcome::PeerLeft),
            Stop::Stall => {
                self.log.state(self.entry, State::Halted);
                self.faults.stall(|| wire.socket().peer_left());
                Some(Outcome::PeerLeft)
            }
            Stop::Reset => Some(Outcome::Reset),
            Stop::Truncate => Some(Outcome::Truncated),
        }
    }

    /// Until the rule is released or the peer leaves.
    pub fn halt(&self, wire: &Wire) -> Halted {
        let Some(rule) = self.rule else {
            return Halted::Released;
        };
        self.log.state(self.entry, State::Halted);
        let halted = self.faults.halt(rule, || wire.socket().peer_left());
        self.log.state(self.entry, State::Running);
        halted
    }
}
