//! Content put in, pointed at and deleted over the control API or by `--setup`.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Origin;
use super::body::Body;
use super::control::ControlError;
use super::digest::{Algorithm, Digest};
use super::fault::Rule;
use super::image::{ImageSpec, Manifest, OCI_EMPTY, OCI_MANIFEST};
use super::noise::{self, Noise};
use super::registry::Unknown;

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
pub struct DeleteSpec {
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
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

    pub(super) fn put_blob(&self, spec: &BlobSpec) -> Result<Value, ControlError> {
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

    pub(super) fn put_manifest(&self, spec: &ManifestSpec) -> Result<Value, ControlError> {
        let manifest = Manifest {
            digest: Digest::sha256(spec.text.as_bytes()),
            media_type: spec.media_type.clone(),
            bytes: spec.text.clone().into_bytes(),
        };
        self.put_tagged(&spec.repository, &manifest, &spec.tags)
    }

    pub(super) fn put_artifact(&self, spec: &ArtifactSpec) -> Result<Value, ControlError> {
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

    pub(super) fn put_tag(&self, spec: TagSpec) -> Result<Value, ControlError> {
        let digests: Vec<Digest> = spec.digests.into_iter().chain(spec.digest).collect();
        if digests.is_empty() {
            return Err(ControlError::Incomplete("digest or digests"));
        }
        self.make_pending(&spec.repository);
        self.registry()
            .put_tag(&spec.repository, &spec.tag, digests)?;
        Ok(json!({}))
    }

    pub(super) fn delete(&self, spec: &DeleteSpec) -> Result<Value, ControlError> {
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

    /// Random bytes that the run's seed decides too.
    fn noise(&self, seed: u64, len: u64) -> Body {
        Body::Noise {
            noise: Noise::new(noise::derive(self.seed, seed)),
            len,
        }
    }
}
