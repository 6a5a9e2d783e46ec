//! The same API for code that is not async.
//!
//! Each call blocks its thread. The work is done on a runtime of fleetbox's own, started with the first
//! call; do not call it from within another runtime's task.
//!
//! ```no_run
//! use fleetbox::blocking::Vm;
//! let vm = Vm::start(Vm::builder("web").ephemeral())?;
//! println!("{}", vm.ssh("uname -r")?);
//! vm.destroy()?;
//! # Ok::<(), fleetbox::Error>(())
//! ```

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::OnceLock;

use fleetbox_spec::{MachineInfo, State};
use fleetbox_ssh::Command;
use tokio::runtime::Runtime;

use crate::{
    ClusterBuilder, ImageBuild, ImageInfo, ImageList, ImageWork, ImagesPruned, Members, Output, Pruned,
    Result, SshAccess, StartOptions, VmBuilder,
};

/// Runs a future to its end on fleetbox's own runtime.
///
/// # Panics
/// Within another runtime's task, as tokio does; and when no thread can be had for the runtime.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        let built = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("fleetbox-blocking")
            .enable_all()
            .build();
        #[expect(
            clippy::expect_used,
            reason = "without a thread there is nobody to do any of this API's work"
        )]
        built.expect("a thread for fleetbox's blocking runtime")
    });
    runtime.block_on(future)
}

/// A machine; see [`crate::Vm`], whose methods these are.
#[derive(Debug, Clone)]
pub struct Vm(crate::Vm);

impl Vm {
    /// Describes a machine by name; see [`crate::Vm::builder`].
    pub fn builder(name: impl Into<String>) -> VmBuilder {
        crate::Vm::builder(name)
    }

    /// Brings a machine up; see [`VmBuilder::start`].
    ///
    /// # Errors
    /// As [`VmBuilder::start`].
    pub fn start(builder: VmBuilder) -> Result<Self> {
        block_on(builder.start()).map(Self)
    }

    /// See [`crate::Vm::find`].
    ///
    /// # Errors
    /// As [`crate::Vm::find`].
    pub fn find(name: &str) -> Result<Self> {
        block_on(crate::Vm::find(name)).map(Self)
    }

    /// See [`crate::Vm::name`].
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// See [`crate::Vm::ip`].
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.0.ip()
    }

    /// See [`crate::Vm::state`].
    ///
    /// # Errors
    /// As [`crate::Vm::state`].
    pub fn state(&self) -> Result<State> {
        block_on(self.0.state())
    }

    /// See [`crate::Vm::info`].
    ///
    /// # Errors
    /// As [`crate::Vm::info`].
    pub fn info(&self) -> Result<MachineInfo> {
        block_on(self.0.info())
    }

    /// See [`crate::Vm::exec`].
    ///
    /// # Errors
    /// As [`crate::Vm::exec`].
    pub fn exec(&self, command: impl Into<Command>) -> Result<Output> {
        block_on(self.0.exec(command))
    }

    /// See [`crate::Vm::ssh`].
    ///
    /// # Errors
    /// As [`crate::Vm::ssh`].
    pub fn ssh(&self, command: &str) -> Result<String> {
        block_on(self.0.ssh(command))
    }

    /// See [`crate::Vm::stop`].
    ///
    /// # Errors
    /// As [`crate::Vm::stop`].
    pub fn stop(&self) -> Result<()> {
        block_on(self.0.stop())
    }

    /// See [`crate::Vm::kill`].
    ///
    /// # Errors
    /// As [`crate::Vm::kill`].
    pub fn kill(&self) -> Result<()> {
        block_on(self.0.kill())
    }

    /// Boots it again; see [`crate::Vm::start`].
    ///
    /// # Errors
    /// As [`crate::Vm::start`].
    pub fn start_again(&self) -> Result<()> {
        block_on(self.0.start())
    }

    /// See [`crate::Vm::destroy`].
    ///
    /// # Errors
    /// As [`crate::Vm::destroy`].
    pub fn destroy(&self) -> Result<()> {
        block_on(self.0.destroy())
    }

    /// See [`crate::Vm::pause`].
    ///
    /// # Errors
    /// As [`crate::Vm::pause`].
    pub fn pause(&self) -> Result<()> {
        block_on(self.0.pause())
    }

    /// See [`crate::Vm::resume`].
    ///
    /// # Errors
    /// As [`crate::Vm::resume`].
    pub fn resume(&self) -> Result<()> {
        block_on(self.0.resume())
    }

    /// See [`crate::Vm::reset`].
    ///
    /// # Errors
    /// As [`crate::Vm::reset`].
    pub fn reset(&self) -> Result<()> {
        block_on(self.0.reset())
    }

    /// See [`crate::Vm::detach`].
    ///
    /// # Errors
    /// As [`crate::Vm::detach`].
    pub fn detach(&self) -> Result<()> {
        block_on(self.0.detach())
    }

    /// See [`crate::Vm::console_log`].
    #[must_use]
    pub fn console_log(&self) -> PathBuf {
        self.0.console_log()
    }

    /// See [`crate::Vm::ssh_access`].
    ///
    /// # Errors
    /// As [`crate::Vm::ssh_access`].
    pub fn ssh_access(&self) -> Result<SshAccess> {
        self.0.ssh_access()
    }
}

/// Machines that share a network; see [`crate::Cluster`], whose methods these are.
#[derive(Debug, Clone)]
pub struct Cluster(crate::Cluster);

impl Cluster {
    /// Describes a cluster by name; see [`crate::Cluster::builder`].
    pub fn builder(name: impl Into<String>) -> ClusterBuilder {
        crate::Cluster::builder(name)
    }

    /// Makes the network; see [`ClusterBuilder::create`].
    ///
    /// # Errors
    /// As [`ClusterBuilder::create`].
    pub fn create(builder: ClusterBuilder) -> Result<Self> {
        block_on(builder.create()).map(Self)
    }

    /// See [`crate::Cluster::name`].
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// See [`crate::Cluster::supports_clustering`].
    #[must_use]
    pub fn supports_clustering(&self) -> bool {
        self.0.supports_clustering()
    }

    /// See [`crate::Cluster::vms`].
    #[must_use]
    pub fn vms(&self) -> Vec<Vm> {
        self.0.vms().into_iter().map(Vm).collect()
    }

    /// See [`crate::Cluster::add`].
    ///
    /// # Errors
    /// As [`crate::Cluster::add`].
    pub fn add(&self, name: impl Into<String>) -> Result<Vm> {
        block_on(self.0.add(name)).map(Vm)
    }

    /// See [`crate::Cluster::add_with`].
    ///
    /// # Errors
    /// As [`crate::Cluster::add_with`].
    pub fn add_with(
        &self,
        name: impl Into<String>,
        settings: impl FnOnce(VmBuilder) -> VmBuilder,
    ) -> Result<Vm> {
        block_on(self.0.add_with(name, settings)).map(Vm)
    }

    /// See [`crate::Cluster::damage`].
    ///
    /// # Errors
    /// As [`crate::Cluster::damage`].
    pub fn damage(&self) -> Result<Vec<String>> {
        block_on(self.0.damage())
    }

    /// See [`crate::Cluster::detach`].
    ///
    /// # Errors
    /// As [`crate::Cluster::detach`].
    pub fn detach(&self) -> Result<()> {
        block_on(self.0.detach())
    }

    /// See [`crate::Cluster::close`].
    ///
    /// # Errors
    /// As [`crate::Cluster::close`].
    pub fn close(&self) -> Result<()> {
        block_on(self.0.close())
    }

    /// See [`crate::Cluster::close_with`].
    ///
    /// # Errors
    /// As [`crate::Cluster::close_with`].
    pub fn close_with(&self, members: Members) -> Result<()> {
        block_on(self.0.close_with(members))
    }
}

/// See [`crate::start_n`].
///
/// # Errors
/// As [`crate::start_n`].
pub fn start_n(base: &str, n: u32, options: StartOptions) -> Result<Vec<Vm>> {
    Ok(block_on(crate::start_n(base, n, options))?.into_iter().map(Vm).collect())
}

/// See [`crate::start_cluster`].
///
/// # Errors
/// As [`crate::start_cluster`].
pub fn start_cluster(names: &[impl AsRef<str>], options: StartOptions) -> Result<Vec<Vm>> {
    Ok(block_on(crate::start_cluster(names, options))?.into_iter().map(Vm).collect())
}

/// See [`crate::close_cluster`].
///
/// # Errors
/// As [`crate::close_cluster`].
pub fn close_cluster(name: &str, members: Option<Members>) -> Result<()> {
    block_on(crate::close_cluster(name, members))
}

/// See [`crate::supports_clustering`].
///
/// # Errors
/// As [`crate::supports_clustering`].
pub fn supports_clustering() -> Result<bool> {
    block_on(crate::supports_clustering())
}

/// See [`crate::list`].
///
/// # Errors
/// As [`crate::list`].
pub fn list() -> Result<crate::Listing> {
    block_on(crate::list())
}

/// See [`crate::network_damage`].
///
/// # Errors
/// As [`crate::network_damage`].
pub fn network_damage() -> Result<Vec<(fleetbox_spec::ClusterName, Vec<String>)>> {
    block_on(crate::network_damage())
}

/// See [`crate::prune`].
///
/// # Errors
/// As [`crate::prune`].
pub fn prune() -> Result<Pruned> {
    block_on(crate::prune())
}

/// The images of this environment's fleetbox home; see [`crate::images()`].
///
/// # Errors
/// As [`crate::images()`].
pub fn images() -> Result<Images> {
    crate::images().map(Images)
}

/// The images of a fleetbox home; see [`crate::Images`], whose methods these are.
#[derive(Debug, Clone)]
pub struct Images(crate::Images);

impl Images {
    /// See [`crate::Images::of_home`].
    ///
    /// # Errors
    /// As [`crate::Images::of_home`].
    pub fn of_home(home: &std::path::Path) -> Result<Self> {
        crate::Images::of_home(home).map(Self)
    }

    /// See [`crate::Images::list`].
    ///
    /// # Errors
    /// As [`crate::Images::list`].
    pub fn list(&self) -> Result<ImageList> {
        block_on(self.0.list())
    }

    /// See [`crate::Images::catalog`].
    ///
    /// # Errors
    /// As [`crate::Images::catalog`].
    pub fn catalog(&self) -> Result<Vec<crate::CatalogImage>> {
        block_on(self.0.catalog())
    }

    /// See [`crate::Images::inspect`].
    ///
    /// # Errors
    /// As [`crate::Images::inspect`].
    pub fn inspect(&self, name: &str) -> Result<ImageInfo> {
        block_on(self.0.inspect(name))
    }

    /// See [`crate::Images::pull`].
    ///
    /// # Errors
    /// As [`crate::Images::pull`].
    pub fn pull(&self, reference: &str, progress: impl Fn(ImageWork) + Send + Sync) -> Result<ImageInfo> {
        block_on(self.0.pull(reference, progress))
    }

    /// See [`crate::Images::import`].
    ///
    /// # Errors
    /// As [`crate::Images::import`].
    pub fn import(
        &self,
        file: impl AsRef<std::path::Path>,
        progress: impl Fn(ImageWork) + Send + Sync,
    ) -> Result<ImageInfo> {
        block_on(self.0.import(file, progress))
    }

    /// See [`crate::Images::import_with_backing`].
    ///
    /// # Errors
    /// As [`crate::Images::import_with_backing`].
    pub fn import_with_backing(
        &self,
        file: impl AsRef<std::path::Path>,
        progress: impl Fn(ImageWork) + Send + Sync,
    ) -> Result<ImageInfo> {
        block_on(self.0.import_with_backing(file, progress))
    }

    /// See [`crate::Images::build`].
    ///
    /// # Errors
    /// As [`crate::Images::build`].
    pub fn build(&self, build: &ImageBuild, progress: impl Fn(ImageWork) + Send + Sync) -> Result<ImageInfo> {
        block_on(self.0.build(build, progress))
    }

    /// See [`crate::Images::remove`].
    ///
    /// # Errors
    /// As [`crate::Images::remove`].
    pub fn remove(&self, name: &str) -> Result<(ImageInfo, u64)> {
        block_on(self.0.remove(name))
    }

    /// See [`crate::Images::prune`].
    ///
    /// # Errors
    /// As [`crate::Images::prune`].
    pub fn prune(&self, dry_run: bool) -> Result<ImagesPruned> {
        block_on(self.0.prune(dry_run))
    }
}

/// See [`crate::inspect`].
///
/// # Errors
/// As [`crate::inspect`].
pub fn inspect(name: &str) -> Result<MachineInfo> {
    block_on(crate::inspect(name))
}

/// See [`crate::remove`].
///
/// # Errors
/// As [`crate::remove`].
pub fn remove(name: &str, force: bool) -> Result<()> {
    block_on(crate::remove(name, force))
}

/// See [`crate::ssh_access()`].
///
/// # Errors
/// As [`crate::ssh_access()`].
pub fn ssh_access(name: &str) -> Result<SshAccess> {
    block_on(crate::ssh_access(name))
}
