//! The chunked transfer coding (RFC 9112 §7.1), both ways.
//!
//! The upstream client decodes bodies with it, the connection loop drains request bodies and
//! sends bodies of unknown length. Decoding is incremental and strict: sizes are plain hex
//! digits, lines end with CRLF, extensions and trailers are bounded, checked and dropped.

use thiserror::Error;

use super::field;

/// Octets of all chunk extensions of a body together. We know of no registry that sends any;
/// without a bound they would be a way to make us read for nothing.
pub const EXTENSIONS_LEN_MAX: usize = 16 << 10;
/// Octets of the trailer section.
pub const TRAILERS_LEN_MAX: usize = 16 << 10;
/// Hex digits of a chunk size: those of 63 bits, checked when the next is added, and some zeros.
const SIZE_DIGITS_MAX: u8 = 16;

/// Ends the data of every chunk.
pub const CHUNK_END: &[u8] = b"\r\n";
/// Ends a complete body. A body that failed is never ended with it (R6).
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The broken rule. Each ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChunkError {
    #[error("chunk data does not end with CRLF")]
    DataEnd,
    #[error("chunk extensions too long")]
    ExtensionsTooLong,
    #[error("invalid chunk extension")]
    InvalidExtension,
    #[error("invalid chunk size")]
    InvalidSize,
    #[error("invalid trailer field")]
    InvalidTrailer,
    #[error("line of a chunked body does not end with CRLF")]
    LineEnd,
    #[error("chunk size too large")]
    SizeTooLarge,
    #[error("trailers too long")]
    TrailersTooLong,
}

/// Where in the grammar the next octet stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size { digits: u8 },
    Extension,
    SizeLineFeed,
    Data,
    DataCarriageReturn,
    DataLineFeed,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLineFeed,
    LastLineFeed,
    Done,
}

/// Decodes one chunked body.
#[derive(Clone, Debug)]
pub struct ChunkedDecoder {
    state: State,
    /// Octets of this chunk's data that are still to come.
    remaining: u64,
    extensions_len: usize,
    trailers_len: usize,
}

impl Default for ChunkedDecoder {
    fn default() -> ChunkedDecoder {
        ChunkedDecoder::new()
    }
}

impl ChunkedDecoder {
    pub fn new() -> ChunkedDecoder {
        ChunkedDecoder {
            state: State::Size { digits: 0 },
            remaining: 0,
            extensions_len: 0,
            trailers_len: 0,
        }
    }

    /// Appends the data found in `input` to `out`. Returns how much of `input` was consumed and
    /// whether the body ended there; all is consumed unless it did.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, bool), ChunkError> {
        let mut rest = input;
        while self.state != State::Done {
            if self.state == State::Data {
                rest = self.data(rest, out);
            }
            let Some((byte, after)) = rest.split_first() else {
                break;
            };
            self.state = self.step(*byte)?;
            rest = after;
        }
        Ok((input.len() - rest.len(), self.state == State::Done))
    }

    fn data<'i>(&mut self, input: &'i [u8], out: &mut Vec<u8>) -> &'i [u8] {
        let len = usize::try_from(self.remaining).map_or(input.len(), |len| len.min(input.len()));
        let (data, rest) = input.split_at(len);
        out.extend_from_slice(data);
        self.remaining -= data.len() as u64;
        if self.remaining == 0 {
            self.state = State::DataCarriageReturn;
        }
        rest
    }

    fn step(&mut self, byte: u8) -> Result<State, ChunkError> {
        match (self.state, byte) {
            (State::Size { digits }, _) => self.size(digits, byte),
            // RFC 9112 §7.1.1: extensions that are not understood are ignored.
            (State::Extension, b'\r') => Ok(State::SizeLineFeed),
            (State::Extension, b'\n') => Err(ChunkError::LineEnd),
            (State::Extension, _) if field::is_value(byte) => {
                self.extensions_len += 1;
                if self.extensions_len > EXTENSIONS_LEN_MAX {
                    return Err(ChunkError::ExtensionsTooLong);
                }
                Ok(State::Extension)
            }
            (State::Extension, _) => Err(ChunkError::InvalidExtension),
            (State::SizeLineFeed, b'\n') if self.remaining == 0 => Ok(State::TrailerStart),
            (State::SizeLineFeed, b'\n') => Ok(State::Data),
            (State::DataCarriageReturn, b'\r') => Ok(State::DataLineFeed),
            (State::DataLineFeed, b'\n') => Ok(State::Size { digits: 0 }),
            (State::DataCarriageReturn | State::DataLineFeed, _) => Err(ChunkError::DataEnd),
            (State::TrailerStart | State::TrailerName | State::TrailerValue, _) => {
                self.trailer(byte)
            }
            (State::TrailerLineFeed, b'\n') => Ok(State::TrailerStart),
            (State::LastLineFeed, b'\n') => Ok(State::Done),
            (State::SizeLineFeed | State::TrailerLineFeed | State::LastLineFeed, _) => {
                Err(ChunkError::LineEnd)
            }
            // `decode` takes data in bulk and stops when done.
            (State::Data | State::Done, _) => Ok(self.state),
        }
    }

    fn size(&mut self, digits: u8, byte: u8) -> Result<State, ChunkError> {
        let Some(digit) = char::from(byte).to_digit(16) else {
            return match byte {
                _ if digits == 0 => Err(ChunkError::InvalidSize),
                b'\r' => Ok(State::SizeLineFeed),
                b'\n' => Err(ChunkError::LineEnd),
                // Padding after the size is refused, though some servers have sent it.
                b';' => Ok(State::Extension),
                _ => Err(ChunkError::InvalidSize),
            };
        };
        // RFC 9112 §7.1: a recipient prevents overflow of very large sizes.
        let size = self
            .remaining
            .saturating_mul(16)
            .saturating_add(u64::from(digit));
        if digits == SIZE_DIGITS_MAX || size > field::LENGTH_MAX {
            return Err(ChunkError::SizeTooLarge);
        }
        self.remaining = size;
        Ok(State::Size { digits: digits + 1 })
    }

    /// RFC 9112 §7.1.2: trailer fields are dropped, none of them means anything here.
    fn trailer(&mut self, byte: u8) -> Result<State, ChunkError> {
        self.trailers_len += 1;
        if self.trailers_len > TRAILERS_LEN_MAX {
            return Err(ChunkError::TrailersTooLong);
        }
        match (self.state, byte) {
            (State::TrailerStart, b'\r') => Ok(State::LastLineFeed),
            (State::TrailerValue, b'\r') => Ok(State::TrailerLineFeed),
            (_, b'\n') => Err(ChunkError::LineEnd),
            (State::TrailerName, b':') => Ok(State::TrailerValue),
            (State::TrailerStart | State::TrailerName, _) if field::is_token(byte) => {
                Ok(State::TrailerName)
            }
            (State::TrailerValue, _) if field::is_value(byte) => Ok(State::TrailerValue),
            _ => Err(ChunkError::InvalidTrailer),
        }
    }
}

/// Appends what stands before the data of a chunk. A chunk of no octets would end the body.
pub fn push_chunk_size(buffer: &mut Vec<u8>, len: usize) {
    debug_assert!(len > 0);
    let digits = (usize::BITS - len.leading_zeros()).div_ceil(4);
    for digit in (0..digits).rev() {
        let nibble = (len >> (digit * 4)) & 15;
        buffer.push(b"0123456789abcdef"[nibble]);
    }
    buffer.extend_from_slice(CHUNK_END);
}

/// What must hold for any bytes at all.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    let (mut whole, mut decoder) = (Vec::new(), ChunkedDecoder::new());
    let outcome = decoder.decode(data, &mut whole);
    assert!(whole.len() <= data.len());
    // Octet by octet it comes to the same: the same data, the same end, the same broken rule.
    let (mut pieces, mut decoder) = (Vec::new(), ChunkedDecoder::new());
    let mut consumed = 0;
    let mut done = false;
    for octet in data {
        match decoder.decode(&[*octet], &mut pieces) {
            Ok((len, ended)) => {
                consumed += len;
                done = ended;
            }
            Err(error) => {
                assert_eq!(outcome, Err(error));
                return;
            }
        }
        if done {
            break;
        }
    }
    assert_eq!(outcome, Ok((consumed, done)));
    assert_eq!(pieces, whole);
    if !done {
        assert_eq!(consumed, data.len());
        return;
    }
    // What we write for the same data decodes to it.
    let mut written = Vec::new();
    for piece in whole.chunks(7) {
        push_chunk_size(&mut written, piece.len());
        written.extend_from_slice(piece);
        written.extend_from_slice(CHUNK_END);
    }
    written.extend_from_slice(LAST_CHUNK);
    let mut again = Vec::new();
    let outcome = ChunkedDecoder::new().decode(&written, &mut again);
    assert_eq!((outcome, again), (Ok((written.len(), true)), whole));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<(Vec<u8>, usize, bool), ChunkError> {
        let mut data = Vec::new();
        let (consumed, done) = ChunkedDecoder::new().decode(bytes, &mut data)?;
        Ok((data, consumed, done))
    }

    #[test]
    fn bodies() {
        let cases: [(&str, &str, usize); 8] = [
            ("0\r\n\r\n", "", 0),
            ("5\r\nhello\r\n0\r\n\r\n", "hello", 0),
            ("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", "hello world", 0),
            (
                "a\r\n0123456789\r\n0\r\n\r\nGET / HTTP/1.1\r\n",
                "0123456789",
                16,
            ),
            ("A\r\n0123456789\r\n000\r\n\r\n", "0123456789", 0),
            ("0000000000000002\r\n\r\n\r\n0\r\n\r\n", "\r\n", 0),
            ("2;a=\"b;c\" ; d\r\nhi\r\n0;x\r\n\r\n", "hi", 0),
            ("2\r\nhi\r\n0\r\nDigest: a\r\nX:\r\n\r\n", "hi", 0),
        ];
        for (bytes, data, left) in cases {
            let expected = (data.as_bytes().to_vec(), bytes.len() - left, true);
            assert_eq!(decode(bytes.as_bytes()), Ok(expected), "{bytes:?}");
        }
    }

    #[test]
    fn a_body_cut_anywhere_goes_on() {
        let bytes = b"5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nA: b\r\n\r\n";
        for cut in 0..bytes.len() {
            let (mut data, mut decoder) = (Vec::new(), ChunkedDecoder::new());
            let first = decoder.decode(&bytes[..cut], &mut data);
            assert_eq!(first, Ok((cut, false)));
            let second = decoder.decode(&bytes[cut..], &mut data);
            assert_eq!(second, Ok((bytes.len() - cut, true)), "{cut}");
            assert_eq!(data, b"hello!");
            assert_eq!(decoder.decode(b"more", &mut data), Ok((0, true)));
        }
    }

    #[test]
    fn refused_bodies() {
        use ChunkError as E;
        let cases: [(&[u8], ChunkError); 27] = [
            (b"\r\n", E::InvalidSize),
            (b"\n", E::InvalidSize),
            (b"g\r\n", E::InvalidSize),
            (b" 5\r\n", E::InvalidSize),
            (b"+5\r\n", E::InvalidSize),
            (b"-1\r\n", E::InvalidSize),
            (b"0x5\r\n", E::InvalidSize),
            (b"5 \r\n", E::InvalidSize),
            (b"5\t;a\r\n", E::InvalidSize),
            (b";a\r\n", E::InvalidSize),
            (b"5\n", E::LineEnd),
            (b"5\rX", E::LineEnd),
            (b"5;a\n", E::LineEnd),
            (b"5;a\rb", E::LineEnd),
            (b"5;a\0\r\n", E::InvalidExtension),
            (b"5\r\nhelloX", E::DataEnd),
            (b"5\r\nhello\n", E::DataEnd),
            (b"5\r\nhello\rX", E::DataEnd),
            (b"8000000000000000\r\n", E::SizeTooLarge),
            (b"ffffffffffffffff\r\n", E::SizeTooLarge),
            (b"10000000000000000\r\n", E::SizeTooLarge),
            (b"00000000000000005\r\n", E::SizeTooLarge),
            (b"0\r\n\n", E::LineEnd),
            (b"0\r\n\rX", E::LineEnd),
            (b"0\r\n: a\r\n", E::InvalidTrailer),
            (b"0\r\nA : a\r\n", E::InvalidTrailer),
            (b"0\r\nA: a\r\n folded\r\n", E::InvalidTrailer),
        ];
        for (bytes, expected) in cases {
            assert_eq!(decode(bytes), Err(expected), "{}", bytes.escape_ascii());
        }
        assert_eq!(decode(b"0\r\nA: a\n"), Err(E::LineEnd));
        assert_eq!(decode(b"0\r\nA: a\rX"), Err(E::LineEnd));
        assert_eq!(decode(b"0\r\nA: \0\r\n"), Err(E::InvalidTrailer));
        assert_eq!(
            decode(b"7fffffffffffffff\r\nx"),
            Ok((b"x".to_vec(), 19, false))
        );
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let extended = |len: usize| format!("1;{}\r\nx\r\n", "e".repeat(len));
        let half = EXTENSIONS_LEN_MAX / 2;
        let both = format!("{}{}", extended(half), extended(half));
        assert!(decode(both.as_bytes()).is_ok());
        let over = format!("{}{}", extended(half), extended(half + 1));
        assert_eq!(decode(over.as_bytes()), Err(ChunkError::ExtensionsTooLong));
        // The line feeds are not counted.
        let trailers = |lines: usize| format!("0\r\n{}", "A: b\r\n".repeat(lines));
        let most = trailers(TRAILERS_LEN_MAX / 5);
        assert!(decode(most.as_bytes()).is_ok());
        let trailers = trailers(TRAILERS_LEN_MAX / 5 + 1);
        assert_eq!(
            decode(trailers.as_bytes()),
            Err(ChunkError::TrailersTooLong)
        );
    }

    #[test]
    fn sizes_are_written_in_hex() {
        for (len, expected) in [
            (1, "1\r\n"),
            (15, "f\r\n"),
            (16, "10\r\n"),
            (0x4_0000, "40000\r\n"),
        ] {
            let mut buffer = Vec::new();
            push_chunk_size(&mut buffer, len);
            assert_eq!(buffer, expected.as_bytes());
        }
    }

    #[test]
    fn fuzz_mutated_bodies() {
        let seeds: [&[u8]; 4] = [
            b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
            b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
            b"1a\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\n\r\n",
            b"0\r\n\r\nGET /",
        ];
        let words: [&[u8]; 8] = [
            b"\r\n",
            b"\r",
            b"\n",
            b"0",
            b"f",
            b";",
            b"7fffffffffffffff",
            b"0\r\n\r\n",
        ];
        crate::http::fuzzing::run(&seeds, &words, fuzz);
    }
}
