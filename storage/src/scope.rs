//! Forgetting repositories as a whole, also what was evicted from memory and is on disk still.

use crate::disk::Disk;
use crate::key::ScopeKey;
use crate::writer::Shared;

impl<D: Disk> Shared<D> {
    /// Takes out of memory what this writer owns of the scope. What came after `sequence` stays;
    /// what waits to be written is dropped by the group that would write it.
    pub(crate) async fn leave_scope(&self, scope: &ScopeKey, sequence: u64) {
        self.small.drop_shadowed(scope, sequence);
        for slice in self.slices() {
            if scope.repository.is_none() || slice == scope.slice() {
                self.store.index.remove_scope(slice, scope, sequence);
                self.tasks().give_way().await;
            }
        }
    }
}
