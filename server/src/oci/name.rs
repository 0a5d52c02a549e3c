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
