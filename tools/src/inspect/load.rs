//! All segments of the given volumes, as their files are now.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use entrepot_storage::inspect::{
    Depth, SUPERBLOCK_NAME, Segment, State, StoreFile, Uuid, file_name, has_trailer, is_small,
    membership, parse_file_name, read_segment, store_file,
};

use super::file::{Mapped, Read};
use super::text;

#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error("which store? name its path with --store")]
    NoStore,
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: not a store: neither a superblock nor a segment is in it")]
    NotAStore { path: PathBuf },
    #[error("{path}: {source}")]
    Format {
        path: PathBuf,
        source: entrepot_storage::OpenError,
    },
    #[error("{first} and {second} are of different stores: name the volumes of one")]
    DifferentStores { first: PathBuf, second: PathBuf },
    #[error("not a digest, and not PROJECT/REPOSITORY:TAG: {0}")]
    NotAName(String),
    #[error("no whole copy of {0} is in the store; `explain` says why")]
    NotShown(String),
    #[error("{0}: the bytes changed while they were read; what was written is not the body")]
    Changed(String),
    #[error("not a segment id: {0}")]
    NotAnId(String),
    #[error("segment {0:016x} is not there")]
    NoSegment(u64),
}

/// Adds the path to an I/O error.
pub fn at(path: &Path) -> impl FnOnce(io::Error) -> InspectError {
    let path = path.to_owned();
    move |source| InspectError::Io { path, source }
}

/// One path of the store.
pub struct Volume {
    pub path: PathBuf,
    /// What its superblock says, or what is wrong with it.
    pub superblock: Result<StoreFile, String>,
    /// What is on it counts; if not, a start from these volumes would empty it.
    pub belongs: bool,
    /// By id.
    pub segments: Vec<Segment>,
    /// Files that could not be opened, and why.
    pub unopened: Vec<(String, io::Error)>,
}

/// Whether sealed segments may be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    Sealed,
    Never,
}

pub struct Loaded {
    pub volumes: Vec<Volume>,
    /// Volumes of the store that were not given.
    pub missing: Vec<Uuid>,
}

/// A segment and the volume it is on.
#[derive(Clone, Copy)]
pub struct Place<'l> {
    pub volume: &'l Volume,
    pub segment: &'l Segment,
}

impl Place<'_> {
    pub fn path(&self) -> PathBuf {
        let name = file_name(self.segment.id, self.segment.class);
        self.volume.path.join(name)
    }
}

impl Loaded {
    pub fn load(paths: &[PathBuf], mapping: Mapping) -> Result<Loaded, InspectError> {
        let mut volumes: Vec<Volume> = Vec::new();
        for path in paths {
            let volume = Volume::load(path, mapping)?;
            let other = volumes.iter().find(
                |other| matches!((other.uuid(), volume.uuid()), (Some(a), Some(b)) if a != b),
            );
            if let Some(other) = other {
                return Err(InspectError::DifferentStores {
                    first: other.path.clone(),
                    second: path.clone(),
                });
            }
            volumes.push(volume);
        }
        let files: Vec<Option<&StoreFile>> = volumes
            .iter()
            .map(|volume| volume.superblock.as_ref().ok())
            .collect();
        let membership = membership(&files);
        for (volume, belongs) in volumes.iter_mut().zip(membership.belongs) {
            volume.belongs = belongs;
        }
        let missing = membership.missing;
        Ok(Loaded { volumes, missing })
    }

    /// What would surprise who does not know it, of the volumes as a whole.
    pub fn notes(&self) -> Vec<String> {
        let strays = self.volumes.iter().filter(|volume| !volume.belongs).map(|volume| {
            let path = volume.path.display();
            format!("{path}: it went its own way or lacks purges: a start from these volumes empties it")
        });
        let missing = self.missing.iter().map(|id| {
            let id = text::uuid(id);
            format!("volume {id} is not among these: what it supersedes and forgets is not known")
        });
        strays.chain(missing).collect()
    }

    /// The segments that a start would read.
    pub fn counting(&self) -> impl Iterator<Item = Place<'_>> {
        self.segments().filter(|place| {
            let read = matches!(place.segment.state, State::Sealed | State::Unsealed);
            read && place.volume.belongs
        })
    }

    pub fn segments(&self) -> impl Iterator<Item = Place<'_>> {
        self.volumes.iter().flat_map(|volume| {
            let place = move |segment| Place { volume, segment };
            volume.segments.iter().map(place)
        })
    }
}

impl Volume {
    fn load(path: &Path, mapping: Mapping) -> Result<Volume, InspectError> {
        let names = names(path).map_err(at(path))?;
        let superblock = superblock(path)?;
        if superblock.is_err() && names.is_empty() {
            return Err(InspectError::NotAStore {
                path: path.to_owned(),
            });
        }
        let mut volume = Volume {
            path: path.to_owned(),
            superblock,
            belongs: true,
            segments: Vec::new(),
            unopened: Vec::new(),
        };
        for (id, name) in names {
            let uuid = volume.uuid();
            match segment(path, id, &name, uuid, mapping) {
                Ok(segment) => volume.segments.push(segment),
                // A running server reclaimed it since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => volume.unopened.push((name, error)),
            }
        }
        Ok(volume)
    }

    /// Of the store. Without a superblock: as the first segment that says so has it.
    pub fn uuid(&self) -> Option<Uuid> {
        match &self.superblock {
            Ok(superblock) => Some(superblock.uuid),
            Err(_) => self.segments.iter().find_map(|segment| segment.uuid),
        }
    }
}

/// The ids and names of the segment files, by id.
fn names(path: &Path) -> io::Result<Vec<(u64, String)>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let Ok(name) = entry?.file_name().into_string() else {
            continue;
        };
        names.extend(parse_file_name(&name).map(|id| (id, name)));
    }
    names.sort();
    Ok(names)
}

/// `Ok(Err(…))`: it is missing or damaged, which the rest of the store may survive.
fn superblock(path: &Path) -> Result<Result<StoreFile, String>, InspectError> {
    let path = path.join(SUPERBLOCK_NAME);
    match fs::read(&path) {
        Ok(bytes) => match store_file(&bytes) {
            Err(source @ entrepot_storage::OpenError::NewerFormat { .. }) => {
                Err(InspectError::Format { path, source })
            }
            decoded => Ok(decoded.map_err(|error| error.to_string())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(Err("there is no superblock".to_owned()))
        }
        Err(error) => Err(at(&path)(error)),
    }
}

fn segment(
    path: &Path,
    id: u64,
    name: &str,
    uuid: Option<Uuid>,
    mapping: Mapping,
) -> io::Result<Segment> {
    let read = Read::open(&path.join(name))?;
    let small = is_small(name);
    if mapping == Mapping::Sealed && has_trailer(&read, id) {
        let mapped = Mapped::sealed(&read, id)?;
        return Ok(read_segment(&mapped, id, small, uuid, Depth::Records));
    }
    Ok(read_segment(&read, id, small, uuid, Depth::Records))
}
