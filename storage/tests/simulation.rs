//! The seeded simulation, as far as a test run has time for it; `simulate --runs 10000` is the
//! same with more seeds. The program fails if a crash never hit one of the steps.

use std::process::Command;

const RUNS: &str = "200";

#[test]
fn two_hundred_seeds() {
    let output = Command::new(env!("CARGO_BIN_EXE_simulate"))
        .args(["--runs", RUNS])
        .output()
        .expect("the simulation starts");
    let summary = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{summary}\n{errors}");
    for line in summary
        .lines()
        .filter(|line| line.starts_with("crashes in") || line.starts_with("injected"))
    {
        assert!(!line.ends_with(" 0"), "{line}");
    }
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
