//! What must hold before a shard starts, checked while a clear message is still possible.
//!
//! Called by `main` through [`run`]. Each check either passes or ends in a [`Fatal`] that names
//! the sysctl, the limit, the unit line or the flag that helps; `main` prints it and exits with
//! [`EXIT_CODE`]. Nothing is worked around: a silent slow path hides a wrong machine.

use std::cell::Cell;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use entrepot_storage::segments_max;
use monoio::io::AsyncReadRent;

use crate::config::Config;
use crate::net::limits;
use crate::ring::{self, ENTRIES};

/// sysexits.h EX_CONFIG: the service manager need not try again.
pub const EXIT_CODE: u8 = 78;
/// Locked memory of one such ring: 64 KiB of submissions, 32 KiB of completions, heads and
/// arrays, rounded up.
const RING_LEN: u64 = 128 << 10;
/// Locked memory of the compactor: the runtime refuses to start with a limit below half a MiB,
/// and registers 4 MiB of buffers beside three small rings.
const COMPACTOR_LEN: u64 = 5 << 20;
/// Files beside client connections and most segments: upstream connections, rings, listeners, the
/// log, and the segments of a small store.
const FILES_RESERVED: u64 = 1_024;
/// Of these, for segments in any case: a small store full of layers.
const SEGMENT_FILES_MIN: u64 = 512;
/// A fill has an upstream connection, and a staging file if the store is full.
const FILES_PER_FILL: u64 = 2;

const _: () = assert!(SEGMENT_FILES_MIN < FILES_RESERVED);
/// With fewer client connections than this a server is not worth starting.
const CONNECTIONS_MIN: u64 = 64;

/// How long the kernel may take to close what a killed server held; 10 to 100 ms were seen.
pub const LEFTOVER_WAIT: Duration = Duration::from_secs(3);
/// How often it is looked at.
pub const LEFTOVER_LOOK: Duration = Duration::from_millis(20);

const URING_DISABLED: &str = "kernel.io_uring_disabled";

#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    #[error(
        "io_uring is disabled on this machine: kernel.io_uring_disabled = {0}\n  \
             allow it:           sysctl -w kernel.io_uring_disabled=0\n  \
             or for one group:   sysctl -w kernel.io_uring_disabled=1 \
             kernel.io_uring_group=<gid of the service>"
    )]
    UringDisabled(i64),
    #[error(
        "io_uring is forbidden to this process, most likely by a seccomp filter\n  \
             in a container:     --security-opt seccomp=<profile that allows io_uring_setup, \
             io_uring_enter, io_uring_register>\n  \
             in a systemd unit:  SystemCallFilter=@system-service @aio"
    )]
    UringForbidden,
    #[error(
        "this kernel has no io_uring, or a seccomp filter hides it\n  \
             a newer kernel:     the server is tested on Linux 6.18\n  \
             in a container:     --security-opt seccomp=<profile that allows io_uring_setup, \
             io_uring_enter, io_uring_register>"
    )]
    UringMissing,
    #[error(
        "this kernel's io_uring lacks operations or flags the server needs: \
             Linux 6.0 has them all, and it is tested on 6.18"
    )]
    UringOperations,
    #[error(
        "no memory for an io_uring of {ENTRIES} entries: the limit of locked memory is \
             too small, or used up by other processes of this user\n  \
             in a systemd unit:  LimitMEMLOCK=infinity\n  \
             in a container:     --ulimit memlock=-1\n  \
             in a shell:         ulimit -l unlimited"
    )]
    UringMemory,
    #[error("cannot set up an io_uring: {0}")]
    Uring(io::Error),
    #[error("the limit of locked memory is {limit} bytes; {rings} rings and the compactor need \
             {need}\n  \
             in a systemd unit:  LimitMEMLOCK=infinity (or {need})\n  \
             in a container:     --ulimit memlock=-1\n  \
             in a shell:         ulimit -l {}\n  \
             or start fewer shards: --shards", need.div_ceil(1024))]
    Memlock { limit: u64, rings: u64, need: u64 },
    #[error(
        "a receive on a non-blocking socket does not stay pending in io_uring on this \
             kernel ({0}): the server is tested on Linux 6.18"
    )]
    ReceiveNotPending(io::Error),

    #[error(
        "the limit of open files is {limit}; at least {need} are needed\n  \
             in a systemd unit:  LimitNOFILE=1048576\n  \
             in a container:     --ulimit nofile=1048576\n  \
             in a shell:         ulimit -n {need}"
    )]
    Files { limit: u64, need: u64 },
    #[error("cannot read or raise the limit of open files: {0}")]
    FilesUnknown(io::Error),

    #[error("{0} is taken by another process\n  \
             who has it:         ss -ltnp 'sport = :{port}'\n  \
             another port:       --listen or --admin", port = .0.port())]
    PortTaken(SocketAddr),
    #[error(
        "may not listen on {0}: ports below 1024 need CAP_NET_BIND_SERVICE\n  \
             in a systemd unit:  AmbientCapabilities=CAP_NET_BIND_SERVICE\n  \
             another port:       --listen or --admin"
    )]
    PortPrivileged(SocketAddr),
    #[error("this machine has no address {ip}: cannot listen on {0}", ip = .0.ip())]
    AddressUnknown(SocketAddr),
    #[error(
        "congestion_control = \"{name}\" is not possible: {why}\n  \
             which are:          sysctl net.ipv4.tcp_allowed_congestion_control\n  \
             the machine's:      congestion_control = \"system\""
    )]
    CongestionControl { name: String, why: String },
    #[error("cannot listen on {address}: {error}")]
    Listen {
        address: SocketAddr,
        error: io::Error,
    },

    #[error("the store {shown} is in use by another process\n  \
             who has it:         fuser -v {shown}/*\n  \
             another directory:  --store", shown = .0.display())]
    StoreTaken(PathBuf),
    #[error("may not write to the store {shown}\n  \
             give it to the user of the server (chown), or name another with --store\n  \
             in a systemd unit:  StateDirectory=entrepot, or ReadWritePaths={shown}",
            shown = .0.display())]
    StoreForbidden(PathBuf),
    #[error("the store {shown} is on a read-only file system\n  \
             in a systemd unit:  StateDirectory=entrepot, or ReadWritePaths={shown}",
            shown = .0.display())]
    StoreReadOnly(PathBuf),
    #[error("the store {} cannot be made or used: {error}\n  another directory:  --store",
            path.display())]
    Store { path: PathBuf, error: io::Error },
}

/// What the checks found out.
pub struct Passed {
    /// `limits.connections_max`, or what the limit of open files leaves of it.
    pub connections_max: usize,
    /// Files that the store may have open, so that clients and upstreams find some left.
    pub segment_files: u64,
    /// Of the file system of each of the store's paths; `None`: it is away, and others are not.
    pub file_system_lens: Vec<Option<u64>>,
}

/// All checks, cheapest first. `rings`: one per shard, and one more for each other thread that
/// has one.
pub fn run(config: &Config, rings: usize) -> Result<Passed, Fatal> {
    memlock(limits::memlock(), rings as u64)?;
    uring()?;
    receive_stays_pending()?;
    let files = limits::raise_files().map_err(Fatal::FilesUnknown)?;
    let wanted = config.limits.connections_max;
    let connections_max = connections(files, wanted)?;
    if connections_max < wanted {
        tracing::warn!(
            connections_max,
            wanted,
            open_files = files,
            "fewer connections than limits.connections_max: the limit of open files is lower"
        );
    }
    for address in config.listen.iter().chain([&config.admin]) {
        port_is_free(*address)?;
    }
    let file_system_lens = directories(&config.store.paths)?;
    let lens = file_system_lens.iter().flatten();
    let capacities: Vec<u64> = lens.map(|len| config.store.capacity.bytes(*len)).collect();
    let segments = segments_max(&capacities, config.store.solo_min);
    let segment_files = segment_files(files, connections_max, config.limits.fills_max);
    if segments > segment_files {
        tracing::warn!(
            open_files = files,
            wanted = (files - segment_files.min(files)).saturating_add(segments),
            "full of layers of a few MiB the store has more segments than may be open, and evicts \
             the oldest before its capacity is used: raise LimitNOFILE= or store.solo_min"
        );
    }
    Ok(Passed {
        connections_max,
        segment_files,
        file_system_lens,
    })
}

/// One ring as the shards use it, and the operations the runtime uses.
pub fn uring() -> Result<(), Fatal> {
    ring::runtime().map_err(ring_error)?;
    match monoio::utils::detect_uring() {
        true => Ok(()),
        false => Err(Fatal::UringOperations),
    }
}

/// The meaning of a failed `io_uring_setup`; also for the rings that the shards make later.
pub fn ring_error(error: io::Error) -> Fatal {
    explain_ring_error(error, limits::sysctl(URING_DISABLED))
}

fn explain_ring_error(error: io::Error, disabled: Option<i64>) -> Fatal {
    match (error.raw_os_error(), disabled) {
        (Some(libc::EPERM), Some(level @ 1..)) => Fatal::UringDisabled(level),
        (Some(libc::EPERM | libc::EACCES), _) => Fatal::UringForbidden,
        (Some(libc::ENOSYS), _) => Fatal::UringMissing,
        (Some(libc::ENOMEM), _) => Fatal::UringMemory,
        // A flag that the kernel does not know.
        (Some(libc::EINVAL), _) => Fatal::UringOperations,
        _ => Fatal::Uring(error),
    }
}

/// Ring memory counts against the limit of the user, unless it may lock memory freely (`None`).
fn memlock(limit: Option<u64>, rings: u64) -> Result<(), Fatal> {
    let need = rings.saturating_mul(RING_LEN).saturating_add(COMPACTOR_LEN);
    match limit {
        Some(limit) if limit < need => Err(Fatal::Memlock { limit, rings, need }),
        _ => Ok(()),
    }
}

/// A connection waits for its next request in a receive on a socket that is `O_NONBLOCK` for the
/// sake of `sendfile`. Kernels differ in whether that receive waits or fails at once.
pub fn receive_stays_pending() -> Result<(), Fatal> {
    // A thread of its own: a runtime belongs to one for good.
    let test = std::thread::spawn(|| -> Result<(), Fatal> {
        let mut runtime = ring::runtime().map_err(ring_error)?;
        runtime
            .block_on(receive_before_send())
            .map_err(Fatal::ReceiveNotPending)
    });
    test.join().unwrap_or_else(|_| {
        let died = io::Error::other("the self-test died");
        Err(Fatal::ReceiveNotPending(died))
    })
}

async fn receive_before_send() -> io::Result<()> {
    let (near, mut far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    let pending = Rc::new(Cell::new(false));
    let near = monoio::net::UnixStream::from_std(near)?;
    let receive = monoio::spawn(receive_one(near, pending.clone()));
    // Two trips through the ring: the receive is submitted, and its failure would be back.
    let ring = monoio::net::UnixStream::from_std(far.try_clone()?)?;
    for _ in 0..2 {
        ring.writable(true).await?;
    }
    if !pending.get() {
        // The end of the stream, should the receive not have been submitted at all.
        drop((far, ring));
        let failed = receive.await.err();
        return Err(failed.unwrap_or_else(|| ErrorKind::UnexpectedEof.into()));
    }
    far.write_all(b"x")?;
    match receive.await? {
        1 => Ok(()),
        len => Err(io::Error::other(format!("received {len} bytes of 1"))),
    }
}

async fn receive_one(
    mut near: monoio::net::UnixStream,
    pending: Rc<Cell<bool>>,
) -> io::Result<usize> {
    pending.set(true);
    let (received, _) = near.read(vec![0; 1]).await;
    pending.set(false);
    received
}

/// The connections that `files` leave room for, at most those asked for.
fn connections(files: u64, wanted: usize) -> Result<usize, Fatal> {
    let left = files.saturating_sub(FILES_RESERVED);
    let need = FILES_RESERVED + CONNECTIONS_MIN.min(wanted as u64);
    match files < need {
        true => Err(Fatal::Files { limit: files, need }),
        // No more than `wanted`, which is a usize.
        false => Ok(left.min(wanted as u64) as usize),
    }
}

/// What connections and fills leave of `files` for segments.
fn segment_files(files: u64, connections: usize, fills: usize) -> u64 {
    let others = FILES_RESERVED - SEGMENT_FILES_MIN + fills as u64 * FILES_PER_FILL;
    let left = files.saturating_sub(connections as u64 + others);
    left.max(SEGMENT_FILES_MIN)
}

/// The shards' listeners share their port by SO_REUSEPORT, with which a second server would
/// silently take half of the connections. So one bind without it comes first. The standard
/// library sets only SO_REUSEADDR, which does not share a port that is listened on.
///
/// A server that was killed leaves its sockets and its lock to the kernel, which takes its rings
/// down after the process is gone: for `LEFTOVER_WAIT` that is not taken for another server.
pub fn port_is_free(address: SocketAddr) -> Result<(), Fatal> {
    let deadline = Instant::now() + LEFTOVER_WAIT;
    loop {
        let error = match TcpListener::bind(address) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        match error.kind() {
            ErrorKind::AddrInUse if Instant::now() < deadline => thread::sleep(LEFTOVER_LOOK),
            ErrorKind::AddrInUse => return Err(Fatal::PortTaken(address)),
            ErrorKind::PermissionDenied => return Err(Fatal::PortPrivileged(address)),
            ErrorKind::AddrNotAvailable => return Err(Fatal::AddressUnknown(address)),
            _ => return Err(Fatal::Listen { address, error }),
        }
    }
}

/// Of several directories one is enough to start with.
fn directories(paths: &[PathBuf]) -> Result<Vec<Option<u64>>, Fatal> {
    let mut lens = Vec::new();
    let mut first = None;
    for path in paths {
        let len = directory(path).and_then(|()| {
            limits::file_system_len(path).map_err(|error| Fatal::Store {
                path: path.clone(),
                error,
            })
        });
        match len {
            Ok(len) => lens.push(Some(len)),
            Err(fatal) => {
                if paths.len() > 1 {
                    tracing::error!(path = %path.display(), error = %fatal, "a volume is away");
                }
                first.get_or_insert(fatal);
                lens.push(None);
            }
        }
    }
    match first {
        Some(fatal) if lens.iter().all(Option::is_none) => Err(fatal),
        _ => Ok(lens),
    }
}

/// Makes the store's directory, readable by its owner only, and writes and removes a file in it.
pub fn directory(path: &Path) -> Result<(), Fatal> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.and_then(|()| write_and_remove(&path.join(".writable")))
        .map_err(|error| explain_directory_error(path, error))
}

fn write_and_remove(file: &Path) -> io::Result<()> {
    // A file that an earlier start left behind is overwritten.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(file)?;
    std::fs::remove_file(file)
}

fn explain_directory_error(path: &Path, error: io::Error) -> Fatal {
    let path = path.to_owned();
    match error.kind() {
        ErrorKind::PermissionDenied => Fatal::StoreForbidden(path),
        ErrorKind::ReadOnlyFilesystem => Fatal::StoreReadOnly(path),
        _ => Fatal::Store { path, error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(errno: i32, disabled: Option<i64>) -> String {
        explain_ring_error(io::Error::from_raw_os_error(errno), disabled).to_string()
    }

    #[test]
    fn each_message_names_its_remedy() {
        let address: SocketAddr = "127.0.0.1:80".parse().expect("address");
        let store = PathBuf::from("/srv/store");
        let denied = |kind| explain_directory_error(&store, io::Error::from(kind)).to_string();
        for (message, remedies) in [
            (
                ring(libc::EPERM, Some(2)),
                ["kernel.io_uring_disabled = 2", "kernel.io_uring_group"],
            ),
            (
                ring(libc::EPERM, Some(1)),
                ["kernel.io_uring_disabled = 1", "io_uring_disabled=0"],
            ),
            (
                ring(libc::EPERM, Some(0)),
                ["seccomp=", "SystemCallFilter="],
            ),
            (ring(libc::EPERM, None), ["seccomp", "SystemCallFilter="]),
            (ring(libc::ENOSYS, None), ["no io_uring", "Linux 6.18"]),
            (
                ring(libc::ENOMEM, None),
                ["LimitMEMLOCK=infinity", "ulimit -l"],
            ),
            (
                ring(libc::EMFILE, None),
                ["io_uring", "Too many open files"],
            ),
            (
                Fatal::UringOperations.to_string(),
                ["operations", "Linux 6.0"],
            ),
            (
                memlock(Some(8 << 20), 25)
                    .expect_err("25 rings")
                    .to_string(),
                [
                    "8388608 bytes; 25 rings and the compactor need 8519680",
                    "ulimit -l 8320",
                ],
            ),
            (
                connections(1_087, 16_384).expect_err("63 left").to_string(),
                ["is 1087; at least 1088", "LimitNOFILE="],
            ),
            (
                Fatal::PortTaken(address).to_string(),
                ["127.0.0.1:80 is taken", "sport = :80"],
            ),
            (
                Fatal::PortPrivileged(address).to_string(),
                ["CAP_NET_BIND_SERVICE", "--listen"],
            ),
            (
                Fatal::AddressUnknown(address).to_string(),
                ["no address 127.0.0.1:", "127.0.0.1:80"],
            ),
            (
                Fatal::StoreTaken(store.clone()).to_string(),
                ["/srv/store is in use", "--store"],
            ),
            (
                denied(ErrorKind::PermissionDenied),
                ["may not write", "ReadWritePaths=/srv/store"],
            ),
            (
                denied(ErrorKind::ReadOnlyFilesystem),
                ["read-only", "StateDirectory="],
            ),
            (denied(ErrorKind::NotADirectory), ["/srv/store", "--store"]),
        ] {
            for remedy in remedies {
                assert!(message.contains(remedy), "{remedy:?} is not in {message:?}");
            }
        }
    }

    #[test]
    fn limits_that_suffice_pass() {
        assert!(memlock(None, 10_000).is_ok());
        assert!(memlock(Some(8 << 20), 24).is_ok());
        assert_eq!(connections(1_048_576, 16_384).expect("enough"), 16_384);
        assert_eq!(connections(u64::MAX, 16_384).expect("enough"), 16_384);
        assert_eq!(connections(4_096, 16_384).expect("fewer"), 3_072);
        assert_eq!(connections(1_034, 10).expect("few wanted"), 10);
        assert_eq!(segment_files(524_288, 16_384, 1_024), 505_344);
        assert_eq!(segment_files(65_536, 16_384, 1_024), 46_592);
        assert_eq!(segment_files(4_096, 3_072, 1_024), 512);
        assert!(segment_files(u64::MAX, 16_384, 1_024) > 1 << 40);
    }

    #[test]
    fn this_machine_has_a_working_ring() {
        uring().expect("io_uring");
        receive_stays_pending().expect("a pending receive");
    }

    #[test]
    fn a_taken_port_is_seen_even_if_it_may_be_shared() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        assert!(matches!(port_is_free(address), Err(Fatal::PortTaken(taken)) if taken == address));
        drop(listener);
        port_is_free(address).expect("free again");
        port_is_free(address).expect("the check leaves nothing behind");

        let shared = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
            .expect("socket");
        shared.set_reuse_port(true).expect("SO_REUSEPORT");
        shared.bind(&address.into()).expect("bind");
        shared.listen(1).expect("listen");
        assert!(matches!(port_is_free(address), Err(Fatal::PortTaken(_))));
    }

    #[test]
    fn an_address_of_another_machine_is_named() {
        // RFC 5737: documentation only.
        let address: SocketAddr = "192.0.2.1:5000".parse().expect("address");
        assert!(matches!(
            port_is_free(address),
            Err(Fatal::AddressUnknown(_))
        ));
    }

    #[test]
    fn one_directory_of_several_is_enough() {
        let base = std::env::temp_dir().join(format!("entrepot-several-{}", std::process::id()));
        let (good, file) = (base.join("good"), base.join("file"));
        directory(&good).expect("made");
        std::fs::write(&file, "").expect("write");
        let bad = file.join("store");
        let some = directories(&[bad.clone(), good]);
        let none = directories(&[bad]);
        std::fs::remove_dir_all(&base).expect("removed");
        let some = some.expect("one is there");
        assert!(some[0].is_none() && some[1].is_some());
        assert!(matches!(none, Err(Fatal::Store { .. })));
    }

    #[test]
    fn the_directory_is_made_for_its_owner_and_left_empty() {
        use std::os::unix::fs::PermissionsExt;
        let base = std::env::temp_dir().join(format!("entrepot-preflight-{}", std::process::id()));
        let store = base.join("deep/store");
        directory(&store).expect("made");
        directory(&store).expect("and used again");
        let mode = store.metadata().expect("metadata").permissions().mode();
        let files = std::fs::read_dir(&store).expect("list").count();
        let file = base.join("file");
        std::fs::write(&file, "").expect("write");
        let in_file = directory(&file.join("store"));
        std::fs::remove_dir_all(&base).expect("removed");
        assert_eq!(mode & 0o777, 0o700);
        assert_eq!(files, 0);
        assert!(matches!(in_file, Err(Fatal::Store { .. })), "{in_file:?}");
    }
}
