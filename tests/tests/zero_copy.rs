//! A hit by digest goes from the store to the socket by sendfile, and no core asks another.

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::Entrepot;
use entrepot_tests::http::Connection;
use entrepot_tests::origin::Origin;
use entrepot_tests::sha256::Hash;

/// Longer than what is held in memory, and of several sendfile calls.
const BODY_LENS: [u64; 3] = [256 << 10, 1 << 20, 6_000_000];

/// Connections are spread over all cores by the kernel; this many reach every one.
const CONNECTIONS: usize = 32;
const HITS_PER_CONNECTION: usize = 4;

fn hit_all(server: &Entrepot, target: &str, digest: &str) -> u64 {
    let mut served = 0;
    for _ in 0..CONNECTIONS {
        let mut connection = Connection::open(server.addr());
        for _ in 0..HITS_PER_CONNECTION {
            connection.request("GET", target, &[]);
            let head = connection.read_head().expect("a head");
            assert_eq!(head.status, 200);
            let mut hash = Hash::default();
            let read = connection.read_body("GET", &head, &mut |bytes| hash.update(bytes));
            served += hash.len();
            assert_eq!((read, hash.digest().as_str()), (Ok(()), digest));
        }
    }
    served
}

/// The last body is counted after its client has it.
#[track_caller]
fn assert_all_sent(server: &Entrepot, via: &str, total: u64) {
    let sent = || server.metric("entrepot_served_bytes_total", &[via]) as u64;
    until_true("all of them are counted, by that way", || sent() >= total);
    assert_eq!(sent(), total);
}

#[test]
fn hits_by_digest_use_sendfile_and_send_no_message() {
    let origin = Origin::start();
    let server = Entrepot::before(origin.url());
    for len in BODY_LENS {
        let blob = origin.blob(&["library/hot"], len, len);
        let target = format!("/v2/dh/library/hot/blobs/{}", blob.digest);
        server.get(&target).expect(200);
        server.wait_committed();

        origin.clear_log();
        let messages = server.metric("entrepot_messages_total", &[]);
        let sent = server.metric("entrepot_served_bytes_total", &["sendfile"]);
        let served = hit_all(&server, &target, &blob.digest);
        let messages = server.metric("entrepot_messages_total", &[]) - messages;
        assert_all_sent(&server, "sendfile", sent as u64 + served);
        assert_eq!(messages, 0.0, "{len}: a hit sent a message to another core");
        assert_eq!(origin.count(""), 0, "{len}: a hit asked upstream");
    }
}

#[test]
fn small_hits_are_served_from_memory_and_send_no_message() {
    let origin = Origin::start();
    let image = origin.image("library/hot", "1", 1);
    let server = Entrepot::before(origin.url());
    let blob = origin.blob(&["library/hot"], 4_096, 1);
    for (target, digest) in [
        (
            format!("/v2/dh/library/hot/blobs/{}", blob.digest),
            &blob.digest,
        ),
        (
            format!("/v2/dh/library/hot/manifests/{}", image.digest),
            &image.digest,
        ),
    ] {
        server.get(&target).expect(200);
        server.wait_committed();
        origin.clear_log();
        let messages = server.metric("entrepot_messages_total", &[]);
        let memory = server.metric("entrepot_served_bytes_total", &["memory"]);
        let served = hit_all(&server, &target, digest);
        let messages = server.metric("entrepot_messages_total", &[]) - messages;
        assert_all_sent(&server, "memory", memory as u64 + served);
        assert_eq!(
            messages, 0.0,
            "{target}: a hit sent a message to another core"
        );
        assert_eq!(origin.count(""), 0);
    }
}
