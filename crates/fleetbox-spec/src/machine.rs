//! What a machine shall be, and what it is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::{BootInfo, BootStage, ClusterName, FirmwareChoice, ImageRef, MachineName, State};

/// Virtual CPUs of a machine when none are asked for.
pub const DEFAULT_CPUS: u32 = 2;
/// Memory in MiB when none is asked for.
pub const DEFAULT_MEMORY_MIB: u64 = 1024;
/// The least disk size in GiB when none is asked for; a larger image keeps its own size.
pub const DEFAULT_DISK_GIB: u64 = 10;

/// What a machine shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineSpec {
    /// The machine's name and hostname.
    pub name: MachineName,
    /// The image its disk starts from; `None` takes the default, or on a machine that exists, its own.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "bootstrap:bookworm"))]
    pub image: Option<ImageRef>,
    /// Virtual CPUs, at least 1; `None` keeps what an existing machine has, else [`DEFAULT_CPUS`].
    #[serde(default)]
    pub cpus: Option<u32>,
    /// Memory in MiB; `None` as for `cpus`, with [`DEFAULT_MEMORY_MIB`].
    #[serde(default)]
    pub memory_mib: Option<u64>,
    /// Disk size in GiB; a disk grows at the next boot and never shrinks.
    #[serde(default)]
    pub disk_gib: Option<u64>,
    /// Deleted, disk and all, when its owner is gone (otherwise it is stopped and kept).
    #[serde(default)]
    pub ephemeral: bool,
    /// Wait for cloud-init's `boot-finished` too, not just for the first login.
    #[serde(default)]
    pub wait_cloud_init: bool,
    /// How long a boot may take, in seconds; `None` takes the default for the accelerator found.
    #[serde(default)]
    pub boot_timeout_s: Option<u64>,
    /// What brings its kernel up; `None` keeps what an existing machine has, else [`FirmwareChoice::Auto`].
    #[serde(default)]
    pub firmware: Option<FirmwareChoice>,
}

/// What is wrong with a [`MachineSpec`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// No virtual CPUs.
    #[error("machine {0} asks for 0 CPUs; at least 1 is needed")]
    NoCpus(MachineName),
    /// More virtual CPUs than any backend gives a machine.
    #[error("machine {name} asks for {cpus} CPUs; at most {max} are supported")]
    TooManyCpus {
        /// The machine.
        name: MachineName,
        /// What was asked for.
        cpus: u32,
        /// The most that is possible.
        max: u32,
    },
    /// Less memory than any stock image boots with.
    #[error("machine {name} asks for {memory_mib} MiB of memory; stock images need at least {min} MiB")]
    TooLittleMemory {
        /// The machine.
        name: MachineName,
        /// What was asked for, in MiB.
        memory_mib: u64,
        /// The least possible, in MiB.
        min: u64,
    },
    /// A disk of no size.
    #[error("machine {0} asks for a disk of 0 GiB")]
    NoDisk(MachineName),
    /// A disk larger than any file system here takes.
    #[error("machine {name} asks for a disk of {disk_gib} GiB; at most {max} GiB are supported")]
    TooMuchDisk {
        /// The machine.
        name: MachineName,
        /// What was asked for, in GiB.
        disk_gib: u64,
        /// The most possible, in GiB.
        max: u64,
    },
}

impl MachineSpec {
    /// A spec with nothing but a name: everything else by default.
    #[must_use]
    pub fn new(name: MachineName) -> Self {
        Self {
            name,
            image: None,
            cpus: None,
            memory_mib: None,
            disk_gib: None,
            ephemeral: false,
            wait_cloud_init: false,
            boot_timeout_s: None,
            firmware: None,
        }
    }

    /// Checks what can be checked without looking at the host or the image.
    ///
    /// # Errors
    /// [`SpecError`] names the machine, what it asked for and the bound.
    pub fn validate(&self) -> Result<(), SpecError> {
        const MAX_CPUS: u32 = 255;
        const MIN_MEMORY: u64 = 128;
        const MAX_DISK: u64 = 16 * 1024;
        let name = || self.name.clone();
        match self.cpus {
            Some(0) => return Err(SpecError::NoCpus(name())),
            Some(cpus) if cpus > MAX_CPUS => {
                return Err(SpecError::TooManyCpus { name: name(), cpus, max: MAX_CPUS });
            }
            _ => {}
        }
        if let Some(memory_mib) = self.memory_mib.filter(|&m| m < MIN_MEMORY) {
            return Err(SpecError::TooLittleMemory { name: name(), memory_mib, min: MIN_MEMORY });
        }
        match self.disk_gib {
            Some(0) => Err(SpecError::NoDisk(name())),
            Some(disk_gib) if disk_gib > MAX_DISK => {
                Err(SpecError::TooMuchDisk { name: name(), disk_gib, max: MAX_DISK })
            }
            _ => Ok(()),
        }
    }
}

/// How guest code is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Accel {
    /// Hardware virtualization through Linux KVM.
    Kvm,
    /// Hardware virtualization through Apple's hypervisor.
    Hvf,
    /// Emulation in software: right, but some ten times slower.
    Tcg,
    /// No guest code is executed at all; the fake backend of fleetbox's own tests.
    None,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kvm => "kvm",
            Self::Hvf => "hvf",
            Self::Tcg => "tcg",
            Self::None => "none",
        })
    }
}

/// A processor architecture, named as in Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// AArch64.
    Arm64,
}

impl Arch {
    /// The architecture this program was compiled for; `None` on one that fleetbox does not run on.
    #[must_use]
    pub fn host() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::Amd64),
            "aarch64" => Some(Self::Arm64),
            _ => None,
        }
    }

    /// Debian's name for it.
    #[must_use]
    pub fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// Format of a disk file. Always given outright; a VMM never guesses it from foreign bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Plain bytes.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl DiskFormat {
    /// File name extension, and the name `qemu-img` and QEMU have for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// What a backend can do on this host. A difference between VMMs is a field here, never a name check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Capabilities {
    /// The backend's name, for display only.
    pub backend: String,
    /// How it executes guest code here.
    pub accel: Accel,
    /// Several machines can share a network.
    pub clustering: bool,
    /// A running machine can be paused and resumed.
    pub pause: bool,
    /// An image without an extractable kernel can be booted through firmware.
    pub firmware_boot: bool,
    /// Disks may be qcow2 overlays; otherwise they must be raw.
    pub qcow2_overlay: bool,
}

/// What keeps a holder, and with it its machines, alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LeaseKind {
    /// The process that started it: it ends with that process.
    Bound,
    /// Nothing: it lives until it is closed.
    Detached,
}

impl fmt::Display for LeaseKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bound => "bound",
            Self::Detached => "detached",
        })
    }
}

/// What a machine is, as its holder (or, when none runs, the disk) tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineInfo {
    /// Name and hostname.
    pub name: MachineName,
    /// The cluster whose network it is on.
    pub cluster: ClusterName,
    /// Where it is in its life.
    pub state: State,
    /// Its address on the cluster's network; kept while the machine exists. `None` before its first start.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "ipv4"))]
    pub ip: Option<IpAddr>,
    /// Its MAC address, as `52:54:00:aa:bb:cc`.
    pub mac: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Disk size in GiB, rounded up.
    pub disk_gib: u64,
    /// The image as the user named it.
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "bootstrap:bookworm"))]
    pub image: ImageRef,
    /// The backend that runs it, for display.
    pub backend: String,
    /// How guest code is executed.
    pub accel: Accel,
    /// The holder's process id, while one runs.
    pub holder_pid: Option<u32>,
    /// The VMM's process id, while one runs.
    pub vmm_pid: Option<u32>,
    /// When the machine was first created, RFC 3339 in UTC.
    pub created_at: String,
    /// Deleted when its owner is gone.
    pub ephemeral: bool,
    /// The public SSH host key in OpenSSH's one-line form: what a client must insist on.
    pub host_key: String,
    /// How far the current or last boot came.
    pub boot_stage: Option<BootStage>,
    /// What its last boot was by, and is by while it runs; `None` before the first.
    #[serde(default)]
    pub boot: Option<BootInfo>,
    /// Why it is [`State::Failed`], with the console's last lines.
    pub failure: Option<String>,
}

impl MachineInfo {
    /// The IPv4 address, if it has one yet.
    #[must_use]
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        match self.ip {
            Some(IpAddr::V4(ip)) => Some(ip),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_checked_and_named() {
        let spec = |f: fn(&mut MachineSpec)| {
            let mut s = MachineSpec::new(MachineName::new("web").unwrap());
            f(&mut s);
            s.validate().map_err(|e| e.to_string())
        };
        assert_eq!(spec(|_| {}), Ok(()));
        assert!(spec(|s| s.cpus = Some(0)).unwrap_err().contains("0 CPUs"));
        assert!(spec(|s| s.cpus = Some(4096)).unwrap_err().contains("at most 255"));
        assert!(spec(|s| s.memory_mib = Some(1)).unwrap_err().contains("at least 128 MiB"));
        assert!(spec(|s| s.disk_gib = Some(0)).unwrap_err().contains("0 GiB"));
        assert!(spec(|s| s.disk_gib = Some(1 << 40)).unwrap_err().contains("at most"));
    }
}
