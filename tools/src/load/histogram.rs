//! Raw histograms for other programs: the HdrHistogram log format, version 2.
//!
//! One line for each kind of request and for all together, tagged with its name, in nanoseconds.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use super::report::Report;

/// `started` is when the measured time began.
pub fn write(report: &Report, started: SystemTime, path: &Path) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    write_to(&mut out, report, started)?;
    out.flush()
}

fn write_to(out: &mut impl Write, report: &Report, started: SystemTime) -> io::Result<()> {
    let mut serializer = V2DeflateSerializer::new();
    let mut builder = IntervalLogWriterBuilder::new();
    builder
        .with_start_time(started)
        .with_base_time(started)
        // The column of maxima is in milliseconds.
        .with_max_value_divisor(1e6);
    let mut log = builder.begin_log_with(out, &mut serializer)?;
    let mut line = |name: &str, times: &Histogram<u64>| {
        let tag = Tag::new(name);
        let written = log.write_histogram(times, Duration::ZERO, report.took, tag);
        written.map_err(|error| io::Error::other(format!("{error:?}")))
    };
    line("all", &report.all.latency)?;
    line("first-byte", &report.all.first_byte)?;
    for (kind, times) in &report.counts.kinds {
        line(kind.name(), &times.latency)?;
    }
    Ok(())
}
