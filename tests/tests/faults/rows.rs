//! The table: a fault, and what comes of it.

use serde_json::{Value, json};

use crate::names::Names;

/// What becomes of a tag that is cached.
#[derive(Clone, Copy, Debug)]
pub enum Cached {
    /// Served, and says how old it is and why.
    Stale,
    /// A HEAD has no body that could break.
    Confirmed,
    /// Upstream's word counts.
    Refused(u16),
}

/// What is wrong with an upstream.
#[derive(Clone, Debug)]
pub enum Fault {
    /// What the origin does to every request of its registry.
    Registry(Value),
    /// The same of its token service, without which nothing is pulled there.
    Token(Value),
    /// A 429 with a date to come back at.
    LimitedUntil {
        seconds: u64,
    },
    /// A redirect from https to http.
    Downgrade,
    /// Nobody listens.
    Down,
    /// SYNs are dropped.
    Ignored,
    /// What the listeners show from now on.
    Certificate(Value),
    Names(Names),
}

impl Fault {
    /// Whether it names a time before which it is not to be asked again.
    pub fn holds(&self) -> bool {
        match self {
            Fault::Registry(then) => !then["headers"]["Retry-After"].is_null(),
            Fault::LimitedUntil { .. } => true,
            _ => false,
        }
    }
}

pub struct Row {
    pub name: &'static str,
    pub fault: Fault,
    pub cached: Cached,
    /// Statuses of a miss; a long body may also be cut short after its head.
    pub miss: &'static [u16],
    /// Requests that one miss of a tag and one of a blob may cost upstream together.
    pub asked_max: usize,
    /// Part of a line of the log.
    pub logged: &'static str,
}

/// The slow ones first: held for seconds, and asked again once for each hold.
pub fn rows() -> Vec<Row> {
    use Cached::{Confirmed, Refused, Stale};
    let row = |name, fault, cached, miss, asked_max, logged| Row {
        name,
        fault,
        cached,
        miss,
        asked_max,
        logged,
    };
    let raw = |text: &str, times: u64| json!({"raw": text, "raw_repeat": times});
    vec![
        row(
            "429, two seconds",
            Fault::Registry(limited("2")),
            Stale,
            &[429, 503],
            35,
            "requests are held",
        ),
        row(
            "429, a date",
            Fault::LimitedUntil { seconds: 8 },
            Stale,
            &[429, 503],
            70,
            "requests are held",
        ),
        row(
            "429, garbage",
            Fault::Registry(limited("soon")),
            Stale,
            &[429, 503],
            20,
            "requests are held",
        ),
        row(
            "name server says nothing",
            Fault::Names(Names::Nothing),
            Stale,
            &[504],
            0,
            "timed out",
        ),
        row(
            "no such name",
            Fault::Names(Names::NoSuchName),
            Stale,
            &[502],
            0,
            "looking up",
        ),
        row(
            "too slow",
            Fault::Registry(json!({"rate": 10})),
            Confirmed,
            &[502],
            8,
            "too slowly",
        ),
        row(
            "503, two seconds",
            Fault::Registry(json!({"status": 503, "headers": {"Retry-After": "2"}})),
            Stale,
            &[502, 503],
            8,
            "requests are held",
        ),
        row(
            "connections refused",
            Fault::Down,
            Stale,
            &[502, 503],
            0,
            "connection refused",
        ),
        row(
            "SYNs are dropped",
            Fault::Ignored,
            Stale,
            &[504],
            0,
            "timed out",
        ),
        row(
            "certificate expired",
            Fault::Certificate(json!({"leaf": "expired"})),
            Stale,
            &[502],
            0,
            "certificate expired",
        ),
        row(
            "certificate not valid yet",
            Fault::Certificate(json!({"leaf": "not-yet-valid"})),
            Stale,
            &[502],
            0,
            "certificate not valid yet",
        ),
        row(
            "certificate of another host",
            Fault::Certificate(json!({"leaf": "wrong-name"})),
            Stale,
            &[502],
            0,
            "not valid for name",
        ),
        row(
            "certificate of an unknown CA",
            Fault::Certificate(json!({"leaf": "unknown-ca"})),
            Stale,
            &[502],
            0,
            "UnknownIssuer",
        ),
        row(
            "certificate signed over SHA-1",
            signed_over_sha1(),
            Stale,
            &[502],
            0,
            "Signature",
        ),
        row(
            "token service closes",
            Fault::Token(json!({"refuse": true})),
            Stale,
            &[502],
            16,
            "token service: ",
        ),
        row(
            "token service hangs",
            Fault::Token(json!({"hang": true})),
            Stale,
            &[504],
            16,
            "token service: ",
        ),
        row(
            "token service fails",
            Fault::Token(json!({"status": 503})),
            Stale,
            &[502],
            16,
            "token service: it answered 503",
        ),
        row(
            "token service limits",
            Fault::Token(limited("2")),
            Stale,
            &[429],
            16,
            "token service: it answered 429",
        ),
        row(
            "closed without an answer",
            Fault::Registry(json!({"refuse": true})),
            Stale,
            &[502, 503],
            10,
            "upstream failed",
        ),
        row(
            "no answer",
            Fault::Registry(json!({"hang": true})),
            Stale,
            &[504],
            10,
            "did not answer in time",
        ),
        row(
            "reset after the head",
            Fault::Registry(json!({"reset_at": 0})),
            Confirmed,
            &[502],
            10,
            "fill",
        ),
        row(
            "cut in the middle",
            Fault::Registry(json!({"truncate_at": "50%"})),
            Confirmed,
            &[502],
            16,
            "fill",
        ),
        row(
            "reset in the middle",
            Fault::Registry(json!({"reset_at": "50%"})),
            Confirmed,
            &[502],
            16,
            "fill",
        ),
        row(
            "longer than it said",
            Fault::Registry(json!({"length_add": -10})),
            Confirmed,
            &[502],
            16,
            "fill",
        ),
        row(
            "shorter than it said",
            Fault::Registry(json!({"length_add": 10})),
            Confirmed,
            &[502],
            16,
            "fill",
        ),
        row(
            "other bytes",
            Fault::Registry(json!({"flip_at": "50%"})),
            Confirmed,
            &[502],
            10,
            "fill",
        ),
        row(
            "401 for every token",
            Fault::Registry(json!({"status": 401})),
            Refused(403),
            &[403],
            10,
            "",
        ),
        row(
            "403",
            Fault::Registry(json!({"status": 403})),
            Refused(403),
            &[403],
            10,
            "",
        ),
        row(
            "404",
            Fault::Registry(json!({"status": 404})),
            Refused(404),
            &[404],
            10,
            "",
        ),
        row(
            "500",
            Fault::Registry(json!({"status": 500})),
            Stale,
            &[502, 503],
            12,
            "answered 500",
        ),
        row(
            "502",
            Fault::Registry(json!({"status": 502})),
            Stale,
            &[502, 503],
            12,
            "answered 502",
        ),
        row(
            "503",
            Fault::Registry(json!({"status": 503})),
            Stale,
            &[502, 503],
            12,
            "answered 503",
        ),
        row(
            "504",
            Fault::Registry(json!({"status": 504})),
            Stale,
            &[502, 503, 504],
            12,
            "answered 504",
        ),
        row(
            "garbage",
            Fault::Registry(raw("nonsense\r\n\r\n", 1)),
            Stale,
            &[502, 503],
            10,
            "upstream failed",
        ),
        row(
            "HTTP/0.9",
            Fault::Registry(raw("<html>hello</html>", 1)),
            Stale,
            &[502, 503],
            10,
            "upstream failed",
        ),
        row(
            "HTTP/2",
            Fault::Registry(raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 1)),
            Stale,
            &[502, 503],
            10,
            "upstream failed",
        ),
        row(
            "an endless head",
            Fault::Registry(raw("X: aaaaaaaaaaaaaaaaaaaaaaaa\r\n", 100_000)),
            Stale,
            &[502, 503],
            10,
            "upstream failed",
        ),
        row(
            "endless interim answers",
            Fault::Registry(raw("HTTP/1.1 100 Continue\r\n\r\n", 10_000)),
            Stale,
            &[502, 503],
            10,
            "upstream failed",
        ),
        row(
            "endless extensions",
            Fault::Registry(endless_extension()),
            Stale,
            &[502, 503],
            10,
            "extensions too long",
        ),
        row(
            "a redirect to itself",
            Fault::Registry(json!({"redirect": "/v2/", "status": 302})),
            Stale,
            &[502, 503],
            16,
            "redirect",
        ),
        row(
            "a redirect from https to http",
            Fault::Downgrade,
            Stale,
            &[502],
            16,
            "redirect",
        ),
    ]
}

fn limited(after: &str) -> Value {
    json!({"status": 429, "headers": {"Retry-After": after}})
}

fn endless_extension() -> Value {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;";
    json!({"raw": format!("{head}{}", "a=b;".repeat(50_000))})
}

/// The server trusts the CA; see the README beside it.
fn signed_over_sha1() -> Fault {
    let (chain, key) = (include_str!("sha1/chain.pem"), include_str!("sha1/key.pem"));
    Fault::Certificate(json!({"pem": {"chain": chain, "key": key}}))
}
