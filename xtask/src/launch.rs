//! Building a program of this workspace, and becoming it with the rights that machines need.

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::test;
use crate::workspace::{Workspace, find_program, is_root, show};

/// A program to build.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    pub(crate) package: &'static str,
    pub(crate) name: &'static str,
}

/// Builds programs as this user, and tells where they are, in the order asked for.
pub(crate) fn build(workspace: &Workspace, programs: &[Program], release: bool) -> Result<Vec<PathBuf>> {
    let mut command = workspace.cargo();
    command.args(["build", "--message-format=json-render-diagnostics"]);
    if release {
        command.arg("--release");
    }
    for Program { package, name } in programs {
        command.args(["--package", package, "--bin", name]);
    }
    let shown = show(&command);
    eprintln!("+ {shown}");
    // cargo knows best where it puts them: target folders can be configured in many ways.
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not run {shown}"))?;
    let stdout = child.stdout.take().context("no stdout")?;
    let mut made = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line = line.with_context(|| format!("could not read what {shown} says"))?;
        made.extend(executable(&line));
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{shown} ended with {status}");
    }
    let find = |program: &Program| {
        let path = made.iter().find(|(name, _)| name == program.name).map(|(_, path)| path.clone());
        path.with_context(|| format!("cargo built no program {}", program.name))
    };
    programs.iter().map(find).collect()
}

/// Name and path of a program, if this message of cargo's is about one.
fn executable(message: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let name = message["target"]["name"].as_str()?;
    Some((name.to_owned(), message["executable"].as_str()?.into()))
}

/// Becomes the program, as root: directly, or through sudo. It then is the one that Ctrl-C reaches and that
/// says when all is cleared away; this process does not end before it.
///
/// # Errors
/// It returns only if that fails.
pub(crate) fn become_as_root(workspace: &Workspace, program: &Path, args: &[String]) -> Result<ExitCode> {
    let mut command = if is_root() {
        workspace.command(program)
    } else {
        if find_program("sudo").is_none() {
            bail!("machines need root for their network, and there is no sudo: run this as root");
        }
        let mut sudo = workspace.command("sudo");
        sudo.arg("-E").arg(program);
        sudo
    };
    command.args(args).env("FLEETBOX_HOME", test::home(workspace)?);
    eprintln!("+ {}", show(&command));
    let error = command.exec();
    Err(error).with_context(|| format!("could not run {}", show(&command)))
}

/// `cargo xtask setup` in a process of its own, all of whose output goes to stderr: stdout is for results.
pub(crate) fn set_up(workspace: &Workspace, args: &[&str]) -> Result<()> {
    let this = std::env::current_exe().context("could not find this program")?;
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().context("could not share stderr")?;
    let mut command: Command = workspace.command(this);
    let status = command.arg("setup").args(args).stdout(stderr).status().context("could not run setup")?;
    if !status.success() {
        bail!("something needed is missing (see above)");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_among_cargos_messages() {
        let program = r#"{"reason":"compiler-artifact","target":{"name":"a"},"executable":"/t/a"}"#;
        assert_eq!(executable(program), Some(("a".into(), "/t/a".into())));
        let library = r#"{"reason":"compiler-artifact","target":{"name":"a"},"executable":null}"#;
        for other in [library, r#"{"reason":"build-finished","success":true}"#, "no JSON"] {
            assert_eq!(executable(other), None, "{other}");
        }
    }
}
