//! Running a command on a machine: over a new connection and over a kept one, against OpenSSH.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fleetbox::Vm;

use crate::report::ExecReport;
use crate::stats::ratios;
use crate::summary;
use crate::system_ssh::{self, Destination, Master};

const COMMAND: &str = "true";
/// Pairs of new connections.
const FIRST_PAIRS: usize = 5;
/// Pairs over the kept ones.
const LATER_PAIRS: usize = 30;
/// Commands over the kept ones that are not counted.
const WARM_UP: usize = 5;

/// Also answers with the further handles that it needed: dropping one of them would end the machine.
pub(crate) async fn measure(vm: &Vm) -> Result<(ExecReport, Vec<Vm>)> {
    let access = vm.ssh_access()?;
    let options = access.options().into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    let destination = Destination { host: access.ip.to_string(), port: 22, options };

    let mut handles = Vec::new();
    let mut first = Vec::new();
    for index in 0..FIRST_PAIRS {
        // A handle that has not been used has no connection yet.
        let fresh = Vm::find(vm.name()).await?;
        let pair = pair(index, || ours(&fresh), || theirs(&destination)).await?;
        handles.push(fresh);
        first.push(pair);
    }

    let dir = tempfile::Builder::new().prefix("fleetbox-bench").tempdir()?;
    let master = Master::open(&destination, dir.path()).await?;
    for _ in 0..WARM_UP {
        ours(vm).await?;
        theirs(&master.destination).await?;
    }
    let mut later = Vec::new();
    for index in 0..LATER_PAIRS {
        later.push(pair(index, || ours(vm), || theirs(&master.destination)).await?);
    }
    let (first_ours, first_theirs) = columns(&first);
    let (later_ours, later_theirs) = columns(&later);
    let report = ExecReport {
        first_exec_ms: summary("first exec", &first_ours)?,
        openssh_first_exec_ms: summary("first ssh", &first_theirs)?,
        first_exec_ratio: summary("first exec", &ratios(&first))?,
        later_exec_ms: summary("later exec", &later_ours)?,
        openssh_later_exec_ms: summary("later ssh", &later_theirs)?,
        later_exec_ratio: summary("later exec", &ratios(&later))?,
    };
    Ok((report, handles))
}

/// One of each, in turns who is first; in milliseconds.
async fn pair<A, B>(index: usize, ours: impl Fn() -> A, theirs: impl Fn() -> B) -> Result<(f64, f64)>
where
    A: Future<Output = Result<Duration>>,
    B: Future<Output = Result<Duration>>,
{
    let (a, b) = if index.is_multiple_of(2) {
        let a = ours().await?;
        (a, theirs().await?)
    } else {
        let b = theirs().await?;
        (ours().await?, b)
    };
    Ok((a.as_secs_f64() * 1e3, b.as_secs_f64() * 1e3))
}

fn columns(pairs: &[(f64, f64)]) -> (Vec<f64>, Vec<f64>) {
    pairs.iter().copied().unzip()
}

async fn ours(vm: &Vm) -> Result<Duration> {
    let began = Instant::now();
    let output = vm.exec(COMMAND).await?;
    let took = began.elapsed();
    if !output.success() {
        bail!("{COMMAND:?} on the machine ended with {}", output.status());
    }
    Ok(took)
}

async fn theirs(destination: &Destination) -> Result<Duration> {
    let mut command = system_ssh::command(destination, COMMAND);
    let began = Instant::now();
    let output = command.output().await.context("could not run ssh")?;
    let took = began.elapsed();
    if !output.status.success() {
        bail!("ssh ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(took)
}
