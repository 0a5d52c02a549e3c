//! `entrepot-origin`, the synthetic upstream: started, told what to hold and how to fail, and
//! asked what it saw. Its README lists every call.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::http::{Answer, Connection};
use crate::process::{Process, built, command};

pub struct Origin {
    process: Process,
    url: String,
    registry: SocketAddr,
    cdn: SocketAddr,
    token: SocketAddr,
    control: SocketAddr,
}

/// Something the origin holds.
#[derive(Debug, Clone)]
pub struct Held {
    pub digest: String,
    pub size: u64,
}

impl Held {
    fn of(value: &Value) -> Held {
        let digest = value["digest"].as_str().expect("a digest").to_owned();
        let size = value["size"].as_u64().expect("a size");
        Held { digest, size }
    }
}

/// An image the origin holds: its index or only manifest, and everything below.
#[derive(Debug, Clone)]
pub struct HeldImage {
    pub digest: String,
    pub media_type: String,
    pub manifests: Vec<HeldManifest>,
}

#[derive(Debug, Clone)]
pub struct HeldManifest {
    pub itself: Held,
    pub media_type: String,
    pub config: Held,
    pub layers: Vec<Held>,
}

impl HeldImage {
    fn of(value: &Value) -> HeldImage {
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let manifests = value["manifests"].as_array().expect("manifests").iter();
        let manifests = manifests.map(|manifest| HeldManifest {
            itself: Held::of(manifest),
            media_type: text(&manifest["media_type"]),
            config: Held::of(&manifest["config"]),
            layers: manifest["layers"]
                .as_array()
                .expect("layers")
                .iter()
                .map(Held::of)
                .collect(),
        });
        HeldImage {
            digest: text(&value["digest"]),
            media_type: text(&value["media_type"]),
            manifests: manifests.collect(),
        }
    }
}

impl Origin {
    pub fn start() -> Origin {
        Origin::start_with(&[])
    }

    pub fn start_with(args: &[&str]) -> Origin {
        let program = built("entrepot-origin", "ENTREPOT_ORIGIN_BIN", "entrepot-tools");
        let mut command = command(program);
        command.args(args);
        let process = Process::start("entrepot-origin", command);
        let url = |name: &str| {
            let prefix = format!("{name} ");
            let find = |line: &str| line.strip_prefix(&prefix).map(str::to_owned);
            process.stdout.wait(&format!("{name} <url>"), find)
        };
        let registry_url = url("listening");
        let (cdn, token, control) = (url("cdn"), url("token"), url("control"));
        process
            .stdout
            .wait("ready", |line| (line == "ready").then_some(()));
        Origin {
            registry: addr(&registry_url),
            url: registry_url,
            cdn: addr(&cdn),
            token: addr(&token),
            control: addr(&control),
            process,
        }
    }

    /// `http://` or `https://` and the address, without a path.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn addr(&self) -> SocketAddr {
        self.registry
    }

    pub fn cdn(&self) -> SocketAddr {
        self.cdn
    }

    pub fn token(&self) -> SocketAddr {
        self.token
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    fn control(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut connection = Connection::open(self.control);
        connection.write(
            format!(
                "{method} {path} HTTP/1.1\r\nHost: control\r\nConnection: close\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .as_bytes(),
        );
        let answer = connection.answer(method);
        answer.unwrap_or_else(|broken| panic!("origin {method} {path}: {broken:?}"))
    }

    /// One control call; anything but 200 is a mistake of the test.
    #[track_caller]
    pub fn call(&self, name: &str, body: Value) -> Value {
        let path = format!("/_origin/{name}");
        let answer = self.control("POST", &path, &body.to_string());
        assert_eq!(answer.status(), 200, "{path} {body}: {}", answer.text());
        serde_json::from_slice(&answer.body).expect("JSON of the origin")
    }

    #[track_caller]
    pub fn ask(&self, path: &str) -> Value {
        let answer = self
            .control("GET", &format!("/_origin/{path}"), "")
            .expect(200);
        serde_json::from_slice(&answer.body).expect("JSON of the origin")
    }

    /// Random bytes of an exact length in the given repositories.
    pub fn blob(&self, repositories: &[&str], size: u64, seed: u64) -> Held {
        let body = json!({"repositories": repositories, "size": size, "seed": seed});
        Held::of(&self.call("blobs", body))
    }

    pub fn text_blob(&self, repositories: &[&str], text: &str) -> Held {
        let body = json!({"repositories": repositories, "text": text});
        Held::of(&self.call("blobs", body))
    }

    /// A one-platform OCI image with two small layers.
    pub fn image(&self, repository: &str, tag: &str, seed: u64) -> HeldImage {
        self.image_of(
            json!({"repository": repository, "tags": [tag], "seed": seed,
            "platforms": ["linux/amd64"], "index": false}),
        )
    }

    pub fn image_of(&self, spec: Value) -> HeldImage {
        HeldImage::of(&self.call("images", spec))
    }

    pub fn manifest(&self, repository: &str, media_type: &str, text: &str, tags: &[&str]) -> Held {
        let body = json!({"repository": repository, "media_type": media_type, "text": text,
            "tags": tags});
        Held::of(&self.call("manifests", body))
    }

    pub fn tag(&self, repository: &str, tag: &str, digest: &str) {
        self.call(
            "tags",
            json!({"repository": repository, "tag": tag, "digest": digest}),
        );
    }

    /// A fault for every matching request until it is cleared.
    pub fn fault(&self, matching: Value, then: Value) -> String {
        let body = json!({"match": matching, "then": then});
        self.call("faults", body)["id"]
            .as_str()
            .expect("an id")
            .to_owned()
    }

    /// A fault for the first `times` matching requests.
    pub fn fault_times(&self, times: u64, matching: Value, then: Value) -> String {
        let body = json!({"match": matching, "times": times, "then": then});
        self.call("faults", body)["id"]
            .as_str()
            .expect("an id")
            .to_owned()
    }

    pub fn release(&self) {
        self.call("release", json!({}));
    }

    pub fn clear_faults(&self) {
        self.call("faults/clear", json!({}));
    }

    /// Refuses connections from now on and closes those that are open.
    pub fn go_down(&self) {
        self.call("stop-listening", json!({}));
    }

    pub fn come_back(&self) {
        self.call("resume-listening", json!({}));
    }

    pub fn clear_log(&self) {
        self.call("log/clear", json!({}));
    }

    /// Logged requests that agree with filters like `kind=blob&method=GET`.
    pub fn log(&self, filters: &str) -> Vec<Value> {
        let log = self.ask(&format!("log?{filters}"));
        log.as_array().expect("a list of requests").clone()
    }

    pub fn count(&self, filters: &str) -> usize {
        self.log(filters).len()
    }

    /// Waits until `count` logged requests agree with `filters`.
    #[track_caller]
    pub fn wait(&self, filters: Value, count: u64) {
        let body = json!({"requests": filters, "count": count, "timeout_ms": 50_000});
        self.call("wait", body);
    }
}

fn addr(url: &str) -> SocketAddr {
    let (_, addr) = url.split_once("://").expect("a URL");
    addr.parse().expect("an address and a port")
}
