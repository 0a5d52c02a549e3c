//! Answers as they should be, and the connections they come over.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use super::origin::{Origin, answer};
use super::{FIRST, Request, Shard, get, head, part, run, upstream};
use crate::upstream::pool::{IDLE_PER_ORIGIN_MAX, IDLE_TTL};
use crate::upstream::{PIECE_LEN_MAX, UpstreamError};

#[test]
fn a_get_sends_what_it_should_and_nothing_else() {
    let origin = Origin::answering(|_| answer(200, &["X-Y: z"], "hello"));
    run(async {
        let shard = Shard::new(&[upstream(&origin.url())]);
        let request = Request {
            accept: Some("application/json"),
            range: Some(part(5, Some(9))),
            ..get("/v2/library/nginx/blobs/x?y=z")
        };
        let mut response = shard.send(request).await.expect("an answer");
        assert_eq!(
            (response.status, response.length, response.hops),
            (200, Some(5), 0)
        );
        assert_eq!(response.head.text("x-y"), Some("z"));
        assert_eq!(response.body.read().await, Ok(Some(b"hello".to_vec())));
        assert_eq!(response.body.read().await, Ok(None));
        assert_eq!(response.body.read().await, Ok(None));
        let open_ended = Request {
            range: Some(part(7, None)),
            ..get("/")
        };
        drop(shard.send(open_ended).await.expect("an answer"));
        assert_eq!(shard.client.counters().gets.get(), 2);
        assert_eq!(shard.client.counters().body_bytes.get(), 5);
    });
    let heads = origin.heads();
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!(
        "GET /v2/library/nginx/blobs/x?y=z HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n\
         User-Agent: entrepot/{version}\r\nAccept-Encoding: identity\r\n\
         Accept: application/json\r\nRange: bytes=5-9\r\n\r\n",
        origin.port
    );
    assert_eq!(heads[0], expected);
    assert!(heads[1].contains("\r\nRange: bytes=7-\r\n"));
}

#[test]
fn bodies_end_where_their_framing_says() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3;x=y\r\nabc\r\n4\r\ndefg\r\n0\r\nTrailer: t\r\n\r\n";
    let until_close = "HTTP/1.1 200 OK\r\n\r\nabcdefg";
    let http10 = "HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\nabcdefg";
    let no_body = "HTTP/1.1 204 No Content\r\n\r\n";
    let unchanged = "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n";
    let with_length = answer(200, &[], "abcdefg");
    let empty = answer(200, &[], "");
    // Whether the connection is kept: the next answer then comes over it.
    for (reply, status, length, body, kept) in [
        (with_length.as_str(), 200, Some(7), "abcdefg", true),
        (empty.as_str(), 200, Some(0), "", true),
        (chunked, 200, None, "abcdefg", true),
        (until_close, 200, None, "abcdefg", false),
        (http10, 200, Some(7), "abcdefg", false),
        (no_body, 204, None, "", true),
        (unchanged, 304, Some(7), "", true),
    ] {
        let reply = reply.to_owned();
        let origin = Origin::start(move |mut peer| {
            while peer.request().is_some() {
                peer.send(&reply);
                if !kept {
                    return;
                }
            }
        });
        run(async {
            let shard = Shard::new(&[upstream(&origin.url())]);
            for _ in 0..2 {
                let mut response = shard.send(get("/")).await.expect("an answer");
                assert_eq!(
                    (response.status, response.length),
                    (status, length),
                    "{body}"
                );
                let got = response.body.collect(100).await;
                assert_eq!(got, Ok(body.as_bytes().to_vec()));
            }
            let connections = shard.client.counters().connections.get();
            assert_eq!(connections, if kept { 1 } else { 2 }, "{status} {length:?}");
        });
    }
}

#[test]
fn a_head_has_a_length_and_no_body() {
    let origin = Origin::start(|mut peer| {
        while peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n");
        }
    });
    run(async {
        let shard = Shard::new(&[upstream(&origin.url())]);
        for _ in 0..2 {
            let mut response = shard.send(head("/")).await.expect("an answer");
            assert_eq!(response.length, Some(12345));
            assert_eq!(response.body.read().await, Ok(None));
        }
        assert_eq!(shard.client.counters().connections.get(), 1);
        assert_eq!(shard.client.counters().heads.get(), 2);
    });
    assert!(origin.heads()[0].starts_with("HEAD / HTTP/1.1\r\n"));
}

/// Bytes that no piece of them repeats.
pub(super) fn long_body(len: usize) -> Vec<u8> {
    (0..len as u64 / 8 + 1)
        .flat_map(|n| (n * 0x9e37_79b9).to_le_bytes())
        .take(len)
        .collect()
}

#[test]
fn long_bodies_come_in_pieces() {
    let body = long_body(5_000_001);
    let sent = body.clone();
    let origin = Origin::start(move |mut peer| {
        while let Some(head) = peer.request() {
            match head.starts_with("GET /chunked ") {
                false => {
                    peer.send(format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                        sent.len()
                    ));
                    peer.send(&sent);
                }
                true => {
                    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                    for data in sent.chunks(30_011) {
                        peer.send(format!("{:x}\r\n", data.len()));
                        peer.send(data);
                        peer.send("\r\n");
                    }
                    peer.send("0\r\n\r\n");
                }
            }
        }
    });
    run(async {
        let shard = Shard::new(&[upstream(&origin.url())]);
        for path in ["/length", "/chunked"] {
            let mut response = shard.send(get(path)).await.expect("an answer");
            let mut got = Vec::new();
            while let Some(piece) = response.body.read().await.expect("a piece") {
                assert!(
                    !piece.is_empty() && piece.len() <= 2 * PIECE_LEN_MAX,
                    "{}",
                    piece.len()
                );
                got.extend_from_slice(&piece);
            }
            assert!(got == body, "{path}");
        }
        assert_eq!(shard.client.counters().connections.get(), 1);
    });
}

#[test]
fn an_upstream_that_pauses_is_not_waited_for() {
    // The second half is only sent once the first was read: were it gathered, this would hang.
    let (go, gate) = flume::bounded::<()>(1);
    let origin = Origin::start(move |mut peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n");
        peer.send("half");
        gate.recv().expect("the first half was read");
        peer.send("rest");
        peer.until_closed();
    });
    run(async {
        let shard = Shard::new(&[upstream(&origin.url())]);
        let mut response = shard.send(get("/")).await.expect("an answer");
        let mut first = Vec::new();
        while first.len() < 4 {
            first.extend(
                response
                    .body
                    .read()
                    .await
                    .expect("a piece")
                    .expect("not the end"),
            );
        }
        assert_eq!(first, b"half");
        go.send(()).expect("origin");
        assert_eq!(response.body.collect(100).await, Ok(b"rest".to_vec()));
    });
}

#[test]
fn interim_answers_are_skipped() {
    let origin = Origin::answering(|head| {
        let interim = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
        let many = if head.contains("/many") { 9 } else { 2 };
        format!("{}{}", interim.repeat(many), answer(200, &[], "final"))
    });
    run(async {
        let shard = Shard::new(&[upstream(&origin.url())]);
        assert_eq!(shard.get("/few").await, (200, "final".to_owned()));
        let error = shard.send(get("/many")).await.err();
        assert_eq!(
            error,
            Some(UpstreamError::Interim {
                origin: origin.url()
            })
        );
    });
}

#[test]
fn idle_connections_age() {
    let origin = Origin::answering(|_| answer(200, &[], "x"));
    run(async {
        let shard = Shard::new(&[upstream(&origin.url())]);
        let connections = || shard.client.counters().connections.get();
        shard.get("/").await;
        shard.pass(IDLE_TTL - Duration::from_secs(1));
        shard.get("/").await;
        assert_eq!(connections(), 1);
        shard.pass(IDLE_TTL);
        shard.get("/").await;
        assert_eq!(connections(), 2);
        assert_eq!(shard.client.counters().retries.get(), 0);
    });
}

#[test]
fn a_kept_connection_that_was_closed_is_replaced_once() {
    // Each connection answers one request and closes, although it promised to stay.
    let origin = Origin::start(|mut peer| {
        peer.request();
        peer.send(answer(200, &[], "x"));
    });
    run(async {
        let shard = Shard::new(&[upstream(&origin.url())]);
        for _ in 0..3 {
            assert_eq!(shard.get("/").await, (200, "x".to_owned()));
        }
        let counters = shard.client.counters();
        assert_eq!((counters.retries.get(), counters.connections.get()), (2, 3));
    });
}

#[test]
fn a_timeout_of_the_idle_connection_is_not_the_answer() {
    let origin = Origin::start(|mut peer| {
        peer.request();
        peer.send(answer(200, &[], &peer.nth.to_string()));
        if peer.nth == 0 {
            peer.request();
            peer.send("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n");
        }
    });
    run(async {
        let shard = Shard::new(&[upstream(&origin.url())]);
        assert_eq!(shard.get("/").await, (200, "0".to_owned()));
        assert_eq!(shard.get("/").await, (200, "1".to_owned()));
    });
}

#[test]
fn connections_with_something_left_in_them_are_closed() {
    let closed = Arc::new(Mutex::new(Vec::new()));
    let log = closed.clone();
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    let origin = Origin::start(move |mut peer| {
        while let Some(head) = peer.request() {
            count.fetch_add(1, Ordering::SeqCst);
            match head.split(' ').nth(1) {
                Some("/surplus") => peer.send(answer(200, &[], "body") + "surplus"),
                Some("/close") => peer.send(answer(200, &["Connection: close"], "body")),
                Some("/long") => peer.send(answer(200, &[], &"x".repeat(20_000))),
                _ => peer.send(answer(200, &[], "body")),
            }
        }
        log.lock().expect("no panic").push(peer.nth);
    });
    run(async {
        let shard = Shard::new(&[upstream(&origin.url())]);
        let connections = || shard.client.counters().connections.get();
        for (path, expected) in [("/surplus", 1), ("/close", 2), ("/", 3)] {
            assert_eq!(shard.get(path).await, (200, "body".to_owned()));
            assert_eq!(connections(), expected, "{path}");
        }
        let mut unread = shard.send(get("/long")).await.expect("an answer");
        unread.body.read().await.expect("a piece");
        drop(unread);
        shard.get("/").await;
        assert_eq!(connections(), 4);
    });
    assert_eq!(served.load(Ordering::SeqCst), 5);
}

#[test]
fn few_idle_connections_are_kept_for_one_origin() {
    const HERD: usize = IDLE_PER_ORIGIN_MAX + 3;
    // Nobody is answered before all have asked, so each needs a connection.
    let all = Barrier::new(HERD);
    let origin = Origin::answering(move |_| {
        all.wait();
        answer(200, &[], "x")
    });
    run(async {
        let shard = Shard::new(&[upstream(&origin.url())]);
        for connections in [HERD, HERD + 3] {
            let herd: Vec<_> = (0..HERD)
                .map(|_| {
                    let client = shard.client.clone();
                    monoio::spawn(async move {
                        let mut response = client.send(FIRST, &get("/")).await.expect("an answer");
                        response.body.collect(100).await
                    })
                })
                .collect();
            for one in herd {
                assert_eq!(one.await, Ok(b"x".to_vec()));
            }
            assert_eq!(
                shard.client.counters().connections.get(),
                connections as u64
            );
        }
    });
}
