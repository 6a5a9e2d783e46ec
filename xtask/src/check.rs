//! `cargo xtask check`: everything that can be said of the code without running it, and a short fuzz. Reports every
//! failure, not the first.

use std::time::Instant;

use anyhow::Result;

use crate::workspace::{Workspace, run as run_command};
use crate::{deps, fuzz, golden, licences, tidy};

/// A check: its name and what it does.
type Check = (&'static str, fn(&Workspace) -> Result<()>);

const CHECKS: [Check; 8] = [
    ("fmt", fmt),
    ("tidy", tidy::check),
    ("dependencies", deps::check),
    ("licences", licences::check),
    ("clippy", clippy),
    ("doc", doc),
    ("generated files", golden::check),
    ("fuzz", fuzz::check),
];

pub(crate) fn run(workspace: &Workspace) -> Result<bool> {
    let mut table = Vec::new();
    let mut failed = 0;
    for (name, check) in CHECKS {
        let started = Instant::now();
        let verdict = match check(workspace) {
            Ok(()) => "ok".to_owned(),
            Err(e) => {
                failed += 1;
                eprintln!("{name}: {e:#}");
                "FAILED".to_owned()
            }
        };
        table.push(format!("{name:<16} {verdict:<7} {:>6.1} s", started.elapsed().as_secs_f64()));
    }
    println!("\n{}\n", table.join("\n"));
    Ok(failed == 0)
}

fn fmt(workspace: &Workspace) -> Result<()> {
    run_command(workspace.cargo().args(["fmt", "--all", "--check"]))?;
    run_command(workspace.cargo().args(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]))
}

fn clippy(workspace: &Workspace) -> Result<()> {
    run_command(workspace.cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--keep-going",
        "--",
        "-D",
        "warnings",
    ]))
}

fn doc(workspace: &Workspace) -> Result<()> {
    // The command's program and the library have one name, and so one place for their pages: not in one call.
    for which in [&["--workspace", "--exclude", "fleetbox-cli"][..], &["--package", "fleetbox-cli"]] {
        let mut command = workspace.cargo();
        command.args(["doc", "--no-deps", "--document-private-items"]).args(which);
        run_command(command.env("RUSTDOCFLAGS", "-D warnings"))?;
    }
    Ok(())
}
