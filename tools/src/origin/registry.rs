//! What the registry holds: repositories with their blobs, manifests and tags.
//!
//! A blob or manifest exists only in the repositories it was put in. No sockets, no faults.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use super::body::Body;
use super::digest::Digest;
use super::image::{Image, Manifest};

#[derive(Default)]
pub struct Registry {
    repositories: BTreeMap<String, Repository>,
}

#[derive(Default)]
struct Repository {
    private: bool,
    blobs: HashMap<Digest, Body>,
    manifests: BTreeMap<Digest, Held>,
    tags: BTreeMap<String, Tag>,
}

struct Held {
    manifest: Manifest,
    subject: Option<Digest>,
    artifact_type: Option<String>,
    annotations: Value,
}

struct Tag {
    /// Each answer takes the next in turn.
    digests: Vec<Digest>,
    next: usize,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    #[error("repository unknown: {0}")]
    Repository(String),
    #[error("tag unknown: {0}")]
    Tag(String),
    #[error("digest unknown: {0}")]
    Digest(Digest),
}

impl Registry {
    pub fn put_image(&mut self, image: &Image) {
        let about = &image.description;
        for (digest, body) in &image.blobs {
            self.put_blob(&about.repository, digest.clone(), body.clone());
        }
        for manifest in &image.manifests {
            self.put_manifest(&about.repository, manifest.clone());
        }
        let repository = self.repository(&about.repository);
        for tag in &about.tags {
            repository.point(tag, vec![about.digest.clone()]);
        }
    }

    pub fn put_blob(&mut self, repository: &str, digest: Digest, body: Body) {
        self.repository(repository).blobs.insert(digest, body);
    }

    /// The text need not be JSON: hostile manifests are content too.
    pub fn put_manifest(&mut self, repository: &str, manifest: Manifest) {
        let content: Value = serde_json::from_slice(&manifest.bytes).unwrap_or_default();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let held = Held {
            subject: content["subject"]["digest"]
                .as_str()
                .and_then(Digest::parse),
            artifact_type: text(&content["artifactType"])
                .or_else(|| text(&content["config"]["mediaType"])),
            annotations: content["annotations"].clone(),
            manifest,
        };
        let digest = held.manifest.digest.clone();
        self.repository(repository).manifests.insert(digest, held);
    }

    pub fn put_tag(
        &mut self,
        repository: &str,
        tag: &str,
        digests: Vec<Digest>,
    ) -> Result<(), Unknown> {
        let held = self.known(repository)?;
        if let Some(digest) = digests
            .iter()
            .find(|name| !held.manifests.contains_key(name))
        {
            return Err(Unknown::Digest(digest.clone()));
        }
        held.point(tag, digests);
        Ok(())
    }

    pub fn set_private(&mut self, repository: &str, private: bool) {
        self.repository(repository).private = private;
    }

    pub fn is_private(&self, repository: &str) -> bool {
        self.repositories
            .get(repository)
            .is_some_and(|held| held.private)
    }

    pub fn contains(&self, repository: &str) -> bool {
        self.repositories.contains_key(repository)
    }

    pub fn delete_repository(&mut self, repository: &str) -> Result<(), Unknown> {
        self.known(repository)?;
        self.repositories.remove(repository);
        Ok(())
    }

    pub fn delete_tag(&mut self, repository: &str, tag: &str) -> Result<(), Unknown> {
        let removed = self.known(repository)?.tags.remove(tag);
        removed
            .map(drop)
            .ok_or_else(|| Unknown::Tag(tag.to_owned()))
    }

    /// A blob or a manifest; with a manifest go the tags that name it.
    pub fn delete_digest(&mut self, repository: &str, digest: &Digest) -> Result<(), Unknown> {
        let held = self.known(repository)?;
        let blob = held.blobs.remove(digest).is_some();
        let manifest = held.manifests.remove(digest).is_some();
        held.tags.retain(|_, tag| !tag.digests.contains(digest));
        if blob || manifest {
            Ok(())
        } else {
            Err(Unknown::Digest(digest.clone()))
        }
    }

    pub fn blob(&self, repository: &str, digest: &Digest) -> Option<Body> {
        self.repositories
            .get(repository)?
            .blobs
            .get(digest)
            .cloned()
    }

    pub fn manifest(&self, repository: &str, digest: &Digest) -> Option<&Manifest> {
        Some(
            &self
                .repositories
                .get(repository)?
                .manifests
                .get(digest)?
                .manifest,
        )
    }

    /// By digest or tag; a flapping tag moves on.
    pub fn resolve(&mut self, repository: &str, reference: &str) -> Option<Manifest> {
        let held = self.repositories.get_mut(repository)?;
        let digest = match Digest::parse(reference) {
            Some(digest) => digest,
            None => held.tags.get_mut(reference)?.take_turn(),
        };
        Some(held.manifests.get(&digest)?.manifest.clone())
    }

    /// Sorted, all of them.
    pub fn tags(&self, repository: &str) -> Option<Vec<String>> {
        Some(
            self.repositories
                .get(repository)?
                .tags
                .keys()
                .cloned()
                .collect(),
        )
    }

    /// Descriptors of the manifests whose subject is `digest`.
    pub fn referrers(
        &self,
        repository: &str,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Option<Vec<Value>> {
        let held = self.repositories.get(repository)?;
        let wanted = |held: &&Held| {
            held.subject.as_ref() == Some(digest)
                && (artifact_type.is_none() || held.artifact_type.as_deref() == artifact_type)
        };
        Some(
            held.manifests
                .values()
                .filter(wanted)
                .map(Held::descriptor)
                .collect(),
        )
    }

    pub fn describe(&self) -> Value {
        let mut all = Map::new();
        for (name, held) in &self.repositories {
            let tags = held
                .tags
                .iter()
                .map(|(tag, to)| (tag.clone(), json!(to.digests)));
            let mut blobs: Vec<&Digest> = held.blobs.keys().collect();
            blobs.sort();
            let description = json!({
                "private": held.private,
                "tags": tags.collect::<Map<_, _>>(),
                "manifests": held.manifests.keys().collect::<Vec<_>>(),
                "blobs": blobs,
            });
            all.insert(name.clone(), description);
        }
        Value::Object(all)
    }

    fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }

    fn known(&mut self, name: &str) -> Result<&mut Repository, Unknown> {
        let found = self.repositories.get_mut(name);
        found.ok_or_else(|| Unknown::Repository(name.to_owned()))
    }
}

impl Repository {
    fn point(&mut self, tag: &str, digests: Vec<Digest>) {
        self.tags.insert(tag.to_owned(), Tag { digests, next: 0 });
    }
}

impl Tag {
    fn take_turn(&mut self) -> Digest {
        let digest = self.digests[self.next % self.digests.len()].clone();
        self.next += 1;
        digest
    }
}

impl Held {
    fn descriptor(&self) -> Value {
        let mut descriptor = json!({
            "mediaType": self.manifest.media_type,
            "digest": self.manifest.digest,
            "size": self.manifest.bytes.len(),
        });
        if let Some(artifact_type) = &self.artifact_type {
            descriptor["artifactType"] = json!(artifact_type);
        }
        if self.annotations.is_object() {
            descriptor["annotations"] = self.annotations.clone();
        }
        descriptor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(text: &str) -> Manifest {
        Manifest {
            digest: Digest::sha256(text.as_bytes()),
            media_type: "application/json".to_owned(),
            bytes: text.as_bytes().to_vec(),
        }
    }

    #[test]
    fn a_blob_exists_where_it_was_put() {
        let mut registry = Registry::default();
        let digest = Digest::sha256(b"x");
        registry.put_blob("a", digest.clone(), Body::held(*b"x"));
        registry.put_blob("b", Digest::sha256(b"y"), Body::held(*b"y"));
        assert!(registry.blob("a", &digest).is_some());
        assert!(registry.blob("b", &digest).is_none());
        assert!(registry.blob("c", &digest).is_none());
    }

    #[test]
    fn a_flapping_tag_takes_turns() {
        let mut registry = Registry::default();
        let (one, two) = (manifest("1"), manifest("2"));
        registry.put_manifest("a", one.clone());
        registry.put_manifest("a", two.clone());
        let digests = vec![one.digest.clone(), two.digest.clone()];
        registry.put_tag("a", "t", digests).unwrap();
        let mut turn = || registry.resolve("a", "t").unwrap().digest;
        assert_eq!(
            [turn(), turn(), turn()],
            [one.digest.clone(), two.digest, one.digest]
        );
    }

    #[test]
    fn tags_name_what_exists() {
        let mut registry = Registry::default();
        let one = manifest("1");
        let point = |registry: &mut Registry| registry.put_tag("a", "t", vec![one.digest.clone()]);
        assert_eq!(point(&mut registry), Err(Unknown::Repository("a".into())));
        registry.put_blob("a", Digest::sha256(b"x"), Body::held(*b"x"));
        assert_eq!(
            point(&mut registry),
            Err(Unknown::Digest(one.digest.clone()))
        );
        registry.put_manifest("a", one.clone());
        assert_eq!(point(&mut registry), Ok(()));
        registry.delete_digest("a", &one.digest).unwrap();
        assert!(registry.resolve("a", "t").is_none());
        assert_eq!(registry.delete_tag("a", "t"), Err(Unknown::Tag("t".into())));
    }

    #[test]
    fn referrers_by_subject_and_type() {
        let mut registry = Registry::default();
        let subject = Digest::sha256(b"s");
        let text = |kind: &str| {
            format!(r#"{{"artifactType":"{kind}","subject":{{"digest":"{subject}"}}}}"#)
        };
        registry.put_manifest("a", manifest(&text("k1")));
        registry.put_manifest("a", manifest(&text("k2")));
        let count = |kind| registry.referrers("a", &subject, kind).unwrap().len();
        assert_eq!(
            (count(None), count(Some("k1")), count(Some("k3"))),
            (2, 1, 0)
        );
        assert!(registry.referrers("b", &subject, None).is_none());
    }
}
