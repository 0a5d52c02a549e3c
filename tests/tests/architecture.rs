//! The rules of the house, held by reading the sources.
//!
//! Who may import whom, where `unsafe` may stand, how large a file may grow, which words are not
//! used. Each rule is a function from a source to its violations, and a planted one shows that it
//! finds them. A failure names file, line and text.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "architecture/source.rs"]
mod source;

use source::{Source, Token};

/// All there is at the top of the repository, but for what git ignores.
const TOP: [&str; 12] = [
    ".ci",
    ".gitignore",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "bench",
    "fuzz",
    "server",
    "storage",
    "tests",
    "tools",
];

/// The files that may hold `unsafe` (R1).
const UNSAFE_FILES: [&str; 5] = [
    "server/src/net/socket.rs",
    "server/src/priority.rs",
    "storage/src/disk/uring.rs",
    "tools/src/inspect/map.rs",
    "tools/src/load/ring.rs",
];

/// Lines of code in one file, tests left out. Half of this is a lot.
const CODE_LINES_MAX: usize = 900;

/// Words that say nothing, as parts of names of types, modules and files.
const EMPTY_WORDS: [&str; 10] = [
    "common", "context", "handle", "handler", "helper", "helpers", "manager", "misc", "util",
    "utils",
];

/// The HTTP/1.1 documents that RFC 9110 to 9112 replaced.
const OBSOLETE_RFCS: [&str; 7] = ["2616", "7230", "7231", "7232", "7233", "7234", "7235"];

/// A folder that may import only so much.
struct Layer {
    folder: &'static str,
    /// Of the modules of its own crate.
    modules: &'static [&'static str],
    /// Beside the standard library.
    crates: &'static [&'static str],
    /// Of the standard library, these not.
    std_never: &'static [&'static str],
}

/// What only somebody who talks to the world needs.
const WORLD: &[&str] = &["env", "fs", "io", "net", "os", "process", "thread", "time"];

/// Pure layers of the server: `httparse` reads the heads of upstreams, and nothing else. And the
/// tools that tests use as oracles: they share no code with the store.
const LAYERS: [Layer; 5] = [
    Layer {
        folder: "server/src/http/upstream_head.rs",
        modules: &["http"],
        crates: &["httparse", "thiserror"],
        std_never: WORLD,
    },
    Layer {
        folder: "server/src/http/",
        modules: &["http"],
        crates: &["thiserror"],
        std_never: WORLD,
    },
    Layer {
        folder: "server/src/oci/",
        modules: &["http", "oci"],
        crates: &["entrepot_storage", "serde", "serde_json", "thiserror"],
        std_never: WORLD,
    },
    Layer {
        folder: "tools/src/load/",
        modules: &["load"],
        crates: &[
            // A module of rustls there, which brings the crate.
            "aws_lc_rs",
            "base64",
            "clap",
            "hdrhistogram",
            "indicatif",
            "io_uring",
            "libc",
            "rustix",
            "rustls",
            "rustls_native_certs",
            "serde",
            "serde_json",
            "sha2",
            "socket2",
            "thiserror",
        ],
        std_never: &[],
    },
    Layer {
        folder: "tools/src/origin/",
        modules: &["origin"],
        crates: &[
            "base64",
            "clap",
            "flate2",
            "rcgen",
            "rustls",
            "serde",
            "serde_json",
            "sha2",
            "socket2",
            "thiserror",
            "zstd",
        ],
        std_never: &[],
    },
];

/// Crates that may not depend on others of ours: storage knows no server, tools and tests share
/// no code with what they are there to check. The inspector, one of the tools, reads stores with
/// the store's own decoders; the layers above keep that from the others.
const SEPARATE: [(&str, &[&str]); 3] = [
    (
        "storage/Cargo.toml",
        &["entrepot", "entrepot-tools", "entrepot-tests"],
    ),
    ("tools/Cargo.toml", &["entrepot", "entrepot-tests"]),
    (
        "tests/Cargo.toml",
        &["entrepot", "entrepot-storage", "entrepot-tools"],
    ),
];

/// The files that may name the shard: they put it together and start it.
const WIRING: [&str; 2] = ["server/src/main.rs", "server/src/start.rs"];

struct Violation {
    path: String,
    line: usize,
    text: String,
    rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}: {}\n    {}",
            self.path, self.line, self.text, self.rule
        )
    }
}

fn violation(source: &Source, line: usize, rule: impl Into<String>) -> Violation {
    Violation {
        path: source.path.clone(),
        line,
        text: source.line(line).to_owned(),
        rule: rule.into(),
    }
}

fn assert_none(violations: Vec<Violation>) {
    let list: Vec<String> = violations.iter().map(Violation::to_string).collect();
    assert!(list.is_empty(), "\n{}\n", list.join("\n"));
}

// The repository.

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Paths below `folder`, from the root, of files with this ending.
fn files(folder: &str, ending: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(root().join(&folder)) else {
            panic!("{folder} is no folder");
        };
        for entry in entries {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = format!("{folder}/{name}");
            if entry.file_type().unwrap().is_dir() {
                if name != "target" {
                    folders.push(path);
                }
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Every source of ours, with those known that are compiled for tests only.
fn sources() -> Vec<Source> {
    let folders = ["server", "storage", "tools", "tests", "bench", "fuzz"];
    let paths = folders.into_iter().flat_map(|folder| files(folder, ".rs"));
    let mut sources: Vec<Source> = paths
        .map(|path| Source::new(&path, &read(&root().join(&path))))
        .collect();
    let mut tests = BTreeSet::new();
    for source in &sources {
        for module in source.test_modules() {
            tests.insert(format!("{}{module}", children_of(&source.path)));
        }
    }
    for source in &mut sources {
        let of_tests = source.path.starts_with("tests/") || source.path.contains("/tests/");
        let declared = tests.iter().any(|module| {
            let rest = source.path.strip_prefix(&module[..]);
            rest.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        });
        source.is_test = of_tests || declared;
    }
    sources
}

/// Where the files of the modules lie that a file declares.
fn children_of(path: &str) -> String {
    let (folder, name) = path.rsplit_once('/').unwrap();
    match name {
        "mod.rs" | "lib.rs" | "main.rs" => format!("{folder}/"),
        _ => format!("{}/", path.strip_suffix(".rs").unwrap()),
    }
}

// Paths in code.

/// A path as it stands in the code, `use` trees written out.
struct Import<'s> {
    segments: Vec<&'s str>,
    at: usize,
}

fn imports<'s>(tokens: &[Token<'s>]) -> Vec<Import<'s>> {
    let mut found = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        let after_use = index > 0 && tokens[index - 1].text == "use";
        let starts = is_word(tokens[index].text) && !continues(tokens, index);
        if starts && (after_use || separator(tokens, index + 1)) {
            index = read_path(tokens, index, &[], &mut found);
        } else {
            index += 1;
        }
    }
    found
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

fn separator(tokens: &[Token<'_>], index: usize) -> bool {
    let pair = tokens.get(index..index + 2);
    pair.is_some_and(|pair| {
        pair[0].text == ":" && pair[1].text == ":" && pair[1].at == pair[0].at + 1
    })
}

/// Whether a word stands within a path or after a dot. `::std` begins one.
fn continues(tokens: &[Token<'_>], index: usize) -> bool {
    if index >= 3 && separator(tokens, index - 2) {
        return is_word(tokens[index - 3].text) || tokens[index - 3].text == ">";
    }
    index > 0 && tokens[index - 1].text == "."
}

/// Reads the path that starts at a word, and those of its group. Returns where it ends.
fn read_path<'s>(
    tokens: &[Token<'s>],
    mut index: usize,
    prefix: &[&'s str],
    found: &mut Vec<Import<'s>>,
) -> usize {
    let at = tokens[index].at;
    let mut segments = prefix.to_vec();
    segments.push(tokens[index].text);
    index += 1;
    while separator(tokens, index) {
        index += 2;
        match tokens.get(index).map(|token| token.text) {
            Some("{") => return read_group(tokens, index + 1, &segments, found),
            Some(text) if is_word(text) || text == "*" => segments.push(text),
            _ => break,
        }
        index += 1;
    }
    found.push(Import { segments, at });
    index
}

fn read_group<'s>(
    tokens: &[Token<'s>],
    mut index: usize,
    prefix: &[&'s str],
    found: &mut Vec<Import<'s>>,
) -> usize {
    while let Some(token) = tokens.get(index) {
        match token.text {
            "}" => return index + 1,
            "*" => {
                let segments = [prefix, &["*"]].concat();
                found.push(Import {
                    segments,
                    at: token.at,
                });
                index += 1;
            }
            text if is_word(text) => index = read_path(tokens, index, prefix, found),
            _ => index += 1,
        }
    }
    index
}

/// The modules of its crate that lead to a source.
fn module_of(path: &str) -> Vec<&str> {
    let (_, inside) = path.split_once("/src/").unwrap_or(("", path));
    let inside = inside.strip_suffix(".rs").unwrap_or(inside);
    let mut modules: Vec<&str> = inside.split('/').collect();
    if matches!(modules.last(), Some(&"mod" | &"lib" | &"main")) {
        modules.pop();
    }
    modules
}

/// The module of the same crate that a path leads to, if it leads to one.
fn resolve<'s>(path: &'s str, segments: &[&'s str]) -> Option<&'s str> {
    let mut modules = match segments.first()? {
        &"crate" => Vec::new(),
        &"self" | &"super" => module_of(path),
        _ => return None,
    };
    for segment in segments {
        match *segment {
            "crate" | "self" => {}
            "super" => drop(modules.pop()),
            name => modules.push(name),
        }
    }
    modules.first().copied()
}

// Rules.

/// Names of crates as code writes them.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut listed = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            listed = line.contains("dependencies");
        } else if listed && let Some((name, _)) = line.split_once(['.', '=', ' ']) {
            names.insert(name.trim().to_owned());
        }
    }
    names
}

fn breaks_layer(source: &Source, crates: &BTreeSet<String>) -> Vec<Violation> {
    let Some(layer) = LAYERS
        .iter()
        .find(|layer| source.path.starts_with(layer.folder))
    else {
        return Vec::new();
    };
    let folder = layer.folder;
    let mut found = Vec::new();
    for import in imports(&source.product_tokens()) {
        let (first, second) = (import.segments[0], import.segments.get(1).copied());
        let rule = match first {
            "std" if second.is_some_and(|module| layer.std_never.contains(&module)) => {
                format!(
                    "{folder} does not talk to the world: no std::{}",
                    second.unwrap()
                )
            }
            "entrepot_storage" if layer.crates.contains(&first) && second != Some("Digest") => {
                format!("{folder} knows of storage only its Digest")
            }
            _ if crates.contains(first) && !layer.crates.contains(&first) => {
                format!("{folder} does not import {first}")
            }
            _ => match resolve(&source.path, &import.segments) {
                Some(module) if !layer.modules.contains(&module) => {
                    format!("{folder} does not import {module}")
                }
                _ => continue,
            },
        };
        found.push(violation(source, source.line_number(import.at), rule));
    }
    found
}

fn names_shard(source: &Source) -> Vec<Violation> {
    let own = module_of(&source.path).first() == Some(&"shard");
    if !source.path.starts_with("server/src/") || own || WIRING.contains(&&source.path[..]) {
        return Vec::new();
    }
    let tokens = source.tokens();
    let all = imports(&tokens).into_iter();
    all.filter(|import| resolve(&source.path, &import.segments) == Some("shard"))
        .map(|import| {
            let line = source.line_number(import.at);
            violation(source, line, format!("only {WIRING:?} name the shard"))
        })
        .collect()
}

fn depends_on(manifest_path: &str, manifest: &str, never: &[&str]) -> Vec<Violation> {
    let source = Source::new(manifest_path, manifest);
    let names = dependencies(manifest);
    let forbidden = never.iter().filter(|name| names.contains(**name));
    forbidden
        .map(|name| {
            let line = manifest
                .lines()
                .position(|line| line.starts_with(name))
                .unwrap_or(0);
            violation(&source, line + 1, format!("does not depend on {name}"))
        })
        .collect()
}

fn unsafe_unfounded(source: &Source) -> Vec<Violation> {
    let tokens = source.tokens();
    let mut found = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        if token.text != "unsafe" {
            continue;
        }
        let line = source.line_number(token.at);
        let next = tokens.get(index + 1).map(|token| token.text);
        if !UNSAFE_FILES.contains(&&source.path[..]) {
            found.push(violation(
                source,
                line,
                "not one of the files that may hold unsafe (R1)",
            ));
        } else if matches!(next, Some("{" | "impl")) && !is_justified(source, line) {
            found.push(violation(
                source,
                line,
                "unsafe without a SAFETY comment above",
            ));
        }
    }
    found
}

/// Whether the comment above the statement that holds this line says `SAFETY:`.
fn is_justified(source: &Source, mut line: usize) -> bool {
    while line > 1 && !source.is_comment(line - 1) && !ends_statement(source.line(line - 1)) {
        line -= 1;
    }
    while line > 1 && source.is_comment(line - 1) {
        line -= 1;
        if source.line(line).starts_with("// SAFETY:") {
            return true;
        }
    }
    false
}

fn ends_statement(line: &str) -> bool {
    line.is_empty() || line.ends_with([';', '{', '}', ','])
}

fn too_large(source: &Source) -> Vec<Violation> {
    let lines = source.code_lines();
    if lines <= CODE_LINES_MAX {
        return Vec::new();
    }
    let rule =
        format!("{lines} lines of code, {CODE_LINES_MAX} are allowed: which noun is second?");
    vec![violation(source, 1, rule)]
}

fn glob_imports(source: &Source) -> Vec<Violation> {
    let tokens = source.tokens();
    let globs = imports(&tokens).into_iter().filter(|import| {
        let of_tests = source.is_test_at(import.at) && import.segments == ["super", "*"];
        import.segments.last() == Some(&"*") && !of_tests
    });
    globs
        .map(|import| {
            let line = source.line_number(import.at);
            violation(
                source,
                line,
                "a file says what it depends on: no glob imports",
            )
        })
        .collect()
}

fn empty_words(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    let file = source.path.strip_suffix(".rs").unwrap_or(&source.path);
    for part in file.split('/').filter(|part| has_empty_word(part)) {
        found.push(violation(
            source,
            1,
            format!("{part} says nothing as a name of a file"),
        ));
    }
    let tokens = source.tokens();
    for pair in tokens.windows(2) {
        let keyword = matches!(
            pair[0].text,
            "struct" | "enum" | "trait" | "type" | "union" | "mod"
        );
        if keyword && has_empty_word(pair[1].text) {
            let line = source.line_number(pair[1].at);
            let rule = format!("{} says nothing as a name", pair[1].text);
            found.push(violation(source, line, rule));
        }
    }
    found
}

/// By words: `Handled` and `utilisation` are fine.
fn has_empty_word(name: &str) -> bool {
    let mut words = vec![String::new()];
    let mut lower_before = false;
    for letter in name.chars() {
        let starts = letter == '_' || letter == '-' || (letter.is_uppercase() && lower_before);
        if starts {
            words.push(String::new());
        }
        lower_before = letter.is_lowercase();
        let word = words.last_mut().unwrap();
        word.extend(
            letter
                .to_lowercase()
                .filter(|letter| letter.is_alphanumeric()),
        );
    }
    words.iter().any(|word| EMPTY_WORDS.contains(&&word[..]))
}

fn obsolete_citations(source: &Source) -> Vec<Violation> {
    let cites = |line: &str| {
        let citations = line.match_indices("RFC").map(|(at, _)| &line[at + 3..]);
        let numbers = citations.map(|rest| rest.trim_start_matches([' ', '-', '\u{a0}']));
        let mut numbers = numbers.filter(|rest| {
            let digits = rest.chars().take_while(char::is_ascii_digit).count();
            OBSOLETE_RFCS.contains(&&rest[..digits])
        });
        numbers.next().is_some()
    };
    let lines = source.comment_lines().filter(|(_, line)| cites(line));
    lines
        .map(|(line, _)| violation(source, line, "an obsolete RFC: cite 9110, 9111 or 9112"))
        .collect()
}

/// A target is one line that calls a function beside its parser.
fn fuzz_target_grown(source: &Source) -> Vec<Violation> {
    let lines = source.text().lines().count();
    let written = (1..=lines).filter(|line| {
        let text = source.line(*line);
        !text.is_empty() && !source.is_comment(*line) && text != "#![no_main]"
    });
    let written: Vec<usize> = written.collect();
    match written[..] {
        [line] if source.line(line).ends_with("::fuzz(data));") => Vec::new(),
        _ => {
            let line = written.last().copied().unwrap_or(1);
            vec![violation(
                source,
                line,
                "a fuzz target is one line, ending in ::fuzz(data));",
            )]
        }
    }
}

// The rules on the repository.

#[test]
fn the_top_level_is_complete() {
    let mut listed = std::process::Command::new("git");
    listed.args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let listed = listed.current_dir(root()).output().unwrap();
    assert!(listed.status.success(), "git ls-files");
    let listed = String::from_utf8(listed.stdout).unwrap();
    let top: BTreeSet<&str> = listed
        .lines()
        .map(|path| path.split('/').next().unwrap())
        .collect();
    assert_eq!(top, BTreeSet::from(TOP));
}

#[test]
fn imports_follow_the_table() {
    let crates = dependencies(&read(&root().join("server/Cargo.toml")));
    let crates = crates.iter().map(|name| name.replace('-', "_")).collect();
    let sources = sources();
    let layers = sources
        .iter()
        .flat_map(|source| breaks_layer(source, &crates));
    let shard = sources.iter().flat_map(names_shard);
    let manifests = SEPARATE
        .into_iter()
        .flat_map(|(path, never)| depends_on(path, &read(&root().join(path)), never));
    assert_none(layers.chain(shard).chain(manifests).collect());
}

#[test]
fn unsafe_stands_in_named_files_with_a_reason() {
    let sources = sources();
    assert_none(sources.iter().flat_map(unsafe_unfounded).collect());
    for path in UNSAFE_FILES {
        let source = sources.iter().find(|source| source.path == path);
        let source = source.unwrap_or_else(|| panic!("{path} is gone: strike it off the list"));
        let held = source.tokens().iter().any(|token| token.text == "unsafe");
        assert!(held, "{path} holds no unsafe: strike it off the list");
    }
}

#[test]
fn files_stay_small() {
    assert_none(sources().iter().flat_map(too_large).collect());
}

#[test]
fn nothing_is_imported_by_glob() {
    assert_none(sources().iter().flat_map(glob_imports).collect());
}

#[test]
fn names_say_something() {
    assert_none(sources().iter().flat_map(empty_words).collect());
}

#[test]
fn citations_are_current() {
    assert_none(sources().iter().flat_map(obsolete_citations).collect());
    let folders = ["server", "storage", "tools", "tests", "bench", "fuzz"];
    let pages = folders.into_iter().flat_map(|folder| files(folder, ".md"));
    for path in pages.chain(["README.md".to_owned()]) {
        // All of a page is read as a comment.
        let text = read(&root().join(&path)).replace("*/", "* /");
        let page = Source::new(&path, &format!("/*{text}*/"));
        assert_none(obsolete_citations(&page));
    }
}

#[test]
fn every_fuzz_function_has_a_target_of_one_line() {
    let targets = files("fuzz/fuzz_targets", ".rs");
    let targets: Vec<Source> = targets
        .iter()
        .map(|path| Source::new(path, &read(&root().join(path))))
        .collect();
    assert_none(targets.iter().flat_map(fuzz_target_grown).collect());
    let manifest = read(&root().join("fuzz/Cargo.toml"));
    for target in &targets {
        let path = target.path.strip_prefix("fuzz/").unwrap();
        assert!(
            manifest.contains(&format!("path = \"{path}\"")),
            "{path} is not in fuzz/Cargo.toml"
        );
    }
    for source in sources()
        .iter()
        .filter(|source| source.path.starts_with("server/src/"))
    {
        let tokens = source.tokens();
        if !tokens
            .windows(2)
            .any(|pair| pair[0].text == "fn" && pair[1].text == "fuzz")
        {
            continue;
        }
        let call = format!(
            "entrepot::{}::fuzz(data)",
            module_of(&source.path).join("::")
        );
        let called = targets.iter().any(|target| target.text().contains(&call));
        assert!(called, "no fuzz target calls {call}");
    }
}

// Planted violations: each rule finds what it is there to find.

fn lines_of(violations: &[Violation]) -> Vec<usize> {
    violations.iter().map(|violation| violation.line).collect()
}

#[test]
fn planted_imports_are_found() {
    let crates = [
        "entrepot_storage",
        "httparse",
        "monoio",
        "serde",
        "thiserror",
    ];
    let crates = crates.map(str::to_owned).into();
    let found = |path, text| lines_of(&breaks_layer(&Source::new(path, text), &crates));
    let text = "use std::fmt;\n\
        use std::{fs, mem};\n\
        use crate::upstream::Client;\n\
        use super::super::net;\n\
        use super::field::{self, digits};\n\
        use thiserror::Error;\n\
        fn f() { monoio::spawn(g()); let x = ::std::time::Instant::now(); }\n\
        // use std::fs;\n\
        const A: &str = \"use std::fs;\";\n\
        use crate::{http::head, config};\n\
        use monoio;\n\
        use httparse::Request;\n\
        #[cfg(test)]\n\
        mod tests { use std::fs; use httparse::Request; }\n";
    assert_eq!(
        found("server/src/http/head.rs", text),
        [2, 3, 4, 7, 7, 10, 11, 12]
    );
    assert_eq!(
        found("server/src/http/upstream_head.rs", text),
        [2, 3, 4, 7, 7, 10, 11]
    );
    assert_eq!(found("server/src/fetch.rs", text), [0; 0]);
    let text = "use entrepot_storage::Digest;\n\
        use entrepot_storage::{Digest, Store};\n\
        use crate::http::head::Method;\n\
        use crate::registry::Registry;\n";
    assert_eq!(found("server/src/oci/endpoint.rs", text), [2, 4]);
    assert_eq!(found("server/src/http/range.rs", text), [1, 2, 2, 4]);
}

#[test]
fn planted_shard_names_are_found() {
    let text = "use crate::shard::Seat;\nuse crate::{fetch, shard};\nuse entrepot_x::shard;\n";
    let found = |path| lines_of(&names_shard(&Source::new(path, text)));
    assert_eq!(found("server/src/fetch.rs"), [1, 2]);
    assert_eq!(found("server/src/start.rs"), [0; 0]);
    assert_eq!(found("server/src/shard/seat.rs"), [0; 0]);
}

#[test]
fn planted_dependencies_are_found() {
    let manifest = "[package]\nentrepot = 1\n[dependencies]\nlibc = \"0\"\nentrepot.workspace = true\n\
        [dev-dependencies]\nentrepot-storage = { path = \"x\" }\n[[bin]]\nname = \"entrepot-load\"\n";
    let never = ["entrepot", "entrepot-storage", "entrepot-tests"];
    assert_eq!(depends_on("tests/Cargo.toml", manifest, &never).len(), 2);
}

#[test]
fn planted_unsafe_is_found() {
    let text = "fn f() {\n\
        // SAFETY: because.\n\
        unsafe { g() };\n\
        // Something else.\n\
        unsafe { g() };\n\
        // SAFETY: of a statement\n\
        // that is longer.\n\
        let x = h(\n\
        unsafe { g() });\n\
        let unsafe_word = \"unsafe { }\"; // unsafe\n\
        unsafe { g() };\n\
        }\n\
        unsafe impl Send for T {}\n";
    let found = |path| lines_of(&unsafe_unfounded(&Source::new(path, text)));
    assert_eq!(found(UNSAFE_FILES[0]), [5, 11, 13]);
    assert_eq!(found("server/src/fetch.rs"), [3, 5, 9, 11, 13]);
}

#[test]
fn planted_size_is_found() {
    let large = |lines: usize| {
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "f();\n".repeat(500));
        let text = format!("{}\n// no code\n\n{tests}", "f();\n".repeat(lines));
        lines_of(&too_large(&Source::new("server/src/fetch.rs", &text)))
    };
    assert_eq!(large(CODE_LINES_MAX), [0; 0]);
    assert_eq!(large(CODE_LINES_MAX + 1), [1]);
}

#[test]
fn planted_globs_are_found() {
    let text = "use a::*;\nuse b::{c, d::*};\nfn f() { let x = 2 * 3; }\n\
        #[cfg(test)]\nmod tests {\nuse super::*;\nuse super::Kind::*;\n}\nuse super::*;\n";
    let found = lines_of(&glob_imports(&Source::new("server/src/fetch.rs", text)));
    assert_eq!(found, [1, 2, 7, 9]);
}

#[test]
fn planted_words_are_found() {
    let text = "struct FillManager;\nenum Handled {}\ntype Ctx = RequestContext;\n\
        mod http_util;\ntrait Handle {}\nstruct Utilisation;\n// struct Manager\n";
    let found = |path| lines_of(&empty_words(&Source::new(path, text)));
    assert_eq!(found("server/src/fetch.rs"), [1, 4, 5]);
    assert_eq!(found("server/src/common/fetch_helpers.rs"), [1, 1, 1, 4, 5]);
}

#[test]
fn planted_citations_are_found() {
    let old = OBSOLETE_RFCS[1];
    let text =
        format!("// RFC 9112 §2\n// see RFC {old} §3\n/* RFC-{old} */\n// RFC {old}0\nf({old});\n");
    let found = lines_of(&obsolete_citations(&Source::new(
        "server/src/fetch.rs",
        &text,
    )));
    assert_eq!(found, [2, 3]);
}

#[test]
fn planted_fuzz_code_is_found() {
    let line = "libfuzzer_sys::fuzz_target!(|data: &[u8]| entrepot::http::head::fuzz(data));\n";
    let found = |text: &str| {
        let path = "fuzz/fuzz_targets/a.rs";
        lines_of(&fuzz_target_grown(&Source::new(
            path,
            &format!("#![no_main]\n{text}"),
        )))
    };
    assert_eq!(found(line), [0; 0]);
    assert_eq!(found(&format!("use x;\n{line}")), [3]);
    assert_eq!(found(""), [1]);
    assert_eq!(
        found("libfuzzer_sys::fuzz_target!(|data: &[u8]| parse(data));\n"),
        [2]
    );
}

#[test]
fn literals_and_comments_are_told_from_code() {
    let text = "let a = 'x'; let b: &'static str = r#\"unsafe \"quoted\" \"#; // unsafe\n\
        let c = '\\''; let d = b'\"'; /* unsafe /* nested */ unsafe */ let e = \"\\\" unsafe\";\n\
        fn f<'a>(x: &'a str) -> char { '\u{e9}' }\nunsafe {}\n";
    let source = Source::new("a.rs", text);
    let tokens = source.tokens();
    let found: Vec<usize> = tokens
        .iter()
        .filter(|token| token.text == "unsafe")
        .map(|token| source.line_number(token.at))
        .collect();
    assert_eq!(found, [4]);
    assert!(tokens.iter().any(|token| token.text == "e"));
}

#[test]
fn test_code_is_told_from_product_code() {
    let text = "use a;\n#[cfg(any(test, fuzzing))]\n#[must_use]\npub fn fuzz(x: [u8; 3]) { b(); }\n\
        #[cfg(not(test))]\nuse c;\n#[cfg(test)]\npub(crate) mod fuzzing;\n#[cfg(unix)]\nmod d;\n";
    let source = Source::new("server/src/http/mod.rs", text);
    let product: Vec<&str> = source
        .product_tokens()
        .iter()
        .map(|token| token.text)
        .collect();
    for kept in ["a", "c", "d", "unix"] {
        assert!(product.contains(&kept), "{kept}");
    }
    for gone in ["fuzz", "b", "fuzzing", "must_use"] {
        assert!(!product.contains(&gone), "{gone}");
    }
    assert_eq!(source.test_modules(), ["fuzzing"]);
    assert_eq!(children_of(&source.path), "server/src/http/");
}
