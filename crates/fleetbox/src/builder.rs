//! Describing one machine, and starting it.

use std::sync::Arc;
use std::time::Duration;

use fleetbox_api::ClientError;
use fleetbox_spec::{ClusterName, ErrorKind, MachineInfo, MachineName, MachineSpec};
use fleetbox_store::Store;

use crate::connection::{self, Connection};
use crate::error::{Error, Result};
use crate::settings::{OnEvent, Settings, setters};
use crate::vm::{Vm, check_root, open_store};

/// What a machine shall be; made by [`Vm::builder`], ended by [`VmBuilder::start`].
///
/// What is not set is taken from the machine of that name when it exists, and from good defaults otherwise:
/// 2 CPUs, 1 GiB of memory, a disk of 10 GiB (or the image's own size if larger), and the image
/// `debian-12`, or `bootstrap:bookworm` where that cannot be downloaded.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it is started"]
pub struct VmBuilder {
    pub(crate) name: String,
    pub(crate) cluster: Option<String>,
    pub(crate) settings: Settings,
}

impl VmBuilder {
    pub(crate) fn new(name: impl Into<String>, settings: Settings) -> Self {
        Self { name: name.into(), cluster: None, settings }
    }

    setters!();

    /// The cluster whose network the machine joins; by default the one it is in, and for a new machine its name less a
    /// trailing `-<digits>`.
    pub fn cluster(mut self, cluster: impl Into<String>) -> Self {
        self.cluster = Some(cluster.into());
        self
    }

    /// Brings the machine up and returns at the first verified login. A machine of that name that exists is booted
    /// from its disk; one that runs is returned as it is.
    ///
    /// Where its memory would be more than all machines of this host may have together, or as many machines as the host
    /// has CPUs are booting, it waits; see `FLEETBOX_MEMORY` and `FLEETBOX_BOOTS` in docs/environment.md.
    ///
    /// Dropping the future cancels the start and undoes what it made.
    ///
    /// # Errors
    /// [`Error`] says what was attempted on which thing; see [`Error::kind`]. A guest that does not come up is told
    /// with the stage it is stuck in, and the console's last lines in [`Error::console`].
    ///
    /// ```no_run
    /// # async fn f() -> fleetbox::Result<()> {
    /// let vm = fleetbox::Vm::builder("web").cpus(2).memory_gib(2).ephemeral().start().await?;
    /// # Ok(()) }
    /// ```
    pub async fn start(self) -> Result<Vm> {
        let name = MachineName::new(&self.name)?;
        let asked = self.cluster.as_deref().map(ClusterName::new).transpose()?;
        let spec = self.settings.spec(name.clone())?;
        let store = open_store(self.settings.home())?;
        let cluster = match asked {
            Some(cluster) => cluster,
            None => cluster_of(&store, &name)?.unwrap_or_else(|| name.default_cluster()),
        };
        let (connection, info) = launch(&store, &cluster, &spec, &self.settings.listener()).await?;
        if self.settings.detached {
            connection.detach().await?;
        }
        Vm::from_parts(connection, info)
    }
}

/// The cluster that a machine is in, if it exists.
pub(crate) fn cluster_of(store: &Store, name: &MachineName) -> Result<Option<ClusterName>> {
    store.cluster_of(name).map_err(Error::store(format!("look for machine {name}")))
}

/// Starts a machine in its cluster's holder, which is found or started; bound to this process, unless it was detached
/// before.
pub(crate) async fn launch(
    store: &Store,
    cluster: &ClusterName,
    spec: &MachineSpec,
    on_event: &OnEvent,
) -> Result<(Arc<Connection>, MachineInfo)> {
    let name = &spec.name;
    let deadline = tokio::time::Instant::now() + CLOSING_LIMIT;
    loop {
        let connection = match connection::existing(store, cluster).await? {
            Some(connection) => connection,
            None => {
                check_root(&format!("machine {name}"))?;
                connection::open(store, cluster).await?
            }
        };
        match connection.client.start(spec, &**on_event).await {
            Ok(info) => return Ok((connection, info)),
            // The holder that was found was just ending; nothing has been started, so ask its successor.
            Err(e) if was_closing(&e) && tokio::time::Instant::now() < deadline => {
                drop(connection);
                tokio::time::sleep(CLOSING_PAUSE).await;
            }
            Err(e) => return Err(Error::from_start(format!("start machine {name}"), e)),
        }
    }
}

/// How long a start waits for a holder that is ending to make room.
pub(crate) const CLOSING_LIMIT: Duration = Duration::from_secs(10);
pub(crate) const CLOSING_PAUSE: Duration = Duration::from_millis(50);

pub(crate) fn was_closing(error: &ClientError) -> bool {
    match error {
        ClientError::NotThere { .. } => true,
        ClientError::Api(e) => e.kind == ErrorKind::Closing,
        _ => false,
    }
}
