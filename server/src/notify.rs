//! Tells the service manager that the server is ready or stopping: `sd_notify(3)`, Type=notify.
//!
//! One datagram to the socket that `$NOTIFY_SOCKET` names, a path or an abstract name (`@…`, which
//! the crates for this do not all support). Without the variable nobody asked, and nothing
//! happens. Called by `main` and `reload`, never by a shard.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

const SOCKET: &str = "NOTIFY_SOCKET";

/// Recovery is done and every listener accepts.
pub fn ready() -> io::Result<()> {
    notify(std::env::var_os(SOCKET).as_deref(), b"READY=1\n")
}

/// The configuration is being read again; `ready` says when that is over. systemd wants to know
/// since when: microseconds of CLOCK_MONOTONIC.
pub fn reloading() -> io::Result<()> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let since_us = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
    let state = format!("RELOADING=1\nMONOTONIC_USEC={since_us}\n");
    notify(std::env::var_os(SOCKET).as_deref(), state.as_bytes())
}

/// SIGTERM arrived; the drain begins.
pub fn stopping() -> io::Result<()> {
    notify(std::env::var_os(SOCKET).as_deref(), b"STOPPING=1\n")
}

fn notify(socket: Option<&OsStr>, state: &[u8]) -> io::Result<()> {
    let Some(socket) = socket.filter(|socket| !socket.is_empty()) else {
        return Ok(());
    };
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // A manager that does not read must not hold up the start.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state, &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use super::notify;

    fn received(socket: &UnixDatagram) -> Vec<u8> {
        let mut bytes = [0; 64];
        let len = socket.recv(&mut bytes).expect("a datagram");
        bytes[..len].to_vec()
    }

    #[test]
    fn a_socket_with_a_path() {
        let path = std::env::temp_dir().join(format!("entrepot-notify-{}", std::process::id()));
        let socket = UnixDatagram::bind(&path).expect("bind");
        let sent = notify(Some(path.as_os_str()), b"READY=1\n");
        std::fs::remove_file(&path).expect("unlink");
        sent.expect("sent");
        assert_eq!(received(&socket), b"READY=1\n");
    }

    #[test]
    fn a_socket_with_an_abstract_name() {
        let name = format!("entrepot-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let socket = UnixDatagram::bind_addr(&address).expect("bind");
        notify(Some(OsStr::new(&format!("@{name}"))), b"STOPPING=1\n").expect("sent");
        assert_eq!(received(&socket), b"STOPPING=1\n");
    }

    #[test]
    fn nobody_asked_or_nobody_listens() {
        assert!(notify(None, b"READY=1\n").is_ok());
        assert!(notify(Some(OsStr::new("")), b"READY=1\n").is_ok());
        assert!(notify(Some(OsStr::new("/nowhere/notify")), b"READY=1\n").is_err());
    }
}
