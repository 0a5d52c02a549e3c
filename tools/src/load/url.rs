//! URLs as far as registries and their redirects need them (RFC 3986).

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub origin: Origin,
    /// With its query; starts with `/`.
    pub path: String,
}

/// Who is asked: scheme, host and port. Credentials never leave theirs (RFC 9110 §4.3.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    pub tls: bool,
    /// Without brackets.
    pub host: Arc<str>,
    pub port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    #[error("{0}: a URL starts with http:// or https://, as in http://127.0.0.1:5000/v2/")]
    Scheme(String),
    #[error("{0}: no host, or a port that is no number")]
    Authority(String),
    #[error("{0}: {1}; is the name right, and the resolver reachable?")]
    Resolve(String, std::io::Error),
    #[error("{0}: the name has no address")]
    NoAddress(String),
}

impl Url {
    pub fn parse(text: &str) -> Result<Url, UrlError> {
        let (tls, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(UrlError::Scheme(text.to_owned())),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let slash = if path.starts_with('/') { "" } else { "/" };
        let origin = Origin::parse(authority, tls);
        let origin = origin.ok_or_else(|| UrlError::Authority(text.to_owned()))?;
        Ok(Url {
            origin,
            path: format!("{slash}{path}"),
        })
    }

    /// The target of a redirect from here: absolute, from the scheme, or from the root
    /// (RFC 3986 §4.2). Registries use no others.
    pub fn join(&self, location: &str) -> Result<Url, UrlError> {
        if let Some(rest) = location.strip_prefix("//") {
            return Url::parse(&format!("{}://{rest}", self.origin.scheme()));
        }
        if location.starts_with('/') {
            let path = location.split('#').next().unwrap_or_default().to_owned();
            let origin = self.origin.clone();
            return Ok(Url { origin, path });
        }
        Url::parse(location)
    }
}

impl Origin {
    fn parse(authority: &str, tls: bool) -> Option<Origin> {
        // Without a login: those are given on the command line.
        let authority = authority.rsplit('@').next()?;
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']')?;
                (host, port.strip_prefix(':'))
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let default = if tls { 443 } else { 80 };
        let port = port.map_or(Some(default), |port| port.parse().ok())?;
        let host = (!host.is_empty()).then(|| host.to_ascii_lowercase().into())?;
        Some(Origin { tls, host, port })
    }

    pub fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }

    /// As the Host field says it: the scheme's own port is left out (RFC 9110 §7.2).
    pub fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.to_string(),
        };
        let default = if self.tls { 443 } else { 80 };
        match self.port == default {
            true => host,
            false => format!("{host}:{}", self.port),
        }
    }

    /// Asks the resolver, and waits for it.
    pub fn resolve(&self) -> Result<Vec<SocketAddr>, UrlError> {
        let failed = |error| UrlError::Resolve(self.authority(), error);
        let addrs = (&*self.host, self.port).to_socket_addrs();
        let addrs: Vec<SocketAddr> = addrs.map_err(failed)?.collect();
        match addrs.is_empty() {
            true => Err(UrlError::NoAddress(self.authority())),
            false => Ok(addrs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (text, scheme, authority, port, path) in [
            ("http://a", "http", "a", 80, "/"),
            ("https://A.b/v2/?ns=x#y", "https", "a.b", 443, "/v2/?ns=x"),
            (
                "http://127.0.0.1:5000/v2/",
                "http",
                "127.0.0.1:5000",
                5000,
                "/v2/",
            ),
            ("https://[::1]:443/", "https", "[::1]", 443, "/"),
            ("http://u:p@h:80?q", "http", "h", 80, "/?q"),
        ] {
            let url = Url::parse(text).unwrap();
            let found = (url.origin.scheme(), url.origin.authority(), url.origin.port);
            assert_eq!(found, (scheme, authority.to_owned(), port), "{text}");
            assert_eq!(url.path, path, "{text}");
        }
        for bad in [
            "ftp://a/",
            "a",
            "http://",
            "http:///x",
            "http://a:b/",
            "http://[::1/",
        ] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn redirects() {
        let from = Url::parse("https://a:1/v2/x?y").unwrap();
        for (location, expected) in [
            ("/b?c#d", "https://a:1/b?c"),
            ("//cdn/b", "https://cdn/b"),
            ("http://a:1/b", "http://a:1/b"),
        ] {
            let to = from.join(location).unwrap();
            assert_eq!(to, Url::parse(expected).unwrap(), "{location}");
        }
        assert!(from.join("b").is_err());
    }
}
