//! What is asked for: where, how, and what the answer must be.

use std::rc::Rc;

use super::digest::Expected;
use super::meter::Kind;
use super::url::{Origin, Url};

#[derive(Debug)]
pub struct Target {
    pub url: Url,
    pub kind: Kind,
    pub head_only: bool,
    /// When the body is verified.
    pub digest: Option<Expected>,
    /// The length of a good answer's body.
    pub len: Option<u64>,
    /// The only good one; else those below 300 are.
    pub status: Option<u16>,
    /// Keep the body.
    pub keep: bool,
    /// What a token for it must allow; from the challenge if none.
    pub scope: Option<String>,
    /// Lines behind Host.
    fields: Rc<str>,
    /// Without credentials; sent as it is, again and again.
    request: Rc<[u8]>,
}

impl Target {
    /// `fields` are whole lines.
    pub fn get(url: Url, kind: Kind, fields: &str) -> Target {
        Target::new(url, kind, false, fields)
    }

    pub fn new(url: Url, kind: Kind, head_only: bool, fields: &str) -> Target {
        let request = compose(&url, head_only, fields, None);
        let scope = repository_of(&url.path).map(pull_scope);
        Target {
            url,
            kind,
            head_only,
            digest: None,
            len: None,
            status: None,
            keep: false,
            scope,
            fields: fields.into(),
            request,
        }
    }

    pub fn origin(&self) -> &Origin {
        &self.url.origin
    }

    pub fn request(&self) -> &Rc<[u8]> {
        &self.request
    }

    /// The same with credentials, or to where a redirect leads.
    pub fn request_to(&self, url: &Url, authorization: Option<&str>) -> Rc<[u8]> {
        compose(url, self.head_only, &self.fields, authorization)
    }
}

fn compose(url: &Url, head_only: bool, fields: &str, authorization: Option<&str>) -> Rc<[u8]> {
    let method = if head_only { "HEAD" } else { "GET" };
    let host = url.origin.authority();
    let mut request = format!("{method} {} HTTP/1.1\r\nHost: {host}\r\n{fields}", url.path);
    if let Some(authorization) = authorization {
        request.push_str(&format!("Authorization: {authorization}\r\n"));
    }
    request.push_str("\r\n");
    request.into_bytes().into()
}

/// `library/app` of `/v2/library/app/blobs/...`.
fn repository_of(path: &str) -> Option<&str> {
    let path = path.split('?').next()?.strip_prefix("/v2/")?;
    let ends = ["/manifests/", "/blobs/", "/tags/", "/referrers/"];
    let end = ends.into_iter().find_map(|end| path.rfind(end))?;
    Some(&path[..end])
}

/// The scope of a token that may pull (distribution specification of tokens, "Scope").
pub fn pull_scope(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        let url = Url::parse("http://127.0.0.1:5000/v2/a/b/blobs/x?ns=x").unwrap();
        let target = Target::get(url, Kind::Blob, "Accept: a/b\r\nX-Y: z\r\n");
        let expected = "GET /v2/a/b/blobs/x?ns=x HTTP/1.1\r\nHost: 127.0.0.1:5000\r\n\
            Accept: a/b\r\nX-Y: z\r\n";
        let request = |bytes: &Rc<[u8]>| String::from_utf8(bytes.to_vec()).unwrap();
        assert_eq!(request(target.request()), format!("{expected}\r\n"));
        assert_eq!(target.scope.as_deref(), Some("repository:a/b:pull"));
        let same = target.request_to(&target.url, Some("Bearer t"));
        let expected = format!("{expected}Authorization: Bearer t\r\n\r\n");
        assert_eq!(request(&same), expected);
    }

    #[test]
    fn repositories() {
        assert_eq!(
            repository_of("/v2/a/manifests/b/manifests/1"),
            Some("a/manifests/b")
        );
        assert_eq!(repository_of("/v2/"), None);
        assert_eq!(repository_of("/blobs/a"), None);
    }
}
