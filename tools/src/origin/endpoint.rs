//! What a path asks for, on each of the listeners.

use serde::{Deserialize, Serialize};

/// Which listener a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Registry,
    Cdn,
    Token,
}

impl Side {
    pub const ALL: [Side; 3] = [Side::Registry, Side::Cdn, Side::Token];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Base,
    Manifest,
    Blob,
    Tags,
    Referrers,
    Token,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint<'a> {
    pub kind: Kind,
    pub repository: Option<&'a str>,
    /// Tag or digest; empty where there is none.
    pub reference: &'a str,
}

impl<'a> Endpoint<'a> {
    pub fn parse(side: Side, path: &'a str) -> Endpoint<'a> {
        let found = match side {
            Side::Registry => Endpoint::parse_registry(path),
            Side::Cdn => path
                .strip_prefix("/blobs/")
                .and_then(|rest| rest.rsplit_once('/'))
                .map(|(name, digest)| Endpoint::of(Kind::Blob, name, digest)),
            Side::Token if path == "/token" => Some(Endpoint::bare(Kind::Token)),
            Side::Token => None,
        };
        found.unwrap_or(Endpoint::bare(Kind::Other))
    }

    fn parse_registry(path: &'a str) -> Option<Endpoint<'a>> {
        let rest = path.strip_prefix("/v2")?;
        if rest.is_empty() || rest == "/" {
            return Some(Endpoint::bare(Kind::Base));
        }
        let rest = rest.strip_prefix('/')?;
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Some(Endpoint::of(Kind::Tags, name, ""));
        }
        let (front, reference) = rest.rsplit_once('/')?;
        let (name, word) = front.rsplit_once('/')?;
        let kind = match word {
            "manifests" => Kind::Manifest,
            "blobs" => Kind::Blob,
            "referrers" => Kind::Referrers,
            _ => return None,
        };
        Some(Endpoint::of(kind, name, reference))
    }

    fn of(kind: Kind, repository: &'a str, reference: &'a str) -> Endpoint<'a> {
        Endpoint {
            kind,
            repository: Some(repository),
            reference,
        }
    }

    fn bare(kind: Kind) -> Endpoint<'a> {
        Endpoint {
            kind,
            repository: None,
            reference: "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (side, path, kind, repository, reference) in [
            (Side::Registry, "/v2/", Kind::Base, None, ""),
            (Side::Registry, "/v2", Kind::Base, None, ""),
            (
                Side::Registry,
                "/v2/a/b/manifests/1.0",
                Kind::Manifest,
                Some("a/b"),
                "1.0",
            ),
            (
                Side::Registry,
                "/v2/a/blobs/sha256:0",
                Kind::Blob,
                Some("a"),
                "sha256:0",
            ),
            (Side::Registry, "/v2/a/tags/list", Kind::Tags, Some("a"), ""),
            (
                Side::Registry,
                "/v2/a/referrers/d",
                Kind::Referrers,
                Some("a"),
                "d",
            ),
            (
                Side::Registry,
                "/v2/a/blobs/uploads/",
                Kind::Other,
                None,
                "",
            ),
            (Side::Registry, "/v3/", Kind::Other, None, ""),
            (
                Side::Cdn,
                "/blobs/a/b/sha256:0",
                Kind::Blob,
                Some("a/b"),
                "sha256:0",
            ),
            (Side::Cdn, "/v2/", Kind::Other, None, ""),
            (Side::Token, "/token", Kind::Token, None, ""),
        ] {
            let expected = Endpoint {
                kind,
                repository,
                reference,
            };
            assert_eq!(Endpoint::parse(side, path), expected, "{path}");
        }
    }
}
