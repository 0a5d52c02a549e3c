//! Names of images, and what their manifests say (OCI image specification).

use serde::Deserialize;

use super::url::{Origin, Url};

/// An image as a person names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub registry: Origin,
    /// `library/alpine`
    pub repository: String,
    /// A tag or a digest.
    pub reference: String,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "{0}: an image is http[s]://HOST[:PORT]/REPOSITORY[:TAG|@DIGEST], or HOST/REPOSITORY... for \
     https, as in http://127.0.0.1:5000/dh/library/alpine:3.20 or docker.io/library/alpine:3.20"
)]
pub struct NameError(String);

impl Name {
    pub fn parse(text: &str) -> Result<Name, NameError> {
        Name::read(text).ok_or_else(|| NameError(text.to_owned()))
    }

    fn read(text: &str) -> Option<Name> {
        let with_scheme = match text.contains("://") {
            true => text.to_owned(),
            false => {
                let (host, rest) = text.split_once('/')?;
                // `library/alpine` alone names no registry.
                if !host.contains(['.', ':']) && host != "localhost" {
                    return None;
                }
                match host {
                    "docker.io" if !rest.contains('/') => {
                        format!("https://registry-1.docker.io/library/{rest}")
                    }
                    "docker.io" => format!("https://registry-1.docker.io/{rest}"),
                    _ => format!("https://{text}"),
                }
            }
        };
        let url = Url::parse(&with_scheme).ok()?;
        let path = url.path.strip_prefix('/')?;
        let (repository, reference) = match path.split_once('@') {
            Some((name, digest)) => {
                // A digest decides, whatever tag stands before it.
                let end = name.rfind(':').unwrap_or(name.len());
                (&name[..end], digest)
            }
            None => path.rsplit_once(':').unwrap_or((path, "latest")),
        };
        if repository.is_empty() || reference.is_empty() || path.contains('?') {
            return None;
        }
        Some(Name {
            registry: url.origin,
            repository: repository.to_owned(),
            reference: reference.to_owned(),
        })
    }

    /// Of this repository: `what` is `manifests` or `blobs`.
    pub fn url(&self, what: &str, reference: &str, query: &str) -> Url {
        Url {
            origin: self.registry.clone(),
            path: format!("/v2/{}/{what}/{reference}{query}", self.repository),
        }
    }
}

/// What an image runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// `linux/arm64/v8`
    pub fn parse(text: &str) -> Option<Platform> {
        let mut parts = text.split('/').map(str::to_owned);
        let platform = Platform {
            os: parts.next().filter(|part| !part.is_empty())?,
            architecture: parts.next().filter(|part| !part.is_empty())?,
            variant: parts.next(),
        };
        parts.next().is_none().then_some(platform)
    }

    fn fits(&self, other: &PlatformField) -> bool {
        let variant = self.variant.is_none() || self.variant == other.variant;
        self.os == other.os && self.architecture == other.architecture && variant
    }
}

#[derive(Debug, Deserialize)]
pub struct Descriptor {
    pub digest: String,
    pub size: u64,
    platform: Option<PlatformField>,
}

#[derive(Debug, Deserialize)]
struct PlatformField {
    os: String,
    architecture: String,
    variant: Option<String>,
}

#[derive(Deserialize)]
struct Document {
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

/// What a manifest leads to.
#[derive(Debug)]
pub enum Content {
    Index(Descriptor),
    /// Config first.
    Image(Vec<Descriptor>),
}

impl Content {
    /// Of an index the one for the platform; `None`: no manifest, or not for the platform.
    pub fn parse(body: &[u8], platform: &Platform) -> Option<Content> {
        let document: Document = serde_json::from_slice(body).ok()?;
        if let Some(manifests) = document.manifests {
            let fits = |descriptor: &Descriptor| {
                let field = descriptor.platform.as_ref();
                field.is_some_and(|field| platform.fits(field))
            };
            return manifests.into_iter().find(fits).map(Content::Index);
        }
        let mut parts = vec![document.config?];
        parts.extend(document.layers?);
        Some(Content::Image(parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (text, registry, repository, reference) in [
            (
                "http://127.0.0.1:5000/dh/a:1",
                "127.0.0.1:5000",
                "dh/a",
                "1",
            ),
            (
                "docker.io/alpine",
                "registry-1.docker.io",
                "library/alpine",
                "latest",
            ),
            ("docker.io/a/b:1", "registry-1.docker.io", "a/b", "1"),
            ("ghcr.io/a/b@sha256:0", "ghcr.io", "a/b", "sha256:0"),
            ("https://h/a:1@sha256:0", "h", "a", "sha256:0"),
            ("localhost:5000/a", "localhost:5000", "a", "latest"),
        ] {
            let name = Name::parse(text).unwrap();
            assert_eq!(name.registry.authority(), registry, "{text}");
            assert_eq!(
                (&*name.repository, &*name.reference),
                (repository, reference)
            );
        }
        for bad in [
            "alpine",
            "library/alpine:1",
            "http://h",
            "http://h/a:",
            "ftp://h/a",
        ] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn contents() {
        let platform = Platform::parse("linux/arm64").unwrap();
        let index = br#"{"manifests":[
            {"digest":"a","size":1,"platform":{"os":"linux","architecture":"amd64"}},
            {"digest":"b","size":2},
            {"digest":"c","size":3,"platform":{"os":"linux","architecture":"arm64","variant":"v8"}}]}"#;
        let found = Content::parse(index, &platform);
        assert!(matches!(found, Some(Content::Index(one)) if one.digest == "c"));
        let v7 = Platform::parse("linux/arm64/v7").unwrap();
        assert!(Content::parse(index, &v7).is_none());
        let image = br#"{"config":{"digest":"a","size":1},"layers":[{"digest":"b","size":2}]}"#;
        let found = Content::parse(image, &platform);
        assert!(matches!(found, Some(Content::Image(parts)) if parts.len() == 2));
        for bad in [&b"{}"[..], b"x", br#"{"config":{"digest":"a","size":1}}"#] {
            assert!(Content::parse(bad, &platform).is_none());
        }
        for bad in ["linux", "linux/", "a/b/c/d"] {
            assert_eq!(Platform::parse(bad), None, "{bad}");
        }
    }
}
