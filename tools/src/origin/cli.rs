//! The command line of `entrepot-origin`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use serde_json::{Map, Value, json};

use super::auth::{Mode, Rules, User};
use super::content::Setup;
use super::control::ControlError;
use super::image::ImageSpec;
use super::tls::{Identity, Leaf, TlsError};
use super::{Options, Running};

/// A synthetic upstream registry with scripted faults.
#[derive(Debug, Parser)]
#[command(name = "entrepot-origin", version)]
pub struct Arguments {
    /// Address of the registry; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Address that blobs are redirected to.
    #[arg(long, default_value = "127.0.0.1:0")]
    cdn: SocketAddr,
    /// Address of the token service.
    #[arg(long, default_value = "127.0.0.1:0")]
    token: SocketAddr,
    /// Address of the control API alone, always plain HTTP.
    #[arg(long, default_value = "127.0.0.1:0")]
    control: SocketAddr,
    /// Serve HTTPS with a certificate of a CA made for this run.
    #[arg(long)]
    tls: bool,
    /// Write the CA's certificate (PEM) here.
    #[arg(long, value_name = "FILE", requires = "tls")]
    ca_out: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    tls_leaf: Leaf,
    /// Demand client certificates; write one that is good and a stranger's into this folder.
    #[arg(long, value_name = "FOLDER", requires = "tls")]
    clients: Option<PathBuf>,
    /// Further names or addresses of the certificate.
    #[arg(long, value_name = "NAME")]
    tls_name: Vec<String>,
    #[arg(long, value_enum, default_value_t)]
    auth: Mode,
    /// A login, and the private repositories it sees (default: all).
    #[arg(long, value_name = "NAME:PASSWORD[=REPO,...]", value_parser = parse_user)]
    user: Vec<User>,
    /// How long a token is accepted.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    token_ttl: u64,
    /// What token answers claim instead; `none` leaves it out.
    #[arg(long, value_name = "SECONDS|none", value_parser = parse_expires_in)]
    token_expires_in: Option<ExpiresIn>,
    /// A repository for logins only.
    #[arg(long, value_name = "REPO")]
    private: Vec<String>,
    /// What it answers to others: 401, 403 or 404.
    #[arg(long, value_name = "STATUS", default_value_t = 401,
          value_parser = clap::value_parser!(u16).range(401..=404))]
    private_status: u16,
    /// Decides all content.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// REPO:TAG[,key=value]...; keys layers size files seed format compression platforms index.
    #[arg(long, value_name = "SPEC", value_parser = parse_image)]
    image: Vec<ImageSpec>,
    /// JSON file with content and faults to start with.
    #[arg(long, value_name = "FILE")]
    setup: Option<PathBuf>,
    /// All answers together.
    #[arg(long, value_name = "BYTES_PER_SECOND")]
    rate: Option<u64>,
    /// Append each answer as a line of JSON.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// End when stdin does.
    #[arg(long)]
    until_stdin_closes: bool,
}

#[derive(Clone, Copy, Debug)]
struct ExpiresIn(Option<u64>);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}: {1}")]
    File(PathBuf, io::Error),
    #[error("{0}: {1}")]
    Setup(PathBuf, ControlError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot listen: {0}")]
    Listen(io::Error),
    #[error("stdout: {0}")]
    Stdout(io::Error),
    #[error("stdin: {0}")]
    Stdin(io::Error),
}

/// Serves until the process is told to end.
pub fn run(arguments: Arguments) -> Result<(), StartError> {
    let identity = identity(&arguments)?;
    let running = Running::start(Options {
        registry: arguments.listen,
        cdn: arguments.cdn,
        token: arguments.token,
        control: arguments.control,
        identity,
        rules: rules(&arguments),
        seed: arguments.seed,
        log: arguments.log.map(open_log).transpose()?,
        rate: arguments.rate,
    })
    .map_err(StartError::Listen)?;
    let origin = &running.origin;
    for repository in &arguments.private {
        origin.registry().set_private(repository, true);
    }
    for image in arguments.image {
        origin.defer_image(image);
    }
    if let Some(path) = arguments.setup {
        let file = |error| StartError::File(path.clone(), error);
        let text = std::fs::read(&path).map_err(file)?;
        let setup: Result<Setup, ControlError> =
            serde_json::from_slice(&text).map_err(ControlError::Body);
        let done = setup.and_then(|setup| origin.set_up(setup));
        done.map_err(|error| StartError::Setup(path.clone(), error))?;
    }
    announce(&running).map_err(StartError::Stdout)?;
    if arguments.until_stdin_closes {
        let ended = io::stdin().lock().read_to_end(&mut Vec::new());
        ended.map(drop).map_err(StartError::Stdin)
    } else {
        loop {
            std::thread::park();
        }
    }
}

fn identity(arguments: &Arguments) -> Result<Option<Identity>, StartError> {
    if !arguments.tls {
        return Ok(None);
    }
    let clients = arguments.clients.as_deref();
    let identity = Identity::new(arguments.tls_leaf, &arguments.tls_name, clients)?;
    if let Some(path) = &arguments.ca_out {
        std::fs::write(path, identity.ca_pem())
            .map_err(|error| StartError::File(path.clone(), error))?;
    }
    Ok(Some(identity))
}

fn rules(arguments: &Arguments) -> Rules {
    let expires_in = arguments.token_expires_in;
    Rules {
        mode: arguments.auth,
        users: arguments.user.clone(),
        token_ttl: Duration::from_secs(arguments.token_ttl),
        expires_in: expires_in.map_or(Some(arguments.token_ttl), |claimed| claimed.0),
        private_status: arguments.private_status,
    }
}

fn open_log(path: PathBuf) -> Result<File, StartError> {
    let opened = OpenOptions::new().create(true).append(true).open(&path);
    opened.map_err(|error| StartError::File(path, error))
}

fn announce(running: &Running) -> io::Result<()> {
    let urls = running.urls();
    let mut out = io::stdout().lock();
    writeln!(out, "listening {}", urls.registry)?;
    writeln!(out, "cdn {}", urls.cdn)?;
    writeln!(out, "token {}", urls.token)?;
    writeln!(out, "control {}", urls.control)?;
    writeln!(out, "ready")?;
    out.flush()
}

fn parse_user(text: &str) -> Result<User, String> {
    let (login, repositories) = match text.split_once('=') {
        Some((login, list)) => (login, Some(list.split(',').map(str::to_owned).collect())),
        None => (text, None),
    };
    let (name, password) = login.split_once(':').ok_or("expected NAME:PASSWORD")?;
    Ok(User {
        name: name.to_owned(),
        password: password.to_owned(),
        repositories,
    })
}

fn parse_expires_in(text: &str) -> Result<ExpiresIn, String> {
    match text {
        "none" => Ok(ExpiresIn(None)),
        _ => text
            .parse()
            .map(|s| ExpiresIn(Some(s)))
            .map_err(|_| "seconds or none".to_owned()),
    }
}

/// `REPO:TAG[,key=value]...` as the JSON that the control API takes.
fn parse_image(text: &str) -> Result<ImageSpec, String> {
    let mut parts = text.split(',');
    let name = parts.next().unwrap_or_default();
    let (repository, tag) = name.rsplit_once(':').ok_or("expected REPO:TAG")?;
    let mut spec = json!({"repository": repository, "tags": [tag]});
    let mut layer = Map::new();
    layer.insert("size".to_owned(), json!(64 * 1024));
    let mut layers = 2;
    for part in parts {
        let (key, value) = part
            .split_once('=')
            .ok_or(format!("expected key=value: {part}"))?;
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| format!("not a number: {part}"))
        };
        match key {
            "layers" => layers = number()?,
            "size" => drop(layer.insert(key.to_owned(), json!(parse_size(value)?))),
            "files" => drop(layer.insert(key.to_owned(), json!(number()?))),
            "compression" => drop(layer.insert(key.to_owned(), json!(value))),
            "seed" => spec[key] = json!(number()?),
            "format" => spec[key] = json!(value),
            "index" => spec[key] = json!(value == "true"),
            "platforms" => spec[key] = value.split('+').collect(),
            _ => return Err(format!("unknown key: {key}")),
        }
    }
    spec["layers"] = (0..layers).map(|_| Value::Object(layer.clone())).collect();
    serde_json::from_value(spec).map_err(|error| error.to_string())
}

/// Bytes, with K, M or G for powers of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| format!("not a size: {text}"))?;
    number
        .checked_mul(1 << shift)
        .ok_or(format!("too large: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images() {
        let spec =
            parse_image("a/b:1.0,layers=3,size=2M,platforms=linux/amd64+linux/arm64").unwrap();
        assert_eq!(
            (spec.repository.as_str(), spec.tags[0].as_str()),
            ("a/b", "1.0")
        );
        assert_eq!((spec.layers.len(), spec.layers[2].size), (3, 2 << 20));
        assert_eq!(spec.platforms.len(), 2);
        for bad in [
            "a",
            "a:b,size=x",
            "a:b,what=1",
            "a:b,format=tar",
            "a:b,compression=lz",
        ] {
            assert!(parse_image(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn users() {
        let user = parse_user("ci:pass=a/b,c").unwrap();
        assert_eq!((user.name.as_str(), user.password.as_str()), ("ci", "pass"));
        assert_eq!(user.repositories.unwrap(), ["a/b", "c"]);
        assert!(parse_user("ci:x").unwrap().repositories.is_none());
        assert!(parse_user("ci").is_err());
    }
}
