//! Which core a shard's thread is bound to.

use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Binds this thread to one of the cores that the process may use: the operator may have left it
/// only some of them (`CPUAffinity=`, `AllowedCPUs=`).
pub fn pin(index: usize) -> rustix::io::Result<()> {
    let allowed = sched_getaffinity(None)?;
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU)
        .filter(|core| allowed.is_set(*core))
        .collect();
    let mut own = CpuSet::new();
    let core = cores.get(index % cores.len().max(1));
    own.set(*core.ok_or(Errno::INVAL)?);
    sched_setaffinity(None, &own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_keeps_to_the_cores_that_the_process_may_use() {
        let allowed = sched_getaffinity(None).expect("asked");
        let last = (0..CpuSet::MAX_CPU).rfind(|core| allowed.is_set(*core));
        let mut only = CpuSet::new();
        only.set(last.expect("it runs on one"));
        for index in [0, 1, 7] {
            sched_setaffinity(None, &only).expect("allowed");
            pin(index).expect("allowed");
            assert_eq!(sched_getaffinity(None), Ok(only));
        }
        sched_setaffinity(None, &allowed).expect("allowed");
        pin(0).expect("allowed");
        assert_eq!(sched_getaffinity(None).map(|own| own.count()), Ok(1));
    }
}
