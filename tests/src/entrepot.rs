//! The server under test: its configuration, its start, its ends, its counters.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::Arc;

use rustix::process::Signal;
use serde_json::Value;

use crate::deadline::{until, until_true};
use crate::http::{self, Answer};
use crate::process::{Process, built, command, run};
use crate::temp::TempDir;

/// Enough for every test that does not fill a store on purpose.
const CAPACITY: &str = "4GiB";

/// The kernel chooses, the log tells.
const FREE_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Variables that the program reads, and that whoever runs the tests may have set.
const OUTSIDE: [&str; 14] = [
    "CREDENTIALS_DIRECTORY",
    "ENTREPOT_CONFIG",
    "ENTREPOT_CONTROL",
    "ENTREPOT_SHARDS",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NOTIFY_SOCKET",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "STATE_DIRECTORY",
    "XDG_CACHE_HOME",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// The program, built by `cargo build -p entrepot`.
pub fn program() -> PathBuf {
    built("entrepot", "ENTREPOT_BIN", "entrepot")
}

/// A configuration file as text, put together from projects.
#[derive(Clone, Default)]
pub struct Config {
    text: String,
}

impl Config {
    pub fn new() -> Config {
        Config::default()
    }

    /// One default project `dh` that serves docker.io from one upstream.
    pub fn one(upstream: &str) -> Config {
        Config::new().project(
            "dh",
            "serves = [\"docker.io\"]\ndefault = true",
            &[upstream],
        )
    }

    /// A project; `keys` are TOML lines of its table. Upstreams are tried in the given order.
    pub fn project(mut self, name: &str, keys: &str, upstreams: &[&str]) -> Config {
        self.text.push_str(&format!("[project.{name}]\n{keys}\n"));
        for url in upstreams {
            self = self.upstream(name, &format!("url = \"{url}\""));
        }
        self
    }

    /// A further upstream of a project by its TOML lines.
    pub fn upstream(mut self, project: &str, keys: &str) -> Config {
        self.text
            .push_str(&format!("[[project.{project}.upstream]]\n{keys}\n"));
        self
    }

    pub fn text(&self) -> &str {
        &self.text
    }
}

/// How a server is started.
#[derive(Clone)]
pub struct Setup {
    dir: Arc<TempDir>,
    config: PathBuf,
    store: PathBuf,
    capacity: String,
    listen: SocketAddr,
    admin: SocketAddr,
    args: Vec<String>,
    variables: Vec<(String, String)>,
    /// Put before the program, such as `setpriv` or `strace`.
    wrapper: Vec<String>,
}

impl Setup {
    pub fn new(config: &Config) -> Setup {
        let dir = TempDir::new("server");
        Setup {
            config: dir.write("entrepot.toml", config.text()),
            store: dir.join("store"),
            dir: Arc::new(dir),
            capacity: CAPACITY.to_owned(),
            listen: FREE_PORT,
            admin: FREE_PORT,
            args: Vec::new(),
            variables: Vec::new(),
            wrapper: Vec::new(),
        }
    }

    pub fn capacity(mut self, capacity: &str) -> Setup {
        self.capacity = capacity.to_owned();
        self
    }

    pub fn listen(mut self, listen: SocketAddr) -> Setup {
        self.listen = listen;
        self
    }

    pub fn admin(mut self, admin: SocketAddr) -> Setup {
        self.admin = admin;
        self
    }

    pub fn store(mut self, store: &Path) -> Setup {
        self.store = store.to_owned();
        self
    }

    pub fn args(mut self, args: &[&str]) -> Setup {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    pub fn variable(mut self, name: &str, value: &str) -> Setup {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn wrapper(mut self, wrapper: &[&str]) -> Setup {
        self.wrapper = wrapper.iter().map(|arg| (*arg).to_owned()).collect();
        self
    }

    pub fn dir(&self) -> &TempDir {
        &self.dir
    }

    pub fn store_path(&self) -> &Path {
        &self.store
    }

    pub fn config_path(&self) -> &Path {
        &self.config
    }

    /// Starts the program without waiting for anything.
    pub fn spawn(&self) -> Process {
        let mut command = match self.wrapper.split_first() {
            None => command(program()),
            Some((first, rest)) => {
                let mut command = command(first);
                command.args(rest).arg(program());
                command
            }
        };
        command.arg("serve").arg("--config").arg(&self.config);
        command.arg("--store").arg(&self.store);
        command.args(["--capacity", &self.capacity, "--log", "json"]);
        command.args(["--listen", &self.listen.to_string()]);
        command.args(["--admin", &self.admin.to_string()]);
        command.args(&self.args);
        self.surround(&mut command);
        Process::start("entrepot", command)
    }

    /// Starts the program and waits until it is ready.
    pub fn start(&self) -> Entrepot {
        let process = self.spawn();
        let data = wait_addr(&process, "listening");
        let admin = wait_addr(&process, "admin");
        let server = Entrepot {
            process,
            data,
            admin,
            setup: self.clone(),
        };
        until_true("/readyz answers 200", || {
            http::fetch(admin, "GET", "/readyz", &[]).is_ok_and(|answer| answer.status() == 200)
        });
        server
    }

    /// Runs another command of the program with the configuration and the store of this one.
    pub fn ask(&self, args: &[&str]) -> Output {
        let mut command = command(program());
        command.args(args).arg("--config").arg(&self.config);
        command.arg("--store").arg(&self.store);
        self.surround(&mut command);
        run(command)
    }

    fn surround(&self, command: &mut Command) {
        command.env("HOME", self.dir.path());
        for name in OUTSIDE {
            command.env_remove(name);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
    }

    /// Starts a program that must refuse to run; returns its exit code and all it said.
    pub fn refused(&self) -> (Option<i32>, String) {
        let mut process = self.spawn();
        let status = process.wait_exit();
        let said = until("the last words of the program", || {
            let said = process.stderr.all().join("\n");
            (!said.is_empty()).then_some(said)
        });
        (status.code(), said)
    }
}

/// The bound address in the log line `{"message": <message>, "addr": ...}`.
fn wait_addr(process: &Process, message: &str) -> SocketAddr {
    process.stderr.wait(&format!("{message} addr=..."), |line| {
        let line: Value = serde_json::from_str(line).ok()?;
        if line["message"].as_str()? != message {
            return None;
        }
        line["addr"].as_str()?.parse().ok()
    })
}

/// A running server.
pub struct Entrepot {
    process: Process,
    data: SocketAddr,
    admin: SocketAddr,
    setup: Setup,
}

impl Entrepot {
    /// With one default project in front of one upstream.
    pub fn before(upstream: &str) -> Entrepot {
        Setup::new(&Config::one(upstream)).start()
    }

    pub fn addr(&self) -> SocketAddr {
        self.data
    }

    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its log so far, one JSON value a line.
    pub fn log(&self) -> Vec<Value> {
        let lines = self.process.stderr.all();
        lines
            .iter()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    #[track_caller]
    pub fn get(&self, target: &str) -> Answer {
        http::get(self.data, target)
    }

    #[track_caller]
    pub fn head(&self, target: &str) -> Answer {
        http::head(self.data, target)
    }

    /// GET, or why no head came.
    pub fn try_get(&self, target: &str) -> Result<Answer, http::Broken> {
        http::fetch(self.data, "GET", target, &[])
    }

    #[track_caller]
    pub fn get_with(&self, target: &str, fields: &[(&str, &str)]) -> Answer {
        let answer = http::fetch(self.data, "GET", target, fields);
        answer.unwrap_or_else(|broken| panic!("GET {target} {fields:?}: {broken:?}"))
    }

    /// The sum of a counter over all its labels that contain each of `labels`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let page = http::get(self.admin, "/metrics").expect(200).text();
        let mut found = false;
        let mut sum = 0.0;
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let (series_name, series_labels) = series.split_once('{').unwrap_or((series, ""));
            found |= series_name == name;
            if series_name == name && labels.iter().all(|label| series_labels.contains(label)) {
                sum += value.parse::<f64>().expect("a number in /metrics");
            }
        }
        assert!(found, "no {name} in /metrics:\n{page}");
        sum
    }

    /// Waits until everything verified so far survives a crash.
    pub fn wait_committed(&self) {
        until_true("nothing is uncommitted and no fill runs", || {
            let gauges = [
                "entrepot_fills_running",
                "entrepot_store_uncommitted_bytes",
                "entrepot_store_uncommitted_records",
            ];
            gauges.iter().all(|gauge| self.metric(gauge, &[]) == 0.0)
        });
    }

    /// CPU time of all threads so far, in ticks of a hundredth of a second.
    pub fn cpu_ticks(&self) -> u64 {
        let path = format!("/proc/{}/stat", self.process.id());
        let stat = std::fs::read_to_string(path).expect("the process runs");
        // The name may hold anything; utime and stime are the 12th and 13th field after it.
        let (_, fields) = stat.rsplit_once(')').expect("a name");
        let times = fields.split_whitespace().skip(11).take(2);
        times.map(|time| time.parse::<u64>().expect("ticks")).sum()
    }

    /// Resident memory in bytes, the page cache not counted.
    pub fn rss(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(path).expect("the process runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.and_then(|kib| kib.parse::<u64>().ok())
            .expect("VmRSS in kB")
            * 1024
    }

    /// Runs another command of the program, such as `purge`, against this server.
    pub fn ask(&self, args: &[&str]) -> Output {
        self.setup.ask(args)
    }

    /// [`Entrepot::ask`] for what must succeed; returns what it printed.
    #[track_caller]
    pub fn ask_ok(&self, args: &[&str]) -> String {
        let output = self.ask(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// SIGKILL while others still use this value; [`Entrepot::kill9`] then buries it.
    pub fn kill9_now(&self) {
        self.process.signal(Signal::KILL);
    }

    pub fn kill9(mut self) -> Setup {
        self.process.kill9();
        // The next one gets the same port, as it would from its unit.
        self.setup.clone().listen(self.data)
    }

    /// SIGTERM; returns how it ended and how to start it again.
    pub fn terminate(mut self) -> (ExitStatus, Setup) {
        self.process.signal(Signal::TERM);
        let status = self.process.wait_exit();
        (status, self.setup.clone().listen(self.data))
    }
}
