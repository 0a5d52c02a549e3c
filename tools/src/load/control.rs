//! Calls of an `entrepot-origin`: counters, what it holds, new content. Plain HTTP, one by one.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use super::reply;
use super::url::{Url, UrlError};

/// A call that makes content hashes it first.
const TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(transparent)]
    Url(#[from] UrlError),
    #[error("{0}: {1}; is it the control URL that entrepot-origin printed?")]
    Io(String, io::Error),
    #[error("{0}: answered {1}")]
    Answer(String, String),
}

/// An origin's `/_origin/` calls.
pub struct Control {
    url: Url,
}

/// Traffic of some paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub gets: u64,
    pub bytes: u64,
}

impl Control {
    pub fn new(url: &str) -> Result<Control, UrlError> {
        Ok(Control {
            url: Url::parse(url)?,
        })
    }

    /// Of all paths that contain the text.
    pub fn traffic(&self, contains: &str) -> Result<Traffic, ControlError> {
        let counters = self.call("GET", &format!("counters?contains={contains}"), "")?;
        let paths = counters["paths"].as_object();
        let mut traffic = Traffic::default();
        for path in paths.into_iter().flat_map(|paths| paths.values()) {
            traffic.gets += path["get"].as_u64().unwrap_or(0);
            traffic.bytes += path["bytes"].as_u64().unwrap_or(0);
        }
        Ok(traffic)
    }

    pub fn repositories(&self) -> Result<Value, ControlError> {
        self.call("GET", "repositories", "")
    }

    pub fn make(&self, what: &str, body: &Value) -> Result<Value, ControlError> {
        self.call("POST", what, &body.to_string())
    }

    fn call(&self, method: &str, name: &str, body: &str) -> Result<Value, ControlError> {
        let failed = |error| ControlError::Io(self.url.origin.authority(), error);
        let answer = self.exchange(method, name, body).map_err(failed)?;
        let wrong = || ControlError::Answer(name.to_owned(), answer.clone());
        let (head, text) = answer.split_once("\r\n\r\n").ok_or_else(wrong)?;
        let status = reply::parse_head(format!("{head}\r\n\r\n").as_bytes(), true);
        match status {
            Ok(Some(head)) if head.status == 200 => {}
            _ => return Err(wrong()),
        }
        serde_json::from_str(text).map_err(|_| wrong())
    }

    fn exchange(&self, method: &str, name: &str, body: &str) -> io::Result<String> {
        let addresses = self.url.origin.resolve().map_err(io::Error::other)?;
        let mut stream = TcpStream::connect(&addresses[..])?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let (host, len) = (self.url.origin.authority(), body.len());
        let request = format!(
            "{method} /_origin/{name} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
             Content-Length: {len}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Traffic {
    pub fn since(self, before: Traffic) -> Traffic {
        Traffic {
            gets: self.gets.saturating_sub(before.gets),
            bytes: self.bytes.saturating_sub(before.bytes),
        }
    }
}
