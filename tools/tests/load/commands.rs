//! Settings that all commands have, and what they are told when used wrongly.

use serde_json::json;

use super::world::{Origin, load};

#[test]
fn threads_share_the_requests() {
    let origin = Origin::start(&[]);
    let url = origin.blob(4096);
    for more in [&[][..], &["--no-keep-alive"], &["--rate", "1000"]] {
        let blob = [
            "blob",
            "--url",
            &url,
            "-c",
            "5",
            "-n",
            "101",
            "--threads",
            "3",
            "--json",
        ];
        let ran = load(&[&blob, more].concat());
        let report = ran.report();
        assert!(ran.success, "{report}");
        assert_eq!(
            (&report["requests"], &report["bytes"]),
            (&json!(101), &json!(101 * 4096))
        );
        assert_eq!(report["first_bytes_ms"].as_array().unwrap().len(), 5);
        let series = report["series"]["requests"].as_array().unwrap();
        let sum: f64 = series.iter().map(|count| count.as_f64().unwrap()).sum();
        assert_eq!(sum, 101.0);
    }
    // Kept alive: one connection each, in two of the three runs.
    let connections = origin.read("counters")["connections"]["registry"].as_u64();
    assert_eq!(connections, Some(5 + 5 + 101));
}

#[test]
fn a_manifest_is_asked_for_with_its_types() {
    let origin = Origin::start(&["--image", "lib/app:1.0"]);
    let url = format!("{}/v2/lib/app/manifests/1.0", origin.url());
    let ran = load(&["manifest", "--url", &url, "--json"]);
    assert!(ran.success, "{}", ran.stdout);
    assert!(
        origin.read("log")[0]["fields"]["accept"][0]
            .as_str()
            .unwrap()
            .contains("index")
    );
    assert_eq!(ran.report()["kinds"]["manifest"]["requests"], 1);
    // Without the types of the image there is no such manifest.
    let none = load(&[
        "manifest",
        "--url",
        &url,
        "--accept",
        "text/plain",
        "--json",
    ]);
    assert_eq!(none.report()["statuses"]["404"], 1);
}

#[test]
fn idle_connections_that_the_server_closed_are_no_error() {
    let origin = Origin::start(&[]);
    let url = origin.blob(100);
    origin.fault(&json!({"times": 1, "then": {"close": true}}));
    // Two seconds between requests.
    let ran = load(&["blob", "--url", &url, "-n", "2", "--rate", "0.5", "--json"]);
    assert!(ran.success, "{}", ran.stdout);
    assert_eq!(ran.report()["reconnects"], 1);
}

#[test]
fn wrong_use_says_what_to_do() {
    for (arguments, told) in [
        (&["blob", "--url", "ftp://x/"][..], "http://"),
        (&["blob", "--url", "http://x/", "--verify"], "--digest"),
        (&["blob", "--url", "http://x/", "--rate", "0"], "above 0"),
        (
            &["blob", "--url", "http://x/", "--user", "me"],
            "NAME:PASSWORD",
        ),
        (
            &["blob", "--url", "http://x/", "--ca-file", "/nowhere"],
            "/nowhere",
        ),
        (&["pull", "alpine"], "docker.io/library/alpine"),
        (
            &["pull", "http://x/y", "--platform", "linux"],
            "linux/arm64",
        ),
    ] {
        let ran = load(arguments);
        assert!(!ran.success);
        assert!(ran.stderr.contains(told), "{arguments:?}: {}", ran.stderr);
    }
}

#[test]
fn reports_as_a_page_and_as_histograms() {
    let origin = Origin::start(&[]);
    let url = origin.blob(100);
    let folder = std::env::temp_dir().join(format!("entrepot-load-files-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (html, histogram) = (path("a.html"), path("a.hlog"));
    let ran = load(&[
        "blob",
        "--url",
        &url,
        "-n",
        "50",
        "--header",
        "X: <b>",
        "--html",
        &html,
        "--histogram",
        &histogram,
    ]);
    assert!(ran.success, "{}", ran.stderr);
    assert!(ran.stdout.contains("p99.99"), "{}", ran.stdout);
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(
        page.contains("<polyline") && page.contains("connections"),
        "{page}"
    );
    // Nothing comes from elsewhere.
    for foreign in ["<script", "<link", "src=", "href=", "@import"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    let log = std::fs::read_to_string(&histogram).unwrap();
    for tag in ["Tag=all,", "Tag=first-byte,", "Tag=blob,"] {
        assert!(log.contains(tag), "{log}");
    }
    assert!(log.contains(",HIST"), "{log}");
    std::fs::remove_dir_all(&folder).unwrap();
    let nowhere = load(&["blob", "--url", &url, "--html", &html]);
    assert!(nowhere.stderr.contains(&html), "{}", nowhere.stderr);
}

#[test]
fn help_shows_how() {
    for command in ["blob", "manifest", "pull", "herd", "mix", "replay"] {
        let help = load(&[command, "--help"]);
        assert!(help.success);
        assert!(help.stdout.contains("Examples:"), "{}", help.stdout);
        assert!(
            help.stdout.contains(&format!("entrepot-load {command}")),
            "{command}"
        );
    }
}
