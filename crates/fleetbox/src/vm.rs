//! One machine.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use fleetbox_api::{ClientError, StopRequest};
use fleetbox_spec::{ErrorKind, MachineInfo, MachineName, MachineSpec, State};
use fleetbox_ssh::{Client as SshClient, Command, Options, Target};
use fleetbox_store::Store;

use crate::builder::VmBuilder;
use crate::connection::{self, Connection};
use crate::error::{Error, Result};
use crate::output::Output;
use crate::settings::{Settings, log_event};
use crate::ssh_access::SshAccess;

pub(crate) fn open_store(home: Option<&std::path::Path>) -> Result<Store> {
    let opened = match home {
        Some(home) => Store::open(home),
        None => Store::open_default(),
    };
    opened.map_err(Error::store("open the fleetbox home"))
}

/// Whether this process may make what a machine or a cluster needs.
pub(crate) fn check_root(what: &str) -> Result<()> {
    // The fake backend of fleetbox's own tests is told by the holder what it lacks, if anything.
    if fleetbox_os::host::is_root() || std::env::var_os("FLEETBOX_BACKEND").is_some_and(|b| b == "fake") {
        return Ok(());
    }
    Err(Error::NotRoot { what: what.to_owned(), uid: fleetbox_os::host::effective_uid() })
}

/// A machine: a handle that is cheap to clone.
///
/// When the last handle of a machine that is bound to this process is dropped without [`stop`](Vm::stop) or
/// [`destroy`](Vm::destroy), the machine is ended as by its owner's death: its VMM is killed, a named
/// machine's disk is kept, an ephemeral one is deleted; and a warning is logged.
#[derive(Debug, Clone)]
pub struct Vm {
    inner: Arc<Inner>,
}

/// What all handles of a machine in this process share.
#[derive(Debug)]
pub(crate) struct Inner {
    connection: Arc<Connection>,
    name: MachineName,
    ip: IpAddr,
    info: RwLock<MachineInfo>,
    ssh: SshClient,
    /// Stopped or destroyed through a handle of this process: nothing is left for `Drop`.
    ended: AtomicBool,
    /// Destroyed through a handle of this process.
    destroyed: AtomicBool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if *self.ended.get_mut() || !self.connection.is_bound() {
            return;
        }
        tracing::warn!(
            machine = %self.name,
            "its last handle was dropped without stop() or destroy(): ending it as if its owner had died"
        );
        crate::fleet::end_unasked(&self.connection, &self.name);
    }
}

impl Inner {
    /// Whether it is the machine that is told of, and not an earlier one of that name.
    fn is(&self, info: &MachineInfo) -> bool {
        let host_key = &self.info.read().unwrap_or_else(PoisonError::into_inner).host_key;
        Some(self.ip) == info.ip && *host_key == info.host_key && !self.destroyed.load(Ordering::Acquire)
    }
}

impl Vm {
    /// Describes a machine by name; see [`VmBuilder`].
    ///
    /// A name is 1 to 63 of `a-z`, `0-9` and `-`, and unique in one fleetbox home.
    pub fn builder(name: impl Into<String>) -> VmBuilder {
        VmBuilder::new(name, Settings::default())
    }

    /// The machine of that name that a detached holder, or this process, has running.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is none of that name or nobody holds it; [`ErrorKind::Held`] when another
    /// process holds it for itself.
    pub async fn find(name: &str) -> Result<Self> {
        Self::find_in(None, name).await
    }

    pub(crate) async fn find_in(home: Option<&std::path::Path>, name: &str) -> Result<Self> {
        let name = MachineName::new(name)?;
        let store = open_store(home)?;
        let not_found = || Error::NotFound { name: name.to_string() };
        let cluster = store.cluster_of(&name).map_err(Error::store(format!("look for machine {name}")))?;
        let cluster = cluster.ok_or_else(not_found)?;
        let connection = connection::existing(&store, &cluster).await?.ok_or_else(not_found)?;
        let info = connection
            .client
            .machine(&name)
            .await
            .map_err(|e| Error::from_client(format!("find machine {name}"), e))?;
        Self::from_parts(connection, info)
    }

    /// The handle of a machine that runs: the one this process has already, if it is that machine still.
    pub(crate) fn from_parts(connection: Arc<Connection>, info: MachineInfo) -> Result<Self> {
        if let Some(inner) = connection.known(&info.name).filter(|known| known.is(&info)) {
            let vm = Self { inner };
            vm.remember(&info);
            vm.inner.ended.store(!info.state.is_live(), Ordering::Release);
            return Ok(vm);
        }
        let ssh_error = |source| Error::Ssh { machine: info.name.to_string(), source: Box::new(source) };
        let key = fleetbox_ssh::ensure_key_pair(&connection.store.ssh_key()).map_err(ssh_error)?;
        let host_key = fleetbox_ssh::parse_public_line(&info.host_key).map_err(ssh_error)?;
        let ip = info.ip.ok_or_else(|| Error::NotFound { name: info.name.to_string() })?;
        let target = Target { addr: SocketAddr::new(ip, 22), user: "fleetbox".into(), host_key };
        let inner = Inner {
            connection,
            name: info.name.clone(),
            ip,
            info: RwLock::new(info),
            ssh: SshClient::new(target, key, Options::default()),
            ended: AtomicBool::new(false),
            destroyed: AtomicBool::new(false),
        };
        let inner = Arc::new(inner);
        inner.connection.remember_machine(&inner.name, &inner);
        Ok(Self { inner })
    }

    /// Its name, which is its hostname too.
    #[must_use]
    pub fn name(&self) -> &str {
        self.inner.name.as_str()
    }

    /// Its address on the cluster's network; this host reaches it directly. It stays the same across restarts.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.inner.ip
    }

    /// Where it is in its life, asked now.
    ///
    /// # Errors
    /// When its holder cannot be reached. A machine that was destroyed is [`ErrorKind::NotFound`].
    pub async fn state(&self) -> Result<State> {
        self.info().await.map(|i| i.state)
    }

    /// All that is known of it, asked now.
    ///
    /// # Errors
    /// As [`Vm::state`].
    pub async fn info(&self) -> Result<MachineInfo> {
        let info = self.inner.connection.client.machine(&self.inner.name).await;
        let info = info.map_err(|e| self.client_error("ask for", e))?;
        self.remember(&info);
        Ok(info)
    }

    /// All that was known of it when last asked.
    #[must_use]
    pub fn last_info(&self) -> MachineInfo {
        self.inner.info.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, info: &MachineInfo) {
        *self.inner.info.write().unwrap_or_else(PoisonError::into_inner) = info.clone();
    }

    /// Runs a command as user `fleetbox` (who has passwordless sudo) and returns what it wrote and how it ended. A
    /// text is run by the login shell; see [`Command`] for arguments, environment, stdin and a timeout.
    ///
    /// The connection is verified against the machine's own host key and kept for the next command. Dropping the
    /// future kills the command's session on the machine. A command that was sent is never sent again.
    ///
    /// # Errors
    /// [`ErrorKind::Ssh`] when it could not be carried out; a command that ran and failed is no error here.
    ///
    /// ```no_run
    /// # async fn f(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// let out = vm.exec("systemctl is-active ssh").await?;
    /// assert_eq!(out.text(), "active");
    /// # Ok(()) }
    /// ```
    pub async fn exec(&self, command: impl Into<Command>) -> Result<Output> {
        let output = self.inner.ssh.exec(command).await;
        output
            .map(Output::from)
            .map_err(|source| Error::Ssh { machine: self.name().to_owned(), source: Box::new(source) })
    }

    /// Runs a command and returns its standard output as text without the final line end.
    ///
    /// # Errors
    /// As [`Vm::exec`]; [`Error::CommandFailed`] carries the whole output when it ended with anything but 0.
    pub async fn ssh(&self, command: &str) -> Result<String> {
        let output = self.exec(command).await?;
        if output.success() {
            return Ok(output.text().into_owned());
        }
        let command = command.chars().take(200).collect();
        Err(Error::CommandFailed { machine: self.name().to_owned(), command, output: Box::new(output) })
    }

    /// Shuts it down: power button, then surer means. Its disk is kept; [`VmBuilder::start`] boots it again.
    ///
    /// # Errors
    /// When its holder cannot be reached.
    pub async fn stop(&self) -> Result<()> {
        self.stop_with(&StopRequest::default()).await
    }

    /// Kills its VMM. What the guest had not written is lost to it; the disk is kept.
    ///
    /// # Errors
    /// As [`Vm::stop`].
    pub async fn kill(&self) -> Result<()> {
        self.stop_with(&StopRequest { immediate: true, grace_s: None }).await
    }

    async fn stop_with(&self, how: &StopRequest) -> Result<()> {
        self.inner.ssh.disconnect();
        match self.inner.connection.client.stop(&self.inner.name, how, &log_event).await {
            Ok(info) => {
                self.remember(&info);
                self.inner.ended.store(true, Ordering::Release);
                Ok(())
            }
            Err(e) => Err(self.client_error("stop", e)),
        }
    }

    /// Boots it again after [`Vm::stop`] or [`Vm::kill`], as it is on disk.
    ///
    /// # Errors
    /// As [`VmBuilder::start`].
    pub async fn start(&self) -> Result<()> {
        let spec = MachineSpec::new(self.inner.name.clone());
        let info = self.inner.connection.client.start(&spec, &log_event).await;
        self.remember(&info.map_err(|e| self.client_error("start", e))?);
        self.inner.ended.store(false, Ordering::Release);
        Ok(())
    }

    /// Stops it at once and deletes it, disk and all. One that is gone already is fine.
    ///
    /// # Errors
    /// When its holder cannot be reached, or its files cannot be deleted.
    pub async fn destroy(&self) -> Result<()> {
        self.inner.ssh.disconnect();
        match self.inner.connection.client.destroy(&self.inner.name).await {
            Ok(()) => {}
            // A detached holder ends with its last machine.
            Err(ClientError::NotThere { .. }) if !self.exists_on_disk() => {}
            Err(e) => return Err(self.client_error("destroy", e)),
        }
        self.note_end(true);
        Ok(())
    }

    /// Notes that it has ended otherwise than through this handle, so that nothing is left for `Drop`.
    pub(crate) fn note_end(&self, destroyed: bool) {
        self.inner.ended.store(true, Ordering::Release);
        self.inner.destroyed.fetch_or(destroyed, Ordering::AcqRel);
    }

    /// Whether it was destroyed through a handle of this process.
    pub(crate) fn is_destroyed(&self) -> bool {
        self.inner.destroyed.load(Ordering::Acquire)
    }

    fn exists_on_disk(&self) -> bool {
        let Connection { store, cluster, .. } = &*self.inner.connection;
        store.machine_dir(cluster, &self.inner.name).path().exists()
    }

    /// Halts its virtual CPUs. Its clock stands still meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] unless it runs.
    pub async fn pause(&self) -> Result<()> {
        let info = self.inner.connection.client.pause(&self.inner.name).await;
        self.remember(&info.map_err(|e| self.client_error("pause", e))?);
        Ok(())
    }

    /// Lets its virtual CPUs run again.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] unless it is paused or runs.
    pub async fn resume(&self) -> Result<()> {
        let info = self.inner.connection.client.resume(&self.inner.name).await;
        self.remember(&info.map_err(|e| self.client_error("resume", e))?);
        Ok(())
    }

    /// Cuts its power and boots it again, as a reset button does. Returns when it is up.
    ///
    /// # Errors
    /// As [`VmBuilder::start`]; [`ErrorKind::Conflict`] unless it runs or is paused.
    pub async fn reset(&self) -> Result<()> {
        self.inner.ssh.disconnect();
        let info = self.inner.connection.client.reset(&self.inner.name, &log_event).await;
        self.remember(&info.map_err(|e| self.client_error("reset", e))?);
        Ok(())
    }

    /// Lets it outlive this process, until it is stopped or destroyed by name.
    ///
    /// # Errors
    /// When its holder cannot be reached.
    pub async fn detach(&self) -> Result<()> {
        self.inner.connection.detach().await
    }

    /// The file its serial console is appended to.
    #[must_use]
    pub fn console_log(&self) -> PathBuf {
        let Connection { store, cluster, .. } = &*self.inner.connection;
        store.machine_dir(cluster, &self.inner.name).serial_log()
    }

    /// How to reach it with the system's `ssh`.
    ///
    /// # Errors
    /// When the `known_hosts` file cannot be written.
    pub fn ssh_access(&self) -> Result<SshAccess> {
        SshAccess::write(&self.inner.connection.store, &self.last_info())
    }

    fn client_error(&self, verb: &str, error: ClientError) -> Error {
        let error = Error::from_client(format!("{verb} machine {}", self.inner.name), error);
        match error.kind() {
            ErrorKind::NotFound => Error::NotFound { name: self.inner.name.to_string() },
            _ => error,
        }
    }
}
