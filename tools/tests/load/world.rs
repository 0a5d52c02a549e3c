//! The synthetic registry as a program, its control calls, and runs of the load tool.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

pub const ORIGIN: &str = env!("CARGO_BIN_EXE_entrepot-origin");
pub const LOAD: &str = env!("CARGO_BIN_EXE_entrepot-load");

/// Ends when dropped: its stdin closes.
pub struct Origin {
    child: Child,
    urls: BTreeMap<String, String>,
}

impl Origin {
    pub fn start(arguments: &[&str]) -> Origin {
        let mut child = Command::new(ORIGIN)
            .arg("--until-stdin-closes")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut urls = BTreeMap::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            match line.unwrap().split_once(' ') {
                Some((name, url)) => urls.insert(name.to_owned(), url.to_owned()),
                None => break,
            };
        }
        Origin { child, urls }
    }

    /// Of what it said at its start.
    pub fn names(&self) -> Vec<&str> {
        self.urls.keys().map(String::as_str).collect()
    }

    pub fn url(&self) -> &str {
        &self.urls["listening"]
    }

    pub fn control_url(&self) -> &str {
        &self.urls["control"]
    }

    pub fn call(&self, name: &str, body: &Value) -> Value {
        self.ask("POST", name, &body.to_string())
    }

    pub fn read(&self, name: &str) -> Value {
        self.ask("GET", name, "")
    }

    fn ask(&self, method: &str, name: &str, body: &str) -> Value {
        let address = self.control_url().strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        let len = body.len();
        let head = format!("{method} /_origin/{name} HTTP/1.1\r\nConnection: close\r\n");
        write!(stream, "{head}Content-Length: {len}\r\n\r\n{body}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    }

    /// Its stdin closes, and it ends as it should.
    pub fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }

    /// The URL of a new blob.
    pub fn blob(&self, size: u64) -> String {
        let made = self.call("blobs", &json!({"repositories": ["a/b"], "size": size}));
        let digest = made["digest"].as_str().unwrap();
        format!("{}/v2/a/b/blobs/{digest}", self.url())
    }

    pub fn fault(&self, rule: &Value) {
        self.call("faults", rule);
    }

    /// How many requests were like this.
    pub fn count(&self, filter: &str) -> usize {
        let log = self.read(&format!("log?{filter}"));
        log.as_array().unwrap().len()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// What a run said.
pub struct Ran {
    pub success: bool,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn report(&self) -> Value {
        let told = || panic!("no report: {}{}", self.stdout, self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| told())
    }

    /// The classes that were counted.
    pub fn errors(&self) -> Value {
        let mut errors = self.report()["errors"].clone();
        let classes = errors.as_object_mut().unwrap();
        classes.retain(|_, count| *count != 0);
        errors
    }
}

pub fn load(arguments: &[&str]) -> Ran {
    let output = Command::new(LOAD).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran {
        success: output.status.success(),
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}
