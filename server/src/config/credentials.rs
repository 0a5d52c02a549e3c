//! Passwords, keys and certificates that a configuration refers to, read and checked at start.
//!
//! A password comes from one of four places; its value appears in no message (R11). Those from
//! files are read again while the server runs: see `upstream::refresh`. Everything here blocks.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::error::{Cause, Place};
use super::section::{NOT_SHOWN, Section, Sink};
use super::{IdentityFiles, KIB, MASK, MIB, Scheme, Secret, SecretSource, Upstream, Url};

/// Robot tokens of cloud registries reach 12 KiB.
const PASSWORD_LEN_MAX: u64 = 64 * KIB;
/// A bundle of all public authorities is 250 KiB.
const CA_LEN_MAX: u64 = 4 * MIB;

/// Both or neither, also when something was wrong with one of them.
pub fn read(
    section: &Section<'_>,
    warnings: &Sink,
    env: &dyn Fn(&str) -> Option<String>,
) -> (Option<String>, Option<Secret>) {
    let username = section.text("username");
    let given = [
        section.text("password"),
        section.text("password_file"),
        section.text("password_env"),
        section.text("password_credential"),
    ];
    let Some((_, place)) = given.iter().flatten().next() else {
        if let Some((_, place)) = username {
            section.wrong(place, Cause::NoPassword);
        }
        return (None, None);
    };
    if given.iter().flatten().count() > 1 {
        section.wrong(place, Cause::PasswordTwice);
    }
    let Some((name, name_place)) = username else {
        if section.place_of("username").is_none() {
            section.wrong(place, Cause::NoUsername);
        }
        return (None, None);
    };
    // RFC 7617 §2: the first colon ends the user-id. What follows it may be the password.
    if name.is_empty() || name.contains(':') {
        let found = if name.is_empty() { "" } else { NOT_SHOWN };
        section.wrong_value("username", name_place, found, "a name without a colon");
    }
    let secret = match given {
        [Some((text, place)), ..] => inline(text, place, warnings),
        [_, Some((path, place)), ..] => from_file(Path::new(path), place, section, warnings),
        [_, _, Some((name, place)), _] => from_env(name, place, section, env),
        [_, _, _, Some((name, place))] => from_credential(name, place, section, env),
        [None, None, None, None] => None,
    };
    match secret {
        Some(secret) => (Some(name.to_owned()), Some(secret)),
        None => (None, None),
    }
}

fn inline(text: &str, place: &Place, warnings: &Sink) -> Option<Secret> {
    if text == MASK {
        warnings.push(place, Cause::MaskedPassword);
    }
    Some(Secret::new(text.to_owned(), SecretSource::Inline))
}

fn from_file(path: &Path, place: &Place, section: &Section<'_>, warnings: &Sink) -> Option<Secret> {
    let password = read_noting("password_file", path, place, section)?;
    let readable = |metadata: std::fs::Metadata| metadata.permissions().mode() & 0o004 != 0;
    if path.metadata().is_ok_and(readable) {
        warnings.push(place, Cause::WorldReadable(path.to_owned()));
    }
    let source = SecretSource::File(path.to_owned());
    Some(Secret::new(password, source))
}

/// systemd.exec(5), "CREDENTIALS": a file below a directory that only the service can read.
fn from_credential(
    name: &str,
    place: &Place,
    section: &Section<'_>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Option<Secret> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        let expected = "a name below $CREDENTIALS_DIRECTORY";
        section.wrong_value("password_credential", place, name, expected);
        return None;
    }
    let Some(folder) = env("CREDENTIALS_DIRECTORY").filter(|value| !value.is_empty()) else {
        section.wrong(place, Cause::NoCredentialsDirectory(name.to_owned()));
        return None;
    };
    let path = Path::new(&folder).join(name);
    let password = read_noting("password_credential", &path, place, section)?;
    let name = name.to_owned();
    Some(Secret::new(
        password,
        SecretSource::Credential { name, path },
    ))
}

fn read_noting(
    key: &'static str,
    path: &Path,
    place: &Place,
    section: &Section<'_>,
) -> Option<String> {
    let password = read_password(path);
    password
        .map_err(|error| {
            let path = path.to_owned();
            section.wrong(place, Cause::PasswordFile { key, path, error });
        })
        .ok()
}

/// Why a file gives no password.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the file is empty")]
    Empty,
}

fn read_password(path: &Path) -> Result<String, FileError> {
    let text = read_bounded(path, PASSWORD_LEN_MAX).and_then(as_utf8)?;
    // Editors end a file with a newline; no registry has one in a password.
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(FileError::Empty),
        password => Ok(password.to_owned()),
    }
}

/// What a password's file holds now; `None` for one that is in no file.
pub fn reread(secret: &Secret) -> Option<Result<Secret, FileError>> {
    let path = match &secret.source {
        SecretSource::File(path) | SecretSource::Credential { path, .. } => path,
        SecretSource::Inline | SecretSource::Env(_) => return None,
    };
    let password = read_password(path);
    Some(password.map(|password| Secret::new(password, secret.source.clone())))
}

fn from_env(
    name: &str,
    place: &Place,
    section: &Section<'_>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Option<Secret> {
    let value = env(name).filter(|value| !value.is_empty());
    if value.is_none() {
        section.wrong(place, Cause::PasswordEnv(name.to_owned()));
    }
    Some(Secret::new(value?, SecretSource::Env(name.to_owned())))
}

/// Checked here, so that a wrong file is found at start and not at the first pull.
pub fn read_ca_file(section: &Section<'_>) -> Option<PathBuf> {
    let (text, place) = section.text("ca_file")?;
    let path = PathBuf::from(text);
    if let Err(reason) = check_ca_file(&path) {
        let path = path.clone();
        section.wrong(place, Cause::CaFile { path, reason });
    }
    Some(path)
}

fn check_ca_file(path: &Path) -> Result<(), String> {
    let pem = read_bounded(path, CA_LEN_MAX).map_err(|error| error.to_string())?;
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| format!("not PEM: {error}"))?;
        let added = store.add(certificate);
        added.map_err(|error| format!("not a certificate: {error}"))?;
    }
    match store.is_empty() {
        true => Err("holds no PEM certificate".to_owned()),
        false => Ok(()),
    }
}

/// A client certificate, checked like `ca_file` and for its key.
pub fn read_identity(section: &Section<'_>, url: &Url) -> Option<IdentityFiles> {
    let given = (
        section.text("client_cert_file"),
        section.text("client_key_file"),
    );
    let (cert, key, place) = match given {
        (Some((cert, place)), Some((key, _))) => (cert, key, place),
        (Some((_, place)), None) | (None, Some((_, place))) => {
            section.wrong(place, Cause::HalfAnIdentity);
            return None;
        }
        (None, None) => return None,
    };
    let files = IdentityFiles {
        cert: cert.into(),
        key: key.into(),
    };
    if url.scheme == Scheme::Http {
        section.wrong(place, Cause::IdentityWithoutTls);
    }
    if let Err(reason) = load_identity(&files) {
        let path = files.cert.clone();
        section.wrong(place, Cause::Identity { path, reason });
    }
    Some(files)
}

/// The certificate with its chain, and the key that belongs to it.
pub fn load_identity(files: &IdentityFiles) -> Result<CertifiedKey, String> {
    let read = |path: &Path| {
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        read_bounded(path, CA_LEN_MAX).map_err(failed)
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(&files.cert)?).collect();
    let chain = chain.map_err(|error| format!("not PEM: {error}"))?;
    if chain.is_empty() {
        return Err("holds no PEM certificate".to_owned());
    }
    // The parser's message could quote the file, which holds a key.
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
        .map_err(|_| format!("{} holds no PEM private key", files.key.display()))?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .map_err(|error| format!("does not go with {}: {error}", files.key.display()))
}

fn read_bounded(path: &Path, len_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(len_max + 1)
        .read_to_end(&mut bytes)?;
    match bytes.len() as u64 > len_max {
        true => Err(io::Error::other(format!("longer than {len_max} bytes"))),
        false => Ok(bytes),
    }
}

fn as_utf8(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|_| io::Error::other("not UTF-8"))
}

/// Legal, sometimes meant, and worth a line at every start.
pub fn warn_of_exposure(upstream: &Upstream, place: &Place, warnings: &Sink) {
    if upstream.password.is_none() || upstream.url.is_loopback() {
        return;
    }
    if upstream.url.scheme == Scheme::Http {
        warnings.push(place, Cause::ClearText(upstream.url.to_string()));
    } else if !upstream.tls_verify {
        warnings.push(place, Cause::Unverified(upstream.url.to_string()));
    }
}
