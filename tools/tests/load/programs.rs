//! The two programs as others start them: lines on stdout, exit codes, the same bytes again.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Command;

use super::world::{LOAD, ORIGIN, Origin, load};

const IMAGE: &str = "lib/app:1.0,layers=1,size=100K,platforms=linux/amd64+linux/arm64";

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
    assert_eq!(first.names(), ["cdn", "control", "listening", "token"]);
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
    let good = ["--url", &url, "-c", "2", "-n", "5", "--verify", "--json"];
    let good = load(&[&["blob"], &good[..]].concat());
    let report = good.report();
    assert!(good.success, "{report}");
    assert_eq!(
        (&report["requests"], &report["statuses"]["200"]),
        (&5.into(), &5.into())
    );
    let missing = load(&["blob", "--url", &format!("{url}0"), "-n", "1"]);
    assert_eq!(missing.code, Some(1));
    assert!(missing.stdout.contains("status 1"), "{}", missing.stdout);
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
