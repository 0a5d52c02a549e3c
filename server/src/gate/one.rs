//! The gate of one upstream. Pure: time and chance come in, settled asks go out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::failure::{Failure, FailureKind};

use super::board::{Figure, Levels};
use super::breaker::{self, Breaker, Change};
use super::governor::{self, Governor, Lane};
use super::negative::{Namer, Negatives};
use super::pass::{Enter, Heard, Leave, Name, Probes, Refusal, Rules, Standing, Urgency};
use super::permits::Permits;

/// An ask and what became of it; sent on by the owner, who alone can make a pass.
pub type Settled = (Enter, Result<Grant, Refusal>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    pub probes: Probes,
    /// Nothing has failed: a plain success is no news.
    pub quiet: bool,
}

enum Verdict {
    Go(Grant),
    Wait(Why),
    Refuse(Refusal),
}

/// What an ask waits for.
enum Why {
    Permit,
    Probe,
    Lane,
}

pub struct Gate {
    name: Name,
    rules: Rules,
    breaker: Breaker,
    governor: Governor,
    permits: Permits<Enter>,
    negatives: Negatives,
    levels: Arc<Levels>,
    /// Its upstream is no longer configured.
    retired: bool,
}

impl Gate {
    /// `levels` are those on the board; `None` for a request that is later than a reload.
    pub fn new(name: Name, rules: Rules, levels: Option<Arc<Levels>>) -> Gate {
        Gate {
            retired: levels.is_none(),
            levels: levels.unwrap_or_else(|| Arc::new(Levels::new(name.clone()))),
            name,
            rules,
            breaker: Breaker::new(),
            governor: Governor::default(),
            permits: Permits::new(),
            negatives: Negatives::default(),
        }
    }

    pub fn enter(&mut self, ask: Enter, now: Instant, settled: &mut Vec<Settled>) {
        self.rules = ask.rules;
        match self.verdict(&ask, now) {
            Verdict::Go(grant) => settled.push((ask, Ok(grant))),
            Verdict::Refuse(refusal) => self.refuse(ask, refusal, settled),
            Verdict::Wait(_) => {
                if let Err(ask) = self.permits.queue(ask) {
                    let failure = Failure::busy(&format!("waiting for {}", self.name.origin));
                    self.refuse(ask, failure.into(), settled);
                }
            }
        }
        self.show(now);
    }

    pub fn leave(&mut self, leave: Leave, now: Instant, chance: f64, settled: &mut Vec<Settled>) {
        match &leave.heard {
            Some(heard) => self.hear(heard, &leave, now, chance),
            None => self.lose_probes(&leave, now),
        }
        if leave.frees {
            self.permits.give_back(leave.lane);
        }
        self.settle(now, settled);
    }

    /// Lets through who need not wait any more, and refuses whose time is up.
    pub fn settle(&mut self, now: Instant, settled: &mut Vec<Settled>) {
        for ask in self.permits.take_waiting() {
            if ask.reply.is_disconnected() {
                continue;
            }
            match self.verdict(&ask, now) {
                Verdict::Go(grant) => settled.push((ask, Ok(grant))),
                Verdict::Refuse(refusal) => self.refuse(ask, refusal, settled),
                Verdict::Wait(why) if ask.deadline <= now => {
                    let refusal = self.waited(why, &ask, now);
                    self.refuse(ask, refusal, settled);
                }
                // There was room for it before.
                Verdict::Wait(_) => drop(self.permits.queue(ask)),
            }
        }
        self.show(now);
    }

    pub fn has_waiting(&self) -> bool {
        self.permits.waiting() > 0
    }

    /// Nobody is inside or waits, and it is not configured any more.
    pub fn is_over(&self) -> bool {
        self.retired && self.permits.in_use() == 0 && !self.has_waiting()
    }

    /// Writes there from now on; `None`: its upstream is no longer configured.
    pub fn show_on(&mut self, levels: Option<Arc<Levels>>, now: Instant) {
        self.retired = levels.is_none();
        if let Some(levels) = levels {
            self.levels = levels;
            self.show(now);
        }
    }

    /// What is in the scope (a project, or one of its repositories) may be there now.
    pub fn forget(&mut self, namer: &Namer, scope: Option<(&str, Option<&str>)>) {
        match scope {
            Some((project, repository)) => {
                self.negatives.clear_within(namer, project, repository);
            }
            None => self.negatives.clear_all(),
        }
    }

    fn refuse(&self, ask: Enter, refusal: Refusal, settled: &mut Vec<Settled>) {
        self.levels.add(Figure::Refused, 1);
        settled.push((ask, Err(refusal)));
    }

    fn verdict(&mut self, ask: &Enter, now: Instant) -> Verdict {
        let known = ask.question.as_ref();
        if let Some(known) = known.and_then(|question| self.negatives.get(question, now)) {
            self.levels.add(Figure::NegativeAnswers, 1);
            return Verdict::Refuse(known.clone().into());
        }
        let patient = ask.urgency == Urgency::Patient;
        let breaker = match self.breaker.verdict(now) {
            breaker::Verdict::Go => false,
            breaker::Verdict::Probe => true,
            breaker::Verdict::Wait if patient => return Verdict::Wait(Why::Probe),
            breaker::Verdict::Wait => return Verdict::Refuse(self.given_up(Duration::ZERO)),
            breaker::Verdict::Refuse(left) => return Verdict::Refuse(self.given_up(left)),
        };
        let lane = match self.governor.verdict(ask.lane, now) {
            governor::Verdict::Go => false,
            governor::Verdict::Probe => true,
            governor::Verdict::Wait if patient => return Verdict::Wait(Why::Lane),
            governor::Verdict::Wait => return Verdict::Refuse(self.held(ask.lane, Duration::ZERO)),
            governor::Verdict::Held(left) if patient && now + left <= ask.deadline => {
                return Verdict::Wait(Why::Lane);
            }
            governor::Verdict::Held(left) => return Verdict::Refuse(self.held(ask.lane, left)),
        };
        if !self.permits.has_free(ask.lane, self.rules.connections_max) {
            return Verdict::Wait(Why::Permit);
        }
        Verdict::Go(self.grant(ask, Probes { breaker, lane }))
    }

    fn grant(&mut self, ask: &Enter, probes: Probes) -> Grant {
        let quiet = self.breaker.is_quiet() && self.governor.is_quiet();
        let known = ask.question.as_ref();
        let remembered = known.is_some_and(|question| self.negatives.has(question));
        self.permits.take(ask.lane);
        if probes.breaker {
            self.breaker.begin_probe();
        }
        if probes.lane {
            self.governor.begin_probe(ask.lane);
        }
        Grant {
            probes,
            quiet: quiet && !remembered,
        }
    }

    fn hear(&mut self, heard: &Heard, leave: &Leave, now: Instant, chance: f64) {
        if let Some(budget) = heard.budget {
            self.governor.learn(budget, now);
        }
        if let Some(question) = leave.question {
            let time = self.rules.negative_for;
            match &heard.failure {
                Some(failure) => self.negatives.put(question, failure, time, now),
                None => self.negatives.clear(&question),
            }
        }
        self.hear_lane(heard, leave, now);
        let change = match (heard.standing, &heard.failure) {
            (Standing::Answers, _) => self.breaker.succeeded(),
            (Standing::Fails, Some(failure)) => {
                let (failure, rules) = (failure.clone(), &self.rules.breaker);
                let probe = leave.probes.breaker;
                self.breaker.failed(failure, probe, rules, now, chance)
            }
            (Standing::Fails | Standing::Unknown, _) => {
                if leave.probes.breaker {
                    self.breaker.lose_probe(now);
                }
                None
            }
        };
        self.log_change(change);
    }

    fn hear_lane(&mut self, heard: &Heard, leave: &Leave, now: Instant) {
        let (lane, probe) = (leave.lane, leave.probes.lane);
        match (heard.standing, &heard.failure) {
            (_, Some(failure)) if heard.holds => {
                let held = self.governor.limited(lane, failure, heard.wait, probe, now);
                self.log_held(lane, failure, held);
            }
            (Standing::Answers, _) => {
                if self.governor.answered(lane, probe) {
                    let upstream = &*self.name.origin;
                    tracing::info!(upstream, ?lane, "upstream answers this often again");
                }
            }
            (Standing::Fails | Standing::Unknown, _) if probe => {
                self.governor.lose_probe(lane, now);
            }
            (Standing::Fails | Standing::Unknown, _) => {}
        }
    }

    fn lose_probes(&mut self, leave: &Leave, now: Instant) {
        if leave.probes.breaker {
            self.breaker.lose_probe(now);
        }
        if leave.probes.lane {
            self.governor.lose_probe(leave.lane, now);
        }
    }

    fn log_held(&self, lane: Lane, said: &Failure, held: Option<Duration>) {
        let Some(held) = held else { return };
        self.levels.add(Figure::Limited, 1);
        let (upstream, hold_s) = (&*self.name.origin, held.as_secs());
        let status = said.status;
        tracing::warn!(
            upstream,
            ?lane,
            status,
            hold_s,
            "upstream wants to be left alone: requests are held"
        );
    }

    fn log_change(&self, change: Option<Change>) {
        let upstream = &*self.name.origin;
        match change {
            Some(Change::Opened(pause)) => {
                self.levels.add(Figure::Opened, 1);
                let (failures, pause_ms) = (self.breaker.failures(), pause.as_millis() as u64);
                let error = self.breaker.last().map_or("", |failure| &*failure.detail);
                tracing::warn!(
                    upstream,
                    failures,
                    pause_ms,
                    error,
                    "upstream fails and is not asked for now"
                );
            }
            Some(Change::Closed) => tracing::info!(upstream, "upstream answers again"),
            None => {}
        }
    }

    /// What the breaker refuses with: the failure it knows, and when it may be different.
    fn given_up(&self, left: Duration) -> Refusal {
        let seconds = whole_seconds(left);
        let (kind, last) = match self.breaker.last() {
            Some(failure) => (failure.kind, &*failure.detail),
            None => (FailureKind::Unreachable, &*self.name.origin),
        };
        let detail = format!("{last}; not asked again for {seconds} s");
        let failure = Failure {
            retry_after_s: Some(seconds),
            ..Failure::new(kind, detail)
        };
        failure.into()
    }

    /// What a held lane refuses with: as the upstream did, and until when.
    fn held(&self, lane: Lane, left: Duration) -> Refusal {
        let seconds = whole_seconds(left);
        let origin = &self.name.origin;
        let (kind, said) = match self.governor.said(lane) {
            Some(failure) => (failure.kind, &*failure.detail),
            None => (FailureKind::RateLimited, &**origin),
        };
        let detail = format!("{said}; asked again in {seconds} s");
        let failure = Failure {
            retry_after_s: Some(seconds),
            ..Failure::new(kind, detail)
        };
        Refusal {
            failure,
            holds: true,
        }
    }

    /// What an ask is refused with that waited until its deadline.
    fn waited(&self, why: Why, ask: &Enter, now: Instant) -> Refusal {
        match why {
            Why::Permit => {
                let max = self.rules.connections_max;
                Failure::busy(&format!("{max} connections to {}", self.name.origin)).into()
            }
            Why::Probe => self.given_up(Duration::ZERO),
            Why::Lane => match self.governor.verdict(ask.lane, now) {
                governor::Verdict::Held(left) => self.held(ask.lane, left),
                _ => self.held(ask.lane, Duration::ZERO),
            },
        }
    }

    /// Puts the state where `/metrics` and the tags of all shards find it.
    fn show(&self, now: Instant) {
        let levels = &self.levels;
        levels.set(Figure::Breaker, self.breaker.level());
        levels.set(Figure::Permits, self.permits.in_use() as u64);
        levels.set(Figure::Waiting, self.permits.waiting() as u64);
        levels.set(Figure::HeldLanes, self.governor.held_lanes());
        levels.set(Figure::Negatives, self.negatives.len() as u64);
        let budget = self.governor.budget();
        let (limit, remaining) = budget.map_or((0, 0), |b| (b.limit, b.remaining));
        levels.set(Figure::BudgetLimit, limit);
        levels.set(Figure::BudgetRemaining, remaining);
        let (factor, until) = self.governor.stretch().unwrap_or((1, now));
        if levels.stretch_to(factor, until.saturating_duration_since(now)) {
            let upstream = &*self.name.origin;
            tracing::info!(
                upstream,
                limit,
                remaining,
                factor,
                "rate budget: times of freshness are longer by this factor"
            );
        }
    }
}

/// What a client is told to wait: whole seconds, at least one.
fn whole_seconds(left: Duration) -> u32 {
    let seconds = left.as_millis().div_ceil(1000).max(1);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}
