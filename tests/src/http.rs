//! A small HTTP/1.1 client that sees and controls every byte.
//!
//! It is strict on purpose: an answer that RFC 9112 does not allow is [`Broken::Malformed`], and
//! a body that ends before its length is [`Broken::Short`], never a shorter answer.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::sha256::Hash;

/// No answer of a server on this machine takes longer, unless the test holds it back; those tests
/// choose their own.
pub const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// What one read takes from the socket at most.
const READ_LEN: usize = 64 * 1024;

/// No head of an answer is longer.
const HEAD_LEN_MAX: usize = 64 * 1024;

/// What a failed test shows of a body: an error answer is shorter, a layer is noise.
const SHOWN_LEN: usize = 300;

/// Why an answer did not arrive as promised.
#[derive(Debug, PartialEq, Eq)]
pub enum Broken {
    /// Nobody listens.
    Refused,
    /// The connection ended before the first byte of an answer.
    Closed,
    /// The connection ended inside a head or a body.
    Short { got: u64 },
    /// The connection was reset.
    Reset,
    /// Nothing came for the time the test allows.
    Timeout,
    /// The answer breaks a rule of RFC 9112.
    Malformed(String),
}

fn malformed<T>(why: impl Into<String>) -> Result<T, Broken> {
    Err(Broken::Malformed(why.into()))
}

/// The head of an answer.
#[derive(Debug, Clone)]
pub struct Head {
    pub status: u16,
    pub version: String,
    pub fields: Vec<(String, String)>,
    /// As received, for messages.
    pub raw: String,
}

impl Head {
    fn parse(raw: &str) -> Result<Head, Broken> {
        let mut lines = raw.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let mut words = first.splitn(3, ' ');
        let version = words.next().unwrap_or_default().to_owned();
        if version != "HTTP/1.1" && version != "HTTP/1.0" {
            return malformed(format!("status line {first:?}"));
        }
        let status = words.next().unwrap_or_default();
        let Ok(status @ 100..=599) = status.parse::<u16>() else {
            return malformed(format!("status line {first:?}"));
        };
        let mut fields = Vec::new();
        for line in lines.filter(|line| !line.is_empty()) {
            let Some((name, value)) = line.split_once(':') else {
                return malformed(format!("field line {line:?}"));
            };
            if name.is_empty() || name.contains(|c: char| c.is_whitespace()) {
                return malformed(format!("field name {name:?}"));
            }
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Head {
            status,
            version,
            fields,
            raw: raw.to_owned(),
        })
    }

    /// The value of a field; two lines of one name are a mistake in every answer here.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut same = self
            .fields
            .iter()
            .filter(|field| field.0.eq_ignore_ascii_case(name));
        let first = same.next();
        assert!(same.next().is_none(), "two {name} lines in {}", self.raw);
        first.map(|field| field.1.as_str())
    }

    pub fn fields<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let same = move |field: &&(String, String)| field.0.eq_ignore_ascii_case(name);
        self.fields
            .iter()
            .filter(same)
            .map(|field| field.1.as_str())
    }

    /// Content-Length, if there is one.
    pub fn length(&self) -> Result<Option<u64>, Broken> {
        match self.field("content-length") {
            None => Ok(None),
            Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => match text.parse() {
                Ok(length) => Ok(Some(length)),
                Err(_) => malformed(format!("Content-Length {text:?}")),
            },
            Some(text) => malformed(format!("Content-Length {text:?}")),
        }
    }

    pub fn is_chunked(&self) -> bool {
        self.field("transfer-encoding") == Some("chunked")
    }

    pub fn closes(&self) -> bool {
        let says = |word| {
            let mut words = self.fields("connection").flat_map(|value| value.split(','));
            words.any(|found| found.trim().eq_ignore_ascii_case(word))
        };
        says("close") || (self.version == "HTTP/1.0" && !says("keep-alive"))
    }
}

/// A whole answer, held in memory.
#[derive(Debug)]
pub struct Answer {
    pub head: Head,
    pub body: Vec<u8>,
    /// Set when the body did not arrive as the head promised.
    pub broken: Option<Broken>,
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.head.status
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.field(name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Asserts the status and that the body is whole.
    #[track_caller]
    pub fn expect(self, status: u16) -> Answer {
        let Answer { head, broken, .. } = &self;
        let said = &self.body[..self.body.len().min(SHOWN_LEN)];
        let said = String::from_utf8_lossy(said);
        assert_eq!(head.status, status, "{}\n{said}", head.raw);
        assert_eq!(*broken, None, "{}", head.raw);
        self
    }

    /// Asserts an error answer as the distribution specification writes it.
    #[track_caller]
    pub fn expect_error(self, status: u16, code: &str) -> Answer {
        let answer = self.expect(status);
        assert_eq!(
            answer.error_code().as_deref(),
            Some(code),
            "{}",
            answer.text()
        );
        assert_eq!(answer.field("content-type"), Some("application/json"));
        answer
    }

    /// The first code of an OCI error body.
    pub fn error_code(&self) -> Option<String> {
        let json: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        let error = json.get("errors")?.get(0)?;
        error.get("message")?.as_str()?;
        Some(error.get("code")?.as_str()?.to_owned())
    }

    /// A complete 200 is a promise; this says whether one was given.
    pub fn is_complete_200(&self) -> bool {
        self.head.status == 200 && self.broken.is_none()
    }
}

/// One connection to a server.
pub struct Connection {
    stream: TcpStream,
    /// Read but not consumed, from `at` on.
    buffer: Vec<u8>,
    at: usize,
}

impl Connection {
    pub fn open(addr: SocketAddr) -> Connection {
        let opened = Connection::try_open(addr);
        opened.unwrap_or_else(|broken| panic!("cannot connect to {addr}: {broken:?}"))
    }

    pub fn try_open(addr: SocketAddr) -> Result<Connection, Broken> {
        let stream = TcpStream::connect_timeout(&addr, READ_TIMEOUT);
        stream.map(Connection::over).map_err(|_| Broken::Refused)
    }

    pub fn over(stream: TcpStream) -> Connection {
        stream.set_nodelay(true).expect("a TCP socket");
        let mut connection = Connection {
            stream,
            buffer: Vec::new(),
            at: 0,
        };
        connection.set_read_timeout(READ_TIMEOUT);
        connection
    }

    pub fn set_read_timeout(&mut self, timeout: Duration) {
        let set = self.stream.set_read_timeout(Some(timeout));
        set.expect("a TCP socket");
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// A server may answer and close before it has read all: the answer tells, not the write.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// A request without a body.
    pub fn request(&mut self, method: &str, target: &str, fields: &[(&str, &str)]) {
        self.write(request_text(method, target, fields).as_bytes());
    }

    fn fill(&mut self) -> Result<usize, Broken> {
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.at = 0;
        }
        let old = self.buffer.len();
        self.buffer.resize(old + READ_LEN, 0);
        let read = loop {
            match self.stream.read(&mut self.buffer[old..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.buffer.truncate(old + *read.as_ref().unwrap_or(&0));
        read.map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Broken::Timeout,
            _ => Broken::Reset,
        })
    }

    /// The next head, 1xx ones included.
    pub fn read_head(&mut self) -> Result<Head, Broken> {
        loop {
            let unread = &self.buffer[self.at..];
            if let Some(len) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
                let raw = String::from_utf8_lossy(&unread[..len]).into_owned();
                self.at += len + 4;
                return Head::parse(&raw);
            }
            if unread.len() > HEAD_LEN_MAX {
                return malformed("an endless head");
            }
            let got = unread.len() as u64;
            match self.fill() {
                Ok(0) if got == 0 => return Err(Broken::Closed),
                Ok(0) => return Err(Broken::Short { got }),
                Ok(_) => {}
                Err(broken) => return Err(broken),
            }
        }
    }

    /// Gives the body that belongs to `head` to `sink`, piece by piece.
    pub fn read_body(
        &mut self,
        method: &str,
        head: &Head,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Broken> {
        if method == "HEAD" || matches!(head.status, 100..=199 | 204 | 304) {
            return Ok(());
        }
        match (head.is_chunked(), head.length()?) {
            (true, Some(_)) => malformed("Content-Length beside chunked coding"),
            (true, None) => self.read_chunked(sink),
            (false, Some(length)) => self.read_exactly(length, 0, sink),
            (false, None) => self.read_to_end(sink),
        }
    }

    /// Bytes of a body as they come; none at the end of the connection.
    pub fn read_some(&mut self) -> Result<Vec<u8>, Broken> {
        if self.at == self.buffer.len() {
            self.fill()?;
        }
        let bytes = self.buffer[self.at..].to_vec();
        self.at = self.buffer.len();
        Ok(bytes)
    }

    fn read_exactly(
        &mut self,
        length: u64,
        before: u64,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Broken> {
        let mut got = 0;
        while got < length {
            if self.at == self.buffer.len() && self.fill()? == 0 {
                return Err(Broken::Short { got: before + got });
            }
            let ready = (self.buffer.len() - self.at) as u64;
            let take = ready.min(length - got) as usize;
            sink(&self.buffer[self.at..self.at + take]);
            self.at += take;
            got += take as u64;
        }
        Ok(())
    }

    fn read_to_end(&mut self, sink: &mut dyn FnMut(&[u8])) -> Result<(), Broken> {
        loop {
            sink(&self.buffer[self.at..]);
            self.at = self.buffer.len();
            if self.fill()? == 0 {
                return Ok(());
            }
        }
    }

    fn read_chunked(&mut self, sink: &mut dyn FnMut(&[u8])) -> Result<(), Broken> {
        let mut got = 0;
        loop {
            let line = self.read_line(got)?;
            let Ok(length) = u64::from_str_radix(&line, 16) else {
                return malformed(format!("chunk size {line:?}"));
            };
            if length > 0 {
                self.read_exactly(length, got, sink)?;
                got += length;
            }
            match self.read_line(got)?.as_str() {
                "" if length == 0 => return Ok(()),
                "" => {}
                line => return malformed(format!("{line:?} after a chunk")),
            }
        }
    }

    fn read_line(&mut self, got: u64) -> Result<String, Broken> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if self.at == self.buffer.len() && self.fill()? == 0 {
                return Err(Broken::Short { got });
            }
            line.push(self.buffer[self.at]);
            self.at += 1;
        }
        line.truncate(line.len() - 2);
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// The final answer to a request of `method`; interim ones are passed over.
    pub fn answer(&mut self, method: &str) -> Result<Answer, Broken> {
        let head = loop {
            let head = self.read_head()?;
            if head.status >= 200 {
                break head;
            }
        };
        let mut body = Vec::new();
        let read = self.read_body(method, &head, &mut |bytes| body.extend_from_slice(bytes));
        Ok(Answer {
            head,
            body,
            broken: read.err(),
        })
    }

    /// True when the server closed and left nothing unread.
    pub fn is_closed(&mut self) -> bool {
        let nothing_left = self.at == self.buffer.len();
        nothing_left && matches!(self.fill(), Ok(0) | Err(Broken::Reset))
    }
}

/// A request head with Host, as a client on this machine writes it.
pub fn request_text(method: &str, target: &str, fields: &[(&str, &str)]) -> String {
    let mut text = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
    for (name, value) in fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text
}

/// One request on its own connection.
pub fn fetch(
    addr: SocketAddr,
    method: &str,
    target: &str,
    fields: &[(&str, &str)],
) -> Result<Answer, Broken> {
    let mut connection = Connection::try_open(addr)?;
    connection.request(method, target, fields);
    connection.answer(method)
}

/// GET of a body that fits in memory; the head must arrive.
#[track_caller]
pub fn get(addr: SocketAddr, target: &str) -> Answer {
    let answer = fetch(addr, "GET", target, &[]);
    answer.unwrap_or_else(|broken| panic!("GET {target}: {broken:?}"))
}

#[track_caller]
pub fn head(addr: SocketAddr, target: &str) -> Answer {
    let answer = fetch(addr, "HEAD", target, &[]);
    answer.unwrap_or_else(|broken| panic!("HEAD {target}: {broken:?}"))
}

/// What is left of a body that was hashed and not kept.
#[derive(Debug)]
pub struct Hashed {
    pub head: Head,
    pub len: u64,
    pub digest: String,
    pub broken: Option<Broken>,
}

/// GET of a body of any size.
pub fn get_hashed(addr: SocketAddr, target: &str) -> Result<Hashed, Broken> {
    let mut connection = Connection::try_open(addr)?;
    connection.request("GET", target, &[]);
    let head = connection.read_head()?;
    let mut hash = Hash::default();
    let read = connection.read_body("GET", &head, &mut |bytes| hash.update(bytes));
    Ok(Hashed {
        head,
        len: hash.len(),
        digest: hash.digest(),
        broken: read.err(),
    })
}

/// Connections that have asked for the target and not had their answer. A request before it went
/// with it, so that request's answer tells that both have arrived.
#[track_caller]
pub fn ask_together(addr: SocketAddr, target: &str, clients: usize) -> Vec<Connection> {
    let both = request_text("GET", "/v2/", &[]) + &request_text("GET", target, &[]);
    let mut clients: Vec<_> = (0..clients).map(|_| Connection::open(addr)).collect();
    for client in &mut clients {
        client.write(both.as_bytes());
    }
    for client in &mut clients {
        client.answer("GET").expect("an answer").expect(200);
    }
    clients
}
