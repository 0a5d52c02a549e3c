//! The real answers: registry endpoints, the cdn's blobs, and tokens.

use std::time::Instant;

use serde_json::json;

use super::Origin;
use super::answer::Answer;
use super::auth::{self, Verdict};
use super::body::Body;
use super::digest::Digest;
use super::endpoint::{Endpoint, Kind, Side};
use super::http::{self, RequestHead};
use super::image::OCI_INDEX;

impl Origin {
    pub(super) fn respond(&self, side: Side, head: &RequestHead, body: &[u8]) -> Answer {
        let endpoint = Endpoint::parse(side, &head.path);
        let mut answer = match side {
            Side::Registry => self.respond_registry(&endpoint, head),
            Side::Cdn => self.respond_cdn(&endpoint, head),
            Side::Token => self.respond_token(&endpoint, head, body),
        };
        if side == Side::Registry {
            answer.field("Docker-Distribution-API-Version", "registry/2.0");
        }
        answer
    }

    fn respond_registry(&self, endpoint: &Endpoint<'_>, head: &RequestHead) -> Answer {
        let kind = endpoint.kind;
        if kind == Kind::Other || !matches!(head.method.as_str(), "GET" | "HEAD") {
            return Answer::error(405, Kind::Other, "pull only");
        }
        if let Some(name) = endpoint.repository {
            self.make_pending(name);
        }
        if let Some(refusal) = self.refuse(endpoint, head) {
            return refusal;
        }
        let Some(name) = endpoint.repository else {
            return Answer::json(200, &json!({}));
        };
        if !self.registry().contains(name) {
            return Answer::oci_error(404, "NAME_UNKNOWN", "repository unknown");
        }
        match kind {
            Kind::Manifest => self.manifest(name, endpoint.reference, head),
            Kind::Blob => self.blob(name, endpoint.reference, head),
            Kind::Tags => self.tags(name, head),
            _ => self.referrers(name, endpoint.reference, head),
        }
    }

    fn refuse(&self, endpoint: &Endpoint<'_>, head: &RequestHead) -> Option<Answer> {
        let name = endpoint.repository;
        let private = name.is_some_and(|name| self.registry().is_private(name));
        let verdict = self
            .auth()
            .check(head.field("authorization"), name, private);
        match verdict {
            Verdict::Granted => None,
            Verdict::Challenged(challenge) => {
                let mut answer = Answer::error(401, endpoint.kind, "authentication required");
                answer.field("WWW-Authenticate", &challenge);
                Some(answer)
            }
            Verdict::Hidden(status) => Some(Answer::error(status, Kind::Other, "not for you")),
        }
    }

    fn manifest(&self, name: &str, reference: &str, head: &RequestHead) -> Answer {
        let unknown = |message| Answer::error(404, Kind::Manifest, message);
        let limit = self.count_pull(head.method == "GET");
        let mut answer = match self.registry().resolve(name, reference) {
            _ if limit.as_ref().is_some_and(|limit| limit.exceeded) => {
                Answer::error(429, Kind::Manifest, "too many pulls")
            }
            None => unknown("manifest unknown"),
            Some(manifest) if !accepts(head, &manifest.media_type) => {
                unknown("manifest found, but no Accept line has its type")
            }
            Some(manifest) => {
                let digest = manifest.digest.as_str();
                let body = Body::held(manifest.bytes);
                Answer::content(head, digest, &manifest.media_type, body)
            }
        };
        if let Some(limit) = limit {
            answer.fields.extend(limit.fields);
        }
        answer
    }

    fn blob(&self, name: &str, reference: &str, head: &RequestHead) -> Answer {
        let Some(digest) = Digest::parse(reference) else {
            return Answer::oci_error(400, "DIGEST_INVALID", "not a digest");
        };
        match self.registry().blob(name, &digest) {
            None => Answer::error(404, Kind::Blob, "blob unknown to this repository"),
            Some(body) => Answer::content(head, digest.as_str(), "application/octet-stream", body),
        }
    }

    fn tags(&self, name: &str, head: &RequestHead) -> Answer {
        let pairs = http::query_pairs(&head.query);
        let value = |name: &str| pairs.iter().find(|pair| pair.0 == name).map(|pair| &pair.1);
        let mut tags = self.registry().tags(name).unwrap_or_default();
        if let Some(last) = value("last") {
            tags.retain(|tag| tag > last);
        }
        let page_len = value("n").and_then(|n| n.parse::<usize>().ok());
        let more = page_len.is_some_and(|len| len > 0 && tags.len() > len);
        tags.truncate(page_len.unwrap_or(usize::MAX));
        let mut answer = Answer::json(200, &json!({"name": name, "tags": tags}));
        if let (true, Some(last), Some(len)) = (more, tags.last(), page_len) {
            let next = format!("</v2/{name}/tags/list?n={len}&last={last}>; rel=\"next\"");
            answer.field("Link", &next);
        }
        answer
    }

    fn referrers(&self, name: &str, reference: &str, head: &RequestHead) -> Answer {
        let Some(digest) = Digest::parse(reference) else {
            return Answer::oci_error(400, "DIGEST_INVALID", "not a digest");
        };
        let pairs = http::query_pairs(&head.query);
        let wanted = pairs.iter().find(|pair| pair.0 == "artifactType");
        let wanted = wanted.map(|pair| pair.1.as_str());
        let found = self
            .registry()
            .referrers(name, &digest, wanted)
            .unwrap_or_default();
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found});
        let text = serde_json::to_vec(&index).expect("a JSON value");
        let mut answer = Answer::new(200, OCI_INDEX, Body::held(text));
        if wanted.is_some() {
            answer.field("OCI-Filters-Applied", "artifactType");
        }
        answer
    }

    fn respond_cdn(&self, endpoint: &Endpoint<'_>, head: &RequestHead) -> Answer {
        if head.field("authorization").is_some() {
            return Answer::error(400, Kind::Other, "signed URL and Authorization together");
        }
        match endpoint.repository {
            Some(name) => self.blob(name, endpoint.reference, head),
            None => Answer::error(404, Kind::Other, "nothing here"),
        }
    }

    fn respond_token(&self, endpoint: &Endpoint<'_>, head: &RequestHead, body: &[u8]) -> Answer {
        if endpoint.kind != Kind::Token {
            return Answer::error(404, Kind::Other, "tokens are at /token");
        }
        let mut pairs = http::query_pairs(&head.query);
        let mut login = head.field("authorization").and_then(auth::basic_login);
        if head.method == "POST" {
            pairs = http::query_pairs(&String::from_utf8_lossy(body));
            let value = |name: &str| pairs.iter().find(|pair| pair.0 == name);
            login = value("username")
                .zip(value("password"))
                .map(|(name, password)| (name.1.clone(), password.1.clone()));
        }
        let scopes = pairs
            .into_iter()
            .filter(|pair| pair.0 == "scope")
            .map(|pair| pair.1);
        let scopes: Vec<String> = scopes.collect();
        // The registry is locked before the tokens wherever both are.
        let registry = self.registry();
        let is_private = |name: &str| registry.is_private(name);
        let issued = self
            .auth()
            .issue(login, &scopes, is_private, Instant::now());
        let Some(token) = issued else {
            return Answer::error(401, Kind::Token, "wrong credentials");
        };
        let mut answer = json!({
            "token": token.token, "access_token": token.token,
            "issued_at": "2024-01-01T00:00:00Z",
        });
        if let Some(seconds) = token.expires_in {
            answer["expires_in"] = json!(seconds);
        }
        Answer::json(200, &answer)
    }

    /// Counts a GET against the rate limit, if there is one.
    fn count_pull(&self, counts: bool) -> Option<PullLimit> {
        let mut limit = self.limit.lock().unwrap();
        let limit = limit.as_mut()?;
        let exceeded = counts && limit.remaining == 0;
        if counts {
            limit.remaining = limit.remaining.saturating_sub(1);
        }
        let field =
            |name: &str, count: u64| (name.to_owned(), format!("{count};w={}", limit.window_s));
        let mut fields = vec![
            field("ratelimit-limit", limit.limit),
            field("ratelimit-remaining", limit.remaining),
        ];
        if exceeded {
            fields.push(("Retry-After".to_owned(), limit.window_s.to_string()));
        }
        Some(PullLimit { exceeded, fields })
    }
}

struct PullLimit {
    exceeded: bool,
    fields: Vec<(String, String)>,
}

fn accepts(head: &RequestHead, media_type: &str) -> bool {
    let mut lines = head.fields("accept").peekable();
    let agrees = |part: &str| {
        let wanted = part.split(';').next().unwrap_or("").trim();
        wanted == media_type || wanted == "*/*"
    };
    lines.peek().is_none() || lines.any(|line| line.split(',').any(agrees))
}
