//! Opening a store: whose volumes these are, decided before anything is changed; then the new
//! generation on each of them; then recovery.
//!
//! A volume that cannot be read does not keep the others from serving. One volume at least must
//! have every small record, for the purges are among them.

use std::io;
use std::sync::Arc;

use crate::Seconds;
use crate::budget::Budget;
use crate::disk::{Disk, too_many_files};
use crate::geometry::Geometry;
use crate::member::{self, Membership, Standing, decide};
use crate::page::Uuid;
use crate::recover::{Gathered, Source, gather, merge};
use crate::segment::parse_file_name;
use crate::store::{GENERATION_SHIFT, OpenError, OpenFailure, Options, Recovered, Store};
use crate::superblock::{self, Member, Opening, Superblock, SuperblockFile};
use crate::volume::{Own, VOLUMES_MAX, Volume, VolumeSpec};

/// Opens in a row of which a drive may lose the superblocks. A segment whose name is of a later
/// one is somebody else's, and must not use up the generations there can be.
const LOST_OPENS_MAX: u64 = 64;

pub(crate) async fn open<D: Disk>(
    specs: &[VolumeSpec<D>],
    options: &Options,
    now: Seconds,
) -> Result<(Arc<Store<D>>, Recovered), OpenFailure> {
    let (count, max) = (specs.len(), VOLUMES_MAX);
    if count == 0 || count > max {
        return Err(OpenError::VolumeCount { count, max }.at(0));
    }
    let capacities: Vec<u64> = specs.iter().map(|spec| spec.capacity).collect();
    let geometry = Geometry::new(&capacities, options)?;
    let mut places = look_at(specs).await?;
    let membership = decide(&found(&places))?;
    if membership.newest.is_none() {
        all_are_there(&mut places)?;
    }
    let mut plan = Plan::new(&places, &membership, options, now);
    let mut recovered = Recovered {
        uuid: plan.uuid,
        generation: plan.opening.generation,
        ..Recovered::default()
    };
    let mut owned = Vec::new();
    for (number, place) in places.drain(..).enumerate() {
        let spec = &specs[number];
        let segment_len = geometry.segment_len;
        let entered = match place {
            Ok(place) => match plan.enter(number, spec, place, segment_len).await {
                Ok(entered) => Ok(entered),
                Err(error) => Err(away(error, number)?),
            },
            Err(error) => Err(error),
        };
        owned.push(entered);
    }
    one_at_least(&mut owned)?;
    let found = read_all(specs, &plan, &mut owned, &mut recovered).await?;
    let segment_len = geometry.segment_len;
    let volumes = owned
        .iter_mut()
        .zip(specs)
        .enumerate()
        .map(|(number, (entered, spec))| {
            let complete = plan.complete(number);
            let budget = Budget::new(spec.capacity, segment_len);
            match entered.as_mut() {
                Ok(entered) => Volume::new(budget, entered.own.take(), complete),
                Err(_) => Volume::new(budget, None, false),
            }
        });
    let volumes = volumes.collect();
    plan.missing.extend(plan.failed(&owned));
    let store = Store::new(&plan, geometry, options, now, volumes);
    let store = Arc::new(store);
    for (volume, segment, name) in merge(&store, found, &mut recovered) {
        recovered.unlinked += 1;
        // A name that stays is found again next time.
        if specs[usize::from(volume)].disk.unlink(&name).await.is_ok() {
            store.volume(volume).left(segment);
        }
    }
    serve(&store, specs, &owned, &plan).await?;
    recovered.away = (0..count).filter(|n| owned[*n].is_err()).collect();
    recovered.emptied = plan.standing(Standing::Diverged);
    Ok((store, recovered))
}

/// A place of a volume as it was found; nothing in it was changed but its lock taken.
pub(crate) struct Place<D: Disk> {
    pub(crate) lock: D::File,
    pub(crate) names: Vec<String>,
    pub(crate) superblock: Option<(Superblock, SuperblockFile<D>)>,
}

/// Of each volume, or why it is away. What more than one disk can't mend is an error.
async fn look_at<D: Disk>(
    specs: &[VolumeSpec<D>],
) -> Result<Vec<Result<Place<D>, OpenError>>, OpenFailure> {
    let mut places = Vec::new();
    for (number, spec) in specs.iter().enumerate() {
        match look(&spec.disk).await {
            Ok(place) => places.push(Ok(place)),
            Err(error) => places.push(Err(away(error, number)?)),
        }
    }
    one_at_least(&mut places)?;
    Ok(places)
}

/// Only what is the disk's own fault makes a volume one that is away.
fn away(error: OpenError, number: usize) -> Result<OpenError, OpenFailure> {
    match error {
        OpenError::Disk { source, .. } if too_many_files(&source) => {
            Err(OpenError::TooManyFiles(source).at(number))
        }
        OpenError::Disk { .. } => Ok(error),
        _ => Err(error.at(number)),
    }
}

/// If all are away, why the first is.
fn one_at_least<T>(volumes: &mut Vec<Result<T, OpenError>>) -> Result<(), OpenFailure> {
    if volumes.iter().any(Result::is_ok) {
        return Ok(());
    }
    match volumes.swap_remove(0) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.at(0)),
    }
}

/// A new store is made of all its volumes: two that were made while each time another one was
/// away would never be one store again.
fn all_are_there<D: Disk>(
    places: &mut Vec<Result<Place<D>, OpenError>>,
) -> Result<(), OpenFailure> {
    let Some(number) = places.iter().position(Result::is_err) else {
        return Ok(());
    };
    match places.swap_remove(number) {
        Ok(_) => Ok(()),
        Err(error) => Err(OpenError::AwayFromNew(Box::new(error)).at(number)),
    }
}

pub(crate) async fn look<D: Disk>(disk: &D) -> Result<Place<D>, OpenError> {
    let lock = disk.lock().await.map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked,
        _ => failed("taking the lock", source),
    })?;
    let listed = disk.list().await;
    let names = listed.map_err(|source| failed("listing the store", source))?;
    let superblock = if names.iter().any(|name| name == superblock::NAME) {
        Some(SuperblockFile::read(disk).await?)
    } else if names.iter().any(|name| parse_file_name(name).is_some()) {
        return Err(OpenError::SuperblockMissing);
    } else {
        None
    };
    Ok(Place {
        lock,
        names,
        superblock,
    })
}

fn found<D: Disk>(places: &[Result<Place<D>, OpenError>]) -> Vec<member::Found<'_>> {
    let mut found = Vec::new();
    for place in places {
        found.push(match place {
            Err(_) => member::Found::Away,
            Ok(place) => match &place.superblock {
                None => member::Found::Empty,
                Some((superblock, _)) => member::Found::Superblock(superblock),
            },
        });
    }
    found
}

/// The last generation that wrote anything: a drive that lied about a sync may have lost the
/// superblock of it, and no id may be used twice.
fn last_generation<D: Disk>(known: u64, places: &[Result<Place<D>, OpenError>]) -> u64 {
    let names = places.iter().flatten().flat_map(|place| &place.names);
    let generations = names.filter_map(|name| Some(parse_file_name(name)? >> GENERATION_SHIFT));
    let believed = generations.filter(|generation| *generation <= known + LOST_OPENS_MAX);
    believed.max().map_or(known, |highest| highest.max(known))
}

/// What every superblock will say.
pub(crate) struct Plan {
    pub(crate) uuid: Uuid,
    pub(crate) opening: Opening,
    /// Members that may be at a place that can't be read.
    pub(crate) missing: Vec<Member>,
    created: Seconds,
    /// The last opens, this one at the end, and how many of them have not served before it.
    opens: Vec<Opening>,
    unserved: usize,
    /// By number; of one that is away nothing is known.
    members: Vec<Option<Member>>,
    standings: Vec<Standing>,
}

impl Plan {
    fn new<D: Disk>(
        places: &[Result<Place<D>, OpenError>],
        membership: &Membership,
        options: &Options,
        now: Seconds,
    ) -> Plan {
        let superblock = |number: usize| {
            let place = places[number].as_ref().ok()?;
            place.superblock.as_ref().map(|(superblock, _)| superblock)
        };
        let newest = membership.newest.and_then(superblock);
        let generations = (0..places.len()).filter_map(|n| Some(superblock(n)?.generation));
        let known = generations.max().unwrap_or(0);
        let generation = last_generation(known, places) + 1;
        let opening = Opening {
            generation,
            stamp: member::stamp(&options.uuid, generation),
        };
        // Where nothing counts there is nothing that an empty volume could lack.
        let nothing_counts = !membership.standings.contains(&Standing::Belongs);
        let member = |(number, standing): (usize, &Standing)| match standing {
            Standing::Away => None,
            Standing::Belongs => {
                let id = superblock(number)?.volume;
                let known = newest?.members.iter().find(|member| member.id == id);
                known.copied()
            }
            Standing::New | Standing::Diverged => Some(Member {
                id: member::new_id(&options.uuid, generation, number),
                complete: nothing_counts,
            }),
        };
        let standings = membership.standings.iter().enumerate();
        // Of a new store nothing was before that a start which is cut off could part.
        let (opens, unserved) = newest.map_or((vec![opening], 0), |newest| {
            let mut noted = newest.clone();
            noted.note(opening);
            (noted.opens, noted.unserved)
        });
        Plan {
            uuid: newest.map_or(options.uuid, |newest| newest.uuid),
            opening,
            missing: membership.missing.clone(),
            created: newest.map_or(now, |newest| newest.created),
            opens,
            unserved,
            members: standings.map(member).collect(),
            standings: membership.standings.clone(),
        }
    }

    fn complete(&self, number: usize) -> bool {
        self.members[number].is_some_and(|member| member.complete)
    }

    /// Members whose disk failed when they were looked at: they stay members.
    fn failed<D: Disk>(&self, owned: &[Result<Entered<D>, OpenError>]) -> Vec<Member> {
        let members = self.members.iter().zip(&self.standings).zip(owned);
        let failed = members.filter_map(|((member, standing), entered)| {
            let belongs = *standing == Standing::Belongs && entered.is_err();
            member.filter(|_| belongs)
        });
        failed.map(Member::without_all).collect()
    }

    fn standing(&self, standing: Standing) -> Vec<usize> {
        let numbers = 0..self.standings.len();
        numbers
            .filter(|number| self.standings[*number] == standing)
            .collect()
    }

    /// Makes the new generation durable on one volume, and the names that the last process made
    /// or removed. A volume that went its own way is emptied before.
    async fn enter<D: Disk>(
        &self,
        number: usize,
        spec: &VolumeSpec<D>,
        mut place: Place<D>,
        segment_len: u64,
    ) -> Result<Entered<D>, OpenError> {
        let disk = &spec.disk;
        let Some(member) = self.members[number] else {
            unreachable!("a volume that was found has an id");
        };
        if self.standings[number] == Standing::Diverged {
            let emptied = empty(disk, &place.names).await;
            emptied.map_err(|source| failed("emptying a volume that went its own way", source))?;
            place.names.clear();
            place.superblock = None;
        }
        let (superblock, file) = match place.superblock {
            // Else it says what it said, so that a start that is cut off has changed nothing.
            Some((mut superblock, mut file)) => {
                superblock.note(self.opening);
                superblock.capacity = spec.capacity;
                superblock.segment_len = segment_len;
                let written = file.write(disk, &superblock).await;
                written.map_err(|source| failed("writing the superblock", source))?;
                (superblock, file)
            }
            None => {
                let superblock = self.first_superblock(member, spec.capacity, segment_len);
                let made = SuperblockFile::create(disk, &superblock).await;
                let file = made.map_err(|source| failed("creating the superblock", source))?;
                (superblock, file)
            }
        };
        let settled = superblock.settled;
        let synced = disk.sync_dir().await;
        synced.map_err(|source| failed("syncing the directory", source))?;
        let own = Own {
            _lock: place.lock,
            superblock,
            file,
        };
        Ok(Entered {
            own: Some(own),
            names: place.names,
            settled,
            whole: true,
        })
    }

    /// Of a volume that is new.
    fn first_superblock(&self, member: Member, capacity: u64, segment_len: u64) -> Superblock {
        let members = self.members.iter().flatten().chain(&self.missing);
        Superblock {
            uuid: self.uuid,
            generation: self.opening.generation,
            settled: 0,
            created: self.created,
            capacity,
            segment_len,
            change: 0,
            volume: member.id,
            members: members.copied().collect(),
            opens: self.opens.clone(),
            unserved: self.unserved,
        }
    }
}

/// A volume that has the new generation.
struct Entered<D: Disk> {
    own: Option<Own<D>>,
    names: Vec<String>,
    settled: u64,
    /// All its segments could be read.
    whole: bool,
}

/// Segments first: while there is one, its superblock says whose it is.
pub(crate) async fn empty<D: Disk>(disk: &D, names: &[String]) -> io::Result<()> {
    for name in names {
        if parse_file_name(name).is_some() {
            disk.unlink(name).await?;
        }
    }
    disk.sync_dir().await
}

/// The segments of all volumes. One whose small records can't all be read is away, if another
/// has them all.
async fn read_all<D: Disk>(
    specs: &[VolumeSpec<D>],
    plan: &Plan,
    owned: &mut [Result<Entered<D>, OpenError>],
    recovered: &mut Recovered,
) -> Result<Vec<crate::recover::Found<D>>, OpenFailure> {
    let mut sources = Vec::new();
    for (number, entered) in owned.iter_mut().enumerate() {
        if let Ok(entered) = entered {
            sources.push(Source {
                disk: specs[number].disk.clone(),
                volume: number as u8,
                names: std::mem::take(&mut entered.names),
                settled: entered.settled,
            });
        }
    }
    let mut gathered = gather(&specs[0].disk, plan.uuid, sources).await;
    for gathered in &mut gathered {
        if let Some(source) = gathered.too_many_files.take() {
            return Err(OpenError::TooManyFiles(source).at(usize::from(gathered.volume)));
        }
    }
    let whole = |gathered: &Gathered<D>| {
        let complete = plan.complete(usize::from(gathered.volume));
        complete && gathered.small_unreadable.is_none()
    };
    let purges_known = gathered.iter().any(whole);
    let mut found = Vec::new();
    for gathered in gathered {
        let number = usize::from(gathered.volume);
        let unreadable = recovered.unreadable.len();
        match gathered.small_unreadable {
            Some((name, source)) => {
                let error = OpenError::SmallRecordsUnreadable { name, source };
                if !purges_known {
                    return Err(error.at(number));
                }
                owned[number] = Err(error);
            }
            None => found.extend(gathered.report(recovered)),
        }
        if let Ok(entered) = &mut owned[number] {
            entered.whole = recovered.unreadable.len() == unreadable;
        }
    }
    Ok(found)
}

/// Makes durable that this open serves and, of a volume that was read in full, that everything
/// that was found is.
async fn serve<D: Disk>(
    store: &Store<D>,
    specs: &[VolumeSpec<D>],
    owned: &[Result<Entered<D>, OpenError>],
    plan: &Plan,
) -> Result<(), OpenFailure> {
    for (number, entered) in owned.iter().enumerate() {
        let volume = &store.volumes[number];
        let whole = matches!(entered, Ok(Entered { whole: true, .. }));
        if !whole {
            volume.has_unread();
        }
        volume.serves(&plan.opens, whole);
        let (disk, members) = (&specs[number].disk, store.members());
        let change = store.attest.next();
        let written = volume.write_superblock(disk, &members, change).await;
        if let Err(source) = written {
            store.take_offline(number as u8);
            if volume.online() {
                return Err(failed("writing the superblock", source).at(number));
            }
        }
    }
    Ok(())
}

fn failed(doing: &'static str, source: io::Error) -> OpenError {
    OpenError::Disk { doing, source }
}
