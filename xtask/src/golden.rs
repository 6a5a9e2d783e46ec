//! `cargo xtask golden [--write]`: checked-in files that a program of ours prints. A change to one shows in review.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::workspace::{Workspace, output};

/// A file, and the `cargo run` arguments that print it.
struct Golden {
    /// Path below the workspace's root.
    file: &'static str,
    /// What follows `cargo run --quiet`.
    run: &'static [&'static str],
}

/// All of them.
const GOLDEN: &[Golden] = &[
    Golden {
        file: "docs/openapi.json",
        run: &["--package", "fleetbox-api", "--features", "openapi", "--example", "openapi"],
    },
    Golden {
        file: "docs/cli.md",
        run: &["--package", "fleetbox-cli", "--bin", "fleetbox", "--", "cli-reference"],
    },
];

/// Compares each file with what its program prints now.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let mut stale = Vec::new();
    for golden in GOLDEN {
        let now = print(workspace, golden)?;
        let kept = fs::read_to_string(workspace.root().join(golden.file)).unwrap_or_default();
        if let Some(difference) = first_difference(&kept, &now) {
            stale.push(format!("{}, {difference}", golden.file));
        }
    }
    if !stale.is_empty() {
        bail!("not as the code prints them now (`cargo xtask golden --write`):\n  {}", stale.join("\n  "));
    }
    Ok(())
}

/// Writes each file anew.
pub(crate) fn write(workspace: &Workspace) -> Result<()> {
    for golden in GOLDEN {
        let now = print(workspace, golden)?;
        let path = workspace.root().join(golden.file);
        fs::write(&path, now).with_context(|| format!("could not write {}", path.display()))?;
    }
    Ok(())
}

fn print(workspace: &Workspace, golden: &Golden) -> Result<String> {
    let output = output(workspace.cargo().args(["run", "--quiet"]).args(golden.run))?;
    String::from_utf8(output.stdout).with_context(|| format!("{} would not be text", golden.file))
}

/// The first line that differs, with both versions of it.
fn first_difference(kept: &str, now: &str) -> Option<String> {
    if kept == now {
        return None;
    }
    let (mut kept, mut now) = (kept.lines(), now.lines());
    for line in 1.. {
        match (kept.next(), now.next()) {
            (None, None) => break,
            (old, new) if old != new => {
                let show = |l: Option<&str>| l.map_or("nothing".to_owned(), |l| format!("{l:?}"));
                return Some(format!("line {line}: {} instead of {}", show(old), show(new)));
            }
            _ => {}
        }
    }
    Some("line ends".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n").unwrap(), "line 2: \"b\" instead of \"c\"");
        assert_eq!(first_difference("", "a\n").unwrap(), "line 1: nothing instead of \"a\"");
        assert_eq!(first_difference("a", "a\n").unwrap(), "line ends");
    }
}
