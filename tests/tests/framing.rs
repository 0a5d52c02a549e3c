//! Where a request ends and the next begins: pipelining, kept and closed connections, `Expect`,
//! and everything RFC 9112 forbids, refused (R7).

use std::time::Duration;

use serde_json::json;

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{Broken, Connection, request_text};
use entrepot_tests::origin::Origin;
use entrepot_tests::sha256::digest;
use entrepot_tests::world::World;

#[test]
fn pipelined_requests_are_answered_in_order() {
    let world = World::new();
    world.server.get(&world.layer_target()).expect(200);
    let requests = [
        ("HEAD", world.layer_target()),
        ("GET", world.manifest_target()),
        ("GET", "/v2/dh/library/app/manifests/absent".to_owned()),
        ("GET", world.layer_target()),
        ("GET", "/v2/".to_owned()),
    ];
    let mut text = String::new();
    for (method, target) in &requests {
        text.push_str(&request_text(method, target, &[]));
    }
    // In one write, in single bytes, and split inside every request.
    for piece_len in [text.len(), 1, 97] {
        let mut connection = world.open();
        for piece in text.as_bytes().chunks(piece_len) {
            connection.write(piece);
        }
        let statuses = requests.iter().map(|(method, target)| {
            let answer = connection.answer(method).expect("an answer");
            assert_eq!(answer.broken, None);
            if *method == "GET" && *target == world.layer_target() {
                assert_eq!(digest(&answer.body), world.layer.digest);
            }
            answer.status()
        });
        assert_eq!(statuses.collect::<Vec<_>>(), [200, 200, 404, 200, 200]);
    }
}

#[test]
fn a_connection_is_kept_or_closed_as_its_client_asks() {
    let world = World::new();
    // Request text, and whether the connection goes on.
    let table = [
        ("GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n", true),
        (
            "GET /v2/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            false,
        ),
        (
            "GET /v2/ HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n",
            false,
        ),
        ("GET /v2/ HTTP/1.0\r\n\r\n", false),
        ("GET /v2/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
        ("\r\nGET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n", true),
        (
            "GET http://localhost/v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
            true,
        ),
    ];
    for (text, kept) in table {
        let mut connection = world.open();
        connection.write(text.as_bytes());
        let answer = connection.answer("GET").expect("an answer").expect(200);
        // HTTP/1.0 clients must be told that the connection stays.
        assert_eq!(answer.head.closes(), !kept, "{text:?}: {}", answer.head.raw);
        if kept {
            connection.request("GET", "/v2/", &[]);
            connection
                .answer("GET")
                .expect("a second answer")
                .expect(200);
        } else {
            assert!(connection.is_closed(), "{text:?}");
        }
    }
}

#[test]
fn expect_is_answered() {
    let world = World::new();
    let mut connection = world.open();
    connection.request("GET", "/v2/", &[("Expect", "100-continue")]);
    connection.answer("GET").expect("an answer").expect(200);

    // The client waits for 100 before it sends; the refusal must not wait for the body.
    let mut connection = world.open();
    let fields = [("Expect", "100-continue"), ("Content-Length", "1000000")];
    connection.request("PUT", "/v2/dh/library/app/manifests/1", &fields);
    let head = connection.read_head().expect("an answer without the body");
    assert_eq!(head.status, 405);

    let mut connection = world.open();
    connection.request("GET", "/v2/", &[("Expect", "200-ok")]);
    connection.answer("GET").expect("an answer").expect(417);
}

#[test]
fn malformed_requests_are_refused_and_the_connection_closed() {
    let world = World::new();
    let long_field = format!(
        "GET /v2/ HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "x".repeat(40_000)
    );
    let long_target = format!("GET /v2/{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(12_000));
    let many = format!(
        "GET /v2/ HTTP/1.1\r\nHost: a\r\n{}\r\n",
        "A: b\r\n".repeat(1_000)
    );
    let table: [(&str, u16); 27] = [
        ("GET /v2/ HTTP/1.1\r\n\r\n", 400),
        ("GET /v2/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET  /v2/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /v2/  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /v2/ HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
        (" GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET v2/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("G\tT /v2/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /v2/\x01 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /v2/ HTTP/1.1\nHost: a\n\n", 400),
        ("GET /v2/ HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
        ("GET /v2/ HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        ("GET /v2/ HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
        ("GET /v2/ HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", 400),
        ("GET /v2/ HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n", 400),
        ("GET /v2/ HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n", 400),
        (
            "PUT /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nabcde",
            400,
        ),
        (
            "PUT /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 6\r\n\r\nabcde",
            400,
        ),
        (
            "PUT /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
            400,
        ),
        (
            "PUT /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\
             Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "PUT /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
            501,
        ),
        ("GET /v2/ HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        ("GET /v2/ HTTP/3\r\nHost: a\r\n\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (&long_field, 431),
        (&many, 431),
        (&long_target, 414),
    ];
    for (text, status) in table {
        let shown = &text[..text.len().min(120)];
        let mut connection = world.open();
        connection.write(text.as_bytes());
        // A second request on the same connection must never be looked at.
        connection.request("GET", "/v2/", &[]);
        let answer = connection.answer("GET");
        let answer = answer.unwrap_or_else(|broken| panic!("{shown:?}: {broken:?}"));
        assert_eq!(answer.status(), status, "{shown:?}");
        assert!(answer.head.closes(), "{shown:?}: {}", answer.head.raw);
        assert!(
            connection.is_closed(),
            "{shown:?}: the connection stays open"
        );
    }
    world.server.get("/v2/").expect(200);
}

#[test]
fn a_tls_hello_on_the_plain_port_is_refused_at_once() {
    // podman, skopeo and dockerd try TLS first on a registry that may be insecure, and wait.
    let world = World::new();
    let mut connection = world.open();
    connection.write(b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03");
    connection.set_read_timeout(Duration::from_secs(5));
    let refused = match connection.answer("GET") {
        Ok(answer) => answer.status() == 400,
        Err(broken) => matches!(broken, Broken::Closed | Broken::Reset),
    };
    assert!(refused, "the server waits for more of a TLS record");
}

#[test]
fn a_stalled_head_is_cut() {
    let origin = Origin::start();
    let setup = Setup::new(&Config::one(origin.url()));
    let server = setup.args(&["--set", "limits.head_timeout=500ms"]).start();
    let mut connection = Connection::open(server.addr());
    connection.write(b"GET /v2/ HTTP/1.1\r\nHost:");
    match connection.answer("GET") {
        Ok(answer) => assert_eq!(answer.status(), 408),
        Err(broken) => assert!(
            matches!(broken, Broken::Closed | Broken::Reset),
            "{broken:?}"
        ),
    }
    until_true("the connection is gone", || {
        server.metric("entrepot_connections", &[]) == 0.0
    });
}

#[test]
fn the_body_of_a_refused_write_is_never_read_as_a_request() {
    let world = World::new();
    let smuggled = request_text("GET", "/v2/dh/library/app/manifests/1", &[]);
    let length = smuggled.len().to_string();
    let write = request_text(
        "PUT",
        "/v2/dh/library/app/manifests/2",
        &[("Content-Length", &length)],
    );
    let mut connection = world.open();
    connection.write(format!("{write}{smuggled}").as_bytes());
    connection
        .answer("PUT")
        .expect("an answer")
        .expect_error(405, "UNSUPPORTED");
    // The body is either passed over, or the connection ends; it is never answered.
    connection.request("GET", "/v2/", &[]);
    if let Ok(next) = connection.answer("GET") {
        assert!(
            next.field("docker-content-digest").is_none(),
            "{}",
            next.head.raw
        );
    }
    assert_eq!(world.origin.count(""), 0);
}

#[test]
fn the_body_of_a_get_is_passed_over() {
    let world = World::new();
    let text = "GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcde";
    let chunked = "GET /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nabc\r\n0\r\n\r\n";
    for text in [text, chunked] {
        let mut connection = world.open();
        connection.write(text.as_bytes());
        let first = connection.answer("GET").expect("an answer");
        assert!(matches!(first.status(), 200 | 400), "{}", first.head.raw);
        connection.request("HEAD", &world.layer_target(), &[]);
        // Either the connection ended with the first answer, or it goes on behind the body.
        match connection.answer("HEAD") {
            Ok(second) => assert_eq!(second.status(), 200, "{text:?}: {}", second.head.raw),
            Err(_) => assert!(first.head.closes(), "{}", first.head.raw),
        }
    }
}

/// Chunked coding is not for HTTP/1.0, and the end of a connection proves nothing: such a client
/// gets a length, or a body that was verified before it left.
#[test]
fn an_http_1_0_client_gets_no_chunked_coding() {
    let origin = Origin::start();
    let server = Entrepot::before(origin.url());
    for (seed, flip) in [(1, false), (2, true)] {
        let blob = origin.blob(&["library/app"], 5_000_000, seed);
        let fault = if flip {
            json!({"chunked": true, "flip_at": -1})
        } else {
            json!({"chunked": true})
        };
        origin.fault(json!({"contains": blob.digest}), fault);
        let target = format!("/v2/dh/library/app/blobs/{}", blob.digest);
        let mut connection = Connection::open(server.addr());
        connection.write(format!("GET {target} HTTP/1.0\r\n\r\n").as_bytes());
        let answer = connection.answer("GET").expect("an answer");
        assert!(!answer.head.is_chunked(), "{}", answer.head.raw);
        if flip {
            assert_eq!(answer.status(), 502, "{}", answer.head.raw);
        } else {
            assert_eq!(digest(&answer.expect(200).body), blob.digest);
        }
    }
}
