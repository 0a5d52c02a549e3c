//! Who may see what: logins, tokens and private repositories.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;

use super::digest::Digest;

pub const SERVICE: &str = "entrepot-origin";
/// Older tokens are forgotten beyond this; no test holds as many.
const TOKENS_MAX: usize = 100_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    #[default]
    None,
    Basic,
    Token,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    pub name: String,
    pub password: String,
    /// The private repositories this login sees; absent: all.
    pub repositories: Option<Vec<String>>,
}

#[derive(Clone, Debug)]
pub struct Rules {
    pub mode: Mode,
    pub users: Vec<User>,
    pub token_ttl: Duration,
    /// What token answers claim, in seconds; `None` leaves the field out.
    pub expires_in: Option<u64>,
    /// What a private repository answers to those who may not see it.
    pub private_status: u16,
}

pub struct Auth {
    pub rules: Rules,
    /// Where the token listener is, for challenges.
    realm: String,
    /// Makes the tokens of another run worthless here.
    salt: u128,
    tokens: HashMap<String, Grant>,
    issued: u64,
}

struct Grant {
    repositories: Vec<String>,
    until: Instant,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Granted,
    /// With the value of `WWW-Authenticate`.
    Challenged(String),
    /// The rules' `private_status`, 403 or 404.
    Hidden(u16),
}

#[derive(Debug, PartialEq, Eq)]
pub struct Token {
    pub token: String,
    pub expires_in: Option<u64>,
}

impl Auth {
    pub fn new(rules: Rules, realm: String) -> Auth {
        Auth {
            rules,
            realm,
            salt: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_nanos()),
            tokens: HashMap::new(),
            issued: 0,
        }
    }

    pub fn issued(&self) -> u64 {
        self.issued
    }

    /// Those that are still accepted, and some that ended since the last was issued.
    pub fn tokens(&self) -> Vec<&str> {
        self.tokens.keys().map(String::as_str).collect()
    }

    pub fn revoke_tokens(&mut self) {
        self.tokens.clear();
    }

    /// `private`: the repository asked for is for logins only.
    pub fn check(
        &self,
        authorization: Option<&str>,
        repository: Option<&str>,
        private: bool,
    ) -> Verdict {
        let (known, sees) = match self.rules.mode {
            Mode::None => (true, !private),
            Mode::Basic => match authorization.and_then(basic_login) {
                Some((name, password)) => match self.user(&name, &password) {
                    Some(user) => (true, !private || user.sees(repository)),
                    None => (false, false),
                },
                None => (false, false),
            },
            Mode::Token => match self.grant(authorization) {
                Some(grant) => (true, grant.covers(repository)),
                None => (false, false),
            },
        };
        match (known, sees) {
            (true, true) => Verdict::Granted,
            (false, _) => Verdict::Challenged(self.challenge(repository, None)),
            (true, false) if self.rules.private_status == 401 => {
                Verdict::Challenged(self.challenge(repository, Some("insufficient_scope")))
            }
            (true, false) => Verdict::Hidden(self.rules.private_status),
        }
    }

    pub fn challenge(&self, repository: Option<&str>, error: Option<&str>) -> String {
        if self.rules.mode != Mode::Token {
            return format!("Basic realm=\"{SERVICE}\"");
        }
        let mut text = format!("Bearer realm=\"{}\",service=\"{SERVICE}\"", self.realm);
        if let Some(name) = repository {
            text.push_str(&format!(",scope=\"repository:{name}:pull\""));
        }
        if let Some(error) = error {
            text.push_str(&format!(",error=\"{error}\""));
        }
        text
    }

    /// `None` when the credentials are wrong. `is_private` is asked about each repository.
    pub fn issue(
        &mut self,
        login: Option<(String, String)>,
        scopes: &[String],
        is_private: impl Fn(&str) -> bool,
        now: Instant,
    ) -> Option<Token> {
        let user = match login {
            Some((name, password)) => Some(self.user(&name, &password)?),
            None => None,
        };
        let sees = |name: &str| !is_private(name) || user.is_some_and(|user| user.sees(Some(name)));
        let repositories = scopes
            .iter()
            .flat_map(|scope| scope.split(' '))
            .filter_map(pulled_repository)
            .filter(|name| sees(name))
            .map(str::to_owned)
            .collect();
        self.issued += 1;
        let secret = Digest::sha256(format!("{}/{}", self.salt, self.issued).as_bytes());
        let token = format!("t{}-{}", self.issued, &secret.as_str()["sha256:".len()..]);
        self.tokens.retain(|_, grant| grant.until > now);
        if self.tokens.len() < TOKENS_MAX {
            let until = now + self.rules.token_ttl;
            let grant = Grant {
                repositories,
                until,
            };
            self.tokens.insert(token.clone(), grant);
        }
        Some(Token {
            token,
            expires_in: self.rules.expires_in,
        })
    }

    fn user(&self, name: &str, password: &str) -> Option<&User> {
        let same = |user: &&User| user.name == name && user.password == password;
        self.rules.users.iter().find(same)
    }

    fn grant(&self, authorization: Option<&str>) -> Option<&Grant> {
        let grant = self.tokens.get(authorization?.strip_prefix("Bearer ")?)?;
        (grant.until > Instant::now()).then_some(grant)
    }
}

impl User {
    fn sees(&self, repository: Option<&str>) -> bool {
        let listed =
            |names: &Vec<String>| repository.is_none_or(|name| names.iter().any(|n| n == name));
        self.repositories.as_ref().is_none_or(listed)
    }
}

impl Grant {
    fn covers(&self, repository: Option<&str>) -> bool {
        repository.is_none_or(|name| self.repositories.iter().any(|granted| granted == name))
    }
}

/// `repository:<name>:pull[,...]`; other scopes grant nothing.
fn pulled_repository(scope: &str) -> Option<&str> {
    let (name, actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
    actions
        .split(',')
        .any(|action| action == "pull" || action == "*")
        .then_some(name)
}

pub fn basic_login(authorization: &str) -> Option<(String, String)> {
    let decoded = BASE64.decode(authorization.strip_prefix("Basic ")?).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (name, password) = text.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(mode: Mode, private_status: u16) -> Auth {
        let user = |name: &str, repositories: Option<Vec<String>>| User {
            name: name.to_owned(),
            password: "secret".to_owned(),
            repositories,
        };
        let rules = Rules {
            mode,
            users: vec![
                user("all", None),
                user("one", Some(vec!["p/one".to_owned()])),
            ],
            token_ttl: Duration::from_secs(300),
            expires_in: Some(60),
            private_status,
        };
        Auth::new(rules, "http://t/token".to_owned())
    }

    fn is_private(name: &str) -> bool {
        name.starts_with("p/")
    }

    fn bearer(auth: &mut Auth, login: Option<&str>, scope: &str) -> String {
        let login = login.map(|name| (name.to_owned(), "secret".to_owned()));
        let now = Instant::now();
        let token = auth
            .issue(login, &[scope.to_owned()], is_private, now)
            .unwrap();
        format!("Bearer {}", token.token)
    }

    #[test]
    fn tokens_hold_what_the_login_may_see() {
        let mut auth = auth(Mode::Token, 401);
        for (login, name, granted) in [
            (None, "public", true),
            (None, "p/one", false),
            (Some("one"), "p/one", true),
            (Some("one"), "p/two", false),
            (Some("all"), "p/two", true),
        ] {
            let bearer = bearer(&mut auth, login, &format!("repository:{name}:pull"));
            let verdict = auth.check(Some(&bearer), Some(name), is_private(name));
            assert_eq!(verdict == Verdict::Granted, granted, "{login:?} {name}");
        }
        assert_eq!(auth.issued(), 5);
    }

    #[test]
    fn wrong_credentials_get_no_token() {
        let mut auth = auth(Mode::Token, 401);
        let login = Some(("all".to_owned(), "wrong".to_owned()));
        assert_eq!(auth.issue(login, &[], is_private, Instant::now()), None);
    }

    #[test]
    fn challenges() {
        let mut auth = auth(Mode::Token, 401);
        let plain = "Bearer realm=\"http://t/token\",service=\"entrepot-origin\"";
        let challenged = |text: String| Verdict::Challenged(text);
        assert_eq!(auth.check(None, None, false), challenged(plain.to_owned()));
        let scoped = format!("{plain},scope=\"repository:a:pull\"");
        assert_eq!(
            auth.check(None, Some("a"), false),
            challenged(scoped.clone())
        );
        let other = bearer(&mut auth, None, "repository:b:pull");
        let expected = challenged(format!("{scoped},error=\"insufficient_scope\""));
        assert_eq!(auth.check(Some(&other), Some("a"), false), expected);
        assert_eq!(auth.check(Some(&other), None, false), Verdict::Granted);
        auth.revoke_tokens();
        assert_eq!(
            auth.check(Some(&other), None, false),
            challenged(plain.to_owned())
        );
    }

    #[test]
    fn a_token_ends() {
        let mut auth = auth(Mode::Token, 401);
        auth.rules.token_ttl = Duration::ZERO;
        let bearer = bearer(&mut auth, None, "repository:a:pull");
        assert!(matches!(
            auth.check(Some(&bearer), Some("a"), false),
            Verdict::Challenged(_)
        ));
    }

    #[test]
    fn basic_and_none() {
        let login = |name: &str| format!("Basic {}", BASE64.encode(format!("{name}:secret")));
        let basic = auth(Mode::Basic, 404);
        let check =
            |who: &str, name: &str| basic.check(Some(&login(who)), Some(name), is_private(name));
        assert_eq!(check("one", "p/one"), Verdict::Granted);
        assert_eq!(check("one", "p/two"), Verdict::Hidden(404));
        assert!(matches!(check("nobody", "public"), Verdict::Challenged(_)));
        let none = auth(Mode::None, 403);
        assert_eq!(none.check(None, Some("a"), false), Verdict::Granted);
        assert_eq!(none.check(None, Some("p/a"), true), Verdict::Hidden(403));
    }
}
