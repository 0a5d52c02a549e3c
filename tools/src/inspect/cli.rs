//! The command line of `entrepot-inspect`.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use entrepot_storage::Digest;

use super::explain::{Explain, Subject};
use super::list::{self, Filter};
use super::load::{InspectError, Loaded, Mapping, at};
use super::verify::{Asked, STDOUT, verify};
use super::{map, show, text};

/// What is in a store: its segments and records, whether they are whole, and why something is or
/// is not served.
///
/// Reads only, takes no lock, and may run beside the server: segments that it reclaims meanwhile
/// are left out. Files do not say what was evicted, so "live" is what a start would find. Exit
/// status: 0 all is well, 1 damage was found or the thing asked for is not served, 2 the question
/// was wrong or the store could not be read.
#[derive(Debug, Parser)]
#[command(name = "entrepot-inspect", version)]
pub struct Arguments {
    /// A path of the store; repeat it for each of its volumes.
    #[arg(long, global = true, value_name = "PATH")]
    store: Vec<PathBuf>,
    /// Read sealed segments instead of mapping them: slower, but a bad sector costs one segment
    /// of the listing and not the process. `verify`, `show` and `explain` always read.
    #[arg(long, global = true)]
    no_map: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the segments: class, state, length, records, live and dead bytes.
    Segments {
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// List records: bodies, tags, links, statistics, what was purged.
    Records(Records),
    /// Check every page and the CRCs of every body, reading past the page cache.
    Verify {
        /// Only this segment.
        #[arg(long, value_name = "ID")]
        segment: Option<String>,
        /// Hash every body too and compare with its digest: about a second for each GB.
        #[arg(long)]
        digests: bool,
    },
    /// Write a body to stdout, once a whole copy of it was found.
    Show {
        digest: Digest,
        /// A file instead of stdout.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Say why a digest or a tag is, or is not, served.
    Explain {
        /// sha256:… or PROJECT/REPOSITORY:TAG, as in dh/library/nginx:1.27.
        subject: String,
    },
}

#[derive(Debug, Args)]
struct Records {
    /// Of this segment.
    #[arg(long, value_name = "ID")]
    segment: Option<String>,
    #[arg(long, value_parser = text::KINDS)]
    kind: Option<String>,
    /// About this digest, or pointing to it.
    #[arg(long)]
    digest: Option<Digest>,
    /// Tags, links and statistics of this PROJECT/REPOSITORY.
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Of damage, and of what is not served.
const DAMAGED: u8 = 1;
/// Of everything that kept the question from being answered, as clap has it.
const FAILED: u8 = 2;

/// Runs the command and says on stderr what went wrong.
pub fn run(arguments: Arguments) -> ExitCode {
    match arguments.run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(DAMAGED),
        // `entrepot-inspect … | head`.
        Err(InspectError::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error @ (InspectError::NotShown(_) | InspectError::Changed(_))) => {
            eprintln!("entrepot-inspect: {error}");
            ExitCode::from(DAMAGED)
        }
        Err(error) => {
            eprintln!("entrepot-inspect: {error}");
            ExitCode::from(FAILED)
        }
    }
}

impl Arguments {
    /// Whether all is well.
    fn run(&self) -> Result<bool, InspectError> {
        if self.store.is_empty() {
            return Err(InspectError::NoStore);
        }
        let listing = matches!(self.command, Command::Segments { .. } | Command::Records(_));
        let mapping = match listing && !self.no_map {
            true => Mapping::Sealed,
            false => Mapping::Never,
        };
        map::say_what_failed();
        let loaded = Loaded::load(&self.store, mapping)?;
        let mut out = BufWriter::new(io::stdout().lock());
        let well = self.command.run(&loaded, &mut out)?;
        out.flush().map_err(at(Path::new(STDOUT)))?;
        Ok(well)
    }
}

impl Command {
    fn run(&self, loaded: &Loaded, out: &mut dyn Write) -> Result<bool, InspectError> {
        let stdout = || at(Path::new(STDOUT));
        match self {
            Command::Segments { json } => {
                list::segments(loaded, *json, out).map_err(stdout())?;
                Ok(true)
            }
            Command::Records(records) => {
                let filter = records.filter()?;
                list::records(loaded, &filter, records.json, out).map_err(stdout())?;
                Ok(true)
            }
            Command::Verify { segment, digests } => {
                let segment = segment.as_deref().map(segment_id).transpose()?;
                let digests = *digests;
                let checked = verify(loaded, &Asked { segment, digests }, out)?;
                Ok(checked.faults == 0)
            }
            Command::Show { digest, output } => {
                show::show(loaded, digest, output.as_deref(), out, &mut io::stderr())?;
                Ok(true)
            }
            Command::Explain { subject } => {
                let subject = Subject::parse(subject)?;
                Explain::new(loaded).run(&subject, out).map_err(stdout())
            }
        }
    }
}

impl Records {
    fn filter(&self) -> Result<Filter, InspectError> {
        Ok(Filter {
            segment: self.segment.as_deref().map(segment_id).transpose()?,
            kind: self.kind.clone(),
            digest: self.digest,
            repository: self.repository.clone(),
        })
    }
}

/// Hexadecimal, with or without the ending of the file.
fn segment_id(text: &str) -> Result<u64, InspectError> {
    let hex = text.split_once('.').map_or(text, |(hex, _)| hex);
    u64::from_str_radix(hex, 16).map_err(|_| InspectError::NotAnId(text.to_owned()))
}
