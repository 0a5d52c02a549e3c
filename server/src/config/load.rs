//! From sources to a checked [`Config`]: file, then built-in projects, then flags, then reading.
//!
//! Every problem is collected, so that one run shows all of them; the caller sees a config only
//! if there was none.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::error::{Cause, Place, Problem, Problems};
use super::section::{Section, Sink};
use super::tree::{self, Node, Value};
use super::{
    Capacity, Config, CongestionControl, DAY, GIB, KIB, Limits, Log, LogFormat, MIB, SecretSource,
    StoreConfig, TIB, project, proxy, units,
};
use crate::control;

/// A configuration of this size has thousands of projects: something else was named.
const FILE_LEN_MAX: u64 = MIB;
/// Linux' `TCP_CA_NAME_MAX` without the end.
const CONGESTION_LEN_MAX: usize = 15;
/// The store counts ages in seconds.
const TIME_MIN: Duration = Duration::from_secs(1);
/// What the store can number; more disks than this are several servers.
pub const STORE_PATHS_MAX: usize = 16;
/// The name of the control socket in the first store's directory.
const CONTROL: &str = "control.sock";
/// Virtual shards; a core without one would idle.
pub const SHARDS_MAX: usize = 256;

const LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 5000);
const ADMIN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 5001);
const ADDRESS_EXPECTED: &str = "an address and port, such as \"0.0.0.0:5000\" or \"[::1]:5000\"";

/// What the operator gave: later ones win.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub file: Option<PathBuf>,
    pub flags: Vec<Flag>,
}

#[derive(Clone, Debug)]
pub struct Flag {
    /// How messages call it: `--listen`, `--set log.level`.
    pub name: String,
    /// Dotted: `store.paths`.
    pub key: String,
    pub value: FlagValue,
}

#[derive(Clone, Debug)]
pub enum FlagValue {
    /// TOML if it parses as a value, else a string.
    Typed(String),
    Texts(Vec<String>),
}

#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    /// The server starts in spite of them.
    pub warnings: Vec<Problem>,
}

/// `env` looks up an environment variable.
pub fn load(sources: &Sources, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Problems> {
    load_again(sources, &[], env)
}

/// For a server that listens already, and goes on doing so whatever is written now: who reaches
/// it there gets what the new configuration gives.
pub fn load_again(
    sources: &Sources,
    listening: &[SocketAddr],
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Problems> {
    let mut root = match &sources.file {
        Some(path) => read_file(path)?,
        None => tree::parse("", &|_| Place::Builtin)?,
    };
    add_builtin_projects(&mut root)?;
    for flag in &sources.flags {
        tree::set(&mut root, &flag.key, flag_value(flag), &flag.name)?;
    }
    let errors = Sink::default();
    let warnings = Sink::default();
    let root = Section::root(&root, &errors);
    let config = read(root, listening, &warnings, env);
    let upstreams = config.projects.iter().flat_map(|it| &it.upstreams);
    proxy::warn_of_exceptions(upstreams.map(|it| &it.proxies), env, &warnings);
    if let Some(path) = &sources.file {
        warn_of_readable_passwords(&config, path, &warnings);
    }
    let errors = errors.0.into_inner();
    match errors.is_empty() {
        true => Ok(Loaded {
            config,
            warnings: warnings.0.into_inner(),
        }),
        false => Err(Problems(errors)),
    }
}

fn read_file(path: &Path) -> Result<Node, Problems> {
    tree::parse(&read_text(path)?, &places(path))
}

/// Turns the lines of a file into places.
pub(super) fn places(path: &Path) -> impl Fn(usize) -> Place + use<> {
    let path: Arc<str> = Arc::from(path.display().to_string());
    move |line| Place::File {
        path: path.clone(),
        line,
    }
}

pub(super) fn read_text(path: &Path) -> Result<String, Problems> {
    let wrong = |cause| Problems::one(places(path)(1), cause);
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_LEN_MAX + 1).read_to_string(&mut text))
        .map_err(|error| wrong(Cause::Unreadable(error)))?;
    if text.len() as u64 > FILE_LEN_MAX {
        return Err(wrong(Cause::TooLong(FILE_LEN_MAX)));
    }
    Ok(text)
}

fn add_builtin_projects(root: &mut Node) -> Result<(), Problems> {
    let Value::Table(entries) = &mut root.value else {
        unreachable!("a TOML document is a table");
    };
    if entries.iter().any(|entry| entry.key == "project") {
        return Ok(());
    }
    let builtin = tree::parse(include_str!("builtin.toml"), &|_| Place::Builtin)?;
    if let Value::Table(projects) = builtin.value {
        entries.extend(projects);
    }
    Ok(())
}

pub(super) fn flag_value(flag: &Flag) -> Value {
    match &flag.value {
        FlagValue::Typed(text) => tree::typed(text, &flag.name),
        FlagValue::Texts(texts) => {
            let place = Place::Flag(Arc::from(flag.name.as_str()));
            let element = |text: &String| Node {
                place: place.clone(),
                value: Value::String(text.clone()),
            };
            Value::Array(texts.iter().map(element).collect())
        }
    }
}

fn read(
    root: Section<'_>,
    listening: &[SocketAddr],
    warnings: &Sink,
    env: &dyn Fn(&str) -> Option<String>,
) -> Config {
    let listen = read_listen(&root);
    let reached = [&listen, listening].concat();
    let admin = read_admin(&root, &listen);
    let shards = root.number("shards", 1..=SHARDS_MAX as u64);
    let store = read_store(&root, env);
    let config = Config {
        projects: project::read_all(&root, &reached, warnings, env),
        listen,
        admin,
        control: read_control(&root, store.paths.first().map(PathBuf::as_path)),
        shards: shards.map(|shards| shards as usize),
        congestion_control: read_congestion_control(&root),
        log: read_log(root.table("log")),
        store,
        limits: read_limits(root.table("limits")),
    };
    root.finish();
    config
}

fn address(root: &Section<'_>, key: &str, text: &str, place: &Place) -> Option<SocketAddr> {
    let address = text.parse().ok();
    if address.is_none() {
        root.wrong_value(key, place, text, ADDRESS_EXPECTED);
    }
    address
}

fn read_listen(root: &Section<'_>) -> Vec<SocketAddr> {
    let Some(texts) = root.texts("listen") else {
        return vec![LISTEN];
    };
    let mut listen = Vec::new();
    for (text, place) in &texts {
        let Some(address) = address(root, "listen", text, place) else {
            continue;
        };
        // Port 0 is another port each time.
        if address.port() != 0 && listen.contains(&address) {
            root.wrong(place, Cause::ListenTwice(address));
        }
        listen.push(address);
    }
    if texts.is_empty() {
        let place = root.place_of("listen").unwrap_or(root.place());
        root.wrong_value("listen", place, "[]", ADDRESS_EXPECTED);
    }
    listen
}

fn read_admin(root: &Section<'_>, listen: &[SocketAddr]) -> SocketAddr {
    let Some((text, place)) = root.text("admin") else {
        return ADMIN;
    };
    let Some(admin) = address(root, "admin", text, place) else {
        return ADMIN;
    };
    let same = |other: &&SocketAddr| {
        let ip = other.ip() == admin.ip() || other.ip().is_unspecified();
        ip && other.port() == admin.port() && admin.port() != 0
    };
    if listen.iter().any(|other| same(&other)) {
        root.wrong(place, Cause::AdminOnListen(admin));
    }
    admin
}

/// In the first store's directory, which only its owner may enter, unless it is named.
pub(super) fn read_control(root: &Section<'_>, first_store: Option<&Path>) -> PathBuf {
    let (path, place) = match root.text("control") {
        Some((path, place)) => (absolute(path), place),
        // Without a store there is another problem already.
        None => (
            first_store.map(|dir| dir.join(CONTROL)).unwrap_or_default(),
            &Place::Builtin,
        ),
    };
    let found = path.as_os_str().len();
    if found > control::PATH_LEN_MAX {
        let max = control::PATH_LEN_MAX;
        root.wrong(
            place,
            Cause::ControlTooLong {
                path: path.clone(),
                found,
                max,
            },
        );
    }
    path
}

fn read_congestion_control(root: &Section<'_>) -> CongestionControl {
    let key = "congestion_control";
    match root.text(key) {
        None => CongestionControl::Preferred,
        Some(("system", _)) => CongestionControl::System,
        Some((name, place)) => {
            let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
            if !(1..=CONGESTION_LEN_MAX).contains(&name.len()) || !name.bytes().all(letters) {
                let expected = "\"system\" or a name of net.ipv4.tcp_allowed_congestion_control";
                root.wrong_value(key, place, name, expected);
            }
            CongestionControl::Named(name.to_owned())
        }
    }
}

fn read_log(section: Option<Section<'_>>) -> Log {
    let mut log = Log {
        format: LogFormat::Text,
        level: "info".to_owned(),
    };
    let Some(section) = section else {
        return log;
    };
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    if let Some(format) = section.word("format", &formats) {
        log.format = format;
    }
    if let Some((level, place)) = section.text("level") {
        match crate::logging::parse_filter(level) {
            Some(_) => log.level = level.to_owned(),
            None => section.wrong_value("level", place, level, crate::logging::LEVEL_EXPECTED),
        }
    }
    section.finish();
    log
}

fn read_store(root: &Section<'_>, env: &dyn Fn(&str) -> Option<String>) -> StoreConfig {
    let section = root.table("store");
    let mut store = StoreConfig {
        paths: Vec::new(),
        capacity: Capacity::Percent(90.0),
        segment: None,
        solo_min: None,
        small_max: 64 * KIB,
        small_budget: 32 * MIB,
        // A layer that is not pulled in a week was of a version that nobody runs any more.
        idle_after: DAY.saturating_mul(7),
        // Cheap to keep, and what a stale answer is made of.
        small_idle_after: DAY.saturating_mul(90),
        scrub_every: DAY.saturating_mul(30),
        // A tenth of an NVMe disk.
        background_rate: 256 * MIB,
        pin_max: Duration::from_secs(3600),
    };
    if let Some(section) = section {
        if let Some(paths) = section.texts("paths") {
            store.paths = read_paths(&section, &paths);
        }
        read_capacity(&section, &mut store.capacity);
        store.segment = section.size("segment", MIB..=16 * GIB);
        store.solo_min = section.size("solo_min", MIB..=TIB);
        let size = |key, range, value: &mut u64| {
            *value = section.size(key, range).unwrap_or(*value);
        };
        size("small_max", 0..=MIB, &mut store.small_max);
        size("small_budget", 0..=TIB, &mut store.small_budget);
        size("background_rate", MIB..=TIB, &mut store.background_rate);
        let time = |key, value: &mut Duration| {
            *value = section.duration(key, TIME_MIN).unwrap_or(*value);
        };
        time("idle_after", &mut store.idle_after);
        time("small_idle_after", &mut store.small_idle_after);
        time("scrub_every", &mut store.scrub_every);
        time("pin_max", &mut store.pin_max);
        section.finish();
    }
    if store.paths.is_empty() {
        match default_path(env) {
            Some(path) => store.paths.push(path),
            None => root.wrong(&Place::Builtin, Cause::NoStorePath),
        }
    }
    store
}

fn read_paths(section: &Section<'_>, texts: &[(&str, &Place)]) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for (text, place) in texts {
        let path = absolute(text);
        if text.is_empty() {
            section.wrong_value("paths", place, text, "a directory");
        } else if paths.contains(&path) {
            section.wrong(place, Cause::StorePathTwice(path.clone()));
        }
        paths.push(path);
    }
    if !(1..=STORE_PATHS_MAX).contains(&paths.len()) {
        let place = section.place_of("paths").unwrap_or(section.place());
        let (found, max) = (paths.len(), STORE_PATHS_MAX);
        section.wrong(place, Cause::StorePaths { found, max });
    }
    paths
}

/// So that a later message names the directory whatever the working directory was.
pub(super) fn absolute(path: &str) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| PathBuf::from(path))
}

/// systemd's StateDirectory=, else the user's cache directory (XDG base directories).
pub(super) fn default_path(env: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let dir = |name| env(name).filter(|value: &String| value.starts_with('/'));
    if let Some(state) = dir("STATE_DIRECTORY") {
        return state.split(':').next().map(PathBuf::from);
    }
    let cache = dir("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(dir("HOME")?).join(".cache")));
    Some(cache?.join("entrepot"))
}

fn read_capacity(section: &Section<'_>, capacity: &mut Capacity) {
    let Some((text, place)) = section.text("capacity") else {
        return;
    };
    let percent = units::parse_percent(text).map(Capacity::Percent);
    let size = || units::parse_size(text).filter(|size| *size >= MIB);
    match percent.or_else(|| size().map(Capacity::Bytes)) {
        Some(parsed) => *capacity = parsed,
        None => section.wrong_value("capacity", place, text, units::CAPACITY_EXPECTED),
    }
}

fn read_limits(section: Option<Section<'_>>) -> Limits {
    let mut limits = Limits::default();
    let Some(section) = section else {
        return limits;
    };
    let number = |key, range: RangeInclusive<usize>, value: &mut usize| {
        let range = *range.start() as u64..=*range.end() as u64;
        if let Some(number) = section.number(key, range) {
            *value = number as usize;
        }
    };
    let time = |key, value: &mut Duration| {
        let min = Duration::from_millis(1);
        *value = section.duration(key, min).unwrap_or(*value);
    };
    // Below 4 KiB the tokens of common registries do not fit; above 1 MiB it is no head.
    if let Some(len) = section.size("head_len_max", 4 * KIB..=MIB) {
        limits.head_len_max = len as usize;
    }
    number(
        "connections_max",
        1..=1_000_000,
        &mut limits.connections_max,
    );
    time("idle_timeout", &mut limits.idle_timeout);
    time("head_timeout", &mut limits.head_timeout);
    time("send_timeout", &mut limits.send_timeout);
    number("fills_max", 1..=65_536, &mut limits.fills_max);
    number("followers_max", 1..=1_000_000, &mut limits.followers_max);
    limits.body_max = section
        .size("body_max", MIB..=64 * TIB)
        .unwrap_or(limits.body_max);
    // Below 64 KiB the indexes of common images do not fit; longer ones no client takes.
    if let Some(len) = section.size("manifest_max", 64 * KIB..=64 * MIB) {
        limits.manifest_max = len as usize;
    }
    time("mismatch_holdoff", &mut limits.mismatch_holdoff);
    time("drain_timeout", &mut limits.drain_timeout);
    section.finish();
    limits
}

fn warn_of_readable_passwords(config: &Config, path: &Path, warnings: &Sink) {
    let inline = config
        .projects
        .iter()
        .flat_map(|project| &project.upstreams)
        .any(|upstream| {
            let password = upstream.password.as_ref();
            password.is_some_and(|it| *it.source() == SecretSource::Inline)
                || upstream.proxies.hold_a_password()
        });
    let readable = |metadata: std::fs::Metadata| metadata.permissions().mode() & 0o004 != 0;
    if inline && path.metadata().is_ok_and(readable) {
        warnings.push(&Place::Builtin, Cause::WorldReadable(path.to_owned()));
    }
}
