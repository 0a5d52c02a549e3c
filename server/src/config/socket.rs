//! Finds a running server's control socket by its configuration, whatever else is wrong with that:
//! who has the server read its file again must reach it by a file that it will refuse.

use std::path::{Path, PathBuf};

use super::error::{Place, Problems};
use super::load::{Sources, absolute, default_path, flag_value, places, read_control, read_text};
use super::section::{Section, Sink};
use super::tree::{self, Node};

/// The keys that name it.
const KEYS: [&str; 2] = ["control", "store"];

/// An error when those keys are wrong, or the file is and they may have been meant to be in it.
pub fn control_socket(
    sources: &Sources,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<PathBuf, Problems> {
    let (mut root, unread) = match &sources.file {
        Some(path) => read_what_can_be(path)?,
        None => tree::parse_rest("", &|_| Place::Builtin),
    };
    for flag in &sources.flags {
        let first = flag.key.split('.').next().unwrap_or_default();
        if first.is_empty() || KEYS.contains(&first) {
            tree::set(&mut root, &flag.key, flag_value(flag), &flag.name)?;
        }
    }
    let errors = Sink::default();
    let root = Section::root(&root, &errors);
    let store = root.table("store");
    let named = [
        root.place_of("control"),
        store.as_ref().and_then(|store| store.place_of("paths")),
    ];
    let broken = |place: &&Place| unread.0.iter().any(|problem| problem.place == **place);
    let known = named.iter().flatten().any(|place| !broken(place));
    if !known && !unread.0.is_empty() {
        return Err(unread);
    }
    let paths = store.as_ref().and_then(|store| store.texts("paths"));
    let first = paths.and_then(|paths| Some(absolute(paths.first()?.0)));
    let first = first.or_else(|| default_path(env));
    let socket = read_control(&root, first.as_deref());
    let errors = errors.0.into_inner();
    match errors.is_empty() {
        true => Ok(socket),
        false => Err(Problems(errors)),
    }
}

/// The file as far as it is TOML, and where it is not.
fn read_what_can_be(path: &Path) -> Result<(Node, Problems), Problems> {
    let text = read_text(path)?;
    Ok(tree::parse_rest(&text, &places(path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flag, FlagValue};

    fn socket(text: &str, flags: &[(&str, &str)], test: &str) -> Result<String, String> {
        let name = format!("entrepot-socket-{}-{test}.toml", std::process::id());
        let file = std::env::temp_dir().join(name);
        std::fs::write(&file, text).expect("written");
        let flags = flags.iter().map(|(key, value)| Flag {
            name: format!("--set {key}"),
            key: (*key).to_owned(),
            value: FlagValue::Typed((*value).to_owned()),
        });
        let sources = Sources {
            file: Some(file.clone()),
            flags: flags.collect(),
        };
        let home = |name: &str| (name == "HOME").then(|| "/home/op".to_owned());
        let found = control_socket(&sources, &home);
        std::fs::remove_file(&file).expect("removed");
        found
            .map(|path| path.display().to_string())
            .map_err(|problems| problems.to_string())
    }

    #[test]
    fn is_found_by_a_file_that_the_server_refuses() {
        for (text, flags, expected) in [
            ("", &[][..], "/home/op/.cache/entrepot/control.sock"),
            ("control = '/run/c'\nshards = 'x'\nno = 1\n", &[], "/run/c"),
            (
                "[store]\npaths = ['/srv/a', '/srv/b']\n[project.dh]\n",
                &[],
                "/srv/a/control.sock",
            ),
            // Not TOML somewhere else.
            ("control = '/run/c'\nlisten = [\n", &[], "/run/c"),
            (
                "listen = \"\n[store]\npaths = '/srv/a'\n",
                &[],
                "/srv/a/control.sock",
            ),
            // What the command line says is known.
            ("what is this", &[("control", "/run/c")], "/run/c"),
            (
                "=",
                &[("store.paths", "/srv/a"), ("limits.no", "1")],
                "/srv/a/control.sock",
            ),
        ] {
            assert_eq!(
                socket(text, flags, "found").as_deref(),
                Ok(expected),
                "{text}"
            );
        }
    }

    #[test]
    fn is_not_guessed() {
        for (text, flags, part) in [
            ("what is this", &[][..], ":1: not TOML"),
            ("control = '/run/c\n", &[], ":1: not TOML"),
            ("[store]\npaths = ['/srv/a'\n", &[], "not TOML"),
            ("control = 5\n", &[], "control: expected a string"),
            ("store = 5\n", &[], "store: expected a table"),
            ("", &[("", "x")], "expected key=value"),
        ] {
            let said = socket(text, flags, "unknown").expect_err(text);
            assert!(said.contains(part), "{part:?} is not in {said:?}");
        }
    }
}
