//! What is written about machines and networks.

use std::net::Ipv4Addr;

use fleetbox_spec::{Accel, BootInfo, FirmwareChoice, ImageRef, MachineName};
use serde::{Deserialize, Serialize};

/// A record that says which version of its format it is.
pub trait Versioned {
    /// The newest version this program writes and reads. Older ones are read, too.
    const VERSION: u32;
}

/// `machine.json`: what a machine is, across its boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// Its name.
    pub name: MachineName,
    /// The image as the user named it.
    pub image: ImageRef,
    /// The image's digest: the folder its disk is an overlay of.
    pub image_digest: String,
    /// Virtual CPUs of the next boot.
    pub cpus: u32,
    /// Memory of the next boot, in MiB.
    pub memory_mib: u64,
    /// Size of the disk in GiB.
    pub disk_gib: u64,
    /// The disk's file name, such as `disk.qcow2`.
    pub disk: String,
    /// The backend it was made with, and is kept on.
    pub backend: String,
    /// How guest code was last executed.
    pub accel: Accel,
    /// SMBIOS system UUID.
    pub uuid: String,
    /// MAC address, as `52:54:00:aa:bb:cc`.
    pub mac: String,
    /// Address on the cluster's network.
    pub ip: Ipv4Addr,
    /// cloud-init's instance id; it never changes, so that users' commands run once.
    pub instance_id: String,
    /// The public host key in OpenSSH's one-line form.
    pub host_key: String,
    /// When it was created, RFC 3339 in UTC.
    pub created_at: String,
    /// Deleted when its owner is gone.
    pub ephemeral: bool,
    /// Why its last boot failed, if it did.
    #[serde(default)]
    pub failure: Option<String>,
    /// What shall bring its kernel up.
    #[serde(default)]
    pub firmware: FirmwareChoice,
    /// What its last boot was by; `None` until its first boot was prepared, and in records of earlier programs.
    #[serde(default)]
    pub boot: Option<BootInfo>,
    /// The kernel's arguments of the last boot without firmware.
    #[serde(default)]
    pub kernel_args: Option<KernelArgs>,
}

/// Arguments that go with the kernel in a machine's `boot/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelArgs {
    /// They name the root file system.
    pub root: String,
    /// What the system itself asks for beyond that.
    pub extra: String,
}

impl Versioned for MachineRecord {
    const VERSION: u32 = 1;
}

/// `network.json`: what a cluster's network is, across its holders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// The network's /24 without its last octet's host part, such as `10.77.3.0`.
    pub subnet: Ipv4Addr,
    /// The bridge's link name.
    pub bridge: String,
    /// Made by `Cluster::create`, so it stays while it is empty; otherwise it goes with its last machine.
    pub explicit: bool,
}

impl Versioned for NetworkRecord {
    const VERSION: u32 = 1;
}
