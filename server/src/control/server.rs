//! The server's side of the control socket.
//!
//! Called by `start`. A thread of its own with blocking calls, so that a purge of a large project
//! holds up nobody but the next operator; one request at a time. What it is asked it has the
//! shards do, by mailbox.

use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{Store, VolumeState, VolumeUsage};
use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Socket, Type};

use super::{Answer, BindError, Request, VolumeLine, read_line, write_line};
use crate::mailbox::{Mailboxes, Message};
use crate::purge::Purger;
use crate::refresh::Refresher;
use crate::reload::Reloader;

/// How long an asker may take to send its line or to take the answer: it is on this machine.
const PATIENCE: Duration = Duration::from_secs(5);
/// Askers that may wait for the one before.
const BACKLOG: i32 = 16;
/// The shard whose writer takes a volume back.
const BRINGS_BACK: usize = 0;
/// All of the disk's segments are read, a second for each TB or so.
const BRING_BACK_PATIENCE: Duration = Duration::from_secs(300);
/// Pause after a failed accept: out of descriptors, it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the answers come from.
pub struct Control {
    pub purger: Purger,
    pub store: Arc<Store<UringDisk>>,
    /// Of the store's volumes, in their order.
    pub paths: Vec<PathBuf>,
    pub mailboxes: Arc<Mailboxes>,
    pub reloader: Arc<Reloader>,
    pub refresher: Refresher,
}

/// The socket's file; unlinked on drop, so that nobody connects to a server that ends.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Left behind it is replaced by the next start.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Binds the socket and answers on a thread until the process ends.
pub fn start(path: &Path, control: Control) -> Result<SocketFile, BindError> {
    let listener = bind(path)?;
    let file = SocketFile(path.to_owned());
    let thread = std::thread::Builder::new().name("control".to_owned());
    let serving = thread.spawn(move || {
        for stream in listener.incoming() {
            match stream {
                Ok(stream) => control.serve(stream),
                Err(error) => {
                    tracing::warn!(%error, "control: accept failed");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    });
    match serving {
        Ok(_) => Ok(file),
        Err(error) => Err(failed(path)(error)),
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> BindError {
    move |error| BindError::Failed {
        path: path.to_owned(),
        error,
    }
}

/// A socket that only the server's user may open, from its first moment on.
fn bind(path: &Path) -> Result<UnixListener, BindError> {
    let failed = failed(path);
    let address = SockAddr::unix(path).map_err(&failed)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(&failed)?;
    // unix(7): the file gets the mode of the unbound socket, less the umask.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|errno| failed(errno.into()))?;
    match socket.bind(&address) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            remove_leftover(path)?;
            socket.bind(&address).map_err(&failed)?;
        }
        bound => bound.map_err(&failed)?,
    }
    socket.listen(BACKLOG).map_err(&failed)?;
    Ok(UnixListener::from(std::os::fd::OwnedFd::from(socket)))
}

/// A killed server leaves its socket's file behind; a running one's answers.
fn remove_leftover(path: &Path) -> Result<(), BindError> {
    let metadata = path.symlink_metadata().map_err(failed(path))?;
    if !metadata.file_type().is_socket() {
        return Err(BindError::NoSocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed(path))
        }
        Ok(_) => Err(BindError::Taken(path.to_owned())),
        Err(error) => Err(failed(path)(error)),
    }
}

impl Control {
    fn serve(&self, mut stream: UnixStream) {
        let answer = match read_line(&mut stream, PATIENCE) {
            Ok(request) => self.answer(&request),
            Err(error) => Answer::Error(error.to_string()),
        };
        let written = stream
            .set_write_timeout(Some(PATIENCE))
            .map_err(Into::into)
            .and_then(|()| write_line(&mut stream, &answer));
        if let Err(error) = written {
            tracing::warn!(%error, ?answer, "control: the asker did not take its answer");
        }
    }

    fn answer(&self, request: &Request) -> Answer {
        let answer = match request {
            Request::Purge(target) => match self.purger.purge(target) {
                Ok(purged) => Answer::Purged(purged),
                Err(error) => Answer::Error(error.to_string()),
            },
            Request::Refresh(image) => match self.refresher.refresh(&self.purger, image) {
                Ok(refreshed) => Answer::Refreshed(refreshed),
                Err(error) => Answer::Error(error.to_string()),
            },
            Request::Reload {} => match self.reloader.reload() {
                Ok(reloaded) => Answer::Reloaded(reloaded),
                Err(error) => Answer::Error(error.to_string()),
            },
            Request::Volumes {} => Answer::Volumes(self.volumes()),
            Request::BringBack(path) => match self.bring_back(path) {
                Ok(answer) => answer,
                Err(error) => Answer::Error(error),
            },
        };
        tracing::info!(?request, ?answer, "control");
        answer
    }
}

impl Control {
    /// The store looks for itself whether the disk is well.
    fn bring_back(&self, path: &Path) -> Result<Answer, String> {
        let number = self.paths.iter().position(|known| known == path);
        let number = number.ok_or_else(|| format!("{} is not a volume", path.display()))?;
        let (reply, answer) = flume::bounded(1);
        let deadline = Instant::now() + BRING_BACK_PATIENCE;
        let message = Message::BringBack { number, reply };
        let stuck = || "the server is stopping or does not get on".to_owned();
        if !self.mailboxes.send_by(BRINGS_BACK, message, deadline) {
            return Err(stuck());
        }
        let brought = answer.recv_deadline(deadline).map_err(|_| stuck())?;
        let brought = brought.map_err(|error| format!("{}: {error}", path.display()))?;
        let volume = self.volumes().swap_remove(number);
        Ok(Answer::BroughtBack {
            volume,
            bodies: brought.bodies,
            unreadable: brought.unreadable,
        })
    }

    fn volumes(&self) -> Vec<VolumeLine> {
        let volumes = self.paths.iter().zip(self.store.volumes());
        let line = |(path, volume): (&PathBuf, VolumeUsage)| VolumeLine {
            path: path.clone(),
            online: volume.state == VolumeState::Online,
            capacity: volume.capacity,
            used: volume.used,
            live: volume.live,
            dead: volume.dead,
            pinned: volume.pinned,
            segments: volume.segments,
            quarantined: volume.quarantined,
        };
        volumes.map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let name = format!("entrepot-control-{}-{name}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&dir).expect("a directory");
            Dir(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn only_its_user_may_open_it_and_a_dead_one_is_replaced() {
        let dir = Dir::new("bind");
        let path = dir.0.join("control.sock");
        let first = bind(&path).expect("bound");
        let mode = path.metadata().expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(bind(&path), Err(BindError::Taken(taken)) if taken == path));
        drop(first);
        assert!(path.exists(), "as after SIGKILL");
        bind(&path).expect("a dead server's file is replaced");
        drop(SocketFile(path.clone()));
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = Dir::new("file");
        let path = dir.0.join("control.sock");
        std::fs::write(&path, "precious").expect("written");
        assert!(matches!(bind(&path), Err(BindError::NoSocket(_))));
        assert_eq!(std::fs::read(&path).expect("still there"), b"precious");
        let nowhere = dir.0.join("no/such/control.sock");
        assert!(matches!(bind(&nowhere), Err(BindError::Failed { .. })));
    }
}
