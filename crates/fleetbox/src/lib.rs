//! Real Linux machines as test fixtures: boot stock cloud images as VMs, reach them over SSH, and be
//! certain that they are gone afterwards.
//!
//! ```no_run
//! # async fn f() -> fleetbox::Result<()> {
//! let vm = fleetbox::Vm::builder("web").image("bootstrap:bookworm").start().await?;
//! println!("{} runs {}", vm.ip(), vm.ssh("uname -a").await?);
//! vm.destroy().await?;
//! # Ok(()) }
//! ```
//!
//! - Everything is async on tokio; [`blocking`] is the same API without it.
//! - A machine is bound to the process that started it: when that process ends, however it ends, the
//!   machine's VMM, links and rules are gone within two seconds, by themselves. A named machine keeps its
//!   disk and boots from it the next time; an [`ephemeral`](VmBuilder::ephemeral) one is deleted.
//! - Root is needed for bridges and taps. See the README for running tests through `sudo -E`.
//!
//! Nothing of fleetbox's runs inside a machine: it reads one cloud-init seed, and is a stock image
//! otherwise.
#![deny(missing_docs)]

pub mod blocking;
mod builder;
mod cluster;
mod connection;
mod error;
mod fleet;
mod holder;
mod host;
mod images;
mod output;
mod settings;
mod settle;
mod ssh_access;
mod together;
mod vm;

pub use builder::VmBuilder;
pub use cluster::{Cluster, ClusterBuilder, Members, close_cluster, cluster_exists};
pub use error::{Error, Remote, Result};
pub use fleet::{
    Listing, Pruned, console_log, inspect, list, network_damage, prune, remove, ssh_access, stop,
};
pub use fleetbox_spec::{
    Accel, Arch, BootInfo, BootStage, BootVia, DiskFormat, ErrorKind, Event, FirmwareChoice, ImageRef,
    KernelSource, MachineInfo, MachineName, Phase, PhaseTiming, Progress, State,
};
pub use fleetbox_ssh::{Command, ExitStatus};
pub use host::{Host, Mark, ReportLine, nested_virt_supported, supports_clustering};
pub use images::{CatalogImage, ImageBuild, ImageInfo, ImageList, ImageWork, Images, ImagesPruned, images};
pub use output::Output;
pub use settle::{released, settled};
pub use ssh_access::SshAccess;
pub use together::{StartOptions, cluster_for, start_cluster, start_n};
pub use vm::Vm;

#[cfg(target_os = "linux")]
mod reexec {
    /// Runs before `main` in every program that links fleetbox: a program that was started as a holder
    /// becomes one here and never reaches its own `main` (nor libtest's). An initializer is the one way to be ahead
    /// of both in any program; std works by then on Linux (docs/adr/0002).
    #[ctor::ctor(unsafe)]
    fn become_holder() {
        fleetbox_holder::enter_if_asked();
    }
}
