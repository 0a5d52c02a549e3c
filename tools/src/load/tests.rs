//! Runs against the synthetic upstream, whose faults must be counted as what they are.

use std::time::Duration;

use serde_json::{Value, json};

use super::digest::Expected;
use super::meter::Kind;
use super::report::Report;
use super::run::{Settings, run};
use super::schedule::{Extent, Pace};
use super::single::Single;
use super::tls;
use super::url::Url;
use crate::origin::Running;
use crate::origin::tests::{call, start};

fn put_blob(origin: &Running, size: u64) -> String {
    let made = call(
        origin,
        "blobs",
        &json!({"repositories": ["a"], "size": size}),
    );
    format!(
        "{}/v2/a/blobs/{}",
        origin.urls().registry,
        made["digest"].as_str().unwrap()
    )
}

fn blob(url: &str, verify: bool) -> Single {
    let last = url.rsplit('/').next().unwrap();
    Single {
        url: Url::parse(url).unwrap(),
        kind: Kind::Blob,
        head_only: false,
        fields: String::new(),
        digest: verify.then(|| Expected::parse(last).unwrap()),
    }
}

fn settings(connections: usize, requests: u64) -> Settings {
    Settings {
        threads: 1,
        clients: connections,
        pace: Pace::Closed,
        extent: Extent::Requests(requests),
        timeout: Duration::from_secs(60),
        tls: tls::config(None, true).unwrap(),
        login: None,
        keep_alive: true,
    }
}

fn measure(single: &Single, settings: &Settings) -> Report {
    let outcome = run(settings, single, |_| {}).unwrap();
    Report::new("test".to_owned(), "url", settings.clients, outcome)
}

fn load(single: &Single, connections: usize, requests: u64) -> Report {
    measure(single, &settings(connections, requests))
}

/// The classes that were counted.
fn errors(report: &Report) -> Value {
    let mut counted = report.json()["errors"].clone();
    counted
        .as_object_mut()
        .unwrap()
        .retain(|_, count| *count != 0);
    counted
}

#[test]
fn counts_requests_and_bytes() {
    let origin = start();
    for size in [0, 10, 4096, 70_000, 3_000_000] {
        let url = put_blob(&origin, size);
        for verify in [false, true] {
            call(&origin, "log/clear", &json!({}));
            let report = load(&blob(&url, verify), 3, 7);
            assert_eq!(
                (report.requests(), report.counts.bytes),
                (7, 7 * size),
                "{size} {verify}"
            );
            assert_eq!(errors(&report), json!({}), "{size} {verify}");
            assert_eq!(report.first_bytes.iter().flatten().count(), 3);
            call(
                &origin,
                "wait",
                &json!({"requests": {"state": "complete"}, "count": 7}),
            );
        }
    }
}

#[test]
fn heads_have_no_body() {
    let origin = start();
    let url = put_blob(&origin, 5000);
    let report = load(
        &Single {
            head_only: true,
            ..blob(&url, false)
        },
        1,
        2,
    );
    assert_eq!(
        (report.requests(), report.counts.bytes, report.errors()),
        (2, 0, 0)
    );
}

#[test]
fn every_error_has_its_class() {
    for (then, class, answered) in [
        (json!({"status": 500}), Some("status"), 2),
        (json!({"flip_at": 0}), Some("digest"), 2),
        (json!({"truncate_at": "50%"}), Some("truncated"), 1),
        (json!({"refuse": true}), Some("reset"), 1),
        (json!({"raw": "garbage\r\n\r\n"}), Some("head"), 1),
        (json!({"length_add": -5}), Some("head"), 1),
        (json!({"chunked": true}), None, 2),
        (json!({"until_close": true}), None, 2),
        (
            json!({"chunked": true, "truncate_at": -1}),
            Some("truncated"),
            1,
        ),
    ] {
        let origin = start();
        let url = put_blob(&origin, 1000);
        call(&origin, "faults", &json!({"times": 1, "then": then}));
        let report = load(&blob(&url, true), 1, 2);
        let expected = class.map_or(json!({}), |class| json!({class: 1}));
        assert_eq!(errors(&report), expected, "{then}");
        assert_eq!(report.requests(), answered, "{then}");
    }
}

#[test]
fn a_stalled_request_is_given_up() {
    let origin = start();
    let url = put_blob(&origin, 1000);
    call(
        &origin,
        "faults",
        &json!({"times": 1, "then": {"stall_at": 500}}),
    );
    let settings = Settings {
        timeout: Duration::from_millis(50),
        ..settings(1, 2)
    };
    let report = measure(&blob(&url, false), &settings);
    assert_eq!(
        (errors(&report), report.requests()),
        (json!({"timeout": 1}), 1)
    );
}

#[test]
fn latencies_hold_the_delay() {
    let origin = start();
    let url = put_blob(&origin, 1000);
    call(&origin, "faults", &json!({"then": {"delay_ms": 20}}));
    let report = load(&blob(&url, false), 2, 4).json();
    for times in ["latency_ms", "first_byte_ms"] {
        for mark in ["p50", "p90", "p99", "max"] {
            assert!(report[times][mark].as_f64().unwrap() >= 19.9, "{report}");
        }
    }
    let first_bytes = report["first_bytes_ms"].as_array().unwrap();
    assert!(
        first_bytes
            .iter()
            .all(|time| time.as_f64().unwrap() >= 20.0),
        "{report}"
    );
}

#[test]
fn nobody_there() {
    let origin = start();
    let url = put_blob(&origin, 10);
    call(&origin, "stop-listening", &json!({}));
    let report = load(&blob(&url, false), 2, 2);
    assert_eq!(
        (errors(&report), report.requests()),
        (json!({"connect": 2}), 0)
    );
}

#[test]
fn a_timed_run_measures_its_time() {
    let origin = start();
    let url = put_blob(&origin, 1000);
    let settings = Settings {
        extent: Extent::Time {
            warmup: Duration::from_millis(20),
            measured: Duration::from_millis(100),
        },
        ..settings(2, 0)
    };
    let report = measure(&blob(&url, false), &settings);
    assert!(report.took >= Duration::from_millis(100));
    assert!(report.requests() > 0 && report.counts.bytes >= 1000 * (report.requests() - 2));
    assert_eq!(report.errors(), 0);
}
