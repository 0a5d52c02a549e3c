//! The two programs as others start them: lines on stdout, exit codes, the same bytes again.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};

const ORIGIN: &str = env!("CARGO_BIN_EXE_entrepot-origin");
const LOAD: &str = env!("CARGO_BIN_EXE_entrepot-load");
const IMAGE: &str = "lib/app:1.0,layers=1,size=100K,platforms=linux/amd64+linux/arm64";

struct Origin {
    child: Child,
    urls: BTreeMap<String, String>,
}

impl Origin {
    fn start(arguments: &[&str]) -> Origin {
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

    fn url(&self) -> &str {
        &self.urls["listening"]
    }

    /// Its stdin closes, and it ends.
    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

fn load(arguments: &[&str]) -> Output {
    Command::new(LOAD)
        .arg("blob")
        .args(arguments)
        .output()
        .unwrap()
}

/// The digest that the image's tag has.
fn tag_digest(origin: &Origin) -> String {
    let address = origin.url().strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let ask = "HEAD /v2/lib/app/manifests/1.0 HTTP/1.1\r\nConnection: close\r\n\r\n";
    stream.write_all(ask.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines().map(|line| line.unwrap());
    let named = |line: String| {
        line.strip_prefix("Docker-Content-Digest: ")
            .map(str::to_owned)
    };
    lines.find_map(named).expect("a digest")
}

#[test]
fn an_origin_comes_back_on_its_port_with_the_same_bytes() {
    let first = Origin::start(&["--seed", "7", "--image", IMAGE]);
    let names: Vec<&str> = first.urls.keys().map(String::as_str).collect();
    assert_eq!(names, ["cdn", "control", "listening", "token"]);
    let address = first.url().strip_prefix("http://").unwrap().to_owned();
    let digest = tag_digest(&first);
    first.end();
    let again = Origin::start(&["--seed", "7", "--image", IMAGE, "--listen", &address]);
    assert_eq!(again.url(), format!("http://{address}"));
    assert_eq!(tag_digest(&again), digest);
    again.end();
    let other = Origin::start(&["--seed", "8", "--image", IMAGE]);
    assert_ne!(tag_digest(&other), digest);
    other.end();
}

#[test]
fn load_verifies_and_says_so() {
    let origin = Origin::start(&["--image", IMAGE]);
    let url = format!(
        "{}/v2/lib/app/manifests/{}",
        origin.url(),
        tag_digest(&origin)
    );
    let good = load(&["--url", &url, "-c", "2", "-n", "5", "--verify", "--json"]);
    let text = String::from_utf8(good.stdout).unwrap();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(good.status.success(), "{text}");
    assert_eq!(
        (&report["requests"], &report["statuses"]["200"]),
        (&5.into(), &5.into())
    );
    let missing = load(&["--url", &format!("{url}0"), "-n", "1"]);
    assert_eq!(missing.status.code(), Some(1));
    let text = String::from_utf8(missing.stdout).unwrap();
    assert!(text.contains("status 1"), "{text}");
    origin.end();
}

#[test]
fn wrong_use_is_an_error() {
    let refused = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused(ORIGIN, &["--image", "no-tag"]).contains("REPO:TAG"));
    assert!(refused(ORIGIN, &["--setup", "/nowhere"]).contains("/nowhere"));
    assert!(refused(LOAD, &["blob", "--url", "ftp://x/"]).contains("http://"));
    let verify = ["blob", "--url", "http://127.0.0.1:1/x", "--verify"];
    assert!(refused(LOAD, &verify).contains("--digest"));
}
