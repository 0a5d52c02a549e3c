//! Ranges of one layer of `library/app`: who is asked for them, how they are read, and what
//! upstream sent for them.

use crate::entrepot::{Config, Entrepot, Setup};
use crate::http::Answer;
use crate::origin::{Held, Origin};
use crate::sha256::digest;

pub fn target(blob: &Held) -> String {
    format!("/v2/dh/library/app/blobs/{}", blob.digest)
}

/// One default project with this rule for ranges of what is not held.
pub fn ruled(rule: &str, upstreams: &[&str]) -> Entrepot {
    let keys = format!("default = true\ncold_ranges = \"{rule}\"");
    Setup::new(&Config::new().project("dh", &keys, upstreams)).start()
}

/// Its bytes, from a second server, so that nobody has asked the first one.
pub fn bytes_of(origin: &Origin, blob: &Held) -> Vec<u8> {
    let other = Entrepot::before(origin.url());
    let whole = other.get(&target(blob)).expect(200).body;
    assert_eq!(digest(&whole), blob.digest);
    origin.clear_log();
    whole
}

/// Body bytes of all logged GETs of blobs, those with a range and those without.
pub fn sent(origin: &Origin) -> (u64, u64) {
    let mut sums = (0, 0);
    for request in origin.log("kind=blob&method=GET") {
        let bytes = request["bytes"].as_u64().expect("a count");
        match request["fields"]["range"].is_array() {
            true => sums.0 += bytes,
            false => sums.1 += bytes,
        }
    }
    sums
}

pub fn asked_with_range(origin: &Origin) -> usize {
    let log = origin.log("kind=blob&method=GET");
    let ranged = log.iter();
    ranged
        .filter(|request| request["fields"]["range"].is_array())
        .count()
}

/// The parts of a multipart answer as a client reads them: Content-Range and bytes.
fn parts(answer: &Answer) -> Vec<(String, Vec<u8>)> {
    let media_type = answer.field("content-type").expect("a type");
    let boundary = media_type
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap_or_else(|| panic!("{media_type}"));
    assert_eq!(answer.field("content-range"), None);
    let delimiter = format!("--{boundary}");
    let mut parts = Vec::new();
    let mut rest = &answer.body[..];
    loop {
        rest = rest
            .strip_prefix(delimiter.as_bytes())
            .expect("a delimiter");
        if rest == b"--\r\n" {
            return parts;
        }
        let end = rest.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.expect("the end of a part's head");
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        let field = |name: &str| {
            let mut values = head.lines().filter_map(|line| line.strip_prefix(name));
            values.next().unwrap_or_else(|| panic!("{head}")).to_owned()
        };
        assert_eq!(field("Content-Type: "), "application/octet-stream");
        let range = field("Content-Range: ");
        let (first, last) = range
            .strip_prefix("bytes ")
            .and_then(|range| range.split_once('/')?.0.split_once('-'))
            .expect("first-last/length");
        let number = |text: &str| text.parse::<usize>().expect("a number");
        let len = number(last) + 1 - number(first);
        rest = &rest[end + 4..];
        parts.push((range, rest[..len].to_vec()));
        rest = rest[len..]
            .strip_prefix(b"\r\n")
            .expect("the end of a part");
    }
}

/// Asks for several ranges and compares every part with the body.
#[track_caller]
pub fn check_parts(
    server: &Entrepot,
    blob: &Held,
    whole: &[u8],
    range: &str,
    asked: &[(u64, u64)],
) {
    let answer = server
        .get_with(&target(blob), &[("Range", range)])
        .expect(206);
    let found = parts(&answer);
    assert_eq!(found.len(), asked.len(), "{range}");
    for ((content_range, bytes), (first, last)) in found.iter().zip(asked) {
        assert_eq!(
            *content_range,
            format!("bytes {first}-{last}/{}", blob.size)
        );
        assert!(*bytes == whole[*first as usize..=*last as usize], "{range}");
    }
}
