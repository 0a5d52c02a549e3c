//! Bodies that `relay` sends piece by piece as they come from upstream.

use super::selection::Span;
use super::{Exchange, Facts, Gone};
use crate::http::framing::{CHUNK_END, LAST_CHUNK, push_chunk_size};
use crate::http::head::Version;
use crate::metrics::Counter;
use crate::net::socket::Phase;

impl Exchange<'_> {
    /// Begins a range that `relay` sends piece by piece.
    pub fn begin_relayed_range(&mut self, facts: &Facts<'_>, len: u64, (start, end): (u64, u64)) {
        let partial = true;
        self.content_head(
            facts,
            Some(len),
            Span {
                start,
                end,
                partial,
            },
        );
    }

    /// Begins a body that `relay` sends piece by piece: of unknown length in chunks. False for a
    /// client that knows none; then nothing is begun.
    pub fn begin_relay(&mut self, facts: &Facts<'_>, len: Option<u64>) -> bool {
        self.chunked = len.is_none();
        if self.chunked && self.head().version < Version::Http11 {
            return false;
        }
        let end = len.unwrap_or(0);
        let partial = false;
        let start = 0;
        self.content_head(
            facts,
            len,
            Span {
                start,
                end,
                partial,
            },
        );
        true
    }

    /// Ends what was begun; only then is a body of unknown length complete.
    pub async fn end_relay(&mut self) -> Result<(), Gone> {
        if self.chunked {
            self.out.extend_from_slice(LAST_CHUNK);
        }
        self.send(&[], false).await
    }

    pub async fn relay_piece(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.socket.enter(Phase::Send);
        if self.chunked {
            push_chunk_size(self.out, bytes.len());
            self.send(bytes, true).await?;
            self.out.extend_from_slice(CHUNK_END);
            self.send(&[], false).await?;
            let (status, sent) = self.sent.get();
            self.sent.set((status, sent + bytes.len() as u64));
        } else {
            self.send(bytes, false).await?;
        }
        self.count(Counter::ServedRelay, bytes.len() as u64);
        self.socket.enter(Phase::Work);
        Ok(())
    }
}
