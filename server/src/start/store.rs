//! Opening the store: one volume for each configured path.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use entrepot_storage::disk::cores::Cores;
use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{OpenError, OpenFailure, Options, Recovered, Store, VolumeSpec};

use super::{StartError, system};
use crate::clock;
use crate::config::Config;
use crate::preflight::{Fatal, LEFTOVER_LOOK, LEFTOVER_WAIT, Passed, ring_error};
use crate::ring;

type Opened = (Vec<UringDisk>, Arc<Store<UringDisk>>);

/// Opens and recovers the store; the disks are those of the paths, in their order.
pub fn open(config: &Config, passed: &Passed, shards: usize) -> Result<Opened, StartError> {
    let paths = &config.store.paths;
    let mut disks = Vec::new();
    // What a shard hashes itself when all of them are busy; on one core there is no other.
    let others = thread::available_parallelism().map_or(0, |cores| cores.get() - 1);
    let cores = Cores::start(others).map_err(system("starting the threads that hash"))?;
    for path in paths {
        let disk = UringDisk::at(path).map_err(system("starting the threads of a disk"))?;
        disks.push(disk.with_cores(cores.clone()));
    }
    let capacities = capacities(config, passed);
    let volumes = || {
        let volumes = disks.iter().zip(&capacities);
        let volumes = volumes.map(|(disk, capacity)| VolumeSpec {
            disk: disk.clone(),
            capacity: *capacity,
        });
        volumes.collect::<Vec<_>>()
    };
    let options = options(config, passed, shards)?;
    let mut runtime = ring::runtime().map_err(ring_error)?;
    let began = Instant::now();
    let deadline = began + LEFTOVER_WAIT;
    let opened = loop {
        match runtime.block_on(Store::open(volumes(), options.clone(), clock::now())) {
            Err(failure) if is_locked(&failure) && Instant::now() < deadline => {
                thread::sleep(LEFTOVER_LOOK);
            }
            opened => break opened,
        }
    };
    // As in a shard: a ring is never dropped.
    std::mem::forget(runtime);
    let (store, recovered) = opened.map_err(|failure| explain(paths, failure))?;
    report(
        paths,
        &store,
        &recovered,
        began.elapsed().as_millis() as u64,
    );
    Ok((disks, store))
}

/// A volume that is away is taken to be as large as the smallest of the others, until the next
/// start.
fn capacities(config: &Config, passed: &Passed) -> Vec<u64> {
    let lens = &passed.file_system_lens;
    let smallest = lens.iter().flatten().min().copied().unwrap_or(0);
    let len_of = |len: &Option<u64>| config.store.capacity.bytes(len.unwrap_or(smallest));
    lens.iter().map(len_of).collect()
}

fn options(config: &Config, passed: &Passed, shards: usize) -> Result<Options, StartError> {
    let mut uuid = [0; 16];
    rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| system("drawing the store's uuid")(errno.into()))?;
    Ok(Options {
        segment_len: config.store.segment,
        solo_min: config.store.solo_min,
        small_max: u32::try_from(config.store.small_max).unwrap_or(u32::MAX),
        small_budget: config.store.small_budget,
        scrub_every: config.store.scrub_every.as_secs(),
        idle_after: config.store.idle_after.as_secs(),
        small_idle_after: config.store.small_idle_after.as_secs(),
        pin_max: config.store.pin_max.as_secs(),
        files_max: passed.segment_files,
        ..Options::new(shards, uuid)
    })
}

fn is_locked(failure: &OpenFailure) -> bool {
    matches!(failure.error, OpenError::Locked)
}

fn explain(paths: &[PathBuf], failure: OpenFailure) -> StartError {
    let path = paths[failure.volume].clone();
    match failure.error {
        OpenError::Locked => StartError::Machine(Fatal::StoreTaken(path)),
        error => StartError::Store { path, error },
    }
}

fn report(paths: &[PathBuf], store: &Store<UringDisk>, recovered: &Recovered, ms: u64) {
    for (path, volume) in paths.iter().zip(store.volumes()) {
        tracing::info!(
            path = %path.display(), state = ?volume.state, capacity = volume.capacity,
            used = volume.used, segments = volume.segments, "volume"
        );
    }
    tracing::info!(
        ms,
        segments = recovered.segments,
        sealed = recovered.sealed,
        bodies = recovered.bodies,
        bytes = recovered.body_bytes,
        tags = recovered.tags,
        links = recovered.links,
        invalid = recovered.invalid,
        "store open"
    );
    for number in &recovered.emptied {
        tracing::warn!(
            path = %paths[*number].display(),
            "this volume was in use without the others: what was on it is gone"
        );
    }
    for name in &recovered.damaged {
        tracing::warn!(segment = %name, "some tags, links or purges of this segment are lost");
    }
    for name in &recovered.foreign {
        tracing::warn!(segment = %name, "a segment of another store is ignored");
    }
    for name in &recovered.unreadable {
        tracing::warn!(segment = %name, "a segment that cannot be read is ignored");
    }
}
