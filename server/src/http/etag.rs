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

/// The value of an `ETag` field if it is one strong entity tag (RFC 9110 §8.8.3).
pub fn strong(value: &[u8]) -> Option<&str> {
    let tag = std::str::from_utf8(value).ok()?;
    let opaque = tag.strip_prefix('"')?.strip_suffix('"')?;
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"';
    opaque.bytes().all(plain).then_some(tag)
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

/// What must hold for any bytes at all.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    const DIGEST: &str = "sha256:4bcff639";
    // A strong match of one is a weak match of all; both need the digest to be there.
    let matched = if_none_match(std::iter::once(data), DIGEST);
    assert!(matched || !if_range(data, DIGEST));
    let named = data
        .windows(DIGEST.len())
        .any(|window| window == DIGEST.as_bytes());
    assert!(!matched || named || data.contains(&b'*'));
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:4bcff639";

    #[test]
    fn if_none_match_in_all_its_spellings() {
        let cases: [(&[&str], bool); 16] = [
            (&["\"sha256:4bcff639\""], true),
            (&["sha256:4bcff639"], true),
            (&["W/\"sha256:4bcff639\""], true),
            (&["*"], true),
            (&["\"a\", \"sha256:4bcff639\""], true),
            (&["\"a,b\" ,sha256:4bcff639 , \"c\""], true),
            (&["\"a\"", "\"sha256:4bcff639\""], true),
            (&[" \t\"sha256:4bcff639\"\t"], true),
            (&[], false),
            (&[""], false),
            (&["\"sha256:4bcff63\""], false),
            (&["w/\"sha256:4bcff639\""], false),
            (&["\"*\""], false),
            (&["W/*"], false),
            (&["\"a, sha256:4bcff639"], false),
            (&["\"sha256:4bcff639"], false),
        ];
        for (values, expected) in cases {
            let values_bytes = values.iter().map(|value| value.as_bytes());
            assert_eq!(if_none_match(values_bytes, DIGEST), expected, "{values:?}");
        }
    }

    #[test]
    fn only_a_strong_tag_is_one() {
        for (value, strong_one) in [
            (r#""a""#, true),
            (r#""""#, true),
            (r#"W/"a""#, false),
            (r#""a", "b""#, false),
            (r#""a"#, false),
            (r#"""#, false),
            ("a", false),
            ("*", false),
            ("\"a\r\nX: y\"", false),
            ("", false),
        ] {
            let found = strong(value.as_bytes());
            assert_eq!(found, strong_one.then_some(value), "{value}");
        }
    }

    #[test]
    fn if_range_compares_strongly() {
        let cases = [
            ("\"sha256:4bcff639\"", true),
            ("sha256:4bcff639", true),
            ("W/\"sha256:4bcff639\"", false),
            ("*", false),
            ("", false),
            ("\"sha256:4bcff639\", \"a\"", false),
            ("Sun, 06 Nov 1994 08:49:37 GMT", false),
        ];
        for (value, expected) in cases {
            assert_eq!(if_range(value.as_bytes(), DIGEST), expected, "{value}");
        }
    }

    #[test]
    fn fuzz_mutated_tags() {
        let seeds: [&[u8]; 3] = [
            b"\"sha256:4bcff639\"",
            b"W/\"a\", sha256:4bcff639",
            b"*, \"b\"",
        ];
        let words: [&[u8]; 6] = [b"\"", b",", b"W/", b"*", b" ", b"sha256:4bcff639"];
        crate::http::fuzzing::run(&seeds, &words, fuzz);
    }
}
