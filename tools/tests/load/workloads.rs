//! Herds, mixes and replays.

use std::fs;

use serde_json::{Value, json};

use super::world::{Origin, load};

#[test]
fn a_herd_asks_at_once() {
    let origin = Origin::start(&[]);
    let url = origin.blob(200_000);
    // Until all have asked, nobody is answered.
    let rule = json!({"match": {"kind": "blob"}, "times": 20, "then": {"delay_ms": 50}});
    origin.fault(&rule);
    let herd = [
        "herd",
        "--url",
        &url,
        "-c",
        "20",
        "--threads",
        "2",
        "--verify",
        "--json",
    ];
    let ran = load(&[&herd, &["--upstream", origin.control_url()][..]].concat());
    assert!(ran.success, "{}", ran.stdout);
    let report = ran.report();
    assert_eq!(
        (&report["requests"], &report["bytes"]),
        (&json!(20), &json!(4_000_000))
    );
    let first = report["first_bytes_ms"].as_array().unwrap();
    assert!(first.iter().all(|ms| ms.as_f64().unwrap() >= 50.0));
    let upstream = json!({"requests": 20, "bytes": 4_000_000, "factor": 20.0});
    assert_eq!(report["upstream"], upstream);
    assert_eq!(origin.read("counters")["connections"]["registry"], 20);
    let wrong = load(&["herd", "--url", &url, "-n", "3"]);
    assert!(
        wrong.stderr.contains("does not go with"),
        "{}",
        wrong.stderr
    );
}

fn targets(origin: &Origin) -> Vec<String> {
    let log = origin.read("log");
    let log = log.as_array().unwrap().iter();
    let mut paths: Vec<String> = log
        .map(|one| one["path"].as_str().unwrap().to_owned())
        .collect();
    paths.sort();
    paths
}

#[test]
fn a_mix_repeats_itself() {
    let origin = Origin::start(&[]);
    let control = origin.control_url();
    let common = [
        "mix",
        "--url",
        origin.url(),
        "-n",
        "300",
        "--verify",
        "--json",
    ];
    let make = [
        "--synthesise",
        "40",
        "--control",
        control,
        "--scale",
        "10000",
    ];
    let ran = load(&[&common[..], &make].concat());
    assert!(ran.success, "{}{}", ran.stdout, ran.stderr);
    let report = ran.report();
    let count = |kind: &str| report["kinds"][kind]["requests"].as_u64().unwrap();
    assert!(
        count("ping") > 90 && count("manifest") > 30 && count("blob") > 60,
        "{report}"
    );
    assert_eq!(count("ping") + count("manifest") + count("blob"), 300);

    let catalog = ["--catalog", control, "--seed", "5", "-c", "1"];
    let mut runs = Vec::new();
    for _ in 0..2 {
        origin.call("log/clear", &json!({}));
        assert!(load(&[&common[..], &catalog].concat()).success);
        runs.push(targets(&origin));
    }
    assert_eq!(runs[0], runs[1]);
    assert_eq!(runs[0].len(), 300);
}

#[test]
fn a_mix_reads_a_file_and_puts_a_prefix_before_names() {
    let origin = Origin::start(&["--image", "dh/app:1.0"]);
    let mut all = origin.read("repositories");
    let held = all["dh/app"].take();
    let path = std::env::temp_dir().join(format!("entrepot-load-mix-{}", std::process::id()));
    fs::write(&path, json!({"app": held}).to_string()).unwrap();
    let file = path.to_str().unwrap();
    let mix = ["mix", "--url", origin.url(), "--catalog", file, "--json"];
    let all_herds = [
        "--prefix",
        "dh/",
        "-n",
        "100",
        "-c",
        "4",
        "--herd-every",
        "0.001",
    ];
    let ran = load(&[&mix[..], &all_herds].concat());
    fs::write(&path, "[]").unwrap();
    let wrong = load(&mix);
    fs::remove_file(&path).unwrap();
    assert!(ran.success, "{}{}", ran.stdout, ran.stderr);
    assert_eq!(ran.report()["statuses"], json!({"200": 100}));
    assert!(
        wrong.stderr.contains("/_origin/repositories"),
        "{}",
        wrong.stderr
    );
}

/// A log of the origin, of entrepot, and of nginx.
fn logs(digest: &str) -> [String; 3] {
    let mut logs = [String::new(), String::new(), String::new()];
    for (n, (kind, what, reference, status)) in [
        ("tag", "manifests", "1.0", 200),
        ("blob", "blobs", digest, 200),
        ("tag", "manifests", "2.0", 404),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/v2/lib/app/{what}/{reference}");
        let ms = n * 400;
        let line =
            json!({"t_ms": ms, "method": "GET", "path": path, "query": "", "status": status});
        logs[0].push_str(&format!("{line}\n"));
        logs[1].push_str(&format!(
            "2026-01-02T03:04:05.{ms:03}Z  INFO served peer=1.2.3.4:5 method=GET project=lib \
             repository=app reference={reference} kind={kind} status={status} bytes=1\n"
        ));
        logs[2].push_str(&format!(
            "1.2.3.4 - - [02/Jan/2026:03:04:0{n} +0000] \"GET {path} HTTP/1.1\" {status} 9 \"-\" \"-\"\n"
        ));
    }
    logs[1].push_str("2026-01-02T03:04:05.9Z  INFO stopped\n");
    logs
}

#[test]
fn logs_are_replayed_in_their_own_time() {
    let origin = Origin::start(&["--image", "lib/app:1.0,layers=1"]);
    let url = format!("{}/v2/lib/app/manifests/1.0", origin.url());
    assert!(load(&["manifest", "--url", &url]).success);
    let held = origin.read("repositories");
    let digest = held["lib/app"]["blobs"][0].as_str().unwrap();
    let path = std::env::temp_dir().join(format!("entrepot-load-log-{}", std::process::id()));
    let file = path.to_str().unwrap();
    let replay = |text: &str, more: &[&str]| -> Value {
        fs::write(&path, text).unwrap();
        let common = ["replay", "--log", file, "--url", origin.url(), "--json"];
        let ran = load(&[&common[..], more].concat());
        assert!(ran.success, "{}{}", ran.stdout, ran.stderr);
        let report = ran.report();
        assert_eq!(report["statuses"], json!({"200": 2, "404": 1}));
        report
    };
    let [own, entrepot, nginx] = logs(digest);
    let seconds = |report: &Value| report["seconds"].as_f64().unwrap();
    assert!(seconds(&replay(&own, &["--speed", "1"])) >= 0.8);
    assert!(seconds(&replay(&own, &["--speed", "2"])) >= 0.4);
    assert_eq!(replay(&entrepot, &["--speed", "max"])["lines_left_out"], 1);
    assert_eq!(
        replay(&nginx, &["--speed", "max", "-c", "3"])["lines_left_out"],
        0
    );
    fs::write(&path, "nothing\n").unwrap();
    let wrong = load(&["replay", "--log", file, "--url", origin.url()]);
    assert!(wrong.stderr.contains("combined format"), "{}", wrong.stderr);
    fs::remove_file(&path).unwrap();
    let wrong = load(&[
        "replay",
        "--log",
        file,
        "--url",
        origin.url(),
        "--speed",
        "0",
    ]);
    assert!(wrong.stderr.contains("above 0"), "{}", wrong.stderr);
}
