//! Connections kept for the next request, by upstream and origin.
//!
//! Called by `request` (take) and by `body` (give, at a clean end). The upstream is part of the
//! key because each has its own TLS settings: a connection that one upstream does not verify is
//! never used for another. The connection used last is taken first, so surplus ones age out.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::config::Url;

use super::connect::Connection;
use super::{Clock, Reach, UpstreamId};

/// Below the 60 s after which common servers and balancers close.
pub(super) const IDLE_TTL: Duration = Duration::from_secs(45);
/// What a pull of one image opens at once to one origin.
pub(super) const IDLE_PER_ORIGIN_MAX: usize = 8;
const IDLE_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub upstream: UpstreamId,
    pub origin: Url,
    /// Our client certificate was shown, so the connection speaks for us.
    pub identified: bool,
}

pub(super) struct Pool {
    idle: RefCell<HashMap<Key, Vec<Idle>>>,
    clock: Clock,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    pub fn new(clock: Clock) -> Rc<Pool> {
        Rc::new(Pool {
            idle: RefCell::default(),
            clock,
        })
    }

    /// A connection to an address within `reach`.
    pub fn take(&self, key: &Key, reach: Reach) -> Option<Connection> {
        self.close_old();
        let mut idle = self.idle.borrow_mut();
        let kept = idle.get_mut(key)?;
        let at = kept
            .iter()
            .rposition(|kept| kept.connection.needs <= reach)?;
        let taken = kept.remove(at).connection;
        if kept.is_empty() {
            idle.remove(key);
        }
        Some(taken)
    }

    pub fn give(&self, key: Key, mut connection: Connection) {
        self.close_old();
        let mut idle = self.idle.borrow_mut();
        if idle.values().map(Vec::len).sum::<usize>() >= IDLE_MAX {
            return;
        }
        let kept = idle.entry(key).or_default();
        if kept.len() >= IDLE_PER_ORIGIN_MAX {
            kept.remove(0);
        }
        connection.used = true;
        connection.rest();
        kept.push(Idle {
            connection,
            since: (self.clock)(),
        });
    }

    /// Closes what was idle for too long.
    pub fn close_old(&self) {
        let now = (self.clock)();
        let fresh = |kept: &Idle| now.saturating_duration_since(kept.since) < IDLE_TTL;
        self.idle.borrow_mut().retain(|_, kept| {
            kept.retain(fresh);
            !kept.is_empty()
        });
    }

    /// Closes those of upstreams that are not configured any more.
    pub fn retire(&self, is_configured: impl Fn(UpstreamId) -> bool) {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|key, _| is_configured(key.upstream));
    }

    /// Closes all idle connections, to make room for new ones.
    pub fn close_all(&self) {
        self.idle.borrow_mut().clear();
    }
}
