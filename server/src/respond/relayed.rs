//! Bodies that `relay` sends piece by piece as they come from upstream.

use super::{Exchange, Facts, Gone, Selection};
use crate::http::framing::{CHUNK_END, LAST_CHUNK, push_chunk_size};
use crate::http::head::Version;
use crate::metrics::Counter;
use crate::net::watchdog::Phase;

impl Exchange<'_> {
    /// Begins the answer with a selection of a body that others send.
    pub fn begin(&mut self, facts: &Facts<'_>, len: u64, selection: &Selection<'_>) {
        self.chunked = false;
        self.content_head(facts, Some(len), selection);
    }

    /// What stands before the bytes of one of several parts.
    pub fn begin_part(&mut self, selection: &Selection<'_>, nth: usize) {
        selection.push_head(nth, self.out);
    }

    /// Begins a body that `relay` sends piece by piece: of unknown length in chunks. False for a
    /// client that knows none; then nothing is begun.
    pub fn begin_relay(&mut self, facts: &Facts<'_>, len: Option<u64>) -> bool {
        self.chunked = len.is_none();
        if self.chunked && self.head().version < Version::Http11 {
            return false;
        }
        self.content_head(facts, len, &Selection::whole(len.unwrap_or(0)));
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
