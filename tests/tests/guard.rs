//! What the server holds to whatever its operator, its upstreams and the moment are: it stays up,
//! and nobody gets what they may not see.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};

use entrepot_tests::deadline::PATIENCE;
use entrepot_tests::entrepot::{Config, Entrepot, Setup};
use entrepot_tests::origin::Origin;

fn rewrite(server: &Entrepot, text: &str) {
    std::fs::write(server.setup().config_path(), text).expect("written");
}

/// One line through the control socket.
fn ask(server: &Entrepot, request: &Value) -> Value {
    let socket = server.setup().store_path().join("control.sock");
    let mut stream = UnixStream::connect(socket).expect("the server runs");
    writeln!(stream, "{request}").expect("a line goes out");
    let mut answer = String::new();
    let read = BufReader::new(stream).read_line(&mut answer);
    read.expect("the server answers");
    serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{request}: {answer:?}"))
}

#[test]
fn a_refresh_during_a_reload_names_no_project_that_a_core_has_not_heard_of() {
    const RELOADS: usize = 40;
    let origin = Origin::start();
    origin.image("team/app", "1", 1);
    // No default project: what nobody serves yet is said to be so.
    let mut config = Config::new().project("p", "", &[origin.url()]);
    let setup = Setup::new(&config).args(&["--set", "shards=2"]);
    let mut server = setup.start();
    for number in 0..RELOADS {
        let name = format!("p{number}");
        config = config.project(&name, "", &[origin.url()]);
        rewrite(&server, config.text());
        server.process().signal(Signal::HUP);
        let image = json!({ "refresh": format!("{name}/team/app:1") });
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = ask(&server, &image);
            if answer.get("refreshed").is_some() {
                break;
            }
            let why = answer["error"].as_str().unwrap_or_default();
            assert!(why.contains("no project serves"), "{answer}");
            assert!(Instant::now() < deadline, "{name} was not taken over");
        }
    }
}
