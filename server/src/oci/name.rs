//! Names of repositories and tags (OCI, "Pulling manifests").

use std::borrow::Cow;

/// Octets of a repository name. Clients limit host and name together to 255.
pub const REPOSITORY_LEN_MAX: usize = 255;
/// Octets of a tag.
pub const TAG_LEN_MAX: usize = 128;

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, once or several times with `/` between.
pub fn is_repository(name: &str) -> bool {
    name.len() <= REPOSITORY_LEN_MAX && name.split('/').all(is_component)
}

/// One part of a repository name; a project prefix is one, too.
pub fn is_component(component: &str) -> bool {
    let mut rest = component.as_bytes();
    loop {
        let word = rest
            .iter()
            .take_while(|byte| is_alphanumeric(**byte))
            .count();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        rest = match rest {
            [] => return true,
            [b'_', b'_', after @ ..] | [b'.' | b'_', after @ ..] => after,
            [b'-', ..] => {
                let dashes = rest.iter().take_while(|byte| **byte == b'-').count();
                &rest[dashes..]
            }
            _ => return false,
        };
    }
}

fn is_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
pub fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let [first, rest @ ..] = tag.as_bytes() else {
        return false;
    };
    tag.len() <= TAG_LEN_MAX
        && word(*first)
        && rest
            .iter()
            .all(|byte| word(*byte) || matches!(byte, b'.' | b'-'))
}

/// The name by which Docker Hub knows a repository: official images live under `library/`.
pub fn normalise_docker_hub(name: &str) -> Cow<'_, str> {
    if name.contains('/') {
        Cow::Borrowed(name)
    } else {
        Cow::Owned(format!("library/{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories() {
        let valid = [
            "a",
            "0",
            "library/nginx",
            "a/b/c/d",
            "a.b",
            "a_b",
            "a__b",
            "a-b",
            "a---b",
            "a-b.c_d",
            "quay.io/prometheus/node-exporter",
            "manifests/blobs/tags",
            "v2/v2",
            "a/0",
        ];
        for name in valid {
            assert!(is_repository(name), "{name}");
        }
        let invalid = [
            "", "/", "a/", "/a", "a//b", "A", "a/B", ".a", "a.", "a..b", "a._b", "a___b", "_a",
            "a_", "-a", "a-", "a-.b", "a/-b", "..", "a/../b", "a b", "a:b", "a@b", "a%2fb",
            "\u{e9}", "a\0", "a/./b", "_catalog",
        ];
        for name in invalid {
            assert!(!is_repository(name), "{name}");
        }
        assert!(is_repository(&"a".repeat(REPOSITORY_LEN_MAX)));
        assert!(!is_repository(&"a".repeat(REPOSITORY_LEN_MAX + 1)));
    }

    #[test]
    fn tags() {
        for tag in [
            "a",
            "_",
            "1.27",
            "Latest",
            "sha256-00.sig",
            "a__b..c--",
            "_-.",
        ] {
            assert!(is_tag(tag), "{tag}");
        }
        for tag in ["", ".a", "-a", "a:b", "a/b", "a b", "a+b", "a%", "\u{e9}"] {
            assert!(!is_tag(tag), "{tag}");
        }
        assert!(is_tag(&"a".repeat(TAG_LEN_MAX)));
        assert!(!is_tag(&"a".repeat(TAG_LEN_MAX + 1)));
    }

    #[test]
    fn official_images_live_under_library() {
        for (name, expected) in [
            ("nginx", "library/nginx"),
            ("library/a", "library/a"),
            ("a/b", "a/b"),
        ] {
            assert_eq!(normalise_docker_hub(name), expected);
        }
    }
}
