//! Answers that are held in memory whole: manifests and listings.
//!
//! Read by `manifests` and `listing`. Each is bounded by `limits.manifest_max`, and all
//! of a shard together by `ROOM`, so that many large ones at once cost clients a 503 and not the
//! memory of the machine (R4).

use std::cell::Cell;
use std::rc::Rc;

use crate::config::units::format_size;
use crate::failure::{Failure, FailureKind};
use crate::upstream::{BodyError, Response};

/// Bytes of a shard for such answers until they go to the store: sixteen of the longest by
/// default, and of the usual ones, a few KiB each, more than there can be fills.
const ROOM: usize = 64 << 20;

/// The bounds of one shard.
#[derive(Clone)]
pub struct Bounds {
    len_max: usize,
    left: Rc<Cell<usize>>,
}

/// An answer's body, and its share of the room.
pub struct Whole {
    pub bytes: Vec<u8>,
    pub share: Share,
}

/// Room that is taken; given back on drop.
pub struct Share {
    len: usize,
    left: Rc<Cell<usize>>,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.left.set(self.left.get() + self.len);
    }
}

impl Bounds {
    /// `len_max`: bytes of one answer.
    pub fn new(len_max: usize) -> Bounds {
        let left = Rc::new(Cell::new(ROOM.max(len_max)));
        Bounds { len_max, left }
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
    pub async fn collect(&self, response: &mut Response, origin: &str) -> Result<Whole, Failure> {
        self.try_collect(response, origin).await?
    }

    /// The same, with what broke on its way told apart.
    pub async fn try_collect(
        &self,
        response: &mut Response,
        origin: &str,
    ) -> Result<Result<Whole, Failure>, Failure> {
        self.check_len(response.length, origin)?;
        let len = response.length.map_or(self.len_max, |len| len as usize);
        let share = self.take(len)?;
        let collected = response.body.collect(self.len_max).await;
        match collected {
            Ok(bytes) => Ok(Ok(Whole { bytes, share })),
            Err(BodyError::TooLong) => Err(self.too_long(origin)),
            Err(error) => Ok(Err(Failure::of(FailureKind::BadBody, origin, error))),
        }
    }

    fn take(&self, len: usize) -> Result<Share, Failure> {
        let left = self.left.get().checked_sub(len);
        let left = left.ok_or_else(|| Failure::busy("manifests and listings in memory"))?;
        self.left.set(left);
        let left = self.left.clone();
        Ok(Share { len, left })
    }

    fn too_long(&self, origin: &str) -> Failure {
        let max = format_size(self.len_max());
        let why = format!("sent more than limits.manifest_max ({max})");
        Failure::of(FailureKind::BadBody, origin, why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_together_have_room_for_one_of_the_longest_at_least() {
        let bounds = Bounds::new(2 * ROOM);
        let whole = bounds.take(2 * ROOM).expect("room for one");
        let second = bounds.take(1).err().expect("no room for a second");
        assert_eq!(second.http_status(), 503);
        drop(whole);
        let many: Vec<_> = (0..4).map(|_| bounds.take(ROOM / 2)).collect();
        assert!(many.iter().all(Result::is_ok));
        assert!(bounds.take(1).is_err());
        drop(many);
        assert!(bounds.take(ROOM).is_ok());
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
