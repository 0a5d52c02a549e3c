//! Manifests that are too long, too deep, too wide or of two minds, and lists that are too long:
//! a clean error that names the limit, and nothing read beyond it.

use serde_json::{Value, json};

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::{Answer, fetch};
use entrepot_tests::origin::Origin;
use entrepot_tests::sha256::digest;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const REPOSITORY: &str = "library/app";

/// As configured below; the least that may be.
const LEN_MAX: usize = 64 << 10;
/// What may come of a body before its length is known to be too much: a piece, and what the
/// kernel buffers of a connection have no part in.
const READ_AHEAD: f64 = (256 << 10) as f64;

fn with_limit(origin: &Origin) -> Entrepot {
    let args = ["--set", "limits.manifest_max=64KiB"];
    Setup::new(&Config::one(origin.url())).args(&args).start()
}

/// A manifest of an exact length.
fn text_of(len: usize) -> String {
    let (before, after) = ("{\"layers\":[],\"annotations\":{\"a\":\"", "\"}}");
    let filling = len - before.len() - after.len();
    format!("{before}{}{after}", "b".repeat(filling))
}

fn manifest(reference: &str) -> String {
    format!("/v2/dh/{REPOSITORY}/manifests/{reference}")
}

#[track_caller]
fn check_refused(answer: Answer, why: &str) {
    let text = answer.expect_error(502, "MANIFEST_INVALID").text();
    assert!(text.contains(why), "{text}");
}

#[test]
fn the_longest_manifest_is_as_configured() {
    let origin = Origin::start();
    let longest = text_of(LEN_MAX);
    let held = origin.manifest(REPOSITORY, OCI_MANIFEST, &longest, &["longest"]);
    let longer = origin.manifest(REPOSITORY, OCI_MANIFEST, &text_of(LEN_MAX + 1), &["longer"]);
    let server = with_limit(&origin);
    for reference in ["longest", &held.digest] {
        assert_eq!(server.get(&manifest(reference)).expect(200).text(), longest);
    }
    for reference in ["longer", &longer.digest] {
        check_refused(server.get(&manifest(reference)), "limits.manifest_max");
        let head = fetch(server.addr(), "HEAD", &manifest(reference), &[]);
        assert_eq!(head.expect("an answer").status(), 502, "{reference}");
    }
}

#[test]
fn what_is_too_long_is_not_read() {
    let origin = Origin::start();
    let text = text_of(6 << 20);
    let long = origin.manifest(REPOSITORY, OCI_MANIFEST, &text, &["1"]);
    let server = with_limit(&origin);
    let read = || server.metric("entrepot_upstream_bytes_total", &[]);
    for reference in ["1", &long.digest] {
        let before = read();
        check_refused(server.get(&manifest(reference)), "limits.manifest_max");
        assert!(read() - before <= READ_AHEAD, "{reference}");
    }
    // Nor when nothing says how long it will be.
    origin.fault(
        json!({"kind": "manifest", "method": "HEAD"}),
        json!({"status": 405}),
    );
    origin.fault(
        json!({"kind": "manifest", "method": "GET"}),
        json!({"chunked": true}),
    );
    for reference in ["1", &long.digest] {
        let before = read();
        check_refused(server.get(&manifest(reference)), "limits.manifest_max");
        let more = read() - before;
        assert!(more <= LEN_MAX as f64 + 2.0 * READ_AHEAD, "{more}");
    }
}

#[test]
fn a_list_that_is_too_long_is_an_error_and_the_last_good_one_stands_in() {
    let origin = Origin::start();
    let image = origin.image(REPOSITORY, "1", 1);
    let server = with_limit(&origin);
    let tags = format!("/v2/dh/{REPOSITORY}/tags/list");
    let referrers = format!("/v2/dh/{REPOSITORY}/referrers/{}", image.digest);
    let long = |media_type: &str| {
        json!({"status": 200, "body": text_of(LEN_MAX + 1),
            "headers": {"Content-Type": media_type}})
    };
    origin.fault(json!({"kind": "tags"}), long("application/json"));
    origin.fault(json!({"kind": "referrers"}), long(OCI_INDEX));
    for (target, code) in [(&tags, "UNKNOWN"), (&referrers, "MANIFEST_INVALID")] {
        let text = server.get(target).expect_error(502, code).text();
        assert!(text.contains("limits.manifest_max"), "{text}");
    }
    origin.clear_faults();
    let good = server.get(&tags).expect(200).text();
    origin.fault(json!({"kind": "tags"}), long("application/json"));
    let stale = server.get(&tags).expect(200);
    assert_eq!(stale.text(), good);
    assert!(stale.field("warning").is_some(), "{}", stale.head.raw);
}

#[test]
fn bombs_are_refused_and_the_server_goes_on() {
    let origin = Origin::start();
    let server = Entrepot::before(origin.url());
    let deep = format!("{{\"a\":{}", "[".repeat(1_000_000));
    let wide = format!("{{\"layers\":[{}0]}}", "0,".repeat(100_000));
    for (tag, text, why) in [
        ("deep", deep, "nested too deeply"),
        ("wide", wide, "too many descriptors"),
    ] {
        let held = origin.manifest(REPOSITORY, OCI_MANIFEST, &text, &[tag]);
        for reference in [tag, &held.digest] {
            check_refused(server.get(&manifest(reference)), why);
        }
    }
    origin.image(REPOSITORY, "1", 1);
    server.get(&manifest("1")).expect(200);
}

/// Those of one upstream have room for eight of the longest: the rest is refused until those are
/// done, and nothing of another upstream is.
#[test]
fn many_long_ones_at_once_are_bounded_and_leave_room_to_other_upstreams() {
    const ASKED: usize = 24;
    const ROOM: usize = 8;
    let (origin, other) = (Origin::start(), Origin::start());
    let apart = other.image(REPOSITORY, "1", 1);
    let config = Config::one(origin.url()).project("other", "", &[other.url()]);
    let server = Setup::new(&config).args(&["--shards", "1"]).start();
    let digests: Vec<String> = (0..ASKED)
        .map(|nth| {
            let text = text_of((4 << 20) - nth);
            let held = origin.manifest(REPOSITORY, OCI_MANIFEST, &text, &[]);
            held.digest
        })
        .collect();
    let gets = json!({"kind": "manifest", "method": "GET"});
    origin.fault(gets, json!({"halt_at": "90%"}));
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let ask = |digest: &String| {
            let target = manifest(digest);
            let server = &server;
            scope.spawn(move || server.get(&target).status())
        };
        let asking: Vec<_> = digests.iter().map(ask).collect();
        until_true("each is on its way, or was sent away", || {
            let refused = ["kind=\"manifest\"", "result=\"error\""];
            let refused = server.metric("entrepot_requests_total", &refused);
            let halted = origin.count("kind=manifest&state=halted");
            halted as f64 + refused >= ASKED as f64
        });
        let target = format!("/v2/other/{REPOSITORY}/manifests/{}", apart.digest);
        let answer = server.get(&target).expect(200);
        assert_eq!(digest(&answer.body), apart.digest);
        origin.release();
        let statuses = asking.into_iter().map(|asked| asked.join());
        statuses.map(|status| status.expect("a client")).collect()
    });
    let count = |wanted: u16| statuses.iter().filter(|status| **status == wanted).count();
    assert!(count(200) >= ROOM, "{statuses:?}");
    assert_eq!(count(200) + count(503), ASKED, "{statuses:?}");
    for digest in &digests {
        server.get(&manifest(digest)).expect(200);
    }
}

/// One digest is served as one type, whichever source or name it came by first.
#[test]
fn a_manifest_without_a_type_is_what_its_shape_says() {
    let (docker, oci) = (Origin::start(), Origin::start());
    let text = json!({"schemaVersion": 2, "manifests": []}).to_string();
    let held = docker.manifest(REPOSITORY, DOCKER_LIST, &text, &["1"]);
    oci.manifest(REPOSITORY, OCI_INDEX, &text, &["1"]);
    let config = Config::new()
        .project("docker", "", &[docker.url()])
        .project("oci", "", &[oci.url()]);
    for projects in [["docker", "oci"], ["oci", "docker"]] {
        let server = Setup::new(&config).start();
        for project in projects {
            for reference in ["1", &held.digest] {
                let target = format!("/v2/{project}/{REPOSITORY}/manifests/{reference}");
                let answer = server.get(&target).expect(200);
                assert_eq!(answer.field("content-type"), Some(OCI_INDEX), "{project}");
                assert_eq!(digest(&answer.body), held.digest);
            }
        }
    }
}

/// The type it came with and the type it has must agree.
#[test]
fn a_manifest_of_two_minds_is_refused() {
    let origin = Origin::start();
    let server = Entrepot::before(origin.url());
    let named = json!({"mediaType": OCI_INDEX, "manifests": []});
    let both = json!({"manifests": [], "layers": []});
    for (nth, (media_type, document)) in [
        (DOCKER_LIST, &named),
        (OCI_MANIFEST, &named),
        (OCI_INDEX, &both),
        (OCI_MANIFEST, &both),
    ]
    .into_iter()
    .enumerate()
    {
        refused_as(&origin, &server, media_type, document, &format!("{nth}"));
    }
}

fn refused_as(origin: &Origin, server: &Entrepot, media_type: &str, document: &Value, tag: &str) {
    let repository = format!("library/app{tag}");
    origin.manifest(&repository, media_type, &document.to_string(), &["1"]);
    let answer = server.get(&format!("/v2/dh/{repository}/manifests/1"));
    check_refused(answer, "manifest");
}
