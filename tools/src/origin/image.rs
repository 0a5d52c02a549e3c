//! Images: config, manifests and index over layers, in OCI or Docker media types.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::body::Body;
use super::digest::{Algorithm, Digest};
use super::layer::{Compression, Layer, LayerError, LayerSpec, Layers, Recipe, files_default};
use super::noise;

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const LAYERS_DEFAULT: u64 = 2;
const LAYER_SIZE_DEFAULT: u64 = 64 * 1024;
/// Of config and history: content is the same on every day.
const CREATED: &str = "2024-01-01T00:00:00Z";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    #[default]
    Oci,
    Docker,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    pub repository: String,
    #[serde(default)]
    pub tags: Vec<String>,
    #[serde(default)]
    pub seed: u64,
    #[serde(default)]
    pub format: Format,
    #[serde(default = "platforms_default")]
    pub platforms: Vec<String>,
    /// Absent: an index when there are several platforms.
    pub index: Option<bool>,
    #[serde(default)]
    pub shared_layers: bool,
    #[serde(default = "layers_default")]
    pub layers: Vec<LayerSpec>,
}

fn platforms_default() -> Vec<String> {
    vec!["linux/amd64".to_owned()]
}

fn layers_default() -> Vec<LayerSpec> {
    let spec = LayerSpec {
        size: LAYER_SIZE_DEFAULT,
        files: files_default(),
        compression: None,
        seed: None,
    };
    vec![spec; LAYERS_DEFAULT as usize]
}

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error("a platform is os/architecture or os/architecture/variant: {0}")]
    Platform(String),
    #[error("an image without index has exactly one platform")]
    Platforms,
    #[error("Docker's media types have no zstd")]
    DockerZstd,
}

/// A manifest or an index, as it is stored and sent.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Vec<u8>,
}

/// All that must be put into a repository, and its description for whoever asked.
pub struct Image {
    pub blobs: Vec<(Digest, Body)>,
    pub manifests: Vec<Manifest>,
    pub description: Description,
}

#[derive(Clone, Debug, Serialize)]
pub struct Description {
    pub repository: String,
    pub tags: Vec<String>,
    pub digest: Digest,
    pub media_type: String,
    pub size: u64,
    pub manifests: Vec<PlatformDescription>,
}

#[derive(Clone, Debug, Serialize)]
pub struct PlatformDescription {
    pub platform: String,
    pub digest: Digest,
    pub media_type: String,
    pub size: u64,
    pub config: ConfigDescription,
    pub layers: Vec<LayerDescription>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ConfigDescription {
    pub digest: Digest,
    pub size: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct LayerDescription {
    pub digest: Digest,
    pub size: u64,
    pub media_type: String,
    pub diff_id: Digest,
}

impl Manifest {
    pub fn new(media_type: &str, content: &Value) -> Manifest {
        let bytes = serde_json::to_vec(content).expect("a JSON value");
        Manifest {
            digest: Digest::sha256(&bytes),
            media_type: media_type.to_owned(),
            bytes,
        }
    }
}

impl ImageSpec {
    /// `seed` is the run's; it decides together with the image's own.
    pub fn build(&self, layers: &Layers, seed: u64) -> Result<Image, ImageError> {
        let index = self.index.unwrap_or(self.platforms.len() > 1);
        if self.platforms.is_empty() || (!index && self.platforms.len() > 1) {
            return Err(ImageError::Platforms);
        }
        let mut platforms = Vec::new();
        for platform in &self.platforms {
            platforms.push(Platform::parse(platform)?);
        }
        let recipes = self.recipes(seed)?;
        let made = layers.make(&recipes.concat());
        let blob = |layer: &Arc<Layer>| (layer.digest.clone(), layer.body.clone());
        let mut blobs: Vec<_> = made.iter().map(blob).collect();
        let mut manifests = Vec::new();
        let mut described = Vec::new();
        let count = self.layers.len();
        for (place, platform) in platforms.iter().enumerate() {
            let layers = &made[place * count..(place + 1) * count];
            let config = Body::held(self.config(platform, layers));
            let (manifest, description) = self.manifest(platform, &config, layers);
            blobs.push((description.config.digest.clone(), config));
            manifests.push(manifest);
            described.push(description);
        }
        if index {
            manifests.push(self.index(&manifests, &platforms));
        }
        let top = manifests.last().expect("one platform at least");
        let description = Description {
            repository: self.repository.clone(),
            tags: self.tags.clone(),
            digest: top.digest.clone(),
            media_type: top.media_type.clone(),
            size: top.bytes.len() as u64,
            manifests: described,
        };
        Ok(Image {
            blobs,
            manifests,
            description,
        })
    }

    /// Of each platform in turn.
    fn recipes(&self, seed: u64) -> Result<Vec<Vec<Recipe>>, ImageError> {
        let mut all = Vec::new();
        for platform in 0..self.platforms.len() as u64 {
            let platform = if self.shared_layers { 0 } else { platform };
            let mut recipes = Vec::new();
            for (place, layer) in (0..).zip(&self.layers) {
                let seed = noise::derive(noise::derive(seed, self.seed), platform << 32 | place);
                let recipe = layer.recipe(seed)?;
                let zstd = matches!(recipe.compression, Compression::Zstd | Compression::ZstdRaw);
                if zstd && self.format == Format::Docker {
                    return Err(ImageError::DockerZstd);
                }
                recipes.push(recipe);
            }
            all.push(recipes);
        }
        Ok(all)
    }

    fn manifest(
        &self,
        platform: &Platform,
        config: &Body,
        layers: &[Arc<Layer>],
    ) -> (Manifest, PlatformDescription) {
        let (config_type, manifest_type) = match self.format {
            Format::Oci => (OCI_CONFIG, OCI_MANIFEST),
            Format::Docker => (DOCKER_CONFIG, DOCKER_MANIFEST),
        };
        let config = ConfigDescription {
            digest: Digest::of(config, Algorithm::Sha256),
            size: config.len(),
        };
        let layers: Vec<LayerDescription> = layers
            .iter()
            .map(|layer| LayerDescription {
                digest: layer.digest.clone(),
                size: layer.body.len(),
                media_type: self.layer_type(layer.compression),
                diff_id: layer.diff_id.clone(),
            })
            .collect();
        let descriptor = |layer: &LayerDescription| json!({"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size});
        let manifest = Manifest::new(
            manifest_type,
            &json!({
                "schemaVersion": 2,
                "mediaType": manifest_type,
                "config": {
                    "mediaType": config_type, "digest": config.digest, "size": config.size,
                },
                "layers": layers.iter().map(descriptor).collect::<Vec<_>>(),
            }),
        );
        let description = PlatformDescription {
            platform: platform.to_string(),
            digest: manifest.digest.clone(),
            media_type: manifest.media_type.clone(),
            size: manifest.bytes.len() as u64,
            config,
            layers,
        };
        (manifest, description)
    }

    fn config(&self, platform: &Platform, layers: &[Arc<Layer>]) -> Vec<u8> {
        let diff_ids: Vec<&Digest> = layers.iter().map(|layer| &layer.diff_id).collect();
        let history =
            |place: usize| json!({"created": CREATED, "created_by": format!("layer {place}")});
        let mut config = json!({
            "created": CREATED,
            "architecture": platform.architecture,
            "os": platform.os,
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Cmd": ["/bin/true"],
                "Labels": {"seed": self.seed.to_string()},
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": (0..layers.len()).map(history).collect::<Vec<_>>(),
        });
        if let Some(variant) = &platform.variant {
            config["variant"] = json!(variant);
        }
        serde_json::to_vec(&config).expect("a JSON value")
    }

    fn index(&self, manifests: &[Manifest], platforms: &[Platform]) -> Manifest {
        let media_type = match self.format {
            Format::Oci => OCI_INDEX,
            Format::Docker => DOCKER_LIST,
        };
        let descriptors: Vec<Value> = manifests
            .iter()
            .zip(platforms)
            .map(|(manifest, platform)| {
                json!({
                    "mediaType": manifest.media_type,
                    "digest": manifest.digest,
                    "size": manifest.bytes.len(),
                    "platform": platform.json(),
                })
            })
            .collect();
        let content = json!({
            "schemaVersion": 2, "mediaType": media_type, "manifests": descriptors,
        });
        Manifest::new(media_type, &content)
    }

    fn layer_type(&self, compression: Compression) -> String {
        let suffix = match (self.format, compression) {
            (_, Compression::None) => "",
            (Format::Docker, _) => ".gzip",
            (Format::Oci, Compression::Gzip | Compression::GzipStored) => "+gzip",
            (Format::Oci, Compression::Zstd | Compression::ZstdRaw) => "+zstd",
        };
        match self.format {
            Format::Oci => format!("{OCI_LAYER}{suffix}"),
            Format::Docker => format!("{DOCKER_LAYER}{suffix}"),
        }
    }
}

struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    fn parse(text: &str) -> Result<Platform, ImageError> {
        let parts: Vec<&str> = text.split('/').collect();
        if !(2..=3).contains(&parts.len()) || parts.contains(&"") {
            return Err(ImageError::Platform(text.to_owned()));
        }
        Ok(Platform {
            os: parts[0].to_owned(),
            architecture: parts[1].to_owned(),
            variant: parts.get(2).map(|part| (*part).to_owned()),
        })
    }

    fn json(&self) -> Value {
        let mut value = json!({"os": self.os, "architecture": self.architecture});
        if let Some(variant) = &self.variant {
            value["variant"] = json!(variant);
        }
        value
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> ImageSpec {
        serde_json::from_str(text).unwrap()
    }

    fn parsed(manifest: &Manifest) -> Value {
        serde_json::from_slice(&manifest.bytes).unwrap()
    }

    #[test]
    fn every_descriptor_names_something_in_the_image() {
        for format in ["oci", "docker"] {
            let image = spec(&format!(
                r#"{{"repository":"a/b","tags":["x"],"format":"{format}",
                     "platforms":["linux/amd64","linux/arm64/v8"],
                     "layers":[{{"size":1000}},{{"size":0,"compression":"none"}}]}}"#
            ))
            .build(&Layers::default(), 1)
            .unwrap();
            let find = |digest: &Value| {
                let blob = image.blobs.iter().find(|(name, _)| *digest == json!(name));
                blob.expect("blob").1.clone()
            };
            let index = parsed(image.manifests.last().unwrap());
            assert_eq!(index["manifests"][1]["platform"]["variant"], "v8");
            for (place, manifest) in image.manifests[..2].iter().enumerate() {
                assert_eq!(index["manifests"][place]["digest"], json!(manifest.digest));
                assert_eq!(
                    index["manifests"][place]["size"],
                    json!(manifest.bytes.len())
                );
                let manifest = parsed(manifest);
                let config = find(&manifest["config"]["digest"]);
                assert_eq!(manifest["config"]["size"], json!(config.len()));
                let config: Value = serde_json::from_slice(&config.to_vec()).unwrap();
                let described = &image.description.manifests[place];
                for (at, layer) in described.layers.iter().enumerate() {
                    assert_eq!(manifest["layers"][at]["digest"], json!(layer.digest));
                    assert_eq!(find(&json!(layer.digest)).len(), layer.size);
                    assert_eq!(config["rootfs"]["diff_ids"][at], json!(layer.diff_id));
                }
            }
        }
    }

    #[test]
    fn seeds_decide_the_digest() {
        let digest = |text: &str, seed| {
            spec(text)
                .build(&Layers::default(), seed)
                .unwrap()
                .description
                .digest
        };
        let one = r#"{"repository":"a"}"#;
        let two = r#"{"repository":"a","seed":1}"#;
        assert_eq!(digest(one, 1), digest(one, 1));
        assert_ne!(digest(one, 1), digest(one, 2));
        assert_ne!(digest(one, 1), digest(two, 1));
    }

    #[test]
    fn a_layer_with_its_own_seed_is_shared_between_images() {
        let layer = |seed| {
            let image = spec(&format!(
                r#"{{"repository":"a","seed":{seed},"layers":[{{"size":10,"seed":5}}]}}"#
            ));
            let image = image.build(&Layers::default(), 1).unwrap();
            image.description.manifests[0].layers[0].digest.clone()
        };
        assert_eq!(layer(1), layer(2));
    }

    #[test]
    fn what_cannot_be_built_is_refused() {
        for bad in [
            r#"{"repository":"a","platforms":[]}"#,
            r#"{"repository":"a","platforms":["linux"]}"#,
            r#"{"repository":"a","platforms":["linux/a","linux/b"],"index":false}"#,
            r#"{"repository":"a","format":"docker","layers":[{"size":1,"compression":"zstd"}]}"#,
            r#"{"repository":"a","layers":[{"size":1,"files":0}]}"#,
        ] {
            assert!(spec(bad).build(&Layers::default(), 1).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<ImageSpec>(r#"{"repository":"a","sise":1}"#).is_err());
    }
}
