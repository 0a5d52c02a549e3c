//! The seeded simulation, as far as a test run has time for it; `simulate --runs 10000` is the
//! same with more seeds. The program fails if a crash never hit one of the steps. The table of
//! scenarios in `README.md` says what tests them: here it is held to that.

use std::fs;
use std::path::Path;
use std::process::Command;

const RUNS: &str = "200";
const SCENARIOS: u32 = 25;
const README: &str = include_str!("../README.md");

/// Of each scenario's row: what it is about, what tests it, what counts it.
fn rows() -> Vec<[&'static str; 3]> {
    let table = README.split("| scenario | tested by |").nth(1);
    let lines = table.expect("the table").lines().skip(2);
    let rows = lines.take_while(|line| line.starts_with('|')).map(|line| {
        let mut cells = line.trim_matches('|').split('|');
        std::array::from_fn(|_| cells.next().expect("three cells").trim())
    });
    rows.collect()
}

/// What is set as code in a cell.
fn named(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The numbers before the colon, ranges spelled out.
fn numbers(cell: &str) -> Vec<u32> {
    let number = |text: &str| text.trim().parse().ok();
    let list = cell.split_once(':').map_or("", |(list, _)| list);
    let parts = list.split(',').filter_map(|part| {
        let (first, last) = part.split_once('–').unwrap_or((part, part));
        Some(number(first)?..=number(last)?)
    });
    parts.flatten().collect()
}

fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).expect("a folder of this crate") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|end| end == "rs") {
            text.push_str(&fs::read_to_string(&path).expect("a source file"));
        }
    }
}

fn is_test(sources: &str, name: &str) -> bool {
    sources.contains(&format!("#[test]\nfn {name}"))
}

#[test]
fn two_hundred_seeds() {
    let output = Command::new(env!("CARGO_BIN_EXE_simulate"))
        .args(["--runs", RUNS])
        .output()
        .expect("the simulation starts");
    let summary = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{summary}\n{errors}");
    let mut counts = summary.lines().map(|line| {
        let (name, count) = line.rsplit_once(' ').expect("a name and a count");
        (name.trim(), count != "0")
    });
    for name in rows().iter().flat_map(|[_, _, counts]| named(counts)) {
        let met = counts.clone().any(|count| count == (name, true));
        assert!(met, "the table says that runs meet: {name}\n{summary}");
    }
    let kinds = ["crashes in", "injected", "asked", "done"];
    let of_kind = |name: &str| kinds.iter().any(|kind| name.starts_with(kind));
    let never = counts.find(|(name, met)| of_kind(name) && !met);
    assert_eq!(never, None);
}

#[test]
fn what_the_table_of_scenarios_names_is_tested() {
    let mut text = String::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["src", "tests"] {
        sources(&root.join(folder), &mut text);
    }
    let mut seen = Vec::new();
    for [about, tests, _] in rows() {
        for number in numbers(about) {
            seen.push(number);
            let by_number = tests.starts_with("`tests/scenarios.rs`");
            let scenario = format!("scenario_{number:02}_");
            assert_eq!(is_test(&text, &scenario), by_number, "scenario {number}");
        }
        for name in named(tests).filter(|name| name.contains('_')) {
            assert!(is_test(&text, &format!("{name}()")), "no test: {name}");
        }
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(1..=SCENARIOS), "each in one row");
}

#[test]
fn a_seed_repeats() {
    let run = || {
        let mut simulate = Command::new(env!("CARGO_BIN_EXE_simulate"));
        simulate
            .args(["--seed", "11"])
            .output()
            .expect("the simulation starts")
    };
    let first = run();
    assert!(first.status.success());
    assert_eq!(first.stdout, run().stdout);
}
