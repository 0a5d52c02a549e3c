//! What the gates show: figures for `/metrics`, and the factor by which tags are trusted longer.
//!
//! Each gate writes its own levels, on its owner's shard; everybody reads them without a lock
//! (R8: counters).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::clock;
use crate::upstream::UpstreamId;

use super::negative::Namer;
use super::pass::Name;

/// Upstreams with a place on the board, 16 bytes each. Ids are never given twice, so reloads use
/// them up; one beyond has a gate all the same, and is not shown.
const UPSTREAMS_MAX: usize = 4096;

macro_rules! figures {
    ($($figure:ident => $of:literal $label:literal),+ $(,)?) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Figure { $($figure),+ }
        /// Each with its type and its name in the metrics.
        pub const FIGURES: &[(Figure, &str, &str)] = &[$((Figure::$figure, $of, $label)),+];
    };
}

figures!(
    // 0 closed, 1 a probe is under way, 2 open.
    Breaker => "gauge" "entrepot_upstream_breaker",
    Opened => "counter" "entrepot_upstream_breaker_opened_total",
    Permits => "gauge" "entrepot_upstream_permits",
    Waiting => "gauge" "entrepot_upstream_waiting",
    Refused => "counter" "entrepot_upstream_refused_total",
    HeldLanes => "gauge" "entrepot_upstream_held_lanes",
    Limited => "counter" "entrepot_upstream_limited_total",
    BudgetLimit => "gauge" "entrepot_upstream_budget_limit",
    BudgetRemaining => "gauge" "entrepot_upstream_budget_remaining",
    Stretch => "gauge" "entrepot_upstream_stretch",
    Negatives => "gauge" "entrepot_upstream_negatives",
    NegativeAnswers => "counter" "entrepot_upstream_negative_answers_total",
);

/// Those of one upstream.
pub struct Levels {
    name: Name,
    figures: [AtomicU64; FIGURES.len()],
    /// Second until which the stretch is believed.
    stretch_until_s: AtomicU64,
}

impl Levels {
    pub(super) fn new(name: Name) -> Levels {
        let levels = Levels {
            name,
            figures: Default::default(),
            stretch_until_s: AtomicU64::new(0),
        };
        levels.set(Figure::Stretch, 1);
        levels
    }

    pub(super) fn set(&self, figure: Figure, value: u64) {
        self.figures[figure as usize].store(value, Ordering::Relaxed);
    }

    pub(super) fn add(&self, figure: Figure, by: u64) {
        self.figures[figure as usize].fetch_add(by, Ordering::Relaxed);
    }

    pub fn get(&self, figure: Figure) -> u64 {
        self.figures[figure as usize].load(Ordering::Relaxed)
    }

    pub fn name(&self) -> &Name {
        &self.name
    }

    /// True when the factor is another than before.
    pub(super) fn stretch_to(&self, factor: u64, believed: Duration) -> bool {
        let factor = if believed.is_zero() { 1 } else { factor };
        let until_s = clock::now().saturating_add(believed.as_secs());
        self.stretch_until_s.store(until_s, Ordering::Relaxed);
        let figure = &self.figures[Figure::Stretch as usize];
        figure.swap(factor, Ordering::Relaxed) != factor
    }

    fn stretch(&self) -> u64 {
        match clock::now() < self.stretch_until_s.load(Ordering::Relaxed) {
            true => self.get(Figure::Stretch),
            false => 1,
        }
    }
}

/// The levels of all upstreams, and what names questions to them.
pub struct Board {
    levels: Box<[OnceLock<Arc<Levels>>]>,
    namer: Namer,
}

impl Default for Board {
    fn default() -> Board {
        Board {
            levels: (0..UPSTREAMS_MAX).map(|_| OnceLock::new()).collect(),
            namer: Namer::default(),
        }
    }
}

impl Board {
    pub fn namer(&self) -> &Namer {
        &self.namer
    }

    /// How many times as long as configured a tag from this upstream is to be trusted; 1 while
    /// its budget is not known to fall.
    pub fn stretch(&self, upstream: UpstreamId) -> u64 {
        let levels = self.levels.get(upstream.0).and_then(OnceLock::get);
        levels.map_or(1, |levels| levels.stretch())
    }

    /// The upstreams that were asked so far.
    pub fn shown(&self) -> impl Iterator<Item = (UpstreamId, &Levels)> {
        let levels = self.levels.iter().enumerate();
        levels.filter_map(|(id, levels)| Some((UpstreamId(id), &**levels.get()?)))
    }

    /// For the gate of an upstream, which alone writes them.
    pub(super) fn levels(&self, upstream: UpstreamId, name: &Name) -> Arc<Levels> {
        let new = || Arc::new(Levels::new(name.clone()));
        match self.levels.get(upstream.0) {
            Some(levels) => levels.get_or_init(new).clone(),
            None => new(),
        }
    }
}
