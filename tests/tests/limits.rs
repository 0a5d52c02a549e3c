//! Everything is bounded, and only a client's own request is refused (R4).

use std::net::Shutdown;
use std::time::Duration;

use serde_json::json;

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::{Config, Setup};
use entrepot_tests::http::{Answer, Broken, Connection, get_hashed};
use entrepot_tests::origin::Origin;
use entrepot_tests::sha256::{Hash, digest};

const BODY_LEN: u64 = 8 << 20;

fn target(digest: &str) -> String {
    format!("/v2/dh/library/app/blobs/{digest}")
}

fn with_limit(origin: &Origin, limit: &str) -> Setup {
    // More shards than what is allowed: a limit is one for all of them together.
    let args = ["--shards", "4", "--set", limit];
    Setup::new(&Config::one(origin.url())).args(&args)
}

/// 503 with a time to come back at, and an error body.
#[track_caller]
fn check_refused(answer: &Answer) {
    assert_eq!(answer.status(), 503, "{}", answer.head.raw);
    let after = answer.field("retry-after").map(str::parse::<u32>);
    assert!(matches!(after, Some(Ok(_))), "{}", answer.head.raw);
    assert!(answer.error_code().is_some(), "{}", answer.text());
    assert_eq!(answer.broken, None);
}

#[test]
fn one_fill_too_many_is_refused_and_comes_back_later() {
    let origin = Origin::start();
    let first = origin.blob(&["library/app"], BODY_LEN, 1);
    let others = (2..8).map(|seed| origin.blob(&["library/app"], BODY_LEN, seed));
    let others: Vec<_> = others.collect();
    let matching = json!({"contains": first.digest, "method": "GET"});
    origin.fault(matching, json!({"halt_at": "50%"}));
    let server = with_limit(&origin, "limits.fills_max=1").start();
    let mut client = Connection::open(server.addr());
    client.request("GET", &target(&first.digest), &[]);
    let head = client.read_head().expect("a head while the body arrives");

    for other in &others {
        check_refused(&server.get(&target(&other.digest)));
    }
    origin.release();
    let mut hash = Hash::default();
    let read = client.read_body("GET", &head, &mut |bytes| hash.update(bytes));
    assert_eq!((read, hash.digest()), (Ok(()), first.digest.clone()));
    until_true("the fill is over", || {
        server.metric("entrepot_fills_running", &[]) == 0.0
    });
    let body = server.get(&target(&others[0].digest)).expect(200).body;
    assert_eq!(digest(&body), others[0].digest);
}

#[test]
fn one_follower_too_many_is_refused() {
    let origin = Origin::start();
    let blob = origin.blob(&["library/app"], BODY_LEN, 1);
    origin.fault(
        json!({"kind": "blob", "method": "GET"}),
        json!({"halt_at": "50%"}),
    );
    let server = with_limit(&origin, "limits.followers_max=2").start();
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Connection::open(server.addr());
        client.request("GET", &target(&blob.digest), &[]);
        let head = client.read_head().expect("a head while the body arrives");
        clients.push((client, head));
    }
    check_refused(&server.get(&target(&blob.digest)));
    origin.release();
    for (mut client, head) in clients {
        let mut hash = Hash::default();
        let read = client.read_body("GET", &head, &mut |bytes| hash.update(bytes));
        assert_eq!((read, hash.digest()), (Ok(()), blob.digest.clone()));
    }
    // A hit has no follower.
    server.get(&target(&blob.digest)).expect(200);
}

#[test]
fn one_connection_too_many_is_closed_and_the_others_go_on() {
    let origin = Origin::start();
    let server = with_limit(&origin, "limits.connections_max=4").start();
    let mut clients: Vec<_> = (0..4).map(|_| Connection::open(server.addr())).collect();
    for client in &mut clients {
        client.request("GET", "/v2/", &[]);
        client.answer("GET").expect("an answer").expect(200);
    }
    let mut fifth = Connection::open(server.addr());
    fifth.request("GET", "/v2/", &[]);
    let refused = match fifth.answer("GET") {
        Ok(answer) => answer.status() == 503,
        Err(broken) => matches!(broken, Broken::Closed | Broken::Reset),
    };
    assert!(refused);
    for client in &mut clients {
        client.request("GET", "/v2/", &[]);
        client.answer("GET").expect("an answer").expect(200);
    }
    clients.pop();
    until_true("its place is free", || {
        server
            .try_get("/v2/")
            .is_ok_and(|answer| answer.status() == 200)
    });
}

#[test]
fn a_body_longer_than_the_limit_is_passed_through_and_not_kept() {
    let origin = Origin::start();
    let server = with_limit(&origin, "limits.body_max=1MiB").start();
    let blob = origin.blob(&["library/app"], BODY_LEN, 1);
    for pull in 1..=2 {
        let hashed = get_hashed(server.addr(), &target(&blob.digest)).expect("a head");
        assert_eq!((hashed.broken, hashed.digest), (None, blob.digest.clone()));
        assert_eq!(origin.count("kind=blob&method=GET"), pull, "it was kept");
    }
}

#[test]
fn an_idle_connection_is_closed_after_its_time() {
    let origin = Origin::start();
    let server = with_limit(&origin, "limits.idle_timeout=300ms").start();
    let mut idle = Connection::open(server.addr());
    idle.request("GET", "/v2/", &[]);
    idle.answer("GET").expect("an answer").expect(200);
    assert!(idle.is_closed());
}

/// A client that takes nothing loses its connection, and with it what it held (S5, R5).
#[test]
fn a_client_that_takes_nothing_is_cut() {
    let origin = Origin::start();
    // More than both sockets buffer.
    let blob = origin.blob(&["library/app"], 64 << 20, 1);
    let server = with_limit(&origin, "limits.send_timeout=500ms").start();
    let target = target(&blob.digest);
    for _ in ["while it arrives", "from the store"] {
        let mut stalled = Connection::open(server.addr());
        stalled.request("GET", &target, &[]);
        let head = stalled.read_head().expect("a head");
        until_true("the connection is cut", || {
            server.metric("entrepot_connections", &[]) == 0.0
        });
        let read = stalled.read_body("GET", &head, &mut |_| ());
        let cut = matches!(read, Err(Broken::Short { .. } | Broken::Reset));
        assert!(cut, "{read:?}");
        let hashed = get_hashed(server.addr(), &target).expect("a head");
        assert_eq!((hashed.broken, hashed.digest), (None, blob.digest.clone()));
    }
}

/// Polls of a socket whose peer has ended its side answer at once, whether there is room or not.
#[test]
fn a_client_that_ended_its_side_and_takes_nothing_costs_nothing_and_gets_all_later() {
    const LOOK: Duration = Duration::from_millis(200);
    let origin = Origin::start();
    // More than both sockets buffer.
    let blob = origin.blob(&["library/app"], 64 << 20, 1);
    let server = with_limit(&origin, "limits.send_timeout=10m").start();
    let target = target(&blob.digest);
    server.get(&target).expect(200);
    let mut stalled = Connection::open(server.addr());
    stalled.request("GET", &target, &[]);
    let ended = stalled.stream().shutdown(Shutdown::Write);
    ended.expect("a connection");
    let head = stalled.read_head().expect("a head");
    until_true("the server rests", || {
        let before = server.cpu_ticks();
        std::thread::sleep(LOOK);
        server.cpu_ticks() - before <= 2
    });
    let mut hash = Hash::default();
    let read = stalled.read_body("GET", &head, &mut |bytes| hash.update(bytes));
    assert_eq!((read, hash.digest()), (Ok(()), blob.digest));
}
