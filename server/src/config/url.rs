//! The address of an upstream: scheme, host and port, and nothing else.
//!
//! Paths, queries and userinfo are refused: a registry is the root of its origin, and
//! credentials belong in keys that are masked when printed (R11).

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    fn port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// Displayed as its origin: `https://registry-1.docker.io`, without a default port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Url {
    pub scheme: Scheme,
    /// Lower case; an IPv6 address without its brackets.
    pub host: String,
    pub port: u16,
}

impl Url {
    /// `host` or `host:port` as a Host field wants it: a default port is left out.
    pub fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match self.port == self.scheme.port() {
            true => host,
            false => format!("{host}:{}", self.port),
        }
    }

    /// With the port, whatever it is: what CONNECT names (RFC 9112 §3.2.3).
    pub fn host_and_port(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// Whether the host is this machine, by name or by address.
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<std::net::IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => self.host == "localhost",
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("expected http:// or https:// and a host, such as \"https://registry-1.docker.io\"")]
    Scheme,
    #[error("credentials do not belong in the url: use username and password_file")]
    Userinfo,
    #[error("an upstream is the root of its registry: a path, query or fragment is not supported")]
    Path,
    #[error("the host is empty or not a host name or address")]
    Host,
    #[error("the port is not a number from 1 to 65535")]
    Port,
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Url, UrlError> {
        // First of all, so that no other mistake has a password repeated in its message.
        if text.contains('@') {
            return Err(UrlError::Userinfo);
        }
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(UrlError::Scheme),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '\\']) {
            return Err(UrlError::Path);
        }
        let (host, port) = split_port(rest)?;
        let port = match port {
            Some(port) => parse_port(port)?,
            None => scheme.port(),
        };
        Ok(Url {
            scheme,
            host: parse_host(host)?,
            port,
        })
    }
}

fn split_port(rest: &str) -> Result<(&str, Option<&str>), UrlError> {
    if rest.starts_with('[') {
        let end = rest.find(']').ok_or(UrlError::Host)?;
        let (host, tail) = rest.split_at(end + 1);
        return match tail.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if tail.is_empty() => Ok((host, None)),
            None => Err(UrlError::Host),
        };
    }
    Ok(match rest.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (rest, None),
    })
}

fn parse_port(port: &str) -> Result<u16, UrlError> {
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(UrlError::Port),
    }
}

fn parse_host(host: &str) -> Result<String, UrlError> {
    if let Some(bracketed) = host.strip_prefix('[') {
        let address = bracketed
            .strip_suffix(']')
            .and_then(|text| text.parse::<Ipv6Addr>().ok());
        return address
            .map(|address| address.to_string())
            .ok_or(UrlError::Host);
    }
    match is_host_name(host) {
        true => Ok(host.to_ascii_lowercase()),
        false => Err(UrlError::Host),
    }
}

/// RFC 1123 §2.1: labels of letters, digits and inner hyphens; at most 253 bytes.
/// Underscores are allowed, as resolvers and container networks do.
pub(super) fn is_host_name(host: &str) -> bool {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len())
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.len() <= 253 && host.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::{Url, UrlError};

    #[test]
    fn origins_are_normalised() {
        for (text, origin, authority) in [
            ("https://ghcr.io", "https://ghcr.io", "ghcr.io"),
            ("HTTPS://GHCR.io/", "https://ghcr.io", "ghcr.io"),
            ("https://ghcr.io:443", "https://ghcr.io", "ghcr.io"),
            (
                "http://127.0.0.1:5100",
                "http://127.0.0.1:5100",
                "127.0.0.1:5100",
            ),
            ("http://[::1]:5100/", "http://[::1]:5100", "[::1]:5100"),
            (
                "https://[2001:DB8::1]",
                "https://[2001:db8::1]",
                "[2001:db8::1]",
            ),
            ("http://registry_1:80", "http://registry_1", "registry_1"),
        ] {
            let url: Url = text.parse().expect(text);
            assert_eq!(url.to_string(), origin);
            assert_eq!(url.authority(), authority);
            assert_eq!(origin.parse::<Url>().as_ref(), Ok(&url));
        }
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        for (text, error) in [
            ("ghcr.io", UrlError::Scheme),
            ("ftp://ghcr.io", UrlError::Scheme),
            ("", UrlError::Scheme),
            ("https://ghcr.io/v2", UrlError::Path),
            ("https://ghcr.io?x", UrlError::Path),
            ("https://ghcr.io#x", UrlError::Path),
            ("https://ghcr.io//", UrlError::Path),
            ("https://me:secret@ghcr.io", UrlError::Userinfo),
            ("https://me:secret@ghcr.io/v2/", UrlError::Userinfo),
            ("https://me:sec/ret@ghcr.io", UrlError::Userinfo),
            ("me:secret@ghcr.io", UrlError::Userinfo),
            ("ftp://me:secret@ghcr.io", UrlError::Userinfo),
            ("https://", UrlError::Host),
            ("https://gh cr.io", UrlError::Host),
            ("https://ghcr..io", UrlError::Host),
            ("https://-ghcr.io", UrlError::Host),
            ("https://[::1", UrlError::Host),
            ("https://[::1]x", UrlError::Host),
            ("https://[1.2.3.4]", UrlError::Host),
            ("https://ghcr.io:", UrlError::Port),
            ("https://ghcr.io:0", UrlError::Port),
            ("https://ghcr.io:+80", UrlError::Port),
            ("https://ghcr.io:65536", UrlError::Port),
            ("https://ghcr.io:80:80", UrlError::Port),
        ] {
            assert_eq!(text.parse::<Url>(), Err(error), "{text}");
        }
    }

    #[test]
    fn loopback_is_known_by_name_and_address() {
        let loopback = |text: &str| text.parse::<Url>().expect(text).is_loopback();
        assert!(loopback("http://localhost:1"));
        assert!(loopback("http://127.9.9.9"));
        assert!(loopback("http://[::1]"));
        assert!(!loopback("http://ghcr.io"));
    }
}
