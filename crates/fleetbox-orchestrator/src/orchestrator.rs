//! The machines of one network, as whoever holds them sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fleetbox_net::Resource;
use fleetbox_spec::{Capabilities, ClusterName, Event, MachineInfo, MachineName, MachineSpec};
use fleetbox_store::{Lock, LockKind, NetworkRecord, Store, StoreError, remove_dir_if_there};
use tokio::sync::broadcast;

use crate::machine::{Handle, Request};
use crate::shared::Shared;
use crate::{OrchestratorError, Result, SharedResult};

/// What an orchestrator is for.
#[derive(Debug, Clone)]
pub struct OrchestratorConfig {
    /// Where everything is kept.
    pub store: Store,
    /// The cluster whose network and machines it owns.
    pub cluster: ClusterName,
}

/// How a cluster is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseHow {
    /// Only when nothing runs.
    IfIdle,
    /// Running members are shut down first.
    StopMembers,
    /// Members are deleted, disks and all.
    Destroy,
    /// The owner has died: VMMs are killed, ephemeral machines deleted, named ones kept.
    OwnerDied,
}

/// Owns one network and its machines. Keep exactly one for a cluster, under its lock.
#[derive(Debug)]
pub struct Orchestrator {
    shared: Arc<Shared>,
    machines: Mutex<Machines>,
}

#[derive(Debug, Default)]
struct Machines {
    handles: BTreeMap<MachineName, Handle>,
    /// Starts that were called for and are not answered yet, by machine.
    starting: BTreeMap<MachineName, usize>,
    closing: bool,
}

impl Machines {
    /// The members that have, or are about to have, a VMM.
    fn live(&self) -> Vec<MachineName> {
        let live = |name: &MachineName| {
            self.starting.contains_key(name) || self.handles.get(name).is_some_and(Handle::is_live)
        };
        // A handle is made in the same moment as its first start is noted.
        self.handles.keys().filter(|n| live(n)).cloned().collect()
    }
}

/// A start under way; counts until dropped.
struct Starting<'a> {
    orchestrator: &'a Orchestrator,
    name: MachineName,
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        let mut machines = self.orchestrator.lock();
        if let Some(count) = machines.starting.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                machines.starting.remove(&self.name);
            }
        }
    }
}

impl Orchestrator {
    /// Takes over a cluster. Prepares nothing but the journal; must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the journal or the store cannot be read.
    pub fn open(config: OrchestratorConfig) -> Result<Self> {
        let OrchestratorConfig { store, cluster } = config;
        let on_disk = store.machines(&cluster).map_err(|source| OrchestratorError::Store {
            action: "list the machines",
            cluster: cluster.clone(),
            source: Box::new(source),
        })?;
        let shared = Arc::new(Shared::new(store, cluster)?);
        let handles = on_disk
            .into_iter()
            .map(|name| (name.clone(), Handle::spawn(Arc::clone(&shared), name)))
            .collect();
        let machines = Machines { handles, ..Machines::default() };
        Ok(Self { shared, machines: Mutex::new(machines) })
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.shared.cluster
    }

    /// Every event from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// What the backend can do; chooses it, if that was not needed yet.
    ///
    /// # Errors
    /// When no backend works on this host.
    pub async fn choose_backend(&self) -> Result<Capabilities> {
        Ok(self.shared.backend().await?.backend.capabilities().clone())
    }

    /// What the backend can do, once one is chosen.
    #[must_use]
    pub fn capabilities(&self) -> Option<Capabilities> {
        self.shared.backend_now().map(|c| c.backend.capabilities().clone())
    }

    /// The network's record, once it is up.
    #[must_use]
    pub fn network(&self) -> Option<NetworkRecord> {
        self.shared.network_now().map(|n| n.record())
    }

    /// What has become of the network's parts behind our back, in words; empty when all is well.
    pub async fn damage(&self) -> Vec<String> {
        let Some(network) = self.shared.network_now() else { return Vec::new() };
        match network.health().await {
            Ok(damage) => damage.iter().map(ToString::to_string).collect(),
            Err(e) => vec![format!("the network cannot be looked at: {e}")],
        }
    }

    /// Makes the network now, without a machine, and keeps it while it is empty, until it is closed.
    ///
    /// # Errors
    /// [`OrchestratorError::Closing`], [`OrchestratorError::Network`].
    pub async fn open_network(&self) -> Result<()> {
        let closing = || OrchestratorError::Closing { cluster: self.shared.cluster.clone() };
        if self.lock().closing {
            return Err(closing());
        }
        self.shared.network(None).await?;
        if self.lock().closing {
            return Err(closing());
        }
        self.shared.set_explicit(true).map_err(self.store_error("write network.json"))
    }

    /// All machines, running or not.
    #[must_use]
    pub fn list(&self) -> Vec<MachineInfo> {
        self.lock().handles.values().filter_map(Handle::info).collect()
    }

    /// One machine.
    ///
    /// # Errors
    /// [`OrchestratorError::UnknownMachine`].
    pub fn get(&self, name: &MachineName) -> Result<MachineInfo> {
        self.handle(name)?.info().ok_or_else(|| self.unknown(name))
    }

    /// Brings a machine up, or answers with the one that runs. Dropping the future cancels the start, unless
    /// another caller waits for the same machine.
    ///
    /// # Errors
    /// What [`OrchestratorError`] tells; shared, as several callers may wait for one start.
    pub async fn start(&self, spec: MachineSpec) -> SharedResult<MachineInfo> {
        spec.validate().map_err(|e| Arc::new(e.into()))?;
        let name = spec.name.clone();
        let (handle, _starting) = self.handle_for_start(&name).await.map_err(Arc::new)?;
        handle.ask(&name, |answer| Request::Start { spec: Box::new(spec), answer }).await
    }

    async fn handle_for_start(&self, name: &MachineName) -> Result<(Handle, Starting<'_>)> {
        loop {
            if let Some(found) = self.try_handle_for_start(name)? {
                return Ok(found);
            }
            self.shared.backend().await?;
        }
    }

    /// `None` when the backend must be known first. Waits for nothing: of two that start at once, one is the first.
    fn try_handle_for_start(&self, name: &MachineName) -> Result<Option<(Handle, Starting<'_>)>> {
        let mut machines = self.lock();
        let cluster = || self.shared.cluster.clone();
        if machines.closing {
            return Err(OrchestratorError::Closing { cluster: cluster() });
        }
        if machines.live().iter().any(|n| n != name) {
            match self.capabilities() {
                None => return Ok(None),
                Some(c) if !c.clustering => {
                    return Err(OrchestratorError::ClustersUnsupported {
                        backend: c.backend,
                        cluster: cluster(),
                    });
                }
                Some(_) => {}
            }
        }
        *machines.starting.entry(name.clone()).or_default() += 1;
        let starting = Starting { orchestrator: self, name: name.clone() };
        // The task of a destroyed machine has ended; a new machine of that name gets a new one.
        if let Some(handle) = machines.handles.get(name).filter(|h| h.is_open()) {
            return Ok(Some((handle.clone(), starting)));
        }
        let handle = Handle::spawn(Arc::clone(&self.shared), name.clone());
        machines.handles.insert(name.clone(), handle.clone());
        Ok(Some((handle, starting)))
    }

    /// Stops a machine; its disk is kept. `grace` is the guest's time to shut down by itself.
    ///
    /// # Errors
    /// [`OrchestratorError::UnknownMachine`].
    pub async fn stop(
        &self,
        name: &MachineName,
        immediate: bool,
        grace: Option<Duration>,
    ) -> SharedResult<MachineInfo> {
        let handle = self.handle(name).map_err(Arc::new)?;
        handle.ask(name, |answer| Request::Stop { immediate, grace, answer }).await
    }

    /// Stops a machine at once and deletes it. One that is not there is fine.
    ///
    /// # Errors
    /// When its files cannot be deleted.
    pub async fn destroy(&self, name: &MachineName) -> SharedResult<()> {
        let Ok(handle) = self.handle(name) else { return Ok(()) };
        let result = handle.ask(name, |answer| Request::Destroy { answer }).await;
        let mut machines = self.lock();
        match result {
            // Its record is gone, which is what was asked for.
            Err(e)
                if matches!(
                    *e,
                    OrchestratorError::UnknownMachine { .. } | OrchestratorError::TaskGone { .. }
                ) =>
            {
                if machines.handles.get(name).is_some_and(|h| !h.is_open() || h.info().is_none()) {
                    machines.handles.remove(name);
                }
                Ok(())
            }
            Err(e) => Err(e),
            Ok(info) => Err(Arc::new(OrchestratorError::WrongState {
                name: name.clone(),
                state: info.state,
                request: "deleted whole: some of its files are left",
            })),
        }
    }

    /// Halts a machine's virtual CPUs.
    ///
    /// # Errors
    /// [`OrchestratorError::WrongState`] unless it runs.
    pub async fn pause(&self, name: &MachineName) -> SharedResult<MachineInfo> {
        self.handle(name).map_err(Arc::new)?.ask(name, |answer| Request::Pause { answer }).await
    }

    /// Lets a machine's virtual CPUs run again.
    ///
    /// # Errors
    /// [`OrchestratorError::WrongState`] unless it is paused or runs.
    pub async fn resume(&self, name: &MachineName) -> SharedResult<MachineInfo> {
        self.handle(name).map_err(Arc::new)?.ask(name, |answer| Request::Resume { answer }).await
    }

    /// Cuts a machine's power and boots it again.
    ///
    /// # Errors
    /// [`OrchestratorError::WrongState`] unless it runs or is paused.
    pub async fn reset(&self, name: &MachineName) -> SharedResult<MachineInfo> {
        self.handle(name).map_err(Arc::new)?.ask(name, |answer| Request::Reset { answer }).await
    }

    /// The members that have, or are about to have, a VMM.
    #[must_use]
    pub fn running(&self) -> Vec<MachineName> {
        self.lock().live()
    }

    /// Ends the members as told, takes the network down and finishes the journal. Idempotent.
    ///
    /// # Errors
    /// [`OrchestratorError::MembersRunning`] names them; nothing is done then. [`OrchestratorError::Network`]
    /// when something of the network could not be undone; its journal record stays for the next process.
    pub async fn close(&self, how: CloseHow) -> Result<()> {
        let handles: Vec<(MachineName, Handle, bool)> = {
            let mut machines = self.lock();
            let running = machines.live();
            if how == CloseHow::IfIdle && !running.is_empty() {
                let cluster = self.shared.cluster.clone();
                return Err(OrchestratorError::MembersRunning { cluster, members: running });
            }
            machines.closing = true;
            let live = |name: &MachineName| running.contains(name);
            machines.handles.iter().map(|(n, h)| (n.clone(), h.clone(), live(n))).collect()
        };
        // All at once: three guests that shut down side by side take as long as one.
        let mut ends = tokio::task::JoinSet::new();
        for (name, handle, live) in handles {
            ends.spawn(async move { end_member(how, name, handle, live).await });
        }
        while ends.join_next().await.is_some() {}
        self.close_network().await
    }

    async fn close_network(&self) -> Result<()> {
        let network_error = |action| {
            let cluster = self.shared.cluster.clone();
            move |source| OrchestratorError::Network { action, cluster, source: Box::new(source) }
        };
        if let Some(network) = self.shared.settled_network().await {
            network.close().await.map_err(network_error("take down"))?;
        }
        // It was asked for until now.
        self.shared.set_explicit(false).map_err(self.store_error("write network.json"))?;
        self.forget_empty()
    }

    fn store_error(&self, action: &'static str) -> impl FnOnce(StoreError) -> OrchestratorError {
        let cluster = self.shared.cluster.clone();
        move |source| OrchestratorError::Store { action, cluster, source: Box::new(source) }
    }

    /// Journals a file that goes with this process. Call it before the file is made.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn record_path(&self, path: &Path) -> Result<()> {
        let recorded = self.shared.journal.record(Resource::Path { path: path.to_owned() });
        recorded.map_err(|source| self.journal_error("journal a file of", source))
    }

    /// Strikes a file off the journal that is gone.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn strike_path(&self, path: &Path) -> Result<()> {
        let struck = self.shared.journal.strike(&Resource::Path { path: path.to_owned() });
        struck.map_err(|source| self.journal_error("strike a file off the journal of", source))
    }

    /// Removes the journal once nothing is left in it. The last thing a holder does.
    ///
    /// # Errors
    /// When something is left; the record stays for the next process.
    pub fn finish(&self) -> Result<()> {
        self.shared.journal.finish().map_err(|source| self.journal_error("finish the journal of", source))
    }

    fn journal_error(&self, action: &'static str, source: fleetbox_net::NetError) -> OrchestratorError {
        OrchestratorError::Network { action, cluster: self.shared.cluster.clone(), source: Box::new(source) }
    }

    /// An implicit network goes with its last machine, an explicit one with its close.
    fn forget_empty(&self) -> Result<()> {
        let (store, cluster) = (&self.shared.store, &self.shared.cluster);
        if store.machines(cluster).map_err(self.store_error("list the machines"))?.is_empty() {
            let removed = remove_dir_if_there(&store.cluster_dir(cluster));
            removed.map_err(self.store_error("remove the folder"))?;
        }
        Ok(())
    }

    /// Whether nothing is left that a detached holder should stay for: no VMM, and no network that was asked for.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.shared.is_explicit() && self.running().is_empty()
    }

    fn handle(&self, name: &MachineName) -> Result<Handle> {
        self.lock().handles.get(name).cloned().ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &MachineName) -> OrchestratorError {
        OrchestratorError::UnknownMachine { cluster: self.shared.cluster.clone(), name: name.clone() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Machines> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn end_member(how: CloseHow, name: MachineName, handle: Handle, live: bool) {
    let ephemeral = handle.info().is_some_and(|i| i.ephemeral);
    // An ephemeral machine does not outlive its holder, running or not.
    let destroy = how == CloseHow::Destroy || ephemeral;
    if !destroy && !live {
        // Stopped, or failed: why it failed is kept for whoever looks next.
        return;
    }
    let request = |answer| match (destroy, how) {
        (true, _) => Request::Destroy { answer },
        (false, how) => Request::Stop { immediate: how == CloseHow::OwnerDied, grace: None, answer },
    };
    if let Err(e) = handle.ask(&name, request).await {
        tracing::debug!(machine = %name, error = %e, "ended");
    }
}

/// The network of a dead holder is gone; without a machine there is nobody to have it back.
fn forget_if_empty(store: &Store, cluster: &ClusterName) -> Result<(), StoreError> {
    let _lock = match Lock::try_take(store, LockKind::Cluster, cluster.as_str()) {
        Ok(lock) => lock,
        // Its next holder is at work in it.
        Err(StoreError::Locked { .. }) => return Ok(()),
        Err(e) => return Err(e),
    };
    if store.machines(cluster)?.is_empty() {
        remove_dir_if_there(&store.cluster_dir(cluster))
    } else {
        Ok(())
    }
}

/// Finishes what dead owners left: host resources in their journals, and half-built images. A live owner's things
/// are never touched. Any fleetbox process may call it, at any time.
///
/// # Errors
/// When the store cannot be read. What could not be undone is told in the report and stays journalled.
pub async fn undo_dead_owners(store: &Store) -> Result<fleetbox_net::ReconcileReport> {
    let report =
        fleetbox_net::reconcile(store).await.map_err(|e| OrchestratorError::Reconcile(Box::new(e)))?;
    for (cluster, resource) in &report.undone {
        tracing::info!(%cluster, ?resource, "undone for a dead owner");
    }
    for (cluster, error) in &report.failed {
        tracing::warn!(%cluster, %error, "could not be undone");
    }
    let clusters: BTreeSet<&ClusterName> = report.undone.iter().map(|(cluster, _)| cluster).collect();
    for cluster in clusters {
        if let Err(error) = forget_if_empty(store, cluster) {
            tracing::warn!(%cluster, %error, "its empty folder could not be removed");
        }
    }
    let swept = fleetbox_image::Images::new(store.clone())
        .sweep()
        .map_err(|e| OrchestratorError::Sweep(Box::new(e)))?;
    for path in swept {
        tracing::info!(path = %path.display(), "half-built image removed");
    }
    Ok(report)
}
