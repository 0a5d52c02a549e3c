//! The body of an answer with several ranges: `multipart/byteranges` (RFC 9110 §14.6).
//!
//! Only what stands between the parts is written here, and how long the whole is; the bytes of
//! the parts are sent by who has them.

use std::fmt::{self, Display, Write};

use super::range::ContentRange;

/// 128 bits, written as hex digits: nobody can have put them into a body beforehand.
const BOUNDARY_LEN: usize = 32;

/// Several parts of one representation, in the order in which they are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Multipart<'t> {
    parts: Vec<(u64, u64)>,
    length: u64,
    media_type: &'t str,
    boundary: u128,
}

impl<'t> Multipart<'t> {
    /// `parts` are of a representation of `length` octets, first included and end excluded;
    /// `boundary` is a number that no client or upstream can foresee.
    pub fn new(
        parts: Vec<(u64, u64)>,
        length: u64,
        media_type: &'t str,
        boundary: u128,
    ) -> Multipart<'t> {
        Multipart {
            parts,
            length,
            media_type,
            boundary,
        }
    }

    pub fn parts(&self) -> &[(u64, u64)] {
        &self.parts
    }

    /// The value of `Content-Type`.
    pub fn content_type(&self) -> impl Display + '_ {
        ContentType(self)
    }

    /// Octets of the whole answer, with what stands between the parts.
    pub fn content_length(&self) -> u64 {
        let heads = self.parts.iter().enumerate();
        let heads = heads.map(|(nth, _)| written_len(|text| self.write_head(nth, text)));
        let bytes = self.parts.iter().map(|(start, end)| end - start);
        heads.chain(bytes).sum::<u64>() + written_len(|text| self.write_end(text))
    }

    /// Appends what stands before the bytes of a part.
    pub fn push_head(&self, nth: usize, out: &mut Vec<u8>) {
        push(out, |text| self.write_head(nth, text));
    }

    /// Appends what ends the answer.
    pub fn push_end(&self, out: &mut Vec<u8>) {
        push(out, |text| self.write_end(text));
    }

    fn write_head(&self, nth: usize, text: &mut dyn Write) -> fmt::Result {
        // RFC 2046 §5.1.1: the line break before a delimiter belongs to the delimiter.
        let before = if nth == 0 { "" } else { "\r\n" };
        let (start, end) = self.parts[nth];
        let range = ContentRange::Part {
            start,
            end,
            length: Some(self.length),
        };
        let (boundary, media_type) = (self.boundary, self.media_type);
        write!(
            text,
            "{before}--{boundary:0BOUNDARY_LEN$x}\r\nContent-Type: {media_type}\r\n\
             Content-Range: {range}\r\n\r\n"
        )
    }

    fn write_end(&self, text: &mut dyn Write) -> fmt::Result {
        write!(text, "\r\n--{:0BOUNDARY_LEN$x}--\r\n", self.boundary)
    }
}

struct ContentType<'m, 't>(&'m Multipart<'t>);

impl Display for ContentType<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let boundary = self.0.boundary;
        write!(
            f,
            "multipart/byteranges; boundary={boundary:0BOUNDARY_LEN$x}"
        )
    }
}

struct Text<'b>(&'b mut Vec<u8>);

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

struct Len(u64);

impl Write for Len {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len() as u64;
        Ok(())
    }
}

// Neither a Vec nor a count fails to be written to.

fn push(out: &mut Vec<u8>, write: impl FnOnce(&mut dyn Write) -> fmt::Result) {
    let _ = write(&mut Text(out));
}

fn written_len(write: impl FnOnce(&mut dyn Write) -> fmt::Result) -> u64 {
    let mut len = Len(0);
    let _ = write(&mut len);
    len.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_that_of_what_is_written() {
        let body: Vec<u8> = (0..100).collect();
        let cases: [&[(u64, u64)]; 3] = [
            &[(0, 1), (99, 100)],
            &[(90, 100), (0, 10), (5, 95)],
            &[(7, 8)],
        ];
        for parts in cases {
            let multipart = Multipart::new(parts.to_vec(), 100, "text/plain", 1 << 96);
            let mut out = Vec::new();
            for (nth, (start, end)) in parts.iter().enumerate() {
                multipart.push_head(nth, &mut out);
                out.extend_from_slice(&body[*start as usize..*end as usize]);
            }
            multipart.push_end(&mut out);
            assert_eq!(out.len() as u64, multipart.content_length(), "{parts:?}");
        }
    }

    #[test]
    fn as_rfc_9110_writes_it() {
        let multipart = Multipart::new(vec![(0, 2), (98, 100)], 100, "text/plain", 0xab);
        let boundary = format!("{:032x}", 0xab);
        assert_eq!(
            multipart.content_type().to_string(),
            format!("multipart/byteranges; boundary={boundary}")
        );
        let mut out = Vec::new();
        multipart.push_head(0, &mut out);
        out.extend_from_slice(b"ab");
        multipart.push_head(1, &mut out);
        out.extend_from_slice(b"yz");
        multipart.push_end(&mut out);
        let expected = format!(
            "--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/100\r\n\r\nab\
             \r\n--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes 98-99/100\
             \r\n\r\nyz\r\n--{boundary}--\r\n"
        );
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }
}
