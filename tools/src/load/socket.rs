//! The system calls that std does not have: epoll, recv without a buffer, CPU time.
//!
//! The only file of this crate with `unsafe`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

/// Events taken from the kernel at a time.
const EVENTS_MAX: usize = 256;

/// Says which of the registered sockets can be read.
pub struct Poll {
    epoll: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Poll {
    pub fn new() -> io::Result<Poll> {
        // SAFETY: epoll_create1 takes no pointers; its result is checked before use.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Poll {
            // SAFETY: the kernel gave this descriptor to us alone just now, so nobody else closes
            // it and `OwnedFd` may.
            epoll: unsafe { OwnedFd::from_raw_fd(fd) },
            events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX],
        })
    }

    /// Level-triggered. A socket leaves the poll when it is closed.
    pub fn add(&self, socket: &impl AsFd, token: usize) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLRDHUP) as u32,
            u64: token as u64,
        };
        // SAFETY: both descriptors are borrowed, hence open, for the whole call; `event` lives
        // on this frame and the kernel copies it before it returns.
        check(unsafe {
            libc::epoll_ctl(
                self.epoll.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                socket.as_fd().as_raw_fd(),
                &mut event,
            )
        })?;
        Ok(())
    }

    /// Puts the tokens of readable sockets into `ready`.
    pub fn wait(&mut self, timeout: Duration, ready: &mut Vec<usize>) -> io::Result<()> {
        ready.clear();
        let timeout_ms = timeout.as_millis().min(i32::MAX as u128) as i32;
        // SAFETY: the kernel writes at most EVENTS_MAX events, the length of `events`, which is
        // borrowed mutably for the call.
        let waited = check(unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                self.events.as_mut_ptr(),
                EVENTS_MAX as i32,
                timeout_ms,
            )
        });
        let count = match waited {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            waited => waited?,
        };
        let tokens = self.events[..count as usize].iter();
        ready.extend(tokens.map(|event| event.u64 as usize));
        Ok(())
    }
}

/// Takes up to `len` received bytes away without copying them: tcp(7), MSG_TRUNC.
pub fn discard(socket: &impl AsFd, len: u64) -> io::Result<usize> {
    let len = len.min(isize::MAX as u64) as usize;
    // SAFETY: on a TCP socket MSG_TRUNC makes the kernel drop the bytes instead of writing them,
    // so the null buffer is never touched. On another kind of socket it would fail with EFAULT.
    let taken = unsafe {
        libc::recv(
            socket.as_fd().as_raw_fd(),
            ptr::null_mut(),
            len,
            libc::MSG_TRUNC,
        )
    };
    usize::try_from(taken).map_err(|_| io::Error::last_os_error())
}

/// User and system time of this process so far.
pub fn cpu_time() -> io::Result<Duration> {
    // SAFETY: `rusage` is plain integers, for which all zeros is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: getrusage writes one `rusage`, to which the pointer leads for the whole call.
    check(unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) })?;
    let duration = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    Ok(duration(usage.ru_utime) + duration(usage.ru_stime))
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn polls_and_discards() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut reader, _) = listener.accept().unwrap();
        reader.set_nonblocking(true).unwrap();
        let mut poll = Poll::new().unwrap();
        poll.add(&reader, 7).unwrap();
        let mut ready = Vec::new();
        poll.wait(Duration::ZERO, &mut ready).unwrap();
        assert!(ready.is_empty());
        writer.write_all(b"0123456789").unwrap();
        poll.wait(Duration::from_secs(60), &mut ready).unwrap();
        assert_eq!(ready, [7]);
        assert_eq!(discard(&reader, 4).unwrap(), 4);
        let mut rest = [0; 16];
        assert_eq!(reader.read(&mut rest).unwrap(), 6);
        assert_eq!(&rest[..6], b"456789");
        let nothing = discard(&reader, 4).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        drop(writer);
        poll.wait(Duration::from_secs(60), &mut ready).unwrap();
        assert_eq!(discard(&reader, 4).unwrap(), 0);
    }

    #[test]
    fn cpu_time_grows() {
        let before = cpu_time().unwrap();
        while cpu_time().unwrap() == before {
            std::hint::spin_loop();
        }
    }
}
