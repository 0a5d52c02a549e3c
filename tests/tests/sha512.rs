//! Manifests and tags that are named by sha512.

use serde_json::json;
use sha2::{Digest as _, Sha512};

use entrepot_tests::entrepot::Entrepot;
use entrepot_tests::http::fetch;
use entrepot_tests::origin::Origin;
use entrepot_tests::sha256::digest;

const REPOSITORY: &str = "library/app";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn target(reference: &str) -> String {
    format!("/v2/dh/{REPOSITORY}/manifests/{reference}")
}

/// Asked for them by GET.
fn gets(origin: &Origin) -> usize {
    origin.count("kind=manifest&method=GET")
}

/// A manifest that the origin answers for by its sha512, as tag and by digest.
fn named_by_sha512(origin: &Origin, tag: &str, text: &str) -> String {
    let hex = Sha512::digest(text.as_bytes());
    let hex: String = hex.iter().map(|byte| format!("{byte:02x}")).collect();
    let digest = format!("sha512:{hex}");
    let answer = json!({"status": 200, "body": text, "headers": {
        "Content-Type": OCI_MANIFEST, "Docker-Content-Digest": digest}});
    for reference in [tag, digest.as_str()] {
        let path = format!("/v2/{REPOSITORY}/manifests/{reference}");
        origin.fault(json!({"path": path}), answer.clone());
    }
    digest
}

fn manifest(name: &str) -> String {
    let empty = digest(b"{}");
    let config = json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty,
        "size": 2});
    json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [],
        "annotations": {"name": name}})
    .to_string()
}

#[test]
fn tags_and_manifests_of_sha512_are_pulled_kept_and_moved() {
    let origin = Origin::start();
    origin.text_blob(&[REPOSITORY], "{}");
    let server = Entrepot::before(origin.url());
    let (old, new) = (manifest("old"), manifest("new"));
    let old_digest = named_by_sha512(&origin, "1", &old);
    let check = |server: &Entrepot, reference: &str, text: &str, digest: &str| {
        for method in ["HEAD", "GET"] {
            let answer = fetch(server.addr(), method, &target(reference), &[]);
            let answer = answer.expect("an answer").expect(200);
            assert_eq!(answer.field("docker-content-digest"), Some(digest));
            assert_eq!(answer.field("content-type"), Some(OCI_MANIFEST));
            let length = text.len().to_string();
            assert_eq!(answer.field("content-length"), Some(length.as_str()));
            if method == "GET" {
                assert_eq!(answer.text(), text);
            }
        }
    };
    check(&server, "1", &old, &old_digest);
    check(&server, &old_digest, &old, &old_digest);
    assert_eq!(gets(&origin), 1, "the second pull is a hit");

    // The tag moves, as a client that HEADs it and GETs the digest sees it.
    origin.clear_faults();
    let new_digest = named_by_sha512(&origin, "1", &new);
    check(&server, "1", &new, &new_digest);
    server.wait_committed();

    // Both survive, and the tag is served stale.
    origin.go_down();
    let server = server.kill9().start();
    check(&server, "1", &new, &new_digest);
    check(&server, &old_digest, &old, &old_digest);
}

#[test]
fn a_manifest_of_another_sha512_is_a_clean_error() {
    let origin = Origin::start();
    let named = named_by_sha512(&origin, "1", &manifest("right"));
    let wrong = json!({"status": 200, "body": manifest("wrong"),
        "headers": {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": named}});
    origin.clear_faults();
    for reference in ["1", named.as_str()] {
        let path = format!("/v2/{REPOSITORY}/manifests/{reference}");
        origin.fault(json!({"path": path}), wrong.clone());
    }
    let server = Entrepot::before(origin.url());
    for reference in ["1", named.as_str()] {
        let answer = server.get(&target(reference));
        assert_eq!(answer.status(), 502, "{}", answer.head.raw);
        assert_eq!(answer.broken, None);
    }
}
