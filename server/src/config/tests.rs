//! Black-box tests of [`load`](super::load) and [`print`](super::print): text in, values or
//! messages out. What a message must contain is quoted; its other words may change.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{
    Access, Capacity, Config, Flag, FlagValue, Limits, Loaded, LogFormat, Problems, Sources, Stale,
    load, load_again, print,
};

/// A directory of one test, removed with it.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let path =
            std::env::temp_dir().join(format!("entrepot-config-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("temporary directory");
        Dir(path)
    }

    fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn set(assignment: &str) -> Flag {
    let (key, value) = assignment.split_once('=').expect("key=value");
    Flag {
        name: format!("--set {key}"),
        key: key.to_owned(),
        value: FlagValue::Typed(value.to_owned()),
    }
}

fn environment(name: &str) -> Option<String> {
    let known = HashMap::from([("HOME", "/home/op"), ("TOKEN", "from-env"), ("EMPTY", "")]);
    known.get(name).map(|value| value.to_string())
}

fn load_file(path: &Path, sets: &[&str]) -> Result<Loaded, Problems> {
    let sources = Sources {
        file: Some(path.to_owned()),
        flags: sets.iter().map(|assignment| set(assignment)).collect(),
    };
    load(&sources, &environment)
}

fn load_text(test: &str, text: &str) -> Result<Loaded, Problems> {
    let dir = Dir::new(test);
    load_file(&dir.file("c.toml", text, 0o600), &[])
}

fn load_sets(sets: &[&str]) -> Result<Loaded, Problems> {
    let flags = sets.iter().map(|assignment| set(assignment)).collect();
    load(&Sources { file: None, flags }, &environment)
}

fn config(loaded: Result<Loaded, Problems>) -> Config {
    loaded
        .unwrap_or_else(|problems| panic!("{problems}"))
        .config
}

/// Each text is refused with messages that contain all of the quoted parts.
fn refused(test: &str, cases: &[(&str, &[&str])]) {
    let dir = Dir::new(test);
    for (text, parts) in cases {
        let path = dir.file("c.toml", text, 0o600);
        let Err(problems) = load_file(&path, &[]) else {
            panic!("accepted: {text}");
        };
        let message = problems.to_string();
        for part in *parts {
            assert!(
                message.contains(part),
                "{part:?} is not in {message:?} for {text:?}"
            );
        }
        let place = format!("{}:", path.display());
        assert!(message.starts_with(&place), "{message}");
    }
}

#[test]
fn nothing_at_all_is_a_configuration() {
    let config = config(load(&Sources::default(), &environment));
    assert_eq!(config.listen, ["0.0.0.0:5000".parse().expect("address")]);
    assert_eq!(config.admin.to_string(), "127.0.0.1:5001");
    assert_eq!(config.shards, None);
    assert_eq!(
        config.congestion_control,
        super::CongestionControl::Preferred
    );
    assert_eq!(config.log.format, LogFormat::Text);
    assert_eq!(config.log.level, "info");
    assert_eq!(config.store.paths, [Path::new("/home/op/.cache/entrepot")]);
    assert_eq!(config.store.capacity, Capacity::Percent(90.0));
    assert_eq!(config.store.idle_after, Duration::from_secs(7 * 86_400));
    assert_eq!(
        config.control,
        Path::new("/home/op/.cache/entrepot/control.sock")
    );
    assert_eq!(config.limits, Limits::default());
    let projects: Vec<_> = config
        .projects
        .iter()
        .map(|project| (project.name.as_str(), project.upstreams[0].url.to_string()))
        .collect();
    let expected = [
        ("dh", "https://registry-1.docker.io"),
        ("dhi", "https://dhi.io"),
        ("ghcr", "https://ghcr.io"),
        ("gcr", "https://gcr.io"),
        ("quay.io", "https://quay.io"),
        ("lscr", "https://lscr.io"),
    ];
    assert_eq!(projects, expected.map(|(name, url)| (name, url.to_owned())));
    let hub = &config.projects[0];
    assert_eq!(
        hub.serves,
        ["docker.io", "registry-1.docker.io", "index.docker.io"]
    );
    assert!(hub.default && config.projects[1..].iter().all(|project| !project.default));
    for project in &config.projects {
        assert_eq!(project.fresh_for("latest"), Duration::ZERO);
        assert_eq!(project.stale, Stale::default());
        assert_eq!(project.access, None);
    }
}

#[test]
fn an_empty_file_is_the_same_as_none() {
    let printed = |loaded| print(&config(loaded));
    let none = printed(load(&Sources::default(), &environment));
    assert_eq!(printed(load_text("empty", "")), none);
    assert_eq!(printed(load_text("comment", "# later\n")), none);
}

const FULL: &str = r#"
listen = ["127.0.0.1:5000", "[::1]:5000"]
admin  = "127.0.0.1:5001"
shards = 3
congestion_control = "reno"

[log]
format = "json"
level = "warn,entrepot::upstream=debug"

[store]
paths    = ["/var/lib/entrepot"]
capacity = "2TiB"
segment  = "256MiB"

[limits]
head_len_max = "32KiB"
drain_timeout = "5s"

[project.dh]
serves    = ["docker.io"]
default   = true
freshness = [ { tags = "^(stable|nightly|production|test)$", for = "10m" },
              { tags = '\d+\.\d+\.\d+',                    for = "60d" },
              { for = "1m" } ]
stale     = { unreachable = "30d", server_error = "1d", denied = "1h" }

[[project.dh.upstream]]
url             = "https://registry-1.docker.io"
username        = "ci"
password_env    = "TOKEN"
connect_timeout = "250ms"
tls_verify      = true
active          = true

[[project.dh.upstream]]
url             = "http://127.0.0.1:5100"
active          = false

[project."quay.io"]
[[project."quay.io".upstream]]
url = "https://quay.io"
"#;

#[test]
fn every_key_has_its_meaning() {
    let config = config(load_text("full", FULL));
    assert_eq!(config.listen.len(), 2);
    assert_eq!(config.shards, Some(3));
    let reno = super::CongestionControl::Named("reno".to_owned());
    assert_eq!(config.congestion_control, reno);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.store.capacity, Capacity::Bytes(2 << 40));
    assert_eq!(config.store.segment, Some(256 << 20));
    assert_eq!(config.limits.head_len_max, 32 << 10);
    assert_eq!(config.limits.drain_timeout, Duration::from_secs(5));
    let names: Vec<_> = config
        .projects
        .iter()
        .map(|project| project.name.as_str())
        .collect();
    assert_eq!(
        names,
        ["dh", "quay.io"],
        "the built-in projects are replaced, the order is kept"
    );
    let hub = &config.projects[0];
    assert_eq!(hub.fresh_for("nightly"), Duration::from_secs(600));
    assert_eq!(
        hub.fresh_for("1.27.3-alpine"),
        Duration::from_secs(60 * 24 * 3600)
    );
    assert_eq!(hub.fresh_for("latest"), Duration::from_secs(60));
    assert_eq!(hub.stale.server_error, Duration::from_secs(24 * 3600));
    assert_eq!(hub.stale.rate_limited, Stale::default().rate_limited);
    assert_eq!(hub.stale.denied, Duration::from_secs(3600));
    let [first, second] = &hub.upstreams[..] else {
        panic!("two upstreams");
    };
    assert_eq!(first.username.as_deref(), Some("ci"));
    assert_eq!(
        first.password.as_ref().map(|password| password.expose()),
        Some("from-env")
    );
    assert_eq!(first.connect_timeout, Duration::from_millis(250));
    assert!(first.active && !second.active && second.password.is_none());
}

#[test]
fn what_is_printed_loads_to_the_same() {
    let none = load(&Sources::default(), &environment);
    for (n, loaded) in [none, load_text("print-full", FULL)]
        .into_iter()
        .enumerate()
    {
        let printed = print(&config(loaded));
        let again = print(&config(load_text(&format!("print-{n}"), &printed)));
        assert_eq!(again, printed);
    }
}

#[test]
fn no_message_and_no_print_shows_a_password() {
    let text = r#"
        listen = "127.0.0.1:5000"
        [project.dh]
        [[project.dh.upstream]]
        url = "https://registry-1.docker.io"
        username = "ci"
        password = "hunter2"
    "#;
    let dir = Dir::new("secret");
    let path = dir.file("c.toml", text, 0o644);
    let loaded = load_file(&path, &[]).expect("valid");
    assert!(
        loaded
            .warnings
            .iter()
            .any(|warning| warning.to_string().contains("chmod"))
    );
    assert_eq!(
        config(load_file(&path, &[])).projects[0].upstreams[0]
            .password
            .as_ref()
            .map(|password| password.expose()),
        Some("hunter2")
    );
    let shown = format!("{loaded:?} {:?} {}", loaded.warnings, print(&loaded.config));
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(shown.contains("password = \"***\""));
    let again = load_text("secret-again", &print(&loaded.config)).expect("valid");
    assert!(again.warnings[0].to_string().contains("taken literally"));
    for wrong in [
        "project.dh.upstream.0.password_file=hunter2\nproject.dh.upstream.0.password=hunter2",
        "project.dh.upstream.0.password.x=hunter2",
        "project.dh.upstream.0.url=https://ci:hunter2@ghcr.io",
        "project.dh.upstream.0.url=https://ci:hunter2@ghcr.io/v2/",
        "project.dh.upstream.0.url=ftp://ci:hunter2@ghcr.io",
        "project.dh.upstream.0.url=ci:hunter2@ghcr.io",
        "project.dh.upstream.0.realms=ci:hunter2@ghcr.io",
        "project.dh.upstream.0.realms=https://ci:hunter2@ghcr.io/token",
        "project.dh.upstream.0.username=ci:hunter2",
        "project.dh.upstream.0.proxy=https://ci:hunter2@proxy",
        "project.dh.upstream.0.no_proxy=ci:hunter2@proxy",
        "project.dh.serves=ci:hunter2@ghcr.io",
        "listen=ci:hunter2@ghcr.io",
        "project.dh.upstream.7.password=hunter2",
        "project.dh.upstream.0.pasword=hunter2",
        "project.dh.upstream.0.password=[\"hunter2\"]",
    ] {
        let problems = load_file(&path, &[wrong]).map(drop).expect_err(wrong);
        let shown = format!("{problems} {problems:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    refused(
        "unknown",
        &[
            (
                "lissten = 1",
                &[
                    ":1: unknown key \"lissten\" in the top level",
                    "did you mean \"listen\"?",
                ],
            ),
            (
                "\n[store]\npath = '/x'",
                &[":3: unknown key \"path\" in [store]", "mean \"paths\"?"],
            ),
            ("[stor]", &[":1: unknown key \"stor\"", "mean \"store\"?"]),
            (
                "[project.dh]\nserves = []\nfresness = []\n[[project.dh.upstream]]\nurl = 'https://a'",
                &[
                    ":3: unknown key \"fresness\" in [project.dh]",
                    "mean \"freshness\"?",
                ],
            ),
            (
                "[[project.dh.upstream]]\nurl = 'https://a'\ntimeout = '5s'",
                &[
                    ":3: unknown key \"timeout\" in [[project.dh.upstream]]",
                    "connect_timeout",
                ],
            ),
            (
                "[project.dh]\nstale = { offline = '1d' }\n[[project.dh.upstream]]\nurl = 'https://a'",
                &[
                    ":2: unknown key \"offline\" in [project.dh.stale]",
                    "(known: unreachable",
                ],
            ),
            (
                "[project.dh]\nfreshness = [{ tag = 'x', for = '1d' }]\n\
                 [[project.dh.upstream]]\nurl = 'https://a'",
                &[
                    ":2: unknown key \"tag\" in [[project.dh.freshness]]",
                    "mean \"tags\"?",
                ],
            ),
            (
                "[project.quay.io]\nserves = []",
                &[":1: ", "[project.\"quay.io\"]"],
            ),
            ("idle_after = '7d'", &["(known: listen"]),
        ],
    );
}

#[test]
fn wrong_types_and_values_say_what_is_expected() {
    refused(
        "values",
        &[
            (
                "listen = 5000",
                &[":1: listen: expected an array of strings, found an integer"],
            ),
            (
                "listen = [':5000']",
                &["listen: \":5000\" is not an address and port"],
            ),
            ("listen = []", &["listen"]),
            (
                "listen = ['0.0.0.0:1', '0.0.0.0:1']",
                &["0.0.0.0:1 is listed twice"],
            ),
            ("admin = '0.0.0.0:5000'", &["never share the data port"]),
            (
                "shards = 0",
                &["shards: \"0\" is not a number from 1 to 256"],
            ),
            ("shards = 99999999999999999999999", &["shards"]),
            ("shards = '2'", &["expected a whole number, found a string"]),
            (
                "congestion_control = 'no such name'",
                &["congestion_control: \"no such name\" is not \"system\" or a name of"],
            ),
            ("shards = 1.5", &["expected a whole number, found a float"]),
            (
                "[log]\nformat = 'xml'",
                &[":2: log.format: \"xml\" is not \"text\" or \"json\""],
            ),
            (
                "[log]\nlevel = 'loud'",
                &["log.level: \"loud\" is not a level (error, warn"],
            ),
            ("log = 'json'", &["log: expected a table, found a string"]),
            (
                "[store]\ncapacity = '0%'",
                &["store.capacity: \"0%\" is not a size such as"],
            ),
            ("[store]\ncapacity = '12'", &["store.capacity"]),
            (
                "[store]\npaths = ['/a', '/b', '/a']",
                &[":2: store.paths: /a is listed twice"],
            ),
            (
                "[store]\npaths = []",
                &["1 to 16 directories are possible, found 0"],
            ),
            (
                "[store]\npaths = ['/a', '']",
                &["store.paths: \"\" is not a directory"],
            ),
            ("control = 5", &["control: expected a string"]),
            (
                "[store]\nidle_after = '7'",
                &["store.idle_after: \"7\" is not a whole number and a unit"],
            ),
            (
                "[store]\nscrub_every = '10ms'",
                &["store.scrub_every: \"10ms\" is not at least 1s"],
            ),
            (
                "[store]\nbackground_rate = 'fast'",
                &["store.background_rate: \"fast\" is not a"],
            ),
            (
                "[store]\nsegment = '1KiB'",
                &["store.segment: \"1KiB\" is not a size from 1MiB"],
            ),
            (
                "[limits]\nidle_timeout = 75",
                &["limits.idle_timeout: expected a whole number and a unit"],
            ),
            (
                "[limits]\nidle_timeout = '0s'",
                &["limits.idle_timeout: \"0s\" is not at least 1ms"],
            ),
            (
                "[limits]\nhead_timeout = 'soon'",
                &["limits.head_timeout: \"soon\" is not a whole number and"],
            ),
            ("listen = [", &[":1: not TOML: "]),
            ("\nshards = 1\nshards = 2", &[":3: not TOML: duplicate key"]),
        ],
    );
}

fn project(lines: &str) -> String {
    format!("{lines}\n[[project.p.upstream]]\nurl = 'https://a.example'")
}

#[test]
fn projects_are_checked_as_a_whole() {
    let cases: Vec<(String, &[&str])> = vec![
        (
            "[project.dh]".to_owned(),
            &[":1: project dh has no upstream", "[[project.dh.upstream]]"],
        ),
        (
            "[[project.p.upstream]]".to_owned(),
            &[":1: [[project.p.upstream]] has no \"url\""],
        ),
        (
            "[project]\np = 1".to_owned(),
            &[":2: project.p: expected a table, found an integer"],
        ),
        (
            project("[project.p]\ndefault = 1"),
            &["expected true or false"],
        ),
        (
            project("[project.p]\naccess = 'all'"),
            &[":2: project.p.access: \"all\" is not \"anonymous\""],
        ),
        (
            project("[project.p]\nserves = ['https://docker.io']"),
            &["is not a registry host"],
        ),
        (
            project("[project.p]\nserves = ['a', 'b', 'A']"),
            &["a is already served by project p"],
        ),
        (
            project("[project.p]\nfreshness = [{ tags = '(' , for = '1d' }]"),
            &["not a regular expression"],
        ),
        (
            project("[project.p]\nfreshness = [{ for = '1d' }, { tags = 'x', for = '1d' }]"),
            &["must be the last"],
        ),
        (
            project("[project.p]\nfreshness = [{ tags = 'x' }]"),
            &["has no \"for\""],
        ),
        (
            project("[project.p]\nfreshness = '10m'"),
            &["expected an array of tables"],
        ),
        (
            project(
                "[project.o]\ndefault = true\n[[project.o.upstream]]\nurl = 'https://o.example'\n\
                 [project.p]\ndefault = true",
            ),
            &[":6: project o (", "c.toml:2) is already the default"],
        ),
        (
            project(
                "[project.o]\nserves = ['docker.io']\n[[project.o.upstream]]\nurl = 'https://o.example'\n\
                 [project.p]\nserves = ['docker.io']",
            ),
            &[
                ":6: docker.io is already served by project o (",
                "c.toml:2)",
            ],
        ),
    ];
    let borrowed: Vec<_> = cases
        .iter()
        .map(|(text, parts)| (text.as_str(), *parts))
        .collect();
    refused("projects", &borrowed);
}

#[test]
fn a_project_is_named_like_the_first_part_of_a_repository() {
    for (name, valid) in [
        ("dh", true),
        ("quay.io", true),
        ("a__b", true),
        ("a---b", true),
        ("0", true),
        ("v2", false),
        ("DH", false),
        ("a/b", false),
        ("a..b", false),
        ("a___b", false),
        ("a._b", false),
        (".a", false),
        ("a-", false),
        ("", false),
        ("é", false),
    ] {
        let text = format!("[[project.\"{name}\".upstream]]\nurl = 'https://a.example'");
        let loaded = load_text(&format!("name-{}", name.len()), &text);
        match loaded {
            Ok(_) => assert!(valid, "{name} accepted"),
            Err(problems) => {
                assert!(!valid, "{name}: {problems}");
                assert!(
                    problems.to_string().contains("cannot be a project name"),
                    "{problems}"
                );
            }
        }
    }
}

fn upstream(lines: &str) -> String {
    format!("listen = '127.0.0.1:5000'\n[[project.p.upstream]]\nurl = 'https://a.example'\n{lines}")
}

#[test]
fn credentials_come_from_one_readable_place() {
    let dir = Dir::new("credentials");
    let empty = dir.file("empty", "\n", 0o600);
    let cases = [
        (upstream("username = 'u'"), ":4: username without password"),
        (
            upstream("password = 'x'"),
            ":4: a password needs a username",
        ),
        (
            upstream("username = 'a:b'\npassword = 'x'"),
            "upstream.username: \"(not shown)\" is not a name without a colon",
        ),
        (
            upstream("username = 'u'\npassword = 'x'\npassword_file = '/y'"),
            "only one of password, password_file, password_env and password_credential",
        ),
        (
            upstream("username = 'u'\npassword_file = '/nowhere/password'"),
            ":5: password_file /nowhere/password: No such file",
        ),
        (
            upstream(&format!(
                "username = 'u'\npassword_file = '{}'",
                empty.display()
            )),
            "is empty",
        ),
        (
            upstream("username = 'u'\npassword_env = 'UNSET'"),
            "$UNSET is not set",
        ),
        (
            upstream("username = 'u'\npassword_env = 'EMPTY'"),
            "$EMPTY is not set or empty",
        ),
        (
            upstream("username = 'u'\npassword_credential = 'hub'"),
            "$CREDENTIALS_DIRECTORY is not set",
        ),
        (
            upstream("username = 'u'\npassword_credential = '../hub'"),
            "\"../hub\" is not a name below $CREDENTIALS_DIRECTORY",
        ),
        (
            upstream("client_cert_file = '/nowhere/cert.pem'"),
            "client_cert_file and client_key_file belong together",
        ),
        (
            upstream("client_cert_file = '/nowhere/cert'\nclient_key_file = '/nowhere/key'"),
            "client_cert_file /nowhere/cert: /nowhere/cert: No such file",
        ),
        (
            upstream("proxy = 'socks5://p'"),
            "a proxy is reached by http://",
        ),
        (
            upstream("no_proxy = ['a b']"),
            "no_proxy: \"a b\" is not a host, a domain",
        ),
        (
            upstream("realms = ['auth.example']"),
            "expected http:// or https://",
        ),
        (upstream("total_timeout = '0s'"), "at least 1ms"),
        (upstream("url2 = 'x'"), "unknown key \"url2\""),
        (
            upstream("ca_file = '/nowhere/ca.pem'"),
            ":4: ca_file /nowhere/ca.pem: No such file",
        ),
        (
            upstream(&format!("ca_file = '{}'", empty.display())),
            "holds no PEM certificate",
        ),
    ];
    let cases: Vec<_> = cases
        .iter()
        .map(|(text, part)| (text.as_str(), [*part]))
        .collect();
    let cases: Vec<(&str, &[&str])> = cases
        .iter()
        .map(|(text, parts)| (*text, &parts[..]))
        .collect();
    refused("credentials-refused", &cases);
}

#[test]
fn a_password_file_is_read_without_its_last_newline() {
    let dir = Dir::new("password-file");
    for (mode, warnings) in [(0o600, 0), (0o644, 1)] {
        let password = dir.file("password", "s3cret \n", mode);
        let text = upstream(&format!(
            "username = 'u'\npassword_file = '{}'",
            password.display()
        ));
        let loaded = load_text("password-file-config", &text).expect("valid");
        let secret = loaded.config.projects[0].upstreams[0]
            .password
            .clone()
            .expect("password");
        assert_eq!(secret.expose(), "s3cret ");
        assert_eq!(loaded.warnings.len(), warnings);
        assert!(print(&loaded.config).contains("password_file"));
    }
}

#[test]
fn credentials_without_protection_are_warned_of() {
    for (lines, part) in [
        ("url = 'http://a.example'", "clear text"),
        (
            "url = 'https://a.example'\ntls_verify = false",
            "tls_verify is off",
        ),
        ("url = 'http://127.0.0.1:1'\ntls_verify = false", ""),
    ] {
        let text = format!(
            "listen = '127.0.0.1:5000'\n[[project.p.upstream]]\nusername = 'u'\npassword = 'x'\n{lines}"
        );
        let loaded = load_text("exposure", &text).expect("valid");
        let warnings: Vec<_> = loaded
            .warnings
            .iter()
            .map(|warning| warning.to_string())
            .collect();
        match part {
            "" => assert!(warnings.is_empty(), "{warnings:?}"),
            part => assert!(warnings[0].contains(part), "{warnings:?}"),
        }
    }
}

#[test]
fn private_upstreams_are_not_open_to_all_by_accident() {
    let text = |listen: &str, access: &str| {
        format!(
            "listen = {listen}\n[project.p]\n{access}\n[[project.p.upstream]]\n\
             url = 'https://a.example'\nusername = 'u'\npassword = 'x'"
        )
    };
    refused(
        "open",
        &[
            (
                &text("'0.0.0.0:5000'", ""),
                &[
                    ":2: project p has upstream credentials",
                    "access = \"anonymous\"",
                ],
            ),
            (
                "[[project.p.upstream]]\nurl = 'https://a.example'\n\
                 client_cert_file = '/no/cert.pem'\nclient_key_file = '/no/key.pem'",
                &["project p has upstream credentials"],
            ),
            (
                &text("['127.0.0.1:5000', '[::]:5000']", ""),
                &["[::]:5000 is not a loopback address"],
            ),
        ],
    );
    let anonymous = config(load_text(
        "open-said",
        &text("'0.0.0.0:5000'", "access = 'anonymous'"),
    ));
    assert_eq!(anonymous.projects[0].access, Some(Access::Anonymous));
    let loopback = text("['127.0.0.1:5000', '[::1]:5000']", "");
    config(load_text("open-loopback", &loopback));
    // A reload closes no listener, so what is written of them now helps nobody.
    let dir = Dir::new("open-reload");
    let sources = Sources {
        file: Some(dir.file("c.toml", &loopback, 0o600)),
        ..Sources::default()
    };
    let again = |listening: &str| {
        let listening = [listening.parse().expect("an address")];
        load_again(&sources, &listening, &environment)
    };
    config(again("127.0.0.1:0"));
    let refused = again("0.0.0.0:5000").map(drop).expect_err("open to all");
    let refused = refused.to_string();
    assert!(refused.contains("c.toml:2: project p has"), "{refused}");
    assert!(refused.contains("0.0.0.0:5000 is not"), "{refused}");
}

#[test]
fn flags_win_over_the_file_and_are_named_when_wrong() {
    let dir = Dir::new("flags");
    let path = dir.file("c.toml", FULL, 0o600);
    let config = config(load_file(
        &path,
        &[
            "shards=2",
            "log.format=text",
            "store.capacity=90%",
            "listen=[\"127.0.0.1:0\", \"127.0.0.1:0\"]",
            "project.dh.upstream.0.url=http://127.0.0.1:5100",
            "project.dh.upstream.0.username=12345",
            "project.dh.upstream.2.url=http://127.0.0.1:5200",
            "project.quay.io.access=anonymous",
            "project.\"quay.io\".serves=quay.io",
            "project.new.upstream=[{ url = \"https://new.example\" }]",
            "project.dh.stale.denied=1d",
        ],
    ));
    assert_eq!(config.shards, Some(2));
    assert_eq!(config.log.format, LogFormat::Text);
    assert_eq!(config.store.capacity, Capacity::Percent(90.0));
    assert_eq!(config.listen.len(), 2);
    let hub = &config.projects[0];
    assert_eq!(hub.upstreams[0].url.to_string(), "http://127.0.0.1:5100");
    assert_eq!(hub.upstreams[0].username.as_deref(), Some("12345"));
    assert_eq!(hub.upstreams[2].url.to_string(), "http://127.0.0.1:5200");
    assert_eq!(hub.stale.denied, Duration::from_secs(24 * 3600));
    assert_eq!(config.projects[1].access, Some(Access::Anonymous));
    assert_eq!(config.projects[1].serves, ["quay.io"]);
    assert_eq!(config.projects[2].name, "new");

    for (assignment, parts) in [
        (
            "shard=2",
            ["--set shard: unknown key \"shard\"", "mean \"shards\"?"],
        ),
        (
            "shards=many",
            [
                "--set shards: shards: expected a whole number",
                "found a string",
            ],
        ),
        (
            "shards.x=1",
            ["--set shards.x: shards is an integer", "\"x\""],
        ),
        (
            "project.dh.upstream.9.url=http://a",
            ["--set project.dh.upstream.9.url: ", "from 0 to 2"],
        ),
        (
            "project.dh.upstream.0.url=http://a/b",
            ["--set project.dh.upstream.0.url: ", "path"],
        ),
        (
            "project.dh..url=x",
            ["--set project.dh..url: expected key=value", ""],
        ),
    ] {
        let problems = load_file(&path, &[assignment])
            .map(drop)
            .expect_err(assignment);
        let message = problems.to_string();
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }
}

#[test]
fn flags_alone_change_the_built_in_projects() {
    let config = config(load_sets(&[
        "project.dh.upstream.0.url=http://127.0.0.1:5100",
        "project.quay.io.upstream.0.active=false",
    ]));
    assert_eq!(config.projects.len(), 6);
    assert_eq!(
        config.projects[0].upstreams[0].url.to_string(),
        "http://127.0.0.1:5100"
    );
    assert!(!config.projects[4].upstreams[0].active);
}

#[test]
fn the_store_goes_where_systemd_or_the_user_keeps_data() {
    let path = |pairs: &[(&str, &str)]| {
        let pairs: HashMap<String, String> = pairs
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        load(&Sources::default(), &|name| pairs.get(name).cloned())
            .map(|loaded| loaded.config.store.paths[0].display().to_string())
            .map_err(|problems| problems.to_string())
    };
    assert_eq!(
        path(&[("STATE_DIRECTORY", "/var/lib/a:/var/lib/b"), ("HOME", "/h")]),
        Ok("/var/lib/a".to_owned())
    );
    assert_eq!(
        path(&[("XDG_CACHE_HOME", "/c"), ("HOME", "/h")]),
        Ok("/c/entrepot".to_owned())
    );
    assert_eq!(
        path(&[("XDG_CACHE_HOME", "relative"), ("HOME", "/h")]),
        Ok("/h/.cache/entrepot".to_owned())
    );
    let message = path(&[]).expect_err("nowhere to go");
    assert!(message.starts_with("no store directory"), "{message}");
    let relative = config(load_sets(&["store.paths=data"]));
    assert!(relative.store.paths[0].is_absolute());
}

#[test]
fn several_problems_are_shown_at_once() {
    let problems = load_text("several", "lissten = 1\nshards = 0\n[log]\nformat = 1").map(drop);
    let message = problems.expect_err("three problems").to_string();
    assert_eq!(message.lines().count(), 3, "{message}");
}

#[test]
fn a_missing_or_foreign_file_is_named() {
    let dir = Dir::new("missing");
    let message = load_file(&dir.0.join("none.toml"), &[])
        .map(drop)
        .expect_err("missing")
        .to_string();
    assert!(
        message.contains("none.toml") && message.contains("No such file"),
        "{message}"
    );
    let long = dir.file("long.toml", &"# x\n".repeat(300_000), 0o600);
    let message = load_file(&long, &[])
        .map(drop)
        .expect_err("long")
        .to_string();
    assert!(message.contains("longer than 1048576 bytes"), "{message}");
}

/// The reference in the README of the repository names every key.
#[test]
fn the_readme_names_every_key() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = fs::read_to_string(path).expect("README.md");
    let printed = print(&config(load_text("readme", FULL)));
    for line in printed.lines().filter(|line| !line.starts_with('#')) {
        let Some((key, _)) = line.split_once(" = ") else {
            continue;
        };
        let named = readme.contains(&format!(".{key}`")) || readme.contains(&format!("`{key}`"));
        assert!(named, "{key} is not in README.md");
    }
}

#[test]
fn the_classic_tiers_mean_what_they_did() {
    // Verbatim, and as they match there: behind `/manifests/`, from the start of the tag, as an nginx-based proxy has had them for years.
    let text = r"
[project.dh]
freshness = [
  { tags = '(stable|nightly|production|test)', for = '10m' },
  { tags = '(.*)(\d|\.)+(.*)(\d|\.)+(.*)(\d|\.)+', for = '60d' },
  { for = '1h' } ]
[[project.dh.upstream]]
url = 'https://registry-1.docker.io'
";
    let config = config(load_text("tiers", text));
    for (tag, minutes) in [
        ("stable", 10),
        ("test-2", 10),
        ("my-test-2", 60),
        ("1.27", 60 * 24 * 60),
        ("1.27.3", 60 * 24 * 60),
        ("v1.2.3-alpine", 60 * 24 * 60),
        ("latest", 60),
        ("v1", 60),
        ("22", 60),
    ] {
        let time = config.projects[0].fresh_for(tag);
        assert_eq!(time, Duration::from_secs(minutes * 60), "{tag}");
    }
}

#[test]
fn lists_match_whole_names_and_deny_wins() {
    let text = r#"
[project.dh]
allow = ["library/*", "team/**"]
foreign_layers = ["mcr.microsoft.com", "Mirror.example:8443"]
deny  = "*/secret"
[[project.dh.upstream]]
url = "https://registry-1.docker.io"
"#;
    let config = config(load_text("lists", text));
    for (name, permitted) in [
        ("library/nginx", true),
        ("library/a/b", false),
        ("team/a/b", true),
        ("my/library/nginx", false),
        ("library/secret", false),
        ("library/secrets", true),
        ("nginx", false),
    ] {
        assert_eq!(config.projects[0].permits(name), permitted, "{name}");
    }
    refused(
        "lists-wrong",
        &[(
            "[project.dh]\nallow = [\"a[\"]\n[[project.dh.upstream]]\nurl = \"https://x.y\"",
            &["project.dh.allow", "pattern"],
        )],
    );
}
