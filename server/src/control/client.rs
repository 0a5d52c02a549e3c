//! The command line's side of the control socket: one request to the running server.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Answer, LineError, Request, read_line, write_line};

/// A purge walks the whole index and waits for the disk; an answer that takes longer than this
/// will not come.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(
        "no server answers on {}\n  \
             is it running, and by this configuration?  entrepot print-config says which socket\n  \
             another socket:     --control PATH", .0.display()
    )]
    NoServer(PathBuf),
    #[error(
        "may not open {}: it belongs to the user of the server\n  \
             run this as that user or as root", .0.display()
    )]
    Forbidden(PathBuf),
    #[error("cannot reach the server on {}: {error}", path.display())]
    Unreachable { path: PathBuf, error: io::Error },
    #[error("no answer: {0}; whether it was done is not known, so ask again")]
    NoAnswer(String),
}

/// Sends one request and waits for its answer.
pub fn ask(path: &Path, request: &Request) -> Result<Answer, AskError> {
    let mut stream = UnixStream::connect(path).map_err(|error| unreachable(path, error))?;
    let mut asked = || -> Result<Answer, LineError> {
        stream.set_write_timeout(Some(PATIENCE))?;
        write_line(&mut stream, request)?;
        read_line(&mut stream, PATIENCE)
    };
    asked().map_err(|error| AskError::NoAnswer(error.to_string()))
}

fn unreachable(path: &Path, error: io::Error) -> AskError {
    let path = path.to_owned();
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => AskError::NoServer(path),
        ErrorKind::PermissionDenied => AskError::Forbidden(path),
        _ => AskError::Unreachable { path, error },
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Purged, Target};
    use super::*;

    #[test]
    fn the_lines_are_what_the_readme_says() {
        let request = Request::Purge(Target::Tag("dh/library/nginx:1.27".to_owned()));
        let text = serde_json::to_string(&request).expect("JSON");
        assert_eq!(text, r#"{"purge":{"tag":"dh/library/nginx:1.27"}}"#);
        let answer = Answer::Purged(Purged {
            tags: 1,
            ..Purged::default()
        });
        let text = serde_json::to_string(&answer).expect("JSON");
        let expected = r#"{"purged":{"bodies":0,"tags":1,"listings":0,"links":0,"statistics":0}}"#;
        assert_eq!(text, expected);
    }

    #[test]
    fn a_line_is_bounded_and_whole() {
        let pair = || UnixStream::pair().expect("a pair");
        let read =
            |stream: &mut UnixStream, ms| read_line::<Answer>(stream, Duration::from_millis(ms));
        let (mut near, mut far) = pair();
        write_line(&mut far, &Answer::Error("x".to_owned())).expect("written");
        assert!(matches!(read(&mut near, 5_000), Ok(Answer::Error(text)) if text == "x"));
        assert!(matches!(read(&mut near, 10), Err(LineError::TooSlow)));
        drop(far);
        assert!(matches!(read(&mut near, 5_000), Err(LineError::Cut)));

        let (mut near, mut far) = pair();
        let writer = std::thread::spawn(move || {
            // The reader gives up before the end, which fails this write.
            let _ = write_line(&mut far, &"x".repeat(super::super::LINE_LEN_MAX + 1));
        });
        assert!(matches!(read(&mut near, 5_000), Err(LineError::TooLong)));
        drop(near);
        writer.join().expect("no panic");
        let (mut near, mut far) = pair();
        write_line(&mut far, &"{").expect("written");
        assert!(matches!(read(&mut near, 5_000), Err(LineError::Syntax(_))));
    }

    #[test]
    fn without_a_server_the_message_says_so() {
        let path = std::env::temp_dir().join("entrepot-no-such-server.sock");
        let request = Request::Purge(Target::Project("dh".to_owned()));
        let error = ask(&path, &request).expect_err("nobody there");
        assert!(
            error.to_string().contains("no server answers on"),
            "{error}"
        );
    }
}
