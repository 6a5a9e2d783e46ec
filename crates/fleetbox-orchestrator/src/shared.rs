//! What the machines of one network share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use fleetbox_image::Images;
use fleetbox_net::{Journal, Network};
use fleetbox_spec::{ClusterName, Event, MachineName, Phase, PhaseTiming};
use fleetbox_ssh::KeyPair;
use fleetbox_store::{NetworkRecord, Store, StoreError};
use tokio::sync::{OnceCell, broadcast};

use crate::backends::{self, Chosen};
use crate::{OrchestratorError, Result};

/// Everything that is set up once for a cluster, when first needed.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) cluster: ClusterName,
    pub(crate) images: Images,
    pub(crate) journal: Arc<Journal>,
    pub(crate) events: broadcast::Sender<Event>,
    /// Whether the network was asked for by itself, and so stays while it is empty.
    explicit: AtomicBool,
    network: OnceCell<Arc<Network>>,
    /// Held while the network is being opened.
    opening: tokio::sync::Mutex<()>,
    backend: OnceCell<Chosen>,
    key: OnceCell<KeyPair>,
    /// Addresses given to machines that have no record on disk yet.
    pub(crate) addresses: Mutex<Vec<(MachineName, std::net::Ipv4Addr)>>,
}

impl Shared {
    pub(crate) fn new(store: Store, cluster: ClusterName) -> Result<Self> {
        let journal = Journal::open(&store, &cluster).map_err(|source| OrchestratorError::Network {
            action: "open the journal for",
            cluster: cluster.clone(),
            source: Box::new(source),
        })?;
        Ok(Self {
            images: Images::new(store.clone()),
            journal: Arc::new(journal),
            events: broadcast::channel(1024).0,
            explicit: AtomicBool::new(false),
            network: OnceCell::new(),
            opening: tokio::sync::Mutex::default(),
            backend: OnceCell::new(),
            key: OnceCell::new(),
            addresses: Mutex::default(),
            store,
            cluster,
        })
    }

    /// Tells whoever listens.
    pub(crate) fn emit(&self, event: Event) {
        tracing::debug!(event = %serde_json::to_string(&event).unwrap_or_default(), "event");
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }

    pub(crate) fn warn(&self, machine: &MachineName, message: impl Into<String>) {
        let message = message.into();
        tracing::warn!(%machine, message);
        self.emit(Event::Warning { machine: machine.clone(), message });
    }

    /// Runs a phase of a bring-up between its two events.
    pub(crate) async fn phase<T>(
        &self,
        machine: &MachineName,
        phase: Phase,
        detail: impl Into<String>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.emit(Event::PhaseStarted { machine: machine.clone(), phase, detail: detail.into() });
        let start = Instant::now();
        let value = work.await?;
        self.phase_done(machine, phase, start);
        Ok(value)
    }

    pub(crate) fn phase_done(&self, machine: &MachineName, phase: Phase, start: Instant) {
        let ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.emit(Event::PhaseFinished { machine: machine.clone(), timing: PhaseTiming { phase, ms } });
    }

    /// The backend, chosen once.
    pub(crate) async fn backend(&self) -> Result<&Chosen> {
        self.backend.get_or_try_init(|| backends::choose(&self.store)).await
    }

    pub(crate) fn backend_now(&self) -> Option<&Chosen> {
        self.backend.get()
    }

    /// The installation's key, made once.
    pub(crate) async fn key(&self) -> Result<&KeyPair, crate::error::StepError> {
        self.key
            .get_or_try_init(|| async {
                let path = self.store.ssh_key();
                let key = fleetbox_ssh::ensure_key_pair(&path)?;
                // Under sudo the user's own client must be able to read it.
                self.store.give_to_owner(&path)?;
                self.store.give_to_owner(&path.with_extension("pub"))?;
                Ok(key)
            })
            .await
    }

    /// The network, opened once.
    ///
    /// Opening it is not cut short when the caller is: half a network could be undone by the next process only.
    /// [`Shared::settled_network`] waits for one that is being opened.
    pub(crate) async fn network(self: &Arc<Self>, machine: Option<&MachineName>) -> Result<Arc<Network>> {
        let (shared, machine) = (Arc::clone(self), machine.cloned());
        let opening = tokio::spawn(async move {
            let _open = shared.opening.lock().await;
            shared.network.get_or_try_init(|| shared.open_network(machine.as_ref())).await.cloned()
        });
        opening.await.unwrap_or_else(|_| Err(OrchestratorError::Closing { cluster: self.cluster.clone() }))
    }

    /// The network, if there is one, once no opening of it is under way.
    pub(crate) async fn settled_network(&self) -> Option<Arc<Network>> {
        let _open = self.opening.lock().await;
        self.network.get().cloned()
    }

    pub(crate) fn network_now(&self) -> Option<&Arc<Network>> {
        self.network.get()
    }

    async fn open_network(&self, machine: Option<&MachineName>) -> Result<Arc<Network>> {
        let file = self.store.network_file(&self.cluster);
        let store_error = |action| {
            let cluster = self.cluster.clone();
            move |source| OrchestratorError::Store { action, cluster, source: Box::new(source) }
        };
        let saved: Option<NetworkRecord> = match fleetbox_store::read_json(&file) {
            Ok(record) => Some(record),
            Err(e) if e.is_not_found() => None,
            Err(e) => return Err(store_error("read network.json")(e)),
        };
        let opened = Network::open(&self.store, &self.cluster, saved.clone(), Arc::clone(&self.journal))
            .await
            .map_err(|source| OrchestratorError::Network {
                action: "set up",
                cluster: self.cluster.clone(),
                source: Box::new(source),
            })?;
        for warning in &opened.warnings {
            match machine {
                Some(machine) => self.warn(machine, warning.clone()),
                None => tracing::warn!(warning),
            }
        }
        let mut record = opened.network.record();
        record.explicit = saved.is_some_and(|s| s.explicit);
        self.explicit.store(record.explicit, Ordering::Relaxed);
        let dir = self.store.cluster_dir(&self.cluster);
        self.store.make_dir(&dir, 0o755).map_err(store_error("make the folder"))?;
        fleetbox_store::write_json(&file, &record, 0o644).map_err(store_error("write network.json"))?;
        Ok(Arc::new(opened.network))
    }

    /// Whether the network stays while it is empty.
    pub(crate) fn is_explicit(&self) -> bool {
        self.explicit.load(Ordering::Relaxed)
    }

    /// Says whether the network stays while it is empty, here and in its record, which outlives this process.
    pub(crate) fn set_explicit(&self, explicit: bool) -> Result<(), StoreError> {
        let file = self.store.network_file(&self.cluster);
        let mut record: NetworkRecord = match fleetbox_store::read_json(&file) {
            Ok(record) => record,
            Err(e) if e.is_not_found() && !explicit => return Ok(()),
            Err(e) => return Err(e),
        };
        if record.explicit != explicit {
            record.explicit = explicit;
            fleetbox_store::write_json(&file, &record, 0o644)?;
        }
        self.explicit.store(explicit, Ordering::Relaxed);
        Ok(())
    }

    /// Chooses an address that no other machine of the cluster has, and keeps it for this one.
    pub(crate) fn take_address(
        &self,
        network: &Network,
        machine: &MachineName,
        wanted: Option<std::net::Ipv4Addr>,
        on_disk: &[(MachineName, std::net::Ipv4Addr)],
    ) -> Result<std::net::Ipv4Addr, fleetbox_net::NetError> {
        let mut given = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let taken: Vec<_> =
            on_disk.iter().chain(given.iter()).filter(|(m, _)| m != machine).map(|(_, ip)| *ip).collect();
        let ip = network.address_for(machine, wanted, &taken)?;
        given.retain(|(m, _)| m != machine);
        given.push((machine.clone(), ip));
        Ok(ip)
    }

    pub(crate) fn give_back_address(&self, machine: &MachineName) {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).retain(|(m, _)| m != machine);
    }
}
