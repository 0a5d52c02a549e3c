//! Authentication challenges: the value of `WWW-Authenticate` (RFC 9110 §11.6.1).
//!
//! The upstream client parses the field of a 401 to learn where tokens come from. Whether a realm
//! may be trusted is not decided here (R11). Tolerant by intent: registries write this field by
//! hand; what cannot be understood ends the list, and what stood before it counts.

use crate::http::field;

/// Challenges read from one field value. Two are common (Basic and Bearer).
pub const CHALLENGES_MAX: usize = 8;

/// One challenge of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    pub scheme: Scheme,
    pub realm: Option<String>,
    pub service: Option<String>,
    pub scope: Option<String>,
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Basic,
    Bearer,
    Other,
}

/// The challenges of one field value, in their order.
pub fn parse(value: &[u8]) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut scanner = Scanner { rest: value };
    while challenges.len() < CHALLENGES_MAX {
        scanner.skip(b" \t,");
        let scheme = scanner.take(field::is_token);
        if scheme.is_empty() {
            break;
        }
        let mut challenge = Challenge {
            // RFC 9110 §11.1: scheme names are case-insensitive.
            scheme: match scheme {
                _ if scheme.eq_ignore_ascii_case(b"basic") => Scheme::Basic,
                _ if scheme.eq_ignore_ascii_case(b"bearer") => Scheme::Bearer,
                _ => Scheme::Other,
            },
            realm: None,
            service: None,
            scope: None,
            error: None,
        };
        scanner.token68();
        while let Some((name, value)) = scanner.parameter() {
            challenge.set(name, value);
        }
        challenges.push(challenge);
    }
    challenges
}

impl Challenge {
    /// RFC 9110 §11.2: names are case-insensitive and occur once, so the first one counts.
    fn set(&mut self, name: &[u8], value: Vec<u8>) {
        let place = match name {
            _ if name.eq_ignore_ascii_case(b"realm") => &mut self.realm,
            _ if name.eq_ignore_ascii_case(b"service") => &mut self.service,
            _ if name.eq_ignore_ascii_case(b"scope") => &mut self.scope,
            _ if name.eq_ignore_ascii_case(b"error") => &mut self.error,
            _ => return,
        };
        // These become parts of URLs and log lines: nothing but printable ASCII.
        let text = String::from_utf8(value).ok();
        let text = text.filter(|text| text.bytes().all(|byte| matches!(byte, 0x20..=0x7e)));
        if place.is_none() {
            *place = text;
        }
    }
}

struct Scanner<'a> {
    rest: &'a [u8],
}

impl<'a> Scanner<'a> {
    fn skip(&mut self, set: &[u8]) {
        self.take(|byte| set.contains(&byte));
    }

    fn take(&mut self, wanted: impl Fn(u8) -> bool) -> &'a [u8] {
        let len = self.rest.iter().take_while(|byte| wanted(**byte)).count();
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        taken
    }

    /// Skips the one value that other schemes give in place of parameters.
    fn token68(&mut self) {
        let start = self.rest;
        self.skip(b" \t");
        let body = self.take(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte));
        self.skip(b"=");
        self.skip(b" \t");
        if body.is_empty() || !matches!(self.rest, [] | [b',', ..]) {
            self.rest = start;
        }
    }

    /// The next `name=value`, or `None` where the challenge ends: the next scheme is not consumed.
    fn parameter(&mut self) -> Option<(&'a [u8], Vec<u8>)> {
        let start = self.rest;
        self.skip(b" \t,");
        let name = self.take(field::is_token);
        self.skip(b" \t");
        let Some((b'=', rest)) = self.rest.split_first() else {
            self.rest = start;
            return None;
        };
        self.rest = rest;
        self.skip(b" \t");
        let value = match self.rest {
            [b'"', rest @ ..] => {
                self.rest = rest;
                self.quoted()?
            }
            // A token by the grammar; a bare URL by those who write it by hand.
            _ => self.take(|byte| !b" \t,\"".contains(&byte)).to_vec(),
        };
        Some((name, value))
    }

    /// RFC 9110 §5.6.4: the rest of a quoted string. An unclosed one ends the list.
    fn quoted(&mut self) -> Option<Vec<u8>> {
        let mut value = Vec::new();
        loop {
            value.extend_from_slice(self.take(|byte| byte != b'"' && byte != b'\\'));
            match self.rest {
                [b'\\', escaped, rest @ ..] => {
                    value.push(*escaped);
                    self.rest = rest;
                }
                [b'"', rest @ ..] => {
                    self.rest = rest;
                    return Some(value);
                }
                _ => {
                    self.rest = &[];
                    return None;
                }
            }
        }
    }
}

/// What must hold for any bytes at all.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    let challenges = parse(data);
    assert!(challenges.len() <= CHALLENGES_MAX);
    // Written again by the grammar, they read the same.
    let mut text = String::new();
    for challenge in &challenges {
        text.push_str(match challenge.scheme {
            Scheme::Basic => ", Basic ",
            Scheme::Bearer => ", Bearer ",
            Scheme::Other => ", Other ",
        });
        let values = [
            ("realm", &challenge.realm),
            ("service", &challenge.service),
            ("scope", &challenge.scope),
            ("error", &challenge.error),
        ];
        for (name, value) in values {
            let Some(value) = value else { continue };
            assert!(value.len() <= data.len());
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
            text.push_str(&format!("{name}=\"{escaped}\", "));
        }
    }
    assert_eq!(parse(text.as_bytes()), challenges, "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(scheme: Scheme, values: [&str; 4]) -> Challenge {
        let [realm, service, scope, error] =
            values.map(|value| (!value.is_empty()).then(|| value.to_owned()));
        Challenge {
            scheme,
            realm,
            service,
            scope,
            error,
        }
    }

    fn bearer(values: [&str; 4]) -> Challenge {
        challenge(Scheme::Bearer, values)
    }

    #[test]
    fn what_registries_send() {
        let cases: [(&str, Vec<Challenge>); 12] = [
            (
                "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",\
                 scope=\"repository:library/nginx:pull\"",
                vec![bearer([
                    "https://auth.docker.io/token",
                    "registry.docker.io",
                    "repository:library/nginx:pull",
                    "",
                ])],
            ),
            (
                "bearer  Realm = \"r\" , SERVICE=s,error=\"insufficient_scope\"",
                vec![bearer(["r", "s", "", "insufficient_scope"])],
            ),
            (
                "Bearer scope=\"repository:a:pull,push\"",
                vec![bearer(["", "", "repository:a:pull,push", ""])],
            ),
            (
                "Basic realm=\"a \\\"b\\\\\"",
                vec![challenge(Scheme::Basic, ["a \"b\\", "", "", ""])],
            ),
            (
                "Basic realm=\"a\", Bearer realm=\"b\",service=\"c\"",
                vec![
                    challenge(Scheme::Basic, ["a", "", "", ""]),
                    bearer(["b", "c", "", ""]),
                ],
            ),
            (
                "Basic, Bearer realm=\"b\"",
                vec![challenge(Scheme::Basic, [""; 4]), bearer(["b", "", "", ""])],
            ),
            (
                "Negotiate YWJjZA==, Bearer realm=\"b\"",
                vec![challenge(Scheme::Other, [""; 4]), bearer(["b", "", "", ""])],
            ),
            (
                "Negotiate, NTLM",
                vec![
                    challenge(Scheme::Other, [""; 4]),
                    challenge(Scheme::Other, [""; 4]),
                ],
            ),
            (
                "Bearer realm=https://a/token?b=c,service=d",
                vec![bearer(["https://a/token?b=c", "d", "", ""])],
            ),
            (
                ",, Bearer , realm=\"r\",, unknown=x, service=\"s\",",
                vec![bearer(["r", "s", "", ""])],
            ),
            (
                "Bearer realm=\"a\",realm=\"b\"",
                vec![bearer(["a", "", "", ""])],
            ),
            ("Bearer", vec![bearer([""; 4])]),
        ];
        for (value, expected) in cases {
            assert_eq!(parse(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn what_cannot_be_understood_ends_the_list() {
        let one = |realm: &str| vec![bearer([realm, "", "", ""])];
        let cases: [(&[u8], Vec<Challenge>); 9] = [
            (b"", vec![]),
            (b" , ,", vec![]),
            (b"\"quoted\"", vec![]),
            (b"\0\xff", vec![]),
            (b"Bearer realm=\"a\", \"", one("a")),
            (b"Bearer realm=\"a\", service=\"unclosed", one("a")),
            (b"Bearer realm=\"a\", service=\"unclosed\\", one("a")),
            (b"Bearer realm=\"a\", service=\"b\nc\"", one("a")),
            (b"Bearer realm=\"a\", service=\"\xe9\"", one("a")),
        ];
        for (value, expected) in cases {
            assert_eq!(parse(value), expected, "{}", value.escape_ascii());
        }
    }

    #[test]
    fn the_list_is_bounded() {
        assert_eq!(
            parse("Basic, ".repeat(100).as_bytes()).len(),
            CHALLENGES_MAX
        );
    }

    #[test]
    fn fuzz_mutated_challenges() {
        let seeds: [&[u8]; 4] = [
            b"Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\"",
            b"Basic realm=\"a \\\"b\\\\\", Bearer scope=\"repository:a:pull,push\",error=x",
            b"Negotiate YWJjZA==, Basic",
            b"NTLM",
        ];
        let words: [&[u8]; 10] = [
            b"\"", b"\\", b",", b"=", b" ", b"realm=", b"Bearer ", b"Basic", b"\t", b"==",
        ];
        crate::http::fuzzing::run(&seeds, &words, fuzz);
    }
}
