//! Mapping a sealed segment. The only `unsafe` of the inspector is here.

use std::fs::File;
use std::io;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::Mmap;

/// The segment that is read through a mapping now, for the last words of this process.
static MAPPED: AtomicU64 = AtomicU64::new(0);

/// Of a process that met a bad sector: the same as for every other damage found.
const STATUS_DAMAGED: libc::c_int = 1;

/// Maps all of a segment that is known to be sealed.
pub fn sealed(file: &File, segment: u64) -> io::Result<Mmap> {
    MAPPED.store(segment, Ordering::Relaxed);
    // SAFETY: a mapping is sound while nobody changes or cuts the file. The caller has seen its
    // trailer: a sealed segment is never written again, and no segment is ever cut (S1); an
    // unlinked one keeps its bytes while it is mapped. Who breaks this from outside the store, or
    // a sector that cannot be read, raises SIGBUS, which `say_what_failed` turns into a message.
    unsafe { Mmap::map(file) }
}

/// From now on a bad sector under a mapping ends the process with a message that names the
/// segment, not with a core dump.
pub fn say_what_failed() {
    // SAFETY: the all-zero `sigaction` is a valid one (no flags, empty mask), its handler is set
    // before it is used, and `on_bus_error` does only what is allowed within a signal handler.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = on_bus_error as extern "C" fn(libc::c_int) as libc::sighandler_t;
        libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
    }
}

/// Allocates nothing, takes no lock, and ends the process.
extern "C" fn on_bus_error(_signal: libc::c_int) {
    let mut text =
        *b"entrepot-inspect: segment ################: a mapped page could not be read: \
        bad sector, or the file was cut; --no-map reads around it\n";
    let id = MAPPED.load(Ordering::Relaxed);
    let hole = text.iter_mut().filter(|byte| **byte == b'#');
    for (place, byte) in hole.enumerate() {
        let digit = (id >> (60 - 4 * place)) & 0xf;
        *byte = b"0123456789abcdef"[digit as usize];
    }
    // SAFETY: both are async-signal-safe, and `text` is valid for its length.
    unsafe {
        libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
        libc::_exit(STATUS_DAMAGED);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Set in the process that is to die of it.
    const VICTIM: &str = "ENTREPOT_INSPECT_MAP_TEST";

    /// Somebody cuts a mapped file, which raises the same signal as a bad sector.
    #[test]
    fn a_page_that_cannot_be_read_ends_the_process_with_a_message() {
        if let Some(path) = std::env::var_os(VICTIM) {
            say_what_failed();
            let file = File::options()
                .write(true)
                .read(true)
                .open(path)
                .expect("opens");
            let map = sealed(&file, 0x12_3456_789a).expect("maps");
            file.set_len(0).expect("cut");
            unreachable!("{} was read", std::hint::black_box(map[0]));
        }
        let path = std::env::temp_dir().join(format!("entrepot-map-{}", std::process::id()));
        std::fs::write(&path, [1; 8192]).expect("a file");
        let name = "a_page_that_cannot_be_read_ends_the_process_with_a_message";
        let victim = Command::new(std::env::current_exe().expect("its path"))
            .args([
                &format!("inspect::map::tests::{name}"),
                "--exact",
                "--nocapture",
            ])
            .env(VICTIM, &path)
            .output()
            .expect("runs");
        std::fs::remove_file(&path).expect("removed");
        let said = String::from_utf8_lossy(&victim.stderr);
        assert_eq!(victim.status.code(), Some(STATUS_DAMAGED), "{said}");
        assert!(
            said.contains("segment 000000123456789a: a mapped page"),
            "{said}"
        );
    }
}
