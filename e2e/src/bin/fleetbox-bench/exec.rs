//! Running a command on a machine: over a new connection and over a kept one, against OpenSSH.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fleetbox::{SshAccess, Vm};
use fleetbox_ssh::{Client, Options, Target};

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

pub(crate) async fn measure(vm: &Vm) -> Result<ExecReport> {
    let access = vm.ssh_access()?;
    let options = access.options().into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    let destination = Destination { host: access.ip.to_string(), port: 22, options };

    let mut first = Vec::new();
    for index in 0..FIRST_PAIRS {
        // All handles of a machine in one process share their connections: a new one takes a client of its own.
        let client = new_client(&access)?;
        first.push(pair(index, || over_new(&client), || theirs(&destination)).await?);
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
    Ok(report)
}

/// A client as a process has it that has not spoken to the machine yet.
fn new_client(access: &SshAccess) -> Result<Client> {
    let known = std::fs::read_to_string(&access.known_hosts).context("could not read known_hosts")?;
    let (_, host_key) = known.split_once(' ').context("known_hosts holds no key")?;
    let target = Target {
        addr: SocketAddr::new(access.ip, 22),
        user: access.user.clone(),
        host_key: fleetbox_ssh::parse_public_line(host_key)?,
    };
    let key = fleetbox_ssh::ensure_key_pair(&access.identity_file)?;
    Ok(Client::new(target, key, Options::default()))
}

async fn over_new(client: &Client) -> Result<Duration> {
    let began = Instant::now();
    let output = client.exec(COMMAND).await?;
    let took = began.elapsed();
    if !output.status.success() {
        bail!("{COMMAND:?} on the machine ended with {}", output.status);
    }
    Ok(took)
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
