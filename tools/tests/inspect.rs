//! `entrepot-inspect` beside stores that the store itself wrote, whole and damaged.

use std::fs::{self, OpenOptions};
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{
    Digest, FillSpec, ForgetKey, LinkKey, LinkRecord, Options, Proof, Store, TagKey, TagKind,
    TagRecord, VolumeSpec, Writer,
};
use serde_json::Value;

const INSPECT: &str = env!("CARGO_BIN_EXE_entrepot-inspect");
const NOW: u64 = 1_800_000_000;
const CAPACITY: u64 = 256 << 20;
const PAGE: u64 = 4096;

/// A directory of a test, gone with it.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Directory {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("entrepot-inspect-test-{}-{number}", std::process::id());
        Directory(std::env::temp_dir().join(name))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .enable_timer()
        .build()
        .expect("io_uring is available")
        .block_on(work)
}

async fn open(path: &Path, uuid: u8) -> (Arc<Store<UringDisk>>, Writer<UringDisk>) {
    let disk = UringDisk::open(path).expect("directory");
    let volume = VolumeSpec {
        disk: disk.clone(),
        capacity: CAPACITY,
    };
    let opened = Store::open(vec![volume], Options::new(1, [uuid; 16]), NOW).await;
    let (store, _) = opened.map_err(|failure| failure.error).expect("opens");
    let writer = store.writer(vec![disk], 0);
    (store, writer)
}

fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    (0..len).map(next).collect()
}

async fn put(writer: &Writer<UringDisk>, content: &[u8], length: Option<u64>) -> Digest {
    let digest = Digest::sha256(content);
    let media_type = Some("application/octet-stream");
    let spec = FillSpec {
        digest,
        length,
        media_type,
    };
    let mut fill = writer.fill(spec).await.expect("admitted");
    for piece in content.chunks(300_000) {
        fill.write(piece.to_vec()).await.expect("written");
    }
    fill.finish(NOW).await.expect("verified");
    digest
}

fn tag_key(name: &str) -> TagKey {
    TagKey {
        project: "dh".into(),
        repository: "library/app".into(),
        kind: TagKind::Tag,
        name: name.into(),
    }
}

/// A store with a manifest, two layers, one of them solo, a purged body, a tag and its link.
struct Written {
    directory: Directory,
    manifest: Digest,
    layer: Digest,
    solo: Digest,
    purged: Digest,
}

const MANIFEST_LEN: usize = 700;
const LAYER_LEN: usize = (2 << 20) + 5;

#[derive(PartialEq)]
enum End {
    Drained,
    Killed,
}

impl Written {
    fn new(end: End) -> Written {
        let directory = Directory::new();
        let path = directory.0.clone();
        let (manifest, layer, solo, purged) = block_on(async {
            let (_store, writer) = open(&path, 7).await;
            let manifest = put(
                &writer,
                &content(1, MANIFEST_LEN),
                Some(MANIFEST_LEN as u64),
            )
            .await;
            let layer = put(&writer, &content(2, LAYER_LEN), Some(LAYER_LEN as u64)).await;
            let solo = put(&writer, &content(3, 100_000), None).await;
            let purged = put(&writer, &content(4, 5000), Some(5000)).await;
            link(&writer, manifest).await;
            writer.commit(NOW).await.expect("committed");
            let forgotten = writer.forget(ForgetKey::Body(purged)).await;
            forgotten.expect("forgotten");
            writer.commit(NOW).await.expect("committed");
            if end == End::Drained {
                writer.seal_all(NOW).await.expect("sealed");
            }
            (manifest, layer, solo, purged)
        });
        Written {
            directory,
            manifest,
            layer,
            solo,
            purged,
        }
    }

    fn path(&self) -> &Path {
        &self.directory.0
    }

    fn inspect(&self, arguments: &[&str]) -> Answer {
        inspect(&[self.path()], arguments)
    }

    /// File and place of the body of a digest, as the inspector lists them.
    fn place(&self, digest: &Digest) -> (PathBuf, u64) {
        let filter = ["records", "--json", "--kind", "body", "--digest"];
        let digest = digest.to_string();
        let answer = self.inspect(&[&filter[..], &[&digest]].concat());
        let record: Value = serde_json::from_str(&answer.stdout).expect("one record");
        let name = format!("{}.seg", record["segment"].as_str().expect("an id"));
        (
            self.path().join(name),
            record["offset"].as_u64().expect("an offset"),
        )
    }
}

async fn link(writer: &Writer<UringDisk>, digest: Digest) {
    let record = TagRecord {
        digest,
        origin: "https://a.example".into(),
        checked: NOW,
        note: "".into(),
    };
    writer.put_tag(tag_key("1.0"), record).await.expect("taken");
    let key = LinkKey {
        project: "dh".into(),
        repository: "library/app".into(),
        digest,
    };
    let record = LinkRecord {
        origin: "https://a.example".into(),
        proof: Proof::Fetched,
        at: NOW,
    };
    writer.put_link(key, record).await.expect("taken");
}

struct Answer {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Answer {
    #[track_caller]
    fn says(&self, text: &str) -> &Answer {
        let all = format!("{}{}", self.stdout, self.stderr);
        assert!(all.contains(text), "no {text:?} in:\n{all}");
        self
    }

    #[track_caller]
    fn ends(&self, code: i32) -> &Answer {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        self
    }
}

fn output(stores: &[&Path], arguments: &[&str]) -> Output {
    let mut command = Command::new(INSPECT);
    for store in stores {
        command.arg("--store").arg(store);
    }
    command.args(arguments).output().expect("runs")
}

fn inspect(stores: &[&Path], arguments: &[&str]) -> Answer {
    let output = output(stores, arguments);
    Answer {
        code: output.status.code().expect("not killed"),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    byte[0] ^= 1;
    file.write_all_at(&byte, offset).expect("written");
}

fn file_len(path: &Path) -> u64 {
    fs::metadata(path).expect("there").len()
}

#[test]
fn a_whole_store_is_listed_and_verified() {
    for end in [End::Drained, End::Killed] {
        let sealed = end == End::Drained;
        let store = Written::new(end);
        let state = if sealed { "sealed" } else { "unsealed" };
        store
            .inspect(&["segments"])
            .ends(0)
            .says(state)
            .says("solo")
            .says("small");
        for arguments in [
            &["segments", "--json"][..],
            &["segments", "--json", "--no-map"],
        ] {
            let answer = store.inspect(arguments);
            let segments: Vec<Value> = answer
                .stdout
                .lines()
                .map(|line| serde_json::from_str(line).expect("JSON"))
                .collect();
            let sum = |field: &str| {
                segments
                    .iter()
                    .filter_map(|s| s[field].as_u64())
                    .sum::<u64>()
            };
            assert_eq!(
                sum("live_bytes"),
                (MANIFEST_LEN + LAYER_LEN + 100_000) as u64
            );
            assert_eq!(sum("dead_bytes"), 5000, "the purged body");
            assert!(segments.iter().all(|s| s["faults"] == Value::Array(vec![])));
        }
        let verified = store.inspect(&["verify", "--digests"]);
        verified.ends(0).says(" 4 bodies, ").says(": 0 faults");
    }
}

#[test]
fn records_are_found_by_what_they_are_about() {
    let store = Written::new(End::Drained);
    let (manifest, purged) = (store.manifest.to_string(), store.purged.to_string());
    let lines = |arguments: &[&str]| {
        let answer = store.inspect(&[&["records"], arguments].concat());
        answer.ends(0).stdout.lines().count()
    };
    assert_eq!(lines(&["--kind", "body"]), 4);
    assert_eq!(lines(&["--kind", "tag"]), 1);
    assert_eq!(lines(&["--repository", "dh/library/app"]), 2);
    assert_eq!(lines(&["--repository", "dh/library/other"]), 0);
    assert_eq!(lines(&["--digest", &manifest]), 3, "body, tag, link");
    let answer = store.inspect(&["records", "--digest", &purged]);
    answer.ends(0).says("forgotten by").says("forget");
    store.inspect(&["records", "--kind", "nonsense"]).ends(2);
    store
        .inspect(&["records", "--segment", "xyz"])
        .ends(2)
        .says("not a segment id");
}

#[test]
fn a_body_is_shown_whole_or_not_at_all() {
    let store = Written::new(End::Drained);
    let layer = store.layer.to_string();
    let shown = output(&[store.path()], &["show", &layer]);
    assert!(shown.status.success());
    assert!(shown.stdout == content(2, LAYER_LEN), "the very bytes");
    let file = store.path().join("shown");
    let file_name = file.to_str().expect("UTF-8");
    store
        .inspect(&["show", &layer, "--output", file_name])
        .ends(0);
    assert!(fs::read(&file).expect("written") == content(2, LAYER_LEN));

    let (path, offset) = store.place(&store.layer);
    flip(&path, offset + LAYER_LEN as u64 - 1);
    let refused = output(&[store.path()], &["show", &layer]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stdout.is_empty(), "nothing of a damaged body");
    store
        .inspect(&["show", &layer])
        .says("do not match their CRC")
        .says("explain");
    let unknown = Digest::sha256(b"never stored").to_string();
    store
        .inspect(&["show", &unknown])
        .ends(1)
        .says("no whole copy");
    store.inspect(&["show", "sha256:00"]).ends(2);
}

#[test]
fn every_planted_damage_is_named() {
    /// Plants it, and says how it must be named.
    type Plant = fn(&Written) -> &str;
    let damages: [(&str, Plant); 8] = [
        ("a bit of a body", |store| {
            let (path, offset) = store.place(&store.layer);
            flip(&path, offset + (1 << 20) + 3);
            "bytes 1048576 to 2097152 of the body do not match their CRC"
        }),
        ("a body's own header", |store| {
            let (path, offset) = store.place(&store.manifest);
            flip(&path, offset - PAGE + 40);
            "the page before it, does not agree"
        }),
        ("the header of a segment", |store| {
            flip(&store.place(&store.layer).0, 50);
            "the header is damaged"
        }),
        ("a commit page", |store| {
            flip(&store.place(&store.layer).0, PAGE + 100);
            "are not in the commit pages, damaged from 4096 on"
        }),
        ("the trailer", |store| {
            let path = store.place(&store.layer).0;
            flip(&path, file_len(&path) - PAGE + 20);
            "the trailer is damaged"
        }),
        ("all but the beginning of a segment", |store| {
            let path = store.place(&store.solo).0;
            let file = OpenOptions::new().write(true).open(&path).expect("opens");
            file.set_len(store.place(&store.solo).1 + PAGE)
                .expect("cut within the body");
            "its extent is not inside the file"
        }),
        ("a segment's name", |store| {
            let path = store.place(&store.solo).0;
            fs::rename(&path, store.path().join("00000100000000ff.seg")).expect("renamed");
            "its header says segment"
        }),
        ("both superblocks", |store| {
            flip(&store.path().join("STORE"), 100);
            flip(&store.path().join("STORE"), PAGE + 100);
            "damaged in both copies"
        }),
    ];
    for (what, damage) in damages {
        let store = Written::new(End::Drained);
        let fault = damage(&store);
        let verified = store.inspect(&["verify", "--digests"]);
        assert_eq!(verified.code, 1, "{what}: {}", verified.stdout);
        verified.says(fault);
        store.inspect(&["segments"]).ends(0);
    }
}

#[test]
fn damage_of_the_footer_is_survived_by_the_commit_pages() {
    let store = Written::new(End::Drained);
    let (path, _) = store.place(&store.layer);
    let footer = file_len(&path) - 2 * PAGE;
    flip(&path, footer + 80);
    store
        .inspect(&["verify"])
        .ends(1)
        .says("the footer is damaged");
    store
        .inspect(&["show", &store.layer.to_string(), "-o", "/dev/null"])
        .ends(0);
}

#[test]
fn small_records_are_salvaged_page_by_page() {
    let store = Written::new(End::Drained);
    let small = fs::read_dir(store.path())
        .expect("lists")
        .find_map(|entry| {
            let path = entry.expect("an entry").path();
            path.extension()
                .is_some_and(|end| end == "rec")
                .then_some(path)
        });
    flip(&small.expect("a segment of small records"), PAGE + 70);
    store
        .inspect(&["verify"])
        .ends(1)
        .says("only the whole ones are read");
}

#[test]
fn one_segment_alone_is_verified() {
    let store = Written::new(End::Drained);
    let (damaged, offset) = store.place(&store.layer);
    flip(&damaged, offset);
    let (whole, _) = store.place(&store.solo);
    let id = |path: &Path| {
        path.file_stem()
            .expect("a stem")
            .to_str()
            .expect("hex")
            .to_owned()
    };
    store
        .inspect(&["verify", "--segment", &id(&whole)])
        .ends(0)
        .says("1 segments, 1 bodies");
    store
        .inspect(&["verify", "--segment", &id(&damaged)])
        .ends(1);
    store
        .inspect(&["verify", "--segment", "77"])
        .ends(2)
        .says("is not there");
}

#[test]
fn explains_what_is_and_what_is_not_served() {
    let store = Written::new(End::Drained);
    let explain = |subject: &str| store.inspect(&["explain", subject]);
    explain("dh/library/app:1.0")
        .ends(0)
        .says("a start would serve it")
        .says("link of dh/library/app: fetched from https://a.example");
    explain("dh/library/app:2.0")
        .ends(1)
        .says("no record of the tag counts");
    explain(&store.purged.to_string())
        .ends(1)
        .says("forgotten up to sequence")
        .says("a start would not serve it");
    explain(&store.solo.to_string())
        .ends(0)
        .says("no link proves it");
    explain(&Digest::sha256(b"never").to_string()).ends(1);
    explain("nginx").ends(2).says("not a digest");

    let (path, offset) = store.place(&store.manifest);
    flip(&path, offset + 5);
    explain("dh/library/app:1.0")
        .ends(1)
        .says("damaged: bytes 0 to 700");
}

#[test]
fn a_later_copy_supersedes_an_earlier_one() {
    let store = Written::new(End::Drained);
    block_on(async {
        let (_store, writer) = open(store.path(), 7).await;
        let content = content(4, 5000);
        let digest = put(&writer, &content, Some(5000)).await;
        assert_eq!(digest, store.purged);
        writer.commit(NOW).await.expect("committed");
        writer.seal_all(NOW).await.expect("sealed");
    });
    let explained = store.inspect(&["explain", &store.purged.to_string()]);
    explained.ends(0).says("    live\n").says("forgotten by");
}

#[test]
fn other_stores_and_other_files_are_told_apart() {
    let (store, other) = (Written::new(End::Drained), Directory::new());
    block_on(async {
        let (_store, writer) = open(&other.0, 9).await;
        let digest = put(&writer, &content(9, 3000), Some(3000)).await;
        link(&writer, digest).await;
        writer.seal_all(NOW).await.expect("sealed");
    });
    inspect(&[store.path(), &other.0], &["segments"])
        .ends(2)
        .says("of different stores");
    let name = "00000100000000aa.seg";
    let foreign = fs::read_dir(&other.0).expect("lists").find_map(|entry| {
        let path = entry.expect("an entry").path();
        path.extension()
            .is_some_and(|end| end == "seg")
            .then_some(path)
    });
    fs::copy(foreign.expect("a segment"), store.path().join(name)).expect("copied");
    store.inspect(&["segments"]).ends(0).says("foreign");
    store
        .inspect(&["verify"])
        .ends(0)
        .says("is of another store");
    let digest = Digest::sha256(&content(9, 3000)).to_string();
    store
        .inspect(&["explain", &digest])
        .ends(1)
        .says("ignored, it is of another store");

    let empty = Directory::new();
    fs::create_dir(&empty.0).expect("made");
    inspect(&[&empty.0], &["segments"])
        .ends(2)
        .says("not a store");
    inspect(&[&empty.0.join("missing")], &["segments"])
        .ends(2)
        .says("missing");
    inspect(&[], &["segments"]).ends(2).says("--store");
    inspect(&[], &["--help"]).ends(0).says("Exit status");
}

/// A store that is being written is read as it stands, again and again.
#[test]
fn a_store_in_use_is_readable() {
    let directory = Directory::new();
    block_on(async {
        let (_store, writer) = open(&directory.0, 7).await;
        for seed in 0..20 {
            let len = 200_000;
            put(
                &writer,
                &content(seed, len),
                (seed % 3 > 0).then_some(len as u64),
            )
            .await;
            if seed % 2 == 0 {
                writer.commit(NOW).await.expect("committed");
            }
            if seed % 5 == 4 {
                inspect(&[&directory.0], &["verify", "--digests"])
                    .ends(0)
                    .says(": 0 faults");
                inspect(&[&directory.0], &["segments"])
                    .ends(0)
                    .says("unsealed");
            }
        }
    });
}

/// Two volumes of one store, then each alone.
#[test]
fn volumes_are_read_together() {
    let directories = [Directory::new(), Directory::new()];
    let (digests, content_len) = block_on(async {
        let disks: Vec<UringDisk> = directories
            .iter()
            .map(|directory| UringDisk::open(&directory.0).expect("directory"))
            .collect();
        let volume = |disk: &UringDisk| VolumeSpec {
            disk: disk.clone(),
            capacity: CAPACITY,
        };
        let volumes = disks.iter().map(volume).collect();
        let opened = Store::open(volumes, Options::new(1, [7; 16]), NOW).await;
        let (store, _) = opened.map_err(|failure| failure.error).expect("opens");
        let writer = store.writer(disks, 0);
        let mut digests = Vec::new();
        for seed in 0..8 {
            digests.push(put(&writer, &content(seed, 300_000), None).await);
        }
        link(&writer, digests[0]).await;
        writer.commit(NOW).await.expect("committed");
        writer.seal_all(NOW).await.expect("sealed");
        (digests, 300_000)
    });
    let both = [&*directories[0].0, &*directories[1].0];
    inspect(&both, &["verify", "--digests"])
        .ends(0)
        .says(&format!(" 8 bodies, {} bytes", 8 * content_len));
    for digest in &digests {
        inspect(&both, &["explain", &digest.to_string()]).ends(0);
    }
    inspect(&both, &["explain", "dh/library/app:1.0"]).ends(0);
    for one in both {
        inspect(&[one], &["segments"])
            .ends(0)
            .says("is not among these");
    }
}
