//! Where a request goes: an origin (scheme, host, port) and a path, and which hosts are private.
//!
//! Called for Location fields and token realms, both foreign input. Pure: resolves nothing. What
//! may be followed is decided in `redirect` and `realm`. Anything a resolver and a URL parser
//! could read differently is refused, never repaired.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::url::UrlError;
use crate::config::{Scheme, Url};

/// Signed storage URLs reach 2 KiB; request lines above 8 KiB are refused by common servers.
const TARGET_LEN_MAX: usize = 8 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("longer than a request line may be")]
    TooLong,
    #[error("holds a byte that is not visible ASCII")]
    Characters,
    #[error("neither http nor https")]
    Scheme,
    #[error("its origin is malformed: {0}")]
    Origin(UrlError),
    #[error("its host is a number and not a dotted address")]
    NumericHost,
}

/// An origin and what to ask it for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub origin: Url,
    /// Path and query, from its slash on; never a fragment.
    pub path: String,
}

impl Target {
    /// An absolute URL (RFC 3986 §4.3; a fragment is dropped).
    pub fn parse(text: &str) -> Result<Target, TargetError> {
        check_bytes(text)?;
        let (scheme, rest) = text.split_once("://").ok_or(TargetError::Scheme)?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let origin = parse_origin(scheme, authority)?;
        Ok(Target {
            origin,
            path: rooted(without_fragment(path)),
        })
    }

    /// The target a Location names when it is given in an answer from here (RFC 3986 §5.2).
    pub fn join(&self, location: &str) -> Result<Target, TargetError> {
        check_bytes(location)?;
        if has_scheme(location) {
            return Target::parse(location);
        }
        if location.starts_with("//") {
            return Target::parse(&format!("{}:{location}", self.origin.scheme.as_str()));
        }
        let reference = without_fragment(location);
        let base = self.path.split('?').next().unwrap_or("/");
        let path = match reference.as_bytes().first() {
            None => self.path.clone(),
            Some(b'/') => without_dots(reference),
            Some(b'?') => format!("{base}{reference}"),
            Some(_) => {
                let folder = &base[..base.rfind('/').map_or(0, |slash| slash + 1)];
                without_dots(&format!("{folder}{reference}"))
            }
        };
        Ok(Target {
            origin: self.origin.clone(),
            path,
        })
    }
}

/// A place that content names and no configuration does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(pub(super) Target);

impl Place {
    /// An absolute URL.
    pub fn parse(text: &str) -> Result<Place, TargetError> {
        Target::parse(text).map(Place)
    }

    pub fn origin(&self) -> &Url {
        &self.0.origin
    }

    /// What is asked for: of all ways to write it the same. Its query may be a signature.
    pub fn address(&self) -> String {
        format!("{}{}", self.0.origin, self.0.path)
    }
}

fn check_bytes(text: &str) -> Result<(), TargetError> {
    if text.len() > TARGET_LEN_MAX {
        return Err(TargetError::TooLong);
    }
    match text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(()),
        false => Err(TargetError::Characters),
    }
}

/// RFC 3986 §3.1: a colon before any slash, after a letter and more of the like.
fn has_scheme(location: &str) -> bool {
    let Some((scheme, _)) = location.split_once(':') else {
        return false;
    };
    scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

fn parse_origin(scheme: &str, authority: &str) -> Result<Url, TargetError> {
    let origin: Url = format!("{scheme}://{authority}")
        .parse()
        .map_err(|error| match error {
            UrlError::Scheme => TargetError::Scheme,
            error => TargetError::Origin(error),
        })?;
    match literal(&origin.host).is_none() && ends_in_a_number(&origin.host) {
        // getaddrinfo reads 127.1, 0x7f.1 and 2130706433 as addresses.
        true => Err(TargetError::NumericHost),
        false => Ok(origin),
    }
}

fn ends_in_a_number(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or(host);
    let digits = last.strip_prefix("0x").unwrap_or(last);
    digits.len() < last.len() || last.bytes().all(|byte| byte.is_ascii_digit())
}

fn without_fragment(path: &str) -> &str {
    path.split('#').next().unwrap_or(path)
}

fn rooted(path: &str) -> String {
    match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("/{path}"),
    }
}

/// RFC 3986 §5.2.4, on a path with a leading slash; the query is left as it is.
fn without_dots(reference: &str) -> String {
    let (path, query) = match reference.find('?') {
        Some(mark) => reference.split_at(mark),
        None => (reference, ""),
    };
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            segment => kept.push(segment),
        }
    }
    let folder = path.ends_with("/.") || path.ends_with("/..");
    let tail = if folder && !kept.is_empty() { "/" } else { "" };
    format!("/{}{tail}{query}", kept.join("/"))
}

/// The address a host is, when it is one and not a name.
pub(super) fn literal(host: &str) -> Option<IpAddr> {
    host.parse().ok()
}

/// Which addresses a request may go to; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Of the public internet.
    Public,
    /// Also of this machine and of private networks, but none where the services are that tell a
    /// virtual machine its secrets: link-local ones (RFC 3927; 169.254.169.254) and some others.
    Private,
    Anywhere,
}

impl Reach {
    /// The least that allows this address.
    pub(super) fn to(address: IpAddr) -> Reach {
        match is_public(address) {
            _ if may_tell_secrets(address) => Reach::Anywhere,
            true => Reach::Public,
            false => Reach::Private,
        }
    }

    /// The least that a host needs by its looks; a name is judged again by its addresses.
    pub(super) fn to_host(host: &str) -> Reach {
        match literal(host) {
            Some(address) => Reach::to(address),
            None if host == "localhost" || host.ends_with(".localhost") => Reach::Private,
            None => Reach::Public,
        }
    }
}

/// Azure's, which is a public address, Alibaba's and Oracle's.
const SECRETS_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];

fn may_tell_secrets(address: IpAddr) -> bool {
    let tells = |v4: Ipv4Addr| v4.is_link_local() || SECRETS_V4.contains(&v4);
    match address {
        IpAddr::V4(address) => tells(address),
        // fd00:ec2::254 is unique local, and Amazon's.
        IpAddr::V6(address) => {
            address.is_unicast_link_local()
                || address.segments()[..2] == [0xfd00, 0xec2]
                || embedded(address).is_some_and(tells)
                || behind_local_nat64(address).any(tells)
        }
    }
}

/// The IPv4 address that an IPv6 one leads to: by itself (RFC 4291 §2.5.5), behind the NAT64 that
/// all have (RFC 6052 §2.1) or 6to4 (RFC 3056 §2).
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let (high, low) = match address.segments() {
        // Neither the unspecified address nor the loopback one is meant so.
        [0, 0, 0, 0, 0, 0, 0, _] => return None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => (high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => (high, low),
        [0x2002, high, low, ..] => (high, low),
        _ => return None,
    };
    let [a, b] = high.to_be_bytes();
    let [c, d] = low.to_be_bytes();
    Some(Ipv4Addr::new(a, b, c, d))
}

/// What is below it is for a network's own NAT64 (RFC 8215).
const LOCAL_NAT64: [u16; 3] = [0x64, 0xff9b, 1];
/// Where the IPv4 address is behind prefixes of 48, 56, 64 and 96 bits, in bytes (RFC 6052 §2.2).
const BEHIND_NAT64: [[usize; 4]; 4] = [
    [6, 7, 9, 10],
    [7, 9, 10, 11],
    [9, 10, 11, 12],
    [12, 13, 14, 15],
];

/// The IPv4 addresses that an address of the network's own NAT64 may lead to: how long the prefix
/// is, only the network knows.
fn behind_local_nat64(address: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let local = address.segments()[..3] == LOCAL_NAT64;
    let bytes = address.octets();
    let places = BEHIND_NAT64.into_iter().filter(move |_| local);
    places.map(move |place| Ipv4Addr::from(place.map(|at| bytes[at])))
}

/// Whether an address belongs to the public internet (IANA special-purpose registries).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let benchmarks = a == 198 && (b == 18 || b == 19);
    let protocols = (a, b, c) == (192, 0, 0);
    !(a == 0
        || a >= 224
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_documentation()
        || shared
        || benchmarks
        || protocols)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // Local use, whatever is behind it.
        [a, b, c, ..] if [a, b, c] == LOCAL_NAT64 => false,
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, ..] | [0x2002, ..] => {
            embedded(address).is_some_and(is_public_v4)
        }
        [0x2001, 0xdb8, ..] => false,
        // 2001::/23 is protocol assignments, Teredo among them.
        [0x2001, second, ..] if second < 0x200 => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// The scheme is part of an origin, so that http never stands in for https (R11).
pub(super) fn is_downgrade(from: &Url, to: &Url) -> bool {
    from.scheme == Scheme::Https && to.scheme == Scheme::Http
}

#[cfg(test)]
mod tests {
    use super::{Reach, Target, TargetError, UrlError, is_public};

    #[test]
    fn absolute_urls() {
        for (text, origin, path) in [
            (
                "https://cdn.example/a/b?c=d",
                "https://cdn.example",
                "/a/b?c=d",
            ),
            ("HTTPS://CDN.example:443", "https://cdn.example", "/"),
            (
                "http://127.0.0.1:81?x=y/z#f",
                "http://127.0.0.1:81",
                "/?x=y/z",
            ),
            (
                "https://[2001:db8::1]:8443/x#",
                "https://[2001:db8::1]:8443",
                "/x",
            ),
            (
                "https://cdn.example/a/../b",
                "https://cdn.example",
                "/a/../b",
            ),
        ] {
            let target = Target::parse(text).expect(text);
            assert_eq!(
                (target.origin.to_string().as_str(), target.path.as_str()),
                (origin, path)
            );
        }
    }

    #[test]
    fn what_parsers_disagree_about_is_refused() {
        for (text, error) in [
            ("ftp://cdn.example/a", TargetError::Scheme),
            ("cdn.example/a", TargetError::Scheme),
            ("file:///etc/passwd", TargetError::Scheme),
            (
                "https://me@cdn.example/",
                TargetError::Origin(UrlError::Userinfo),
            ),
            (
                "https://good.example\\@bad.example/",
                TargetError::Origin(UrlError::Userinfo),
            ),
            (
                "https://cdn.example:0/",
                TargetError::Origin(UrlError::Port),
            ),
            ("https:///path", TargetError::Origin(UrlError::Host)),
            ("https://cdn.example./", TargetError::Origin(UrlError::Host)),
            ("https://127.1/", TargetError::NumericHost),
            ("https://2130706433/", TargetError::NumericHost),
            ("https://0x7f000001/", TargetError::NumericHost),
            ("https://a.0x1/", TargetError::NumericHost),
            ("https://1.2.3.256/", TargetError::NumericHost),
            ("https://cdn.example/a b", TargetError::Characters),
            ("https://cdn.example/a\r\nX: y", TargetError::Characters),
            ("https://cdn.example/ä", TargetError::Characters),
        ] {
            assert_eq!(Target::parse(text), Err(error), "{text}");
        }
        let long = format!("https://cdn.example/{}", "a".repeat(8 << 10));
        assert_eq!(Target::parse(&long), Err(TargetError::TooLong));
    }

    #[test]
    fn references_are_resolved_like_rfc_3986() {
        let base = Target::parse("https://r.example/v2/a/blobs/x?y=z").expect("base");
        for (location, whole) in [
            ("https://cdn.example/q", "https://cdn.example/q"),
            ("//cdn.example:8443/q", "https://cdn.example:8443/q"),
            ("/q?r#s", "https://r.example/q?r"),
            ("?r=s", "https://r.example/v2/a/blobs/x?r=s"),
            ("q", "https://r.example/v2/a/blobs/q"),
            ("./q/", "https://r.example/v2/a/blobs/q/"),
            ("../q", "https://r.example/v2/a/q"),
            ("../../../../q", "https://r.example/q"),
            ("..", "https://r.example/v2/a/"),
            ("/../..", "https://r.example/"),
            (
                "blobs/sha256:00?u=http://x/..",
                "https://r.example/v2/a/blobs/blobs/sha256:00?u=http://x/..",
            ),
            ("", "https://r.example/v2/a/blobs/x?y=z"),
            ("#f", "https://r.example/v2/a/blobs/x?y=z"),
        ] {
            let target = base.join(location).expect(location);
            assert_eq!(
                format!("{}{}", target.origin, target.path),
                whole,
                "{location}"
            );
        }
        assert_eq!(base.join("data:text/plain,x"), Err(TargetError::Scheme));
        assert_eq!(base.join("sha256:00"), Err(TargetError::Scheme));
    }

    #[test]
    fn private_addresses() {
        for (address, public) in [
            ("1.1.1.1", true),
            ("0.1.2.3", false),
            ("10.0.0.1", false),
            ("100.64.0.1", false),
            ("100.128.0.1", true),
            ("127.255.0.1", false),
            ("169.254.169.254", false),
            ("172.16.0.1", false),
            ("172.32.0.1", true),
            ("192.0.0.8", false),
            ("192.0.2.1", false),
            ("192.168.1.1", false),
            ("198.18.0.1", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:1.1.1.1", true),
            ("64:ff9b::a00:1", false),
            ("64:ff9b::101:101", true),
            ("64:ff9b:1::101:101", false),
            ("64:ff9b:0:1::101:101", false),
            ("2002:7f00:1::", false),
            ("2001::1", false),
            ("2001:db8::1", false),
            ("2606:4700::1111", true),
            ("fc00::1", false),
            ("fe80::1", false),
            ("ff02::1", false),
        ] {
            assert_eq!(
                is_public(address.parse().expect(address)),
                public,
                "{address}"
            );
        }
        for (host, reach) in [
            ("localhost", Reach::Private),
            ("x.localhost", Reach::Private),
            ("::1", Reach::Private),
            ("10.0.0.1", Reach::Private),
            ("169.254.169.254", Reach::Anywhere),
            ("::ffff:169.254.169.254", Reach::Anywhere),
            ("fe80::1", Reach::Anywhere),
            ("fd00:ec2::254", Reach::Anywhere),
            ("::169.254.169.254", Reach::Anywhere),
            ("64:ff9b::169.254.169.254", Reach::Anywhere),
            // RFC 6052 §2.2, of prefixes of 96, 48, 56 and 64 bits.
            ("64:ff9b:1::169.254.169.254", Reach::Anywhere),
            ("64:ff9b:1:a9fe:a9:fe00::", Reach::Anywhere),
            ("64:ff9b:1:77a9:fe:a9fe::", Reach::Anywhere),
            ("64:ff9b:1:7777:a9:fea9:fe00::", Reach::Anywhere),
            ("64:ff9b:1:6464:64:c800::", Reach::Anywhere),
            ("64:ff9b:1:a00:0:100::", Reach::Private),
            ("64:ff9b:1:101:1:100::", Reach::Private),
            ("2002:a9fe:a9fe::1", Reach::Anywhere),
            ("64:ff9b::10.0.0.1", Reach::Private),
            ("2002:a00:1::", Reach::Private),
            ("168.63.129.16", Reach::Anywhere),
            ("::ffff:168.63.129.16", Reach::Anywhere),
            ("64:ff9b::168.63.129.16", Reach::Anywhere),
            ("168.63.129.17", Reach::Public),
            ("100.100.100.200", Reach::Anywhere),
            ("192.0.0.192", Reach::Anywhere),
            ("1.1.1.1", Reach::Public),
            ("registry.example", Reach::Public),
        ] {
            assert_eq!(Reach::to_host(host), reach, "{host}");
        }
    }
}
