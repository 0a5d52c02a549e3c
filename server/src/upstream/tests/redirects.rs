//! Where redirects lead, and what goes along.

use super::origin::{Origin, answer};
use super::{Request, Shard, get, head, part, run, upstream, with_credentials};
use crate::upstream::{FailureClass, RedirectError, UpstreamError};

/// An upstream that asks for Basic and sends whoever has it to `location`.
fn registry(location: impl Fn(&str) -> String + Send + Sync + 'static) -> Origin {
    Origin::answering(move |head| {
        let authorized = head.contains("\r\nAuthorization: Basic dXNlcjpwYXNz\r\n");
        let path = head.split(' ').nth(1).expect("a target");
        match (authorized, path) {
            (false, _) => answer(401, &["WWW-Authenticate: Basic realm=\"r\""], "who?"),
            (true, "/landed") => answer(200, &[], "landed"),
            (true, path) => answer(
                307,
                &[&format!("Location: {}", location(path))],
                "elsewhere",
            ),
        }
    })
}

#[test]
fn another_port_gets_no_authorization() {
    let storage = Origin::answering(|_| answer(206, &[], "bytes"));
    let to = storage.url();
    let registry = registry(move |path| format!("{to}{path}?signature=s"));
    run(async {
        let shard = Shard::new(&[with_credentials(upstream(&registry.url()))]);
        let request = Request {
            accept: Some("application/json"),
            range: Some(part(5, None)),
            ..get("/v2/a/blobs/x")
        };
        for _ in 0..2 {
            let mut response = shard.send(request.clone()).await.expect("an answer");
            assert_eq!((response.status, response.hops), (206, 1));
            assert!(!response.own, "the storage said it");
            assert_eq!(response.body.collect(100).await, Ok(b"bytes".to_vec()));
        }
        // 401 and 307 were read to their ends, so their connection served on.
        assert_eq!(shard.client.counters().connections.get(), 2);
        assert_eq!(shard.client.counters().redirects.get(), 2);
    });
    assert_eq!(registry.heads().len(), 3, "one 401 and two redirects");
    for head in storage.heads() {
        assert!(
            head.starts_with("GET /v2/a/blobs/x?signature=s HTTP/1.1\r\n"),
            "{head}"
        );
        assert!(head.contains(&format!("\r\nHost: 127.0.0.1:{}\r\n", storage.port)));
        assert!(head.contains("\r\nRange: bytes=5-\r\n"));
        assert!(head.contains("\r\nAccept: application/json\r\n"));
        assert!(
            !head.to_ascii_lowercase().contains("authorization"),
            "{head}"
        );
    }
}

#[test]
fn the_same_origin_keeps_its_authorization() {
    let registry = registry(|_| "../../landed".to_owned());
    run(async {
        let shard = Shard::new(&[with_credentials(upstream(&registry.url()))]);
        assert_eq!(shard.get("/a/b/c").await, (200, "landed".to_owned()));
        let response = shard.send(head("/x")).await.expect("an answer");
        assert_eq!((response.status, response.hops), (200, 1));
        assert!(response.own, "the registry itself said it");
    });
    assert!(
        registry
            .heads()
            .last()
            .expect("requests")
            .starts_with("HEAD /landed ")
    );
}

#[test]
fn authorization_does_not_come_back() {
    // registry → storage → registry: the second visit is a stranger's.
    let back = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let to = back.clone();
    let storage = Origin::answering(move |_| {
        let back = to.get().expect("set before the first request");
        answer(302, &[&format!("Location: {back}/landed")], "")
    });
    let away = storage.url();
    let registry = registry(move |_| away.clone());
    back.set(registry.url()).expect("set once");
    run(async {
        let shard = Shard::new(&[with_credentials(upstream(&registry.url()))]);
        let error = shard.send(get("/x")).await.err().expect("not let in");
        let origin = registry.url();
        assert_eq!(
            error,
            UpstreamError::DeniedElsewhere {
                origin,
                status: 401
            }
        );
        assert_eq!(error.class(), FailureClass::ServerError);
    });
    let heads = registry.heads();
    assert!(!heads.last().expect("requests").contains("Authorization"));
    assert_eq!(
        heads.len(),
        3,
        "a 401 from there is not answered with credentials"
    );
}

#[test]
fn loops_end() {
    let origin = Origin::answering(|_| answer(302, &["Location: /again"], ""));
    run(async {
        let shard = Shard::new(&[upstream(&origin.url())]);
        let error = shard.send(get("/")).await.err().expect("an end");
        assert_eq!(error, UpstreamError::Redirect(RedirectError::TooMany));
        assert_eq!(error.class(), FailureClass::ServerError);
    });
    assert_eq!(origin.heads().len(), 6);
}

#[test]
fn every_status_of_a_redirect_is_followed() {
    let origin = Origin::answering(|head| match head.split(['/', ' ']).nth(2) {
        Some("end") => answer(200, &[], "end"),
        Some(status) => answer(status.parse().expect("a status"), &["Location: /end"], ""),
        None => answer(400, &[], ""),
    });
    run(async {
        let shard = Shard::new(&[upstream(&origin.url())]);
        for status in [301, 302, 303, 307, 308] {
            assert_eq!(
                shard.get(&format!("/{status}")).await,
                (200, "end".to_owned())
            );
        }
        for status in [300, 304, 305] {
            assert_eq!(shard.get(&format!("/{status}")).await.0, status);
        }
    });
}

#[test]
fn a_location_is_needed() {
    let origin = Origin::answering(|_| answer(307, &[], ""));
    run(async {
        let shard = Shard::new(&[upstream(&origin.url())]);
        let error = shard.send(get("/")).await.err();
        assert_eq!(
            error,
            Some(UpstreamError::Redirect(RedirectError::NoLocation))
        );
    });
}

#[test]
fn storage_that_refuses_is_not_the_upstream_refusing() {
    let storage = Origin::answering(|_| answer(403, &[], "signature expired"));
    let to = storage.url();
    let origin = Origin::answering(move |_| answer(307, &[&format!("Location: {to}/")], ""));
    run(async {
        let shard = Shard::new(&[upstream(&origin.url())]);
        let error = shard.send(get("/")).await.err();
        let origin = storage.url();
        assert_eq!(
            error,
            Some(UpstreamError::DeniedElsewhere {
                origin,
                status: 403
            })
        );
    });
}
