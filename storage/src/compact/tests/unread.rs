//! Jobs on disks that do not read everything.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use super::{UUID, answer, job, make, simulated, target, world};
use crate::compact::Compactor;
use crate::disk::bulk::BulkDisk;
use crate::disk::sim::SimDisk;
use crate::exchange::{Exchange, Job, Report, Source, ToOwner};
use crate::footer::{self, Sealed};
use crate::record::{Kind, Record};

/// A disk that cannot read what begins at some places.
#[derive(Clone)]
struct Bad {
    disk: SimDisk,
    places: Rc<RefCell<Vec<u64>>>,
    error: Rc<Cell<i32>>,
}

impl BulkDisk for Bad {
    type File = <SimDisk as BulkDisk>::File;
    type Read = Vec<u8>;
    type Buffer = Vec<u8>;

    fn buffer(&self, len: usize) -> Vec<u8> {
        self.disk.buffer(len)
    }

    async fn open(&self, name: &str) -> io::Result<Self::File> {
        BulkDisk::open(&self.disk, name).await
    }

    async fn create(&self, name: &str, len: u64) -> io::Result<Self::File> {
        BulkDisk::create(&self.disk, name, len).await
    }

    async fn read(&self, file: &Self::File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        if self.places.borrow().contains(&offset) {
            return Err(io::Error::from_raw_os_error(self.error.get()));
        }
        BulkDisk::read(&self.disk, file, offset, len).await
    }

    async fn write(
        &self,
        file: &Self::File,
        offset: u64,
        buffer: Vec<u8>,
        len: usize,
    ) -> io::Result<()> {
        BulkDisk::write(&self.disk, file, offset, buffer, len).await
    }

    async fn sync(&self, file: &Self::File) -> io::Result<()> {
        BulkDisk::sync(&self.disk, file).await
    }

    async fn sync_dir(&self) -> io::Result<()> {
        BulkDisk::sync_dir(&self.disk).await
    }

    async fn unlink(&self, name: &str) -> io::Result<()> {
        BulkDisk::unlink(&self.disk, name).await
    }

    async fn pause(&self, bytes: u64) {
        self.disk.pause(bytes).await;
    }
}

/// One more job of the same compactor.
async fn again(compactor: &mut Compactor<Bad>, exchange: &Exchange, job: Job) -> Report {
    assert!(exchange.jobs.push(job).is_ok());
    loop {
        if !compactor.step().await {
            answer(exchange, &[1, 2, 3, 4, 5, 7], &[]);
        }
        if let Some(report) = exchange.reports.pop() {
            return report;
        }
    }
}

/// Sequences of the records of the first owner that a job moved, in order, and what it did not read.
fn moved(report: Report) -> (Vec<u64>, Vec<u64>) {
    let Report::Copied {
        copied: Some(copied),
        unread,
        ..
    } = report
    else {
        panic!("copied, not {report:?}");
    };
    let mut moved: Vec<u64> = copied.moves[0].iter().map(|m| m.place.sequence).collect();
    moved.sort_unstable();
    (moved, unread)
}

fn broken(exchange: &Exchange) -> Vec<u64> {
    let Some(ToOwner::Found(findings)) = exchange.owners[0].pop() else {
        return Vec::new();
    };
    let broken = findings.into_iter().filter(|finding| !finding.sound);
    broken.map(|finding| finding.place.sequence).collect()
}

#[test]
fn a_body_is_given_up_when_it_alone_cannot_be_read_twice() {
    simulated(&world(), |disk| async move {
        let source = make(&disk, 10, &[1, 2, 3, 4, 5, 7]).await;
        let file = BulkDisk::open(&disk, "000000000000000a.seg").await;
        let sealed = Sealed {
            uuid: &UUID,
            segment: 10,
            len: source.len,
        };
        let records = footer::read(&disk, &file.expect("there"), &sealed).await;
        let offset = |record: Record| match record.kind {
            Kind::Body(entry) => Some(entry.offset),
            _ => None,
        };
        let records = records.expect("readable").expect("a footer");
        let offsets: Vec<u64> = records.into_iter().filter_map(offset).collect();
        let bad = Bad {
            disk,
            places: Rc::default(),
            error: Rc::new(Cell::new(libc::EIO)),
        };
        let exchange = Exchange::new(UUID, 1);
        let mut compactor = Compactor::new(Arc::clone(&exchange), vec![bad.clone()]);
        let scrub = || job(vec![source], None);
        // Three of them: it is the disk, however often.
        bad.places.replace(offsets[..3].to_vec());
        for _ in 0..3 {
            let report = again(&mut compactor, &exchange, scrub()).await;
            let Report::Failed { unread, kind, .. } = report else {
                panic!("given up, not {report:?}");
            };
            assert_eq!(unread, [10]);
            assert_ne!(kind, io::ErrorKind::Interrupted);
            assert!(broken(&exchange).is_empty());
        }
        // Another is short of memory.
        bad.error.set(libc::ENOMEM);
        bad.places.replace(vec![offsets[4]]);
        let report = again(&mut compactor, &exchange, scrub()).await;
        let kind = io::ErrorKind::Interrupted;
        assert!(matches!(report, Report::Failed { kind: found, .. } if found == kind));
        // One by itself.
        bad.error.set(libc::EIO);
        let report = again(&mut compactor, &exchange, job(vec![source], target())).await;
        let (moved, unread) = moved(report);
        assert_eq!((moved, unread), (vec![1, 2, 3, 4, 7], vec![10]));
        assert!(broken(&exchange).is_empty(), "it has another chance");
        again(&mut compactor, &exchange, scrub()).await;
        assert_eq!(broken(&exchange), [5]);
    });
}

#[test]
fn a_job_ends_where_its_entries_are_too_many_and_leaves_alone_what_is_gone() {
    simulated(&world(), |disk| async move {
        let sources = vec![
            make(&disk, 10, &[1, 2]).await,
            make(&disk, 11, &[3, 4]).await,
            make(&disk, 12, &[5]).await,
        ];
        let bad = Bad {
            disk,
            places: Rc::default(),
            error: Rc::default(),
        };
        let exchange = Exchange::new(UUID, 1);
        let mut compactor = Compactor::new(Arc::clone(&exchange), vec![bad.clone()]);
        compactor.entries_max = 5;
        let gone = Source {
            segment: 9,
            ..sources[0]
        };
        let all = [vec![gone], sources].concat();
        let report = again(&mut compactor, &exchange, job(all, target())).await;
        let (moved, unread) = moved(report);
        assert_eq!(moved, [1, 2, 3, 4], "the last segment is for another job");
        assert_eq!(unread, [9]);
        assert!(broken(&exchange).is_empty());
    });
}
