//! The QEMU backend: one `qemu-system-*` process for each machine, driven over QMP.
//!
//! ```text
//!  find() -> QemuBackend::launch ---spawn---> qemu   descriptor 3: its end of a socket pair, for QMP
//!                 |                            |     descriptor 4: the tap
//!                 v                            |
//!            QemuMachine ------commands------->|     dies with this process (PR_SET_PDEATHSIG)
//!            events <-- one task <---events----+
//! ```
//! Invariants:
//! * No socket file, no pid file: nothing of a machine's control is left behind, whoever is killed.
//! * The VMM inherits its standard streams and the two descriptors above, and nothing else.
//! * A process is owned by a value at every point: a cancelled launch or a dropped machine kills and reaps it.
//! * [`Exited`](fleetbox_vmm::MachineEvent::Exited) is told after the process is reaped, and last.
//! * The accelerator is asked for outright. `kvm:tcg` does not fall back where KVM opens and does not work.
#![warn(missing_docs)]

mod args;
mod efi;
mod events;
mod find;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod machine;
mod qmp;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use fleetbox_spec::{Accel, Arch, Capabilities};
use fleetbox_vmm::{Backend, Boot, LaunchConfig, Launched, VmmError};

pub use efi::{SHARE_VARIABLE, is_there as has_efi};
pub use find::{FindError, FoundQemu, LEAST_VERSION, PROGRAM_VARIABLE, QemuVersion, find, program_name};

/// Which QEMU to run, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuConfig {
    /// The program.
    pub program: PathBuf,
    /// Its version.
    pub version: QemuVersion,
    /// The guests' architecture, which the program must be for.
    pub arch: Arch,
    /// [`Accel::Kvm`] where the host's KVM really executes guest code, else [`Accel::Tcg`].
    pub accel: Accel,
    /// How long a started VMM may take until it has answered on its control channel.
    pub start_deadline: Duration,
    /// How long it may take to answer a command.
    pub command_deadline: Duration,
}

impl QemuConfig {
    /// Runs what [`find()`] found, with deadlines that a loaded host keeps easily: 30 s to start (0.05 s is
    /// usual), 10 s for a command.
    #[must_use]
    pub fn new(found: FoundQemu, arch: Arch, accel: Accel) -> Self {
        Self {
            program: found.program,
            version: found.version,
            arch,
            accel,
            start_deadline: Duration::from_secs(30),
            command_deadline: Duration::from_secs(10),
        }
    }
}

/// Starts machines with QEMU.
#[derive(Debug)]
pub struct QemuBackend {
    config: QemuConfig,
    capabilities: Capabilities,
}

impl QemuBackend {
    /// A backend that runs this QEMU. Starts nothing.
    #[must_use]
    pub fn new(config: QemuConfig) -> Self {
        let capabilities = Capabilities {
            backend: "qemu".to_owned(),
            accel: config.accel,
            clustering: true,
            pause: true,
            // QEMU brings SeaBIOS along for amd64; UEFI is another package's.
            firmware_boot: config.arch == Arch::Amd64 || efi::is_there(config.arch),
            qcow2_overlay: true,
        };
        Self { config, capabilities }
    }

    /// What it runs.
    #[must_use]
    pub fn config(&self) -> &QemuConfig {
        &self.config
    }
}

#[async_trait]
impl Backend for QemuBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn launch(&self, config: LaunchConfig) -> Result<Launched, VmmError> {
        let unsupported =
            |what: String| VmmError::Unsupported { backend: self.capabilities.backend.clone(), what };
        if config.boot == Boot::Bios && self.config.arch != Arch::Amd64 {
            let arch = self.config.arch.debian();
            return Err(unsupported(format!(
                "boot {} through a BIOS: there is none for {arch}",
                config.name
            )));
        }
        if !matches!(self.config.accel, Accel::Kvm | Accel::Tcg) {
            return Err(unsupported(format!("run guests with accelerator {}", self.config.accel)));
        }
        machine::launch(&self.config, config).await
    }
}
