//! Basic and Bearer, from the challenge to the token's end.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::origin::{Origin, answer};
use super::{FIRST, Request, Shard, get, run, upstream, with_credentials};
use crate::config;
use crate::upstream::{
    Blame, BodyError, FailureClass, RealmError, TokenError, TrustRoots, Upstream, UpstreamError,
    counts_for,
};

const BASIC: &str = "Authorization: Basic dXNlcjpwYXNz\r\n";

#[test]
fn basic_is_sent_when_asked_for_and_then_at_once() {
    let origin = Origin::answering(|head| match head.contains(BASIC) {
        true => answer(200, &[], "in"),
        false => answer(
            401,
            &["WWW-Authenticate: Basic realm=\"r\", charset=\"UTF-8\""],
            "",
        ),
    });
    run(async {
        let shard = Shard::new(&[with_credentials(upstream(&origin.url()))]);
        assert_eq!(shard.get("/1").await, (200, "in".to_owned()));
        assert_eq!(shard.get("/2").await, (200, "in".to_owned()));
        assert_eq!(shard.client.counters().connections.get(), 1);
    });
    let heads = origin.heads();
    assert_eq!(heads.len(), 3);
    assert!(
        !heads[0].contains("Authorization"),
        "nothing is sent unasked"
    );
    assert!(heads[1].starts_with("GET /1 ") && heads[2].starts_with("GET /2 "));
}

#[test]
fn credentials_that_are_wrong_or_missing() {
    let origin = Origin::answering(|_| answer(401, &["WWW-Authenticate: Basic realm=r"], ""));
    run(async {
        let url = origin.url();
        let shard = Shard::new(&[upstream(&url)]);
        let error = shard.send(get("/")).await.err().expect("not let in");
        assert_eq!(
            error,
            UpstreamError::NoCredentials {
                origin: url.clone()
            }
        );
        assert_eq!(error.class(), FailureClass::Denied);
        assert_eq!(origin.heads().len(), 1);

        let shard = Shard::new(&[with_credentials(upstream(&url))]);
        let error = shard.send(get("/")).await.err();
        assert_eq!(
            error,
            Some(UpstreamError::Denied {
                origin: url.clone(),
                status: 401
            })
        );
        assert_eq!(origin.heads().len(), 3, "one attempt with credentials");
        let error = shard.send(get("/")).await.err();
        assert_eq!(
            error,
            Some(UpstreamError::Denied {
                origin: url,
                status: 401
            })
        );
        assert_eq!(origin.heads().len(), 4, "the same is not sent twice");
    });
}

#[test]
fn a_401_without_a_challenge_is_final() {
    let origin = Origin::answering(|_| answer(401, &["WWW-Authenticate: Negotiate"], ""));
    run(async {
        let shard = Shard::new(&[with_credentials(upstream(&origin.url()))]);
        let error = shard.send(get("/")).await.err();
        let origin = origin.url();
        assert_eq!(
            error,
            Some(UpstreamError::Denied {
                origin,
                status: 401
            })
        );
    });
    assert_eq!(origin.heads().len(), 1);
}

/// A registry that wants a token, and its token service on another port.
struct Service {
    registry: Origin,
    tokens: Origin,
    /// What the registry accepts; tokens are `t1`, `t2`, ... in the order they are given out.
    accepted: Arc<Mutex<Vec<String>>>,
}

impl Service {
    /// `grant` makes the token service's answer from the number of the token.
    fn start(grant: impl Fn(usize) -> String + Send + Sync + 'static) -> Service {
        let accepted = Arc::new(Mutex::new(Vec::new()));
        let given = AtomicUsize::new(0);
        let log = accepted.clone();
        let tokens = Origin::answering(move |_| {
            let nth = given.fetch_add(1, Ordering::SeqCst) + 1;
            log.lock().expect("no panic").push(format!("t{nth}"));
            grant(nth)
        });
        let realm = format!("{}/token?v=2", tokens.url());
        let good = accepted.clone();
        let registry = Origin::answering(move |head| {
            let sent = head.split("Authorization: Bearer ").nth(1);
            let sent = sent.and_then(|rest| rest.split("\r\n").next());
            let good = good.lock().expect("no panic");
            match sent.is_some_and(|sent| good.iter().any(|token| token == sent)) {
                true => answer(200, &[], "in"),
                false => {
                    let repository = head.split('/').nth(2).expect("a repository");
                    let challenge = format!(
                        "WWW-Authenticate: Bearer realm=\"{realm}\",service=\"the registry\",\
                         scope=\"repository:{repository}:pull\""
                    );
                    answer(401, &[&challenge], "{}")
                }
            }
        });
        Service {
            registry,
            tokens,
            accepted,
        }
    }

    fn revoke_all(&self) {
        self.accepted.lock().expect("no panic").clear();
    }
}

fn token(nth: usize) -> String {
    answer(
        200,
        &[],
        &format!("{{\"token\":\"t{nth}\",\"expires_in\":300}}"),
    )
}

fn of(repository: &str) -> Request {
    Request {
        repository: repository.to_owned(),
        ..get(&format!("/v2/{repository}/x"))
    }
}

#[test]
fn tokens_are_fetched_for_a_scope_and_remembered() {
    let service = Service::start(token);
    run(async {
        let shard = Shard::new(&[with_credentials(upstream(&service.registry.url()))]);
        for repository in ["one", "one", "two", "two", "one"] {
            let response = shard.send(of(repository)).await.expect("an answer");
            assert_eq!(response.status, 200);
        }
        let counters = shard.client.counters();
        assert_eq!((counters.token_requests.get(), counters.gets.get()), (2, 7));
    });
    let asked = service.tokens.heads();
    assert_eq!(asked.len(), 2);
    let query = "v=2&service=the%20registry&scope=repository:one:pull";
    assert!(
        asked[0].starts_with(&format!("GET /token?{query} HTTP/1.1\r\n")),
        "{}",
        asked[0]
    );
    assert!(asked[0].contains(BASIC));
    assert!(asked[1].contains("scope=repository:two:pull"));
    let sent: Vec<bool> = service
        .registry
        .heads()
        .iter()
        .map(|head| head.contains("Bearer t"))
        .collect();
    assert_eq!(sent, [false, true, true, false, true, true, true]);
}

#[test]
fn tokens_without_credentials_are_anonymous() {
    let service = Service::start(token);
    run(async {
        let shard = Shard::new(&[upstream(&service.registry.url())]);
        assert_eq!(shard.send(of("one")).await.expect("an answer").status, 200);
    });
    assert!(!service.tokens.heads()[0].contains("Authorization"));
}

#[test]
fn a_herd_fetches_one_token() {
    // The token comes only when every registry request has had its 401, so all must wait for it.
    const HERD: usize = 16;
    let denied = Arc::new(AtomicUsize::new(0));
    let (all, gate) = flume::bounded::<()>(1);
    let tokens = Origin::answering(move |_| {
        gate.recv().expect("the herd is here");
        token(1)
    });
    let realm = format!("{}/token", tokens.url());
    let registry = Origin::answering(move |head| match head.contains("Bearer t1") {
        true => answer(200, &[], "in"),
        false => {
            if denied.fetch_add(1, Ordering::SeqCst) + 1 == HERD {
                all.send(()).expect("the token service");
            }
            answer(
                401,
                &[&format!("WWW-Authenticate: Bearer realm=\"{realm}\"")],
                "",
            )
        }
    });
    run(async {
        let shard = Shard::new(&[upstream(&registry.url())]);
        let herd: Vec<_> = (0..HERD)
            .map(|_| {
                let client = shard.client.clone();
                monoio::spawn(async move { client.send(FIRST, &of("one")).await })
            })
            .collect();
        for one in herd {
            assert_eq!(one.await.expect("an answer").status, 200);
        }
        assert_eq!(shard.tokens.asked.borrow().len(), HERD);
        assert_eq!(shard.client.counters().token_requests.get(), 1);
    });
    let asked = tokens.heads();
    assert_eq!(asked.len(), 1);
    assert!(
        asked[0].contains("?scope=repository:one:pull "),
        "the scope we pull with"
    );
}

#[test]
fn a_fetch_that_is_given_up_passes_to_a_waiter() {
    let (go, gate) = flume::bounded::<()>(1);
    let (arrived, first) = flume::bounded::<()>(4);
    let tokens = Origin::answering(move |_| {
        arrived.send(()).expect("the test waits");
        gate.recv().expect("the first asker has gone");
        token(1)
    });
    let realm = format!("{}/token", tokens.url());
    let registry = Origin::answering(move |head| match head.contains("Bearer t1") {
        true => answer(200, &[], "in"),
        false => answer(
            401,
            &[&format!("WWW-Authenticate: Bearer realm=\"{realm}\"")],
            "",
        ),
    });
    run(async {
        let shard = Shard::new(&[upstream(&registry.url())]);
        let client = shard.client.clone();
        let (leave, left) = flume::bounded::<()>(1);
        let leader = monoio::spawn(async move {
            let request = of("one");
            let mut send = std::pin::pin!(client.send(FIRST, &request));
            let mut left = std::pin::pin!(left.recv_async());
            std::future::poll_fn(|cx| {
                assert!(
                    send.as_mut().poll(cx).is_pending(),
                    "the token is held back"
                );
                left.as_mut().poll(cx)
            })
            .await
        });
        first.recv_async().await.expect("the leader's request");
        let client = shard.client.clone();
        let waiter = monoio::spawn(async move { client.send(FIRST, &of("one")).await });
        for _ in 0..2 {
            shard.tokens.asking.1.recv_async().await.expect("an ask");
        }
        leave.send(()).expect("the leader");
        leader.await.expect("left");
        go.send(()).expect("the first connection's");
        go.send(()).expect("the second's");
        assert_eq!(waiter.await.expect("an answer").status, 200);
        assert_eq!(shard.client.counters().token_requests.get(), 2);
    });
}

#[test]
fn old_tokens_are_replaced_before_they_are_refused() {
    let service = Service::start(token);
    run(async {
        let shard = Shard::new(&[upstream(&service.registry.url())]);
        let ask = async || shard.send(of("one")).await.expect("an answer").status;
        assert_eq!(ask().await, 200);
        shard.pass(Duration::from_secs(289));
        assert_eq!(ask().await, 200);
        assert_eq!(service.tokens.heads().len(), 1);
        shard.pass(Duration::from_secs(2));
        assert_eq!(ask().await, 200);
        assert_eq!(service.tokens.heads().len(), 2);
    });
    let heads = service.registry.heads();
    assert_eq!(heads.len(), 4, "one 401, at the start");
    assert!(heads[3].contains("Bearer t2"));
}

#[test]
fn a_revoked_token_is_replaced_once() {
    let service = Service::start(token);
    run(async {
        let shard = Shard::new(&[upstream(&service.registry.url())]);
        let ask = async || shard.send(of("one")).await.map(|response| response.status);
        assert_eq!(ask().await, Ok(200));
        service.revoke_all();
        assert_eq!(ask().await, Ok(200));
        assert_eq!(service.tokens.heads().len(), 2);
        let asked = shard.tokens.asked.borrow();
        assert!(
            asked[0].1.is_none() && asked[1].1.is_some(),
            "the owner learns what was refused"
        );
    });
    assert_eq!(service.registry.heads().len(), 4);
}

#[test]
fn a_token_that_is_always_refused_is_a_denial() {
    // What is given out is never `t1`.
    let service = Service::start(|_| answer(200, &[], "{\"token\":\"other\"}"));
    run(async {
        let shard = Shard::new(&[upstream(&service.registry.url())]);
        let error = shard.send(of("one")).await.err().expect("not let in");
        let origin = service.registry.url();
        assert_eq!(
            error,
            UpstreamError::Denied {
                origin,
                status: 401
            }
        );
        assert_eq!(error.class(), FailureClass::Denied);
    });
    assert_eq!(
        (service.registry.heads().len(), service.tokens.heads().len()),
        (2, 1)
    );
}

#[test]
fn a_refusal_without_a_challenge_still_renews_the_token() {
    let realm = Arc::new(OnceLock::<String>::new());
    let (known, given) = (realm.clone(), AtomicUsize::new(0));
    let tokens = Origin::answering(move |_| token(given.fetch_add(1, Ordering::SeqCst) + 1));
    realm
        .set(format!("{}/token", tokens.url()))
        .expect("set once");
    let registry = Origin::start(move |mut peer| {
        let challenge = || {
            let realm = known.get().expect("set");
            format!("WWW-Authenticate: Bearer realm=\"{realm}\"")
        };
        for expected in ["", "Bearer t1\r\n", "Bearer t1\r\n", "Bearer t2\r\n"] {
            let Some(head) = peer.request() else { return };
            assert!(head.contains(expected), "{head}");
            peer.send(match expected {
                "" => answer(401, &[&challenge()], ""),
                // The token ends with its first use.
                "Bearer t1\r\n" if peer.seen() == 3 => answer(401, &[], ""),
                _ => answer(200, &[], "in"),
            });
        }
    });
    run(async {
        let shard = Shard::new(&[upstream(&registry.url())]);
        for _ in 0..2 {
            assert_eq!(shard.get("/v2/one/x").await, (200, "in".to_owned()));
        }
    });
    assert_eq!(registry.heads().len(), 4);
}

#[test]
fn realms_of_others_are_not_asked() {
    let stranger = Origin::answering(|_| token(1));
    let realm = format!("http://localhost:{}/token", stranger.port);
    let origin = Origin::answering(move |_| {
        answer(
            401,
            &[&format!("WWW-Authenticate: Bearer realm=\"{realm}\"")],
            "",
        )
    });
    run(async {
        let shard = Shard::new(&[with_credentials(upstream(&origin.url()))]);
        let error = shard.send(of("one")).await.err().expect("refused");
        let host = "localhost".to_owned();
        assert_eq!(error, UpstreamError::Realm(RealmError::Foreign { host }));
        assert_eq!(error.class(), FailureClass::Denied);
    });
    assert!(stranger.heads().is_empty());
}

#[test]
fn token_services_that_fail() {
    for (reply, error, class) in [
        (
            answer(401, &[], ""),
            TokenError::Status(401),
            FailureClass::Denied,
        ),
        (
            answer(403, &[], ""),
            TokenError::Status(403),
            FailureClass::Denied,
        ),
        (
            answer(404, &[], ""),
            TokenError::Status(404),
            FailureClass::ServerError,
        ),
        (
            answer(429, &[], ""),
            TokenError::Limited {
                retry_after_s: None,
            },
            FailureClass::RateLimited,
        ),
        (
            answer(503, &[], ""),
            TokenError::Status(503),
            FailureClass::ServerError,
        ),
        (
            answer(302, &["Location: /x"], ""),
            TokenError::Status(302),
            FailureClass::ServerError,
        ),
        (
            answer(200, &[], "<html>"),
            TokenError::Malformed,
            FailureClass::ServerError,
        ),
        (
            answer(200, &[], "{}"),
            TokenError::NoToken,
            FailureClass::ServerError,
        ),
    ] {
        let sent = reply.clone();
        let service = Service::start(move |_| sent.clone());
        run(async {
            let shard = Shard::new(&[with_credentials(upstream(&service.registry.url()))]);
            let got = shard.send(of("one")).await.err().expect(&reply);
            assert_eq!(got.class(), class, "{reply}");
            assert_eq!(got, UpstreamError::Token(error), "{reply}");
            let printed = format!("{got} {got:?}");
            assert!(!printed.contains("dXNlcjpwYXNz") && !printed.contains("pass"));
        });
        // A service without GET may have POST.
        let asked = if reply.contains(" 404 ") { 2 } else { 1 };
        assert_eq!(service.tokens.heads().len(), asked, "{reply}");
    }
}

#[test]
fn a_token_service_that_talks_nonsense_is_no_failure_of_its_registry() {
    let origin = || "https://auth.example".to_owned();
    let before_its_answer = |reason| UpstreamError::TokenService(Box::new(reason));
    for (error, blame) in [
        (TokenError::Malformed.into(), Blame::Elsewhere),
        (TokenError::NoToken.into(), Blame::Elsewhere),
        (TokenError::InvalidToken.into(), Blame::Elsewhere),
        (TokenError::Status(404).into(), Blame::Elsewhere),
        (
            TokenError::Body(BodyError::TooLong).into(),
            Blame::Elsewhere,
        ),
        (
            before_its_answer(UpstreamError::Interim { origin: origin() }),
            Blame::Elsewhere,
        ),
        (TokenError::Status(503).into(), Blame::Upstream),
        (
            TokenError::Body(BodyError::Truncated).into(),
            Blame::Upstream,
        ),
        (
            before_its_answer(UpstreamError::Closed { origin: origin() }),
            Blame::Upstream,
        ),
        (TokenError::Busy.into(), Blame::Us),
    ] {
        let error: UpstreamError = error;
        assert_eq!(error.blames("https://r.example"), blame, "{error}");
    }
}

#[test]
fn a_failed_fetch_is_not_remembered() {
    let service = Service::start(|nth| match nth {
        1 => answer(503, &[], ""),
        nth => token(nth),
    });
    run(async {
        let shard = Shard::new(&[upstream(&service.registry.url())]);
        assert!(shard.send(of("one")).await.is_err());
        assert_eq!(shard.send(of("one")).await.expect("an answer").status, 200);
    });
}

#[test]
fn an_account_is_part_of_the_name_in_records_and_of_no_blame() {
    let named = |config: &config::Upstream| {
        let upstream = Upstream::new(config, &TrustRoots::none()).expect("a usable upstream");
        upstream.record_origin().to_owned()
    };
    let open = upstream("https://r.example");
    let (account, mut other) = (
        with_credentials(open.clone()),
        with_credentials(open.clone()),
    );
    other.username = Some("other".to_owned());
    let [everybody, account, other] = [&open, &account, &other].map(named);
    assert_eq!(everybody, "https://r.example");
    assert!(!account.contains("user"), "{account}");
    for (record, asked, counts) in [
        (&account, &account, true),
        (&everybody, &account, true),
        (&account, &everybody, false),
        (&account, &other, false),
    ] {
        assert_eq!(counts_for(record, asked), counts, "{record} for {asked}");
    }
    let inherited = |other: &str| {
        let upstream = with_credentials(upstream("https://r.example"));
        let password = config::Secret::new(other.to_owned(), config::SecretSource::Inline);
        let other = config::Upstream {
            password: Some(password),
            ..upstream
        };
        named(&other) == account
    };
    assert!(inherited("pass"));
    assert!(!inherited("a token of somebody else"));
    let closed = UpstreamError::Closed {
        origin: everybody.clone(),
    };
    assert_eq!(closed.blames(&account), Blame::Upstream);
    assert_eq!(closed.blames("https://q.example"), Blame::Elsewhere);
}

/// A file is followed while its password is renewed, so it counts by its name.
#[test]
fn a_password_counts_by_itself_or_by_where_it_is_kept() {
    use config::SecretSource;
    let named = |password: &str, source: SecretSource| {
        let config = config::Upstream {
            username: Some("token".to_owned()),
            password: Some(config::Secret::new(password.to_owned(), source)),
            ..upstream("https://r.example")
        };
        let upstream = Upstream::new(&config, &TrustRoots::none()).expect("a usable upstream");
        upstream.record_origin().to_owned()
    };
    let file = |path: &str| SecretSource::File(path.into());
    let env = || SecretSource::Env("TOKEN".to_owned());
    let credential = |name: &str| SecretSource::Credential {
        name: name.to_owned(),
        path: "/run/credentials/now".into(),
    };
    assert_eq!(named("1", file("/a")), named("2", file("/a")));
    assert_ne!(named("1", file("/a")), named("1", file("/b")));
    assert_eq!(named("1", credential("a")), named("2", credential("a")));
    assert_ne!(named("1", credential("a")), named("1", credential("b")));
    assert_eq!(named("1", env()), named("1", env()));
    assert_ne!(named("1", env()), named("2", env()));
    assert_ne!(
        named("1", SecretSource::Inline),
        named("2", SecretSource::Inline)
    );
}
