//! What goes wrong is counted as what it is, and latencies tell the truth.

use serde_json::{Value, json};

use super::world::{Origin, load};

fn blob(origin: &Origin, url: &str, more: &[&str]) -> (Value, Value, bool) {
    let _ = origin;
    let ran = load(&[&["blob", "--json", "--url", url], more].concat());
    (ran.report(), ran.errors(), ran.success)
}

#[test]
fn statuses_are_errors_by_code() {
    for status in [404, 429, 503] {
        let origin = Origin::start(&[]);
        let url = origin.blob(1000);
        origin.fault(&json!({"times": 2, "then": {"status": status}}));
        let (report, errors, success) = blob(&origin, &url, &["-n", "5"]);
        assert_eq!(errors, json!({"status": 2}));
        assert_eq!(report["statuses"][status.to_string()], 2, "{report}");
        assert_eq!((&report["requests"], success), (&json!(5), false));
    }
}

#[test]
fn bodies_that_are_wrong_or_short_are_told_apart() {
    for (then, class) in [
        (json!({"flip_at": "50%"}), "digest"),
        (json!({"truncate_at": "50%"}), "truncated"),
        (json!({"reset_at": "50%"}), "truncated"),
        (json!({"reset_at": 0}), "truncated"),
        (json!({"refuse": true}), "reset"),
        (json!({"hang": true}), "timeout"),
    ] {
        let origin = Origin::start(&[]);
        let url = origin.blob(3_000_000);
        origin.fault(&json!({"times": 1, "then": then}));
        let more = ["-n", "3", "--verify", "--timeout", "0.3"];
        let (_, errors, success) = blob(&origin, &url, &more);
        assert_eq!((errors, success), (json!({class: 1}), false), "{then}");
    }
}

/// Two seconds at 100 a second, of which the server sleeps one. In an open loop the hundred that
/// were due meanwhile have waited, half a second on average; a closed loop sees one of them.
#[test]
fn a_stall_is_seen_by_all_that_were_due() {
    for (rate, late_by_p75) in [(&["--rate", "100"][..], true), (&[][..], false)] {
        let origin = Origin::start(&[]);
        let url = origin.blob(1000);
        let stall = json!({"skip": 50, "times": 1, "then": {"delay_ms": 1000}});
        origin.fault(&stall);
        let more = [&["-n", "200", "-c", "1"], rate].concat();
        let (report, errors, _) = blob(&origin, &url, &more);
        assert_eq!((&report["requests"], errors), (&json!(200), json!({})));
        let mark = |name: &str| report["latency_ms"][name].as_f64().unwrap();
        assert!(mark("max") >= 1000.0, "{report}");
        assert_eq!(mark("p90") >= 700.0, late_by_p75, "{report}");
    }
}

/// A plan that the server cannot keep is not kept silent about.
#[test]
fn what_never_began_is_an_error() {
    let origin = Origin::start(&[]);
    let url = origin.blob(1000);
    origin.fault(&json!({"then": {"hang": true}}));
    let more = ["-d", "0.2", "--rate", "100", "-c", "1", "--timeout", "0.5"];
    let (report, errors, success) = blob(&origin, &url, &more);
    assert_eq!((errors, success), (json!({"timeout": 20}), false));
    assert_eq!(report["requests"], 0);
}

#[test]
fn redirects_have_an_end() {
    let origin = Origin::start(&[]);
    let url = origin.blob(1000);
    origin.fault(&json!({"then": {"redirect": url}}));
    let (report, errors, _) = blob(&origin, &url, &["-n", "1"]);
    assert_eq!(errors, json!({"redirect": 1}));
    assert_eq!(
        (&report["redirects"], origin.count("kind=blob")),
        (&json!(5), 6)
    );
}

#[test]
fn nobody_there() {
    let ran = load(&["blob", "--json", "--url", "http://127.0.0.1:1/x", "-n", "2"]);
    assert_eq!((ran.errors(), ran.success), (json!({"connect": 2}), false));
}
