//! The load tool against the server: whole pulls, a herd, the registry's mix, and the server's
//! own log replayed.

use std::net::SocketAddr;

use serde_json::{Value, json};

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::Entrepot;
use entrepot_tests::origin::Origin;
use entrepot_tests::process::{built, command, run_ok};

/// Runs the load tool, which must succeed; returns its report.
#[track_caller]
fn load(args: &[&str]) -> Value {
    let program = built("entrepot-load", "ENTREPOT_LOAD_BIN", "entrepot-tools");
    let mut command = command(program);
    command.args(args).arg("--json");
    let report: Value = serde_json::from_str(&run_ok(command)).expect("a report");
    let errors = report["errors"].as_object().expect("errors");
    assert!(errors.values().all(|count| *count == 0), "{report}");
    report
}

fn url(addr: SocketAddr, path: &str) -> String {
    format!("http://{addr}{path}")
}

#[test]
fn clients_of_every_kind_pull_through_the_cache() {
    let origin = Origin::start();
    origin.image_of(json!({
        "repository": "library/app", "tags": ["1.0"], "platforms": ["linux/amd64", "linux/arm64"],
        "layers": [{"size": 3_000_000}, {"size": 100_000}, {"size": 20_000}, {"size": 5000}],
    }));
    let server = Entrepot::before(origin.url());
    let image = url(server.addr(), "/dh/library/app:1.0");
    for client in ["containerd", "docker", "skopeo", "crane"] {
        let pull = [
            "pull",
            &image,
            "--client",
            client,
            "-c",
            "5",
            "--threads",
            "2",
        ];
        let report = load(&pull);
        assert_eq!(report["kinds"]["image"]["requests"], 5, "{report}");
        assert_eq!(report["kinds"]["blob"]["requests"], 20, "{report}");
    }
    // Config and four layers, each fetched once for twenty pulls.
    assert_eq!(origin.count("kind=blob&method=GET"), 5);
    // As a mirror is asked, which names no project.
    let mirror = url(server.addr(), "/library/app:1.0");
    load(&["pull", &mirror, "--ns", "docker.io"]);
}

#[test]
fn a_herd_brings_upstream_one_request() {
    let origin = Origin::start();
    let blob = origin.blob(&["library/herd"], 20_000_000, 1);
    let server = Entrepot::before(origin.url());
    let path = format!("/v2/dh/library/herd/blobs/{}", blob.digest);
    let url = url(server.addr(), &path);
    let herd = [
        "herd",
        "--url",
        &url,
        "-c",
        "32",
        "--verify",
        "--upstream",
        origin.url(),
    ];
    let report = load(&herd);
    assert_eq!(report["requests"], 32);
    let factor = report["upstream"]["factor"].as_f64().expect("a factor");
    assert!((0.99..1.05).contains(&factor), "{report}");
}

#[test]
fn a_mix_and_its_log_again() {
    let origin = Origin::start();
    let server = Entrepot::before(origin.url());
    let registry = url(server.addr(), "");
    let mix = [
        "mix",
        "--url",
        &registry,
        "--prefix",
        "dh/",
        "--control",
        origin.url(),
    ];
    let size = [
        "--synthesise",
        "64",
        "--scale",
        "2000",
        "-n",
        "400",
        "-c",
        "8",
        "--verify",
    ];
    let report = load(&[&mix[..], &size].concat());
    assert_eq!(report["requests"], 400);

    let served = || {
        let log = server.log().into_iter();
        let served = log.filter(|line| line["message"] == "served");
        served.map(|line| format!("{line}\n")).collect::<Vec<_>>()
    };
    until_true("all is in the log", || served().len() == 400);
    let log = server
        .setup()
        .dir()
        .write("replayed.log", &served().concat());
    let log = log.to_str().expect("a path");
    let replay = [
        "replay", "--log", log, "--url", &registry, "--speed", "max", "-c", "8",
    ];
    let again = load(&replay);
    assert_eq!(
        (&again["requests"], &again["lines_left_out"]),
        (&json!(400), &json!(0))
    );
    for kind in ["ping", "manifest", "blob"] {
        let count = |report: &Value| report["kinds"][kind]["requests"].clone();
        assert_eq!(count(&report), count(&again), "{kind}");
    }
    // As a plan: the server answers 1,000 a second from what it holds.
    let planned = [
        "--rate",
        "1000",
        "-n",
        "500",
        "-c",
        "16",
        "--catalog",
        origin.url(),
    ];
    let planned = load(&[&mix[..5], &planned].concat());
    assert_eq!(planned["requests"], 500);
}
