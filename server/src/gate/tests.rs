//! The gate of one upstream, moved by hand through time: asks go in, settled ones come out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::failure::{Failure, FailureKind};
use crate::upstream::{Method, UpstreamId};

use super::board::{Board, Figure, Levels};
use super::breaker;
use super::governor::Lane;
use super::negative::Question;
use super::one::{Gate, Grant, Settled};
use super::pass::{
    Enter, Heard, Leave, Name, Pass, Probes, Refusal, Rules, Standing, Urgency, WAIT_MAX,
};
use super::permits::WAITING_MAX;

const RULES: Rules = Rules {
    connections_max: 8,
    breaker: breaker::Rules {
        failures: 3,
        pause: Duration::from_secs(1),
        pause_max: Duration::from_secs(8),
    },
    negative_for: Duration::from_secs(5),
};
/// No jitter.
const EVEN: f64 = 0.5;
const UPSTREAM: UpstreamId = UpstreamId(7);

type Replies = flume::Receiver<Result<Pass, Refusal>>;

/// A gate, the time at it, and the clients before it.
struct World {
    gate: Gate,
    levels: Arc<Levels>,
    board: Board,
    now: Instant,
    /// Who asked and is still there.
    askers: Vec<Replies>,
}

fn name() -> Name {
    Name {
        project: "dh".into(),
        origin: "https://r.example".into(),
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl World {
    fn new() -> World {
        let board = Board::default();
        let shown = board.adopt([(UPSTREAM, name())].into_iter());
        let levels = shown[&UPSTREAM].clone();
        World {
            gate: Gate::new(name(), RULES, Some(levels.clone())),
            levels,
            board,
            now: Instant::now(),
            askers: Vec::new(),
        }
    }

    fn question(&self, path: &str) -> Question {
        let namer = self.board.namer();
        namer.question("dh", "library/app", Method::Get, path)
    }

    fn ask(&mut self, lane: Lane, urgency: Urgency) -> Enter {
        let (reply, asker) = flume::bounded(1);
        self.askers.push(asker);
        Enter {
            upstream: UPSTREAM,
            name: name(),
            rules: RULES,
            lane,
            question: None,
            urgency,
            deadline: self.now + WAIT_MAX,
            reply,
        }
    }

    fn enter(&mut self, ask: Enter) -> Option<Result<Grant, Refusal>> {
        let mut settled = Vec::new();
        self.gate.enter(ask, self.now, &mut settled);
        assert!(settled.len() <= 1);
        settled.pop().map(|(_, outcome)| outcome)
    }

    /// One that need not wait.
    #[track_caller]
    fn granted(&mut self, lane: Lane) -> Grant {
        let ask = self.ask(lane, Urgency::Patient);
        let outcome = self.enter(ask).expect("it does not wait");
        outcome.expect("it is let through")
    }

    #[track_caller]
    fn refused(&mut self, lane: Lane, urgency: Urgency) -> Failure {
        self.refusal(lane, urgency).failure
    }

    #[track_caller]
    fn refusal(&mut self, lane: Lane, urgency: Urgency) -> Refusal {
        let ask = self.ask(lane, urgency);
        let outcome = self.enter(ask).expect("it does not wait");
        outcome.expect_err("it is refused")
    }

    #[track_caller]
    fn waits(&mut self, lane: Lane) {
        let ask = self.ask(lane, Urgency::Patient);
        assert!(self.enter(ask).is_none(), "it waits");
    }

    /// A request was answered and its permit is free again.
    fn leave(&mut self, lane: Lane, probes: Probes, heard: Option<Heard>) -> Vec<Settled> {
        let leave = Leave {
            upstream: UPSTREAM,
            lane,
            question: None,
            heard,
            probes,
            frees: true,
        };
        let mut settled = Vec::new();
        self.gate.leave(leave, self.now, EVEN, &mut settled);
        settled
    }

    fn later(&mut self, time: Duration) -> Vec<Settled> {
        self.now += time;
        let mut settled = Vec::new();
        self.gate.settle(self.now, &mut settled);
        settled
    }

    /// One request that comes to this.
    fn hear(&mut self, lane: Lane, heard: Heard) -> Vec<Settled> {
        let grant = self.granted(lane);
        self.leave(lane, grant.probes, Some(heard))
    }
}

fn good() -> Heard {
    Heard {
        standing: Standing::Answers,
        failure: None,
        holds: false,
        wait: None,
        budget: None,
    }
}

fn status(standing: Standing, status: u16, wait_s: Option<u64>) -> Heard {
    Heard {
        standing,
        failure: Some(Failure::status("https://r.example", status, None)),
        holds: status == 429 || wait_s.is_some(),
        wait: wait_s.map(seconds),
        budget: None,
    }
}

fn limited(wait_s: u64) -> Heard {
    status(Standing::Answers, 429, Some(wait_s))
}

#[test]
fn bodies_wait_for_each_other_and_heads_for_nobody() {
    let mut world = World::new();
    for _ in 0..RULES.connections_max - 1 {
        world.granted(Lane::Other);
    }
    world.waits(Lane::Other);
    world.waits(Lane::Manifest);
    world.granted(Lane::Head);
    // All are in use now.
    world.waits(Lane::Head);
    assert_eq!(world.levels.get(Figure::Permits), 8);
    assert_eq!(world.levels.get(Figure::Waiting), 3);
    // What a HEAD frees goes to the next HEAD and not to those before it.
    let settled = world.leave(Lane::Head, Probes::default(), Some(good()));
    assert_eq!(settled.len(), 1);
    assert_eq!(settled[0].0.lane, Lane::Head);
    let settled = world.leave(Lane::Other, Probes::default(), Some(good()));
    assert_eq!(settled.len(), 1);
    assert_eq!(settled[0].0.lane, Lane::Other, "the first in the queue");
}

#[test]
fn who_waits_is_refused_at_its_deadline_and_forgotten_when_it_is_gone() {
    let mut world = World::new();
    for _ in 0..RULES.connections_max - 1 {
        world.granted(Lane::Other);
    }
    world.waits(Lane::Other);
    world.waits(Lane::Other);
    world.askers.pop();
    assert!(world.later(WAIT_MAX - seconds(1)).is_empty());
    assert_eq!(world.levels.get(Figure::Waiting), 1, "the other has gone");
    let settled = world.later(seconds(1));
    let refused = settled[0].1.as_ref().expect_err("its time is up");
    assert_eq!(refused.failure.kind, FailureKind::Busy);
    assert!(!refused.holds, "that is not for the upstream to say");
    assert!(!world.gate.has_waiting());
}

#[test]
fn the_queue_is_bounded() {
    let mut world = World::new();
    for _ in 0..RULES.connections_max - 1 {
        world.granted(Lane::Other);
    }
    for _ in 0..WAITING_MAX {
        world.waits(Lane::Other);
    }
    let refused = world.refused(Lane::Other, Urgency::Patient);
    assert_eq!(refused.kind, FailureKind::Busy);
    assert_eq!(world.levels.get(Figure::Refused), 1);
}

#[test]
fn a_limit_holds_its_lane_and_says_so_to_who_cannot_wait() {
    let mut world = World::new();
    world.hear(Lane::Manifest, limited(10));
    let refused = world.refused(Lane::Manifest, Urgency::Prompt);
    assert_eq!(
        (refused.kind, refused.retry_after_s, refused.status),
        (FailureKind::RateLimited, Some(10), None)
    );
    world.granted(Lane::Other);
    world.waits(Lane::Manifest);
    world.waits(Lane::Manifest);
    // One goes ahead, and the other when that one was answered.
    let settled = world.later(seconds(10));
    assert_eq!(settled.len(), 1);
    let probes = settled[0].1.as_ref().expect("it goes ahead").probes;
    assert!(probes.lane && !probes.breaker);
    let settled = world.leave(Lane::Manifest, probes, Some(good()));
    assert_eq!(settled.len(), 1);
    assert_eq!(world.levels.get(Figure::HeldLanes), 0);
    assert_eq!(world.levels.get(Figure::Limited), 1);
}

#[test]
fn a_hold_that_ends_after_the_deadline_is_not_waited_for() {
    let mut world = World::new();
    world.hear(Lane::Other, limited(WAIT_MAX.as_secs() + 1));
    let refused = world.refused(Lane::Other, Urgency::Patient);
    assert_eq!(refused.retry_after_s, Some(31));
}

/// RFC 9110 §10.2.3.
#[test]
fn a_busy_server_that_names_a_time_is_held_and_counts() {
    for code in [502, 503, 504] {
        let mut world = World::new();
        world.hear(Lane::Other, status(Standing::Fails, code, Some(5)));
        let refusal = world.refusal(Lane::Other, Urgency::Prompt);
        assert!(refusal.holds, "who is let in later may wait: {code}");
        let refused = refusal.failure;
        assert_eq!(
            (refused.kind, refused.retry_after_s),
            (FailureKind::ServerError, Some(5)),
            "as it said itself: {code}"
        );
        assert!(refused.detail.contains(&code.to_string()), "{refused:?}");
        world.waits(Lane::Other);
        assert_eq!(world.later(seconds(5)).len(), 1);

        // It names no time: nothing is held.
        let mut world = World::new();
        world.hear(Lane::Other, status(Standing::Fails, code, None));
        world.granted(Lane::Other);
        // No longer than a 429 could.
        let mut world = World::new();
        world.hear(Lane::Other, status(Standing::Fails, code, Some(86_400)));
        let refused = world.refused(Lane::Other, Urgency::Prompt);
        assert_eq!(refused.retry_after_s, Some(300));
    }
    let mut world = World::new();
    for lane in Lane::ALL {
        world.hear(lane, status(Standing::Fails, 503, Some(5)));
    }
    assert_eq!(world.levels.get(Figure::Breaker), 2, "three in a row");
    let refusal = world.refusal(Lane::Other, Urgency::Prompt);
    assert!(!refusal.holds, "the breaker is in the way, too");
}

#[test]
fn failures_open_it_and_one_probe_decides() {
    let mut world = World::new();
    for _ in 0..RULES.breaker.failures {
        world.hear(Lane::Other, status(Standing::Fails, 500, None));
    }
    assert_eq!(world.levels.get(Figure::Opened), 1);
    for urgency in [Urgency::Prompt, Urgency::Patient] {
        let refused = world.refused(Lane::Head, urgency);
        let kind = (refused.kind, refused.retry_after_s, refused.status);
        assert_eq!(kind, (FailureKind::ServerError, Some(1), None));
    }
    world.later(seconds(1));
    let probes = world.granted(Lane::Head).probes;
    assert!(probes.breaker && !probes.lane);
    world.waits(Lane::Other);
    world.refused(Lane::Other, Urgency::Prompt);
    // The probe is given up without an answer: who waits is the next.
    let settled = world.leave(Lane::Head, probes, None);
    let probes = settled[0].1.as_ref().expect("the next probe").probes;
    assert!(probes.breaker);
    let settled = world.leave(Lane::Other, probes, Some(good()));
    assert!(settled.is_empty());
    assert_eq!(world.levels.get(Figure::Breaker), 0);
    assert!(world.granted(Lane::Other).quiet);
}

#[test]
fn a_success_is_news_only_while_something_is_wrong() {
    let mut world = World::new();
    assert!(world.granted(Lane::Other).quiet);
    world.hear(Lane::Other, status(Standing::Fails, 500, None));
    assert!(!world.granted(Lane::Other).quiet);
    world.leave(Lane::Other, Probes::default(), Some(good()));
    assert!(world.granted(Lane::Other).quiet);
    world.hear(Lane::Head, limited(10));
    assert!(!world.granted(Lane::Other).quiet);
}

#[test]
fn a_negative_answer_is_given_again_until_its_time_is_up() {
    let mut world = World::new();
    let question = world.question("blobs/sha256:00");
    let asked = |world: &mut World| {
        let ask = world.ask(Lane::Other, Urgency::Patient);
        let asked = world.enter(Enter {
            question: Some(question),
            ..ask
        });
        asked.expect("it does not wait")
    };
    let grant = asked(&mut world).expect("nothing is known");
    let leave = Leave {
        upstream: UPSTREAM,
        lane: Lane::Other,
        question: Some(question),
        heard: Some(status(Standing::Answers, 404, None)),
        probes: grant.probes,
        frees: true,
    };
    world.gate.leave(leave, world.now, EVEN, &mut Vec::new());
    let refused = asked(&mut world).expect_err("it is known");
    assert_eq!(refused.failure.kind, FailureKind::NotFound);
    assert!(!refused.holds);
    assert_eq!(world.levels.get(Figure::NegativeAnswers), 1);
    world.now += RULES.negative_for;
    let grant = asked(&mut world).expect("it is asked for again");
    assert!(!grant.quiet, "its success has to be told");
}

#[test]
fn the_gate_of_a_retired_upstream_is_over_when_the_last_has_left() {
    let mut world = World::new();
    world.granted(Lane::Other);
    assert!(!world.gate.is_over());
    world.gate.show_on(None, world.now);
    assert!(!world.gate.is_over(), "one is inside");
    world.leave(Lane::Other, Probes::default(), None);
    assert!(world.gate.is_over());
    world.gate.show_on(Some(world.levels.clone()), world.now);
    assert!(!world.gate.is_over(), "a reload brought it back");
}
