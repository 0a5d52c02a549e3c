//! What there is to ask for: listed by a file or by an `entrepot-origin`, or made by one.

use std::fs;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::control::{Control, ControlError};
use super::random::Random;

/// Compressed layers of Docker Hub (CLUSTER '19): median 3.5 MiB, a mean of 25 MiB.
const LEN_MEDIAN: f64 = 3.5 * 1024.0 * 1024.0;
const LEN_SIGMA: f64 = 2.0;
/// The longest made, before it is scaled: a tail of model images.
const LEN_MAX: f64 = 15.0 * 1024.0 * 1024.0 * 1024.0;
/// Layers of an image: 8 on average, 3 to 13.
const LAYERS_MIN: usize = 3;
const LAYERS_SPREAD: usize = 11;
/// Blobs of one repository.
const BLOBS_PER_REPOSITORY: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("{0}: {1}")]
    Read(PathBuf, std::io::Error),
    #[error(
        "the catalog is no JSON as entrepot-origin's /_origin/repositories answers: \
         {{\"library/app\":{{\"tags\":{{\"1.0\":[\"sha256:...\"]}},\"manifests\":[...],\"blobs\":[...]}}}}"
    )]
    Form,
    #[error("the catalog names no {0}: entrepot-load mix --synthesise COUNT makes some")]
    Empty(&'static str),
}

/// One thing to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub repository: String,
    /// A tag or a digest.
    pub reference: String,
}

#[derive(Debug, Default)]
pub struct Catalog {
    pub manifests: Vec<Wanted>,
    pub blobs: Vec<Wanted>,
}

impl Catalog {
    /// Of a file, or of the origin with this control URL.
    pub fn read(place: &str) -> Result<Catalog, CatalogError> {
        let value = if place.starts_with("http://") {
            Control::new(place)
                .map_err(ControlError::from)?
                .repositories()?
        } else {
            let path = PathBuf::from(place);
            let text = fs::read_to_string(&path).map_err(|e| CatalogError::Read(path, e))?;
            serde_json::from_str(&text).map_err(|_| CatalogError::Form)?
        };
        Catalog::parse(&value)
    }

    fn parse(value: &Value) -> Result<Catalog, CatalogError> {
        let mut catalog = Catalog::default();
        for (repository, held) in value.as_object().ok_or(CatalogError::Form)? {
            let wanted = |reference: &str| Wanted {
                repository: repository.clone(),
                reference: reference.to_owned(),
            };
            let held = held.as_object().ok_or(CatalogError::Form)?;
            let tags = held.get("tags").and_then(Value::as_object);
            let tags = tags.into_iter().flat_map(Map::keys);
            catalog.manifests.extend(tags.map(|tag| wanted(tag)));
            catalog
                .manifests
                .extend(strings(held, "manifests").map(wanted));
            catalog.blobs.extend(strings(held, "blobs").map(wanted));
        }
        match (catalog.manifests.is_empty(), catalog.blobs.is_empty()) {
            (true, _) => Err(CatalogError::Empty("manifests")),
            (_, true) => Err(CatalogError::Empty("blobs")),
            _ => Ok(catalog),
        }
    }

    /// Makes blobs with the lengths of Docker Hub's layers divided by `scale`, and images of them.
    pub fn make(
        control: &Control,
        blobs: usize,
        scale: f64,
        seed: u64,
    ) -> Result<Catalog, CatalogError> {
        let mut random = Random::new(seed);
        let mut catalog = Catalog::default();
        for first in (0..blobs).step_by(BLOBS_PER_REPOSITORY) {
            let repository = format!("mix/r{}", first / BLOBS_PER_REPOSITORY);
            let count = BLOBS_PER_REPOSITORY.min(blobs - first);
            let mut layers = Vec::new();
            for nth in 0..count {
                let made = control.make(
                    "blobs",
                    &json!({
                        "repositories": [repository],
                        "size": len(&mut random, scale),
                        "seed": seed.wrapping_add((first + nth) as u64),
                    }),
                )?;
                let reference = made["digest"]
                    .as_str()
                    .ok_or(CatalogError::Form)?
                    .to_owned();
                catalog.blobs.push(Wanted {
                    repository: repository.clone(),
                    reference,
                });
                layers.push(json!({
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": made["digest"],
                    "size": made["size"],
                }));
            }
            catalog.make_images(control, &repository, &layers, &mut random)?;
        }
        Ok(catalog)
    }

    /// Images of a repository share its layers, as versions of a program do.
    fn make_images(
        &mut self,
        control: &Control,
        repository: &str,
        layers: &[Value],
        random: &mut Random,
    ) -> Result<(), CatalogError> {
        let images = layers.len().div_ceil(LAYERS_MIN + LAYERS_SPREAD / 2);
        for nth in 0..images {
            let tag = format!("1.{nth}");
            let count = (LAYERS_MIN + random.below(LAYERS_SPREAD)).min(layers.len());
            let from = random.below(layers.len() - count + 1);
            let config = json!({"repositories": [repository], "text": format!("{{\"n\":{nth}}}")});
            let config = control.make("blobs", &config)?;
            let text = json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": config["digest"],
                    "size": config["size"],
                },
                "layers": layers[from..from + count],
            });
            let manifest = json!({
                "repository": repository,
                "media_type": "application/vnd.oci.image.manifest.v1+json",
                "text": text.to_string(),
                "tags": [tag],
            });
            control.make("manifests", &manifest)?;
            self.manifests.push(Wanted {
                repository: repository.to_owned(),
                reference: tag,
            });
        }
        Ok(())
    }
}

fn strings<'v>(object: &'v Map<String, Value>, name: &str) -> impl Iterator<Item = &'v str> {
    let list = object.get(name).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str)
}

fn len(random: &mut Random, scale: f64) -> u64 {
    let len = LEN_MEDIAN * (LEN_SIGMA * random.normal()).exp();
    ((len.min(LEN_MAX) / scale) as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn catalogs() {
        let catalog = Catalog::parse(&json!({
            "a/b": {"private": false, "tags": {"1": ["sha256:1"]}, "manifests": ["sha256:1"],
                "blobs": ["sha256:2", "sha256:3"]},
            "c": {"blobs": ["sha256:4"]},
        }));
        let catalog = catalog.unwrap();
        let references = |list: &[Wanted]| -> Vec<String> {
            let names = list.iter().map(|one| &one.reference);
            names.cloned().collect()
        };
        assert_eq!(references(&catalog.manifests), ["1", "sha256:1"]);
        assert_eq!(
            references(&catalog.blobs),
            ["sha256:2", "sha256:3", "sha256:4"]
        );
        assert_eq!(catalog.blobs[2].repository, "c");
        for bad in [
            json!([]),
            json!({"a": 1}),
            json!({}),
            json!({"a": {"blobs": ["x"]}}),
        ] {
            assert!(Catalog::parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lengths_are_those_of_layers() {
        let mut random = Random::new(1);
        let mut lens: Vec<u64> = (0..10_000).map(|_| len(&mut random, 1.0)).collect();
        lens.sort_unstable();
        let mib = |percent: usize| lens[lens.len() * percent / 100] as f64 / (1 << 20) as f64;
        assert!((3.0..4.0).contains(&mib(50)), "median {}", mib(50));
        assert!((38.0..54.0).contains(&mib(90)), "ninth decile {}", mib(90));
    }
}
