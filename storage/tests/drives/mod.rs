//! Stores of several drives, opened and used by one process after another.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use entrepot_storage::disk::sim::{Ending, Executor, Faults, Random, SimDisk, SimWorld};
use entrepot_storage::{
    Digest, FillSpec, ForgetKey, OpenFailure, Options, Recovered, Store, TagKey, TagKeyRef,
    TagKind, TagRecord, VolumeSpec, VolumeState, Writer,
};

pub const NOW: u64 = 1_800_000_000;
pub const CAPACITY: u64 = 64 << 20;
/// Longer than a shared segment allows, so that each has its own and they spread.
pub const BODY_LEN: usize = 100 << 10;

pub const NO_FAULTS: Faults = Faults::NONE;
pub const ALL_FAILS: Faults = Faults {
    write: 1000,
    sync: 1000,
    sync_dir: 1000,
    ..NO_FAULTS
};
pub const READ_ONLY: Faults = Faults {
    read_only: true,
    ..NO_FAULTS
};
pub const GONE: Faults = Faults {
    gone: true,
    ..NO_FAULTS
};

pub fn world(drives: usize) -> SimWorld {
    SimWorld::with_drives(Random::new(7), &vec![CAPACITY * 2; drives])
}

/// One process: runs `task` to its end, then the machine loses power.
pub fn process<T: 'static, F: Future<Output = T> + 'static>(
    world: &SimWorld,
    task: impl FnOnce(Machine) -> F,
) -> T {
    crate::machine::run(world, Ending::PowerLoss, |executor| {
        task(Machine {
            world: world.clone(),
            executor: Rc::clone(executor),
        })
    })
}

pub struct Machine {
    pub world: SimWorld,
    pub executor: Rc<Executor>,
}

pub struct Opened {
    pub store: Arc<Store<SimDisk>>,
    pub writer: Writer<SimDisk>,
    pub recovered: Recovered,
}

impl Machine {
    pub fn disk(&self, drive: usize) -> SimDisk {
        SimDisk::of_drive(&self.world, &self.executor, drive)
    }

    /// `random`: another for every process, as the server draws it.
    pub async fn try_open(&self, drives: &[usize], random: u8) -> Result<Opened, OpenFailure> {
        let disks: Vec<SimDisk> = drives.iter().map(|drive| self.disk(*drive)).collect();
        let spec = |disk: &SimDisk| VolumeSpec {
            disk: disk.clone(),
            capacity: CAPACITY,
        };
        let mut options = Options::new(1, [random; 16]);
        options.segment_len = Some(256 << 10);
        let volumes = disks.iter().map(spec).collect();
        let (store, recovered) = Store::open(volumes, options, NOW).await?;
        let writer = store.writer(disks, 0);
        Ok(Opened {
            store,
            writer,
            recovered,
        })
    }

    pub async fn open(&self, drives: &[usize], random: u8) -> Opened {
        self.try_open(drives, random).await.expect("opens")
    }
}

pub fn content(number: u8) -> Vec<u8> {
    let byte = |n: usize| (n as u8).wrapping_mul(31) ^ (n >> 8) as u8 ^ number;
    (0..BODY_LEN).map(byte).collect()
}

pub fn digest(number: u8) -> Digest {
    Digest::sha256(&content(number))
}

pub fn key(name: &str) -> TagKey {
    TagKey {
        project: "p".into(),
        repository: "r".into(),
        kind: TagKind::Tag,
        name: name.into(),
    }
}

impl Opened {
    pub async fn put(&self, numbers: impl IntoIterator<Item = u8>) {
        self.put_bodies(numbers.into_iter().map(content)).await;
    }

    pub async fn put_bodies(&self, bodies: impl Iterator<Item = Vec<u8>>) {
        for content in bodies {
            let spec = FillSpec {
                digest: Digest::sha256(&content),
                length: Some(content.len() as u64),
                media_type: None,
            };
            let mut fill = self.writer.fill(spec).await.expect("admitted");
            fill.write(content).await.expect("written");
            fill.finish(NOW).await.expect("verified");
        }
        self.commit().await;
    }

    pub async fn commit(&self) {
        for _ in 0..3 {
            self.writer.commit(NOW).await.expect("committed");
        }
        assert_eq!(self.writer.uncommitted(), 0);
    }

    pub async fn tag(&self, name: &str, number: u8, checked: u64) {
        let tag = TagRecord {
            digest: digest(number),
            origin: "o".into(),
            checked,
            note: "".into(),
        };
        self.writer.put_tag(key(name), tag).await.expect("queued");
    }

    pub async fn forget(&self, number: u8) {
        let key = ForgetKey::Body(digest(number));
        self.writer.forget(key).await.expect("durable");
    }

    /// The second of two volumes misses a purge, and is back without having got it.
    pub async fn falls_behind(&self, machine: &Machine) {
        machine.world.set_drive_faults(1, ALL_FAILS);
        self.forget(5).await;
        assert_eq!(self.states(), [VolumeState::Online, VolumeState::Offline]);
        self.writer.maintain(NOW).await;
        machine.world.set_drive_faults(1, NO_FAULTS);
        self.writer.bring_back(1).await.expect("repaired");
    }

    pub fn has(&self, number: u8) -> bool {
        self.store.body(&digest(number)).is_some()
    }

    pub fn present(&self, numbers: impl IntoIterator<Item = u8>) -> Vec<u8> {
        let present = numbers.into_iter().filter(|number| self.has(*number));
        present.collect()
    }

    pub fn tagged(&self, name: &str) -> bool {
        self.store.tag(TagKeyRef::from(&key(name))).is_some()
    }

    pub fn states(&self) -> Vec<VolumeState> {
        self.store.volumes().iter().map(|v| v.state).collect()
    }
}
