//! Running a tier's test programs with cargo.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result};
use serde_json::Value;

use super::libtest::{Counts, Reader};
use super::tiers::Tier;
use crate::workspace::{Workspace, output, show};

/// An integration test of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suite {
    package: String,
    target: String,
    tier: Tier,
}

/// All integration tests that `cargo metadata` knows.
pub(super) fn suites(metadata: &Value) -> Result<Vec<Suite>> {
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let mut all = Vec::new();
    for package in packages {
        let name = package["name"].as_str().context("a package without a name")?;
        for target in package["targets"].as_array().into_iter().flatten() {
            if target["kind"][0] == "test" && target["test"] != false {
                let target = target["name"].as_str().context("a target without a name")?.to_owned();
                all.push(Suite { package: name.to_owned(), tier: Tier::of(name, &target), target });
            }
        }
    }
    Ok(all)
}

/// The `cargo test` calls that make up a tier.
fn calls(tier: Tier, suites: &[Suite]) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    if tier == Tier::Unit {
        all.push(words("--workspace --lib --bins"));
    }
    let mut mine = Vec::new();
    for suite in suites.iter().filter(|s| s.tier == tier) {
        mine.extend([
            "--package".to_owned(),
            suite.package.clone(),
            "--test".to_owned(),
            suite.target.clone(),
        ]);
    }
    if !mine.is_empty() {
        all.push(mine);
    }
    if tier == Tier::Unit {
        all.push(words("--workspace --doc"));
    }
    all
}

/// Runs a tier. What the programs print is passed on as it comes.
pub(super) fn run(
    workspace: &Workspace,
    tier: Tier,
    suites: &[Suite],
    environment: &[(OsString, OsString)],
    sudo: bool,
    full: bool,
) -> Result<Counts> {
    let mut counts = Counts::default();
    for call in calls(tier, suites) {
        let mut command = workspace.cargo();
        command.args(["test", "--no-fail-fast"]).args(&call);
        if full {
            command.args(["--", "--include-ignored"]);
        }
        command.envs(environment.iter().map(|(k, v)| (k, v)));
        if sudo {
            // cargo builds as this user and runs only the finished programs through the runner.
            let triple = workspace.host_triple()?.to_uppercase().replace(['-', '.'], "_");
            command.env(format!("CARGO_TARGET_{triple}_RUNNER"), "sudo -n -E");
        }
        counts.add(&run_one(&mut command)?);
    }
    Ok(counts)
}

fn run_one(command: &mut Command) -> Result<Counts> {
    let shown = show(command);
    eprintln!("+ {shown}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not run {shown}"))?;
    let stdout = child.stdout.take().context("no stdout")?;
    let stderr = child.stderr.take().context("no stderr")?;
    let (reader, mut reasons) = thread::scope(|scope| {
        let errors = scope.spawn(|| {
            let mut reasons = Vec::new();
            each_line(stderr, |line| {
                eprintln!("{line}");
                reasons.extend(Reader::error_line(line));
            });
            reasons
        });
        let mut reader = Reader::default();
        each_line(stdout, |line| {
            println!("{line}");
            reader.line(line);
        });
        (reader, errors.join().unwrap_or_default())
    });
    let status = child.wait().with_context(|| format!("could not wait for {shown}"))?;
    reasons.sort();
    reasons.dedup();
    let whole = if reasons.is_empty() { None } else { Some(reasons.join("; ")) };
    let mut counts = reader.finish(whole.as_deref());
    if !status.success() && counts.failures().is_empty() {
        counts.failed(format!("{shown} ended with {status}"));
    }
    Ok(counts)
}

/// Lines as they come; bytes that are no text are replaced.
fn each_line(from: impl Read, mut take: impl FnMut(&str)) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while matches!(from.read_until(b'\n', &mut line), Ok(n) if n > 0) {
        take(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
        line.clear();
    }
}

/// Counts a tier's tests as skipped. They are built all the same: a test that does not compile is no test.
pub(super) fn skip_all(workspace: &Workspace, tier: Tier, suites: &[Suite], reason: &str) -> Result<Counts> {
    let mut counts = Counts::default();
    for call in calls(tier, suites) {
        let mut command = workspace.cargo();
        command.args(["test", "--quiet", "--no-fail-fast"]).args(&call).args(["--", "--list"]);
        match output(&mut command) {
            Ok(output) => counts.skip(listed(&String::from_utf8_lossy(&output.stdout)), reason),
            Err(e) => counts.failed(format!("{e:#}")),
        }
    }
    println!("skipped: {} tests: {reason}", counts.numbers().2);
    Ok(counts)
}

/// Tests in the output of `--list`.
fn listed(text: &str) -> usize {
    text.lines().filter(|l| l.ends_with(": test")).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_and_calls() {
        let metadata = serde_json::json!({"packages": [
            {"name": "fleetbox-net", "targets": [
                {"name": "fleetbox_net", "kind": ["lib"], "test": true},
                {"name": "net", "kind": ["test"], "test": true},
            ]},
            {"name": "fleetbox-ssh", "targets": [{"name": "sshd", "kind": ["test"], "test": true}]},
        ]});
        let suites = suites(&metadata).unwrap();
        assert_eq!(suites.len(), 2);
        let shown = |tier| calls(tier, &suites).iter().map(|c| c.join(" ")).collect::<Vec<_>>();
        assert_eq!(shown(Tier::Net), ["--package fleetbox-net --test net"]);
        assert_eq!(
            shown(Tier::Unit),
            ["--workspace --lib --bins", "--package fleetbox-ssh --test sshd", "--workspace --doc"]
        );
        assert_eq!(shown(Tier::E2e), [""; 0]);
    }

    #[test]
    fn real_output_is_passed_on_and_counted() {
        let script = "echo 'running 1 test'; echo 'test a ... ok'; echo; echo skipped: why >&2
            echo 'test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured'; exit 3";
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let counts = run_one(&mut command).unwrap();
        assert_eq!(counts.numbers(), (1, 1, 0), "{counts:?}");
        assert!(counts.failures()[0].contains("exit status: 3"), "{counts:?}");
    }

    #[test]
    fn listed_tests_are_counted() {
        assert_eq!(listed("a::b: test\nc: test\nd: benchmark\n\n2 tests, 1 benchmark\n"), 2);
    }
}
