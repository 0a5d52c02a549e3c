//! The simulated disk: keeps exactly what `Disk` promises, and breaks the rest by a seed.
//!
//! Operations complete in any order, some far later than others. A crash loses any subset of what
//! was not synced, cuts the rest at 512-byte sectors, loses names that no `sync_dir` made durable
//! and lengths that no `sync` did; a kill loses the process only. A failed sync leaves the cache
//! as if nothing had happened, and loses what it likes, as ext4 and XFS do; clean pages may leave
//! the cache at any time. Media that decay, direct writes elsewhere or lie about syncs remember
//! where, so that those who look know which wrong byte is the media's. A machine has one drive or
//! several, each with faults of its own. No clock, no thread, no I/O.

mod drive;
mod effect;
mod executor;
mod fault;
mod inode;
mod random;
mod world;

use std::future::{Future, poll_fn};
use std::io;
use std::rc::{Rc, Weak};
use std::task::Poll;

use bytes::Bytes;

use super::{Disk, Space, Work};
use crate::wait::yield_now;

pub use effect::{InFlight, Operation};
pub use executor::{Executor, Step};
pub use fault::{Fault, Faults, Injected};
pub use inode::SimFile;
pub use random::Random;
pub use world::{Ending, SimWorld};

use effect::{Answer, Effect};

/// Turns of the executor that work elsewhere takes at most.
const ELSEWHERE_TURNS: usize = 7;

/// The disk as one process sees it.
#[derive(Clone)]
pub struct SimDisk {
    world: SimWorld,
    executor: Weak<Executor>,
    drive: usize,
    /// Reads what the media have, and not what the cache kept of it: the compactor's.
    direct: bool,
    /// Processes on this disk so far; what an ended one still asks for is refused.
    process: u64,
}

impl SimDisk {
    /// The first drive.
    pub fn new(world: &SimWorld, executor: &Rc<Executor>) -> SimDisk {
        SimDisk::of_drive(world, executor, 0)
    }

    pub fn of_drive(world: &SimWorld, executor: &Rc<Executor>, drive: usize) -> SimDisk {
        let process = world.process();
        SimDisk {
            world: world.clone(),
            executor: Rc::downgrade(executor),
            drive,
            direct: false,
            process,
        }
    }

    /// The same drive past the page cache: what the compactor uses.
    pub fn direct(&self) -> SimDisk {
        SimDisk {
            direct: true,
            ..self.clone()
        }
    }

    async fn ask(&self, effect: Effect) -> io::Result<Answer> {
        let slot = self.world.issue(self, effect)?;
        poll_fn(|cx| {
            let mut slot = slot.lock();
            match slot.answer.take() {
                Some(answer) => Poll::Ready(answer),
                None => {
                    slot.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    async fn done(&self, effect: Effect) -> io::Result<()> {
        self.ask(effect).await.map(|_| ())
    }

    async fn file(&self, effect: Effect) -> io::Result<(SimFile, u64)> {
        match self.ask(effect).await? {
            Answer::File(file, len) => Ok((file, len)),
            other => unreachable!("a file was asked for, not {other:?}"),
        }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        if let Some(executor) = self.executor.upgrade() {
            executor.spawn(task);
        }
    }

    async fn lock(&self) -> io::Result<SimFile> {
        Ok(self.file(Effect::Lock).await?.0)
    }

    async fn list(&self) -> io::Result<Vec<String>> {
        match self.ask(Effect::List).await? {
            Answer::Names(names) => Ok(names),
            other => unreachable!("names were asked for, not {other:?}"),
        }
    }

    async fn create(&self, name: &str, len: u64) -> io::Result<SimFile> {
        let name = name.to_owned();
        Ok(self.file(Effect::Create { name, len }).await?.0)
    }

    async fn anonymous(&self, len: u64) -> io::Result<SimFile> {
        Ok(self.file(Effect::Anonymous { len }).await?.0)
    }

    async fn grow(&self, file: &SimFile, len: u64) -> io::Result<()> {
        self.done(Effect::Grow {
            file: file.clone(),
            len,
        })
        .await
    }

    async fn open(&self, name: &str) -> io::Result<(SimFile, u64)> {
        self.file(Effect::Open {
            name: name.to_owned(),
        })
        .await
    }

    async fn read(&self, file: &SimFile, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let file = file.clone();
        let read = Effect::Read {
            file,
            offset,
            len,
            direct: self.direct,
        };
        match self.ask(read).await? {
            Answer::Bytes(bytes) => Ok(bytes),
            other => unreachable!("bytes were asked for, not {other:?}"),
        }
    }

    async fn write(&self, file: &SimFile, offset: u64, bytes: Bytes) -> io::Result<()> {
        self.done(Effect::Write {
            file: file.clone(),
            offset,
            bytes,
        })
        .await
    }

    async fn sync(&self, file: &SimFile) -> io::Result<()> {
        self.done(Effect::sync(file)).await
    }

    async fn sync_dir(&self) -> io::Result<()> {
        self.done(self.world.sync_dir(self.drive)).await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.done(Effect::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
        })
        .await
    }

    async fn unlink(&self, name: &str) -> io::Result<()> {
        self.done(Effect::Unlink {
            name: name.to_owned(),
        })
        .await
    }

    fn writeback(&self, file: &SimFile, offset: u64, len: u64) {
        self.world.writeback(self.process, file, offset, len);
    }

    async fn space(&self) -> io::Result<Space> {
        match self.ask(Effect::Space).await? {
            Answer::Space(space) => Ok(space),
            other => unreachable!("the space was asked for, not {other:?}"),
        }
    }

    async fn give_way(&self) {
        yield_now().await;
    }

    /// Every other time a core is free, and takes its time.
    fn elsewhere(&self, len: usize, work: Work) -> Result<(), Work> {
        match self.executor.upgrade() {
            Some(executor) if len.is_multiple_of(2) => {
                executor.spawn(async move {
                    for _ in 0..len % ELSEWHERE_TURNS {
                        yield_now().await;
                    }
                    work();
                });
                Ok(())
            }
            _ => Err(work),
        }
    }
}
