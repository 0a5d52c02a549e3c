//! The request log, counters by path, and waiting for what they will show.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::endpoint::{Kind, Side};

/// The oldest entries go beyond this.
const ENTRIES_MAX: usize = 200_000;
const PATHS_MAX: usize = 100_000;
/// The request fields that are kept.
pub const FIELDS_KEPT: [&str; 7] = [
    "accept",
    "accept-encoding",
    "host",
    "if-none-match",
    "if-range",
    "range",
    "user-agent",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Running,
    Halted,
    Complete,
    Reset,
    Truncated,
    ClientClosed,
}

#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    pub n: u64,
    pub t_ms: u64,
    pub listener: Side,
    pub connection: u64,
    pub method: String,
    pub path: String,
    pub query: String,
    pub kind: Kind,
    pub repository: Option<String>,
    pub fields: BTreeMap<String, Vec<String>>,
    pub authorization: Option<&'static str>,
    pub certified: bool,
    pub fault: Option<String>,
    pub status: u16,
    pub bytes: u64,
    pub state: State,
}

/// Absent fields agree with everything.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    pub listener: Option<Side>,
    pub method: Option<String>,
    pub kind: Option<Kind>,
    pub repository: Option<String>,
    pub path: Option<String>,
    pub contains: Option<String>,
    pub state: Option<State>,
    pub status: Option<u16>,
    pub fault: Option<String>,
}

pub struct Log {
    kept: Mutex<Kept>,
    changed: Condvar,
    started: Instant,
    file: Option<Mutex<File>>,
}

#[derive(Default)]
struct Kept {
    entries: VecDeque<Entry>,
    next: u64,
    requests: u64,
    bytes: u64,
    paths: BTreeMap<String, PathCount>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct PathCount {
    get: u64,
    head: u64,
    other: u64,
    bytes: u64,
    /// The most HEADs that waited for their answers at one time.
    heads_at_once: u64,
    /// Those that wait now.
    #[serde(skip)]
    heads_waiting: u64,
}

impl Log {
    pub fn new(file: Option<File>) -> Log {
        Log {
            kept: Mutex::new(Kept {
                next: 1,
                ..Kept::default()
            }),
            changed: Condvar::new(),
            started: Instant::now(),
            file: file.map(Mutex::new),
        }
    }

    /// Numbers and dates the entry.
    pub fn begin(&self, mut entry: Entry) -> u64 {
        let mut kept = self.kept.lock().unwrap();
        entry.n = kept.next;
        entry.t_ms = self.started.elapsed().as_millis() as u64;
        kept.next += 1;
        kept.requests += 1;
        if let Some(count) = kept.path(&entry.path) {
            match entry.method.as_str() {
                "GET" => count.get += 1,
                "HEAD" => {
                    count.head += 1;
                    count.heads_waiting += 1;
                    count.heads_at_once = count.heads_at_once.max(count.heads_waiting);
                }
                _ => count.other += 1,
            }
        }
        if kept.entries.len() == ENTRIES_MAX {
            kept.entries.pop_front();
        }
        let n = entry.n;
        kept.entries.push_back(entry);
        self.changed.notify_all();
        n
    }

    /// Called before the answer goes out: whoever has it may ask again at once.
    pub fn answered(&self, n: u64, status: u16) {
        self.kept.lock().unwrap().waits_no_more(n);
        self.update(n, |entry| entry.status = status);
    }

    pub fn sent(&self, n: u64, bytes: u64) {
        let mut kept = self.kept.lock().unwrap();
        kept.bytes += bytes;
        if let Some(entry) = kept.entry(n) {
            entry.bytes += bytes;
            let path = entry.path.clone();
            if let Some(count) = kept.path(&path) {
                count.bytes += bytes;
            }
        }
    }

    pub fn state(&self, n: u64, state: State) {
        self.update(n, |entry| entry.state = state);
    }

    /// The last word about an answer; also goes to the log file.
    pub fn end(&self, n: u64, state: State) {
        self.kept.lock().unwrap().waits_no_more(n);
        self.state(n, state);
        let Some(file) = &self.file else { return };
        let entry = self.kept.lock().unwrap().entry(n).cloned();
        if let Some(entry) = entry {
            let mut line = serde_json::to_vec(&entry).expect("an entry is JSON");
            line.push(b'\n');
            if let Err(error) = file.lock().unwrap().write_all(&line) {
                eprintln!("entrepot-origin: log file: {error}");
            }
        }
    }

    pub fn clear(&self) {
        let mut kept = self.kept.lock().unwrap();
        *kept = Kept {
            next: kept.next,
            ..Kept::default()
        };
    }

    pub fn entries(&self, filter: &Filter) -> Value {
        let kept = self.kept.lock().unwrap();
        kept.entries
            .iter()
            .filter(|entry| filter.agrees(entry))
            .map(|entry| json!(entry))
            .collect()
    }

    /// Requests, bytes and counts by path, of paths that contain `part`.
    pub fn counters(&self, part: &str) -> Value {
        let kept = self.kept.lock().unwrap();
        let paths: BTreeMap<_, _> = kept
            .paths
            .iter()
            .filter(|(path, _)| path.contains(part))
            .collect();
        json!({"requests": kept.requests, "bytes": kept.bytes, "paths": paths})
    }

    /// Until `count` entries agree; answers how many do, `None` when time is up before.
    pub fn wait(&self, filter: &Filter, count: usize, timeout: Duration) -> Option<usize> {
        let until = Instant::now() + timeout;
        let mut kept = self.kept.lock().unwrap();
        loop {
            let agreed = kept
                .entries
                .iter()
                .filter(|entry| filter.agrees(entry))
                .count();
            if agreed >= count {
                return Some(agreed);
            }
            let left = until.checked_duration_since(Instant::now())?;
            kept = self.changed.wait_timeout(kept, left).unwrap().0;
        }
    }

    fn update(&self, n: u64, change: impl FnOnce(&mut Entry)) {
        let mut kept = self.kept.lock().unwrap();
        if let Some(entry) = kept.entry(n) {
            change(entry);
            self.changed.notify_all();
        }
    }
}

impl Kept {
    /// `None` when the log was cleared since, or the entry was one of too many.
    fn entry(&mut self, n: u64) -> Option<&mut Entry> {
        let first = self.entries.front()?.n;
        self.entries
            .get_mut(usize::try_from(n.checked_sub(first)?).ok()?)
    }

    /// A HEAD was answered, or its client left before.
    fn waits_no_more(&mut self, n: u64) {
        let waiting = |entry: &&mut Entry| entry.method == "HEAD" && entry.status == 0;
        let Some(entry) = self.entry(n).filter(waiting) else {
            return;
        };
        let path = entry.path.clone();
        if let Some(count) = self.path(&path) {
            count.heads_waiting = count.heads_waiting.saturating_sub(1);
        }
    }

    fn path(&mut self, path: &str) -> Option<&mut PathCount> {
        if !self.paths.contains_key(path) {
            if self.paths.len() == PATHS_MAX {
                return None;
            }
            self.paths.insert(path.to_owned(), PathCount::default());
        }
        self.paths.get_mut(path)
    }
}

impl Filter {
    fn agrees(&self, entry: &Entry) -> bool {
        fn same<T: PartialEq>(wanted: &Option<T>, found: &T) -> bool {
            wanted.as_ref().is_none_or(|wanted| wanted == found)
        }
        same(&self.listener, &entry.listener)
            && same(&self.method, &entry.method)
            && same(&self.kind, &entry.kind)
            && same(&self.path, &entry.path)
            && same(&self.state, &entry.state)
            && same(&self.status, &entry.status)
            && (self.repository.is_none() || self.repository == entry.repository)
            && (self.fault.is_none() || self.fault == entry.fault)
            && self
                .contains
                .as_deref()
                .is_none_or(|part| entry.path.contains(part) || entry.query.contains(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(method: &str, path: &str) -> Entry {
        Entry {
            n: 0,
            t_ms: 0,
            listener: Side::Registry,
            connection: 1,
            method: method.to_owned(),
            path: path.to_owned(),
            query: "ns=x".to_owned(),
            kind: Kind::Blob,
            repository: Some("a".to_owned()),
            fields: BTreeMap::new(),
            authorization: None,
            certified: false,
            fault: None,
            status: 0,
            bytes: 0,
            state: State::Running,
        }
    }

    #[test]
    fn counts_by_path_and_survives_a_clear() {
        let log = Log::new(None);
        let first = log.begin(entry("GET", "/x"));
        log.begin(entry("HEAD", "/x"));
        log.begin(entry("GET", "/y"));
        log.sent(first, 10);
        let counters = log.counters("/x");
        let expected = json!({"get": 1, "head": 1, "other": 0, "bytes": 10, "heads_at_once": 1});
        assert_eq!(
            (&counters["paths"]["/x"], &counters["requests"]),
            (&expected, &json!(3))
        );
        assert_eq!(counters["paths"]["/y"], Value::Null);
        log.clear();
        log.sent(first, 5);
        log.end(first, State::Complete);
        let next = log.begin(entry("GET", "/x"));
        assert_eq!(next, 4);
        assert_eq!(log.entries(&Filter::default()).as_array().unwrap().len(), 1);
    }

    #[test]
    fn heads_that_wait_together_are_counted() {
        let log = Log::new(None);
        let most = || log.counters("/x")["paths"]["/x"]["heads_at_once"].clone();
        for _ in 0..2 {
            let n = log.begin(entry("HEAD", "/x"));
            log.answered(n, 200);
            log.end(n, State::Complete);
        }
        let gone = log.begin(entry("HEAD", "/x"));
        log.end(gone, State::ClientClosed);
        log.begin(entry("HEAD", "/y"));
        let first = log.begin(entry("HEAD", "/x"));
        assert_eq!(most(), 1);
        log.begin(entry("HEAD", "/x"));
        log.answered(first, 200);
        assert_eq!(most(), 2);
    }

    #[test]
    fn filters() {
        let log = Log::new(None);
        let n = log.begin(entry("GET", "/x"));
        log.end(n, State::Reset);
        let count = |text: &str| {
            let filter: Filter = serde_json::from_str(text).unwrap();
            log.entries(&filter).as_array().unwrap().len()
        };
        assert_eq!(
            count(r#"{"state":"reset","contains":"ns=","kind":"blob"}"#),
            1
        );
        assert_eq!(count(r#"{"repository":"b"}"#), 0);
        assert_eq!(count(r#"{"status":200}"#), 0);
    }

    #[test]
    fn waits_for_a_state() {
        let log = Log::new(None);
        let halted = Filter {
            state: Some(State::Halted),
            ..Filter::default()
        };
        assert_eq!(log.wait(&halted, 1, Duration::ZERO), None);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| log.wait(&halted, 1, Duration::from_secs(60)));
            let n = log.begin(entry("GET", "/x"));
            log.state(n, State::Halted);
            assert_eq!(waiting.join().unwrap(), Some(1));
        });
    }
}
