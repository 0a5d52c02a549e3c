//! Challenges and tokens (distribution specification, "Token Authentication"; RFC 9110 §11).

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::url::{Origin, Url};

/// A token that says nothing lives so long (distribution specification, "expires_in").
const LIFETIME_DEFAULT_S: u64 = 60;
/// Of its life, a token is used for so many parts in ten.
const LIFETIME_TENTHS: u32 = 9;

/// A user's name and password.
#[derive(Clone)]
pub struct Login {
    pub name: String,
    pub password: String,
}

impl Login {
    pub fn parse(text: &str) -> Option<Login> {
        let (name, password) = text.split_once(':')?;
        let (name, password) = (name.to_owned(), password.to_owned());
        Some(Login { name, password })
    }

    /// A value of Authorization (RFC 7617 §2).
    pub fn basic(&self) -> String {
        let pair = format!("{}:{}", self.name, self.password);
        format!("Basic {}", STANDARD.encode(pair))
    }
}

/// What a 401 asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// Of a WWW-Authenticate field; schemes that registries don't use are `None`.
    pub fn parse(value: &str) -> Option<Challenge> {
        let (scheme, parameters) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let parameters = parse_parameters(parameters);
        let named = |wanted: &str| {
            let mut found = parameters.iter().filter(|(name, _)| name == wanted);
            found.next().map(|(_, value)| value.clone())
        };
        Some(Challenge::Bearer {
            realm: named("realm")?,
            service: named("service"),
            scope: named("scope"),
        })
    }
}

/// `name="value"` or `name=value`, with commas between.
fn parse_parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',', '\t']).to_ascii_lowercase();
        let after = after.trim_start();
        let (value, left) = match after.strip_prefix('"') {
            Some(quoted) => quoted_string(quoted),
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        found.push((name, value));
        rest = left;
    }
    found
}

/// What stands before the closing quote, backslashes taken off, and what follows it.
fn quoted_string(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            _ => value.push(letter),
        }
    }
    (value, "")
}

/// The URL of a token for this scope.
pub fn token_url(
    realm: &Url,
    service: Option<&str>,
    scope: Option<&str>,
    account: Option<&str>,
) -> Url {
    let mut path = realm.path.clone();
    let parameters = [("service", service), ("scope", scope), ("account", account)];
    for (name, value) in parameters {
        if let Some(value) = value {
            path.push(if path.contains('?') { '&' } else { '?' });
            path.push_str(&format!("{name}={}", percent_encode(value)));
        }
    }
    Url {
        origin: realm.origin.clone(),
        path,
    }
}

/// All but what RFC 3986 §2.3 leaves alone, and what scopes are made of.
fn percent_encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/".contains(&byte);
    let encoded = text.bytes().map(|byte| match plain(byte) {
        true => (byte as char).to_string(),
        false => format!("%{byte:02X}"),
    });
    encoded.collect()
}

/// Credentials for one scope of one registry.
pub struct Token {
    pub origin: Origin,
    pub scope: Option<String>,
    /// A value of Authorization.
    pub authorization: String,
    /// `None` for a login, which lasts.
    pub until: Option<Instant>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// The value of Authorization that a token server's answer stands for, and how long.
pub fn parse_token(body: &[u8]) -> Option<(String, Duration)> {
    let answer: TokenAnswer = serde_json::from_slice(body).ok()?;
    let token = answer.token.or(answer.access_token)?;
    let printable = token.bytes().all(|byte| byte.is_ascii_graphic());
    if token.is_empty() || !printable {
        return None;
    }
    let lifetime = answer.expires_in.unwrap_or(LIFETIME_DEFAULT_S);
    let lifetime = Duration::from_secs(lifetime.min(u64::from(u32::MAX)));
    Some((format!("Bearer {token}"), lifetime / 10 * LIFETIME_TENTHS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            })
        };
        for (text, expected) in [
            (
                "Bearer realm=\"https://a/token\",service=\"s\",scope=\"repository:a:pull,push\"",
                bearer("https://a/token", Some("s"), Some("repository:a:pull,push")),
            ),
            (
                "bearer Realm=x, service = \"a \\\"b\"",
                bearer("x", Some("a \"b"), None),
            ),
            ("Basic realm=\"x\"", Some(Challenge::Basic)),
            ("Bearer service=\"s\"", None),
            ("Negotiate", None),
        ] {
            assert_eq!(Challenge::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn tokens() {
        let url = Url::parse("https://a/token?x=1").unwrap();
        let url = token_url(&url, Some("a b"), Some("repository:a/b:pull"), None);
        assert_eq!(
            url.path,
            "/token?x=1&service=a%20b&scope=repository:a/b:pull"
        );
        let minute = Duration::from_secs(54);
        for (text, expected) in [
            ("{\"token\":\"t\"}", Some(("Bearer t", minute))),
            (
                "{\"access_token\":\"t\",\"expires_in\":100}",
                Some(("Bearer t", Duration::from_secs(90))),
            ),
            ("{\"token\":\"a\\r\\nb\"}", None),
            ("{\"token\":\"\"}", None),
            ("{}", None),
            ("<html>", None),
        ] {
            let expected = expected.map(|(text, time)| (text.to_owned(), time));
            assert_eq!(parse_token(text.as_bytes()), expected, "{text}");
        }
        let login = Login::parse("user:pass:word").unwrap();
        assert_eq!(login.basic(), "Basic dXNlcjpwYXNzOndvcmQ=");
    }
}
