//! The end of a start that was given up.

use std::time::Duration;

use fleetbox_api::Client;
use fleetbox_spec::{ClusterName, LeaseKind, MachineInfo, MachineName, State};
use fleetbox_store::{Lock, LockKind, Store};

use crate::error::{Error, Result};
use crate::vm::open_store;

/// How often is looked. A teardown takes some hundred milliseconds.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until what a cancelled start of a machine had made is undone, and tells the machine as it is then; `None` when
/// there is none. `cluster` is what the start was given.
///
/// Dropping the future of [`VmBuilder::start`](crate::VmBuilder::start) is enough for all of it to go, by itself and
/// within two seconds: this is for those who want to have seen it. It has no deadline of its own; wrap it in a timeout.
///
/// # Errors
/// When the fleetbox home cannot be read.
///
/// ```no_run
/// # async fn f() -> fleetbox::Result<()> {
/// use std::time::Duration;
/// let start = fleetbox::Vm::builder("web").start();
/// if tokio::time::timeout(Duration::from_secs(5), start).await.is_err() {
///     let left = fleetbox::settled("web", None).await?;
///     println!("{:?}", left.map(|m| m.state));
/// }
/// # Ok(()) }
/// ```
pub async fn settled(name: &str, cluster: Option<&str>) -> Result<Option<MachineInfo>> {
    let name = MachineName::new(name)?;
    let cluster = match cluster {
        Some(c) => ClusterName::new(c)?,
        None => name.default_cluster(),
    };
    let store = open_store(None)?;
    while !is_settled(&store, &cluster, &name).await? {
        tokio::time::sleep(PAUSE).await;
    }
    match crate::fleet::inspect(name.as_str()).await {
        Ok(info) => Ok(Some(info)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// A holder keeps its cluster's lock until everything is undone.
async fn is_settled(store: &Store, cluster: &ClusterName, name: &MachineName) -> Result<bool> {
    let holder = Lock::holder(store, LockKind::Cluster, cluster.as_str());
    if holder.map_err(Error::store(format!("see who holds cluster {cluster}")))?.is_none() {
        return Ok(true);
    }
    let client =
        Client::new(store.socket(cluster).map_err(Error::store(format!("find the socket of cluster {cluster}")))?);
    // One that does not answer is on its way up or down.
    let Ok(info) = client.holder().await else { return Ok(false) };
    match info.lease {
        // It is about to notice that nobody owns it any more; somebody else's is not ours to wait for.
        LeaseKind::Bound => Ok(info.owner_pid != Some(std::process::id())),
        // It lives on, and ends only this one machine's start.
        _ => Ok(match client.machine(name).await {
            Ok(machine) => !matches!(machine.state, State::Starting | State::Stopping),
            Err(_) => true,
        }),
    }
}
