//! Who the cache is for its upstreams: credentials that change, egress proxies, token services of
//! other domains, and that no credential ever shows where it does not belong (R11).

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::json;

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::get;
use entrepot_tests::origin::Origin;

const TAG: &str = "/v2/dh/library/app/manifests/1";

fn one(url: &str, keys: &str) -> Setup {
    let keys = format!("url = \"{url}\"\n{keys}");
    let config = Config::new().project("dh", "default = true", &[]);
    Setup::new(&config.upstream("dh", &keys))
}

/// A listener that keeps every byte it is sent, and answers each request head alike or, as a
/// proxy, passes it on.
struct Witness {
    addr: SocketAddr,
    received: Arc<Mutex<Vec<u8>>>,
}

impl Witness {
    fn start(serve: impl Fn(TcpStream, &Mutex<Vec<u8>>) + Send + Sync + 'static) -> Witness {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("a bound listener");
        let received = Arc::new(Mutex::new(Vec::new()));
        let (log, serve) = (received.clone(), Arc::new(serve));
        // The threads end with the test process.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (log, serve) = (log.clone(), serve.clone());
                thread::spawn(move || serve(client, &log));
            }
        });
        Witness { addr, received }
    }

    /// Answers everything with a 404.
    fn empty_registry() -> Witness {
        Witness::start(|mut client, log| {
            while read_head(&mut client, log).is_some() {
                let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
                let _ = client.write_all(answer);
            }
        })
    }

    /// A proxy that asks for credentials and knows names that no resolver does.
    fn proxy(known: HashMap<String, SocketAddr>) -> Witness {
        Witness::start(move |mut client, log| {
            while let Some(head) = read_head(&mut client, log) {
                let line = head.lines().next().unwrap_or_default();
                let (method, target) = line.split_once(' ').unwrap_or_default();
                let authority = target.trim_start_matches("http://");
                let authority = authority.split(['/', ' ']).next().unwrap_or_default();
                if !head.contains("Proxy-Authorization: Basic ") {
                    let refusal = "HTTP/1.1 407 Who?\r\nContent-Length: 0\r\n\r\n";
                    let _ = client.write_all(refusal.as_bytes());
                    continue;
                }
                let server = known.get(authority).map(TcpStream::connect);
                let Some(Ok(mut server)) = server else {
                    let _ = client.write_all(b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n");
                    continue;
                };
                if method == "CONNECT" {
                    let _ = client.write_all(b"HTTP/1.1 200 Through\r\n\r\n");
                } else {
                    // To the origin it is a request like any other, and the last one.
                    let kept: Vec<&str> = head
                        .lines()
                        .skip(1)
                        .filter(|line| !line.is_empty() && !line.starts_with("Proxy-"))
                        .collect();
                    let path = &target["http://".len() + authority.len()..];
                    let fields = kept.join("\r\n");
                    let request =
                        format!("{method} {path}\r\n{fields}\r\nConnection: close\r\n\r\n");
                    let _ = server.write_all(request.as_bytes());
                }
                join(client, server);
                return;
            }
        })
    }

    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.received.lock().expect("no thread panics")).into_owned()
    }
}

/// The next request head, noted as it comes.
fn read_head(client: &mut TcpStream, log: &Mutex<Vec<u8>>) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if client.read(&mut byte).ok()? == 0 {
            return None;
        }
        log.lock().expect("no thread panics").push(byte[0]);
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// Passes bytes both ways until one side is done.
fn join(client: TcpStream, server: TcpStream) {
    let ways = (client.try_clone(), server.try_clone());
    let (Ok(mut from_client), Ok(mut to_server)) = ways else {
        return;
    };
    let (mut from_server, mut to_client) = (server, client);
    let up = thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
    });
    let _ = std::io::copy(&mut from_server, &mut to_client);
    let _ = to_client.shutdown(Shutdown::Both);
    let _ = up.join();
}

#[test]
fn a_password_file_is_followed() {
    let login = [
        "--auth",
        "basic",
        "--user",
        "ci:new",
        "--private",
        "library/app",
    ];
    let origin = Origin::start_with(&login);
    origin.image("library/app", "1", 1);
    let setup = one(origin.url(), "");
    let file = setup.dir().write("password", "old\n");
    let keys = format!(
        "url = \"{}\"\nusername = \"ci\"\npassword_credential = \"password\"\nnegative_for = \"0s\"",
        origin.url()
    );
    let config = Config::new().project("dh", "default = true", &[]);
    let folder = setup.dir().path().to_str().expect("a UTF-8 path");
    let server = Setup::new(&config.upstream("dh", &keys))
        .variable("CREDENTIALS_DIRECTORY", folder)
        .start();
    assert_ne!(server.get(TAG).status(), 200);
    fs::write(&file, "new\n").expect("the password");
    until_true("the new password is in use", || {
        server.get(TAG).status() == 200
    });
    let log = server.log();
    let told = |line: &&serde_json::Value| line["message"] == "the password has changed";
    assert_eq!(log.iter().filter(told).count(), 1);
}

#[test]
fn everything_goes_through_the_proxy() {
    let names = "registry.invalid";
    for tls in [false, true] {
        let dir = entrepot_tests::temp::TempDir::new("proxy");
        let ca = dir.join("ca.pem");
        let ca = ca.to_str().expect("a UTF-8 path");
        let args = ["--tls", "--ca-out", ca, "--tls-name", names];
        let origin = Origin::start_with(if tls { &args } else { &[] });
        origin.image("library/app", "1", 1);
        let port = origin.addr().port();
        let known = HashMap::from([(format!("{names}:{port}"), origin.addr())]);
        let proxy = Witness::proxy(known);
        let (scheme, more) = match tls {
            true => ("https", format!("ca_file = \"{ca}\"")),
            false => ("http", String::new()),
        };
        let url = format!("{scheme}://{names}:{port}");
        let through = format!("http://me:let-me-out@{}", proxy.addr);
        // By the key and by the environment.
        let by_key = one(&url, &format!("proxy = \"{through}\"\n{more}"));
        let variable = if tls { "HTTPS_PROXY" } else { "http_proxy" };
        let by_environment = one(&url, &more).variable(variable, &through);
        for setup in [by_key, by_environment] {
            setup.start().get(TAG).expect(200);
        }
        assert_eq!(origin.count("kind=manifest&method=GET"), 2);
        let heads = proxy.text();
        let form = match tls {
            true => format!("CONNECT {names}:{port} HTTP/1.1\r\n"),
            false => format!("GET http://{names}:{port}/v2/library/app/manifests/"),
        };
        assert!(heads.contains(&form), "{heads}");

        let before = heads.len();
        let excepted = one(&url, &more)
            .variable(variable, &through)
            .variable("NO_PROXY", ".invalid");
        assert_eq!(excepted.start().get(TAG).status(), 502);
        let wrong = one(&url, &format!("proxy = \"http://{}\"\n{more}", proxy.addr));
        let refused = wrong.start().get(TAG);
        assert_eq!(refused.status(), 502, "407 is not the client's business");
        assert!(proxy.text().len() > before);
    }
}

#[test]
fn a_token_service_elsewhere_has_to_be_listed() {
    let origin = Origin::start_with(&["--auth", "token"]);
    origin.image("library/app", "1", 1);
    // The same service under a name that is not the upstream's.
    let realm = format!("http://localhost:{}", origin.token().port());
    let challenge = format!("Bearer realm=\"{realm}/token\",service=\"entrepot-origin\"");
    origin.fault(
        json!({"listener": "registry", "authorization": false}),
        json!({"status": 401, "headers": {"WWW-Authenticate": challenge}}),
    );
    let foreign = one(origin.url(), "").start().get(TAG);
    assert_ne!(foreign.status(), 200);
    assert_eq!(origin.count("listener=token"), 0);
    let listed = one(origin.url(), &format!("realms = [\"{realm}\"]"));
    listed.start().get(TAG).expect(200);
    assert_eq!(origin.count("listener=token"), 1);
}

#[test]
fn private_places_can_be_forbidden() {
    let origin = Origin::start();
    let blob = origin.blob(&["library/app"], 1000, 1);
    origin.fault(
        json!({"listener": "registry", "kind": "blob"}),
        json!({"redirect": "cdn"}),
    );
    let target = format!("/v2/dh/library/app/blobs/{}", blob.digest);
    one(origin.url(), "").start().get(&target).expect(200);
    let seen = origin.count("listener=cdn");
    assert!(seen > 0);
    let forbidden = one(origin.url(), "private = false").start().get(&target);
    assert_eq!(forbidden.status(), 502);
    assert_eq!(origin.count("listener=cdn"), seen);
}

#[test]
fn a_failure_by_chance_is_not_the_clients() {
    for fault in [json!({"status": 503}), json!({"refuse": true})] {
        let origin = Origin::start();
        let blob = origin.blob(&["library/app"], 1000, 1);
        let server = Entrepot::before(origin.url());
        origin.fault_times(1, json!({"kind": "blob", "method": "GET"}), fault.clone());
        let target = format!("/v2/dh/library/app/blobs/{}", blob.digest);
        server.get(&target).expect(200);
        assert_eq!(origin.count("kind=blob&method=GET"), 2, "{fault}");
    }
}

#[test]
fn planted_credentials_stay_where_they_belong() {
    const PASSWORD: &str = "planted-password";
    const PROXY_PASSWORD: &str = "planted-proxy-password";
    let login = format!("ci:{PASSWORD}");
    let args = [
        "--auth",
        "token",
        "--user",
        &login,
        "--private",
        "library/app",
    ];
    let origin = Origin::start_with(&args);
    origin.image("library/app", "1", 1);
    let blob = origin.blob(&["library/app"], 1000, 1);
    let other = Witness::empty_registry();
    let target = Witness::empty_registry();
    let proxy = Witness::proxy(HashMap::new());
    let keys = format!(
        "url = \"{}\"\nusername = \"ci\"\npassword = \"{PASSWORD}\"",
        origin.url()
    );
    let behind_proxy = format!(
        "url = \"http://elsewhere.invalid\"\nproxy = \"http://me:{PROXY_PASSWORD}@{}\"",
        proxy.addr
    );
    let config = Config::new()
        .project(
            "dh",
            "default = true\naccess = \"anonymous\"",
            &[&other.url()],
        )
        .upstream("dh", &keys)
        .upstream("dh", &behind_proxy);
    let server = Setup::new(&config)
        .args(&["--set", "log.level=debug"])
        .start();
    server.get(TAG).expect(200);
    let blob_target = format!("/v2/dh/library/app/blobs/{}", blob.digest);
    origin.fault(
        json!({"listener": "registry", "kind": "blob"}),
        json!({"redirect": format!("{}/signed?x=y", target.url())}),
    );
    let mut said = server.get(&blob_target).text();
    // Every upstream fails, each in its own words.
    origin.clear_faults();
    origin.call(
        "auth",
        json!({"revoke_tokens": true, "mode": "token",
        "users": [{"name": "ci", "password": "another"}]}),
    );
    said.push_str(&server.get("/v2/dh/library/app/manifests/2").text());
    origin.go_down();
    said.push_str(&server.get("/v2/dh/library/app/manifests/3").text());
    said.push_str(&get(server.admin(), "/metrics").expect(200).text());
    let logged: Vec<String> = server.log().iter().map(ToString::to_string).collect();
    said.push_str(&logged.join("\n"));
    said.push_str(&server.ask_ok(&["print-config"]));

    // The places were reached, so there was an occasion.
    assert!(target.text().contains("GET /signed?x=y"));
    assert!(other.text().contains("/v2/library/app/manifests/1"));
    assert!(proxy.text().contains("Proxy-Authorization: Basic "));
    assert!(
        origin
            .log("listener=token")
            .iter()
            .any(|ask| ask["authorization"] == "basic")
    );
    for (place, text) in [
        ("the redirect's target", target.text()),
        ("another upstream", other.text()),
        (
            "the proxy",
            proxy.text().replace("Proxy-Authorization: Basic ", ""),
        ),
        ("what the server says", said),
    ] {
        let lower = text.to_ascii_lowercase();
        for secret in [
            PASSWORD,
            "Y2k6cGxhbnRlZC1wYXNzd29yZ", // ci:planted-password
            PROXY_PASSWORD,
            "authorization: ",
            "bearer ey",
        ] {
            let found = lower.contains(&secret.to_ascii_lowercase());
            assert!(!found, "{secret} in {place}:\n{text}");
        }
    }
    assert!(!other.text().contains("bWU6cGxhbnRlZ"), "the proxy's login");
}
