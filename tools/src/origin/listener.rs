//! Listening sockets that can refuse or ignore connections for a while, and the connections they
//! gave.

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::endpoint::Side;

/// A herd connects at once.
const BACKLOG: i32 = 1024;
/// Open at once on all listeners; each costs a thread.
const CONNECTIONS_MAX: usize = 1024;
/// A connection to this machine that takes longer meets a full queue.
const FULL_AFTER: Duration = Duration::from_millis(500);

pub struct Listener {
    pub addr: SocketAddr,
    socket: Socket,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    /// The thread that accepts waits for another stage.
    parked: bool,
    /// Fill the queue while nobody accepts.
    fillers: Vec<TcpStream>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    Stopped,
    Ended,
}

impl Listener {
    pub fn bind(addr: SocketAddr) -> io::Result<Listener> {
        let bind = |addr: SocketAddr| {
            let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SockAddr::from(addr))?;
            Ok::<_, io::Error>(socket)
        };
        let first = bind(addr)?;
        let addr = first
            .local_addr()?
            .as_socket()
            .ok_or(io::ErrorKind::AddrNotAvailable)?;
        // Only a port that was asked for by number stays ours while we do not listen.
        let socket = bind(addr)?;
        drop(first);
        socket.listen(BACKLOG)?;
        Ok(Listener {
            addr,
            socket,
            state: Mutex::new(State {
                stage: Stage::Open,
                parked: false,
                fillers: Vec::new(),
            }),
            changed: Condvar::new(),
        })
    }

    /// The next connection; `None` when the listener has ended.
    pub fn accept(&self) -> Option<TcpStream> {
        loop {
            let mut state = self.state.lock().unwrap();
            while state.stage == Stage::Stopped {
                state.parked = true;
                self.changed.notify_all();
                state = self.changed.wait(state).unwrap();
            }
            state.parked = false;
            if state.stage == Stage::Ended {
                return None;
            }
            drop(state);
            match self.socket.accept() {
                Ok((socket, _)) => return Some(socket.into()),
                // Woken by `stop`, or the peer has gone already.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    eprintln!("entrepot-origin: accept on {}: {error}", self.addr);
                    return None;
                }
            }
        }
    }

    pub fn is_open(&self) -> bool {
        self.state.lock().unwrap().stage == Stage::Open
    }

    /// Connections are refused.
    pub fn stop(&self) -> io::Result<()> {
        self.leave(Stage::Stopped).map(drop)
    }

    pub fn end(&self) -> io::Result<()> {
        self.leave(Stage::Ended).map(drop)
    }

    /// Connections are neither accepted nor refused: with its queue full, the kernel drops every
    /// SYN (tcp(7), `tcp_abort_on_overflow`).
    pub fn stop_accepting(&self) -> io::Result<()> {
        let mut state = self.leave(Stage::Stopped)?;
        while !state.parked {
            state = self.changed.wait(state).unwrap();
        }
        self.socket.listen(0)?;
        loop {
            match TcpStream::connect_timeout(&self.addr, FULL_AFTER) {
                Ok(filler) => state.fillers.push(filler),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    pub fn resume(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.stage == Stage::Stopped {
            self.socket.listen(BACKLOG)?;
            state.fillers.clear();
            state.stage = Stage::Open;
            self.changed.notify_all();
        }
        Ok(())
    }

    fn leave(&self, to: Stage) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state.lock().unwrap();
        if state.stage == Stage::Open {
            // Wakes `accept` and refuses connections; the socket stays bound to its port.
            self.socket.shutdown(Shutdown::Both)?;
        }
        state.stage = to;
        self.changed.notify_all();
        Ok(state)
    }
}

/// The open connections of all listeners, to be closed or waited for.
#[derive(Default)]
pub struct Connections {
    open: Mutex<Open>,
    changed: Condvar,
}

#[derive(Default)]
struct Open {
    by_id: HashMap<u64, (Option<Side>, Weak<TcpStream>)>,
    /// Ids given so far.
    given: u64,
    accepted: HashMap<Side, u64>,
}

impl Connections {
    /// `None` when there are too many. Control connections have no side.
    pub fn add(&self, side: Option<Side>, stream: &Arc<TcpStream>) -> Option<u64> {
        let mut open = self.open.lock().unwrap();
        if open.by_id.len() >= CONNECTIONS_MAX {
            return None;
        }
        open.given += 1;
        let id = open.given;
        open.by_id.insert(id, (side, Arc::downgrade(stream)));
        if let Some(side) = side {
            *open.accepted.entry(side).or_default() += 1;
        }
        Some(id)
    }

    pub fn remove(&self, id: u64) {
        self.open.lock().unwrap().by_id.remove(&id);
        self.changed.notify_all();
    }

    /// Connections accepted by a listener so far.
    pub fn accepted(&self, side: Side) -> u64 {
        self.open
            .lock()
            .unwrap()
            .accepted
            .get(&side)
            .copied()
            .unwrap_or(0)
    }

    pub fn clear_accepted(&self) {
        self.open.lock().unwrap().accepted.clear();
    }

    /// Ends the connections of these listeners, but for the one that asks.
    pub fn close(&self, sides: &[Side], except: Option<u64>) {
        let open = self.open.lock().unwrap();
        for (id, (side, stream)) in &open.by_id {
            let wanted = side.is_some_and(|side| sides.contains(&side));
            if let (true, true, Some(stream)) = (wanted, Some(*id) != except, stream.upgrade()) {
                // Its thread sees the end and leaves; it may have left already.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// Until at most `count` are open; answers how many, `None` when time is up before.
    pub fn wait(&self, count: usize, except: Option<u64>, timeout: Duration) -> Option<usize> {
        let until = Instant::now() + timeout;
        let mut open = self.open.lock().unwrap();
        loop {
            let counted = |(id, (side, _)): &(&u64, &(Option<Side>, Weak<TcpStream>))| {
                side.is_some() && Some(**id) != except
            };
            let now = open.by_id.iter().filter(counted).count();
            if now <= count {
                return Some(now);
            }
            let left = until.checked_duration_since(Instant::now())?;
            open = self.changed.wait_timeout(open, left).unwrap().0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_while_stopped_and_keeps_its_port() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (accepted, seen) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while let Some(stream) = listener.accept() {
                    accepted.send(stream).unwrap();
                }
            });
            for _ in 0..3 {
                let client = TcpStream::connect(listener.addr).unwrap();
                let peer = seen.recv().unwrap().peer_addr().unwrap();
                assert_eq!(peer, client.local_addr().unwrap());
                listener.stop().unwrap();
                let refused = TcpStream::connect(listener.addr).unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
                listener.resume().unwrap();
            }
            listener.end().unwrap();
            assert!(TcpStream::connect(listener.addr).is_err());
        });
    }

    #[test]
    fn a_full_queue_answers_nothing_until_it_is_accepted_from() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| while listener.accept().is_some() {});
            for _ in 0..2 {
                listener.stop_accepting().unwrap();
                let ignored = TcpStream::connect_timeout(&listener.addr, FULL_AFTER);
                assert_eq!(ignored.unwrap_err().kind(), io::ErrorKind::TimedOut);
                listener.resume().unwrap();
                TcpStream::connect(listener.addr).unwrap();
            }
            listener.end().unwrap();
        });
    }
}
