//! Checking a body before it is served: of segments that nobody sealed in time, whatever the
//! media made of a power loss would otherwise go out unseen.

use std::io;
use std::rc::Rc;

use crate::check::Check;
use crate::compact::transient;
use crate::digest::Digest;
use crate::disk::Disk;
use crate::footer::{self, Sealed};
use crate::index::{Flags, IndexedBody};
use crate::lease::Lease;
use crate::record::{CRC_STRIDE_BYTES, Kind};
use crate::wait::detached;
use crate::writer::{Shared, Writer};

/// A body as the index has it.
struct Indexed<D: Disk> {
    sequence: u64,
    lease: Lease<D>,
    unverified: bool,
}

impl<D: Disk> Writer<D> {
    /// Whether the body may be served, which needs to be asked only of one that is `unverified`:
    /// it is read, MiB by MiB, and compared with the checksums of its commit entry. One that is
    /// not what was written, or cannot be read, is forgotten; not so where the machine was merely
    /// short of something. By the owner of the digest.
    pub async fn verify(&self, digest: &Digest) -> bool {
        self.checked(digest, false).await
    }

    /// The same for a body that somebody could not read: it is checked whatever is known of it.
    pub async fn suspect(&self, digest: &Digest) -> bool {
        self.checked(digest, true).await
    }

    async fn checked(&self, digest: &Digest, anew: bool) -> bool {
        let (shared, digest) = (Rc::clone(&self.shared), *digest);
        detached(self.shared.tasks(), async move {
            shared.verify(&digest, anew).await
        })
        .await
    }
}

impl<D: Disk> Shared<D> {
    async fn verify(self: &Rc<Self>, digest: &Digest, anew: bool) -> bool {
        let look = |body: &IndexedBody<D>| Indexed {
            sequence: body.sequence,
            lease: body.lease.clone(),
            unverified: body.flags.has(Flags::UNVERIFIED),
        };
        let Some(found) = self.store.index.with_body(digest, look) else {
            return false;
        };
        if !found.unverified && !anew {
            return true;
        }
        let sound = match self.sound(digest, &found).await {
            Ok(sound) => sound,
            // It may be asked for again.
            Err(error) if transient(&error) => {
                self.store.disk_failed(found.lease.file.volume, &error);
                return false;
            }
            Err(_) => {
                let volume = found.lease.file.volume;
                self.store.read_failed(volume, self.now.get());
                false
            }
        };
        if sound {
            self.store.index.set_verified(digest, found.sequence);
        } else {
            self.drop_broken(digest, found.sequence);
            // If this cannot be written the body is out of the index all the same.
            let _ = self.commit_small().await;
        }
        sound
    }

    async fn sound(&self, digest: &Digest, found: &Indexed<D>) -> io::Result<bool> {
        let (lease, disk) = (&found.lease, self.disk(found.lease.file.volume));
        let mut check = self.check_of(digest, found).await?;
        let mut at = 0;
        while at < lease.len() {
            let len = (lease.len() - at).min(CRC_STRIDE_BYTES) as usize;
            let piece = disk.read(lease.file(), lease.offset() + at, len).await?;
            if piece.len() < len || !check.update(&piece) {
                return Ok(false);
            }
            at += len as u64;
        }
        Ok(check.finish().is_some())
    }

    /// By the body's commit entry, or by its digest if the footer cannot be read.
    async fn check_of(&self, digest: &Digest, found: &Indexed<D>) -> io::Result<Check> {
        let file = &found.lease.file;
        let sealed = Sealed {
            uuid: &self.store.uuid,
            segment: file.id,
            len: file.charged(),
        };
        let records = footer::read(self.disk(file.volume), &file.file, &sealed).await;
        let records = records.unwrap_or_default().unwrap_or_default();
        let check = records.iter().find_map(|record| match &record.kind {
            Kind::Body(entry) if record.sequence == found.sequence && entry.digest == *digest => {
                Some(Check::by_crcs(entry))
            }
            _ => None,
        });
        Ok(check.unwrap_or_else(|| Check::by_digest(digest)))
    }
}
