//! Passwords and certificates that a configuration refers to, read and checked once at start.
//!
//! A password comes from one of three places; its value appears in no message (R11).

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::error::{Cause, Place};
use super::section::{Section, Sink};
use super::{KIB, MASK, MIB, Scheme, Secret, SecretSource, Upstream};

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
    // RFC 7617 §2: the first colon ends the user-id.
    if name.is_empty() || name.contains(':') {
        section.wrong_value("username", name_place, name, "a name without a colon");
    }
    let secret = match given {
        [Some((text, place)), _, _] => inline(text, place, warnings),
        [_, Some((path, place)), _] => from_file(Path::new(path), place, section, warnings),
        [_, _, Some((name, place))] => from_env(name, place, section, env),
        [None, None, None] => None,
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
    let text = match read_bounded(path, PASSWORD_LEN_MAX).and_then(as_utf8) {
        Ok(text) => text,
        Err(error) => {
            let path = path.to_owned();
            section.wrong(place, Cause::PasswordFile { path, error });
            return None;
        }
    };
    let readable = |metadata: std::fs::Metadata| metadata.permissions().mode() & 0o004 != 0;
    if path.metadata().is_ok_and(readable) {
        warnings.push(place, Cause::WorldReadable(path.to_owned()));
    }
    // Editors end a file with a newline; no registry has one in a password.
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        section.wrong(place, Cause::PasswordEmpty(path.to_owned()));
        return None;
    }
    let source = SecretSource::File(path.to_owned());
    Some(Secret::new(password.to_owned(), source))
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
