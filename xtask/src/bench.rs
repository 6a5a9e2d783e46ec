//! `cargo xtask bench boot`: fleetbox against the usual recipe by hand, on the same image and the same QEMU.
//! `cargo xtask bench cluster`: three machines at once against three times one, and a network's making and closing.
//! `cargo xtask bench image`: taking images in against `qemu-img`, `sha256sum`, `xz` and the like.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::launch::{self, Program};
use crate::workspace::Workspace;

const BENCH: Program = Program { package: "fleetbox-e2e", name: "fleetbox-bench" };
const CLI: Program = Program { package: "fleetbox-cli", name: "fleetbox" };

pub(crate) fn run(workspace: &Workspace, args: &[String]) -> Result<ExitCode> {
    let (what, args) = match args.split_first() {
        Some((what, rest)) if matches!(what.as_str(), "boot" | "cluster" | "image") => {
            (what, check(what, rest)?)
        }
        _ => bail!("there are three benchmarks: bench boot|cluster|image [--pairs N] [--json] [--markdown]"),
    };
    launch::set_up(workspace, &["--bench"])?;
    let built = launch::build(workspace, &[BENCH, CLI], true)?;
    let [bench, cli] = built.as_slice() else { bail!("two programs were to be built") };
    let work = text(&workspace.scratch("bench")?)?;
    let mut all = vec![what.clone(), "--cli".to_owned(), text(cli)?, "--work".to_owned(), work];
    all.extend(args);
    launch::become_as_root(workspace, bench, &all)
}

/// What is wrong is better said before all is built.
fn check(what: &str, args: &[String]) -> Result<Vec<String>> {
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--json" | "--markdown" => {}
            "--pairs" => {
                let pairs = rest.next().and_then(|n| n.parse::<usize>().ok()).filter(|n| *n > 0);
                pairs.context("--pairs takes a number, 1 or more")?;
            }
            other => bail!("bench {what} takes --pairs N, --json and --markdown, not {other:?}"),
        }
    }
    Ok(args.to_vec())
}

fn text(path: &std::path::Path) -> Result<String> {
    Ok(path.to_str().with_context(|| format!("{} is no UTF-8", path.display()))?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for good in ["", "--json", "--pairs 3 --json --markdown"] {
            assert_eq!(check("boot", &words(good)).unwrap(), words(good));
        }
        for bad in ["--pairs", "--pairs 0", "--pairs x", "--jason", "3"] {
            check("boot", &words(bad)).unwrap_err();
        }
    }
}
