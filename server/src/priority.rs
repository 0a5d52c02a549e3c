//! The scheduling of the thread that calls: for the compactor, which takes what nobody else wants.
//!
//! At normal priority it would cost the serving threads a factor of four of their slowest
//! answers; under SCHED_IDLE it costs them nothing. But what is never scheduled makes no room, so
//! while room is needed it runs at the lowest normal priority instead.

use std::io;

/// The lowest there is.
const NICE: i32 = 19;

/// Who comes before this thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Everybody: it runs when a core is idle.
    Idle,
    /// Everybody of normal priority, most of the time.
    Low,
}

/// Sets the priority of the calling thread.
pub fn set(priority: Priority) -> io::Result<()> {
    // On Linux a nice value is a thread's; it counts in the normal class only.
    rustix::process::setpriority_process(None, NICE)?;
    let policy = match priority {
        Priority::Idle => libc::SCHED_IDLE,
        Priority::Low => libc::SCHED_OTHER,
    };
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: sched_setscheduler(2) reads one sched_param during the call, and `parameter` lives
    // that long. 0 names the calling thread, so no other is changed; a pid that came from
    // elsewhere would break that.
    match unsafe { libc::sched_setscheduler(0, policy, &parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a thread that became idle may become low again. That is a right of its own
/// (RLIMIT_NICE of 1, or CAP_SYS_NICE); a thread is spent to find out.
pub fn returns_from_idle() -> bool {
    let probe = std::thread::spawn(|| set(Priority::Idle).and_then(|()| set(Priority::Low)));
    matches!(probe.join(), Ok(Ok(())))
}

#[cfg(test)]
mod tests {
    use super::{Priority, returns_from_idle, set};

    fn policy_and_nice() -> (i64, i64) {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("procfs");
        let (_, fields) = stat.rsplit_once(')').expect("a command in parentheses");
        // proc_pid_stat(5): nice is field 19 and policy field 41; the first one here is 3.
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let number = |field: usize| fields[field - 3].parse().expect("a number");
        (number(41), number(19))
    }

    #[test]
    fn a_thread_becomes_idle_and_low_as_far_as_it_may() {
        let thread = std::thread::spawn(|| {
            set(Priority::Low).expect("lower is always allowed");
            assert_eq!(policy_and_nice(), (i64::from(libc::SCHED_OTHER), 19));
            set(Priority::Idle).expect("so is idle");
            assert_eq!(policy_and_nice(), (i64::from(libc::SCHED_IDLE), 19));
            assert_eq!(set(Priority::Low).is_ok(), returns_from_idle());
        });
        thread.join().expect("no panic");
    }
}
