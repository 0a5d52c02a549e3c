//! One thread's io_uring: connect, send, receive, and receive into nothing.
//!
//! The only file of the load tool with `unsafe`: no safe crate offers `MSG_TRUNC` through a ring.
//! An operation owns what the kernel touches (socket, buffer, address) until its completion
//! came, also when nobody waits for it any more; so no address ever crosses this file's border.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::ptr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use socket2::{SockAddr, Socket};

/// Submissions collected for one system call; a fuller queue is handed over at once.
const SUBMISSIONS_MAX: u32 = 512;
/// Of completions that nobody reaped yet; the kernel keeps further ones until there is room.
const COMPLETIONS_MAX: u32 = 4096;
/// Of completions of cancellations, which nobody waits for.
const NOBODY: u64 = u64::MAX;
/// The length of one receive into nothing: the kernel takes 32 bits.
const DISCARD_LEN_MAX: u64 = 1 << 30;

/// Waits for the completion of one operation.
pub type Task = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpId(u32);

/// What an operation came to, with its buffer.
#[derive(Debug)]
pub struct Finished {
    pub result: io::Result<usize>,
    pub buffer: Vec<u8>,
}

/// What the kernel may touch until the operation completes.
enum Held {
    Buffer(Vec<u8>),
    Request(#[expect(dead_code, reason = "held for the kernel")] Rc<[u8]>),
    Address(#[expect(dead_code, reason = "held for the kernel")] Box<SockAddr>),
    Nothing,
}

enum State {
    Free,
    Flying,
    Done(i32),
    /// Nobody waits: the place is free when it completes.
    Left,
}

struct Op {
    state: State,
    task: Task,
    held: Held,
    socket: Option<Rc<Socket>>,
    since: Instant,
    expired: bool,
}

pub struct Ring {
    uring: IoUring,
    ops: Vec<Op>,
    free: Vec<u32>,
    /// Entries that found the queue full.
    waiting: VecDeque<squeue::Entry>,
    /// When the last wait ended: completions are as old as this.
    now: Instant,
}

impl Ring {
    pub fn new() -> io::Result<Ring> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS_MAX);
        let mut deferred = builder.clone();
        deferred
            .setup_submit_all()
            .setup_single_issuer()
            .setup_defer_taskrun();
        // Kernels before 6.1 know no deferred work.
        let uring = deferred
            .build(SUBMISSIONS_MAX)
            .or_else(|_| builder.build(SUBMISSIONS_MAX))?;
        if !uring.params().is_feature_ext_arg() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Ring {
            uring,
            ops: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            now: Instant::now(),
        })
    }

    pub fn now(&self) -> Instant {
        self.now
    }

    pub fn connect(&mut self, socket: Rc<Socket>, to: SocketAddr, task: Task) -> OpId {
        let address = Box::new(SockAddr::from(to));
        let fd = Fd(socket.as_raw_fd());
        let entry = opcode::Connect::new(fd, address.as_ptr().cast(), address.len()).build();
        self.start(entry, Held::Address(address), socket, task)
    }

    /// Reads into `buffer` behind its first `from` bytes.
    pub fn receive(
        &mut self,
        socket: Rc<Socket>,
        mut buffer: Vec<u8>,
        from: usize,
        task: Task,
    ) -> OpId {
        let room = &mut buffer[from..];
        let len = u32::try_from(room.len()).unwrap_or(u32::MAX);
        let fd = Fd(socket.as_raw_fd());
        let entry = opcode::Recv::new(fd, room.as_mut_ptr(), len).build();
        self.start(entry, Held::Buffer(buffer), socket, task)
    }

    /// Takes up to `len` bytes off a TCP socket without copying them anywhere.
    pub fn discard(&mut self, socket: Rc<Socket>, len: u64, task: Task) -> OpId {
        let len = len.min(DISCARD_LEN_MAX) as u32;
        let fd = Fd(socket.as_raw_fd());
        // With MSG_TRUNC a TCP socket drops the bytes and never looks at the address (tcp(7)).
        let receive = opcode::Recv::new(fd, ptr::null_mut(), len).flags(libc::MSG_TRUNC);
        self.start(receive.build(), Held::Nothing, socket, task)
    }

    /// Sends all of `request`. Nobody waits: what goes wrong shows where the answer is awaited.
    pub fn send(&mut self, socket: Rc<Socket>, request: Rc<[u8]>) {
        let len = u32::try_from(request.len()).unwrap_or(u32::MAX);
        let fd = Fd(socket.as_raw_fd());
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = opcode::Send::new(fd, request.as_ptr(), len).flags(flags);
        let op = self.start(entry.build(), Held::Request(request), socket, Task::MAX);
        self.ops[op.0 as usize].state = State::Left;
    }

    fn start(&mut self, entry: squeue::Entry, held: Held, socket: Rc<Socket>, task: Task) -> OpId {
        let op = Op {
            state: State::Flying,
            task,
            held,
            socket: Some(socket),
            since: self.now,
            expired: false,
        };
        let index = match self.free.pop() {
            Some(index) => {
                self.ops[index as usize] = op;
                index
            }
            None => {
                self.ops.push(op);
                self.ops.len() as u32 - 1
            }
        };
        self.push(entry.user_data(index.into()));
        OpId(index)
    }

    fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: the entry points into a buffer, request or address that `held` of its op owns,
        // or at nothing (MSG_TRUNC), and names a socket that the op keeps open. `reap` takes them
        // out only after the completion, and `Drop` ends the ring before the ops. None of the
        // three moves its bytes when the op itself moves.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        if pushed.is_err() {
            self.waiting.push_back(entry);
        }
    }

    /// Hands the operations to the kernel and waits until one completes or the time is over.
    /// Tasks whose operation completed are added to `ready`.
    pub fn wait(&mut self, longest: Duration, ready: &mut VecDeque<Task>) -> io::Result<()> {
        let longest = match self.waiting.is_empty() {
            true => longest,
            false => Duration::ZERO,
        };
        let timespec = Timespec::new()
            .sec(longest.as_secs())
            .nsec(longest.subsec_nanos());
        let args = SubmitArgs::new().timespec(&timespec);
        match self.uring.submitter().submit_with_args(1, &args) {
            Ok(_) => {}
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
        self.now = Instant::now();
        self.reap(ready);
        while let Some(entry) = self.waiting.pop_front() {
            // SAFETY: as in `push`.
            if unsafe { self.uring.submission().push(&entry) }.is_err() {
                self.waiting.push_front(entry);
                break;
            }
        }
        Ok(())
    }

    fn reap(&mut self, ready: &mut VecDeque<Task>) {
        for completion in self.uring.completion() {
            if completion.user_data() == NOBODY || cqueue::more(completion.flags()) {
                continue;
            }
            let index = completion.user_data() as u32;
            let op = &mut self.ops[index as usize];
            match op.state {
                State::Left => release(op, &mut self.free, index),
                _ => {
                    op.state = State::Done(completion.result());
                    ready.push_back(op.task);
                }
            }
        }
    }

    /// The result, when there is one; an expired operation has timed out.
    pub fn take(&mut self, id: OpId, task: Task) -> Option<Finished> {
        let op = &mut self.ops[id.0 as usize];
        let State::Done(result) = op.state else {
            op.task = task;
            return None;
        };
        let result = match usize::try_from(result) {
            Ok(len) => Ok(len),
            Err(_) if op.expired => Err(io::ErrorKind::TimedOut.into()),
            Err(_) => Err(io::Error::from_raw_os_error(-result)),
        };
        let buffer = match mem::replace(&mut op.held, Held::Nothing) {
            Held::Buffer(buffer) => buffer,
            _ => Vec::new(),
        };
        release(op, &mut self.free, id.0);
        Some(Finished { result, buffer })
    }

    /// Nobody waits for it any more.
    pub fn leave(&mut self, id: OpId) {
        let op = &mut self.ops[id.0 as usize];
        match op.state {
            State::Done(_) => release(op, &mut self.free, id.0),
            _ => {
                op.state = State::Left;
                self.cancel(id.0);
            }
        }
    }

    /// Gives up what had no completion for `longest`.
    pub fn expire(&mut self, longest: Duration) {
        for index in 0..self.ops.len() {
            let op = &mut self.ops[index];
            let flying = matches!(op.state, State::Flying | State::Left);
            if flying && !op.expired && self.now.duration_since(op.since) >= longest {
                op.expired = true;
                self.cancel(index as u32);
            }
        }
    }

    fn cancel(&mut self, index: u32) {
        let entry = opcode::AsyncCancel::new(index.into()).build();
        self.push(entry.user_data(NOBODY));
    }

    /// Whether the kernel may still touch something of ours.
    fn is_flying(&self) -> bool {
        let flying = |op: &Op| matches!(op.state, State::Flying | State::Left);
        self.ops.iter().any(flying)
    }
}

impl Drop for Ring {
    /// Waits for all that flies. Left alone, the kernel might write to freed buffers.
    fn drop(&mut self) {
        for op in &self.ops {
            if let Some(socket) = &op.socket {
                // An unconnected socket refuses; its connect is cancelled below.
                let _ = socket.shutdown(std::net::Shutdown::Both);
            }
        }
        self.expire(Duration::ZERO);
        let mut ready = VecDeque::new();
        while self.is_flying() {
            if self.wait(Duration::from_millis(100), &mut ready).is_err() {
                // The ring does not answer: its memory stays where the kernel knows it.
                mem::forget(mem::take(&mut self.ops));
                return;
            }
        }
    }
}

fn release(op: &mut Op, free: &mut Vec<u32>, index: u32) {
    op.state = State::Free;
    op.held = Held::Nothing;
    op.socket = None;
    free.push(index);
}

/// Errors of a wait that say nothing of the ring: the time is over, a signal came, the kernel
/// wants completions reaped first.
fn is_passing(error: &io::Error) -> bool {
    let passing = [libc::ETIME, libc::EINTR, libc::EBUSY, libc::EAGAIN];
    error
        .raw_os_error()
        .is_some_and(|code| passing.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    const LONG: Duration = Duration::from_secs(60);

    fn pair() -> (Rc<Socket>, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let writer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (reader, _) = listener.accept().unwrap();
        (Rc::new(reader.into()), writer)
    }

    fn finish(ring: &mut Ring, id: OpId) -> Finished {
        let mut ready = VecDeque::new();
        loop {
            if let Some(finished) = ring.take(id, 0) {
                return finished;
            }
            ring.wait(LONG, &mut ready).unwrap();
        }
    }

    #[test]
    fn receives_discards_and_sends() {
        let mut ring = Ring::new().unwrap();
        let (reader, mut writer) = pair();
        let discard = ring.discard(reader.clone(), 4, 0);
        writer.write_all(b"0123456789").unwrap();
        assert_eq!(finish(&mut ring, discard).result.unwrap(), 4);
        let receive = ring.receive(reader.clone(), b"ab______________".to_vec(), 2, 0);
        let received = finish(&mut ring, receive);
        assert_eq!(received.result.unwrap(), 6);
        assert_eq!(&received.buffer[..8], b"ab456789");
        ring.send(reader.clone(), Rc::from(&b"hello"[..]));
        ring.wait(LONG, &mut VecDeque::new()).unwrap();
        let mut answer = [0; 5];
        writer.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
        drop(writer);
        let end = ring.discard(reader, 4, 0);
        assert_eq!(finish(&mut ring, end).result.unwrap(), 0);
        assert_eq!(ring.free.len(), ring.ops.len());
    }

    #[test]
    fn what_makes_no_progress_times_out() {
        let mut ring = Ring::new().unwrap();
        let (reader, _writer) = pair();
        let receive = ring.receive(reader, vec![0; 8], 0, 0);
        ring.wait(Duration::ZERO, &mut VecDeque::new()).unwrap();
        ring.expire(LONG);
        assert!(ring.take(receive, 0).is_none());
        ring.expire(Duration::ZERO);
        let error = finish(&mut ring, receive).result.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn what_was_left_frees_its_place() {
        let mut ring = Ring::new().unwrap();
        let (reader, _writer) = pair();
        let receive = ring.receive(reader.clone(), vec![0; 8], 0, 0);
        ring.leave(receive);
        let mut ready = VecDeque::new();
        while ring.is_flying() {
            ring.wait(LONG, &mut ready).unwrap();
        }
        assert!(ready.is_empty());
        assert_eq!((ring.free.len(), Rc::strong_count(&reader)), (1, 1));
    }

    #[test]
    fn more_operations_than_the_queue_holds() {
        let mut ring = Ring::new().unwrap();
        let (reader, mut writer) = pair();
        let count = SUBMISSIONS_MAX as usize * 2 + 1;
        let ids: Vec<OpId> = (0..count)
            .map(|_| ring.discard(reader.clone(), 1, 0))
            .collect();
        writer.write_all(&vec![0; count]).unwrap();
        for id in ids {
            assert_eq!(finish(&mut ring, id).result.unwrap(), 1);
        }
    }
}
