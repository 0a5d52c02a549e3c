//! Where a response reads its body, and where it goes on when that place is given up.
//!
//! Called by `respond`. Compaction moves a body while it is read, and the store takes the old
//! place from a reader that is slow (S5). The same bytes are elsewhere then, under the same
//! digest: a response goes on from there, at the byte it had come to.

use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{Digest, Lease};

use crate::metrics::Counter;
use crate::net::sendfile::{self, SendError};
use crate::net::socket::Socket;
use crate::service::Service;

/// Bytes that must have been sent since a response went on before it may again. A lease on what
/// is unlinked lasts a minute at least, so this is 17 KB/s: a reader that is slower for ever would
/// keep the room of one dead segment after the other.
const MOVED_MIN: u64 = 1 << 20;

/// The body of one response, as far as `sendfile` sends it.
pub struct Reading<'a> {
    lease: Lease<UringDisk>,
    digest: &'a str,
    /// The byte of the body from which it went on when its lease was revoked last.
    resumed: Option<u64>,
}

impl<'a> Reading<'a> {
    /// `lease` is of the body of `digest`.
    pub fn new(lease: Lease<UringDisk>, digest: &'a str) -> Reading<'a> {
        Reading {
            lease,
            digest,
            resumed: None,
        }
    }

    /// Sends `[from, to)` of the body; the range must be readable. After an error the client has
    /// some of it.
    pub async fn send(
        &mut self,
        socket: &Socket,
        service: &Service,
        from: u64,
        to: u64,
    ) -> Result<(), SendError> {
        let mut at = from;
        let sent = loop {
            let (warmer, turns) = (&service.warmer, &service.turns);
            let sent = sendfile::send(socket, warmer, turns, &self.lease, &mut at, to).await;
            match sent {
                Err(SendError::Revoked) if self.resume(service, at) => {}
                sent => break sent,
            }
        };
        service.metrics.add(Counter::ServedSendfile, at - from);
        sent
    }

    /// Looks for the body where it is now. False: it is gone, not checked yet, or the response
    /// may not go on again.
    fn resume(&mut self, service: &Service, at: u64) -> bool {
        if !may_resume(self.resumed, at) {
            return false;
        }
        let Ok(digest) = Digest::parse(self.digest) else {
            return false;
        };
        // That the repository may have these bytes was decided when the response began.
        let body = service.lookup.store.body(&digest);
        let Some(body) = body.filter(|body| !body.unverified && !body.lease.revoked()) else {
            return false;
        };
        self.lease = body.lease;
        self.resumed = Some(at);
        service.metrics.count(Counter::Resumed);
        true
    }
}

/// `resumed` as in `Reading`; `at` is the byte to go on from.
fn may_resume(resumed: Option<u64>, at: u64) -> bool {
    resumed.is_none_or(|resumed| at - resumed >= MOVED_MIN)
}

#[cfg(test)]
mod tests {
    use super::{MOVED_MIN, may_resume};

    #[test]
    fn a_reader_that_hardly_moves_goes_on_once() {
        assert!(may_resume(None, 0));
        assert!(!may_resume(Some(0), MOVED_MIN - 1));
        assert!(may_resume(Some(0), MOVED_MIN));
        assert!(!may_resume(Some(MOVED_MIN), MOVED_MIN + 1));
    }
}
