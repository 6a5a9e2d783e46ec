//! Every developer task of fleetbox: `cargo xtask <task>`. One file for each.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a developer's command line talks to its user"
)]

mod bench;
mod catalog;
mod check;
mod ci;
mod demo;
mod deps;
mod fuzz;
mod golden;
mod launch;
mod licences;
mod setup;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};

use workspace::Workspace;

const HELP: &str = "\
cargo xtask <task>

  demo                   set up, build, boot a real machine, run two commands in it, tell where the time went, delete it
  setup [--dry-run]      install what building and testing need (root on a Debian-like host), else say what is missing
  test [--full] [TIER..] set up, then run the tiers that this host can run: unit, fake, net, e2e
                         --full runs ignored (slow) tests too
  bench boot [--pairs N] [--json] [--markdown]
                         set up, then measure fleetbox against the usual recipe by hand; see docs/bench.md
  bench cluster [--pairs N] [--json] [--markdown]
                         the same for three machines at once against three times one, and a network's making
  bench image [--pairs N] [--json] [--markdown]
                         the same for taking in images: digest, qcow2, unpacking, and disks from an image by its size
  fuzz [--seconds N] [--keep] [TARGET..]
                         each parser of foreign bytes for N (5) seconds under a fuzzer; see docs/testing.md
  check                  the static checks and a short fuzz: fmt, clippy, doc, dependencies, licences, tidy, generated files
  ci                     check, then test; reports every failure
  catalog [--check] [--site VENDOR=URL]
                         pin the newest Debian and Ubuntu images in the catalog, from the vendors' checksum files
  golden [--write]       compare (or rewrite) the checked-in files that are generated from the code

Its last line of output is `N passed, N failed, N skipped` for test and ci.";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<ExitCode> {
    let (task, rest) = match args.split_first() {
        Some((task, rest)) => (task.as_str(), rest),
        None => ("help", args),
    };
    let workspace = Workspace::find()?;
    let done = |ok: bool| if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    match task {
        "help" | "-h" | "--help" => {
            println!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        "demo" => no_more(rest).and_then(|()| demo::run(&workspace)),
        "bench" => bench::run(&workspace, rest),
        "catalog" => catalog::run(&workspace, &catalog::Options::parse(rest)?).map(done),
        "setup" => setup::run(&workspace, &setup::Options::parse(rest)?).map(done),
        "test" => test::run(&workspace, &test::Options::parse(rest)?).map(done),
        "check" => no_more(rest).and_then(|()| check::run(&workspace)).map(done),
        "ci" => no_more(rest).and_then(|()| ci::run(&workspace)).map(done),
        "fuzz" => fuzz::run(&workspace, &fuzz::Options::parse(rest)?).map(|()| ExitCode::SUCCESS),
        "golden" => match rest {
            [] => golden::check(&workspace).map(|()| ExitCode::SUCCESS),
            [write] if write == "--write" => golden::write(&workspace).map(|()| ExitCode::SUCCESS),
            _ => bail!("golden takes --write or nothing"),
        },
        other => bail!("there is no task {other:?}\n\n{HELP}"),
    }
}

fn no_more(rest: &[String]) -> Result<()> {
    match rest.first() {
        None => Ok(()),
        Some(extra) => bail!("unexpected argument {extra:?}"),
    }
}
