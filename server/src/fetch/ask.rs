//! What is asked of the owner of a digest, and what it answers.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{Digest, Follower, Watermark};

use crate::allowance::Allowance;
use crate::failure::Failure;
use crate::mailbox::Reply;
use crate::oci::error::Code;
use crate::project::Repository;

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

/// A connection wants a body that it did not find in the index.
pub struct BodyAsk {
    pub digest: Digest,
    pub kind: BodyKind,
    /// In whose name upstream is asked.
    pub source: Repository,
    /// True when the source has a link to the digest.
    pub proven: bool,
    /// Origin to ask first, where the tag came from.
    pub prefer: Option<Arc<str>>,
    /// False: a fill that runs is joined, and none is started.
    pub fills: bool,
    pub reply: Reply<BodyAnswer>,
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
