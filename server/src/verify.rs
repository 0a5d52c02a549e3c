//! Bodies that are read before they are served, on the shard that owns the digest.
//!
//! After a crash the bodies of segments that were still open are checked when they are first
//! asked for; and a body that `sendfile` could not read is checked, so that one that is broken
//! leaves the store and is fetched anew. One check runs for a digest however many ask.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{Digest, Writer};

use crate::mailbox::Reply;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// Nobody has read it since the server was killed.
    Unverified,
    /// Its bytes could not be sent.
    Unreadable,
}

/// Who waits for the same check.
type Asking = HashMap<(Digest, Why), Vec<Reply<bool>>>;

pub struct Checks {
    writer: Rc<Writer<UringDisk>>,
    asking: RefCell<Asking>,
}

impl Checks {
    pub fn new(writer: Rc<Writer<UringDisk>>) -> Rc<Checks> {
        let asking = RefCell::default();
        Rc::new(Checks { writer, asking })
    }

    /// Answers whether the body may be served; if not, it is gone.
    pub fn check(self: &Rc<Self>, digest: Digest, why: Why, reply: Reply<bool>) {
        let mut asking = self.asking.borrow_mut();
        if let Some(waiting) = asking.get_mut(&(digest, why)) {
            waiting.push(reply);
            return;
        }
        asking.insert((digest, why), vec![reply]);
        let checks = self.clone();
        monoio::spawn(async move {
            let sound = match why {
                Why::Unverified => checks.writer.verify(&digest).await,
                Why::Unreadable => checks.writer.suspect(&digest).await,
            };
            if !sound {
                tracing::warn!(%digest, ?why, "a body is not what was stored; it was dropped");
            }
            let waiting = checks.asking.borrow_mut().remove(&(digest, why));
            for reply in waiting.into_iter().flatten() {
                let _ = reply.try_send(sound);
            }
        });
    }
}
