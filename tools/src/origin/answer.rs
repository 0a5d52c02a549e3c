//! What is to be answered to a request, before any fault: status, fields and a part of a body.

use std::ops::Range;

use serde_json::{Value, json};

use super::body::Body;
use super::endpoint::Kind;
use super::http::{self, RequestHead};

pub type Fields = Vec<(String, String)>;

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Without Content-Length: the sender decides on framing.
    pub fields: Fields,
    pub body: Body,
    pub part: Range<u64>,
}

impl Answer {
    pub fn new(status: u16, content_type: &str, body: Body) -> Answer {
        let part = 0..body.len();
        Answer {
            status,
            fields: vec![("Content-Type".to_owned(), content_type.to_owned())],
            body,
            part,
        }
    }

    pub fn json(status: u16, value: &Value) -> Answer {
        let text = serde_json::to_vec(value).expect("a JSON value");
        Answer::new(status, "application/json", Body::held(text))
    }

    /// An OCI error body with the code that fits (distribution-spec, "Error Codes").
    pub fn error(status: u16, kind: Kind, message: &str) -> Answer {
        let code = match (status, kind) {
            (401, _) => "UNAUTHORIZED",
            (403, _) => "DENIED",
            (404, Kind::Manifest) => "MANIFEST_UNKNOWN",
            (404, Kind::Blob) => "BLOB_UNKNOWN",
            (404, _) => "NAME_UNKNOWN",
            (405, _) => "UNSUPPORTED",
            (429, _) => "TOOMANYREQUESTS",
            _ => "UNKNOWN",
        };
        Answer::oci_error(status, code, message)
    }

    pub fn oci_error(status: u16, code: &str, message: &str) -> Answer {
        Answer::json(
            status,
            &json!({"errors": [{"code": code, "message": message}]}),
        )
    }

    /// Content known by its digest: conditional and range requests apply.
    pub fn content(head: &RequestHead, digest: &str, content_type: &str, body: Body) -> Answer {
        let len = body.len();
        let mut answer = Answer::new(200, content_type, body);
        answer.field("Docker-Content-Digest", digest);
        answer.field("ETag", &format!("\"{digest}\""));
        answer.field("Accept-Ranges", "bytes");
        let asked = |tag: &str| {
            let tag = tag.trim().trim_start_matches("W/");
            tag == "*" || tag.trim_matches('"') == digest
        };
        if head
            .fields("if-none-match")
            .any(|field| field.split(',').any(asked))
        {
            answer.status = 304;
            answer.part = 0..0;
            return answer;
        }
        let field = head.field("range").filter(|_| head.method == "GET");
        match http::range(field, len) {
            http::Range::Whole => {}
            http::Range::Part(part) => {
                answer.status = 206;
                let text = format!("bytes {}-{}/{len}", part.start, part.end - 1);
                answer.field("Content-Range", &text);
                answer.part = part;
            }
            http::Range::Unsatisfiable => {
                answer = Answer::oci_error(416, "RANGE_INVALID", "range beyond the blob");
                answer.field("Content-Range", &format!("bytes */{len}"));
            }
        }
        answer
    }

    pub fn field(&mut self, name: &str, value: &str) {
        self.fields.push((name.to_owned(), value.to_owned()));
    }

    pub fn part_len(&self) -> u64 {
        self.part.end - self.part.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, name: &str, value: &str) -> RequestHead {
        RequestHead {
            method: method.to_owned(),
            fields: vec![(name.to_owned(), value.to_owned())],
            ..RequestHead::default()
        }
    }

    #[test]
    fn conditional_and_range() {
        for (method, name, value, status, len) in [
            ("GET", "x", "", 200, 10),
            ("GET", "if-none-match", "\"d\"", 304, 0),
            ("GET", "if-none-match", "\"a\", W/\"d\"", 304, 0),
            ("GET", "if-none-match", "*", 304, 0),
            ("GET", "if-none-match", "\"e\"", 200, 10),
            ("GET", "range", "bytes=2-4", 206, 3),
            ("GET", "range", "bytes=0-1,3-4", 200, 10),
            ("HEAD", "range", "bytes=2-4", 200, 10),
        ] {
            let body = Body::held([0; 10]);
            let answer = Answer::content(&head(method, name, value), "d", "t", body);
            assert_eq!(
                (answer.status, answer.part_len()),
                (status, len),
                "{name}: {value}"
            );
        }
        let body = Body::held([0; 10]);
        let answer = Answer::content(&head("GET", "range", "bytes=10-"), "d", "t", body);
        assert_eq!(answer.status, 416);
        assert!(
            answer
                .fields
                .contains(&("Content-Range".into(), "bytes */10".into()))
        );
    }
}
