//! The forms in which a token service is asked, and what it gives besides a token.

use std::sync::Arc;
use std::time::Duration;

use super::origin::{Origin, Peer, answer};
use super::{Shard, get, run, upstream, with_credentials};

/// A registry that accepts every token of its service, whose requests are heads with their forms.
fn registry(realm: String) -> Origin {
    Origin::answering(move |head| match head.contains("Authorization: Bearer ") {
        true => answer(200, &[], "in"),
        false => {
            let challenge = format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"r\"");
            answer(401, &[&challenge], "")
        }
    })
}

/// `grant` sees a request's first line and its form.
fn service(grant: impl Fn(&str, &str) -> String + Send + Sync + 'static) -> Origin {
    let grant = Arc::new(grant);
    Origin::start(move |mut peer: Peer| {
        while let Some(head) = peer.request() {
            let len = head.split("Content-Length: ").nth(1);
            let len = len.and_then(|rest| rest.split("\r\n").next());
            let len = len.map_or(0, |len| len.parse().expect("a length"));
            let form = peer.receive(len);
            let line = head.lines().next().expect("a line");
            peer.send(grant(line, &form));
        }
    })
}

#[test]
fn a_service_without_get_is_asked_by_post_and_then_at_once() {
    let tokens = service(|line, form| match line.starts_with("POST /token ") {
        true => {
            let expected = "grant_type=password&username=user&password=pass&client_id=entrepot\
                            &service=r&scope=repository:library/nginx:pull";
            assert_eq!(form, expected);
            answer(200, &[], "{\"access_token\":\"t\",\"expires_in\":60}")
        }
        false => answer(405, &[], ""),
    });
    let registry = registry(format!("{}/token", tokens.url()));
    run(async {
        let shard = Shard::new(&[with_credentials(upstream(&registry.url()))]);
        assert_eq!(shard.get("/1").await, (200, "in".to_owned()));
        shard.pass(Duration::from_secs(61));
        assert_eq!(shard.get("/2").await, (200, "in".to_owned()));
    });
    let methods: Vec<_> = tokens
        .heads()
        .iter()
        .map(|head| head[..4].to_owned())
        .collect();
    assert_eq!(methods, ["GET ", "POST", "POST"]);
    assert!(
        tokens.heads()[1..]
            .iter()
            .all(|head| !head.contains("Authorization"))
    );
}

#[test]
fn a_refresh_token_is_used_until_it_is_refused() {
    let tokens = service(|line, form| {
        let refresh = "grant_type=refresh_token&refresh_token=again%2B&";
        match (line.starts_with("POST"), form.starts_with(refresh)) {
            (true, true) if form.contains("nginx:pull") => {
                answer(200, &[], "{\"token\":\"t\",\"expires_in\":60}")
            }
            (true, _) => answer(401, &[], ""),
            (false, _) => {
                let grant = "{\"token\":\"t\",\"expires_in\":60,\"refresh_token\":\"again+\"}";
                answer(200, &[], grant)
            }
        }
    });
    let registry = registry(format!("{}/token", tokens.url()));
    run(async {
        let shard = Shard::new(&[with_credentials(upstream(&registry.url()))]);
        for _ in 0..2 {
            assert_eq!(shard.get("/").await.0, 200);
            shard.pass(Duration::from_secs(61));
        }
        // The service refuses it for another repository.
        let mut request = get("/");
        request.repository = "other".to_owned();
        assert_eq!(shard.send(request).await.expect("an answer").status, 200);
    });
    let methods: Vec<_> = tokens
        .heads()
        .iter()
        .map(|head| head[..4].to_owned())
        .collect();
    assert_eq!(methods, ["GET ", "POST", "POST", "GET "]);
}

#[test]
fn a_refresh_token_in_place_of_a_password() {
    let tokens = service(|line, form| {
        assert!(line.starts_with("POST "));
        assert!(
            form.starts_with("grant_type=refresh_token&refresh_token=pass&"),
            "{form}"
        );
        answer(200, &[], "{\"token\":\"t\"}")
    });
    let registry = registry(format!("{}/token", tokens.url()));
    run(async {
        let mut config = with_credentials(upstream(&registry.url()));
        config.username = Some("<token>".to_owned());
        let shard = Shard::new(&[config]);
        assert_eq!(shard.get("/").await.0, 200);
    });
}

#[test]
fn nothing_is_kept_of_an_upstream_that_is_retired() {
    let tokens = service(|_, _| answer(200, &[], "{\"token\":\"t\",\"expires_in\":60}"));
    let registry = registry(format!("{}/token", tokens.url()));
    run(async {
        let retired = with_credentials(upstream(&registry.url()));
        let shard = Shard::new(&[retired]);
        for configured in [true, false] {
            assert_eq!(shard.get("/").await, (200, "in".to_owned()));
            shard.client.retire(|_| configured);
            shard.tokens.cache.retire(|_| configured);
        }
        // Configured again, it is asked as one that was never known.
        let before = registry.heads().len();
        assert_eq!(shard.get("/").await, (200, "in".to_owned()));
        let head = &registry.heads()[before];
        assert!(!head.contains("Authorization"), "{head}");
    });
    assert_eq!(tokens.heads().len(), 2, "{:?}", tokens.heads());
    assert_eq!(registry.heads().len(), 5, "{:?}", registry.heads());
}
