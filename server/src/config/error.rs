//! What can be wrong with a configuration, one variant per cause, each with its place.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::credentials::FileError;
use super::proxy::ProxyError;
use super::url::UrlError;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    File {
        path: Arc<str>,
        line: usize,
    },
    /// A flag without its value, which may be a password: `--set project.dh.access`.
    Flag(Arc<str>),
    /// The built-in projects and defaults.
    Builtin,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { path, line } => write!(f, "{path}:{line}"),
            Place::Flag(flag) => f.write_str(flag),
            Place::Builtin => f.write_str("built-in"),
        }
    }
}

#[derive(Debug)]
pub struct Problem {
    pub place: Place,
    pub cause: Cause,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            // No key to blame: the defaults together with this machine.
            Place::Builtin => write!(f, "{}", self.cause),
            _ => write!(f, "{}: {}", self.place, self.cause),
        }
    }
}

/// Everything that is wrong, in the order found; never empty when returned as an error.
#[derive(Debug, Default)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    pub fn one(place: Place, cause: Cause) -> Problems {
        Problems(vec![Problem { place, cause }])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[derive(Debug, thiserror::Error)]
pub enum Cause {
    #[error("cannot read the configuration: {0}")]
    Unreadable(io::Error),
    #[error("the configuration is longer than {0} bytes")]
    TooLong(u64),
    #[error("not TOML: {0}")]
    Syntax(String),
    #[error("unknown key \"{key}\" in {section}{} (known: {known})", hint(nearest))]
    UnknownKey {
        key: String,
        section: String,
        nearest: Option<String>,
        known: String,
    },
    #[error("a project name with a dot needs quotes: [project.\"{0}\"]")]
    UnquotedName(String),
    #[error("{key}: expected {expected}, found {found}")]
    WrongType {
        key: String,
        expected: &'static str,
        found: String,
    },
    #[error("{key}: {found:?} is not {expected}")]
    WrongValue {
        key: String,
        expected: String,
        found: String,
    },
    #[error("{key}: {found:?}: {error}")]
    Url {
        key: String,
        found: String,
        error: UrlError,
    },
    #[error("{key}: not a regular expression: {error}")]
    Regex { key: String, error: String },
    #[error("{key}: not a pattern of repositories, such as \"library/*\": {error}")]
    Pattern { key: String, error: String },
    #[error("{section} has no \"{key}\"")]
    Missing { key: &'static str, section: String },

    #[error("expected key=value, such as --set project.dh.access=anonymous")]
    SetSyntax,
    #[error("{key} is {found}: it has no key {part:?} inside")]
    SetInside {
        key: String,
        found: &'static str,
        part: String,
    },
    #[error("{key} has {len} entries: the index must be a number from 0 to {len}")]
    SetIndex { key: String, len: usize },

    #[error(
        "\"{0}\" cannot be a project name: expected the first part of a repository name \
             (lower-case letters and digits, inside them . _ __ or -), and not \"v2\""
    )]
    ProjectName(String),
    #[error("project {0} has no upstream: add [[project.{0}.upstream]] with a url")]
    NoUpstream(String),
    #[error("{host} is already served by project {project} ({at})")]
    ServedTwice {
        host: String,
        project: String,
        at: Place,
    },
    #[error("project {project} ({at}) is already the default: only one can be")]
    DefaultTwice { project: String, at: Place },
    #[error("a tier without \"tags\" matches every tag and must be the last")]
    CatchAllNotLast,
    #[error("store.paths: 1 to {max} directories are possible, found {found}")]
    StorePaths { found: usize, max: usize },
    #[error("store.paths: {} is listed twice", .0.display())]
    StorePathTwice(PathBuf),
    #[error(
        "control: {} has {found} bytes; the path of a Unix socket has at most {max}: \
             name a shorter one with control or --control", path.display()
    )]
    ControlTooLong {
        path: PathBuf,
        found: usize,
        max: usize,
    },
    #[error(
        "no store directory: set store.paths or --store (none of $STATE_DIRECTORY, \
             $XDG_CACHE_HOME, $HOME is set)"
    )]
    NoStorePath,
    #[error("{0} is listed twice")]
    ListenTwice(SocketAddr),
    #[error("admin {0} is also a listen address: metrics never share the data port")]
    AdminOnListen(SocketAddr),

    #[error("only one of password, password_file, password_env and password_credential can be set")]
    PasswordTwice,
    #[error("a password needs a username")]
    NoUsername,
    #[error("username without password, password_file, password_env or password_credential")]
    NoPassword,
    #[error("{key} {}: {error}", path.display())]
    PasswordFile {
        key: &'static str,
        path: PathBuf,
        error: FileError,
    },
    #[error(
        "password_credential: $CREDENTIALS_DIRECTORY is not set: it is there under systemd, with \
             LoadCredential={0}:... in the unit"
    )]
    NoCredentialsDirectory(String),
    #[error("password_env: ${0} is not set or empty")]
    PasswordEnv(String),
    #[error("ca_file {}: {reason}", path.display())]
    CaFile { path: PathBuf, reason: String },
    #[error("client_cert_file and client_key_file belong together")]
    HalfAnIdentity,
    #[error("a client certificate needs an https url")]
    IdentityWithoutTls,
    #[error("client_cert_file {}: {reason}", path.display())]
    Identity { path: PathBuf, reason: String },
    #[error("{key}: {error}")]
    Proxy { key: String, error: ProxyError },
    #[error(
        "project {project} has upstream credentials and {listen} is not a loopback address: \
             everybody who reaches it could pull what those credentials can. Listen on 127.0.0.1, \
             or write access = \"anonymous\" in [project.{project}] if that is meant"
    )]
    OpenToAll { project: String, listen: SocketAddr },

    // Warnings: the server starts.
    #[error("{} is readable by every user and holds a password: chmod o= it", .0.display())]
    WorldReadable(PathBuf),
    #[error("the credentials for {0} travel in clear text over http")]
    ClearText(String),
    #[error("the credentials for {0} go to whoever answers: tls_verify is off")]
    Unverified(String),
    #[error("${variable}: {part:?} is not {expected}: it is passed over")]
    NoProxy {
        variable: String,
        part: String,
        expected: &'static str,
    },
    #[error("\"***\" is what print-config writes in place of a password: it is taken literally")]
    MaskedPassword,
}

fn hint(nearest: &Option<String>) -> String {
    match nearest {
        Some(nearest) => format!("; did you mean \"{nearest}\"?"),
        None => String::new(),
    }
}
