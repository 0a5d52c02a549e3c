//! Asking a token service: by GET, by POST, with a password or a refresh token.
//!
//! Called by `token`, on the shard that owns the upstream. GET with Basic is what every service
//! knows (distribution token specification); POST (its "OAuth2" form, RFC 6749 §4.3 and §6) is for
//! refresh tokens and for services that have no GET. Which one a service has is remembered with
//! its refresh token. Redirects are not followed: what is sent is for this service alone (R11).

use crate::clock;
use crate::http::rate_limit;
use crate::http::upstream_head::ResponseHead;

use super::error::UpstreamError;
use super::exchange::Ask;
use super::origin::{Reach, Target};
use super::realm;
use super::redirect::Hop;
use super::request::{Client, Known};
use super::token::{self, ANSWER_LEN_MAX, Granted, TokenAsk, TokenError};
use super::{Login, Method, Secret};

/// In place of a user name: the password is a refresh token, as `docker login` stores those.
const REFRESH_TOKEN_USER: &str = "<token>";

/// What is remembered of one token service.
#[derive(Clone, Default)]
pub(super) struct Service {
    /// It has no GET.
    posts: bool,
    /// Given along with a token to the login of that Basic value.
    refresh: Option<(Secret, Secret)>,
}

/// One way to ask.
enum Form<'a> {
    Get(Option<&'a Secret>),
    Password(&'a Login),
    Refresh(&'a str),
}

impl Client {
    /// A token for `TokenCache`, and what there is to remember of its service.
    pub(super) async fn fetch_token(
        &self,
        ask: &TokenAsk,
        service: &mut Service,
    ) -> Result<Granted, UpstreamError> {
        let known = self.known(ask.upstream);
        let config = &known.upstream.config;
        let target = realm::check(&config.url, &config.realms, &ask.realm)?;
        // Where the operator has sent us, by name or by address, is not foreign.
        let chosen =
            config.realms.contains(&target.origin) || config.url.host == target.origin.host;
        let question = Question {
            client: self,
            known: &known,
            ask,
            reach: if chosen { Reach::Anywhere } else { ask.reach },
            target,
        };
        let login = known.upstream.login();
        let granted = question.settle(login.as_ref(), service).await?;
        if let (Some(refresh), Some(login)) = (&granted.refresh, login) {
            service.refresh = Some((login.basic, refresh.clone()));
        }
        Ok(granted)
    }
}

struct Question<'a> {
    client: &'a Client,
    known: &'a Known,
    ask: &'a TokenAsk,
    target: Target,
    reach: Reach,
}

impl Question<'_> {
    async fn settle(
        &self,
        login: Option<&Login>,
        service: &mut Service,
    ) -> Result<Granted, UpstreamError> {
        if let Some(login) = login
            && login.username == REFRESH_TOKEN_USER
        {
            return self.put(&Form::Refresh(login.password.expose())).await;
        }
        let kept = service.refresh.take();
        if let (Some((basic, refresh)), Some(login)) = (kept, login)
            && basic == login.basic
        {
            let token = refresh.expose().to_owned();
            match self.put(&Form::Refresh(&token)).await {
                // It has ended, or this service wants the password after all.
                Err(UpstreamError::Token(TokenError::Status(400..=499))) => {}
                outcome => {
                    service.refresh = Some((basic, refresh));
                    return outcome;
                }
            }
        }
        let basic = login.map(|login| &login.basic);
        let Some(login) = login else {
            return self.put(&Form::Get(basic)).await;
        };
        let forms = [Form::Get(basic), Form::Password(login)];
        let [first, second] = match service.posts {
            false => forms,
            true => {
                let [get, post] = forms;
                [post, get]
            }
        };
        match self.put(&first).await {
            Err(UpstreamError::Token(TokenError::Status(status)))
                if first.is_unknown_by(status) =>
            {
                let granted = self.put(&second).await?;
                service.posts = !service.posts;
                Ok(granted)
            }
            outcome => outcome,
        }
    }

    async fn put(&self, form: &Form<'_>) -> Result<Granted, UpstreamError> {
        let mut target = self.target.clone();
        let (authorization, body) = match form {
            Form::Get(basic) => {
                push_query(&mut target.path, &self.ask.query());
                (*basic, None)
            }
            Form::Password(login) => {
                let password = login.password.expose();
                let grant = [
                    ("grant_type", "password"),
                    ("username", &login.username),
                    ("password", password),
                ];
                (None, Some(self.ask.form(&grant)))
            }
            Form::Refresh(token) => {
                let grant = [("grant_type", "refresh_token"), ("refresh_token", token)];
                (None, Some(self.ask.form(&grant)))
            }
        };
        let hop = Hop {
            target,
            authorized: true,
            hops: 0,
        };
        self.client.counters.token_requests.add(1);
        let mut answer = self
            .client
            .exchange(&Ask {
                known: self.known,
                method: Method::Get,
                hop: &hop,
                accept: Some("application/json"),
                range: None,
                authorization,
                form: body.as_deref(),
                reach: self.reach,
                deadline: None,
            })
            .await?;
        if answer.head.status != 200 {
            answer.body.drain().await;
            return Err(refusal(&answer.head).into());
        }
        let body = answer.body.collect(ANSWER_LEN_MAX).await;
        let body = body.map_err(TokenError::Body)?;
        Ok(token::parse(&body, self.client.now())?)
    }
}

impl Form<'_> {
    /// Whether the status says that the service does not know this way of asking. Known services
    /// answer a POST they do not have with 400, 401, 404 or 405.
    fn is_unknown_by(&self, status: u16) -> bool {
        match self {
            Form::Get(_) => matches!(status, 404 | 405 | 501),
            Form::Password(_) | Form::Refresh(_) => matches!(status, 400 | 401 | 404 | 405 | 501),
        }
    }
}

fn refusal(head: &ResponseHead) -> TokenError {
    let named = head.field("retry-after");
    let named = named.and_then(|value| rate_limit::retry_after(value, clock::now()));
    match head.status {
        429 => TokenError::Limited {
            retry_after_s: named,
        },
        status => TokenError::Status(status),
    }
}

fn push_query(path: &mut String, query: &str) {
    if !query.is_empty() {
        path.push(if path.contains('?') { '&' } else { '?' });
        path.push_str(query);
    }
}
