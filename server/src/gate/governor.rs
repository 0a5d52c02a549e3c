//! What an upstream says of how often it may be asked, and what follows from it.
//!
//! Pure: time comes in as an argument. A 429 holds further requests of its lane until the time it
//! names is up, and so does a 502, 503 or 504 that names one; then one request goes ahead, and the
//! others follow if it is answered. Lanes,
//! because the largest registry counts GETs of manifests and neither HEADs nor layers: a tag can
//! still be checked, and an image whose manifest is held still be pulled, when its limit is
//! reached. As the budget falls, tags are checked less often.

use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::http::rate_limit::Budget;
use crate::upstream::Method;

/// What is limited together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Head,
    Manifest,
    /// Layers, lists, referrers.
    Other,
}

impl Lane {
    pub const ALL: [Lane; 3] = [Lane::Head, Lane::Manifest, Lane::Other];

    /// Of a request below `/v2/<repository>/`.
    pub fn of(method: Method, path: &str) -> Lane {
        match method {
            Method::Head => Lane::Head,
            Method::Get if path.starts_with("manifests/") => Lane::Manifest,
            Method::Get => Lane::Other,
        }
    }
}

/// No upstream is believed to want to be left alone for longer.
pub const HOLD_MAX: Duration = Duration::from_secs(300);
/// A `Retry-After: 0` and a clock that is a little off are no reason to ask at once.
const HOLD_MIN: Duration = Duration::from_secs(1);
/// The hold after the first 429 that names no time; doubled at each further one.
const HOLD_UNNAMED: Duration = Duration::from_secs(2);
const HOLD_UNNAMED_MAX: Duration = Duration::from_secs(60);
const DOUBLINGS_MAX: u32 = 8;
/// A budget is believed for a window, or for this long when the upstream names none.
const WINDOW: Duration = Duration::from_secs(3600);
/// The longest window: a day, as some registries count.
const WINDOW_MAX: Duration = Duration::from_secs(24 * 3600);

/// From this part of the budget on, in per cent, tags are trusted this many times as long.
const STRETCH: [(u64, u64); 4] = [(0, 16), (10, 8), (25, 4), (50, 2)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Go,
    /// The time is up: this request goes ahead of the others.
    Probe,
    /// One has gone ahead.
    Wait,
    Held(Duration),
}

#[derive(Clone, Copy, Debug)]
enum Hold {
    Until(Instant),
    Probing,
}

#[derive(Clone, Debug, Default)]
struct Limited {
    hold: Option<Hold>,
    /// The answer that it is held for.
    said: Option<Failure>,
    /// 429s in a row that named no time.
    unnamed: u32,
}

#[derive(Debug, Default)]
pub struct Governor {
    lanes: [Limited; Lane::ALL.len()],
    budget: Option<(Budget, Instant)>,
}

impl Governor {
    pub fn verdict(&self, lane: Lane, now: Instant) -> Verdict {
        match self.lanes[lane as usize].hold {
            None => Verdict::Go,
            Some(Hold::Until(until)) if until <= now => Verdict::Probe,
            Some(Hold::Until(until)) => Verdict::Held(until - now),
            Some(Hold::Probing) => Verdict::Wait,
        }
    }

    /// The request that got [`Verdict::Probe`] is sent.
    pub fn begin_probe(&mut self, lane: Lane) {
        self.lanes[lane as usize].hold = Some(Hold::Probing);
    }

    /// It was given up without an answer: the next one goes ahead.
    pub fn lose_probe(&mut self, lane: Lane, now: Instant) {
        let hold = &mut self.lanes[lane as usize].hold;
        if matches!(hold, Some(Hold::Probing)) {
            *hold = Some(Hold::Until(now));
        }
    }

    /// What the upstream said when the hold of the lane began.
    pub fn said(&self, lane: Lane) -> Option<&Failure> {
        self.lanes[lane as usize].said.as_ref()
    }

    /// An answer that asks to be left alone, with the time it names. Returns for how long the lane
    /// is held when it was not held before, or is again after a probe.
    pub fn limited(
        &mut self,
        lane: Lane,
        said: &Failure,
        named: Option<Duration>,
        probe: bool,
        now: Instant,
    ) -> Option<Duration> {
        let limited = &mut self.lanes[lane as usize];
        // Sent before the one that was limited first: it says nothing new.
        if limited.hold.is_some() && !probe {
            return None;
        }
        let hold = match named {
            Some(named) => {
                limited.unnamed = 0;
                named.clamp(HOLD_MIN, HOLD_MAX)
            }
            None => {
                let doublings = limited.unnamed.min(DOUBLINGS_MAX);
                limited.unnamed = doublings + 1;
                HOLD_UNNAMED
                    .saturating_mul(1 << doublings)
                    .min(HOLD_UNNAMED_MAX)
            }
        };
        limited.hold = Some(Hold::Until(now + hold));
        limited.said = Some(said.clone());
        Some(hold)
    }

    /// Any other answer. True when it ended the hold of the lane.
    pub fn answered(&mut self, lane: Lane, probe: bool) -> bool {
        let limited = &mut self.lanes[lane as usize];
        let ends = probe && limited.hold.is_some();
        if ends || limited.hold.is_none() {
            *limited = Limited::default();
        }
        ends
    }

    pub fn learn(&mut self, budget: Budget, now: Instant) {
        self.budget = Some((budget, now));
    }

    pub fn budget(&self) -> Option<Budget> {
        self.budget.map(|(budget, _)| budget)
    }

    /// By how much tags are trusted longer, and until when that is believed.
    pub fn stretch(&self) -> Option<(u64, Instant)> {
        let (budget, at) = self.budget?;
        let named = budget.window_s.map(Duration::from_secs);
        let window = named.unwrap_or(WINDOW).min(WINDOW_MAX);
        let part = u128::from(budget.remaining) * 100 / u128::from(budget.limit);
        let step = STRETCH.iter().find(|(up_to, _)| part <= u128::from(*up_to));
        step.map(|(_, factor)| (*factor, at + window))
    }

    /// No lane is held.
    pub fn is_quiet(&self) -> bool {
        self.lanes.iter().all(|lane| lane.hold.is_none())
    }

    /// Lanes that are held, a probe under way included.
    pub fn held_lanes(&self) -> u64 {
        self.lanes.iter().filter(|lane| lane.hold.is_some()).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANE: Lane = Lane::Manifest;

    fn said() -> Failure {
        Failure::status("https://r.example", 429, None)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_limited_lane_is_held_until_its_time_is_up_and_the_others_are_not() {
        let now = Instant::now();
        let mut governor = Governor::default();
        assert_eq!(
            governor.limited(LANE, &said(), Some(seconds(7)), false, now),
            Some(seconds(7))
        );
        assert_eq!(governor.verdict(LANE, now), Verdict::Held(seconds(7)));
        for lane in [Lane::Head, Lane::Other] {
            assert_eq!(governor.verdict(lane, now), Verdict::Go);
        }
        // Others that were on their way neither prolong nor end it.
        assert_eq!(
            governor.limited(LANE, &said(), Some(seconds(9)), false, now),
            None
        );
        assert!(!governor.answered(LANE, false));
        let later = now + seconds(7);
        assert_eq!(governor.verdict(LANE, later), Verdict::Probe);
        governor.begin_probe(LANE);
        assert_eq!(governor.verdict(LANE, later), Verdict::Wait);
        assert!(governor.answered(LANE, true));
        assert_eq!(governor.verdict(LANE, later), Verdict::Go);
        assert!(governor.is_quiet());
    }

    #[test]
    fn a_probe_that_is_limited_again_holds_anew() {
        let now = Instant::now();
        let mut governor = Governor::default();
        governor.limited(LANE, &said(), Some(seconds(1)), false, now);
        governor.begin_probe(LANE);
        governor.lose_probe(LANE, now);
        assert_eq!(governor.verdict(LANE, now), Verdict::Probe);
        governor.begin_probe(LANE);
        assert_eq!(
            governor.limited(LANE, &said(), Some(seconds(3)), true, now),
            Some(seconds(3))
        );
        assert_eq!(governor.verdict(LANE, now), Verdict::Held(seconds(3)));
    }

    #[test]
    fn times_are_bounded_and_grow_when_none_is_named() {
        let now = Instant::now();
        for (named, expected) in [(0, 1), (5, 5), (300, 300), (86_400, 300)] {
            let mut governor = Governor::default();
            let held = governor.limited(LANE, &said(), Some(seconds(named)), false, now);
            assert_eq!(held, Some(seconds(expected)), "{named}");
        }
        let mut governor = Governor::default();
        let mut held = Vec::new();
        for _ in 0..12 {
            held.extend(governor.limited(LANE, &said(), None, true, now));
        }
        assert_eq!(held[..6], [2, 4, 8, 16, 32, 60].map(seconds));
        assert_eq!(held[11], seconds(60));
        governor.answered(LANE, true);
        assert_eq!(
            governor.limited(LANE, &said(), None, false, now),
            Some(seconds(2))
        );
    }

    #[test]
    fn tags_are_trusted_longer_as_the_budget_falls() {
        let now = Instant::now();
        let mut governor = Governor::default();
        assert_eq!(governor.stretch(), None);
        let cases = [
            (100, 1),
            (51, 1),
            (50, 2),
            (26, 2),
            (25, 4),
            (10, 8),
            (1, 8),
            (0, 16),
        ];
        for (remaining, expected) in cases {
            let budget = Budget {
                limit: 100,
                remaining,
                window_s: Some(60),
            };
            governor.learn(budget, now);
            let (factor, until) = governor.stretch().unwrap_or((1, now + seconds(60)));
            assert_eq!(
                (factor, until),
                (expected, now + seconds(60)),
                "{remaining}"
            );
        }
    }

    #[test]
    fn requests_are_told_apart() {
        assert_eq!(Lane::of(Method::Head, "manifests/1"), Lane::Head);
        assert_eq!(Lane::of(Method::Get, "manifests/1"), Lane::Manifest);
        assert_eq!(Lane::of(Method::Get, "blobs/sha256:0"), Lane::Other);
        assert_eq!(Lane::of(Method::Get, "tags/list"), Lane::Other);
    }
}
