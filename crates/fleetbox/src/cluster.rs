//! Machines that share a network.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fleetbox_api::{ClientError, CloseRequest};
use fleetbox_spec::{Capabilities, ClusterName, MachineInfo, MachineName};
use fleetbox_store::Store;

use crate::builder::{CLOSING_LIMIT, CLOSING_PAUSE, VmBuilder, was_closing};
use crate::connection::{self, Connection};
use crate::error::{Error, Result};
use crate::settings::{OnEvent, Settings, log_event, setters};
use crate::vm::{Vm, check_root, open_store};

/// What a cluster shall be; made by [`Cluster::builder`], ended by [`ClusterBuilder::create`].
///
/// Its settings are those of each member, unless the member has its own ([`Cluster::add_with`]); but
/// [`home`](Self::home) and [`detached`](Self::detached) are the whole cluster's.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until create() is called"]
pub struct ClusterBuilder {
    name: String,
    settings: Settings,
}

impl ClusterBuilder {
    setters!();

    /// Makes the network, and boots nothing. The network stays while it is empty, until [`Cluster::close`].
    ///
    /// A cluster of that name that runs detached, or in this process, is returned with the members that run. One that
    /// was stopped gets the same subnet again, and its machines the same addresses, unless somebody else has taken it.
    ///
    /// # Errors
    /// [`Held`](crate::ErrorKind::Held) when another process has it for itself; [`NotRoot`](crate::ErrorKind::NotRoot);
    /// [`Network`](crate::ErrorKind::Network); [`Vmm`](crate::ErrorKind::Vmm) when machines cannot be run here.
    ///
    /// ```no_run
    /// # async fn f() -> fleetbox::Result<()> {
    /// let cluster = fleetbox::Cluster::builder("raft").memory_gib(2).create().await?;
    /// let (one, two) = tokio::try_join!(cluster.add("node-1"), cluster.add("node-2"))?;
    /// one.ssh("ping -c 1 node-2").await?;
    /// # drop(two);
    /// cluster.close_with(fleetbox::Members::Destroy).await?;
    /// # Ok(()) }
    /// ```
    pub async fn create(self) -> Result<Cluster> {
        let name = ClusterName::new(&self.name)?;
        // What can be said against a member's settings is said before anything is made.
        self.settings.spec(MachineName::new(&self.name)?)?;
        let store = open_store(self.settings.home())?;
        let on_event = self.settings.listener();
        let connection = network(&store, &name, &on_event).await?;
        let failed = |e| Error::from_client(format!("set up cluster {name}"), e);
        let capabilities = connection.client.capabilities().await.map_err(failed)?;
        let mut running = connection.client.machines().await.map_err(failed)?;
        if self.settings.detached {
            connection.detach().await?;
        }
        running.retain(|m| m.state.is_live());
        running.sort_by(|a, b| (&a.created_at, &a.name).cmp(&(&b.created_at, &b.name)));
        let inner = Inner {
            name,
            connection,
            settings: self.settings,
            capabilities,
            members: Mutex::default(),
            added: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        };
        let cluster = Cluster { inner: Arc::new(inner) };
        for info in running {
            cluster.keep(cluster.next(), info)?;
        }
        Ok(cluster)
    }
}

/// The cluster's holder, with its network made.
async fn network(store: &Store, name: &ClusterName, on_event: &OnEvent) -> Result<Arc<Connection>> {
    let deadline = tokio::time::Instant::now() + CLOSING_LIMIT;
    loop {
        let connection = match connection::existing(store, name).await? {
            Some(connection) => connection,
            None => {
                check_root(&format!("cluster {name}"))?;
                connection::open(store, name).await?
            }
        };
        match connection.client.open_network(&**on_event).await {
            Ok(()) => return Ok(connection),
            // The holder that was found was just ending.
            Err(e) if was_closing(&e) && tokio::time::Instant::now() < deadline => {
                drop(connection);
                tokio::time::sleep(CLOSING_PAUSE).await;
            }
            Err(e) => return Err(Error::from_client(format!("make the network of cluster {name}"), e)),
        }
    }
}

/// What becomes of members that still run when their cluster is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Members {
    /// They are shut down; their disks are kept.
    Stop,
    /// All members, running or not, are deleted, disks and all.
    Destroy,
}

impl Members {
    fn request(how: Option<Self>) -> CloseRequest {
        CloseRequest { stop_members: how == Some(Self::Stop), destroy: how == Some(Self::Destroy) }
    }
}

/// A network and the machines on it, which reach each other and this host by address and by name: a handle that is cheap
/// to clone.
///
/// When the last handle of a cluster that is bound to this process is dropped without [`close`](Cluster::close), and no
/// handle of a member is left either, it ends as by its owner's death: VMMs are killed, named machines keep their disks,
/// the network goes; and a warning is logged.
#[derive(Debug, Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: ClusterName,
    connection: Arc<Connection>,
    settings: Settings,
    capabilities: Capabilities,
    /// In the order in which they were added, which is what the number tells.
    members: Mutex<Vec<(u64, Vm)>>,
    added: AtomicU64,
    closed: AtomicBool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !*self.closed.get_mut() && self.connection.is_bound() {
            tracing::warn!(
                cluster = %self.name,
                "its last handle was dropped without close(): it ends with the last handle of its machines, as if its owner had died"
            );
        }
    }
}

impl Cluster {
    /// Describes a cluster by name; see [`ClusterBuilder`].
    pub fn builder(name: impl Into<String>) -> ClusterBuilder {
        ClusterBuilder { name: name.into(), settings: Settings::default() }
    }

    /// Its name: members are `<machine>.<name>.test` to each other, too.
    #[must_use]
    pub fn name(&self) -> &str {
        self.inner.name.as_str()
    }

    /// Whether more than one machine can be on its network. Where not, a second member is
    /// [`Error::ClustersUnsupported`], before anything is prepared for it.
    #[must_use]
    pub fn supports_clustering(&self) -> bool {
        self.inner.capabilities.clustering
    }

    /// The members that were added through this handle or ran when the cluster was found, in that order, as they are
    /// known now. Those that were destroyed are left out, those that were stopped are not.
    #[must_use]
    pub fn vms(&self) -> Vec<Vm> {
        self.members().iter().map(|(_, vm)| vm.clone()).filter(|vm| !vm.is_destroyed()).collect()
    }

    /// Boots a further member with the cluster's settings. May be called while other members start.
    ///
    /// A machine of that name that exists in the cluster is booted from its disk; one that runs is returned as it is,
    /// so that two calls for one name have the same machine.
    ///
    /// # Errors
    /// As [`VmBuilder::start`]; [`Conflict`](crate::ErrorKind::Conflict) names the other cluster that has a machine of
    /// that name; [`Closing`](crate::ErrorKind::Closing) when this one is closed or being closed.
    pub async fn add(&self, name: impl Into<String>) -> Result<Vm> {
        self.add_with(name, |member| member).await
    }

    /// As [`Cluster::add`], with settings of its own: they are laid over the cluster's. Where it is (cluster, home) and
    /// whether it is detached are the cluster's in any case.
    ///
    /// # Errors
    /// As [`Cluster::add`].
    ///
    /// ```no_run
    /// # async fn f(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
    /// let big = cluster.add_with("node-1", |member| member.memory_gib(8)).await?;
    /// # Ok(()) }
    /// ```
    pub async fn add_with(
        &self,
        name: impl Into<String>,
        settings: impl FnOnce(VmBuilder) -> VmBuilder,
    ) -> Result<Vm> {
        let place = self.next();
        let VmBuilder { name, settings, .. } = settings(VmBuilder::new(name, self.inner.settings.clone()));
        let name = MachineName::new(name)?;
        let spec = settings.spec(name.clone())?;
        let Inner { connection, closed, .. } = &*self.inner;
        let is_closed = || self.is_closed(format!("starting machine {name}"));
        if closed.load(Ordering::Acquire) || !connection.is_alive().await {
            return Err(is_closed());
        }
        match connection.client.start(&spec, &*settings.listener()).await {
            Ok(info) => self.keep(place, info),
            Err(ClientError::NotThere { .. }) => Err(is_closed()),
            Err(e) => Err(Error::from_start(format!("start machine {name}"), e)),
        }
    }

    fn next(&self) -> u64 {
        self.inner.added.fetch_add(1, Ordering::Relaxed)
    }

    /// Puts a member in its place, unless it is there already.
    fn keep(&self, place: u64, info: MachineInfo) -> Result<Vm> {
        let name = info.name.clone();
        let vm = Vm::from_parts(Arc::clone(&self.inner.connection), info)?;
        let mut members = self.members();
        // Of a machine that was destroyed and made again, the new one counts.
        members.retain(|(_, m)| !m.is_destroyed());
        if !members.iter().any(|(_, m)| m.name() == name.as_str()) {
            let at = members.partition_point(|(n, _)| *n < place);
            members.insert(at, (place, vm.clone()));
        }
        Ok(vm)
    }

    /// What has become of its network behind its back, in sentences; empty when all is well. Somebody may have deleted
    /// the bridge, a tap or the firewall rules. Such a cluster can be closed all the same.
    ///
    /// # Errors
    /// When its holder cannot be reached.
    pub async fn damage(&self) -> Result<Vec<String>> {
        let info = self.inner.connection.client.holder().await;
        info.map(|i| i.damage).map_err(|e| Error::from_client(format!("ask for cluster {}", self.name()), e))
    }

    /// Lets it, and its members, outlive this process, until it is closed.
    ///
    /// # Errors
    /// When its holder cannot be reached.
    pub async fn detach(&self) -> Result<()> {
        self.inner.connection.detach().await
    }

    /// Releases the network. Closing a cluster that is closed is fine.
    ///
    /// # Errors
    /// [`Conflict`](crate::ErrorKind::Conflict) names the members that still run; nothing is done then.
    pub async fn close(&self) -> Result<()> {
        self.close_as(None).await
    }

    /// Ends the members as told, then releases the network.
    ///
    /// # Errors
    /// When something of the network could not be undone.
    pub async fn close_with(&self, members: Members) -> Result<()> {
        self.close_as(Some(members)).await
    }

    async fn close_as(&self, how: Option<Members>) -> Result<()> {
        let Inner { connection, closed, .. } = &*self.inner;
        if closed.load(Ordering::Acquire) {
            return Ok(());
        }
        close(connection, how).await?;
        closed.store(true, Ordering::Release);
        for (_, vm) in self.members().iter() {
            vm.note_end(how == Some(Members::Destroy));
        }
        Ok(())
    }

    fn is_closed(&self, attempted: String) -> Error {
        Error::ClusterClosed { cluster: self.inner.name.to_string(), attempted }
    }

    fn members(&self) -> MutexGuard<'_, Vec<(u64, Vm)>> {
        self.inner.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes a cluster through its holder, and waits until that is gone.
async fn close(connection: &Connection, how: Option<Members>) -> Result<()> {
    let Connection { store, cluster, client, .. } = connection;
    // Another holder that has come since is not the one to be closed.
    if connection.is_alive().await {
        match client.close(&Members::request(how), &log_event).await {
            Ok(()) | Err(ClientError::NotThere { .. }) => {}
            Err(e) => return Err(Error::from_client(format!("close cluster {cluster}"), e)),
        }
        crate::settle::wait_for_end(store, cluster).await;
    } else {
        // It was killed, or closed by somebody else. What it left goes now.
        crate::fleet::prune_in(store).await?;
    }
    connection.note_end();
    Ok(())
}

/// Whether there is a cluster of that name in this fleetbox home: a network, or machines that share one.
///
/// # Errors
/// When the fleetbox home cannot be opened. A name that is none is no error: there is no such cluster.
pub fn cluster_exists(name: &str) -> Result<bool> {
    let Ok(cluster) = ClusterName::new(name) else { return Ok(false) };
    Ok(open_store(None)?.cluster_dir(&cluster).is_dir())
}

/// Closes a cluster by name, also one that no process holds: ends its members as told, releases its network, and
/// forgets the network if no machine is left.
///
/// # Errors
/// [`NotFound`](crate::ErrorKind::NotFound); [`Conflict`](crate::ErrorKind::Conflict) with `None` while members run,
/// naming them; [`Held`](crate::ErrorKind::Held) when another process has it for itself.
///
/// ```no_run
/// # async fn f() -> fleetbox::Result<()> {
/// fleetbox::close_cluster("raft", Some(fleetbox::Members::Stop)).await?;
/// # Ok(()) }
/// ```
pub async fn close_cluster(name: &str, members: Option<Members>) -> Result<()> {
    let cluster = ClusterName::new(name)?;
    let store = open_store(None)?;
    let connection = match connection::existing(&store, &cluster).await? {
        Some(connection) => connection,
        None if !store.cluster_dir(&cluster).is_dir() => {
            return Err(Error::NoCluster { name: name.to_owned() });
        }
        None => {
            check_root(&format!("cluster {cluster}"))?;
            connection::open(&store, &cluster).await?
        }
    };
    close(&connection, members).await
}
