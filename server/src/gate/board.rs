//! What the gates show: figures for `/metrics`, and the factor by which tags are trusted longer.
//!
//! Each gate writes its own levels, on its owner's shard; everybody reads them without a lock
//! (R8: counters). Only which upstreams there are changes under one, at the start and at reloads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock;
use crate::upstream::UpstreamId;

use super::negative::Namer;
use super::pass::Name;

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

    /// How many times as long as configured a tag from this upstream is to be trusted; 1 while
    /// its budget is not known to fall.
    pub fn stretch(&self) -> u64 {
        match clock::now() < self.stretch_until_s.load(Ordering::Relaxed) {
            true => self.get(Figure::Stretch),
            false => 1,
        }
    }
}

/// The levels of the upstreams that are configured, by their ids.
pub type Shown = BTreeMap<UpstreamId, Arc<Levels>>;

/// The levels of all upstreams, and what names questions to them.
#[derive(Default)]
pub struct Board {
    shown: Mutex<Arc<Shown>>,
    namer: Namer,
}

impl Board {
    pub fn namer(&self) -> &Namer {
        &self.namer
    }

    /// From now on these are there, and nothing is held for others. What was there keeps its
    /// levels; the same set again changes nothing, so every shard may say it.
    pub fn adopt(&self, configured: impl Iterator<Item = (UpstreamId, Name)>) -> Arc<Shown> {
        let mut shown = self.lock();
        let levels = |id: &UpstreamId| shown.get(id).cloned();
        let next: Shown = configured
            .map(|(id, name)| {
                let kept = levels(&id);
                (id, kept.unwrap_or_else(|| Arc::new(Levels::new(name))))
            })
            .collect();
        if !next.keys().eq(shown.keys()) {
            *shown = Arc::new(next);
        }
        shown.clone()
    }

    /// Of the upstreams that are configured now. The gate of each writes its own, nobody else.
    pub fn shown(&self) -> Arc<Shown> {
        self.lock().clone()
    }

    /// Held for a copy of a pointer, and at a reload for a short map.
    fn lock(&self) -> MutexGuard<'_, Arc<Shown>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(ids: &[usize]) -> impl Iterator<Item = (UpstreamId, Name)> {
        ids.iter().map(|id| {
            let name = Name {
                project: "dh".into(),
                origin: format!("https://{id}.example").into(),
            };
            (UpstreamId(*id), name)
        })
    }

    fn ids(shown: &Shown) -> Vec<usize> {
        shown.keys().map(|id| id.0).collect()
    }

    #[test]
    fn only_what_is_configured_is_shown_and_keeps_its_levels() {
        let board = Board::default();
        let first = board.adopt(configured(&[0, 1]));
        assert_eq!(ids(&first), [0, 1]);
        first[&UpstreamId(1)].add(Figure::Opened, 7);
        assert!(Arc::ptr_eq(&first, &board.adopt(configured(&[1, 0]))));

        // Ids grow with every reload, whatever their number.
        let next = board.adopt(configured(&[1, 100_000]));
        assert_eq!(ids(&next), [1, 100_000]);
        assert_eq!(ids(&board.shown()), [1, 100_000]);
        assert_eq!(next[&UpstreamId(1)].get(Figure::Opened), 7);
    }
}
