//! No credential shows where it does not belong (R11). One is planted in every place that a
//! configuration or an upstream can put it in; then everything is made to work, and to fail, and
//! all that anybody else heard or we said is searched for them.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde_json::json;

use entrepot_tests::deadline::until_true;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::http::get;
use entrepot_tests::origin::Origin;
use entrepot_tests::temp::TempDir;
use entrepot_tests::witness::Witness;

const INLINE: &str = "planted-inline-password";
const FILE: &str = "planted-file-password";
const ENV: &str = "planted-env-password";
const CREDENTIAL: &str = "planted-systemd-password";
const PROXY: &str = "planted-proxy-password";
const LONG_LIVED: &str = "planted-long-lived-refresh-token";
const REFRESH: &str = "planted-refresh-token";
const BEARERS: [&str; 2] = ["planted-first-bearer", "planted-second-bearer"];
const SIGNATURE: &str = "planted-signature";
/// Where nobody listens.
const NOBODY: &str = "http://127.0.0.1:1";

fn image(project: &str) -> String {
    format!("/v2/{project}/library/app/manifests/1")
}

/// RFC 4648 §4.
fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for three in text.as_bytes().chunks(3) {
        let mut bytes = [0; 4];
        bytes[1..=three.len()].copy_from_slice(three);
        let bits = u32::from_be_bytes(bytes);
        for digit in 0..=three.len() {
            let at = bits >> (18 - 6 * digit) & 63;
            encoded.push(char::from(DIGITS[at as usize]));
        }
    }
    encoded
}

/// A registry and its token service in one, whose first token is revoked as soon as it is given.
fn forgetful_registry() -> Witness {
    Witness::answering(|head| {
        let line = head.lines().next().unwrap_or_default();
        let [first, second] = BEARERS;
        let token = |token: &str| {
            let given = json!({"token": token, "refresh_token": REFRESH, "expires_in": 300});
            (200, String::new(), given.to_string())
        };
        if line.starts_with("GET /token") {
            return token(first);
        }
        if line.starts_with("POST /token") {
            return token(second);
        }
        if head.contains(&format!("Bearer {second}")) {
            return (404, String::new(), String::new());
        }
        let host = head.lines().find_map(|line| line.strip_prefix("Host: "));
        let realm = format!("http://{}/token", host.unwrap_or_default());
        let challenge = format!("WWW-Authenticate: Bearer realm=\"{realm}\"\r\n");
        (401, challenge, String::new())
    })
}

/// The places of one world; the server is in their middle.
struct Planted {
    /// By token and inline password, by Basic and the others, by client certificate.
    origins: [Origin; 3],
    forgetful: Witness,
    refreshing: Witness,
    /// Further upstream of the first project, and where its redirects lead.
    other: Witness,
    target: Witness,
    proxy: Witness,
    keys: TempDir,
}

/// Projects by name, each with its upstreams; the first is the default.
fn config(projects: &[(&str, Vec<String>)]) -> Config {
    let mut config = Config::new();
    for (nth, (name, upstreams)) in projects.iter().enumerate() {
        let keys = format!("default = {}\naccess = \"anonymous\"", nth == 0);
        config = config.project(name, &keys, &[]);
        for keys in upstreams {
            config = config.upstream(name, keys);
        }
    }
    config
}

impl Planted {
    fn new() -> Planted {
        let keys = TempDir::new("planted");
        let path = |name: &str| keys.join(name).display().to_string();
        let by_token = ["--auth", "token", "--private", "library/app", "--user"];
        let login = format!("ci:{INLINE}");
        let by_token = Origin::start_with(&[&by_token[..], &[&login]].concat());
        let users = [("file", FILE), ("env", ENV), ("systemd", CREDENTIAL)];
        let users = users.map(|(name, password)| format!("{name}:{password}"));
        let mut args = vec!["--auth", "basic", "--private", "library/app"];
        users.iter().for_each(|user| args.extend(["--user", user]));
        let by_basic = Origin::start_with(&args);
        let (ca, clients) = (path("ca.pem"), keys.path().display().to_string());
        let args = ["--tls", "--ca-out", &ca, "--clients", &clients];
        let by_certificate = Origin::start_with(&args);
        let (forgetful, refreshing) = (forgetful_registry(), forgetful_registry());
        let (other, target) = (Witness::empty_registry(), Witness::empty_registry());
        let proxy = Witness::proxy(HashMap::new());
        keys.write("password", &format!("{FILE}\n"));
        keys.write("hub", &format!("{CREDENTIAL}\n"));

        Planted {
            origins: [by_token, by_basic, by_certificate],
            forgetful,
            refreshing,
            other,
            target,
            proxy,
            keys,
        }
    }

    fn path(&self, name: &str) -> String {
        self.keys.join(name).display().to_string()
    }

    fn start(&self) -> Entrepot {
        let [by_token, by_basic, by_certificate] = &self.origins;
        let login = |url: &str, name: &str, password: &str| {
            format!("url = \"{url}\"\nusername = \"{name}\"\n{password}")
        };
        let inline = |password: &str| format!("password = \"{password}\"");
        let basic = |name: &str, password: &str| login(by_basic.url(), name, password);
        let config = config(&[
            (
                "dh",
                vec![
                    login(by_token.url(), "ci", &inline(INLINE)),
                    format!("url = \"{}\"", self.other.url()),
                    format!(
                        "url = \"http://elsewhere.invalid\"\nproxy = \"http://me:{PROXY}@{}\"",
                        self.proxy.addr()
                    ),
                ],
            ),
            (
                "file",
                vec![basic(
                    "file",
                    &format!("password_file = \"{}\"", self.path("password")),
                )],
            ),
            ("env", vec![basic("env", "password_env = \"PLANTED\"")]),
            (
                "systemd",
                vec![basic("systemd", "password_credential = \"hub\"")],
            ),
            (
                "forgetful",
                vec![login(&self.forgetful.url(), "ci", &inline(INLINE))],
            ),
            (
                "refreshing",
                vec![login(
                    &self.refreshing.url(),
                    "<token>",
                    &inline(LONG_LIVED),
                )],
            ),
            (
                "mtls",
                vec![format!(
                    "url = \"{}\"\nca_file = \"{}\"\nclient_cert_file = \"{}\"\n\
                     client_key_file = \"{}\"",
                    by_certificate.url(),
                    self.path("ca.pem"),
                    self.path("good.pem"),
                    self.path("good.key")
                )],
            ),
        ]);
        Setup::new(&config)
            .args(&["--set", "log.level=trace"])
            .variable(
                "CREDENTIALS_DIRECTORY",
                &self.keys.path().display().to_string(),
            )
            .variable("PLANTED", ENV)
            .start()
    }

    /// All that may be nowhere but where it belongs.
    fn secrets(&self) -> Vec<String> {
        let [first, second] = BEARERS;
        let mut secrets: Vec<String> = [
            INLINE, FILE, ENV, CREDENTIAL, PROXY, LONG_LIVED, REFRESH, first, second,
        ]
        .map(str::to_owned)
        .into();
        for (name, password) in [
            ("ci", INLINE),
            ("file", FILE),
            ("env", ENV),
            ("systemd", CREDENTIAL),
            ("me", PROXY),
            ("<token>", LONG_LIVED),
        ] {
            secrets.push(base64(&format!("{name}:{password}")));
        }
        for origin in &self.origins {
            let tokens = origin.ask("tokens");
            let tokens = tokens.as_array().expect("a list").iter();
            secrets.extend(tokens.filter_map(|it| it.as_str().map(str::to_owned)));
        }
        secrets.extend(lines_of_key(&self.keys.join("good.key")));
        secrets
    }
}

/// What lies between the armour of a PEM file.
fn lines_of_key(path: &Path) -> Vec<String> {
    let pem = fs::read_to_string(path).expect("the key");
    let lines = pem.lines().filter(|line| !line.starts_with("-----"));
    lines.map(str::to_owned).collect()
}

/// All that is said, one after the other.
#[derive(Default)]
struct Said(String);

impl Said {
    fn hear(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }
}

/// Pulls from everybody.
fn pull(planted: &Planted, server: &Entrepot, said: &mut Said) {
    let [by_token, ..] = &planted.origins;
    for project in ["dh", "file", "env", "systemd", "mtls"] {
        let answer = server.get(&image(project)).expect(200);
        said.hear(&answer.head.raw);
    }
    until_true("the first token is revoked and replaced", || {
        said.hear(&server.get(&image("forgetful")).text());
        planted.forgetful.text().contains(BEARERS[1])
    });
    said.hear(&server.get(&image("refreshing")).text());

    // A signed address that refuses, and one where nobody is.
    let places = [planted.target.url(), NOBODY.to_owned()];
    for (seed, place) in places.iter().enumerate() {
        let blob = by_token.blob(&["library/app"], 1000, seed as u64);
        let signed = format!("{place}/signed?X-Amz-Signature={SIGNATURE}");
        by_token.fault(
            json!({"listener": "registry", "kind": "blob"}),
            json!({"redirect": signed}),
        );
        let target = format!("/v2/dh/library/app/blobs/{}", blob.digest);
        said.hear(&server.get(&target).text());
        by_token.clear_faults();
    }
}

/// Asks for all that an operator can ask for.
fn operate(server: &Entrepot, said: &mut Said) {
    for command in [
        &["reload"][..],
        &["refresh", "dh/library/app:1"],
        &["purge", "tag", "dh/library/app:1"],
        &["purge", "project", "file"],
        &["volumes"],
        &["print-config"],
        &["check-config"],
    ] {
        let output = server.ask(command);
        said.hear(&String::from_utf8_lossy(&output.stdout));
        said.hear(&String::from_utf8_lossy(&output.stderr));
    }
}

/// Every upstream fails, each in its own words.
fn fail(planted: &Planted, server: &Entrepot, said: &mut Said) {
    let [by_token, by_basic, by_certificate] = &planted.origins;
    let nobody = json!({"revoke_tokens": true, "users": [{"name": "ci", "password": "another"}]});
    for origin in [by_token, by_basic] {
        origin.call("auth", nobody.clone());
    }
    let projects = ["dh", "file", "env", "systemd", "mtls", "forgetful"];
    for tag in ["2", "3"] {
        for project in projects {
            let target = format!("/v2/{project}/library/app/manifests/{tag}");
            said.hear(&server.get(&target).text());
        }
        for origin in [by_token, by_basic, by_certificate] {
            origin.go_down();
        }
    }
    said.hear(&get(server.admin(), "/metrics").expect(200).text());
}

#[test]
fn planted_credentials_stay_where_they_belong() {
    let planted = Planted::new();
    for origin in &planted.origins {
        origin.image("library/app", "1", 1);
    }
    let mut server = planted.start();
    let mut said = Said::default();
    pull(&planted, &server, &mut said);
    let issued = planted.origins[0].ask("tokens");
    assert_ne!(issued, json!([]), "no token was issued");
    let secrets = planted.secrets();
    operate(&server, &mut said);
    fail(&planted, &server, &mut said);
    said.hear(&server.process().stderr.all().join("\n"));
    let Said(said) = said;

    // Each was used where it belongs, so there was an occasion.
    let (forgetful, refreshing) = (planted.forgetful.text(), planted.refreshing.text());
    let login = base64(&format!("ci:{INLINE}"));
    for (place, used) in [
        (&forgetful, login.as_str()),
        (&forgetful, BEARERS[0]),
        (&forgetful, BEARERS[1]),
        (&forgetful, REFRESH),
        (&refreshing, LONG_LIVED),
        (&planted.target.text(), SIGNATURE),
        (&planted.proxy.text(), "Proxy-Authorization: Basic "),
        (&planted.other.text(), "GET /v2/library/app/blobs/"),
    ] {
        assert!(place.contains(used), "{used} in:\n{place}");
    }
    let [by_token, by_basic, by_certificate] = &planted.origins;
    let used = |origin: &Origin, filter: &str, field: &str| {
        let log = origin.log(filter);
        log.iter()
            .any(|ask| !ask[field].is_null() && ask[field] != false)
    };
    assert!(used(by_token, "listener=token", "authorization"));
    assert!(used(by_basic, "", "authorization"));
    assert!(used(by_certificate, "", "certified"));
    for heard in [
        "entrepot_requests_total",
        "TRACE",
        &format!("connecting to {NOBODY}"),
    ] {
        assert!(said.contains(heard), "{heard} in:\n{said}");
    }

    let logs = planted.origins.iter().map(|origin| origin.log(""));
    let logs: Vec<String> = logs.map(|log| format!("{log:?}")).collect();
    let own_login = base64(&format!("me:{PROXY}"));
    let proxy = planted.proxy.text().replace(&own_login, "");
    let places = [
        ("the redirect's target", planted.target.text()),
        ("another upstream", planted.other.text()),
        ("the proxy", proxy.replace("Proxy-Authorization: ", "")),
        ("the logs of registries", logs.join("\n")),
        ("what the server says", said.clone()),
    ];
    for (place, text) in &places {
        let lower = text.to_ascii_lowercase();
        let words = ["authorization: ", "bearer planted"].map(str::to_owned);
        for secret in secrets.iter().chain(&words) {
            let found = lower.contains(&secret.to_ascii_lowercase());
            assert!(!found, "{secret} in {place}:\n{text}");
        }
    }
    assert!(!said.contains(SIGNATURE), "a signed query is said:\n{said}");
}
