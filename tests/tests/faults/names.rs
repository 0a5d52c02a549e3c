//! A name service for one server, which can be broken: UDP on an address of this machine, and a
//! resolv.conf that names it (resolv.conf(5)).

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::thread;

use entrepot_tests::temp::TempDir;

/// RFC 1035 §3.2.2, RFC 3596 §2.1.
const TYPE_A: [u8; 2] = [0, 1];
/// Longest message without extensions (RFC 1035 §2.3.4).
const MESSAGE_LEN_MAX: usize = 512;
const HEADER_LEN: usize = 12;
const NO_SUCH_NAME: u8 = 3;

/// What every question is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Names {
    ThisMachine,
    NoSuchName,
    Nothing,
}

pub struct NameService {
    answers: Arc<AtomicU8>,
    dir: TempDir,
}

impl NameService {
    pub fn start() -> NameService {
        let socket = UdpSocket::bind(own_address()).expect("port 53, which needs root");
        let address = socket.local_addr().expect("a bound socket").ip();
        let dir = TempDir::new("names");
        dir.write("resolv.conf", &format!("nameserver {address}\n"));
        dir.write("nsswitch.conf", "hosts: files dns\n");
        let answers = Arc::new(AtomicU8::new(Names::ThisMachine as u8));
        let now = answers.clone();
        // Ends with the test process.
        thread::spawn(move || {
            let mut message = [0; MESSAGE_LEN_MAX];
            while let Ok((len, asker)) = socket.recv_from(&mut message) {
                let question = &message[..len];
                if let Some(answer) = answer(question, now.load(Ordering::Relaxed)) {
                    let _ = socket.send_to(&answer, asker);
                }
            }
        });
        NameService { answers, dir }
    }

    pub fn answer_with(&self, names: Names) {
        self.answers.store(names as u8, Ordering::Relaxed);
    }

    /// Runs what follows it where this is the only name service (mount_namespaces(7)).
    pub fn wrapper(&self) -> [String; 5] {
        let bind = |name: &str| {
            let file = self.dir.join(name);
            format!("mount --bind '{}' /etc/{name}", file.display())
        };
        let script = format!(
            "{} && {} && exec \"$@\"",
            bind("resolv.conf"),
            bind("nsswitch.conf")
        );
        let words = ["unshare", "--mount", "sh", "-c"].map(str::to_owned);
        let [unshare, mount, sh, c] = words;
        [unshare, mount, sh, c, script]
    }
}

/// One of 127.0.0.0/8 for each service: they all have the same port.
fn own_address() -> SocketAddr {
    static GIVEN: AtomicU16 = AtomicU16::new(1);
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    let nth = GIVEN.fetch_add(1, Ordering::Relaxed) as u8;
    // 127.0 is where others are.
    SocketAddr::from((Ipv4Addr::new(127, high.max(1), low, nth), 53))
}

/// RFC 1035 §4.1, to one question.
fn answer(question: &[u8], names: u8) -> Option<Vec<u8>> {
    if names == Names::Nothing as u8 || question.len() < HEADER_LEN {
        return None;
    }
    let name_len = question[HEADER_LEN..].iter().position(|byte| *byte == 0)? + 1;
    let end = HEADER_LEN + name_len + 4;
    let asked = question.get(end - 4..end - 2)?;
    let found = names == Names::ThisMachine as u8 && asked == TYPE_A;
    let mut answer = question[..end].to_vec();
    // An answer of an authority, recursion asked for and there; one question, no other sections.
    answer[2..HEADER_LEN].copy_from_slice(&[0x85, 0x80, 0, 1, 0, u8::from(found), 0, 0, 0, 0]);
    if names == Names::NoSuchName as u8 {
        answer[3] |= NO_SUCH_NAME;
    }
    if found {
        // The name above, for no time.
        answer.extend([0xc0, HEADER_LEN as u8, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(Ipv4Addr::LOCALHOST.octets());
    }
    Some(answer)
}
