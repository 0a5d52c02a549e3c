//! One connection from its first request to its end.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use super::Origin;
use super::answer::Answer;
use super::endpoint::{Endpoint, Kind, Side};
use super::fault::{Decision, Halted, Seen, Then};
use super::http::{Inbox, RequestHead};
use super::log::{Entry, FIELDS_KEPT, State};
use super::plan::{Plan, scripted};
use super::send::{Outcome, Sender};
use super::wire::{Socket, Wire};

const CONTROL_PREFIX: &str = "/_origin/";

/// `side` is absent on the control listener.
pub fn serve(origin: &Origin, side: Option<Side>, id: u64, stream: Arc<TcpStream>) {
    let tls = side.and_then(|side| Some(origin.tls.as_ref()?.config(side)));
    let Ok(mut wire) = Wire::new(Socket(stream), tls) else {
        return;
    };
    let mut inbox = Inbox::default();
    loop {
        let (head, body) = match inbox.next(&mut wire) {
            Ok(Some(request)) => request,
            Ok(None) => return wire.close(),
            Err(error) => {
                let answer = Answer::error(400, Kind::Other, &error.to_string());
                // The connection ends whether or not this arrives.
                let _ = send_plainly(&mut wire, answer, "GET", true);
                return wire.close();
            }
        };
        let controls = matches!(side, None | Some(Side::Registry));
        let outcome = if controls && head.path.starts_with(CONTROL_PREFIX) {
            let answer = origin.control(&head, &body, id);
            send_plainly(&mut wire, answer, &head.method, head.close)
        } else if let Some(side) = side {
            let peer = Peer {
                side,
                connection: id,
                certified: wire.shows_certificate(),
            };
            Exchange::new(origin, peer, &head).run(&mut wire, &body)
        } else {
            let answer = Answer::error(404, Kind::Other, "only /_origin/ here");
            send_plainly(&mut wire, answer, &head.method, true)
        };
        match outcome {
            Outcome::KeptAlive => {}
            Outcome::Closed | Outcome::PeerLeft => return wire.close(),
            Outcome::Truncated => return wire.truncate(),
            Outcome::Reset => return wire.reset(),
        }
    }
}

fn send_plainly(wire: &mut Wire, answer: Answer, method: &str, close: bool) -> Outcome {
    let plan = Plan::new(answer, &Then::default(), method, close);
    let mut bytes = plan.head.clone();
    bytes.resize(plan.head.len() + plan.len as usize, 0);
    plan.read_at(0, &mut bytes[plan.head.len()..]);
    let written = wire.write_all(&bytes).and_then(|()| wire.flush());
    match written {
        Ok(()) if close => Outcome::Closed,
        Ok(()) => Outcome::KeptAlive,
        Err(_) => Outcome::PeerLeft,
    }
}

/// Where a request comes in, and on what.
struct Peer {
    side: Side,
    connection: u64,
    /// It showed a certificate.
    certified: bool,
}

/// One request and its answer, logged and perhaps faulty.
struct Exchange<'a> {
    origin: &'a Origin,
    side: Side,
    head: &'a RequestHead,
    endpoint: Endpoint<'a>,
    decision: Option<Decision>,
    /// The log entry.
    entry: u64,
}

impl<'a> Exchange<'a> {
    fn new(origin: &'a Origin, peer: Peer, head: &'a RequestHead) -> Exchange<'a> {
        let Peer {
            side,
            connection,
            certified,
        } = peer;
        let endpoint = Endpoint::parse(side, &head.path);
        let decision = origin.faults.decide(&Seen {
            listener: side,
            method: &head.method,
            kind: endpoint.kind,
            repository: endpoint.repository,
            path: &head.path,
            target: &head.target(),
            range: head.field("range").is_some(),
            authorization: head.field("authorization").is_some(),
        });
        let kept = FIELDS_KEPT.iter().filter(|name| head.field(name).is_some());
        let values = |name: &str| head.fields(name).map(str::to_owned).collect();
        let entry = origin.log.begin(Entry {
            n: 0,
            t_ms: 0,
            listener: side,
            connection,
            method: head.method.clone(),
            path: head.path.clone(),
            query: head.query.clone(),
            kind: endpoint.kind,
            repository: endpoint.repository.map(str::to_owned),
            fields: kept
                .map(|name| ((*name).to_owned(), values(name)))
                .collect(),
            authorization: head.field("authorization").map(scheme),
            certified,
            fault: decision.as_ref().map(|decision| decision.id.clone()),
            status: 0,
            bytes: 0,
            state: State::Running,
        });
        Exchange {
            origin,
            side,
            head,
            endpoint,
            decision,
            entry,
        }
    }

    fn run(&self, wire: &mut Wire, body: &[u8]) -> Outcome {
        let outcome = self.answer(wire, body);
        let state = match outcome {
            Outcome::KeptAlive | Outcome::Closed => State::Complete,
            Outcome::Reset => State::Reset,
            Outcome::Truncated => State::Truncated,
            Outcome::PeerLeft => State::ClientClosed,
        };
        self.origin.log.end(self.entry, state);
        outcome
    }

    fn answer(&self, wire: &mut Wire, body: &[u8]) -> Outcome {
        let sender = Sender {
            faults: &self.origin.faults,
            log: &self.origin.log,
            pace: &self.origin.pace,
            entry: self.entry,
            rule: self.decision.as_ref().map(|decision| decision.id.as_str()),
        };
        let none = Then::default();
        let then = self
            .decision
            .as_ref()
            .map_or(&none, |decision| &decision.then);
        if then.refuse {
            return Outcome::Truncated;
        }
        std::thread::sleep(Duration::from_millis(then.delay_ms));
        if then.hang && sender.halt(wire) == Halted::PeerLeft {
            return Outcome::PeerLeft;
        }
        if let Some(text) = &then.raw {
            return self.send_raw(wire, text, then.raw_repeat.unwrap_or(1));
        }
        let scripted = scripted(then, &self.cdn_target(), |status| self.error(status));
        let mut head = self.head.clone();
        if then.whole {
            head.fields.retain(|(name, _)| name != "range");
        }
        let answer = scripted.unwrap_or_else(|| self.origin.respond(self.side, &head, body));
        let plan = Plan::new(answer, then, &self.head.method, self.head.close);
        sender.send(wire, &plan)
    }

    fn send_raw(&self, wire: &mut Wire, text: &str, times: u64) -> Outcome {
        for _ in 0..times {
            if wire.write_all(text.as_bytes()).is_err() {
                return Outcome::PeerLeft;
            }
            self.origin.log.sent(self.entry, text.len() as u64);
        }
        match wire.flush() {
            Ok(()) => Outcome::Closed,
            Err(_) => Outcome::PeerLeft,
        }
    }

    fn cdn_target(&self) -> String {
        let cdn = &self.origin.urls.cdn;
        match (self.endpoint.kind, self.endpoint.repository) {
            (Kind::Blob, Some(name)) => {
                let entry = self.entry;
                format!(
                    "{cdn}/blobs/{name}/{}?signature={entry}",
                    self.endpoint.reference
                )
            }
            _ => format!("{cdn}{}", self.head.path),
        }
    }

    /// A scripted status keeps what a client needs to act on it.
    fn error(&self, status: u16) -> Answer {
        let mut answer = Answer::error(status, self.endpoint.kind, "scripted");
        if status == 401 {
            let challenge = self.origin.auth().challenge(self.endpoint.repository, None);
            answer.field("WWW-Authenticate", &challenge);
        }
        answer
    }
}

fn scheme(authorization: &str) -> &'static str {
    match authorization.split(' ').next() {
        Some("Basic") => "basic",
        Some("Bearer") => "bearer",
        _ => "other",
    }
}
