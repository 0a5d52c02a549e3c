//! Which token service an upstream may name. Pure.
//!
//! A realm receives the upstream's credentials, so it must belong to the upstream: the same host,
//! or a host under the same registrable domain, over https (or http where the upstream itself is
//! reached by http). A registrable domain here is the last two labels, or three below the
//! suffixes below; the whole public suffix list is not consulted, so two tenants of a hosting
//! domain missing from the list would count as one. The operator can name further origins.
//! Redirects do not pass through here.

use crate::config::{Scheme, Url};

use super::origin::{Reach, Target, TargetError, literal};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RealmError {
    #[error("it is unusable as an address: {0}")]
    Target(#[from] TargetError),
    #[error("it is http while the upstream is https")]
    Downgrade,
    #[error("{host} does not belong to the upstream")]
    Foreign { host: String },
}

/// Domains below which anyone may register, beyond the plain top-level ones.
const SUFFIXES: &[&str] = &[
    // Country registries.
    "ac.jp",
    "ac.kr",
    "ac.nz",
    "ac.uk",
    "co.il",
    "co.in",
    "co.jp",
    "co.kr",
    "co.nz",
    "co.th",
    "co.uk",
    "co.za",
    "com.ar",
    "com.au",
    "com.br",
    "com.cn",
    "com.co",
    "com.hk",
    "com.mx",
    "com.my",
    "com.pl",
    "com.sg",
    "com.tr",
    "com.tw",
    "com.ua",
    "com.vn",
    "edu.au",
    "edu.cn",
    "go.jp",
    "go.kr",
    "gov.au",
    "gov.br",
    "gov.cn",
    "gov.in",
    "gov.uk",
    "ne.jp",
    "net.au",
    "net.br",
    "net.cn",
    "net.nz",
    "or.jp",
    "or.kr",
    "org.au",
    "org.br",
    "org.cn",
    "org.nz",
    "org.uk",
    // Registries and hosting, each tenant under a name of its own.
    "amazonaws.com",
    "appspot.com",
    "azurecr.cn",
    "azurecr.io",
    "azurewebsites.net",
    "cloudfront.net",
    "fly.dev",
    "github.io",
    "gitlab.io",
    "herokuapp.com",
    "ngrok.io",
    "onrender.com",
    "pages.dev",
    "pkg.dev",
    "run.app",
    "windows.net",
    "workers.dev",
];

/// Upstreams known to name a realm of another domain: lscr.io is a front for ghcr.io.
const KNOWN: &[(&str, &str)] = &[("lscr.io", "ghcr.io")];

/// The realm as a target, if the upstream may name it. `listed` are origins that the operator
/// trusts with the upstream's credentials.
pub(super) fn check(upstream: &Url, listed: &[Url], realm: &str) -> Result<Target, RealmError> {
    let target = Target::parse(realm)?;
    if listed.contains(&target.origin) {
        return Ok(target);
    }
    let host = target.origin.host.as_str();
    if target.origin.scheme == Scheme::Http && upstream.scheme == Scheme::Https {
        return Err(RealmError::Downgrade);
    }
    match belongs(&upstream.host, host) {
        true => Ok(target),
        false => Err(RealmError::Foreign {
            host: host.to_owned(),
        }),
    }
}

fn belongs(upstream: &str, host: &str) -> bool {
    if upstream == host || KNOWN.contains(&(upstream, host)) {
        return true;
    }
    // Literals and local names have no domain to share.
    let named = |host: &str| literal(host).is_none() && Reach::to_host(host) == Reach::Public;
    named(upstream)
        && named(host)
        && match (registrable(upstream), registrable(host)) {
            (Some(upstream), Some(host)) => upstream == host,
            _ => false,
        }
}

/// `docker.io` of `registry-1.docker.io`; `None` for a suffix itself or a single label.
fn registrable(host: &str) -> Option<&str> {
    let dots: Vec<usize> = host.rmatch_indices('.').map(|(at, _)| at).collect();
    let after = |dot: usize| &host[dot + 1..];
    let last_two = dots.get(1).map_or(host, |&dot| after(dot));
    match (dots.len(), SUFFIXES.contains(&last_two)) {
        (0, _) | (1, true) => None,
        (_, false) => Some(last_two),
        (2, true) => Some(host),
        (_, true) => Some(after(dots[2])),
    }
}

#[cfg(test)]
mod tests {
    use super::{RealmError, TargetError, check, registrable};

    #[test]
    fn registrable_domains() {
        for (host, domain) in [
            ("registry-1.docker.io", Some("docker.io")),
            ("docker.io", Some("docker.io")),
            ("a.b.c.example.com", Some("example.com")),
            ("registry.example.co.uk", Some("example.co.uk")),
            ("example.co.uk", Some("example.co.uk")),
            ("co.uk", None),
            ("mine.azurecr.io", Some("mine.azurecr.io")),
            ("registry", None),
        ] {
            assert_eq!(registrable(host), domain, "{host}");
        }
    }

    #[test]
    fn realms_that_belong() {
        for (upstream, realm) in [
            (
                "https://registry-1.docker.io",
                "https://auth.docker.io/token",
            ),
            ("https://ghcr.io", "https://ghcr.io/token"),
            ("https://quay.io", "https://quay.io/v2/auth"),
            ("https://gcr.io", "https://gcr.io/v2/token"),
            ("https://lscr.io", "https://ghcr.io/token"),
            ("https://dhi.io", "https://dhi.io/token"),
            (
                "https://registry.gitlab.com",
                "https://gitlab.com/jwt/auth?x=y",
            ),
            (
                "https://registry.example.co.uk",
                "https://auth.example.co.uk:8443/t",
            ),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001/token"),
            ("http://127.0.0.1:5000", "https://127.0.0.1:5001/token"),
            ("http://localhost:5000", "http://localhost:5001/token"),
            ("http://registry:5000", "http://registry:5001/token"),
            ("https://10.0.0.1", "https://10.0.0.1:5001/token"),
        ] {
            assert!(
                check(&upstream.parse().expect(upstream), &[], realm).is_ok(),
                "{upstream} {realm}"
            );
        }
    }

    #[test]
    fn realms_that_do_not() {
        let foreign = |host: &str| RealmError::Foreign {
            host: host.to_owned(),
        };
        for (upstream, realm, error) in [
            (
                "https://registry-1.docker.io",
                "http://auth.docker.io/token",
                RealmError::Downgrade,
            ),
            (
                "https://ghcr.io",
                "https://evil.example/token",
                foreign("evil.example"),
            ),
            (
                "https://ghcr.io",
                "https://ghcr.io.evil.example/",
                foreign("ghcr.io.evil.example"),
            ),
            (
                "https://ghcr.io",
                "https://evilghcr.io/token",
                foreign("evilghcr.io"),
            ),
            (
                "https://a.co.uk",
                "https://b.co.uk/token",
                foreign("b.co.uk"),
            ),
            (
                "https://a.azurecr.io",
                "https://b.azurecr.io/token",
                foreign("b.azurecr.io"),
            ),
            (
                "https://ghcr.io",
                "https://127.0.0.1/token",
                foreign("127.0.0.1"),
            ),
            (
                "https://ghcr.io",
                "https://localhost/token",
                foreign("localhost"),
            ),
            (
                "https://ghcr.io",
                "https://169.254.169.254/",
                foreign("169.254.169.254"),
            ),
            (
                "https://10.0.0.1",
                "https://10.0.0.2/token",
                foreign("10.0.0.2"),
            ),
            (
                "http://registry:5000",
                "http://metadata/token",
                foreign("metadata"),
            ),
            ("https://ghcr.io", "/token", TargetError::Scheme.into()),
            (
                "https://ghcr.io",
                "ldap://ghcr.io/token",
                TargetError::Scheme.into(),
            ),
            (
                "https://ghcr.io",
                "https://ghcr.io/\u{e4}",
                TargetError::Characters.into(),
            ),
        ] {
            let upstream = upstream.parse().expect(upstream);
            assert_eq!(check(&upstream, &[], realm), Err(error), "{realm}");
        }
    }

    #[test]
    fn realms_that_are_listed() {
        let upstream = "https://ghcr.io".parse().expect("a url");
        let listed = ["https://auth.example", "http://10.0.0.1:5001"];
        let listed = listed.map(|origin| origin.parse().expect(origin));
        for realm in ["https://auth.example/token?x=y", "http://10.0.0.1:5001/t"] {
            assert!(check(&upstream, &listed, realm).is_ok(), "{realm}");
        }
        for realm in [
            "https://auth.example:8443/token",
            "https://x.auth.example/token",
            "https://10.0.0.1:5001/t",
        ] {
            assert!(check(&upstream, &listed, realm).is_err(), "{realm}");
        }
        let http = Err(RealmError::Downgrade);
        assert_eq!(check(&upstream, &listed, "http://auth.example/"), http);
    }
}
