//! Answers that are held in memory whole: manifests and listings.
//!
//! Read by `manifests` and `listing`. Each is bounded by `limits.manifest_max`, and all of a shard
//! together by `ROOM`, which they take as their bytes arrive: many large ones at once cost clients
//! a 503 and not the memory of the machine (R4). One upstream has at most half of it, so that one
//! which stalls leaves room to the others; and of either at most half is for clients that take
//! their time, so that none is in the way of a fill (R5).

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::config::units::format_size;
use crate::failure::{Failure, FailureKind};
use crate::upstream::Response;

/// Bytes of a shard for such answers: sixteen of the longest by default, and of the usual ones, a
/// few KiB each, more than there can be fills.
const ROOM: usize = 64 << 20;
/// Of the longest that there is room for in any case: then there is room for one of those in each
/// part of the room.
const LONGEST_MIN: usize = 4;

/// How long an answer is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Until the store has it.
    Stored,
    /// Until a client has it, at the client's pace.
    Sent,
}

/// The bounds of one shard.
#[derive(Clone)]
pub struct Bounds {
    len_max: usize,
    room: Rc<RefCell<Room>>,
}

/// An answer's body, and its share of the room.
pub struct Whole {
    pub bytes: Vec<u8>,
    pub share: Share,
}

/// Room that is taken; given back on drop.
pub struct Share {
    room: Rc<RefCell<Room>>,
    origin: Arc<str>,
    until: Until,
    len: usize,
}

struct Room {
    len: usize,
    /// By origin; of those that have any.
    taken: HashMap<Arc<str>, Taken>,
}

/// Bytes that are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Taken {
    all: usize,
    /// Of these, for clients.
    sent: usize,
}

impl Room {
    /// Whether there is room for so many bytes more of an origin.
    fn has(&self, more: usize, origin: &str, until: Until) -> bool {
        let own = self.taken.get(origin).copied().unwrap_or_default();
        let sum = |of: fn(&Taken) -> usize| self.taken.values().map(of).sum::<usize>();
        let half = self.len / 2;
        let fits = sum(|taken| taken.all) + more <= self.len && own.all + more <= half;
        let sent_fits = || sum(|taken| taken.sent) + more <= half && own.sent + more <= half / 2;
        fits && (until == Until::Stored || sent_fits())
    }
}

impl Share {
    /// False, and nothing changes, when there is no room for so many bytes more.
    fn grow(&mut self, more: usize) -> bool {
        let mut room = self.room.borrow_mut();
        if !room.has(more, &self.origin, self.until) {
            return false;
        }
        let taken = room.taken.entry(self.origin.clone()).or_default();
        taken.all += more;
        taken.sent += match self.until {
            Until::Stored => 0,
            Until::Sent => more,
        };
        self.len += more;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut room = self.room.borrow_mut();
        let Some(taken) = room.taken.get_mut(&self.origin) else {
            return;
        };
        taken.all -= self.len;
        taken.sent -= match self.until {
            Until::Stored => 0,
            Until::Sent => self.len,
        };
        if taken.all == 0 {
            room.taken.remove(&self.origin);
        }
    }
}

impl Bounds {
    /// `len_max`: bytes of one answer.
    pub fn new(len_max: usize) -> Bounds {
        let room = Room {
            len: ROOM.max(LONGEST_MIN * len_max),
            taken: HashMap::new(),
        };
        let room = Rc::new(RefCell::new(room));
        Bounds { len_max, room }
    }

    pub fn len_max(&self) -> u64 {
        self.len_max as u64
    }

    /// Refuses what says that it is too long; it need not be asked for, nor read.
    pub fn check_len(&self, len: Option<u64>, origin: &str) -> Result<(), Failure> {
        match len {
            Some(len) if len > self.len_max() => Err(self.too_long(origin)),
            _ => Ok(()),
        }
    }

    /// Reads a body to its end, and not beyond `len_max`. Refused when it is or says that it is
    /// longer, and when there is no room for it now.
    pub async fn collect(
        &self,
        response: &mut Response,
        origin: &Arc<str>,
        until: Until,
    ) -> Result<Whole, Failure> {
        self.try_collect(response, origin, until).await?
    }

    /// The same, with what broke on its way told apart.
    pub async fn try_collect(
        &self,
        response: &mut Response,
        origin: &Arc<str>,
        until: Until,
    ) -> Result<Result<Whole, Failure>, Failure> {
        self.check_len(response.length, origin)?;
        let mut share = self.share(origin, until);
        // What is longer than the room that is left now need not be begun; it leaves the room to
        // those that did begin.
        let announced = response.length.unwrap_or_default() as usize;
        if !self.room.borrow().has(announced, origin, until) {
            return Err(busy());
        }
        let mut bytes = Vec::new();
        loop {
            let piece = match response.body.read().await {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok(Ok(Whole { bytes, share })),
                Err(error) => {
                    return Ok(Err(Failure::of(FailureKind::BadBody, origin, error)));
                }
            };
            if bytes.len() + piece.len() > self.len_max {
                return Err(self.too_long(origin));
            }
            if !share.grow(piece.len()) {
                return Err(busy());
            }
            match bytes.is_empty() {
                true => bytes = piece,
                false => bytes.extend_from_slice(&piece),
            }
        }
    }

    /// A share of nothing yet.
    fn share(&self, origin: &Arc<str>, until: Until) -> Share {
        Share {
            room: self.room.clone(),
            origin: origin.clone(),
            until,
            len: 0,
        }
    }

    fn too_long(&self, origin: &str) -> Failure {
        let max = format_size(self.len_max());
        let why = format!("sent more than limits.manifest_max ({max})");
        Failure::of(FailureKind::BadBody, origin, why)
    }
}

fn busy() -> Failure {
    Failure::busy("manifests and listings in memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Takes as many of `len` as there is room for.
    fn fill(bounds: &Bounds, origin: &str, until: Until, len: usize) -> Vec<Share> {
        let mut shares = Vec::new();
        loop {
            let mut share = bounds.share(&Arc::from(origin), until);
            match share.grow(len) {
                true => shares.push(share),
                false => return shares,
            }
        }
    }

    #[test]
    fn one_upstream_leaves_half_of_the_room_to_the_others() {
        use Until::{Sent, Stored};
        let bounds = Bounds::new(4 * MIB);
        let stalled = fill(&bounds, "a", Stored, 4 * MIB);
        assert_eq!(stalled.len(), 8);
        assert_eq!(fill(&bounds, "a", Sent, MIB).len(), 0);
        // Two of them fill it; what one gives back is there for a third.
        let mut others = fill(&bounds, "b", Stored, 4 * MIB);
        assert_eq!(others.len(), 8);
        assert_eq!(fill(&bounds, "c", Stored, 1).len(), 0);
        others.pop();
        assert_eq!(fill(&bounds, "c", Stored, 4 * MIB).len(), 1);
        drop((stalled, others));
        assert_eq!(bounds.room.borrow().taken, HashMap::new());
    }

    #[test]
    fn clients_that_take_their_time_leave_room_to_fills() {
        use Until::{Sent, Stored};
        let bounds = Bounds::new(4 * MIB);
        let of = |origin: &str, until| fill(&bounds, origin, until, 4 * MIB);
        let slow: Vec<_> = ["a", "b", "c"].map(|origin| of(origin, Sent)).into();
        assert_eq!(slow.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 0]);
        // An upstream whose listings all wait for clients has its manifests filled all the same.
        assert_eq!(of("a", Stored).len(), 4);
        assert_eq!(of("d", Stored).len(), 8);
    }

    #[test]
    fn one_of_the_longest_has_room_whatever_the_limit() {
        use Until::{Sent, Stored};
        for len_max in [64 << 10, ROOM] {
            let bounds = Bounds::new(len_max);
            for until in [Sent, Stored] {
                assert!(!fill(&bounds, "a", until, len_max).is_empty(), "{len_max}");
            }
        }
    }

    #[test]
    fn what_is_refused_takes_nothing() {
        let bounds = Bounds::new(MIB);
        let mut share = bounds.share(&Arc::from("a"), Until::Stored);
        assert!(!share.grow(ROOM) && share.grow(MIB));
        assert_eq!(share.len, MIB);
    }

    #[test]
    fn what_says_that_it_is_too_long_is_named_with_the_key() {
        let bounds = Bounds::new(4 << 20);
        assert!(bounds.check_len(None, "x").is_ok());
        assert!(bounds.check_len(Some(4 << 20), "x").is_ok());
        let failure = bounds.check_len(Some((4 << 20) + 1), "http://r").err();
        let detail = failure.expect("too long").detail;
        assert_eq!(
            &*detail,
            "http://r: sent more than limits.manifest_max (4MiB)"
        );
    }
}
