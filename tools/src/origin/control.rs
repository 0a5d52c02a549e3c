//! The `/_origin/` API: content, faults, listeners, log and waiting.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::auth::{Mode, User};
use super::endpoint::Side;
use super::http::{self, RequestHead};
use super::image::ImageError;
use super::log::Filter;
use super::registry::Unknown;
use super::tls::{Leaf, TlsError};
use super::{Origin, RateLimit};

const WAIT_TIMEOUT_DEFAULT_MS: u64 = 10_000;

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("wrong body: {0}")]
    Body(#[from] serde_json::Error),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Unknown(#[from] Unknown),
    #[error("{0}")]
    Incomplete(&'static str),
    #[error(transparent)]
    Certificate(#[from] TlsError),
    #[error("listener: {0}")]
    Listener(#[from] std::io::Error),
    #[error("no such call: {0}")]
    Call(String),
    #[error("time is up")]
    TimeUp,
}

impl ControlError {
    fn status(&self) -> u16 {
        match self {
            ControlError::Body(_)
            | ControlError::Image(_)
            | ControlError::Certificate(_)
            | ControlError::Incomplete(_) => 400,
            ControlError::Unknown(_) | ControlError::Call(_) => 404,
            ControlError::TimeUp => 408,
            ControlError::Listener(_) => 500,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PrivateSpec {
    repository: String,
    private: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RuleId {
    id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RateSpec {
    bytes_per_second: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AuthSpec {
    mode: Option<Mode>,
    users: Option<Vec<User>>,
    token_ttl_s: Option<u64>,
    expires_in_s: Option<u64>,
    private_status: Option<u16>,
    revoke_tokens: bool,
}

/// Either one that the origin makes, or one that was made elsewhere.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum CertificateSpec {
    Leaf(Leaf),
    Pem { chain: String, key: String },
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ListenerSpec {
    listeners: Vec<Side>,
}

impl Default for ListenerSpec {
    fn default() -> ListenerSpec {
        ListenerSpec {
            listeners: Side::ALL.to_vec(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WaitSpec {
    requests: Option<Filter>,
    count: Option<usize>,
    connections: Option<usize>,
    timeout_ms: Option<u64>,
}

impl Origin {
    /// `connection` is the one that asks: it is not closed under its own call.
    pub(super) fn control(&self, head: &RequestHead, body: &[u8], connection: u64) -> Answer {
        let call = head.path.trim_start_matches("/_origin/");
        let called = match head.method.as_str() {
            "GET" => self.control_get(call, &head.query),
            "POST" => self.control_post(call, body, connection),
            _ => Err(ControlError::Call(format!("{} {call}", head.method))),
        };
        match called {
            Ok(value) => Answer::json(200, &value),
            Err(error) => Answer::json(error.status(), &json!({"error": error.to_string()})),
        }
    }

    fn control_get(&self, call: &str, query: &str) -> Result<Value, ControlError> {
        match call {
            "repositories" => {
                self.make_all_pending();
                Ok(self.registry().describe())
            }
            "faults" => Ok(self.faults.describe()),
            "tokens" => Ok(json!(self.auth().tokens())),
            "log" => {
                let pairs = http::query_pairs(query).into_iter();
                let number = |value: String| match value.parse::<u16>() {
                    Ok(number) => json!(number),
                    Err(_) => json!(value),
                };
                let fields: Map<String, Value> = pairs
                    .map(|(name, value)| match name.as_str() {
                        "status" => (name, number(value)),
                        _ => (name, json!(value)),
                    })
                    .collect();
                let filter: Filter = serde_json::from_value(Value::Object(fields))?;
                Ok(self.log.entries(&filter))
            }
            "counters" => {
                let pairs = http::query_pairs(query);
                let part = pairs.iter().find(|pair| pair.0 == "contains");
                let mut counters = self.log.counters(part.map_or("", |pair| &pair.1));
                counters["tokens"] = json!(self.auth().issued());
                for side in Side::ALL {
                    let name = json!(side);
                    let name = name.as_str().unwrap_or_default();
                    counters["connections"][name] = json!(self.connections.accepted(side));
                }
                Ok(counters)
            }
            _ => Err(ControlError::Call(call.to_owned())),
        }
    }

    fn control_post(&self, call: &str, body: &[u8], asking: u64) -> Result<Value, ControlError> {
        let done = Ok(json!({}));
        match call {
            "images" => Ok(json!(self.put_image(&parse(body)?)?)),
            "blobs" => self.put_blob(&parse(body)?),
            "manifests" => self.put_manifest(&parse(body)?),
            "artifacts" => self.put_artifact(&parse(body)?),
            "tags" => self.put_tag(parse(body)?),
            "delete" => self.delete(&parse(body)?),
            "private" => {
                let spec: PrivateSpec = parse(body)?;
                self.registry().set_private(&spec.repository, spec.private);
                done
            }
            "faults" => Ok(json!({"id": self.faults.add(parse(body)?)})),
            "faults/clear" => {
                let spec: RuleId = parse(body)?;
                self.faults.clear(spec.id.as_deref());
                done
            }
            "release" => {
                let spec: RuleId = parse(body)?;
                Ok(json!({"released": self.faults.release(spec.id.as_deref())}))
            }
            "rate" => {
                let spec: RateSpec = parse(body)?;
                self.pace.set(spec.bytes_per_second);
                done
            }
            "rate-limit" => {
                let spec: Option<RateLimit> = serde_json::from_slice(body)?;
                *self.limit.lock().unwrap() = spec;
                done
            }
            "auth" => self.set_auth(parse(body)?),
            "certificate" => {
                let tls = self.tls.as_ref().ok_or(TlsError::Off)?;
                match parse(body)? {
                    CertificateSpec::Leaf(leaf) => tls.show(leaf)?,
                    CertificateSpec::Pem { chain, key } => tls.show_pem(&chain, &key)?,
                }
                done
            }
            "log/clear" => {
                self.log.clear();
                self.connections.clear_accepted();
                done
            }
            "stop-listening" | "stop-accepting" | "resume-listening" | "close-connections" => {
                self.set_listening(call, &parse(body)?, asking)
            }
            "wait" => self.wait(&parse(body)?, asking),
            _ => Err(ControlError::Call(call.to_owned())),
        }
    }

    fn set_auth(&self, spec: AuthSpec) -> Result<Value, ControlError> {
        let mut auth = self.auth();
        let rules = &mut auth.rules;
        rules.mode = spec.mode.unwrap_or(rules.mode);
        rules.private_status = spec.private_status.unwrap_or(rules.private_status);
        if let Some(users) = spec.users {
            rules.users = users;
        }
        if let Some(seconds) = spec.token_ttl_s {
            rules.token_ttl = Duration::from_secs(seconds);
        }
        if spec.expires_in_s.is_some() {
            rules.expires_in = spec.expires_in_s;
        }
        if spec.revoke_tokens {
            auth.revoke_tokens();
        }
        Ok(json!({}))
    }

    fn set_listening(
        &self,
        call: &str,
        spec: &ListenerSpec,
        asking: u64,
    ) -> Result<Value, ControlError> {
        for side in &spec.listeners {
            match call {
                "stop-listening" => self.listeners[side].stop()?,
                "stop-accepting" => self.listeners[side].stop_accepting()?,
                "resume-listening" => self.listeners[side].resume()?,
                _ => {}
            }
        }
        if call != "resume-listening" {
            self.connections.close(&spec.listeners, Some(asking));
        }
        Ok(json!({}))
    }

    fn wait(&self, spec: &WaitSpec, asking: u64) -> Result<Value, ControlError> {
        let timeout = Duration::from_millis(spec.timeout_ms.unwrap_or(WAIT_TIMEOUT_DEFAULT_MS));
        let counted = match (&spec.requests, spec.connections) {
            (Some(filter), None) => self.log.wait(filter, spec.count.unwrap_or(1), timeout),
            (None, Some(count)) => self.connections.wait(count, Some(asking), timeout),
            _ => return Err(ControlError::Incomplete("either requests or connections")),
        };
        let count = counted.ok_or(ControlError::TimeUp)?;
        Ok(json!({"count": count}))
    }
}

/// An empty body stands for `{}`.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ControlError> {
    let body = if body.is_empty() { b"{}" } else { body };
    Ok(serde_json::from_slice(body)?)
}
