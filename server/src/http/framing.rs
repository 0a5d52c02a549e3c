//! The chunked transfer coding (RFC 9112 §7.1), both ways.
//!
//! The upstream client decodes bodies with it, the connection loop drains request bodies and
//! sends bodies of unknown length. Decoding is incremental and strict: sizes are plain hex
//! digits, lines end with CRLF, extensions and trailers are bounded, checked and dropped.

use thiserror::Error;

use super::field;

/// Octets of all chunk extensions of a body together. Nobody sends any; one of a few octets for
/// each chunk would be a way to make us read for nothing.
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
