//! Sixty-four clients ask at once for one body nobody has: it is fetched once, streamed to all
//! while it arrives, and no client holds back another.

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use serde_json::json;

use entrepot_tests::deadline::{until_true, until_within};
use entrepot_tests::entrepot::Entrepot;
use entrepot_tests::http::{Broken, Connection};
use entrepot_tests::origin::Origin;
use entrepot_tests::sha256::Hash;

const CLIENTS: usize = 64;
const KILLED: usize = 0;
const STALLED: usize = 1;

/// 256 MiB; `ENTREPOT_HERD_BYTES` asks for another length, 1 GiB before a release.
const BODY_LEN: u64 = 256 << 20;

/// What the server may need for 64 connections and one fill, whatever the body's length.
const RSS_GROWTH_MAX: u64 = 64 << 20;

/// 64 times the body through two cores, hashed by every client.
const HERD_PATIENCE: Duration = Duration::from_secs(300);

/// A gate that stays open once opened.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn open(&self) {
        *self.0.lock().expect("no client panics with the gate") = true;
        self.1.notify_all();
    }

    fn pass(&self) {
        let open = self.0.lock().expect("no client panics with the gate");
        drop(
            self.1
                .wait_while(open, |open| !*open)
                .expect("no client panics with the gate"),
        );
    }
}

/// Ends all clients when the test fails, so that it fails at once and not at their timeouts.
struct EndAll<'h>(&'h Herd, Vec<TcpStream>);

impl Drop for EndAll<'_> {
    fn drop(&mut self) {
        self.0.stalled.open();
        for socket in &self.1 {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

#[derive(Default)]
struct Herd {
    /// Body bytes each client has read.
    read: Vec<AtomicU64>,
    finished: AtomicUsize,
    /// The stalled client reads up to this, then waits for its gate.
    stall_at: u64,
    stalled: Gate,
}

impl Herd {
    fn client(
        &self,
        nth: usize,
        connection: &mut Connection,
        target: &str,
    ) -> Result<String, Broken> {
        connection.request("GET", target, &[]);
        connection.set_read_timeout(HERD_PATIENCE);
        let head = connection.read_head()?;
        assert_eq!(head.status, 200, "{}", head.raw);
        let mut hash = Hash::default();
        connection.read_body("GET", &head, &mut |bytes| {
            hash.update(bytes);
            self.read[nth].store(hash.len(), Ordering::Relaxed);
            if nth == STALLED && hash.len() >= self.stall_at {
                self.stalled.pass();
            }
        })?;
        self.finished.fetch_add(1, Ordering::Relaxed);
        Ok(hash.digest())
    }

    fn slowest(&self) -> u64 {
        let read = self.read.iter().map(|read| read.load(Ordering::Relaxed));
        read.min().unwrap_or(0)
    }
}

fn body_len() -> u64 {
    match std::env::var("ENTREPOT_HERD_BYTES") {
        Ok(text) => text
            .parse()
            .expect("ENTREPOT_HERD_BYTES is a number of bytes"),
        Err(_) => BODY_LEN,
    }
}

#[test]
fn a_herd_is_served_by_one_fetch_while_it_arrives() {
    let origin = Origin::start();
    let len = body_len();
    let blob = origin.blob(&["library/herd"], len, 1);
    origin.fault(
        json!({"kind": "blob", "method": "GET"}),
        json!({"halt_at": "50%"}),
    );
    let server = Entrepot::before(origin.url());
    let target = format!("/v2/dh/library/herd/blobs/{}", blob.digest);
    let enough = len * 45 / 100;
    let herd = Herd {
        read: (0..CLIENTS).map(|_| AtomicU64::new(0)).collect(),
        stall_at: enough,
        ..Herd::default()
    };

    let rss_before = server.rss();
    let mut rss_max = rss_before;
    let results: Vec<_> = std::thread::scope(|scope| {
        let mut clients = Vec::new();
        let mut end_all = EndAll(&herd, Vec::new());
        for nth in 0..CLIENTS {
            let mut connection = Connection::open(server.addr());
            let socket = connection.stream().try_clone();
            end_all.1.push(socket.expect("a second descriptor"));
            let (herd, target) = (&herd, target.as_str());
            clients.push(scope.spawn(move || herd.client(nth, &mut connection, target)));
        }
        until_within(HERD_PATIENCE, "all clients hold 45 %", || {
            rss_max = rss_max.max(server.rss());
            (herd.slowest() >= enough).then_some(())
        });
        origin.wait(json!({"kind": "blob", "state": "halted"}), 1);

        let killed = end_all.1[KILLED].shutdown(Shutdown::Both);
        killed.expect("a connected socket");
        origin.release();
        until_within(HERD_PATIENCE, "62 clients finish", || {
            rss_max = rss_max.max(server.rss());
            (herd.finished.load(Ordering::Relaxed) == CLIENTS - 2).then_some(())
        });
        assert!(
            herd.read[STALLED].load(Ordering::Relaxed) < len,
            "it was to stall"
        );
        herd.stalled.open();
        clients
            .into_iter()
            .map(|client| client.join().expect("a client"))
            .collect()
    });

    for (nth, result) in results.into_iter().enumerate() {
        match (nth, result) {
            (KILLED, result) => assert!(result.is_err(), "the killed client got {result:?}"),
            // It may have been cut for taking nothing, never served wrong bytes.
            (STALLED, Err(_)) => {}
            (_, result) => assert_eq!(result.as_ref(), Ok(&blob.digest), "client {nth}"),
        }
    }
    assert_eq!(origin.count("kind=blob&method=GET"), 1, "one fetch for all");
    let grown = rss_max.saturating_sub(rss_before);
    println!(
        "RSS grew by {} KiB from {} KiB",
        grown / 1024,
        rss_before / 1024
    );
    assert!(grown < RSS_GROWTH_MAX, "RSS grew by {grown} bytes");
    until_true("no follower is left", || {
        server.metric("entrepot_followers", &[]) == 0.0
    });
}

#[test]
fn a_fill_goes_on_without_its_first_client() {
    let origin = Origin::start();
    let blob = origin.blob(&["library/alone"], 8 << 20, 2);
    origin.fault(
        json!({"kind": "blob", "method": "GET"}),
        json!({"halt_at": "50%"}),
    );
    let server = Entrepot::before(origin.url());
    let target = format!("/v2/dh/library/alone/blobs/{}", blob.digest);

    let mut first = Connection::open(server.addr());
    first.request("GET", &target, &[]);
    first.read_head().expect("a head while the body arrives");
    origin.wait(json!({"kind": "blob", "state": "halted"}), 1);
    drop(first);
    until_true("the server sees the client leave", || {
        server.metric("entrepot_followers", &[]) == 0.0
    });
    origin.release();

    until_true("the fill ends", || {
        server.metric("entrepot_fills_running", &[]) == 0.0
    });
    origin.go_down();
    let again = entrepot_tests::http::get_hashed(server.addr(), &target).expect("a head");
    assert_eq!((again.broken, again.digest), (None, blob.digest));
}

/// Every client of a fill that fails is cut short, and none is left waiting.
#[test]
fn a_herd_is_cut_short_when_its_source_breaks() {
    let origin = Origin::start();
    for fault in [
        json!({"halt_at": "50%", "flip_at": -1}),
        json!({"halt_at": "50%", "chunked": true, "flip_at": 0}),
    ] {
        let server = Entrepot::before(origin.url());
        let blob = origin.blob(&["library/broken"], 8 << 20, 3);
        origin.fault(json!({"kind": "blob", "method": "GET"}), fault.clone());
        let target = format!("/v2/dh/library/broken/blobs/{}", blob.digest);
        let mut clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let mut client = Connection::open(server.addr());
                client.request("GET", &target, &[]);
                let head = client.read_head().expect("a head while the body arrives");
                (client, head)
            })
            .collect();
        origin.wait(json!({"kind": "blob", "state": "halted"}), 1);
        origin.release();
        for (client, head) in &mut clients {
            let read = client.read_body("GET", head, &mut |_| ());
            let cut = matches!(read, Err(Broken::Short { .. } | Broken::Reset));
            assert!(cut, "{fault}: {read:?}");
        }
        assert_eq!(origin.count("kind=blob&method=GET"), 1, "{fault}");
        origin.clear_faults();
        origin.clear_log();
    }
}
