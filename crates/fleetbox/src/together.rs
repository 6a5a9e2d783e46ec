//! Starting several machines at once on one network.

use std::collections::BTreeSet;
use std::sync::Arc;

use fleetbox_api::StopRequest;
use fleetbox_spec::{ClusterName, MachineName, MachineSpec};
use fleetbox_store::Store;
use tokio::task::JoinSet;

use crate::builder::{cluster_of, launch};
use crate::connection::{self, Connection};
use crate::error::{Error, Result};
use crate::settings::{Settings, log_event, setters};
use crate::vm::{Vm, check_root, open_store};

/// What machines that are started together shall be; see [`start_n`].
#[derive(Debug, Clone, Default)]
#[must_use = "options do nothing by themselves"]
pub struct StartOptions {
    cluster: Option<String>,
    settings: Settings,
}

impl StartOptions {
    /// Every setting by default.
    pub fn new() -> Self {
        Self::default()
    }

    setters!();

    /// The cluster whose network they join; by default the one in which those are that exist, else the first one's name
    /// less a trailing `-<digits>`.
    pub fn cluster(mut self, cluster: impl Into<String>) -> Self {
        self.cluster = Some(cluster.into());
        self
    }
}

/// Starts machines `<base>-1` to `<base>-<n>` on one network, side by side; returns them in that order when all are up.
///
/// Those that exist are booted from their disks, those that run are returned as they are. When one fails, the others are
/// not left half-way: what this call created is destroyed, what existed and did not run is stopped, and what ran runs on.
/// Dropping the future cancels the starts.
///
/// # Errors
/// Of the first that failed, as [`VmBuilder::start`](crate::VmBuilder::start) tells it.
///
/// ```no_run
/// # async fn f() -> fleetbox::Result<()> {
/// let nodes = fleetbox::start_n("node", 3, fleetbox::StartOptions::new().memory_gib(2)).await?;
/// nodes[0].ssh("ping -c 1 node-3").await?;
/// # Ok(()) }
/// ```
pub async fn start_n(base: &str, n: u32, options: StartOptions) -> Result<Vec<Vm>> {
    let names: Vec<String> = (1..=n).map(|i| format!("{base}-{i}")).collect();
    start_cluster(&names, options).await
}

/// Starts machines of these names on one network, side by side, as [`start_n`] does.
///
/// # Errors
/// As [`start_n`]; [`Error::DifferentClusters`] when they exist in different clusters; [`Error::NamedTwice`].
pub async fn start_cluster(names: &[impl AsRef<str>], options: StartOptions) -> Result<Vec<Vm>> {
    let names = names.iter().map(MachineName::new).collect::<Result<Vec<_>, _>>()?;
    let specs = names.iter().map(|n| options.settings.spec(n.clone())).collect::<Result<Vec<_>>>()?;
    let mut seen = BTreeSet::new();
    if let Some(twice) = names.iter().find(|n| !seen.insert(*n)) {
        return Err(Error::NamedTwice { name: twice.to_string() });
    }
    let Some(first) = names.first() else { return Ok(Vec::new()) };
    let store = open_store(options.settings.home())?;
    let cluster = match &options.cluster {
        Some(cluster) => ClusterName::new(cluster)?,
        None => common_cluster(&store, &names)?.unwrap_or_else(|| first.default_cluster()),
    };
    let connection = match connection::existing(&store, &cluster).await? {
        Some(connection) => connection,
        None => {
            check_root(&format!("machine {first}"))?;
            connection::open(&store, &cluster).await?
        }
    };
    let start = Start { before: Before::look(&connection, &names).await?, store, cluster };
    let vms = start.all(specs, &options.settings).await?;
    if options.settings.detached {
        connection.detach().await?;
    }
    Ok(vms)
}

/// The cluster that [`start_cluster`] puts machines of these names in when none is asked for: the one in which those are
/// that exist, else the first one's name less a trailing `-<digits>`.
///
/// # Errors
/// [`Error::DifferentClusters`]; when a name is none, or the fleetbox home cannot be read.
pub fn cluster_for(names: &[impl AsRef<str>]) -> Result<String> {
    let names = names.iter().map(MachineName::new).collect::<Result<Vec<_>, _>>()?;
    let common = common_cluster(&open_store(None)?, &names)?;
    let by_name = || names.first().map(MachineName::default_cluster);
    Ok(common.or_else(by_name).map(|c| c.to_string()).unwrap_or_default())
}

/// The one cluster in which those of the machines are that exist.
fn common_cluster(store: &Store, names: &[MachineName]) -> Result<Option<ClusterName>> {
    let mut found: Option<(&MachineName, ClusterName)> = None;
    for name in names {
        let Some(cluster) = cluster_of(store, name)? else { continue };
        match &found {
            Some((one, of_one)) if *of_one != cluster => {
                return Err(Error::DifferentClusters {
                    one: one.to_string(),
                    of_one: of_one.to_string(),
                    other: name.to_string(),
                    of_other: cluster.to_string(),
                });
            }
            Some(_) => {}
            None => found = Some((name, cluster)),
        }
    }
    Ok(found.map(|(_, cluster)| cluster))
}

/// What there was before.
#[derive(Debug)]
struct Before {
    existed: Vec<MachineName>,
    live: Vec<MachineName>,
}

impl Before {
    async fn look(connection: &Connection, names: &[MachineName]) -> Result<Self> {
        let Connection { store, cluster, client, .. } = connection;
        let machines = client.machines().await;
        let machines =
            machines.map_err(|e| Error::from_client(format!("list the machines of cluster {cluster}"), e))?;
        let exists = |n: &&MachineName| store.machine_dir(cluster, n).record().exists();
        Ok(Self {
            existed: names.iter().filter(exists).cloned().collect(),
            live: machines.into_iter().filter(|m| m.state.is_live()).map(|m| m.name).collect(),
        })
    }
}

#[derive(Debug)]
struct Start {
    store: Store,
    cluster: ClusterName,
    before: Before,
}

impl Start {
    async fn all(self, specs: Vec<MachineSpec>, settings: &Settings) -> Result<Vec<Vm>> {
        let names: Vec<MachineName> = specs.iter().map(|s| s.name.clone()).collect();
        // Dropping the set, with this future, drops the starts that are under way and so cancels them.
        let mut starts = JoinSet::new();
        for (at, spec) in specs.into_iter().enumerate() {
            let (store, cluster, on_event) = (self.store.clone(), self.cluster.clone(), settings.listener());
            starts.spawn(async move {
                let started = launch(&store, &cluster, &spec, &on_event).await;
                started.and_then(|(connection, info)| Vm::from_parts(connection, info)).map(|vm| (at, vm))
            });
        }
        let mut up = Vec::new();
        let mut failure = None;
        while let Some(ended) = starts.join_next().await {
            match ended {
                Ok(Ok(started)) => up.push(started),
                Ok(Err(e)) if failure.is_none() => {
                    failure = Some(e);
                    starts.abort_all();
                }
                Ok(Err(e)) => tracing::warn!(cluster = %self.cluster, error = %e, "failed, too"),
                Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
                // Cancelled for the first failure.
                Err(_) => {}
            }
        }
        if let Some(failure) = failure {
            for (_, vm) in &up {
                // What becomes of it is decided here, not by its last handle.
                vm.note_end(false);
            }
            self.undo(names).await;
            return Err(failure);
        }
        up.sort_by_key(|(at, _)| *at);
        Ok(up.into_iter().map(|(_, vm)| vm).collect())
    }

    /// Puts back what there was. What fails is told to the log: the first failure is what the caller is to see.
    async fn undo(&self, names: Vec<MachineName>) {
        let connection = match connection::existing(&self.store, &self.cluster).await {
            Ok(Some(connection)) => connection,
            // Ended, and everything with it.
            Ok(None) => return,
            Err(e) => return tracing::warn!(cluster = %self.cluster, error = %e, "could not be undone"),
        };
        let mut ends = JoinSet::new();
        for name in names.into_iter().filter(|n| !self.before.live.contains(n)) {
            let existed = self.before.existed.contains(&name);
            ends.spawn(end(Arc::clone(&connection), name, existed));
        }
        while ends.join_next().await.is_some() {}
    }
}

async fn end(connection: Arc<Connection>, name: MachineName, existed: bool) {
    let ended = if existed {
        connection.client.stop(&name, &StopRequest::default(), &log_event).await.map(|_| ())
    } else {
        connection.client.destroy(&name).await
    };
    if let Err(e) = ended {
        tracing::warn!(machine = %name, error = %e, "could not be undone");
    }
}
