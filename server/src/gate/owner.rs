//! The gates that a shard owns, and the passes it gives.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::mailbox::Post;
use crate::upstream::UpstreamId;

use super::board::Board;
use super::one::{Gate, Settled};
use super::pass::{Enter, Leave, Pass};

pub struct Gates {
    gates: RefCell<HashMap<UpstreamId, Gate>>,
    post: Post,
    board: Arc<Board>,
    seed: RandomState,
    draws: Cell<u64>,
}

impl Gates {
    pub fn new(post: Post, board: Arc<Board>) -> Rc<Gates> {
        Rc::new(Gates {
            gates: RefCell::default(),
            post,
            board,
            seed: RandomState::new(),
            draws: Cell::new(0),
        })
    }

    /// The shard that has the gate of an upstream.
    pub fn owner(upstream: UpstreamId, shards: usize) -> usize {
        upstream.0 % shards
    }

    /// Answers now or later, before the ask's deadline.
    pub fn enter(&self, ask: Enter) {
        let mut settled = Vec::new();
        {
            let mut gates = self.gates.borrow_mut();
            let gate = gates.entry(ask.upstream).or_insert_with(|| {
                let levels = self.board.shown().get(&ask.upstream).cloned();
                Gate::new(ask.name.clone(), ask.rules, levels)
            });
            gate.enter(ask, Instant::now(), &mut settled);
        }
        self.answer(settled);
    }

    pub fn leave(&self, leave: Leave) {
        let (now, chance) = (Instant::now(), self.chance());
        let mut settled = Vec::new();
        {
            let mut gates = self.gates.borrow_mut();
            let upstream = leave.upstream;
            if let Some(gate) = gates.get_mut(&upstream) {
                gate.leave(leave, now, chance, &mut settled);
                if gate.is_over() {
                    gates.remove(&upstream);
                }
            }
        }
        self.answer(settled);
    }

    /// A reload: the gate of an upstream that is no longer on the board goes, at once or when the
    /// last who is inside leaves.
    pub fn adopt(&self) {
        let (shown, now) = (self.board.shown(), Instant::now());
        self.gates.borrow_mut().retain(|upstream, gate| {
            gate.show_on(shown.get(upstream).cloned(), now);
            !gate.is_over()
        });
    }

    /// Whether anybody waits for [`Gates::look`].
    pub fn has_waiting(&self) -> bool {
        self.gates.borrow().values().any(|gate| gate.has_waiting())
    }

    /// For a timer of the shard: ten times a second while somebody waits.
    pub fn look(&self) {
        let now = Instant::now();
        let mut settled = Vec::new();
        for gate in self.gates.borrow_mut().values_mut() {
            if gate.has_waiting() {
                gate.settle(now, &mut settled);
            }
        }
        self.answer(settled);
    }

    /// Forgets negative answers: of a project, of one of its repositories, or all.
    pub fn forget(&self, scope: Option<(&str, Option<&str>)>) {
        for gate in self.gates.borrow_mut().values_mut() {
            gate.forget(self.board.namer(), scope);
        }
    }

    /// An asker that is gone drops its pass, which then tells us so by mail.
    fn answer(&self, settled: Vec<Settled>) {
        for (ask, outcome) in settled {
            let owner = Gates::owner(ask.upstream, self.post.shards());
            let pass = outcome.map(|grant| {
                let post = self.post.clone();
                Pass::new(post, owner, &ask, grant.probes, grant.quiet)
            });
            let _ = ask.reply.try_send(pass);
        }
    }

    /// Anywhere from 0 to 1.
    fn chance(&self) -> f64 {
        let draw = self.draws.get();
        self.draws.set(draw.wrapping_add(1));
        (self.seed.hash_one(draw) >> 11) as f64 / (1_u64 << 53) as f64
    }
}
