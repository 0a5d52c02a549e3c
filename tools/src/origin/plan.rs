//! From an answer and a rule to the exact bytes of a response and the places where it stops.
//!
//! Pure: `send` carries a plan out.

use super::answer::Answer;
use super::body::Body;
use super::fault::{Position, Then};
use super::http;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Halt,
    Stall,
    Reset,
    Truncate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Length,
    Chunked,
    UntilClose,
}

#[derive(Debug)]
pub struct Plan {
    pub head: Vec<u8>,
    pub status: u16,
    answer: Answer,
    /// Body bytes to send, 0 for HEAD.
    pub len: u64,
    pub coding: Coding,
    /// In order of place; a place beyond the end never comes.
    pub stops: Vec<(u64, Stop)>,
    flip: Option<u64>,
    pub rate: Option<u64>,
    /// The connection ends after the answer.
    pub close: bool,
}

impl Plan {
    pub fn new(mut answer: Answer, then: &Then, method: &str, close: bool) -> Plan {
        let dropped = |name: &str| {
            then.drop_headers
                .iter()
                .any(|n| n.eq_ignore_ascii_case(name))
        };
        answer.fields.retain(|(name, _)| !dropped(name));
        for (name, value) in &then.set_headers {
            answer
                .fields
                .retain(|(held, _)| !held.eq_ignore_ascii_case(name));
            answer.field(name, value);
        }
        let full_len = answer.part_len().saturating_add_signed(then.body_add);
        let coding = match (then.chunked, then.until_close) {
            (true, _) => Coding::Chunked,
            (false, true) => Coding::UntilClose,
            (false, false) => Coding::Length,
        };
        match coding {
            Coding::Chunked => answer.field("Transfer-Encoding", "chunked"),
            Coding::Length if answer.status != 304 && !dropped("content-length") => {
                let told = full_len.saturating_add_signed(then.length_add);
                answer.field("Content-Length", &told.to_string());
            }
            Coding::Length | Coding::UntilClose => {}
        }
        if close {
            answer.field("Connection", "close");
        }
        let mut head = Vec::new();
        http::write_head(&mut head, answer.status, &answer.fields);
        let without_body = method == "HEAD" || answer.status == 304;
        let lies = then.length_add != 0 || dropped("content-length");
        Plan {
            head,
            status: answer.status,
            len: if without_body { 0 } else { full_len },
            // Without a body there is no last chunk either.
            coding: if without_body { Coding::Length } else { coding },
            stops: if without_body {
                Vec::new()
            } else {
                stops(then, full_len)
            },
            flip: then.flip_at.map(|at| at.resolve(full_len)),
            rate: then.rate,
            close: close || then.close || coding == Coding::UntilClose || lies,
            answer,
        }
    }

    /// The end of the run from `at` that has no stop in it.
    pub fn run_end(&self, at: u64) -> u64 {
        let next = self
            .stops
            .iter()
            .map(|stop| stop.0)
            .find(|place| *place > at);
        next.map_or(self.len, |place| place.min(self.len))
    }

    pub fn stops_at(&self, at: u64) -> impl Iterator<Item = Stop> {
        self.stops
            .iter()
            .filter(move |stop| stop.0 == at)
            .map(|stop| stop.1)
    }

    /// Fills `out` with the body from `at`, faults included.
    pub fn read_at(&self, at: u64, out: &mut [u8]) {
        let real = self
            .answer
            .part_len()
            .saturating_sub(at)
            .min(out.len() as u64) as usize;
        self.answer
            .body
            .read_at(self.answer.part.start + at, &mut out[..real]);
        out[real..].fill(b'+');
        if let Some(place) = self
            .flip
            .filter(|place| (at..at + out.len() as u64).contains(place))
        {
            out[(place - at) as usize] ^= 1;
        }
    }
}

fn stops(then: &Then, len: u64) -> Vec<(u64, Stop)> {
    let of = |position: Option<Position>, stop: Stop| position.map(|at| (at.resolve(len), stop));
    let mut all: Vec<(u64, Stop)> = [
        of(then.halt_at, Stop::Halt),
        of(then.stall_at, Stop::Stall),
        of(then.reset_at, Stop::Reset),
        of(then.truncate_at, Stop::Truncate),
    ]
    .into_iter()
    .flatten()
    .collect();
    // Stable: at one place a halt comes before an end.
    all.sort_by_key(|stop| stop.0);
    all
}

/// The answer that a rule gives instead of the real one, if it does.
pub fn scripted(then: &Then, cdn_target: &str, error: impl Fn(u16) -> Answer) -> Option<Answer> {
    if let Some(to) = &then.redirect {
        let target = if to == "cdn" { cdn_target } else { to };
        let mut answer = Answer::new(then.status.unwrap_or(307), "text/plain", Body::held([]));
        answer.field("Location", target);
        return Some(with_headers(answer, then));
    }
    if then.html {
        let page = "<html><body>Please log in to this network.</body></html>";
        let answer = Answer::new(200, "text/html", Body::held(page.as_bytes()));
        return Some(with_headers(answer, then));
    }
    let status = then.status?;
    let mut answer = error(status);
    if let Some(text) = &then.body {
        let fields = std::mem::take(&mut answer.fields);
        answer = Answer::new(status, "text/plain", Body::held(text.as_bytes()));
        answer.fields.extend(
            fields
                .into_iter()
                .filter(|(name, _)| name != "Content-Type"),
        );
    }
    Some(with_headers(answer, then))
}

fn with_headers(mut answer: Answer, then: &Then) -> Answer {
    for (name, value) in &then.headers {
        answer
            .fields
            .retain(|(held, _)| !held.eq_ignore_ascii_case(name));
        answer.field(name, value);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::endpoint::Kind;

    fn plan(then: &str, method: &str) -> (String, Plan) {
        let then: Then = serde_json::from_str(then).unwrap();
        let answer = Answer::new(200, "t", Body::held(*b"0123456789"));
        let plan = Plan::new(answer, &then, method, false);
        (String::from_utf8(plan.head.clone()).unwrap(), plan)
    }

    fn body(plan: &Plan) -> String {
        let mut out = vec![0; plan.len as usize];
        plan.read_at(0, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lengths() {
        for (then, told, sent, close) in [
            ("{}", Some("10"), "0123456789", false),
            (r#"{"length_add":5}"#, Some("15"), "0123456789", true),
            (r#"{"length_add":-5}"#, Some("5"), "0123456789", true),
            (r#"{"body_add":-3}"#, Some("7"), "0123456", false),
            (r#"{"body_add":3}"#, Some("13"), "0123456789+++", false),
            (r#"{"chunked":true}"#, None, "0123456789", false),
            (r#"{"until_close":true}"#, None, "0123456789", true),
            (r#"{"flip_at":-1}"#, Some("10"), "0123456788", false),
            (r#"{"flip_at":99}"#, Some("10"), "0123456789", false),
            (r#"{"close":true}"#, Some("10"), "0123456789", true),
        ] {
            let (head, plan) = plan(then, "GET");
            let line = told.map(|len| format!("Content-Length: {len}\r\n"));
            match line {
                Some(line) => assert!(head.contains(&line), "{then}: {head}"),
                None => assert!(!head.contains("Content-Length"), "{then}: {head}"),
            }
            assert_eq!((body(&plan).as_str(), plan.close), (sent, close), "{then}");
        }
    }

    #[test]
    fn head_has_the_length_and_no_body() {
        let (head, plan) = plan(r#"{"halt_at":0}"#, "HEAD");
        assert!(head.contains("Content-Length: 10\r\n"));
        assert_eq!((plan.len, plan.stops.len()), (0, 0));
    }

    #[test]
    fn runs_end_at_stops() {
        let (_, plan) = plan(r#"{"truncate_at":"50%","halt_at":5,"reset_at":8}"#, "GET");
        assert_eq!(plan.run_end(0), 5);
        assert_eq!(
            plan.stops_at(5).collect::<Vec<_>>(),
            [Stop::Halt, Stop::Truncate]
        );
        assert_eq!((plan.run_end(5), plan.run_end(8)), (8, 10));
    }

    #[test]
    fn headers_dropped_and_set() {
        let then = r#"{"drop_headers":["content-TYPE"],"set_headers":{"X-A":"b"}}"#;
        let (head, _) = plan(then, "GET");
        assert_eq!(
            head,
            "HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 10\r\n\r\n"
        );
    }

    #[test]
    fn scripted_answers() {
        let error = |status| Answer::error(status, Kind::Blob, "scripted");
        let make = |then: &str| {
            let then: Then = serde_json::from_str(then).unwrap();
            scripted(&then, "http://cdn/x", error)
        };
        assert!(make(r#"{"halt_at":1}"#).is_none());
        let answer = make(r#"{"redirect":"cdn"}"#).unwrap();
        assert_eq!(answer.status, 307);
        assert!(
            answer
                .fields
                .contains(&("Location".into(), "http://cdn/x".into()))
        );
        let answer = make(r#"{"status":429,"headers":{"Retry-After":"1"}}"#).unwrap();
        assert!(answer.fields.contains(&("Retry-After".into(), "1".into())));
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        assert!(text.contains("TOOMANYREQUESTS"), "{text}");
        let answer = make(r#"{"status":500,"body":"no"}"#).unwrap();
        assert_eq!((answer.status, answer.body.to_vec()), (500, b"no".to_vec()));
        assert_eq!(make(r#"{"html":true}"#).unwrap().fields[0].1, "text/html");
    }
}
