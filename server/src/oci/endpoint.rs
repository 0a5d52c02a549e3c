//! Endpoints: what a method and a target ask for (OCI, "Endpoints").
//!
//! The three shapes of a pull through a mirror are told apart here, and nothing is looked up:
//! `/v2/<project>/<repository>/…` and `/v2/<repository>/…?ns=<host>` leave the whole name as it
//! is, `/<project>/v2/<repository>/…` gives the project as prefix.
//! A path is taken literally. Only the value of `ns` is ever percent-decoded.

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use entrepot_storage::Digest;
use thiserror::Error;

use super::name;
use crate::http::head::Method;

/// Octets of a query that is passed on and kept as part of a key. The rest after
/// `n` and `last` is room for the page tokens that some registries make up.
pub const QUERY_LEN_MAX: usize = 2048;
/// Octets of an `ns`: a host name has at most 253, a port six.
pub const NS_LEN_MAX: usize = 260;
/// Largest page of a tag list: what it lists is held in memory.
pub const PAGE_MAX: u32 = 10_000;

/// A parsed request target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The project of `/<project>/v2/…`.
    pub prefix: Option<&'a str>,
    /// The host of `?ns=<host>`: a key to look up, never a place to dial.
    pub ns: Option<Cow<'a, str>>,
    pub endpoint: Endpoint<'a>,
}

/// What is asked for. A name is all that stands between `/v2/` and the endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint<'a> {
    Base,
    Catalog,
    Manifest {
        name: &'a str,
        reference: Reference<'a>,
    },
    Blob {
        name: &'a str,
        digest: Digest,
    },
    /// The query is as the client sent it, without `ns`.
    Tags {
        name: &'a str,
        query: Cow<'a, str>,
    },
    Referrers {
        name: &'a str,
        digest: Digest,
        query: Cow<'a, str>,
    },
    /// Any endpoint with a method other than GET and HEAD, and the upload of blobs with any. The
    /// name is empty where the endpoint has none.
    Upload {
        name: &'a str,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference<'a> {
    Tag(&'a str),
    Digest(Digest),
}

/// Why a target is no endpoint. `error::answer` has the status and code of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RouteError {
    #[error("invalid digest")]
    DigestInvalid,
    #[error("invalid repository name")]
    NameInvalid,
    #[error("invalid ns parameter")]
    NamespaceInvalid,
    #[error("no such endpoint")]
    NotFound,
    #[error("invalid page size")]
    PageInvalid,
    #[error("percent-encoded path")]
    PercentEncoded,
    #[error("invalid query")]
    QueryInvalid,
    #[error("query too long")]
    QueryTooLong,
    #[error("invalid tag")]
    TagInvalid,
}

/// Parses a request target in origin form.
pub fn parse(method: Method, target: &str) -> Result<Request<'_>, RouteError> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if path.contains('%') {
        return Err(RouteError::PercentEncoded);
    }
    let (prefix, rest) = split_prefix(path).ok_or(RouteError::NotFound)?;
    let endpoint = endpoint(rest, query)?;
    Ok(Request {
        prefix,
        ns: namespace(query)?,
        endpoint: match method {
            Method::Get | Method::Head => endpoint,
            _ => Endpoint::Upload {
                name: endpoint.name(),
            },
        },
    })
}

impl<'a> Endpoint<'a> {
    /// The repository name, empty where there is none.
    pub fn name(&self) -> &'a str {
        match self {
            Endpoint::Base | Endpoint::Catalog => "",
            Endpoint::Manifest { name, .. }
            | Endpoint::Blob { name, .. }
            | Endpoint::Tags { name, .. }
            | Endpoint::Referrers { name, .. }
            | Endpoint::Upload { name } => name,
        }
    }
}

/// Cuts `/v2/` or `/<project>/v2/` off a path. A project cannot be called v2.
fn split_prefix(path: &str) -> Option<(Option<&str>, &str)> {
    let path = path.strip_prefix('/')?;
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    if first == "v2" {
        return Some((None, rest));
    }
    let (second, rest) = rest.split_once('/').unwrap_or((rest, ""));
    (second == "v2" && name::is_component(first)).then_some((Some(first), rest))
}

/// Read from the right, since a name may contain every word that stands for an endpoint.
fn endpoint<'a>(rest: &'a str, query: &'a str) -> Result<Endpoint<'a>, RouteError> {
    match rest {
        "" => return Ok(Endpoint::Base),
        "_catalog" => return Ok(Endpoint::Catalog),
        _ => {}
    }
    let (before, last) = rest.rsplit_once('/').ok_or(RouteError::NotFound)?;
    let (name, word) = before.rsplit_once('/').unwrap_or(("", before));
    Ok(match (word, last) {
        ("manifests", _) => Endpoint::Manifest {
            name: repository(name)?,
            reference: reference(last)?,
        },
        ("blobs", "uploads") => Endpoint::Upload {
            name: repository(name)?,
        },
        ("blobs", _) => Endpoint::Blob {
            name: repository(name)?,
            digest: digest(last)?,
        },
        ("tags", "list") => Endpoint::Tags {
            name: repository(name)?,
            query: page(passed_on(query)?)?,
        },
        ("referrers", _) => Endpoint::Referrers {
            name: repository(name)?,
            digest: digest(last)?,
            query: passed_on(query)?,
        },
        ("uploads", _) => Endpoint::Upload {
            name: repository(name.strip_suffix("/blobs").ok_or(RouteError::NotFound)?)?,
        },
        _ => return Err(RouteError::NotFound),
    })
}

fn repository(name: &str) -> Result<&str, RouteError> {
    name::is_repository(name)
        .then_some(name)
        .ok_or(RouteError::NameInvalid)
}

fn digest(text: &str) -> Result<Digest, RouteError> {
    Digest::parse(text).map_err(|_| RouteError::DigestInvalid)
}

/// A tag has no colon, a digest has one.
fn reference(text: &str) -> Result<Reference<'_>, RouteError> {
    if text.contains(':') {
        return digest(text).map(Reference::Digest);
    }
    name::is_tag(text)
        .then_some(Reference::Tag(text))
        .ok_or(RouteError::TagInvalid)
}

/// The pairs of a query whose key is not `ns`, as they were sent.
fn passed_on(query: &str) -> Result<Cow<'_, str>, RouteError> {
    if query.len() > QUERY_LEN_MAX {
        return Err(RouteError::QueryTooLong);
    }
    if percent_decoded(query).is_none() {
        return Err(RouteError::QueryInvalid);
    }
    if namespaces(query).next().is_none() {
        return Ok(Cow::Borrowed(query));
    }
    let mut rest = String::with_capacity(query.len());
    for pair in query.split('&').filter(|pair| !pair.starts_with("ns=")) {
        if !rest.is_empty() {
            rest.push('&');
        }
        rest.push_str(pair);
    }
    Ok(Cow::Owned(rest))
}

/// OCI, "Listing Tags": `n` is a number; we bound it.
fn page(query: Cow<'_, str>) -> Result<Cow<'_, str>, RouteError> {
    for number in query.split('&').filter_map(|pair| pair.strip_prefix("n=")) {
        // A sign is no digit, though `parse` would take it.
        let digits = number.bytes().all(|byte| byte.is_ascii_digit());
        let size = number
            .parse()
            .ok()
            .filter(|size: &u32| digits && *size <= PAGE_MAX);
        size.ok_or(RouteError::PageInvalid)?;
    }
    Ok(query)
}

/// OCI, "Registry Proxying": the host whose repository is meant, in lower case.
fn namespace(query: &str) -> Result<Option<Cow<'_, str>>, RouteError> {
    let mut values = namespaces(query);
    let Some(value) = values.next() else {
        return Ok(None);
    };
    // Two would leave it to chance whose content is served.
    if values.next().is_some() {
        return Err(RouteError::NamespaceInvalid);
    }
    let host = percent_decoded(value).ok_or(RouteError::NamespaceInvalid)?;
    let of_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    if host.is_empty() || host.len() > NS_LEN_MAX || !host.bytes().all(of_host) {
        return Err(RouteError::NamespaceInvalid);
    }
    Ok(Some(
        if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(host.to_ascii_lowercase())
        } else {
            host
        },
    ))
}

fn namespaces(query: &str) -> impl Iterator<Item = &str> {
    query.split('&').filter_map(|pair| pair.strip_prefix("ns="))
}

/// `None` unless every `%` is followed by two hex digits and the result is UTF-8.
fn percent_decoded(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            decoded.push(*byte);
            continue;
        }
        let (pair, after) = rest.split_first_chunk::<2>()?;
        let nibble = |digit: u8| char::from(digit).to_digit(16);
        decoded.push((nibble(pair[0])? << 4 | nibble(pair[1])?) as u8);
        rest = after;
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

/// What must hold for any bytes at all.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    let Ok(target) = std::str::from_utf8(data) else {
        return;
    };
    let read = parse(Method::Get, target);
    let written = parse(Method::Put, target);
    assert_eq!(read.is_ok(), written.is_ok());
    let Ok(request) = read else {
        return;
    };
    let name = request.endpoint.name();
    assert!(name.is_empty() || name::is_repository(name));
    assert!(request.prefix.is_none_or(name::is_component));
    let Some(path) = path_of(&request.endpoint) else {
        return;
    };
    // Written again, it is the same request.
    let mut again = request
        .prefix
        .map_or_else(String::new, |prefix| format!("/{prefix}"));
    again.push_str(&path);
    if let Some(ns) = &request.ns {
        again.push(if again.contains('?') { '&' } else { '?' });
        again.push_str(&format!("ns={ns}"));
    }
    assert_eq!(parse(Method::Get, &again).as_ref(), Ok(&request), "{again}");
}

/// The target of an endpoint that is read, without prefix and `ns`.
#[cfg(any(test, fuzzing))]
fn path_of(endpoint: &Endpoint<'_>) -> Option<String> {
    let (path, query) = match endpoint {
        Endpoint::Base => ("/v2/".to_owned(), ""),
        Endpoint::Catalog => ("/v2/_catalog".to_owned(), ""),
        Endpoint::Manifest { name, reference } => {
            let path = match reference {
                Reference::Tag(tag) => format!("/v2/{name}/manifests/{tag}"),
                Reference::Digest(digest) => format!("/v2/{name}/manifests/{digest}"),
            };
            (path, "")
        }
        Endpoint::Blob { name, digest } => (format!("/v2/{name}/blobs/{digest}"), ""),
        Endpoint::Tags { name, query } => (format!("/v2/{name}/tags/list"), &query[..]),
        Endpoint::Referrers {
            name,
            digest,
            query,
        } => (format!("/v2/{name}/referrers/{digest}"), &query[..]),
        Endpoint::Upload { .. } => return None,
    };
    let mark = if query.is_empty() { "" } else { "?" };
    Some(format!("{path}{mark}{query}"))
}
