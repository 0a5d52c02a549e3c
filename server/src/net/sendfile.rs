//! Moves a range of a lease to a socket without copying it through user space.
//!
//! Called by `reading` for hits and for followers of a fill. A page that is not in the page
//! cache would stop the shard inside `sendfile` (R3), so each slice is probed first and warmed
//! on the side when it is cold. Revocation is checked before every slice (S5). Which bytes may
//! be sent is the caller's business: the range must lie below the watermark (S1, S2).

use std::io::{self, IoSliceMut};
use std::time::{Duration, Instant};

use entrepot_storage::Lease;
use entrepot_storage::disk::uring::UringDisk;
use rustix::fs::sendfile;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::socket::Socket;
use super::turns::{SLICE_LEN, Turns};
use super::warm::{WINDOW_LEN, Warmer};
use super::watchdog::Phase;

/// Ranges longer than this are corked: what an acknowledgement pushes out in between is a segment
/// more for each.
const CORK_MIN: u64 = 64 << 10;
/// Pages of a slice are probed this far apart, in bytes: what is evicted goes by larger pieces.
const PROBE_EVERY: u64 = 256 << 10;
/// How long what a probe found is taken to be so: a client that takes little may need minutes for
/// a slice.
const BELIEVED: Duration = Duration::from_millis(100);
/// The unit the page cache is probed in.
const PAGE_LEN: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("the client went away: {0}")]
    Client(#[source] io::Error),
    #[error("reading the store failed: {0}")]
    Store(#[source] io::Error),
    #[error("the segment is shorter than its record")]
    Truncated,
    #[error("the lease was revoked")]
    Revoked,
}

/// Sends `[at, to)` of the leased extent (offsets within the extent); `at` moves on with what the
/// socket took, and says after an error how far it came. The caller has told the socket by
/// `MSG_MORE` that more follows.
pub async fn send(
    socket: &Socket,
    warmer: &Warmer,
    turns: &Turns,
    lease: &Lease<UringDisk>,
    at: &mut u64,
    to: u64,
) -> Result<(), SendError> {
    debug_assert!(
        lease.is_empty() || to <= lease.len(),
        "a range lies within its extent"
    );
    let start = *at;
    let is_large = to - start > CORK_MIN;
    let _corked = is_large.then(|| socket.cork());
    // Probed or read up to here.
    let mut warm_to = start;
    let mut probed = Instant::now();
    while *at < to {
        let mut slice_end = to.min(*at + SLICE_LEN);
        if *at < warm_to && probed.elapsed() < BELIEVED {
            // What is left of a slice that the socket took in part.
            slice_end = slice_end.min(warm_to);
        } else {
            // The first page of a slice follows the last one of the slice before.
            let follows = *at > start && *at >= warm_to;
            probed = Instant::now();
            if !(follows || resident(lease, *at)) || !is_resident(lease, *at, slice_end) {
                let window = WINDOW_LEN.min(to - *at);
                // The disk's time is not the client's.
                socket.enter(Phase::Work);
                let offset = lease.offset() + *at;
                let warmed = warmer.warm(lease.clone(), offset, window).await;
                warmed.map_err(SendError::Store)?;
                socket.enter(Phase::Send);
                warm_to = *at + window;
            } else {
                warm_to = slice_end;
            }
        }
        if is_large {
            turns.take().await;
        }
        let wanted = (slice_end - *at) as usize;
        let sent = send_unless_revoked(socket, lease, *at, wanted);
        if is_large {
            turns.sent(sent.map_or(0, |sent| sent.unwrap_or(0) as u64));
        }
        let Some(sent) = sent else {
            return Err(SendError::Revoked);
        };
        match sent {
            Ok(0) => return Err(SendError::Truncated),
            Ok(count) => {
                *at += count as u64;
                socket.progressed();
                if *at < to {
                    // Waiting for room is also where the other connections of the shard get on.
                    socket.writable().await.map_err(SendError::Client)?;
                }
            }
            Err(Errno::AGAIN) => socket.room().await.map_err(SendError::Client)?,
            Err(Errno::INTR) => {}
            Err(Errno::IO) => return Err(SendError::Store(Errno::IO.into())),
            Err(errno) => return Err(SendError::Client(errno.into())),
        }
    }
    Ok(())
}

/// One `sendfile` from `at` on, or `None`. No wait can come between the look and the call: whoever
/// revokes a lease may do so in every wait (S5).
fn send_unless_revoked(
    socket: &Socket,
    lease: &Lease<UringDisk>,
    at: u64,
    wanted: usize,
) -> Option<Result<usize, Errno>> {
    let mut offset = lease.offset() + at;
    (!lease.revoked()).then(|| sendfile(socket, lease.file(), Some(&mut offset), wanted))
}

/// True when the probed pages of these bytes can be read without waiting for the disk; the last is
/// always one of them.
fn is_resident(lease: &Lease<UringDisk>, from: u64, to: u64) -> bool {
    let ends = (from..to).step_by(PROBE_EVERY as usize).skip(1);
    ends.chain([to]).all(|end| resident(lease, end - 1))
}

/// True when the page of this byte of the extent can be read without waiting for the disk.
fn resident(lease: &Lease<UringDisk>, at: u64) -> bool {
    let mut byte = [0];
    let at = (lease.offset() + at) / PAGE_LEN * PAGE_LEN;
    let mut buffers = [IoSliceMut::new(&mut byte)];
    match preadv2(lease.file(), &mut buffers, at, ReadWriteFlags::NOWAIT) {
        Err(Errno::AGAIN) => false,
        // A file system without NOWAIT says so; then the probe can't help.
        _ => true,
    }
}
