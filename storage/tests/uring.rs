//! The store on the real disk: io_uring, a directory, processes that end without a word.

use std::future::Future;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{
    Body, Digest, FillError, FillFailure, FillSpec, FillState, ForgetKey, LinkKey, LinkRecord,
    OpenError, Options, Proof, Recovered, Refusal, RepositoryKey, Statistics, Store, TagKey,
    TagKind, TagRecord, VolumeSpec, Writer, repository_slice,
};

const NOW: u64 = 1_800_000_000;
const CAPACITY: u64 = 256 << 20;
/// What one `Fill::write` takes here.
const PIECE_LEN: usize = 200_000;

struct Directory(PathBuf);

impl Directory {
    fn new() -> Directory {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("entrepot-storage-{}-{number}", std::process::id());
        Directory(std::env::temp_dir().join(name))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .enable_timer()
        .build()
        .expect("io_uring is available")
        .block_on(test)
}

async fn open_with(
    disk: &UringDisk,
    uuid: [u8; 16],
) -> Result<(Arc<Store<UringDisk>>, Recovered), OpenError> {
    let volume = VolumeSpec {
        disk: disk.clone(),
        capacity: CAPACITY,
    };
    let opened = Store::open(vec![volume], Options::new(1, uuid), NOW).await;
    opened.map_err(|failure| failure.error)
}

async fn open(path: &Path) -> (Arc<Store<UringDisk>>, Writer<UringDisk>, Recovered) {
    let disk = UringDisk::open(path).expect("directory");
    let (store, recovered) = open_with(&disk, [9; 16]).await.expect("opens");
    let writer = store.writer(vec![disk], 0);
    (store, writer, recovered)
}

/// Bytes that differ by seed and do not repeat.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

async fn put(
    writer: &Writer<UringDisk>,
    content: &[u8],
    length_known: bool,
) -> (Digest, Body<UringDisk>) {
    let digest = Digest::sha256(content);
    let length = length_known.then_some(content.len() as u64);
    let media_type = Some("application/octet-stream");
    let mut fill = writer
        .fill(FillSpec {
            digest,
            length,
            media_type,
        })
        .await
        .expect("admitted");
    for piece in content.chunks(PIECE_LEN) {
        fill.write(piece.to_vec()).await.expect("written");
    }
    (digest, fill.finish(NOW).await.expect("verified"))
}

fn read(body: &Body<UringDisk>) -> Vec<u8> {
    use std::os::fd::AsFd;
    let file = body
        .lease
        .file()
        .as_fd()
        .try_clone_to_owned()
        .expect("descriptor");
    let mut bytes = vec![0; body.len as usize];
    std::fs::File::from(file)
        .read_exact_at(&mut bytes, body.lease.offset())
        .expect("read");
    bytes
}

fn tag_key() -> TagKey {
    TagKey {
        project: "dh".into(),
        repository: "library/nginx".into(),
        kind: TagKind::Tag,
        name: "1.27".into(),
    }
}

fn tag(digest: Digest) -> TagRecord {
    TagRecord {
        digest,
        origin: "https://a.example".into(),
        checked: NOW,
        note: "".into(),
    }
}

#[test]
fn what_is_committed_survives_a_process_that_just_ends() {
    let directory = Directory::new();
    let sizes = [0, 1, 4096, 70_000, 3 << 20, 40 << 20];
    let bodies: Vec<Vec<u8>> = sizes
        .iter()
        .enumerate()
        .map(|(seed, len)| bytes(seed as u64, *len))
        .collect();
    let link = LinkKey {
        project: "dh".into(),
        repository: "library/nginx".into(),
        digest: Digest::sha256(&bodies[1]),
    };
    let proof = LinkRecord {
        origin: "https://a.example".into(),
        proof: Proof::Fetched,
        at: NOW,
    };
    run(async {
        let (store, writer, recovered) = open(&directory.0).await;
        assert_eq!((recovered.generation, recovered.bodies), (1, 0));
        for (n, content) in bodies.iter().enumerate() {
            let (_, body) = put(&writer, content, n % 2 == 0).await;
            assert!(read(&body) == *content, "body {n}");
        }
        writer
            .put_tag(tag_key(), tag(Digest::sha256(&bodies[3])))
            .await
            .expect("queued");
        writer
            .put_link(link.clone(), proof.clone())
            .await
            .expect("queued");
        assert!(writer.uncommitted() > 43 << 20);
        writer.commit(NOW).await.expect("committed");
        writer.commit(NOW).await.expect("committed");
        assert_eq!(writer.uncommitted(), 0);
        let usage = store.usage();
        assert_eq!((usage.bodies, usage.uncommitted_records), (6, 0));
        // Finished, never committed.
        put(&writer, b"too late", true).await;
    });
    run(async {
        let (store, writer, recovered) = open(&directory.0).await;
        assert_eq!(
            (recovered.generation, recovered.bodies, recovered.tags),
            (2, 6, 1)
        );
        assert_eq!(
            recovered.sealed, 2,
            "the shared and the small one; solos were sealed"
        );
        for content in &bodies {
            let body = store.body(&Digest::sha256(content)).expect("survived");
            assert!(read(&body) == *content);
            assert_eq!(body.media_type.as_deref(), Some("application/octet-stream"));
        }
        assert!(store.body(&Digest::sha256(b"too late")).is_none());
        assert_eq!(store.tag(&tag_key()), Some(tag(Digest::sha256(&bodies[3]))));
        assert_eq!(store.link(&link), Some(proof.clone()));
        let small = Digest::sha256(&bodies[2]);
        assert!(store.body(&small).expect("small").bytes.is_none());
        assert_eq!(
            writer.load(&small).await.as_deref(),
            Some(bodies[2].as_slice())
        );
        assert!(store.body(&small).expect("small").bytes.is_some());
    });
    run(async {
        let (_, _, recovered) = open(&directory.0).await;
        assert_eq!(
            (recovered.bodies, recovered.sealed),
            (6, 0),
            "sealed once, read ever after"
        );
    });
}

fn repository_key() -> RepositoryKey {
    let TagKey {
        project,
        repository,
        ..
    } = tag_key();
    RepositoryKey {
        project,
        repository,
    }
}

fn records_of(store: &Store<UringDisk>, slice: usize) -> usize {
    let mut count = 0;
    store.each_tag(slice, |key, _| count += usize::from(*key == tag_key()));
    store.each_link(slice, |_, _| count += 1);
    store.each_statistics(slice, |key, _| {
        count += usize::from(*key == repository_key())
    });
    count
}

#[test]
fn what_is_forgotten_stays_forgotten() {
    let directory = Directory::new();
    let digests = run(async {
        let (store, writer, _) = open(&directory.0).await;
        let (small, body) = put(&writer, b"purge me", true).await;
        let (large, _) = put(&writer, &bytes(3, 20 << 20), true).await;
        writer.put_tag(tag_key(), tag(small)).await.expect("queued");
        let statistics = Statistics::default();
        let put = writer.put_statistics(repository_key(), statistics);
        put.await.expect("queued");
        for _ in 0..2 {
            writer.commit(NOW).await.expect("committed");
        }
        writer
            .forget(ForgetKey::Body(small))
            .await
            .expect("durable");
        let others = vec![
            ForgetKey::Body(large),
            ForgetKey::Tag(tag_key()),
            ForgetKey::Statistics(repository_key()),
        ];
        let slice = repository_slice(&tag_key().project, &tag_key().repository);
        assert_eq!(records_of(&store, slice), 2, "a tag and statistics");
        writer.forget_all(others).await.expect("durable");
        assert!(store.body(&small).is_none());
        assert_eq!(records_of(&store, slice), 0);
        assert_eq!(read(&body), b"purge me", "a lease keeps its bytes");
        [small, large]
    });
    run(async {
        let (store, writer, recovered) = open(&directory.0).await;
        assert_eq!((recovered.bodies, recovered.tags), (0, 0));
        assert_eq!(store.statistics(&repository_key()), None);
        assert!(digests.iter().all(|digest| store.body(digest).is_none()));
        put(&writer, b"purge me", true).await;
        for _ in 0..2 {
            writer.commit(NOW).await.expect("committed");
        }
    });
    run(async {
        let (store, _, _) = open(&directory.0).await;
        assert!(
            store.body(&digests[0]).is_some(),
            "fetched again after the purge"
        );
    });
}

#[test]
fn a_drain_leaves_nothing_to_seal() {
    let directory = Directory::new();
    run(async {
        let (_, writer, _) = open(&directory.0).await;
        let (digest, _) = put(&writer, &bytes(1, 100_000), true).await;
        put(&writer, &bytes(2, 30 << 20), true).await;
        writer
            .put_tag(tag_key(), tag(digest))
            .await
            .expect("queued");
        writer.seal_all(NOW).await.expect("sealed");
        assert_eq!(writer.uncommitted(), 0);
    });
    run(async {
        let (_, _, recovered) = open(&directory.0).await;
        let counts = (
            recovered.bodies,
            recovered.tags,
            recovered.sealed,
            recovered.segments,
        );
        assert_eq!(counts, (2, 1, 0, 3));
    });
}

#[test]
fn one_process_at_a_time() {
    let directory = Directory::new();
    run(async {
        let (_store, _writer, _) = open(&directory.0).await;
        let disk = UringDisk::open(&directory.0).expect("directory");
        let again = open_with(&disk, [9; 16]).await;
        assert!(matches!(again.map(|_| ()), Err(OpenError::Locked)));
    });
}

#[test]
fn foreign_segments_are_left_alone_and_reported() {
    let (ours, theirs) = (Directory::new(), Directory::new());
    run(async {
        let (_, writer, _) = open(&ours.0).await;
        put(&writer, b"ours", true).await;
        writer.seal_all(NOW).await.expect("sealed");
        let disk = UringDisk::open(&theirs.0).expect("directory");
        let (store, _) = open_with(&disk, [8; 16]).await.expect("opens");
        let writer = store.writer(vec![disk], 0);
        for content in [&b"theirs"[..], b"theirs too"] {
            put(&writer, content, true).await;
            writer.seal_all(NOW).await.expect("sealed");
        }
    });
    let mut names: Vec<_> = std::fs::read_dir(&theirs.0)
        .expect("list")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("text")
        })
        .filter(|name| name.ends_with(".seg"))
        .collect();
    names.sort();
    let foreign = names.last().expect("two segments");
    std::fs::copy(theirs.0.join(foreign), ours.0.join(foreign)).expect("copied");
    run(async {
        let (store, _, recovered) = open(&ours.0).await;
        assert_eq!(recovered.foreign, std::slice::from_ref(foreign));
        assert_eq!(store.usage().bodies, 1);
    });
    assert!(ours.0.join(foreign).exists());
    std::fs::remove_file(ours.0.join("STORE")).expect("removed");
    run(async {
        let disk = UringDisk::open(&ours.0).expect("directory");
        let error = open_with(&disk, [9; 16]).await.map(|_| ());
        assert!(matches!(error, Err(OpenError::SuperblockMissing)));
    });
}

#[test]
fn wrong_bodies_leave_nothing() {
    let directory = Directory::new();
    run(async {
        let (store, writer, _) = open(&directory.0).await;
        let content = bytes(1, 2 << 20);
        let digest = Digest::sha256(&content);
        let spec = FillSpec {
            digest,
            length: Some(2 << 20),
            media_type: None,
        };
        let mut wrong = content.clone();
        wrong[77] ^= 1;

        let mut fill = writer.fill(spec).await.expect("admitted");
        let mut follower = fill.watermark().follow();
        fill.write(wrong).await.expect("taken");
        assert_eq!(
            fill.finish(NOW).await.map(|_| ()),
            Err(FillError::WrongDigest)
        );
        let (readable, state) = follower.wait(1 << 20).await;
        assert_eq!(state, FillState::Failed(FillFailure::WrongDigest));
        assert!(readable <= 1 << 20, "the last MiB was withheld");

        let mut fill = writer.fill(spec).await.expect("admitted");
        fill.write(content[..100].to_vec()).await.expect("taken");
        assert_eq!(fill.finish(NOW).await.map(|_| ()), Err(FillError::TooShort));

        let mut fill = writer.fill(spec).await.expect("admitted");
        fill.write(content.clone()).await.expect("taken");
        assert_eq!(fill.write(vec![0]).await, Err(FillError::TooLong));

        let mut fill = writer.fill(spec).await.expect("admitted");
        fill.write(content.clone()).await.expect("taken");
        writer
            .forget(ForgetKey::Body(digest))
            .await
            .expect("durable");
        assert_eq!(
            fill.finish(NOW).await.map(|_| ()),
            Err(FillError::Forgotten)
        );

        assert!(store.body(&digest).is_none());
        writer.commit(NOW).await.expect("committed");
        assert_eq!(writer.uncommitted(), 0);
        put(&writer, &content, true).await;
    });
}

#[test]
fn a_full_store_refuses_and_stages() {
    let directory = Directory::new();
    run(async {
        let (store, writer, _) = open(&directory.0).await;
        let spec = |length| FillSpec {
            digest: Digest::sha256(b""),
            length,
            media_type: None,
        };
        let refused = writer.fill(spec(Some(CAPACITY))).await.map(|_| ());
        assert_eq!(refused, Err(Refusal::TooLarge));
        let held = writer.fill(spec(Some(200 << 20))).await.expect("admitted");
        let refused = writer.fill(spec(Some(100 << 20))).await.map(|_| ());
        assert_eq!(refused, Err(Refusal::Full));
        drop(held);

        let content = bytes(4, 3 << 20);
        let digest = Digest::sha256(&content);
        let length = Some(content.len() as u64);
        let media_type = None;
        let mut fill = writer
            .staging(FillSpec {
                digest,
                length,
                media_type,
            })
            .await
            .expect("staged");
        assert_eq!(
            writer.staging(spec(length)).await.map(|_| ()),
            Err(Refusal::Full)
        );
        fill.write(content.clone()).await.expect("taken");
        let body = fill.finish(NOW).await.expect("verified");
        assert!(read(&body) == content);
        assert!(store.body(&digest).is_none());
        assert_eq!((store.usage().staging, writer.uncommitted()), (3 << 20, 0));
        drop(body);
        assert_eq!(store.usage().staging, 0);
    });
}

#[test]
fn followers_on_other_threads_see_every_byte_in_time() {
    let directory = Directory::new();
    run(async {
        let (_store, writer, _) = open(&directory.0).await;
        let content = bytes(5, 9 << 20);
        let digest = Digest::sha256(&content);
        let length = Some(content.len() as u64);
        let spec = FillSpec {
            digest,
            length,
            media_type: None,
        };
        let mut fill = writer.fill(spec).await.expect("admitted");
        let watermark = fill.watermark();
        let expected = Arc::new(content.clone());
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (watermark, expected) = (Arc::clone(&watermark), Arc::clone(&expected));
                std::thread::spawn(move || {
                    run(async move {
                        use std::os::fd::AsFd;
                        let mut follower = watermark.follow();
                        let lease = watermark.lease();
                        let file = lease
                            .file()
                            .as_fd()
                            .try_clone_to_owned()
                            .expect("descriptor");
                        let file = std::fs::File::from(file);
                        let mut at = 0;
                        loop {
                            let (readable, state) = follower.wait(at).await;
                            let mut part = vec![0; (readable - at) as usize];
                            file.read_exact_at(&mut part, lease.offset() + at)
                                .expect("read");
                            assert!(part == expected[at as usize..readable as usize]);
                            at = readable;
                            if state != FillState::Running {
                                return (at, state);
                            }
                        }
                    })
                })
            })
            .collect();
        for piece in content.chunks(PIECE_LEN) {
            fill.write(piece.to_vec()).await.expect("taken");
        }
        fill.finish(NOW).await.expect("verified");
        for thread in threads {
            let (at, state) = thread.join().expect("follower");
            assert_eq!((at, state), (9 << 20, FillState::Verified));
        }
        assert_eq!(watermark.followers(), 0);
    });
}
