//! Ranges, of what is held, of what is being filled and of what is neither; and what upstream is
//! made to send for them.

use std::sync::Barrier;

use serde_json::json;

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{Answer, Connection};
use entrepot_tests::origin::{Held, Origin};
use entrepot_tests::sha256::digest;

const MIB: u64 = 1 << 20;

/// What the kernel holds of a connection whose client reads no more: 4 MiB on our side and 6 on
/// the client's by default, and as much between upstream and us.
const KERNEL_BUFFERS: u64 = 20 * MIB;

fn target(blob: &Held) -> String {
    format!("/v2/dh/library/app/blobs/{}", blob.digest)
}

/// One default project with this rule for ranges of what is not held.
fn ruled(rule: &str, upstreams: &[&str]) -> Entrepot {
    let keys = format!("default = true\ncold_ranges = \"{rule}\"");
    Setup::new(&Config::new().project("dh", &keys, upstreams)).start()
}

/// Its bytes, from a second server, so that nobody has asked the first one.
fn bytes_of(origin: &Origin, blob: &Held) -> Vec<u8> {
    let other = Entrepot::before(origin.url());
    let whole = other.get(&target(blob)).expect(200).body;
    assert_eq!(digest(&whole), blob.digest);
    origin.clear_log();
    whole
}

/// Body bytes of all logged GETs of blobs, those with a range and those without.
fn sent(origin: &Origin) -> (u64, u64) {
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

fn asked_with_range(origin: &Origin) -> usize {
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
fn check_parts(server: &Entrepot, blob: &Held, whole: &[u8], range: &str, asked: &[(u64, u64)]) {
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

#[test]
fn several_ranges_of_a_held_blob_are_sent_as_parts() {
    let origin = Origin::start();
    let server = Entrepot::before(origin.url());
    // One that is held in memory, and one that goes by sendfile.
    for (size, via) in [(60_000, "memory"), (3_000_000, "sendfile")] {
        let blob = origin.blob(&["library/app"], size, size);
        let whole = server.get(&target(&blob)).expect(200).body;
        server.wait_committed();
        let last = size - 1;
        let cases: [(String, Vec<(u64, u64)>); 3] = [
            ("bytes=0-0,100-199".to_owned(), vec![(0, 0), (100, 199)]),
            // As they were asked: podman counts them.
            (
                "bytes=50000-,10-19,20-29".to_owned(),
                vec![(50_000, last), (10, 19), (20, 29)],
            ),
            (
                format!("bytes=-5,{size}-,0-4"),
                vec![(last - 4, last), (0, 4)],
            ),
        ];
        for (range, asked) in cases {
            let before = server.metric("entrepot_served_bytes_total", &[via]);
            check_parts(&server, &blob, &whole, &range, &asked);
            let wanted: u64 = asked.iter().map(|(first, last)| last + 1 - first).sum();
            // Nothing but the heads of the parts is copied.
            until_true("all bytes are counted", || {
                let after = server.metric("entrepot_served_bytes_total", &[via]);
                (after - before) as u64 == wanted
            });
        }
        let whole_for = |range: &str| server.get_with(&target(&blob), &[("Range", range)]);
        let one = whole_for(&format!("bytes=0-9,{size}-")).expect(206);
        let expected = format!("bytes 0-9/{size}");
        assert_eq!(one.field("content-range"), Some(expected.as_str()));
        assert!(one.body == whole[..10]);
        let none = whole_for(&format!("bytes={size}-,-0")).expect(416);
        let expected = format!("bytes */{size}");
        assert_eq!(none.field("content-range"), Some(expected.as_str()));
        // More than everything, and more than anybody asks for.
        let many = vec!["0-0"; 1025].join(",");
        for range in ["bytes=0-,0-", &format!("bytes={many}")] {
            assert!(whole_for(range).expect(200).body == whole);
        }
        let etag = format!("\"{}\"", blob.digest);
        for (condition, status) in [(etag.as_str(), 206), ("\"other\"", 200)] {
            let fields = [("Range", "bytes=0-0,5-5"), ("If-Range", condition)];
            server.get_with(&target(&blob), &fields).expect(status);
        }
    }
}

#[test]
fn as_many_ranges_as_podman_sends_are_answered() {
    let origin = Origin::start();
    let server = Entrepot::before(origin.url());
    let blob = origin.blob(&["library/app"], 30_000_000, 1);
    let whole = server.get(&target(&blob)).expect(200).body;
    let asked: Vec<(u64, u64)> = (0..1024_u64)
        .map(|nth| (29_000 * nth, 29_000 * nth + 12_345))
        .collect();
    let members: Vec<String> = asked
        .iter()
        .map(|(first, last)| format!("{first}-{last}"))
        .collect();
    let range = format!("bytes={}", members.join(","));
    check_parts(&server, &blob, &whole, &range, &asked);
}

#[test]
fn several_ranges_of_a_running_fill_are_sent_as_it_gets_there() {
    let origin = Origin::start();
    let server = Entrepot::before(origin.url());
    let blob = origin.blob(&["library/app"], 20_000_000, 1);
    let whole = bytes_of(&origin, &blob);
    origin.fault(
        json!({"kind": "blob", "range": false}),
        json!({"halt_at": 8_000_000}),
    );
    let mut first = Connection::open(server.addr());
    first.request("GET", &target(&blob), &[]);
    origin.wait(json!({"kind": "blob", "state": "halted"}), 1);
    std::thread::scope(|scope| {
        let (server, blob, whole) = (&server, &blob, &whole);
        let asked = [
            (5_000_000, 5_000_099),
            (1_000, 1_099),
            (8_100_000, 8_100_099),
        ];
        let range = "bytes=5000000-5000099,1000-1099,8100000-8100099";
        let client = scope.spawn(move || check_parts(server, blob, whole, range, &asked));
        until_true("both follow", || {
            server.metric("entrepot_followers", &[]) == 2.0
        });
        origin.release();
        client.join().expect("the right parts");
    });
    assert!(first.answer("GET").expect("an answer").expect(200).body == whole);
    assert_eq!(asked_with_range(&origin), 0, "the fill was near enough");
}

#[test]
fn a_range_far_from_the_fill_is_answered_at_once() {
    let origin = Origin::start();
    let server = Entrepot::before(origin.url());
    let blob = origin.blob(&["library/app"], 64 * MIB, 1);
    let whole = bytes_of(&origin, &blob);
    origin.fault(
        json!({"kind": "blob", "range": false}),
        json!({"halt_at": MIB}),
    );
    // Nobody lets the fill go on before these are answered.
    let fields = [("Range", "bytes=40000000-40000099")];
    let part = server.get_with(&target(&blob), &fields).expect(206);
    assert_eq!(
        part.field("content-range"),
        Some("bytes 40000000-40000099/67108864")
    );
    assert!(part.body == whole[40_000_000..40_000_100]);
    let footer = server
        .get_with(&target(&blob), &[("Range", "bytes=-51")])
        .expect(206);
    assert!(footer.body == whole[whole.len() - 51..]);
    let asked = [(30_000_000, 30_000_009), (20_000_000, 20_000_009)];
    let range = "bytes=30000000-30000009,20000000-20000009";
    check_parts(&server, &blob, &whole, range, &asked);
    assert_eq!(sent(&origin).0, 100 + 51 + 20);
    origin.release();
    let whole_again = server.get(&target(&blob)).expect(200);
    assert!(whole_again.body == whole);
    assert_eq!(
        sent(&origin),
        (171, 64 * MIB),
        "one fill and what was asked"
    );
}

#[test]
fn passed_ranges_cost_upstream_what_was_asked() {
    let origin = Origin::start();
    let server = ruled("pass", &[origin.url()]);
    let blob = origin.blob(&["library/app"], 64 * MIB, 1);
    let whole = bytes_of(&origin, &blob);
    let len = blob.size as usize;
    let cases = [
        ("bytes=0-99", 0..100),
        ("bytes=40000000-42999999", 40_000_000..43_000_000),
        ("bytes=-1000", len - 1000..len),
        ("bytes=67108000-99999999", 67_108_000..len),
    ];
    let mut asked = 0;
    for (range, expected) in cases {
        let part = server.get_with(&target(&blob), &[("Range", range)]);
        assert!(part.expect(206).body == whole[expected.clone()], "{range}");
        asked += expected.len() as u64;
        assert_eq!(sent(&origin), (asked, 0), "{range}");
    }
    let range = "bytes=9-9,1000000-1000009";
    check_parts(
        &server,
        &blob,
        &whole,
        range,
        &[(9, 9), (1_000_000, 1_000_009)],
    );
    assert_eq!(sent(&origin), (asked + 11, 0));
    let beyond = [("Range", "bytes=67108864-")];
    let beyond = server.get_with(&target(&blob), &beyond).expect(416);
    assert_eq!(beyond.field("content-range"), Some("bytes */67108864"));
    let absent = format!("sha256:{}", "0".repeat(64));
    let absent = format!("/v2/dh/library/app/blobs/{absent}");
    let missing = server.get_with(&absent, &[("Range", "bytes=0-9")]);
    missing.expect_error(404, "BLOB_UNKNOWN");
    assert_eq!(server.metric("entrepot_fills_total", &["verified"]), 0.0);
    // Who wants everything gets it, and it is held then.
    assert!(server.get(&target(&blob)).expect(200).body == whole);
    assert_eq!(server.metric("entrepot_fills_total", &["verified"]), 1.0);
}

/// containerd: `bytes=0-`, then an open-ended range for every part on parallel connections, each
/// of them closed when its part is there.
fn pull_like_containerd(server: &Entrepot, blob: &Held, part_len: u64) -> Vec<u8> {
    const CONNECTIONS: u64 = 4;
    let part = |nth: u64| {
        let start = nth * part_len;
        let mut connection = Connection::open(server.addr());
        let range = format!("bytes={start}-");
        connection.request("GET", &target(blob), &[("Range", &range)]);
        let head = connection.read_head().expect("a head");
        assert_eq!(head.status, 206, "{}", head.raw);
        let expected = format!("bytes {start}-{}/{}", blob.size - 1, blob.size);
        assert_eq!(head.field("content-range"), Some(expected.as_str()));
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < part_len.min(blob.size - start) {
            bytes.extend(connection.read_some().expect("bytes"));
        }
        bytes.truncate(part_len as usize);
        bytes
    };
    let parts = blob.size.div_ceil(part_len);
    let mut whole = Vec::new();
    for first in (0..parts).step_by(CONNECTIONS as usize) {
        std::thread::scope(|scope| {
            let last = parts.min(first + CONNECTIONS);
            let running: Vec<_> = (first..last)
                .map(|nth| scope.spawn(move || part(nth)))
                .collect();
            for part in running {
                whole.extend(part.join().expect("a part"));
            }
        });
    }
    whole
}

#[test]
fn containerds_parallel_pull_costs_upstream_little_more_than_the_layer() {
    for rule in ["fill", "pass"] {
        let origin = Origin::start();
        let server = ruled(rule, &[origin.url()]);
        let blob = origin.blob(&["library/app"], 64 * MIB + 12_345, 1);
        let pulled = pull_like_containerd(&server, &blob, 8 * MIB);
        assert_eq!(digest(&pulled), blob.digest, "{rule}");
        until_true("nothing is asked of upstream any more", || {
            server.metric("entrepot_connections", &[]) == 0.0
                && server.metric("entrepot_fills_running", &[]) == 0.0
        });
        let (ranged, whole) = sent(&origin);
        println!("{rule}: {ranged} bytes in ranges, {whole} by fills");
        let fills = origin.log("kind=blob&method=GET").len() - asked_with_range(&origin);
        match rule {
            // One fill; until it is known to be fast a connection may get ahead of it.
            "fill" => assert!(fills == 1 && ranged <= blob.size, "{ranged} {fills}"),
            _ => assert!(fills == 0 && ranged <= 4 * blob.size, "{ranged} {fills}"),
        }
    }
}

#[test]
fn an_open_ended_range_that_is_closed_early_is_not_read_to_its_end() {
    let origin = Origin::start();
    let server = ruled("pass", &[origin.url()]);
    let blob = origin.blob(&["library/app"], 1 << 30, 1);
    let mut connection = Connection::open(server.addr());
    connection.request("GET", &target(&blob), &[("Range", "bytes=1000000-")]);
    let head = connection.read_head().expect("a head");
    assert_eq!(head.status, 206, "{}", head.raw);
    connection.read_some().expect("the first bytes");
    drop(connection);
    until_true("the connection is gone", || {
        server.metric("entrepot_connections", &[]) == 0.0
    });
    let (ranged, whole) = sent(&origin);
    println!("{ranged} bytes for the first few");
    assert!(whole == 0 && ranged <= KERNEL_BUFFERS, "{ranged}, {whole}");
}

#[test]
fn the_same_missing_range_is_asked_once_for_all() {
    const CLIENTS: usize = 16;
    let origin = Origin::start();
    let server = ruled("pass", &[origin.url()]);
    let blob = origin.blob(&["library/app"], 64 * MIB, 1);
    let whole = bytes_of(&origin, &blob);
    origin.fault_times(
        1,
        json!({"kind": "blob", "range": true}),
        json!({"hang": true}),
    );
    let before = server.metric("entrepot_messages_total", &[]);
    let together = Barrier::new(CLIENTS);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                together.wait();
                let fields = [("Range", "bytes=5000000-5000999")];
                let part = server.get_with(&target(&blob), &fields).expect(206);
                assert!(part.body == whole[5_000_000..5_001_000]);
            });
        }
        // Each asks the owner for a fill to join and then for the part.
        until_true("all have asked", || {
            let asked = server.metric("entrepot_messages_total", &[]) - before;
            asked >= (2 * CLIENTS) as f64
        });
        origin.release();
    });
    assert_eq!((asked_with_range(&origin), sent(&origin).1), (1, 0));
}

#[test]
fn an_upstream_that_answers_another_range_is_passed_over() {
    let (lying, good) = (Origin::start(), Origin::start());
    for origin in [&lying, &good] {
        origin.blob(&["library/app"], 2 * MIB, 1);
    }
    let blob = good.blob(&["library/app"], 2 * MIB, 1);
    let whole = bytes_of(&good, &blob);
    lying.fault(
        json!({"kind": "blob", "range": true}),
        json!({"drop_headers": ["Content-Range"],
            "set_headers": {"Content-Range": "bytes 7-16/2097152"}}),
    );
    let fields = [("Range", "bytes=1000-1009")];
    let alone = ruled("pass", &[lying.url()]);
    let refused = alone.get_with(&target(&blob), &fields);
    assert_eq!(refused.status(), 502, "{}", refused.head.raw);
    let server = ruled("pass", &[lying.url(), good.url()]);
    let part = server.get_with(&target(&blob), &fields).expect(206);
    assert!(part.body == whole[1_000..1_010]);
    assert_eq!(asked_with_range(&lying), 2);
}

#[test]
fn an_upstream_without_ranges_is_asked_for_the_whole_once() {
    let origin = Origin::start();
    let server = ruled("pass", &[origin.url()]);
    let blob = origin.blob(&["library/app"], 4 * MIB, 1);
    let whole = bytes_of(&origin, &blob);
    origin.fault(
        json!({"kind": "blob", "range": true}),
        json!({"status": 200, "body": "everything"}),
    );
    for _ in 0..2 {
        let fields = [("Range", "bytes=1000000-1000009")];
        let part = server.get_with(&target(&blob), &fields).expect(206);
        assert!(part.body == whole[1_000_000..1_000_010]);
        server.wait_committed();
    }
    assert_eq!((asked_with_range(&origin), sent(&origin).1), (1, 4 * MIB));
}
