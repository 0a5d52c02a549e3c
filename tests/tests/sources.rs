//! Fills that change their source while clients wait: in another repository's name when the one
//! they began in is refused (R9), and at another upstream when the first sent wrong bytes.

use serde_json::{Value, json};

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{Connection, Head, ask_together, get_hashed};
use entrepot_tests::origin::{Held, Origin};
use entrepot_tests::sha256::{Hash, digest};

/// Streamed before it is verified, so its clients see how it ends.
const STREAMED_LEN: u64 = 8 << 20;
/// Bodies up to this long leave the server only once verified.
const WITHHELD_LEN: u64 = 1 << 20;
const CLIENTS: usize = 4;

/// A client whose body has begun.
struct Client {
    connection: Connection,
    head: Head,
}

impl Client {
    fn of(server: &Entrepot, name: &str, blob: &Held) -> Client {
        let mut connection = Connection::open(server.addr());
        let target = format!("/v2/{name}/blobs/{}", blob.digest);
        connection.request("GET", &target, &[]);
        let head = connection.read_head().expect("a head while the body comes");
        assert_eq!(head.status, 200, "{name}: {}", head.raw);
        Client { connection, head }
    }

    #[track_caller]
    fn expect_whole(mut self, blob: &Held) {
        let mut hash = Hash::default();
        let mut sink = |bytes: &[u8]| hash.update(bytes);
        let read = self.connection.read_body("GET", &self.head, &mut sink);
        assert_eq!((read, hash.digest()), (Ok(()), blob.digest.clone()));
    }

    fn expect_cut(mut self) {
        let read = self.connection.read_body("GET", &self.head, &mut |_| ());
        assert!(read.is_err(), "a complete 200");
    }
}

/// The first answer to this repository breaks when it is told to go on, and whoever asks for the
/// rest in its name is refused.
fn refuse_midway(origin: &Origin, repository: &str, refusal: u16) {
    let of = |range: bool| {
        json!({"kind": "blob", "method": "GET",
            "repository": repository, "range": range})
    };
    origin.fault(of(true), json!({"status": refusal}));
    origin.fault(of(false), json!({"halt_at": "50%", "truncate_at": "60%"}));
}

fn gets(origin: &Origin, repository: &str) -> Vec<Value> {
    origin.log(&format!("kind=blob&method=GET&repository={repository}"))
}

#[test]
fn a_refused_source_leaves_the_fill_to_the_next_proven_one() {
    for (nth, refusal) in [401, 403, 404].into_iter().enumerate() {
        let (first, second) = (Origin::start(), Origin::start());
        let blob = first.blob(&["team/one", "team/two"], STREAMED_LEN, nth as u64);
        second.blob(&["team/far"], STREAMED_LEN, nth as u64);
        // It is there, and without the layer.
        first.blob(&["team/none"], 10, 1);
        refuse_midway(&first, "team/one", refusal);
        let config =
            Config::new()
                .project("near", "", &[first.url()])
                .project("far", "", &[second.url()]);
        // Another repository of the same upstream, and another project's.
        for (name, origin, repository) in [
            ("near/team/two", &first, "team/two"),
            ("far/team/far", &second, "team/far"),
        ] {
            let server = Setup::new(&config).start();
            let leading = Client::of(&server, "near/team/one", &blob);
            first.wait(json!({"kind": "blob", "state": "halted"}), 1);
            let unproven = format!("/v2/near/team/none/blobs/{}", blob.digest);
            assert_eq!(server.get(&unproven).status(), 404);
            let joined = Client::of(&server, name, &blob);
            first.release();
            leading.expect_whole(&blob);
            joined.expect_whole(&blob);

            let rest = gets(origin, repository);
            assert_eq!(rest.len(), 1, "{name}, {refusal}: {rest:#?}");
            assert!(rest[0]["fields"]["range"].is_array(), "{rest:#?}");
            let refused = gets(&first, "team/one");
            assert_eq!(refused.len(), 2, "{name}, {refusal}: {refused:#?}");
            assert_eq!(gets(&first, "team/none").len(), 0);
            first.clear_faults();
            first.clear_log();
            refuse_midway(&first, "team/one", refusal);
        }
    }
}

#[test]
fn a_refused_source_fails_when_nobody_has_a_proof_of_his_own() {
    let origin = Origin::start();
    let blob = origin.blob(&["team/one", "team/two"], STREAMED_LEN, 1);
    refuse_midway(&origin, "team/one", 403);
    origin.fault(
        json!({"kind": "blob", "repository": "team/two"}),
        json!({"status": 403}),
    );
    let config = Config::new().project("near", "", &[origin.url()]);
    let server = Setup::new(&config).start();
    let leading = Client::of(&server, "near/team/one", &blob);
    origin.wait(json!({"kind": "blob", "state": "halted"}), 1);
    let unproven = format!("/v2/near/team/two/blobs/{}", blob.digest);
    assert_eq!(server.get(&unproven).status(), 403);
    origin.release();
    leading.expect_cut();
    assert_eq!(gets(&origin, "team/two").len(), 0, "only a HEAD can prove");
}

/// It has no link before the end, but its own upstream sent it the beginning.
#[test]
fn a_fill_returns_to_the_source_that_it_began_in() {
    let origin = Origin::start();
    let blob = origin.blob(&["team/one", "team/two"], STREAMED_LEN, 1);
    let of = |repository: &str, range: bool| {
        json!({"kind": "blob", "method": "GET",
            "repository": repository, "range": range})
    };
    origin.fault_times(1, of("team/one", true), json!({"status": 403}));
    origin.fault(
        of("team/one", false),
        json!({"halt_at": "50%", "truncate_at": "60%"}),
    );
    origin.fault_times(1, of("team/two", true), json!({"truncate_at": "50%"}));
    origin.fault(of("team/two", true), json!({"status": 403}));
    let config = Config::new().project("near", "", &[origin.url()]);
    let server = Setup::new(&config).start();
    let leading = Client::of(&server, "near/team/one", &blob);
    origin.wait(json!({"kind": "blob", "state": "halted"}), 1);
    let joined = Client::of(&server, "near/team/two", &blob);
    origin.release();
    leading.expect_whole(&blob);
    joined.expect_whole(&blob);
    assert_eq!(gets(&origin, "team/one").len(), 3);
    assert_eq!(gets(&origin, "team/two").len(), 2);
}

fn target(blob: &Held) -> String {
    format!("/v2/dh/library/app/blobs/{}", blob.digest)
}

fn before(origins: &[&Origin]) -> Entrepot {
    let urls: Vec<&str> = origins.iter().map(|origin| origin.url()).collect();
    Setup::new(&Config::new().project("dh", "default = true", &urls)).start()
}

/// Nothing of a body this short goes out before it is verified, so nobody has to see that the
/// first upstream was wrong.
#[test]
fn a_short_body_of_wrong_bytes_is_served_from_the_next_upstream() {
    let cases = [
        (1_000, json!({"halt_at": -1, "flip_at": 0})),
        (WITHHELD_LEN, json!({"halt_at": "50%", "flip_at": -1})),
        (
            100_000,
            json!({"halt_at": "50%", "flip_at": 7, "chunked": true}),
        ),
        (70_000, json!({"halt_at": "50%", "body_add": -1})),
    ];
    for (len, fault) in cases {
        let (first, second) = (Origin::start(), Origin::start());
        let blob = first.blob(&["library/app"], len, 1);
        second.blob(&["library/app"], len, 1);
        let matching = json!({"kind": "blob", "method": "GET"});
        first.fault(matching, fault.clone());
        let server = before(&[&first, &second]);
        let clients = ask_together(server.addr(), &target(&blob), CLIENTS);
        let mut ranged = Connection::open(server.addr());
        ranged.request("GET", &target(&blob), &[("Range", "bytes=10-19")]);
        until_true("all follow the first fill", || {
            server.metric("entrepot_followers", &[]) == (CLIENTS + 1) as f64
        });
        first.release();
        let mut whole = Vec::new();
        for mut client in clients {
            whole = client.answer("GET").expect("an answer").expect(200).body;
            assert_eq!(digest(&whole), blob.digest, "{fault}");
        }
        let part = ranged.answer("GET").expect("an answer").expect(206);
        assert!(part.body == whole[10..20], "{fault}");
        for origin in [&first, &second] {
            assert_eq!(origin.count("kind=blob&method=GET"), 1, "{fault}");
        }
    }
}

#[test]
fn wrong_bytes_of_every_upstream_are_one_clean_error() {
    let origins = [Origin::start(), Origin::start(), Origin::start()];
    let blobs = origins
        .each_ref()
        .map(|origin| origin.blob(&["library/app"], 50_000, 1));
    for origin in &origins {
        let matching = json!({"kind": "blob", "method": "GET"});
        origin.fault(matching, json!({"flip_at": 0}));
    }
    let server = before(&origins.each_ref());
    let answer = server.get(&target(&blobs[0]));
    assert_eq!(answer.status(), 502, "{}", answer.head.raw);
    assert_eq!(answer.broken, None);
    for origin in &origins {
        assert_eq!(origin.count("kind=blob&method=GET"), 1);
    }

    // The last of them has the right ones.
    let server = before(&origins.each_ref());
    origins[2].clear_faults();
    let hashed = get_hashed(server.addr(), &target(&blobs[0])).expect("a head");
    assert_eq!((hashed.broken, &hashed.digest), (None, &blobs[0].digest));
}
