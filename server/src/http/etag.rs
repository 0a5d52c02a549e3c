//! Entity tags of content that is named by its digest (RFC 9110 §8.8.3, §13.1).
//!
//! The tag we send is the digest in quotes. Clients send it back with and without quotes, and
//! caches between us may weaken it; all of these mean the same bytes.

/// Whether one of the `If-None-Match` values names the digest: then the answer is 304.
pub fn if_none_match<'a>(values: impl Iterator<Item = &'a [u8]>, digest: &str) -> bool {
    // RFC 9110 §13.1.2: weak comparison.
    let mut tags = values.flat_map(|value| Tags { rest: value });
    tags.any(|tag| tag.any || tag.opaque == digest.as_bytes())
}

/// Whether an `If-Range` value names the digest: only then is `Range` honoured.
pub fn if_range(value: &[u8], digest: &str) -> bool {
    // RFC 9110 §13.1.5: strong comparison. We send no Last-Modified, so no date ever matches.
    let mut tags = Tags { rest: value };
    let first = tags.next();
    first.is_some_and(|tag| !tag.weak && !tag.any && tag.opaque == digest.as_bytes())
        && tags.next().is_none()
}

struct Tag<'a> {
    opaque: &'a [u8],
    weak: bool,
    any: bool,
}

/// The entity tags of one list; what follows an unclosed quote is dropped.
struct Tags<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Tags<'a> {
    type Item = Tag<'a>;

    fn next(&mut self) -> Option<Tag<'a>> {
        while let [b' ' | b'\t' | b',', rest @ ..] = self.rest {
            self.rest = rest;
        }
        let (weak, tag) = match self.rest {
            // RFC 9110 §8.8.3: the W of a weak tag is case-sensitive.
            [b'W', b'/', tag @ ..] => (true, tag),
            tag => (false, tag),
        };
        let (opaque, rest) = match tag {
            [] => return None,
            // A quoted tag may hold commas.
            [b'"', quoted @ ..] => {
                let Some(end) = quoted.iter().position(|byte| *byte == b'"') else {
                    self.rest = &[];
                    return None;
                };
                (&quoted[..end], &quoted[end + 1..])
            }
            bare => {
                let end = bare.iter().position(|byte| *byte == b',');
                let (opaque, rest) = bare.split_at(end.unwrap_or(bare.len()));
                (super::field::trim_end(opaque), rest)
            }
        };
        let any = !weak && tag[0] == b'*' && opaque == b"*";
        self.rest = rest;
        Some(Tag { opaque, weak, any })
    }
}
