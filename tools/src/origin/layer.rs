//! Layers: what is asked for, and what is made of it, once for each recipe.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};

use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use super::body::Body;
use super::digest::{Algorithm, Digest};
use super::stored::{Form, Stored};
use super::tar::{Filling, Tar};

/// Up to here a layer is really compressed unless asked otherwise; beyond it that is too slow.
const COMPRESSED_DEFAULT_MAX: u64 = 4 << 20;
/// A compressed layer is held in memory.
const COMPRESSED_SIZE_MAX: u64 = 256 << 20;
pub const FILES_MAX: u32 = 10_000;
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    Gzip,
    GzipStored,
    Zstd,
    ZstdRaw,
    None,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSpec {
    /// File bytes in the layer's archive.
    pub size: u64,
    #[serde(default = "files_default")]
    pub files: u32,
    pub compression: Option<Compression>,
    /// Given: the same layer in every image. Absent: the image's seed and its place decide.
    pub seed: Option<u64>,
}

pub fn files_default() -> u32 {
    2
}

#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error("a layer of {0:?} holds at most {COMPRESSED_SIZE_MAX} bytes")]
    TooLargeToCompress(Compression),
    #[error("a layer holds 1 to {FILES_MAX} files")]
    Files,
}

/// Everything that decides the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Recipe {
    size: u64,
    files: u32,
    seed: u64,
    pub compression: Compression,
}

#[derive(Debug)]
pub struct Layer {
    pub digest: Digest,
    /// Of the archive before compression.
    pub diff_id: Digest,
    pub compression: Compression,
    pub body: Body,
}

impl LayerSpec {
    pub fn recipe(&self, seed_default: u64) -> Result<Recipe, LayerError> {
        let compression = self.compression.unwrap_or({
            if self.size <= COMPRESSED_DEFAULT_MAX {
                Compression::Gzip
            } else {
                Compression::GzipStored
            }
        });
        let compressed = matches!(compression, Compression::Gzip | Compression::Zstd);
        if compressed && self.size > COMPRESSED_SIZE_MAX {
            return Err(LayerError::TooLargeToCompress(compression));
        }
        if self.files == 0 || self.files > FILES_MAX {
            return Err(LayerError::Files);
        }
        Ok(Recipe {
            size: self.size,
            files: self.files,
            seed: self.seed.unwrap_or(seed_default),
            compression,
        })
    }
}

impl Recipe {
    fn tar(&self) -> Tar {
        let filling = match self.compression {
            Compression::Gzip | Compression::Zstd => Filling::Text,
            Compression::GzipStored | Compression::ZstdRaw | Compression::None => Filling::Random,
        };
        Tar::new(self.seed, self.size, self.files, filling)
    }

    fn make(&self) -> Layer {
        let tar = Body::Tar(Arc::new(self.tar()));
        // Ten gibibytes take seconds to hash: both digests at once.
        let (diff_id, (digest, body)) = std::thread::scope(|scope| {
            let diff_id = scope.spawn(|| Digest::of(&tar, Algorithm::Sha256));
            let body = self.compress(&tar);
            let digest = Digest::of(&body, Algorithm::Sha256);
            (diff_id.join().expect("hashing"), (digest, body))
        });
        Layer {
            digest,
            diff_id,
            compression: self.compression,
            body,
        }
    }

    fn compress(&self, tar: &Body) -> Body {
        match self.compression {
            Compression::GzipStored => Stored::new(self.tar(), Form::Gzip).into(),
            Compression::ZstdRaw => Stored::new(self.tar(), Form::Zstd).into(),
            Compression::None => tar.clone(),
            Compression::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP_LEVEL));
                encoder.write_all(&tar.to_vec()).expect("memory");
                Body::held(encoder.finish().expect("memory"))
            }
            Compression::Zstd => {
                Body::held(zstd::encode_all(&tar.to_vec()[..], ZSTD_LEVEL).expect("memory"))
            }
        }
    }
}

/// Layers made so far; each recipe is made once, by whoever asks first.
#[derive(Default)]
pub struct Layers {
    made: Mutex<HashMap<Recipe, Arc<OnceLock<Arc<Layer>>>>>,
}

impl Layers {
    /// Makes the missing ones side by side, in as many threads as there are cores.
    pub fn make(&self, recipes: &[Recipe]) -> Vec<Arc<Layer>> {
        let cells: Vec<_> = {
            let mut made = self.made.lock().unwrap();
            let cell = |recipe: &Recipe| made.entry(*recipe).or_default().clone();
            recipes.iter().map(cell).collect()
        };
        let next = std::sync::atomic::AtomicUsize::new(0);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads.min(recipes.len()) {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        let Some(recipe) = recipes.get(index) else {
                            return;
                        };
                        cells[index].get_or_init(|| Arc::new(recipe.make()));
                    }
                });
            }
        });
        let made = |cell: &Arc<OnceLock<Arc<Layer>>>| cell.get().expect("made above").clone();
        cells.iter().map(made).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn spec(size: u64, compression: Option<Compression>) -> LayerSpec {
        LayerSpec {
            size,
            files: 2,
            compression,
            seed: None,
        }
    }

    #[test]
    fn diff_id_is_the_digest_of_what_a_decoder_gives() {
        let all = [
            Compression::Gzip,
            Compression::GzipStored,
            Compression::Zstd,
            Compression::ZstdRaw,
            Compression::None,
        ];
        for compression in all {
            let recipe = spec(100_000, Some(compression)).recipe(5).unwrap();
            let layer = Layers::default().make(&[recipe]).remove(0);
            let bytes = layer.body.to_vec();
            assert_eq!(Digest::sha256(&bytes), layer.digest);
            let mut tar = Vec::new();
            match compression {
                Compression::Gzip | Compression::GzipStored => {
                    let mut decoder = flate2::read::GzDecoder::new(&bytes[..]);
                    decoder.read_to_end(&mut tar).unwrap();
                }
                Compression::Zstd | Compression::ZstdRaw => {
                    tar = zstd::decode_all(&bytes[..]).unwrap();
                }
                Compression::None => tar = bytes,
            }
            assert_eq!(Digest::sha256(&tar), layer.diff_id, "{compression:?}");
        }
    }

    #[test]
    fn one_recipe_is_made_once() {
        let layers = Layers::default();
        let recipe = spec(10, None).recipe(1).unwrap();
        let made = layers.make(&[recipe, recipe]);
        assert!(Arc::ptr_eq(&made[0], &made[1]));
        assert!(Arc::ptr_eq(&made[0], &layers.make(&[recipe])[0]));
    }

    #[test]
    fn defaults_and_limits() {
        let small = spec(COMPRESSED_DEFAULT_MAX, None).recipe(0).unwrap();
        assert_eq!(small.compression, Compression::Gzip);
        let large = spec(COMPRESSED_DEFAULT_MAX + 1, None).recipe(0).unwrap();
        assert_eq!(large.compression, Compression::GzipStored);
        assert!(
            spec(COMPRESSED_SIZE_MAX + 1, Some(Compression::Zstd))
                .recipe(0)
                .is_err()
        );
        let no_files = LayerSpec {
            files: 0,
            ..spec(1, None)
        };
        assert!(no_files.recipe(0).is_err());
    }
}
