//! The connection to a cluster's holder: found, attached to, or started; one for each cluster in a process.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use fleetbox_api::{Client, ClientError, HolderInfo};
use fleetbox_holder::Ready;
use fleetbox_spec::{ClusterName, ErrorKind, LeaseKind, MachineName};
use fleetbox_store::Store;

use crate::error::{Error, Result};
use crate::holder;
use crate::vm::Inner;

/// How long two processes that start the same cluster at the same moment try before one gives up.
const RACE_LIMIT: Duration = Duration::from_secs(10);

/// A holder, and this process's hold on it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) store: Store,
    pub(crate) cluster: ClusterName,
    pub(crate) client: Client,
    /// The holder's process.
    pub(crate) holder_pid: u32,
    /// The owner pipe, while the holder is bound to this process.
    owner: Mutex<Option<OwnedFd>>,
    /// The machines that this process has handles of, so that all handles of one share what they know.
    machines: Mutex<HashMap<MachineName, Weak<Inner>>>,
}

impl Connection {
    /// Whether the holder ends with this process.
    pub(crate) fn is_bound(&self) -> bool {
        self.lock().is_some()
    }

    /// Lets the holder live on without this process.
    pub(crate) async fn detach(&self) -> Result<()> {
        let action = || format!("detach cluster {}", self.cluster);
        self.client.detach().await.map_err(|e| Error::from_client(action(), e))?;
        // Only now: the holder knows that the end of the pipe means nothing any more.
        *self.lock() = None;
        Ok(())
    }

    /// Gives up the owner pipe of a holder that has ended.
    pub(crate) fn note_end(&self) {
        *self.lock() = None;
    }

    /// Whether the holder still answers; not another one that has come after it.
    pub(crate) async fn is_alive(&self) -> bool {
        self.client.handshake().await.is_ok_and(|v| v.pid == self.holder_pid)
    }

    pub(crate) fn known(&self, machine: &MachineName) -> Option<Arc<Inner>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner).get(machine)?.upgrade()
    }

    pub(crate) fn remember_machine(&self, machine: &MachineName, inner: &Arc<Inner>) {
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        machines.retain(|_, m| m.strong_count() > 0);
        machines.insert(machine.clone(), Arc::downgrade(inner));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<OwnedFd>> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Key = (PathBuf, ClusterName);
type Registry = Mutex<HashMap<Key, Weak<Connection>>>;

fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(Mutex::default)
}

fn remembered(key: &Key) -> Option<Arc<Connection>> {
    registry().lock().unwrap_or_else(PoisonError::into_inner).get(key)?.upgrade()
}

/// The holder that serves a cluster now, if this process may use it.
pub(crate) async fn existing(store: &Store, cluster: &ClusterName) -> Result<Option<Arc<Connection>>> {
    let key = (store.root().to_owned(), cluster.clone());
    if let Some(connection) = remembered(&key) {
        match connection.client.handshake().await {
            Ok(version) if version.pid == connection.holder_pid => return Ok(Some(connection)),
            // It has ended since; what follows finds out what there is now.
            Ok(_) | Err(ClientError::NotThere { .. }) => {}
            Err(e) => return Err(Error::from_client(format!("reach cluster {cluster}"), e)),
        }
    }
    let socket =
        store.socket(cluster).map_err(Error::store(format!("find the socket of cluster {cluster}")))?;
    let client = Client::new(socket);
    match look(&client).await {
        Ok(info) => match (info.lease, info.owner_pid) {
            // Ours, but no connection of ours is left: it is on its way out.
            (LeaseKind::Bound, Some(pid)) if pid == std::process::id() => Ok(None),
            // So is one whose owner is dead.
            (LeaseKind::Bound, Some(pid))
                if fleetbox_os::process::stat(pid).map_or(true, |s| s.is_dead()) =>
            {
                Ok(None)
            }
            (LeaseKind::Bound, Some(pid)) => Err(Error::Held { cluster: cluster.to_string(), pid }),
            _ => Ok(Some(remember(key, store, client, info.pid, None))),
        },
        // Not there, or gone between two questions.
        Err(ClientError::NotThere { .. } | ClientError::Broken { .. }) => Ok(None),
        Err(e) => Err(Error::from_client(format!("reach cluster {cluster}"), e)),
    }
}

async fn look(client: &Client) -> Result<HolderInfo, ClientError> {
    client.handshake().await?;
    client.holder().await
}

fn remember(
    key: Key,
    store: &Store,
    client: Client,
    holder_pid: u32,
    owner: Option<OwnedFd>,
) -> Arc<Connection> {
    let connection = Arc::new(Connection {
        store: store.clone(),
        cluster: key.1.clone(),
        client,
        holder_pid,
        owner: Mutex::new(owner),
        machines: Mutex::default(),
    });
    let mut registry = registry().lock().unwrap_or_else(PoisonError::into_inner);
    registry.retain(|_, c| c.strong_count() > 0);
    registry.insert(key, Arc::downgrade(&connection));
    connection
}

/// The holder of a cluster: the one that serves it, or a new one bound to this process.
pub(crate) async fn open(store: &Store, cluster: &ClusterName) -> Result<Arc<Connection>> {
    // Two threads of this process that ask for the same cluster share one holder.
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _turn = ONE_AT_A_TIME.lock().await;
    let deadline = tokio::time::Instant::now() + RACE_LIMIT;
    loop {
        if let Some(connection) = existing(store, cluster).await? {
            return Ok(connection);
        }
        let log = store.holder_log(cluster);
        let start_error = |source| Error::HolderStart {
            cluster: cluster.to_string(),
            log: log.clone(),
            source: Box::new(source),
        };
        let started = holder::start(store, cluster).await.map_err(start_error)?;
        match started.ready {
            Ready::Serving { pid } => {
                let socket = store
                    .socket(cluster)
                    .map_err(Error::store(format!("find the socket of cluster {cluster}")))?;
                let client = Client::new(socket);
                client
                    .handshake()
                    .await
                    .map_err(|e| Error::from_client(format!("reach cluster {cluster}"), e))?;
                let key = (store.root().to_owned(), cluster.clone());
                return Ok(remember(key, store, client, pid, Some(started.owner)));
            }
            // Somebody else was a moment faster: their holder is about to listen.
            Ready::Failed(e) if e.kind == ErrorKind::Held && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ready::Failed(e) => return Err(Error::from_api(e)),
        }
    }
}
