//! A busy day in half a minute: clients that hit keep every core at work while others pull three
//! times the capacity through the store, and somebody inspects it.
//!
//! `ENTREPOT_SATURATION` is how many times its capacity is pulled through the store.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use entrepot_tests::dice::{Dice, setting};
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{Connection, get_hashed};
use entrepot_tests::origin::{Held, Origin};
use entrepot_tests::process::{built, command, run};
use entrepot_tests::sha256::Hash;

const MIB: u64 = 1 << 20;
const CAPACITY: u64 = 256 * MIB;
const SATURATION: u64 = 3;
/// Small enough to stay in memory, to share a segment, and large enough for one of their own.
const BODY_LENS: [u64; 5] = [20_000, 100_000, MIB, 3 * MIB, 6 * MIB];
/// What is asked for all the time.
const HOT: u64 = 10;
const PULLERS: u64 = 2;
/// For each core, so that one is always ready to run.
const HITTERS_PER_CORE: usize = 2;
/// What `st_blocks` counts.
const BLOCK_LEN: u64 = 512;

fn target(digest: &str) -> String {
    format!("/v2/dh/library/app/blobs/{digest}")
}

fn blob(origin: &Origin, seed: u64) -> Held {
    let len = BODY_LENS[seed as usize % BODY_LENS.len()];
    origin.blob(&["library/app"], len, seed)
}

/// What all share until the last puller is done.
#[derive(Default)]
struct Day {
    over: AtomicBool,
    pulled: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// Ends the day also when its owner panics, so that nobody waits for the others.
struct Evening<'d>(&'d Day);

impl Drop for Evening<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

impl Day {
    fn over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Asks for hot bodies on one connection as fast as it can.
    fn hit(&self, server: &Entrepot, hot: &[Held], seed: u64) {
        let _evening = Evening(self);
        let (mut dice, mut connection) = (Dice::new(seed), Connection::open(server.addr()));
        while !self.over() {
            let body = &hot[dice.roll(hot.len() as u64) as usize];
            connection.request("GET", &target(&body.digest), &[]);
            let head = connection.read_head().expect("a head");
            let mut hash = Hash::default();
            let read = connection.read_body("GET", &head, &mut |bytes| hash.update(bytes));
            assert_eq!((head.status, read, hash.len()), (200, Ok(()), body.size));
            assert_eq!(hash.digest(), body.digest);
            let hit = head.field("cache-status") == Some("entrepot; hit");
            let count = if hit { &self.hits } else { &self.misses };
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Pulls what nobody has asked for yet, until all pullers have `wanted` bytes.
    fn pull(&self, server: &Entrepot, origin: &Origin, first: u64, wanted: u64) {
        let _evening = Evening(self);
        let mut seed = first;
        while self.pulled.load(Ordering::Relaxed) < wanted {
            let body = blob(origin, seed);
            let hashed = get_hashed(server.addr(), &target(&body.digest)).expect("a head");
            assert_eq!(
                (hashed.head.status, hashed.broken, &hashed.digest),
                (200, None, &body.digest)
            );
            self.pulled.fetch_add(body.size, Ordering::Relaxed);
            seed += PULLERS;
        }
    }

    /// Holds the store against its budget, again and again: what it says, and what `du` would.
    fn watch(&self, server: &Entrepot) {
        let _evening = Evening(self);
        while !self.over() {
            let used = server.metric("entrepot_store_used_bytes", &[]);
            assert!(used <= CAPACITY as f64, "used {used} of {CAPACITY}");
            let staging = server.metric("entrepot_store_staging_bytes", &[]);
            assert!(staging <= CAPACITY as f64 * 0.02, "staging {staging}");
            let store = server.setup().store_path();
            // Files come and go while they are counted: one look may count both of two that were
            // never there together.
            let seen = [(); 3].map(|()| allocated(store).expect("the store"));
            assert!(
                seen.iter().min() <= Some(&CAPACITY),
                "{seen:?} of {CAPACITY}"
            );
        }
    }
}

/// Bytes of the file system that the files of a folder take.
fn allocated(folder: &Path) -> io::Result<u64> {
    let mut blocks = 0;
    for entry in fs::read_dir(folder)? {
        match entry?.metadata() {
            Ok(file) => blocks += file.blocks(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(blocks * BLOCK_LEN)
}

/// Runs the inspector beside the server; it must find nothing wrong.
fn inspect(server: &Entrepot, question: &str) -> String {
    let program = built("entrepot-inspect", "ENTREPOT_INSPECT_BIN", "entrepot-tools");
    let mut command = command(program);
    command.arg(question);
    command.arg("--store").arg(server.setup().store_path());
    let output = run(command);
    let said = String::from_utf8_lossy(&output.stderr);
    let found = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{question}: {said}{found}");
    found
}

#[test]
fn a_saturated_store_keeps_to_its_budget_and_every_byte_is_right() {
    let origin = Origin::start();
    let capacity = format!("{}MiB", CAPACITY / MIB);
    let setup = Setup::new(&Config::one(origin.url())).capacity(&capacity);
    let server = setup.args(&["--shards", "2"]).start();
    let hot: Vec<Held> = (0..HOT).map(|seed| blob(&origin, seed)).collect();
    let wanted = setting("ENTREPOT_SATURATION", SATURATION) * CAPACITY;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let hitters = (cores * HITTERS_PER_CORE) as u64;
    let day = Day::default();
    let mut inspected = 0;
    thread::scope(|scope| {
        for seed in 0..hitters {
            let (day, server, hot) = (&day, &server, &hot);
            scope.spawn(move || day.hit(server, hot, seed));
        }
        scope.spawn(|| day.watch(&server));
        let pullers = (0..PULLERS).map(|puller| {
            let (day, server, origin) = (&day, &server, &origin);
            scope.spawn(move || day.pull(server, origin, HOT + puller, wanted))
        });
        let pullers: Vec<_> = pullers.collect();
        let _evening = Evening(&day);
        while pullers.iter().any(|puller| !puller.is_finished()) && !day.over() {
            for question in ["segments", "records", "verify"] {
                inspect(&server, question);
            }
            inspected += 1;
        }
    });
    let hits = day.hits.load(Ordering::Relaxed);
    let misses = day.misses.load(Ordering::Relaxed);
    let pulled = day.pulled.load(Ordering::Relaxed);
    let staged = server.metric("entrepot_fills_total", &["staged"]);
    println!("{pulled} bytes pulled, {staged} bodies of them passed through; {hits} hits");
    println!("{misses} hot ones were fetched again; inspected {inspected} times");
    assert!(pulled >= wanted && inspected > 0);
    assert!(hits > 10 * misses, "the hot ones stay");
    assert!(server.metric("entrepot_store_evicted_bodies_total", &[]) > 0.0);
    assert_eq!(server.metric("entrepot_wrong_digests_total", &[]), 0.0);
    server.wait_committed();
    let records = inspect(&server, "records");
    for body in &hot {
        assert!(
            records.contains(&body.digest),
            "{} in {records}",
            body.digest
        );
    }
    let (status, _) = server.terminate();
    assert_eq!(status.code(), Some(0));
}
