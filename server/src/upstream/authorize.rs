//! Which Authorization an upstream gets, and what follows from its challenges.
//!
//! Called by `request` before and after a 401. What worked for a repository is remembered, so
//! that the next request sends it at once. Tokens come from the upstream's owner: see `token`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use crate::http::upstream_head::ResponseHead;
use crate::oci::challenge::{self, Scheme};

use super::error::UpstreamError;
use super::token::{Token, TokenAsk, TokenSource};
use super::{Reach, Secret, Upstream, UpstreamId};

/// Repositories of one upstream, on one shard, whose tokens are remembered here.
const REPOSITORIES_MAX: usize = 1024;
/// Challenges looked at in one answer; registries send one or two.
const CHALLENGES_MAX: usize = 8;

/// What one shard remembers of one upstream.
#[derive(Default)]
pub(super) struct Remembered {
    /// It asked for Basic and got it.
    basic: Cell<bool>,
    grants: RefCell<HashMap<String, Grant>>,
}

/// How a repository's token was asked for, and the token.
#[derive(Clone)]
struct Grant {
    ask: TokenAsk,
    token: Token,
}

/// One request's need for authorization.
pub(super) struct Authorize<'a> {
    pub upstream: &'a Upstream,
    pub id: UpstreamId,
    pub repository: &'a str,
    pub remembered: &'a Remembered,
    pub tokens: &'a Rc<dyn TokenSource>,
    pub now: Instant,
}

impl Authorize<'_> {
    /// What to send without having been asked.
    pub async fn before(&self) -> Result<Option<Secret>, UpstreamError> {
        let grant = self
            .remembered
            .grants
            .borrow()
            .get(self.repository)
            .cloned();
        match grant {
            Some(grant) if grant.token.is_good(self.now) => {
                Ok(Some(grant.token.authorization().clone()))
            }
            Some(grant) => self.ask(grant.ask, None).await.map(Some),
            None if self.remembered.basic.get() => Ok(self.upstream.basic()),
            None => Ok(None),
        }
    }

    /// What to send after a 401 to `sent`. Token services may be within `reach`.
    pub async fn after(
        &self,
        head: &ResponseHead,
        sent: Option<&Secret>,
        reach: Reach,
    ) -> Result<Secret, UpstreamError> {
        let grant = self.remembered.grants.borrow_mut().remove(self.repository);
        let refused = sent.map(|sent| Token::refused(sent.clone(), self.now));
        let mut basic = false;
        for challenge in head
            .fields("www-authenticate")
            .flat_map(challenge::parse)
            .take(CHALLENGES_MAX)
        {
            match (challenge.scheme, challenge.realm) {
                (Scheme::Bearer, Some(realm)) => {
                    let scope = challenge.scope.filter(|scope| !scope.is_empty());
                    let ask = TokenAsk {
                        upstream: self.id,
                        realm,
                        service: challenge.service,
                        scope: scope.unwrap_or_else(|| self.scope()),
                        reach,
                        refused: None,
                    };
                    return self.ask(ask, refused).await;
                }
                (Scheme::Basic, _) => basic = true,
                _ => {}
            }
        }
        if basic {
            return self.basic(sent);
        }
        // Some services send no challenge along with the refusal of an old token.
        match grant {
            Some(grant) if sent.is_some() => self.ask(grant.ask, refused).await,
            _ => Err(self.denied()),
        }
    }

    async fn ask(&self, ask: TokenAsk, refused: Option<Token>) -> Result<Secret, UpstreamError> {
        let token = self
            .tokens
            .token(TokenAsk {
                refused,
                ..ask.clone()
            })
            .await
            .map_err(UpstreamError::of_token_service)?;
        self.remembered.basic.set(false);
        let mut grants = self.remembered.grants.borrow_mut();
        if grants.len() >= REPOSITORIES_MAX {
            grants.retain(|_, grant| grant.token.is_good(self.now));
        }
        // Still full: the owner has them all, so forgetting costs one message each.
        if grants.len() >= REPOSITORIES_MAX {
            grants.clear();
        }
        let authorization = token.authorization().clone();
        grants.insert(self.repository.to_owned(), Grant { ask, token });
        Ok(authorization)
    }

    fn basic(&self, sent: Option<&Secret>) -> Result<Secret, UpstreamError> {
        let origin = || self.upstream.origin.clone();
        match self.upstream.basic() {
            None => Err(UpstreamError::NoCredentials { origin: origin() }),
            // The same again would be answered the same.
            Some(basic) if Some(&basic) == sent => Err(self.denied()),
            Some(basic) => {
                self.remembered.basic.set(true);
                Ok(basic)
            }
        }
    }

    fn denied(&self) -> UpstreamError {
        UpstreamError::Denied {
            origin: self.upstream.origin.clone(),
            status: 401,
        }
    }

    /// Distribution token specification: what pulling needs, when the challenge does not say.
    fn scope(&self) -> String {
        match self.repository {
            "" => String::new(),
            repository => format!("repository:{repository}:pull"),
        }
    }
}
