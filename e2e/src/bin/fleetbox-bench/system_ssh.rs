//! The system's ssh, as it is called by both the recipe and the comparison of exec.

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fleetbox_os::child::{Child, Spawn};
use tokio::process::Command;

/// How long a master connection may take to come up.
const MASTER_LIMIT: Duration = Duration::from_secs(60);

/// Where to, and how.
#[derive(Debug, Clone)]
pub(crate) struct Destination {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// As in ssh_config(5), `Name=value`.
    pub(crate) options: Vec<String>,
}

impl Destination {
    fn args(&self) -> Vec<String> {
        // The user's own configuration has no part in this.
        let mut args: Vec<String> = ["-F", "/dev/null", "-o", "BatchMode=yes"].map(str::to_owned).to_vec();
        for option in &self.options {
            args.extend(["-o".to_owned(), option.clone()]);
        }
        args.extend(["-p".to_owned(), self.port.to_string()]);
        args
    }
}

/// One command over a connection of its own, or over a master's where the options name one.
pub(crate) fn command(destination: &Destination, remote: &str) -> Command {
    let mut command = Command::new("ssh");
    command.args(destination.args()).arg(&destination.host).arg(remote);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// A connection that is kept, for others to run their commands over.
#[derive(Debug)]
pub(crate) struct Master {
    /// Dropping it kills it.
    _ssh: Child,
    /// The destination through this connection.
    pub(crate) destination: Destination,
}

impl Master {
    /// Opens it. Its socket is made in `dir`, whose path must be short.
    pub(crate) async fn open(destination: &Destination, dir: &Path) -> Result<Self> {
        let socket = dir.join("master");
        let mut through = destination.clone();
        through.options.push(format!("ControlPath={}", socket.display()));
        let spawn =
            Spawn::new("ssh").args(through.args()).args(["-M", "-N"]).arg(OsString::from(&through.host));
        let ssh = spawn.spawn().context("could not start the master ssh")?;
        let began = Instant::now();
        loop {
            let mut check = Command::new("ssh");
            check.args(through.args()).args(["-O", "check"]).arg(&through.host).kill_on_drop(true);
            let output = check.output().await.context("could not run ssh")?;
            if output.status.success() {
                return Ok(Self { _ssh: ssh, destination: through });
            }
            if began.elapsed() > MASTER_LIMIT {
                bail!("no master connection: {}", String::from_utf8_lossy(&output.stderr).trim());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
