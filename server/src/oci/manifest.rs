//! Manifests: their media types, and what a document must be to be stored as one.
//!
//! Called before a fetched manifest is admitted. Only what other clients could misread is
//! checked: depth, width, and that the document and its media type are of one mind. Descriptors
//! are not followed, unknown members are kept as they are, and the bytes are never rewritten.

#[cfg(test)]
mod tests;

use std::fmt;

use entrepot_storage::Digest;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use thiserror::Error;

/// What every upstream is asked for, whatever the client accepts (OCI, "Pulling manifests").
///
/// Registries convert or refuse what is not listed, so all current types are. Schema 1 is not:
/// the digest of a signed one is not that of its bytes, so it could never be verified. `*/*` is
/// not: a registry that answers with another type has nothing that we could serve.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.oci.artifact.manifest.v1+json";

/// Arrays and objects within each other. Deepest by the specification are the `os.features` of a
/// platform, at 5; the rest is for what later versions add.
pub const DEPTH_MAX: usize = 32;
/// Descriptors of one manifest. Docker makes at most 127 layers; the rest is room
/// for artifacts of many files.
pub const DESCRIPTORS_MAX: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestKind {
    DockerList,
    DockerManifest,
    OciArtifact,
    OciIndex,
    OciManifest,
}

const KINDS: [ManifestKind; 5] = [
    ManifestKind::DockerList,
    ManifestKind::DockerManifest,
    ManifestKind::OciArtifact,
    ManifestKind::OciIndex,
    ManifestKind::OciManifest,
];

impl ManifestKind {
    pub fn media_type(self) -> &'static str {
        match self {
            ManifestKind::DockerList => "application/vnd.docker.distribution.manifest.list.v2+json",
            ManifestKind::DockerManifest => "application/vnd.docker.distribution.manifest.v2+json",
            ManifestKind::OciArtifact => "application/vnd.oci.artifact.manifest.v1+json",
            ManifestKind::OciIndex => "application/vnd.oci.image.index.v1+json",
            ManifestKind::OciManifest => "application/vnd.oci.image.manifest.v1+json",
        }
    }

    /// The kind of a `Content-Type`. Parameters are dropped; RFC 9110 §8.3.1: case does not count.
    pub fn of(content_type: &str) -> Option<ManifestKind> {
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        let mut kinds = KINDS.into_iter();
        kinds.find(|kind| kind.media_type().eq_ignore_ascii_case(essence))
    }
}

/// Why a document is not served as a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ManifestError {
    #[error("manifest has members of another media type than its own")]
    Ambiguous,
    #[error("manifest is not valid JSON of the expected shape")]
    InvalidJson,
    #[error("mediaType of the manifest differs from its Content-Type")]
    MediaTypeMismatch,
    #[error("Content-Type is no media type of manifests")]
    MediaTypeUnknown,
    #[error("manifest nested too deeply")]
    TooDeep,
    #[error("manifest has too many descriptors")]
    TooManyDescriptors,
}

pub fn is_manifest_type(content_type: &str) -> bool {
    ManifestKind::of(content_type).is_some()
}

/// Checks a whole manifest against the `Content-Type` it came with, and says what it is served as.
///
/// That is what the document says, or its shape where it says nothing, whatever the type it came
/// with: else the first source of a digest would choose what all clients get. OCI image-spec,
/// "Image Manifest" and "Image Index": `mediaType` may be absent; in Docker's it is required.
pub fn check(bytes: &[u8], content_type: &str) -> Result<ManifestKind, ManifestError> {
    let kind = ManifestKind::of(content_type).ok_or(ManifestError::MediaTypeUnknown)?;
    let document = parse(bytes)?;
    document.check(kind)?;
    // A document without any list reads the same by every type.
    Ok(document.own_kind()?.unwrap_or(kind))
}

/// Finds out what kind of manifest a document is that came without a type: by its `mediaType`,
/// which OCI documents may leave out, or else by its shape.
pub fn detect(bytes: &[u8]) -> Result<ManifestKind, ManifestError> {
    let document = parse(bytes)?;
    let kind = document.own_kind()?;
    let kind = kind.ok_or(ManifestError::MediaTypeUnknown)?;
    document.check(kind)?;
    Ok(kind)
}

/// Layers of an image that may be elsewhere (OCI image-spec, "Non-Distributable Layers"; Docker's
/// "foreign" ones, of Windows), with the URLs that the manifest names; none of another document.
pub fn foreign_layers(bytes: &[u8]) -> Vec<(Digest, Vec<String>)> {
    #[derive(Deserialize)]
    struct Image {
        layers: Vec<Layer>,
    }
    #[derive(Deserialize)]
    struct Layer {
        #[serde(rename = "mediaType")]
        media_type: String,
        digest: String,
        #[serde(default)]
        urls: Vec<String>,
    }
    let kinds = ["rootfs.foreign.diff.tar", "layer.nondistributable.v1.tar"];
    let image: Option<Image> = serde_json::from_slice(bytes).ok();
    let layers = image.map(|image| image.layers).unwrap_or_default();
    let is_foreign = |kind: &str| kinds.iter().any(|part| kind.contains(part));
    let foreign = layers
        .into_iter()
        .filter(|layer| !layer.urls.is_empty() && is_foreign(&layer.media_type));
    foreign
        .filter_map(|layer| Some((Digest::parse(&layer.digest).ok()?, layer.urls)))
        .collect()
}

fn parse(bytes: &[u8]) -> Result<Document, ManifestError> {
    // RFC 8259 §8.1: JSON is UTF-8.
    let text = std::str::from_utf8(bytes).map_err(|_| ManifestError::InvalidJson)?;
    if depth(text) > DEPTH_MAX {
        return Err(ManifestError::TooDeep);
    }
    serde_json::from_str(text).map_err(|_| ManifestError::InvalidJson)
}

/// How deep arrays and objects are nested, without recursion.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut quoted, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// The members by which a document could be taken for one kind or another. Absent and null are
/// the same: an empty list of Go is written as null.
#[derive(Default)]
struct Document {
    media_type: Option<String>,
    manifests: Option<Count>,
    layers: Option<Count>,
    blobs: Option<Count>,
    config: Option<IgnoredAny>,
    /// Of schema 1, which is never served.
    fs_layers: Option<IgnoredAny>,
}

impl Document {
    /// By its `mediaType`, else by its shape; `None` when neither tells.
    fn own_kind(&self) -> Result<Option<ManifestKind>, ManifestError> {
        let named = self.media_type.as_deref().unwrap_or_default();
        if !named.is_empty() {
            let kind = ManifestKind::of(named);
            return kind.map(Some).ok_or(ManifestError::MediaTypeUnknown);
        }
        Ok(match self {
            _ if self.manifests.is_some() => Some(ManifestKind::OciIndex),
            _ if self.layers.is_some() => Some(ManifestKind::OciManifest),
            _ if self.blobs.is_some() => Some(ManifestKind::OciArtifact),
            _ => None,
        })
    }

    /// Both the type and the shape must say the same: a document that reads as an index for one
    /// client and as an image for another has two meanings under one digest.
    fn check(&self, kind: ManifestKind) -> Result<(), ManifestError> {
        let named = self.media_type.as_deref().unwrap_or_default();
        if !named.is_empty() && named != kind.media_type() {
            return Err(ManifestError::MediaTypeMismatch);
        }
        let of_index = self.manifests.is_some();
        let of_image = self.layers.is_some() || self.config.is_some();
        let of_artifact = self.blobs.is_some();
        let foreign = match kind {
            ManifestKind::DockerList | ManifestKind::OciIndex => of_image || of_artifact,
            ManifestKind::DockerManifest | ManifestKind::OciManifest => of_index || of_artifact,
            ManifestKind::OciArtifact => of_index || of_image,
        };
        if foreign || self.fs_layers.is_some() {
            return Err(ManifestError::Ambiguous);
        }
        let lists = [&self.manifests, &self.layers, &self.blobs];
        if lists
            .into_iter()
            .flatten()
            .any(|list| list.0 > DESCRIPTORS_MAX)
        {
            return Err(ManifestError::TooManyDescriptors);
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Document, D::Error> {
        deserializer.deserialize_map(DocumentVisitor)
    }
}

const MEMBERS: [&str; 6] = [
    "mediaType",
    "manifests",
    "layers",
    "blobs",
    "config",
    "fsLayers",
];

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let mut document = Document::default();
        let mut seen = [false; MEMBERS.len()];
        while let Some(key) = map.next_key::<String>()? {
            // Go takes keys in any case, others do not; and which of two equal keys counts
            // differs, too. So only one spelling is accepted, once.
            let known = MEMBERS
                .iter()
                .position(|name| name.eq_ignore_ascii_case(&key));
            if let Some(at) = known {
                if seen[at] || MEMBERS[at] != key {
                    return Err(de::Error::custom("ambiguous member"));
                }
                seen[at] = true;
            }
            match &key[..] {
                "mediaType" => document.media_type = map.next_value()?,
                "manifests" => document.manifests = map.next_value()?,
                "layers" => document.layers = map.next_value()?,
                "blobs" => document.blobs = map.next_value()?,
                "config" => document.config = map.next_value()?,
                "fsLayers" => document.fs_layers = map.next_value()?,
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(document)
    }
}

/// How many members an array has; they are not kept.
struct Count(usize);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Count, D::Error> {
        deserializer.deserialize_seq(CountVisitor)
    }
}

struct CountVisitor;

impl<'de> Visitor<'de> for CountVisitor {
    type Value = Count;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Count, A::Error> {
        let mut count = 0;
        while sequence.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Count(count))
    }
}

/// What must hold for any bytes at all.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    assert!(
        foreign_layers(data)
            .iter()
            .all(|(_, urls)| !urls.is_empty())
    );
    for kind in KINDS {
        let Ok(found) = check(data, kind.media_type()) else {
            continue;
        };
        // One digest, one type: whatever it comes with from elsewhere.
        assert_eq!(check(data, found.media_type()), Ok(found));
        // serde_json takes it for an object that is of this kind and of no other.
        let document: serde_json::Value = match serde_json::from_slice(data) {
            Ok(document) => document,
            // Numbers beyond its range are the one thing that only a full parse refuses.
            Err(error) => {
                assert!(
                    error.to_string().starts_with("number out of range"),
                    "{error}"
                );
                continue;
            }
        };
        let has = |name: &str| document.get(name).is_some_and(|member| !member.is_null());
        assert!(!has("manifests") || !(has("layers") || has("config") || has("blobs")));
        if let Some(media_type) = document.get("mediaType").and_then(|value| value.as_str()) {
            assert!(media_type.is_empty() || media_type == found.media_type());
        }
    }
}
