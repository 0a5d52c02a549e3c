//! The log: one line per event on stderr, as text or as a JSON object.
//!
//! Shards hand finished lines to a thread of their own through a bounded queue; when stderr stands
//! still, further lines are dropped and counted, and no shard waits (R3, R4). Names, paths, fields
//! and reasons in the log come from strangers: whatever is not printable ASCII is escaped in both
//! formats, and long values are cut, so that no value can forge a line or drive a terminal.

use std::fmt::{self, Write};
use std::io::{self, BufWriter};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Registry, reload};

use crate::config::{Log, LogFormat};

/// Lines waiting for stderr: some seconds of a busy server, at 300 bytes about 2 MiB.
const LINES_MAX: usize = 8_192;
/// Characters of one value; a repository name has at most 255, a digest 135.
const VALUE_LEN_MAX: usize = 1_024;

pub const LEVEL_EXPECTED: &str =
    "a level (error, warn, info, debug, trace), or a filter such as \"info,entrepot=debug\"";

/// Keeps the writing thread. Drop it before the process exits: it writes out what waits.
pub struct Guard {
    _worker: WorkerGuard,
    dropped: DroppedLines,
    filter: Filter,
}

impl Guard {
    pub fn filter(&self) -> Filter {
        self.filter.clone()
    }

    pub fn dropped_lines(&self) -> DroppedLines {
        self.dropped.clone()
    }
}

/// Which lines are written; a reload may change it.
#[derive(Clone)]
pub struct Filter(reload::Handle<EnvFilter, Registry>);

impl Filter {
    /// Takes what `parse_filter` accepts.
    pub fn set(&self, level: &str) {
        // Fails only without a subscriber, which is there until the process ends.
        let _ = self.0.reload(filter(level));
    }
}

/// How many lines the log lost because nobody read it.
#[derive(Clone)]
pub struct DroppedLines(ErrorCounter);

impl DroppedLines {
    pub fn get(&self) -> usize {
        self.0.dropped_lines()
    }
}

/// Called once, by `main`, before the first shard starts.
pub fn start(log: &Log) -> Guard {
    let (writer, worker) = NonBlockingBuilder::default()
        .buffered_lines_limit(LINES_MAX)
        .lossy(true)
        .thread_name("log")
        .finish(BufWriter::new(io::stderr()));
    let dropped = DroppedLines(writer.error_counter());
    // Fails only if there is a subscriber already, as when several tests share a process.
    let (subscriber, filter) = subscriber(log, writer);
    let _ = tracing::subscriber::set_global_default(subscriber);
    Guard {
        _worker: worker,
        dropped,
        filter,
    }
}

/// Stricter than the crate, which takes a mistyped level for the name of a module.
pub fn parse_filter(level: &str) -> Option<EnvFilter> {
    let is_level = |piece: &str| {
        let level = piece.rsplit_once('=').map_or(piece, |(_, level)| level);
        // The crate reads no level at all as `error`.
        !level.is_empty() && level.parse::<LevelFilter>().is_ok()
    };
    match level.split(',').all(is_level) {
        true => EnvFilter::builder().parse(level).ok(),
        false => None,
    }
}

fn filter(level: &str) -> EnvFilter {
    parse_filter(level).unwrap_or_else(|| EnvFilter::new("info"))
}

fn subscriber<W>(log: &Log, writer: W) -> (impl Subscriber + Send + Sync + use<W>, Filter)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, switch) = reload::Layer::new(filter(&log.level));
    let lines = tracing_subscriber::fmt::layer()
        .event_format(Line { format: log.format })
        .with_writer(writer);
    let subscriber = tracing_subscriber::registry().with(filter).with(lines);
    (subscriber, Filter(switch))
}

struct Line {
    format: LogFormat,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let mut fields = Fields::new(self.format);
        event.record(&mut fields);
        if *metadata.level() > Level::INFO {
            fields.text("target", metadata.target());
        }
        match self.format {
            LogFormat::Text => {
                SystemTime.format_time(&mut out)?;
                write!(out, " {:>5} {}", metadata.level(), fields.message)?;
                writeln!(out, "{}", fields.rest)
            }
            LogFormat::Json => {
                out.write_str("{\"timestamp\":\"")?;
                SystemTime.format_time(&mut out)?;
                write!(out, "\",\"level\":\"{}\"", metadata.level())?;
                write!(out, ",\"message\":\"{}\"", fields.message)?;
                writeln!(out, "{}}}", fields.rest)
            }
        }
    }
}

/// The escaped fields of one event, written as they come; the message apart, to stand first.
struct Fields {
    format: LogFormat,
    message: String,
    rest: String,
}

impl Fields {
    fn new(format: LogFormat) -> Fields {
        Fields {
            format,
            message: String::new(),
            rest: String::new(),
        }
    }

    fn name(&mut self, name: &str) {
        // `r#for` is how a field called `for` is written in Rust.
        let name = name.trim_start_matches("r#");
        // Writing to a String cannot fail.
        let _ = match self.format {
            LogFormat::Text => write!(self.rest, " {name}="),
            LogFormat::Json => write!(self.rest, ",\"{name}\":"),
        };
    }

    fn text(&mut self, name: &str, value: &str) {
        if name == "message" {
            escape(&mut self.message, value, self.format);
            return;
        }
        self.name(name);
        if self.format == LogFormat::Text && is_bare(value) {
            self.rest.push_str(value);
            return;
        }
        self.rest.push('"');
        escape(&mut self.rest, value, self.format);
        self.rest.push('"');
    }

    fn bare(&mut self, name: &str, value: impl fmt::Display) {
        self.name(name);
        let _ = write!(self.rest, "{value}");
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field.name(), &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        match value.is_finite() {
            true => self.bare(field.name(), value),
            // JSON has no word for it.
            false => self.text(field.name(), &value.to_string()),
        }
    }
}

/// Values that need no quotes in a text line.
fn is_bare(value: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'=');
    !value.is_empty() && value.len() <= VALUE_LEN_MAX && value.bytes().all(plain)
}

fn escape(out: &mut String, value: &str, format: LogFormat) {
    let mut units = [0; 2];
    for (n, character) in value.chars().enumerate() {
        if n == VALUE_LEN_MAX {
            out.push_str("...");
            return;
        }
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(character),
            _ if format == LogFormat::Json => {
                // RFC 8259 §7: UTF-16 units.
                for unit in character.encode_utf16(&mut units) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            _ => {
                let _ = write!(out, "\\u{{{:x}}}", character as u32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::{Log, LogFormat, VALUE_LEN_MAX, parse_filter, subscriber};

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("lock").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn capture(format: LogFormat, level: &str, events: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let level = level.to_owned();
        let log = Log { format, level };
        tracing::subscriber::with_default(subscriber(&log, move || writer.clone()).0, events);
        let bytes = captured.0.lock().expect("lock").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    /// Without the timestamp.
    fn after_time(line: &str) -> &str {
        line.split_once("Z ").expect("a timestamp").1
    }

    #[test]
    fn a_text_line_reads_like_one() {
        let text = capture(LogFormat::Text, "info", || {
            tracing::info!(result = "miss", bytes = 4096_u64, upstream = %"https://a.b:1", "pull");
            tracing::warn!(reason = "two words", empty = "", "careful");
        });
        let lines: Vec<_> = text.lines().map(after_time).collect();
        assert_eq!(
            lines,
            [
                " INFO pull result=miss bytes=4096 upstream=https://a.b:1",
                " WARN careful reason=\"two words\" empty=\"\"",
            ]
        );
    }

    #[test]
    fn a_json_line_is_one_flat_object() {
        let text = capture(LogFormat::Json, "info", || {
            tracing::info!(addr = %"127.0.0.1:5000", n = 3, ok = true, ms = 1.5, r#for = "x", "up");
        });
        let line: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["message"], "up");
        assert_eq!(line["addr"], "127.0.0.1:5000");
        assert_eq!(line["n"], 3);
        assert_eq!(line["ok"], true);
        assert_eq!(line["ms"], 1.5);
        assert_eq!(line["for"], "x");
        assert!(
            line["timestamp"]
                .as_str()
                .is_some_and(|time| time.ends_with('Z'))
        );
    }

    /// A new line, a terminal command, its 8-bit form, a line separator, a right-to-left override.
    const HOSTILE: &str =
        "a\r\n2026 INFO forged\u{1b}[2J\u{9b}2J\u{2028}\u{202e}\u{7f}\0\"\\ \u{1f600}";

    #[test]
    fn hostile_text_stays_one_line_of_printable_ascii() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = capture(format, "info", || {
                tracing::info!(path = HOSTILE, shown = %HOSTILE, debug = ?HOSTILE, "{HOSTILE}");
            });
            let (line, rest) = text.split_once('\n').expect("a line");
            assert_eq!(rest, "");
            assert!(
                line.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
                "{line}"
            );
            assert!(!line.contains("\u{1b}"));
            if format == LogFormat::Json {
                let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
                assert_eq!(line["path"], HOSTILE, "nothing is lost");
                assert_eq!(line["shown"], HOSTILE);
                assert_eq!(line["message"], HOSTILE);
            } else {
                assert!(
                    line.contains("path=\"a\\r\\n2026 INFO forged\\u{1b}[2J"),
                    "{line}"
                );
            }
        }
    }

    #[test]
    fn long_values_are_cut() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let long = "x".repeat(100_000);
            let text = capture(format, "info", || tracing::info!(path = long, "pull"));
            assert!(text.len() < VALUE_LEN_MAX + 200);
            assert!(text.contains("xxx...\""));
        }
    }

    #[test]
    fn the_filter_decides_and_debug_names_its_module() {
        let events = || {
            tracing::debug!("detail");
            tracing::error!("failure");
        };
        assert_eq!(capture(LogFormat::Text, "warn", events).lines().count(), 1);
        let filter = concat!("warn,", env!("CARGO_CRATE_NAME"), "=debug");
        let text = capture(LogFormat::Text, filter, events);
        assert!(text.contains("detail target="), "{text}");
    }

    #[test]
    fn a_mistyped_level_is_no_filter() {
        for (level, valid) in [
            ("info", true),
            ("WARN", true),
            ("off", true),
            ("info,entrepot::upstream=debug", true),
            ("infos", false),
            ("", false),
            ("info,", false),
            ("entrepot=loud", false),
        ] {
            assert_eq!(parse_filter(level).is_some(), valid, "{level}");
        }
    }
}
