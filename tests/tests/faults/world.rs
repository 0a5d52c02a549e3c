//! The upstream of one row and the server before it, and how that upstream is broken and mended.

use serde_json::{Value, json};

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::origin::Origin;
use entrepot_tests::process::{command, run_ok, tool};
use entrepot_tests::temp::TempDir;

use crate::names::{NameService, Names};
use crate::rows::Fault;

/// Of upstreams in the rows.
pub const TIMEOUT: &str = "connect_timeout = \"1s\"\nread_timeout = \"1s\"";
/// Resolved by nobody but the name service of a row.
const NAME: &str = "registry.row.test";

pub struct World<'a> {
    fault: &'a Fault,
    origin: Origin,
    names: Option<NameService>,
    dir: TempDir,
}

impl<'a> World<'a> {
    pub fn new(fault: &'a Fault) -> World<'a> {
        let dir = TempDir::new("row");
        let ca = dir.join("ca.pem");
        let ca = ca.to_str().expect("a UTF-8 path");
        let origin = match fault {
            Fault::Certificate(_) | Fault::Downgrade => {
                let origin = Origin::start_with(&["--tls", "--ca-out", ca]);
                let of_run = std::fs::read_to_string(ca).expect("the CA of the run");
                let all = of_run + include_str!("sha1/ca.pem");
                std::fs::write(ca, all).expect("written");
                origin
            }
            Fault::Token(_) => Origin::start_with(&["--auth", "token"]),
            _ => Origin::start(),
        };
        let names = matches!(fault, Fault::Names(_)).then(NameService::start);
        World {
            fault,
            origin,
            names,
            dir,
        }
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    pub fn server(&self) -> Entrepot {
        let mut url = self.origin.url().to_owned();
        if self.names.is_some() {
            url = format!("http://{NAME}:{}", self.origin.addr().port());
        }
        let mut keys = format!("url = \"{url}\"\n{TIMEOUT}");
        if url.starts_with("https:") {
            keys += &format!("\nca_file = \"{}\"", self.dir.join("ca.pem").display());
        }
        let config = Config::new().project("dh", "default = true", &[]);
        let mut setup = Setup::new(&config.upstream("dh", &keys))
            .args(&["--set", "limits.mismatch_holdoff=2s"]);
        if let Some(names) = &self.names {
            let wrapper = names.wrapper();
            // `sh -c` takes its first argument for its own name.
            let words = wrapper.iter().map(String::as_str).chain(["sh"]);
            setup = setup.wrapper(&words.collect::<Vec<_>>());
        }
        setup.start()
    }

    /// `broken`: whether a request for a tag has met it.
    pub fn break_it(&self, broken: impl Fn() -> bool) {
        let origin = &self.origin;
        let fault = |side: &str, then: Value| {
            origin.fault(json!({"listener": side}), then);
        };
        match self.fault {
            Fault::Down => origin.go_down(),
            Fault::Ignored => drop(origin.call("stop-accepting", json!({}))),
            Fault::Registry(then) => fault("registry", then.clone()),
            Fault::Token(then) => {
                fault("token", then.clone());
                origin.call("auth", json!({"revoke_tokens": true}));
            }
            Fault::LimitedUntil { seconds } => {
                let headers = json!({"Retry-After": date_in(*seconds)});
                fault("registry", json!({"status": 429, "headers": headers}));
            }
            Fault::Downgrade => {
                let plain = format!("http://{}/elsewhere", origin.cdn());
                fault("registry", json!({"redirect": plain}));
            }
            Fault::Certificate(certificate) => {
                origin.call("certificate", certificate.clone());
                origin.call("close-connections", json!({}));
            }
            Fault::Names(names) => {
                self.name_service().answer_with(*names);
                // What was resolved is known for half a minute.
                until_true("the name is looked up again", || {
                    origin.call("close-connections", json!({}));
                    broken()
                });
            }
        }
    }

    pub fn mend(&self) {
        self.origin.clear_faults();
        self.origin.come_back();
        match self.fault {
            Fault::Certificate(_) => {
                self.origin.call("certificate", json!({"leaf": "good"}));
            }
            Fault::Names(_) => self.name_service().answer_with(Names::ThisMachine),
            _ => {}
        }
    }

    fn name_service(&self) -> &NameService {
        self.names.as_ref().expect("started for this row")
    }
}

/// RFC 9110 §5.6.7.
fn date_in(seconds: u64) -> String {
    let mut date = command(tool("date", "coreutils"));
    date.args(["--utc", "--date", &format!("+{seconds} seconds")]);
    date.arg("+%a, %d %b %Y %H:%M:%S GMT").env("LC_ALL", "C");
    run_ok(date).trim().to_owned()
}
