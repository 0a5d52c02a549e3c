use super::*;

const IMAGE: &str = r#"{
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 1469},
    "layers": [{"mediaType": "a", "size": 1}, {"mediaType": "b", "urls": ["http://c"]}],
    "annotations": {"a": "{[\"\\"}
}"#;
const INDEX: &str = r#"{"schemaVersion":2,"manifests":[{"platform":{"os.features":["a"]}}]}"#;

#[test]
fn a_document_without_a_type_tells_it_itself() {
    assert_eq!(detect(IMAGE.as_bytes()), Ok(ManifestKind::OciManifest));
    assert_eq!(detect(INDEX.as_bytes()), Ok(ManifestKind::OciIndex));
    for (document, error) in [
        ("{}", ManifestError::MediaTypeUnknown),
        (
            r#"{"mediaType":"text/plain","layers":[]}"#,
            ManifestError::MediaTypeUnknown,
        ),
        (r#"{"manifests":[],"layers":[]}"#, ManifestError::Ambiguous),
        ("\u{1f}\u{8b}", ManifestError::InvalidJson),
    ] {
        assert_eq!(detect(document.as_bytes()), Err(error), "{document}");
    }
}

#[test]
fn layers_that_are_elsewhere() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let layers = |media_type: &str, more: &str| {
        let text =
            format!(r#"{{"layers":[{{"mediaType":"{media_type}","digest":"{digest}"{more}}}]}}"#);
        foreign_layers(text.as_bytes())
    };
    let urls = r#","urls":["https://a/b","https://c"]"#;
    for foreign in [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    ] {
        let expected = ["https://a/b", "https://c"].map(str::to_owned).to_vec();
        let found = layers(foreign, urls);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1, expected);
        assert!(layers(foreign, "").is_empty());
        assert!(layers(foreign, r#","urls":"https://a""#).is_empty());
    }
    let own = "application/vnd.oci.image.layer.v1.tar+gzip";
    assert!(layers(own, urls).is_empty());
    assert!(foreign_layers(INDEX.as_bytes()).is_empty());
    assert!(foreign_layers(b"no JSON").is_empty());
}

fn image() -> &'static str {
    ManifestKind::OciManifest.media_type()
}

fn index() -> &'static str {
    ManifestKind::OciIndex.media_type()
}

#[test]
fn every_kind_is_asked_for_by_its_own_name() {
    let asked: Vec<_> = ACCEPT.split(", ").collect();
    assert_eq!(asked.len(), KINDS.len());
    for kind in KINDS {
        assert!(asked.contains(&kind.media_type()));
        assert_eq!(ManifestKind::of(kind.media_type()), Some(kind));
    }
}

#[test]
fn content_types() {
    assert!(is_manifest_type(
        "Application/vnd.OCI.image.index.v1+json ; charset=utf-8"
    ));
    let others = [
        "",
        "*/*",
        "application/json",
        "text/html",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.oci.image.index.v1+json, text/html",
    ];
    for other in others {
        assert!(!is_manifest_type(other), "{other}");
    }
}

#[test]
fn accepted() {
    use ManifestKind as Kind;
    let cases = [
        (IMAGE, Kind::OciManifest),
        (INDEX, Kind::OciIndex),
        (r#"{"blobs":[],"artifactType":"a"}"#, Kind::OciArtifact),
        (
            r#"{"mediaType":"","manifests":null,"layers":null}"#,
            Kind::OciIndex,
        ),
        (r#" {} "#, Kind::OciManifest),
    ];
    for (text, kind) in cases {
        assert_eq!(
            check(text.as_bytes(), kind.media_type()),
            Ok(kind),
            "{text}"
        );
    }
    // Without a type of its own a document is what its shape says.
    for (text, came_as, kind) in [
        (INDEX, Kind::DockerList, Kind::OciIndex),
        (
            r#"{"config":{},"layers":[]}"#,
            Kind::DockerManifest,
            Kind::OciManifest,
        ),
    ] {
        assert_eq!(check(text.as_bytes(), came_as.media_type()), Ok(kind));
    }
    let with_parameter = format!("{}; charset=utf-8", image());
    assert_eq!(
        check(IMAGE.as_bytes(), &with_parameter),
        Ok(Kind::OciManifest)
    );
}

#[test]
fn refused() {
    use ManifestError as E;
    let cases = [
        ("", image(), E::InvalidJson),
        ("<html></html>", image(), E::InvalidJson),
        ("[]", image(), E::InvalidJson),
        ("null", image(), E::InvalidJson),
        ("{} {}", image(), E::InvalidJson),
        (r#"{"layers":[1,]}"#, image(), E::InvalidJson),
        (r#"{"layers":{}}"#, image(), E::InvalidJson),
        (r#"{"layers":"a"}"#, image(), E::InvalidJson),
        (r#"{"mediaType":1}"#, image(), E::InvalidJson),
        (r#"{"layers":[],"layers":[]}"#, image(), E::InvalidJson),
        (r#"{"layers":null,"layers":[]}"#, image(), E::InvalidJson),
        (r#"{"Layers":[]}"#, image(), E::InvalidJson),
        (r#"{"layers":[],"MANIFESTS":[]}"#, image(), E::InvalidJson),
        (r#"{"mediatype":"a"}"#, image(), E::InvalidJson),
        ("\u{feff}{}", image(), E::InvalidJson),
        ("{}", "application/json", E::MediaTypeUnknown),
        (IMAGE, index(), E::MediaTypeMismatch),
        (
            IMAGE,
            ManifestKind::DockerManifest.media_type(),
            E::MediaTypeMismatch,
        ),
        (INDEX, image(), E::Ambiguous),
        (r#"{"layers":[],"manifests":[]}"#, image(), E::Ambiguous),
        (r#"{"layers":[],"manifests":[]}"#, index(), E::Ambiguous),
        (r#"{"config":{},"manifests":[]}"#, index(), E::Ambiguous),
        (r#"{"blobs":[]}"#, image(), E::Ambiguous),
        (r#"{"blobs":[]}"#, index(), E::Ambiguous),
        (
            r#"{"manifests":[]}"#,
            ManifestKind::OciArtifact.media_type(),
            E::Ambiguous,
        ),
        (r#"{"fsLayers":[]}"#, image(), E::Ambiguous),
    ];
    for (text, content_type, expected) in cases {
        assert_eq!(
            check(text.as_bytes(), content_type),
            Err(expected),
            "{text}"
        );
    }
    assert_eq!(check(b"{\"a\":\"\xff\"}", image()), Err(E::InvalidJson));
}

#[test]
fn bounds() {
    let deep = |depth: usize| {
        let arrays = depth - 1;
        format!("{{\"a\":{}{}}}", "[".repeat(arrays), "]".repeat(arrays))
    };
    assert!(check(deep(DEPTH_MAX).as_bytes(), image()).is_ok());
    let deeper = deep(DEPTH_MAX + 1);
    assert_eq!(
        check(deeper.as_bytes(), image()),
        Err(ManifestError::TooDeep)
    );
    let bomb = "[".repeat(1_000_000);
    assert_eq!(check(bomb.as_bytes(), image()), Err(ManifestError::TooDeep));

    let wide = |count: usize| format!("{{\"layers\":[{}0]}}", "0,".repeat(count - 1));
    assert!(check(wide(DESCRIPTORS_MAX).as_bytes(), image()).is_ok());
    let wider = wide(DESCRIPTORS_MAX + 1);
    assert_eq!(
        check(wider.as_bytes(), image()),
        Err(ManifestError::TooManyDescriptors)
    );
}

#[test]
fn fuzz_mutated_manifests() {
    let seeds: [&[u8]; 3] = [IMAGE.as_bytes(), INDEX.as_bytes(), br#"{"blobs":[{}]}"#];
    let words: [&[u8]; 14] = [
        b"{",
        b"}",
        b"[",
        b"]",
        b"\"",
        b"\\",
        b",",
        b":",
        b"null",
        b"\"manifests\":[],",
        b"\"layers\":[],",
        b"\"Config\":{},",
        b"1e999",
        b"\"mediaType\":\"\",",
    ];
    crate::http::fuzzing::run(&seeds, &words, fuzz);
}
