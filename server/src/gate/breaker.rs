//! Whether an upstream is worth a request: closed, open, or letting one probe through.
//!
//! Pure: time and chance come in as arguments. Only answers about the upstream itself count; what
//! counts is decided by the caller. Failures of requests that were already under way when it
//! opened say nothing new and are ignored; a success of one of them does.

use std::time::{Duration, Instant};

use crate::failure::Failure;

/// When to give an upstream up for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Failures in a row that open it; 0: it never opens.
    pub failures: u32,
    /// The first pause, doubled at each failed probe.
    pub pause: Duration,
    pub pause_max: Duration,
}

/// A pause is longer or shorter by up to this part, so that servers that lost an upstream
/// together do not come back together.
pub const JITTER: f64 = 0.25;
/// An upstream that answers, if only with 5xx, is probed at least this often: the probe may have
/// met the one repository that is broken there.
const ANSWERING_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Doublings beyond which no pause grows; keeps the shift in range.
const DOUBLINGS_MAX: u32 = 16;

#[derive(Clone, Debug)]
enum State {
    Closed,
    Open { until: Instant },
    Probing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Go,
    /// The pause is over: this request is the probe.
    Probe,
    /// A probe is under way.
    Wait,
    /// Not before this much time.
    Refuse(Duration),
}

/// What a failure or success changed, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Opened(Duration),
    Closed,
}

#[derive(Debug)]
pub struct Breaker {
    state: State,
    /// In a row.
    failures: u32,
    /// Pauses since it was closed last.
    pauses: u32,
    last: Option<Failure>,
}

impl Breaker {
    pub fn new() -> Breaker {
        Breaker {
            state: State::Closed,
            failures: 0,
            pauses: 0,
            last: None,
        }
    }

    pub fn verdict(&self, now: Instant) -> Verdict {
        match self.state {
            State::Closed => Verdict::Go,
            State::Open { until } if until <= now => Verdict::Probe,
            State::Open { until } => Verdict::Refuse(until - now),
            State::Probing => Verdict::Wait,
        }
    }

    /// The request that got [`Verdict::Probe`] is sent.
    pub fn begin_probe(&mut self) {
        self.state = State::Probing;
    }

    /// The probe was given up without an answer: the next request is one.
    pub fn lose_probe(&mut self, now: Instant) {
        if matches!(self.state, State::Probing) {
            self.state = State::Open { until: now };
        }
    }

    pub fn succeeded(&mut self) -> Option<Change> {
        let was_closed = matches!(self.state, State::Closed);
        *self = Breaker::new();
        (!was_closed).then_some(Change::Closed)
    }

    /// `chance` is anywhere from 0 to 1.
    pub fn failed(
        &mut self,
        failure: Failure,
        probe: bool,
        rules: &Rules,
        now: Instant,
        chance: f64,
    ) -> Option<Change> {
        self.failures = self.failures.saturating_add(1);
        let opens = match self.state {
            State::Closed => rules.failures > 0 && self.failures >= rules.failures,
            State::Open { .. } | State::Probing => probe,
        };
        let answers = failure.status.is_some();
        self.last = Some(failure);
        if !opens {
            return None;
        }
        let pause = pause(rules, self.pauses, answers, chance);
        self.pauses = self.pauses.saturating_add(1);
        self.state = State::Open { until: now + pause };
        Some(Change::Opened(pause))
    }

    /// Failures in a row, the last of which is [`Breaker::last`].
    pub fn failures(&self) -> u32 {
        self.failures
    }

    pub fn last(&self) -> Option<&Failure> {
        self.last.as_ref()
    }

    /// Nothing has failed since the last success.
    pub fn is_quiet(&self) -> bool {
        self.failures == 0 && matches!(self.state, State::Closed)
    }

    /// 0 closed, 1 probing, 2 open.
    pub fn level(&self) -> u64 {
        match self.state {
            State::Closed => 0,
            State::Probing => 1,
            State::Open { .. } => 2,
        }
    }
}

fn pause(rules: &Rules, pauses: u32, answers: bool, chance: f64) -> Duration {
    let max = match answers {
        true => rules.pause_max.min(ANSWERING_PAUSE_MAX),
        false => rules.pause_max,
    };
    let grown = rules.pause.saturating_mul(1 << pauses.min(DOUBLINGS_MAX));
    grown.min(max).mul_f64(1.0 - JITTER + 2.0 * JITTER * chance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::FailureKind;

    const RULES: Rules = Rules {
        failures: 3,
        pause: Duration::from_secs(1),
        pause_max: Duration::from_secs(30),
    };
    /// No jitter.
    const EVEN: f64 = 0.5;

    fn unreachable() -> Failure {
        Failure::new(FailureKind::Unreachable, "refused")
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new();
        for failure in 1..=3 {
            let change = breaker.failed(unreachable(), false, &RULES, now, EVEN);
            let expected = (failure == 3).then_some(Change::Opened(RULES.pause));
            assert_eq!(change, expected);
        }
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_them_does_not() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        for _ in 0..10 {
            breaker.failed(unreachable(), false, &RULES, now, EVEN);
            breaker.failed(unreachable(), false, &RULES, now, EVEN);
            assert!(!breaker.is_quiet());
            assert_eq!(breaker.succeeded(), None);
            assert!(breaker.is_quiet());
        }
        assert_eq!(breaker.verdict(now), Verdict::Go);
        assert_eq!(opened(now).verdict(now), Verdict::Refuse(RULES.pause));
    }

    #[test]
    fn after_the_pause_one_probe_decides() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + RULES.pause;
        assert_eq!(breaker.verdict(later), Verdict::Probe);
        breaker.begin_probe();
        assert_eq!(breaker.verdict(later), Verdict::Wait);
        // One that was sent before.
        assert_eq!(
            breaker.failed(unreachable(), false, &RULES, later, EVEN),
            None
        );
        assert_eq!(breaker.verdict(later), Verdict::Wait);
        let doubled = Some(Change::Opened(RULES.pause * 2));
        assert_eq!(
            breaker.failed(unreachable(), true, &RULES, later, EVEN),
            doubled
        );
        assert_eq!(breaker.verdict(later), Verdict::Refuse(RULES.pause * 2));
        breaker.begin_probe();
        assert_eq!(breaker.succeeded(), Some(Change::Closed));
        assert_eq!(breaker.verdict(later), Verdict::Go);
    }

    #[test]
    fn a_probe_that_is_given_up_is_followed_by_another() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.begin_probe();
        breaker.lose_probe(now);
        assert_eq!(breaker.verdict(now), Verdict::Probe);
    }

    #[test]
    fn pauses_grow_to_their_cap_and_are_not_all_equal() {
        let spans = |answers, chance| -> Vec<u64> {
            let spans = (0..40).map(|pauses| pause(&RULES, pauses, answers, chance));
            spans.map(|span| span.as_millis() as u64).collect()
        };
        let even = spans(false, EVEN);
        assert_eq!(even[..6], [1_000, 2_000, 4_000, 8_000, 16_000, 30_000]);
        assert_eq!(even[39], 30_000);
        assert_eq!(spans(true, EVEN)[39], 5_000);
        assert_eq!((spans(false, 0.0)[0], spans(false, 1.0)[0]), (750, 1_250));
    }

    #[test]
    fn without_a_number_of_failures_it_never_opens() {
        let now = Instant::now();
        let rules = Rules {
            failures: 0,
            ..RULES
        };
        let mut breaker = Breaker::new();
        for _ in 0..100 {
            breaker.failed(unreachable(), false, &rules, now, EVEN);
        }
        assert_eq!(breaker.verdict(now), Verdict::Go);
    }
}
