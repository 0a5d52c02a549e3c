//! Whole images: what each client sends, tokens, TLS, redirects.

use serde_json::json;

use super::world::{Origin, load};

const IMAGE: &str = "lib/app:1.0,layers=5,size=100K,platforms=linux/amd64+linux/arm64";

fn name(origin: &Origin) -> String {
    format!("{}/lib/app:1.0", origin.url())
}

#[test]
fn each_client_asks_in_its_own_way() {
    for (client, pings, heads, accept_lines) in [
        ("containerd", 0, 1, 1),
        ("docker", 1, 1, 6),
        ("skopeo", 1, 0, 6),
        ("crane", 1, 1, 1),
    ] {
        let origin = Origin::start(&["--image", IMAGE]);
        let image = name(&origin);
        let ran = load(&[
            "pull",
            &image,
            "--client",
            client,
            "--json",
            "--ns",
            "docker.io",
        ]);
        assert!(ran.success, "{}{}", ran.stdout, ran.stderr);
        let report = ran.report();
        assert_eq!(report["kinds"]["image"]["requests"], 1);
        // Index and manifest, config, five layers.
        let gets = origin.count("method=GET&repository=lib/app");
        assert_eq!((gets, origin.count("kind=base")), (8, pings));
        assert_eq!(origin.count("method=HEAD"), heads);
        assert_eq!(report["requests"], 8 + pings + heads);
        let log = origin.read("log?kind=manifest");
        let first = &log[0];
        let accepts = first["fields"]["accept"].as_array().unwrap();
        assert_eq!(
            (accepts.len(), &first["query"]),
            (accept_lines, &json!("ns=docker.io"))
        );
    }
}

#[test]
fn the_platform_decides() {
    let origin = Origin::start(&["--image", IMAGE]);
    let image = name(&origin);
    let arm = load(&["pull", &image, "--platform", "linux/arm64", "--json"]);
    assert!(arm.success, "{}", arm.stdout);
    let none = load(&["pull", &image, "--platform", "linux/s390x", "--json"]);
    assert_eq!(
        (none.errors(), none.success),
        (json!({"manifest": 1}), false)
    );
    assert_eq!(none.report()["images_failed"], 1);
}

#[test]
fn many_clients_pull_at_once() {
    let origin = Origin::start(&["--image", IMAGE]);
    let image = name(&origin);
    let arguments = [
        "pull",
        &image,
        "-c",
        "10",
        "-n",
        "30",
        "--threads",
        "2",
        "--json",
    ];
    let ran = load(&arguments);
    assert!(ran.success, "{}", ran.stdout);
    let report = ran.report();
    assert_eq!(report["kinds"]["image"]["requests"], 30);
    assert_eq!(report["kinds"]["blob"]["requests"], 150);
    assert_eq!(report["requests"], 270);
    assert_eq!(report["first_bytes_ms"].as_array().unwrap().len(), 10);
}

#[test]
fn a_wrong_layer_fails_the_image() {
    let origin = Origin::start(&["--image", IMAGE]);
    let rule = json!({"match": {"kind": "blob"}, "times": 1, "then": {"flip_at": 5}});
    origin.fault(&rule);
    let ran = load(&["pull", &name(&origin), "--json"]);
    assert_eq!(ran.errors(), json!({"digest": 1}));
    assert_eq!(ran.report()["images_failed"], 1);
    // Discarded bytes are not looked at, their number is.
    origin.fault(&rule);
    let discard = ["pull", &name(&origin), "--json", "--discard"];
    assert!(load(&discard).success);
    origin.fault(&json!({"match": {"kind": "blob"}, "times": 1, "then": {"body_add": 5}}));
    assert_eq!(load(&discard).errors(), json!({"digest": 1}));
}

#[test]
fn tokens_are_fetched_as_challenged() {
    let origin = Origin::start(&[
        "--image",
        IMAGE,
        "--auth",
        "token",
        "--user",
        "me:secret",
        "--private",
        "lib/app",
    ]);
    let image = name(&origin);
    for client in ["containerd", "docker"] {
        let ran = load(&[
            "pull",
            &image,
            "--user",
            "me:secret",
            "--client",
            client,
            "--json",
        ]);
        assert!(ran.success, "{}", ran.stdout);
        let report = ran.report();
        assert_eq!(
            report["kinds"]["token"]["requests"], 1,
            "{client}: {report}"
        );
    }
    // containerd learns of the token from its first HEAD, docker from its probe.
    assert_eq!(origin.count("kind=token"), 2);
    assert_eq!(origin.count("status=401&kind=manifest"), 1);
    assert_eq!(origin.count("status=401&kind=base"), 1);
    let stranger = load(&["pull", &image, "--json"]);
    assert_eq!(stranger.errors(), json!({"status": 1}));
    let wrong = load(&["pull", &image, "--user", "me:wrong", "--json"]);
    assert_eq!(wrong.errors(), json!({"token": 1}));
    assert!(!wrong.stdout.contains("me:wrong"));
}

#[test]
fn basic_logins_work_too() {
    let private = ["--private", "lib/app", "--user", "me:secret"];
    let origin = Origin::start(&[&["--image", IMAGE, "--auth", "basic"], &private[..]].concat());
    let image = name(&origin);
    let ran = load(&["pull", &image, "--user", "me:secret", "--json"]);
    assert!(ran.success, "{}", ran.stdout);
    assert_eq!(
        load(&["pull", &image, "--json"]).errors(),
        json!({"status": 1})
    );
}

/// The CDN refuses requests with credentials, as object stores do.
#[test]
fn redirects_take_no_credentials_along() {
    let private = ["--private", "lib/app", "--user", "me:secret"];
    let origin = Origin::start(&[&["--image", IMAGE, "--auth", "token"], &private[..]].concat());
    let rule = json!({
        "match": {"kind": "blob", "listener": "registry"},
        "then": {"redirect": "cdn"},
    });
    origin.fault(&rule);
    let ran = load(&["pull", &name(&origin), "--user", "me:secret", "--json"]);
    assert!(ran.success, "{}", ran.stdout);
    assert_eq!(ran.report()["redirects"], 6);
    assert_eq!(origin.count("listener=cdn&status=200"), 6);
}

#[test]
fn over_tls() {
    let ca = std::env::temp_dir().join(format!("entrepot-load-ca-{}.pem", std::process::id()));
    let ca = ca.to_str().unwrap();
    let origin = Origin::start(&["--image", IMAGE, "--tls", "--ca-out", ca]);
    let image = name(&origin);
    assert!(image.starts_with("https://"));
    let trusted = load(&["pull", &image, "--ca-file", ca, "--json"]);
    std::fs::remove_file(ca).unwrap();
    assert!(trusted.success, "{}", trusted.stdout);
    let unknown = load(&["pull", &image, "--json"]);
    assert_eq!(unknown.errors(), json!({"tls": 1}));
    let big = origin.blob(5_000_000);
    for more in [
        &["--verify"][..],
        &["--no-keep-alive"][..],
        &["-c", "3"][..],
    ] {
        let blob = ["blob", "--url", &big, "--insecure", "--json", "-n", "6"];
        let ran = load(&[&blob, more].concat());
        assert!(ran.success, "{}", ran.stdout);
        assert_eq!(ran.report()["bytes"], 30_000_000);
    }
}
