//! The whole origin over real sockets: content, auth, every fault, listeners, waiting.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use super::auth::{Mode, Rules, User};
use super::digest::Digest;
use super::tls::{Identity, Leaf};
use super::{Options, Running};

fn options() -> Options {
    let any = "127.0.0.1:0".parse().unwrap();
    Options {
        registry: any,
        cdn: any,
        token: any,
        control: any,
        identity: None,
        rules: Rules {
            mode: Mode::None,
            users: Vec::new(),
            token_ttl: std::time::Duration::from_secs(300),
            expires_in: Some(300),
            private_status: 401,
        },
        seed: 1,
        log: None,
        rate: None,
    }
}

pub(crate) fn start() -> Running {
    Running::start(options()).unwrap()
}

/// A client that knows as little as it can.
struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
    /// The body ended as its framing promised.
    whole: bool,
}

impl Client {
    fn connect(url: &str) -> Client {
        let address = url.split_once("://").unwrap().1;
        Client {
            stream: TcpStream::connect(address).unwrap(),
            unread: Vec::new(),
        }
    }

    fn ask(&mut self, method: &str, target: &str, fields: &str, body: &str) {
        let len = body.len();
        let text =
            format!("{method} {target} HTTP/1.1\r\nContent-Length: {len}\r\n{fields}\r\n{body}");
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    fn get(&mut self, target: &str) -> Reply {
        self.ask("GET", target, "", "");
        self.reply("GET").unwrap()
    }

    fn reply(&mut self, method: &str) -> io::Result<Reply> {
        let head_len = loop {
            if let Some(at) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.read_more()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let head: Vec<u8> = self.unread.drain(..head_len).collect();
        let head = String::from_utf8(head).unwrap();
        let status: u16 = head[9..12].parse().unwrap();
        let len = field(&head, "Content-Length").map(|len| len.parse::<usize>().unwrap());
        let (body, whole) = if method == "HEAD" || status == 304 {
            (Vec::new(), true)
        } else if field(&head, "Transfer-Encoding").is_some() {
            self.chunked()
        } else if let Some(len) = len {
            let whole = self.fill(len);
            let len = len.min(self.unread.len());
            (self.unread.drain(..len).collect(), whole)
        } else {
            self.fill(usize::MAX);
            (std::mem::take(&mut self.unread), true)
        };
        Ok(Reply {
            status,
            head,
            body,
            whole,
        })
    }

    fn chunked(&mut self) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        loop {
            while !self.unread.windows(2).any(|two| two == b"\r\n") {
                if !self.read_more().unwrap_or(false) {
                    return (body, false);
                }
            }
            let line = self
                .unread
                .windows(2)
                .position(|two| two == b"\r\n")
                .unwrap();
            let len = std::str::from_utf8(&self.unread[..line]).unwrap();
            let len = usize::from_str_radix(len, 16).unwrap();
            if !self.fill(line + 2 + len + 2) {
                return (body, false);
            }
            body.extend_from_slice(&self.unread[line + 2..line + 2 + len]);
            self.unread.drain(..line + 4 + len);
            if len == 0 {
                return (body, true);
            }
        }
    }

    /// Whether `len` bytes came before the end.
    fn fill(&mut self, len: usize) -> bool {
        while self.unread.len() < len {
            if !self.read_more().unwrap_or(false) {
                return false;
            }
        }
        true
    }

    fn read_more(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 65536];
        let len = self.stream.read(&mut bytes)?;
        self.unread.extend_from_slice(&bytes[..len]);
        Ok(len > 0)
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let named = |line: &&str| {
        let found = line.split_once(':');
        found.is_some_and(|(found, _)| found.eq_ignore_ascii_case(name))
    };
    head.lines()
        .find(named)
        .map(|line| line.split_once(':').unwrap().1.trim())
}

fn get(url: &str, target: &str) -> Reply {
    Client::connect(url).get(target)
}

fn get_with(url: &str, target: &str, fields: &str) -> Reply {
    let mut client = Client::connect(url);
    client.ask("GET", target, fields, "");
    client.reply("GET").unwrap()
}

/// A control call that must succeed.
pub(crate) fn call(origin: &Running, name: &str, body: &Value) -> Value {
    let reply = post(origin, name, body);
    assert_eq!(
        reply.status,
        200,
        "{name} {body}: {}",
        String::from_utf8_lossy(&reply.body)
    );
    serde_json::from_slice(&reply.body).unwrap()
}

fn post(origin: &Running, name: &str, body: &Value) -> Reply {
    let mut client = Client::connect(&origin.urls().control);
    client.ask("POST", &format!("/_origin/{name}"), "", &body.to_string());
    client.reply("POST").unwrap()
}

fn control_get(origin: &Running, name: &str) -> Value {
    let reply = get(&origin.urls().control, &format!("/_origin/{name}"));
    serde_json::from_slice(&reply.body).unwrap()
}

/// Puts a blob into repository `a` and answers its path.
fn put_blob(origin: &Running, size: u64) -> (String, Digest) {
    let made = call(
        origin,
        "blobs",
        &json!({"repositories": ["a"], "size": size, "seed": 3}),
    );
    let digest = Digest::parse(made["digest"].as_str().unwrap()).unwrap();
    (format!("/v2/a/blobs/{digest}"), digest)
}

fn fault(origin: &Running, rule: &Value) {
    call(origin, "faults", rule);
}

#[test]
fn an_image_can_be_walked_by_digest() {
    let origin = start();
    let url = &origin.urls().registry;
    let spec = json!({
        "repository": "library/app", "tags": ["1.0"],
        "platforms": ["linux/amd64", "linux/arm64"], "layers": [{"size": 1000}],
    });
    let made = call(&origin, "images", &spec);
    let reply = get(url, "/v2/library/app/manifests/1.0");
    assert_eq!(
        field(&reply.head, "Docker-Content-Digest"),
        made["digest"].as_str()
    );
    assert_eq!(
        field(&reply.head, "Content-Type"),
        made["media_type"].as_str()
    );
    let index: Value = serde_json::from_slice(&reply.body).unwrap();
    for platform in index["manifests"].as_array().unwrap() {
        let digest = platform["digest"].as_str().unwrap();
        let reply = get(url, &format!("/v2/library/app/manifests/{digest}"));
        assert_eq!(Digest::sha256(&reply.body).as_str(), digest);
        let manifest: Value = serde_json::from_slice(&reply.body).unwrap();
        for blob in [&manifest["config"], &manifest["layers"][0]] {
            let digest = blob["digest"].as_str().unwrap();
            let reply = get(url, &format!("/v2/library/app/blobs/{digest}"));
            assert_eq!(Digest::sha256(&reply.body).as_str(), digest);
            assert_eq!(json!(reply.body.len()), blob["size"]);
        }
    }
}

#[test]
fn heads_ranges_and_conditions_on_one_connection() {
    let origin = start();
    let (path, digest) = put_blob(&origin, 1 << 20);
    let whole = get(&origin.urls().registry, &path).body;
    assert_eq!(Digest::sha256(&whole), digest);
    let mut client = Client::connect(&origin.urls().registry);
    client.ask("HEAD", &path, "", "");
    let reply = client.reply("HEAD").unwrap();
    assert_eq!(field(&reply.head, "Content-Length"), Some("1048576"));
    // Pipelined.
    client.ask("GET", &path, "Range: bytes=5000-5999\r\n", "");
    client.ask("GET", &path, "Range: bytes=1048576-\r\n", "");
    client.ask(
        "GET",
        &path,
        &format!("If-None-Match: \"{digest}\"\r\n"),
        "",
    );
    client.ask("PUT", &path, "", "");
    let reply = client.reply("GET").unwrap();
    assert_eq!((reply.status, &reply.body[..]), (206, &whole[5000..6000]));
    assert_eq!(
        field(&reply.head, "Content-Range"),
        Some("bytes 5000-5999/1048576")
    );
    assert_eq!(client.reply("GET").unwrap().status, 416);
    assert_eq!(client.reply("GET").unwrap().status, 304);
    assert_eq!(client.reply("PUT").unwrap().status, 405);
}

#[test]
fn unknown_things_are_named() {
    let origin = start();
    let url = &origin.urls().registry;
    let (path, digest) = put_blob(&origin, 10);
    call(
        &origin,
        "blobs",
        &json!({"repositories": ["b"], "text": "other"}),
    );
    for (target, status, code) in [
        (path.replace("/a/", "/b/"), 404, "BLOB_UNKNOWN"),
        (path.replace("/a/", "/c/"), 404, "NAME_UNKNOWN"),
        ("/v2/a/blobs/sha256:0".into(), 400, "DIGEST_INVALID"),
        ("/v2/a/manifests/latest".into(), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/a/manifests/{digest}"), 404, "MANIFEST_UNKNOWN"),
        ("/v1/".into(), 405, "UNSUPPORTED"),
    ] {
        let reply = get(url, &target);
        let body: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(
            (reply.status, &body["errors"][0]["code"]),
            (status, &json!(code)),
            "{target}"
        );
    }
    assert_eq!(get(url, "/v2/").status, 200);
}

#[test]
fn accept_lines_decide_about_manifests() {
    let origin = start();
    call(
        &origin,
        "images",
        &json!({"repository": "a", "tags": ["t"]}),
    );
    let oci = "application/vnd.oci.image.manifest.v1+json";
    for (fields, status) in [
        (String::new(), 200),
        ("Accept: text/plain\r\n".into(), 404),
        (format!("Accept: text/plain\r\nAccept: {oci}\r\n"), 200),
        (format!("Accept: text/plain, {oci};q=0.5\r\n"), 200),
        ("Accept: */*\r\n".into(), 200),
    ] {
        let reply = get_with(&origin.urls().registry, "/v2/a/manifests/t", &fields);
        assert_eq!(reply.status, status, "{fields}");
    }
}

#[test]
fn tags_come_in_pages() {
    let origin = start();
    call(
        &origin,
        "images",
        &json!({"repository": "a", "tags": ["c", "a", "b"]}),
    );
    let url = &origin.urls().registry;
    let reply = get(url, "/v2/a/tags/list?n=2");
    assert_eq!(reply.body, br#"{"name":"a","tags":["a","b"]}"#);
    let link = field(&reply.head, "Link").unwrap();
    assert_eq!(link, "</v2/a/tags/list?n=2&last=b>; rel=\"next\"");
    let reply = get(url, "/v2/a/tags/list?n=2&last=b");
    assert_eq!(reply.body, br#"{"name":"a","tags":["c"]}"#);
    assert_eq!(field(&reply.head, "Link"), None);
}

#[test]
fn artifacts_are_referrers_of_their_subject() {
    let origin = start();
    let image = call(
        &origin,
        "images",
        &json!({"repository": "a", "tags": ["t"]}),
    );
    let artifact = call(
        &origin,
        "artifacts",
        &json!({"repository": "a", "artifact_type": "x/y", "size": 5, "subject": image["digest"]}),
    );
    let path = format!("/v2/a/referrers/{}", image["digest"].as_str().unwrap());
    let reply = get(&origin.urls().registry, &path);
    let index: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(index["manifests"][0]["digest"], artifact["digest"]);
    let reply = get(
        &origin.urls().registry,
        &format!("{path}?artifactType=other"),
    );
    assert_eq!(
        field(&reply.head, "OCI-Filters-Applied"),
        Some("artifactType")
    );
    let index: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(index["manifests"], json!([]));
}

#[test]
fn tokens_open_private_repositories() {
    let origin = Running::start(Options {
        rules: Rules {
            mode: Mode::Token,
            users: vec![User {
                name: "ci".into(),
                password: "secret".into(),
                repositories: None,
            }],
            ..options().rules
        },
        ..options()
    })
    .unwrap();
    let (path, _) = put_blob(&origin, 10);
    call(
        &origin,
        "private",
        &json!({"repository": "a", "private": true}),
    );
    let reply = get(&origin.urls().registry, &path);
    let challenge = field(&reply.head, "WWW-Authenticate").unwrap();
    assert_eq!(reply.status, 401);
    assert!(
        challenge.contains("scope=\"repository:a:pull\""),
        "{challenge}"
    );
    let realm = challenge.split('"').nth(1).unwrap();
    let base = realm.strip_suffix("/token").unwrap();
    let token = |fields: &str| {
        let reply = get_with(base, "/token?scope=repository%3Aa%3Apull", fields);
        let body: Value = serde_json::from_slice(&reply.body).unwrap();
        (reply.status, body["token"].as_str().map(str::to_owned))
    };
    let blob_status = |token: &str| {
        let fields = format!("Authorization: Bearer {token}\r\n");
        get_with(&origin.urls().registry, &path, &fields).status
    };
    let anonymous = token("").1.unwrap();
    assert_eq!(blob_status(&anonymous), 401);
    // "ci:secret" and "ci:wrong".
    let login = token("Authorization: Basic Y2k6c2VjcmV0\r\n").1.unwrap();
    assert_eq!(blob_status(&login), 200);
    assert_eq!(token("Authorization: Basic Y2k6d3Jvbmc=\r\n").0, 401);
    assert_eq!(control_get(&origin, "counters")["tokens"], 2);
    call(&origin, "auth", &json!({"revoke_tokens": true}));
    assert_eq!(blob_status(&login), 401);
}

#[test]
fn redirected_blobs_refuse_authorization() {
    let origin = start();
    let (path, digest) = put_blob(&origin, 100);
    fault(
        &origin,
        &json!({"match": {"kind": "blob"}, "then": {"redirect": "cdn", "status": 302}}),
    );
    // The rule is for the registry only: the cdn's answer is a blob as well.
    call(&origin, "faults/clear", &json!({}));
    let rule = json!({
        "match": {"kind": "blob", "listener": "registry"}, "then": {"redirect": "cdn"},
    });
    fault(&origin, &rule);
    let reply = get(&origin.urls().registry, &path);
    let target = field(&reply.head, "Location").unwrap();
    let target = target.strip_prefix(&origin.urls().cdn).unwrap();
    assert_eq!(reply.status, 307);
    let reply = get(&origin.urls().cdn, target);
    assert_eq!(Digest::sha256(&reply.body), digest);
    let refused = get_with(&origin.urls().cdn, target, "Authorization: Bearer x\r\n");
    assert_eq!(refused.status, 400);
}

/// One body fault: what came, and how it ended.
#[test]
fn body_faults() {
    let len = 1_000_000;
    for (then, body_len, whole, right, state) in [
        (json!({}), len, true, true, "complete"),
        (
            json!({"truncate_at": "50%"}),
            len / 2,
            false,
            false,
            "truncated",
        ),
        (json!({"truncate_at": 0}), 0, false, false, "truncated"),
        (json!({"flip_at": -1}), len, true, false, "complete"),
        (json!({"body_add": -10}), len - 10, true, false, "complete"),
        (json!({"body_add": 10}), len + 10, true, false, "complete"),
        (json!({"length_add": 10}), len, false, true, "complete"),
        (
            json!({"length_add": -10}),
            len - 10,
            true,
            false,
            "complete",
        ),
        (json!({"chunked": true}), len, true, true, "complete"),
        (
            json!({"chunked": true, "truncate_at": -1}),
            len - 1,
            false,
            false,
            "truncated",
        ),
        (
            json!({"chunked": true, "truncate_at": "100%"}),
            len,
            false,
            true,
            "truncated",
        ),
        (json!({"until_close": true}), len, true, true, "complete"),
        (json!({"rate": 100_000_000}), len, true, true, "complete"),
    ] {
        let origin = start();
        let (path, digest) = put_blob(&origin, len);
        fault(&origin, &json!({"id": "x", "times": 1, "then": then}));
        let mut client = Client::connect(&origin.urls().registry);
        let reply = client.get(&path);
        assert_eq!(
            (reply.body.len() as u64, reply.whole),
            (body_len, whole),
            "{then}"
        );
        assert_eq!(Digest::sha256(&reply.body) == digest, right, "{then}");
        let ended = json!({"requests": {"state": state, "fault": "x"}});
        call(&origin, "wait", &ended);
        assert_eq!(
            Digest::sha256(&get(&origin.urls().registry, &path).body),
            digest,
            "{then}"
        );
    }
}

#[test]
fn a_reset_is_seen_as_one() {
    let origin = start();
    let (path, _) = put_blob(&origin, 1_000_000);
    fault(&origin, &json!({"then": {"reset_at": 1000}}));
    let mut client = Client::connect(&origin.urls().registry);
    client.ask("GET", &path, "", "");
    let error = loop {
        match client.read_more() {
            Ok(true) => {}
            Ok(false) => panic!("a clean end"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn head_faults() {
    let origin = start();
    let (path, _) = put_blob(&origin, 10);
    let url = &origin.urls().registry;
    let once = |then: Value| {
        fault(&origin, &json!({"times": 1, "then": then}));
        get(url, &path)
    };
    let reply = once(json!({"status": 429, "headers": {"Retry-After": "1"}}));
    assert_eq!(
        (reply.status, field(&reply.head, "Retry-After")),
        (429, Some("1"))
    );
    let reply = once(json!({"status": 401}));
    assert!(field(&reply.head, "WWW-Authenticate").is_some());
    let reply = once(json!({"html": true}));
    assert_eq!(
        (reply.status, field(&reply.head, "Content-Type")),
        (200, Some("text/html"))
    );
    let reply = once(json!({"drop_headers": ["Docker-Content-Digest"]}));
    assert_eq!(
        (reply.status, field(&reply.head, "Docker-Content-Digest")),
        (200, None)
    );
    let reply = once(json!({"raw": "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"}));
    assert_eq!(reply.body, b"ok");
    fault(&origin, &json!({"times": 1, "then": {"refuse": true}}));
    let mut client = Client::connect(url);
    client.ask("GET", &path, "", "");
    assert!(client.reply("GET").is_err());
    fault(
        &origin,
        &json!({"match": {"method": "HEAD"}, "then": {"status": 405}}),
    );
    let mut client = Client::connect(url);
    client.ask("HEAD", &path, "", "");
    assert_eq!(client.reply("HEAD").unwrap().status, 405);
    assert_eq!(client.get(&path).status, 200);
}

#[test]
fn a_halt_holds_back_exactly_the_rest() {
    let origin = start();
    let (path, digest) = put_blob(&origin, 4_000_000);
    fault(&origin, &json!({"id": "half", "then": {"halt_at": "50%"}}));
    let mut clients: Vec<Client> = (0..3)
        .map(|_| {
            let mut client = Client::connect(&origin.urls().registry);
            client.ask("GET", &path, "", "");
            client
        })
        .collect();
    // One sees the head and half of the body, then nothing more.
    while !clients[0].unread.windows(4).any(|four| four == b"\r\n\r\n") {
        assert!(clients[0].read_more().unwrap());
    }
    let head_len = clients[0]
        .unread
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap()
        + 4;
    assert!(clients[0].fill(head_len + 2_000_000));
    drop(clients.pop());
    let halted = |count| json!({"requests": {"state": "halted"}, "count": count});
    let gone = json!({"requests": {"state": "client-closed"}});
    // Read what the second is sent, so that it gets to the halt.
    assert!(clients[1].fill(2_000_000));
    call(&origin, "wait", &halted(2));
    call(&origin, "wait", &gone);
    let log = control_get(&origin, "log?state=halted");
    assert_eq!(
        (&log[0]["bytes"], &log[0]["fault"]),
        (&json!(2_000_000), &json!("half"))
    );
    assert_eq!(clients[0].unread.len(), head_len + 2_000_000);
    assert_eq!(
        call(&origin, "release", &json!({"id": "half"}))["released"],
        2
    );
    for client in &mut clients {
        let reply = client.reply("GET").unwrap();
        assert_eq!(Digest::sha256(&reply.body), digest);
    }
    assert_eq!(control_get(&origin, "counters")["paths"][&path]["get"], 3);
}

#[test]
fn stalls_and_hangs_end_with_the_client() {
    let origin = start();
    let (path, _) = put_blob(&origin, 100);
    for then in [json!({"stall_at": 50}), json!({"hang": true})] {
        fault(&origin, &json!({"times": 1, "then": then}));
        let mut client = Client::connect(&origin.urls().registry);
        client.ask("GET", &path, "", "");
        call(&origin, "wait", &json!({"requests": {"state": "halted"}}));
        drop(client);
        call(
            &origin,
            "wait",
            &json!({"requests": {"state": "client-closed"}}),
        );
        call(&origin, "log/clear", &json!({}));
    }
    call(&origin, "wait", &json!({"connections": 0}));
}

#[test]
fn a_stopped_upstream_refuses_and_comes_back() {
    let origin = start();
    let (path, _) = put_blob(&origin, 100);
    let mut kept = Client::connect(&origin.urls().registry);
    assert_eq!(kept.get(&path).status, 200);
    call(&origin, "stop-listening", &json!({}));
    assert_eq!(kept.stream.read(&mut [0]).unwrap(), 0);
    let address = origin.urls().registry.strip_prefix("http://").unwrap();
    assert!(TcpStream::connect(address).is_err());
    call(
        &origin,
        "resume-listening",
        &json!({"listeners": ["registry"]}),
    );
    assert_eq!(get(&origin.urls().registry, &path).status, 200);
    assert!(TcpStream::connect(origin.urls().cdn.strip_prefix("http://").unwrap()).is_err());
}

#[test]
fn rate_limits_count_manifest_gets() {
    let origin = start();
    call(
        &origin,
        "images",
        &json!({"repository": "a", "tags": ["t"]}),
    );
    call(
        &origin,
        "rate-limit",
        &json!({"limit": 2, "window_s": 60, "remaining": 1}),
    );
    let url = &origin.urls().registry;
    let mut client = Client::connect(url);
    client.ask("HEAD", "/v2/a/manifests/t", "", "");
    let reply = client.reply("HEAD").unwrap();
    assert_eq!(field(&reply.head, "ratelimit-remaining"), Some("1;w=60"));
    assert_eq!(client.get("/v2/a/manifests/t").status, 200);
    let reply = client.get("/v2/a/manifests/t");
    assert_eq!(
        (reply.status, field(&reply.head, "Retry-After")),
        (429, Some("60"))
    );
    call(&origin, "rate-limit", &Value::Null);
    assert_eq!(client.get("/v2/a/manifests/t").status, 200);
}

#[test]
fn wrong_calls_are_refused() {
    let origin = start();
    for (name, body, status) in [
        ("blobs", json!({"repositories": ["a"]}), 400),
        ("blobs", json!({"repositories": ["a"], "sise": 1}), 400),
        (
            "tags",
            json!({"repository": "a", "tag": "t", "digests": []}),
            400,
        ),
        ("delete", json!({"repository": "nowhere"}), 404),
        ("nonsense", json!({}), 404),
        ("wait", json!({"requests": {}, "timeout_ms": 0}), 408),
        ("wait", json!({}), 400),
    ] {
        assert_eq!(post(&origin, name, &body).status, status, "{name} {body}");
    }
}

#[test]
fn deferred_images_are_made_when_asked_for() {
    let origin = start();
    let spec = json!({"repository": "a", "tags": ["t"]});
    origin
        .origin
        .defer_image(serde_json::from_value(spec.clone()).unwrap());
    let reply = get(&origin.urls().registry, "/v2/a/manifests/t");
    let again = start();
    let made = call(&again, "images", &spec);
    assert_eq!(
        field(&reply.head, "Docker-Content-Digest"),
        made["digest"].as_str()
    );
}

#[test]
fn tls_with_its_own_ca() {
    let fetch = |leaf: Leaf| {
        let identity = Identity::new(leaf, &[], None).unwrap();
        let ca = CertificateDer::from_pem_slice(identity.ca_pem().as_bytes()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca).unwrap();
        let origin = Running::start(Options {
            identity: Some(identity),
            ..options()
        })
        .unwrap();
        let (path, digest) = put_blob(&origin, 300_000);
        let config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let tls = ClientConnection::new(Arc::new(config), name).unwrap();
        let address = origin.urls().registry.strip_prefix("https://").unwrap();
        let mut stream = StreamOwned::new(tls, TcpStream::connect(address).unwrap());
        let ask = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n");
        stream.write_all(ask.as_bytes())?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        let body = bytes
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap()
            + 4;
        assert_eq!(Digest::sha256(&bytes[body..]), digest);
        Ok::<_, io::Error>(())
    };
    fetch(Leaf::Good).unwrap();
    for bad in [
        Leaf::Expired,
        Leaf::NotYetValid,
        Leaf::WrongName,
        Leaf::UnknownCa,
    ] {
        assert!(fetch(bad).is_err(), "{bad:?}");
    }
}
