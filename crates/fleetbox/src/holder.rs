//! Starting a holder process.

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use fleetbox_api::API_VERSION;
use fleetbox_holder::{HolderConfig, Ready, VARIABLE};
use fleetbox_os::child::Spawn;
use fleetbox_spec::{ClusterName, LeaseKind};
use fleetbox_store::Store;

use crate::error::HolderStartError;

/// Names another program to become the holder; by default the calling program executes itself.
const PROGRAM_VARIABLE: &str = "FLEETBOX_HOLDER";
/// A holder says something within this time, also when it waits for a predecessor.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// Numbers of the two pipes in the holder.
const OWNER_FD: i32 = 3;
const READY_FD: i32 = 4;

/// A holder that was started.
#[derive(Debug)]
pub(crate) struct Started {
    /// What it said.
    pub(crate) ready: Ready,
    /// The write end of the owner pipe: the holder lives as long as somebody has it.
    pub(crate) owner: OwnedFd,
}

/// Starts a holder and waits for its word.
pub(crate) async fn start(store: &Store, cluster: &ClusterName) -> Result<Started, HolderStartError> {
    let program =
        std::env::var_os(PROGRAM_VARIABLE).map_or_else(|| PathBuf::from("/proc/self/exe"), PathBuf::from);
    let spawn_error = |source| HolderStartError::Spawn { program: program.clone(), source };
    let (owner_read, owner_write) = fleetbox_os::fd::pipe().map_err(spawn_error)?;
    let (ready_read, ready_write) = fleetbox_os::fd::pipe().map_err(spawn_error)?;
    let config = HolderConfig {
        api_version: API_VERSION,
        home: store.root().to_owned(),
        cluster: cluster.clone(),
        lease: LeaseKind::Bound,
        owner_pid: std::process::id(),
        owner_fd: OWNER_FD,
        ready_fd: READY_FD,
    };
    let config = serde_json::to_string(&config).map_err(HolderStartError::Unintelligible)?;
    // The arguments are for whoever looks at the process list; the holder reads only the variable.
    let mut spawn = Spawn::new(&program).arg("fleetbox-holder").arg(cluster.as_str());
    spawn.env.push((VARIABLE.into(), config.into()));
    spawn.fds = vec![(owner_read, OWNER_FD), (ready_write, READY_FD)];
    spawn.new_session = true;
    // The owner pipe does it, and does it in order; the kernel's signal would leave the network behind.
    spawn.die_with_parent = false;
    let child = spawn.spawn().map_err(spawn_error)?;
    reap_in_background(child);
    let said = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(std::fs::File::from(ready_read)).read_line(&mut line).map(|_| line)
    });
    let line = match tokio::time::timeout(READY_LIMIT, said).await {
        Err(_) => return Err(HolderStartError::Slow { seconds: READY_LIMIT.as_secs() }),
        Ok(Ok(Ok(line))) if !line.is_empty() => line,
        Ok(_) => return Err(HolderStartError::Silent),
    };
    let ready = serde_json::from_str(&line).map_err(HolderStartError::Unintelligible)?;
    Ok(Started { ready, owner: owner_write })
}

/// Waits for the holder's end in a thread of its own, so that it leaves no zombie while this process lives on.
fn reap_in_background(child: fleetbox_os::child::Child) {
    let mut child = std::mem::ManuallyDrop::new(child);
    let reaper = std::thread::Builder::new().name("fleetbox-reaper".into()).stack_size(64 * 1024);
    // ManuallyDrop: if no thread can be had, the holder must live on; it then stays a zombie until this process ends.
    let reap = move || {
        let _ = child.wait();
        // Reaped, so dropping it kills nobody; it closes the pidfd.
        drop(std::mem::ManuallyDrop::into_inner(child));
    };
    if let Err(e) = reaper.spawn(reap) {
        tracing::warn!(error = %e, "no thread to reap the holder");
    }
}
