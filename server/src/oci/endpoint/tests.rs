use super::*;

const SHA: &str = "sha256:4bcff63911fcb4448bd4fdacec207030997caf25e9bea4045fa6c8c44de311d1";

fn get(target: &str) -> Result<Request<'_>, RouteError> {
    parse(Method::Get, target)
}

fn endpoint_of(target: &str) -> Endpoint<'_> {
    match get(target) {
        Ok(request) => request.endpoint,
        Err(error) => panic!("{target}: {error}"),
    }
}

#[test]
fn the_three_shapes() {
    let tag = |name| Endpoint::Manifest {
        name,
        reference: Reference::Tag("1.27"),
    };
    let cases = [
        (
            "/v2/dh/library/nginx/manifests/1.27",
            None,
            None,
            "dh/library/nginx",
        ),
        (
            "/dh/v2/library/nginx/manifests/1.27",
            Some("dh"),
            None,
            "library/nginx",
        ),
        (
            "/quay.io/v2/a/b/manifests/1.27?ns=quay.io",
            Some("quay.io"),
            Some("quay.io"),
            "a/b",
        ),
        (
            "/v2/nginx/manifests/1.27?ns=docker.io",
            None,
            Some("docker.io"),
            "nginx",
        ),
        (
            "/v2/nginx/manifests/1.27?a=b&ns=a%3A5000&c",
            None,
            Some("a:5000"),
            "nginx",
        ),
        (
            "/v2/nginx/manifests/1.27?ns=Docker.IO",
            None,
            Some("docker.io"),
            "nginx",
        ),
        (
            "/v2/nginx/manifests/1.27?ns=%5B%3a%3A1%5d:5000",
            None,
            Some("[::1]:5000"),
            "nginx",
        ),
        ("/v2/nginx/manifests/1.27?", None, None, "nginx"),
        ("/v2/v2/nginx/manifests/1.27", None, None, "v2/nginx"),
        ("/dh/v2/v2/manifests/1.27", Some("dh"), None, "v2"),
    ];
    for (target, prefix, ns, name) in cases {
        let request = get(target).unwrap();
        assert_eq!(request.prefix, prefix, "{target}");
        assert_eq!(request.ns.as_deref(), ns, "{target}");
        assert_eq!(request.endpoint, tag(name), "{target}");
    }
}

#[test]
fn bases() {
    for (target, prefix) in [
        ("/v2", None),
        ("/v2/", None),
        ("/dh/v2", Some("dh")),
        ("/dh/v2/", Some("dh")),
    ] {
        let request = get(target).unwrap();
        assert_eq!(
            (request.prefix, request.endpoint),
            (prefix, Endpoint::Base),
            "{target}"
        );
    }
    assert_eq!(
        get("/v2/?ns=ghcr.io").unwrap().ns.as_deref(),
        Some("ghcr.io")
    );
    assert_eq!(endpoint_of("/v2/_catalog?n=5"), Endpoint::Catalog);
}

#[test]
fn digests() {
    let digest = Digest::parse(SHA).unwrap();
    let reference = Reference::Digest(digest);
    let name = "a/b";
    let path = format!("/v2/a/b/manifests/{SHA}");
    assert_eq!(endpoint_of(&path), Endpoint::Manifest { name, reference });
    let path = format!("/v2/a/b/blobs/{SHA}");
    assert_eq!(endpoint_of(&path), Endpoint::Blob { name, digest });
    let path = format!("/v2/a/b/referrers/{SHA}?artifactType=a%2Fb");
    let query = Cow::Borrowed("artifactType=a%2Fb");
    assert_eq!(
        endpoint_of(&path),
        Endpoint::Referrers {
            name,
            digest,
            query
        }
    );
}

#[test]
fn names_may_hold_the_words_of_endpoints() {
    let cases = [
        ("/v2/manifests/manifests/latest", "manifests"),
        ("/v2/blobs/manifests/manifests/latest", "blobs/manifests"),
        ("/v2/a/tags/list/manifests/latest", "a/tags/list"),
        ("/v2/a/blobs/uploads/manifests/latest", "a/blobs/uploads"),
        ("/v2/a/manifests/tags/list", "a/manifests"),
        ("/v2/tags/tags/list", "tags"),
        ("/v2/a/manifests/b/manifests/list", "a/manifests/b"),
    ];
    for (target, name) in cases {
        assert_eq!(endpoint_of(target).name(), name, "{target}");
    }
    let uploads = format!("/v2/uploads/blobs/{SHA}");
    assert_eq!(endpoint_of(&uploads).name(), "uploads");
}

#[test]
fn queries_are_passed_on_without_ns() {
    let cases = [
        ("", ""),
        ("?", ""),
        ("?n=5", "n=5"),
        ("?n=0&last=1.26", "n=0&last=1.26"),
        ("?ns=docker.io", ""),
        ("?ns=docker.io&n=5&last=a%2Bb", "n=5&last=a%2Bb"),
        ("?n=10000&ns=docker.io&next_page=x", "n=10000&next_page=x"),
        ("?last=&n=5", "last=&n=5"),
    ];
    for (query, expected) in cases {
        let target = format!("/v2/a/tags/list{query}");
        let query = Cow::Borrowed(expected);
        assert_eq!(
            endpoint_of(&target),
            Endpoint::Tags { name: "a", query },
            "{target}"
        );
    }
}

#[test]
fn refused_targets() {
    use RouteError as E;
    let upper = SHA.to_uppercase().replace("SHA256", "sha256");
    let cases = [
        ("", E::NotFound),
        ("/", E::NotFound),
        ("v2/", E::NotFound),
        ("/v1/", E::NotFound),
        ("/V2/", E::NotFound),
        ("/v2x/a/manifests/b", E::NotFound),
        ("//v2/", E::NotFound),
        ("/Dh/v2/a/manifests/b", E::NotFound),
        ("/a/b/v2/c/manifests/d", E::NotFound),
        ("/../v2/a/manifests/b", E::NotFound),
        ("/v2/a", E::NotFound),
        ("/v2/a/b/c", E::NotFound),
        ("/v2/a/manifest/b", E::NotFound),
        ("/v2/a/tags/lists", E::NotFound),
        ("/v2/a/manifests/b/", E::NotFound),
        ("/v2/a/uploads/b", E::NotFound),
        ("/v2/manifests/latest", E::NameInvalid),
        ("/v2/tags/list", E::NameInvalid),
        ("/v2//manifests/latest", E::NameInvalid),
        ("/v2//a/manifests/latest", E::NameInvalid),
        ("/v2/A/manifests/latest", E::NameInvalid),
        ("/v2/a/../b/manifests/latest", E::NameInvalid),
        ("/v2/a%2Fb/manifests/latest", E::PercentEncoded),
        ("/v2/a/manifests/sha256%3A00", E::PercentEncoded),
        ("/v2/a/manifests/", E::TagInvalid),
        ("/v2/a/manifests/.b", E::TagInvalid),
        ("/v2/a/manifests/b@c", E::TagInvalid),
        ("/v2/a/manifests/sha256:00", E::DigestInvalid),
        ("/v2/a/manifests/b:c", E::DigestInvalid),
        ("/v2/a/blobs/latest", E::DigestInvalid),
        ("/v2/a/blobs/", E::DigestInvalid),
        ("/v2/a/referrers/latest", E::DigestInvalid),
        ("/v2/a/manifests/b?ns=", E::NamespaceInvalid),
        ("/v2/a/manifests/b?ns=a/b", E::NamespaceInvalid),
        ("/v2/a/manifests/b?ns=https://a", E::NamespaceInvalid),
        ("/v2/a/manifests/b?ns=a%00", E::NamespaceInvalid),
        ("/v2/a/manifests/b?ns=a%", E::NamespaceInvalid),
        ("/v2/a/manifests/b?ns=a%4", E::NamespaceInvalid),
        ("/v2/a/manifests/b?ns=a%zz", E::NamespaceInvalid),
        ("/v2/a/manifests/b?ns=%ff", E::NamespaceInvalid),
        ("/v2/a/manifests/b?ns=a&ns=a", E::NamespaceInvalid),
        ("/v2/a/tags/list?n=", E::PageInvalid),
        ("/v2/a/tags/list?n=-1", E::PageInvalid),
        ("/v2/a/tags/list?n=+1", E::PageInvalid),
        ("/v2/a/tags/list?n=x", E::PageInvalid),
        ("/v2/a/tags/list?n=10001", E::PageInvalid),
        ("/v2/a/tags/list?n=99999999999", E::PageInvalid),
        ("/v2/a/tags/list?last=%", E::QueryInvalid),
        ("/v2/a/tags/list?last=%ff", E::QueryInvalid),
    ];
    for (target, expected) in cases {
        assert_eq!(get(target), Err(expected), "{target}");
    }
    let upper = format!("/v2/a/blobs/{upper}");
    assert_eq!(get(&upper), Err(E::DigestInvalid));
    let long = format!("/v2/a/tags/list?last={}", "a".repeat(QUERY_LEN_MAX));
    assert_eq!(get(&long), Err(E::QueryTooLong));
    let long = format!("/v2/a/manifests/b?ns={}", "a".repeat(NS_LEN_MAX + 1));
    assert_eq!(get(&long), Err(E::NamespaceInvalid));
}

#[test]
fn writes() {
    let blob = format!("/v2/a/blobs/{SHA}");
    let cases = [
        (Method::Put, "/v2/a/manifests/latest", "a"),
        (Method::Delete, &blob, "a"),
        (Method::Post, "/v2/a/blobs/uploads/", "a"),
        (
            Method::Post,
            "/v2/a/blobs/uploads/?mount=sha256:00&from=b",
            "a",
        ),
        (Method::Post, "/dh/v2/a/b/blobs/uploads", "a/b"),
        (Method::Patch, "/v2/a/blobs/uploads/0b5e-7", "a"),
        (Method::Get, "/v2/a/blobs/uploads/0b5e-7", "a"),
        (Method::Post, "/v2/", ""),
        (Method::Options, "/v2/_catalog", ""),
        (Method::Other, "/v2/a/tags/list", "a"),
    ];
    for (method, target, name) in cases {
        let request = parse(method, target).unwrap();
        assert_eq!(request.endpoint, Endpoint::Upload { name }, "{target}");
    }
    assert_eq!(
        parse(Method::Put, "/v2/A/manifests/b"),
        Err(RouteError::NameInvalid)
    );
    assert_eq!(parse(Method::Post, "/login"), Err(RouteError::NotFound));
}

#[test]
fn fuzz_mutated_targets() {
    let blob = format!("/v2/a/b/blobs/{SHA}");
    let referrers = format!("/dh/v2/a/referrers/{SHA}?ns=docker.io&artifactType=a%2Fb");
    let seeds: [&[u8]; 6] = [
        b"/v2/dh/library/nginx/manifests/1.27",
        b"/quay.io/v2/a/b/tags/list?n=5&last=b&ns=a%3A5000",
        b"/v2/a/blobs/uploads/x",
        b"/v2/",
        blob.as_bytes(),
        referrers.as_bytes(),
    ];
    let words: [&[u8]; 14] = [
        b"/",
        b"//",
        b"/v2/",
        b"v2",
        b"manifests",
        b"blobs",
        b"/tags/list",
        b"uploads",
        b"%3A",
        b"?",
        b"&ns=",
        b"&n=1",
        b"..",
        b"sha256:",
    ];
    crate::http::fuzzing::run(&seeds, &words, fuzz);
}
