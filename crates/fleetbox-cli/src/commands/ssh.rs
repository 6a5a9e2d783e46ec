//! `fleetbox ssh`

use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::args::Ssh;
use crate::error::{CliError, Result};
use crate::quote::remote_command;

pub(crate) async fn run(args: &Ssh) -> Result {
    let info = fleetbox::inspect(&args.name).await?;
    if !matches!(info.state, fleetbox::State::Running | fleetbox::State::Starting) {
        return Err(CliError::NotRunning { name: args.name.clone(), state: info.state });
    }
    let access = fleetbox::ssh_access(&args.name).await?;
    let mut ssh = Command::new("ssh");
    let command = remote_command(&args.command);
    if command.is_none() && io::stdin().is_terminal() {
        ssh.arg("-t");
    }
    ssh.args(access.ssh_args());
    if let Some(command) = command {
        // Else ssh would take a command that begins with a dash for its own option.
        ssh.arg("--").arg(command);
    }
    // It takes this process's place: its exit code, signals and terminal are ssh's own.
    Err(CliError::Program { program: "ssh", source: ssh.exec() })
}
