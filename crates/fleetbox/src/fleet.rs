//! All machines of a fleetbox home at once.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use fleetbox_api::{Client, ClientError, CloseRequest, StopRequest, routes};
use fleetbox_holder::undo_dead_owners;
use fleetbox_spec::{ClusterName, MachineInfo, MachineName, State};
use fleetbox_store::{MachineRecord, Store, read_json};

use crate::connection::{self, Connection};
use crate::error::{Error, Result};
use crate::ssh_access::SshAccess;
use crate::vm::open_store;

/// What [`list`] found.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Listing {
    /// The machines, by cluster and name.
    pub machines: Vec<MachineInfo>,
    /// Why a machine, or the machines of a cluster, could not be told of: a record that is damaged or newer than this
    /// program, a holder that does not answer. The others are in `machines` all the same.
    pub damaged: Vec<Error>,
}

/// Every machine of this fleetbox home, running or not, by cluster and name.
///
/// One machine whose record is damaged does not hide the others; see [`Listing::damaged`].
///
/// # Errors
/// When the home cannot be read.
pub async fn list() -> Result<Listing> {
    list_in(&open_store(None)?).await
}

async fn list_in(store: &Store) -> Result<Listing> {
    let mut all = Listing::default();
    for cluster in store.clusters().map_err(Error::store("list the clusters"))? {
        match list_cluster(store, &cluster).await {
            Ok(listing) => {
                all.machines.extend(listing.machines);
                all.damaged.extend(listing.damaged);
            }
            Err(e) => all.damaged.push(e),
        }
    }
    Ok(all)
}

async fn list_cluster(store: &Store, cluster: &ClusterName) -> Result<Listing> {
    let socket =
        store.socket(cluster).map_err(Error::store(format!("find the socket of cluster {cluster}")))?;
    let client = Client::new(socket);
    // Looking is free for everybody who may connect: no lease is asked for.
    let live = match client.handshake().await {
        Ok(_) => client.machines().await,
        Err(e) => Err(e),
    };
    let on_disk = on_disk(store, cluster)?;
    match live {
        // A holder knows nothing of a machine whose record it cannot read. What the disk tells beyond that is a moment
        // older than what the holder tells.
        Ok(machines) => Ok(Listing { machines, damaged: on_disk.damaged }),
        Err(ClientError::NotThere { .. } | ClientError::Denied { .. } | ClientError::Broken { .. }) => {
            Ok(on_disk)
        }
        Err(e) => Err(Error::from_client(format!("list the machines of cluster {cluster}"), e)),
    }
}

/// What somebody has taken away, behind fleetbox's back, of the networks that are up: for each cluster, in words, such as
/// `bridge fb804bccb4 is gone`. Clusters whose network is whole are left out, and so are those whose holder this user may
/// not speak to.
///
/// Each is looked at anew, which takes some milliseconds for each; [`list()`] does not do it. See also
/// [`Cluster::damage`](crate::Cluster::damage).
///
/// # Errors
/// When the home cannot be read.
pub async fn network_damage() -> Result<Vec<(ClusterName, Vec<String>)>> {
    let store = open_store(None)?;
    let mut all = Vec::new();
    for cluster in store.clusters().map_err(Error::store("list the clusters"))? {
        let socket =
            store.socket(&cluster).map_err(Error::store(format!("find the socket of cluster {cluster}")))?;
        let client = Client::new(socket);
        // A holder that cannot be asked is told of by `list`, if that is worth telling.
        let Ok(_) = client.handshake().await else { continue };
        match client.holder().await {
            Ok(info) if !info.damage.is_empty() => all.push((cluster, info.damage)),
            _ => {}
        }
    }
    Ok(all)
}

fn on_disk(store: &Store, cluster: &ClusterName) -> Result<Listing> {
    let names =
        store.machines(cluster).map_err(Error::store(format!("list the machines of cluster {cluster}")))?;
    let mut all = Listing::default();
    for name in names {
        match read_record(store, cluster, &name) {
            Ok(Some(record)) => all.machines.push(stopped(cluster, record)),
            // Removed since the folder was read.
            Ok(None) => {}
            Err(e) => all.damaged.push(e),
        }
    }
    Ok(all)
}

fn read_record(store: &Store, cluster: &ClusterName, name: &MachineName) -> Result<Option<MachineRecord>> {
    match read_json(&store.machine_dir(cluster, name).record()) {
        Ok(record) => Ok(Some(record)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(Error::store(format!("read machine {name}"))(e)),
    }
}

fn stopped(cluster: &ClusterName, r: MachineRecord) -> MachineInfo {
    MachineInfo {
        name: r.name,
        cluster: cluster.clone(),
        state: if r.failure.is_some() { State::Failed } else { State::Stopped },
        ip: Some(r.ip.into()),
        mac: r.mac,
        cpus: r.cpus,
        memory_mib: r.memory_mib,
        disk_gib: r.disk_gib,
        image: r.image,
        backend: r.backend,
        accel: r.accel,
        holder_pid: None,
        vmm_pid: None,
        created_at: r.created_at,
        ephemeral: r.ephemeral,
        host_key: r.host_key,
        boot_stage: None,
        boot: r.boot,
        failure: r.failure,
    }
}

/// One machine, running or not.
///
/// # Errors
/// [`NotFound`](crate::ErrorKind::NotFound) when there is none of that name.
pub async fn inspect(name: &str) -> Result<MachineInfo> {
    let (store, cluster, name) = locate(name)?;
    let all = list_cluster(&store, &cluster).await?.machines;
    if let Some(info) = all.into_iter().find(|m| m.name == name) {
        return Ok(info);
    }
    // Nobody tells of it: either its record cannot be read, or it has gone meanwhile.
    read_record(&store, &cluster, &name)?;
    Err(Error::NotFound { name: name.to_string() })
}

fn locate(name: &str) -> Result<(Store, ClusterName, MachineName)> {
    let name = MachineName::new(name)?;
    let store = open_store(None)?;
    let cluster = store.cluster_of(&name).map_err(Error::store(format!("look for machine {name}")))?;
    let cluster = cluster.ok_or_else(|| Error::NotFound { name: name.to_string() })?;
    Ok((store, cluster, name))
}

/// The file that a machine's serial console is appended to.
///
/// # Errors
/// [`NotFound`](crate::ErrorKind::NotFound) when there is no machine of that name.
pub fn console_log(name: &str) -> Result<std::path::PathBuf> {
    let (store, cluster, name) = locate(name)?;
    Ok(store.machine_dir(&cluster, &name).serial_log())
}

/// How to reach a machine with the system's `ssh`.
///
/// # Errors
/// [`NotFound`](crate::ErrorKind::NotFound), or when its `known_hosts` cannot be written.
pub async fn ssh_access(name: &str) -> Result<SshAccess> {
    let info = inspect(name).await?;
    SshAccess::write(&open_store(None)?, &info)
}

/// Stops a machine by name; its disk is kept. One that does not run is fine.
///
/// # Errors
/// [`NotFound`](crate::ErrorKind::NotFound); [`Held`](crate::ErrorKind::Held) when another process has it for itself.
pub async fn stop(name: &str, immediate: bool) -> Result<()> {
    let (store, cluster, name) = locate(name)?;
    let Some(connection) = connection::existing(&store, &cluster).await? else {
        // Nobody holds it; what a dead holder left of its network goes now.
        return prune_in(&store).await.map(|_| ());
    };
    let how = StopRequest { immediate, grace_s: None };
    match connection.client.stop(&name, &how, &|_| {}).await {
        Ok(_) => Ok(()),
        Err(e) => Err(Error::from_client(format!("stop machine {name}"), e)),
    }
}

/// Deletes a machine by name, disk and all. One that runs is refused unless `force`, and so is one whose record is
/// damaged.
///
/// # Errors
/// [`NotFound`](crate::ErrorKind::NotFound); [`Conflict`](crate::ErrorKind::Conflict) when it runs and `force` is not
/// set; [`Held`](crate::ErrorKind::Held) when another process has it for itself.
pub async fn remove(name: &str, force: bool) -> Result<()> {
    let (store, cluster, name) = locate(name)?;
    let connection = connection::open(&store, &cluster).await?;
    let action = format!("remove machine {name}");
    match connection.client.machine(&name).await {
        Ok(info) if info.state.is_live() && !force => {
            return Err(Error::Running { name: name.to_string(), state: info.state });
        }
        Ok(_) => {}
        // A holder does not know a machine whose record cannot be read. Who insists gets rid of it all the same.
        Err(_) if force => {}
        Err(e) => {
            read_record(&store, &cluster, &name)?;
            return Err(Error::from_client(action, e));
        }
    }
    connection.client.destroy(&name).await.map_err(|e| Error::from_client(action.clone(), e))?;
    if connection.is_bound() {
        // It was started only for this.
        let closed = connection.client.close(&CloseRequest::default(), &|_| {}).await;
        closed.map_err(|e| Error::from_client(action, e))?;
    }
    Ok(())
}

/// What [`prune`] cleared away, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pruned {
    /// Host resources of dead owners that were undone.
    pub undone: Vec<String>,
    /// Records of another namespace, which only a process in there can undo.
    pub foreign: Vec<String>,
    /// What could not be undone, and why. It stays journalled.
    pub failed: Vec<String>,
}

/// Clears away what ended processes left on this host: links, rules, half-made files. What a live process owns is
/// never touched. Every start of a machine does it, too.
///
/// # Errors
/// When the fleetbox home cannot be read.
pub async fn prune() -> Result<Pruned> {
    prune_in(&open_store(None)?).await
}

pub(crate) async fn prune_in(store: &Store) -> Result<Pruned> {
    let report = undo_dead_owners(store).await.map_err(|e| Error::Prune(Box::new(e)))?;
    Ok(Pruned {
        undone: report.undone.iter().map(|(c, r)| format!("{c}: {r}")).collect(),
        foreign: report.foreign.iter().map(|(c, r)| format!("{c}: {r}")).collect(),
        failed: report.failed.iter().map(|(c, e)| format!("{c}: {e}")).collect(),
    })
}

/// Asks the holder, without waiting for its answer, to end a machine as if its owner had died.
pub(crate) fn end_unasked(connection: &Connection, name: &MachineName) {
    let ephemeral = std::fs::read(connection.store.machine_dir(&connection.cluster, name).record())
        .ok()
        .and_then(|bytes| serde_json::from_slice::<MachineRecord>(&bytes).ok())
        .is_some_and(|r| r.ephemeral);
    if let Err(e) = post_and_leave(connection.client.socket(), name, ephemeral) {
        tracing::debug!(machine = %name, error = %e, "could not ask the holder");
    }
}

/// A request written by hand on a blocking socket: `Drop` has no runtime to rely on, and must not wait.
fn post_and_leave(socket: &Path, name: &MachineName, delete: bool) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(Duration::from_millis(200)))?;
    let request = if delete {
        let path = routes::with_name(routes::MACHINE, name);
        format!("DELETE {path} HTTP/1.1\r\nhost: fleetbox\r\n\r\n")
    } else {
        let path = routes::with_name(routes::STOP, name);
        let body = r#"{"immediate":true}"#;
        format!(
            "POST {path} HTTP/1.1\r\nhost: fleetbox\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    stream.write_all(request.as_bytes())
}
