//! What the server refuses to start with: every fatal error is exit code 78 and a message that
//! names what to change.

use std::net::TcpListener;

use entrepot_tests::entrepot::{Config, Setup, program};
use entrepot_tests::process::{command, run, tool};

/// sysexits.h: the configuration or the machine does not permit a start.
const EX_CONFIG: i32 = 78;

/// Refused with exit code 78 and every one of `words`.
#[track_caller]
fn check_refused(setup: &Setup, words: &[&str]) {
    let (code, said) = setup.refused();
    assert_eq!(code, Some(EX_CONFIG), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

fn nowhere() -> Config {
    Config::one("http://127.0.0.1:1")
}

#[test]
fn a_wrong_configuration_names_file_line_and_the_nearest_key() {
    // The text, and words the message must hold.
    let table: [(&str, &[&str]); 9] = [
        (
            "\n[store]\ncapcity = \"1GiB\"\n",
            &["entrepot.toml:3", "capcity", "\"capacity\""],
        ),
        (
            "listne = [\"127.0.0.1:0\"]\n",
            &["entrepot.toml:1", "listne", "\"listen\""],
        ),
        (
            "[project.dh]\ndefualt = true\n[[project.dh.upstream]]\nurl = \"http://a\"\n",
            &["entrepot.toml:2", "defualt", "\"default\""],
        ),
        (
            "[project.dh]\n[[project.dh.upstream]]\nurl = \"http://a\"\nca_fiel = \"x\"\n",
            &["entrepot.toml:4", "ca_fiel", "\"ca_file\""],
        ),
        (
            "[limits]\nidle_timeout = \"soon\"\n",
            &["entrepot.toml:2", "idle_timeout", "soon"],
        ),
        ("[project.dh]\n", &["entrepot.toml:1", "dh", "upstream"]),
        (
            "[project.dh]\n[[project.dh.upstream]]\nurl = \"ftp://a\"\n",
            &["entrepot.toml:3", "url", "ftp"],
        ),
        (
            "[project.dh]\nfreshness = [{ tags = \"(\", for = \"1h\" }]\n\
             [[project.dh.upstream]]\nurl = \"http://a\"\n",
            &["entrepot.toml:2", "tags"],
        ),
        ("shards = [\n", &["entrepot.toml:"]),
    ];
    for (text, words) in table {
        let setup = Setup::new(&Config::new());
        std::fs::write(setup.config_path(), text).expect("the configuration file");
        check_refused(&setup, words);
        // Both commands, one reader.
        let mut check = command(program());
        check
            .arg("check-config")
            .arg("--config")
            .arg(setup.config_path());
        let checked = run(check);
        assert_eq!(checked.status.code(), Some(EX_CONFIG), "{text}");
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        for word in words {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
    }
    let setup = Setup::new(&Config::new()).args(&["--set", "store.capcity=1GiB"]);
    check_refused(&setup, &["--set", "capcity", "\"capacity\""]);
}

#[test]
fn a_congestion_control_that_the_kernel_does_not_have_is_a_clear_error() {
    let setup = Setup::new(&nowhere()).args(&["--set", "congestion_control=nosuch"]);
    let words = ["nosuch", "net.ipv4.tcp_allowed_congestion_control"];
    check_refused(&setup, &words);
}

#[test]
fn a_taken_port_is_a_clear_error() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = taken.local_addr().expect("a bound listener");
    let words = [addr.to_string(), "taken".to_owned()];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    check_refused(&Setup::new(&nowhere()).listen(addr), &words);
    check_refused(&Setup::new(&nowhere()).admin(addr), &words);
    // Another server would share the port, were it only for SO_REUSEPORT.
    let first = Setup::new(&nowhere()).start();
    let words = [first.addr().to_string()];
    check_refused(
        &Setup::new(&nowhere()).listen(first.addr()),
        &[&words[0], "taken"],
    );
}

#[test]
fn a_taken_store_is_a_clear_error() {
    let first = Setup::new(&nowhere()).start();
    let store = first.setup().store_path();
    let path = store.to_str().expect("a path in UTF-8");
    check_refused(&Setup::new(&nowhere()).store(store), &[path, "in use"]);
    // The refused one did no harm.
    first.get("/v2/").expect(200);
    let (status, setup) = first.terminate();
    assert_eq!(status.code(), Some(0));
    setup.start();
}

#[test]
fn a_store_that_is_no_folder_is_a_clear_error() {
    let setup = Setup::new(&nowhere());
    let file = setup.dir().write("file", "not a folder");
    let path = file.to_str().expect("a path in UTF-8").to_owned();
    check_refused(&setup.store(&file), &[&path]);
}

/// The kernel's refusals of `io_uring_setup`, made by strace.
#[test]
fn a_machine_without_io_uring_is_a_clear_error() {
    let strace = tool("strace", "strace");
    let strace = strace.to_str().expect("a path in UTF-8");
    for (errno, words) in [
        ("EPERM", ["io_uring", "seccomp"]),
        ("ENOSYS", ["io_uring", "kernel"]),
        ("ENOMEM", ["LimitMEMLOCK", "ulimit -l"]),
    ] {
        let inject = format!("inject=io_uring_setup:error={errno}");
        let wrapper = [strace, "-f", "-qq", "-o", "/dev/null", "-e", &inject];
        check_refused(&Setup::new(&nowhere()).wrapper(&wrapper), &words);
    }
}

#[test]
fn too_little_locked_memory_is_a_clear_error() {
    let setpriv = tool("setpriv", "util-linux");
    let setpriv = setpriv.to_str().expect("a path in UTF-8");
    // Who may lock memory freely is not bound by the limit: that right is given up first.
    let wrapper = [
        setpriv,
        "--bounding-set=-ipc_lock",
        "--inh-caps=-ipc_lock",
        "prlimit",
        "--memlock=65536:65536",
    ];
    let words = ["locked memory", "LimitMEMLOCK", "ulimit -l"];
    check_refused(&Setup::new(&nowhere()).wrapper(&wrapper), &words);
}

#[test]
fn too_few_open_files_is_a_clear_error() {
    let wrapper = ["prlimit", "--nofile=64:64"];
    check_refused(
        &Setup::new(&nowhere()).wrapper(&wrapper),
        &["open files", "LimitNOFILE"],
    );
}

#[test]
fn credentials_on_an_open_listener_are_refused_unless_meant() {
    let keys = "url = \"http://127.0.0.1:1\"\nusername = \"ci\"\npassword = \"secret\"";
    let everybody = "0.0.0.0:0".parse().expect("an address");
    for (access, refused) in [("", true), ("access = \"anonymous\"", false)] {
        let config = Config::new()
            .project("corp", access, &[])
            .upstream("corp", keys);
        let open = Setup::new(&config).listen(everybody);
        if refused {
            check_refused(&open, &["corp", "credentials", "access = \"anonymous\""]);
            let (_, said) = open.refused();
            assert!(!said.contains("secret"), "{said}");
            Setup::new(&config).start();
        } else {
            open.start();
        }
    }
}
