//! Response heads and chunked bodies, as they come in pieces.

/// Longer heads are an error.
pub const HEAD_LEN_MAX: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub status: u16,
    pub framing: Framing,
    /// The server will close the connection after this answer.
    pub close: bool,
    /// Of the head itself.
    pub len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// `None`: more bytes are needed. One pass, since it is run for each answer.
pub fn parse_head(bytes: &[u8], head_only: bool) -> Result<Option<Head>, Malformed> {
    let mut rest = bytes;
    let unfinished = match bytes.len() > HEAD_LEN_MAX {
        true => Err(Malformed),
        false => Ok(None),
    };
    let Some(status_line) = next_line(&mut rest)? else {
        return unfinished;
    };
    let minor = status_line.strip_prefix(b"HTTP/1.").ok_or(Malformed)?;
    let status = minor.get(2..5).and_then(number).ok_or(Malformed)? as u16;
    let mut framing = None;
    let mut close = minor.starts_with(b"0");
    loop {
        let line = match next_line(&mut rest)? {
            Some([]) => break,
            Some(line) => line,
            None => return unfinished,
        };
        let colon = line
            .iter()
            .position(|byte| *byte == b':')
            .ok_or(Malformed)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            framing = Some(Framing::Length(number(value).ok_or(Malformed)?));
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            framing = Some(Framing::Chunked);
        } else if name.eq_ignore_ascii_case(b"connection") {
            close = value.eq_ignore_ascii_case(b"close");
        }
    }
    if head_only || status == 204 || status == 304 {
        framing = Some(Framing::Length(0));
    }
    let framing = framing.unwrap_or(Framing::UntilClose);
    Ok(Some(Head {
        status,
        framing,
        close: close || framing == Framing::UntilClose,
        len: bytes.len() - rest.len(),
    }))
}

/// Takes a line off, without its end; `None`: it has not come yet.
fn next_line<'b>(rest: &mut &'b [u8]) -> Result<Option<&'b [u8]>, Malformed> {
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
        return Ok(None);
    };
    let line = rest[..end].strip_suffix(b"\r").ok_or(Malformed)?;
    *rest = &rest[end + 1..];
    Ok(Some(line))
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The value of the first field of this name in a head.
pub fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    fields(head, name).next()
}

/// The values of all fields of this name.
pub fn fields<'h>(head: &'h str, name: &str) -> impl Iterator<Item = &'h str> {
    let lines = head.split("\r\n").skip(1);
    let pairs = lines.filter_map(|line| line.split_once(':'));
    pairs
        .filter(move |(is, _)| is.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

/// Takes the coding off a chunked body (RFC 9112 §7.1).
#[derive(Debug, Default)]
pub struct Chunked {
    state: ChunkState,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ChunkState {
    /// Reading the size line; the number so far and whether it is over.
    #[default]
    Start,
    Size(u64),
    Extension(u64),
    Data(u64),
    /// The line end behind the data.
    DataEnd,
    /// Trailer lines; whether the present one is empty so far.
    Trailer {
        empty: bool,
    },
    Done,
}

impl Chunked {
    /// Hands body bytes to `take`; answers how many bytes of `input` were used.
    pub fn decode(
        &mut self,
        input: &[u8],
        mut take: impl FnMut(&[u8]),
    ) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < input.len() && self.state != ChunkState::Done {
            if let ChunkState::Data(left) = self.state {
                let len = (input.len() - at).min(usize::try_from(left).unwrap_or(usize::MAX));
                take(&input[at..at + len]);
                at += len;
                self.state = match left - len as u64 {
                    0 => ChunkState::DataEnd,
                    left => ChunkState::Data(left),
                };
            } else {
                self.state = self.state.step(input[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    pub fn is_done(&self) -> bool {
        self.state == ChunkState::Done
    }
}

impl ChunkState {
    fn step(self, byte: u8) -> Result<ChunkState, Malformed> {
        let digit = (byte as char).to_digit(16).map(u64::from);
        Ok(match (self, byte) {
            (ChunkState::Start, _) => ChunkState::Size(digit.ok_or(Malformed)?),
            (ChunkState::Size(size), b'\r' | b';') => ChunkState::Extension(size),
            (ChunkState::Size(size), _) => {
                let size = size.checked_mul(16).ok_or(Malformed)?;
                ChunkState::Size(size + digit.ok_or(Malformed)?)
            }
            (ChunkState::Extension(0), b'\n') => ChunkState::Trailer { empty: true },
            (ChunkState::Extension(size), b'\n') => ChunkState::Data(size),
            (ChunkState::Extension(size), _) => ChunkState::Extension(size),
            (ChunkState::DataEnd, b'\r') => ChunkState::DataEnd,
            (ChunkState::DataEnd, b'\n') => ChunkState::Start,
            (ChunkState::DataEnd, _) => return Err(Malformed),
            (ChunkState::Trailer { empty: true }, b'\n') => ChunkState::Done,
            (ChunkState::Trailer { .. }, b'\n') => ChunkState::Trailer { empty: true },
            (ChunkState::Trailer { empty }, b'\r') => ChunkState::Trailer { empty },
            (ChunkState::Trailer { .. }, _) => ChunkState::Trailer { empty: false },
            (state @ (ChunkState::Data(_) | ChunkState::Done), _) => state,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        for (text, head_only, status, framing, close) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
                false,
                200,
                Framing::Length(5),
                false,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
                true,
                200,
                Framing::Length(0),
                false,
            ),
            (
                "HTTP/1.1 304 x\r\n\r\n",
                false,
                304,
                Framing::Length(0),
                false,
            ),
            (
                "HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n",
                false,
                200,
                Framing::Chunked,
                false,
            ),
            (
                "HTTP/1.1 200 x\r\n\r\n",
                false,
                200,
                Framing::UntilClose,
                true,
            ),
            (
                "HTTP/1.0 200 x\r\nContent-Length: 1\r\n\r\n",
                false,
                200,
                Framing::Length(1),
                true,
            ),
            (
                "HTTP/1.1 500 x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
                false,
                500,
                Framing::Length(0),
                true,
            ),
        ] {
            let head = parse_head(text.as_bytes(), head_only).unwrap().unwrap();
            let len = text.len();
            let expected = Head {
                status,
                framing,
                close,
                len,
            };
            assert_eq!(head, expected, "{text}");
            assert_eq!(
                parse_head(&text.as_bytes()[..len - 1], head_only),
                Ok(None),
                "{text}"
            );
        }
        for bad in [
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 20\r\n\r\n",
            "HTTP/1.1 200 x\r\nno colon\r\n\r\n",
        ] {
            assert_eq!(parse_head(bad.as_bytes(), false), Err(Malformed), "{bad}");
        }
    }

    #[test]
    fn chunked_in_pieces_of_every_size() {
        let wire = b"5;x=y\r\nhello\r\nA\r\n 0123456 8\r\n0\r\nT: v\r\n\r\nnext";
        for step in 1..wire.len() {
            let mut body = Vec::new();
            let mut chunked = Chunked::default();
            let mut used = 0;
            for piece in wire.chunks(step) {
                let len = chunked
                    .decode(piece, |bytes| body.extend_from_slice(bytes))
                    .unwrap();
                used += len;
                if chunked.is_done() {
                    break;
                }
                assert_eq!(len, piece.len());
            }
            assert!(chunked.is_done());
            assert_eq!(
                (body.as_slice(), &wire[used..]),
                (&b"hello 0123456 8"[..], &b"next"[..])
            );
        }
        assert!(Chunked::default().decode(b"x", |_| {}).is_err());
        assert!(Chunked::default().decode(b"1\r\nab", |_| {}).is_err());
    }
}
