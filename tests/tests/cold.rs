//! Ranges of what is not held, and what upstream is made to send for them.

use std::sync::Barrier;

use serde_json::{Value, json};

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::Entrepot;
use entrepot_tests::http::{Connection, fetch};
use entrepot_tests::origin::{Held, Origin};
use entrepot_tests::ranges::{asked_with_range, bytes_of, check_parts, ruled, sent, target};
use entrepot_tests::sha256::digest;

const MIB: u64 = 1 << 20;

/// What the kernel holds of a connection whose client reads no more: 4 MiB on our side and 6 on
/// the client's by default, and as much between upstream and us.
const KERNEL_BUFFERS: u64 = 20 * MIB;

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
fn ranges_that_amount_to_the_whole_are_verified_as_the_whole() {
    for rule in ["pass", "fill"] {
        let origin = Origin::start();
        let server = ruled(rule, &[origin.url()]);
        let blob = origin.blob(&["library/app"], 5_000_000, 1);
        let matching = json!({"kind": "blob", "method": "GET"});
        origin.fault(matching, json!({"flip_at": 100}));
        // A 200 says that this is the body of the digest.
        let fields = [("Range", "bytes=0-,0-")];
        let answer = fetch(server.addr(), "GET", &target(&blob), &fields);
        let completed =
            answer.is_ok_and(|answer| answer.status() == 200 && answer.broken.is_none());
        assert!(!completed, "{rule}");
    }
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
fn a_range_that_breaks_is_gone_on_with_where_it_broke() {
    let origin = Origin::start();
    let blob = origin.blob(&["library/app"], 4 * MIB, 1);
    let whole = bytes_of(&origin, &blob);
    let ranged = || json!({"kind": "blob", "range": true});
    let fields = [("Range", "bytes=1000000-1199999")];
    for fault in [
        json!({"truncate_at": "50%"}),
        json!({"chunked": true, "truncate_at": "50%"}),
    ] {
        let server = ruled("pass", &[origin.url()]);
        origin.fault_times(1, ranged(), fault.clone());
        let part = server.get_with(&target(&blob), &fields).expect(206);
        assert!(part.body == whole[1_000_000..1_200_000], "{fault}");
        let asked = (asked_with_range(&origin), sent(&origin));
        assert_eq!(asked, (2, (200_000, 0)), "{fault}");
        origin.clear_log();
    }

    // But not for ever.
    let server = ruled("pass", &[origin.url()]);
    origin.fault(ranged(), json!({"truncate_at": "50%"}));
    server.get_with(&target(&blob), &fields).expect(502);
    assert_eq!(asked_with_range(&origin), 4);
}

#[test]
fn what_is_gone_on_with_is_of_the_same_body() {
    let origin = Origin::start();
    let server = ruled("pass", &[origin.url()]);
    let blob = origin.blob(&["library/app"], 4 * MIB, 1);
    let ranged = || json!({"kind": "blob", "range": true});
    origin.fault_times(1, ranged(), json!({"truncate_at": "50%"}));
    let other = json!({"drop_headers": ["ETag"], "set_headers": {"ETag": "\"another\""}});
    origin.fault(ranged(), other);
    let fields = [("Range", "bytes=1000000-1199999")];
    server.get_with(&target(&blob), &fields).expect(502);
    assert_eq!(asked_with_range(&origin), 2);
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

/// Ranges of `len` bytes, each `gap` after the one before, as a field and as bytes.
fn even(count: u64, len: u64, gap: u64) -> (String, Vec<(u64, u64)>) {
    let first = |nth| nth * (len + gap);
    let asked: Vec<(u64, u64)> = (0..count)
        .map(|nth| (first(nth), first(nth) + len - 1))
        .collect();
    let members: Vec<String> = asked
        .iter()
        .map(|(first, last)| format!("{first}-{last}"))
        .collect();
    (format!("bytes={}", members.join(",")), asked)
}

#[test]
fn ranges_near_one_another_are_asked_for_together() {
    let origin = Origin::start();
    let server = ruled("pass", &[origin.url()]);
    let blob = origin.blob(&["library/app"], 64 * MIB, 1);
    let whole = bytes_of(&origin, &blob);
    // How many, how long, how far apart; requests that upstream may see.
    for (count, len, gap, requests_max) in [
        (1000, 100, 100, 2),
        // The parts of a span grow with what was sent, up to 1 MiB.
        (1024, 4_096, 4_096, 20),
        (1024, 20_000, 15_000, 50),
        (64, 10, 500_000, 64),
    ] {
        origin.clear_log();
        let (range, asked) = even(count, len, gap);
        check_parts(&server, &blob, &whole, &range, &asked);
        let (ranged, by_fills) = sent(&origin);
        let requests = asked_with_range(&origin);
        println!("{count} ranges of {len}: {requests} requests, {ranged} bytes");
        assert!(requests <= requests_max, "{count} x {len}: {requests}");
        let wanted = count * len;
        assert!(ranged <= 2 * wanted + MIB / 2, "{ranged} for {wanted}");
        assert_eq!(by_fills, 0);
    }
}

#[test]
fn ranges_in_too_many_places_are_served_from_the_whole() {
    let origin = Origin::start();
    for rule in ["fill", "pass"] {
        let server = ruled(rule, &[origin.url()]);
        let blob = origin.blob(&["library/app"], 70 * MIB, 1);
        let whole = bytes_of(&origin, &blob);
        let (range, asked) = even(65, 10, MIB);
        check_parts(&server, &blob, &whole, &range, &asked);
        until_true("the fill has ended", || {
            server.metric("entrepot_fills_total", &["verified"]) == 1.0
        });
        let (requests, (ranged, by_fills)) = (asked_with_range(&origin), sent(&origin));
        println!("{rule}: {requests} requests for {ranged} bytes");
        assert!(requests <= 1 && ranged <= MIB / 4, "{requests}, {ranged}");
        assert_eq!(by_fills, 70 * MIB, "{rule}");
    }
}

/// Reads that many bytes of an answer.
fn take(connection: &mut Connection, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        bytes.extend(connection.read_some().expect("bytes"));
    }
    bytes
}

#[test]
fn the_next_parts_of_a_passed_range_are_asked_for_ahead() {
    // Of 256 KiB each: one that is taken, one that is waited for and one ahead of it.
    const ASKED: u64 = 3;
    const FIRST: usize = 256 << 10;
    let origin = Origin::start();
    // What is asked for one that left may come late, so the other has a layer of its own.
    let layer = |seed| {
        let blob = origin.blob(&["library/app"], 64 * MIB, seed);
        (bytes_of(&origin, &blob), blob)
    };
    let [(first, left), (whole, stayed)] = [layer(1), layer(2)];
    let hold = |blob: &Held| {
        let matching = json!({"kind": "blob", "range": true, "contains": blob.digest});
        let body = json!({"match": matching, "skip": 1, "then": {"hang": true}});
        origin.call("faults", body);
    };
    let gets = |blob: &Held| format!("kind=blob&method=GET&contains={}", blob.digest);
    let waits = |blob: &Held| {
        let filters = json!({"kind": "blob", "method": "GET", "contains": blob.digest});
        origin.wait(filters, ASKED);
        assert_eq!(origin.count(&gets(blob)) as u64, ASKED);
    };
    let server = ruled("pass", &[origin.url()]);
    let open = |blob: &Held| {
        let mut connection = Connection::open(server.addr());
        connection.request("GET", &target(blob), &[("Range", "bytes=1000-")]);
        assert_eq!(connection.read_head().expect("a head").status, 206);
        connection
    };

    // One that leaves costs little more than that.
    hold(&left);
    let mut leaves = open(&left);
    assert!(take(&mut leaves, FIRST) == first[1000..1000 + FIRST]);
    waits(&left);
    drop(leaves);
    origin.clear_faults();
    until_true("the connection is gone", || {
        server.metric("entrepot_connections", &[]) == 0.0
    });
    let (ranged, by_fills) = sent(&origin);
    assert!(ranged <= 2 * MIB && by_fills == 0, "{ranged}, {by_fills}");

    // One that stays gets every byte once.
    hold(&stayed);
    let mut stays = open(&stayed);
    assert!(take(&mut stays, FIRST) == whole[1000..1000 + FIRST]);
    waits(&stayed);
    origin.clear_faults();
    let rest = take(&mut stays, whole.len() - 1000 - FIRST);
    assert!(rest == whole[1000 + FIRST..]);
    let bytes = |request: &Value| request["bytes"].as_u64().expect("a count");
    let ranged: u64 = origin.log(&gets(&stayed)).iter().map(bytes).sum();
    assert_eq!(ranged, stayed.size - 1000, "each byte once");
}
