//! A tar archive that is never built: headers are held, file bytes are made when read.

use super::noise::{self, Noise};

const RECORD_LEN: u64 = 512;
/// Two empty records end an archive.
const END_LEN: u64 = 2 * RECORD_LEN;
/// The largest size that eleven octal digits hold; beyond it the field is binary (GNU tar).
const OCTAL_SIZE_MAX: u64 = 0o77_777_777_777;

/// What the files hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filling {
    /// Incompressible.
    Random,
    /// Sixteen letters: compresses to about a half.
    Text,
}

#[derive(Debug)]
pub struct Tar {
    /// In order of `start`, without gaps, from 0.
    parts: Vec<Part>,
    len: u64,
}

#[derive(Debug)]
struct Part {
    start: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Header(Box<[u8; RECORD_LEN as usize]>),
    Bytes(Noise, Filling),
    Zeros,
}

impl Tar {
    /// One directory named after `seed` with `files` files that hold `size` bytes together.
    pub fn new(seed: u64, size: u64, files: u32, filling: Filling) -> Tar {
        let mut tar = Tar {
            parts: Vec::new(),
            len: 0,
        };
        let directory = format!("layer-{seed:016x}/");
        tar.push(Kind::Header(header(&directory, 0, b'5')), RECORD_LEN);
        for file in 0..u64::from(files) {
            // Bytes that do not divide evenly go to the first file.
            let share = size / u64::from(files);
            let len = if file == 0 {
                share + size % u64::from(files)
            } else {
                share
            };
            let name = format!("{directory}file-{file}");
            tar.push(Kind::Header(header(&name, len, b'0')), RECORD_LEN);
            let noise = Noise::new(noise::derive(seed, file));
            tar.push(Kind::Bytes(noise, filling), len);
            tar.push(Kind::Zeros, len.next_multiple_of(RECORD_LEN) - len);
        }
        tar.push(Kind::Zeros, END_LEN);
        tar
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn read_at(&self, offset: u64, out: &mut [u8]) {
        assert!(offset + out.len() as u64 <= self.len);
        let mut index = self.parts.partition_point(|part| part.start <= offset);
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let part = &self.parts[index - 1];
            let end = self.parts.get(index).map_or(self.len, |next| next.start);
            let len = rest.len().min((end - at) as usize);
            let (now, later) = rest.split_at_mut(len);
            part.read_at(at - part.start, now);
            rest = later;
            at += len as u64;
            index += 1;
        }
    }

    fn push(&mut self, kind: Kind, len: u64) {
        if len > 0 {
            self.parts.push(Part {
                start: self.len,
                kind,
            });
            self.len += len;
        }
    }
}

impl Part {
    fn read_at(&self, offset: u64, out: &mut [u8]) {
        match &self.kind {
            Kind::Header(bytes) => {
                out.copy_from_slice(&bytes[offset as usize..offset as usize + out.len()]);
            }
            Kind::Zeros => out.fill(0),
            Kind::Bytes(noise, filling) => {
                noise.read_at(offset, out);
                if *filling == Filling::Text {
                    for byte in out {
                        *byte = b'a' + (*byte & 0x0f);
                    }
                }
            }
        }
    }
}

/// A ustar header: owner root, time zero.
fn header(name: &str, size: u64, kind: u8) -> Box<[u8; RECORD_LEN as usize]> {
    let mut bytes = Box::new([0; RECORD_LEN as usize]);
    let mode = if kind == b'5' { "0000755" } else { "0000644" };
    put(&mut bytes[..], 0, name.as_bytes());
    put(&mut bytes[..], 100, mode.as_bytes());
    put(&mut bytes[..], 108, b"0000000");
    put(&mut bytes[..], 116, b"0000000");
    if size <= OCTAL_SIZE_MAX {
        put(&mut bytes[..], 124, format!("{size:011o}").as_bytes());
    } else {
        bytes[124] = 0x80;
        put(&mut bytes[..], 128, &size.to_be_bytes());
    }
    put(&mut bytes[..], 136, b"00000000000");
    bytes[156] = kind;
    put(&mut bytes[..], 257, b"ustar\x0000");
    put(&mut bytes[..], 265, b"root");
    put(&mut bytes[..], 297, b"root");
    // The checksum is taken with its own field full of spaces.
    put(&mut bytes[..], 148, b"        ");
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    put(&mut bytes[..], 148, format!("{sum:06o}\0 ").as_bytes());
    bytes
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn bytes(tar: &Tar) -> Vec<u8> {
        let mut out = vec![0; tar.len() as usize];
        tar.read_at(0, &mut out);
        out
    }

    #[test]
    fn any_offset_gives_the_bytes_of_the_whole() {
        let tar = Tar::new(3, 10_001, 3, Filling::Text);
        let whole = bytes(&tar);
        for offset in 0..whole.len() {
            let len = 700.min(whole.len() - offset);
            let mut part = vec![0; len];
            tar.read_at(offset as u64, &mut part);
            assert_eq!(part, whole[offset..offset + len], "at {offset}");
        }
    }

    #[test]
    fn gnu_tar_lists_it() {
        let tar = Tar::new(0x2a, 1_000, 2, Filling::Random);
        let mut child = Command::new("tar")
            .args(["--list", "--verbose", "--numeric-owner", "--utc"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tar");
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&bytes(&tar)).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(
            lines[2],
            [
                "-rw-r--r--",
                "0/0",
                "500",
                "1970-01-01",
                "00:00",
                "layer-000000000000002a/file-1"
            ]
        );
    }

    #[test]
    fn ten_gibibytes_in_one_file() {
        let size = 10 << 30;
        let tar = Tar::new(1, size, 1, Filling::Random);
        assert_eq!(tar.len(), 2 * RECORD_LEN + size + END_LEN);
        let mut header = [0; 512];
        tar.read_at(RECORD_LEN, &mut header);
        assert_eq!(header[124], 0x80);
        let mut size_field = [0; 8];
        size_field.copy_from_slice(&header[128..136]);
        assert_eq!(u64::from_be_bytes(size_field), size);
        let mut end = [1; 1024];
        tar.read_at(tar.len() - 1024, &mut end);
        assert_eq!(end, [0; 1024]);
    }
}
