//! `cargo xtask test [--full] [TIER..]`: set-up, then every tier that this host can run, with one count of it all.
//!
//! A skip is counted, with its reason. A tier that could run here and ran nothing has failed: otherwise a test
//! that always skips itself looks like one that passes. After each tier the host must be as it was before.

mod libtest;
mod runner;
mod tiers;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use fleetbox_testkit::{HostSnapshot, SKIP_FILE, read_skips};

use crate::setup;
use crate::workspace::Workspace;
use libtest::Counts;
use runner::Suite;
use tiers::{Tier, Verdict};

/// How long what a tier started may take to be gone after its last test.
const LEAK_DEADLINE: Duration = Duration::from_secs(15);

/// What the command line says.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Run ignored (slow) tests too.
    full: bool,
    /// The tiers to run; all if there are none.
    tiers: Vec<Tier>,
}

impl Options {
    pub(crate) fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self::default();
        for arg in args {
            match (arg.as_str(), Tier::parse(arg)) {
                ("--full", _) => options.full = true,
                (_, Some(tier)) => options.tiers.push(tier),
                _ => bail!("there is no tier {arg:?}; there are: {}", Tier::ALL.map(Tier::name).join(", ")),
            }
        }
        Ok(options)
    }
}

/// What became of one tier.
struct Outcome {
    tier: Tier,
    counts: Counts,
    took: Duration,
}

/// Whether nothing failed.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    if !setup::run(workspace, &setup::Options::default())? {
        println!("test: going on with what can be run without (see above)");
    }
    let suites = runner::suites(&workspace.metadata(&["--no-deps"])?)?;
    let home = home(workspace)?;
    let mut outcomes = Vec::new();
    for tier in Tier::ALL {
        if options.tiers.is_empty() || options.tiers.contains(&tier) {
            println!("\n== {} tier: {}", tier.name(), tier.describe());
            let started = Instant::now();
            let counts = run_tier(workspace, tier, &suites, &home, options.full)?;
            outcomes.push(Outcome { tier, counts, took: started.elapsed() });
        }
    }
    Ok(summarize(&outcomes))
}

/// Where the machines and images of tests, benchmark and demonstration live. Kept between runs: an image is built once.
pub(crate) fn home(workspace: &Workspace) -> Result<PathBuf> {
    match std::env::var_os("FLEETBOX_HOME").filter(|h| !h.is_empty()) {
        Some(home) => Ok(home.into()),
        None => workspace.scratch("home"),
    }
}

fn run_tier(workspace: &Workspace, tier: Tier, suites: &[Suite], home: &Path, full: bool) -> Result<Counts> {
    let sudo = match tiers::can_run(tier) {
        Verdict::Yes => false,
        Verdict::WithSudo => true,
        Verdict::No(reason) => return runner::skip_all(workspace, tier, suites, &reason),
    };
    let skip_file = workspace.scratch("skips")?.join(format!("{}-{}", tier.name(), std::process::id()));
    let before = HostSnapshot::take(Some(home));
    let mut environment = vec![(SKIP_FILE.into(), skip_file.clone().into_os_string())];
    environment.push(("FLEETBOX_HOME".into(), home.as_os_str().to_owned()));
    let mut counts = runner::run(workspace, tier, suites, &environment, sudo, full)?;
    for skip in read_skips(&skip_file)? {
        counts.was_skipped(&skip.test, &skip.reason);
    }
    // Nobody reads it again; it may not be there at all.
    let _ = std::fs::remove_file(&skip_file);
    if counts.ran() == 0 {
        counts.failed(format!("the {} tier can run here and ran no test", tier.name()));
    }
    for unread in before.unread() {
        println!("leak check: not looked at: {unread}");
    }
    if let Err(leaks) = before.wait_until_back(LEAK_DEADLINE) {
        for leak in &leaks {
            println!("leak check: {leak}");
        }
        counts.failed(format!("the {} tier left the host changed: {} differences", tier.name(), leaks.len()));
    }
    Ok(counts)
}

/// Prints the table and the last line.
fn summarize(outcomes: &[Outcome]) -> bool {
    println!();
    for outcome in outcomes {
        for failure in outcome.counts.failures() {
            println!("FAILED  {:<5} {failure}", outcome.tier.name());
        }
    }
    for outcome in outcomes {
        for (reason, count) in outcome.counts.skip_reasons() {
            println!("skipped {:<5} {count:>4}  {reason}", outcome.tier.name());
        }
    }
    println!("\n{:<6} {:>7} {:>7} {:>7} {:>8}", "tier", "passed", "failed", "skipped", "time");
    let mut total = Counts::default();
    for Outcome { tier, counts, took } in outcomes {
        let (passed, failed, skipped) = counts.numbers();
        println!("{:<6} {passed:>7} {failed:>7} {skipped:>7} {:>6.1} s", tier.name(), took.as_secs_f64());
        total.add(counts);
    }
    let (passed, failed, skipped) = total.numbers();
    println!("\n{passed} passed, {failed} failed, {skipped} skipped");
    failed == 0
}
