//! Scripted faults: which requests a rule is for, what it does, and who waits in it.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::endpoint::{Kind, Side};

/// How often a halted answer looks whether its client has left.
const PEER_CHECK_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    #[serde(default)]
    pub id: Option<String>,
    #[serde(default, rename = "match")]
    pub wanted: Match,
    /// Matching requests let through before the first one decided.
    #[serde(default)]
    pub skip: u64,
    /// Requests decided; absent: all.
    pub times: Option<u64>,
    pub then: Then,
}

/// Absent fields agree with everything.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Match {
    pub listener: Option<Side>,
    pub method: Option<String>,
    pub kind: Option<Kind>,
    pub repository: Option<String>,
    pub path: Option<String>,
    pub prefix: Option<String>,
    pub contains: Option<String>,
    pub range: Option<bool>,
    pub authorization: Option<bool>,
}

/// What happens instead of, or to, the real answer.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Then {
    pub delay_ms: u64,
    pub hang: bool,
    pub status: Option<u16>,
    pub headers: BTreeMap<String, String>,
    pub body: Option<String>,
    pub html: bool,
    pub whole: bool,
    pub raw: Option<String>,
    pub raw_repeat: Option<u64>,
    pub redirect: Option<String>,
    pub drop_headers: Vec<String>,
    pub set_headers: BTreeMap<String, String>,
    pub length_add: i64,
    pub body_add: i64,
    pub chunked: bool,
    pub until_close: bool,
    pub flip_at: Option<Position>,
    pub halt_at: Option<Position>,
    pub stall_at: Option<Position>,
    pub reset_at: Option<Position>,
    pub truncate_at: Option<Position>,
    pub rate: Option<u64>,
    pub close: bool,
    pub refuse: bool,
}

/// `100`, `-1` (from the end) or `"50%"` of a body.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum Position {
    FromStart(u64),
    FromEnd(u64),
    Percent(f64),
}

/// What a rule may look at.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    pub listener: Side,
    pub method: &'a str,
    pub kind: Kind,
    pub repository: Option<&'a str>,
    pub path: &'a str,
    pub target: &'a str,
    pub range: bool,
    pub authorization: bool,
}

#[derive(Default)]
pub struct Faults {
    table: Mutex<Table>,
    released: Condvar,
}

#[derive(Default)]
struct Table {
    rules: Vec<Standing>,
    created: u64,
}

struct Standing {
    id: String,
    rule: Rule,
    then: Arc<Then>,
    seen: u64,
    used: u64,
    halted: u64,
    released: bool,
}

/// The rule that decides a request.
#[derive(Clone, Debug)]
pub struct Decision {
    pub id: String,
    pub then: Arc<Then>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Halted {
    Released,
    PeerLeft,
}

impl Faults {
    /// Answers the rule's id: the given one, which then replaces a rule of that id, or a new one.
    pub fn add(&self, rule: Rule) -> String {
        let mut table = self.table.lock().unwrap();
        table.created += 1;
        let id = rule.id.clone().unwrap_or(format!("f{}", table.created));
        table.rules.retain(|standing| standing.id != id);
        table.rules.push(Standing {
            id: id.clone(),
            then: Arc::new(rule.then.clone()),
            rule,
            seen: 0,
            used: 0,
            halted: 0,
            released: false,
        });
        self.released.notify_all();
        id
    }

    pub fn decide(&self, seen: &Seen<'_>) -> Option<Decision> {
        let mut table = self.table.lock().unwrap();
        table.rules.iter_mut().find_map(|standing| {
            if !standing.rule.wanted.agrees(seen) {
                return None;
            }
            standing.seen += 1;
            let passed = standing.seen <= standing.rule.skip;
            let used_up = standing
                .rule
                .times
                .is_some_and(|times| standing.used >= times);
            if passed || used_up {
                return None;
            }
            standing.used += 1;
            Some(Decision {
                id: standing.id.clone(),
                then: standing.then.clone(),
            })
        })
    }

    /// Waits until the rule is released or gone.
    pub fn halt(&self, id: &str, peer_left: impl Fn() -> bool) -> Halted {
        let mut table = self.table.lock().unwrap();
        table.count_halted(id, 1);
        let outcome = loop {
            if table.find(id).is_none_or(|standing| standing.released) {
                break Halted::Released;
            }
            let waited = self.released.wait_timeout(table, PEER_CHECK_INTERVAL);
            table = waited.unwrap().0;
            if peer_left() {
                break Halted::PeerLeft;
            }
        };
        table.count_halted(id, -1);
        outcome
    }

    /// Waits for nothing but the end of the connection.
    pub fn stall(&self, peer_left: impl Fn() -> bool) {
        let mut table = self.table.lock().unwrap();
        while !peer_left() {
            table = self
                .released
                .wait_timeout(table, PEER_CHECK_INTERVAL)
                .unwrap()
                .0;
        }
    }

    /// One rule, or all; answers how many answers were waiting.
    pub fn release(&self, id: Option<&str>) -> u64 {
        let mut table = self.table.lock().unwrap();
        let mut waiting = 0;
        for standing in &mut table.rules {
            if id.is_none_or(|id| id == standing.id) {
                standing.released = true;
                waiting += standing.halted;
            }
        }
        self.released.notify_all();
        waiting
    }

    pub fn clear(&self, id: Option<&str>) {
        let mut table = self.table.lock().unwrap();
        table
            .rules
            .retain(|standing| id.is_some_and(|id| id != standing.id));
        self.released.notify_all();
    }

    pub fn describe(&self) -> Value {
        let table = self.table.lock().unwrap();
        let describe = |standing: &Standing| {
            json!({
                "id": standing.id, "used": standing.used, "halted": standing.halted,
                "released": standing.released, "match": standing.rule.wanted,
                "skip": standing.rule.skip, "times": standing.rule.times,
                "then": standing.rule.then,
            })
        };
        table.rules.iter().map(describe).collect()
    }
}

impl Table {
    fn find(&self, id: &str) -> Option<&Standing> {
        self.rules.iter().find(|standing| standing.id == id)
    }

    fn count_halted(&mut self, id: &str, by: i64) {
        if let Some(standing) = self.rules.iter_mut().find(|standing| standing.id == id) {
            standing.halted = standing.halted.saturating_add_signed(by);
        }
    }
}

impl Match {
    fn agrees(&self, seen: &Seen<'_>) -> bool {
        fn same<T: PartialEq>(wanted: &Option<T>, found: T) -> bool {
            wanted.as_ref().is_none_or(|wanted| *wanted == found)
        }
        let text = |wanted: &Option<String>, test: &dyn Fn(&str) -> bool| {
            wanted.as_deref().is_none_or(test)
        };
        same(&self.listener, seen.listener)
            && same(&self.kind, seen.kind)
            && same(&self.range, seen.range)
            && same(&self.authorization, seen.authorization)
            && text(&self.method, &|method| method == seen.method)
            && text(&self.repository, &|name| Some(name) == seen.repository)
            && text(&self.path, &|path| path == seen.path)
            && text(&self.prefix, &|prefix| seen.target.starts_with(prefix))
            && text(&self.contains, &|part| seen.target.contains(part))
    }
}

impl Position {
    pub fn resolve(self, len: u64) -> u64 {
        match self {
            Position::FromStart(at) => at,
            Position::FromEnd(back) => len.saturating_sub(back),
            Position::Percent(part) => (len as f64 * part / 100.0) as u64,
        }
    }
}

impl TryFrom<Value> for Position {
    type Error = String;
    fn try_from(value: Value) -> Result<Position, String> {
        let percent = |text: &str| text.strip_suffix('%')?.parse::<f64>().ok();
        if let Some(at) = value.as_u64() {
            return Ok(Position::FromStart(at));
        }
        if let Some(at) = value.as_i64() {
            return Ok(Position::FromEnd(at.unsigned_abs()));
        }
        match value.as_str().and_then(percent) {
            Some(part) if (0.0..=100.0).contains(&part) => Ok(Position::Percent(part)),
            _ => Err(format!("not a position: {value}")),
        }
    }
}

impl From<Position> for Value {
    fn from(position: Position) -> Value {
        match position {
            Position::FromStart(at) => json!(at),
            Position::FromEnd(back) => json!(-(back as i64)),
            Position::Percent(part) => json!(format!("{part}%")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        serde_json::from_str(text).unwrap()
    }

    const SEEN: Seen<'static> = Seen {
        listener: Side::Registry,
        method: "GET",
        kind: Kind::Blob,
        repository: Some("a/b"),
        path: "/v2/a/b/blobs/d",
        target: "/v2/a/b/blobs/d?ns=x",
        range: false,
        authorization: true,
    };

    #[test]
    fn every_field_must_agree() {
        for (text, agrees) in [
            (r#"{}"#, true),
            (
                r#"{"listener":"registry","method":"GET","kind":"blob"}"#,
                true,
            ),
            (r#"{"repository":"a/b","path":"/v2/a/b/blobs/d"}"#, true),
            (r#"{"prefix":"/v2/a","contains":"ns=x"}"#, true),
            (r#"{"range":false,"authorization":true}"#, true),
            (r#"{"listener":"cdn"}"#, false),
            (r#"{"method":"HEAD"}"#, false),
            (r#"{"kind":"manifest"}"#, false),
            (r#"{"repository":"a"}"#, false),
            (r#"{"path":"/v2/a/b/blobs/d?ns=x"}"#, false),
            (r#"{"prefix":"/v2/b"}"#, false),
            (r#"{"contains":"ns=y"}"#, false),
            (r#"{"range":true}"#, false),
            (r#"{"authorization":false}"#, false),
            (r#"{"method":"GET","kind":"tags"}"#, false),
        ] {
            let wanted: Match = serde_json::from_str(text).unwrap();
            assert_eq!(wanted.agrees(&SEEN), agrees, "{text}");
        }
    }

    #[test]
    fn skip_times_and_order() {
        let faults = Faults::default();
        faults.add(rule(
            r#"{"id":"a","skip":1,"times":2,"then":{"status":500}}"#,
        ));
        assert_eq!(faults.add(rule(r#"{"then":{}}"#)), "f2");
        let mut deciders = Vec::new();
        for _ in 0..5 {
            deciders.push(faults.decide(&SEEN).unwrap().id);
        }
        assert_eq!(deciders, ["f2", "a", "a", "f2", "f2"]);
        faults.clear(Some("f2"));
        assert!(faults.decide(&SEEN).is_none());
    }

    #[test]
    fn positions() {
        for (text, at) in [
            ("0", 0),
            ("7", 7),
            ("-1", 199),
            ("\"50%\"", 100),
            ("-900", 0),
        ] {
            let position: Position = serde_json::from_str(text).unwrap();
            assert_eq!(position.resolve(200), at, "{text}");
            let again = serde_json::to_string(&position).unwrap();
            assert_eq!(again, text);
        }
        for bad in ["\"50\"", "\"101%\"", "true", "1.5"] {
            assert!(serde_json::from_str::<Position>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn halted_until_released() {
        let faults = Faults::default();
        let id = faults.add(rule(r#"{"then":{"halt_at":0}}"#));
        std::thread::scope(|scope| {
            let halted = scope.spawn(|| faults.halt(&id, || false));
            while faults.describe()[0]["halted"] != 1 {
                std::thread::yield_now();
            }
            assert_eq!(faults.release(None), 1);
            assert_eq!(halted.join().unwrap(), Halted::Released);
        });
        // A released rule halts nobody afterwards.
        assert_eq!(faults.halt(&id, || false), Halted::Released);
        let other = faults.add(rule(r#"{"then":{"halt_at":0}}"#));
        assert_eq!(faults.halt(&other, || true), Halted::PeerLeft);
    }

    #[test]
    fn unknown_fields_are_refused() {
        for bad in [
            r#"{"then":{"haltat":1}}"#,
            r#"{"match":{"methd":"GET"},"then":{}}"#,
            r#"{"match":{}}"#,
        ] {
            assert!(serde_json::from_str::<Rule>(bad).is_err(), "{bad}");
        }
    }
}
