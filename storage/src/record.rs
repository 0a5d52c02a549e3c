//! Records: what a page of a segment says, one after another.
//!
//! Each is {kind, length, sequence} and a body of that length. A kind this program does not know
//! is kept as it is. Among records of one key the highest sequence wins, on whatever disk; a
//! forget record kills those with a lower one.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::Seconds;
use crate::clock::Age;
use crate::codec::{Encoder, Reader};
use crate::digest::Digest;
use crate::key::{
    ForgetKey, LinkKey, LinkRecord, Proof, RepositoryKey, ScopeKey, Statistics, TagKey, TagKind,
    TagRecord,
};

/// A body's CRCs are of this many bytes each, the last one of the rest.
pub const CRC_STRIDE_BYTES: u64 = 1 << 20;
/// A small record: far above any repository name, reference and Link field a registry accepts.
pub(crate) const SMALL_RECORD_LEN_MAX: usize = 48 << 10;
/// Far above any media type (RFC 6838 §4.2 ends names at 127), and well inside a record header.
pub(crate) const MEDIA_TYPE_LEN_MAX: usize = 1 << 10;

/// {kind, three zero bytes, length, sequence}
pub(crate) const PREFIX_LEN: usize = 16;

const KIND_BODY: u8 = 1;
const KIND_TAG: u8 = 2;
const KIND_LINK: u8 = 3;
const KIND_STATISTICS: u8 = 4;
const KIND_FORGET: u8 = 5;
const KIND_AREA: u8 = 6;
const KIND_RECENCY: u8 = 7;
/// In a forget record, beside the kinds of what has one key.
const FORGET_SCOPE: u8 = 5;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of a body: its fill.
    pub sequence: u64,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Body(BodyEntry),
    Tag(TagKey, TagRecord),
    Link(LinkKey, LinkRecord),
    Statistics(RepositoryKey, Statistics),
    Forget(ForgetKey),
    /// Where the commit entries of this segment go on.
    Area {
        offset: u64,
        len: u64,
    },
    Recency(Recency),
    Unknown {
        code: u8,
        payload: Vec<u8>,
    },
}

/// When bodies were last asked for, by the age clock. The highest time of a body counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recency {
    /// The age clock when this was written: the next process goes on from there.
    pub clock: u64,
    pub seen: Vec<(Digest, Age)>,
}

impl Recency {
    /// As many times as are sure to fit a record of `SMALL_RECORD_LEN_MAX`.
    pub(crate) const SEEN_MAX: usize =
        (SMALL_RECORD_LEN_MAX / 2 - PREFIX_LEN - 12) / (1 + Digest::LEN_MAX + 4);
}

/// The commit entry of a body: without it the body does not exist (S3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyEntry {
    pub digest: Digest,
    /// Where the body begins in its segment; its record header is the page before.
    pub offset: u64,
    pub len: u64,
    pub created: Seconds,
    pub media_type: Option<Arc<str>>,
    pub crcs: Vec<u32>,
}

impl BodyEntry {
    /// The most an entry can take for a body of `len` bytes with the longest media type.
    pub(crate) fn encoded_max(len: u64) -> u64 {
        let fixed = PREFIX_LEN + 1 + Digest::LEN_MAX + 3 * 8 + 2 * 4 + MEDIA_TYPE_LEN_MAX;
        fixed as u64 + 4 * len.div_ceil(CRC_STRIDE_BYTES)
    }
}

impl Record {
    pub(crate) fn encode(&self, out: &mut Encoder) {
        let start = out.bytes.len();
        out.u8(self.kind.code());
        out.raw(&[0; 3]);
        out.u32(0);
        out.u64(self.sequence);
        self.kind.encode(out);
        let len = out.bytes.len() - start - PREFIX_LEN;
        let len = u32::try_from(len).expect("records are far below 4 GiB");
        out.bytes[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
    }

    pub(crate) fn encoded(&self) -> Vec<u8> {
        let mut out = Encoder::default();
        self.encode(&mut out);
        out.bytes
    }

    /// `None`: the bytes end within a record, or a known kind is malformed.
    pub(crate) fn decode(reader: &mut Reader<'_>) -> Option<Record> {
        Record::decode_with(reader, &mut MediaTexts::default())
    }

    fn decode_with(reader: &mut Reader<'_>, media: &mut MediaTexts) -> Option<Record> {
        let code = reader.u8()?;
        reader.raw(3)?;
        let len = usize::try_from(reader.u32()?).ok()?;
        let sequence = reader.u64()?;
        let mut payload = Reader::new(reader.raw(len)?);
        let kind = Kind::decode(code, &mut payload, media)?;
        payload.is_empty().then_some(Record { sequence, kind })
    }

    pub(crate) fn decode_all(bytes: &[u8], count: u32) -> Option<Vec<Record>> {
        let mut reader = Reader::new(bytes);
        // Believed as far as there are bytes: foreign ones may claim any count.
        let room = (count as usize).min(bytes.len() / PREFIX_LEN);
        let (mut records, mut media) = (Vec::with_capacity(room), MediaTexts::default());
        for _ in 0..count {
            records.push(Record::decode_with(&mut reader, &mut media)?);
        }
        reader.is_empty().then_some(records)
    }
}

impl Kind {
    fn code(&self) -> u8 {
        match self {
            Kind::Body(_) => KIND_BODY,
            Kind::Tag(..) => KIND_TAG,
            Kind::Link(..) => KIND_LINK,
            Kind::Statistics(..) => KIND_STATISTICS,
            Kind::Forget(_) => KIND_FORGET,
            Kind::Area { .. } => KIND_AREA,
            Kind::Recency(_) => KIND_RECENCY,
            Kind::Unknown { code, .. } => *code,
        }
    }

    fn encode(&self, out: &mut Encoder) {
        match self {
            Kind::Body(entry) => encode_body(entry, out),
            Kind::Tag(key, tag) => {
                encode_tag_key(key, out);
                out.digest(&tag.digest);
                out.text(&tag.origin);
                out.u64(tag.checked);
                out.text(&tag.note);
            }
            Kind::Link(key, link) => {
                encode_link_key(key, out);
                out.text(&link.origin);
                out.u8(link.proof.code());
                out.u64(link.at);
            }
            Kind::Statistics(key, statistics) => {
                out.text(&key.project);
                out.text(&key.repository);
                out.u64(statistics.pulls);
                out.u64(statistics.served_bytes);
                out.u64(statistics.upstream_bytes);
                out.u64(statistics.last_pull);
            }
            Kind::Forget(key) => encode_forget(key, out),
            Kind::Area { offset, len } => {
                out.u64(*offset);
                out.u64(*len);
            }
            Kind::Recency(recency) => {
                out.u64(recency.clock);
                out.u32(u32::try_from(recency.seen.len()).expect("at most SEEN_MAX"));
                for (digest, age) in &recency.seen {
                    out.digest(digest);
                    out.u32(*age);
                }
            }
            Kind::Unknown { payload, .. } => out.raw(payload),
        }
    }

    /// A forget record of a later program. What it kills is not known, so nothing that lies beside
    /// it may be served.
    pub(crate) fn is_later_forget(&self) -> bool {
        matches!(self, Kind::Unknown { code, .. } if *code == KIND_FORGET)
    }

    fn decode(code: u8, reader: &mut Reader<'_>, media: &mut MediaTexts) -> Option<Kind> {
        Some(match code {
            KIND_BODY => Kind::Body(decode_body(reader, media)?),
            KIND_TAG => {
                let key = decode_tag_key(reader)?;
                let tag = TagRecord {
                    digest: reader.digest()?,
                    origin: reader.shared()?,
                    checked: reader.u64()?,
                    note: reader.shared()?,
                };
                Kind::Tag(key, tag)
            }
            KIND_LINK => {
                let key = decode_link_key(reader)?;
                let link = LinkRecord {
                    origin: reader.shared()?,
                    proof: Proof::from_code(reader.u8()?)?,
                    at: reader.u64()?,
                };
                Kind::Link(key, link)
            }
            KIND_STATISTICS => {
                let key = decode_repository_key(reader)?;
                let statistics = Statistics {
                    pulls: reader.u64()?,
                    served_bytes: reader.u64()?,
                    upstream_bytes: reader.u64()?,
                    last_pull: reader.u64()?,
                };
                Kind::Statistics(key, statistics)
            }
            KIND_FORGET => decode_forget(reader)?,
            KIND_AREA => Kind::Area {
                offset: reader.u64()?,
                len: reader.u64()?,
            },
            KIND_RECENCY => Kind::Recency(decode_recency(reader)?),
            code => Kind::Unknown {
                code,
                payload: reader.rest().to_vec(),
            },
        })
    }
}

/// The media types of the last records of a page, which share them: one text each, not one for
/// each record.
#[derive(Default)]
struct MediaTexts(VecDeque<Arc<str>>);

impl MediaTexts {
    /// Most pages have manifests, configs and layers of one or two kinds.
    const MAX: usize = 8;

    fn share(&mut self, text: &str) -> Option<Arc<str>> {
        if text.is_empty() {
            return None;
        }
        if let Some(known) = self.0.iter().find(|known| &***known == text) {
            return Some(Arc::clone(known));
        }
        self.0.truncate(MediaTexts::MAX - 1);
        let shared = Arc::<str>::from(text);
        self.0.push_front(Arc::clone(&shared));
        Some(shared)
    }
}

fn encode_body(entry: &BodyEntry, out: &mut Encoder) {
    out.digest(&entry.digest);
    out.u64(entry.offset);
    out.u64(entry.len);
    out.u64(entry.created);
    out.text(entry.media_type.as_deref().unwrap_or(""));
    out.u32(u32::try_from(entry.crcs.len()).expect("4 Gi MiB is beyond any disk"));
    for crc in &entry.crcs {
        out.u32(*crc);
    }
}

fn decode_body(reader: &mut Reader<'_>, media: &mut MediaTexts) -> Option<BodyEntry> {
    let digest = reader.digest()?;
    let (offset, len, created) = (reader.u64()?, reader.u64()?, reader.u64()?);
    let media_type = media.share(reader.text()?);
    let count = reader.u32()?;
    if u64::from(count) != len.div_ceil(CRC_STRIDE_BYTES) {
        return None;
    }
    let crcs = reader.raw(usize::try_from(count).ok()?.checked_mul(4)?)?;
    let crcs = crcs.as_chunks::<4>().0.iter();
    let crcs = crcs.map(|crc| u32::from_le_bytes(*crc)).collect();
    Some(BodyEntry {
        digest,
        offset,
        len,
        created,
        media_type,
        crcs,
    })
}

fn decode_recency(reader: &mut Reader<'_>) -> Option<Recency> {
    let (clock, count) = (reader.u64()?, reader.u32()?);
    let seen = (0..count).map(|_| Some((reader.digest()?, reader.u32()?)));
    let seen = seen.collect::<Option<Vec<_>>>()?;
    Some(Recency { clock, seen })
}

fn encode_tag_key(key: &TagKey, out: &mut Encoder) {
    out.text(&key.project);
    out.text(&key.repository);
    out.u8(match key.kind {
        TagKind::Tag => 1,
        TagKind::Listing => 2,
    });
    out.text(&key.name);
}

fn decode_tag_key(reader: &mut Reader<'_>) -> Option<TagKey> {
    Some(TagKey {
        project: reader.boxed()?,
        repository: reader.boxed()?,
        kind: match reader.u8()? {
            1 => TagKind::Tag,
            2 => TagKind::Listing,
            _ => return None,
        },
        name: reader.boxed()?,
    })
}

fn encode_link_key(key: &LinkKey, out: &mut Encoder) {
    out.text(&key.project);
    out.text(&key.repository);
    out.digest(&key.digest);
}

fn decode_link_key(reader: &mut Reader<'_>) -> Option<LinkKey> {
    Some(LinkKey {
        project: reader.boxed()?,
        repository: reader.boxed()?,
        digest: reader.digest()?,
    })
}

fn decode_repository_key(reader: &mut Reader<'_>) -> Option<RepositoryKey> {
    Some(RepositoryKey {
        project: reader.boxed()?,
        repository: reader.boxed()?,
    })
}

fn encode_forget(key: &ForgetKey, out: &mut Encoder) {
    match key {
        ForgetKey::Body(digest) => {
            out.u8(KIND_BODY);
            out.digest(digest);
        }
        ForgetKey::Tag(key) => {
            out.u8(KIND_TAG);
            encode_tag_key(key, out);
        }
        ForgetKey::Link(key) => {
            out.u8(KIND_LINK);
            encode_link_key(key, out);
        }
        ForgetKey::Statistics(key) => {
            out.u8(KIND_STATISTICS);
            out.text(&key.project);
            out.text(&key.repository);
        }
        ForgetKey::Scope(scope) => {
            out.u8(FORGET_SCOPE);
            out.text(&scope.project);
            out.u8(scope.repository.is_some().into());
            if let Some(repository) = &scope.repository {
                out.text(repository);
            }
        }
    }
}

fn decode_forget(reader: &mut Reader<'_>) -> Option<Kind> {
    Some(Kind::Forget(match reader.u8()? {
        KIND_BODY => ForgetKey::Body(reader.digest()?),
        KIND_TAG => ForgetKey::Tag(decode_tag_key(reader)?),
        KIND_LINK => ForgetKey::Link(decode_link_key(reader)?),
        KIND_STATISTICS => ForgetKey::Statistics(decode_repository_key(reader)?),
        FORGET_SCOPE => ForgetKey::Scope(ScopeKey {
            project: reader.boxed()?,
            repository: match reader.u8()? {
                0 => None,
                1 => Some(reader.boxed()?),
                _ => return None,
            },
        }),
        later => {
            let mut payload = vec![later];
            payload.extend_from_slice(reader.rest());
            let code = KIND_FORGET;
            return Some(Kind::Unknown { code, payload });
        }
    }))
}

impl Proof {
    fn code(self) -> u8 {
        match self {
            Proof::Fetched => 1,
            Proof::Headed => 2,
            Proof::Manifest => 3,
        }
    }

    fn from_code(code: u8) -> Option<Proof> {
        match code {
            1 => Some(Proof::Fetched),
            2 => Some(Proof::Headed),
            3 => Some(Proof::Manifest),
            _ => None,
        }
    }
}

/// Decodes foreign bytes; what decodes must encode to the same bytes. For the fuzzer.
pub fn fuzz(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    while let Some(record) = Record::decode(&mut reader) {
        let encoded = record.encoded();
        assert_eq!(Record::decode(&mut Reader::new(&encoded)), Some(record));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag_key() -> TagKey {
        TagKey {
            project: "dh".into(),
            repository: "library/nginx".into(),
            kind: TagKind::Tag,
            name: "1.27".into(),
        }
    }

    fn kinds() -> Vec<Kind> {
        let digest = Digest::sha256(b"body");
        let link = LinkKey {
            project: "dh".into(),
            repository: "library/nginx".into(),
            digest,
        };
        let long = CRC_STRIDE_BYTES * 2 + 1;
        let media_type = Some("application/vnd.oci.image.manifest.v1+json".into());
        let body = BodyEntry {
            digest,
            offset: 8192,
            len: 4,
            created: 7,
            media_type,
            crcs: vec![1],
        };
        let listing = TagKey {
            kind: TagKind::Listing,
            name: "n=100".into(),
            ..tag_key()
        };
        let tag = TagRecord {
            digest,
            origin: "https://a".into(),
            checked: 9,
            note: "".into(),
        };
        let proven = LinkRecord {
            origin: "https://a".into(),
            proof: Proof::Headed,
            at: 5,
        };
        let repository = RepositoryKey {
            project: "dh".into(),
            repository: "a".into(),
        };
        vec![
            Kind::Body(BodyEntry {
                len: long,
                crcs: vec![1, 2, 3],
                ..body.clone()
            }),
            Kind::Body(BodyEntry {
                len: 0,
                crcs: vec![],
                media_type: None,
                ..body
            }),
            Kind::Tag(tag_key(), tag.clone()),
            Kind::Tag(
                listing,
                TagRecord {
                    note: "</v2/…>; rel=next".into(),
                    ..tag
                },
            ),
            Kind::Link(link.clone(), proven),
            Kind::Statistics(
                repository.clone(),
                Statistics {
                    pulls: 3,
                    ..Statistics::default()
                },
            ),
            Kind::Forget(ForgetKey::Body(digest)),
            Kind::Forget(ForgetKey::Tag(tag_key())),
            Kind::Forget(ForgetKey::Link(link)),
            Kind::Forget(ForgetKey::Statistics(repository)),
            Kind::Area {
                offset: 4096,
                len: 65536,
            },
            Kind::Recency(Recency::default()),
            Kind::Recency(Recency {
                clock: 1 << 40,
                seen: vec![(digest, 7), (Digest::sha256(b"other"), Age::MAX)],
            }),
            Kind::Unknown {
                code: 200,
                payload: vec![1, 2, 3],
            },
        ]
    }

    #[test]
    fn decodes_what_it_encodes() {
        let records: Vec<Record> = kinds()
            .into_iter()
            .enumerate()
            .map(|(n, kind)| Record {
                sequence: n as u64,
                kind,
            })
            .collect();
        let mut out = Encoder::default();
        for record in &records {
            record.encode(&mut out);
        }
        let count = records.len() as u32;
        assert_eq!(Record::decode_all(&out.bytes, count), Some(records));
        assert_eq!(Record::decode_all(&out.bytes, count - 1), None);
        fuzz(&out.bytes);
    }

    #[test]
    fn no_cut_or_flip_panics() {
        for kind in kinds() {
            let encoded = Record { sequence: 1, kind }.encoded();
            for len in 0..encoded.len() {
                assert_eq!(Record::decode(&mut Reader::new(&encoded[..len])), None);
            }
            for at in 0..encoded.len() {
                let mut flipped = encoded.clone();
                flipped[at] ^= 0x81;
                fuzz(&flipped);
            }
        }
    }

    #[test]
    fn a_full_recency_record_fits_a_page_of_records() {
        let mut hasher = crate::Hasher::new(crate::Algorithm::Sha512);
        hasher.update(b"x");
        let seen = vec![(hasher.finish(), Age::MAX); Recency::SEEN_MAX];
        let kind = Kind::Recency(Recency { clock: 1, seen });
        let encoded = Record { sequence: 1, kind }.encoded();
        assert!(encoded.len() <= SMALL_RECORD_LEN_MAX / 2);
    }

    #[test]
    fn an_entry_is_never_longer_than_its_bound() {
        for len in [0, 1, CRC_STRIDE_BYTES, CRC_STRIDE_BYTES * 7 + 1] {
            let mut hasher = crate::Hasher::new(crate::Algorithm::Sha512);
            hasher.update(b"x");
            let entry = BodyEntry {
                digest: hasher.finish(),
                offset: u64::MAX,
                len,
                created: u64::MAX,
                media_type: Some("m".repeat(MEDIA_TYPE_LEN_MAX).into()),
                crcs: vec![0; len.div_ceil(CRC_STRIDE_BYTES) as usize],
            };
            let encoded = Record {
                sequence: 1,
                kind: Kind::Body(entry),
            }
            .encoded();
            assert_eq!(encoded.len() as u64, BodyEntry::encoded_max(len));
        }
    }
}
