//! One machine.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use fleetbox_api::{ClientError, StopRequest};
use fleetbox_spec::{ClusterName, ErrorKind, Event, ImageRef, MachineInfo, MachineName, MachineSpec, State};
use fleetbox_ssh::{Client as SshClient, Command, Options, Target};
use fleetbox_store::Store;

use crate::connection::{self, Connection};
use crate::error::{Error, Result};
use crate::output::Output;

type OnEvent = Arc<dyn Fn(Event) + Send + Sync>;

/// What a machine shall be; made by [`Vm::builder`], ended by [`VmBuilder::start`].
///
/// What is not set is taken from the machine of that name when it exists, and from good defaults otherwise:
/// 2 CPUs, 1 GiB of memory, a disk of 10 GiB (or the image's own size if larger), `bootstrap:bookworm`.
#[derive(Clone)]
#[must_use = "a builder does nothing until it is started"]
pub struct VmBuilder {
    name: String,
    cluster: Option<String>,
    image: Option<String>,
    cpus: Option<u32>,
    memory_mib: Option<u64>,
    disk_gib: Option<u64>,
    ephemeral: bool,
    wait_cloud_init: bool,
    boot_timeout: Option<Duration>,
    detached: bool,
    home: Option<PathBuf>,
    on_event: Option<OnEvent>,
}

impl std::fmt::Debug for VmBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmBuilder")
            .field("name", &self.name)
            .field("image", &self.image)
            .field("cpus", &self.cpus)
            .field("memory_mib", &self.memory_mib)
            .field("disk_gib", &self.disk_gib)
            .finish_non_exhaustive()
    }
}

impl VmBuilder {
    fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            cluster: None,
            image: None,
            cpus: None,
            memory_mib: None,
            disk_gib: None,
            ephemeral: false,
            wait_cloud_init: false,
            boot_timeout: None,
            detached: false,
            home: None,
            on_event: None,
        }
    }

    /// The image to make a new machine from: `bootstrap:<suite>`, or the path of a raw or qcow2 file.
    pub fn image(mut self, image: impl Into<String>) -> Self {
        self.image = Some(image.into());
        self
    }

    /// Virtual CPUs. On a machine that exists it applies at the next boot.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = Some(cpus);
        self
    }

    /// Memory in GiB. On a machine that exists it applies at the next boot.
    pub fn memory_gib(self, gib: u64) -> Self {
        self.memory_mib(gib.saturating_mul(1024))
    }

    /// Memory in MiB. On a machine that exists it applies at the next boot.
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.memory_mib = Some(mib);
        self
    }

    /// Size of the disk in GiB. A disk grows at the next boot and never shrinks.
    pub fn disk_gib(mut self, gib: u64) -> Self {
        self.disk_gib = Some(gib);
        self
    }

    /// The cluster whose network the machine joins; by default its name less a trailing `-<digits>`.
    pub fn cluster(mut self, cluster: impl Into<String>) -> Self {
        self.cluster = Some(cluster.into());
        self
    }

    /// Delete the machine, disk and all, when its owner is gone; otherwise its disk is kept.
    pub fn ephemeral(mut self) -> Self {
        self.ephemeral = true;
        self
    }

    /// Return only when cloud-init has finished, not at the first login already.
    pub fn wait_cloud_init(mut self) -> Self {
        self.wait_cloud_init = true;
        self
    }

    /// How long the boot may take; by default 90 s on hardware, ten times as long under emulation.
    pub fn boot_timeout(mut self, limit: Duration) -> Self {
        self.boot_timeout = Some(limit);
        self
    }

    /// Let the machine outlive this process once it has come up. While it starts it is still bound to it.
    pub fn detached(mut self) -> Self {
        self.detached = true;
        self
    }

    /// Another fleetbox home than `FLEETBOX_HOME` or `~/.fleetbox`. An absolute path.
    pub fn home(mut self, home: impl Into<PathBuf>) -> Self {
        self.home = Some(home.into());
        self
    }

    /// Told what happens while the machine starts.
    pub fn on_event(mut self, f: impl Fn(Event) + Send + Sync + 'static) -> Self {
        self.on_event = Some(Arc::new(f));
        self
    }

    /// Brings the machine up and returns at the first verified login. A machine of that name that exists is booted
    /// from its disk; one that runs is returned as it is.
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
        let cluster = match &self.cluster {
            Some(c) => ClusterName::new(c)?,
            None => name.default_cluster(),
        };
        let image = self.image.as_deref().map(absolute_image).transpose()?;
        let mut spec = MachineSpec::new(name.clone());
        spec.image = image;
        spec.cpus = self.cpus;
        spec.memory_mib = self.memory_mib;
        spec.disk_gib = self.disk_gib;
        spec.ephemeral = self.ephemeral;
        spec.wait_cloud_init = self.wait_cloud_init;
        spec.boot_timeout_s = self.boot_timeout.map(|d| d.as_secs().max(1));
        spec.validate()?;
        let store = open_store(self.home.as_deref())?;
        let on_event = self.on_event.unwrap_or_else(|| Arc::new(log_event));
        let deadline = tokio::time::Instant::now() + CLOSING_LIMIT;
        let (connection, info) = loop {
            let connection = match connection::existing(&store, &cluster).await? {
                Some(connection) => connection,
                None => {
                    check_root(&name)?;
                    connection::open(&store, &cluster, false).await?
                }
            };
            match connection.client.start(&spec, &*on_event).await {
                Ok(info) => break (connection, info),
                // The holder that was found was just ending; nothing has been started, so ask its successor.
                Err(e) if was_closing(&e) && tokio::time::Instant::now() < deadline => {
                    drop(connection);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(e) => return Err(Error::from_client(format!("start machine {name}"), e)),
            }
        };
        if self.detached {
            connection.detach().await?;
        }
        Vm::from_parts(connection, info)
    }
}

/// How long a start waits for a holder that is ending to make room.
const CLOSING_LIMIT: Duration = Duration::from_secs(10);

fn was_closing(error: &ClientError) -> bool {
    match error {
        ClientError::NotThere { .. } => true,
        ClientError::Api(e) => e.kind == ErrorKind::Closing,
        _ => false,
    }
}

/// Warnings and phases reach whoever listens to tracing when no callback was given.
fn log_event(event: Event) {
    match event {
        Event::Warning { machine, message } => tracing::warn!(%machine, "{message}"),
        other => tracing::debug!(event = ?other),
    }
}

/// A relative path means something only in this process's folder.
fn absolute_image(image: &str) -> Result<ImageRef> {
    Ok(match image.parse()? {
        ImageRef::File(path) if path.is_relative() => {
            ImageRef::File(std::path::absolute(&path).unwrap_or(path))
        }
        other => other,
    })
}

pub(crate) fn open_store(home: Option<&std::path::Path>) -> Result<Store> {
    let opened = match home {
        Some(home) => Store::open(home),
        None => Store::open_default(),
    };
    opened.map_err(Error::store("open the fleetbox home"))
}

fn check_root(name: &MachineName) -> Result<()> {
    // The fake backend of fleetbox's own tests is told by the holder what it lacks, if anything.
    if fleetbox_os::host::is_root() || std::env::var_os("FLEETBOX_BACKEND").is_some_and(|b| b == "fake") {
        return Ok(());
    }
    Err(Error::NotRoot { machine: name.to_string(), uid: fleetbox_os::host::effective_uid() })
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

#[derive(Debug)]
struct Inner {
    connection: Arc<Connection>,
    name: MachineName,
    ip: IpAddr,
    info: RwLock<MachineInfo>,
    ssh: SshClient,
    /// Stopped or destroyed through a handle of this process: nothing is left for `Drop`.
    ended: AtomicBool,
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

impl Vm {
    /// Describes a machine by name; see [`VmBuilder`].
    ///
    /// A name is 1 to 63 of `a-z`, `0-9` and `-`, and unique in one fleetbox home.
    pub fn builder(name: impl Into<String>) -> VmBuilder {
        VmBuilder::new(name)
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

    fn from_parts(connection: Arc<Connection>, info: MachineInfo) -> Result<Self> {
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
        };
        Ok(Self { inner: Arc::new(inner) })
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
        self.inner.ended.store(true, Ordering::Release);
        Ok(())
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

/// What the system's `ssh` needs to reach a machine, host key verified.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SshAccess {
    /// The machine's address.
    pub ip: IpAddr,
    /// The user, who has passwordless sudo.
    pub user: String,
    /// The private key's file.
    pub identity_file: PathBuf,
    /// A `known_hosts` file with the machine's host key and no other.
    pub known_hosts: PathBuf,
    /// The name that the host key is filed under.
    pub host_key_alias: String,
}

impl SshAccess {
    pub(crate) fn write(store: &Store, info: &MachineInfo) -> Result<Self> {
        let ip = info.ip.ok_or_else(|| Error::NotFound { name: info.name.to_string() })?;
        let known_hosts = store.machine_dir(&info.cluster, &info.name).known_hosts();
        let alias = format!("{}.{}.test", info.name, info.cluster);
        let text = format!("{alias} {}\n", info.host_key.trim());
        if std::fs::read_to_string(&known_hosts).ok().as_deref() != Some(text.as_str()) {
            let written = fleetbox_store::write_atomic(&known_hosts, text.as_bytes(), 0o644);
            written.map_err(Error::store(format!("write known_hosts of machine {}", info.name)))?;
        }
        Ok(Self {
            ip,
            user: "fleetbox".into(),
            identity_file: store.ssh_key(),
            known_hosts,
            host_key_alias: alias,
        })
    }

    /// The options in the order of ssh_config(5), as name and value.
    #[must_use]
    pub fn options(&self) -> Vec<(&'static str, String)> {
        vec![
            ("HostName", self.ip.to_string()),
            ("User", self.user.clone()),
            ("IdentityFile", self.identity_file.display().to_string()),
            ("IdentitiesOnly", "yes".into()),
            ("UserKnownHostsFile", self.known_hosts.display().to_string()),
            ("HostKeyAlias", self.host_key_alias.clone()),
            ("StrictHostKeyChecking", "yes".into()),
            ("LogLevel", "ERROR".into()),
        ]
    }

    /// Arguments for `ssh`, up to and including the destination.
    #[must_use]
    pub fn ssh_args(&self) -> Vec<String> {
        // The user's own configuration may hold a wildcard that overrides what is set here.
        let mut args = vec!["-F".to_owned(), "/dev/null".to_owned()];
        for (name, value) in self.options() {
            args.push("-o".into());
            args.push(format!("{name}={value}"));
        }
        args.push(self.ip.to_string());
        args
    }
}
