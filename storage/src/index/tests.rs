use std::sync::Arc;

use super::*;
use crate::budget::Budget;
use crate::disk::sim::{Executor, Random, SimDisk, SimFile, SimWorld};
use crate::key::{LinkKeyRef, LinkRecord, Proof, TagKeyRef, TagKind, TagRecord};
use crate::lease::{Place, SegmentFile};
use crate::page::Class;

fn file() -> SimFile {
    use crate::disk::Disk as _;
    let world = SimWorld::new(Random::new(1), 1 << 20);
    let executor = Executor::new(Random::new(1));
    let disk = SimDisk::new(&world, &executor);
    let (made, taken) = flume::bounded(1);
    executor.spawn(async move {
        made.send(disk.create("a", 0).await.expect("room"))
            .expect("taken");
    });
    while taken.is_empty() {
        executor.step(&world);
    }
    taken.recv().expect("created")
}

fn segment(file: &SimFile) -> Arc<SegmentFile<SimDisk>> {
    let budget = Arc::new(Budget::new(1, 1));
    let place = Place {
        volume: 0,
        id: 1,
        class: Class::Shared,
        floor: 0,
    };
    Arc::new(SegmentFile::new(file.clone(), place, 0, budget))
}

fn body(
    file: &Arc<SegmentFile<SimDisk>>,
    name: u64,
    sequence: u64,
    bytes: Option<Bytes>,
) -> IndexedBody<SimDisk> {
    IndexedBody {
        digest: Digest::sha256(&name.to_le_bytes()),
        sequence,
        lease: Lease::new(Arc::clone(file), 0, sequence),
        media_type: MediaId::NONE,
        bytes: bytes.map(Box::new),
        recency: AtomicU32::new(0),
        flags: Flags::default(),
    }
}

#[test]
fn an_entry_is_64_bytes_beside_its_digest() {
    let entry = size_of::<IndexedBody<SimDisk>>();
    assert!(entry - size_of::<Digest>() <= 64, "{entry} bytes");
}

#[test]
fn the_highest_sequence_wins_in_any_order() {
    let index = Index::<SimDisk>::new(&[5; 16], 100, 1000);
    let file = segment(&file());
    for name in 0..1000 {
        for sequence in if name % 2 == 0 { [1, 2] } else { [2, 1] } {
            index.insert_body(body(&file, name, sequence, None));
        }
    }
    assert_eq!(index.counts().0, 1000);
    let found = |name: u64| index.body(&Digest::sha256(&name.to_le_bytes()), 7);
    assert!((0..1000).all(|name| found(name).is_some_and(|body| body.len == 2)));
    assert!(found(1000).is_none());
    for name in 0..1000_u64 {
        let removed = index.remove_body(&Digest::sha256(&name.to_le_bytes()), |_| true);
        assert!(removed.is_some());
    }
    assert_eq!(index.counts().0, 0);
}

#[test]
fn small_bodies_stay_within_their_budget() {
    let index = Index::<SimDisk>::new(&[5; 16], 100, 250);
    let file = segment(&file());
    assert!(!index.admit_small(101), "too long for one");
    for name in 0..2 {
        assert!(index.admit_small(100));
        index.insert_body(body(&file, name, 1, Some(vec![0; 100].into())));
    }
    assert!(!index.admit_small(100), "too much together");
    let digest = Digest::sha256(&0_u64.to_le_bytes());
    assert!(index.remove_body(&digest, |_| true).is_some());
    assert!(index.admit_small(100));
    index.insert_body(body(&file, 3, 1, None));
    let digest = Digest::sha256(&3_u64.to_le_bytes());
    index.hold(&digest, 1, vec![1; 100].into());
    assert_eq!(
        index
            .body(&digest, 1)
            .and_then(|b| b.bytes)
            .map(|b| b.len()),
        Some(100)
    );
    assert!(index.remove_body(&digest, |_| true).is_some());
    let digest = Digest::sha256(&1_u64.to_le_bytes());
    assert!(index.remove_body(&digest, |_| true).is_some());
    assert!((0..2).all(|_| index.admit_small(100)), "all was given back");
}

#[test]
fn keys_are_told_apart_by_every_part() {
    let index = Index::<SimDisk>::new(&[5; 16], 0, 0);
    let digest = Digest::sha256(b"d");
    let kinds = [TagKind::Tag, TagKind::Listing];
    // The parts of these spell the same when they are strung together.
    for (project, repository, name) in [("a", "bc", "d"), ("ab", "c", "d"), ("a", "b", "cd")] {
        for kind in kinds {
            let key = TagKey {
                project: project.into(),
                repository: repository.into(),
                kind,
                name: name.into(),
            };
            let note = format!("{project}/{repository}/{kind:?}/{name}");
            let tag = TagRecord {
                digest,
                origin: "o".into(),
                checked: 1,
                note: note.as_str().into(),
            };
            index.tags.put(key.clone(), tag, 1, 0);
            let found = index.tags.get(TagKeyRef::from(&key), 0).expect("just put");
            assert_eq!(&*found.note, note);
        }
    }
    assert_eq!(index.counts().1, 6);
    let link = LinkKey {
        project: "a".into(),
        repository: "b".into(),
        digest,
    };
    let proof = Proof::Headed;
    let record = LinkRecord {
        origin: "o".into(),
        proof,
        at: 1,
    };
    index.links.put(link.clone(), record.clone(), 1, 0);
    assert_eq!(index.links.get(LinkKeyRef::from(&link), 0), Some(record));
    let other = LinkKeyRef {
        repository: "c",
        ..LinkKeyRef::from(&link)
    };
    assert_eq!(index.links.get(other, 0), None);
    index.links.remove(&link);
    assert_eq!(index.counts().2, 0);
}

#[test]
fn a_time_alone_is_taken_over_without_a_write() {
    let index = Index::<SimDisk>::new(&[5; 16], 0, 0);
    let key = TagKey {
        project: "p".into(),
        repository: "r".into(),
        kind: TagKind::Tag,
        name: "t".into(),
    };
    let at = |checked| TagRecord {
        digest: Digest::sha256(b"d"),
        origin: "o".into(),
        checked,
        note: "".into(),
    };
    let limit = TouchLimit { first: 1, step: 60 };
    assert!(!index.tags.touch(&key, &at(100), limit));
    index.tags.put(key.clone(), at(100), 1, 0);
    assert!(index.tags.touch(&key, &at(159), limit));
    assert_eq!(
        index
            .tags
            .get(TagKeyRef::from(&key), 0)
            .map(|tag| tag.checked),
        Some(159)
    );
    assert!(
        !index.tags.touch(&key, &at(160), limit),
        "from the one that was written"
    );
    let moved = TagRecord {
        digest: Digest::sha256(b"e"),
        ..at(101)
    };
    assert!(!index.tags.touch(&key, &moved, limit));
    let reopened = TouchLimit { first: 2, ..limit };
    assert!(
        !index.tags.touch(&key, &at(159), reopened),
        "who has what recovery found is not known"
    );
    index.tags.not_written(&key);
    assert!(
        !index.tags.touch(&key, &at(120), limit),
        "nothing is on disk"
    );
}
