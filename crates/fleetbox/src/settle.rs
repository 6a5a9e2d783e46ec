//! Seeing off what ends: a start that was given up, a holder that nothing is left for.

use std::time::Duration;

use fleetbox_api::{Client, ClientError, CloseRequest};
use fleetbox_spec::{ClusterName, LeaseKind, MachineInfo, MachineName, State};
use fleetbox_store::{Lock, LockKind, NetworkRecord, Store, read_json};

use crate::error::{Error, Result};
use crate::vm::open_store;

/// How often is looked. A teardown takes some hundred milliseconds.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a holder that was asked to end is waited for. It ends all the same when it takes longer.
const END_LIMIT: Duration = Duration::from_secs(5);

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
        None => {
            let of_its_own = crate::builder::cluster_of(&open_store(None)?, &name)?;
            of_its_own.unwrap_or_else(|| name.default_cluster())
        }
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
    let client = Client::new(
        store.socket(cluster).map_err(Error::store(format!("find the socket of cluster {cluster}")))?,
    );
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

/// Ends a cluster's holder when it is detached, no member runs and nobody asked for its network by itself, and waits until
/// it and its host resources are gone, at most five seconds. It would do so by itself a moment later: whoever
/// [stopped](crate::stop) or [removed](crate::remove) the last machine finds nothing left at once.
///
/// One that is bound to a living process is left to it.
///
/// # Errors
/// When the name is none, or the fleetbox home cannot be opened. That the holder takes its time is no error.
///
/// ```no_run
/// # async fn f() -> fleetbox::Result<()> {
/// let cluster = fleetbox::inspect("web").await?.cluster;
/// fleetbox::remove("web", true).await?;
/// fleetbox::released(cluster.as_str()).await?;
/// # Ok(()) }
/// ```
pub async fn released(cluster: &str) -> Result<()> {
    let cluster = ClusterName::new(cluster)?;
    let store = open_store(None)?;
    if read_json::<NetworkRecord>(&store.network_file(&cluster)).is_ok_and(|r| r.explicit) {
        return Ok(());
    }
    let socket =
        store.socket(&cluster).map_err(Error::store(format!("find the socket of cluster {cluster}")))?;
    if !ask_to_end(&Client::new(socket)).await {
        return Ok(());
    }
    wait_for_end(&store, &cluster).await;
    Ok(())
}

/// Waits until a cluster's holder, which is on its way out, is gone with all it had.
pub(crate) async fn wait_for_end(store: &Store, cluster: &ClusterName) {
    let free = async {
        while Lock::holder(store, LockKind::Cluster, cluster.as_str()).is_ok_and(|h| h.is_some()) {
            tokio::time::sleep(PAUSE).await;
        }
    };
    if tokio::time::timeout(END_LIMIT, free).await.is_err() {
        tracing::warn!(%cluster, "its holder has not ended yet");
    }
}

/// Whether the holder is on its way out, or there is none.
async fn ask_to_end(client: &Client) -> bool {
    match client.holder().await {
        Ok(info) if info.lease == LeaseKind::Bound => return info.owner_pid == Some(std::process::id()),
        Ok(_) => {}
        // One that does not answer has ended, or is about to.
        Err(_) => return true,
    }
    match client.machines().await {
        Ok(machines) if machines.iter().any(|m| m.state.is_live()) => false,
        // A member that was started in between is a conflict, and keeps the holder.
        Ok(_) => !matches!(client.close(&CloseRequest::default(), &|_| {}).await, Err(ClientError::Api(_))),
        Err(_) => true,
    }
}
