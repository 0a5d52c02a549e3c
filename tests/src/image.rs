//! Images made here, byte by byte: an OCI layout that skopeo can push.
//!
//! Layers are real tar files in real gzip members (stored, not compressed: RFC 1951 §3.2.4), so
//! every client unpacks them and checks their diff ids.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::sha256::digest;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A tar file is written in units of this.
const TAR_UNIT: usize = 512;

/// The longest stored part of a deflate stream.
const STORED_LEN_MAX: usize = 65_535;

/// Something with a digest.
#[derive(Debug, Clone)]
pub struct Blob {
    pub digest: String,
    pub bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Blob {
        let digest = digest(&bytes);
        Blob { digest, bytes }
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// One platform of an image.
#[derive(Debug, Clone)]
pub struct Variant {
    pub architecture: &'static str,
    pub manifest: Blob,
    pub config: Blob,
    pub layers: Vec<Blob>,
    pub diff_ids: Vec<String>,
}

impl Variant {
    fn new(architecture: &'static str, seed: u64, layer_lens: &[usize]) -> Variant {
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for (nth, len) in layer_lens.iter().enumerate() {
            let name = format!("data/{architecture}/{nth}");
            let tar = tar(&name, &noise(seed * 100 + nth as u64, *len));
            diff_ids.push(digest(&tar));
            layers.push(Blob::new(gzip(&tar)));
        }
        let config = Blob::new(json_bytes(&json!({
            "architecture": architecture, "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": diff_ids.iter().map(|_| json!({"created_by": "test"})).collect::<Vec<_>>(),
        })));
        let manifest = Blob::new(json_bytes(&json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": config.descriptor(OCI_CONFIG),
            "layers": layers.iter().map(|l| l.descriptor(OCI_LAYER)).collect::<Vec<_>>(),
        })));
        Variant {
            architecture,
            manifest,
            config,
            layers,
            diff_ids,
        }
    }

    /// Config and layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

/// An image for linux/amd64 and linux/arm64.
#[derive(Debug, Clone)]
pub struct Image {
    pub index: Blob,
    pub variants: Vec<Variant>,
}

impl Image {
    /// The same seed and lengths give the same digests.
    pub fn new(seed: u64, layer_lens: &[usize]) -> Image {
        let variants = vec![
            Variant::new("amd64", seed, layer_lens),
            Variant::new("arm64", seed + 1, layer_lens),
        ];
        let manifests = variants.iter().map(|variant| {
            let mut descriptor = variant.manifest.descriptor(OCI_MANIFEST);
            descriptor["platform"] = json!({"os": "linux", "architecture": variant.architecture});
            descriptor
        });
        let manifests: Vec<Value> = manifests.collect();
        let index = Blob::new(json_bytes(&json!({
            "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests,
        })));
        Image { index, variants }
    }

    /// Index, manifests, configs and layers.
    pub fn everything(&self) -> Vec<&Blob> {
        let parts = self.variants.iter();
        let parts = parts.flat_map(|v| std::iter::once(&v.manifest).chain(v.blobs()));
        std::iter::once(&self.index).chain(parts).collect()
    }

    /// Writes the image as an OCI layout below `folder`, tagged `tag`.
    pub fn write_layout(&self, folder: &Path, tag: &str) -> PathBuf {
        let blobs = folder.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).expect("a folder for the layout");
        for blob in self.everything() {
            let name = blob
                .digest
                .strip_prefix("sha256:")
                .expect("a sha256 digest");
            std::fs::write(blobs.join(name), &blob.bytes).expect("a blob file");
        }
        let mut index = self.index.descriptor(OCI_INDEX);
        index["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        let index = json!({"schemaVersion": 2, "manifests": [index]});
        std::fs::write(folder.join("index.json"), json_bytes(&index)).expect("index.json");
        let marker = json_bytes(&json!({"imageLayoutVersion": "1.0.0"}));
        std::fs::write(folder.join("oci-layout"), marker).expect("oci-layout");
        folder.to_owned()
    }
}

fn json_bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("JSON made here")
}

/// Bytes that do not compress, the same for the same seed (xorshift64*).
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let word = state.wrapping_mul(0x2545_F491_4F6C_DD1D);
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A ustar archive with one file (POSIX.1, pax, "ustar Interchange Format").
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0; TAR_UNIT];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", content.len()));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(content);
    // The file is padded to a unit; two empty units end the archive.
    tar.resize(tar.len().next_multiple_of(TAR_UNIT) + 2 * TAR_UNIT, 0);
    tar
}

/// One gzip member (RFC 1952) of stored parts.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let parts = bytes.chunks(STORED_LEN_MAX);
    let last = parts.len() - 1;
    for (nth, part) in parts.enumerate() {
        out.push(u8::from(nth == last));
        let len = part.len() as u16;
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&(!len).to_le_bytes());
        out.extend_from_slice(part);
    }
    out.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out
}
