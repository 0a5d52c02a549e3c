//! What is asked of the owner of a digest, and what it answers.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{Digest, Follower, Watermark};

use crate::allowance::Allowance;
use crate::failure::Failure;
use crate::mailbox::{Message, Post, Reply};
use crate::oci::error::Code;
use crate::project::{Repository, digest_owner};

/// How a body is asked for, which decides upstream's path and the checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum BodyKind {
    Manifest,
    Blob,
}

impl BodyKind {
    /// What a client is told when there is none (distribution-spec, error codes).
    pub fn unknown(self) -> Code {
        match self {
            BodyKind::Manifest => Code::ManifestUnknown,
            BodyKind::Blob => Code::BlobUnknown,
        }
    }
}

/// What is wanted of the owner of a digest.
#[derive(Clone)]
pub struct Sought {
    pub digest: Digest,
    pub kind: BodyKind,
    /// Origin to ask first, where the tag came from.
    pub prefer: Option<Arc<str>>,
    /// False: a fill that runs is joined, and none is started.
    pub fills: bool,
    /// Something older may stand in: no hold of an upstream is waited for.
    pub spare: bool,
}

impl Sought {
    /// Asks the owner in a repository's name; `proven`: it has a link to the digest; `seen`: what a
    /// HEAD in its name saw without one.
    pub async fn ask(
        &self,
        post: &Post,
        source: &Repository,
        proven: bool,
        seen: Option<&Seen>,
    ) -> Result<BodyAnswer, Failure> {
        let owner = digest_owner(&self.digest, post.shards());
        let ask = |reply| {
            Message::Body(BodyAsk {
                sought: self.clone(),
                source: source.clone(),
                proven,
                seen: seen.cloned(),
                reply,
            })
        };
        post.ask(owner, ask).await
    }
}

/// A body is wanted that is not in the index.
pub struct BodyAsk {
    pub sought: Sought,
    /// In whose name upstream is asked.
    pub source: Repository,
    /// True when the source has a link to the digest.
    pub proven: bool,
    /// What a HEAD in the source's name saw, if that is no proof yet.
    pub seen: Option<Seen>,
    pub reply: Reply<BodyAnswer>,
}

/// An upstream has a body of this length under the digest, and does not say of which one it is. Who
/// was told so may follow a fill of that length; it is a proof once the length is verified (R9).
#[derive(Clone, Debug)]
pub struct Seen {
    pub len: u64,
    pub origin: Arc<str>,
}

impl Seen {
    /// Whether it may be the body that others fetch, of this length if that is known.
    pub fn may_be(&self, len: Option<u64>) -> bool {
        len.is_none_or(|len| len == self.len)
    }
}

pub enum BodyAnswer {
    /// It is in the index now.
    Held,
    Follow(Following),
    /// A fill runs in another repository's name, of a body of this length if that is known: prove
    /// that yours refers to the digest (R9).
    NeedProof(Option<u64>),
    /// Neither the store nor staging has room: fetch it for yourself.
    Relay,
    /// No fill runs, and none was wanted.
    Cold,
    Failed(Failure),
}

/// Who sent the last bytes of a body, once they are verified: with a fill that broke and was gone
/// on with, another upstream than the one that began.
pub type EndedBy = Arc<OnceLock<Arc<str>>>;

/// A place at a running fill.
pub struct Following {
    pub follower: Follower<UringDisk>,
    pub watermark: Arc<Watermark<UringDisk>>,
    pub media_type: Option<Arc<str>>,
    /// Who began to send.
    pub origin: Arc<str>,
    pub ended_by: EndedBy,
    /// True when the bytes will not stay.
    pub staged: bool,
    /// False for the ask that started the fill.
    pub collapsed: bool,
    /// When upstream began to send.
    pub started: Instant,
}

/// Limits of fills.
pub struct Bounds {
    /// How many may run on all shards together.
    pub fills: Arc<Allowance>,
    /// Of one fill.
    pub followers_max: usize,
    pub body_len_max: u64,
    /// How long a source that sent wrong bytes is not asked for that digest again.
    pub mismatch_holdoff: Duration,
}
