//! Programs started by tests: found, started, watched, and surely ended.
//!
//! Each runs in a process group of its own, which is killed on drop. `setpriv --pdeathsig` has
//! the kernel kill it when the test process dies; that signal belongs to the *thread* that
//! started it, so one thread that never ends starts everything.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use std::os::unix::process::CommandExt;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::deadline::{PATIENCE, until_within};

/// A client's whole pull of a small image, with both cores busy elsewhere.
const RUN_PATIENCE: Duration = Duration::from_secs(180);

/// Lines of a log shown when a test fails, and characters of each.
const SHOWN_LINES: usize = 30;
const SHOWN_LINE_LEN: usize = 400;

/// Where system daemons lie that are not in an ordinary user's PATH.
const SYSTEM_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Finds `name` in PATH; a tool that is missing fails the test and names its Debian package.
pub fn tool(name: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(SYSTEM_FOLDERS.map(PathBuf::from));
    folders
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: install the Debian package {package}"))
}

/// A program of this workspace, built beside the tests.
pub fn built(name: &str, variable: &str, package: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return PathBuf::from(path);
    }
    let tests = std::env::current_exe().expect("the path of this test");
    let folder = tests.parent().and_then(Path::parent).expect("target/debug");
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build -p {package}` first, or set {variable}",
        path.display()
    );
    path
}

/// A command for `program` that dies with this test process.
pub fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(tool("setpriv", "util-linux"));
    command.args(["--pdeathsig", "KILL", "--"]);
    command.arg(program.as_ref());
    command
}

/// Runs to its end; panics when that takes too long, not when it fails.
pub fn run(command: Command) -> Output {
    let mut process = Process::start("run", command);
    let status = process.wait_exit_within(RUN_PATIENCE);
    Output {
        status,
        stdout: process.stdout.close().into_bytes(),
        stderr: process.stderr.close().into_bytes(),
    }
}

/// Runs to its end and must succeed; returns what it printed.
pub fn run_ok(command: Command) -> String {
    let what = format!("{command:?}");
    let output = run(command);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{what}\nended with {}\n{stdout}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

type Ask = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Starts a command on the thread that never ends.
fn spawn(command: Command) -> std::io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Ask>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (asks, inbox) = mpsc::channel::<Ask>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                // A test that no longer waits for its reply has already failed.
                let _ = reply.send(command.spawn());
            }
        });
        asks
    });
    let (reply, child) = mpsc::channel();
    spawner.send((command, reply)).expect("the spawner lives");
    child.recv().expect("the spawner answers")
}

/// The lines a program has printed so far.
#[derive(Clone, Default)]
pub struct Lines(Arc<(Mutex<Printed>, Condvar)>);

#[derive(Default)]
struct Printed {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    fn collect(from: impl Read + Send + 'static) -> Lines {
        let lines = Lines::default();
        let sink = lines.clone();
        std::thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut line = Vec::new();
            while matches!(from.read_until(b'\n', &mut line), Ok(1..)) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                sink.0.0.lock().expect("no reader panics").lines.push(text);
                sink.0.1.notify_all();
                line.clear();
            }
            sink.0.0.lock().expect("no reader panics").ended = true;
            sink.0.1.notify_all();
        });
        lines
    }

    /// The first line for which `look` finds something, waited for.
    pub fn wait<T>(&self, what: &str, look: impl Fn(&str) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        let mut seen = 0;
        let mut printed = self.0.0.lock().expect("no reader panics");
        loop {
            while let Some(line) = printed.lines.get(seen) {
                if let Some(found) = look(line) {
                    return found;
                }
                seen += 1;
            }
            let left = end.saturating_duration_since(Instant::now());
            if printed.ended || left.is_zero() {
                let tail = tail(&printed.lines);
                drop(printed);
                panic!("no line said: {what}\n{tail}");
            }
            printed = self.0.1.wait_timeout(printed, left).expect("no panic").0;
        }
    }

    pub fn all(&self) -> Vec<String> {
        self.0.0.lock().expect("no reader panics").lines.clone()
    }

    /// Everything, once the program has closed its end.
    fn close(&self) -> String {
        let what = "the end of a program's output";
        until_within(PATIENCE, what, || {
            let printed = self.0.0.lock().expect("no reader panics");
            printed.ended.then(|| printed.lines.join("\n"))
        })
    }

    pub fn tail(&self) -> String {
        tail(&self.all())
    }
}

fn tail(lines: &[String]) -> String {
    let last = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
    let cut = |line: &String| line.chars().take(SHOWN_LINE_LEN).collect::<String>();
    last.iter().map(cut).collect::<Vec<_>>().join("\n")
}

/// A running program.
pub struct Process {
    name: String,
    child: Child,
    pub stdout: Lines,
    pub stderr: Lines,
}

impl Process {
    pub fn start(name: &str, mut command: Command) -> Process {
        command.process_group(0);
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let what = format!("{command:?}");
        let mut child = spawn(command).unwrap_or_else(|error| panic!("{what}: {error}"));
        let stdout = Lines::collect(child.stdout.take().expect("a pipe was asked for"));
        let stderr = Lines::collect(child.stderr.take().expect("a pipe was asked for"));
        Process {
            name: name.to_owned(),
            child,
            stdout,
            stderr,
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap_or_else(|error| {
            panic!("{}: cannot send {signal:?}: {error}", self.name);
        });
    }

    /// SIGKILL to the whole group, and waits until the kernel has buried it.
    pub fn kill9(&mut self) {
        // ESRCH: it ended by itself.
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let _ = self.child.wait();
    }

    pub fn has_exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    pub fn wait_exit(&mut self) -> ExitStatus {
        self.wait_exit_within(PATIENCE)
    }

    /// SIGTERM, and waits for the end without insisting: for `drop`, where a panic would abort.
    pub fn terminate_quietly(&mut self) {
        let _ = kill_process(self.pid(), Signal::TERM);
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn wait_exit_within(&mut self, patience: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        until_within(patience, &what, || self.has_exited())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            eprintln!(
                "---- {} printed on stdout:\n{}",
                self.name,
                self.stdout.tail()
            );
            eprintln!(
                "---- {} printed on stderr:\n{}",
                self.name,
                self.stderr.tail()
            );
        }
    }
}
