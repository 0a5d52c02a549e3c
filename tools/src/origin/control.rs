//! The `/_origin/` API: content, faults, listeners, log and waiting.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::auth::{Mode, User};
use super::body::Body;
use super::digest::{Algorithm, Digest};
use super::endpoint::Side;
use super::fault::Rule;
use super::http::{self, RequestHead};
use super::image::{ImageError, ImageSpec, Manifest, OCI_EMPTY, OCI_MANIFEST};
use super::log::Filter;
use super::noise::{self, Noise};
use super::registry::Unknown;
use super::{Origin, RateLimit};

const WAIT_TIMEOUT_DEFAULT_MS: u64 = 10_000;

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("wrong body: {0}")]
    Body(#[from] serde_json::Error),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Unknown(#[from] Unknown),
    #[error("{0}")]
    Incomplete(&'static str),
    #[error("listener: {0}")]
    Listener(#[from] std::io::Error),
    #[error("no such call: {0}")]
    Call(String),
    #[error("time is up")]
    TimeUp,
}

impl ControlError {
    fn status(&self) -> u16 {
        match self {
            ControlError::Body(_) | ControlError::Image(_) | ControlError::Incomplete(_) => 400,
            ControlError::Unknown(_) | ControlError::Call(_) => 404,
            ControlError::TimeUp => 408,
            ControlError::Listener(_) => 500,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobSpec {
    repositories: Vec<String>,
    size: Option<u64>,
    #[serde(default)]
    seed: u64,
    text: Option<String>,
    #[serde(default)]
    algorithm: Algorithm,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestSpec {
    repository: String,
    media_type: String,
    text: String,
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactSpec {
    repository: String,
    artifact_type: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    seed: u64,
    subject: Option<Digest>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    annotations: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagSpec {
    repository: String,
    tag: String,
    digest: Option<Digest>,
    #[serde(default)]
    digests: Vec<Digest>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeleteSpec {
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PrivateSpec {
    repository: String,
    private: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RuleId {
    id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RateSpec {
    bytes_per_second: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AuthSpec {
    mode: Option<Mode>,
    users: Option<Vec<User>>,
    token_ttl_s: Option<u64>,
    expires_in_s: Option<u64>,
    private_status: Option<u16>,
    revoke_tokens: bool,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ListenerSpec {
    listeners: Vec<Side>,
}

impl Default for ListenerSpec {
    fn default() -> ListenerSpec {
        ListenerSpec {
            listeners: Side::ALL.to_vec(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WaitSpec {
    requests: Option<Filter>,
    count: Option<usize>,
    connections: Option<usize>,
    timeout_ms: Option<u64>,
}

/// What `--setup` holds.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Setup {
    images: Vec<ImageSpec>,
    blobs: Vec<BlobSpec>,
    manifests: Vec<ManifestSpec>,
    artifacts: Vec<ArtifactSpec>,
    tags: Vec<TagSpec>,
    faults: Vec<Rule>,
}

impl Origin {
    /// `connection` is the one that asks: it is not closed under its own call.
    pub(super) fn control(&self, head: &RequestHead, body: &[u8], connection: u64) -> Answer {
        let call = head.path.trim_start_matches("/_origin/");
        let called = match head.method.as_str() {
            "GET" => self.control_get(call, &head.query),
            "POST" => self.control_post(call, body, connection),
            _ => Err(ControlError::Call(format!("{} {call}", head.method))),
        };
        match called {
            Ok(value) => Answer::json(200, &value),
            Err(error) => Answer::json(error.status(), &json!({"error": error.to_string()})),
        }
    }

    fn control_get(&self, call: &str, query: &str) -> Result<Value, ControlError> {
        match call {
            "repositories" => {
                self.make_all_pending();
                Ok(self.registry().describe())
            }
            "faults" => Ok(self.faults.describe()),
            "log" => {
                let pairs = http::query_pairs(query).into_iter();
                let number = |value: String| match value.parse::<u16>() {
                    Ok(number) => json!(number),
                    Err(_) => json!(value),
                };
                let fields: Map<String, Value> = pairs
                    .map(|(name, value)| match name.as_str() {
                        "status" => (name, number(value)),
                        _ => (name, json!(value)),
                    })
                    .collect();
                let filter: Filter = serde_json::from_value(Value::Object(fields))?;
                Ok(self.log.entries(&filter))
            }
            "counters" => {
                let pairs = http::query_pairs(query);
                let part = pairs.iter().find(|pair| pair.0 == "contains");
                let mut counters = self.log.counters(part.map_or("", |pair| &pair.1));
                counters["tokens"] = json!(self.auth().issued());
                for side in Side::ALL {
                    let name = json!(side);
                    let name = name.as_str().unwrap_or_default();
                    counters["connections"][name] = json!(self.connections.accepted(side));
                }
                Ok(counters)
            }
            _ => Err(ControlError::Call(call.to_owned())),
        }
    }

    fn control_post(&self, call: &str, body: &[u8], asking: u64) -> Result<Value, ControlError> {
        let done = Ok(json!({}));
        match call {
            "images" => Ok(json!(self.put_image(&parse(body)?)?)),
            "blobs" => self.put_blob(&parse(body)?),
            "manifests" => self.put_manifest(&parse(body)?),
            "artifacts" => self.put_artifact(&parse(body)?),
            "tags" => self.put_tag(parse(body)?),
            "delete" => self.delete(&parse(body)?),
            "private" => {
                let spec: PrivateSpec = parse(body)?;
                self.registry().set_private(&spec.repository, spec.private);
                done
            }
            "faults" => Ok(json!({"id": self.faults.add(parse(body)?)})),
            "faults/clear" => {
                let spec: RuleId = parse(body)?;
                self.faults.clear(spec.id.as_deref());
                done
            }
            "release" => {
                let spec: RuleId = parse(body)?;
                Ok(json!({"released": self.faults.release(spec.id.as_deref())}))
            }
            "rate" => {
                let spec: RateSpec = parse(body)?;
                self.pace.set(spec.bytes_per_second);
                done
            }
            "rate-limit" => {
                let spec: Option<RateLimit> = serde_json::from_slice(body)?;
                *self.limit.lock().unwrap() = spec;
                done
            }
            "auth" => self.set_auth(parse(body)?),
            "log/clear" => {
                self.log.clear();
                self.connections.clear_accepted();
                done
            }
            "stop-listening" | "resume-listening" | "close-connections" => {
                self.set_listening(call, &parse(body)?, asking)
            }
            "wait" => self.wait(&parse(body)?, asking),
            _ => Err(ControlError::Call(call.to_owned())),
        }
    }

    pub(super) fn set_up(&self, setup: Setup) -> Result<(), ControlError> {
        for spec in &setup.images {
            self.put_image(spec)?;
        }
        for spec in &setup.blobs {
            self.put_blob(spec)?;
        }
        for spec in &setup.manifests {
            self.put_manifest(spec)?;
        }
        for spec in &setup.artifacts {
            self.put_artifact(spec)?;
        }
        for spec in setup.tags {
            self.put_tag(spec)?;
        }
        for rule in setup.faults {
            self.faults.add(rule);
        }
        Ok(())
    }

    fn put_blob(&self, spec: &BlobSpec) -> Result<Value, ControlError> {
        let body = match (&spec.text, spec.size) {
            (Some(text), None) => Body::held(text.as_bytes()),
            (None, Some(len)) => self.noise(spec.seed, len),
            _ => return Err(ControlError::Incomplete("either size or text")),
        };
        let digest = Digest::of(&body, spec.algorithm);
        for repository in &spec.repositories {
            self.registry()
                .put_blob(repository, digest.clone(), body.clone());
        }
        Ok(json!({"digest": digest, "size": body.len()}))
    }

    fn put_manifest(&self, spec: &ManifestSpec) -> Result<Value, ControlError> {
        let manifest = Manifest {
            digest: Digest::sha256(spec.text.as_bytes()),
            media_type: spec.media_type.clone(),
            bytes: spec.text.clone().into_bytes(),
        };
        self.put_tagged(&spec.repository, &manifest, &spec.tags)
    }

    fn put_artifact(&self, spec: &ArtifactSpec) -> Result<Value, ControlError> {
        let config = Body::held(*b"{}");
        let config_digest = Digest::of(&config, Algorithm::Sha256);
        let layer = self.noise(spec.seed, spec.size);
        let layer_digest = Digest::of(&layer, Algorithm::Sha256);
        let mut content = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": spec.artifact_type,
            "config": {"mediaType": OCI_EMPTY, "digest": config_digest, "size": config.len()},
            "layers": [{
                "mediaType": "application/octet-stream",
                "digest": layer_digest,
                "size": layer.len(),
            }],
            "annotations": spec.annotations,
        });
        if let Some(digest) = &spec.subject {
            let registry = self.registry();
            let subject = registry.manifest(&spec.repository, digest);
            let subject = subject.ok_or_else(|| Unknown::Digest(digest.clone()))?;
            content["subject"] = json!({
                "mediaType": subject.media_type, "digest": digest, "size": subject.bytes.len(),
            });
        }
        self.registry()
            .put_blob(&spec.repository, config_digest, config);
        self.registry()
            .put_blob(&spec.repository, layer_digest, layer);
        let manifest = Manifest::new(OCI_MANIFEST, &content);
        let mut answer = self.put_tagged(&spec.repository, &manifest, &spec.tags)?;
        answer["artifact_type"] = json!(spec.artifact_type);
        Ok(answer)
    }

    fn put_tagged(
        &self,
        repository: &str,
        manifest: &Manifest,
        tags: &[String],
    ) -> Result<Value, ControlError> {
        let mut registry = self.registry();
        registry.put_manifest(repository, manifest.clone());
        for tag in tags {
            registry.put_tag(repository, tag, vec![manifest.digest.clone()])?;
        }
        Ok(json!({
            "digest": manifest.digest,
            "size": manifest.bytes.len(),
            "media_type": manifest.media_type,
        }))
    }

    fn put_tag(&self, spec: TagSpec) -> Result<Value, ControlError> {
        let digests: Vec<Digest> = spec.digests.into_iter().chain(spec.digest).collect();
        if digests.is_empty() {
            return Err(ControlError::Incomplete("digest or digests"));
        }
        self.make_pending(&spec.repository);
        self.registry()
            .put_tag(&spec.repository, &spec.tag, digests)?;
        Ok(json!({}))
    }

    fn delete(&self, spec: &DeleteSpec) -> Result<Value, ControlError> {
        self.make_pending(&spec.repository);
        let mut registry = self.registry();
        match (&spec.tag, &spec.digest) {
            (None, None) => registry.delete_repository(&spec.repository)?,
            (tag, digest) => {
                if let Some(tag) = tag {
                    registry.delete_tag(&spec.repository, tag)?;
                }
                if let Some(digest) = digest {
                    registry.delete_digest(&spec.repository, digest)?;
                }
            }
        }
        Ok(json!({}))
    }

    fn set_auth(&self, spec: AuthSpec) -> Result<Value, ControlError> {
        let mut auth = self.auth();
        let rules = &mut auth.rules;
        rules.mode = spec.mode.unwrap_or(rules.mode);
        rules.private_status = spec.private_status.unwrap_or(rules.private_status);
        if let Some(users) = spec.users {
            rules.users = users;
        }
        if let Some(seconds) = spec.token_ttl_s {
            rules.token_ttl = Duration::from_secs(seconds);
        }
        if spec.expires_in_s.is_some() {
            rules.expires_in = spec.expires_in_s;
        }
        if spec.revoke_tokens {
            auth.revoke_tokens();
        }
        Ok(json!({}))
    }

    fn set_listening(
        &self,
        call: &str,
        spec: &ListenerSpec,
        asking: u64,
    ) -> Result<Value, ControlError> {
        for side in &spec.listeners {
            match call {
                "stop-listening" => self.listeners[side].stop()?,
                "resume-listening" => self.listeners[side].resume()?,
                _ => {}
            }
        }
        if call != "resume-listening" {
            self.connections.close(&spec.listeners, Some(asking));
        }
        Ok(json!({}))
    }

    fn wait(&self, spec: &WaitSpec, asking: u64) -> Result<Value, ControlError> {
        let timeout = Duration::from_millis(spec.timeout_ms.unwrap_or(WAIT_TIMEOUT_DEFAULT_MS));
        let counted = match (&spec.requests, spec.connections) {
            (Some(filter), None) => self.log.wait(filter, spec.count.unwrap_or(1), timeout),
            (None, Some(count)) => self.connections.wait(count, Some(asking), timeout),
            _ => return Err(ControlError::Incomplete("either requests or connections")),
        };
        let count = counted.ok_or(ControlError::TimeUp)?;
        Ok(json!({"count": count}))
    }

    /// Random bytes that the run's seed decides too.
    fn noise(&self, seed: u64, len: u64) -> Body {
        Body::Noise {
            noise: Noise::new(noise::derive(self.seed, seed)),
            len,
        }
    }
}

/// An empty body stands for `{}`.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ControlError> {
    let body = if body.is_empty() { b"{}" } else { body };
    Ok(serde_json::from_slice(body)?)
}
