//! The contract between fleetbox and a virtual machine monitor (VMM).
//!
//! A [`Backend`] launches machines; a [`Machine`] is one running VMM process. What differs between VMMs
//! is a field of [`Capabilities`], never a name check. [`fake`] is a backend
//! without guests, for tests of everything above this line.
#![warn(missing_docs)]

pub mod console;
pub mod fake;
pub mod process;
pub mod stop;

use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
pub use fleetbox_spec::DiskFormat;
use fleetbox_spec::{Capabilities, MachineName};
use tokio::sync::mpsc;

/// How a machine boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// The image's own kernel, loaded by the VMM: no firmware menu, no boot loader.
    Kernel {
        /// The kernel (bzImage on amd64).
        kernel: PathBuf,
        /// The initial RAM file system.
        initrd: Option<PathBuf>,
        /// The kernel's command line.
        cmdline: String,
    },
    /// Through a BIOS and the disk's own boot loader.
    Bios,
    /// Through UEFI firmware and the disk's own boot loader.
    Efi {
        /// The firmware's variables of this machine; a file that is not there is made from the firmware's template.
        vars: PathBuf,
    },
}

impl Boot {
    /// Whether the disk's own boot loader finds the kernel.
    #[must_use]
    pub fn is_firmware(&self) -> bool {
        !matches!(self, Self::Kernel { .. })
    }
}

/// A block device of a machine, in the order the guest sees them (`/dev/vda`, `/dev/vdb`, ...).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Short id, shown to the guest as the virtio serial (at most 20 of a-z, 0-9, `-`).
    pub id: String,
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// The guest cannot write to it.
    pub read_only: bool,
}

/// A network interface.
#[derive(Debug)]
pub struct Nic {
    /// A tap's descriptor, made with a vnet header (`IFF_VNET_HDR`). The VMM needs no privilege to use it.
    pub tap: OwnedFd,
    /// The guest's MAC address.
    pub mac: [u8; 6],
    /// The address the guest will have, for the fake backend and for messages.
    pub ip: Ipv4Addr,
}

/// All a backend needs to start a machine.
#[derive(Debug)]
pub struct LaunchConfig {
    /// The machine's name, for process titles and messages.
    pub name: MachineName,
    /// A stable machine UUID in the usual 8-4-4-4-12 form (SMBIOS system UUID).
    pub uuid: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// How it boots.
    pub boot: Boot,
    /// Its disks; the first one is the root disk.
    pub disks: Vec<Disk>,
    /// Its network interface.
    pub nic: Option<Nic>,
    /// Where the serial console goes; appended to.
    pub serial_log: PathBuf,
    /// Where the VMM's own stderr goes; truncated.
    pub vmm_log: PathBuf,
}

/// What a running machine tells by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MachineEvent {
    /// The guest powered itself off; the VMM ends next.
    GuestPoweredOff,
    /// The guest rebooted itself; the VMM ends next, and whoever owns the machine boots it anew from the
    /// disk as it is now (a direct-boot VMM would otherwise load the old kernel again).
    GuestRebooted,
    /// The guest's kernel panicked.
    GuestPanicked,
    /// The virtual CPUs are halted.
    Paused,
    /// The virtual CPUs run again.
    Resumed,
    /// The VMM process has ended and is reaped. Always the last event.
    Exited(VmmExit),
}

/// How a VMM process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmmExit {
    /// The exit code, when it exited.
    pub code: Option<i32>,
    /// The signal, when one killed it.
    pub signal: Option<i32>,
    /// The last lines of its stderr.
    pub stderr_tail: String,
}

impl fmt::Display for VmmExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}")?,
            (None, Some(signal)) => write!(f, "signal {signal}")?,
            (None, None) => write!(f, "unknown status")?,
        }
        let tail = self.stderr_tail.trim();
        if !tail.is_empty() {
            write!(f, "; its last words: {tail}")?;
        }
        Ok(())
    }
}

/// What went wrong between fleetbox and a VMM.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmmError {
    /// The VMM's program could not be started.
    #[error("could not start {program} for machine {machine}")]
    Spawn {
        /// The machine.
        machine: MachineName,
        /// The program.
        program: PathBuf,
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
    /// The VMM ended while it was being started.
    #[error("the VMM of machine {machine} ended while starting: {exit}")]
    DiedAtStart {
        /// The machine.
        machine: MachineName,
        /// How, with its last words.
        exit: VmmExit,
    },
    /// The VMM refused a command.
    #[error("the VMM of machine {machine} refused {command}: {answer}")]
    Refused {
        /// The machine.
        machine: MachineName,
        /// The command.
        command: String,
        /// What the VMM said.
        answer: String,
    },
    /// The VMM did not answer a command within its time.
    #[error("the VMM of machine {machine} did not answer {command} within {seconds} s")]
    NoAnswer {
        /// The machine.
        machine: MachineName,
        /// The command.
        command: String,
        /// The time it was given.
        seconds: u64,
    },
    /// The VMM has ended, so it cannot be asked for anything.
    #[error("the VMM of machine {machine} has ended, so {command} cannot be carried out")]
    Gone {
        /// The machine.
        machine: MachineName,
        /// The command.
        command: String,
    },
    /// The VMM's control channel carried something that is not its protocol.
    #[error("the VMM of machine {machine} broke its control protocol: {what}")]
    Protocol {
        /// The machine.
        machine: MachineName,
        /// What was seen, cut short.
        what: String,
    },
    /// The backend cannot do this.
    #[error("backend {backend} cannot {what}")]
    Unsupported {
        /// The backend.
        backend: String,
        /// What was asked of it.
        what: String,
    },
    /// No UEFI firmware is installed.
    #[error(
        "machine {machine} needs UEFI firmware, and none was found; Debian's package {package} has it (looked for {})",
        paths(looked)
    )]
    NoFirmware {
        /// The machine.
        machine: MachineName,
        /// The Debian package that has it.
        package: &'static str,
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// The UEFI firmware that is installed is not of the kind that the machine's variables were made for.
    #[error(
        "the UEFI variables of machine {machine} in {vars} have {size} bytes, which no UEFI firmware found here takes"
    )]
    OtherFirmware {
        /// The machine.
        machine: MachineName,
        /// The file of its variables.
        vars: PathBuf,
        /// Its size.
        size: u64,
    },
    /// A file or descriptor for the VMM could not be prepared.
    #[error("could not prepare {what} for the VMM of machine {machine}")]
    Prepare {
        /// The machine.
        machine: MachineName,
        /// What was being prepared.
        what: String,
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
}

fn paths(all: &[PathBuf]) -> String {
    all.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// A freshly launched machine and its events.
#[derive(Debug)]
pub struct Launched {
    /// The machine. When the last reference is dropped, its VMM is killed and reaped.
    pub machine: Arc<dyn Machine>,
    /// What it tells; ends after [`MachineEvent::Exited`].
    pub events: mpsc::UnboundedReceiver<MachineEvent>,
}

/// Starts machines with one kind of VMM.
#[async_trait]
pub trait Backend: Send + Sync + fmt::Debug {
    /// What it can do on this host.
    fn capabilities(&self) -> &Capabilities;

    /// Starts a VMM and lets its guest run. Returns when the VMM has answered, long before the guest has booted.
    /// A cancelled launch leaves no process.
    ///
    /// # Errors
    /// [`VmmError::Spawn`], [`VmmError::DiedAtStart`] with the VMM's last words, [`VmmError::NoAnswer`].
    async fn launch(&self, config: LaunchConfig) -> Result<Launched, VmmError>;
}

/// One running VMM and its guest. All calls may be made at the same time and cancelled at any point.
#[async_trait]
pub trait Machine: Send + Sync + fmt::Debug {
    /// The VMM's process id; `None` where the VMM is not a process of its own.
    fn pid(&self) -> Option<u32>;

    /// Presses the ACPI power button: asks the guest to shut down.
    ///
    /// # Errors
    /// When the VMM does not take the command; not when the guest ignores the button.
    async fn power_button(&self) -> Result<(), VmmError>;

    /// Asks the VMM to end by its own means. The guest is not asked.
    ///
    /// # Errors
    /// When the VMM does not take the command.
    async fn quit(&self) -> Result<(), VmmError>;

    /// Sends the VMM SIGTERM.
    ///
    /// # Errors
    /// What the system answered; `Ok` when it has ended already.
    fn terminate(&self) -> std::io::Result<()>;

    /// Sends the VMM's process group SIGKILL.
    ///
    /// # Errors
    /// What the system answered; `Ok` when it has ended already.
    fn kill(&self) -> std::io::Result<()>;

    /// Halts the virtual CPUs.
    ///
    /// # Errors
    /// When the VMM does not take the command.
    async fn pause(&self) -> Result<(), VmmError>;

    /// Lets the virtual CPUs run again.
    ///
    /// # Errors
    /// When the VMM does not take the command.
    async fn resume(&self) -> Result<(), VmmError>;

    /// Where the current boot began in `serial_log`, in bytes.
    fn console_start(&self) -> u64;
}
