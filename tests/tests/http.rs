//! What a client may ask for and what it gets: URL shapes, conditions, ranges, errors. Tables,
//! against the synthetic upstream.

use serde_json::json;

use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::Connection;
use entrepot_tests::origin::Origin;
use entrepot_tests::sha256::{absent, digest};
use entrepot_tests::world::World;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

#[test]
fn every_url_shape_and_ns_leads_to_its_project() {
    let hub = Origin::start();
    let quay = Origin::start();
    let of_hub = hub.image("library/app", "1", 1).digest;
    let of_quay = quay.image("library/app", "1", 2).digest;
    assert_ne!(of_hub, of_quay);
    // A project's name may hold a dot, and then needs quotes in TOML.
    let serves = "serves = [\"quay.example\", \"quay.example:5000\"]";
    let config = Config::one(hub.url()).project("\"quay.io\"", serves, &[quay.url()]);
    let server = Setup::new(&config).start();

    let table: [(&str, Option<&str>); 17] = [
        ("/v2/dh/library/app/manifests/1", Some(&of_hub)),
        ("/dh/v2/library/app/manifests/1", Some(&of_hub)),
        ("/v2/library/app/manifests/1", Some(&of_hub)),
        ("/v2/library/app/manifests/1?ns=docker.io", Some(&of_hub)),
        ("/dh/v2/library/app/manifests/1?ns=docker.io", Some(&of_hub)),
        // containerd with override_path: the project is in the name, and ns is still sent.
        ("/v2/dh/library/app/manifests/1?ns=docker.io", Some(&of_hub)),
        ("/v2/app/manifests/1", Some(&of_hub)),
        ("/v2/dh/app/manifests/1", Some(&of_hub)),
        ("/dh/v2/app/manifests/1", Some(&of_hub)),
        ("/v2/quay.io/library/app/manifests/1", Some(&of_quay)),
        ("/quay.io/v2/library/app/manifests/1", Some(&of_quay)),
        (
            "/v2/library/app/manifests/1?ns=quay.example",
            Some(&of_quay),
        ),
        (
            "/v2/library/app/manifests/1?ns=QUAY.example",
            Some(&of_quay),
        ),
        (
            "/v2/library/app/manifests/1?ns=quay.example%3A5000",
            Some(&of_quay),
        ),
        // An unknown registry is a 404, so that a client asks its next mirror.
        ("/v2/library/app/manifests/1?ns=unknown.example", None),
        ("/v2/library/app/manifests/1?ns=127.0.0.1:1", None),
        ("/nobody/v2/library/app/manifests/1", None),
    ];
    for (target, expected) in table {
        let answer = server.get(target);
        match expected {
            Some(expected) => {
                let answer = answer.expect(200);
                assert_eq!(
                    answer.field("docker-content-digest"),
                    Some(expected),
                    "{target}"
                );
                assert_eq!(digest(&answer.body), expected, "{target}");
                let head = server.head(target).expect(200);
                assert_eq!(
                    head.field("docker-content-digest"),
                    Some(expected),
                    "{target}"
                );
            }
            None => {
                answer.expect_error(404, "NAME_UNKNOWN");
            }
        }
    }
    for target in ["/v2/", "/v2/?ns=docker.io", "/dh/v2/", "/v2"] {
        server.get(target).expect(200);
    }
}

#[test]
fn answers_say_what_they_carry() {
    let world = World::new();
    for (target, held, media_type) in [
        (
            "/v2/dh/library/app/manifests/1".to_owned(),
            &world.manifest,
            Some("application/vnd.oci.image.manifest.v1+json"),
        ),
        (
            world.manifest_target(),
            &world.manifest,
            Some("application/vnd.oci.image.manifest.v1+json"),
        ),
        (
            world.layer_target(),
            &world.layer,
            Some("application/octet-stream"),
        ),
    ] {
        for method in ["HEAD", "GET", "GET", "HEAD"] {
            let answer = entrepot_tests::http::fetch(world.server.addr(), method, &target, &[]);
            let answer = answer.expect("an answer").expect(200);
            assert_eq!(answer.head.length(), Ok(Some(held.size)), "{target}");
            assert_eq!(
                answer.field("docker-content-digest"),
                Some(held.digest.as_str())
            );
            assert_eq!(
                answer.field("etag"),
                Some(format!("\"{}\"", held.digest).as_str())
            );
            assert_eq!(answer.field("content-type"), media_type, "{target}");
            assert!(
                answer.field("cache-status").is_some(),
                "{}",
                answer.head.raw
            );
            assert!(answer.field("content-encoding").is_none());
            if method == "GET" {
                assert_eq!(digest(&answer.body), held.digest);
            }
        }
    }
}

#[test]
fn accept_is_honoured_in_one_line_or_six() {
    let origin = Origin::start();
    let index = origin.image_of(json!({"repository": "library/app", "tags": ["1", "2"],
        "platforms": ["linux/amd64", "linux/arm64"]}));
    let server = Entrepot::before(origin.url());
    let types = [
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        INDEX,
    ];
    let six = types.map(|name| ("Accept", name));
    let one = types.join(", ");
    for tag in ["1", "2"] {
        let target = format!("/v2/dh/library/app/manifests/{tag}");
        for fields in [&six[..], &[("Accept", one.as_str())], &[]] {
            let answer = server.get_with(&target, fields).expect(200);
            assert_eq!(answer.field("content-type"), Some(INDEX));
            assert_eq!(digest(&answer.body), index.digest);
        }
    }
    // Whatever clients say, upstream sees one list: a cached answer suits every client.
    let asked = origin.log("kind=manifest");
    let lists = asked
        .iter()
        .map(|request| request["fields"]["accept"].to_string());
    let lists: std::collections::BTreeSet<_> = lists.collect();
    assert_eq!(lists.len(), 1, "{lists:?}");
    for request in origin.log("") {
        let coding = &request["fields"]["accept-encoding"];
        assert_eq!(*coding, json!(["identity"]), "{request}");
    }
}

#[test]
fn if_none_match_is_answered_304() {
    let world = World::new();
    for (target, held) in [
        ("/v2/dh/library/app/manifests/1".to_owned(), &world.manifest),
        (world.manifest_target(), &world.manifest),
        (world.layer_target(), &world.layer),
    ] {
        world.server.get(&target).expect(200);
        let quoted = format!("\"{}\"", held.digest);
        let others = format!("\"{}\", W/{quoted}", absent());
        for value in [quoted.as_str(), others.as_str(), "*"] {
            let mut connection = world.open();
            connection.request("GET", &target, &[("If-None-Match", value)]);
            let answer = connection.answer("GET").expect("an answer").expect(304);
            assert_eq!(
                answer.field("etag"),
                Some(quoted.as_str()),
                "{target} {value}"
            );
            // The connection goes on, so there was no body.
            connection.request("GET", "/v2/", &[]);
            connection
                .answer("GET")
                .expect("a second answer")
                .expect(200);
        }
        let other = format!("\"{}\"", absent());
        world
            .server
            .get_with(&target, &[("If-None-Match", &other)])
            .expect(200);
    }
}

/// First and last byte of a 206, or another status.
type Expected = Result<(u64, u64), u16>;

#[test]
fn ranges_of_a_held_blob() {
    let origin = Origin::start();
    let blob = origin.blob(&["library/app"], 3_000_000, 1);
    let server = Entrepot::before(origin.url());
    let target = format!("/v2/dh/library/app/blobs/{}", blob.digest);
    let whole = server.get(&target).expect(200).body;
    assert_eq!(digest(&whole), blob.digest);
    let len = blob.size;

    let table: [(&str, Expected); 14] = [
        ("bytes=0-0", Ok((0, 0))),
        ("bytes=0-99", Ok((0, 99))),
        ("bytes=1000000-1999999", Ok((1_000_000, 1_999_999))),
        ("bytes=2999999-", Ok((len - 1, len - 1))),
        ("bytes=0-", Ok((0, len - 1))),
        ("bytes=-1", Ok((len - 1, len - 1))),
        ("bytes=-5000000", Ok((0, len - 1))),
        ("bytes=10-99999999999", Ok((10, len - 1))),
        ("bytes=10-99999999999999999999999999", Ok((10, len - 1))),
        ("bytes=3000000-", Err(416)),
        ("bytes=-0", Err(416)),
        // RFC 9110 §14.2: what we do not understand we ignore.
        ("bytes=5-3", Err(200)),
        ("items=0-5", Err(200)),
        ("bytes=a-b", Err(200)),
    ];
    for (range, expected) in table {
        let answer = server.get_with(&target, &[("Range", range)]);
        match expected {
            Ok((first, last)) => {
                let answer = answer.expect(206);
                let content_range = format!("bytes {first}-{last}/{len}");
                assert_eq!(
                    answer.field("content-range"),
                    Some(content_range.as_str()),
                    "{range}"
                );
                let part = &whole[first as usize..=last as usize];
                assert!(answer.body == part, "{range}: wrong bytes");
            }
            Err(416) => {
                let answer = answer.expect(416);
                let content_range = format!("bytes */{len}");
                assert_eq!(
                    answer.field("content-range"),
                    Some(content_range.as_str()),
                    "{range}"
                );
            }
            Err(status) => {
                let answer = answer.expect(status);
                assert!(answer.body == whole, "{range}: wrong bytes");
                assert_eq!(answer.field("accept-ranges"), Some("bytes"));
            }
        }
    }
    let etag = format!("\"{}\"", blob.digest);
    let other = format!("\"{}\"", absent());
    for (condition, status) in [(etag.as_str(), 206), (other.as_str(), 200)] {
        let fields = [("Range", "bytes=0-9"), ("If-Range", condition)];
        server.get_with(&target, &fields).expect(status);
    }
}

#[test]
fn a_range_of_an_uncached_blob_is_never_answered_with_everything() {
    let origin = Origin::start();
    let blob = origin.blob(&["library/app"], 20_000_000, 1);
    let server = Entrepot::before(origin.url());
    let target = format!("/v2/dh/library/app/blobs/{}", blob.digest);
    let answer = server
        .get_with(&target, &[("Range", "bytes=15000000-15000099")])
        .expect(206);
    assert_eq!(
        answer.field("content-range"),
        Some("bytes 15000000-15000099/20000000")
    );
    let whole = server.get(&target).expect(200).body;
    assert_eq!(digest(&whole), blob.digest);
    assert!(answer.body == whole[15_000_000..15_000_100]);
}

#[test]
fn a_range_of_a_running_fill_joins_it() {
    let origin = Origin::start();
    let blob = origin.blob(&["library/app"], 16 << 20, 1);
    let halted = json!({"kind": "blob", "method": "GET"});
    origin.fault(halted, json!({"halt_at": "50%"}));
    let server = Entrepot::before(origin.url());
    let target = format!("/v2/dh/library/app/blobs/{}", blob.digest);

    let mut first = Connection::open(server.addr());
    first.request("GET", &target, &[]);
    let head = first.read_head().expect("a head while the body arrives");
    origin.wait(json!({"kind": "blob", "state": "halted"}), 1);
    // Far below the half that has arrived, and the megabyte behind it that may be withheld.
    let part = server
        .get_with(&target, &[("Range", "bytes=1000-1999")])
        .expect(206);
    assert_eq!(origin.count("kind=blob&method=GET"), 1);

    origin.release();
    let mut whole = Vec::new();
    let read = first.read_body("GET", &head, &mut |bytes| whole.extend_from_slice(bytes));
    assert_eq!((read, digest(&whole)), (Ok(()), blob.digest));
    assert!(part.body == whole[1000..2000]);
}

#[test]
fn a_sha512_digest_is_a_digest() {
    let origin = Origin::start();
    let text = "hashed with the longer one";
    let body = json!({"repositories": ["library/app"], "text": text, "algorithm": "sha512"});
    let named = origin.call("blobs", body)["digest"].clone();
    let named = named.as_str().expect("a digest");
    assert!(named.starts_with("sha512:"));
    let server = Entrepot::before(origin.url());
    let target = format!("/v2/dh/library/app/blobs/{named}");
    for _ in 0..2 {
        let answer = server.get(&target).expect(200);
        assert_eq!(answer.text(), text);
        assert_eq!(answer.field("docker-content-digest"), Some(named));
    }
    assert_eq!(origin.count("kind=blob&method=GET"), 1);
}

#[test]
fn a_head_of_an_uncached_blob_is_one_head_upstream() {
    let world = World::new();
    let answer = world.server.head(&world.layer_target()).expect(200);
    assert_eq!(answer.head.length(), Ok(Some(world.layer.size)));
    assert_eq!(
        answer.field("docker-content-digest"),
        Some(world.layer.digest.as_str())
    );
    assert_eq!(world.origin.count("kind=blob&method=HEAD"), 1);
    assert_eq!(world.origin.count("kind=blob&method=GET"), 0);
    assert_eq!(world.server.metric("entrepot_fills_running", &[]), 0.0);
}

#[test]
fn writes_are_unsupported() {
    let world = World::new();
    let manifest = world.manifest_target();
    let layer = world.layer_target();
    let table = [
        ("POST", "/v2/dh/library/app/blobs/uploads/"),
        (
            "POST",
            "/v2/dh/library/app/blobs/uploads/?mount=sha256:0&from=a",
        ),
        ("PATCH", "/v2/dh/library/app/blobs/uploads/1234"),
        (
            "PUT",
            "/v2/dh/library/app/blobs/uploads/1234?digest=sha256:0",
        ),
        ("PUT", "/v2/dh/library/app/manifests/1"),
        ("PUT", manifest.as_str()),
        ("DELETE", "/v2/dh/library/app/manifests/1"),
        ("DELETE", layer.as_str()),
        ("POST", "/dh/v2/library/app/blobs/uploads/"),
        ("POST", "/v2/library/app/blobs/uploads/?ns=docker.io"),
    ];
    for (method, target) in table {
        let answer = entrepot_tests::http::fetch(world.server.addr(), method, target, &[]);
        let answer = answer.expect("an answer").expect_error(405, "UNSUPPORTED");
        // RFC 9110 §15.5.6: a 405 names what is allowed.
        let allow = answer.field("allow").unwrap_or_default();
        assert!(
            allow.contains("GET") && allow.contains("HEAD"),
            "{}",
            answer.head.raw
        );
    }
    assert_eq!(world.origin.count(""), 0, "a write never reaches upstream");
}

#[test]
fn errors_are_those_of_the_distribution_specification() {
    let world = World::new();
    let no_blob = format!("/v2/dh/library/app/blobs/{}", absent());
    let no_manifest = format!("/v2/dh/library/app/manifests/{}", absent());
    let long_name = format!("/v2/dh/{}/manifests/1", "a/".repeat(200) + "b");
    let long_tag = format!("/v2/dh/library/app/manifests/{}", "x".repeat(129));
    let table: [(&str, u16, &str); 14] = [
        (&no_blob, 404, "BLOB_UNKNOWN"),
        (&no_manifest, 404, "MANIFEST_UNKNOWN"),
        (
            "/v2/dh/library/app/manifests/absent",
            404,
            "MANIFEST_UNKNOWN",
        ),
        ("/v2/dh/library/app/blobs/sha256:abc", 400, "DIGEST_INVALID"),
        ("/v2/dh/library/app/blobs/latest", 400, "DIGEST_INVALID"),
        (
            "/v2/dh/library/app/manifests/sha256:abc",
            400,
            "DIGEST_INVALID",
        ),
        (
            "/v2/dh/library/app/manifests/md5:d41d8cd98f00b204e9800998ecf8427e",
            400,
            "DIGEST_INVALID",
        ),
        ("/v2/dh/library/App/manifests/1", 400, "NAME_INVALID"),
        ("/v2/dh/library//app/manifests/1", 400, "NAME_INVALID"),
        ("/v2/dh/library/../app/manifests/1", 400, "NAME_INVALID"),
        ("/v2/dh/library%2Fapp/manifests/1", 400, "NAME_INVALID"),
        (&long_name, 400, "NAME_INVALID"),
        (&long_tag, 404, "MANIFEST_UNKNOWN"),
        ("/v2/dh/library/app/nonsense", 404, "NAME_UNKNOWN"),
    ];
    for (target, status, code) in table {
        let answer = world.server.get(target);
        assert_eq!(
            (answer.status(), answer.error_code().as_deref()),
            (status, Some(code)),
            "{target}"
        );
        answer.expect_error(status, code);
        let head = world.server.head(target).expect(status);
        assert!(head.body.is_empty());
    }
}
