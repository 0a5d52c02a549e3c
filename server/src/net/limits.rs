//! What the kernel lets this process take: open files, locked memory, room in a file system.
//!
//! Read and raised once, at start, by `preflight`. Safe calls only.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// linux/capability.h: CAP_IPC_LOCK, whose holder locks memory without a limit.
const CAP_IPC_LOCK: u32 = 14;

/// Raises the soft limit of open files to the hard one and returns it; `u64::MAX` is no limit.
pub fn raise_files() -> io::Result<u64> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised)?;
    Ok(maximum.unwrap_or(u64::MAX))
}

/// How many bytes this user may lock, rings of all its processes included; `None` is no limit.
pub fn memlock() -> Option<u64> {
    match may_lock_memory() {
        true => None,
        false => getrlimit(Resource::Memlock).current,
    }
}

fn may_lock_memory() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_capabilities(&status).is_some_and(|set| set & (1 << CAP_IPC_LOCK) != 0)
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Bytes of the file system that holds `path`, used or not.
pub fn file_system_len(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
}

/// A number of /proc/sys, if it can be seen from here.
pub fn sysctl(name: &str) -> Option<i64> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{effective_capabilities, file_system_len, raise_files, sysctl};

    #[test]
    fn capabilities_are_read_from_the_status() {
        let status = "Name:\tx\nCapPrm:\t0\nCapEff:\t0000000000004000\nCapBnd:\t1\n";
        assert_eq!(effective_capabilities(status), Some(1 << 14));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }

    #[test]
    fn the_machine_answers() {
        assert!(raise_files().expect("limit") > 64);
        assert!(file_system_len(std::path::Path::new("/")).expect("statvfs") > 1 << 20);
        assert!(sysctl("kernel.pid_max").expect("a number") > 0);
        assert_eq!(sysctl("kernel.no_such_name"), None);
    }
}
