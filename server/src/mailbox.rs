//! Bounded queues between shards, one for each shard.
//!
//! A connection asks the owner of a digest or repository here; the owner's loop (in the shard's
//! wiring) takes messages and starts tasks, it never awaits a send (R4). An asker allocates the
//! slot of its answer, so an answer never waits for room. Bytes pass through here by reference and
//! in bounded pieces only, and a hit sends nothing at all.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use entrepot_storage::{
    BringBackError, BroughtBack, Digest, LinkKey, LinkRecord, TagKey, TagRecord, WriteError,
};

use crate::access::ProofAsk;
use crate::failure::Failure;
use crate::fetch::BodyAsk;
use crate::foreign::ForeignAsk;
use crate::freshness::TagAsk;
use crate::gate::{Enter, Leave};
use crate::generation::Adoption;
use crate::metrics::{Counter, Metrics};
use crate::parts::PartAsk;
use crate::project::Repository;
use crate::purge;
use crate::upstream::{Token, TokenAsk, UpstreamError};
use crate::verify::Why;

/// Asks that may wait for an owner. An owner answers tens of thousands a second, so a queue this
/// long means trouble, and the client is told so (503).
const ASKS_MAX: usize = 4096;
/// Room that asks leave for messages which must not be refused, such as a link's proof.
const RESERVED: usize = 1024;

/// The slot an answer is put into; allocated by the asker, holds exactly one.
pub type Reply<T> = flume::Sender<T>;

pub enum Message {
    Body(BodyAsk),
    Part(PartAsk),
    Tag(TagAsk),
    Proof(ProofAsk),
    Foreign(ForeignAsk),
    /// A request to an upstream wants to be sent.
    Enter(Enter),
    /// What came of it; never refused, and not answered.
    Leave(Leave),
    Token {
        ask: TokenAsk,
        reply: Reply<Result<Token, UpstreamError>>,
    },
    Link {
        key: LinkKey,
        record: LinkRecord,
        reply: Reply<()>,
    },
    /// A manifest of the repository is verified and held.
    Verified {
        source: Repository,
        digest: Digest,
        reply: Reply<()>,
    },
    /// A cached listing; tags proper are put by their owner itself.
    Listing {
        key: TagKey,
        record: TagRecord,
        reply: Reply<()>,
    },
    /// Reads and verifies a small body that a restart left on disk only.
    Load {
        digest: Digest,
        reply: Reply<Option<Bytes>>,
    },
    /// Takes a volume that went offline into use again; for the first shard. The answer is what
    /// came back.
    BringBack {
        number: usize,
        reply: Reply<Result<BroughtBack, BringBackError>>,
    },
    /// Reads a body and says whether it may be served.
    Verify {
        digest: Digest,
        why: Why,
        reply: Reply<bool>,
    },
    Hold {
        digest: Digest,
        media_type: String,
        bytes: Bytes,
        reply: Reply<Result<(), Failure>>,
    },
    /// A step of a reload; the slot has room for all shards' answers.
    Adopt {
        adoption: Adoption,
        reply: Reply<()>,
    },
    /// A shard's part of a purge; the slot has room for all shards' answers.
    Purge {
        step: purge::Step,
        reply: Reply<Result<purge::Done, WriteError>>,
    },
}

impl Message {
    /// The index of the project that it names.
    pub fn project(&self) -> Option<usize> {
        let source = match self {
            Message::Body(ask) => &ask.source,
            Message::Part(ask) => &ask.source,
            Message::Tag(ask) => &ask.source,
            Message::Proof(ask) => &ask.source,
            Message::Verified { source, .. } => source,
            Message::Foreign(ForeignAsk::Note { source, .. }) => source,
            Message::Foreign(ForeignAsk::Places { source, .. }) => source,
            Message::Enter(_)
            | Message::Leave(_)
            | Message::Token { .. }
            | Message::Link { .. }
            | Message::Listing { .. }
            | Message::Load { .. }
            | Message::BringBack { .. }
            | Message::Verify { .. }
            | Message::Hold { .. }
            | Message::Adopt { .. }
            | Message::Purge { .. } => return None,
        };
        Some(source.project)
    }
}

pub struct Mailboxes {
    senders: Vec<flume::Sender<Message>>,
}

impl Mailboxes {
    /// One mailbox a shard; the receivers go to their shards.
    pub fn new(shards: usize) -> (Arc<Mailboxes>, Vec<flume::Receiver<Message>>) {
        let (senders, receivers) = (0..shards)
            .map(|_| flume::bounded(ASKS_MAX + RESERVED))
            .unzip();
        (Arc::new(Mailboxes { senders }), receivers)
    }

    pub fn shards(&self) -> usize {
        self.senders.len()
    }

    /// For a thread that is no shard: waits for room until the deadline. False when there was
    /// none, or the shard has ended.
    pub fn send_by(&self, shard: usize, message: Message, deadline: Instant) -> bool {
        self.senders[shard].send_deadline(message, deadline).is_ok()
    }
}

/// A shard's way to all mailboxes, its own included.
#[derive(Clone)]
pub struct Post {
    mailboxes: Arc<Mailboxes>,
    metrics: Arc<Metrics>,
}

impl Post {
    pub fn new(mailboxes: Arc<Mailboxes>, metrics: Arc<Metrics>) -> Post {
        Post { mailboxes, metrics }
    }

    pub fn shards(&self) -> usize {
        self.mailboxes.shards()
    }

    /// Asks a shard in a client's name and awaits the answer. A full mailbox refuses the client.
    pub async fn ask<T>(
        &self,
        shard: usize,
        message: impl FnOnce(Reply<T>) -> Message,
    ) -> Result<T, Failure> {
        let (reply, answer) = flume::bounded(1);
        let sender = &self.mailboxes.senders[shard];
        if sender.len() >= ASKS_MAX || sender.try_send(message(reply)).is_err() {
            return Err(Failure::busy("the mailbox of another core"));
        }
        self.metrics.count(Counter::Messages);
        answer
            .recv_async()
            .await
            .map_err(|_| Failure::busy("the answer of another core"))
    }

    /// Tells a shard what must not be refused and needs no answer. Without room a task waits for
    /// it; there are no more of those than permits of upstreams.
    pub fn inform(&self, shard: usize, message: Message) {
        self.metrics.count(Counter::Messages);
        if let Err(flume::TrySendError::Full(message)) =
            self.mailboxes.senders[shard].try_send(message)
        {
            let mailboxes = self.mailboxes.clone();
            monoio::spawn(async move {
                // An error means that the process is going down.
                let _ = mailboxes.senders[shard].send_async(message).await;
            });
        }
    }

    /// Tells a shard what must not be refused; waits for room and for the answer.
    pub async fn tell<T>(&self, shard: usize, message: impl FnOnce(Reply<T>) -> Message) {
        let (reply, answer) = flume::bounded(1);
        self.metrics.count(Counter::Messages);
        // An error means that the process is going down.
        if self.mailboxes.senders[shard]
            .send_async(message(reply))
            .await
            .is_ok()
        {
            let _ = answer.recv_async().await;
        }
    }
}
