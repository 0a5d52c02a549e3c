//! Egress proxies: which one, if any, leads to an origin.
//!
//! From the keys `proxy` and `no_proxy` of an upstream, else from `HTTPS_PROXY`, `HTTP_PROXY` and
//! `NO_PROXY`, upper case before lower, as curl and Go read them. A proxy's credentials are part of
//! its URL and are shown nowhere (R11).

use std::net::IpAddr;
use std::sync::Arc;

use super::error::{Cause, Place};
use super::section::{Section, Sink};
use super::url::{Scheme, Url, UrlError};
use super::{MASK, Secret, SecretSource};

/// In place of a proxy: whatever the environment says, go there directly.
const NONE: &str = "none";

/// An HTTP proxy, reached in clear text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    pub url: Url,
    /// User name and password.
    pub login: Option<(String, Secret)>,
}

/// What a proxy's URL can be wrong in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error("a proxy is reached by http://")]
    Scheme,
    #[error("{0}")]
    Url(UrlError),
    #[error("the credentials are not percent-encoded UTF-8 with a colon between them")]
    Login,
}

impl Proxy {
    /// `[http://][user:password@]host[:port]`; the port is 80 unless it is named.
    pub fn parse(text: &str) -> Result<Proxy, ProxyError> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(ProxyError::Scheme);
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (userinfo, authority) = match rest.rsplit_once('@') {
            Some((userinfo, authority)) => (Some(userinfo), authority),
            None => (None, rest),
        };
        let url = format!("http://{authority}").parse();
        Ok(Proxy {
            url: url.map_err(ProxyError::Url)?,
            login: userinfo.map(login).transpose()?,
        })
    }

    /// As it is written, but for the password.
    pub fn masked(&self) -> String {
        match &self.login {
            Some((name, _)) => format!("http://{name}:{MASK}@{}", self.url.authority()),
            None => self.url.to_string(),
        }
    }
}

/// RFC 3986 §3.2.1; the colon separates as in RFC 7617 §2.
fn login(userinfo: &str) -> Result<(String, Secret), ProxyError> {
    let (name, password) = userinfo.split_once(':').ok_or(ProxyError::Login)?;
    let name = decode(name).filter(|name| !name.contains(':'));
    match (name, decode(password)) {
        (Some(name), Some(password)) => Ok((name, Secret::new(password, SecretSource::Inline))),
        _ => Err(ProxyError::Login),
    }
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                (high * 16 + low) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// The proxies of one upstream and of whatever it leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    http: Option<Arc<Proxy>>,
    https: Option<Arc<Proxy>>,
    /// They come from the key, so this machine is no exception unless it is named.
    chosen: bool,
    /// The keys as they were given, for printing.
    pub written: Option<String>,
    pub exceptions_written: Vec<String>,
    exceptions: Vec<Exception>,
}

impl Proxies {
    /// One for both schemes.
    pub fn through(proxy: Proxy) -> Proxies {
        let written = Some(proxy.masked());
        let proxy = Some(Arc::new(proxy));
        Proxies {
            http: proxy.clone(),
            https: proxy,
            chosen: true,
            written,
            ..Proxies::default()
        }
    }

    /// The proxy to this origin; `None` when it is dialled itself.
    pub fn of(&self, origin: &Url) -> Option<&Arc<Proxy>> {
        let proxy = match origin.scheme {
            Scheme::Http => self.http.as_ref(),
            Scheme::Https => self.https.as_ref(),
        }?;
        let excepted = self.exceptions.iter().any(|it| it.covers(origin));
        let near = !self.chosen && origin.is_loopback();
        (!excepted && !near).then_some(proxy)
    }

    /// Whether `NO_PROXY` decides where a proxy is used.
    fn go_by_the_environment(&self) -> bool {
        let leads = self.http.is_some() || self.https.is_some();
        leads && self.exceptions_written.is_empty()
    }

    /// Whether a password stands in the configuration itself.
    pub fn hold_a_password(&self) -> bool {
        let login =
            |proxy: &Option<Arc<Proxy>>| proxy.as_ref().is_some_and(|it| it.login.is_some());
        self.chosen && login(&self.https)
    }
}

/// One part of `NO_PROXY`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Exception {
    hosts: Hosts,
    /// `None` is every port.
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hosts {
    All,
    /// A domain and all names below it; `apex`: itself too.
    Domain {
        name: String,
        apex: bool,
    },
    /// Literal addresses whose first bits are these; names are not resolved for it.
    Network {
        address: IpAddr,
        bits: u8,
    },
}

impl Exception {
    /// `*`, `example.com`, `.example.com`, `*.example.com`, an address, a CIDR; the first four with
    /// `:port` too.
    fn parse(text: &str) -> Option<Exception> {
        if let Some(hosts) = network(text) {
            return Some(Exception { hosts, port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (text, None),
        };
        let bracketed = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
        let host = bracketed.unwrap_or(host).to_ascii_lowercase();
        let hosts = match (host.as_str(), network(&host)) {
            ("*", _) => Hosts::All,
            (_, Some(hosts)) => hosts,
            (host, None) => {
                let below = host.strip_prefix("*.").or(host.strip_prefix('.'));
                let name = below.unwrap_or(host).to_owned();
                if !super::url::is_host_name(&name) {
                    return None;
                }
                Hosts::Domain {
                    name,
                    apex: below.is_none(),
                }
            }
        };
        Some(Exception { hosts, port })
    }

    fn covers(&self, origin: &Url) -> bool {
        if self.port.is_some_and(|port| port != origin.port) {
            return false;
        }
        match &self.hosts {
            Hosts::All => true,
            Hosts::Domain { name, apex } => match origin.host.strip_suffix(name.as_str()) {
                Some("") => *apex,
                Some(below) => below.ends_with('.'),
                None => false,
            },
            Hosts::Network { address, bits } => {
                let host = origin.host.parse::<IpAddr>();
                host.is_ok_and(|host| first_bits_agree(*address, host, *bits))
            }
        }
    }
}

/// An address or a CIDR (RFC 4632 §3.1).
fn network(text: &str) -> Option<Hosts> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    let bits = match bits {
        Some(bits) => bits.parse().ok().filter(|bits| *bits <= width)?,
        None => width,
    };
    Some(Hosts::Network { address, bits })
}

fn first_bits_agree(one: IpAddr, other: IpAddr, bits: u8) -> bool {
    let differ = match (one.to_canonical(), other.to_canonical()) {
        // To the width of the larger, so that one count of leading zeroes serves both.
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            u128::from(one.to_bits() ^ other.to_bits()) << (128 - 32)
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => one.to_bits() ^ other.to_bits(),
        _ => return false,
    };
    differ.leading_zeros() >= u32::from(bits)
}

/// The keys `proxy` and `no_proxy` of an upstream, or the environment where they are absent.
pub fn read(section: &Section<'_>, env: &dyn Fn(&str) -> Option<String>) -> Proxies {
    let mut proxies = match section.text("proxy") {
        Some((NONE, _)) => Proxies {
            chosen: true,
            written: Some(NONE.to_owned()),
            ..Proxies::default()
        },
        Some((text, place)) => match Proxy::parse(text) {
            Ok(proxy) => Proxies::through(proxy),
            Err(error) => {
                let key = section.key("proxy");
                section.wrong(place, Cause::Proxy { key, error });
                Proxies::default()
            }
        },
        None => from_environment(section, env),
    };
    match section.texts("no_proxy") {
        Some(texts) => {
            for (text, place) in texts {
                match Exception::parse(text) {
                    Some(exception) => proxies.exceptions.push(exception),
                    None => section.wrong_value("no_proxy", place, text, EXCEPTION_EXPECTED),
                }
                proxies.exceptions_written.push(text.to_owned());
            }
        }
        None => {
            let list = variable(env, "NO_PROXY").map_or(String::new(), |(_, list)| list);
            // What others make of a word we do not know is theirs: see `warn_of_exceptions`.
            proxies.exceptions = parts(&list).filter_map(Exception::parse).collect();
        }
    }
    proxies
}

fn parts(list: &str) -> impl Iterator<Item = &str> {
    list.split([',', ' ']).filter(|part| !part.is_empty())
}

/// Names, once for all upstreams, what `NO_PROXY` holds and nobody here understands.
pub fn warn_of_exceptions<'c>(
    mut all: impl Iterator<Item = &'c Proxies>,
    env: &dyn Fn(&str) -> Option<String>,
    warnings: &Sink,
) {
    let Some((variable, list)) = variable(env, "NO_PROXY") else {
        return;
    };
    if !all.any(Proxies::go_by_the_environment) {
        return;
    }
    for part in parts(&list).filter(|part| Exception::parse(part).is_none()) {
        let (variable, part) = (variable.clone(), part.to_owned());
        let expected = EXCEPTION_EXPECTED;
        let cause = Cause::NoProxy {
            variable,
            part,
            expected,
        };
        warnings.push(&Place::Builtin, cause);
    }
}

const EXCEPTION_EXPECTED: &str = "a host, a domain with a leading dot, an address, a CIDR or \"*\"";

fn from_environment(section: &Section<'_>, env: &dyn Fn(&str) -> Option<String>) -> Proxies {
    let proxy = |name| {
        let (name, text) = variable(env, name)?;
        match Proxy::parse(&text) {
            Ok(proxy) => Some(Arc::new(proxy)),
            Err(error) => {
                let key = format!("${name}");
                section.wrong(&Place::Builtin, Cause::Proxy { key, error });
                None
            }
        }
    };
    Proxies {
        http: proxy("HTTP_PROXY"),
        https: proxy("HTTPS_PROXY"),
        ..Proxies::default()
    }
}

/// A variable in upper or lower case, and how it was found; an empty one counts as unset.
fn variable(env: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<(String, String)> {
    [name.to_owned(), name.to_ascii_lowercase()]
        .into_iter()
        .find_map(|name| {
            let value = env(&name).filter(|value| !value.is_empty())?;
            Some((name, value))
        })
}

#[cfg(test)]
mod tests {
    use super::{Exception, Proxies, Proxy, ProxyError, Sink, UrlError, warn_of_exceptions};

    #[test]
    fn urls_of_proxies() {
        for (text, masked) in [
            ("http://proxy.example:3128", "http://proxy.example:3128"),
            ("proxy:3128", "http://proxy:3128"),
            ("HTTP://[::1]:3128/", "http://[::1]:3128"),
            (
                "http://me:s%40c%3Aret@proxy:8080",
                "http://me:***@proxy:8080",
            ),
        ] {
            let proxy = Proxy::parse(text).expect(text);
            assert_eq!(proxy.masked(), masked);
            assert!(!format!("{proxy:?}").contains("s@c"));
        }
        let (name, password) = Proxy::parse("http://me:s%40c%3Aret@proxy")
            .expect("a proxy")
            .login
            .expect("a login");
        assert_eq!((name.as_str(), password.expose()), ("me", "s@c:ret"));
        for (text, error) in [
            ("https://proxy", ProxyError::Scheme),
            ("socks5://proxy", ProxyError::Scheme),
            ("http://", ProxyError::Url(UrlError::Host)),
            ("http://proxy/path", ProxyError::Url(UrlError::Path)),
            ("http://me@proxy", ProxyError::Login),
            ("http://me:%zz@proxy", ProxyError::Login),
            ("http://a%3Ab:c@proxy", ProxyError::Login),
        ] {
            assert_eq!(Proxy::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn exceptions() {
        for (exception, origin, covered) in [
            ("*", "https://quay.io", true),
            ("quay.io", "https://quay.io", true),
            ("quay.io", "https://cdn.quay.io", true),
            ("quay.io", "https://notquay.io", false),
            ("QUAY.io:443", "https://quay.io", true),
            ("quay.io:8443", "https://quay.io", false),
            (".quay.io", "https://quay.io", false),
            (".quay.io", "https://cdn.quay.io", true),
            ("*.quay.io", "https://a.b.quay.io", true),
            ("10.0.0.0/8", "http://10.200.3.4:5000", true),
            ("10.0.0.0/8", "http://11.0.0.1", false),
            ("10.0.0.0/8", "http://ten.example", false),
            ("0.0.0.0/0", "http://10.0.0.1", true),
            ("192.168.1.1", "http://192.168.1.1", true),
            ("192.168.1.1:80", "http://192.168.1.1:81", false),
            ("192.168.1.1", "http://192.168.1.2", false),
            ("fd00::/8", "http://[fd12::1]", true),
            ("[fd12::1]:5000", "http://[fd12::1]:5000", true),
            ("fd12::1", "http://[fd12::2]", false),
        ] {
            let parsed = Exception::parse(exception).expect(exception);
            let origin = origin.parse().expect(origin);
            assert_eq!(parsed.covers(&origin), covered, "{exception} {origin}");
        }
        for text in [
            "",
            "a b",
            "10.0.0.0/33",
            "quay.io:port",
            "-x",
            "http://quay.io",
        ] {
            assert_eq!(Exception::parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_the_environment_holds_and_nobody_understands_is_named_once() {
        let env = |name: &str| (name == "no_proxy").then(|| "a.b, a/b,10.0.0.0/33 *".to_owned());
        let through = || Proxies::through(Proxy::parse("proxy:3128").expect("a proxy"));
        let excepted = || Proxies {
            exceptions_written: vec!["a.b".to_owned()],
            ..through()
        };
        for (all, expected) in [
            (vec![through(), through(), excepted()], 2),
            (vec![excepted(), Proxies::default()], 0),
        ] {
            let warnings = Sink::default();
            warn_of_exceptions(all.iter(), &env, &warnings);
            let warnings = warnings.0.into_inner();
            let said: Vec<String> = warnings.iter().map(ToString::to_string).collect();
            assert_eq!(said.len(), expected, "{said:?}");
            for (said, part) in said.iter().zip(["a/b", "10.0.0.0/33"]) {
                let start = format!("$no_proxy: \"{part}\" is not a host");
                assert!(said.starts_with(&start), "{said}");
            }
        }
    }

    #[test]
    fn this_machine_is_reached_directly_unless_its_proxy_was_chosen() {
        let proxy = Proxy::parse("proxy:3128").expect("a proxy");
        let here = "http://127.0.0.1:5000".parse().expect("a url");
        let chosen = Proxies::through(proxy);
        assert!(chosen.of(&here).is_some());
        let found = Proxies {
            chosen: false,
            ..chosen
        };
        assert!(found.of(&here).is_none());
        assert!(
            found
                .of(&"http://quay.io".parse().expect("a url"))
                .is_some()
        );
    }
}
