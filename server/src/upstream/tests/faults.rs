//! What an upstream can do wrong, and the error each has.

use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use super::origin::{Origin, answer};
use super::{PATIENCE, Request, Shard, get, head, run, upstream};
use crate::config::Url;
use crate::http::framing::ChunkError;
use crate::http::head::HeadError;
use crate::upstream::connect::{Dial, Open};
use crate::upstream::error::{BodyError, FailureClass, UpstreamError};
use crate::upstream::resolve::{NamesError, Resolver};
use crate::upstream::{Counters, Reach, SetupError, TrustRoots, Upstream};

/// Runs out in a test that waits for nothing else.
const SOON: Duration = Duration::from_millis(500);

#[test]
fn malformed_heads() {
    for (reply, reason) in [
        (
            "SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(),
            HeadError::InvalidVersion,
        ),
        (
            "\0\0\x12\x04\0\0\0\0\0".to_owned(),
            HeadError::InvalidVersion,
        ),
        (
            "HTTP/1.1 200 OK\nX: y\n\n".to_owned(),
            HeadError::BareLineFeed,
        ),
        (
            "HTTP/1.1 2x0 OK\r\n\r\n".to_owned(),
            HeadError::InvalidStatusLine,
        ),
        (
            "HTTP/1.1 101 Switching\r\n\r\n".to_owned(),
            HeadError::InvalidStatusLine,
        ),
        (
            format!("HTTP/1.1 200 OK\r\n{}", "X: y\r\n".repeat(200)),
            HeadError::TooManyFields,
        ),
        (
            format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(40_000)),
            HeadError::HeadTooLong,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy".to_owned(),
            HeadError::DuplicateContentLength,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .to_owned(),
            HeadError::LengthWithTransferCoding,
        ),
    ] {
        let sent = reply.clone();
        let origin = Origin::start(move |mut peer| {
            peer.request();
            peer.send(&sent);
            peer.until_closed();
        });
        run(async {
            let shard = Shard::new(&[upstream(&origin.url())]);
            let error = shard.send(get("/")).await.err().expect(&reply);
            assert_eq!(error.class(), FailureClass::ServerError);
            assert_eq!(
                error,
                UpstreamError::Head {
                    origin: origin.url(),
                    reason
                },
                "{reply}"
            );
        });
        assert_eq!(
            origin.heads().len(),
            1,
            "answers, however bad, are not asked for again"
        );
    }
}

#[test]
fn connections_lost_before_the_answer() {
    for (reply, sent) in [("nothing", ""), ("half a head", "HTTP/1.1 200 OK\r\nX")] {
        let origin = Origin::start(move |mut peer| {
            peer.request();
            peer.send(sent);
        });
        run(async {
            let shard = Shard::new(&[upstream(&origin.url())]);
            let error = shard.send(get("/")).await.err().expect(reply);
            assert_eq!(
                error,
                UpstreamError::Closed {
                    origin: origin.url()
                }
            );
            assert_eq!(error.class(), FailureClass::Unreachable);
        });
        assert_eq!(
            origin.heads().len(),
            2,
            "asked once more, and not again: {reply}"
        );
    }
}

#[test]
fn bodies_cut_short() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (reply, before, error) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc".to_owned(),
            "abc",
            BodyError::Truncated,
        ),
        (
            format!("{chunked}3\r\nabc\r\n"),
            "abc",
            BodyError::Truncated,
        ),
        (
            format!("{chunked}3\r\nabc\r\n0\r\n"),
            "abc",
            BodyError::Truncated,
        ),
        (format!("{chunked}9\r\nabc"), "abc", BodyError::Truncated),
        (
            format!("{chunked}x\r\nabc"),
            "",
            BodyError::Chunked(ChunkError::InvalidSize),
        ),
    ] {
        let sent = reply.clone();
        let origin = Origin::start(move |mut peer| {
            peer.request();
            peer.send(&sent);
        });
        run(async {
            let shard = Shard::new(&[upstream(&origin.url())]);
            let mut response = shard.send(get("/")).await.expect("a head");
            let mut got = Vec::new();
            let end = loop {
                match response.body.read().await {
                    Ok(Some(piece)) => got.extend(piece),
                    Ok(None) => panic!("a clean end: {reply}"),
                    Err(error) => break error,
                }
            };
            assert_eq!(
                (got.as_slice(), end),
                (before.as_bytes(), error.clone()),
                "{reply}"
            );
            assert_eq!(response.body.read().await, Err(error), "an error stays");
        });
    }
}

#[test]
fn silence_times_out() {
    let silent = Origin::start(|mut peer| {
        peer.request();
        peer.until_closed();
    });
    let stalled = Origin::start(|mut peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc");
        peer.until_closed();
    });
    run(async {
        let mut config = upstream(&silent.url());
        config.read_timeout = SOON;
        let error = Shard::new(&[config])
            .send(get("/"))
            .await
            .err()
            .expect("no answer");
        assert_eq!(
            error,
            UpstreamError::HeadTimeout {
                origin: silent.url()
            }
        );
        assert!(error.is_timeout());
        assert_eq!(error.class(), FailureClass::Unreachable);

        let mut config = upstream(&stalled.url());
        config.read_timeout = SOON;
        let mut response = Shard::new(&[config]).send(get("/")).await.expect("a head");
        assert_eq!(response.body.read().await, Ok(Some(b"abc".to_vec())));
        assert_eq!(response.body.read().await, Err(BodyError::Timeout));
    });
}

#[test]
fn a_read_that_was_given_up_fails_the_body() {
    let origin = Origin::start(|mut peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n");
        peer.until_closed();
    });
    run(async {
        let shard = Shard::new(&[upstream(&origin.url())]);
        let mut response = shard.send(get("/")).await.expect("a head");
        let read = monoio::time::timeout(SOON, response.body.read()).await;
        assert!(read.is_err());
        assert_eq!(response.body.read().await, Err(BodyError::Abandoned));
    });
}

#[test]
fn bodies_longer_than_their_reader_allows() {
    let origin = Origin::answering(|_| answer(200, &[], "123456789"));
    run(async {
        let shard = Shard::new(&[upstream(&origin.url())]);
        let mut response = shard.send(get("/")).await.expect("a head");
        assert_eq!(response.body.collect(8).await, Err(BodyError::TooLong));
        assert_eq!(response.body.read().await, Err(BodyError::TooLong));
    });
}

#[test]
fn content_codings_are_refused() {
    let origin = Origin::answering(|head| {
        let coding = |coding| format!("Content-Encoding: {coding}");
        match head.split(' ').nth(1) {
            Some("/gzip") => answer(200, &[&coding("gzip")], "x"),
            Some("/list") => answer(206, &[&coding("identity, br")], "x"),
            Some("/none") => answer(200, &[&coding("identity")], "x"),
            Some("/missing") => answer(404, &[&coding("gzip")], "x"),
            _ => answer(200, &[&coding("gzip")], ""),
        }
    });
    run(async {
        let shard = Shard::new(&[upstream(&origin.url())]);
        for path in ["/gzip", "/list"] {
            let error = shard.send(get(path)).await.err().expect(path);
            assert_eq!(
                error,
                UpstreamError::Coding {
                    origin: origin.url()
                }
            );
            assert_eq!(error.class(), FailureClass::ServerError);
        }
        assert_eq!(shard.get("/none").await, (200, "x".to_owned()));
        // The status of an error counts, whatever its words are packed in.
        assert_eq!(shard.get("/missing").await, (404, String::new()));
        let response = shard.send(head("/head")).await.expect("an answer");
        assert_eq!((response.status, response.length), (200, None));
    });
}

#[test]
fn statuses_are_answers() {
    let origin = Origin::answering(|head| {
        let status = head
            .split(['/', ' '])
            .nth(2)
            .and_then(|status| status.parse().ok());
        answer(status.expect("a status"), &["Retry-After: 7"], "words")
    });
    run(async {
        let shard = Shard::new(&[upstream(&origin.url())]);
        for status in [200, 300, 404, 410, 416, 429, 500, 503] {
            let response = shard
                .send(get(&format!("/{status}")))
                .await
                .expect("an answer");
            assert_eq!(response.status, status);
            assert_eq!(response.head.text("retry-after"), Some("7"));
        }
        let error = shard.send(get("/403")).await.err();
        assert_eq!(
            error,
            Some(UpstreamError::Denied {
                origin: origin.url(),
                status: 403
            })
        );
    });
}

#[test]
fn targets_that_would_be_two_requests() {
    run(async {
        let shard = Shard::new(&[upstream("http://127.0.0.1:9")]);
        for path in [
            "",
            "v2/",
            "/a b",
            "/a\r\nX: y",
            "/a#b",
            "/\u{e4}",
            &"/a".repeat(5000),
        ] {
            let request = Request {
                path_and_query: path.to_owned(),
                elsewhere: None,
                ..get("/")
            };
            assert_eq!(
                shard.send(request).await.err(),
                Some(UpstreamError::RequestTarget)
            );
        }
        assert_eq!(shard.client.counters().connections.get(), 0);
    });
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").port()
}

#[test]
fn nobody_listens() {
    run(async {
        let url = format!("http://127.0.0.1:{}", free_port());
        let shard = Shard::new(&[upstream(&url)]);
        let error = shard.send(get("/")).await.err().expect("nobody there");
        let kind = ErrorKind::ConnectionRefused;
        assert_eq!(error, UpstreamError::Connect { origin: url, kind });
        assert_eq!(error.class(), FailureClass::Unreachable);
    });
}

fn names(addresses: &'static [&'static str]) -> Resolver {
    Resolver::start_with(|host| match host {
        "registry.example" => Ok(addresses
            .iter()
            .map(|address| address.parse().expect("address"))
            .collect()),
        _ => Err(std::io::Error::other("no such name")),
    })
    .expect("threads")
}

#[test]
fn every_address_of_a_name_is_tried() {
    let origin = Origin::answering(|_| answer(200, &[], "x"));
    run(async {
        let url = format!("http://registry.example:{}", origin.port);
        let resolver = names(&["127.0.0.2", "::1", "127.0.0.1"]);
        let shard = Shard::with_resolver(&[upstream(&url)], resolver);
        assert_eq!(shard.get("/").await, (200, "x".to_owned()));
        assert_eq!(shard.client.counters().connections.get(), 1);
    });
    assert!(origin.heads()[0].contains(&format!("\r\nHost: registry.example:{}\r\n", origin.port)));
}

#[test]
fn names_without_addresses() {
    run(async {
        for (url, reason) in [
            (
                "http://nowhere.example",
                NamesError::Lookup("no such name".to_owned()),
            ),
            ("http://registry.example", NamesError::NoAddress),
        ] {
            let shard = Shard::with_resolver(&[upstream(url)], names(&[]));
            let error = shard.send(get("/")).await.err().expect("no address");
            let host = url.trim_start_matches("http://").to_owned();
            let origin = url.to_owned();
            let expected = UpstreamError::Names {
                host,
                origin,
                reason,
            };
            assert_eq!(error, expected);
            assert_eq!(error.class(), FailureClass::Unreachable);
        }
    });
}

#[test]
fn a_name_service_that_hangs_times_out() {
    let (_go, gate) = flume::bounded::<IpAddr>(0);
    let lookup = move |_: &str| {
        gate.recv()
            .map(|it| vec![it])
            .map_err(std::io::Error::other)
    };
    run(async {
        let mut config = upstream("http://registry.example");
        config.connect_timeout = SOON;
        let resolver = Resolver::start_with(lookup).expect("threads");
        let error = Shard::with_resolver(&[config], resolver)
            .send(get("/"))
            .await
            .err();
        let origin = "http://registry.example".to_owned();
        assert_eq!(error, Some(UpstreamError::ConnectTimeout { origin }));
    });
}

#[test]
fn a_handshake_that_stalls_times_out() {
    let origin = Origin::start(|mut peer| peer.until_closed());
    run(async {
        let url = format!("https://127.0.0.1:{}", origin.port);
        let mut config = upstream(&url);
        config.connect_timeout = SOON;
        let error = Shard::new(&[config])
            .send(get("/"))
            .await
            .err()
            .expect("no handshake");
        assert_eq!(error, UpstreamError::ConnectTimeout { origin: url });
        assert!(error.is_timeout());
    });
}

#[test]
fn names_of_private_addresses_are_not_dialled_from_public_places() {
    let origin = Origin::answering(|_| answer(200, &[], "x"));
    let url: Url = format!("http://registry.example:{}", origin.port)
        .parse()
        .expect("url");
    let settings = Upstream::new(&upstream("http://x"), &TrustRoots::none()).expect("upstream");
    let resolver = names(&["127.0.0.1", "10.0.0.1"]);
    let (open, counters) = (Open::default(), Counters::default());
    run(async {
        let dial = |reach| Dial {
            origin: &url,
            proxy: None,
            tls: &settings.tls.own,
            timeout: PATIENCE,
            reach,
            resolver: &resolver,
            open: &open,
            counters: &counters,
        };
        let error = dial(Reach::Public).connect().await.err();
        let host = "registry.example".to_owned();
        assert_eq!(
            error,
            Some(UpstreamError::Names {
                host,
                origin: url.to_string(),
                reason: NamesError::Private
            })
        );
        assert_eq!(open.count(), 0);
        let connection = dial(Reach::Private).connect().await.expect("a connection");
        assert_eq!(connection.needs, Reach::Private);
        assert_eq!(open.count(), 1);
        drop(connection);
        assert_eq!(open.count(), 0);
    });
}

#[test]
fn an_address_that_does_not_answer_is_overtaken() {
    // Nobody accepts, so after the first few the kernel drops what asks for a connection.
    let mute = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let mute = mute.expect("a socket");
    let any: std::net::SocketAddr = "127.0.0.2:0".parse().expect("an address");
    let origin = Origin::answering(|_| answer(200, &[], "x"));
    let at = std::net::SocketAddr::new(any.ip(), origin.port);
    mute.bind(&at.into())
        .expect("the origin's port on another address");
    mute.listen(0).expect("a listener");
    let taken: Vec<_> = (0..4)
        .map(|_| std::net::TcpStream::connect_timeout(&at, SOON))
        .collect();
    assert!(taken.iter().any(Result::is_err), "its queue is full");
    run(async {
        let url = format!("http://registry.example:{}", origin.port);
        let resolver = names(&["127.0.0.2", "127.0.0.1"]);
        let shard = Shard::with_resolver(&[upstream(&url)], resolver);
        let start = std::time::Instant::now();
        assert_eq!(shard.get("/").await.0, 200);
        assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
    });
}

#[test]
fn errors_can_be_shared() {
    fn shared<T: Clone + Send + Sync + 'static>() {}
    shared::<UpstreamError>();
    shared::<BodyError>();
    shared::<Arc<[Upstream]>>();
    shared::<Resolver>();
    fn printed<T: std::error::Error>() {}
    printed::<SetupError>();
}
