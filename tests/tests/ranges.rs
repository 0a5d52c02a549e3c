//! Ranges of what is held and of what is being filled.

use serde_json::json;

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::Entrepot;
use entrepot_tests::http::Connection;
use entrepot_tests::origin::Origin;
use entrepot_tests::ranges::{asked_with_range, bytes_of, check_parts, target};

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
