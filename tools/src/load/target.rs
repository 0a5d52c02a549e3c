//! What is fetched: the URL, the request's bytes, and the digest its body must have.

use std::net::{SocketAddr, ToSocketAddrs};

use sha2::{Digest as _, Sha256, Sha512};

#[derive(Clone, Debug)]
pub struct Target {
    pub addr: SocketAddr,
    /// Sent as it is, again and again.
    pub request: Vec<u8>,
    pub head_only: bool,
    /// When bodies are verified.
    pub digest: Option<Expected>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    Sha256(String),
    Sha512(String),
}

pub enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("only http:// URLs: {0}")]
    Scheme(String),
    #[error("{0}: {1}")]
    Resolve(String, std::io::Error),
    #[error("no address: {0}")]
    NoAddress(String),
    #[error("a header is 'Name: value': {0}")]
    Header(String),
    #[error("nothing to verify by: no sha256:<64 hex> or sha512:<128 hex> in the path or --digest")]
    Digest,
}

/// What the command line says about requests.
pub struct Asked<'a> {
    pub url: &'a str,
    pub head_only: bool,
    pub accept: &'a [String],
    pub headers: &'a [String],
    pub verify: bool,
    pub digest: Option<&'a str>,
}

impl Target {
    pub fn new(asked: &Asked<'_>) -> Result<Target, TargetError> {
        let scheme = || TargetError::Scheme(asked.url.to_owned());
        let rest = asked.url.strip_prefix("http://").ok_or_else(scheme)?;
        let (host, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let with_port = if host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok())
        {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        let resolve = |error| TargetError::Resolve(with_port.clone(), error);
        let mut addrs = with_port.to_socket_addrs().map_err(resolve)?;
        let no_address = || TargetError::NoAddress(with_port.clone());
        let addr = addrs.next().ok_or_else(no_address)?;
        let method = if asked.head_only { "HEAD" } else { "GET" };
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n");
        for media_type in asked.accept {
            request.push_str(&format!("Accept: {media_type}\r\n"));
        }
        for header in asked.headers {
            if !header.contains(": ") || header.contains(['\r', '\n']) {
                return Err(TargetError::Header(header.clone()));
            }
            request.push_str(&format!("{header}\r\n"));
        }
        request.push_str("\r\n");
        let last = path.rsplit('/').next().unwrap_or_default();
        let last = last.split('?').next().unwrap_or_default();
        let digest = if asked.verify && !asked.head_only {
            let named = Expected::parse(asked.digest.unwrap_or(last));
            Some(named.ok_or(TargetError::Digest)?)
        } else {
            None
        };
        Ok(Target {
            addr,
            request: request.into_bytes(),
            head_only: asked.head_only,
            digest,
        })
    }
}

impl Expected {
    fn parse(text: &str) -> Option<Expected> {
        let (algorithm, hex) = text.split_once(':')?;
        let hex_of = |len: usize| {
            let lower = hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            (hex.len() == len && lower).then(|| hex.to_owned())
        };
        match algorithm {
            "sha256" => hex_of(64).map(Expected::Sha256),
            "sha512" => hex_of(128).map(Expected::Sha512),
            _ => None,
        }
    }

    pub fn hasher(&self) -> Hasher {
        match self {
            Expected::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Expected::Sha512(_) => Hasher::Sha512(Sha512::new()),
        }
    }

    fn hex(&self) -> &str {
        match self {
            Expected::Sha256(hex) | Expected::Sha512(hex) => hex,
        }
    }
}

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub fn agrees(self, expected: &Expected) -> bool {
        let bytes = match self {
            Hasher::Sha256(hasher) => hasher.finalize().to_vec(),
            Hasher::Sha512(hasher) => hasher.finalize().to_vec(),
        };
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        hex == expected.hex()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(url: &str) -> Asked<'_> {
        Asked {
            url,
            head_only: false,
            accept: &[],
            headers: &[],
            verify: false,
            digest: None,
        }
    }

    #[test]
    fn requests() {
        let target = Target::new(&Asked {
            accept: &["a/b".to_owned()],
            headers: &["X-Y: z".to_owned()],
            ..asked("http://127.0.0.1:5000/v2/?ns=x")
        });
        let target = target.unwrap();
        assert_eq!(target.addr.port(), 5000);
        let expected =
            "GET /v2/?ns=x HTTP/1.1\r\nHost: 127.0.0.1:5000\r\nAccept: a/b\r\nX-Y: z\r\n\r\n";
        assert_eq!(String::from_utf8(target.request).unwrap(), expected);
        assert!(Target::new(&asked("https://127.0.0.1/")).is_err());
    }

    #[test]
    fn verifying_needs_a_digest() {
        let verify = |url| {
            Target::new(&Asked {
                verify: true,
                ..asked(url)
            })
        };
        assert!(matches!(
            verify("http://127.0.0.1/x"),
            Err(TargetError::Digest)
        ));
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let target = verify(&format!("http://127.0.0.1/b/sha256:{empty}?ns=x")).unwrap();
        let expected = target.digest.unwrap();
        assert!(expected.hasher().agrees(&expected));
        let mut other = expected.hasher();
        other.update(b"x");
        assert!(!other.agrees(&expected));
    }
}
